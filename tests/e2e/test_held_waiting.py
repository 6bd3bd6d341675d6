"""How a held client waits: as long as it says itself, or not at all; and what it finds when it comes back."""

import asyncio
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.app import Parts

GUIDE = (Path(__file__).parents[2] / "docs" / "approvals.md").read_text()
SOON_S = 20
RULE = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
EXECUTE = RULE + 'approval = { mode = "execute" }\n'
ASKED: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}


def begin(house: Any, given: Any = ASKED, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(house.client(**options).chat.completions.with_raw_response.create(**given))


async def ended(task: "asyncio.Task[Any]") -> Any:
    async with asyncio.timeout(SOON_S):
        return await task


async def held(house: Any, callers: int = 1) -> None:
    waiting = house.gateway.running.proxy.holding.waiting

    async def so_many() -> bool:
        return len(waiting) == callers

    await house.until(so_many)


async def looked(house: Any) -> None:
    """Let the gateway look at who waits, as it does a few times a second."""
    await house.gateway.running.proxy.holding.refresh()
    await asyncio.sleep(0)


async def present(house: Any, body: Any = ASKED, key: str = "", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and JSON of a plain request."""
    session = await house.http()
    sent = {"Authorization": f"Bearer {key or house.key}", **headers}
    async with asyncio.timeout(SOON_S), session.post("/v1/chat/completions", json=body, headers=sent) as answer:
        return answer.status, answer.headers, await answer.json()


async def own(house: Any, ticket: str, *, key: str = "", status: int = 200, method: str = "GET", end: str = "") -> Any:
    """What a caller sees of its ticket."""
    session = await house.http()
    headers = {"Authorization": f"Bearer {key or house.key}"}
    async with session.request(method, f"/-/tickets/{ticket}{end}", json={} if method == "POST" else None, headers=headers) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json(content_type=None)


@pytest.mark.parametrize(("options", "headers", "still_s", "over_s"), [
    ({}, {}, 590.0, 596.0),  # the client's own default is 600 s
    ({"timeout": 20.0}, {}, 13.0, 15.0),
    ({"timeout": 8.0}, {}, 2.0, 4.0),
    ({}, {"X-Lockgate-Deadline-Ms": "3000"}, 1.0, 2.0),
], ids=["default", "20s", "8s", "deadline"])
async def test_a_client_is_held_to_well_before_it_gives_up(house, leaping, options, headers, still_s, over_s):
    await house.open(policies=RULE, config='[approvals]\nhold = "1h"\n', parts=Parts(clock=leaping))
    task = begin(house, {**ASKED, "extra_headers": headers}, **options)
    await held(house)
    leaping.leap(still_s - 1)
    await looked(house)
    assert not task.done()
    leaping.leap(over_s - still_s + 1)
    await looked(house)
    assert len(house.gateway.running.proxy.holding.waiting) == 0
    with pytest.raises(openai.ConflictError) as caught:
        await ended(task)
    assert caught.value.code == "approval_pending"
    assert len(await house.tickets("pending")) == 1


async def test_a_rule_may_hold_shorter_than_the_gateway(house, leaping):
    await house.open(policies=RULE + 'approval = { hold = "30s" }\n', parts=Parts(clock=leaping))
    task = begin(house)
    await held(house)
    leaping.leap(31)
    await looked(house)
    with pytest.raises(openai.ConflictError):
        await ended(task)


async def test_what_is_being_done_is_waited_for_longer_than_people_are(house, slow):
    """`hold` is people's time: whoever presents an approved action gets its answer on the same connection."""
    await house.open(policies=RULE, config=f'{slow.config}[approvals]\nhold = "0s"\n')
    given = {**ASKED, "model": "slow"}
    with pytest.raises(openai.ConflictError):
        await ended(begin(house, given))
    await house.vote(await house.ticket())
    task = begin(house, given)
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    await held(house)
    await looked(house)
    slow.go.set()
    assert (await ended(task)).parse().choices[0].message.content == "done"


async def test_beyond_max_held_nobody_else_is_held(house):
    await house.open(policies=RULE, config="[approvals]\nmax_held = 1\n")
    first = begin(house)
    await held(house)
    with pytest.raises(openai.ConflictError):
        await ended(begin(house, {**ASKED, "temperature": 1}))
    assert len(await house.tickets("pending")) == 2
    first.cancel()


async def test_beyond_max_pending_calls_that_need_approval_are_refused(house):
    await house.open(policies=RULE, config="[approvals]\nmax_pending = 1\n")
    first = begin(house)
    await held(house)
    with pytest.raises(openai.InternalServerError) as caught:
        await ended(begin(house, {**ASKED, "temperature": 1}))
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    second = begin(house)  # the same action as the first: no further one
    await held(house, 2)
    await house.vote(await house.ticket())
    assert [(await ended(task)).parse().choices[0].message.content for task in (first, second)] == ["The plan is good"] * 2


async def test_withdrawing_and_asking_anew_does_not_go_round_the_bound_of_one_caller(house):
    await house.open(policies=RULE, config="[approvals]\nmax_pending_each = 2\nmax_opened_each = 4\n")
    for number in range(4):
        assert (await present(house, {**ASKED, "seed": number}, Prefer="respond-async"))[0] == 202
        await own(house, (await house.ticket())["id"], method="POST", end="/withdraw")
    status, headers, told = await present(house, {**ASKED, "seed": 4}, Prefer="respond-async")
    assert (status, told["error"]["code"], headers["X-Lockgate-Rule"]) == (429, "rate_limited", "secret-plans")
    assert "`approvals.max_opened_each`" in told["error"]["message"]
    assert 0 < int(headers["Retry-After"]) <= 900
    assert (await house.tickets(), len(await house.tickets("all"))) == ([], 4)
    others = await house.new_key(name="others")
    assert (await present(house, {**ASKED, "seed": 4}, key=others, Prefer="respond-async"))[0] == 202


async def test_what_one_caller_has_waiting_is_bounded_in_bytes(house):
    await house.open(policies=RULE, config='[approvals]\nmax_pending_bytes = "100KiB"\nmax_pending_bytes_each = "40KiB"\n')

    def large(number: int) -> dict[str, Any]:
        return {**ASKED, "messages": [{"role": "user", "content": f"say The plan {number}" + " is good" * 2_000}]}

    first, others = await present(house, large(1), Prefer="respond-async"), await house.new_key(name="others")
    second = await present(house, large(2), Prefer="respond-async")
    third = await present(house, large(3), Prefer="respond-async")
    assert [each[0] for each in (first, second, third)] == [202, 202, 503]
    assert third[2]["error"]["code"] == "overloaded"
    assert "of this caller" in third[2]["error"]["message"]
    assert "`approvals.max_pending_bytes_each`" in third[2]["error"]["message"]
    assert (await present(house, large(3), key=others, Prefer="respond-async"))[0] == 202
    await own(house, first[2]["ticket"], method="POST", end="/withdraw")
    assert (await present(house, large(3), Prefer="respond-async"))[0] == 202
    house.assert_doctor_is_content()


async def test_who_would_rather_come_back_gets_a_ticket_to_look_at(house):
    await house.open(policies=RULE)
    status, headers, told = await present(house, Prefer="wait=5, respond-async")
    ticket = await house.ticket()
    assert (status, headers["Location"], headers["Preference-Applied"]) == (202, f"/-/tickets/{ticket['id']}", "respond-async")
    assert (headers["X-Lockgate-Approval"], told["ticket"], told["state"]) == (ticket["id"], ticket["id"], "pending")
    assert told["location"] == headers["Location"]
    seen = await own(house, ticket["id"])
    assert (seen["ticket"], seen["state"], seen["votes_needed"], seen["rule"]) == (ticket["id"], "pending", 1, "secret-plans")
    assert "result" not in seen
    await house.vote(ticket)
    assert (await own(house, ticket["id"]))["state"] == "approved"
    assert house.one.requests == []  # `release`: it goes when its caller comes
    status, headers, body = await present(house, Prefer="respond-async")
    assert (status, body["choices"][0]["message"]["content"]) == (200, "The plan is good")
    assert len(house.one.requests) == 1
    assert (await own(house, ticket["id"]))["state"] == "succeeded"


async def test_nobody_gets_202_who_does_not_ask_for_it(house):
    """Real clients take it for an answer."""
    await house.open(policies=RULE, config='[approvals]\nhold = "0s"\n')
    assert (await present(house))[0] == 409
    assert (await present(house, Prefer="handling=strict"))[0] == 409


async def test_a_ticket_is_its_callers_alone(house):
    await house.open(policies=RULE)
    await present(house, Prefer="respond-async")
    ticket = await house.ticket()
    other = await house.new_key(name="other")
    await own(house, ticket["id"], key=other, status=404)
    await own(house, ticket["id"], key=other, status=404, method="POST", end="/withdraw")
    await own(house, "apr_none", status=404)
    await own(house, ticket["id"], key="lgk_nobody", status=401)
    assert (await own(house, ticket["id"], method="POST", end="/withdraw"))["state"] == "withdrawn"
    await house.vote(ticket, status=409)


async def test_a_withdrawn_call_that_comes_again_is_asked_about_again(house):
    await house.open(policies=RULE)
    task = begin(house)
    ticket = await house.ticket()
    await own(house, ticket["id"], method="POST", end="/withdraw")
    with pytest.raises(openai.PermissionDeniedError, match="withdrawn"):
        await ended(task)
    assert (await present(house, Prefer="respond-async"))[0] == 202
    assert (await house.ticket("pending"))["id"] != ticket["id"]


# `execute`: approve tomorrow, while the laptop is closed.


async def test_the_gateway_makes_an_approved_call_by_itself_and_keeps_the_answer(house, leaping):
    await house.open(policies=EXECUTE, parts=Parts(clock=leaping))
    status, _headers, told = await present(house, Prefer="respond-async")
    assert status == 202
    leaping.leap(20 * 3600)
    ticket = await house.ticket()
    await house.vote(ticket)
    done = await house.ticket("succeeded")
    assert done["id"] == told["ticket"]
    assert len(house.one.requests) == 1
    seen = await own(house, ticket["id"])
    assert (seen["state"], seen["result"]["status"]) == ("succeeded", 200)
    assert seen["result"]["body"]["choices"][0]["message"]["content"] == "The plan is good"
    leaping.leap(3600)
    status, headers, body = await present(house)
    assert (status, headers["X-Lockgate-Approval"]) == (200, ticket["id"])
    assert body == seen["result"]["body"]
    assert headers["X-Lockgate-Replayed"] == "true"
    assert len(house.one.requests) == 1


async def test_a_kept_answer_is_forgotten_in_the_end_and_then_asked_about_anew(house, leaping):
    await house.open(policies=EXECUTE, config='[approvals]\nkeep_results = "1h"\n', parts=Parts(clock=leaping))
    await present(house, Prefer="respond-async")
    ticket = await house.ticket()
    await house.vote(ticket)
    await house.ticket("succeeded")
    leaping.leap(3601)
    await house.gateway.running.sweeper.sweep()
    assert "result" not in await own(house, ticket["id"])
    assert (await present(house, Prefer="respond-async"))[0] == 202
    assert (await house.ticket("pending"))["id"] != ticket["id"]


async def test_a_caller_that_waits_gets_the_answer_of_an_executed_call(house):
    await house.open(policies=EXECUTE)
    task, other = begin(house), begin(house)
    await held(house, 2)
    await house.vote(await house.ticket())
    assert [(await ended(each)).parse().choices[0].message.content for each in (task, other)] == ["The plan is good"] * 2
    assert len(house.one.requests) == 1


async def test_a_failure_of_an_executed_call_is_told_once_and_then_asked_about_anew(house):
    await house.open(policies=EXECUTE, routes="""
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast!status=500"
[route.retry]
attempts = 1
""")
    await present(house, Prefer="respond-async")
    ticket = await house.ticket()
    await house.vote(ticket)
    await house.ticket("failed")
    status, headers, body = await present(house)
    assert (status, body["error"]["code"], headers["X-Should-Retry"]) == (502, "upstream_failed", "false")
    assert len(house.one.requests) == 1
    assert (await present(house, Prefer="respond-async"))[0] == 202
    assert (await house.ticket("pending"))["id"] != ticket["id"]


@pytest.mark.parametrize("state", ["pending", "approved"])
async def test_an_executed_call_outlives_a_restart(house, state):
    await house.open(policies=EXECUTE)
    await present(house, Prefer="respond-async")
    ticket = await house.ticket()
    if state == "pending":
        await house.restart()
        await house.vote(ticket)
    else:
        store, holding = house.gateway.running.store, house.gateway.running.proxy.holding
        holding.waiting.stopping = True  # this gateway takes on nothing any more
        await house.vote(ticket)
        assert (await store.approvals.get(ticket["id"])).state == "approved"
        await house.restart()
        await house.gateway.running.proxy.holding.performing.catch_up()
    await house.ticket("succeeded")
    status, _headers, body = await present(house)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "The plan is good")
    assert len(house.one.requests) == 1


async def test_the_example_of_the_guide_has_the_address_of_what_people_are_asked_or_the_answer(house):
    """The block of docs/approvals.md, run as it stands there by the official client."""
    (block,) = (each for each in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL) if "respond-async" in each)
    await house.open(policies=RULE)
    with openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.key) as client:
        for text, told in (("secretplan", "ticket"), ("hello", "answer")):
            names: dict[str, Any] = {"client": client, "messages": [{"role": "user", "content": text}]}
            await asyncio.to_thread(exec, block.replace('model="assistant"', 'model="fast"'), names)
            assert told in names, names
