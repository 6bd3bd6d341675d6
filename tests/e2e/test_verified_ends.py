"""A payment whose answer is lost is looked for at the bank: made once, whatever happens, and its caller is told what came of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

SOON_S = 20
RULE = """
[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
[[rule]]
id = "pay"
phase = "tool_call"
effect = "require_approval"
match = { tools = ["bank.pay"] }
message = "Payments wait."
"""
MODES = ["release", "execute"]


@dataclass
class Bank:
    """A bank that takes a payment and hangs up; then it knows of it, or does not, as a test says."""

    root: str = ""
    knows: bool = True
    status: int = 200
    paid: list[dict[str, Any]] = field(default_factory=list)
    looked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def pay(self, request: web.Request) -> web.Response:
        self.paid.append({**await request.json(), "key": request.headers["idempotency-key"]})
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def look(self, request: web.Request) -> web.Response:
        self.looked.append((request.match_info["id"], dict(request.query)))
        if self.status != 200:
            return web.json_response({"detail": "no such payment"}, status=self.status)
        return web.json_response({"id": request.match_info["id"], "status": "paid" if self.knows else "none"})


@pytest.fixture
async def bank(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> Bank:
    made, app = Bank(), web.Application()
    app.router.add_post("/payments", made.pay)
    app.router.add_get("/payments/{id}", made.look)
    made.root = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    return made


def tools(bank: Bank, verify: str) -> str:
    return f"""
[[tool]]
name = "bank.status"
method = "GET"
url = "{bank.root}/payments/{{id}}"
effect = "read"
private = true
price = "0.01"
[tool.arguments]
required = ["id"]
[tool.arguments.properties]
id = {{ type = "string" }}
key = {{ type = "string" }}

[[tool]]
name = "bank.pay"
method = "POST"
url = "{bank.root}/payments"
private = true
irreversible = true
[tool.arguments.properties]
id = {{ type = "string" }}
amount = {{ type = "number" }}
{verify}"""


def verify(happened: str = 'result.status == \\"paid\\"', after: str = "10ms", attempts: int = 2) -> str:
    return (f'[tool.verify]\ntool = "bank.status"\narguments = {{ id = "arguments.id", key = "key" }}\nhappened = "{happened}"\n'
            f'after = "{after}"\nevery = "10ms"\nattempts = {attempts}\n')


async def pay(house: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    session = await house.http()
    async with asyncio.timeout(SOON_S), session.post(
            "/tools/bank.pay", json={"id": "p-7", "amount": 5000}, headers={"Authorization": f"Bearer {house.key}", **headers}) as answer:
        return answer.status, json.loads(await answer.read())


async def lose(house: Any, bank: Bank, rules: str, contract: str) -> dict[str, Any]:
    """Have a payment approved that is sent, and whose answer is lost; its ticket."""
    await house.open(policies=rules, routes=tools(bank, contract), config='[budgets.all]\nscope = "all"\nlimit = "1.00"\n')
    status, _ = await pay(house, Prefer="respond-async")
    assert status == 202
    ticket: dict[str, Any] = await house.ticket()
    assert ticket["irreversible"]
    asking = asyncio.create_task(pay(house))
    await house.vote(ticket)
    await asking
    return ticket


@pytest.mark.parametrize("mode", MODES)
async def test_a_payment_that_happened_is_found_and_its_caller_told_and_it_is_not_made_again(house, bank, mode):
    ticket = await lose(house, bank, f'{RULE}approval = {{ mode = "{mode}" }}\n', verify())
    done = await house.ticket("succeeded")
    assert (done["id"], done["reason"]) == (ticket["id"], "verified: it happened")
    assert [each["event"] for each in done["history"]] == ["open", "vote", "approve", "claim", "lose", "succeed"]
    status, told = await pay(house)
    assert (status, told["ticket"], told["state"]) == (200, ticket["id"], "succeeded")
    assert [(each["id"], each["amount"]) for each in bank.paid] == [("p-7", 5000)]
    assert bank.looked == [("p-7", {"key": ticket["id"]})]
    assert bank.paid[0]["key"] == ticket["id"], "the bank can be asked by the key that it was given"


async def test_the_read_is_on_record_as_a_part_of_the_call_and_costs_what_it_costs(house, bank):
    await lose(house, bank, RULE, verify())
    done = await house.ticket("succeeded")
    (read,) = await house.calls(part_of=done["executed_by"])
    row = await house.call(read["id"])
    assert (row["route"], row["target"], row["outcome"], row["labels"], row["key"]) == (
        "bank.status", "tool:bank.status/GET", "completed", ["verify"], done["principal"])
    assert await house.spent("all/all") == 10_000_000
    session = await house.http()
    async with session.get("/metrics") as answer:
        assert 'lockgate_part_calls_total{kind="verify",outcome="completed",route="bank.status"} 1.0' in await answer.text()


async def test_a_payment_that_did_not_happen_has_failed_and_may_be_asked_for_again(house, bank):
    bank.knows = False
    ticket = await lose(house, bank, RULE, verify())
    failed = await house.ticket("failed")
    assert (failed["id"], failed["reason"], len(bank.looked)) == (ticket["id"], "verified: it did not happen", 2)
    status, told = await pay(house, Prefer="respond-async")
    assert status == 202
    assert told["ticket"] != ticket["id"], "it waits for people as before"
    assert len(bank.paid) == 1


@pytest.mark.parametrize(("status", "happened", "state"), [
    (404, 'status == 200 && result.status == \\"paid\\"', "failed"), (404, 'result.status == \\"paid\\"', "unknown"),
    (503, 'status == 200 && result.status == \\"paid\\"', "unknown")])
async def test_an_error_of_the_bank_says_something_only_where_the_contract_looks_at_it(house, bank, status, happened, state):
    bank.status = status
    ticket = await lose(house, bank, RULE, verify(happened, attempts=1))

    async def looked() -> bool:
        return bool(bank.looked)

    await house.until(looked)
    await house.until(lambda: house.tickets(state))
    assert (await pay(house, Prefer="respond-async"))[0] == (202 if state == "failed" else 409)
    assert len(bank.paid) == 1
    if state == "unknown":
        said = await house.ask("POST", f"/-/approvals/{ticket['id']}/resolve", {"outcome": "succeeded", "comment": "I rang the bank."})
        assert said["approval"]["state"] == "succeeded"


async def test_without_a_contract_a_person_says_what_happened(house, bank):
    ticket = await lose(house, bank, RULE, "")
    assert (await house.ticket("unknown"))["id"] == ticket["id"]
    status, told = await pay(house)
    assert (status, told["code"]) == (409, "approval_unknown")
    assert (len(bank.paid), bank.looked) == (1, [])
