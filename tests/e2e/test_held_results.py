"""An approved action whose result waits for people itself: its caller is told for what, and has it where it asks once they have decided."""

import asyncio
import json
from typing import Any

import pytest

SOON_S = 20
LATER = {"Prefer": "respond-async"}
AT_ONCE = '[approvals]\nhold = "0s"\n'  # who comes is told to come back
PAY = {"amount": 5}
ASKED = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}
PROPOSED = {"model": "fast", "messages": [{"role": "user", "content": 'call pay {"amount": 5}'}],
            "tools": [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}}}}]}
MODES = pytest.mark.parametrize("mode", ["execute", "release"])
TOOL = """
[[tool]]
name = "bank"
method = "POST"
url = "{root}/tools/pay"
effect = "at_most_once"
private = true
[tool.arguments]
required = ["amount"]
[tool.arguments.properties]
amount = {{ type = "integer" }}
"""
ROUTE = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "sim-fast"\n'


def rules(phase: str, mode: str, then: str) -> str:
    """What is asked for is held in one phase, and what comes of it in another."""
    return f"""
[defaults]
tools = "allow"
[[rule]]
id = "asks"
phase = "{phase}"
effect = "require_approval"
approval = {{ mode = "{mode}" }}
{'match = { tools = ["bank"] }' if phase == "tool_call" else ""}
[[rule]]
id = "looks"
phase = "{then}"
effect = "require_approval"
{'match = { tools = ["pay"] }' if then == "tool_call" else ""}
"""


async def send(house: Any, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    session = await house.http()
    async with asyncio.timeout(SOON_S), session.post(path, json=body, headers={"Authorization": f"Bearer {house.key}", **headers}) as answer:
        return answer.status, await answer.json(content_type=None)


async def own(house: Any, ticket: str) -> Any:
    """What a caller sees of its ticket."""
    session = await house.http()
    async with asyncio.timeout(SOON_S), session.get(f"/-/tickets/{ticket}", headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def done(house: Any, body: Any, path: str = "/v1/chat/completions", mode: str = "execute") -> tuple[str, Any]:
    """The id of an approval whose action was made, and the approval that its result waits for."""
    status, told = await send(house, body, path, **LATER)
    assert status == 202
    await house.vote(await house.ticket(rule="asks"))
    if mode == "release":  # its caller comes once, and is told to come back
        assert (await send(house, body, path))[0] == 409
    second = await house.ticket(rule="looks")

    async def ended() -> Any:
        return await house.tickets("succeeded", rule="asks")

    await house.until(ended)
    return told["ticket"], second


@MODES
async def test_the_result_of_a_tool_that_waits_is_there_once_people_have_let_it_pass(house, mode):
    await house.open(policies=rules("tool_call", mode, "tool_result"), routes=TOOL.format(root=house.one.root), config=AT_ONCE)
    first, second = await done(house, PAY, "/tools/bank", mode)
    seen = await own(house, first)
    assert (seen["state"], seen["next"], seen["next_state"], "result" in seen) == ("succeeded", second["id"], "pending", False)
    assert (await own(house, second["id"]))["state"] == "pending"
    await house.vote(second)
    for _ in range(2):
        seen = await own(house, first)
        assert ("next" in seen, seen["result"]["status"]) == (False, 200)
        assert seen["result"]["body"]["body"] == PAY
    status, told = await send(house, PAY, "/tools/bank", **LATER)
    assert (status, len(house.one.requests)) == ((200, 1) if mode == "execute" else (202, 1))
    assert mode == "release" or told == seen["result"]["body"]
    house.assert_doctor_is_content()


async def test_the_answer_of_a_model_that_waits_is_there_once_people_have_let_it_pass(house):
    await house.open(policies=rules("request", "execute", "response"))
    first, second = await done(house, ASKED)
    assert "The plan" not in json.dumps(await own(house, first))
    await house.vote(second)
    seen = await own(house, first)
    assert seen["result"]["body"]["choices"][0]["message"]["content"] == "The plan is good"
    status, told = await send(house, ASKED)
    assert (status, told["choices"][0]["message"]["content"], len(house.one.requests)) == (200, "The plan is good", 1)
    house.assert_doctor_is_content()


@pytest.mark.parametrize(("phase", "body", "path", "then"), [
    ("tool_call", PAY, "/tools/bank", "tool_result"), ("request", ASKED, "/v1/chat/completions", "response")])
async def test_a_result_that_people_have_denied_is_said_to_be(house, phase, body, path, then):
    await house.open(policies=rules(phase, "execute", then), routes=TOOL.format(root=house.one.root) + ROUTE)
    first, second = await done(house, body, path)
    await house.vote(second, verdict="deny", comment="not this one")
    seen = await own(house, first)
    assert (seen["state"], seen["next"], seen["next_state"], "result" in seen) == ("succeeded", second["id"], "denied", False)
    assert (await own(house, second["id"]))["comment"] == "not this one"
    status, told = await send(house, body, path)
    assert (status, "not this one" in json.dumps(told), len(house.one.requests)) == (403, True, 1)


@MODES
async def test_whoever_has_the_result_leaves_it_to_those_who_ask_for_it(house, mode):
    await house.open(policies=rules("tool_call", mode, "tool_result"), routes=TOOL.format(root=house.one.root), config=AT_ONCE)
    first, second = await done(house, PAY, "/tools/bank", mode)
    await house.vote(second)
    status, told = await send(house, PAY, "/tools/bank")
    assert (status, told["body"]) == (200, PAY)
    assert (await own(house, first))["result"]["body"] == told
    again = await send(house, PAY, "/tools/bank", **LATER)
    assert again[0] == (200 if mode == "execute" else 202)  # `release`: it has been given, so it is asked about anew
    assert mode == "release" or again[1] == told
    assert len(house.one.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_who_waits_for_a_result_and_who_asks_for_it_both_have_it(house, stream):
    await house.open(policies=rules("request", "execute", "response"))
    first, second = await done(house, ASKED)
    session = await house.http()

    async def present() -> Any:
        given = {**ASKED, "stream": True} if stream else ASKED
        async with session.post("/v1/chat/completions", json=given, headers={"Authorization": f"Bearer {house.key}"}) as answer:
            return await answer.read()

    waiting = house.gateway.running.proxy.holding.waiting
    callers = [asyncio.create_task(present()) for _ in range(3)]

    async def held() -> bool:
        return len(waiting) == len(callers)

    await house.until(held)
    seen = [asyncio.create_task(own(house, first)) for _ in range(3)]
    await house.vote(second)
    seen += [asyncio.create_task(own(house, first)) for _ in range(3)]
    async with asyncio.timeout(SOON_S):
        answers = await asyncio.gather(*callers)
        await asyncio.gather(*seen)
    said = ["good" if b"good" in each and b"error" not in each else each.decode() for each in answers]
    assert said == ["good"] * 3
    assert (await own(house, first))["result"]["body"]["choices"][0]["message"]["content"] == "The plan is good"
    assert len(house.one.requests) == 1
    house.assert_doctor_is_content()


async def test_a_proposed_call_that_people_let_pass_goes_to_one_who_presents_the_request_and_to_nobody_who_asks(house):
    """It would else be made as often as somebody asks."""
    await house.open(policies=rules("request", "execute", "tool_call"))
    first, second = await done(house, PROPOSED)
    await house.vote(second)
    seen = await own(house, first)
    assert (seen["next"], seen["next_state"], "result" in seen) == (second["id"], "approved", False)
    status, told = await send(house, PROPOSED)
    assert (status, told["choices"][0]["message"]["tool_calls"][0]["function"]["name"]) == (200, "pay")
    seen = await own(house, first)
    assert (seen["next_state"], "result" in seen) == ("succeeded", False)
    assert (await send(house, PROPOSED, **LATER))[0] == 202  # it is asked about anew
    assert len(house.one.requests) == 1
    house.assert_doctor_is_content()
