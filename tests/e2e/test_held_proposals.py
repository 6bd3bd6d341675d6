"""Tool calls that a model proposes and people look at before the application can: in plain answers and in streams."""

import asyncio
import json
from typing import Any

import openai
import pytest

SOON_S = 20
RULES = """
[[rule]]
id = "large-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'double(tool.args.amount) > 1000.0'
effect = "require_approval"
message = "Payments above 1000 are looked at."
"""
SCHEMA = {"type": "object", "required": ["amount"], "additionalProperties": False, "properties": {
    "amount": {"type": "number"}, "to": {"type": "string"}, "note": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "pay", "parameters": SCHEMA}}
PAY = {"amount": 5000, "to": "DE1"}
ONE = f"call pay {json.dumps(PAY)}"
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
QUICK = '[server]\nkeep_alive = "40ms"\n'


ALLOW = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n' + RULES


async def propose(house: Any, text: str = ONE, *, stream: bool = False, **options: Any) -> tuple[Any, Any]:
    """The choice and the headers, as the official client has them."""
    client = house.client(**options)
    given = {"model": "fast", "messages": [{"role": "user", "content": text}], "tools": [TOOL]}
    async with asyncio.timeout(SOON_S):
        if not stream:
            raw = await client.chat.completions.with_raw_response.create(**given)
            return raw.parse().choices[0], raw.headers
        async with client.chat.completions.stream(**given) as answer:
            headers = answer._response.headers if hasattr(answer, "_response") else {}
            return (await answer.get_final_completion()).choices[0], headers


def begin(house: Any, *arguments: Any, **options: Any) -> "asyncio.Task[tuple[Any, Any]]":
    return asyncio.create_task(propose(house, *arguments, **options))


def called(choice: Any) -> list[dict[str, Any]]:
    """The arguments of the calls that the application may make."""
    return [json.loads(call.function.arguments) for call in choice.message.tool_calls or []]


async def use(house: Any, arguments: Any, **headers: str) -> tuple[int, Any, Any]:
    """The application calls the declared tool."""
    session = await house.http()
    sent = {"Authorization": f"Bearer {house.key}", **headers}
    async with asyncio.timeout(SOON_S), session.post("/tools/pay", json=arguments, headers=sent) as answer:
        return answer.status, answer.headers, json.loads(await answer.read())


def paid(house: Any) -> list[Any]:
    return [entry.body for entry in house.one.requests if entry.path == "/tools/pay"]


def asked(house: Any) -> int:
    return sum(entry.path.endswith("/chat/completions") for entry in house.one.requests)


@STREAMED
async def test_a_proposed_call_is_held_inside_the_answer_until_it_is_approved(house, stream):
    await house.open(policies=RULES, config=QUICK)
    task = begin(house, stream=stream)
    ticket = await house.ticket()
    assert (ticket["kind"], ticket["tool"], ticket["action"]["arguments"], ticket["summary"]) == (
        "tool_call", "pay", PAY, 'pay amount=5000 to="DE1"')
    assert asked(house) == 1  # the model has said it
    assert not task.done()
    await house.vote(ticket)
    choice, headers = await task
    assert (called(choice), choice.finish_reason) == ([PAY], "tool_calls")
    if not stream:
        assert (headers["x-lockgate-approval"], headers["x-lockgate-decision"]) == (ticket["id"], "held")
    assert (await house.ticket("succeeded"))["id"] == ticket["id"]  # the application's own tool: it is used up
    assert asked(house) == 1
    row = await house.call((await house.calls())[0]["id"])
    assert row["outcome"] == "completed"
    assert [(use["name"], use["released"]) for use in row["tool_uses"]] == [("pay", True)]


@STREAMED
async def test_a_denied_call_is_replaced_by_words_that_say_who_and_why(house, stream):
    await house.open(policies=RULES, config=QUICK)
    task = begin(house, stream=stream)
    await house.vote(await house.ticket(), verdict="deny", comment="Not to DE1.")
    choice, _headers = await task
    assert (called(choice), choice.finish_reason) == ([], "stop")
    assert "Not to DE1." in choice.message.content
    assert "large-payments" in choice.message.content
    row = await house.call((await house.calls())[0]["id"])
    assert [(use["name"], use["released"]) for use in row["tool_uses"]] == [("pay", False)]


@STREAMED
async def test_all_calls_of_one_answer_are_shown_at_once_and_each_is_decided_by_itself(house, stream):
    await house.open(policies=RULES, config=QUICK)
    amounts = [2000, 3000, 10, 4000]
    task = begin(house, " ".join(f'call pay {{"amount": {amount}}}' for amount in amounts), stream=stream)

    async def three() -> Any:
        rows = await house.tickets()
        return rows if len(rows) == 3 else None

    rows = {row["summary"]: row for row in await house.until(three)}
    assert len({row["shape"] for row in rows.values()}) == 1
    await house.vote(rows["pay amount=3000"], verdict="deny", comment="too much")
    await house.vote(rows["pay amount=4000"])
    assert not task.done()
    await house.vote(rows["pay amount=2000"])
    choice, _headers = await task
    assert [each["amount"] for each in called(choice)] == [2000, 10, 4000]
    assert "too much" in choice.message.content


async def test_calls_of_one_shape_are_approved_in_one_go(house):
    await house.open(policies=RULES)
    task = begin(house, 'call pay {"amount": 2000} call pay {"amount": 3000}')

    async def two() -> Any:
        rows = await house.tickets()
        return rows if len(rows) == 2 else None

    rows = await house.until(two)
    body = {"verdict": "approve", "approvals": [{"id": row["id"], "digest": row["digest"]} for row in rows]}
    told = await house.ask("POST", "/-/approvals/votes", body)
    assert [each["state"] for each in told["approvals"]] == ["approved", "approved"]
    assert [each["amount"] for each in called((await task)[0])] == [2000, 3000]


@STREAMED
async def test_edited_arguments_are_those_that_the_application_gets(house, stream):
    await house.open(policies=RULES, config=QUICK)
    task = begin(house, stream=stream)
    ticket = await house.ticket()
    edited = {**PAY, "amount": 1500}
    told = await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", {
        "digest": ticket["digest"], "arguments": edited, "comment": "That much.", "approve": True})
    choice, headers = await task
    assert called(choice) == [edited]
    new = (await house.ask("GET", f"/-/approvals/{told['approval']['id']}"))["approval"]
    assert (new["edited_from"], new["state"], new["action"]["arguments"]) == (ticket["id"], "succeeded", edited)
    assert new["patch"] == [{"op": "replace", "path": "/amount", "value": 1500}]
    assert (await house.ticket("withdrawn"))["replaced_by"] == new["id"]
    if not stream:
        assert json.loads(headers["x-lockgate-approval-patch"]) == new["patch"]
        assert headers["x-lockgate-approval"] == new["id"]


async def test_edited_arguments_are_judged_like_those_that_have_just_come(house):
    await house.open(policies=RULES + """
[[rule]]
id = "not-to-them"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'has(tool.args.to) && tool.args.to == "XX"'
effect = "deny"
message = "Never."
""")
    task = begin(house)
    ticket = await house.ticket()
    edit = f"/-/approvals/{ticket['id']}/edit"
    for arguments, status in (({**PAY, "to": "XX"}, 403), ({**PAY, "amount": "much"}, 400), ({**PAY, "other": 1}, 400)):
        await house.ask("POST", edit, {"digest": ticket["digest"], "arguments": arguments}, status=status)
    row = (await house.ask("POST", edit, {"digest": ticket["digest"], "arguments": {**PAY, "amount": 9000}}))["approval"]
    assert (row["state"], row["votes"]) == ("pending", 0)
    await house.vote({**ticket, "id": ticket["id"]}, status=409)
    assert not task.done()
    await house.vote(row)
    assert [each["amount"] for each in called((await task)[0])] == [9000]


@STREAMED
async def test_a_client_that_comes_back_gets_the_same_answer_and_the_model_is_asked_once(house, stream):
    await house.open(policies=RULES, config=f'{QUICK}[approvals]\nhold = "150ms"\nretry_after = "1s"\n')
    task = begin(house, stream=stream, max_retries=2)
    if stream:  # once it has begun, no client tries again by itself
        with pytest.raises(openai.APIError) as caught:
            await task
        assert caught.value.code == "approval_pending"
        await house.vote(await house.ticket())
        choice, _headers = await propose(house, stream=True)
    else:
        async def turned_away() -> Any:
            return [row for row in await house.calls() if row["code"] == "approval_pending"]

        await house.until(turned_away)
        await house.vote(await house.ticket())
        choice, _headers = await task
    assert called(choice) == [PAY]
    assert asked(house) == 1
    await house.spent("nothing")


async def test_a_kept_answer_outlives_a_restart_and_is_given_once(house):
    await house.open(policies=RULES, config='[approvals]\nhold = "0s"\n')
    with pytest.raises(openai.ConflictError):
        await propose(house)
    ticket = await house.ticket()
    await house.restart()
    await house.vote(ticket)
    assert called((await propose(house))[0]) == [PAY]
    assert asked(house) == 1
    with pytest.raises(openai.ConflictError):
        await propose(house)  # a new question to the model, and a new call of its
    assert asked(house) == 2
    assert (await house.ticket("pending"))["id"] != ticket["id"]


async def test_a_caller_that_left_finds_the_same_answer(house):
    await house.open(policies=RULES)
    task = begin(house)
    ticket = await house.ticket()
    task.cancel()
    await house.until(lambda: house.calls(outcome="cancelled"))
    await house.vote(ticket)
    assert called((await propose(house))[0]) == [PAY]
    assert asked(house) == 1


@STREAMED
async def test_a_declared_tool_that_was_approved_in_the_answer_is_called_without_a_second_approval(house, stream):
    await house.open(routes=house.paying(), policies=ALLOW, config=QUICK)
    task = begin(house, stream=stream)
    ticket = await house.ticket()
    await house.vote(ticket)
    (arguments,) = called((await task)[0])
    assert (await house.ticket("approved"))["id"] == ticket["id"]
    status, headers, _told = await use(house, arguments)
    assert (status, headers["X-Lockgate-Approval"]) == (200, ticket["id"])
    assert paid(house) == [PAY]
    assert (await house.ticket("succeeded"))["id"] == ticket["id"]
    status, _headers, told = await use(house, arguments, Prefer="respond-async")  # a second time
    assert (status, told["state"]) == (202, "pending")
    assert paid(house) == [PAY]


async def test_other_arguments_than_those_that_were_approved_need_their_own(house):
    await house.open(routes=house.paying(), policies=ALLOW)
    task = begin(house)
    await house.vote(await house.ticket())
    await task
    status, _headers, told = await use(house, {**PAY, "to": "DE2"}, Prefer="respond-async")
    assert (status, told["state"]) == (202, "pending")
    assert paid(house) == []


async def test_the_edited_call_of_a_declared_tool_needs_no_second_approval(house):
    await house.open(routes=house.paying(), policies=ALLOW)
    task = begin(house)
    ticket = await house.ticket()
    edited = {**PAY, "amount": 1500}
    told = await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", {
        "digest": ticket["digest"], "arguments": edited, "approve": True})
    (arguments,) = called((await task)[0])
    assert arguments == edited
    status, headers, _told = await use(house, arguments)
    assert (status, headers["X-Lockgate-Approval"]) == (200, told["approval"]["id"])
    assert paid(house) == [edited]
    assert (await use(house, edited, Prefer="respond-async"))[0] == 202
    assert (await use(house, PAY, Prefer="respond-async"))[0] == 202
    assert paid(house) == [edited]


async def test_the_result_that_an_approved_call_brings_back_is_no_bypass(house):
    await house.open(policies=RULES)
    task = begin(house)
    await house.vote(await house.ticket())
    choice, _headers = await task
    (call,) = choice.message.tool_calls
    messages = [{"role": "user", "content": ONE}, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "paid"}]
    await house.client().chat.completions.create(model="fast", messages=messages, tools=[TOOL])
    assert "bypass" not in (await house.calls())[0]["labels"]
