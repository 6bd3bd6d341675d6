"""An edited action is another action: judged again, checked again, and never asked of fewer people. Without a network."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.approvals.editing import Editing
from gateway.approvals.matters import of_call, of_tool
from gateway.asking import Asking
from gateway.call import Call, Origin, Principal, ToolCall
from gateway.core.accounts import BudgetBook
from gateway.core.action import UncanonicalError
from gateway.core.approval import Demand, Stage, State, Ticket
from gateway.core.conditions import Conditions
from gateway.core.question import Question
from gateway.core.rules import compile_bundle
from gateway.errors import ApprovalConflict, Forbidden, InvalidRequest
from gateway.judge import judge
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.schemas import SchemaCache
from gateway.store.memory import MemoryStore
from gateway.store.scrub import Scrubber
from gateway.tool_config import ToolConfig
from gateway.tools import Tool, compile_tool
from gateway.turns import Turns
from gateway.wire.strict_json import dumps

NOW_NS = 1_700_000_000_000_000_000
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"amount": {"type": "number"}, "note": {"type": "string"}}, "required": ["amount"],
                          "additionalProperties": False}
DEMAND = Demand("old", (Stage(("role:finance",)),))


class StandingClock:
    def now_ns(self) -> int:
        return NOW_NS

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class Numbers:
    """Ids that count."""

    def __init__(self) -> None:
        self.last = 0

    def call_id(self) -> str:
        self.last += 1
        return f"call_{self.last}"

    def token(self, characters: int) -> str:
        return "x" * characters

    def jitter(self) -> float:
        return 0.0


def rule(name: str, effect: str, phase: str = "tool_call", **more: Any) -> RuleConfig:
    return RuleConfig.model_validate({"id": name, "effect": effect, "phase": phase, "source": "x.toml:1", **more})


def tool(**more: Any) -> Tool:
    given = {"name": "bank.pay", "method": "POST", "url": "https://bank.example/pay", "effect": "idempotent", "arguments": SCHEMA, **more}
    made, problems = compile_tool(ToolConfig.model_validate(given))
    assert made is not None, problems
    return made


def snapshot(*rules: RuleConfig, tools: Mapping[str, Tool] | None = None, dialects: Any = None) -> Any:
    def read(_operation: str, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("messages", []), list):
            raise InvalidRequest("`messages` is no list", pointer="/messages")

    allowing = DefaultsConfig.model_validate({"models": "allow", "tools": "allow", "application_tools": "allow"})
    return SimpleNamespace(
        bundle=compile_bundle(rules, "auto", defaults=allowing), tools={"bank.pay": tool()} if tools is None else tools,
        dialects=[SimpleNamespace(name="openai", read=read)] if dialects is None else dialects, budgets=BudgetBook({}),
        config=SimpleNamespace(policy=SimpleNamespace(env={}, wait=1.0)))


def call(body: Mapping[str, Any], **more: Any) -> Call:
    principal = Principal("key_1", "tests", "blue", roles=("dev",))
    return Call("call_0", principal, "openai", more.pop("operation", "chat"), more.pop("route", "fast"), body, stream=bool(body.get("stream")), size=10,
                received_ns=NOW_NS, origin=Origin(session="s1", tags={"env": "prod"}), asked="fast", **more)


def ticket(shown: Mapping[str, Any], asked: Call, **more: Any) -> Ticket:
    origin = {"principal": asdict(asked.principal), "origin": {**asdict(replace(asked.origin, tags={})), "tags": dict(asked.origin.tags)},
              "dialect": asked.dialect, "operation": asked.operation, "asked": asked.asked, "user": "", "phase": "request", "kind": "request"}
    usual: dict[str, Any] = {
        "id": "apr_old", "kind": "request", "mode": "release", "state": State.PENDING, "digest": "sha256:old", "presented": "sha256:asked",
        "principal": "key_1", "call_id": asked.id, "rule": "old", "message": "m", "demands": (DEMAND,), "shown": shown, "body": dumps(dict(asked.body)),
        "origin": origin, "shape": "s", "created_ns": NOW_NS - 10, "expires_ns": NOW_NS + 10**12, "route": asked.route, "session": "s1",
        "effect": "model", "fence": 0}
    return Ticket(**{**usual, **more})


def waiting(now: Any, asked: Call) -> Ticket:
    """The ticket of a model call, as these rules make it."""
    judged = judge(now.bundle, Question("request", asked, NOW_NS))
    action = of_call(now, Conditions(), judged.question, ()).action
    return ticket(action.shown(), asked, digest=action.digest)


def proposed(now: Any, arguments: Mapping[str, Any], name: str = "bank.pay", **more: Any) -> Ticket:
    asked = call({"tools": more.pop("tools", [])})
    question = Question("tool_call", asked, NOW_NS, tool=ToolCall("t1", name, arguments))
    action = of_tool(now, Conditions(), question, ToolCall("t1", name, arguments), (), kind="tool_call").action
    definitions = [each["function"] for each in asked.body["tools"]]
    made = ticket(action.shown(), asked, kind="tool_call", digest=action.digest, tool=name, body=b"{}", effect="idempotent")
    return replace(made, origin={**made.origin, "phase": "tool_call", "definitions": definitions, **more})


@pytest.fixture
def editing() -> Editing:
    store, clock = MemoryStore("one"), StandingClock()
    asking = Asking(Turns(store.sessions, clock), store.budgets, clock, lambda text: text)
    return Editing(store.approvals, asking, Conditions(), SchemaCache(), Numbers(), Scrubber(()).bytes)


CHAT = {"model": "fast", "messages": [{"role": "user", "content": "the payroll"}], "temperature": 1, "stream": True, "stream_options": {"include_usage": True}}


# Model calls


async def test_a_model_call_keeps_its_model_and_how_it_is_answered(editing: Editing) -> None:
    """What its editor writes is all the rest of it."""
    now = snapshot()
    old = waiting(now, call(CHAT))
    new = await editing.edited(now, old, {"messages": [{"role": "user", "content": "numbers only"}], "seed": 3})
    assert new.shown["arguments"] == {"model": "fast", "messages": [{"role": "user", "content": "numbers only"}], "seed": 3}
    assert new.body == dumps({"messages": [{"role": "user", "content": "numbers only"}], "seed": 3, "model": "fast", "stream": True,
                              "stream_options": {"include_usage": True}})
    assert (new.state, new.edited_from, new.presented, new.expires_ns, new.created_ns) == (State.PENDING, old.id, old.presented, old.expires_ns, NOW_NS)
    assert {each["path"] for each in new.patch} == {"/messages/0/content", "/temperature", "/seed"}
    assert new.digest not in (old.digest, old.presented)
    assert (new.id, new.votes, new.demands) == ("apr_2", (), old.demands)


SYSTEM = rule("policy", "set", "request", set={"system": "Be careful.", "values": {"user": "u1"}})


async def test_what_rules_put_before_the_messages_is_not_put_there_twice(editing: Editing) -> None:
    """People see the whole action and edit it; the rules are asked again, and do what they did."""
    now = snapshot(SYSTEM)
    old = waiting(now, call(CHAT))
    shown = old.shown["arguments"]
    assert [each["role"] for each in shown["messages"]] == ["system", "user"]
    wanted = {**shown, "messages": [shown["messages"][0], {"role": "user", "content": "less"}]}
    new = await editing.edited(now, old, wanted)
    assert new.shown["arguments"] == wanted
    twice = await editing.edited(now, new, {**wanted, "temperature": 0})
    assert twice.shown["arguments"] == {**wanted, "temperature": 0}
    with pytest.raises(InvalidRequest, match="first 1 of the messages are rules' own") as caught:
        await editing.edited(now, old, {**shown, "messages": [{"role": "system", "content": "Be quick."}, *shown["messages"][1:]]})
    assert caught.value.pointer == "/arguments/messages/0"


async def test_rules_may_make_something_else_of_what_was_written_and_that_is_shown(editing: Editing) -> None:
    """What people then approve is what would be sent."""
    now = snapshot(rule("cold", "set", "request", set={"clamp": {"temperature": {"max": 1.0}}}))
    new = await editing.edited(now, waiting(now, call(CHAT)), {"messages": [], "temperature": 2})
    assert new.shown["arguments"]["temperature"] == 1
    assert b'"temperature":2' in new.body


@pytest.mark.parametrize(("arguments", "pointer"), [
    ({"messages": "x"}, "/messages"), ({"model": "other", "messages": []}, "/arguments/model"), ({"stream": False}, "/arguments/stream"),
    ({**{name: CHAT[name] for name in ("model", "messages", "temperature")}}, "/arguments"),
])
async def test_a_model_call_that_cannot_be_edited_so_is_refused_with_the_place(editing: Editing, arguments: dict[str, Any], pointer: str) -> None:
    """Nothing is stored."""
    now = snapshot()
    with pytest.raises(InvalidRequest) as caught:
        await editing.edited(now, waiting(now, call(CHAT)), arguments)
    assert caught.value.pointer == pointer


async def test_what_has_no_canonical_form_is_no_action(editing: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have no digest, so nobody could say what was approved."""
    def fail(*_given: Any) -> None:
        raise UncanonicalError("a lone surrogate")

    monkeypatch.setattr("gateway.approvals.editing._made", fail)
    with pytest.raises(InvalidRequest, match="cannot be shown to anybody") as caught:
        await editing.edited(snapshot(), waiting(snapshot(), call(CHAT)), {"messages": []})
    assert caught.value.pointer == "/arguments"


async def test_a_dialect_that_is_gone_is_a_conflict(editing: Editing) -> None:
    """Nobody could send it."""
    with pytest.raises(ApprovalConflict):
        await editing.edited(snapshot(dialects=[]), waiting(snapshot(), call(CHAT)), {"messages": []})


async def test_a_denial_by_the_rules_of_now_is_the_rules_own(editing: Editing) -> None:
    """Whoever edits is told by whom."""
    now = snapshot(rule("no", "deny", "request", when="texts.exists(t, t.contains('secret'))", message="No secrets."))
    with pytest.raises(Forbidden, match="No secrets") as caught:
        await editing.edited(now, waiting(now, call(CHAT)), {"messages": [{"role": "user", "content": "secret"}]})
    assert caught.value.rule == "no"


async def test_more_rules_ask_for_more_and_none_for_less(editing: Editing) -> None:
    """Each rule once; what was demanded stays demanded, also where the rule of that name asks for less by now."""
    now = snapshot(rule("old", "require_approval", "request"), rule("new", "require_approval", "request", approvers=["role:cfo"], quorum=2))
    new = await editing.edited(now, waiting(snapshot(), call(CHAT)), {"messages": []})
    assert new.demands == (DEMAND, Demand("new", (Stage(("role:cfo",), 2),)))


# Tool calls


async def test_a_proposed_call_of_a_declared_tool_is_checked_against_its_schema(editing: Editing) -> None:
    """Its digest is that of a client's own call with the same arguments, so one approval covers both."""
    now = snapshot()
    old = proposed(now, {"amount": 900})
    new = await editing.edited(now, old, {"amount": 500, "note": "half"})
    assert new.shown["arguments"] == {"amount": 500, "note": "half"}
    assert new.digest == proposed(now, {"amount": 500, "note": "half"}).digest
    with pytest.raises(InvalidRequest, match="do not fit the tool") as caught:
        await editing.edited(now, old, {"amount": "x"})
    assert caught.value.pointer == "/arguments"


DEFINED = [{"type": "function", "function": {"name": "mail.send", "strict": True, "parameters": {
    "type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": False}}}]


async def test_a_tool_of_the_applications_own_is_checked_against_what_the_request_said_of_it(editing: Editing) -> None:
    """That stands with the ticket: the request is not at hand any more."""
    now = snapshot(rule("strict", "deny", when="!has(tool.annotations.strict)"))
    old = proposed(now, {"to": "ada"}, "mail.send", tools=DEFINED)
    new = await editing.edited(now, old, {"to": "grace"})
    assert (new.shown["arguments"], new.shown["schema"]) == ({"to": "grace"}, old.shown["schema"])
    with pytest.raises(InvalidRequest, match="do not fit"):
        await editing.edited(now, old, {"to": 3})
    plain = proposed(snapshot(), {"to": "ada"}, "mail.send")
    assert (await editing.edited(snapshot(), plain, {"to": 3})).shown["arguments"] == {"to": 3}


@pytest.mark.parametrize("kind", ["tool", "tool_call"])
async def test_what_a_rule_makes_of_the_arguments_has_to_fit_the_tool(editing: Editing, kind: str) -> None:
    """In either way to call it."""
    now = snapshot(rule("odd", "set", set={"values": {"note": 5}}))
    old = replace(proposed(snapshot(), {"amount": 1}), kind=kind, route="bank.pay")  # type: ignore[arg-type]
    if kind == "tool":
        old = replace(old, origin={**old.origin, "operation": "tool", "dialect": "tools"})
    with pytest.raises(Forbidden, match="does not fit the tool"):
        await editing.edited(now, old, {"amount": 2})


async def test_a_clients_tool_call_is_judged_in_both_phases(editing: Editing) -> None:
    """As the call itself was."""
    now = snapshot(rule("asks", "require_approval", "request", approvers=["role:a"]), rule("cut", "redact", redact={"patterns": ["[0-9]{4}"]}))
    asked = call({"amount": 1}, operation="tool", route="bank.pay")
    old = ticket({"arguments": {"amount": 1}}, asked, kind="tool", tool="bank.pay", effect="idempotent")
    new = await editing.edited(now, old, {"amount": 2, "note": "pin 1234"})
    assert [demand.rule for demand in new.demands] == ["old", "asks"]
    assert new.shown["arguments"] == {"amount": 2, "note": "pin [redacted:pattern]"}
    assert new.body == b'{"amount":2,"note":"pin 1234"}'
    with pytest.raises(InvalidRequest, match="do not fit the tool"):
        await editing.edited(now, old, {"note": "x"})
    with pytest.raises(ApprovalConflict, match="not declared any more"):
        await editing.edited(snapshot(tools={}), old, {"amount": 2})


async def test_arguments_that_no_url_can_hold_are_refused(editing: Editing) -> None:
    """They would be found out when the call is made, long after somebody has approved it."""
    arguments = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
    now = snapshot(tools={"bank.pay": tool(url="https://bank.example/to/{to}", arguments=arguments)})
    asked = call({"to": "a"}, operation="tool", route="bank.pay")
    with pytest.raises(InvalidRequest, match="part of a path"):
        await editing.edited(now, ticket({"arguments": {"to": "a"}}, asked, kind="tool", tool="bank.pay"), {"to": "../x"})


# What is never edited


async def test_an_answer_is_what_was_said(editing: Editing) -> None:
    """Approve it or deny it."""
    with pytest.raises(InvalidRequest, match="An answer cannot be edited"):
        await editing.edited(snapshot(), replace(waiting(snapshot(), call(CHAT)), kind="response"), {"text": "x"})


async def test_edits_of_edits_have_an_end(editing: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller asked for is looked up through all of them."""
    now = snapshot()
    old = replace(waiting(now, call(CHAT)), edited_from="apr_before")

    async def get(_ticket: str) -> Ticket:
        return old

    monkeypatch.setattr(editing.store, "get", get)
    with pytest.raises(InvalidRequest, match="was edited 50 times"):
        await editing.edited(now, old, {"messages": []})


async def test_a_secret_of_the_gateways_is_not_shown_to_anybody(editing: Editing) -> None:
    """Nor kept with a ticket."""
    now, hiding = snapshot(), replace(editing, scrub=lambda data: data.replace(b"sk-one", b"[secret]"))
    with pytest.raises(InvalidRequest, match="a secret of this gateway"):
        await hiding.edited(now, waiting(now, call(CHAT)), {"messages": [{"role": "user", "content": "sk-one"}]})
