"""What both stores promise of what operators see and change of sessions. Loaded by path, since test folders are not packages."""

import asyncio
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.call import Outcome, ToolUse
from gateway.core.approval import Demand, NotPossibleError, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.session import SessionKey
from gateway.store.protocol import Store
from gateway.store.session_protocol import OutdatedError, SessionDesk, SessionFilter, SessionState

_spec = importlib.util.spec_from_file_location("desk_session_conformance", Path(__file__).with_name("session_conformance.py"))
assert _spec is not None
assert _spec.loader is not None
_sessions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_sessions)

KEY: SessionKey = _sessions.KEY
OTHER: SessionKey = _sessions.OTHER
STRANGER = SessionKey("key000000002", KEY.id)
SECOND_NS = 1_000_000_000


class DeskConformance:
    """States, facts, lists, timelines and links, through the protocol alone."""

    @pytest.fixture
    def life(self, store: Store, samples: ModuleType) -> Any:
        return _sessions.Life(store, samples)

    @pytest.fixture
    def desk(self, store: Store) -> SessionDesk:
        return store.session_desk

    # ---- States.

    async def test_a_session_is_frozen_thawed_and_killed_by_somebody_and_each_is_a_change(self, desk: SessionDesk) -> None:
        assert await desk.states(0) == (0, [])
        frozen = await desk.set_state(KEY, "frozen", author="ada", note="looks wrong", now_ns=5)
        assert frozen == SessionState(KEY, "frozen", "ada", "looks wrong", 5, 1)
        thawed = await desk.set_state(KEY, "active", author="bob", note="", now_ns=6)
        killed = await desk.set_state(OTHER, "killed", author="ada", note="", now_ns=7)
        assert (await desk.states(0), await desk.states(2), await desk.states(3)) == ((3, [thawed, killed]), (3, [killed]), (3, []))
        assert await desk.generation() == 3

    async def test_what_is_so_already_is_no_change(self, desk: SessionDesk) -> None:
        frozen = await desk.set_state(KEY, "frozen", author="ada", note="first", now_ns=5)
        assert await desk.set_state(KEY, "frozen", author="bob", note="second", now_ns=6) == frozen
        assert await desk.set_state(OTHER, "active", author="bob", note="", now_ns=6) == SessionState(OTHER)
        assert await desk.generation() == 1
        assert [entry["kind"] for entry in await desk.timeline(KEY, after=None, limit=9)] == ["frozen"]

    async def test_a_killed_session_stays_so(self, desk: SessionDesk) -> None:
        killed = await desk.set_state(KEY, "killed", author="ada", note="", now_ns=5)
        for state in ("active", "frozen"):
            with pytest.raises(NotPossibleError, match="killed"):
                await desk.set_state(KEY, state, author="bob", note="", now_ns=6)
        assert await desk.set_state(KEY, "killed", author="bob", note="again", now_ns=7) == killed
        assert await desk.states(0) == (1, [killed])

    async def test_the_same_name_is_another_session_for_another_principal(self, desk: SessionDesk) -> None:
        await desk.set_state(KEY, "frozen", author="ada", note="", now_ns=5)
        await desk.put_fact(KEY, "tier", "gold", version=None, author="ada", now_ns=5)
        assert (await desk.get(STRANGER), await desk.facts(STRANGER), await desk.timeline(STRANGER, after=None, limit=9)) == (None, {}, [])

    # ---- Facts.

    @pytest.mark.parametrize("value", ["gold", "", 0, 7, -2.5, False, True, None, [], {}, {"a": [1, None]}, "é\U0001f600", 2**63 - 1])
    async def test_a_fact_is_any_json_value_and_comes_back_as_it_was(self, desk: SessionDesk, life: Any, value: Any) -> None:
        assert await desk.put_fact(KEY, "tier", value, version=0, author="ada", now_ns=5) == 1
        facts = await desk.facts(KEY)
        assert facts == {"tier": {"value": value, "version": 1, "author": "ada", "at_ns": 5}}
        assert type(facts["tier"]["value"]) is type(value)
        known = await life.store.sessions.facts(KEY, frozenset(), now_ns=9, with_facts=True)
        assert known.facts == {"tier": value}

    async def test_facts_are_read_for_rules_only_where_one_asks(self, desk: SessionDesk, life: Any) -> None:
        await desk.put_fact(KEY, "b", 2, version=None, author="", now_ns=5)
        await desk.put_fact(KEY, "a", 1, version=None, author="", now_ns=5)
        await life.begin(life.record())
        assert (await life.facts()).facts == {}
        known = await life.store.sessions.facts(KEY, frozenset(), now_ns=life.now_ns, with_facts=True)
        assert (known.calls, list(known.facts.items())) == (1, [("a", 1), ("b", 2)])
        assert (await life.store.sessions.facts(STRANGER, frozenset(), now_ns=9, with_facts=True)).facts == {}

    async def test_a_fact_is_set_under_the_version_that_it_has(self, desk: SessionDesk) -> None:
        assert await desk.put_fact(KEY, "tier", "gold", version=0, author="ada", now_ns=5) == 1
        assert await desk.put_fact(KEY, "tier", "iron", version=1, author="bob", now_ns=6) == 2
        assert await desk.put_fact(KEY, "tier", "tin", version=None, author="bob", now_ns=7) == 3
        for version in (0, 2, 4):
            with pytest.raises(OutdatedError, match="version 3") as refused:
                await desk.put_fact(KEY, "tier", "lead", version=version, author="eve", now_ns=8)
            assert refused.value.version == 3
        with pytest.raises(OutdatedError, match="no such fact") as refused:
            await desk.put_fact(KEY, "other", 1, version=1, author="eve", now_ns=8)
        assert refused.value.version == 0
        assert {name: fact["value"] for name, fact in (await desk.facts(KEY)).items()} == {"tier": "tin"}

    async def test_of_many_who_set_a_fact_at_once_under_one_version_one_wins(self, desk: SessionDesk) -> None:
        async def put(n: int) -> int | None:
            try:
                return await desk.put_fact(KEY, "holder", n, version=0, author=f"w{n}", now_ns=5)
            except OutdatedError:
                return None

        won = [n for n, version in enumerate(await asyncio.gather(*map(put, range(32)))) if version is not None]
        assert len(won) == 1
        fact = (await desk.facts(KEY))["holder"]
        assert (fact["value"], fact["author"], fact["version"]) == (won[0], f"w{won[0]}", 1)

    async def test_a_session_has_so_many_facts_and_no_more(self, desk: SessionDesk) -> None:
        for n in range(100):
            await desk.put_fact(KEY, f"f{n}", n, version=None, author="", now_ns=5)
        with pytest.raises(NotPossibleError, match="100"):
            await desk.put_fact(KEY, "more", 1, version=None, author="", now_ns=6)
        assert await desk.put_fact(KEY, "f7", "still", version=1, author="", now_ns=7) == 2

    # ---- Lists.

    async def test_sessions_are_listed_the_latest_first_with_what_they_did(self, desk: SessionDesk, life: Any, samples: ModuleType) -> None:
        await life.store.keys.create(replace(samples.key(1), id=KEY.principal, name="ci", team="blue"))
        first = await life.begin(replace(life.record(), labels=("a",)))
        await life.end(first, cost_nusd=1_500_000)
        life.now_ns += 10
        await life.begin(life.record(OTHER))
        life.now_ns += 10
        await life.begin(life.record(STRANGER))
        rows = await desk.list(SessionFilter())
        assert [(row["principal"], row["id"]) for row in rows] == [STRANGER, OTHER, KEY]
        assert rows[2] == {
            "principal": KEY.principal, "id": KEY.id, "principal_name": "ci", "team": "blue", "state": "active", "author": "", "note": "",
            "changed_ns": None, "created_ns": life.now_ns - 20, "last_ns": life.now_ns - 20, "calls": 1, "spend_nusd": 1_500_000,
            "spend_usd": "0.0015", "labels": ["a"]}
        assert await desk.get(KEY) == rows[2]
        assert [row["id"] for row in await desk.list(SessionFilter(KEY.principal))] == [OTHER.id, KEY.id]
        assert [row["principal"] for row in await desk.list(SessionFilter(since_ns=life.now_ns))] == [STRANGER.principal]

    async def test_pages_of_a_list_follow_each_other(self, desk: SessionDesk, life: Any) -> None:
        """Also where many were used in the same moment, and one that is used meanwhile is not told again as another."""
        for n in range(7):
            await life.begin(life.record(SessionKey(f"key00000000{n % 2 + 1}", f"s{n}")))
        told: list[str] = []
        after = None
        for _ in range(4):
            page = await desk.list(SessionFilter(after=after, limit=2))
            told += [row["id"] for row in page]
            after = (page[-1]["last_ns"], page[-1]["principal"], page[-1]["id"])
        assert sorted(told) == [f"s{n}" for n in range(7)]
        assert await desk.list(SessionFilter(after=after, limit=2)) == []

    async def test_one_that_an_operator_has_spoken_of_before_its_first_call_is_listed(self, desk: SessionDesk) -> None:
        await desk.set_state(KEY, "frozen", author="ada", note="not yet", now_ns=5)
        await desk.put_fact(OTHER, "tier", "gold", version=None, author="ada", now_ns=7)
        await desk.put_fact(KEY, "tier", "gold", version=None, author="ada", now_ns=9)
        rows = {row["id"]: row for row in await desk.list(SessionFilter())}
        assert (rows[KEY.id]["state"], rows[KEY.id]["note"], rows[KEY.id]["changed_ns"], rows[KEY.id]["calls"]) == ("frozen", "not yet", 5, 0)
        assert (rows[OTHER.id]["created_ns"], rows[OTHER.id]["last_ns"], rows[OTHER.id]["state"]) == (None, 7, "active")
        assert len(rows) == 2
        assert await desk.get(OTHER) == rows[OTHER.id]

    async def test_the_principals_that_have_a_session_of_an_id_are_known(self, desk: SessionDesk, life: Any) -> None:
        await life.begin(life.record(STRANGER))
        await life.begin(life.record())
        await desk.put_fact(OTHER, "a", 1, version=None, author="", now_ns=5)
        assert await desk.owners(KEY.id) == [KEY.principal, STRANGER.principal]
        assert await desk.owners(OTHER.id) == [OTHER.principal]
        assert await desk.owners("nobody's") == []

    # ---- Labels.

    async def test_a_rule_takes_labels_off_and_that_is_on_record(self, desk: SessionDesk, life: Any) -> None:
        await life.end(await life.begin(replace(life.record(), labels=("secret", "kept"))), answer_labels=("late",))
        life.now_ns += 10
        cleared = await life.begin(replace(life.record(), unlabels=("secret", "never there")))
        assert (await life.facts()).labels == ("kept", "late")
        await life.end(cleared, answer_unlabels=("late",))
        assert (await life.facts()).labels == ("kept",)
        told = [entry for entry in await desk.timeline(KEY, after=None, limit=99) if entry["kind"] == "unlabelled"]
        assert [(entry["labels"], entry["call"], entry["at_ns"]) for entry in told] == [
            (["secret"], cleared.id, life.now_ns), (["late"], cleared.id, life.now_ns)]

    async def test_a_label_that_the_same_call_adds_stays(self, life: Any, desk: SessionDesk) -> None:
        await life.begin(replace(life.record(), labels=("secret",)))
        again = await life.begin(replace(life.record(), labels=("secret",), unlabels=("secret",)))
        assert (await life.facts()).labels == ("secret",)
        await life.end(again, answer_unlabels=("secret",))
        assert (await life.facts()).labels == ("secret",)
        assert "unlabelled" not in {entry["kind"] for entry in await desk.timeline(KEY, after=None, limit=99)}

    async def test_a_call_that_is_refused_or_made_for_another_takes_nothing_off(self, life: Any) -> None:
        await life.begin(replace(life.record(), labels=("secret",)))
        refused = life.record(outcome=Outcome.REFUSED, decision="deny", code="forbidden", cost_nusd=0)
        await life.store.journal.refuse(replace(refused, unlabels=("secret",), answer_unlabels=("secret",)), request=None)
        await life.begin(replace(life.record(), part_of=refused.id, unlabels=("secret",)))
        assert (await life.facts()).labels == ("secret",)

    async def test_a_label_may_be_given_again_after_it_was_taken_off(self, life: Any) -> None:
        for unlabels, labels in (((), ("secret",)), (("secret",), ()), ((), ("secret",))):
            await life.begin(replace(life.record(), labels=labels, unlabels=unlabels))
        assert (await life.facts()).labels == ("secret",)

    # ---- Timelines.

    async def test_a_timeline_has_every_kind_in_order_of_time(self, desk: SessionDesk, life: Any) -> None:
        opened = await life.open_http("kyc.check", {"who": "bob"})
        life.now_ns += SECOND_NS
        await life.end(opened, cost_nusd=20, answer_labels=("late",))
        await desk.put_fact(KEY, "tier", {"level": 3}, version=None, author="ada", now_ns=life.now_ns)
        model = replace(life.record(), labels=("asked",))
        await life.begin(model)
        life.now_ns += SECOND_NS
        await life.end(model, tool_uses=(ToolUse(model.id, "c1", "mail.send", "model", {}, released=False, at_ns=life.now_ns),), cost_nusd=None)
        await desk.set_state(KEY, "frozen", author="bob", note="stop", now_ns=life.now_ns + 5)
        entries = list(await desk.timeline(KEY, after=None, limit=99))
        begun_ns = opened.received_ns
        shown = [(entry["kind"], entry["at_ns"] - begun_ns) for entry in entries]
        assert shown == [("call", 0), ("tool", 0), ("call", SECOND_NS), ("fact", SECOND_NS), ("tool", 2 * SECOND_NS), ("frozen", 2 * SECOND_NS + 5)]
        assert _without_place(entries[0]) == {
            "kind": "call", "at_ns": begun_ns, "call": opened.id, "operation": "tool", "route": "kyc.check", "decision": "allow",
            "rule": "office-hours", "labels": ["late"], "withheld": False, "outcome": "completed", "status": 200, "code": None, "message": None,
            "cost_nusd": 20, "cost_usd": "0.00000002", "seconds": 1.0, "part_of": None}
        assert _without_place(entries[1]) == {"kind": "tool", "at_ns": begun_ns, "call": opened.id, "tool": "kyc.check", "tool_call": opened.id,
                                              "via": "http", "released": True}
        assert (entries[2]["labels"], entries[2]["cost_nusd"], entries[2]["withheld"]) == (["asked"], None, True)
        assert _without_place(entries[3]) == {"kind": "fact", "at_ns": begun_ns + SECOND_NS, "author": "ada", "name": "tier",
                                              "value": {"level": 3}, "version": 1}
        assert (entries[4]["tool"], entries[4]["released"]) == ("mail.send", False)
        assert _without_place(entries[5]) == {"kind": "frozen", "at_ns": begun_ns + 2 * SECOND_NS + 5, "author": "bob", "note": "stop"}

    async def test_what_people_decided_is_in_it_and_only_of_this_session(self, desk: SessionDesk, store: Store) -> None:
        demand = Demand("two-eyes", (Stage(quorum=2),))
        for session, principal in ((KEY.id, KEY.principal), (OTHER.id, KEY.principal), (KEY.id, STRANGER.principal), ("", KEY.principal)):
            ticket = Ticket(
                f"apr_{principal[-1]}{session}", "request", "release", State.PENDING, f"sha256:{principal}{session}", f"sha256:{principal}{session}", principal,
                "call_1", "two-eyes", "Two people decide.", (demand,), {}, b"{}", {}, "sha256:s", 10, 10**15, session=session, route="fast")
            await store.approvals.open(ticket, bounds=Bounds(9))
        places = ((demand.key, 0),)
        ada = Vote(Voter("ada", "Ada", method="password"), "approve", f"sha256:{KEY.principal}{KEY.id}", 20, "looks right", places)
        bob = Vote(Voter("bob", "Bob", method="token"), "deny", ada.digest, 30, "no", places)
        for vote in (ada, bob):
            await store.approvals.vote(f"apr_1{KEY.id}", vote)
        entries = [_without_place(entry) for entry in await desk.timeline(KEY, after=None, limit=99)]
        assert [(entry["kind"], entry["at_ns"], entry.get("event") or entry.get("verdict")) for entry in entries] == [
            ("approval", 10, "open"), ("vote", 20, "approve"), ("approval", 30, "deny"), ("vote", 30, "deny")]
        assert entries[0] == {"kind": "approval", "at_ns": 10, "approval": f"apr_1{KEY.id}", "call": "call_1", "rule": "two-eyes", "tool": None,
                              "route": "fast", "event": "open", "state": "pending", "author": KEY.principal, "reason": None}
        assert entries[1] == {"kind": "vote", "at_ns": 20, "approval": f"apr_1{KEY.id}", "person": "ada", "name": "Ada", "method": "password",
                              "verdict": "approve", "comment": "looks right"}
        assert (entries[2]["state"], entries[2]["author"], entries[2]["reason"]) == ("denied", "bob", "no")
        whole = await desk.timeline(KEY, after=None, limit=99)
        told: list[Mapping[str, Any]] = []
        while page := await desk.timeline(KEY, after=_place(told), limit=1):
            told += page
        assert told == whole

    async def test_a_call_under_way_a_refused_one_and_one_made_for_another_are_in_it(self, desk: SessionDesk, life: Any) -> None:
        await life.begin(life.record())
        refused = life.record(outcome=Outcome.REFUSED, status=403, decision="deny", code="forbidden", message="no", cost_nusd=0)
        await life.store.journal.refuse(refused, request=None)
        await life.begin(replace(life.record(), part_of="call_of_a_caller"))
        entries = [entry for entry in await desk.timeline(KEY, after=None, limit=99) if entry["kind"] == "call"]
        assert [(entry["outcome"], entry["code"], entry["part_of"]) for entry in entries] == [
            ("open", None, None), ("refused", "forbidden", None), ("open", None, "call_of_a_caller")]
        assert (entries[0]["seconds"], entries[0]["status"]) == (None, None)

    async def test_pages_of_a_timeline_follow_each_other_however_much_happens_at_once(self, desk: SessionDesk, life: Any) -> None:
        for n in range(5):
            await life.http("a", {"n": n})
            await desk.put_fact(KEY, "n", n, version=None, author="", now_ns=life.now_ns)
        whole = list(await desk.timeline(KEY, after=None, limit=99))
        assert len(whole) == 15
        for size in (1, 2, 4, 15):
            told: list[Mapping[str, Any]] = []
            while page := await desk.timeline(KEY, after=_place(told), limit=size):
                assert len(page) <= size
                told += page
            assert told == whole

    async def test_what_comes_later_follows_what_was_told(self, desk: SessionDesk, life: Any) -> None:
        await life.http("a")
        told = list(await desk.timeline(KEY, after=None, limit=99))
        life.now_ns += 1
        await life.http("b")
        more = await desk.timeline(KEY, after=_place(told), limit=99)
        assert [entry.get("route") for entry in more if entry["kind"] == "call"] == ["b"]

    # ---- Links.

    async def test_the_session_of_an_answer_is_found_by_its_principal_alone(self, desk: SessionDesk, life: Any) -> None:
        await life.end(await life.begin(life.record()), answer_id="resp_1")
        assert await desk.linked(KEY.principal, "resp_1") == KEY.id
        assert await desk.linked(STRANGER.principal, "resp_1") is None
        assert await desk.linked(KEY.principal, "resp_2") is None

    async def test_an_id_that_is_given_again_leads_to_the_later_session(self, desk: SessionDesk, life: Any) -> None:
        await life.end(await life.begin(life.record()), answer_id="same")
        await life.end(await life.begin(life.record(OTHER)), answer_id="same")
        assert await desk.linked(KEY.principal, "same") == OTHER.id

    async def test_an_answer_of_no_session_leads_nowhere(self, desk: SessionDesk, life: Any) -> None:
        none = SessionKey(KEY.principal, "")
        await life.end(await life.begin(life.record(none)), answer_id="resp_1", answer_labels=("x",))
        assert await desk.linked(KEY.principal, "resp_1") is None

    async def test_a_name_that_is_no_text_of_any_encoding_is_stored_all_the_same(self, desk: SessionDesk, life: Any) -> None:
        broken = SessionKey(KEY.principal, "s\udc80")
        await life.end(await life.begin(life.record(broken)), answer_id="r\udc80")
        await desk.set_state(broken, "frozen", author="a\udc80", note="n\udc80", now_ns=5)
        await desk.put_fact(broken, "a", 1, version=None, author="a\udc80", now_ns=5)
        row = await desk.get(broken)
        assert row is not None
        assert (row["id"], row["state"], row["calls"]) == ("s?", "frozen", 1)
        assert await desk.linked(KEY.principal, "r\udc80") == "s?"
        assert {entry["kind"] for entry in await desk.timeline(broken, after=None, limit=9)} == {"fact", "frozen", "call"}


def _without_place(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "place"}


def _place(told: list[Mapping[str, Any]]) -> tuple[int, int, str] | None:
    return tuple(told[-1]["place"]) if told else None

