"""Rules in, a decision out. Compiling does the work once; `decide` is pure, total, and holds the precedence.

Errors fail closed: a `deny` rule that cannot be evaluated counts as matched, an `allow` or `log` rule as not matched,
and every one of them is on record as an error.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeAlias

from gateway.core.decision import POLICY_ERROR, Allowed, Decision, Denied, Effect, Reason
from gateway.core.expressions import (
    Engine,
    ExpressionError,
    Fault,
    Program,
    attempt,
    compile_expression,
    evaluate,
    open_engine,
)
from gateway.core.facts import PHASES, Fact, Facts, Phase, facts_of
from gateway.core.matching import MATCH_KEYS, Index
from gateway.errors import ConfigError, Problem

# Makes a problem of a rule's `source`, the key within the rule, the message and the hint.
Locate: TypeAlias = Callable[[str, tuple[str | int, ...], str, str | None], Problem]


class MatchSource(Protocol):
    """A rule's match keys as they were configured: globs, an empty tuple where the key is not given."""

    @property
    def principals(self) -> tuple[str, ...]: ...
    @property
    def teams(self) -> tuple[str, ...]: ...
    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def protocols(self) -> tuple[str, ...]: ...
    @property
    def routes(self) -> tuple[str, ...]: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def tools(self) -> tuple[str, ...]: ...


class RuleSource(Protocol):
    """A rule as it was configured. `source` is `file:line`."""

    @property
    def id(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def match(self) -> MatchSource: ...
    @property
    def when(self) -> str | None: ...
    @property
    def effect(self) -> Effect: ...
    @property
    def message(self) -> str | None: ...
    @property
    def remedy(self) -> str | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule. `reads` are the facts that it needs; `program` is None where `match` says it all.

    `matched` and `not_matched` are its two usual reasons, made once.
    """

    id: str
    effect: Effect
    message: str | None
    remedy: str | None
    label: str
    reads: frozenset[str]
    program: Program | None
    matched: Reason
    not_matched: Reason = field(repr=False)

    def failed(self, why: str) -> Reason:
        """The reason where the rule could not be evaluated."""
        return replace(self.matched, verdict="error", message=f"{POLICY_ERROR}: {why}")


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules that could apply to a call, in declared order, and the facts that they read.

    `together` gives the verdicts of those that have a program in one step, where the engine can.
    """

    rules: tuple[Rule, ...]
    facts: tuple[Fact, ...]
    together: Callable[[Any], list[bool]] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PhaseRules:
    """The rules of one phase: their index and the engine that their programs run on."""

    engine: Engine = field(repr=False)
    index: Index[Selection] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The compiled, ordered set of all rules. `digest` names its content: equal rules in equal order, equal digest."""

    digest: str
    rules: tuple[Rule, ...]
    phases: Mapping[Phase, PhaseRules] = field(repr=False)


def compile_bundle(rules: Sequence[RuleSource], engine: str, locate: Locate | None = None) -> Bundle:
    """Parse, check and index every rule. `engine` is `policy.engine`; `locate` finds a key's line where files are known.

    Raises:
        ConfigError: names every rule that cannot be used, and why.
    """
    engines: dict[str, Engine] = {phase: _open_engine(engine, phase) for phase in PHASES}
    locate = locate or _at_rule
    problems = _repeated(rules, locate)
    compiled: list[Rule] = []
    for rule in rules:
        try:
            compiled.append(_compile(rule, engines[rule.phase]))
        except ExpressionError as error:
            problems.extend(_problems(rule, error, locate))
    if problems:
        raise ConfigError(problems)
    pairs = list(zip(rules, compiled, strict=True))
    phases = {phase: PhaseRules(engines[phase], _index(phase, engines[phase], [pair for pair in pairs if pair[0].phase == phase]))
              for phase in PHASES}
    return Bundle(_digest(rules), tuple(compiled), phases)


def decide(bundle: Bundle, phase: Phase, facts: Facts) -> Decision:
    """Ask every rule that could apply, and merge what they say. Pure and total: what goes wrong is in the reasons."""
    rules = bundle.phases[phase]
    selection = rules.index.select(facts.keys)
    activation = attempt(rules.engine.activation, facts.values) if selection.facts else None
    reasons = _ask_together(selection, facts, activation) or [_ask(rule, facts, activation) for rule in selection.rules]
    return merge(selection.rules, reasons, bundle.digest)


def merge(rules: Sequence[Rule], reasons: Sequence[Reason], digest: str) -> Decision:
    """The precedence, in one place: `deny` over `allow` over `log`, and the first in declared order among equals.

    `reasons` holds one for each rule. Where none matches the call is allowed: the principal is entitled to its route.
    """
    denied: tuple[Rule, Reason] | None = None
    allowed: Rule | None = None
    labels: dict[str, None] = {}
    for rule, reason in zip(rules, reasons, strict=True):
        if rule.effect == "deny":
            if denied is None and reason.verdict != "not_matched":
                denied = rule, reason
        elif reason.verdict == "matched":
            if rule.effect == "log":
                labels[rule.label] = None
            elif allowed is None:
                allowed = rule
    if denied:
        return _denied(*denied, tuple(reasons), tuple(labels), digest)
    if allowed:
        return Allowed(allowed.id, allowed.message, allowed.remedy, tuple(reasons), tuple(labels), digest)
    return Allowed(None, None, None, tuple(reasons), tuple(labels), digest)


def _denied(rule: Rule, reason: Reason, reasons: tuple[Reason, ...], labels: tuple[str, ...], digest: str) -> Denied:
    # The rule's id is not repeated: whoever shows a denial names the rule before its message.
    message = rule.message or "This call is not allowed."
    if reason.verdict == "error":  # said first, or the rule's own words would accuse the caller of what nobody could find out
        unclear = f"The rule could not be evaluated on this call, so the call is refused ({POLICY_ERROR})."
        message = f"{unclear} The rule says: {rule.message}" if rule.message else unclear
    return Denied(rule.id, message, rule.remedy, reasons, labels, digest)


def _ask_together(selection: Selection, facts: Facts, activation: Any) -> list[Reason] | None:
    """The answers of all rules in one evaluation; None where there is trouble with any of them, and each has to be asked."""
    if selection.together is None or facts.unreadable or isinstance(activation, Fault):
        return None
    verdicts = attempt(selection.together, activation)
    if isinstance(verdicts, Fault):
        return None
    said = iter(verdicts)
    return [rule.matched if rule.program is None or next(said) else rule.not_matched for rule in selection.rules]


def _ask(rule: Rule, facts: Facts, activation: Any) -> Reason:
    for name, why in facts.unreadable.items():
        if name in rule.reads:
            return rule.failed(f"{name}: {why}")
    if rule.program is None:
        return rule.matched
    if isinstance(activation, Fault):
        return rule.failed(activation.text)
    verdict = evaluate(rule.program, activation)
    if isinstance(verdict, Fault):
        return rule.failed(verdict.text)
    return rule.matched if verdict else rule.not_matched


# A selection is made when a combination of match keys is first seen: what that costs has a bound.
_MOST_TOGETHER: Final = 64


def _open_engine(choice: str, phase: Phase) -> Engine:
    try:
        return open_engine(choice, {name: fact.type for name, fact in facts_of(phase).items()})
    except ImportError as error:
        what = f"{choice} is not installed here: {error}"
        raise ConfigError([Problem("config.toml", None, "policy.engine", what, 'use "auto"')]) from error


def _compile(rule: RuleSource, engine: Engine) -> Rule:
    program = None if rule.when is None else compile_expression(engine, rule.when)
    # A rule that matches on tools needs to know them: where they cannot be read, it cannot be evaluated.
    reads = (program.names if program else frozenset()) | ({"tools_offered"} if rule.match.tools else frozenset())
    matched = Reason(rule.id, rule.effect, "matched", rule.source, rule.message or "")
    return Rule(rule.id, rule.effect, rule.message, rule.remedy, rule.label or rule.id, reads, program,
                matched, replace(matched, verdict="not_matched"))


def _match(rule: RuleSource) -> dict[str, tuple[str, ...]]:
    return {key: tuple(getattr(rule.match, key)) for key in MATCH_KEYS}


def _index(phase: Phase, engine: Engine, pairs: Sequence[tuple[RuleSource, Rule]]) -> Index[Selection]:
    def choose(numbers: tuple[int, ...]) -> Selection:
        rules = tuple(pairs[number][1] for number in numbers)
        reads = frozenset[str]().union(*(rule.reads for rule in rules))
        programs = [rule.program for rule in rules if rule.program is not None]
        together = engine.together(programs) if 1 < len(programs) <= _MOST_TOGETHER else None
        return Selection(rules, tuple(fact for name, fact in facts_of(phase).items() if name in reads), together)

    return Index([_match(rule) for rule, _ in pairs], choose)


def _digest(rules: Sequence[RuleSource]) -> str:
    """Where a rule stands in its file is not its content: moving a line changes nothing."""
    content = [[rule.id, rule.phase, _match(rule), rule.when, rule.effect, rule.message, rule.remedy, rule.label]
               for rule in rules]
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]}"


def _repeated(rules: Iterable[RuleSource], locate: Locate) -> list[Problem]:
    first: dict[str, RuleSource] = {}
    return [locate(rule.source, ("id",), f"the id {rule.id!r} is taken", f"first used at {first[rule.id].source}")
            for rule in rules if first.setdefault(rule.id, rule) is not rule]


def _problems(rule: RuleSource, error: ExpressionError, locate: Locate) -> Iterable[Problem]:
    return (locate(rule.source, ("when",), f'{problem.pointed(rule.when or "")} (rule "{rule.id}")', problem.hint)
            for problem in error.problems)


def _at_rule(source: str, path: tuple[str | int, ...], message: str, hint: str | None) -> Problem:
    """A problem of a rule where nothing is known of its file but its `source`."""
    file, _, line = source.rpartition(":")
    known = bool(file) and line.isdecimal()
    return Problem(file if known else source, int(line) if known else None, ".".join(("rule", *map(str, path))), message, hint)
