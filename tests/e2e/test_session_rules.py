"""Rules over a session: true when its calls come one after another, and when they come at once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

RULES = """
[defaults]
tools = "deny"

[[rule]]
id = "checks-are-free"
phase = "tool_call"
match = { tools = ["check", "read"] }
effect = "allow"

[[rule]]
id = "pay-after-check"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'session.called("check", duration("1h"))'
effect = "allow"

[[rule]]
id = "at-most-100"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'session.sum("pay", "args.amount") + double(tool.args.amount) > 100.0'
effect = "deny"
serial = true

[[rule]]
id = "secret-was-read"
phase = "tool_result"
match = { tools = ["read"] }
effect = "log"
label = "secret"

[[rule]]
id = "nothing-after-secrets"
phase = "request"
match = { protocols = ["openai"] }
when = 'session.id != "" && "secret" in session.labels'
effect = "deny"
message = "This session has read secrets."
"""


@dataclass
class Bank:
    """The tools' upstream. `check` answers when it is told to."""

    url: str = ""
    received: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        self.received.append(name)
        if name == "check":
            self.arrived.set()
            await self.answer.wait()
            return web.json_response({"clear": True}, status=200 if request.query.get("fail") is None else 500)
        return web.json_response({"done": name})


@pytest.fixture
async def bank() -> AsyncIterator[Bank]:
    made = Bank()
    app = web.Application()
    app.router.add_route("*", "/{name}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{site.port}"
    yield made
    made.answer.set()
    await runner.cleanup()


def tools(url: str) -> str:
    amount = 'properties = { amount = { type = "number" } }'
    return "".join(f"""
[[tool]]
name = "{name}"
method = "POST"
url = "{url}/{name}"
private = true
effect = "at_most_once"
[tool.arguments]
type = "object"
{amount}
""" for name in ("check", "pay", "read"))


async def call(house: Any, name: str, session: str | None = "s1", **arguments: Any) -> tuple[int, Any]:
    http = await house.http()
    headers = {"Authorization": f"Bearer {house.key}", **({"X-Lockgate-Session": session} if session else {})}
    async with http.post(f"/tools/{name}", json=arguments, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_rule_that_needs_an_earlier_tool_waits_for_one_that_is_under_way(house, bank):
    """An agent that sends both at once has done nothing wrong."""
    await house.open(routes=tools(bank.url), policies=RULES)
    checking = asyncio.create_task(call(house, "check"))
    await asyncio.wait_for(bank.arrived.wait(), 10)
    paying = asyncio.create_task(call(house, "pay", amount=10))
    bank.answer.set()
    assert await checking == (200, {"clear": True})
    assert await paying == (200, {"done": "pay"})
    assert bank.received == ["check", "pay"]


async def test_without_that_tool_or_in_another_session_or_by_another_key_it_is_refused(house, bank):
    await house.open(routes=tools(bank.url), policies=RULES)
    bank.answer.set()
    assert (await call(house, "pay", amount=10))[1]["rule"] == "default"
    assert (await call(house, "check"))[0] == 200
    assert (await call(house, "pay", session="s2", amount=10))[0] == 403
    mine, house.key = house.key, await house.new_key(name="other")
    assert (await call(house, "pay", amount=10))[0] == 403
    house.key = mine
    assert (await call(house, "pay", amount=10))[0] == 200


async def test_the_wait_is_bounded(house, bank):
    await house.open(routes=tools(bank.url), policies=RULES, config='[policy]\nwait = "50ms"')
    checking = asyncio.create_task(call(house, "check"))
    await asyncio.wait_for(bank.arrived.wait(), 10)
    assert (await call(house, "pay", amount=10))[0] in (403, 503)
    bank.answer.set()
    await checking


async def test_calls_at_once_do_not_each_see_the_sum_without_the_others(house, bank):
    """Ten payments of 20 under a limit of 100: five pass, however they arrive."""
    await house.open(routes=tools(bank.url), policies=RULES)
    bank.answer.set()
    await call(house, "check")
    answers = await asyncio.gather(*(call(house, "pay", amount=20) for _ in range(10)))
    assert sorted(status for status, _ in answers) == [200] * 5 + [403] * 5
    assert bank.received.count("pay") == 5


async def test_a_call_without_a_session_does_not_slip_under_a_rule_about_sessions(house, bank):
    await house.open(routes=tools(bank.url), policies=RULES)
    status, body = await call(house, "pay", session=None, amount=1)
    assert status == 403
    row = await house.call((await house.calls())[0]["id"])
    assert "X-Lockgate-Session" in str(row["reasons"])
    assert body["rule"] == "at-most-100"
    assert bank.received == []


async def test_a_label_stays_with_the_session(house, bank, messages):
    await house.open(policies=RULES, routes=tools(bank.url) + """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
""")
    headers = {"X-Lockgate-Session": "s1"}
    client = house.client()
    await client.chat.completions.create(model="fast", messages=messages("say a"), extra_headers=headers)
    assert (await call(house, "read"))[0] == 200
    with pytest.raises(Exception, match="has read secrets"):
        await client.chat.completions.create(model="fast", messages=messages("say a"), extra_headers=headers)
    await client.chat.completions.create(model="fast", messages=messages("say a"), extra_headers={"X-Lockgate-Session": "s2"})
