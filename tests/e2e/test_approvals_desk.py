"""`/-/approvals` through the front door: who may decide, on what they were shown, once; and what the caller hears of it."""

import asyncio
import json
import sqlite3
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.clock import SystemClock, SystemIds
from gateway.core.approval import State
from gateway.core.approval_bounds import Bounds
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
    return '[[tool]]\nname = "bank.pay"\n' + "\n".join(f"{key} = {value}" for key, value in settings.items()) + """
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


# What is shown


async def test_what_waits_is_listed_and_shown_as_it_would_be_sent(bank):
    """Who asks, what exactly, which rule and why, what happened so far, and what differs from the last one."""
    await bank.open()
    first = await bank.pay(500, to="ACME")
    assert (await bank.vote(first)).status == 200
    ticket = await bank.pay(900, to="ACME", note="thanks")
    told = await bank.listed()
    assert (told["counts"], told["next"]) == ({"approved": 1, "pending": 1}, None)
    (row,) = told["approvals"]
    assert (row["id"], row["state"], row["rule"], row["tool"], row["principal_name"], row["team"]) == (ticket, "pending", "small", "bank.pay", "tests", "blue")
    assert row["summary"] == 'bank.pay amount=900 to="ACME" note="thanks"'
    assert row["demands"] == [{"rule": "small", "stages": [{"approvers": ["role:finance"], "quorum": 1}], "stage": 0, "have": 0,
                               "denials": 0, "denials_needed": 1, "escalate": []}]
    shown = await bank.show(ticket)
    assert {name: shown[name] for name in row if name != "votes"} == {name: row[name] for name in row if name != "votes"}
    assert shown["action"]["arguments"] == {"amount": 900, "to": "ACME", "note": "thanks"}
    assert shown["similar"]["id"] == first
    assert sorted(each["path"] for each in shown["similar"]["patch"]) == ["/amount", "/note"]
    assert shown["rules"][0]["source"].startswith("policies/policies.toml:")
    assert [each["event"] for each in shown["history"]] == ["open"]
    assert (shown["grantable"], shown["session_so_far"], shown["votes"]) == (True, None, [])


async def test_a_session_tells_what_it_did_so_far(bank):
    """Calls, cost and labels, with the approval."""
    await bank.open()
    answer = await bank.ask("POST", "/tools/bank.pay", {"amount": 1}, by="key", **{"X-Lockgate-Session": "s1"})
    assert answer.status == 200, answer.raw
    answer = await bank.ask("POST", "/tools/bank.pay", {"amount": 900}, by="key", **{"X-Lockgate-Session": "s1", "Prefer": "respond-async"})
    shown = await bank.show(answer.headers["Location"].rpartition("/")[2])
    assert (shown["session"], shown["session_so_far"]["calls"], shown["session_so_far"]["state"]) == ("s1", 1, "active")


async def test_lists_are_filtered_ordered_and_bounded(bank):
    """Nothing unknown is read over, and a page says where the next one begins."""
    await bank.open()
    tickets = [await bank.pay(amount) for amount in (200, 300, 2000)] + [await bank.pay(400, by="other")]

    async def ids(query: str) -> list[str]:
        return [row["id"] for row in (await bank.listed(query))["approvals"]]

    assert await ids("") == tickets
    assert await ids("order=newest") == tickets[::-1]
    assert await ids("rule=large&state=open&kind=tool&tool=bank.pay&route=bank.pay") == [tickets[2]]
    assert await ids("team=red") == [tickets[3]]
    assert await ids("state=denied") == []
    assert await ids(f"shape={(await bank.show(tickets[0]))['shape']}&principal={(await bank.show(tickets[3]))['principal']}") == [tickets[3]]
    page = await bank.listed("limit=3")
    assert page["next"] == tickets[2]
    assert await ids(f"limit=3&after={page['next']}") == [tickets[3]]
    for query, why in (("limit=0", "`limit` must be"), ("limit=201", "`limit` must be"), ("limit=1e3", "`limit` must be"), ("state=x", "`state` must be"),
                       ("order=x", "`order` must be"), ("kind=x", "`kind` must be"), ("after=x", "`after` must be"), ("tols=x", "did you mean"),
                       ("rule=a&rule=b", "twice"), ("rule=%07", "cannot be printed")):
        answer = await bank.ask("GET", f"/-/approvals?{query}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_request"), query
        assert why in answer.json["detail"], query


async def test_what_is_not_there_is_not_found_and_who_is_nobody_sees_nothing(bank):
    """By every endpoint, whatever the method."""
    await bank.open()
    for method, path in (("GET", "/-/approvals/apr_x"), ("POST", "/-/approvals/apr_x/vote"), ("POST", "/-/approvals/apr_x/edit"),
                         ("POST", "/-/approvals/apr_x/resolve"), ("POST", "/-/approvals/apr_x/withdraw"), ("POST", "/-/grants/g/revoke")):
        body = None if method == "GET" else {
            "vote": {"verdict": "approve", "digest": "x"}, "edit": {"digest": "x", "arguments": {}}, "withdraw": {},
            "resolve": {"outcome": "failed", "comment": "c"}, "revoke": None}[path.rpartition("/")[2]]
        assert (await bank.ask(method, path, body)).status == 404, path
        bank.tokens["nobody"] = "lgp_nobody"
    assert (await bank.ask("GET", "/-/tickets/apr_x", by="key")).status == 404
    assert (await bank.ask("GET", "/-/tickets/apr_x", by="nobody")).status == 401


# Deciding


async def test_an_approval_lets_the_very_call_through_once(bank):
    """The caller presents it again and has its answer; after that it waits anew."""
    await bank.open()
    ticket = await bank.pay(900, to="ACME")
    waiting = await bank.ask("GET", f"/-/tickets/{ticket}", by="key")
    assert (waiting.json["state"], waiting.json["votes_needed"]) == ("pending", 1)
    answer = await bank.vote(ticket, comment="fine")
    assert (answer.status, answer.json["approval"]["state"], answer.json["approval"]["votes"]) == (200, "approved", 1)
    paid = await bank.ask("POST", "/tools/bank.pay", {"to": "ACME", "amount": 900}, by="key")
    assert (paid.status, paid.json["body"]) == (200, {"amount": 900, "to": "ACME"})
    shown = await bank.show(ticket)
    assert [each["event"] for each in shown["history"]] == ["open", "vote", "approve", "claim", "succeed", *(["deliver"] if len(shown["history"]) > 5 else [])]
    (vote,) = shown["votes"]
    assert (vote["person"], vote["method"], vote["verdict"], vote["comment"], vote["digest"]) == ("grace", "token", "approve", "fine", shown["digest"])
    assert await bank.pay(900, to="ACME") != ticket
    assert len(await bank.house.one.finished(1)) == 1


async def test_one_denial_ends_it_and_its_comment_reaches_the_caller(bank):
    """The caller is told who and why, and nothing was sent."""
    await bank.open()
    ticket = await bank.pay(2000)
    assert (await bank.vote(ticket, "deny", comment="Not this month.")).json["approval"]["state"] == "denied"
    refused = await bank.ask("POST", "/tools/bank.pay", {"amount": 2000}, by="key")
    assert (refused.status, refused.json["code"]) == (403, "approval_denied")
    assert "Not this month." in refused.json["detail"]
    own = await bank.ask("GET", f"/-/tickets/{ticket}", by="key")
    assert (own.json["state"], own.json["comment"], own.json["votes_needed"]) == ("denied", "Not this month.", 0)
    late = await bank.vote(ticket, by="ada")
    assert (late.status, late.json["code"]) == (409, "approval_conflict")


async def test_a_quorum_is_of_distinct_people(bank):
    """The same person twice is one; two are two."""
    await bank.open()
    ticket = await bank.pay(2000)
    first = (await bank.vote(ticket)).json["approval"]
    assert (first["state"], first["demands"][0]["have"], first["may_vote"], first["why_not"]) == ("pending", 1, False, "You have voted.")
    again = await bank.vote(ticket)
    assert (again.status, again.json["code"]) == (409, "approval_conflict")
    assert (await bank.vote(ticket, by="ada")).json["approval"]["state"] == "approved"


@pytest.mark.parametrize(("by", "status", "why"), [
    ("linus", 403, "Others are asked at this stage: role:finance."), ("admin", 403, "Others are asked"), ("vera", 403, "permission `approve`"),
    ("key", 401, ""),
])
async def test_who_is_not_asked_may_not_vote_nor_edit(bank, by: str, status: int, why: str):
    """Nor may the admin token where a rule names a group: it is no member of any."""
    await bank.open()
    ticket = await bank.pay(900)
    if by in ("linus", "vera"):
        row = await bank.show(ticket, by)
        assert row["may_vote"] is False
        assert why in row["why_not"]
    for verb, body in (("vote", {"verdict": "approve"}), ("edit", {"arguments": {"amount": 1}})):
        answer = await bank.ask("POST", f"/-/approvals/{ticket}/{verb}", {"digest": (await bank.show(ticket))["digest"], **body}, by=by)
        assert answer.status == status, answer.raw
        assert why in answer.json["detail"]
    assert (await bank.show(ticket))["state"] == "pending"


async def test_where_nobody_is_named_the_admin_token_may_vote_as_one(bank):
    """It is one identity, however many people hold it."""
    await bank.open()
    session = await bank.house.http()
    body = {"model": "fast", "messages": [{"role": "user", "content": "the payroll"}]}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {bank.house.key}", "Prefer": "respond-async"}) as answer:
        assert answer.status == 202, await answer.text()
    (row,) = (await bank.listed())["approvals"]
    assert (row["kind"], row["summary"], row["may_vote"]) == ("request", "fast: the payroll", True)
    assert (await bank.vote(row["id"], by="admin")).json["approval"]["state"] == "approved"
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {bank.house.key}"}) as answer:
        assert answer.status == 200, await answer.text()


async def test_nobody_approves_what_they_ask_for_themselves(bank):
    """Neither the principal nor whoever owns its key."""
    await bank.open()
    ticket = await bank.pay(900)
    principal = (await bank.show(ticket))["principal"]
    app = bank.house.gateway.running
    await app.store.people.add(Person(principal, "Self", "approve", ("finance",), token=b"x" * 32, created_ns=1), Stamped("created", "tests", 1))
    text, digest = new_token(SystemIds(SystemClock()), Secret(PEPPER))
    await app.store.people.change(principal, lambda person: replace(person, token=digest), Stamped("token", "tests", 1))
    bank.tokens["self"] = text
    answer = await bank.vote(ticket, by="self")
    assert (answer.status, answer.json["code"], answer.json["detail"]) == (403, "not_permitted", "You have asked for it yourself.")


async def test_a_vote_is_on_what_was_shown(bank):
    """Another digest is another action, whoever changed it."""
    await bank.open()
    ticket = await bank.pay(900)
    answer = await bank.vote(ticket, digest="sha256:" + "0" * 64)
    assert (answer.status, answer.json["code"], answer.json["pointer"]) == (409, "approval_conflict", "/digest")
    assert (await bank.show(ticket))["votes"] == []


async def test_two_approvers_at_the_same_moment_are_two_votes_and_one_call(bank):
    """Neither is lost, and it is done once."""
    await bank.open()
    ticket = await bank.pay(2000)
    caller = asyncio.create_task(bank.ask("POST", "/tools/bank.pay", {"amount": 2000}, by="key"))
    answers = await asyncio.gather(bank.vote(ticket), bank.vote(ticket, by="ada"), bank.vote(ticket, by="ada"))
    assert sorted(answer.status for answer in answers) == [200, 200, 409]
    assert (await asyncio.wait_for(caller, 30)).status == 200
    assert len(await bank.house.one.finished(1)) == 1
    assert len((await bank.show(ticket))["votes"]) == 2


async def test_a_batch_is_of_one_shape_and_each_vote_stands_by_itself(bank):
    """One that cannot be voted on does not stop the others."""
    await bank.open()
    alike = [await bank.pay(amount, to="x") for amount in (200, 300, 400)]
    other, of_another_rule = await bank.pay(500), await bank.pay(2000, to="x")
    rows = {row["id"]: row for row in (await bank.listed())["approvals"]}

    async def batch(*ids: str, **more: Any) -> Answered:
        listed = [{"id": each, "digest": rows.get(each, rows[other])["digest"]} for each in ids]
        answer: Answered = await bank.ask("POST", "/-/approvals/votes", {"verdict": "approve", "approvals": listed, **more}, by="grace")
        return answer

    for stranger in (other, of_another_rule):
        answer = await batch(*alike, stranger)
        assert (answer.status, "not alike" in answer.json["detail"]) == (400, True)
    assert (await batch(alike[0], alike[0])).status == 400
    assert (await batch(alike[0], "apr_x")).status == 404
    assert (await batch()).status == 400
    assert (await batch(*(f"apr_{number}" for number in range(101)))).status == 400
    assert (await bank.vote(alike[1], "deny")).status == 200
    answer = await batch(*alike, comment="all of them")
    assert [(row["id"], row["ok"]) for row in answer.json["approvals"]] == [(alike[0], True), (alike[1], False), (alike[2], True)]
    assert answer.json["approvals"][1]["code"] == "approval_conflict"
    assert (await bank.show(alike[2]))["votes"][0]["comment"] == "all of them"


@pytest.mark.parametrize(("body", "why"), [
    ({"verdict": "maybe"}, "verdict"), ({"verdict": "approve", "places": []}, "places"), ({"verdict": "approve", "comment": "x" * 2001}, "comment"),
    ({"verdict": "approve", "comment": "a\x1b[2J"}, "cannot be shown"), ({"verdict": "approve", "comment": "\u202egnp.exe"}, "cannot be shown"),
    ({"verdict": "approve", "comment": f"lgk_{'a' * 12}_{'b' * 32}"}, "virtual key"), ({"verdict": "approve", "grant": {}}, "for"),
    ({"verdict": "approve", "grant": {"for": "31d"}}, "for"), ({"verdict": "approve", "grant": {"for": "1h", "uses": 0}}, "uses"),
    ({"verdict": "approve", "grant": {"for": "1h", "uses": 1001}}, "uses"), ({"verdict": "approve", "grant": {"for": "1h", "by": "me"}}, "by"),
])
async def test_a_vote_that_is_not_well_formed_is_refused_with_the_reason(bank, body: dict[str, Any], why: str):
    """Nothing unknown is read over; what people say is shown to others, and must be fit for that."""
    await bank.open()
    ticket = await bank.pay(900)
    answer = await bank.ask("POST", f"/-/approvals/{ticket}/vote", {"digest": "x", **body}, by="grace")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert why in answer.json["detail"]


async def test_a_body_that_is_too_large_or_no_object_is_refused(bank):
    """An edit may be as large as a call, nothing else."""
    await bank.open(config='[server]\nmax_body = "100000B"\n')
    ticket = await bank.pay(900)
    digest = (await bank.show(ticket))["digest"]
    large = {"digest": digest, "arguments": {"amount": 901, "note": "x" * 70_000}}
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/vote", {"verdict": "approve", "digest": digest, "comment": "x" * 70_000}, by="grace")).status == 413
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/edit", {**large, "arguments": {"note": "x" * 100_000}}, by="grace")).status == 413
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/edit", large, by="grace")).status == 200
    for raw in (b"[]", b"{", b'{"verdict": NaN}', b""):
        assert (await bank.ask("POST", f"/-/approvals/{ticket}/vote", raw, by="grace")).status == 400


async def test_what_a_caller_writes_is_shown_as_text(bank):
    """Markup, direction marks and a megabyte of it: exact in the action, one short line in lists, JSON in any case."""
    await bank.open()
    note = "<script>alert(1)</script>\u202e\n" + "A" * 1_000_000
    ticket = await bank.pay(900, note=note, to="\x07</td>")
    answer = await bank.ask("GET", "/-/approvals")
    (row,) = answer.json["approvals"]
    assert answer.headers["Content-Type"] == "application/json"
    assert len(row["summary"]) <= 200
    assert row["summary"].isprintable()
    assert (await bank.show(ticket))["action"]["arguments"] == {"amount": 900, "note": note, "to": "\x07</td>"}


# Withdrawing and resolving


async def test_an_operator_and_the_caller_may_withdraw_what_has_not_been_done(bank):
    """Nobody else's caller may, nor an approver: they deny."""
    await bank.open()
    ticket = await bank.pay(900)
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/withdraw", {}, by="grace")).status == 403
    assert (await bank.ask("POST", f"/-/tickets/{ticket}/withdraw", {}, by="other")).status == 404
    answer = await bank.ask("POST", f"/-/approvals/{ticket}/withdraw", {"comment": "by mistake"}, by="olga")
    assert (answer.json["approval"]["state"], answer.json["approval"]["reason"]) == ("withdrawn", "by mistake")
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/withdraw", {}, by="olga")).status == 409
    second = await bank.pay(800)
    answer = await bank.ask("POST", f"/-/tickets/{second}/withdraw", {}, by="key")
    assert (answer.status, answer.json["state"]) == (200, "withdrawn")
    assert (await bank.show(second))["history"][-1]["author"] == (await bank.show(second))["principal"]


async def test_only_what_is_unknown_can_be_resolved(bank):
    """An operator says what came of it, and how they know; nobody can say so of what waits or was approved."""
    await bank.open(tool={"effect": '"at_most_once"'})
    ticket = await bank.pay(900)
    body = {"outcome": "succeeded", "comment": "seen on the statement"}
    for _ in range(2):
        answer = await bank.ask("POST", f"/-/approvals/{ticket}/resolve", body, by="olga")
        assert (answer.status, answer.json["code"]) == (409, "approval_conflict")
        await bank.vote(ticket)
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/resolve", body, by="grace")).status == 403
    assert (await bank.ask("POST", f"/-/approvals/{ticket}/resolve", {**body, "comment": ""}, by="olga")).status == 400
    store = bank.house.gateway.running.store.approvals
    found = await store.get(ticket)
    unknown = replace(found, id="apr_lost", presented="sha256:lost", state=State.PENDING, votes=(), expires_ns=found.created_ns + 10**15)
    await store.open(unknown, bounds=Bounds(100))
    bank.house.is_sound = False  # nobody has approved what is lost here
    with sqlite3.connect(bank.house.folder / "lockgate.db") as connection:  # as the sweep of a process that died leaves it
        connection.execute("UPDATE approvals SET state = 'unknown' WHERE id = 'apr_lost'")
    connection.close()
    answer = await bank.ask("POST", "/-/approvals/apr_lost/resolve", body, by="olga")
    assert (answer.status, answer.json["approval"]["state"]) == (200, "succeeded"), answer.raw
    assert (await bank.show("apr_lost"))["history"][-1]["reason"] == "seen on the statement"


# The caller's own view


async def test_a_caller_sees_its_own_tickets_and_nobody_elses(bank):
    """By its key alone: to others it is not there."""
    await bank.open()
    ticket = await bank.pay(900)
    for by, status in (("key", 200), ("other", 404), ("admin", 401), ("grace", 401)):
        assert (await bank.ask("GET", f"/-/tickets/{ticket}", by=by)).status == status, by
    assert (await bank.ask("GET", f"/-/tickets/{ticket}?x=1", by="key")).status == 400
    told = (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json
    assert told == {"ticket": ticket, "state": "pending", "rule": "small", "message": "Payments wait for somebody of finance.",
                    "created_at": told["created_at"], "expires_at": told["expires_at"], "mode": "release", "votes_needed": 1, "edited": False,
                    "patch": None, "comment": None}


# Editing


async def edit(bank: Bank, ticket: str, arguments: dict[str, Any], *, by: str = "grace", **more: Any) -> Answered:
    digest = (await bank.show(ticket))["digest"]
    return await bank.ask("POST", f"/-/approvals/{ticket}/edit", {"digest": digest, "arguments": arguments, **more}, by=by)


async def test_an_edited_action_stands_in_place_of_the_first_and_is_what_runs(bank):
    """Its caller finds it by what it presents, and is told what was changed."""
    await bank.open()
    ticket = await bank.pay(900, to="ACME")
    answer = await edit(bank, ticket, {"amount": 500, "to": "ACME", "note": "half"})
    assert answer.status == 200, answer.raw
    new = answer.json["approval"]
    assert (new["state"], new["edited_from"], new["votes"], new["may_vote"]) == ("pending", ticket, 0, True)
    old = await bank.show(ticket)
    assert (old["state"], old["replaced_by"]) == ("withdrawn", new["id"])
    assert old["digest"] != new["digest"]
    assert (await bank.vote(ticket)).status == 409
    patch = [{"op": "replace", "path": "/amount", "value": 500}, {"op": "add", "path": "/note", "value": "half"}]
    assert sorted((await bank.show(new["id"]))["patch"], key=lambda each: each["path"]) == patch
    assert await bank.pay(900, to="ACME") == new["id"]
    await bank.vote(new["id"])
    paid = await bank.ask("POST", "/tools/bank.pay", {"amount": 900, "to": "ACME"}, by="key")
    assert (paid.status, paid.json["body"]) == (200, {"amount": 500, "to": "ACME", "note": "half"})
    told = (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json
    assert (told["ticket"], told["state"], told["edited"]) == (new["id"], "succeeded", True)
    assert sorted(told["patch"], key=lambda each: each["path"]) == patch


async def test_an_edit_that_needs_no_approval_by_itself_is_still_approved_and_made_once(bank):
    """A person changed it so, and nobody has approved it yet; the claim holds for it as for any other."""
    await bank.open()
    ticket = await bank.pay(900)
    new = (await edit(bank, ticket, {"amount": 50})).json["approval"]
    assert (new["state"], [each["rule"] for each in new["demands"]]) == ("pending", ["small"])
    await bank.vote(new["id"])
    answers = await asyncio.gather(*(bank.ask("POST", "/tools/bank.pay", {"amount": 900}, by="key", Prefer="wait=1") for _ in range(4)))
    assert {answer.status for answer in answers} <= {200}, [answer.raw for answer in answers]
    assert len(await bank.house.one.finished(1)) == 1
    assert (await bank.show(new["id"]))["state"] == "succeeded"


async def test_an_edit_is_judged_by_the_rules_of_now(bank):
    """Denied is denied, in the rule's own words; what more rules ask for is added, and nothing is taken away."""
    await bank.open()
    ticket = await bank.pay(900)
    refused = await edit(bank, ticket, {"amount": 200_000})
    assert (refused.status, refused.json["code"], refused.json["rule"], refused.json["detail"]) == (403, "forbidden", "never", "Nobody pays that much.")
    assert (await bank.show(ticket))["state"] == "pending"
    new = (await edit(bank, ticket, {"amount": 5000})).json["approval"]
    assert [each["rule"] for each in new["demands"]] == ["small", "large"]
    assert (await bank.vote(new["id"])).json["approval"]["state"] == "pending"
    assert (await bank.vote(new["id"], by="ada")).json["approval"]["state"] == "approved"
    less = await edit(bank, new["id"], {"amount": 5})
    assert less.status == 409


@pytest.mark.parametrize(("arguments", "pointer"), [
    ({"amount": "900"}, "/amount"), ({}, ""), ({"amount": 1, "iban": "x"}, ""), ({"amount": 900}, "/arguments"),
])
async def test_an_edit_has_to_fit_the_tools_schema_and_to_change_something(bank, arguments: dict[str, Any], pointer: str):
    """Checked again, as what a caller sends is."""
    await bank.open()
    ticket = await bank.pay(900)
    answer = await edit(bank, ticket, arguments)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert answer.json["pointer"].startswith(pointer)
    assert (await bank.show(ticket))["state"] == "pending"


async def test_an_editor_may_approve_at_once_what_they_wrote(bank):
    """By the same rules as any vote: once, on the new action."""
    await bank.open()
    ticket = await bank.pay(900)
    answer = await edit(bank, ticket, {"amount": 400}, approve=True, comment="less will do")
    assert answer.status == 200, answer.raw
    row = answer.json["approval"]
    assert (row["state"], row["edited_from"], row["votes"]) == ("approved", ticket, 1)
    paid = await bank.ask("POST", "/tools/bank.pay", {"amount": 900}, by="key")
    assert paid.json["body"] == {"amount": 400}
    assert (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json["comment"] == "less will do"


async def test_an_edit_of_an_edit_is_told_from_what_the_caller_asked(bank):
    """The caller knows nothing of what stood between."""
    await bank.open()
    ticket = await bank.pay(900)
    second = (await edit(bank, ticket, {"amount": 800})).json["approval"]["id"]
    third = (await edit(bank, second, {"amount": 700}, by="ada")).json["approval"]["id"]
    assert (await bank.show(third))["patch"] == [{"op": "replace", "path": "/amount", "value": 700}]
    assert (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json["ticket"] == third


async def test_a_secret_of_the_gateways_cannot_be_put_into_an_action(bank):
    """It would be shown to everybody who may look."""
    await bank.open()
    ticket = await bank.pay(900)
    answer = await edit(bank, ticket, {"amount": 900, "note": "sk-provider-key-one-0123456789"})
    assert (answer.status, answer.json["pointer"]) == (400, "/arguments")


async def test_a_model_call_is_edited_but_for_its_model_and_how_it_is_answered(bank):
    """Messages and parameters; and what rules put before them they will put there again."""
    await bank.open()
    session = await bank.house.http()
    headers = {"Authorization": f"Bearer {bank.house.key}"}
    body = {"model": "fast", "messages": [{"role": "user", "content": "the payroll"}], "temperature": 0.5}
    async with session.post("/v1/chat/completions", json=body, headers={**headers, "Prefer": "respond-async"}) as answer:
        assert answer.status == 202
    (row,) = (await bank.listed())["approvals"]
    shown = (await bank.show(row["id"]))["action"]["arguments"]
    assert shown == body
    for bad, pointer in (({**body, "model": "other"}, "/arguments/model"), ({**body, "stream": True}, "/arguments/stream"),
                         ({**body, "stream_options": {}}, "/arguments/stream_options")):
        refused = await edit(bank, row["id"], bad, by="linus")
        assert (refused.status, refused.json["pointer"]) == (400, pointer)
    wanted = {"messages": [{"role": "user", "content": "the payroll, without names"}], "temperature": 0}
    done = await edit(bank, row["id"], wanted, by="linus", approve=True)
    assert (done.status, done.json["approval"]["state"]) == (200, "approved"), done.raw
    async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    (entry,) = await bank.house.one.finished(1)
    assert entry.body["messages"] == wanted["messages"]


# Grants


async def test_a_grant_lets_calls_like_it_go_on_and_is_used_up(bank):
    """For the same principal, tool and rule, where its condition is true, so often."""
    await bank.open()
    ticket = await bank.pay(900, to="ACME")
    grant = {"for": "1h", "uses": 2, "condition": 'has(tool.args.to) && tool.args.to == "ACME"', "note": "monthly"}
    assert (await bank.vote(ticket, grant=grant)).json["approval"]["state"] == "approved"
    (row,) = (await bank.ask("GET", "/-/grants")).json["grants"]
    assert (row["live"], row["uses"], row["rule"], row["tool"], row["author"], row["ticket"], row["note"]) == (True, 2, "small", "bank.pay", "grace", ticket, "monthly")
    assert (await bank.ask("POST", "/tools/bank.pay", {"amount": 900, "to": "ACME"}, by="key")).status == 200
    assert (await bank.ask("POST", "/tools/bank.pay", {"amount": 800, "to": "ACME"}, by="key")).status == 200
    await bank.pay(800, to="EVIL")
    await bank.pay(800, to="ACME", by="other")
    await bank.pay(2000, to="ACME")
    left = (await bank.ask("GET", "/-/grants?live=true")).json["grants"]
    used = 2 - (left[0]["uses"] if left else 0)
    for _ in range(2 - used):
        assert (await bank.ask("POST", "/tools/bank.pay", {"amount": 700, "to": "ACME"}, by="key")).status == 200
    await bank.pay(600, to="ACME")
    assert (await bank.ask("GET", "/-/grants?live=true")).json["grants"] == []


async def test_a_grant_is_taken_back_at_once_and_stays_on_record(bank):
    """With who took it back."""
    await bank.open()
    await bank.vote(await bank.pay(900), grant={"for": "1h"})
    (row,) = (await bank.ask("GET", "/-/grants?live=true&rule=small")).json["grants"]
    assert (await bank.ask("POST", f"/-/grants/{row['id']}/revoke", by="vera")).status == 403
    answer = await bank.ask("POST", f"/-/grants/{row['id']}/revoke", by="ada")
    assert (answer.status, answer.json) == (200, {"grant": row["id"], "revoked": True})
    assert (await bank.ask("POST", f"/-/grants/{row['id']}/revoke", by="ada")).status == 404
    (row,) = (await bank.ask("GET", "/-/grants")).json["grants"]
    assert (row["live"], row["revoked_by"]) == (False, "ada")
    await bank.pay(800)
    for query in ("live=x", "limit=1001", "team=x"):
        assert (await bank.ask("GET", f"/-/grants?{query}")).status == 400


@pytest.mark.parametrize(("amount", "opened", "grant", "why"), [
    (2000, {}, {}, "Several people have to approve"), (900, {"small": "[rule.approval]\ngrants = false"}, {}, "wants every call approved by itself"),
    (900, {"tool": {"irreversible": "true"}}, {}, "Nothing takes back"), (900, {}, {"session": True}, "in no session"),
    (900, {}, {"condition": "tool.args.amount <"}, "yntax error"), (900, {}, {"condition": "tool.arqs.amount < 3"}, "undeclared"),
    (900, {}, {"condition": "session.calls < 3"}, "cannot be read here"), (900, {}, {"condition": "tool.name"}, "not bool"),
])
async def test_a_grant_that_cannot_be_given_is_refused_and_so_is_its_vote(bank, amount: int, opened: dict[str, Any], grant: dict[str, Any], why: str):
    """Whoever asked for it has to know: an approval without the grant is another decision."""
    await bank.open(**opened)
    ticket = await bank.pay(amount)
    answer = await bank.vote(ticket, grant={"for": "1h", **grant})
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert why in answer.json["detail"]
    shown = await bank.show(ticket)
    assert (shown["state"], shown["votes"]) == ("pending", [])
    assert shown["grantable"] is (grant != {})
    assert (await bank.ask("GET", "/-/grants")).json["grants"] == []


async def test_a_denial_makes_no_grant(bank):
    """It would be a strange one."""
    await bank.open()
    ticket = await bank.pay(900)
    assert (await bank.vote(ticket, "deny", grant={"for": "1h"})).status == 400


async def test_a_grant_for_a_session_is_for_that_session(bank):
    """Another conversation of the same key waits."""
    await bank.open()
    first = await bank.ask("POST", "/tools/bank.pay", {"amount": 900}, by="key", **{"X-Lockgate-Session": "s1", "Prefer": "respond-async"})
    await bank.vote(first.headers["Location"].rpartition("/")[2], grant={"for": "1h", "session": True})
    (row,) = (await bank.ask("GET", "/-/grants")).json["grants"]
    assert (row["session"], row["uses"]) == ("s1", None)
    assert (await bank.ask("POST", "/tools/bank.pay", {"amount": 800}, by="key", **{"X-Lockgate-Session": "s1"})).status == 200
    await bank.pay(800)


async def test_what_people_were_told_is_listed(bank):
    """Nobody is told anything where no channel is configured; the list is bounded."""
    await bank.open()
    await bank.pay(900)
    assert (await bank.ask("GET", "/-/notices?limit=5")).json == {"notices": []}
    assert (await bank.ask("GET", "/-/notices?limit=1001")).status == 400
    assert (await bank.ask("GET", "/-/notices", by="key")).status == 401


# Editing what is not the whole of an action


async def test_an_edited_action_whose_identity_is_a_part_of_it_runs_once_for_whoever_asks_for_the_same(bank):
    """A caller that rewords the rest finds it; what was stored is what is sent, and its own identity leads nowhere else."""
    await bank.open(small="[rule.approval]\nidentity = ['tool.args.to']")
    ticket = await bank.pay(900, to="ACME", note="one")
    assert await bank.pay(800, to="ACME", note="two") == ticket
    new = (await edit(bank, ticket, {"amount": 500, "to": "ACME LTD", "note": "edited"}, approve=True)).json["approval"]
    assert new["state"] == "approved"
    paid = await bank.ask("POST", "/tools/bank.pay", {"amount": 900, "to": "ACME", "note": "three"}, by="key")
    assert (paid.status, paid.json["body"]) == (200, {"amount": 500, "to": "ACME LTD", "note": "edited"}), paid.raw
    assert (await bank.show(new["id"]))["state"] == "succeeded"
    assert len(await bank.house.one.finished(1)) == 1
    assert len((await bank.listed("state=all"))["approvals"]) == 2


async def test_an_editor_does_not_approve_what_rules_make_of_their_words(bank):
    """They are told to look first, and nothing is changed."""
    await bank.open()
    bank.house.write("policies/more.toml", """
[[rule]]
id = "one-cent-less"
phase = "tool_call"
effect = "set"
when = "has(tool.args.note)"
set = { values = { note = "checked" } }
""")
    answer = await bank.ask("POST", "/-/reload")
    assert answer.status == 200, answer.raw
    ticket = await bank.pay(900)
    refused = await edit(bank, ticket, {"amount": 900, "note": "mine"}, approve=True)
    assert (refused.status, refused.json["pointer"]) == (400, "/approve")
    assert (await bank.show(ticket))["state"] == "pending"
    new = (await edit(bank, ticket, {"amount": 900, "note": "mine"})).json["approval"]
    assert (await bank.show(new["id"]))["action"]["arguments"] == {"amount": 900, "note": "checked"}


async def test_an_editors_approval_counts_where_they_are_asked_and_nowhere_else(bank):
    """A rule that asks others comes in with the edit: they are waited for."""
    await bank.open()
    bank.house.write("policies/more.toml", """
[[rule]]
id = "cfo"
phase = "tool_call"
effect = "require_approval"
when = "has(tool.args.note)"
approvers = ["role:cfo"]
""")
    assert (await bank.ask("POST", "/-/reload")).status == 200
    ticket = await bank.pay(900)
    new = (await edit(bank, ticket, {"amount": 900, "note": "x"}, approve=True)).json["approval"]
    assert (new["state"], [(each["rule"], each["stage"]) for each in new["demands"]]) == ("pending", [("small", None), ("cfo", 0)])


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_tool_call_that_a_model_proposes_is_edited_before_its_client_has_it(bank, stream: bool):  # noqa: FBT001 - a case
    """Against the schema that the request gave, which is not at hand any more."""
    await bank.open()
    bank.house.write("policies/more.toml", """
[[rule]]
id = "mails"
phase = "tool_call"
effect = "require_approval"
match = { tools = ["mail"] }
""")
    assert (await bank.ask("POST", "/-/reload")).status == 200
    schema = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": False}
    given = {"model": "fast", "messages": [{"role": "user", "content": 'call mail {"to": "eve"}'}],
             "tools": [{"type": "function", "function": {"name": "mail", "parameters": schema}}]}

    async def ask() -> Any:
        client = bank.house.client()
        if not stream:
            return (await client.chat.completions.create(**given)).choices[0]
        async with client.chat.completions.stream(**given) as answer:
            return (await answer.get_final_completion()).choices[0]

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(30):
        while not (rows := (await bank.listed())["approvals"]):
            await asyncio.sleep(0.02)
    (row,) = rows
    assert (row["kind"], row["tool"]) == ("tool_call", "mail")
    assert (await edit(bank, row["id"], {"to": 5})).status == 400
    done = await edit(bank, row["id"], {"to": "ada"}, approve=True)
    assert done.status == 200, done.raw
    choice = await asyncio.wait_for(asking, 30)
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"to": "ada"}]


async def test_an_action_that_the_gateway_makes_itself_has_its_answer_at_the_ticket(bank):
    """Approve tomorrow while the laptop is closed: whoever asks for the ticket has what came of it, and it was done once."""
    await bank.open(small='[rule.approval]\nmode = "execute"')
    ticket = await bank.pay(900)
    await bank.vote(ticket, comment="go")
    async with asyncio.timeout(30):
        while (told := (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json)["state"] != "succeeded":
            await asyncio.sleep(0.02)
    assert (told["result"]["status"], told["result"]["body"]["body"], told["comment"]) == (200, {"amount": 900}, "go")
    assert (await bank.ask("GET", f"/-/tickets/{ticket}", by="key")).json == told
    assert [each["event"] for each in (await bank.show(ticket))["history"]].count("claim") == 1
    assert len(await bank.house.one.finished(1)) == 1
