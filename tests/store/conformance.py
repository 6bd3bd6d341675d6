"""What every store promises. Inherit `StoreConformance` and give it a `store` fixture: an open, empty store."""

from dataclasses import replace
from types import ModuleType

import pytest

from gateway.call import AttemptEnd, Origin, Outcome, Principal
from gateway.errors import StoreError
from gateway.store.protocol import CallFilter, DecidedCall, Store
from gateway.store.rows import DETAIL_FIELDS, JOURNAL_FIELDS


class StoreConformance:
    """Journal and keys, through the protocol alone."""

    async def test_a_call_that_began_is_open_and_shows_where_it_goes(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["outcome"], call["status"], call["ended_ns"], call["cost_usd"]) == ("open", None, None, None)
        assert (call["key"], call["name"], call["team"], call["org"]) == ("key000000001", "ci", "blue", "acme")
        assert (call["session"], call["run"], call["step"], call["tags"]) == ("s-1", "r-1", "plan", {"env": "test"})
        assert (call["decision"], call["rule"], call["labels"], call["bundle"]) == ("allow", "office-hours", ["checked"], "sha256:abc")
        assert call["reasons"][0]["source"] == "a.toml:3"
        assert [(tried["n"], tried["target"], tried["end"]) for tried in call["attempts"]] == [(1, "alpha/small-1", None)]
        assert (call["request"], call["response"]) == ('{"model":"fast"}', None)

    async def test_a_finished_call_has_its_outcome_attempts_cost_and_bodies(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.dispatch(samples.dispatch(1, 2))
        failed = samples.attempt(1, end=AttemptEnd.FAILED, cause="status:500", message="boom", status=500, usage=None, cost_nusd=0)
        second = samples.attempt(2, target=samples.OTHER, waited_s=0.25)
        await store.journal.finish(samples.completed(1, attempts=(failed, second)), response=b"x" * 5000)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["outcome"], call["status"], call["code"], call["target"]) == ("completed", 200, None, "beta/large-2")
        assert (call["cost_nusd"], call["cost_usd"], call["finish_reasons"]) == (1500, "0.0000015", ["stop"])
        assert (call["usage"]["input_tokens"], call["usage"]["cache_read_tokens"], call["usage"]["estimated"]) == (120, 20, False)
        assert [(tried["n"], tried["end"], tried["cause"], tried["cost_usd"]) for tried in call["attempts"]] == [
            (1, "failed", "status:500", "0"), (2, "succeeded", None, "0.0000015")]
        assert call["attempts"][0]["usage"] is None
        assert call["attempts"][1]["waited_s"] == 0.25
        assert call["response"] == "x" * 5000

    async def test_a_refused_call_is_recorded_at_once_without_attempts(self, store: Store, samples: ModuleType) -> None:
        await store.journal.refuse(samples.refused(1), request=b"{}")
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["outcome"], call["code"], call["attempts"], call["target"]) == ("refused", "forbidden", [], None)
        assert (call["request"], call["cost_usd"]) == ("{}", "0")

    async def test_an_unknown_cost_stays_unknown(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.finish(
            samples.completed(1, cost_nusd=None, usage=None, attempts=(samples.attempt(1, cost_nusd=None, usage=None),)), response=None)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["cost_nusd"], call["cost_usd"], call["usage"], call["attempts"][0]["cost_usd"]) == (None, None, None, None)

    async def test_a_second_finish_is_refused_and_changes_nothing(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.finish(samples.completed(1), response=b"first")
        before = await store.journal.call(samples.call_id(1))
        with pytest.raises(StoreError, match="already has its outcome"):
            await store.journal.finish(samples.completed(1, outcome=Outcome.CUT, status=502), response=b"second")
        assert await store.journal.call(samples.call_id(1)) == before

    async def test_what_never_began_cannot_go_on(self, store: Store, samples: ModuleType) -> None:
        with pytest.raises(StoreError, match="not on record"):
            await store.journal.finish(samples.completed(1), response=None)
        with pytest.raises(StoreError, match="not on record"):
            await store.journal.dispatch(samples.dispatch(1, 2))
        assert await store.journal.call(samples.call_id(1)) is None

    async def test_a_call_begins_once(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        with pytest.raises(StoreError, match="already recorded"):
            await store.journal.begin(samples.intent(1, route="other"))
        with pytest.raises(StoreError, match="already recorded"):
            await store.journal.refuse(samples.refused(1), request=None)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["route"], call["outcome"]) == ("fast", "open")

    async def test_an_attempt_is_dispatched_once_and_not_after_the_end(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.dispatch(samples.dispatch(1, 2))
        with pytest.raises(StoreError, match="already recorded"):
            await store.journal.dispatch(samples.dispatch(1, 2))
        await store.journal.finish(samples.completed(1), response=None)
        with pytest.raises(StoreError, match="already has its outcome"):
            await store.journal.dispatch(samples.dispatch(1, 3))

    async def test_an_open_call_shows_every_attempt_that_was_dispatched(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.dispatch(samples.dispatch(1, 2))
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert [(tried["n"], tried["target"]) for tried in call["attempts"]] == [(1, "alpha/small-1"), (2, "beta/large-2")]
        row = (await store.journal.calls(CallFilter()))[0]
        assert (row["target"], row["attempt_count"]) == ("beta/large-2", 2)

    async def test_rows_have_the_documented_fields(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.refuse(samples.refused(2), request=None)
        for row in await store.journal.calls(CallFilter()):
            assert tuple(row) == JOURNAL_FIELDS
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert tuple(call) == (*JOURNAL_FIELDS, *DETAIL_FIELDS)

    async def test_what_was_decided_later_stands_beside_what_was_decided_first(self, store: Store, samples: ModuleType) -> None:
        verdict = {"phase": "tool_call", "subject": "mail.send", "decision": "deny", "rule": "no-mail", "message": "No.", "bundle": "sha256:abc",
                   "reasons": [{"rule": "no-mail", "effect": "deny", "verdict": "matched", "source": "a.toml:9", "message": "No."}]}
        await store.journal.begin(samples.intent(1, labels=("a", "b")))
        await store.journal.finish(samples.completed(1, verdicts=(verdict,), answer_labels=("b", "c")), response=None)
        await store.journal.begin(samples.intent(2))
        redacted = {**verdict, "decision": "allow", "phase": "response"}
        await store.journal.finish(samples.completed(2, verdicts=(redacted,)), response=None)
        await store.journal.refuse(samples.refused(3, decision="held", verdicts=({**verdict, "decision": "held"},)), request=None)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["verdicts"], call["labels"], call["withheld"], call["decision"]) == ([verdict], ["a", "b", "c"], True, "allow")
        assert [(row["withheld"], row["labels"]) for row in await store.journal.calls(CallFilter())] == [
            (True, ["checked"]), (False, ["checked"]), (True, ["a", "b", "c"])]

    async def test_an_answer_that_was_kept_from_the_client_is_an_outcome_of_its_own(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        withheld = samples.completed(1, outcome=Outcome.WITHHELD, status=403, code="forbidden", message="no")
        await store.journal.finish(withheld, response=None)
        assert [row["id"] for row in await store.journal.calls(CallFilter(outcome="withheld"))] == [samples.call_id(1)]

    async def test_judged_calls_come_back_in_order_with_all_that_was_judged(self, store: Store, samples: ModuleType) -> None:
        await store.keys.create(samples.key(1, roles=("dev", "ops"), routes=("fast",)))
        await store.journal.begin(samples.intent(1, stream=True))
        await store.journal.finish(samples.completed(1, stream=True, verdicts=({"decision": "allow"},)), response=b"{}")
        await store.journal.refuse(samples.refused(2, decision="", rule="", bundle="", reasons=()), request=b"{")  # ended before it was judged
        await store.journal.refuse(samples.refused(3, principal=Principal("anonymous"), origin=Origin()), request=None)
        await store.journal.begin(samples.intent(4, request=b"r" * 5000))
        record = samples.record(1)
        found = list(await store.journal.decided(0, None, 10))
        assert found[0] == DecidedCall(
            id=record.id, principal=replace(record.principal, roles=("dev", "ops"), routes=("fast",)), dialect="openai", operation="chat",
            route="fast", stream=True, origin=record.origin, received_ns=record.received_ns, request=b'{"model":"fast"}', decision="allow",
            rule="office-hours", labels=("checked",), bundle="sha256:abc", reasons=record.reasons, verdicts=({"decision": "allow"},),
            outcome=Outcome.COMPLETED, cost_nusd=1500,
        )
        assert (found[1].principal, found[1].origin, found[1].request, found[1].decision) == (Principal("anonymous"), Origin(), None, "deny")
        assert [(call.id, call.outcome, call.cost_nusd) for call in found[1:]] == [
            (samples.call_id(3), Outcome.REFUSED, 0), (samples.call_id(4), None, None)]
        assert found[2].request == b"r" * 5000

    async def test_judged_calls_are_paged_from_a_moment_on(self, store: Store, samples: ModuleType) -> None:
        for n in range(1, 8):
            await store.journal.refuse(samples.refused(n, received_ns=samples.NOW_NS + n * 10**12), request=None)

        async def ids(since: int, after: int | None = None, limit: int = 100) -> list[int]:
            page = await store.journal.decided(since, None if after is None else samples.call_id(after), limit)
            return [int(call.id[5:]) for call in page]

        moment = samples.NOW_NS + 4 * 10**12
        assert await ids(moment) == [4, 5, 6, 7]
        assert await ids(moment, limit=2) == [4, 5]
        assert await ids(moment, after=5, limit=2) == [6, 7]
        assert await ids(moment, after=7) == []
        assert await ids(moment, after=99) == []
        assert await ids(moment + 10**13) == []
        assert await ids(0, limit=0) == []
        assert await ids(-1) == [1, 2, 3, 4, 5, 6, 7]

    async def test_a_page_of_large_bodies_ends_early_and_the_next_goes_on(self, store: Store, samples: ModuleType) -> None:
        """What is in memory at a time does not grow with what clients sent."""
        for n in range(6):
            await store.journal.refuse(samples.refused(n), request=b"r" * 12_000_000)
        pages, after = [], None
        while page := await store.journal.decided(0, after, 100):
            pages.append(len(page))
            after = page[-1].id
        assert pages == [3, 3]

    async def test_calls_are_listed_newest_first_and_paged(self, store: Store, samples: ModuleType) -> None:
        for n in range(5):
            await store.journal.refuse(samples.refused(n), request=None)

        async def ids(**wanted: object) -> list[str]:
            return [row["id"] for row in await store.journal.calls(CallFilter(**wanted))]  # type: ignore[arg-type]

        every = [samples.call_id(n) for n in (4, 3, 2, 1, 0)]
        assert await ids() == every
        assert await ids(limit=2) == every[:2]
        assert await ids(limit=2, before=every[1]) == every[2:4]
        assert await ids(after=every[2]) == every[:2]
        assert await ids(after=every[4], before=every[0], limit=2) == every[1:3]
        assert await ids(before="call_unknown") == []
        assert await ids(limit=0) == []

    async def test_calls_are_filtered(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        await store.journal.refuse(samples.refused(2, route="slow"), request=None)
        await store.journal.begin(samples.intent(3))
        await store.journal.finish(samples.completed(3), response=None)

        async def ids(**wanted: object) -> list[int]:
            rows = await store.journal.calls(CallFilter(**wanted))  # type: ignore[arg-type]
            return [int(row["id"][5:]) for row in rows]

        assert await ids(outcome="open") == [1]
        assert await ids(outcome="refused", route="slow") == [2]
        assert await ids(route="fast", key="key000000001", session="s-1") == [3, 1]
        assert await ids(key="nobody") == []
        assert await ids(session="' OR 1=1 --") == []
        assert await ids(rule="no-images") == [2]
        assert await ids(rule="office-hours", outcome="completed") == [3]
        assert await ids(code="forbidden") == [2]
        assert await ids(code="") == [3, 1]
        assert await ids(team="blue", limit=2) == [3, 2]
        assert await ids(team="red") == []
        assert await ids(team="") == []

    async def test_hostile_text_is_stored_as_text(self, store: Store, samples: ModuleType) -> None:
        """Headers may carry bytes that are no UTF-8; a tag may carry anything. None of it may fail the record."""
        origin = samples.record(1).origin
        hostile = type(origin)(session="\udcff\x00'; DROP TABLE calls --", tags={"k\udcfe": "\x1b[31m", "n": "é"})
        await store.journal.begin(samples.intent(1, origin=hostile, route="\U0001f512", reasons=({"n": 2**70, "t": "\ud800"},)))
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert call["session"] == "?\x00'; DROP TABLE calls --"
        assert call["tags"] == {"k?": "\x1b[31m", "n": "é"}
        assert call["route"] == "\U0001f512"

    async def test_an_empty_body_is_not_the_absence_of_one(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1, request=b""))
        await store.journal.finish(samples.completed(1), response=None)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert (call["request"], call["response"]) == ("", None)

    async def test_keys_come_back_as_they_went_in_oldest_first(self, store: Store, samples: ModuleType) -> None:
        later, sooner = samples.key(2), samples.key(1, expires_ns=samples.NOW_NS + 9, team="", roles=())
        await store.keys.create(later)
        await store.keys.create(sooner)
        generation, found = await store.keys.all()
        assert list(found) == [sooner, later]
        assert generation == 2

    async def test_every_change_of_keys_raises_the_generation_and_nothing_else_does(self, store: Store, samples: ModuleType) -> None:
        now_ns = samples.NOW_NS
        await store.keys.create(samples.key(1))
        assert await store.keys.generation() == 1
        with pytest.raises(StoreError, match="a key key000000001 already"):
            await store.keys.create(samples.key(1, name="again"))
        assert not await store.keys.revoke("nobody", now_ns=now_ns)
        assert not await store.keys.replace_digest("nobody", b"d" * 32, now_ns=now_ns)
        assert await store.keys.generation() == 1
        assert await store.keys.replace_digest("key000000001", b"d" * 32, now_ns=now_ns)
        assert await store.keys.revoke("key000000001", now_ns=now_ns)
        assert await store.keys.generation() == 3
        assert not await store.keys.revoke("key000000001", now_ns=now_ns + 1)
        assert not await store.keys.replace_digest("key000000001", b"e" * 32, now_ns=now_ns)
        generation, found = await store.keys.all()
        assert (generation, found[0].digest, found[0].revoked_ns) == (3, b"d" * 32, now_ns)

    async def test_an_expired_key_gets_no_new_secret(self, store: Store, samples: ModuleType) -> None:
        await store.keys.create(samples.key(1, expires_ns=samples.NOW_NS))
        assert not await store.keys.replace_digest("key000000001", b"d" * 32, now_ns=samples.NOW_NS)

    async def test_a_heartbeat_closes_nothing_of_the_living(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        assert await store.heartbeat(now_ns=samples.NOW_NS + 1, lease_ns=10) == 0
        assert await store.heartbeat(now_ns=samples.NOW_NS + 10**15, lease_ns=10) == 0
        await store.check()
        await store.journal.finish(samples.completed(1), response=None)
