"""What is on record of a call that people let go on: the grant it went by, its place in its session, and where it stands while it waits."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.app import Parts

SOON_S = 20
RULES = """
[[rule]]
id = "plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
match = { tools = ["*"] }
[[rule]]
id = "payments"
phase = "tool_call"
effect = "require_approval"
match = { tools = ["pay"] }
"""
STORES = pytest.mark.parametrize("config", ["", '[store]\npath = ":memory:"\n'], ids=["sqlite", "memory"])
PLAN = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}
PROPOSED = {
    "model": "fast", "tools": [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}],
    "messages": [{"role": "user", "content": 'call pay {"to": "DE3"}'}]}


@pytest.fixture
async def bank(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> str:
    """Routes and the HTTP tool `pay`."""

    async def pay(_request: web.Request) -> web.Response:
        return web.json_response({"receipt": 1})

    app = web.Application()
    app.router.add_post("/pay", pay)
    server = await aiohttp_server(app)
    return f"""
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[[tool]]
name = "pay"
method = "POST"
url = "{server.make_url('/pay')}"
effect = "at_most_once"
private = true
[tool.arguments.properties]
to = {{ type = "string" }}
"""


async def post(house: Any, path: str, body: Any, **headers: str) -> tuple[int, Any, str]:
    """Status, headers and body of one answer to the caller."""
    status, given, raw = await house.present(path, body, **headers)
    return status, given, raw.decode()


def chat(house: Any, body: Any = PLAN, **headers: str) -> Awaitable[tuple[int, Any, str]]:
    return post(house, "/v1/chat/completions", body, **headers)


async def granted(house: Any, asked: Any, **grant: Any) -> str:
    """Approve what waits with a grant: its id. The call that waited has its answer then."""
    task = asyncio.ensure_future(asked)
    await house.vote(await house.ticket(), grant={"for": "1h", **grant})
    assert (await task)[0] == 200
    return str((await house.ask("GET", "/-/grants"))["grants"][0]["id"])


def logged(house: Any) -> list[dict[str, Any]]:
    assert house.gateway.running.telemetry.flush()
    return [json.loads(line) for chunk in house.lines for line in chunk.splitlines()]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_model_call_says_which_grant_it_went_by_and_the_grant_which_calls_used_it(house, stream):
    """In the answer, in the journal, in its story and with the grant: nobody has to look into the database."""
    await house.open(policies=RULES)
    grant = await granted(house, chat(house))
    status, headers, _ = await chat(house, {**PLAN, "stream": stream})
    assert (status, headers.get("X-Lockgate-Grant")) == (200, grant)
    call = headers["X-Lockgate-Call"]
    assert (await house.call(call))["grants"] == [grant]
    assert (await house.ask("GET", f"/-/calls/{call}/explain"))["grants"] == [grant]
    (row,) = (await house.ask("GET", "/-/grants"))["grants"]
    assert ([each["call"] for each in row["calls"]], row["more_calls"]) == ([call], False)
    (first,) = [each for each in await house.calls() if each["id"] != call and not each["part_of"]]
    assert (await house.call(first["id"]))["grants"] == []


async def test_a_tool_call_and_a_proposed_one_say_which_grant_they_went_by(house, bank):
    await house.open(routes=bank, policies=RULES)
    grant = await granted(house, post(house, "/tools/pay", {"to": "DE1"}))
    status, headers, _ = await post(house, "/tools/pay", {"to": "DE2"})
    assert (status, headers.get("X-Lockgate-Grant")) == (200, grant)
    status, headers, _ = await chat(house, PROPOSED)
    assert (status, headers.get("X-Lockgate-Grant")) == (200, grant)
    assert (await house.call(headers["X-Lockgate-Call"]))["grants"] == [grant]
    status, headers, text = await chat(house, {**PROPOSED, "stream": True})
    assert (status, f"X-Lockgate-Grant: {grant}" in text) == (200, True), text  # it is proposed after the head was sent
    (row,) = (await house.ask("GET", "/-/grants"))["grants"]
    assert len(row["calls"]) == 3
    assert row["calls"][0]["call"] == headers["X-Lockgate-Call"]


async def test_the_calls_that_used_a_grant_are_shown_up_to_a_bound(house):
    await house.open(policies=RULES)
    grant = await granted(house, chat(house))
    app = house.gateway.running
    for n in range(30):
        assert await app.store.approvals.use([grant], call_id=f"call_{n}", now_ns=app.clock.now_ns())
    (row,) = (await house.ask("GET", "/-/grants"))["grants"]
    assert ([each["call"] for each in row["calls"]], row["more_calls"]) == ([f"call_{n}" for n in range(29, 9, -1)], True)


@STORES
async def test_a_session_counts_what_was_done_under_an_approval(house, bank, config):
    """Once: it waited as one call and was made as another, and that is one thing that the session did."""
    await house.open(routes=bank, policies=RULES, config=config)
    task = asyncio.ensure_future(post(house, "/tools/pay", {"to": "DE1"}, **{"X-Lockgate-Session": "s"}))
    await house.vote(await house.ticket())
    assert (await task)[0] == 200
    assert (await house.ask("GET", "/-/sessions/s"))["session"]["calls"] == 1
    task = asyncio.ensure_future(chat(house, **{"X-Lockgate-Session": "s"}))
    await house.vote(await house.ticket())
    assert (await task)[0] == 200
    assert (await house.ask("GET", "/-/sessions/s"))["session"]["calls"] == 2


@STORES
async def test_the_timeline_has_a_tool_call_that_was_approved_once_and_as_let_through(house, bank, config):
    await house.open(routes=bank, policies=RULES, config=config)
    task = asyncio.ensure_future(post(house, "/tools/pay", {"to": "DE1"}, **{"X-Lockgate-Session": "s"}))
    await house.vote(await house.ticket())
    assert (await task)[0] == 200
    timeline = (await house.ask("GET", "/-/sessions/s/timeline"))["timeline"]
    assert [each["released"] for each in timeline if each["kind"] == "tool"] == [True], timeline
    task = asyncio.ensure_future(post(house, "/tools/pay", {"to": "DE2"}, **{"X-Lockgate-Session": "s"}))
    await house.vote(await house.ticket(), verdict="deny")
    assert (await task)[0] == 403
    timeline = (await house.ask("GET", "/-/sessions/s/timeline"))["timeline"]
    assert [each["released"] for each in timeline if each["kind"] == "tool"] == [True, False], timeline
    assert (await house.ask("GET", "/-/sessions/s"))["session"]["calls"] == 1


async def test_a_call_that_waits_is_said_to_wait_and_for_what(house):
    """Its row is written at its end: until then the approval is what there is of it."""
    await house.open(policies=RULES)
    task = asyncio.ensure_future(chat(house))
    ticket = await house.ticket()
    for path in (f"/-/calls/{ticket['call']}", f"/-/calls/{ticket['call']}/explain"):
        told = await house.ask("GET", path, status=404)
        assert told["detail"] == f"The call is waiting for the approval {ticket['id']}; it is on record once it has ended."
    await house.vote(ticket)
    assert (await task)[0] == 200
    assert (await house.call(ticket["call"]))["approval"] == ticket["id"]
    assert "GET /-/calls" in (await house.ask("GET", "/-/calls/call_nope", status=404))["detail"]


async def test_the_log_has_a_line_for_each_thing_that_happens_to_an_approval(house):
    """By name and by whom, without a word of the request; and `/metrics` counts what was decided."""
    await house.open(policies=RULES)
    await house.people(ada=("finance",))
    task = asyncio.ensure_future(chat(house))
    ticket = await house.ticket()
    await house.vote(ticket, by="ada", grant={"for": "1h", "uses": 3}, comment="a secret reason")
    assert (await task)[0] == 200
    task = asyncio.ensure_future(chat(house, {**PLAN, "seed": 4}))
    assert (await task)[0] == 200  # by the grant
    (grant,) = (await house.ask("GET", "/-/grants"))["grants"]
    await house.ask("POST", f"/-/grants/{grant['id']}/revoke")
    task = asyncio.ensure_future(chat(house))
    second = await house.ticket()
    await house.vote(second, by="ada", verdict="deny")
    assert (await task)[0] == 403
    lines = [line for line in logged(house) if line["event"].startswith(("approval_", "grant_"))]
    told = [(line["event"], line.get("ticket"), line.get("outcome"), line.get("person"), line.get("rule")) for line in lines]
    first = ticket["id"]
    assert told == [
        ("approval_opened", first, None, None, "plans"), ("approval_voted", first, None, "ada", "plans"),
        ("approval_decided", first, "approved", None, "plans"), ("approval_granted", first, None, "ada", "plans"),
        ("approval_claimed", first, None, None, "plans"), ("grant_revoked", None, None, "admin", None),
        ("approval_opened", second["id"], None, None, "plans"), ("approval_voted", second["id"], None, "ada", "plans"),
        ("approval_decided", second["id"], "denied", None, "plans")]
    assert not any(word in json.dumps(lines) for word in ("plan is good", "secret reason"))
    metrics = (await house.gateway.running.telemetry.scrape()).decode()
    for outcome in ("approved", "denied"):
        assert f'lockgate_approvals_decided_total{{outcome="{outcome}",rule="plans"}} 1.0' in metrics
    assert 'lockgate_approval_decision_seconds_count{rule="plans"} 2.0' in metrics


async def test_the_log_says_of_an_approval_that_it_was_edited_withdrawn_or_ran_out(house, leaping):
    await house.open(policies=RULES, parts=Parts(clock=leaping), config='[approvals]\nhold = "0s"\n')
    assert (await chat(house))[0] == 409
    ticket = await house.ticket()
    edited = {"messages": [{"role": "user", "content": "say The plan is short"}]}
    new = (await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", {"digest": ticket["digest"], "arguments": edited}))["approval"]
    await house.ask("POST", f"/-/approvals/{new['id']}/withdraw", {"comment": "no"})
    assert (await chat(house))[0] == 409
    late = await house.ticket()
    leaping.leap(2 * 86_400)
    await house.gateway.running.sweeper.sweep()
    told = [(line["event"], line["ticket"], line.get("outcome")) for line in logged(house) if line["event"].startswith("approval_")]
    assert told == [
        ("approval_opened", ticket["id"], None), ("approval_decided", ticket["id"], "edited"), ("approval_opened", new["id"], None),
        ("approval_decided", new["id"], "withdrawn"), ("approval_opened", late["id"], None), ("approval_expired", late["id"], "expired")]
