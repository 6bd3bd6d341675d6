"""What callers and models may try with one approval: to be given twice what was approved once, or something else than people have seen."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

SOON_S = 20
AT_ONCE = '[approvals]\nhold = "0s"\n'  # who comes is told to come back
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
PAY = {"amount": 5000, "to": "DE1"}
RULES = """
[[rule]]
id = "large-payments"
phase = "tool_call"
match = { tools = ["pay", "drop"] }
when = 'double(tool.args.amount) > 1000.0'
effect = "require_approval"
message = "Payments above 1000 are looked at."
"""
SAME_PAYEE = RULES + 'approval = { identity = ["tool.args.to"] }\n'
TOOLS_OK = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n'
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
    "amount": {"type": "number"}, "to": {"type": "string"}}}}} for name in ("pay", "drop")]


def call(name: str, **arguments: Any) -> str:
    """Has the simulated model call a tool."""
    return f"call {name} {json.dumps(arguments)} "


def asked(text: str) -> dict[str, Any]:
    return {"model": "fast", "messages": [{"role": "user", "content": text}], "tools": TOOLS}


async def propose(house: Any, text: str, *, stream: bool = False) -> Any:
    """The choice that the official client gets."""
    client = house.client()
    async with asyncio.timeout(SOON_S):
        if not stream:
            return (await client.chat.completions.create(**asked(text))).choices[0]
        async with client.chat.completions.stream(**asked(text)) as answer:
            return (await answer.get_final_completion()).choices[0]


async def refused(house: Any, text: str, *, stream: bool = False) -> str:
    """The code of the error that the official client gets."""
    with pytest.raises(openai.APIError) as caught:
        await propose(house, text, stream=stream)
    return str(caught.value.code)


def called(choice: Any) -> list[dict[str, Any]]:
    return [json.loads(each.function.arguments) for each in choice.message.tool_calls or []]


def model_asked(house: Any) -> int:
    return sum(entry.path.endswith("/chat/completions") for entry in house.one.requests)


async def change(house: Any, policies: str) -> None:
    house.write("policies/policies.toml", policies)
    await house.gateway.reload()


@STREAMED
async def test_of_two_equal_calls_in_one_answer_one_approval_lets_one_through(house, stream):
    await house.open(policies=RULES, config=AT_ONCE)
    twice = call("pay", **PAY) * 2
    assert await refused(house, twice, stream=stream) == "approval_pending"
    await house.vote(await house.ticket())
    choice = await propose(house, twice, stream=stream)
    assert called(choice) == [PAY]
    assert "an approval is for one" in choice.message.content


async def test_of_two_connections_that_have_found_the_same_kept_answer_one_gets_it(house, monkeypatch):
    await house.open(policies=RULES, config=AT_ONCE)
    assert await refused(house, call("pay", **PAY)) == "approval_pending"
    await house.vote(await house.ticket())
    store, both = house.gateway.running.store.approvals, asyncio.Barrier(2)
    take = store.take_kept

    async def at_once(*place: str) -> Any:
        await asyncio.wait_for(both.wait(), SOON_S)
        return await take(*place)

    monkeypatch.setattr(store, "take_kept", at_once)
    told = await asyncio.gather(*(propose(house, call("pay", **PAY)) for _ in range(2)), return_exceptions=True)
    (lost,) = [each for each in told if isinstance(each, BaseException)]
    (choice,) = [each for each in told if not isinstance(each, BaseException)]
    assert called(choice) == [PAY]
    assert isinstance(lost, openai.ConflictError)
    assert lost.code == "approval_conflict"
    assert (await house.tickets(), model_asked(house)) == ([], 1)


@pytest.mark.parametrize(("more", "code"), [('effect = "require_approval"\nquorum = 2\n', "approval_pending"), ('effect = "deny"\n', "")],
                         ids=["more-people", "deny"])
async def test_the_words_that_people_have_seen_are_judged_anew_where_they_go_on_in_place_of_others(house, more, code):
    """A model that words it smaller meets the approval of what is larger, which the rules of now ask more people about, or deny."""
    await house.open(policies=SAME_PAYEE, config=AT_ONCE)
    assert await refused(house, call("pay", **PAY)) == "approval_pending"
    first = await house.ticket()
    await house.vote(first)
    await change(house, f"""{SAME_PAYEE}
[[rule]]
id = "very-large-payments"
phase = "tool_call"
match = {{ tools = ["pay"] }}
when = 'double(tool.args.amount) > 4000.0'
message = "Never, or by two."
{more}""")
    smaller = call("pay", amount=2000, to="DE1")
    if code:
        assert await refused(house, smaller) == code
        assert (await house.ticket())["id"] == first["id"]
    else:
        choice = await propose(house, smaller)
        assert (called(choice), "Never, or by two." in choice.message.content) == ([], True)


async def test_a_tool_that_was_approved_in_an_answer_answers_for_itself_while_the_rest_of_that_waits(house):
    await house.open(policies=TOOLS_OK + RULES, config=AT_ONCE, routes=house.paying())
    text = call("pay", **PAY) + call("drop", amount=2000)
    assert await refused(house, text) == "approval_pending"
    rows = {row["tool"]: row for row in await house.tickets()}
    await house.vote(rows["pay"])
    session = await house.http()
    async with session.post("/tools/pay", json=PAY, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        told = await answer.read()
        assert (answer.status, answer.headers["X-Lockgate-Approval"]) == (200, rows["pay"]["id"])
    assert b"choices" not in told
    assert b"drop" not in told
    assert [entry.body for entry in house.one.requests if entry.path == "/tools/pay"] == [PAY]
    assert [row["tool"] for row in await house.tickets()] == ["drop"]


@dataclass
class Dawdling:
    """A provider whose streams propose a payment at once, and do not end before `go`."""

    url: str = ""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await request.read()
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        function = {"name": "pay", "arguments": json.dumps(PAY)}
        proposed = {"role": "assistant", "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
        for delta, finish in ((proposed, None), ({}, "tool_calls")):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await asyncio.wait_for(self.go.wait(), 60)
        await answer.write(b"data: [DONE]\n\n")
        return answer


@pytest.fixture
async def dawdling(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> AsyncIterator[Dawdling]:
    made, app = Dawdling(), web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    made.url = str((await aiohttp_server(app)).make_url("/v1"))
    yield made
    made.go.set()


async def test_who_hangs_up_once_they_have_been_shown_the_call_is_not_shown_it_again(house, dawdling):
    config = f'[providers.slow]\nadapter = "openai"\nbase_url = "{dawdling.url}"\n[server]\nkeep_alive = "40ms"\n'
    await house.open(policies=RULES, config=config, routes='[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "slow"\nmodel = "m"\n')
    session = await house.http()

    async def read() -> str:
        """Ask, read until the call is there, and hang up."""
        raw, headers = b"", {"Authorization": f"Bearer {house.key}"}
        async with session.post("/v1/chat/completions", json={**asked("x"), "stream": True}, headers=headers) as answer:
            while b"5000" not in raw and (piece := await answer.content.readany()):
                raw += piece
            answer.close()
        return raw.decode()

    reader = asyncio.create_task(read())
    first = await house.ticket()
    await house.vote(first)
    assert "5000" in await asyncio.wait_for(reader, SOON_S)
    await house.until(lambda: house.calls(outcome="cancelled"))
    again = asyncio.create_task(read())
    assert (await house.ticket())["id"] != first["id"]
    assert (again.done(), dawdling.asked) == (False, 2)
    again.cancel()
    assert [each["id"] for each in await house.tickets("succeeded")] == [first["id"]]
