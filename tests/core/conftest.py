"""What the tests of the policy core share: rules and calls made from the few things a test is about."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from gateway.call import Call, Origin, Principal
from gateway.core.expressions import Engine, open_engine
from gateway.core.facts import facts_of

ENGINES = ("cel-expr-python", "cel-python")


@dataclass(frozen=True)
class Match:
    principals: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConfiguredRule:
    id: str = "r"
    effect: Any = "deny"
    when: str | None = None
    match: Match = field(default_factory=Match)
    phase: str = "request"
    message: str | None = None
    remedy: str | None = None
    label: str | None = None
    source: str = "policies/x.toml:7"


@pytest.fixture(scope="session")
def rule() -> Callable[..., ConfiguredRule]:
    """A configured rule; match keys and rule keys alike are given by name."""
    keys = {key.name for key in fields(Match)}

    def make(**given: Any) -> ConfiguredRule:
        match = Match(**{name: value for name, value in given.items() if name in keys})
        return ConfiguredRule(match=match, **{name: value for name, value in given.items() if name not in keys})

    return make


@pytest.fixture(scope="session")
def call() -> Callable[..., Call]:
    """A chat call; what is given replaces the call's own fields, or goes into its principal."""

    def make(body: Any = None, **given: Any) -> Call:
        of_principal = {key: given.pop(key) for key in ("name", "team", "org", "roles") if key in given}
        usual = {"id": "call_1", "principal": Principal("key_1", **of_principal), "dialect": "openai",
                 "operation": "chat", "route": "fast", "body": {} if body is None else body, "stream": False,
                 "size": 100, "received_ns": 0, "origin": Origin()}
        return Call(**{**usual, **given})

    return make


@pytest.fixture(scope="session", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def engine(engine_name: str) -> Engine:
    return open_engine(engine_name, {name: fact.type for name, fact in facts_of("request").items()})


@pytest.fixture(scope="session")
def engines() -> tuple[Engine, ...]:
    variables = {name: fact.type for name, fact in facts_of("request").items()}
    return tuple(open_engine(name, variables) for name in ENGINES)
