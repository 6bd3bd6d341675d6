"""Deciding, transforming, deciding again: what goes on is what was judged, and a transform frees nothing."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Principal, Said, ToolCall, ToolResult
from gateway.core.decision import Allowed, Denied, Held, Phase
from gateway.core.question import Question
from gateway.core.rules import compile_bundle
from gateway.judge import Judged, judge
from gateway.rule_config import DefaultsConfig, RuleConfig


def rule(id: str, effect: str, when: str | None = None, phase: Phase = "request", **keys: Any) -> RuleConfig:  # noqa: A002 - the key's name
    return RuleConfig.model_validate({"id": id, "effect": effect, "when": when, "phase": phase, **keys})


def redact(id: str, pattern: str, when: str | None = None, phase: Phase = "request", **keys: Any) -> RuleConfig:  # noqa: A002 - the key's name
    return rule(id, "redact", when, phase, redact={"patterns": [pattern]}, **keys)


def put(id: str, values: Mapping[str, Any], when: str | None = None, phase: Phase = "request") -> RuleConfig:  # noqa: A002 - the key's name
    return rule(id, "set", when, phase, set={"values": values})


def says(word: str) -> str:
    return f'texts.exists(t, t.contains("{word}"))'


def chat(text: str = "hello", **body: Any) -> Question:
    whole = {"model": "fast", "messages": [{"role": "user", "content": text}], **body}
    call = Call("call_1", Principal("key_1", team="t"), "openai", "chat", "fast", whole, stream=False, size=100, received_ns=0)
    return Question("request", call, 0)


def asked(question: Question, *rules: RuleConfig, **more: Any) -> Judged:
    return judge(compile_bundle(rules, "auto", **more), question)


def text_of(judged: Judged) -> str:
    return str(judged.question.call.body["messages"][0]["content"])


def test_what_needs_no_change_goes_on_as_it_came() -> None:
    """The very same question, not a copy that has to be trusted."""
    question = chat()
    for rules in ([], [rule("no", "deny", says("nothing"))], [rule("ok", "allow")], [redact("cut", "x", says("nothing"))]):
        judged = asked(question, *rules)
        assert judged.question is question
        assert isinstance(judged.decision, Allowed)


def test_what_goes_on_is_what_came_out_of_the_transforms() -> None:
    """And the caller's own question stays what it was: it is on record."""
    question = chat("my number is 4711")
    judged = asked(question, redact("cut", "[0-9]+", message="No numbers."), put("cold", {"temperature": 0}))
    assert text_of(judged) == "my number is [redacted:pattern]"
    assert judged.question.call.body["temperature"] == 0
    assert question.call.body == chat("my number is 4711").call.body
    assert [transform.rule for transform in judged.decision.transforms] == ["cut", "cold"]  # type: ignore[union-attr]


# No laundering


@pytest.mark.parametrize("order", [1, -1])
def test_a_redaction_that_hides_what_a_rule_denies_does_not_free_the_call(order: int) -> None:
    """The decision on the original stands; where the rules stand in their files makes no difference."""
    judged = asked(chat("the payroll of May"), *[rule("no-payroll", "deny", says("payroll")), redact("cut", "payroll")][::order])
    assert (judged.decision.name, judged.decision.rule) == ("deny", "no-payroll")
    assert text_of(judged) == "the payroll of May"


@pytest.mark.parametrize("order", [1, -1])
def test_a_redaction_that_hides_what_a_person_has_to_see_does_not_free_the_call(order: int) -> None:
    """It is held, with the transform to be done when it goes on."""
    judged = asked(chat("the payroll of May"), *[rule("ask", "require_approval", says("payroll")), redact("cut", "payroll")][::order])
    assert isinstance(judged.decision, Held)
    assert judged.decision.rule == "ask"
    assert text_of(judged) == "the [redacted:pattern] of May"


def test_what_comes_out_of_a_transform_is_judged_like_everything_else() -> None:
    """A value that a rule writes may be what another one forbids."""
    rules = [put("fill", {"user": "admin"}), rule("no-admin", "deny", 'has(request.params.user) && request.params.user == "admin"')]
    judged = asked(chat(), *rules)
    assert (judged.decision.name, judged.decision.rule) == ("deny", "no-admin")
    held = asked(chat(), rules[0], rule("ask", "require_approval", 'has(request.params.user) && request.params.user == "admin"'))
    assert (held.decision.name, held.decision.rule) == ("held", "ask")
    assert [transform.rule for transform in held.decision.transforms] == ["fill"]  # type: ignore[union-attr]


def test_an_allow_that_holds_only_for_the_original_does_not_let_the_result_pass() -> None:
    """Where nothing is allowed by default, both of them have to be."""
    denied = DefaultsConfig(models="deny")
    before = asked(chat("hello"), rule("ok", "allow", says("hello")), redact("cut", "hello"), defaults=denied)
    after = asked(chat("hello"), rule("ok", "allow", says("redacted")), redact("cut", "hello"), defaults=denied)
    assert [(each.decision.name, each.decision.rule) for each in (before, after)] == [("deny", "default")] * 2


def test_a_transform_that_applies_only_to_the_result_of_another_denies() -> None:
    """Applied, its own result would be judged no more; left out, a rule would have been passed over."""
    rules = [put("fill", {"user": "x"}), put("late", {"seed": 1}, "has(request.params.user)")]
    judged = asked(chat(), *rules)
    assert (judged.decision.name, judged.decision.rule) == ("deny", "late")
    assert "policy_error" in (judged.decision.message or "")
    failed = next(reason for reason in judged.decision.reasons if reason.rule == "late")
    assert failed.verdict == "error"
    assert failed.message == "policy_error: it applies only to what another rule has changed"
    assert asked(chat(user="x"), *rules).decision.name == "allow"


def test_a_redaction_that_applies_to_its_own_result_again_is_no_other_one() -> None:
    """It has been applied: `[redacted:…]` may well match its `when`."""
    judged = asked(chat("4711"), redact("cut", "[0-9]+", "true"))
    assert judged.decision.name == "allow"
    assert text_of(judged) == "[redacted:pattern]"


# Obligations of both


def test_the_obligations_of_both_decisions_hold() -> None:
    """What binds the original binds its redacted form; what binds the result binds as well."""
    limit: dict[str, Any] = {"limit": {"requests": 5, "per": "1m"}}
    rules = [rule("before", "limit", says("secret"), **limit), redact("cut", "secret"), rule("after", "limit", says("redacted"), **limit),
             rule("always", "limit", **limit), rule("eu", "route", says("secret"), route={"only": ["eu/*"]}),
             rule("small", "route", says("redacted"), route={"only": ["*/small"]}),
             rule("seen", "log", says("secret")), rule("cleaned", "log", says("redacted"))]
    decision = asked(chat("a secret"), *rules).decision
    assert isinstance(decision, Allowed)
    assert {each.rule for each in decision.limits} == {"before", "after", "always"}
    assert {each.rule for each in decision.reroutings} == {"eu", "small"}
    assert decision.labels == ("seen", "cleaned")
    held = asked(chat("a secret"), *rules, rule("ask", "require_approval", says("redacted"))).decision
    assert isinstance(held, Held)
    assert {each.rule for each in held.limits} | {each.rule for each in held.reroutings} == {"before", "after", "always", "eu", "small"}


def test_everybody_who_has_to_be_asked_of_either_is_asked() -> None:
    """Of the original and of the result."""
    decision = asked(chat("a secret"), rule("one", "require_approval", says("secret"), approvers=["role:a"]), redact("cut", "secret"),
                     rule("two", "require_approval", says("redacted"), approvers=["role:b"])).decision
    assert isinstance(decision, Held)
    assert [approval.rule for approval in decision.approvals] == ["one", "two"]


def test_a_denied_result_keeps_the_labels_of_the_original() -> None:
    """What was seen was seen."""
    decision = asked(chat("a secret"), rule("seen", "log", says("secret")), redact("cut", "secret"), rule("no", "deny", says("redacted"))).decision
    assert (decision.rule, decision.labels) == ("no", ("seen",))


# Order, and what cannot be done


@pytest.mark.parametrize("order", [1, -1])
def test_redactions_do_not_depend_on_where_they_stand(order: int) -> None:
    """`11` taken out first would leave `4` and `7` of a number that the other one no longer finds."""
    judged = asked(chat("no. 4117"), *[redact("part", "11"), redact("whole", "4117")][::order])
    assert text_of(judged) == "no. [redacted:pattern]"


def test_settings_run_in_declared_order() -> None:
    """The later one has the last word."""
    rules = [put("one", {"temperature": 1}), put("two", {"temperature": 2})]
    assert asked(chat(), *rules).question.call.body["temperature"] == 2
    assert asked(chat(), *rules[::-1]).question.call.body["temperature"] == 1


def test_a_clamped_number_is_the_integer_that_providers_ask_for() -> None:
    """`1000.0` is refused by some."""
    judged = asked(chat(max_tokens=5000), rule("cap", "set", set={"clamp": {"max_tokens": {"max": 1000}}}))
    assert '"max_tokens": 1000}' in json.dumps(dict(judged.question.call.body))


@pytest.mark.parametrize("made", [
    put("bad", {"/user/name": "x"}), rule("bad", "set", set={"clamp": {"user": {"max": 5}}})])
def test_a_transform_that_cannot_be_done_denies(made: RuleConfig) -> None:
    """`user` is a text: nothing can be set within it, and it is no number."""
    judged = asked(chat(user="somebody"), made, rule("seen", "log"))
    assert isinstance(judged.decision, Denied)
    assert (judged.decision.rule, judged.decision.labels) == ("bad", ("seen",))
    assert [(reason.rule, reason.verdict) for reason in judged.decision.reasons] == [("bad", "error"), ("seen", "matched")]
    assert "policy_error" in (judged.decision.message or "")
    assert "somebody" not in repr(judged.decision)
    assert judged.question.call.body["user"] == "somebody"


def test_a_redaction_of_what_cannot_be_read_denies() -> None:
    """Nobody knows what is in it, so nothing can be said to have been taken out."""
    question = chat()
    for body in ({"messages": 5}, {"messages": [{"content": 5}]}, {"messages": [], "prompt": [1, 2]}):
        judged = asked(replace(question, call=replace(question.call, body=body)), redact("cut", "x"))
        assert (judged.decision.name, judged.decision.rule) == ("deny", "cut")


def test_a_rule_that_cannot_be_evaluated_transforms_all_the_same() -> None:
    """Nobody can say that it need not."""
    judged = asked(chat("4711"), redact("cut", "[0-9]+", "request.params.absent > 1"))
    assert text_of(judged) == "[redacted:pattern]"


def test_a_shadow_transform_changes_nothing() -> None:
    """It is counted and shown."""
    question = chat("4711")
    judged = asked(question, redact("cut", "[0-9]+", mode="shadow"))
    assert judged.question is question
    assert [(reason.rule, reason.shadow) for reason in judged.decision.reasons] == [("cut", True)]


# Every phase


def test_every_phase_is_transformed_in_what_it_judges() -> None:
    """The body, the arguments, the answer, the result; and nothing beside it."""
    base = chat("4711").call
    call = Question("tool_call", base, 0, tool=ToolCall("t1", "mail", {"to": "4711", "n": 4711}))
    answer = Question("response", base, 0, said=Said("it is 4711"))
    result = Question("tool_result", base, 0, tool=call.tool, result=ToolResult({"a": "4711"}, '{"a":"4711"}'))
    changed = {question.phase: asked(question, redact("cut", "[0-9]+", phase=question.phase)).question for question in (call, answer, result)}
    assert changed["tool_call"].tool is not None
    assert changed["tool_call"].tool.args["to"] == "[redacted:pattern]"
    assert changed["response"].said is not None
    assert changed["response"].said.text == "it is [redacted:pattern]"
    assert changed["tool_result"].result is not None
    assert changed["tool_result"].result.content == {"a": "[redacted:pattern]"}
    assert "4711" not in changed["tool_result"].result.text
    assert all(question.call is base for question in changed.values())


# Narrowing, with transforms


WORDS = ("alpha", "beta", "redacted")
ORG = st.lists(st.sampled_from([
    *(("deny", word) for word in WORDS), *(("require_approval", word) for word in WORDS), *(("allow", word) for word in WORDS), ("redact", "alpha"),
    ("redact", "beta"), ("limit", "alpha"), ("limit", "redacted")]), max_size=4)
TEAM = st.lists(st.sampled_from([("deny", "beta"), ("redact", "alpha"), ("redact", "beta"), ("require_approval", "redacted"), ("limit", "beta")]),
                min_size=1, max_size=2)


def made(rules: list[tuple[str, str]], prefix: str, **more: Any) -> list[RuleConfig]:
    tables: dict[str, Any] = {"limit": {"limit": {"requests": 1, "per": "1s"}}}
    return [redact(f"{prefix}{n}", word, says(word), **more) if effect == "redact"
            else rule(f"{prefix}{n}", effect, says(word), **tables.get(effect, {}), **more) for n, (effect, word) in enumerate(rules)]


@settings(max_examples=60, deadline=None)
@given(org=ORG, team=TEAM, text=st.lists(st.sampled_from(WORDS), max_size=3), models=st.sampled_from(["allow", "deny"]))
def test_a_teams_rules_never_free_what_the_organisations_stop(org: list[tuple[str, str]], team: list[tuple[str, str]], text: list[str], models: Any) -> None:
    """With redactions and their second look: no stricter decision is lost, no obligation, and nothing that was taken out comes back."""
    strictness = {"allow": 0, "held": 1, "deny": 2}
    question, defaults = chat(" ".join(text)), DefaultsConfig(models=models)
    before = asked(question, *made(org, "o"), defaults=defaults)
    after = asked(question, *made(team, "t", team="t"), *made(org, "o"), defaults=defaults)
    assert strictness[after.decision.name] >= strictness[before.decision.name]
    if isinstance(after.decision, Allowed | Held) and isinstance(before.decision, Allowed | Held):
        assert set(before.decision.limits) <= set(after.decision.limits)
        gone = {word for word in text if word not in text_of(before)}
        assert not any(word in text_of(after) for word in gone - {"redacted"})
