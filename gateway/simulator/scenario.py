"""When a provider misbehaves: the scenario (data, from a TOML file or JSON) and the director that plays it."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from gateway.errors import ConfigError, Problem
from gateway.simulator.faults import FAULT_KEYS, NO_FAULT, Fault, fault_from, parse_fault, unknown_key

DEFAULT_MODELS: Final = ("sim-model", "sim-small", "sim-embedding")
_MAX_COUNTED = 100_000  # specifications whose `times` is remembered; beyond it the oldest start again
_TOP_KEYS: Final = frozenset({"models", "pacing", "fault"})
_MATCH_KEYS: Final = frozenset({"model", "path", "api_key", "nth"})
_PACING_KEYS: Final = frozenset({"delay_headers", "delay_first_token", "delay_between_tokens"})


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is about: globs on model, path and key, then `nth` among those, from 1 (empty: all)."""

    model: str = "*"
    path: str = "*"
    api_key: str = "*"
    nth: frozenset[int] = frozenset()

    def covers(self, model: str, path: str, api_key: str) -> bool:
        """Whether the globs match; the director counts for `nth`."""
        return fnmatchcase(model, self.model) and fnmatchcase(path, self.path) and fnmatchcase(api_key, self.api_key)


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One `[[fault]]` entry: when, and what."""

    fault: Fault
    match: Match = Match()


@dataclass(frozen=True, slots=True)
class Scenario:
    """How a provider behaves: its rules in order (the first that applies wins), its pace, the models it lists."""

    rules: tuple[FaultRule, ...] = ()
    pacing: Fault = NO_FAULT
    models: tuple[str, ...] = DEFAULT_MODELS


class Director:
    """Chooses the fault of each request and keeps the counts that `nth` and `times` need. One a simulator."""

    def __init__(self, scenario: Scenario) -> None:
        self.play(scenario)

    def play(self, scenario: Scenario) -> None:
        """Start `scenario` from its beginning: every count is zero again."""
        self.scenario = scenario
        self._paced = scenario.pacing != NO_FAULT
        self._matched = [0] * len(scenario.rules)
        self._applied: Counter[int | str] = Counter()

    def choose(self, *, header: str | None, model: str, path: str, api_key: str) -> Fault:
        """The fault of this request: the header's, else the one behind `!` in the model's name, else the scenario's.

        Raises:
            ValueError: the header or the model's name holds a specification that cannot be read.
        """
        _, marked, suffix = model.partition("!")
        if header is not None:
            fault = self._spent("header:" + header, parse_fault(header))
        elif marked:
            fault = self._spent("model:" + model, parse_fault(suffix))
        else:
            fault = self._from_rules(model, path, api_key)
        return fault.paced(self.scenario.pacing) if self._paced else fault

    def _from_rules(self, model: str, path: str, api_key: str) -> Fault:
        chosen = NO_FAULT
        for number, rule in enumerate(self.scenario.rules):
            if not rule.match.covers(model, path, api_key):
                continue
            self._matched[number] += 1  # also behind a rule that applied: `nth` counts requests, not leftovers
            if chosen is NO_FAULT and (not rule.match.nth or self._matched[number] in rule.match.nth):
                chosen = self._spent(number, rule.fault)
        return chosen

    def _spent(self, key: int | str, fault: Fault) -> Fault:
        if fault.times is None:
            return fault
        if self._applied[key] >= fault.times:
            return NO_FAULT
        if key not in self._applied and len(self._applied) >= _MAX_COUNTED:
            del self._applied[next(iter(self._applied))]
        self._applied[key] += 1
        return fault


def bare_model(model: str) -> str:
    """The model's name without the fault written behind `!`."""
    return model.partition("!")[0]


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something unknown; names the entry and the key.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), None, "", f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), None, "", f"not TOML: {error}")]) from error
    return scenario_from(table, str(path))


def scenario_from(table: Any, source: str) -> Scenario:
    """A scenario from a parsed table; `source` names it in errors.

    Raises:
        ConfigError: with the first thing in it that is wrong.
    """
    key = ""
    try:
        top = _table(table, _TOP_KEYS)
        key = "models"
        models = _names(top.get("models", list(DEFAULT_MODELS)))
        key = "pacing"
        pacing = fault_from(_table(top.get("pacing", {}), _PACING_KEYS))
        key = "fault"
        rules: list[FaultRule] = []
        for number, entry in enumerate(_list(top.get("fault", [])), 1):
            key = f"fault[{number}]"
            rules.append(_rule(entry))
    except ValueError as error:
        raise ConfigError([Problem(source, None, key, str(error))]) from error
    return Scenario(tuple(rules), pacing, models)


def _rule(entry: Any) -> FaultRule:
    table = dict(_table(entry, FAULT_KEYS | {"match"}))
    match = _table(table.pop("match", {}), _MATCH_KEYS)
    globs = {key: value for key, value in match.items() if key != "nth"}
    if not all(isinstance(value, str) for value in globs.values()):
        raise ValueError("match: model, path and api_key are strings, with * for anything")
    nth = match.get("nth", [])
    numbers = nth if isinstance(nth, list) else [nth]
    if not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError("match.nth: expected a whole number of at least 1 or a list of them")
    return FaultRule(fault_from(table), Match(**globs, nth=frozenset(numbers)))


def _table(value: Any, known: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a table")  # noqa: TRY004 - one kind of error for everything a file can say wrong
    for key in value:
        if key not in known:
            raise ValueError(unknown_key(key, known))
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("expected a list of tables, [[fault]]")  # noqa: TRY004 - as above
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("expected a list of names")
    return tuple(value)
