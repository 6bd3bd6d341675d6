"""The merge and its errors: what rules say becomes one decision, whatever goes wrong on the way."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Said, ToolCall, ToolResult
from gateway.core.approval import Demand, Stage
from gateway.core.decide import LATER, at_best, decide, merge
from gateway.core.decision import BY_DEFAULT, Allowed, Approval, Decision, Denied, Held, Limit, Phase, Redaction, Rerouting, Setting
from gateway.core.expressions import Program
from gateway.core.facts import Facts, facts_of
from gateway.core.matching import Index, MatchKeys
from gateway.core.question import LARGE, BudgetFacts, Question
from gateway.core.rules import Bundle, PhaseRules, Selection, compile_bundle
from gateway.gather import gather
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.session import SessionFacts, SessionQuery

Make = Callable[..., Any]
NO_FACTS = Facts(MatchKeys(), {}, {})


def rule(**keys: Any) -> RuleConfig:
    """A rule that denies, with match keys and rule keys alike given by name."""
    match = {key: keys.pop(key) for key in ("teams", "tools", "protocols") if key in keys}
    return RuleConfig.model_validate({"id": "r", "effect": "deny", "match": match, "source": "policies/x.toml:7", **keys})


def judged(bundle: Bundle, call: Call, phase: Phase = "request", **parts: Any) -> Decision:
    return decide(bundle, phase, gather(bundle, Question(phase, call, 0, **parts)))


def with_selection(bundle: Bundle, selection: Selection) -> Bundle:
    """A bundle whose index always gives this."""
    phases: dict[Phase, PhaseRules] = {"request": replace(bundle.phases["request"], index=Index([{}], lambda _: selection))}
    return replace(bundle, phases=phases)


ACTIONS: dict[str, dict[str, Any]] = {
    "redact": {"effect": "redact", "redact": {"patterns": ["a"]}}, "set": {"effect": "set", "set": {"values": {"x": 1}}},
    "route": {"effect": "route", "route": {"only": ["eu/*"]}}, "limit": {"effect": "limit", "limit": {"requests": 1, "per": "1s"}},
    "require_approval": {"effect": "require_approval", "approvers": ["role:finance"], "quorum": 2}}


def test_obligations_stand_in_declared_order_whatever_their_effects(call: Make) -> None:
    """Transforms run in this order, the first rerouting decides where to."""
    rules = [rule(id=f"r{number}", **ACTIONS[effect]) for number, effect in enumerate(
        ["set", "limit", "redact", "route", "require_approval", "set", "limit", "route", "require_approval", "redact"])]
    decision = judged(compile_bundle(rules, "auto"), call())
    assert isinstance(decision, Held)
    assert [(type(each), each.rule) for each in decision.transforms] == [(Setting, "r0"), (Redaction, "r2"), (Setting, "r5"), (Redaction, "r9")]
    assert [(type(each), each.rule) for each in decision.reroutings] == [(Rerouting, "r3"), (Rerouting, "r7")]
    assert [(type(each), each.rule) for each in decision.limits] == [(Limit, "r1"), (Limit, "r6")]
    assert decision.approvals == tuple(Approval(name, Demand(name, (Stage(("role:finance",), 2),))) for name in ("r4", "r8"))
    assert decision.rule == "r4"


def test_what_waits_for_a_person_keeps_its_obligations_and_its_words(call: Make) -> None:
    """Once it goes on, it goes on as the other rules say."""
    bundle = compile_bundle([rule(id="ask", **ACTIONS["require_approval"], message="Ask finance.", remedy="Split it."),
                             rule(id="cap", **ACTIONS["limit"]), rule(id="ok", effect="allow")], "auto")
    decision = judged(bundle, call())
    assert isinstance(decision, Held)
    assert (decision.rule, decision.message, decision.remedy, [limit.rule for limit in decision.limits]) == (
        "ask", "Ask finance.", "Split it.", ["cap"])
    silent = judged(compile_bundle([rule(**ACTIONS["require_approval"])], "auto"), call())
    assert silent.message == "This call needs approval."


TOOL = ToolCall("t1", "bank.pay", {})


@pytest.mark.parametrize(("phase", "operation", "parts", "key"), [
    ("request", "chat", {}, "models"), ("tool_call", "chat", {"tool": TOOL}, "application_tools"),
    ("tool_call", "chat", {"tool": TOOL, "known_tool": True}, "tools"), ("tool_call", "tool", {"tool": TOOL, "known_tool": True}, "tools")])
def test_what_no_rule_allows_is_as_the_defaults_say(phase: Phase, operation: str, parts: dict[str, Any], key: str, call: Make) -> None:
    """Each of the three holds in its own place and nowhere else."""
    asking = rule(id="ask", phase=phase, **ACTIONS["require_approval"])
    for denied in ("models", "tools", "application_tools"):
        defaults = DefaultsConfig.model_validate({**dict.fromkeys(("models", "tools", "application_tools"), "allow"), denied: "deny"})
        plain = judged(compile_bundle([], "auto", defaults=defaults), call(operation=operation), phase, **parts)
        assert (plain.name, plain.rule) == (("deny", BY_DEFAULT) if denied == key else ("allow", None))
        assert judged(compile_bundle([asking], "auto", defaults=defaults), call(operation=operation), phase, **parts).name == (
            "deny" if denied == key else "held")
        allowing = [rule(id="ok", phase=phase, effect="allow"), asking]
        assert judged(compile_bundle(allowing, "auto", defaults=defaults), call(operation=operation), phase, **parts).rule == "ask"


def test_a_default_denial_says_what_to_do(call: Make) -> None:
    """There is no rule whose words it could carry."""
    denied = judged(compile_bundle([], "auto", defaults=DefaultsConfig(models="deny")), call())
    assert (denied.rule, denied.message) == ("default", "No rule allows this.")
    assert "`allow` rule" in (denied.remedy or "")


def test_what_comes_back_of_a_call_that_was_let_through_is_let_through(call: Make) -> None:
    """Defaults are about calls; an answer and a result have been asked for."""
    defaults = DefaultsConfig(models="deny", tools="deny", application_tools="deny")
    bundle = compile_bundle([], "auto", defaults=defaults)
    assert judged(bundle, call(), "response", said=Said("hi")).name == "allow"
    assert judged(bundle, call(), "tool_result", tool=TOOL, result=ToolResult("x", "x")).name == "allow"
    assert judged(bundle, call(operation="tool")).name == "allow"


def test_a_shadow_rule_is_on_record_and_changes_nothing(call: Make) -> None:
    """Whatever its effect, whether it matches or cannot be evaluated."""
    tables = {**ACTIONS, "deny": {}, "allow": {"effect": "allow"}, "log": {"effect": "log"}}
    for when in ("true", "1 / 0 == 1"):
        rules = [rule(id=f"s-{effect.replace('_', '-')}", mode="shadow", when=when, **keys) for effect, keys in tables.items()]
        decision = judged(compile_bundle(rules, "auto"), call())
        assert isinstance(decision, Allowed)
        assert (decision.rule, decision.labels, decision.transforms, decision.reroutings, decision.limits) == (None, (), (), (), ())
        assert {(reason.shadow, reason.verdict) for reason in decision.reasons} == {(True, "matched" if when == "true" else "error")}
        assert len(decision.reasons) == len(rules)


def test_a_decision_says_what_was_judged(call: Make) -> None:
    """The phase, the tool, the facts that were read and what the session answered: `explain` shows them."""
    bundle = compile_bundle([rule(id="a", phase="tool_call", when='tool.args.amount > 5 && session.count("x") > 1', effect="log")], "auto")
    query = SessionQuery("count", "x")
    decision = judged(bundle, call(), "tool_call", tool=replace(TOOL, args={"amount": 6}), session=SessionFacts(answers={query: 2}))
    assert (decision.phase, decision.subject, decision.labels) == ("tool_call", "bank.pay", ("a",))
    assert decision.values == {"tool.args": {"amount": 6}, query.shown: 2}
    plain = judged(compile_bundle([rule(when='route == "x"')], "auto"), call())
    assert (plain.phase, plain.subject, plain.values) == ("request", "", {"route": "fast"})


# Errors in every phase


@pytest.mark.parametrize("effect", [*ACTIONS])
def test_a_rule_that_cannot_be_evaluated_has_its_effect(effect: str, call: Make, engine_name: str) -> None:
    """The action of a rule that may only narrow is taken when nobody can say that it need not be."""
    rules = [rule(id="r", when="request.body.x > 1", **ACTIONS[effect])]
    decision = judged(compile_bundle(rules, engine_name), call())
    assert isinstance(decision, Allowed | Held)
    obliged = (*decision.transforms, *decision.reroutings, *decision.limits, *(decision.approvals if isinstance(decision, Held) else ()))
    assert [each.rule for each in obliged] == ["r"]
    assert decision.reasons[0].verdict == "error"


@pytest.mark.parametrize("phase", ["request", "tool_call", "tool_result"])
def test_a_question_over_the_session_without_an_answer_fails_closed(phase: Phase, call: Make, engine_name: str) -> None:
    """A call without a session has not been screened; it has not been found clean either. The error says what to send."""
    parts: dict[Phase, dict[str, Any]] = {"request": {}, "tool_call": {"tool": TOOL}, "tool_result": {"tool": TOOL, "result": ToolResult("x", "x")}}
    for when in ('!session.called("kyc.check")', 'session.called("bank.pay")', 'session.count("x", duration("1h")) > 3',
                 'session.sum("x", "args.amount") > 5.0', 'session.last("x") != null', "session.calls > 500", 'session.age > duration("1h")',
                 '"secret" in session.labels', 'session.spend > usd("1")'):
        decision = judged(compile_bundle([rule(phase=phase, when=when)], engine_name), call(), phase, **parts[phase])
        assert (decision.name, decision.reasons[0].verdict) == ("deny", "error"), when
        assert "X-Lockgate-Session" in decision.reasons[0].message, when


def test_answers_over_the_session_decide(call: Make, engine_name: str) -> None:
    """The other side of it: with the answer there, the rule says what it means."""
    query = SessionQuery("called", "kyc.check", 3600.0)
    bundle = compile_bundle([rule(when='!session.called("kyc.check", duration("1h"))')], engine_name)
    for answer in (True, False):
        session = SessionFacts(age_s=timedelta(hours=1).total_seconds(), answers={query: answer})
        assert judged(bundle, call(), session=session).name == ("allow" if answer else "deny")
    other = SessionFacts(answers={SessionQuery("called", "kyc.check"): True})
    assert judged(bundle, call(), session=other).name == "deny"


# The most that could come of a tool call


def offered(*rules: RuleConfig, call: Call, defaults: DefaultsConfig | None = None) -> Decision:
    bundle = compile_bundle(rules, "auto", defaults=defaults)
    return at_best(bundle, gather(bundle, Question("tool_call", call, 0, tool=TOOL)))


@pytest.mark.parametrize("when", ["tool.args.amount > 5", 'texts.exists(t, t == "x")', "now.getHours() < 6", 'session.called("x")',
                                  "session.calls > 5", "request.body.x == 1", "size(messages) > 5", "request.params.x == 1", "size(tools_offered) > 5"])
def test_what_depends_on_what_nobody_knows_yet_is_taken_to_let_a_tool_pass(when: str, call: Make) -> None:
    """The tool is offered, and its call is judged when it is there: the whole request would be read again for each of a thousand tools."""
    denied = DefaultsConfig(application_tools="deny")
    assert offered(rule(phase="tool_call", when=when), call=call()).name == "allow"
    assert offered(rule(phase="tool_call", when=when, effect="allow"), call=call(), defaults=denied).name == "allow"


def test_a_tool_that_can_never_be_called_is_known_beforehand(call: Make) -> None:
    """So it is not offered to the model in the first place."""
    assert offered(rule(phase="tool_call", tools=["bank.*"]), call=call()).name == "deny"
    assert offered(rule(phase="tool_call", when='principal.team == "interns"'), call=call(team="interns")).name == "deny"
    assert offered(rule(phase="tool_call", when='principal.team == "interns"'), call=call(team="x")).name == "allow"
    assert offered(call=call(), defaults=DefaultsConfig(application_tools="deny")).name == "deny"
    assert offered(rule(phase="tool_call", when="request.max_tokens > 5"), call=call({"max_tokens": "x"})).name == "deny"
    assert offered(rule(phase="tool_call", tools=["bank.*"], when="tool.args.amount > 5 || true"), call=call()).name == "allow"


def test_without_rules_a_call_is_allowed(call: Make) -> None:
    """Its key is entitled to the route; rules only take away."""
    bundle = compile_bundle([], "auto")
    assert judged(bundle, call()) == Allowed(None, None, None, (), (), bundle.digest)


def test_a_denial_carries_the_rules_words(call: Make, engine_name: str) -> None:
    """They are all that the caller gets to see of the rule."""
    bundle = compile_bundle([rule(id="no", when="request.size > 5", message="Too big.", remedy="Send less.")], engine_name)
    decision = judged(bundle, call(size=6))
    assert isinstance(decision, Denied)
    assert (decision.rule, decision.message, decision.remedy) == ("no", "Too big.", "Send less.")
    assert decision.bundle == bundle.digest
    assert decision.reasons[0].source == "policies/x.toml:7"
    assert judged(bundle, call(size=5)).name == "allow"


def test_a_denial_without_a_message_does_not_name_its_rule_twice(call: Make) -> None:
    """Whoever shows a denial names the rule first, so the message does not."""
    decision = judged(compile_bundle([rule(id="no")], "auto"), call())
    assert (decision.rule, decision.message) == ("no", "This call is not allowed.")


def test_an_allow_rule_is_on_record_with_its_words(call: Make) -> None:
    """It changes nothing here, but says whose rule let the call pass."""
    bundle = compile_bundle([rule(id="ok", effect="allow", message="Known batch job.")], "auto")
    decision = judged(bundle, call())
    assert (decision.name, decision.rule, decision.message) == ("allow", "ok", "Known batch job.")


def test_labels_stand_once_each_in_declared_order(call: Make) -> None:
    """Several rules may say the same; a rule without a label is its own."""
    rules = [rule(id=f"r{number}", effect="log", label=label) for number, label in enumerate(["b", "a", "b", None])]
    assert judged(compile_bundle(rules, "auto"), call()).labels == ("b", "a", "r3")


def test_labels_are_on_a_denied_call_too(call: Make) -> None:
    """The record of a denied call is the one that is read."""
    rules = [rule(id="d"), rule(id="l", effect="log", label="big")]
    assert judged(compile_bundle(rules, "auto"), call()).labels == ("big",)


def test_what_log_rules_take_off_the_session_stands_once_each_in_declared_order(call: Make) -> None:
    """A shadow rule takes nothing off, nor one that does not match."""
    rules = [rule(id="a", effect="log", label="cleared", unlabel=["secret", "tainted"]), rule(id="b", effect="log", unlabel=["tainted", "x"]),
             rule(id="c", effect="log", unlabel=["kept"], mode="shadow"), rule(id="d", effect="log", unlabel=["kept"], when="request.stream")]
    decision = judged(compile_bundle(rules, "auto"), call())
    assert (decision.labels, decision.unlabels) == (("cleared", "b"), ("secret", "tainted", "x"))
    assert judged(compile_bundle([rule(id="a", effect="log")], "auto"), call()).unlabels == ()


def test_only_rules_whose_match_fits_are_asked(call: Make) -> None:
    """The others could not have contributed, so they are not in the reasons."""
    rules = [rule(id="mine", effect="log", teams=("a*",)), rule(id="other", teams=("b",)),
             rule(id="tool", effect="log", tools=("bank.*",), when='route == "fast"')]
    body = {"tools": [{"type": "function", "function": {"name": "bank.pay"}}]}
    bundle = compile_bundle(rules, "auto")
    assert judged(bundle, call(body, team="alpha")).labels == ("mine", "tool")
    assert [reason.rule for reason in judged(bundle, call(team="alpha")).reasons] == ["mine"]


# Errors


def test_a_deny_that_cannot_be_evaluated_says_so_before_the_rules_words(call: Make, engine_name: str) -> None:
    """The rule's message alone would accuse the caller of what nobody could find out."""
    bundle = compile_bundle([rule(id="no", when="request.body.x > 1", message="x!", remedy="y!")], engine_name)
    decision = judged(bundle, call())
    assert decision.name == "deny"
    unclear = "The rule could not be evaluated on this call, so the call is refused (policy_error)."
    assert (decision.message, decision.remedy) == (f"{unclear} The rule says: x!", "y!")
    silent = judged(compile_bundle([rule(when="request.body.x > 1")], engine_name), call())
    assert (silent.message, silent.remedy) == (unclear, None)
    assert decision.reasons[0].verdict == "error"
    assert decision.reasons[0].message.startswith("policy_error: ")


@pytest.mark.parametrize("body", [
    {"tools": "junk"}, {"tools": [{"type": "function"}]}, {"tools": [{"type": "function", "Function": {"Name": "bank.pay"}}]},
    {"functions": {"name": "bank.pay"}}])
def test_tools_that_cannot_be_read_are_denied_by_a_rule_on_tools(body: Any, call: Make) -> None:
    """Else a shape that we do not know and the provider does would pass."""
    decision = judged(compile_bundle([rule(tools=("bank.pay",)), rule(id="teams", teams=("t",))], "auto"), call(body))
    assert (decision.name, decision.reasons[0].verdict) == ("deny", "error")
    assert len(decision.reasons) == 1


def test_a_fact_that_cannot_be_read_fails_even_where_the_rule_might_not_have_looked(call: Make) -> None:
    """`has()` and `||` must not turn an unreadable body into a clean one."""
    bundle = compile_bundle([rule(when="request.max_tokens > 5 && false")], "auto")
    decision = judged(bundle, call({"max_tokens": "9"}))
    assert decision.name == "deny"
    assert decision.reasons[0].message == "policy_error: request.max_tokens: `max_tokens` is not a 64-bit integer"


HOSTILE: list[Any] = [
    {"max_tokens": 2**63}, {"max_tokens": "1000001"}, {"max_tokens": [1000001]}, {"max_tokens": 1e300},
    {"max_tokens": True}, {"max_completion_tokens": 1000001, "max_tokens": 1}, {"max_tokens": {"a": 1}}]


@pytest.mark.parametrize("body", HOSTILE)
def test_no_hostile_type_gets_past_a_limit(body: Any, call: Make, engine_name: str) -> None:
    """Each of them is over the limit or cannot be judged; none is let through."""
    assert judged(compile_bundle([rule(when="request.max_tokens > 1000000")], engine_name), call(body)).name == "deny"


@pytest.mark.parametrize("messages", [5, "x", {}, [5], [None], [{}], [{"content": 5}], [{"content": ["x"]}], [[[]]],
                                      [{"content": 2**70}], True])
def test_no_hostile_messages_get_past_a_rule_that_reads_them(
        messages: Any, call: Make, engine_name: str) -> None:
    """The rule can find nothing in them, and that is not the same as finding that nothing is there."""
    for when in ('messages.exists(m, m.content.startsWith("y"))', 'messages.exists(m, m.content.contains("y"))'):
        assert judged(compile_bundle([rule(when=when)], engine_name), call({"messages": messages})).name == "deny"


def test_a_deeply_nested_body_is_judged(call: Make, engine_name: str) -> None:
    """Far beyond the depth that the reader of bodies lets through."""
    body: dict[str, Any] = {"a": 1}
    for _ in range(400):
        body = {"a": body}
    decision = judged(compile_bundle([rule(when="request.body.a.a.a.b == 1")], engine_name), call(body))
    assert decision.name == "deny"


FAILURES = [ZeroDivisionError("x"), KeyError("x"), RecursionError(), MemoryError(), RuntimeError("x"), TypeError(),
            UnicodeError("x"), AssertionError()]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("effect", ["deny", "allow", "log"])
def test_whatever_an_expression_raises_fails_closed(effect: str, failure: Exception, call: Make) -> None:
    """A fault put into the engine itself: the decision is still one, and still the strict one."""

    def fail(_: Any) -> bool:
        raise failure

    compiled = compile_bundle([rule(effect=effect, when="route != ''")], "auto")
    broken = replace(compiled.rules[0], program=Program("", frozenset({"route"}), fail))
    decision = judged(with_selection(compiled, Selection((broken,), ())), call())
    assert decision.name == ("deny" if effect == "deny" else "allow")
    assert decision.labels == ()
    assert decision.rule == ("r" if effect == "deny" else None)
    assert decision.reasons[0].verdict == "error"


@pytest.mark.parametrize("verdict", [None, 1, "true", [True]])
def test_what_is_neither_true_nor_false_is_no_verdict(verdict: Any, call: Make) -> None:
    """`None` must not look like "does not match"."""
    compiled = compile_bundle([rule(when="route != ''")], "auto")
    broken = replace(compiled.rules[0], program=Program("", frozenset(), lambda _: verdict))
    decision = judged(with_selection(compiled, Selection((broken,), ())), call())
    assert (decision.name, decision.reasons[0].message) == ("deny", "policy_error: the engine gave no verdict")


@pytest.mark.parametrize("verdicts", [None, [], [False], [False, None], [None, False], 5, RuntimeError("x")], ids=repr)
def test_a_joint_step_with_a_defect_leaves_each_rule_to_be_asked_alone(verdicts: Any, call: Make) -> None:
    """It is only a cheaper way; too few answers are none."""
    def together(_: Any) -> Any:
        if isinstance(verdicts, Exception):
            raise verdicts
        return verdicts

    compiled = compile_bundle([rule(id="a", when="route == 'x'"), rule(id="b", when="route == 'fast'")], "cel-expr-python")
    chosen = compiled.phases["request"].index.select(MatchKeys())
    decision = judged(with_selection(compiled, replace(chosen, together=together)), call())
    assert (decision.name, decision.rule) == (("deny", "a") if verdicts == [None, False] else ("deny", "b"))


def test_an_extract_with_a_defect_gives_no_decision_at_all(call: Make) -> None:
    """It is our own code, so a defect is not dressed up as a verdict; without a decision nothing is sent."""
    compiled = compile_bundle([rule(when="request.size > 5")], "auto")

    def fail(_: Question) -> int:
        raise KeyError

    broken = replace(facts_of("request")["request.size"], extract=fail)
    with pytest.raises(KeyError):
        judged(with_selection(compiled, Selection(compiled.rules, (broken,))), call())


def test_an_activation_that_cannot_be_made_fails_closed() -> None:
    """Facts that are no facts: nothing can be evaluated, so whatever could deny does."""
    bundle = compile_bundle([rule(id="a", effect="allow", when="route != ''"), rule(id="d", when="route == ''")], "auto")
    nonsense: Any = {5: 5}
    decision = decide(bundle, "request", Facts(MatchKeys(), nonsense, {}))
    assert (decision.name, decision.rule) == ("deny", "d")
    assert [reason.verdict for reason in decision.reasons] == ["error", "error"]


def test_facts_that_were_not_gathered_fail_closed(engine_name: str) -> None:
    """A missing fact is not an empty one."""
    bundle = compile_bundle([rule(when='route == "x"')], engine_name)
    assert decide(bundle, "request", NO_FACTS).name == "deny"


def test_every_rule_needs_its_reason() -> None:
    """A merge over half of the verdicts is a defect, not a decision."""
    with pytest.raises(ValueError, match="zip"):
        merge([], [None], "", "request", NO_FACTS)  # type: ignore[list-item]


TROUBLE = ("request.size / (request.size - 100) > 0", 'request.params.absent == "x"', "dyn(1)", "messages[0].content.size() > 3")
PLAIN = ("request.size > 1", "request.size > 100000", 'request.model.startsWith("x") // a comment', "true\n|| false", "!request.stream")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["deny", "allow", "log"]), st.none() | st.sampled_from(PLAIN + TROUBLE)), max_size=8))
def test_rules_asked_together_say_what_each_says_alone(call: Make, given_rules: list[tuple[str, str | None]]) -> None:
    """One evaluation for all is only a cheaper way to the same answers, errors included."""
    rules = [rule(id=f"r{n}", effect=effect, when=when) for n, (effect, when) in enumerate(given_rules)]
    together = judged(compile_bundle(rules, "cel-expr-python"), call(body={"messages": [{"content": 5}]}))
    alone = [judged(compile_bundle([each], "cel-expr-python"), call(body={"messages": [{"content": 5}]})).reasons for each in rules]
    assert [reason.verdict for reason in together.reasons] == [reasons[0].verdict for reasons in alone]


def test_on_a_large_body_rules_are_asked_one_by_one(call: Make) -> None:
    """All of them in one step would be a step that no other thread could interrupt."""
    compiled = compile_bundle([rule(id="a", when="route == 'x'"), rule(id="b", when="route == 'fast'")], "cel-expr-python")
    asked: list[str] = []

    def together(_: Any) -> list[bool]:
        asked.append("together")
        return [False, True]

    bundle = with_selection(compiled, replace(compiled.phases["request"].index.select(MatchKeys()), together=together))
    assert judged(bundle, call(size=LARGE)).rule == "b"
    assert asked == []
    assert judged(bundle, call(size=LARGE - 1)).rule == "b"
    assert asked == ["together"]


def test_a_fact_that_cannot_be_read_is_the_trouble_of_the_rules_that_read_it_alone(call: Make) -> None:
    rules = [rule(id="reads", effect="log", when="size(messages) > 0"), rule(id="does-not", effect="log", when="request.size > 1")]
    decision = judged(compile_bundle(rules, "auto"), call(body={"messages": 5}))
    assert [reason.verdict for reason in decision.reasons] == ["error", "matched"]


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
@pytest.mark.parametrize("when", ['budget.remaining["team"] < usd("5")', 'budget.spent.team > usd("5")'])
def test_a_scope_that_no_budget_binds_fails_closed_and_says_how_to_guard_it(engine: str, when: str, call: Make) -> None:
    """The usual slip in rules on money: who wrote the rule has to see what is missing."""
    decision = judged(compile_bundle([rule(when=when)], engine), call(), budgets=BudgetFacts({"any": 5}, {"any": 5}, {"any": 0}))
    assert (decision.name, decision.reasons[0].verdict) == ("deny", "error")
    assert decision.reasons[0].message.endswith('; guard it with `in`: "team" in budget.remaining && …')


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_only_a_key_that_is_missing_is_said_to_want_a_guard(engine: str, call: Make) -> None:
    """Whatever else goes wrong, and whatever other rules lack."""
    rules = [rule(id="a", when='budget.remaining["any"] / 0 == 1'), rule(id="b", when='tags["x"] == "y"')]
    decision = judged(compile_bundle(rules, engine), call(), budgets=BudgetFacts({"any": 5}, {}, {}))
    assert [(reason.verdict, "guard it" in reason.message) for reason in decision.reasons] == [("error", False)] * 2


def test_how_the_accounts_stand_takes_no_tool_out_of_an_offer(call: Make) -> None:
    """It is looked at when the tool is called: by then it may be otherwise."""
    bundle = compile_bundle([rule(phase="tool_call", when='"any" in budget.remaining && budget.remaining["any"] < usd("5")')], "auto")
    asked = Question("tool_call", call(), 0, tool=ToolCall("t", "pay", {}))
    assert at_best(bundle, gather(bundle, asked, without=LATER)).name == "allow"
    assert decide(bundle, "tool_call", gather(bundle, asked)).name == "deny"
