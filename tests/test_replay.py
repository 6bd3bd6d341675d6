"""Recorded calls are decided again exactly, or counted as undecided: a guess is worse than no answer."""

import json
from typing import Any

import pytest

from gateway.call import Origin, Outcome, Principal
from gateway.core.decide import decide
from gateway.core.decision import reasons_json
from gateway.core.rules import Bundle, compile_bundle
from gateway.gather import gather
from gateway.recorded import effect_of, judgements
from gateway.replay import Replayed, replay
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.store.protocol import DecidedCall
from gateway.supposed import World

WORLD = World("openai", {"region": "eu"}, {"bank.pay": {"effect": "at_most_once"}})
BODY = {"model": "fast", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


def rule(**given: Any) -> RuleConfig:
    return RuleConfig.model_validate({"id": "r", "effect": "deny", "source": "policies/x.toml:1", **given})


def bundle(*rules: dict[str, Any], **defaults: str) -> Bundle:
    return compile_bundle([rule(**given) for given in rules], "auto", defaults=DefaultsConfig.model_validate(defaults))


def recorded(body: Any = BODY, **given: Any) -> DecidedCall:
    usual: dict[str, Any] = {
        "id": "call_1", "principal": Principal("key_1", "ci", "blue", "acme", ("dev",)), "dialect": "openai", "operation": "chat",
        "route": "fast", "stream": False, "origin": Origin(), "received_ns": 10**18, "decision": "allow", "rule": "", "labels": (),
        "request": body if body is None or isinstance(body, bytes) else json.dumps(body).encode(), "bundle": "sha256:1", "reasons": (),
        "verdicts": (), "outcome": Outcome.FAILED, "cost_nusd": 1000}
    return DecidedCall(**{**usual, **given})


def detail(**given: Any) -> dict[str, Any]:
    return {"outcome": "failed", "tool_uses": [], "verdicts": [], "response": None, "usage": None, "finish_reasons": [], **given}


def run(rules: Bundle, call: DecidedCall, **given: Any) -> Replayed:
    return replay(rules, [(call, detail(verdicts=list(call.verdicts), **given))], WORLD)


def flips(found: Replayed) -> list[tuple[str, str, str, str]]:
    return [tuple(change) for change in found.flips]  # type: ignore[misc]


def reason(**given: Any) -> dict[str, Any]:
    return {"rule": "old", "effect": "deny", "verdict": "matched", "source": "x", "message": "", **given}


ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}]}
DONE = {"outcome": "completed", "response": json.dumps(ANSWER), "finish_reasons": ["stop"], "usage": {"input_tokens": 5, "output_tokens": 9}}
CALLS = {"choices": [
    {"message": {"tool_calls": [{"id": "t1", "function": {"name": "pay", "arguments": '{"amount": 7}'}}, {"function": {"arguments": "{"}}]}},
    {"message": {"function_call": {"name": "pay", "arguments": '{"amount": 8}'}}}, {"message": 5}, 5]}
USE = {"id": "t1", "name": "pay", "via": "model", "args": {"amount": 7}, "released": True, "at_ns": 10**18}


@pytest.mark.parametrize(("rules", "call", "given", "expected"), [
    ([{"when": "request.max_tokens > 10"}], {}, {}, ("r", "request", "allow", "deny")),
    ([{"match": {"roles": ["dev"]}, "effect": "require_approval"}], {}, {}, ("r", "request", "allow", "require_approval")),
    ([{"effect": "set", "set": {"values": {"user": "x"}}}], {}, {}, ("r", "request", "allow", "set")),
    ([{"effect": "limit", "limit": {"requests": 1, "per": "1s"}}], {}, {}, ("r", "request", "allow", "limit")),
    ([], {"decision": "deny", "rule": "old", "reasons": (reason(),)}, {}, ("old", "request", "deny", "allow")),
    ([], {"decision": "held", "rule": "old"}, {}, ("old", "request", "require_approval", "allow")),
    ([], {"reasons": (reason(effect="route"),)}, {}, ("old", "request", "route", "allow")),
    ([{"effect": "require_approval"}], {"decision": "deny", "rule": "old"}, {}, ("old", "request", "deny", "require_approval")),
    ([{"when": "env['region'] == 'eu' && now.getFullYear() == 2001"}], {}, {}, ("r", "request", "allow", "deny")),
    ([{"phase": "tool_call", "when": "tool.args.amount > 5"}], {}, {"tool_uses": [USE]}, ("r", "tool_call", "allow", "deny")),
    ([{"phase": "tool_call", "match": {"tools": ["bank.*"]}}, {"id": "a", "phase": "tool_call", "effect": "allow"}],
     {"operation": "tool", "route": "bank.pay", "dialect": "tools", "body": {"amount": 1}}, {}, ("r", "request", "allow", "deny")),
    ([], {"operation": "tool", "route": "bank.pay", "dialect": "tools", "body": {"amount": 1}}, {}, ("default", "request", "allow", "deny")),
    ([{"phase": "response", "when": "response.text == 'well' && response.usage.output_tokens == 9 && response.finish_reason == 'stop'"}],
     {}, DONE, ("r", "response", "allow", "deny")),
    ([{"phase": "tool_result", "when": "result.ok == true"}, {"id": "a", "phase": "tool_call", "effect": "allow"}],
     {"operation": "tool", "route": "bank.pay", "body": {"amount": 1}}, {"outcome": "completed", "response": '{"status":200,"json":{"ok":true}}'},
     ("r", "tool_result", "allow", "deny")),
    ([{"phase": "tool_result", "when": "result_text == 'done' && tool.name == 'f' && tool.args.a == 1"}],
     {"body": {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}]},
                            {"role": "tool", "tool_call_id": "c", "content": "done"}]}}, {}, ("r", "request", "allow", "deny")),
])
def test_what_would_be_decided_otherwise_is_a_flip(
    rules: list[dict[str, Any]], call: dict[str, Any], given: dict[str, Any], expected: tuple[str, ...],
) -> None:
    """With the rule that makes the difference, on either side."""
    found = run(bundle(*rules), recorded(**call), **given)
    assert (flips(found), dict(found.undecided)) == ([expected], {})


def test_tool_calls_that_were_not_judged_stand_in_the_answer() -> None:
    """Where no rule was about tools, a model's calls went through as they were."""
    found = run(bundle({"phase": "tool_call", "when": "tool.args.amount > 5"}), recorded(), **{**DONE, "response": json.dumps(CALLS)})
    assert {change: flip.count for change, flip in found.flips.items()} == {("r", "tool_call", "allow", "deny"): 2}
    assert found.decided == 4


@pytest.mark.parametrize(("finish", "rules", "undecided"), [
    (["tool_calls"], [{"phase": "tool_call", "match": {"tools": ["x"]}}], {"a model called tools: it was not kept": 1}),
    (["function_call"], [{"phase": "tool_call"}], {"a model called tools: it was not kept": 1}),
    (["stop"], [{"phase": "tool_call"}], {}),
    (["tool_calls"], [], {}),
])
def test_an_answer_that_was_not_kept_may_have_called_tools(finish: list[str], rules: list[dict[str, Any]], undecided: dict[str, int]) -> None:
    """Why it ended tells whether it did, and nobody knows which; where no rule is about tools it is all the same."""
    found = run(bundle(*rules), recorded(), **{**DONE, "response": None, "finish_reasons": finish})
    assert (dict(found.undecided), flips(found)) == (undecided, [])


@pytest.mark.parametrize(("rules", "call", "given", "expected"), [
    ([{"when": "texts.exists(t, t == 'x')"}], {"body": None}, {}, "a rule reads `texts`: it was not kept"),
    ([{"when": "request.max_tokens > 5"}], {"body": {"messages": "[redacted: 3 characters]"}}, {},
     "a rule reads `request.max_tokens`: what people wrote was not kept"),
    ([{"when": "messages.size() > 5"}], {"body": {"messages": ["[secret]"]}}, {}, "a rule reads `messages`: a secret was taken out of it"),
    ([{"when": "messages.size() > 5"}], {"body": b"{"}, {}, "a rule reads `messages`: it was not kept"),
    ([{"when": "messages.size() > 5"}], {"body": b"[1]"}, {}, "a rule reads `messages`: it was not kept"),
    ([{"when": "messages.size() > 5"}], {"reasons": (reason(effect="redact"),)}, {},
     "a rule reads `messages`: a rule changed it before it was kept"),
    ([{"match": {"tools": ["x"]}}], {"reasons": (reason(offered=False),)}, {},
     "a rule reads `tools_offered`: a rule changed it before it was kept"),
    ([{"effect": "redact", "redact": {"fields": ["/user"]}}], {"body": None}, {}, "a rule reads `request.body`: it was not kept"),
    ([{"when": "request.size > 5"}], {}, {}, "a rule reads `request.size`: it was not kept"),
    ([{"when": "session.calls > 5"}], {"origin": Origin(session="s")}, {},
     "a rule reads `session.calls`: what the session had done by then is not on record"),
    ([{"when": "session.called('x')"}], {"origin": Origin(session="s")}, {},
     "a rule reads `session`: what the session had done by then is not on record"),
    ([{"when": '"any" in budget.remaining && budget.remaining["any"] < usd("5")'}], {}, {},
     "a rule reads `budget.remaining`: how the budgets stood by then is not on record"),
    ([{"phase": "response", "when": "budget.spent.any > 5"}], {}, DONE, "a rule reads `budget.spent`: how the budgets stood by then is not on record"),
    ([{"when": "user == ''"}], {}, {}, "a rule reads `user`: it was not kept"),
    ([{"phase": "tool_call", "when": "tool.args.amount > 5"}], {}, {"tool_uses": [{**USE, "args": {"to": "[redacted: 5 characters]"}}]},
     "a rule reads `tool.args`: what people wrote was not kept"),
    ([{"phase": "tool_call", "when": "tool.args.amount > 5"}],
     {"verdicts": ({"phase": "tool_call", "subject": "pay", "decision": "allow", "rule": "", "reasons": [reason(effect="set")]},)},
     {"tool_uses": [USE]}, "a rule reads `tool.args`: a rule changed it before it was kept"),
    ([{"phase": "tool_call", "when": "has(tool.annotations.strict)"}], {}, {"tool_uses": [USE]}, "a rule reads `tool.annotations`: it was not kept"),
    ([{"phase": "tool_result", "when": "!tool.released"}], {"body": {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}}, {},
     "a rule reads `tool.released`: it was not kept"),
    ([{"phase": "tool_result", "when": "result_text == 'x'"}], {"body": None, "reasons": (reason(phase="tool_result", subject="f"),)}, {},
     "a rule reads `result_text`: it was not kept"),
    ([{"phase": "response", "when": "response.text == 'x'"}], {}, {**DONE, "response": None}, "a rule reads `response.text`: it was not kept"),
    ([{"phase": "response", "when": "response.text == 'x'"}],
     {"verdicts": ({"phase": "response", "subject": "", "decision": "allow", "rule": "", "reasons": [reason(effect="redact")]},)}, DONE,
     "a rule reads `response.text`: a rule changed it before it was kept"),
    ([{"phase": "response", "when": "response.text == 'x'"}],
     {"verdicts": ({"phase": "response", "subject": "", "decision": "deny", "rule": "r", "reasons": [reason(rule="r")]},)},
     {**DONE, "outcome": "withheld"}, "a rule reads `response.text`: a rule kept it back, and the journal does not have it either"),
    ([{"phase": "response", "when": "response.text == 'x'"}], {}, {**DONE, "tool_uses": [{**USE, "released": False}]},
     "a rule reads `response.text`: a rule changed it before it was kept"),
    ([{"phase": "tool_call", "when": "tool.args.amount > 5"}, {"id": "a", "phase": "tool_call", "effect": "allow"}],
     {"operation": "tool", "route": "bank.pay", "body": None}, {}, "a rule reads `tool.args`: it was not kept"),
    ([{"phase": "tool_result", "when": "tool.args.amount > 5"}, {"id": "a", "phase": "tool_call", "effect": "allow"}],
     {"operation": "tool", "route": "bank.pay", "body": None}, {"outcome": "completed", "response": '{"text":"x"}'},
     "a rule reads `tool.args`: it was not kept"),
])
def test_what_hangs_on_something_that_is_not_on_record_is_counted_by_its_reason(
    rules: list[dict[str, Any]], call: dict[str, Any], given: dict[str, Any], expected: str,
) -> None:
    """And never guessed."""
    found = run(bundle(*rules), recorded(**call), **given)
    assert expected in found.undecided, dict(found.undecided)
    assert [change for change in flips(found) if change[3] == "deny" and change[0] == "r"] == []


@pytest.mark.parametrize(("rules", "call", "given", "expected"), [
    ([{"id": "sure", "match": {"teams": ["blue"]}}, {"when": "request.size > 5"}], {}, {}, "deny"),
    ([{"when": "request.size > 5"}, {"id": "sure", "match": {"teams": ["blue"]}}], {}, {}, "deny"),
    ([{"when": "request.size > 5"}], {"reasons": (reason(effect="log", values={"request.size": 9}),)}, {}, "deny"),
    ([{"when": "request.size > 5"}], {"reasons": (reason(effect="log", values={"request.size": 4}),)}, {}, "allow"),
    ([{"when": "request.size > 5", "effect": "log"}], {}, {}, "allow"),
    ([{"when": "request.size > 5", "mode": "shadow"}], {}, {}, "allow"),
    ([{"when": "request.size > 5", "mode": "off"}], {}, {}, "allow"),
    ([{"when": "request.size > 5", "match": {"teams": ["red"]}}], {}, {}, "allow"),
    ([{"when": "route == 'fast'"}], {"body": None}, {}, "deny"),
    ([{"when": "session.calls > 5"}], {}, {}, "deny"),
])
def test_what_hangs_on_nothing_else_is_decided(rules: list[dict[str, Any]], call: dict[str, Any], given: dict[str, Any], expected: str) -> None:
    """A denial by a rule that knows all it reads stands whatever others say; labels and shadows change nothing; no session is a fact."""
    found = run(bundle(*rules), recorded(**call), **given)
    assert (dict(found.undecided), found.decided) == ({}, 1)
    assert [change[3] for change in flips(found)] == [expected] * (expected != "allow")


@pytest.mark.parametrize(("call", "given"), [
    ({"decision": "deny", "rule": "r", "reasons": (reason(rule="r"),)}, {}),
    ({}, {"tool_uses": [{**USE, "via": "http"}]}),
    ({"verdicts": ({"phase": "tool_call", "subject": "pay", "decision": "deny", "rule": "arguments", "reasons": []},)},
     {"tool_uses": [{**USE, "released": False}]}),
    ({"body": {"messages": 5}}, {}),
])
def test_what_no_rule_decided_flips_nothing(call: dict[str, Any], given: dict[str, Any]) -> None:
    """The gateway itself refused it, or it is counted elsewhere, or nothing can be read in it."""
    found = run(bundle({"when": "request.max_tokens == 50"}, {"id": "b", "phase": "tool_call", "when": "false"}) if "decision" in call
                else bundle(), recorded(**call), **given)
    assert (flips(found), found.decided) == ([], 1)


def test_of_two_calls_of_one_tool_each_keeps_what_became_of_it() -> None:
    """What is on record of their verdicts names the tool, and not which of its calls."""
    verdicts = ({"phase": "tool_call", "subject": "pay", "decision": "deny", "rule": "r", "reasons": [reason(rule="r")]},)
    uses = [USE, {**USE, "id": "t2", "args": {"amount": 99}, "released": False}]
    found = run(bundle({"phase": "tool_call", "when": "tool.args.amount > 50"}), recorded(verdicts=verdicts), tool_uses=uses)
    assert (flips(found), found.decided, dict(found.undecided)) == ([], 3, {})


def test_flips_are_counted_by_rule_with_what_the_calls_cost() -> None:
    """An unknown cost is not nothing, and a call is paid once."""
    calls = [(recorded(id=f"call_{n}", cost_nusd=None if n == 3 else 100), detail(tool_uses=[USE, {**USE, "id": "t2"}])) for n in range(4)]
    told = replay(bundle({"phase": "tool_call"}), calls, WORLD).as_json()
    assert told == {"calls": 4, "decided": 12, "flipped": 8, "undecided": {}, "flips": [
        {"rule": "r", "phase": "tool_call", "before": "allow", "after": "deny", "count": 8, "cost_nusd": 300, "unpriced": 1,
         "calls": ["call_0", "call_1", "call_2", "call_3"]}]}


def test_the_calls_that_are_named_are_bounded() -> None:
    """The count says how many there are."""
    flip = next(iter(replay(bundle({}), [(recorded(id=f"call_{n}"), detail()) for n in range(50)], WORLD).flips.values()))
    assert (flip.count, len(flip.calls), flip.cost_nusd) == (50, 20, 50_000)


@pytest.mark.parametrize("rules", [
    [{"when": "request.max_tokens > 10", "message": "no"}],
    [{"when": "request.max_tokens > 100"}, {"id": "l", "effect": "log"}],
    [{"effect": "require_approval", "when": "route == 'fast'"}],
    [{"effect": "limit", "limit": {"requests": 1, "per": "1s"}}, {"id": "t", "effect": "route", "route": {"only": ["a/*"]}}],
    [{"when": "request.size > 10"}],
])
def test_under_the_same_rules_nothing_flips(rules: list[dict[str, Any]]) -> None:
    """What is recorded of a decision and what is made of the record agree."""
    same = bundle(*rules)
    first = next(iter(judgements(recorded(reasons=(reason(effect="log", values={"request.size": 100}),)), detail(), WORLD))).asked[0].question
    decision = decide(same, "request", gather(same, first))
    call = recorded(decision=decision.name, rule=decision.rule or "", reasons=tuple(reasons_json(decision, "full")))
    found = run(same, call)
    assert (flips(found), found.decided + sum(found.undecided.values())) == ([], 1)


def test_effects_have_one_name() -> None:
    """In the order of their strength, whatever order they came in."""
    assert effect_of(["limit", "allow", "redact", "limit"]) == "redact+limit"
    assert effect_of([]) == effect_of(["allow"]) == "allow"


def test_nothing_recorded_is_nothing_to_replay() -> None:
    """Zeroes, and no division by them."""
    assert replay(bundle(), [], WORLD).as_json() == {"calls": 0, "decided": 0, "flipped": 0, "flips": [], "undecided": {}}
