"""`/-/approvals` through the front door: who may decide, on what they were shown, once; and what the caller hears of it."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.clock import SystemClock, SystemIds
from gateway.identity.accounts import new_token
from gateway.secret import Secret
from gateway.store.approvals_protocol import Person, Stamped

ADMIN = "admin-token-of-the-tests"
PEPPER = "pepper-of-the-tests-0123456789abcdef"

RULES = """
[[rule]]
id = "small"
phase = "tool_call"
effect = "require_approval"
match = {{ tools = ["bank.pay"] }}
when = "double(tool.args.amount) > 100.0 && double(tool.args.amount) <= 1000.0"
message = "Payments wait for somebody of finance."
approvers = ["role:finance"]
{small}

[[rule]]
id = "large"
phase = "tool_call"
effect = "require_approval"
match = {{ tools = ["bank.pay"] }}
when = "double(tool.args.amount) > 1000.0"
message = "Large payments wait for two people."
approvers = ["role:finance"]
quorum = 2

[[rule]]
id = "never"
phase = "tool_call"
effect = "deny"
match = {{ tools = ["bank.pay"] }}
when = "double(tool.args.amount) > 100000.0"
message = "Nobody pays that much."

[[rule]]
id = "chats"
effect = "require_approval"
match = {{ routes = ["fast"] }}
when = "texts.exists(t, t.contains('payroll'))"
message = "Payroll is looked at first."

[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
"""


def routes(root: str, **changed: str) -> str:
    settings = {"method": '"POST"', "url": f'"{root}/tools/pay"', "effect": '"idempotent"', "private": "true", **changed}
    return "[[tool]]\nname = \"bank.pay\"\n" + "\n".join(f"{key} = {value}" for key, value in settings.items()) + """
[tool.retry]
base = "1ms"
cap = "10ms"
[tool.arguments]
required = ["amount"]
[tool.arguments.properties]
amount = { type = "number" }
to = { type = "string" }
note = { type = "string" }
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[route.retry]
attempts = 1
"""


@dataclass
class Answered:
    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class Bank:
    """A gateway whose payments wait for people, and its people's tokens by their names."""

    house: Any
    tokens: dict[str, str]

    async def ask(self, method: str, path: str, body: Any = None, *, by: str = "admin", **headers: str) -> Answered:
        session = await self.house.http()
        sent = {"Authorization": f"Bearer {self.tokens[by]}", **headers}
        data = None
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with session.request(method, path, data=data, headers=sent) as answer:
            return Answered(answer.status, answer.headers, await answer.read())

    async def pay(self, amount: float = 900, *, by: str = "key", **more: Any) -> str:
        """A payment that is asked for and not waited for: its ticket."""
        answer = await self.ask("POST", "/tools/bank.pay", {"amount": amount, **more}, by=by, Prefer="respond-async")
        assert answer.status == 202, answer.raw
        ticket: str = answer.headers["Location"].rpartition("/")[2]
        return ticket

    async def show(self, ticket: str, by: str = "admin") -> dict[str, Any]:
        answer = await self.ask("GET", f"/-/approvals/{ticket}", by=by)
        assert answer.status == 200, answer.raw
        shown: dict[str, Any] = answer.json["approval"]
        return shown

    async def vote(self, ticket: str, verdict: str = "approve", *, by: str = "grace", digest: str = "", **more: Any) -> Answered:
        digest = digest or (await self.show(ticket))["digest"]
        return await self.ask("POST", f"/-/approvals/{ticket}/vote", {"verdict": verdict, "digest": digest, **more}, by=by)

    async def listed(self, query: str = "", by: str = "admin") -> dict[str, Any]:
        answer = await self.ask("GET", f"/-/approvals?{query}", by=by)
        assert answer.status == 200, answer.raw
        told: dict[str, Any] = answer.json
        return told

    async def person(self, name: str, permission: str, *roles: str) -> None:
        app = self.house.gateway.running
        text, digest = new_token(SystemIds(SystemClock()), Secret(PEPPER))
        await app.store.people.add(Person(name, name.title(), permission, roles, token=digest, created_ns=1), Stamped("created", "tests", 1))
        self.tokens[name] = text

    async def open(self, **more: Any) -> "Bank":
        small = more.pop("small", "")
        tool = more.pop("tool", {})
        await self.house.open(policies=RULES.format(small=small), routes=routes(self.house.one.root, **tool), **more)
        self.tokens |= {"admin": ADMIN, "key": self.house.key, "other": await self.house.new_key(name="other", team="red")}
        for name, permission, *roles in (("grace", "approve", "finance"), ("ada", "approve", "finance"), ("linus", "approve", "ops"),
                                         ("vera", "view", "finance"), ("olga", "operate", "ops")):
            await self.person(name, permission, *roles)
        return self


@pytest.fixture
async def bank(house) -> Bank:
    return Bank(house, {})


@pytest.fixture(autouse=True)
def tokens(monkeypatch):
    from gateway.http import control as c
    from gateway.http.data import presented_key
    from gateway.identity.accounts import digest
    from gateway.identity.actor import Actor, permitted, ADMIN as A
    from gateway.core.approval import Voter
    async def authorise(self, request, need="admin"):
        p = presented_key(request)
        if p == ADMIN: return permitted(A, need)
        person = await self.store.people.by_token(digest(Secret(PEPPER), p))
        return permitted(Actor(Voter(person.id, person.name, person.roles, person.teams, "token"), person.permission, "token"), need)
    monkeypatch.setattr(c.Control, "authorise", authorise)


async def test_probe(bank):
    await bank.open()
    ticket = await bank.pay(900, to="ACME")
    print(json.dumps(await bank.show(ticket), indent=1))
    answer = await bank.vote(ticket, comment="fine")
    print(answer.raw)
    answer = await bank.ask("POST", "/tools/bank.pay", {"amount": 900, "to": "ACME"}, by="key")
    print(answer.raw)
    print(json.dumps(await bank.show(ticket), indent=1))
    answer = await bank.ask("GET", f"/-/tickets/{ticket}", by="key")
    print(answer.raw)
    assert 0
