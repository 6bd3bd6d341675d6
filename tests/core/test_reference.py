"""`decide` against a second reading of the documentation: a reference evaluator that shares nothing with it but the words.

The normal run decides more than 10⁵ generated cases. `LOCKGATE_LONG=1` makes it twenty times as many.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Principal, Said, ToolCall, ToolResult
from gateway.core.decide import decide
from gateway.core.decision import Decision, Denied, Effect, Held, Phase, Verdict
from gateway.core.expressions import Program
from gateway.core.matching import Index
from gateway.core.question import Question
from gateway.core.rules import Bundle, Rule, Selection, compile_bundle
from gateway.gather import gather
from gateway.rule_config import PHASES_OF, DefaultsConfig, RuleConfig

LONG = 20 if os.environ.get("LOCKGATE_LONG") == "1" else 1
pytestmark = pytest.mark.timeout(120 * LONG)
EFFECTS: tuple[Effect, ...] = ("deny", "require_approval", "redact", "set", "route", "limit", "allow", "log")
VERDICTS = ("matched", "not_matched", "error")
MODES = ("enforce", "shadow", "off")


class Stated(NamedTuple):
    """A rule as the reference sees it: what it is called, what it would do, what it says of the call, and whether it counts."""

    id: str
    effect: str
    verdict: str
    mode: str = "enforce"


class Outcome(NamedTuple):
    """What a decision comes to. The last five hold ids of rules, in declared order; of a denial only the labels are of interest."""

    name: str
    rule: str | None
    labels: tuple[str, ...]
    transforms: tuple[str, ...] = ()
    reroutings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    approvals: tuple[str, ...] = ()


def reference(rules: Sequence[Stated], default: str) -> Outcome:
    """The page, a sentence a line.

    A shadow rule changes nothing, and one that is off is not asked. An error counts as a match, but for `allow` and `log`. Deny is over
    the default denial, that is over approval, and that over everything else together. The first of equals is the one that is named.
    """
    saying = [rule for rule in rules if rule.mode == "enforce" and (
        rule.verdict == "matched" or (rule.verdict == "error" and rule.effect not in ("allow", "log")))]

    def those(*effects: str) -> tuple[str, ...]:
        return tuple(rule.id for rule in saying if rule.effect in effects)

    if those("deny"):
        return Outcome("deny", those("deny")[0], those("log"))
    if default == "deny" and not those("allow"):
        return Outcome("deny", "default", those("log"))
    name, rule = ("held", those("require_approval")[0]) if those("require_approval") else ("allow", (*those("allow"), None)[0])
    return Outcome(name, rule, those("log"), those("redact", "set"), those("route"), those("limit"), those("require_approval"))


def outcome(decision: Decision) -> Outcome:
    if isinstance(decision, Denied):
        return Outcome(decision.name, decision.rule, decision.labels)
    transforms, reroutings, limits = (tuple(each.rule for each in several)
                                      for several in (decision.transforms, decision.reroutings, decision.limits))
    approvals = tuple(each.rule for each in decision.approvals) if isinstance(decision, Held) else ()
    return Outcome(decision.name, decision.rule, decision.labels, transforms, reroutings, limits, approvals)


# Where rules are asked: the question, and the key of `[defaults]` that holds there, None where what is judged has been let through.


def _call(operation: str = "chat") -> Call:
    return Call("call_1", Principal("key_1", team="t"), "openai", operation, "fast", {}, stream=False, size=100, received_ns=0)


_TOOL = ToolCall("t1", "bank.pay", {})
SITUATIONS: dict[str, tuple[Question, str | None]] = {
    "a model call": (Question("request", _call(), 0), "models"),
    "an HTTP tool call arrived": (Question("request", _call("tool"), 0), None),
    "an HTTP tool": (Question("tool_call", _call("tool"), 0, tool=replace(_TOOL, via="http", server="http"), known_tool=True), "tools"),
    "an HTTP tool that a model proposes": (Question("tool_call", _call(), 0, tool=replace(_TOOL, server="http"), known_tool=True), "tools"),
    "a tool of the application": (Question("tool_call", _call(), 0, tool=_TOOL), "application_tools"),
    "an answer": (Question("response", _call(), 0, said=Said("hi")), None),
    "a result": (Question("tool_result", _call("tool"), 0, tool=_TOOL, result=ToolResult("x", "x")), None),
}
DEFAULTS = [DefaultsConfig(models="allow", tools="allow", application_tools="allow"), DefaultsConfig(),
            DefaultsConfig(models="deny", tools="deny", application_tools="deny")]
TABLES: dict[str, dict[str, Any]] = {
    "redact": {"redact": {"patterns": ["x"]}}, "set": {"set": {"values": {"x": 1}}}, "route": {"route": {"only": ["*"]}},
    "limit": {"limit": {"requests": 1, "per": "1s"}}}
WHEN = {"matched": "true", "not_matched": "false", "error": "1 / 0 == 1"}


def configured(stated: Stated, phase: Phase, **more: Any) -> RuleConfig:
    return RuleConfig.model_validate({"id": stated.id, "phase": phase, "effect": stated.effect, "mode": stated.mode,
                                      "when": WHEN[stated.verdict], **TABLES.get(stated.effect, {}), **more})


def fits(effect: str, phase: Phase) -> bool:
    return phase in PHASES_OF.get(effect, (phase,))


# The merge alone: rules that were compiled once, with programs that say what the case wants.


def _says(verdict: str) -> Callable[[Any], bool]:
    def run(_: Any) -> bool:
        if verdict == "error":
            raise RuntimeError
        return verdict == "matched"

    return run


class Prepared:
    """A bundle for every situation and default, into which rules can be put at no cost."""

    def __init__(self) -> None:
        bundles = [compile_bundle([], "auto", defaults=defaults) for defaults in DEFAULTS]
        self.situations = [(bundle, question, getattr(bundle.defaults, key) if key else "allow")
                           for bundle in bundles for question, key in SITUATIONS.values()]
        programs = {verdict: Program("", frozenset(), _says(verdict)) for verdict in VERDICTS}
        self._rules: dict[tuple[str, str, str, str], Rule] = {}
        for effect in EFFECTS:
            phase: Phase = "request" if fits(effect, "request") else "tool_call"
            for number in range(8):
                stated = Stated(f"r{number}", effect, "matched")
                (rule,) = compile_bundle([configured(stated, phase)], "auto").rules
                for verdict in VERDICTS:
                    for shadow in (False, True):
                        reasons = {name: replace(getattr(rule, name), shadow=shadow) for name in ("matched", "not_matched")}
                        self._rules[stated.id, effect, verdict, "shadow" if shadow else "enforce"] = replace(
                            rule, program=programs[verdict], shadow=shadow, **reasons)

    def decide(self, bundle: Bundle, question: Question, stated: Sequence[Stated]) -> Decision:
        rules = tuple(self._rules[each] for each in stated)
        index = Index([{}], lambda _: Selection(rules, ()))
        phases = {question.phase: replace(bundle.phases[question.phase], index=index)}
        here = replace(bundle, phases=phases)
        return decide(here, question.phase, gather(here, question))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return Prepared()


STATED = st.lists(st.tuples(st.sampled_from(EFFECTS), st.sampled_from(VERDICTS), st.sampled_from(MODES[:2])), max_size=8).map(
    lambda rules: [Stated(f"r{number}", *rule) for number, rule in enumerate(rules)])


@settings(max_examples=5000 * LONG, deadline=None)
@given(stated=STATED)
def test_decide_agrees_with_the_reference_evaluator(stated: list[Stated], prepared: Prepared) -> None:
    """Each generated list of rules is decided in every situation, under defaults that allow, that deny, and that are shipped."""
    for bundle, question, default in prepared.situations:
        here = [rule for rule in stated if fits(rule.effect, question.phase)]
        decision = prepared.decide(bundle, question, here)
        assert outcome(decision) == reference(here, default)
        assert [(reason.rule, reason.verdict, reason.shadow) for reason in decision.reasons] == [
            (rule.id, rule.verdict, rule.mode == "shadow") for rule in here]


STRICTNESS = {"allow": 0, "held": 1, "deny": 2}
NARROWING = [effect for effect in EFFECTS if effect != "allow"]


def no_wider(narrowed: Outcome, before: Outcome) -> bool:
    """Whether nothing passes that did not before, and no obligation is gone. A denial needs no obligations."""
    if STRICTNESS[narrowed.name] < STRICTNESS[before.name] or not set(before.labels) <= set(narrowed.labels):
        return False
    obligations = ("transforms", "reroutings", "limits", "approvals")
    return narrowed.name == "deny" or all(set(getattr(before, kind)) <= set(getattr(narrowed, kind)) for kind in obligations)


@settings(max_examples=1000 * LONG, deadline=None)
@given(stated=STATED.filter(lambda rules: len(rules) < 8), data=st.data())
def test_a_rule_that_may_only_narrow_never_widens(stated: list[Stated], data: st.DataObject, prepared: Prepared) -> None:
    """Wherever it stands, whatever it says: deny, approval, transforms, reroutings, limits, labels, and anything in shadow."""
    effect, mode = data.draw(st.tuples(st.sampled_from(NARROWING), st.just("enforce")) | st.tuples(st.sampled_from(EFFECTS), st.just("shadow")))
    added = Stated("r7", effect, data.draw(st.sampled_from(VERDICTS)), mode)
    place = data.draw(st.integers(0, len(stated)))
    more = [*stated[:place], added, *stated[place:]]
    for bundle, question, _ in prepared.situations:
        if not fits(effect, question.phase):
            continue
        before, after = (outcome(prepared.decide(bundle, question, [rule for rule in rules if fits(rule.effect, question.phase)]))
                         for rules in (stated, more))
        assert no_wider(after, before)
        assert mode == "enforce" or after == before


# The same through real expressions on the C++ engine, and with rules that are off.


@settings(max_examples=60 * LONG, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EFFECTS), st.sampled_from(VERDICTS), st.sampled_from(MODES)), max_size=8).map(
    lambda rules: [Stated(f"r{number}", *rule) for number, rule in enumerate(rules)]))
def test_rules_with_real_expressions_agree_with_the_reference_evaluator(stated: list[Stated]) -> None:
    """From the configuration to the decision, nothing in between put in by hand."""
    for phase in ("request", "tool_call", "response", "tool_result"):
        here = [rule for rule in stated if fits(rule.effect, phase)]
        bundle = compile_bundle([configured(rule, phase) for rule in here], "cel-expr-python")
        for question, key in SITUATIONS.values():
            if question.phase == phase:
                of_models = ("set", "route") if phase == "request" and question.call.operation == "tool" else ()
                asked = [rule for rule in here if rule.effect not in of_models]
                decision = decide(bundle, phase, gather(bundle, question))
                assert outcome(decision) == reference(asked, getattr(bundle.defaults, key) if key else "allow")
                assert [reason.rule for reason in decision.reasons] == [rule.id for rule in asked if rule.mode != "off"]


@settings(max_examples=40 * LONG, deadline=None)
@given(org=st.lists(st.tuples(st.sampled_from(EFFECTS), st.sampled_from(VERDICTS)), max_size=5),
       team=st.lists(st.tuples(st.sampled_from(NARROWING), st.sampled_from(VERDICTS)), min_size=1, max_size=3))
def test_a_teams_rules_never_widen_what_the_organisations_allow(org: list[tuple[str, str]], team: list[tuple[str, str]]) -> None:
    """With the rules of the team before those of the organisation, which must make no difference."""
    for phase in ("request", "tool_call", "response", "tool_result"):
        ours = [configured(Stated(f"o{number}", *rule), phase) for number, rule in enumerate(org) if fits(rule[0], phase)]
        theirs = [configured(Stated(f"t{number}", *rule), phase, team="t") for number, rule in enumerate(team) if fits(rule[0], phase)]
        before, after = compile_bundle(ours, "cel-expr-python"), compile_bundle([*theirs, *ours], "cel-expr-python")
        for question, _ in SITUATIONS.values():
            if question.phase == phase:
                assert no_wider(outcome(decide(after, phase, gather(after, question))), outcome(decide(before, phase, gather(before, question))))


def test_what_is_taken_out_by_the_organisation_is_taken_out_before_what_a_team_takes_out() -> None:
    """A team's redaction of `b` would leave `a` and `c` of a secret `abc` that the organisation's no longer finds."""
    redact = {"effect": "redact", "redact": {"patterns": ["abc"]}}
    rules = [RuleConfig.model_validate({"id": "theirs", **redact, "team": "t"}), RuleConfig.model_validate({"id": "ours", **redact})]
    bundle = compile_bundle(rules, "auto")
    decision = decide(bundle, "request", gather(bundle, SITUATIONS["a model call"][0]))
    assert outcome(decision).transforms == ("ours", "theirs")


def test_the_reference_covers_every_effect_and_verdict_there_is() -> None:
    """A new one has to be put into both evaluators."""
    fields = RuleConfig.model_fields
    assert set(EFFECTS) == set(get_args(fields["effect"].annotation))
    assert set(MODES) == set(get_args(fields["mode"].annotation))
    assert set(VERDICTS) == set(get_args(Verdict))
