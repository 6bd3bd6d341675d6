"""What the tests of the policy core share: rules, calls and questions made from the few things a test is about."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.call import Call, Origin, Principal
from gateway.core.decision import PHASES, Phase
from gateway.core.detectors import Detectors
from gateway.core.expressions import Engine, Library, open_engine
from gateway.core.facts import facts_of
from gateway.core.question import Question
from gateway.rule_config import MatchConfig, RuleConfig

ENGINES = ("cel-expr-python", "cel-python")


@pytest.fixture(scope="session")
def rule() -> Callable[..., RuleConfig]:
    """A configured rule, a `deny` named `r` unless told; match keys and rule keys alike are given by name."""

    def make(**given: Any) -> RuleConfig:
        match = {key: given.pop(key) for key in MatchConfig.model_fields if key in given}
        return RuleConfig.model_validate({"id": "r", "effect": "deny", "source": "policies/x.toml:7", "match": match, **given})

    return make


@pytest.fixture(scope="session")
def call() -> Callable[..., Call]:
    """A chat call; what is given replaces the call's own fields, or goes into its principal."""

    def make(body: Any = None, **given: Any) -> Call:
        of_principal = {key: given.pop(key) for key in ("name", "team", "org", "roles", "on_behalf_of") if key in given}
        usual = {"id": "call_1", "principal": Principal("key_1", **of_principal), "dialect": "openai",
                 "operation": "chat", "route": "fast", "body": {} if body is None else body, "stream": False,
                 "size": 100, "received_ns": 0, "origin": Origin()}
        return Call(**{**usual, **given})

    return make


@pytest.fixture(scope="session")
def question(call: Callable[..., Call]) -> Callable[..., Question]:
    """A question to the rules of a phase; what is not a field of a question goes into its call."""
    fields = ("tool", "result", "said", "session", "env", "known_tool", "now_ns")

    def make(body: Any = None, phase: Phase = "request", **given: Any) -> Question:
        of_question = {key: given.pop(key) for key in fields if key in given}
        return Question(phase, call(body, **given), **{"now_ns": 1_700_000_000_000_000_000, **of_question})

    return make


@pytest.fixture(scope="session")
def library() -> Library:
    """Two lists, and the detectors that ship."""
    return Library({"contractors": frozenset({"bob", "eve"}), "empty": frozenset()}, Detectors())


@pytest.fixture(scope="session", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def engine_of(library: Library) -> Callable[[str, Phase], Engine]:
    """An engine for the variables of a phase, made once."""
    made = {(name, phase): open_engine(name, {key: fact.type for key, fact in facts_of(phase).items()}, library)
            for name in ENGINES for phase in PHASES}
    return lambda name, phase: made[name, phase]


@pytest.fixture(scope="session")
def engine(engine_name: str, engine_of: Callable[[str, Phase], Engine]) -> Engine:
    """Either engine, for rules of the phase `request`."""
    return engine_of(engine_name, "request")


@pytest.fixture(scope="session")
def engines(engine_of: Callable[[str, Phase], Engine]) -> tuple[Engine, ...]:
    """Both engines, for rules of the phase `request`."""
    return tuple(engine_of(name, "request") for name in ENGINES)
