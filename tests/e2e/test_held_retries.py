"""A hold that ends before people decide: the official client comes back by itself and finds its approval and its answer, also where the
gateway has ended and begun again in between.
"""

import asyncio
from typing import Any

import openai
import pytest

SOON_S = 20
RULE = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
SHORT = '[approvals]\nhold = "150ms"\nretry_after = "1s"\n'
ASKED: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}


def begin(house: Any, given: Any = ASKED, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(house.client(**options).chat.completions.with_raw_response.create(**given))


async def ended(task: "asyncio.Task[Any]") -> Any:
    async with asyncio.timeout(SOON_S):
        return await task


async def refused(house: Any, given: Any = ASKED, **options: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await ended(begin(house, given, **options))
    return caught.value


async def turned_away(house: Any, calls: int = 1) -> list[dict[str, Any]]:
    """The calls that were told to come back, once there are so many."""

    async def so_many() -> Any:
        rows = [row for row in await house.calls() if row["code"] == "approval_pending"]
        return rows if len(rows) >= calls else None

    rows: list[dict[str, Any]] = await house.until(so_many)
    return rows


async def test_when_the_hold_ends_the_client_is_told_to_come_back(house):
    await house.open(policies=RULE, config=SHORT)
    error = await refused(house)
    ticket = await house.ticket()
    assert (error.status_code, error.code) == (409, "approval_pending")
    assert isinstance(error, openai.ConflictError)
    assert ticket["id"] in error.message
    headers = error.response.headers
    assert (headers["x-should-retry"], headers["retry-after"], headers["x-lockgate-approval"], headers["x-lockgate-decision"]) == (
        "true", "1", ticket["id"], "held")
    assert (error.body["ticket"], error.body["rule"]) == (ticket["id"], "secret-plans")
    (row,) = await house.calls()
    assert (row["outcome"], row["approval"]) == ("refused", ticket["id"])


async def test_the_clients_own_retry_meets_the_same_approval_and_gets_the_answer(house):
    await house.open(policies=RULE, config=SHORT)
    task = begin(house, max_retries=2)
    await turned_away(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    raw = await ended(task)
    assert raw.parse().choices[0].message.content == "The plan is good"
    assert raw.headers["x-lockgate-approval"] == ticket["id"]
    assert raw.retries_taken >= 1
    assert len(house.one.requests) == 1
    assert [row["id"] for row in await house.tickets("all")] == [ticket["id"]]


async def test_a_client_that_gives_up_and_one_that_comes_tomorrow_meet_the_same_approval(house):
    await house.open(policies=RULE, config='[approvals]\nhold = "0s"\n')
    for _ in range(3):
        error = await refused(house)
        assert error.code == "approval_pending"
    ticket = await house.ticket()
    await house.vote(ticket)
    answer = await ended(begin(house))
    assert answer.headers["x-lockgate-approval"] == ticket["id"]
    assert len(house.one.requests) == 1


async def test_a_denial_meets_the_retry(house):
    await house.open(policies=RULE, config=SHORT)
    task = begin(house, max_retries=2)
    await turned_away(house)
    await house.vote(await house.ticket(), verdict="deny", comment="No.")
    with pytest.raises(openai.PermissionDeniedError, match="No\\."):
        await ended(task)
    assert house.one.requests == []


async def waits(house: Any) -> bool:
    """Whether somebody is held."""
    return len(house.gateway.running.proxy.holding.waiting) > 0


# A gateway that ends, and another one on the same folder.


@pytest.mark.parametrize("back", [False, True], ids=["away", "back"])
async def test_a_restart_while_people_think_loses_nothing(house, back):
    """The held client is told to come back; its own retry finds the new gateway, the approval, and the answer."""
    await house.open(policies=RULE, config='[approvals]\nretry_after = "1s"\n')
    task = begin(house, max_retries=3)
    ticket = await house.ticket()
    await house.restart()
    if back:
        await house.until(lambda: waits(house))
    await house.vote(ticket)
    raw = await ended(task)
    assert raw.parse().choices[0].message.content == "The plan is good"
    assert raw.headers["x-lockgate-approval"] == ticket["id"]
    assert len(house.one.requests) == 1


async def test_an_approved_action_that_nobody_has_presented_yet_outlives_a_restart(house):
    await house.open(policies=RULE, config=SHORT)
    assert (await refused(house)).code == "approval_pending"
    await house.vote(await house.ticket())
    await house.restart()
    assert house.one.requests == []
    raw = await ended(begin(house))
    assert raw.parse().choices[0].message.content == "The plan is good"
    assert len(house.one.requests) == 1


async def test_an_answer_whose_caller_had_gone_is_kept_over_a_restart_and_given_once(house, slow):
    await house.open(policies=RULE, config=f'{slow.config}[approvals]\nhold = "10s"\n')
    given = {**ASKED, "model": "slow"}
    task = begin(house, given)
    ticket = await house.ticket()
    await house.vote(ticket)
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    task.cancel()  # its caller leaves while it is done
    await house.until(lambda: house.calls(outcome="cancelled"))
    slow.go.set()
    done = await house.ticket("succeeded")
    assert done["result"] == {"status": 200, "content_type": ""}
    await house.restart()
    raw = await ended(begin(house, given))
    assert raw.parse().choices[0].message.content == "done"
    assert raw.headers["x-lockgate-approval"] == ticket["id"]
    assert len(slow.bodies) == 1
    again = begin(house, given)  # it has had its answer: this is another one
    assert (await house.ticket("pending"))["id"] != ticket["id"]
    again.cancel()


async def test_a_gateway_that_ends_while_an_approved_call_runs_lets_it_finish(house, slow):
    """Within its drain. The caller meets the answer at the next gateway, and nothing is sent twice."""
    await house.open(policies=RULE, config=f'{slow.config}[approvals]\nretry_after = "1s"\n')
    given = {**ASKED, "model": "slow"}
    task = begin(house, given, max_retries=3)
    await house.vote(await house.ticket())
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    waiting = house.gateway.running.proxy.holding.waiting
    restart = asyncio.create_task(house.restart())

    async def told() -> bool:
        return waiting.stopping and len(waiting) == 0

    await house.until(told)
    slow.go.set()
    await restart
    raw = await ended(task)
    assert raw.parse().choices[0].message.content == "done"
    assert len(slow.bodies) == 1
