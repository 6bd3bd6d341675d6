"""`/-/sessions`: what operators see of sessions, the facts they put there, and how they stop one, at every worker and in the middle of a call."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest
from yarl import URL

from gateway.embed import Gateway
from gateway.simulator import Fault, FaultRule, Scenario

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
STALLS = Scenario(rules=(FaultRule(Fault(stall_after_chunks=3)),))
HANGS = Scenario(rules=(FaultRule(Fault(hang=True)),))
STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])
SOON_S = 20
GONE_S = 0.1  # the promise


@dataclass
class Desk:
    """An operator at the endpoints."""

    house: Any

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        http = await self.house.http()
        sent = {**ADMIN, **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent = {"Content-Type": "application/json", **sent}
        async with http.request(method, URL(path, encoded=True), data=data, headers=sent) as answer:
            return answer.status, await answer.json(content_type=None)

    async def have(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        status, told = await self.ask(method, path, body, **headers)
        assert status == 200, told
        return told

    async def said(self, session: str | None = "s-1", key: str | None = None, text: str = "hello", **options: Any) -> Any:
        headers = {"X-Lockgate-Session": session} if session else {}
        return await self.house.client(key).chat.completions.create(
            model="fast", messages=[{"role": "user", "content": text}], extra_headers=headers, **options)

    @property
    def key_id(self) -> str:
        return str(self.house.key.split("_")[1])


@pytest.fixture
def desk(house: Any) -> Desk:
    return Desk(house)


async def spin_until(holds: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0)


# ---- What is seen.


@STORES
async def test_sessions_are_listed_and_shown_with_what_they_did_and_cost(house, desk, store):
    await house.open(config=f'[store]\npath = "{store}"\n', policies='[[rule]]\nid = "marks"\neffect = "log"\nlabel = "seen"\n')
    await desk.said("s-1", max_tokens=20)
    await desk.said("s-2")
    await desk.said(None)
    rows = (await desk.have("GET", "/-/sessions"))["sessions"]
    assert [row["id"] for row in rows] == ["s-2", "s-1"]
    row = rows[1]
    assert (row["principal"], row["principal_name"], row["team"], row["state"], row["calls"], row["labels"]) == (
        desk.key_id, "tests", "blue", "active", 1, ["seen"])
    assert row["spend_nusd"] > 0
    assert (row["author"], row["note"], row["changed_at"]) == (None, None, None)
    assert row["began_at"] == row["last_at"]
    one = (await desk.have("GET", "/-/sessions/s-1"))["session"]
    assert one == {**row, "facts": {}}


@STORES
async def test_a_timeline_tells_calls_facts_and_changes_in_order(house, desk, store):
    rules = """
[[rule]]
id = "no-sevens"
effect = "deny"
when = "request.max_tokens == 7"
"""
    await house.open(config=f'[store]\npath = "{store}"\n', policies=rules)
    await desk.said()
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said(max_tokens=7)
    await desk.have("PUT", "/-/sessions/s-1/facts/tier", {"value": "gold"}, X_Lockgate_Author="ada")
    await desk.have("POST", "/-/sessions/s-1/freeze", {"note": "looks wrong"})
    told = (await desk.have("GET", "/-/sessions/s-1/timeline"))["timeline"]
    assert [entry["kind"] for entry in told] == ["call", "call", "fact", "frozen"]
    assert [(entry["outcome"], entry["decision"], entry["rule"], entry["code"]) for entry in told[:2]] == [
        ("completed", "allow", None, None), ("refused", "deny", "no-sevens", "forbidden")]
    assert told[0]["cost_usd"] is not None
    assert told[0]["seconds"] > 0
    assert (told[2]["name"], told[2]["value"], told[2]["version"], told[2]["author"]) == ("tier", "gold", 1, "admin (ada)")
    assert (told[3]["author"], told[3]["note"]) == ("admin", "looks wrong")
    assert [entry["at_ns"] for entry in told] == sorted(entry["at_ns"] for entry in told)
    assert all(entry["at"].endswith("Z") for entry in told)
    call = await house.call(told[0]["call"])
    assert call["session"] == "s-1"


@STORES
async def test_pages_follow_each_other_to_the_end(house, desk, store):
    await house.open(config=f'[store]\npath = "{store}"\n')
    for n in range(5):
        await desk.said(f"s/{n}.%")
        await desk.said("one")
    seen: list[str] = []
    after = ""
    while True:
        page = await desk.have("GET", f"/-/sessions?limit=2{after}")
        seen += [row["id"] for row in page["sessions"]]
        if page["next"] is None:
            break
        after = f"&after={URL.build(query={'a': page['next']}).raw_query_string[2:]}"
    assert sorted(seen) == sorted([*(f"s/{n}.%" for n in range(5)), "one"])
    told: list[str] = []
    after = ""
    while True:
        page = await desk.have("GET", f"/-/sessions/one/timeline?limit=2{after}")
        told += [entry["call"] for entry in page["timeline"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert len(set(told)) == len(told) == 5


async def test_a_session_of_any_name_is_found_by_its_encoded_name(house, desk):
    await house.open()
    name = "a/b%2F..?#&+é".replace("é", "~")
    await desk.said(name)
    path = "/-/sessions/" + "".join(f"%{ord(letter):02X}" for letter in name)
    assert (await desk.have("GET", path))["session"]["id"] == name
    assert len((await desk.have("GET", f"{path}/timeline"))["timeline"]) == 1
    assert (await desk.have("POST", f"{path}/freeze", {}))["session"]["state"] == "frozen"


async def test_whose_session_it_is_has_to_be_said_only_where_there_are_several(house, desk):
    await house.open()
    other = await house.new_key(name="other")
    await desk.said()
    assert (await desk.have("GET", "/-/sessions/s-1"))["session"]["calls"] == 1
    await desk.said(key=other)
    for method, path in (("GET", ""), ("GET", "/timeline"), ("POST", "/freeze"), ("PUT", "/facts/a")):
        status, told = await desk.ask(method, f"/-/sessions/s-1{path}", {} if method != "GET" else None)
        assert (status, told["code"]) == (400, "invalid_request")
        assert desk.key_id in told["detail"]
        assert other.split("_")[1] in told["detail"]
    frozen = await desk.have("POST", f"/-/sessions/s-1/freeze?principal={desk.key_id}", {})
    assert frozen["session"]["principal"] == desk.key_id
    await desk.said(key=other)
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said()
    assert [row["state"] for row in (await desk.have("GET", f"/-/sessions?principal={desk.key_id}"))["sessions"]] == ["frozen"]


async def test_what_was_used_lately_can_be_asked_for(house, desk):
    await house.open()
    await desk.said()
    assert len((await desk.have("GET", "/-/sessions?since=1h"))["sessions"]) == 1
    assert (await desk.have("GET", "/-/sessions?since=2200-01-01"))["sessions"] == []


@pytest.mark.parametrize(("asked", "status", "words"), [((method, path, body), status, words) for method, path, body, status, words in (
    ("GET", "/-/sessions/none", None, 404, "There is no session"),
    ("GET", "/-/sessions/none/timeline", None, 404, "There is no session"),
    ("GET", "/-/sessions/none/timeline?principal=nobody", None, 404, "There is no session"),
    ("GET", "/-/sessions/none?principal=nobody", None, 404, "There is no session"),
    ("POST", "/-/sessions/none/freeze", {}, 404, "There is no session"),
    ("PUT", "/-/sessions/none/facts/a", {"value": 1}, 404, "There is no session"),
    ("GET", "/-/sessions?limit=0", None, 400, "`limit`"),
    ("GET", "/-/sessions?limit=501", None, 400, "`limit`"),
    ("GET", "/-/sessions?since=soon", None, 400, "`since`"),
    ("GET", "/-/sessions?after=x", None, 400, "`after`"),
    ("GET", "/-/sessions?after=99999999999999999999/a/b", None, 400, "`after`"),
    ("GET", "/-/sessions?after=1/a", None, 400, "`after`"),
    ("GET", "/-/sessions?state=frozen", None, 400, "Unknown query parameter"),
    ("GET", "/-/sessions/s-1/timeline?after=1.9", None, 200, ""),
    ("GET", "/-/sessions/s-1/timeline?after=x.0.a", None, 400, "`after`"),
    ("GET", "/-/sessions/s-1/timeline?after=1.00.a", None, 400, "`after`"),
    ("GET", "/-/sessions/s-1/timeline?limit=x", None, 400, "`limit`"),
    ("POST", "/-/sessions/s-1/freeze", {"note": "x" * 501}, 400, "note"),
    ("POST", "/-/sessions/s-1/freeze", {"note": "\u001b[2J"}, 400, "cannot be shown"),
    ("POST", "/-/sessions/s-1/freeze", {"why": "x"}, 400, "why"),
    ("POST", "/-/sessions/s-1/freeze", [], 400, "JSON object"),
    ("POST", "/-/sessions/a%20b/freeze?principal=key", {}, 400, "no session's"),
    ("POST", "/-/sessions/s-1/freeze?principal=", {}, 400, "no principal's"),
    ("POST", "/-/sessions/s-1/melt", {}, 404, "has no POST"),
    ("DELETE", "/-/sessions/s-1", None, 405, "not allowed"),
    ("PUT", "/-/sessions/s-1/facts/a%20b", {"value": 1}, 400, "no fact's"),
    ("PUT", "/-/sessions/s-1/facts/1a", {"value": 1}, 400, "no fact's"),
    ("PUT", "/-/sessions/s-1/facts/a", {}, 400, "value"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": 1, "version": -1}, 400, "version"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": 1, "version": "1"}, 400, "version"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": "x" * 4097}, 400, "4096"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": 2**63}, 400, "whole number"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": [[{"x": -(2**64)}]]}, 400, "64 bits"),
    ("PUT", "/-/sessions/s-1/facts/a", {"value": f"lgk_abcdefghijkl_{'s' * 32}"}, 400, "virtual key"),
)])
async def test_what_makes_no_sense_is_refused_and_says_why(house, desk, asked, status, words):
    await house.open()
    await desk.said()
    got, told = await desk.ask(*asked)
    assert got == status, told
    assert words in told.get("detail", "")
    assert house.sql("SELECT (SELECT count(*) FROM session_facts), (SELECT count(*) FROM session_states)") == [(0, 0)]


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/-/sessions"), ("GET", "/-/sessions/s-1"), ("GET", "/-/sessions/s-1/timeline"), ("PUT", "/-/sessions/s-1/facts/a"),
    ("POST", "/-/sessions/s-1/freeze"), ("POST", "/-/sessions/s-1/thaw"), ("POST", "/-/sessions/s-1/kill")])
async def test_nobody_is_told_or_heard_without_the_right_to(house, desk, method, path):
    await house.open()
    for credential in ("", "Bearer wrong", f"Bearer {house.key}"):
        status, told = await desk.ask(method, path, {} if method != "GET" else None, Authorization=credential)
        assert (status, told["code"]) == (401, "unauthenticated")


# ---- Facts.


FACTS = """
[[rule]]
id = "gold-only"
effect = "deny"
when = '!("tier" in session.facts) || session.facts["tier"] != "gold"'
"""


@STORES
async def test_rules_read_facts_from_the_next_call_on(house, desk, store):
    await house.open(config=f'[store]\npath = "{store}"\n', policies=FACTS)
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said()
    assert await desk.have("PUT", "/-/sessions/s-1/facts/tier", {"value": "gold"}) == {"version": 1}
    await desk.said()
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said("s-2")
    assert await desk.have("PUT", "/-/sessions/s-1/facts/tier", {"value": "iron", "version": 1}) == {"version": 2}
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said()
    facts = (await desk.have("GET", "/-/sessions/s-1"))["session"]["facts"]
    assert {name: (fact["value"], fact["version"], fact["author"]) for name, fact in facts.items()} == {"tier": ("iron", 2, "admin")}


async def test_a_rule_that_reads_facts_fails_closed_without_a_session(house, desk):
    await house.open(policies=FACTS)
    with pytest.raises(openai.PermissionDeniedError, match="policy_error"):
        await desk.said(None)


async def test_a_fact_may_be_put_there_before_the_first_call(house, desk):
    await house.open(policies=FACTS)
    assert await desk.have("PUT", f"/-/sessions/s-9/facts/tier?principal={desk.key_id}", {"value": "gold", "version": 0}) == {"version": 1}
    await desk.said("s-9")
    assert (await desk.have("GET", "/-/sessions/s-9"))["session"]["calls"] == 1


async def test_of_two_writers_under_one_version_one_wins_and_the_other_is_told_the_version(house, desk):
    await house.open()
    await desk.said()
    answers = await asyncio.gather(*(
        desk.ask("PUT", "/-/sessions/s-1/facts/n", {"value": n, "version": 0}) for n in range(8)))
    assert sorted(status for status, _told in answers) == [200, *[409] * 7]
    lost = next(told for status, told in answers if status == 409)
    assert (lost["code"], lost["version"], lost["status"]) == ("session_conflict", 1, 409)
    won = next(n for n, (status, _told) in enumerate(answers) if status == 200)
    assert (await desk.have("GET", "/-/sessions/s-1"))["session"]["facts"]["n"]["value"] == won


async def test_a_session_has_so_many_facts_and_no_more(house, desk):
    await house.open()
    await desk.said()
    for n in range(100):
        await desk.have("PUT", f"/-/sessions/s-1/facts/f{n}", {"value": None})
    status, told = await desk.ask("PUT", "/-/sessions/s-1/facts/more", {"value": 1})
    assert (status, told["code"]) == (409, "session_conflict")


# ---- Labels.


LABELS = """
[[rule]]
id = "taints"
effect = "log"
label = "tainted"
when = "request.max_tokens == 5"
[[rule]]
id = "stops"
effect = "deny"
when = '"tainted" in session.labels && request.max_tokens != 9'
[[rule]]
id = "clears"
effect = "log"
label = "cleared"
unlabel = ["tainted"]
when = "request.max_tokens == 9 || request.max_tokens == 5"
"""


@STORES
async def test_a_label_stays_until_a_rule_takes_it_off(house, desk, store):
    await house.open(config=f'[store]\npath = "{store}"\n', policies=LABELS)
    await desk.said(max_tokens=3)
    await desk.said(max_tokens=5)  # taints, and what the same call adds stays
    for most in (3, 5):  # a call that is refused takes nothing off, whatever its rules say
        with pytest.raises(openai.PermissionDeniedError):
            await desk.said(max_tokens=most)
    assert (await desk.have("GET", "/-/sessions/s-1"))["session"]["labels"] == ["tainted", "cleared"]
    await desk.said(max_tokens=9)
    await desk.said(max_tokens=3)
    assert (await desk.have("GET", "/-/sessions/s-1"))["session"]["labels"] == ["cleared"]
    told = [entry for entry in (await desk.have("GET", "/-/sessions/s-1/timeline"))["timeline"] if entry["kind"] == "unlabelled"]
    cleared = [row["id"] for row in reversed(await house.calls())][4]
    assert [(entry["labels"], entry["call"]) for entry in told] == [(["tainted"], cleared)]


async def test_a_rule_on_an_answer_takes_labels_off_too(house, desk):
    rules = """
[[rule]]
id = "taints"
effect = "log"
label = "tainted"
when = "request.max_tokens == 5"
[[rule]]
id = "clears"
phase = "response"
effect = "log"
unlabel = ["tainted"]
when = 'request.max_tokens == 9 && response.text != ""'
"""
    await house.open(policies=rules)
    await desk.said(max_tokens=5)
    await desk.said(max_tokens=9, stream=False)
    assert (await desk.have("GET", "/-/sessions/s-1"))["session"]["labels"] == ["clears"]


# ---- Freezing, thawing, killing.


@STORES
async def test_a_frozen_session_is_refused_before_its_provider_hears_of_it_until_it_is_thawed(house, desk, store):
    await house.open(config=f'[store]\npath = "{store}"\n')
    await desk.said()
    told = await desk.have("POST", "/-/sessions/s-1/freeze", {"note": "looks wrong"}, X_Lockgate_Author="ada")
    assert (told["session"]["state"], told["session"]["author"], told["session"]["note"]) == ("frozen", "admin (ada)", "looks wrong")
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await desk.said()
    assert (refused.value.code, refused.value.response.headers["x-should-retry"]) == ("session_frozen", "false")
    assert "looks wrong" not in refused.value.message
    await desk.said("s-2")
    assert len(house.one.requests) == 2
    await desk.have("POST", "/-/sessions/s-1/thaw", {})
    await desk.said()
    rows = [row for row in await house.calls() if row["session"] == "s-1"]
    assert [(row["outcome"], row["code"]) for row in rows] == [("completed", None), ("refused", "session_frozen"), ("completed", None)]


async def test_a_session_that_is_derived_is_frozen_as_any_other(house, desk):
    await house.open()
    await desk.said(None, metadata={"session_id": "m1"})
    await desk.have("POST", "/-/sessions/meta:m1/freeze", {})
    with pytest.raises(openai.PermissionDeniedError):
        await desk.said(None, metadata={"session_id": "m1"})


async def test_a_killed_session_stays_so(house, desk):
    await house.open()
    await desk.said()
    await desk.have("POST", "/-/sessions/s-1/kill", {"note": "it ran away"})
    for verb in ("thaw", "freeze"):
        status, told = await desk.ask("POST", f"/-/sessions/s-1/{verb}", {})
        assert (status, told["code"]) == (409, "session_conflict")
    assert (await desk.have("POST", "/-/sessions/s-1/kill", {}))["session"]["note"] == "it ran away"
    with pytest.raises(openai.PermissionDeniedError, match="ended this session"):
        await desk.said()


async def test_what_was_said_of_sessions_holds_after_a_restart(house, desk):
    await house.open()
    await desk.said()
    await desk.have("POST", "/-/sessions/s-1/freeze", {})
    key = house.key
    await house.stack.aclose()
    async with Gateway(house.folder / "config.toml", port=0, environ=house.environ, write=house.lines.append) as again:
        client = openai.AsyncOpenAI(base_url=f"{again.url}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(
                model="fast", messages=[{"role": "user", "content": "hi"}], extra_headers={"X-Lockgate-Session": "s-1"})
        await client.close()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_killing_a_session_ends_its_calls_under_way_and_their_providers_work(house, desk, stream):
    """The client is told why, the provider's connection is closed at once, and the books are right."""
    await house.open(config='[budgets.all]\nscope = "all"\nlimit = "100"\n')
    house.one.play(STALLS if stream else HANGS)
    told: list[str] = []

    async def call(session: str) -> None:
        try:
            answer = await desk.said(session, text="words 30", stream=stream)
            async for _chunk in answer:
                pass
        except openai.APIError as error:
            told.append(f"{session} {error.code}")

    waiting = asyncio.create_task(call("s-1"))
    other = asyncio.create_task(call("s-2"))
    await spin_until(lambda: len(house.one.requests) == 2 and (not stream or all(each.chunks >= 3 for each in house.one.requests)))
    await desk.have("POST", "/-/sessions/s-1/kill", {})
    await asyncio.wait_for(waiting, SOON_S)
    assert told == ["s-1 session_frozen"]
    await spin_until(lambda: len([each for each in house.one.requests if each.end == "client_gone"]) == 1)
    assert not other.done()
    rows = {row["session"]: row for row in await house.calls()}
    assert (rows["s-1"]["outcome"], rows["s-1"]["code"]) == ("cut" if stream else "failed", "session_frozen")
    assert rows["s-2"]["outcome"] == "open"
    attempts = (await house.call(rows["s-1"]["id"]))["attempts"]
    assert [attempt["end"] for attempt in attempts] == ["cancelled"]
    other.cancel()
    await asyncio.wait({other})
    assert await house.spent("all/all") > 0


async def test_a_provider_hears_within_a_tenth_of_a_second_that_its_session_was_killed(house, desk):
    """By its own log, as where a client hangs up. Half of them may be held up by a busy machine."""
    await house.open()
    house.one.play(STALLS)
    took_s = []
    for number in range(10):
        answer = await desk.said(f"s-{number}", text="words 30", stream=True)
        await spin_until(lambda n=number: len(house.one.requests) == n + 1 and house.one.requests[n].chunks >= 3)
        killed_ns = time.time_ns()
        await desk.have("POST", f"/-/sessions/s-{number}/kill", {})
        entry = (await house.one.finished(number + 1))[number]
        assert entry.end == "client_gone"
        took_s.append((entry.client_gone_ns - killed_ns) / 1e9)
        with pytest.raises(openai.APIError):
            async for _chunk in answer:
                pass
    assert statistics.median(took_s) < GONE_S, took_s


async def test_a_call_that_waits_for_its_place_or_its_turn_is_ended_too(house, desk, slow):
    await house.open(config=f"{slow.config}\n[server]\nmax_in_flight = 1\nqueue = 10\n")
    first = asyncio.create_task(house.client().chat.completions.create(model="slow", messages=[{"role": "user", "content": "x"}]))
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    waiting = asyncio.create_task(desk.said())
    app = house.gateway.running
    await spin_until(lambda: app.proxy.in_flight == 2)
    await desk.have("POST", f"/-/sessions/s-1/kill?principal={desk.key_id}", {})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await asyncio.wait_for(waiting, SOON_S)
    assert refused.value.code == "session_frozen"
    slow.go.set()
    await asyncio.wait_for(first, SOON_S)
    await desk.said("s-2")


HELD = """
[[rule]]
id = "asks"
effect = "require_approval"
when = "request.max_tokens == 7"
"""


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_killing_a_session_ends_its_calls_that_wait_for_people_and_withdraws_what_they_wait_for(house, desk, stream):
    await house.open(policies=HELD)
    told: list[str] = []

    async def call() -> None:
        try:
            answer = await desk.said(max_tokens=7, stream=stream)
            async for _chunk in answer:
                pass
        except openai.APIError as error:
            told.append(str(error.code))

    waiting = asyncio.create_task(call())
    async with asyncio.timeout(SOON_S):
        while not (await desk.have("GET", "/-/approvals"))["approvals"]:
            await asyncio.sleep(0)
    await desk.have("POST", f"/-/sessions/s-1/kill?principal={desk.key_id}", {"note": "enough"})
    await asyncio.wait_for(waiting, SOON_S)
    assert told == ["session_frozen"]
    (approval,) = (await desk.have("GET", "/-/approvals?state=all"))["approvals"]
    assert (approval["state"], approval["reason"]) == ("withdrawn", "The session was killed.")
    kinds = [(entry["kind"], entry.get("event")) for entry in (await desk.have("GET", "/-/sessions/s-1/timeline"))["timeline"]]
    assert sorted(kinds) == [("approval", "open"), ("approval", "withdraw"), ("call", None), ("killed", None)]
    assert house.one.requests == []


async def test_what_was_approved_of_a_session_that_is_frozen_meanwhile_does_not_leave(house, desk):
    """People said yes to the action, and an operator said no to the session: the call is refused, and may be made once it is thawed."""
    await house.open(policies=HELD)
    waiting = asyncio.create_task(desk.said(max_tokens=7))
    async with asyncio.timeout(SOON_S):
        while not (rows := (await desk.have("GET", "/-/approvals"))["approvals"]):
            await asyncio.sleep(0)
    await desk.have("POST", f"/-/sessions/s-1/freeze?principal={desk.key_id}", {})
    await desk.have("POST", f"/-/approvals/{rows[0]['id']}/vote", {"verdict": "approve", "digest": rows[0]["digest"]})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await asyncio.wait_for(waiting, SOON_S)
    assert refused.value.code == "session_frozen"
    assert house.one.requests == []
    await desk.have("POST", "/-/sessions/s-1/thaw", {})
    await desk.said(max_tokens=7)
    assert len(house.one.requests) == 1


async def test_the_connection_of_a_killed_call_serves_the_next_one(house, desk):
    """A client that shares connections between its agents does not lose one of them."""
    await house.open()
    house.one.play(HANGS)
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(house.gateway.url, connector=connector, headers={"Authorization": f"Bearer {house.key}"}) as http:
        body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
        call = asyncio.create_task(http.post("/v1/chat/completions", json=body, headers={"X-Lockgate-Session": "s-1"}))
        await spin_until(lambda: len(house.one.requests) == 1)
        await desk.have("POST", f"/-/sessions/s-1/kill?principal={desk.key_id}", {})
        async with await asyncio.wait_for(call, SOON_S) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (403, "session_frozen")
        house.one.play(Scenario())
        async with http.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200


async def test_sessions_are_stopped_at_every_worker(town):
    """Whoever takes the next call, and whoever has one under way."""
    _simulator, upstream = await town.start("simulate", "--port", "0", "--scenario", str(scenario(town.folder)))
    await town.lay(upstream)
    key = await town.key()
    _gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    admin = {"Authorization": f"Bearer {(town.folder / 'secrets/admin-token').read_text().strip()}"}
    headers = {"Authorization": f"Bearer {key}", "X-Lockgate-Session": "s-1"}
    body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def follow() -> str:
        async with aiohttp.ClientSession(url, headers=headers) as http, http.post("/v1/chat/completions", json=body) as answer:
            return await answer.text()

    streams = [asyncio.create_task(follow()) for _ in range(8)]  # of eight connections both workers have some, all but certainly
    async with aiohttp.ClientSession(url, headers=admin) as http, asyncio.timeout(60):
        while True:
            async with http.get("/-/sessions") as answer:
                rows = (await answer.json())["sessions"]
            if rows and rows[0]["calls"] == 8:
                break
            await asyncio.sleep(0.05)
        async with http.post("/-/sessions/s-1/kill", json={"note": "enough"}) as answer:
            assert answer.status == 200, await answer.text()
    for text in await asyncio.wait_for(asyncio.gather(*streams), 60):
        assert '"code":"session_frozen"' in text.replace(" ", "")
        assert "[DONE]" not in text
    async with asyncio.timeout(60):
        for _ in range(16):
            async with aiohttp.ClientSession(url, headers=headers) as http, http.post("/v1/chat/completions", json=body) as answer:
                text = (await answer.text()).replace(" ", "")  # the other worker may learn of it while the call is under way
                assert answer.status in (200, 403)
                assert '"code":"session_frozen"' in text
                assert "[DONE]" not in text
    shown = json.loads(await town.run("sessions", "show", "s-1", "--json"))
    assert (shown["state"], shown["note"]) == ("killed", "enough")
    assert {entry["code"] for entry in shown["timeline"] if entry["kind"] == "call"} == {"session_frozen"}
    await town.run("doctor")


def scenario(folder: Any) -> Any:
    """Streams that say something and then nothing more."""
    file = folder / "stalls.toml"
    file.write_text("[[fault]]\nstall_after_chunks = 3\n")
    return file
