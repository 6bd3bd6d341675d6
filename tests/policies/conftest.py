"""What the tests of rules share: a folder of rules is read, compiled and put to its own cases, as a deployment's is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cases import CasesResult, run_cases
from gateway.config import Deployment
from gateway.core.rules import Bundle, compile_bundle
from gateway.deployment import read_policies

ENGINES = ("cel-expr-python", "cel-python")


@dataclass(frozen=True)
class Tried:
    """A folder of rules, compiled, with what came of its cases."""

    deployment: Deployment
    bundle: Bundle
    result: CasesResult

    @property
    def uncovered(self) -> dict[str, tuple[str, ...]]:
        """The branches that no case takes, by rule. A rule without a condition has one branch only."""
        unconditional = {rule.id for rule in self.deployment.rules if rule.when is None and not rule.match.model_dump(exclude_defaults=True)}
        found = {each.rule: tuple(name for name in each.uncovered if each.rule not in unconditional or name != "not matched")
                 for each in self.result.branches}
        return {rule: names for rule, names in found.items() if names}

    @property
    def said(self) -> list[object]:
        """What was decided on each case, without the words of errors: those are an engine's own."""
        decisions = (result.decision for result in self.result.results)
        return [None if decision is None else (decision.name, decision.rule, decision.labels,
                                               [(reason.rule, reason.verdict) for reason in decision.reasons]) for decision in decisions]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def try_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tried]:
    """Files by their names within `policies/`, as a deployment would read them. Raises `ConfigError` for what cannot be used."""

    def run(files: Mapping[str, str], engine: str) -> Tried:
        folder = tmp_path_factory.mktemp("deployment") / "policies"
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        deployment = read_policies(folder)
        bundle = compile_bundle(deployment.rules, engine, deployment.problem_in, defaults=deployment.defaults, lists=deployment.lists)
        return Tried(deployment, bundle, run_cases(deployment, bundle))

    return run


@pytest.fixture(scope="session")
def shipped() -> Callable[[str], dict[str, str]]:
    """A shipped file of rules and the one of its cases, by its path within `policies/`."""
    root = Path(__file__).parents[2] / "policies"

    def files(name: str) -> dict[str, str]:
        paths = (root / f"{name}.toml", root / f"{name}.cases.toml")
        return {path.name: path.read_text(encoding="utf-8") for path in paths}

    return files
