"""What every store promises of sessions. Inherit `SessionConformance` and give it a `store` fixture: an open, empty store."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from gateway.call import CallRecord, Origin, Outcome, Principal, ToolUse
from gateway.session import SessionFacts, SessionKey, SessionQuery
from gateway.store.protocol import Intent, Store

HOUR_NS = 3_600_000_000_000
KEY = SessionKey("key000000001", "s-1")
OTHER = SessionKey("key000000001", "s-2")


class Life:
    """Calls of sessions, as the proxy records them: each step of it is one verb of the journal."""

    def __init__(self, store: Store, samples: ModuleType) -> None:
        self.store = store
        self.samples = samples
        self.now_ns: int = samples.NOW_NS
        self._n = 0

    def record(self, key: SessionKey = KEY, **changes: Any) -> CallRecord:
        self._n += 1
        made: CallRecord = self.samples.record(self._n, received_ns=self.now_ns, labels=(), **changes)
        return replace(made, principal=replace(made.principal, id=key.principal), origin=Origin(session=key.id or None))

    async def begin(self, record: CallRecord) -> CallRecord:
        await self.store.journal.begin(Intent(record, self.samples.TARGET, b"{}"))
        return record

    async def end(self, record: CallRecord, response: bytes | None = None, **changes: Any) -> CallRecord:
        ended = replace(record, **{
            "outcome": Outcome.COMPLETED, "status": 200, "ended_ns": self.now_ns, "cost_nusd": 0, "attempts": (self.samples.attempt(1),),
            **changes,
        })
        await self.store.journal.finish(ended, response=response)
        return ended

    async def http(
        self, tool: str, args: dict[str, Any] | None = None, *, key: SessionKey = KEY, reply: bytes | None = b'{"status":200,"json":{}}',
        outcome: Outcome = Outcome.COMPLETED,
    ) -> None:
        """A call of an HTTP tool from its beginning to its end."""
        await self.end(await self.open_http(tool, args, key=key), reply, outcome=outcome)

    async def open_http(self, tool: str, args: dict[str, Any] | None = None, *, key: SessionKey = KEY) -> CallRecord:
        record = self.record(key, operation="tool", route=tool)
        use = ToolUse(record.id, record.id, tool, "http", args or {}, released=True, at_ns=self.now_ns)
        return await self.begin(replace(record, tool_uses=(use,)))

    async def proposes(self, *uses: tuple[str, str, dict[str, Any], bool], key: SessionKey = KEY) -> None:
        """A model call whose answer proposes tool calls: id, name, arguments, whether the application got it."""
        record = await self.begin(self.record(key))
        made = tuple(ToolUse(record.id, use_id, name, "model", args, released, self.now_ns) for use_id, name, args, released in uses)
        await self.end(record, tool_uses=made)

    async def brings(self, *results: tuple[str, str], key: SessionKey = KEY) -> None:
        """A model call that brings results of tools."""
        await self.end(await self.begin(self.record(key, tool_results=results)))

    async def facts(self, *queries: SessionQuery, key: SessionKey = KEY) -> SessionFacts:
        return await self.store.sessions.facts(key, frozenset(queries), now_ns=self.now_ns)

    async def answer(self, query: SessionQuery, key: SessionKey = KEY) -> Any:
        """The answer to one question; `KeyError` where there is none."""
        return (await self.facts(query, key=key)).answers[query]


class SessionConformance:
    """Sessions and bundles, through the protocol alone."""

    @pytest.fixture
    def life(self, store: Store, samples: ModuleType) -> Life:
        return Life(store, samples)

    # ---- What is known of a session.

    async def test_an_unknown_session_has_begun_now(self, life: Life) -> None:
        assert await life.facts() == SessionFacts()

    async def test_a_call_that_was_let_through_counts_at_once_and_its_cost_when_it_has_ended(self, life: Life) -> None:
        first = await life.begin(life.record())
        assert await life.facts() == SessionFacts(calls=1)
        await life.end(first, cost_nusd=1500)
        await life.end(await life.begin(life.record()), cost_nusd=None)
        await life.end(await life.begin(life.record()), cost_nusd=20)
        life.now_ns += 90_000_000_000
        assert await life.facts() == SessionFacts(age_s=90.0, calls=3, spend_nusd=1520)

    async def test_a_refused_call_does_not_count_and_still_labels(self, life: Life) -> None:
        refused = life.record(outcome=Outcome.REFUSED, decision="deny", code="forbidden", cost_nusd=0)
        await life.store.journal.refuse(replace(refused, labels=("tried",), answer_labels=("late",)), request=None)
        life.now_ns += HOUR_NS
        assert await life.facts() == SessionFacts(age_s=3600.0, labels=("tried", "late"))

    async def test_labels_add_up_once_each_and_none_is_lost(self, life: Life) -> None:
        first = await life.begin(replace(life.record(), labels=("a", "b")))
        await life.end(first, answer_labels=("b", "secret"))
        await life.end(await life.begin(replace(life.record(), labels=("a", "c"))))
        assert (await life.facts()).labels == ("a", "b", "secret", "c")

    async def test_labels_are_bounded_and_the_first_ones_stay(self, life: Life) -> None:
        await life.begin(replace(life.record(), labels=("secret", "x" * 500)))
        await life.begin(replace(life.record(), labels=tuple(f"label-{n}" for n in range(400))))
        await life.begin(replace(life.record(), labels=("late",)))
        labels = (await life.facts()).labels
        assert len(labels) == 200
        assert labels[:3] == ("secret", "x" * 200, "label-0")

    async def test_the_same_name_is_another_session_for_another_principal(self, life: Life) -> None:
        await life.begin(replace(life.record(), labels=("mine",)))
        await life.http("kyc.check")
        for stranger in (SessionKey("key000000002", "s-1"), OTHER, SessionKey("key000000001", "S-1")):
            query = SessionQuery("called", "kyc.check")
            assert await life.facts(query, key=stranger) == SessionFacts(answers={query: False})

    async def test_a_call_without_a_session_opens_none(self, life: Life) -> None:
        nowhere = SessionKey("key000000001", "")
        await life.proposes(("c1", "mail.send", {}, True), key=nowhere)
        assert await life.facts(key=nowhere) == SessionFacts()

    async def test_a_session_named_in_no_utf_8_is_found_again(self, life: Life) -> None:
        hostile = SessionKey("key000000001", "\udcff\x00' OR 1=1 --")
        await life.http("mail.send", {"to": "\ud800"}, key=hostile)
        assert (await life.facts(key=hostile)).calls == 1
        assert await life.answer(SessionQuery("called", "mail.send"), key=hostile)
        assert not await life.answer(SessionQuery("called", "mail.send' OR 1=1 --"), key=hostile)

    async def test_spend_beyond_64_bits_stays_at_the_most_there_is(self, life: Life) -> None:
        for _ in range(3):
            await life.end(await life.begin(life.record()), cost_nusd=2**62, attempts=())
        assert (await life.facts()).spend_nusd == 2**63 - 1

    # ---- Questions about tools.

    async def test_a_tool_counts_once_the_gateways_call_of_it_has_succeeded(self, life: Life) -> None:
        called, count = SessionQuery("called", "kyc.check"), SessionQuery("count", "kyc.check")
        opened = await life.open_http("kyc.check")
        assert (await life.facts(called, count)).answers == {called: False, count: 0}
        await life.end(opened)
        assert (await life.facts(called, count)).answers == {called: True, count: 1}

    @pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.COMPLETED])
    async def test_a_call_of_a_tool_that_did_not_complete_does_not_count(self, life: Life, outcome: Outcome) -> None:
        await life.http("kyc.check", outcome=outcome)
        assert await life.answer(SessionQuery("count", "kyc.check")) == 0

    async def test_a_refused_call_of_a_tool_does_not_count(self, life: Life) -> None:
        record = life.record(operation="tool", route="bank.pay", outcome=Outcome.REFUSED, code="forbidden", decision="deny", cost_nusd=0)
        for released in (True, False):
            use = ToolUse(record.id, record.id, "bank.pay", "http", {"amount": 5}, released, life.now_ns)
            await life.store.journal.refuse(replace(record, id=f"{record.id}{released}", tool_uses=(use,)), request=None)
        assert await life.answer(SessionQuery("count", "bank.pay")) == 0
        assert await life.answer(SessionQuery("sum", "bank.pay", path="args.amount")) == 0.0

    async def test_a_proposed_tool_call_counts_if_the_application_got_it(self, life: Life) -> None:
        await life.proposes(("c1", "mail.send", {}, True), ("c2", "mail.send", {}, False), ("c3", "mail.send", {}, True))
        assert await life.answer(SessionQuery("count", "mail.send")) == 2

    async def test_a_question_may_look_back_for_some_time_only(self, life: Life) -> None:
        await life.http("kyc.check", {"n": 1})
        life.now_ns += HOUR_NS
        await life.proposes(("c1", "kyc.check", {"n": 2}, True))
        life.now_ns += HOUR_NS // 2
        asked = {
            SessionQuery("count", "kyc.check", 3600.0): 1, SessionQuery("count", "kyc.check", 5400.0): 2,
            SessionQuery("called", "kyc.check", 1.0): False, SessionQuery("count", "kyc.check", 1e15): 2,
            SessionQuery("sum", "kyc.check", 3600.0, "args.n"): 2.0, SessionQuery("last", "kyc.check", 60.0): None,
        }
        assert (await life.facts(*asked)).answers == asked

    async def test_a_sum_adds_the_numbers_of_the_uses_that_count(self, life: Life) -> None:
        await life.http("bank.pay", {"amount": 10, "deep": {"er": 1}})
        await life.http("bank.pay", {"amount": 2.5, "deep": {"er": 2}})
        await life.http("bank.pay", {"amount": 1000}, outcome=Outcome.FAILED)
        await life.proposes(("c1", "bank.pay", {"amount": 1, "deep": {"er": 4}}, True), ("c2", "bank.pay", {"amount": 500}, False))
        assert await life.answer(SessionQuery("sum", "bank.pay", path="args.amount")) == 13.5
        assert await life.answer(SessionQuery("sum", "bank.pay", path="args.deep.er")) == 7.0
        assert await life.answer(SessionQuery("sum", "never.called", path="args.amount")) == 0.0

    @pytest.mark.parametrize("args", [
        {"amount": "10"}, {"amount": True}, {"amount": None}, {"amount": [1]}, {"Amount": 1}, {}, {"amount": {"value": 1}},
        {"amount": 1.7e308},
    ])
    async def test_a_sum_of_what_is_no_number_has_no_answer(self, life: Life, args: dict[str, Any]) -> None:
        """Arguments that the journal may not keep are among these: the rule that asks fails closed."""
        await life.http("bank.pay", {"amount": 1.7e308 if args.get("amount") == 1.7e308 else 10})
        await life.http("bank.pay", args)
        query = SessionQuery("sum", "bank.pay", path="args.amount")
        assert (await life.facts(query)).answers == {}

    @pytest.mark.parametrize("dotted", ["amount", "arg.amount", "", "args", "result.amount", "args..amount"])
    async def test_a_sum_of_anything_but_a_number_among_the_arguments_has_no_answer(self, life: Life, dotted: str) -> None:
        await life.http("bank.pay", {"amount": 10})
        assert (await life.facts(SessionQuery("sum", "bank.pay", path=dotted))).answers == {}

    @pytest.mark.parametrize(("reply", "result"), [
        (b'{"status":200,"content_type":"application/json","json":{"ok":true}}', {"ok": True}),
        (b'{"status":200,"content_type":"application/json","json":null}', None),
        (b'{"status":200,"content_type":"text/plain","text":"fine"}', "fine"),
        (None, None), (b"", None), (b"[1]", None), (b"\xff", None),
    ])
    async def test_the_last_call_of_an_http_tool_is_told_with_what_came_back(
        self, life: Life, reply: bytes | None, result: Any,
    ) -> None:
        await life.http("kyc.check", {"who": "old"})
        life.now_ns += 1
        await life.http("kyc.check", {"who": "bob"}, reply=reply)
        life.now_ns += HOUR_NS
        await life.http("kyc.check", {"who": "failed"}, outcome=Outcome.CUT)
        assert await life.answer(SessionQuery("last", "kyc.check")) == {
            "args": {"who": "bob"}, "result": result, "at_ns": life.now_ns - HOUR_NS}

    @pytest.mark.parametrize(("said", "result"), [('{"clear":true}', {"clear": True}), ("[1]", [1]), ("clear", "clear"), ("7", "7"), ("{", "{")])
    async def test_the_last_proposed_call_is_told_with_the_result_that_the_client_brought(
        self, life: Life, said: str, result: Any,
    ) -> None:
        await life.proposes(("c1", "kyc.check", {"who": "bob"}, True))
        at_ns = life.now_ns
        query = SessionQuery("last", "kyc.check")
        assert await life.answer(query) == {"args": {"who": "bob"}, "result": None, "at_ns": at_ns}
        life.now_ns += HOUR_NS
        await life.brings(("c1", said))
        assert await life.answer(query) == {"args": {"who": "bob"}, "result": result, "at_ns": at_ns}

    async def test_the_first_result_of_a_call_stays(self, life: Life) -> None:
        """A client sends its conversation again with each call, and may have shortened or rewritten it."""
        await life.proposes(("c1", "kyc.check", {}, True))
        await life.brings(("c1", "hit"))
        await life.brings(("c1", "clear"))
        assert (await life.answer(SessionQuery("last", "kyc.check")))["result"] == "hit"

    async def test_an_id_that_is_used_again_has_a_result_again(self, life: Life) -> None:
        """Some models number the calls of each answer from 0."""
        query = SessionQuery("last", "kyc.check")
        await life.proposes(("call_0", "kyc.check", {"n": 1}, True))
        await life.brings(("call_0", "clear"))
        life.now_ns += 1
        await life.proposes(("call_0", "kyc.check", {"n": 2}, True))
        assert (await life.answer(query))["result"] is None
        await life.brings(("call_0", "clear"), ("call_0", "hit"))
        assert await life.answer(query) == {"args": {"n": 2}, "result": "hit", "at_ns": life.now_ns}

    async def test_a_result_stays_in_its_session_and_with_the_calls_that_were_let_through(self, life: Life) -> None:
        await life.proposes(("call_0", "kyc.check", {}, True))
        await life.proposes(("call_0", "kyc.check", {}, True), key=OTHER)
        await life.proposes(("call_0", "kyc.check", {}, False))
        await life.brings(("call_0", "clear"), ("never proposed", "clear"), key=OTHER)
        assert (await life.answer(SessionQuery("last", "kyc.check")))["result"] is None
        assert (await life.answer(SessionQuery("last", "kyc.check"), key=OTHER))["result"] == "clear"
        await life.brings(("call_0", "hit"))
        assert (await life.answer(SessionQuery("last", "kyc.check")))["result"] == "hit"

    async def test_of_more_results_than_any_answer_asks_for_the_latest_are_kept(self, life: Life) -> None:
        await life.proposes(("old", "a", {}, True), ("new", "b", {}, True))
        await life.brings(("old", "1"), *((f"c{n}", "x") for n in range(500)), ("new", "2"))
        a, b = SessionQuery("last", "a"), SessionQuery("last", "b")
        answers = (await life.facts(a, b)).answers
        assert (answers[a]["result"], answers[b]["result"]) == (None, "2")

    async def test_questions_of_one_moment_are_answered_together(self, life: Life) -> None:
        await life.http("a", {"n": 1})
        await life.http("b", {"n": 2})
        asked = {SessionQuery("called", "a"): True, SessionQuery("count", "b"): 1, SessionQuery("sum", "b", path="args.n"): 2.0}
        assert await life.facts(*asked) == SessionFacts(calls=2, answers=asked)

    # ---- Calls under way, proposals, turns.

    async def test_a_tool_is_in_flight_from_its_intent_to_its_outcome(self, life: Life) -> None:
        sessions = life.store.sessions
        tools = frozenset({"kyc.check", "other"})
        assert not await sessions.in_flight(KEY, tools)
        opened = await life.open_http("kyc.check")
        assert await sessions.in_flight(KEY, tools)
        assert not await sessions.in_flight(KEY, frozenset({"other"}))
        assert not await sessions.in_flight(KEY, frozenset())
        assert not await sessions.in_flight(OTHER, tools)
        await life.end(opened, outcome=Outcome.FAILED)
        assert not await sessions.in_flight(KEY, tools)

    async def test_what_a_model_proposed_is_nothing_that_the_gateway_waits_for(self, life: Life) -> None:
        await life.proposes(("c1", "kyc.check", {}, True))
        await life.begin(life.record(route="kyc.check"))
        assert not await life.store.sessions.in_flight(KEY, frozenset({"kyc.check"}))

    async def test_ids_are_released_denied_or_unknown(self, life: Life) -> None:
        await life.proposes(("let", "t", {}, True), ("kept", "t", {}, False))
        await life.proposes(("elsewhere", "t", {}, True), key=SessionKey("key000000001", ""))
        await life.proposes(("theirs", "t", {}, True), key=SessionKey("key000000002", "s-1"))
        released = await life.store.sessions.released("key000000001", ["let", "kept", "elsewhere", "theirs", "made up", "let", "\ud800"])
        assert released == {"let": True, "kept": False, "elsewhere": True}
        assert await life.store.sessions.released("key000000001", []) == {}

    async def test_an_id_that_was_ever_released_is(self, life: Life) -> None:
        for released in (False, True, False):
            await life.proposes(("call_0", "t", {}, released))
        assert await life.store.sessions.released("key000000001", ["call_0"]) == {"call_0": True}

    async def test_one_holds_a_sessions_turn_until_it_leaves(self, life: Life) -> None:
        sessions, now_ns = life.store.sessions, life.now_ns
        until_ns = now_ns + HOUR_NS
        assert await sessions.enter(KEY, "one", now_ns=now_ns, until_ns=until_ns)
        assert not await sessions.enter(KEY, "two", now_ns=now_ns, until_ns=until_ns)
        assert await sessions.enter(KEY, "one", now_ns=now_ns, until_ns=until_ns)  # again, after an answer that was lost
        assert await sessions.enter(OTHER, "two", now_ns=now_ns, until_ns=until_ns)
        await sessions.leave(KEY, "two")
        assert not await sessions.enter(KEY, "two", now_ns=now_ns, until_ns=until_ns)
        await sessions.leave(KEY, "one")
        await sessions.leave(KEY, "one")
        assert await sessions.enter(KEY, "two", now_ns=now_ns, until_ns=until_ns)

    async def test_a_turn_that_nobody_left_is_free_after_its_time(self, life: Life) -> None:
        sessions, now_ns = life.store.sessions, life.now_ns
        assert await sessions.enter(KEY, "one", now_ns=now_ns, until_ns=now_ns + 10)
        assert not await sessions.enter(KEY, "two", now_ns=now_ns + 10, until_ns=now_ns + 20)
        assert await sessions.enter(KEY, "two", now_ns=now_ns + 11, until_ns=now_ns + 20)
        await sessions.leave(KEY, "one")  # it comes too late, and takes nothing away
        assert not await sessions.enter(KEY, "three", now_ns=now_ns + 12, until_ns=now_ns + 20)

    # ---- Bundles.

    async def test_a_bundle_is_kept_once_and_comes_back_as_it_was(self, life: Life) -> None:
        bundles = life.store.bundles
        large = b"rule = 1\n" * 10_000
        await bundles.keep("sha256:aa", large, now_ns=1)
        await bundles.keep("sha256:aa", b"another", now_ns=2)
        await bundles.keep("sha256:bb", b"", now_ns=3)
        assert [await bundles.content(digest) for digest in ("sha256:aa", "sha256:bb", "sha256:cc")] == [large, b"", None]

    # ---- One call.

    async def test_a_call_shows_the_tool_calls_that_it_made_and_proposed(self, life: Life) -> None:
        opened = await life.open_http("kyc.check", {"who": "bob"})
        seen = await life.store.journal.call(opened.id)
        assert seen is not None
        made = {"id": opened.id, "name": "kyc.check", "via": "http", "released": True, "at_ns": life.now_ns, "args": {"who": "bob"}}
        assert seen["tool_uses"] == [made]
        proposal = ToolUse(opened.id, "c1", "mail.send", "model", {}, released=False, at_ns=life.now_ns)
        await life.end(opened, tool_uses=(*opened.tool_uses, proposal))
        seen = await life.store.journal.call(opened.id)
        assert seen is not None
        assert seen["tool_uses"] == [made, {**made, "id": "c1", "name": "mail.send", "via": "model", "released": False, "args": {}}]

    async def test_a_principal_that_is_nobodys_key_has_sessions_too(self, life: Life) -> None:
        key = SessionKey(Principal("anonymous").id, "s-1")
        await life.http("a", key=key)
        assert (await life.facts(key=key)).calls == 1
