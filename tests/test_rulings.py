"""Where the rules are asked on the way of a call, and what that makes of it: each step alone, without a network."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import asking as module
from gateway import rulings
from gateway.approvals.proposals import Proposals
from gateway.approvals.tickets import Matter
from gateway.asking import Asking
from gateway.call import Attempt, AttemptEnd, Call, Origin, Principal, Reply, Target
from gateway.core.accounts import Budget, BudgetBook
from gateway.core.conditions import Conditions
from gateway.core.decision import Denied, Limit
from gateway.core.detectors import DetectionError
from gateway.core.estimate import Measure
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget
from gateway.core.rules import compile_bundle
from gateway.errors import ApprovalPending, Forbidden, InvalidRequest, StoreUnavailable, UpstreamFailed, UpstreamRejected
from gateway.gate import Listening, StreamGate, WholeGate
from gateway.judge import Judged, judge
from gateway.progress import Progress
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.rulings import Rulings
from gateway.spending import Spending
from gateway.store.memory import MemoryStore
from gateway.tool_config import ToolConfig
from gateway.tools import Tool, compile_tool
from gateway.turns import Turns
from gateway.wire.protocol import Event
from gateway.wire.tool_calls import Proposed

NOW_NS = 1_700_000_000_000_000_000
MAIL = "ada@example.org"
SECRET = "sk-of-somebody"
SCHEMA = {"type": "object", "properties": {"who": {"type": "string"}, "note": {"type": "string"}}}


class StandingClock:
    def now_ns(self) -> int:
        return NOW_NS

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing waits here: {seconds}")


def declared(name: str) -> Tool:
    tool, problems = compile_tool(ToolConfig.model_validate({
        "name": name, "method": "POST", "url": f"https://tools.example/{name}", "effect": "read", "arguments": SCHEMA}))
    assert tool is not None, problems
    return tool


def route(name: str) -> Route:
    target = RouteTarget(Target("one", "m"), None)
    return Route(name, frozenset({"chat", "tool"}), (target,), Deadlines(1, 1, 1, 1, 1), Retry(1, 0, 0))


class Nobody:
    """Approvals where nobody decides: how a call meets them is tested where it is held."""

    conditions = Conditions()

    async def permit(self, _case: Progress, _snapshot: Any, matter: Matter, _answer: Any = None) -> None:
        raise ApprovalPending(f"{matter.kind} waits.", ticket="apr_1", rule=matter.approvals[0].rule)


class World:
    """Rulings with these rules, and a call under way."""

    def __init__(self, *rules: dict[str, Any], defaults: dict[str, str] | None = None, tools: tuple[str, ...] = (), withheld: str = "text") -> None:
        given = [RuleConfig.model_validate({"id": f"r{n}", **rule}) for n, rule in enumerate(rules)]
        bundle = compile_bundle(given, "auto", defaults=DefaultsConfig.model_validate(defaults or {}))
        policy = SimpleNamespace(env={}, wait=0.0, withheld=withheld)
        self.snapshot: Any = SimpleNamespace(bundle=bundle, budgets=BudgetBook(), tools={name: declared(name) for name in tools}, providers={f"tool:{name}": SimpleNamespace(base_url="https://tools.example") for name in tools}, config=SimpleNamespace(policy=policy),
                                             routes={name: route(name) for name in ("fast", "slow", *tools)})
        clock = StandingClock()
        self.store = MemoryStore("worker-1")
        asking = Asking(Turns(self.store.sessions, clock), self.store.budgets, clock, lambda text: text.replace(SECRET, "[secret]"))
        self.holding = Nobody()
        self.proposals = Proposals(asking, self.holding, lambda: self.snapshot)  # type: ignore[arg-type]
        self.rulings = Rulings(self.store.sessions, asking, self.holding, self.proposals)  # type: ignore[arg-type]
        self.case = self.new_case()

    def new_case(self) -> Progress:
        self.case = Progress("call_1", "openai", "chat", NOW_NS)
        return self.case

    def call(self, *, operation: str = "chat", name: str = "fast", principal: str = "key_1", session: str | None = None, size: int = 100,
             **body: Any) -> Call:
        return Call("call_1", Principal(principal), "openai", operation, name, body, stream=False, size=size, received_ns=NOW_NS,
                    origin=Origin(session=session))

    async def request(self, call: Call) -> tuple[Call, Route]:
        return await self.rulings.request(self.case, self.snapshot, call, self.snapshot.routes[call.route])

    async def reply(self, *choices: Any, **body: Any) -> Any:
        answer = Reply({"choices": list(choices), **body}, None)
        return (await self.rulings.reply(self.case, self.snapshot, self.call(), answer)).body["choices"]

    async def proposes(self, name: str, arguments: str = "{}", call_id: str = "c1", call: Call | None = None) -> Any:
        asked = [Proposed(call_id, name, arguments, "function")]
        return (await self.proposals.ruled(self.case, self.snapshot, call or self.call(), asked, lambda: None))[0]


def chat(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hello"}, *messages]


def result(call_id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def function(name: str, arguments: str = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


DENY_PAY = {"phase": "tool_call", "effect": "deny", "match": {"tools": ["pay"]}, "when": 'tool.args.who == "evil"', "message": "Not so."}
REDACT = {"effect": "redact", "redact": {"detectors": ["email"]}}


# Requests.

async def test_without_rules_the_same_call_goes_on_to_the_same_route():
    world = World()
    call = world.call(messages=chat(result("c1", "x")), tools=[{"type": "function"}])
    assert await world.request(call) == (call, world.snapshot.routes["fast"])
    assert world.case.labels == {}


async def test_what_is_left_of_a_request_is_what_goes_on_and_what_is_known_of_the_call():
    world = World({**REDACT}, {"effect": "route", "route": {"to": "slow"}}, {"effect": "log", "label": "seen"})
    call, where = await world.request(world.call(messages=[{"role": "user", "content": MAIL}]))
    assert call.body["messages"][0]["content"] == "[redacted:email]"
    assert world.case.call is call
    assert where.name == "slow"
    assert list(world.case.labels) == ["seen"]


@pytest.mark.parametrize(("effect", "error"), [("deny", Forbidden), ("require_approval", ApprovalPending)])
async def test_a_request_that_the_rules_stop_uses_up_no_limit(effect, error):
    limit = {"effect": "limit", "limit": {"requests": 1, "per": "1h"}}
    world = World(limit, {"effect": effect, "when": 'has(request.body.user) && request.body.user == "eve"'})
    with pytest.raises(error):
        await world.request(world.call(user="eve"))
    assert world.case.limits == []
    await world.request(world.call())
    assert world.case.limits == [(Limit("r0", 3600.0, ("key",), requests=1), "")]


# Results that a request brings.

async def test_results_are_judged_one_by_one_and_only_what_changed_changes():
    world = World({**REDACT, "phase": "tool_result"})
    messages = chat(result("c1", f"mail {MAIL}"), result("c2", "nothing"), result("c3", [{"type": "text", "text": "a"}]))
    call, _ = await world.request(world.call(messages=messages))
    assert [message["content"] for message in call.body["messages"][1:]] == ["mail [redacted:email]", "nothing", [{"type": "text", "text": "a"}]]
    assert world.case.results == {"c1": "mail [redacted:email]", "c2": "nothing", "c3": "a"}
    assert messages[1]["content"] == f"mail {MAIL}"


async def test_a_result_that_a_rule_stops_ends_the_call():
    world = World({"phase": "tool_result", "effect": "deny", "match": {"tools": ["read"]}, "when": 'result_text.contains("evil")'})
    asked = {"role": "assistant", "tool_calls": [function("read"), function("see", call_id="c2")]}
    await world.request(world.call(messages=chat(asked, result("c2", "evil"))))
    with pytest.raises(Forbidden):
        await world.request(world.call(messages=chat(asked, result("c1", "evil"))))


async def test_a_result_may_come_before_the_answer_with_its_call_is_on_record():
    """A client that reads a stream has the call before its end."""
    world = World(DENY_PAY)
    await world.proposes("pay", '{"who": "ada"}', "good")
    await world.proposes("pay", '{"who": "evil"}', "bad")
    for call_id, labels in (("good", []), ("bad", ["bypass"]), ("unknown", ["bypass"])):
        world.new_case()
        await world.request(world.call(messages=chat(result(call_id, "done"))))
        assert list(world.case.labels) == labels
    world.new_case()
    await world.request(world.call(principal="key_2", messages=chat(result("good", "done"))))
    assert list(world.case.labels) == ["bypass"]


async def test_what_is_remembered_of_calls_is_bounded():
    world = World(DENY_PAY)
    for n in range(10_010):
        world.proposals.remember("key_1", f"c{n}", released=True)
    assert len(world.proposals.lately) == 10_000
    assert ("key_1", "c9") not in world.proposals.lately
    world.proposals.remember("key_1", "c" * 300, released=True)
    assert ("key_1", "c" * 300) not in world.proposals.lately


async def test_rules_are_told_whether_a_result_is_of_a_call_that_was_let_through():
    world = World(DENY_PAY, {"phase": "tool_result", "effect": "deny", "when": "!tool.released"})
    await world.proposes("see", call_id="good")
    await world.request(world.call(messages=chat(result("good", "done"))))
    with pytest.raises(Forbidden):
        await world.request(world.call(messages=chat(result("made-up", "done"))))


async def test_more_results_than_can_be_judged_in_time_are_not_begun():
    world = World({**REDACT, "phase": "tool_result"})
    with pytest.raises(InvalidRequest, match="2048") as caught:
        await world.request(world.call(messages=[result(f"c{n}", MAIL) for n in range(2049)]))
    assert caught.value.pointer == "/messages"
    assert world.case.results == {}


async def test_messages_that_cannot_be_read_bring_no_results():
    world = World({**REDACT, "phase": "tool_result"})
    call = world.call(messages="x")
    assert (await world.request(call))[0] is call


# Tools that a request offers.

def offered(*names: str) -> list[Any]:
    return [{"type": "function", "function": {"name": name}} for name in names]


async def test_tools_that_could_never_be_called_are_not_offered_and_why_is_known():
    world = World({**DENY_PAY, "when": None}, {"phase": "tool_call", "effect": "deny", "match": {"tools": ["see"]}, "when": "has(tool.args.a)"})
    call, _ = await world.request(world.call(tools=offered("pay", "see")))
    assert call.body["tools"] == offered("see")
    assert [(decision.rule, decision.subject) for decision in world.case.offers] == [("r0", "pay")]


async def test_where_the_default_denies_http_tools_models_are_not_offered_them():
    """Without any rule on tools, too: a client that calls them is refused, and so is a model."""
    world = World(tools=("lookup",))
    call, _ = await world.request(world.call(tools=offered("lookup", "see")))
    assert call.body["tools"] == offered("see")
    assert (await world.proposes("lookup")).arguments is None
    assert (await world.proposes("see")).arguments == {}
    assert World(tools=("lookup",), defaults={"tools": "allow"}).snapshot.bundle.judges_tools is False


async def test_tools_that_cannot_be_read_are_not_sent_where_rules_judge_tools():
    with pytest.raises(InvalidRequest, match="offered cannot be read"):
        await World(DENY_PAY).request(World().call(tools=[{"type": "function"}, {"type": "web_search"}]))


# Tool calls that an answer proposes.

async def test_a_proposal_is_judged_and_put_on_record_whatever_becomes_of_it():
    world = World(DENY_PAY)
    world.case.answered = True
    assert (await world.proposes("pay", '{"who": "ada"}')).arguments == {"who": "ada"}
    refused = await world.proposes("pay", '{"who": "evil"}')
    assert refused.arguments is None
    assert refused.text == "The call of the tool pay was refused (rule r0): Not so."
    unreadable = await world.proposes("pay", "{")
    assert "(rule arguments)" in unreadable.text
    assert [(use.name, use.args, use.released) for use in world.case.uses] == [
        ("pay", {"who": "ada"}, True), ("pay", {"who": "evil"}, False), ("pay", {}, False)]
    assert [(verdict.name, verdict.rule) for verdict in world.case.verdicts] == [("allow", None), ("deny", "r0"), ("deny", "arguments")]


async def test_a_proposal_over_a_rate_is_refused_and_said_to_be():
    world = World({"phase": "tool_call", "effect": "limit", "limit": {"requests": 1, "per": "1h", "by": ["tool"]}})
    world.case.answered = True
    assert (await world.proposes("pay")).arguments == {}
    assert (await world.proposes("see")).arguments == {}
    assert "rate of 1 request in 1h" in (await world.proposes("pay")).text
    assert [verdict.name for verdict in world.case.verdicts] == ["allow", "allow", "allow", "deny"]
    last = world.case.verdicts[-1]
    assert isinstance(last, Denied)
    assert (last.rule, last.subject, last.reasons[0].effect) == ("r0", "pay", "limit")


async def test_calls_of_one_answer_see_those_before_them():
    world = World({"phase": "tool_call", "effect": "deny", "when": 'session.count("pay") >= 2'})
    call = world.call(session="s1")
    assert [(await world.proposes("pay", call=call)).arguments for _ in range(4)] == [{}, {}, None, None]


async def test_what_a_rule_writes_into_arguments_is_checked_again():
    note = {"phase": "tool_call", "effect": "set", "set": {"values": {"note": 5}}}
    assert "(rule arguments)" in (await World(note, tools=("lookup",), defaults={"tools": "allow"}).proposes("lookup")).text
    assert (await World(note).proposes("lookup")).arguments == {"note": 5}


async def test_an_answer_may_not_call_tools_without_end():
    world = World(DENY_PAY)
    for _ in range(1024):
        await world.proposes("see")
    with pytest.raises(UpstreamFailed, match="1024"):
        await world.proposes("see")


# Plain answers.

async def test_a_plain_answer_keeps_the_order_of_the_calls_that_are_left():
    calls = [function("see", call_id="c1"), function("pay", '{"who": "evil"}', "c2"), function("pay", '{"who": "ada"}', "c3")]
    (choice,) = await World(DENY_PAY).reply({"message": {"content": "Paying.", "tool_calls": calls}, "finish_reason": "tool_calls", "logprobs": {"content": []}})
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["c1", "c3"]
    assert choice["message"]["content"] == "Paying.\n\nThe call of the tool pay was refused (rule r0): Not so."
    assert (choice["finish_reason"], choice["logprobs"]) == ("tool_calls", None)


async def test_a_choice_of_which_no_call_is_left_ends_as_one_without_tools():
    world = World(DENY_PAY, withheld="drop")
    older = {"message": {"function_call": {"name": "pay", "arguments": '{"who": "evil"}'}}, "finish_reason": "function_call"}
    cut = {"message": {"tool_calls": [function("pay", '{"who": "evil"}')]}, "finish_reason": "length"}
    text = {"message": {"content": "a", "tool_calls": []}, "finish_reason": "stop", "logprobs": {"content": []}}
    assert await world.reply(older, cut, text) == [
        {"message": {}, "finish_reason": "stop"}, {"message": {}, "finish_reason": "length"}, text]


async def test_the_older_form_that_is_let_through_stays_in_its_place():
    older = {"message": {"content": None, "function_call": {"name": "pay", "arguments": '{"who": "evil", "who": "ada"}'}}, "finish_reason": "function_call"}
    assert await World(DENY_PAY).reply(older) == [
        {"message": {"content": None, "function_call": {"name": "pay", "arguments": '{"who":"ada"}'}}, "finish_reason": "function_call"}]


@pytest.mark.parametrize("choice", ["x", {"message": {}, "tool_calls": [function("pay")]}, {"message": {"TOOL_CALLS": [function("pay")]}}])
async def test_an_answer_that_may_hold_a_call_where_nobody_looks_is_refused(choice):
    with pytest.raises(UpstreamFailed, match="in a place where none belongs"):
        await World(DENY_PAY).reply(choice)


async def test_an_answer_that_a_rule_stops_is_withheld():
    world = World({"phase": "response", "effect": "deny", "when": 'response.text.contains("evil")'})
    assert await world.reply({"message": {"content": "good"}}) == [{"message": {"content": "good"}}]
    assert not world.case.withheld
    with pytest.raises(Forbidden):
        await world.reply({"message": {"content": "evil"}})
    assert world.case.withheld


async def test_an_answer_without_choices_holds_nothing_to_judge():
    world = World(DENY_PAY, {**REDACT, "phase": "response"})
    reply = Reply({"data": [{"embedding": [0.5]}]}, None)
    assert await world.rulings.reply(world.case, world.snapshot, world.call(operation="embeddings"), reply) is reply


async def test_a_large_answer_is_judged_beside_the_loop(monkeypatch):
    places: list[bool] = []

    def watched(bundle: Any, question: Any) -> Judged:
        places.append(threading.current_thread() is threading.main_thread())
        return judge(bundle, question)

    monkeypatch.setattr(module, "judge", watched)
    world = World({**REDACT, "phase": "response"})
    await world.reply({"message": {"content": "small"}})
    assert (await world.reply({"message": {"content": "large " * 20_000 + MAIL}}))[0]["message"]["content"].endswith("large [redacted:email]")
    assert places == [True, False]


# HTTP tools.

async def test_a_call_of_a_tool_goes_on_with_the_arguments_that_were_judged():
    world = World({"phase": "tool_call", "effect": "set", "set": {"values": {"note": "x"}}}, tools=("lookup",), defaults={"tools": "allow"})
    call, _ = await world.request(world.call(operation="tool", name="lookup", who="ada"))
    assert call.body == {"who": "ada", "note": "x"}
    assert world.case.call is call
    assert [(use.id, use.via, use.args, use.released) for use in world.case.uses] == [("call_1", "http", {"who": "ada", "note": "x"}, True)]


async def test_a_call_of_a_tool_that_is_refused_is_on_record_as_not_made():
    world = World(tools=("lookup",))
    with pytest.raises(Forbidden) as caught:
        await world.request(world.call(operation="tool", name="lookup"))
    assert caught.value.rule == "default"
    assert [use.released for use in world.case.uses] == [False]


async def test_what_a_rule_writes_has_to_fit_the_tool():
    world = World({"phase": "tool_call", "effect": "set", "set": {"values": {"note": 5}}}, tools=("lookup",), defaults={"tools": "allow"})
    with pytest.raises(Forbidden, match="does not fit the tool: /note") as caught:
        await world.request(world.call(operation="tool", name="lookup"))
    assert caught.value.rule == "arguments"


@pytest.mark.parametrize(("body", "after"), [
    ({"status": 200, "json": {"a": [MAIL]}}, {"status": 200, "json": {"a": ["[redacted:email]"]}}),
    ({"status": 200, "text": MAIL}, {"status": 200, "text": "[redacted:email]"}), ({"status": 200, "json": 5}, {"status": 200, "json": 5})])
async def test_a_result_is_given_on_as_it_was_judged(body, after):
    world = World({**REDACT, "phase": "tool_result"}, tools=("lookup",))
    reply = await world.rulings.reply(world.case, world.snapshot, world.call(operation="tool", name="lookup"), Reply(body, None))
    assert reply.body == after


async def test_without_a_rule_on_results_they_are_not_looked_at():
    world, reply = World(tools=("lookup",)), Reply({"status": 200, "text": MAIL}, None)
    assert await world.rulings.reply(world.case, world.snapshot, world.call(operation="tool", name="lookup"), reply) is reply


def attempt(status: int | None) -> Attempt:
    return Attempt(1, Target("tool:lookup", "POST"), NOW_NS, NOW_NS, AttemptEnd.FAILED, status=status)


@pytest.mark.parametrize("failure", [UpstreamRejected(f"no {MAIL}", status=404), UpstreamFailed(f"1. tool:lookup/POST: status:500 (no {MAIL})")])
async def test_what_a_tool_says_of_its_failure_is_judged_as_its_result(failure):
    world = World({**REDACT, "phase": "tool_result"}, tools=("lookup",))
    world.case.attempts.append(attempt(404))
    await world.rulings.rejected(world.case, world.snapshot, world.call(operation="tool", name="lookup"), failure)
    assert MAIL not in failure.message
    assert "no [redacted:email]" in failure.message
    assert len(world.case.verdicts) == 1


@pytest.mark.parametrize(("operation", "status", "rules"), [("chat", 404, [{**REDACT, "phase": "tool_result"}]), ("tool", None, [{**REDACT, "phase": "tool_result"}]),
                                                            ("tool", 404, [])], ids=["a model", "it has said nothing", "no rule"])
async def test_words_that_are_no_result_stay_what_they_are(operation, status, rules):
    world = World(*rules, tools=("lookup",))
    world.case.attempts.append(attempt(status))
    failure = UpstreamFailed(f"1. {MAIL}")
    await world.rulings.rejected(world.case, world.snapshot, world.call(operation=operation, name="lookup"), failure)
    assert failure.message == f"1. {MAIL}"
    assert not world.case.verdicts


# What stands between a stream and its client.

RESPONSE = {"phase": "response"}


@pytest.mark.parametrize(("rules", "kind"), [
    ([], type(None)),
    ([DENY_PAY], StreamGate),
    ([{**RESPONSE, **REDACT}], Listening),
    ([{**RESPONSE, "effect": "log"}], Listening),
    ([{**RESPONSE, "effect": "log", "when": 'response.text == ""'}], Listening),
    ([{**RESPONSE, "effect": "deny", "mode": "shadow"}], Listening),
    ([{**RESPONSE, "effect": "deny", "match": {"routes": ["other"]}}], type(None)),
    ([{**RESPONSE, "effect": "deny"}], WholeGate),
    ([{**RESPONSE, "effect": "deny", "match": {"tools": ["pay"]}}], WholeGate),
    ([{**RESPONSE, **REDACT}, {**RESPONSE, "effect": "require_approval", "when": 'response.text == "a"'}], WholeGate),
    ([{**RESPONSE, "effect": "redact", "redact": {"patterns": ["a.*b"]}}], WholeGate),
    ([{**RESPONSE, **REDACT, "when": "response.text.size() > 5"}], WholeGate)])
async def test_a_stream_is_held_only_as_far_as_the_rules_need(rules, kind):
    world = World(*rules)
    assert type(await world.rulings.gate(world.case, world.snapshot, world.call(), contiguous=False)) is kind
    assert world.case.decisions == world.case.verdicts == []


async def test_other_calls_are_not_kept_waiting_by_one_with_many_results():
    world, turns = World({**REDACT, "phase": "tool_result"}), 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await world.request(world.call(messages=[result(f"c{n}", "x") for n in range(100)]))
    task.cancel()
    assert turns >= 100


async def test_an_answer_that_could_not_be_searched_is_withheld(monkeypatch):
    def too_much(*_given: Any) -> Any:
        raise DetectionError("too much")

    monkeypatch.setattr(rulings, "redacted", too_much)
    world = World({**RESPONSE, **REDACT})
    with pytest.raises(Forbidden, match="withheld") as caught:
        await world.reply({"message": {"content": MAIL}})
    assert caught.value.rule == "r0"
    assert world.case.withheld


async def test_what_a_log_rule_says_of_a_stream_is_known_at_its_end():
    world = World({**RESPONSE, "effect": "log", "label": "seen", "when": 'response.text == "ab"'})
    world.case.answered = True
    listening = await world.rulings.gate(world.case, world.snapshot, world.call(), contiguous=False)
    assert listening is not None
    for text in "ab":
        await listening.take(Event({"choices": [{"index": 0, "delta": {"content": text}}]}))
    assert world.case.labels == {}
    await listening.end()
    assert list(world.case.labels) == ["seen"]


async def test_a_stream_that_is_needed_whole_is_judged_as_a_plain_answer_is():
    world = World({**RESPONSE, "effect": "deny", "when": 'response.text == "ab"'}, DENY_PAY)
    held = await world.rulings.gate(world.case, world.snapshot, world.call(), contiguous=False)
    assert held is not None
    await held.take(Event({"choices": [{"index": 0, "delta": {"content": "a"}}]}))
    await held.take(Event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **function("pay", '{"who": "evil"}')}]}}]}))
    (event,) = await held.end()
    assert event.body is not None
    assert event.body["choices"][0]["delta"] == {"content": "a\n\nThe call of the tool pay was refused (rule r1): Not so."}


@pytest.mark.parametrize(("effect", "allowed"), [("log", True), ("deny", False)])
async def test_the_arguments_of_a_tool_are_those_of_the_request_where_no_rule_writes_them(effect, allowed):
    world = World({"phase": "tool_call", "effect": effect}, tools=("lookup",), defaults={"tools": "allow"})
    call = world.call(operation="tool", name="lookup", who="ada")
    if allowed:
        assert (await world.request(call))[0] is call
    else:
        with pytest.raises(Forbidden):
            await world.request(call)


# Limits.

async def test_what_a_call_takes_of_rates_is_known_once_all_rules_of_its_way_are_asked():
    """Of an HTTP tool's those of both phases; taken are they with its intent."""
    world = World({"effect": "limit", "limit": {"concurrent": 2, "by": ["team"]}}, {"effect": "allow", "phase": "tool_call"},
                  {"phase": "tool_call", "effect": "limit", "limit": {"requests": 1, "per": "1s", "by": ["tool"]}}, tools=("pay",))
    await world.request(world.call(operation="tool", name="pay"))
    assert world.case.limits == [(Limit("r0", 0.0, ("team",), concurrent=2), ""), (Limit("r2", 1.0, ("tool",), requests=1), "pay")]


@pytest.mark.parametrize(("rule", "taken"), [
    ({"mode": "shadow"}, False), ({"mode": "shadow", "when": "request.params.nowhere == 1"}, False), ({"mode": "off"}, False),
    ({"when": "request.params.nowhere == 1"}, True), ({"match": {"teams": ["red"]}}, False)])
async def test_a_limit_that_only_looks_takes_nothing_and_one_that_cannot_be_evaluated_does(rule, taken):
    """What might have been over the rate is not let through uncounted."""
    world = World({"effect": "limit", "limit": {"requests": 1, "per": "1h"}, **rule})
    await world.request(world.call())
    assert [limit.rule for limit, _tool in world.case.limits] == ["r0"] * taken


async def test_a_proposal_is_counted_with_the_accounts_of_its_call_and_without_secrets():
    """The name is the model's own, and counts are kept on disk."""
    world = World({"phase": "tool_call", "effect": "limit", "limit": {"requests": 1, "per": "1h", "by": ["key", "route", "tool"]}})
    world.proposals.asking.budgets.take = asked = Taking()  # type: ignore[method-assign]
    world.case.spending = Spending({"key": ("key_1",), "route": ("elsewhere",)}, Measure(1))
    await world.proposes(f"pay-{SECRET}")
    (take,) = asked.takes
    assert (take.rule, take.whose, take.measure) == ("r0", "key=key_1 route=elsewhere tool=pay-%5Bsecret%5D", "requests")


async def test_a_store_that_fails_lets_no_proposal_pass_uncounted():
    world = World({"phase": "tool_call", "effect": "limit", "limit": {"requests": 1, "per": "1h"}})
    world.proposals.asking.budgets.take = Taking(StoreUnavailable("gone"))  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await world.proposes("pay")
    assert world.case.uses == []


# Money.

class Taking:
    """In place of the store's verb."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.takes: list[Any] = []

    async def __call__(self, takes: Any, **_: Any) -> None:
        self.takes += takes
        if self.error:
            raise self.error


class Standings:
    """In place of the store's verb: whose accounts are asked for."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self.asked: list[Any] = []

    async def __call__(self, book: Any, subjects: Any, *, now_ns: int) -> Any:
        self.asked.append(subjects)
        if self.inner is None:
            raise StoreUnavailable("gone")
        return await self.inner(book, subjects, now_ns=now_ns)


def poor(*rules: dict[str, Any], **given: Any) -> tuple[World, Standings]:
    """A world where the route `fast` has a budget of 5 nano-USD, and what is asked about accounts."""
    world = World(*rules, **given)
    world.snapshot.budgets = BudgetBook([Budget("b", "route", 5, of=("fast",))])
    world.proposals.asking.budgets.standing = asked = Standings(world.store.budgets.standing)  # type: ignore[method-assign]
    return world, asked


LOW = '"route" in budget.remaining && budget.remaining["route"] < 6 && budget.limit["any"] == 5 && budget.spent["route"] == 0'


async def test_a_rule_reads_how_the_accounts_of_the_route_that_was_asked_for_stand():
    """Before it is known where the call goes: this rule may be what sends it elsewhere."""
    world, asked = poor({"effect": "route", "route": {"to": "slow"}, "when": LOW})
    assert (await world.request(world.call()))[1].name == "slow"
    assert (await world.request(world.call(name="slow")))[1].name == "slow"
    assert [each["route"] for each in asked.asked] == [("fast",), ("slow",)]


async def test_nobody_looks_at_accounts_where_no_rule_that_could_apply_reads_them():
    """It is a question to the store, for every call."""
    world, asked = poor(*({"effect": "deny", "when": LOW, **more} for more in ({"match": {"teams": ["red"]}}, {"mode": "off"}, {"phase": "response"})))
    await world.request(world.call())
    assert asked.asked == []


async def test_later_questions_are_about_the_accounts_that_the_call_is_on():
    world, asked = poor({"phase": "tool_call", "effect": "deny", "when": LOW})
    assert (await world.proposes("pay")).arguments is None
    world.case.spending = Spending({"route": ("elsewhere",)}, Measure(1))
    assert (await world.proposes("pay")).arguments == {}
    assert [each["route"] for each in asked.asked] == [("fast",), ("elsewhere",)]


async def test_a_store_that_cannot_say_how_the_accounts_stand_ends_the_call():
    world, _ = poor({"effect": "log", "when": LOW})
    world.proposals.asking.budgets.standing = Standings()  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await world.request(world.call())


async def test_a_tool_stays_on_offer_where_its_rule_reads_how_the_accounts_stand():
    """The rule is asked when the tool is called."""
    world, asked = poor({"phase": "tool_call", "effect": "deny", "when": LOW})
    offered = [{"type": "function", "function": {"name": "pay"}}]
    call, _ = await world.request(world.call(messages=chat(), tools=offered))
    assert call.body["tools"] == offered
    assert asked.asked == []
