"""What is promised of approvals beyond one person and one chat: stages, any operation, results of tools, and what changes after the vote."""

import asyncio
import json
import re
from typing import Any

import pytest

from gateway.app import Parts

SOON_S = 20
PLANS = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
TOOLS_OK = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n'
PAYMENT = TOOLS_OK + """
[[rule]]
id = "payments"
phase = "tool_call"
match = { tools = ["pay"] }
effect = "require_approval"
message = "Payments are looked at."
"""
AT_ONCE = '[approvals]\nhold = "0s"\n'
CHAT: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}


async def pay(house: Any, **arguments: Any) -> tuple[int, Any, bytes]:
    given: tuple[int, Any, bytes] = await house.present("/tools/pay", arguments)
    return given


async def change(house: Any, **files: str) -> None:
    for name, text in files.items():
        house.write(f"{name}/{name}.toml", text)
    await house.gateway.reload()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_after_half_a_minute_of_a_persons_time_the_call_goes_on(house, leaping, stream):
    await house.open(policies=PLANS, parts=Parts(clock=leaping))
    task = asyncio.create_task(house.present("/v1/chat/completions", {**CHAT, "stream": stream}))
    ticket = await house.ticket()
    leaping.leap(30)
    await house.gateway.running.proxy.holding.refresh()
    assert not task.done()
    await house.vote(ticket)
    status, _headers, raw = await task
    assert (status, len(house.one.requests)) == (200, 1)
    assert b"plan" in raw


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", {"model": "fast", "prompt": "say The plan"}), ("/v1/completions", {"model": "fast", "prompt": "say The plan", "stream": True}),
    ("/v1/embeddings", {"model": "vectors", "input": "plan"})], ids=["completion", "streamed-completion", "embeddings"])
async def test_every_operation_of_a_model_waits(house, path, body):
    await house.open(policies=PLANS)
    task = asyncio.create_task(house.present(path, body))
    ticket = await house.ticket()
    assert (ticket["kind"], house.one.requests, task.done()) == ("request", [], False)
    await house.vote(ticket)
    assert ((await task)[0], len(house.one.requests)) == (200, 1)


async def test_the_result_of_a_tool_is_held_until_somebody_has_read_it(house):
    rule = '[[rule]]\nid = "results"\nphase = "tool_result"\neffect = "require_approval"\n'
    await house.open(policies=TOOLS_OK + rule, routes=house.paying())
    task = asyncio.create_task(pay(house, amount=5))
    ticket = await house.ticket()
    assert (ticket["kind"], ticket["tool"], len(house.one.requests), task.done()) == ("response", "pay", 1, False)
    await house.vote(ticket)
    assert ((await task)[0], len(house.one.requests)) == (200, 1)


async def test_stages_follow_one_another_each_by_people_of_its_own(house):
    await house.open(policies=PLANS + """
[[rule.approval.stages]]
approvers = ["approval.team in approver.roles"]
[[rule.approval.stages]]
approvers = ["role:finance"]
quorum = 2
""")
    await house.people(ada=("blue",), grace=("finance",), linus=("finance",))
    task = asyncio.create_task(house.present("/v1/chat/completions", CHAT))
    ticket = await house.ticket()
    await house.vote(ticket, "grace", status=403)  # her stage has not begun
    await house.vote(ticket, "ada")
    await house.vote(ticket, "grace")
    assert not task.done()
    assert (await house.vote(ticket, "linus"))["state"] == "approved"
    assert (await task)[0] == 200


async def test_a_rule_may_want_more_than_one_denial(house):
    await house.open(policies=PLANS + "approval = { denials = 2 }\n")
    await house.people(ada=(), grace=())
    task = asyncio.create_task(house.present("/v1/chat/completions", CHAT))
    ticket = await house.ticket()
    assert (await house.vote(ticket, "ada", "deny"))["state"] == "pending"
    assert (await house.vote(ticket, "grace", "deny"))["state"] == "denied"
    assert (await task)[0] == 403


# What changes after the vote.


@pytest.mark.parametrize("changed", [{"method": "DELETE"}, {"path": "elsewhere"}, {"more": 'effect = "idempotent"'}], ids=str)
async def test_what_is_done_with_the_arguments_is_a_part_of_what_was_approved(house, changed):
    await house.open(policies=PAYMENT, routes=house.paying(), config=AT_ONCE)
    assert (await pay(house, amount=5))[0] == 409
    first = await house.ticket()
    await house.vote(first)
    await change(house, routes=house.paying(**changed))
    method = changed.get("method", "POST")
    session = await house.http()
    given = {"params": {"amount": "5"}} if method == "DELETE" else {"json": {"amount": 5}}
    async with session.request(method, "/tools/pay", headers={"Authorization": f"Bearer {house.key}"}, **given) as answer:
        assert answer.status == 409
    assert house.one.requests == []
    assert (await house.ticket())["id"] != first["id"]


@pytest.mark.parametrize(("policies", "tool"), [
    (PAYMENT + 'approvers = ["role:cfo"]\n', ""), (PAYMENT + "quorum = 2\n", ""), (PAYMENT + "approval = { grants = false }\n", ""),
    (PAYMENT, "irreversible = true")], ids=["others", "more", "no-grants", "irreversible"])
async def test_a_grant_does_not_outlive_the_question_that_it_answered(house, policies, tool):
    await house.open(policies=PAYMENT, routes=house.paying(), config=AT_ONCE)
    assert (await pay(house, amount=5))[0] == 409
    await house.vote(await house.ticket(), grant={"for": "1h"})
    assert [(await pay(house, amount=amount))[0] for amount in (5, 6)] == [200, 200]
    await change(house, policies=policies, routes=house.paying(tool))
    assert (await pay(house, amount=7))[0] == 409
    assert len(house.one.requests) == 2


async def test_who_meets_an_approval_by_its_identity_is_told_what_ran(house):
    await house.open(policies=PAYMENT + 'approval = { identity = ["tool.args.to"] }\n', routes=house.paying(), config=AT_ONCE)
    assert (await pay(house, amount=1, to="DE1"))[0] == 409
    await house.vote(await house.ticket())
    status, headers, _raw = await pay(house, amount=999_999, to="DE1")
    assert (status, [entry.body["amount"] for entry in house.one.requests]) == (200, [1])
    assert json.loads(headers["X-Lockgate-Approval-Patch"]) == [{"op": "replace", "path": "/amount", "value": 1}]


@pytest.mark.parametrize("payee", ["D" * 5000, "Zo\u00eb"], ids=["long", "not-ascii"])
async def test_what_people_have_changed_is_told_by_its_address_where_no_header_can_hold_it(house, payee):
    await house.open(policies=PAYMENT, routes=house.paying())
    task = asyncio.create_task(pay(house, amount=5, to="DE1"))
    ticket = await house.ticket()
    body = {"digest": ticket["digest"], "arguments": {"amount": 5, "to": payee}, "approve": True}
    edited = (await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", body))["approval"]
    status, headers, _raw = await task
    place = headers["X-Lockgate-Approval-Patch"]
    assert (status, place) == (200, f"/-/tickets/{edited['id']}")
    session = await house.http()
    async with session.get(place, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert (await answer.json())["patch"] == [{"op": "replace", "path": "/to", "value": payee}]


async def test_a_reader_of_a_stream_is_told_what_people_have_changed(house):
    """Its head was sent before anybody had decided: the closing comment says it."""
    await house.open(policies=PLANS)
    task = asyncio.create_task(house.present("/v1/chat/completions", {**CHAT, "stream": True}))
    ticket = await house.ticket()
    arguments = {**ticket["action"]["arguments"], "messages": [{"role": "user", "content": "say The plan is fine"}]}
    body = {"digest": ticket["digest"], "arguments": arguments, "approve": True}
    edited = (await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", body))["approval"]
    _status, _headers, raw = await task
    assert b"fine" in raw
    assert f"X-Lockgate-Approval: {edited['id']}".encode() in raw
    assert b"X-Lockgate-Approval-Patch: [{" in raw


async def test_every_reader_of_one_answer_is_told_what_it_cost(house):
    await house.open(policies=PLANS)
    tasks = [asyncio.create_task(house.present("/v1/chat/completions", {**CHAT, "stream": True})) for _ in range(2)]
    waiting = house.gateway.running.proxy.holding.waiting

    async def both() -> bool:
        return len(waiting) == 2

    await house.until(both)
    await house.vote(await house.ticket())
    answers = await asyncio.gather(*tasks)
    costs = {cost for _status, _headers, raw in answers for cost in re.findall(rb"X-Lockgate-Cost-Usd: ([0-9.]+|unknown)", raw)}
    assert len(costs) == 1
    assert float(costs.pop()) > 0
