"""When a provider misbehaves: the scenario (data, from a TOML file or JSON) and the director that plays it."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.clock import Clock
from gateway.errors import ConfigError, Problem
from gateway.simulator.faults import FAULT_KEYS, NO_FAULT, Fault, duration_s, fault_from, parse_fault, unknown_key
from gateway.simulator.match import EVERYTHING, Match
from gateway.simulator.timeline import NO_TIMELINE, Moment, Timeline, TimelineStep

DEFAULT_MODELS: Final = ("sim-model", "sim-small", "sim-embedding")
_MAX_COUNTED = 100_000  # specifications whose `times` is remembered; beyond it the oldest start again
_TOP_KEYS: Final = frozenset({"models", "pacing", "fault", "timeline", "repeat"})
_RULE_KEYS: Final = FAULT_KEYS | {"match"}
_STEP_KEYS: Final = _RULE_KEYS | {"for", "refuse"}
_MATCH_KEYS: Final = frozenset({"model", "path", "api_key", "nth"})
_PACING_KEYS: Final = frozenset({"delay_headers", "delay_first_token", "delay_between_tokens"})


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One `[[fault]]` entry: when, and what."""

    fault: Fault
    match: Match = EVERYTHING


@dataclass(frozen=True, slots=True)
class Scenario:
    """How a provider behaves: its rules in order (the first that applies wins), its pace, the models it lists, its time line.

    The step of the time line that is in force stands before the rules.
    """

    rules: tuple[FaultRule, ...] = ()
    pacing: Fault = NO_FAULT
    models: tuple[str, ...] = DEFAULT_MODELS
    timeline: Timeline = NO_TIMELINE


class Director:
    """Chooses the fault of each request and keeps the counts that `nth` and `times` need. One a simulator."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        self._clock = clock
        self.play(scenario)

    def play(self, scenario: Scenario) -> None:
        """Start `scenario` from its beginning: its time line begins now and every count is zero again."""
        self.scenario = scenario
        self._begun_s = self._clock.monotonic()
        self._paced = scenario.pacing != NO_FAULT
        self._step: str | None = None  # the step in force, under which its counts stand
        self._matched: Counter[int | str] = Counter()
        self._applied: Counter[int | str] = Counter()

    def _moment(self) -> Moment:
        return self.scenario.timeline.at(self._clock.monotonic() - self._begun_s)

    def refusal(self) -> tuple[bool, float | None]:
        """Whether the port is to refuse connections now, and in how many seconds to ask again (None: nothing will change)."""
        if not self.scenario.timeline.refuses:
            return False, None
        moment = self._moment()
        return moment.step is not None and moment.step.refuse, moment.left_s

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
        for key, rule in self._rules():
            if not rule.match.covers(model, path, api_key):
                continue
            self._matched[key] += 1  # also behind a rule that applied: `nth` counts requests, not leftovers
            if chosen is NO_FAULT and (not rule.match.nth or self._matched[key] in rule.match.nth):
                chosen = self._spent(key, rule.fault)
        return chosen

    def _rules(self) -> Iterator[tuple[int | str, FaultRule]]:
        """Every rule with the name of its counts: first the step in force, whose counts are new each time it begins."""
        moment = self._moment()
        if moment.step is not None and moment.step.fault != NO_FAULT:
            key = f"step:{moment.number}"
            if self._step is not None and self._step != key:
                del self._matched[self._step], self._applied[self._step]
            self._step = key
            yield key, FaultRule(moment.step.fault, moment.step.match)
        yield from enumerate(self.scenario.rules)

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
        rules, steps = list[FaultRule](), list[TimelineStep]()
        for number, entry in enumerate(_list(top, key := "fault"), 1):
            key = f"fault[{number}]"
            rules.append(_rule(_table(entry, _RULE_KEYS)))
        for number, entry in enumerate(_list(top, key := "timeline"), 1):
            key = f"timeline[{number}]"
            steps.append(_step(_table(entry, _STEP_KEYS)))
        key = "timeline"
        timeline = Timeline(tuple(steps), _flag(top, "repeat"))
    except ValueError as error:
        raise ConfigError([Problem(source, None, key, str(error))]) from error
    return Scenario(tuple(rules), pacing, models, timeline)


def _rule(table: Mapping[str, Any]) -> FaultRule:
    match = _table(table.get("match", {}), _MATCH_KEYS)
    globs = {key: value for key, value in match.items() if key != "nth"}
    if not all(isinstance(value, str) for value in globs.values()):
        raise ValueError("match: model, path and api_key are strings, with * for anything")
    nth = match.get("nth", [])
    numbers = nth if isinstance(nth, list) else [nth]
    if not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError("match.nth: expected a whole number of at least 1 or a list of them")
    fault = fault_from({key: value for key, value in table.items() if key in FAULT_KEYS})
    return FaultRule(fault, Match(**globs, nth=frozenset(numbers)))


def _step(table: Mapping[str, Any]) -> TimelineStep:
    rule = _rule(table)
    try:
        for_s = duration_s(table["for"]) if "for" in table else None
    except ValueError as error:
        raise ValueError(f"for: {error}") from error
    return TimelineStep(rule.fault, rule.match, for_s, _flag(table, "refuse"))


def _table(value: Any, known: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a table")  # noqa: TRY004 - one kind of error for everything a file can say wrong
    for key in value:
        if key not in known:
            raise ValueError(unknown_key(key, known))
    return value


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"expected a list of tables, [[{key}]]")  # noqa: TRY004 - as above
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("expected a list of names")
    return tuple(value)


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false")  # noqa: TRY004 - as above
    return value
