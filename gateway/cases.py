"""Runs the cases that stand beside the rules: each is put to the rules as a call would be, and compared with what it expects. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gateway.call import Json
from gateway.case_config import CaseConfig
from gateway.config import Deployment
from gateway.core.decision import BY_DEFAULT, Decision, Phase
from gateway.core.question import Question
from gateway.core.rules import Bundle
from gateway.errors import Problem
from gateway.judge import Judged, judge
from gateway.recorded import Judgement, Unsure, decide_again, effects_of
from gateway.session import SessionQuery
from gateway.supposed import World, question_of, world_of, wrong_facts
from gateway.validation import nearest

# A recorded call's judgements by its id; None where there is no such call.
Recorded: TypeAlias = Callable[[str], Sequence[Judgement] | None]

_MISSING: Final = object()
_MAY_CHANGE: Final = frozenset({"redact", "set", "limit"})  # what lets a call go on where it was to go


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one case: it passed if there are no `problems` and it was not `skipped`, which says why it could not be run."""

    case: CaseConfig
    problems: tuple[Problem, ...] = ()
    skipped: str = ""
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Branches:
    """One rule's two branches: in how many cases it matched, and in how many it was asked and did not."""

    rule: str
    phase: str
    source: str
    matched: int = 0
    not_matched: int = 0

    @property
    def uncovered(self) -> tuple[str, ...]:
        """The branches that no case takes."""
        return tuple(name for name, seen in (("matched", self.matched), ("not matched", self.not_matched)) if not seen)


@dataclass(frozen=True, slots=True)
class CasesResult:
    """All cases of a deployment, in the order of their files, and what of the rules they cover."""

    results: tuple[CaseResult, ...]
    branches: tuple[Branches, ...] = field(repr=False)

    @property
    def failures(self) -> tuple[Problem, ...]:
        """Everything that is wrong, each at its place. A bundle whose cases have failures is not for use."""
        return tuple(problem for result in self.results for problem in result.problems)

    @property
    def coverage(self) -> float:
        """The share of branches that some case takes, in percent."""
        missing = sum(len(each.uncovered) for each in self.branches)
        return 100.0 if not self.branches else 100.0 - 50.0 * missing / len(self.branches)


def run_cases(deployment: Deployment, bundle: Bundle, *, recorded: Recorded | None = None) -> CasesResult:
    """Put every case to the rules. Without `recorded`, those that are about a recorded call are skipped."""
    queries = {phase: frozenset[SessionQuery]().union(*(rule.program.queries for rule in rules.rules if rule.program is not None))
               for phase, rules in bundle.phases.items()}
    known = frozenset({BY_DEFAULT, *(rule.id for rule in bundle.rules)})
    running = _Running(deployment, bundle, world_of(deployment), recorded, queries, known)
    results = tuple(map(running.run, deployment.cases))
    return CasesResult(results, tuple(_branches(bundle, results)))


def judged_value(question: Question) -> Json:
    """What is judged, and what `expect.changed` points into: the body, the arguments, the result, or the text of the answer."""
    if question.said is not None:
        return question.said.text
    if question.result is not None:
        return question.result.content
    return question.call.body if question.tool is None else question.tool.args


@dataclass(frozen=True, slots=True)
class _Running:
    """What all cases share: `queries` are what the rules of a phase ask of a session, `known` the rules that may be expected."""

    deployment: Deployment
    bundle: Bundle
    world: World
    recorded: Recorded | None
    queries: Mapping[Phase, frozenset[SessionQuery]]
    known: frozenset[str]

    def run(self, case: CaseConfig) -> CaseResult:
        problems = list(self._wrong(case))
        if problems:
            return CaseResult(case, tuple(problems))
        found = self._asked_again(case, case.call) if case.call is not None else self._asked(case)
        if isinstance(found, CaseResult):
            return found
        question, judged = found
        unmet = tuple(self._problem(case, ("expect", *key), message, judged.decision) for key, message in _unmet(case, question, judged))
        return CaseResult(case, unmet, decision=judged.decision)

    def _wrong(self, case: CaseConfig) -> Iterator[Problem]:
        for path, message, hint in wrong_facts(case):
            yield self.deployment.problem_in(case.source, path, f'{message} (case "{case.name}")', hint)
        rule = case.expect.rule
        if rule is not None and rule not in self.known:
            yield self.deployment.problem_in(case.source, ("expect", "rule"), f'there is no rule "{rule}" (case "{case.name}")',
                                             nearest(rule, self.known))

    def _asked(self, case: CaseConfig) -> tuple[Question, Judged]:
        question = question_of(case, self.queries[case.phase], self.world)
        return question, judge(self.bundle, question)

    def _asked_again(self, case: CaseConfig, call_id: str) -> tuple[Question, Judged] | CaseResult:
        if self.recorded is None:
            return CaseResult(case, skipped="is about a recorded call, and there is no database here")
        found = self.recorded(call_id)
        asked = [each for judgement in found or () for each in judgement.asked if each.question.phase == case.phase]
        if found is None:
            wrong = f"there is no call {call_id} on record"
        elif len(asked) != 1:
            wrong = f"{call_id} was judged {len(asked)} times in phase {case.phase}, not once"
        elif isinstance(again := decide_again(self.bundle, asked[0]), Unsure):
            wrong = f"{call_id} cannot be decided again: {again.why}"
        else:
            return asked[0].question, again
        return CaseResult(case, (self._problem(case, ("call",), wrong),))

    def _problem(self, case: CaseConfig, path: tuple[str, ...], message: str, decision: Decision | None = None) -> Problem:
        return self.deployment.problem_in(case.source, path, f'{message} (case "{case.name}")', _asked_rules(decision))


def _asked_rules(decision: Decision | None) -> str | None:
    """What the rules said, for whoever looks for the reason."""
    if decision is None:
        return None
    said = [f"{reason.rule} {'in shadow ' if reason.shadow else ''}{reason.verdict}"
            + (f" ({reason.message})" if reason.verdict == "error" else "")
            for reason in decision.reasons if reason.verdict != "not_matched"]
    return "; ".join(said) or "no rule matched"


def _unmet(case: CaseConfig, asked: Question, judged: Judged) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a case expects and did not come: the key within `expect`, and what came instead."""
    expect, decision = case.expect, judged.decision
    effects = effects_of(decision)
    rules = effects.get(expect.effect)
    whole = judged_value(judged.question)
    if rules is None and expect.effect == "allow" and effects.keys() <= _MAY_CHANGE and _same(judged_value(asked), whole):
        rules = (decision.rule or BY_DEFAULT,)  # a redaction looked, and there was nothing to take out
    shown = " and ".join(f"{effect} by {', '.join(by)}" for effect, by in effects.items())
    if rules is None:
        yield ("effect",), f"expected {expect.effect}, and it is {shown}"
    elif expect.rule is not None and expect.rule not in rules:
        yield ("rule",), f"expected {expect.effect} by {expect.rule}, and it is {shown}"
    if expect.labels is not None:
        missing = [label for label in expect.labels if label not in decision.labels]
        if missing or (decision.labels and not expect.labels):
            wanted = ", ".join(missing) or "no label"
            yield ("labels",), f"expected {wanted}, and the labels are {', '.join(decision.labels) or 'none'}"
    if expect.message is not None and expect.message not in (decision.message or ""):
        yield ("message",), f"expected {expect.message!r} in the message, and it is {decision.message!r}"
    for pointer, wanted in expect.changed.items():
        found = _at(whole, pointer)
        if found is _MISSING:
            yield ("changed", pointer), f"expected {wanted!r} at {pointer!r}, and nothing is there"
        elif not _same(found, wanted):
            yield ("changed", pointer), f"expected {wanted!r} at {pointer!r}, and it is {found!r}"


def _at(value: Json, pointer: str) -> Json:
    """The value at a JSON pointer (RFC 6901), or `_MISSING`."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(key, _MISSING)
        elif isinstance(value, list) and key.isascii() and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _MISSING
    return value


def _same(found: Json, wanted: Json) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return isinstance(found, bool) is isinstance(wanted, bool) and bool(found == wanted)


def _branches(bundle: Bundle, results: Sequence[CaseResult]) -> Iterator[Branches]:
    """What the cases cover of each rule that is asked. Where `match` alone says it all, not being picked is not matching."""
    for phase, rules in bundle.phases.items():
        said = [{reason.rule: reason.verdict for reason in result.decision.reasons}
                for result in results if result.decision is not None and result.decision.phase == phase]
        for rule in rules.rules:
            verdicts = [verdict_of.get(rule.id, "not_matched" if rule.program is None else None) for verdict_of in said]
            yield Branches(rule.id, phase, rule.matched.source, verdicts.count("matched"), verdicts.count("not_matched"))
