"""A rule as it was configured, and what it becomes: compiled, indexed by phase, named by a digest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from gateway.core.actions import action_of
from gateway.core.approver import Approvers
from gateway.core.condition import compile_condition
from gateway.core.decision import PHASES, POLICY_ERROR, Action, Effect, Phase, Reason
from gateway.core.detectors import Detectors
from gateway.core.expressions import Engine, ExpressionError, Library, Program, compile_expression, open_engine
from gateway.core.facts import BUDGET_FACTS, SESSION_FACTS, TOOLS_FACT, Fact, facts_of
from gateway.core.lint import by_phase
from gateway.core.matching import MATCH_KEYS, Index
from gateway.errors import ConfigError, Problem
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.session import SessionQuery

# Makes a problem of a rule's `source`, the key within the rule, the message and the hint.
Locate: TypeAlias = Callable[[str, tuple[str | int, ...], str, str | None], Problem]

# A selection is made when a combination of match keys is first seen, and callers choose some of the keys: what it costs to
# compile rules together has a bound for each selection (7 ms) and for all of a phase (0.5 s and 30 MB, until the next reload).
_LONGEST_TOGETHER: Final = 8 * 1024
_ALL_TOGETHER: Final = 512 * 1024
_NAMED_BY: Final = "write role:NAME, team:NAME, person:ID, or an expression over `approver.…` and `approval.…`"


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule. `reads` are the facts that it needs; `program` is None where `match` says it all.

    `action` is what an effect has to do beside its name. `matched` and `not_matched` are the rule's two usual reasons, made once.
    """

    id: str
    effect: Effect
    message: str | None
    remedy: str | None
    label: str
    unlabel: tuple[str, ...]
    reads: frozenset[str]
    program: Program | None
    action: Action | None
    shadow: bool
    serial: bool
    matched: Reason
    not_matched: Reason = field(repr=False)

    def answered(self, verdict: object) -> Reason:
        """The reason where it could. What is neither true nor false, a defect of an engine, is no verdict."""
        if verdict is True:
            return self.matched
        return self.not_matched if verdict is False else self.failed("the engine gave no verdict")

    def failed(self, why: str) -> Reason:
        """The reason where the rule could not be evaluated."""
        return replace(self.matched, verdict="error", message=f"{POLICY_ERROR}: {why}")


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules that could apply, in declared order, and what they read.

    `together` gives the verdicts of those that have a program in one step, where the engine can. `queries` are what they ask of the
    session, `reads_session` whether they read anything of it, `reads_facts` whether what was put there; `reads_budgets`: one of them asks
    how the accounts stand; `serial`: one of them asks for one call of a session at a time.
    """

    rules: tuple[Rule, ...]
    facts: tuple[Fact, ...]
    together: Callable[[Any], list[bool]] | None = field(default=None, repr=False)
    queries: frozenset[SessionQuery] = frozenset()
    reads_session: bool = False
    reads_budgets: bool = False
    serial: bool = False
    reads_facts: bool = False


@dataclass(frozen=True, slots=True)
class PhaseRules:
    """The rules of one phase: their index and the engine that their programs run on.

    `reads_session`, `reads_budgets` and `serial`: one of them does, or is; where none is, nobody has to look.
    """

    engine: Engine = field(repr=False)
    index: Index[Selection] = field(repr=False)
    rules: tuple[Rule, ...]
    reads_session: bool
    reads_budgets: bool
    serial: bool

    @property
    def empty(self) -> bool:
        """Whether no rule is asked in this phase."""
        return not self.rules


@dataclass(frozen=True, slots=True)
class Bundle:
    """The compiled, ordered set of all rules. `digest` names its content: equal rules in equal order, equal digest.

    `rules` holds every rule that was given, those that are off too; `content` is what the digest is of, as JSON. `approvers` knows what
    their approvers are named by.
    """

    digest: str
    content: bytes = field(repr=False)
    rules: tuple[Rule, ...]
    defaults: DefaultsConfig
    phases: Mapping[Phase, PhaseRules] = field(repr=False)
    approvers: Approvers = field(repr=False, compare=False)

    @property
    def holds_answers(self) -> bool:
        """Whether people may be asked about what came back, or about a tool call that stands in it."""
        later = (rule for phase in ("tool_call", "response", "tool_result") for rule in self.phases[phase].rules)
        return any(rule.effect == "require_approval" and not rule.shadow for rule in later)

    @property
    def judges_tools(self) -> bool:
        """Whether tool calls that a model proposes have to be looked at."""
        return not self.phases["tool_call"].empty or self.defaults.application_tools == "deny"


def compile_bundle(
    rules: Sequence[RuleConfig], engine: str, locate: Locate | None = None, *, defaults: DefaultsConfig | None = None,
    lists: Mapping[str, frozenset[str]] | None = None, detectors: Detectors | None = None,
) -> Bundle:
    """Parse, check and index every rule. `engine` is `policy.engine`; `locate` finds a key's line where files are known.

    `lists` are what `in_list` looks into, by name; `detectors` are those that ship unless there are others.

    Raises:
        ConfigError: names every rule that cannot be used, and why.
    """
    # What a team's rule takes out or writes must not break up what the organisation's would have found: those come first.
    rules = sorted(rules, key=lambda rule: bool(rule.team))
    library = Library(lists or {}, detectors or Detectors())
    engines: dict[str, Engine] = {phase: _open_engine(engine, phase, library) for phase in PHASES}
    approvers = Approvers(engine, library)
    locate = locate or _at_rule
    problems = _repeated(rules, locate)
    compiled: list[Rule] = []
    for rule in rules:
        try:
            compiled.append(_compile(rule, engines[rule.phase], library.detectors))
        except ExpressionError as error:
            problems.extend(_problems(rule, ("when",), rule.when or "", error, locate))
        except ValueError as error:
            key = rule.effect if getattr(rule, rule.effect, None) is not None else "effect"
            problems.append(locate(rule.source, (key,), f'{error} (rule "{rule.id}")', None))
        problems.extend(_of_approval(rule, engines[rule.phase], approvers, locate))
    if problems:
        raise ConfigError(problems)
    pairs = [pair for pair in zip(rules, compiled, strict=True) if pair[0].mode != "off"]
    phases = {phase: _phase(phase, engines[phase], [pair for pair in pairs if pair[0].phase == phase]) for phase in PHASES}
    defaults = defaults or DefaultsConfig()
    content = _content(rules, defaults, lists or {})
    return Bundle(f"sha256:{hashlib.sha256(content).hexdigest()[:32]}", content, tuple(compiled), defaults, phases,
                  approvers)


def match_of(rule: RuleConfig) -> dict[str, tuple[str, ...]]:
    """A rule's match keys: globs, an empty tuple where a key is not given. A team's rule is for that team.

    What is set in a request, or sent elsewhere, is a model call's: the arguments of an HTTP tool have a phase of their own, and one target.
    """
    of_models = rule.phase == "request" and rule.effect in ("set", "route")
    match = {key: tuple(getattr(rule.match, key)) for key in MATCH_KEYS if key != "kinds"} | {"kinds": ("model",) if of_models else ()}
    return {**match, "teams": (_literally(rule.team),)} if rule.team else match


def _literally(name: str) -> str:
    """A glob that fits this name and no other."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _open_engine(choice: str, phase: Phase, library: Library) -> Engine:
    try:
        return open_engine(choice, {name: fact.type for name, fact in facts_of(phase).items()}, library)
    except ImportError as error:
        what = f"{choice} is not installed here: {error}"
        raise ConfigError([Problem("config.toml", None, "policy.engine", what, 'use "auto"')]) from error


def _compile(rule: RuleConfig, engine: Engine, detectors: Detectors) -> Rule:
    program = None if rule.when is None else compile_expression(engine, rule.when)
    # A rule that matches on tools needs to know them: where they cannot be read, it cannot be evaluated.
    matched_on = {TOOLS_FACT[rule.phase]} if rule.match.tools else set[str]()
    reads = (program.names if program else frozenset()) | matched_on
    shown = (*sorted(reads), *sorted(query.shown for query in (program.queries if program else ())))
    matched = Reason(rule.id, rule.effect, "matched", rule.source, rule.message or "", rule.mode == "shadow", shown)
    label, unlabel = rule.label or rule.id, tuple(rule.unlabel)
    if rule.team:  # no label of the organisation's, which a rule of its own may trust, is a team's to give, nor to take off
        label, unlabel = f"{rule.team}:{label}", tuple(f"{rule.team}:{each}" for each in unlabel)
    return Rule(rule.id, rule.effect, rule.message, rule.remedy, label, unlabel, reads, program, action_of(rule, detectors),
                rule.mode == "shadow", rule.serial, matched, replace(matched, verdict="not_matched"))


class _Together:
    """Compiles rules so that one step asks all of them, as long as there is room for it. Without it each is asked alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left = _ALL_TOGETHER

    def of(self, programs: Sequence[Program]) -> Callable[[Any], list[bool]] | None:
        size = sum(len(program.source) for program in programs)
        if len(programs) < 2 or size > min(_LONGEST_TOGETHER, self._left):
            return None
        self._left -= size
        return self._engine.together(programs)


def _phase(phase: Phase, engine: Engine, pairs: Sequence[tuple[RuleConfig, Rule]]) -> PhaseRules:
    known = facts_of(phase)
    together = _Together(engine)

    def choose(numbers: tuple[int, ...]) -> Selection:
        rules = tuple(pairs[number][1] for number in numbers)
        reads = frozenset[str]().union(*(rule.reads for rule in rules))
        programs = [rule.program for rule in rules if rule.program is not None]
        queries = frozenset[SessionQuery]().union(*(program.queries for program in programs))
        return Selection(rules, tuple(fact for name, fact in known.items() if name in reads), together.of(programs), queries,
                         bool(queries or reads & SESSION_FACTS), bool(reads & BUDGET_FACTS), any(rule.serial for rule in rules),
                         "session.facts" in reads)

    rules = tuple(rule for _, rule in pairs)
    index = Index([match_of(rule) for rule, _ in pairs], choose)
    return PhaseRules(engine, index, rules, any(_reads_session(rule) for rule in rules), any(rule.reads & BUDGET_FACTS for rule in rules),
                      any(rule.serial for rule in rules))


def _reads_session(rule: Rule) -> bool:
    return bool(rule.reads & SESSION_FACTS or (rule.program and rule.program.queries))


def _content(rules: Sequence[RuleConfig], defaults: DefaultsConfig, lists: Mapping[str, frozenset[str]]) -> bytes:
    """Where a rule stands in its file is not its content: moving a line changes nothing."""
    told = [{**rule.model_dump(mode="json", exclude_defaults=True), **({"team": rule.team} if rule.team else {})} for rule in rules]
    known = {name: sorted(lists[name]) for name in sorted(lists)}
    return json.dumps({"rules": told, "defaults": defaults.model_dump(), "lists": known}, sort_keys=True).encode()


def _repeated(rules: Iterable[RuleConfig], locate: Locate) -> list[Problem]:
    first: dict[str, RuleConfig] = {}
    return [locate(rule.source, ("id",), f"the id {rule.id!r} is taken", f"first used at {first[rule.id].source}")
            for rule in rules if first.setdefault(rule.id, rule) is not rule]


def _problems(rule: RuleConfig, path: tuple[str | int, ...], text: str, error: ExpressionError, locate: Locate) -> Iterable[Problem]:
    return (locate(rule.source, path, f'{problem.pointed(text)} (rule "{rule.id}")', problem.hint)
            for problem in (by_phase(each, rule.phase) for each in error.problems))


def _of_approval(rule: RuleConfig, engine: Engine, approvers: Approvers, locate: Locate) -> Iterator[Problem]:
    """What is wrong with the expressions of an approval: by what its action is the same, and who is asked."""
    for number, text in enumerate(rule.approval.identity):
        try:
            compile_condition(text, rule.phase, engine, kind="json")
        except ExpressionError as error:
            yield from _problems(rule, ("approval", "identity", number), text, error, locate)
    stages = [(("approval", "stages", number, "approvers"), stage.approvers) for number, stage in enumerate(rule.approval.stages)]
    named: list[tuple[tuple[str | int, ...], Sequence[str]]] = [
        (("approvers",), rule.approvers), *stages, (("approval", "escalate_to"), rule.approval.escalate_to)]
    for path, texts in named:
        for number, text in enumerate(texts):
            try:
                approvers.check(text)
            except ExpressionError as error:
                yield from (locate(rule.source, (*path, number), f'{problem.pointed(text)} (rule "{rule.id}")', problem.hint or _NAMED_BY)
                            for problem in error.problems)


def _at_rule(source: str, path: tuple[str | int, ...], message: str, hint: str | None) -> Problem:
    """A problem of a rule where nothing is known of its file but its `source`."""
    file, _, line = source.rpartition(":")
    known = bool(file) and line.isdecimal()
    return Problem(file if known else source, int(line) if known else None, ".".join(("rule", *map(str, path))), message, hint)
