"""`/-/budgets` and `/-/costs`: what operators see of money, what they change, and what is refused to them."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from yarl import URL

from gateway.app import Parts
from gateway.call import CallRecord, Origin, Outcome, Principal, Target
from gateway.clock import SystemClock
from gateway.core.accounts import BudgetBook
from gateway.core.budget import Need
from gateway.core.money import usd
from gateway.errors import StoreUnavailable
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.ledger_rows import COST_GROUPS
from gateway.store.protocol import Admitted, Demand, Intent
from gateway.store.sqlite import SqliteStore

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])
TEAM = '[budgets.team-month]\nscope = "team"\nlimit = "1.00"\nwindow = "month"\ntimezone = "Europe/Berlin"\n'
NS = 10**9


class Turned(SystemClock):
    """The machine's clock, turned by hand."""

    by_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.by_ns


@dataclass
class Desk:
    """An operator at the endpoints of money."""

    house: Any
    clock: Turned = field(default_factory=Turned)

    async def open(self, config: str = "", store: str = ":memory:", **more: Any) -> "Desk":
        await self.house.open(config=f'[store]\npath = "{store}"\n{config}', parts=Parts(clock=self.clock), **more)
        return self

    async def ask(self, method: str, path: str | URL, body: Any = None, **headers: str) -> tuple[int, Any]:
        """What is answered: its status, and its JSON or its text."""
        session = await self.house.http()
        sent = ADMIN | {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent = {"Content-Type": "application/json"} | sent
        async with session.request(method, path, data=data, headers=sent) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text

    async def have(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        status, told = await self.ask(method, path, body, **headers)
        assert status == 200, told
        return told

    async def refused(self, method: str, path: str | URL, body: Any = None, **headers: str) -> tuple[int, str, str]:
        status, told = await self.ask(method, path, body, **headers)
        assert told["title"] == told["code"], told
        return status, told.get("pointer", ""), told["detail"]

    async def spend(self, text: str = "say a b", key: str | None = None, **asked: Any) -> Any:
        client = self.house.client(key)
        return await client.chat.completions.create(
            **{"model": "fast", "messages": [{"role": "user", "content": text}], "max_tokens": 5, **asked})


@pytest.fixture
async def desk(house) -> AsyncIterator[Desk]:
    yield Desk(house)
    assert b'"defect"' not in b"".join(house.lines)


# What is seen.


@STORES
async def test_an_account_is_shown_as_it_stands_with_its_budget_its_windows_and_what_was_changed(desk, store):
    await desk.open(TEAM, store)
    await desk.spend()
    spent = usd(await desk.house.spent("team-month/blue"))
    told = await desk.have("GET", "/-/budgets")
    assert told["more"] is False
    (budget,), (account,) = told["budgets"], told["accounts"]
    assert budget == {
        "name": "team-month", "source": "config.toml", "scope": "team", "of": ["*"], "limit": "1", "soft": None, "limits": {},
        "window": "month", "timezone": "Europe/Berlin", "on_short": "clamp", "least_output": 16}
    assert {name: account[name] for name in ("account", "subject", "scope", "limit_usd", "used_usd", "reserved_usd")} == {
        "account": "team-month/blue", "subject": "blue", "scope": "team", "limit_usd": "1", "used_usd": spent, "reserved_usd": "0"}
    assert float(account["remaining_usd"]) + float(spent) == pytest.approx(1)
    assert datetime.fromisoformat(account["resets_at"]) > datetime.now(UTC)
    one = await desk.have("GET", "/-/budgets/team-month")
    assert (one["budget"], one["accounts"], one["changes"]) == (budget, [account], [])
    (window,) = one["windows"]
    assert (window["account"], window["used_usd"], window["over_usd"], window["ends_at"]) == (
        "team-month/blue", spent, "0", account["resets_at"])
    assert window["began_at"] < window["ends_at"]


async def test_what_a_call_holds_is_shown_as_reserved_while_it_runs(desk, slow):
    await desk.open(slow.config + TEAM, routes="")
    call = asyncio.create_task(desk.spend(model="slow"))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    (account,) = (await desk.have("GET", "/-/budgets"))["accounts"]
    assert (account["used_usd"], float(account["reserved_usd"]) > 0) == ("0", True)
    slow.go.set()
    await call


async def test_accounts_are_found_by_scope_and_subject_and_a_page_says_that_there_is_more(desk):
    await desk.open(TEAM + '[budgets.tags]\nscope = "tag"\nlimit = "1"\n[budgets.users]\nscope = "user"\nlimit = "1"\n')
    await desk.spend(extra_headers={"X-Lockgate-Tags": "job=a, place=a b", "X-Lockgate-User": "ann/x"})
    key_id = (await desk.house.calls())[0]["key"]

    async def names(query: str) -> list[str]:
        return [each["account"] for each in (await desk.have("GET", f"/-/budgets?{query}"))["accounts"]]

    users = f"users/{key_id}/ann/x"
    tags = [each for each in await names("scope=tag") if each.startswith("tags/")]
    assert tags[0] == "tags/job=a"
    assert len(tags) == 2
    assert await names("scope=user") == [users]
    assert await names(f"subject={key_id}%2Fann%2Fx") == [users]
    assert await names("subject=job%3Da") == ["tags/job=a"]
    assert await names("subject=nobody") == []
    first = await desk.have("GET", "/-/budgets?limit=2")
    assert (len(first["accounts"]), first["more"]) == (2, True)
    one = await desk.have("GET", "/-/budgets/tags?subject=job%3Da")
    assert [len(one[part]) for part in ("accounts", "windows")] == [1, 1]
    assert len((await desk.have("GET", "/-/budgets/tags?limit=1"))["windows"]) == 1


async def test_what_there_is_not_is_not_found_and_the_nearest_name_is_told(desk):
    await desk.open(TEAM)
    status, _, detail = await desk.refused("GET", "/-/budgets/team-moth")
    assert (status, 'did you mean "team-month"?' in detail) == (404, True)
    for method, path, body in (
        ("PUT", "/-/budgets/team-moth", {"limit": "2"}), ("POST", "/-/budgets/team-moth/raise", {"by": "1", "for": "1h"}),
        ("DELETE", "/-/budgets/team-moth", None), ("DELETE", "/-/budgets/team-month", None),
        ("DELETE", "/-/budgets/team-month?subject=blue", None), ("POST", "/-/budgets/suspects/call_none", {"as_booked": True}),
        ("GET", "/-/budgets/team-month/other", None), ("GET", "/-/budgets/", None), ("GET", "/-/costs/", None),
    ):
        assert (await desk.refused(method, path, body))[0] == 404, (method, path)
    assert "config.toml" in (await desk.refused("DELETE", "/-/budgets/team-month"))[2]
    assert (await desk.have("GET", "/-/budgets/team-month"))["changes"] == []


# What is changed.


@STORES
async def test_a_budget_that_is_set_binds_from_the_next_call_and_is_as_it_was_given(desk, store):
    await desk.open("", store)
    await desk.spend()
    given = {"scope": "team", "of": ["bl*"], "limit": "0.000001", "soft": "0.0000005", "limits": {"red": "2.5"}, "window": "36h",
             "timezone": "UTC", "on_short": "deny", "least_output": 3}
    told = await desk.have("PUT", "/-/budgets/fresh", given | {"note": "till Friday"}, X_Lockgate_Author="Ann of ops")
    change = told["change"]
    assert (change["kind"], change["author"], change["note"], change["subject"]) == ("set", "admin (Ann of ops)", "till Friday", "")
    assert given.items() <= change["settings"].items()
    with pytest.raises(openai.RateLimitError) as caught:
        await desk.spend()
    assert caught.value.body["account"] == "fresh/blue"
    shown = (await desk.have("GET", "/-/budgets/fresh"))["budget"]
    again = {name: value for name, value in shown.items() if name not in ("name", "source")}
    assert again == given
    assert (await desk.have("PUT", "/-/budgets/fresh", again | {"limit": "1", "soft": "0.5"}))["change"]["author"] == "admin"
    await desk.spend()
    changes = (await desk.have("GET", "/-/budgets/fresh"))["changes"]
    assert [(each["author"], each["settings"]["limit"]) for each in changes] == [("admin", "1"), ("admin (Ann of ops)", "0.000001")]


@STORES
async def test_limits_of_a_configured_budget_are_set_for_one_account_or_for_all_and_taken_back(desk, store):
    await desk.open(TEAM, store)
    await desk.spend()

    async def limit() -> tuple[str, str | None]:
        (account,) = (await desk.have("GET", "/-/budgets/team-month?subject=blue"))["accounts"]
        return account["limit_usd"], account["soft_usd"]

    await desk.have("PUT", "/-/budgets/team-month", {"limit": "3", "soft": "2"})
    assert await limit() == ("3", "2")
    await desk.have("PUT", "/-/budgets/team-month", {"subject": "blue", "limit": "0.000001"})
    assert await limit() == ("0.000001", "2")
    with pytest.raises(openai.RateLimitError):
        await desk.spend()
    await desk.have("DELETE", "/-/budgets/team-month?subject=blue&note=enough", X_Lockgate_Author="bo")
    assert await limit() == ("3", "2")
    await desk.have("DELETE", "/-/budgets/team-month")
    assert await limit() == ("1", None)
    changes = (await desk.have("GET", "/-/budgets/team-month"))["changes"]
    assert [(each["kind"], each["subject"], each["author"], each["note"]) for each in changes] == [
        ("remove", "", "admin", ""), ("remove", "blue", "admin (bo)", "enough"), ("set", "blue", "admin", ""), ("set", "", "admin", "")]
    assert len((await desk.have("GET", "/-/budgets/team-month?limit=1"))["changes"]) == 1


@STORES
async def test_a_raise_lets_calls_through_until_it_ends(desk, store):
    await desk.open(TEAM.replace("1.00", "0.000001"), store)
    with pytest.raises(openai.RateLimitError):
        await desk.spend()
    told = (await desk.have("POST", "/-/budgets/team-month/raise", {"subject": "blue", "by": "0.5", "for": "2h", "note": "demo"}))["change"]
    assert (told["kind"], told["limit_usd"], told["note"]) == ("raise", "0.5", "demo")
    await desk.spend()
    (account,) = (await desk.have("GET", "/-/budgets/team-month"))["accounts"]
    assert account["limit_usd"] == "0.500001"
    (raised,) = (await desk.have("GET", "/-/budgets/team-month"))["raises"]
    assert (raised["subject"], raised["by_usd"], raised["until_at"]) == ("blue", "0.5", told["until_at"])
    desk.clock.by_ns = 3 * 3600 * NS
    with pytest.raises(openai.RateLimitError):
        await desk.spend()
    later = datetime.fromtimestamp(desk.clock.now_ns() // NS + 3600, UTC).isoformat()
    told = (await desk.have("POST", "/-/budgets/team-month/raise", {"by": "0.5", "until": later}))["change"]
    assert datetime.fromisoformat(told["until_at"]) == datetime.fromisoformat(later)
    await desk.spend()


@STORES
async def test_raises_upon_raises_to_more_than_a_number_holds_do_not_break_calls(desk, store):
    await desk.open(TEAM, store)
    for _ in range(12):
        await desk.have("POST", "/-/budgets/team-month/raise", {"by": "999999999", "for": "2h"})
    await desk.spend()
    await desk.have("GET", "/-/budgets/team-month")


async def test_what_was_set_and_removed_stays_on_record(desk):
    await desk.open()
    await desk.have("PUT", "/-/budgets/short-lived", {"scope": "all", "limit": "1"})
    await desk.spend()
    await desk.have("DELETE", "/-/budgets/short-lived")
    assert (await desk.have("GET", "/-/budgets"))["budgets"] == []
    told = await desk.have("GET", "/-/budgets/short-lived")
    assert (told["budget"], [each["kind"] for each in told["changes"]], len(told["windows"])) == (None, ["remove", "set"], 1)
    assert (await desk.refused("DELETE", "/-/budgets/short-lived"))[0] == 404


NEW = {"scope": "team", "limit": "1"}


@pytest.mark.parametrize(("path", "body", "pointer", "said"), [
    ("fresh", NEW | {"limt": "1"}, "/limt", 'did you mean "limit"?'),
    ("fresh", {"scop": "team", "limit": "1"}, "/scope", 'did you mean "scope"?'),
    ("fresh", NEW | {"scope": "teams"}, "/scope", 'did you mean "team"?'),
    ("fresh", NEW | {"limit": 1}, "/limit", "a string of a decimal number"),
    ("fresh", NEW | {"limit": 0.1}, "/limit", "a string of a decimal number"),
    ("fresh", NEW | {"limit": "-1"}, "/limit", "a string of a decimal number"),
    ("fresh", NEW | {"limit": "1e3"}, "/limit", "a string of a decimal number"),
    ("fresh", NEW | {"limit": "0.0000000001"}, "/limit", "more digits"),
    ("fresh", NEW | {"limit": "9" * 40}, "/limit", "a string of a decimal number"),
    ("fresh", NEW | {"soft": "2"}, "/soft", "above the limit"),
    ("fresh", {"scope": "team"}, "/limit", "needs `limit`"),
    ("fresh", NEW | {"window": "fortnight"}, "/window", '"month"'),
    ("fresh", NEW | {"window": "1s"}, "/window", "a minute"),
    ("fresh", NEW | {"timezone": "Middle/Earth"}, "/timezone", "no time zone"),
    ("fresh", NEW | {"timezone": "../../etc/passwd"}, "/timezone", "no time zone"),
    ("fresh", NEW | {"note": "x" * 501}, "/note", "500"),
    ("fresh", NEW | {"of": []}, "/of", "empty"),
    ("team-month", NEW, "/name", "config.toml"),
    ("%20", NEW, "/name", "a budget's name"),
    ("a%2Fb", NEW, "/name", "a budget's name"),
    ("x" * 65, NEW, "/name", "a budget's name"),
    ("team-month", {}, "/limit", "give `limit` or `soft`"),
    ("team-month", {"subject": "blue"}, "/limit", "give `limit` or `soft`"),
    ("team-month", {"subject": "blue", "limt": "1"}, "/limt", 'did you mean "limit"?'),
    ("team-month", {"subject": "blue", "limit": "1", "soft": "2"}, "/soft", "above the limit"),
    ("team-month", {"subject": 5, "limit": "1"}, "/subject", "string"),
    ("team-month", {"subject": "x" * 1001, "limit": "1"}, "/subject", "1000"),
    ("users", {"subject": "ann", "limit": "1"}, "/subject", "KEY_ID/NAME"),
    ("users", {"subject": "key/bob", "limit": "1"}, "/subject", "does not bind 'bob'"),
    ("tags", {"subject": "job", "limit": "1"}, "/subject", "NAME=VALUE"),
    ("all", {"subject": "blue", "limit": "1"}, "/subject", "'all'"),
    ("team-month/raise", {"for": "1h"}, "/by", "missing"),
    ("team-month/raise", {"by": "0", "for": "1h"}, "/by", "more than nothing"),
    ("team-month/raise", {"by": "1"}, "", "`for`"),
    ("team-month/raise", {"by": "1", "for": "1h", "until": "2030-01-01"}, "", "`for`"),
    ("team-month/raise", {"by": "1", "fro": "1h"}, "/fro", 'did you mean "for"?'),
    ("team-month/raise", {"by": "1", "for": "0s"}, "/until", "past"),
    ("team-month/raise", {"by": "1", "for": "2 days"}, "/for", "a duration"),
    ("team-month/raise", {"by": "1", "until": "2001-01-01"}, "/until", "past"),
    ("team-month/raise", {"by": "1", "until": "9999-01-01"}, "", "2260"),
    ("team-month/raise", {"by": "1", "until": "soon"}, "", "neither a duration"),
    ("team-month/raise", {"by": "1", "for": "1h", "subject": "red"}, "/subject", "does not bind 'red'"),
    ("suspects/call_x", {}, "", "`as_booked`"),
    ("suspects/call_x", {"cost": "1", "as_booked": True}, "", "`as_booked`"),
    ("suspects/call_x", {"cost": "-1"}, "/cost", "a string of a decimal number"),
])
async def test_a_change_that_cannot_be_is_refused_with_what_is_wrong_and_where(desk, path, body, pointer, said):
    await desk.open(TEAM.replace('scope = "team"', 'scope = "team"\nof = ["blue"]') + '[budgets.users]\nscope = "user"\nof = ["ann"]\n'
                    'limit = "1"\n[budgets.tags]\nscope = "tag"\nlimit = "1"\n[budgets.all]\nscope = "all"\nlimit = "1"\n')
    method = "POST" if "/" in path else "PUT"
    status, where, detail = await desk.refused(method, f"/-/budgets/{path}", body)
    assert (status, where) == (400, pointer), detail
    assert said in detail
    assert len(detail) < 600
    assert list(await desk.house.gateway.app.store.budgets.changes()) == []


@pytest.mark.parametrize(("data", "headers", "status"), [
    (b"{", {}, 400), (b"", {}, 400), (b"[]", {}, 400), (b"null", {}, 400), (b'"x"', {}, 400), (b"[" * 20 + b"]" * 20, {}, 400),
    (b'{"limit": 18446744073709551616}', {}, 400), (b"\xff", {}, 400),
    (b'{"limit": "2"}', {"Content_Type": "text/plain"}, 400), (b'{"limit": "2"}', {"Content_Encoding": "gzip"}, 400),
    (b'{"note": "' + b"x" * 70_000 + b'"}', {}, 413),
    (b'{"limit": "2"}', {"X_Lockgate_Author": "x" * 101}, 400), (b'{"limit": "2"}', {"X_Lockgate_Author": " "}, 400),
    (b'{"limit": "2"}', {"X_Lockgate_Author": "\udcff"}, 400),
    (b'{"limit": "2"}', {"X_Lockgate_Author": "lgk_0123456789ab_" + "s" * 32}, 400), (b'{"limit": "2", "note": "a\\u001bb"}', {}, 400),
    (b'{"limit": "2", "subject": "a\\u0000b"}', {}, 400),
])
async def test_a_body_that_is_not_a_small_json_object_changes_nothing(desk, data, headers, status):
    await desk.open(TEAM)
    assert (await desk.refused("PUT", "/-/budgets/team-month", data, **headers))[0] == status
    assert (await desk.have("GET", "/-/budgets/team-month"))["changes"] == []


async def test_a_large_body_in_chunks_and_an_author_named_twice_are_refused(desk):
    await desk.open(TEAM)

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"note": "'
        for _ in range(80):
            yield b"x" * 1000
        yield b'"}'

    session = await desk.house.http()
    sent = [*ADMIN.items(), ("Content-Type", "application/json")]
    async with session.put("/-/budgets/team-month", data=chunks(), headers=sent) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (413, "body_too_large")
    twice = [*sent, ("X-Lockgate-Author", "ann"), ("X-Lockgate-Author", "bob")]
    async with session.put("/-/budgets/team-month", data=b'{"limit": "2"}', headers=twice) as answer:
        assert answer.status == 400
    assert (await desk.have("GET", "/-/budgets/team-month"))["changes"] == []


async def test_a_removal_says_whose_and_why_in_words_that_can_be_shown(desk):
    await desk.open(TEAM)
    await desk.have("PUT", "/-/budgets/team-month", {"subject": "blue", "limit": "2"})
    for query in ("subject=", "subject=blue&note=%1b", "subject=blue&note=" + "x" * 501, "subject=blue&why=x"):
        assert (await desk.refused("DELETE", f"/-/budgets/team-month?{query}"))[0] == 400, query
    await desk.have("DELETE", "/-/budgets/team-month?subject=blue&note=over")


@pytest.mark.parametrize("path", [
    "/-/budgets?limit=0", "/-/budgets?limit=1001", "/-/budgets?limit=-1", "/-/budgets?limit=" + "9" * 5000, "/-/budgets?limit=x", "/-/budgets?limt=1",
    "/-/budgets?scope=teams", "/-/budgets?scope=team&scope=key", "/-/budgets?subject=%", "/-/budgets?subject=%ff", "/-/budgets?=x", "/-/budgets/%zz",
    "/-/budgets/%ff", "/-/budgets/team-month?limit=0", "/-/budgets/suspects?limit=0", "/-/budgets/suspects?scope=team", "/-/costs?limit=0",
    "/-/costs?by=color", "/-/costs?by=", "/-/costs?format=xml", "/-/costs?since=yesterday", "/-/costs?since=-7d", "/-/costs?since=2026-13-01",
    "/-/costs?since=400d", "/-/costs?since=1969-01-01", "/-/costs?until=2261-06-01", "/-/costs?since=2026-01-02&until=2026-01-02",
    "/-/costs?since=1h&until=2h", "/-/costs?until=0001-01-01T00:00:00-23:00", "/-/costs?since=2026-01-01T00:00:00+01:00",
])
async def test_a_question_that_means_nothing_is_refused(desk, path):
    await desk.open(TEAM)
    status, _, detail = await desk.refused("GET", URL(path, encoded=True))
    assert (status, len(detail) < 400) == (400, True)
    if path.endswith("+01:00"):
        assert "%2B" in detail


# What was spent.


@STORES
async def test_costs_by_anything_add_up_to_the_ledger(desk, store):
    await desk.open("", store)
    other = await desk.house.new_key(name="other", team="red", org="rival")
    for number in range(4):
        await desk.spend("say a " + "b " * number, extra_headers={"X-Lockgate-Session": f"s{number % 2}", "X-Lockgate-Run": f"r{number}"})
    await desk.spend(key=other, model="backed-up")
    rows = await desk.house.calls()
    ledger = sum(row["cost_nusd"] for row in rows)
    assert ledger > 0
    for by in COST_GROUPS:
        told = await desk.have("GET", f"/-/costs?by={by}&since=1h")
        assert (told["by"], told["total_usd"], told["lines"], told["estimated_usd"]) == (by, usd(ledger), 5, "0")
        assert sum(row["lines"] for row in told["groups"]) == 5
        page = await desk.have("GET", f"/-/costs?by={by}&limit=1")
        assert page["total_usd"] == usd(ledger)
        assert len(page["groups"]) == min(2, len(told["groups"]))
        assert [row["group"] for row in page["groups"][1:]] == [None] * (len(page["groups"]) - 1)
        status, text = await desk.ask("GET", f"/-/costs?by={by}&format=csv")
        head, *lines = csv.reader(io.StringIO(text, newline=""))
        assert (status, head) == (200, [by, "cost_usd", "estimated_usd", "calls", "lines"])
        assert [[row["group"], row["cost_usd"], row["estimated_usd"], str(row["calls"]), str(row["lines"])] for row in told["groups"]] == lines
    by_team = await desk.have("GET", "/-/costs?by=team")
    assert {row["group"]: row["calls"] for row in by_team["groups"]} == {"blue": 4, "red": 1}
    desk.clock.by_ns = 3600 * NS
    assert (await desk.have("GET", "/-/costs?since=30m"))["total_usd"] == "0"
    assert (await desk.have("GET", "/-/costs?until=30m"))["total_usd"] == usd(ledger)
    assert (await desk.have("GET", "/-/costs?since=2020-01-01&until=2020-02-01T00:00:00%2B01:00"))["groups"] == []


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", 'a",b', "é", "(others)"])
async def test_a_name_that_a_caller_chose_is_no_formula_in_a_spreadsheet(desk, name):
    """What stands behind a key's id is none in any case; a team may begin as whoever made its key liked."""
    await desk.open()
    key = await desk.house.new_key(name="hostile", team=name)
    await desk.spend(key=key)
    await desk.spend()
    _status, text = await desk.ask("GET", "/-/costs?by=team&format=csv&limit=1")
    cells = [row[0] for row in csv.reader(io.StringIO(text, newline=""))]
    groups = [row["group"] for row in (await desk.have("GET", "/-/costs?by=team"))["groups"]]
    assert sorted(groups) == sorted(["blue", name])
    assert cells[0] == "team"
    assert cells[-1] == "(others)"
    assert all(not cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert [cell.removeprefix("'") for cell in cells[1:2]] == groups[:1]


async def test_no_group_is_costs_of_calls_that_have_no_such_thing(desk):
    await desk.open()
    await desk.spend()
    (row,) = (await desk.have("GET", "/-/costs?by=session"))["groups"]
    assert row["group"] == ""


# What a dead process leaves behind.


async def lose_a_call(desk: Desk, call_id: str, cost_nusd: int) -> None:
    """A call of another process on the same file, which dies with it."""
    now_ns = desk.clock.now_ns()
    dead = SqliteStore(desk.house.folder / "lockgate.db", "a-process-that-dies")
    await dead.start(now_ns=1)
    record = CallRecord(
        id=call_id, principal=Principal("key_lost", team="blue"), dialect="openai", operation="chat", route="fast", stream=False,
        origin=Origin(), received_ns=now_ns, ended_ns=now_ns, outcome=Outcome.INTERRUPTED, status=0, decision="allow")
    book: BudgetBook = desk.house.gateway.app.snapshot.budgets
    answer = await dead.journal.begin(Intent(
        record, Target("one", "sim-fast"), None, Demand(book, {"team": ("blue",)}, Need(cost_nusd))))
    assert isinstance(answer, Admitted)
    await dead.close()
    await desk.house.gateway.app.store.heartbeat(now_ns=now_ns, lease_ns=10 * NS)


async def test_a_suspect_is_listed_until_somebody_says_what_it_really_cost(desk):
    await desk.open(TEAM, "lockgate.db")
    for number, cost in enumerate((5_000_000, 7_000_000, 1)):
        await lose_a_call(desk, f"call_lost{number}", cost)
    told = await desk.have("GET", "/-/budgets/suspects?limit=2")
    assert ([row["call"] for row in told["suspects"]], told["more"]) == (["call_lost0", "call_lost1"], True)
    suspect = told["suspects"][0]
    assert {name: suspect[name] for name in ("team", "key", "route", "target", "cost_usd", "accounts")} == {
        "team": "blue", "key": "key_lost", "route": "fast", "target": "one/sim-fast", "cost_usd": "0.005", "accounts": ["team-month/blue"]}
    assert suspect["received_at"] <= suspect["booked_at"]
    assert (await desk.have("GET", "/-/costs?by=team"))["estimated_usd"] == "0.012000001"
    assert await desk.have("POST", "/-/budgets/suspects/call_lost0", {"cost": "0.001"}, X_Lockgate_Author="bo") == {
        "call": "call_lost0", "resolved": True}
    assert (await desk.refused("POST", "/-/budgets/suspects/call_lost0", {"cost": "0.002"}))[0] == 404
    await desk.have("POST", "/-/budgets/suspects/call_lost1", {"as_booked": True})
    assert [row["call"] for row in (await desk.have("GET", "/-/budgets/suspects"))["suspects"]] == ["call_lost2"]
    assert await desk.house.spent("team-month/blue") == 1_000_000 + 7_000_000 + 1
    costs = await desk.have("GET", "/-/costs?by=team")
    assert (costs["total_usd"], costs["estimated_usd"]) == ("0.008000001", "0.000000001")
    assert desk.house.sql("SELECT author FROM settlements WHERE how = 'resolved' ORDER BY seq") == [("admin (bo)",), ("admin",)]


# What telemetry says.


async def shown(desk: Desk) -> str:
    """`/metrics`, once every record is counted."""
    return str((await desk.ask("GET", "/metrics"))[1])


async def test_a_refusal_is_counted_by_its_budget_and_its_line_names_the_account(desk):
    """The user is the caller's own word: it is no label, and what looks like a key in it is nowhere."""
    await desk.open('[budgets.users]\nscope = "user"\nlimit = "0.000001"\n')
    for user in ("ann", desk.house.key):
        with pytest.raises(openai.RateLimitError):
            await desk.spend(extra_headers={"X-Lockgate-User": user})
    metrics = await shown(desk)
    assert 'lockgate_budget_refusals_total{budget="users",code="budget_exceeded"} 2.0' in metrics
    calls = [line for line in map(json.loads, b"".join(desk.house.lines).splitlines()) if line["event"] == "call"]
    first, second = [line["account"] for line in calls]
    assert first == f"users/{calls[0]['key']}/ann"
    assert second.startswith("users/")
    told = metrics.encode() + b"".join(desk.house.lines)
    assert "ann" not in metrics
    assert desk.house.key.encode() not in told
    assert [line["reserved_usd"] for line in calls] == [None, None]


async def test_what_is_reserved_used_warned_of_and_overrun_is_counted(desk):
    await desk.open('[budgets.teams]\nscope = "team"\nlimit = "0.002"\nsoft = "0.000001"\n')
    await desk.spend()
    desk.house.one.play(Scenario(rules=(FaultRule(Fault(ignore_limits=True)),)))
    await desk.spend("words 1500", max_tokens=2000)
    metrics = await shown(desk)
    assert 'lockgate_budget_soft_limits_total{budget="teams"} 1.0' in metrics
    assert float(metrics.split('lockgate_budget_overrun_usd_total{budget="teams"} ')[1].split()[0]) > 0
    reserved, used = (float(metrics.split(f'lockgate_reservations_usd_total{{route="fast",state="{state}"}} ')[1].split()[0])
                      for state in ("reserved", "used"))
    assert 0 < used <= reserved
    lines = [json.loads(line) for line in b"".join(desk.house.lines).splitlines()]
    (soft,) = [line for line in lines if line["event"] == "budget_soft_limit"]
    (over,) = [line for line in lines if line["event"] == "budget_overrun"]
    calls = [line for line in lines if line["event"] == "call"]
    assert (soft["account"], soft["soft_usd"], soft["call"]) == ("teams/blue", "0.000001", calls[0]["call"])
    assert (over["accounts"], over["call"]) == (["teams/blue"], calls[1]["call"])
    assert all(float(line["reserved_usd"]) > 0 for line in calls)


async def test_money_of_a_provider_that_does_not_say_what_it_used_is_counted_as_estimated(desk):
    await desk.open(TEAM)
    desk.house.one.play(Scenario(rules=(FaultRule(Fault(no_usage=True)),)))
    await desk.spend()
    metrics = await shown(desk)
    (row,) = await desk.house.calls()
    assert f'lockgate_estimated_cost_usd_total{{route="fast",team="blue"}} {row["cost_nusd"] / 1e9}' in metrics
    (line,) = [line for line in map(json.loads, b"".join(desk.house.lines).splitlines()) if line["event"] == "call"]
    assert line["estimated_usd"] == line["cost_usd"] == row["cost_usd"]
    costs = await desk.have("GET", "/-/costs")
    assert costs["estimated_usd"] == costs["total_usd"] == row["cost_usd"]


async def test_a_store_that_is_down_is_said_to_be_and_nothing_of_it(desk, monkeypatch):
    await desk.open(TEAM)

    async def down(*_args: object, **_named: object) -> None:
        raise StoreUnavailable("The store cannot be read.", retry_after_s=1)

    for verb in ("changes", "suspects", "costs", "resolve"):
        monkeypatch.setattr(desk.house.gateway.app.store.budgets, verb, down)
    for method, path, body in (
        ("GET", "/-/budgets", None), ("GET", "/-/budgets/team-month", None), ("PUT", "/-/budgets/team-month", {"limit": "2"}),
        ("GET", "/-/costs", None), ("GET", "/-/budgets/suspects", None), ("POST", "/-/budgets/suspects/x", {"as_booked": True}),
    ):
        assert (await desk.refused(method, path, body))[0] == 503
