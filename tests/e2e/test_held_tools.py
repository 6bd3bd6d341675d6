"""HTTP tools that wait for people, against an upstream that logs what it does: done once, however many ask, whoever leaves."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

SOON_S = 20
PAY = {"to": "DE1", "amount": 5000}
MODES = pytest.mark.parametrize("mode", ["release", "execute"])


@dataclass
class Bank:
    """An upstream that pays when it is told to (`go`). `paid` is its log: arguments and idempotency key of each request."""

    root: str = ""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    paid: list[tuple[Any, str]] = field(default_factory=list)
    status: int = 200

    async def pay(self, request: web.Request) -> web.Response:
        self.paid.append((await request.json(), request.headers.get("Idempotency-Key", "")))
        self.arrived.release()
        await asyncio.wait_for(self.go.wait(), 60)
        return web.json_response({"receipt": len(self.paid)}, status=self.status)

    def routes(self, effect: str = "at_most_once", more: str = "", total: str = "20s") -> str:
        return f"""
[[tool]]
name = "pay"
method = "POST"
url = "{self.root}/pay"
effect = "{effect}"
private = true
{more}
[tool.deadlines]
headers = "{total}"
total = "{total}"
[tool.retry]
attempts = {1 if effect == "at_most_once" else 2}
base = "1ms"
[tool.arguments]
required = ["to", "amount"]
[tool.arguments.properties]
to = {{ type = "string" }}
amount = {{ type = "number" }}
note = {{ type = "string" }}
"""


@pytest.fixture
async def bank(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> Any:
    made, app = Bank(), web.Application()
    app.router.add_post("/pay", made.pay)
    server = await aiohttp_server(app)
    made.root = str(server.make_url("")).rstrip("/")
    made.go.set()
    yield made
    made.go.set()


def rules(mode: str = "release", **more: str) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in {"mode": f'"{mode}"', **more}.items())
    return f"""
[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
match = {{ tools = ["*"] }}
[[rule]]
id = "large-payments"
phase = "tool_call"
match = {{ tools = ["pay"] }}
when = 'double(tool.args.amount) > 1000.0'
effect = "require_approval"
message = "Payments above 1000 are looked at."
approval = {{ {settings} }}
"""


async def pay(house: Any, body: Any = PAY, *, key: str = "", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and JSON of a call of the tool."""
    session = await house.http()
    sent = {"Authorization": f"Bearer {key or house.key}", **headers}
    async with asyncio.timeout(SOON_S), session.post("/tools/pay", json=body, headers=sent) as answer:
        return answer.status, answer.headers, json.loads(await answer.read())


def begin(house: Any, *arguments: Any, **more: Any) -> "asyncio.Task[tuple[int, Any, Any]]":
    return asyncio.create_task(pay(house, *arguments, **more))


async def held(house: Any, callers: int) -> None:
    waiting = house.gateway.running.proxy.holding.waiting

    async def so_many() -> bool:
        return len(waiting) == callers

    await house.until(so_many)


@MODES
async def test_a_payment_waits_and_is_made_once_under_the_tickets_own_key(house, bank, mode):
    await house.open(routes=bank.routes(), policies=rules(mode))
    assert (await pay(house, {**PAY, "amount": 10}))[0] == 200  # nobody is asked about a small one
    task = begin(house)
    ticket = await house.ticket()
    assert (ticket["kind"], ticket["tool"], ticket["effect"], ticket["mode"]) == ("tool", "pay", "at_most_once", mode)
    assert (ticket["summary"], ticket["action"]["arguments"]) == ('pay to="DE1" amount=5000', PAY)
    assert len(bank.paid) == 1
    await house.vote(ticket)
    status, headers, told = await task
    assert (status, told, headers["X-Lockgate-Approval"], headers["X-Lockgate-Decision"]) == (200, {"receipt": 2}, ticket["id"], "held")
    assert bank.paid[1] == (PAY, ticket["id"])
    done = await house.ticket("succeeded")
    assert done["result"] == {"status": 200, "content_type": "application/json"}


@MODES
async def test_sixty_four_racing_presenters_make_one_payment_and_all_learn_of_it(house, bank, mode):
    await house.open(routes=bank.routes(), policies=rules(mode))
    tasks = [begin(house) for _ in range(64)]
    await held(house, 64)
    await house.vote(await house.ticket())
    answers = [await task for task in tasks]
    assert [(status, told) for status, _headers, told in answers] == [(200, {"receipt": 1})] * 64
    assert len(bank.paid) == 1
    assert len(await house.tickets("all")) == 1
    await house.spent("nothing")


async def test_sixty_four_who_come_with_an_approval_that_is_there_make_one_payment(house, bank):
    await house.open(routes=bank.routes(), policies=rules())
    assert (await pay(house, Prefer="respond-async"))[0] == 202
    await house.vote(await house.ticket())
    answers = await asyncio.gather(*[pay(house) for _ in range(64)])
    assert {(status, json.dumps(told)) for status, _headers, told in answers} == {(200, '{"receipt": 1}')}
    assert len(bank.paid) == 1


@MODES
async def test_a_caller_that_leaves_while_it_is_done_does_not_stop_it_and_finds_its_result(house, bank, mode):
    bank.go.clear()
    await house.open(routes=bank.routes(), policies=rules(mode))
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    await asyncio.wait_for(bank.arrived.acquire(), SOON_S)
    task.cancel()
    await house.until(lambda: house.calls(outcome="cancelled"))
    bank.go.set()
    await house.ticket("succeeded")
    status, headers, told = await pay(house)
    assert (status, told, headers["X-Lockgate-Approval"]) == (200, {"receipt": 1}, ticket["id"])
    assert len(bank.paid) == 1


async def test_a_released_payment_that_is_presented_again_after_its_answer_needs_its_own_approval(house, bank):
    await house.open(routes=bank.routes(), policies=rules())
    task = begin(house)
    first = await house.ticket()
    await house.vote(first)
    assert (await task)[0] == 200
    again = begin(house)
    second = await house.ticket()
    assert second["id"] != first["id"]
    await house.vote(second, verdict="deny", comment="Once is enough.")
    status, _headers, told = await again
    assert (status, told["code"], told["ticket"]) == (403, "approval_denied", second["id"])
    assert "Once is enough." in told["detail"]
    assert len(bank.paid) == 1


async def test_an_executed_payment_is_not_made_again_for_who_presents_it_again(house, bank):
    """It was approved once, and is done once; what it brought is kept for `keep_results`."""
    await house.open(routes=bank.routes(), policies=rules("execute"))
    assert (await pay(house, Prefer="respond-async"))[0] == 202
    ticket = await house.ticket()
    await house.vote(ticket)
    await house.ticket("succeeded")
    for _ in range(3):
        status, headers, told = await pay(house)
        assert (status, told, headers["X-Lockgate-Approval"]) == (200, {"receipt": 1}, ticket["id"])
    assert len(bank.paid) == 1


async def test_the_result_is_on_the_callers_ticket(house, bank):
    await house.open(routes=bank.routes(), policies=rules("execute"))
    _status, headers, _told = await pay(house, Prefer="respond-async")
    await house.vote(await house.ticket())
    await house.ticket("succeeded")
    session = await house.http()
    async with session.get(headers["Location"], headers={"Authorization": f"Bearer {house.key}"}) as answer:
        told = await answer.json()
    assert (told["state"], told["result"]) == ("succeeded", {"status": 200, "content_type": "application/json", "body": {"receipt": 1}})


async def lost(house: Any, bank: Bank) -> Any:
    """A payment that people approved and nobody knows the end of: its approval."""
    bank.go.clear()
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    status, _headers, told = await task
    assert (status, told["code"]) in ((409, "approval_unknown"), (504, "upstream_timeout")), told
    return await house.ticket("unknown")


@MODES
async def test_what_nobody_knows_the_end_of_is_said_so_and_never_sent_again(house, bank, mode):
    await house.open(routes=bank.routes(total="300ms"), policies=rules(mode))
    ticket = await lost(house, bank)
    for _ in range(3):
        status, headers, told = await pay(house)
        assert (status, told["code"], told["ticket"], headers["X-Should-Retry"]) == (409, "approval_unknown", ticket["id"], "false")
    assert len(bank.paid) == 1
    await house.spent("nothing")


@MODES
async def test_a_person_says_that_it_happened_and_its_caller_is_told_so(house, bank, mode):
    await house.open(routes=bank.routes(total="300ms"), policies=rules(mode))
    ticket = await lost(house, bank)
    resolve = f"/-/approvals/{ticket['id']}/resolve"
    await house.ask("POST", resolve, {"outcome": "succeeded", "comment": ""}, status=400)
    row = (await house.ask("POST", resolve, {"outcome": "succeeded", "comment": "It is on the statement."}))["approval"]
    assert (row["state"], row["reason"]) == ("succeeded", "It is on the statement.")
    await house.ask("POST", resolve, {"outcome": "failed", "comment": "no"}, status=409)
    status, headers, told = await pay(house)
    assert (status, headers["X-Lockgate-Approval"], told["state"]) == (200, ticket["id"], "succeeded"), told
    assert "It is on the statement." in told["message"]
    assert len(bank.paid) == 1


@MODES
async def test_a_person_says_that_it_did_not_happen_and_a_further_try_is_asked_about(house, bank, mode):
    await house.open(routes=bank.routes(total="300ms"), policies=rules(mode))
    ticket = await lost(house, bank)
    await house.ask("POST", f"/-/approvals/{ticket['id']}/resolve", {"outcome": "failed", "comment": "Not on the statement."})
    bank.go.set()
    again = begin(house)
    second = await house.ticket("pending")
    assert second["id"] != ticket["id"]
    await house.vote(second)
    assert (await again)[2] == {"receipt": 2}


@pytest.mark.parametrize("effect", ["idempotent", "read"])
async def test_what_may_be_sent_again_is_with_the_same_key_and_stays_approved(house, bank, effect):
    bank.go.clear()
    await house.open(routes=bank.routes(effect, total="300ms"), policies=rules())
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    status, _headers, _told = await task
    assert status in (409, 502, 504)
    bank.go.set()
    status, _headers, told = await pay(house)
    assert (status, "receipt" in told) == (200, True)
    assert {key for _body, key in bank.paid} == ({ticket["id"]} if effect == "idempotent" else {""})
    assert len(await house.tickets("all")) == 1


async def test_a_payment_that_the_upstream_refuses_has_failed_and_its_caller_is_told_why(house, bank):
    bank.status = 422
    await house.open(routes=bank.routes(), policies=rules())
    task = begin(house)
    await house.vote(await house.ticket())
    status, headers, _told = await task
    assert (status, headers["X-Should-Retry"]) == (422, "false")
    assert (await house.ticket("failed"))["result"]["status"] == 422
    assert len(bank.paid) == 1


async def test_an_upstream_that_cannot_be_reached_leaves_the_approval_as_it_was(house, bank):
    """Nothing has left: what people approved can still be done."""
    await house.open(routes=bank.routes().replace(bank.root, "http://127.0.0.1:9"), policies=rules())
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    status, _headers, told = await task
    assert status == 502, told
    assert (await house.ticket("approved"))["id"] == ticket["id"]
    house.write("routes/routes.toml", bank.routes())
    await house.gateway.reload()
    status, _headers, told = await pay(house)
    assert (status, told) == (200, {"receipt": 1})
    assert len(bank.paid) == 1


async def test_arguments_that_were_tampered_with_need_their_own_approval(house, bank):
    await house.open(routes=bank.routes(), policies=rules(), config='[approvals]\nhold = "0s"\n')
    assert (await pay(house))[0] == 409
    await house.vote(await house.ticket())
    for changed in ({"to": "DE2"}, {"amount": 5000.01}, {"note": "x"}):
        assert (await pay(house, {**PAY, **changed}))[0] == 409
    assert (await pay(house, key=await house.new_key(name="other")))[0] == 409
    assert bank.paid == []
    status, _headers, told = await pay(house, {"amount": 5000.0, "to": "DE1"})  # the same action, whatever the order of its names
    assert (status, told) == (200, {"receipt": 1})


async def test_a_key_that_is_revoked_after_the_approval_makes_no_call(house, bank):
    await house.open(routes=bank.routes(), policies=rules("execute"))
    key = await house.new_key(name="leaver")
    assert (await pay(house, key=key, Prefer="respond-async"))[0] == 202
    ticket = await house.ticket()
    app = house.gateway.running
    (stored,) = [each for each in (await app.store.keys.all())[1] if each.name == "leaver"]
    await app.store.keys.revoke(stored.id, now_ns=app.clock.now_ns())
    await app.keyring.refresh()
    await house.vote(ticket)
    row = await house.ticket("denied")
    assert "revoked" in row["reason"]
    assert bank.paid == []


@pytest.mark.parametrize("irreversible", [True, False])
async def test_a_tool_says_that_nothing_takes_it_back(house, bank, irreversible):
    await house.open(routes=bank.routes(more=f"irreversible = {str(irreversible).lower()}"), policies=rules())
    task = begin(house)
    ticket = await house.ticket()
    assert (ticket["irreversible"], ticket["grantable"]) == (irreversible, not irreversible)
    await house.vote(ticket, verdict="deny")
    await task


async def test_a_connection_that_is_cut_under_a_held_payment_leaves_it_for_when_they_come_back(house, bank):
    await house.open(routes=bank.routes(), policies=rules())
    async with aiohttp.ClientSession(house.gateway.url) as session:
        task = asyncio.create_task(session.post("/tools/pay", json=PAY, headers={"Authorization": f"Bearer {house.key}"}))
        ticket = await house.ticket()
        task.cancel()
    await house.until(lambda: house.calls(outcome="cancelled"))
    await house.vote(ticket)
    assert (await house.ticket("approved"))["id"] == ticket["id"]
    assert bank.paid == []
    assert (await pay(house))[2] == {"receipt": 1}
