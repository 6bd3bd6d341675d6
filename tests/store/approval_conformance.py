"""What every store promises of approvals, grants and notices. Inherit `ApprovalConformance` and give it a `store` fixture: open, empty."""

import asyncio
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.core.approval import OPEN, TABLE, WAITS_FOR, Demand, Event, NotPossibleError, Result, Stage, State, Ticket
from gateway.core.approval_bounds import Bounds
from gateway.errors import StoreError
from gateway.store.approval_rows import HISTORY_FIELDS, NOTICE_FIELDS, size_of, ticket_values
from gateway.store.approvals_protocol import Claim, Notice, QueueFullError, TicketFilter, Unclaimed
from gateway.store.protocol import Admitted, CallFilter, Intent, Store

_spec = importlib.util.spec_from_file_location("approval_samples", Path(__file__).with_name("approval_samples.py"))
assert _spec is not None
assert _spec.loader is not None
some = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(some)

NOW_NS, S, at_ns = some.NOW_NS, some.S, some.at_ns
SIZE = size_of(ticket_values(some.ticket(100)))  # of each ticket whose number has three digits
RESULT = Result(200, "application/json", b'{"paid":true}' * 300, {"x-lockgate-call": "call_1"})


class ApprovalConformance:
    """Approvals, through the protocol alone."""

    @pytest.fixture
    def desk(self, store: Store) -> Any:
        return some.Desk(store)

    async def test_a_ticket_comes_back_as_it_was_opened(self, store: Store, desk: Any) -> None:
        given = some.ticket(
            1, demands=(Demand("r", (Stage(("role:a", "team:b"), 2), Stage()), 3, ("role:c",)), some.ONE), mode="execute", kind="request",
            irreversible=True, notify=("ops", "chat"), on_behalf_of="ann", edited_from="apr_0", patch=[{"op": "replace"}], body=b"b" * 9000)
        assert await store.approvals.generation() == 0
        opened = await store.approvals.open(given, bounds=Bounds(5))
        assert opened == replace(given, changed=1)
        assert await desk.get(1) == opened
        assert await store.approvals.find(some.KEY, given.presented) == opened
        assert (await store.approvals.list(TicketFilter()), await store.approvals.counts()) == ([opened], {"pending": 1})
        assert (await store.approvals.generation(), await store.approvals.changed(0, 9)) == (1, [(given.id, State.PENDING, 1)])
        (row,) = await store.approvals.history(given.id)
        assert tuple(row) == HISTORY_FIELDS
        assert (row["event"], row["state"], row["at_ns"], row["author"]) == ("open", "pending", given.created_ns, some.KEY)

    async def test_nothing_is_known_of_what_nobody_opened(self, store: Store) -> None:
        approvals = store.approvals
        assert await approvals.get("apr_9") is None
        assert await approvals.find(some.KEY, some.digest(9)) is None
        assert (await approvals.history("apr_9"), await approvals.counts(), await approvals.list(TicketFilter())) == ([], {}, [])
        for change in (
            approvals.vote("apr_9", some.vote(some.ticket(9))), approvals.happen("apr_9", Event.WITHDRAW, now_ns=NOW_NS),
            approvals.delivered("apr_9", now_ns=NOW_NS),
            approvals.replace("apr_9", some.ticket(1, edited_from="apr_9"), author="ada", now_ns=NOW_NS),
        ):
            with pytest.raises(NotPossibleError, match="no approval 'apr_9'"):
                await change
        assert not await approvals.release(Claim("apr_9", some.digest(9), 0), call_id="call_1", keep=False, now_ns=NOW_NS)
        assert await approvals.generation() == 0

    async def test_the_same_action_of_the_same_caller_has_one_ticket(self, store: Store, desk: Any) -> None:
        first = await desk.open(1)
        again = await store.approvals.open(some.ticket(2, presented=first.presented, digest=first.digest), [some.notice(2)], bounds=Bounds(5))
        assert again == first
        assert await desk.approvals.get(some.ticket(2).id) is None
        assert await store.outbox.list(9) == []
        others = await store.approvals.open(some.ticket(3, presented=first.presented, principal="key2"), bounds=Bounds(5))
        assert others.id != first.id
        assert await store.approvals.find("key2", first.presented) == others

    async def test_of_many_that_open_at_once_one_does(self, store: Store) -> None:
        same = [some.ticket(n, presented=some.digest("same")) for n in range(20)]
        assert len({each.id for each in await asyncio.gather(*(store.approvals.open(each, bounds=Bounds(5)) for each in same))}) == 1

    @pytest.mark.parametrize("state", sorted(OPEN))
    async def test_whatever_may_still_come_of_something_is_found_and_not_opened_again(self, desk: Any, state: State) -> None:
        ticket = await self._in(desk, state)
        assert await desk.approvals.find(some.KEY, ticket.presented) == ticket
        assert await desk.approvals.open(some.ticket(2, presented=ticket.presented, created_ns=ticket.created_ns + 1), bounds=Bounds(9)) == ticket

    @pytest.mark.parametrize("state", sorted(set(State) - OPEN))
    async def test_what_has_ended_is_found_until_the_action_is_opened_again(self, desk: Any, state: State) -> None:
        ticket = await self._in(desk, state)
        assert await desk.approvals.find(some.KEY, ticket.presented) == ticket
        again = await desk.approvals.open(some.ticket(2, presented=ticket.presented, created_ns=ticket.created_ns + 1), bounds=Bounds(9))
        assert (again.id, again.state) == (some.ticket(2).id, State.PENDING)
        assert await desk.approvals.find(some.KEY, ticket.presented) == again
        await desk.approvals.happen(again.id, Event.WITHDRAW, now_ns=at_ns(9))
        assert (await desk.approvals.find(some.KEY, ticket.presented)).id == again.id

    async def test_what_nobody_decided_in_time_is_opened_anew_before_any_sweep(self, store: Store, desk: Any) -> None:
        store.approvals.tell(some.told)
        old = await desk.open(1)
        late = some.ticket(2, presented=old.presented, created_ns=old.expires_ns)
        assert (await store.approvals.open(late, bounds=Bounds(9))).id == late.id
        assert (await desk.state(old), [row["kind"] for row in await store.outbox.list(9)]) == (State.EXPIRED, ["expired"])
        taken_over = await desk.open(3, demands=(replace(some.ONE, escalate=("role:cfo",)),))
        late = some.ticket(4, presented=taken_over.presented, created_ns=taken_over.expires_ns)
        found = await store.approvals.open(late, bounds=Bounds(9))
        assert (found.id, found.state, found.demands[0].stages[0].approvers) == (taken_over.id, State.PENDING, ("role:cfo",))
        assert [row["kind"] for row in await store.outbox.list(9)] == ["escalated", "expired"]

    async def test_the_queue_has_a_bound(self, store: Store, desk: Any) -> None:
        first = await desk.open(1)
        with pytest.raises(QueueFullError, match="1 approvals are pending"):
            await store.approvals.open(some.ticket(2), [some.notice(2)], bounds=Bounds(1), kept=some.kept(some.ticket(2)))
        assert await store.approvals.get(some.ticket(2).id) is None
        assert await store.outbox.list(9) == []
        assert await store.approvals.kept(some.KEY, some.digest("asked"), now_ns=NOW_NS) is None
        assert await store.approvals.open(some.ticket(3, presented=first.presented), bounds=Bounds(1)) == first
        await store.approvals.vote(first.id, some.vote(first))
        assert (await store.approvals.open(some.ticket(2), bounds=Bounds(1))).state is State.PENDING
        with pytest.raises(QueueFullError):
            await store.approvals.open(some.ticket(4), bounds=Bounds(0))

    async def test_a_caller_has_a_bound_of_their_own(self, store: Store, desk: Any) -> None:
        first = await store.approvals.open(some.ticket(1), bounds=Bounds(9, 1))
        with pytest.raises(QueueFullError, match="1 approvals of this caller"):
            await store.approvals.open(some.ticket(2), [some.notice(2)], bounds=Bounds(9, 1))
        assert await store.approvals.get(some.ticket(2).id) is None
        assert await store.approvals.open(some.ticket(3, presented=first.presented), bounds=Bounds(9, 1)) == first
        assert (await store.approvals.open(some.ticket(4, principal="key2"), bounds=Bounds(9, 1))).state is State.PENDING
        await store.approvals.vote(first.id, some.vote(first))
        assert (await store.approvals.open(some.ticket(2), bounds=Bounds(9, 1))).state is State.PENDING
        assert await desk.state(first) is State.APPROVED

    async def test_what_one_caller_asks_within_an_hour_is_bounded_whatever_becomes_of_it(self, store: Store, desk: Any) -> None:
        bounds, hour_ns = Bounds(99, 99, opened_each=3), 3600 * S
        for n in range(3):
            opened = await store.approvals.open(some.ticket(n, created_ns=NOW_NS), bounds=bounds)
            await store.approvals.happen(opened.id, Event.WITHDRAW, now_ns=NOW_NS)
        with pytest.raises(QueueFullError, match=r"3 approvals within an hour.*`approvals\.max_opened_each`") as caught:
            await store.approvals.open(some.ticket(3, created_ns=NOW_NS), [some.notice(3)], bounds=bounds, kept=some.kept(some.ticket(3)))
        assert (caught.value.full.often, caught.value.full.retry_after_s) == (True, 1200)
        assert (await store.approvals.get(some.ticket(3).id), await store.outbox.list(9)) == (None, [])
        assert (await store.approvals.open(some.ticket(4, principal="key2", created_ns=NOW_NS), bounds=bounds)).state is State.PENDING
        with pytest.raises(QueueFullError):
            await store.approvals.open(some.ticket(3, created_ns=NOW_NS + hour_ns // 3 - S), bounds=bounds)
        later = await store.approvals.open(
            some.ticket(3, created_ns=NOW_NS + hour_ns // 3, expires_ns=NOW_NS + hour_ns), bounds=bounds)
        found = await store.approvals.open(some.ticket(5, presented=later.presented, created_ns=NOW_NS + hour_ns // 3), bounds=bounds)
        assert found == later  # what is there is no further one, and is no asking
        assert await desk.state(later) is State.PENDING

    async def test_of_many_that_open_at_once_no_more_than_the_bounds_allow_do(self, store: Store) -> None:
        for each, bounds in enumerate((Bounds(7), Bounds(99, 7), Bounds(99, opened_each=7), Bounds(99, pending_bytes_each=7 * SIZE)), 1):
            asked = [some.ticket(100 * each + n, principal=f"key-{each}", created_ns=NOW_NS) for n in range(20)]
            told = await asyncio.gather(*(store.approvals.open(ticket, bounds=bounds) for ticket in asked), return_exceptions=True)
            assert (sum(isinstance(one, Ticket) for one in told), sum(isinstance(one, QueueFullError) for one in told)) == (7, 13)
            for one in told:
                if isinstance(one, Ticket):
                    await store.approvals.happen(one.id, Event.WITHDRAW, now_ns=NOW_NS)

    async def test_what_is_pending_has_a_bound_of_bytes_in_all_and_of_each_caller(self, store: Store, desk: Any) -> None:
        first = await store.approvals.open(some.ticket(101), bounds=Bounds(9, pending_bytes=2 * SIZE))
        await store.approvals.open(some.ticket(102, principal="key2"), bounds=Bounds(9, pending_bytes=2 * SIZE))
        with pytest.raises(QueueFullError, match=rf"hold {2 * SIZE} bytes already; this one has {SIZE}, and `approvals\.max_pending_bytes`"):
            await store.approvals.open(some.ticket(103, principal="key3"), [some.notice(3)], bounds=Bounds(9, pending_bytes=3 * SIZE - 1))
        with pytest.raises(QueueFullError, match=r"of this caller.*`approvals\.max_pending_bytes_each`"):
            await store.approvals.open(some.ticket(103), bounds=Bounds(9, pending_bytes_each=2 * SIZE - 1))
        assert (await store.approvals.get(some.ticket(103).id), await store.outbox.list(9)) == (None, [])
        only = Bounds(9, pending_bytes_each=2 * SIZE - 1)
        await store.approvals.vote(first.id, some.vote(first))
        second = await store.approvals.open(some.ticket(103), bounds=only)  # what is decided does not wait
        await store.approvals.happen(first.id, Event.STRENGTHEN, now_ns=at_ns(2), demands=(some.TWO,))
        assert await desk.state(first) is State.PENDING  # what people are asked about again waits again
        both = Bounds(9, pending_bytes_each=3 * SIZE - 1)
        with pytest.raises(QueueFullError, match=f"hold {2 * SIZE} bytes"):
            await store.approvals.open(some.ticket(104), bounds=both)
        await store.approvals.happen(first.id, Event.DENY, now_ns=at_ns(3))
        edited = some.ticket(105, presented=second.presented, edited_from=second.id)
        await store.approvals.replace(second.id, edited, author="ada", now_ns=at_ns(3))
        assert (await store.approvals.open(some.ticket(104), bounds=both)).state is State.PENDING  # an edited one is in place of the other
        assert await store.approvals.sweep(now_ns=at_ns(9_999), results_before_ns=0)
        large = some.ticket(106, body=bytes(range(256)) * 99, created_ns=at_ns(9_999), expires_ns=at_ns(99_999))
        assert (await store.approvals.open(large, bounds=only)).state is State.PENDING  # alone, it goes in: it could else never

    async def test_a_result_that_waited_for_people_takes_its_place_once(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await desk.end(1, ticket, Event.SUCCEED, Result(409, "", b"", {WAITS_FOR: "apr_2"}))
        before = await desk.get(ticket)
        assert (before.next, before.answer) == ("apr_2", None)
        await store.approvals.answer(ticket.id, RESULT, now_ns=at_ns(5))
        now = await desk.get(ticket)
        assert (now.state, now.next, now.answer, now.changed) == (State.SUCCEEDED, "", RESULT, before.changed + 1)
        assert (await desk.events(ticket))[-2:] == ["succeed", "answer"]
        await store.approvals.answer(ticket.id, replace(RESULT, status=500), now_ns=at_ns(6))
        assert await desk.get(ticket) == now
        with pytest.raises(NotPossibleError):
            await store.approvals.answer("apr_9", RESULT, now_ns=at_ns(6))

    async def test_an_edited_action_is_found_by_what_was_presented_and_by_what_it_is(self, store: Store, desk: Any) -> None:
        old = await desk.open(1)
        edited = some.ticket(2, digest=some.digest("edited"), presented=old.presented, edited_from=old.id, created_ns=NOW_NS)
        new = await store.approvals.replace(old.id, edited, [some.notice(1)], author="ada", now_ns=at_ns(3))
        assert (await desk.get(new), new.edited_from) == (new, old.id)
        assert [(each["event"], each["author"]) for each in await store.approvals.history(new.id)] == [("open", "ada")]  # who has made it so
        before = await desk.get(old)
        assert (before.state, before.replaced_by, before.ended_ns) == (State.WITHDRAWN, new.id, at_ns(3))
        assert await store.approvals.find(some.KEY, old.presented) == new
        assert await store.approvals.find(some.KEY, some.digest("edited")) == new
        assert await store.approvals.find("key2", some.digest("edited")) is None
        assert await store.approvals.open(some.ticket(3, presented=some.digest("edited"), digest=some.digest("edited")), bounds=Bounds(9)) == new
        assert [row["id"] for row in await store.outbox.list(9)] == ["ntc_0001"]
        await store.approvals.happen(new.id, Event.WITHDRAW, now_ns=at_ns(4))
        assert await store.approvals.find(some.KEY, some.digest("edited")) is None
        assert (await store.approvals.find(some.KEY, old.presented)).id == new.id  # type: ignore[union-attr] # it is there

    async def test_an_edit_that_cannot_be_changes_nothing(self, store: Store, desk: Any) -> None:
        old = await desk.approved(1)
        edited = some.ticket(2, presented=old.presented, edited_from=old.id)
        for wrong in (edited, replace(edited, fence=1)):
            with pytest.raises(NotPossibleError):
                await store.approvals.replace(old.id, wrong, author="ada", now_ns=at_ns(3))
        assert (await desk.get(old), await store.approvals.get(edited.id)) == (old, None)

    async def test_votes_are_kept_and_the_last_that_was_missing_approves(self, store: Store, desk: Any) -> None:
        ticket = await desk.open(1, demands=(some.TWO,))
        first, second = some.vote(ticket, "ada"), some.vote(ticket, "bob", at_s=5)
        one = await store.approvals.vote(ticket.id, first, [some.notice(1)])
        assert (one.state, one.votes, one.changed) == (State.PENDING, (first,), 2)
        two = await store.approvals.vote(ticket.id, second, [some.notice(2)])
        assert (two.state, two.votes, two.decided_ns, two.expires_ns) == (State.APPROVED, (first, second), at_ns(5), at_ns(65))
        assert await desk.get(ticket) == two
        assert [each.votes for each in await store.approvals.list(TicketFilter())] == [(first, second)]
        assert await desk.events(ticket) == ["open", "vote", "vote", "approve"]
        assert [row["id"] for row in await store.outbox.list(9)] == ["ntc_0002"]  # the first vote decided nothing

    @pytest.mark.parametrize(("changes", "at_s"), [
        ({"digest": some.digest("other")}, 1), ({}, 600), ({"voter": replace(some.vote(some.ticket(1)).voter, id=some.KEY)}, 1),
        ({"voter": replace(some.vote(some.ticket(1)).voter, id="olga")}, 1), ({"places": ()}, 1), ({"places": (("r", 0),)}, 1),
    ])
    async def test_a_vote_that_may_not_be_leaves_nothing(self, store: Store, desk: Any, changes: dict[str, Any], at_s: float) -> None:
        ticket = await desk.open(1)
        with pytest.raises(NotPossibleError):
            await store.approvals.vote(ticket.id, some.vote(ticket, at_s=at_s, **changes), [some.notice(1)], grant=some.grant(1))
        assert (await desk.get(ticket), await store.outbox.list(9), await store.approvals.grants()) == (ticket, [], [])

    async def test_a_person_has_one_vote_however_often_they_ask_at_once(self, desk: Any) -> None:
        ticket = await desk.open(1, demands=(some.TWO,))
        cast = [desk.approvals.vote(ticket.id, some.vote(ticket, "ada")) for _ in range(10)]
        told = await asyncio.gather(*cast, return_exceptions=True)
        assert sum(isinstance(each, Ticket) for each in told) == 1
        assert (await desk.get(ticket)).state is State.PENDING

    async def test_two_people_who_decide_at_the_same_moment_decide_once(self, desk: Any) -> None:
        for n in range(10):
            ticket = await desk.open(n)
            told = await asyncio.gather(
                desk.approvals.vote(ticket.id, some.vote(ticket, "ada")), desk.approvals.vote(ticket.id, some.vote(ticket, "bob", "deny")),
                return_exceptions=True)
            assert sorted(type(each).__name__ for each in told) == ["NotPossibleError", "Ticket"]

    async def test_a_grant_is_made_where_the_vote_approves_and_at_no_other_time(self, store: Store, desk: Any) -> None:
        ticket = await desk.open(1, demands=(some.TWO,))
        await store.approvals.vote(ticket.id, some.vote(ticket, "ada"), grant=some.grant(1))
        assert await store.approvals.grants() == []
        await store.approvals.vote(ticket.id, some.vote(ticket, "bob"), grant=some.grant(2))
        assert await store.approvals.grants() == [some.grant(2)]
        denied = await desk.open(2)
        await store.approvals.vote(denied.id, some.vote(denied, "bob", "deny"), grant=some.grant(3))
        twice = await desk.open(3)
        with pytest.raises(StoreError, match="a grant grt_0002 already"):
            await store.approvals.vote(twice.id, some.vote(twice), grant=some.grant(2))
        assert (await desk.state(twice), len(await store.approvals.grants())) == (State.PENDING, 1)
        with pytest.raises(NotPossibleError, match="one by one"):
            dire = await desk.open(4, irreversible=True)
            await store.approvals.vote(dire.id, some.vote(dire), grant=some.grant(4))

    @pytest.mark.parametrize(("state", "event"), [(state, event) for state in State for event in Event])
    async def test_an_event_happens_where_the_table_has_it(self, desk: Any, state: State, event: Event) -> None:
        """The store is asked for every pair: for votes and claims through their own verbs, so that every line of the table is taken."""
        ticket = await self._in(desk, state)
        possible = (state, event) in TABLE
        try:
            await self._let(desk, ticket, event)
        except NotPossibleError:
            assert not possible
        now = await desk.get(ticket)
        assert now.state is (TABLE[state, event] if possible else state)
        assert (now == ticket) is not possible
        if possible:
            assert await desk.approvals.changed(ticket.changed, 9) == [(now.id, now.state, now.changed)]
            assert event.value in await desk.events(ticket)

    async def _let(self, desk: Any, ticket: Ticket, event: Event) -> None:
        """Let an event happen, each by the verb that it is brought about with."""
        match event:
            case Event.APPROVE:
                await desk.approvals.vote(ticket.id, some.vote(ticket, "eve", at_s=3, places=((some.ONE.key, 0),)))
            case Event.CLAIM:
                await desk.begin(70, ticket, at_s=3)
            case Event.STRENGTHEN:
                await desk.approvals.happen(ticket.id, event, now_ns=at_ns(3), demands=[some.TWO])
            case _:
                await desk.approvals.happen(ticket.id, event, now_ns=at_ns(3), author="eve", reason="so")

    async def _in(self, desk: Any, state: State) -> Ticket:
        """A ticket in a state, by way of the verbs."""
        ticket = await desk.open(1)
        approvals = desk.approvals
        if state in (State.EXPIRED, State.WITHDRAWN):
            event = Event.EXPIRE if state is State.EXPIRED else Event.WITHDRAW
            return await approvals.happen(ticket.id, event, now_ns=at_ns(2))  # type: ignore[no-any-return]
        if state is not State.PENDING:
            ticket = await approvals.vote(ticket.id, some.vote(ticket, verdict="deny" if state is State.DENIED else "approve"))
        if state in (State.PENDING, State.APPROVED, State.DENIED):
            return ticket  # type: ignore[no-any-return]
        await desk.begin(60, ticket)
        ends = {State.SUCCEEDED: "succeed", State.FAILED: "fail", State.UNKNOWN: "lose"}
        if state in ends:
            await desk.end(60, ticket, ends[state])
        return await desk.get(ticket)  # type: ignore[no-any-return]

    async def test_an_event_that_happens_leaves_its_result_its_author_and_its_notices(self, store: Store, desk: Any) -> None:
        ticket = await self._in(desk, State.UNKNOWN)
        now = await store.approvals.happen(
            ticket.id, Event.SUCCEED, now_ns=at_ns(9), author="ada", reason="the bank says so", fence=1, result=RESULT,
            notices=[some.notice(1)])
        assert (now.state, now.reason, now.ended_ns, now.result) == (State.SUCCEEDED, "the bank says so", at_ns(9), RESULT)
        assert await desk.get(ticket) == now
        assert [row["id"] for row in await store.outbox.list(9)] == ["ntc_0001"]
        last = (await store.approvals.history(ticket.id))[-1]
        assert (last["event"], last["author"], last["reason"], last["call_id"]) == (
            "succeed", "ada", "the bank says so", some.samples.call_id(60))
        with pytest.raises(NotPossibleError, match="claimed once more"):
            await store.approvals.happen(ticket.id, Event.SUCCEED, now_ns=at_ns(9), fence=7, notices=[some.notice(2)])
        assert len(await store.outbox.list(9)) == 1

    async def test_stronger_demands_take_the_approval_back(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        now = await store.approvals.happen(ticket.id, Event.STRENGTHEN, now_ns=at_ns(3), demands=[some.ONE, some.TWO])
        assert (now.state, now.demands, now.decided_ns, now.expires_ns) == (State.PENDING, (some.ONE, some.TWO), None, at_ns(603))
        assert isinstance(await desk.begin(1, ticket), Unclaimed)
        for person in ("bob", "eve"):
            now = await store.approvals.vote(ticket.id, some.vote(now, person, at_s=4, places=((some.TWO.key, 0),)))
        assert now.state is State.APPROVED

    async def test_a_claim_is_part_of_the_intent_and_is_had_once(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        answers = await asyncio.gather(*(desk.begin(n, ticket) for n in range(64)))
        assert [isinstance(each, Admitted) for each in answers].count(True) == 1
        assert {each for each in answers if isinstance(each, Unclaimed)} == {Unclaimed(ticket.id)}
        winner = next(n for n, each in enumerate(answers) if isinstance(each, Admitted))
        now = await desk.get(ticket)
        assert (now.state, now.fence, now.executed_by) == (State.EXECUTING, 1, some.samples.call_id(winner))
        assert [row["id"] for row in await store.journal.calls(CallFilter(100))] == [some.samples.call_id(winner)]
        last = (await store.approvals.history(ticket.id))[-1]
        assert (last["event"], last["state"], last["fence"], last["call_id"]) == ("claim", "executing", 1, now.executed_by)
        assert now.changed == await store.approvals.generation()

    @pytest.mark.parametrize(("changes", "at_s"), [
        ({"digest": some.digest("other")}, 2), ({"fence": 1}, 2), ({"ticket": "apr_9"}, 2), ({}, 61), ({}, 10**6),
    ])
    async def test_what_was_looked_at_is_claimed_or_nothing(self, store: Store, desk: Any, changes: dict[str, Any], at_s: float) -> None:
        ticket = await desk.approved(1)
        claim = replace(some.claim_of(ticket), **changes)
        assert await desk.begin(1, claim, at_s=at_s) == Unclaimed(claim.ticket)
        assert (await store.journal.calls(CallFilter()), await desk.get(ticket)) == ([], ticket)

    async def test_an_approval_of_another_principal_is_not_to_be_had(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1, principal="key2")
        assert await desk.begin(1, ticket) == Unclaimed(ticket.id)
        await store.approvals.grant(some.grant(1, principal="key2"))
        assert await desk.begin(1, grants=("grt_0001",)) == Unclaimed("")
        assert await store.journal.calls(CallFilter()) == []

    async def test_an_intent_that_does_not_say_when_claims_nothing(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        intent = Intent(some.samples.record(1), some.samples.TARGET, None, claim=some.claim_of(ticket))
        assert await store.journal.begin(intent) == Unclaimed(ticket.id)

    async def test_a_call_that_is_on_record_claims_nothing_a_second_time(self, desk: Any) -> None:
        first, second = await desk.approved(1), await desk.approved(2)
        await desk.begin(1, first)
        with pytest.raises(StoreError, match="already recorded"):
            await desk.begin(1, second)
        assert await desk.state(second) is State.APPROVED

    async def test_where_money_is_short_nothing_is_claimed_and_what_cannot_be_claimed_needs_none(
        self, store: Store, desk: Any, samples: ModuleType,
    ) -> None:
        ticket = await desk.approved(1)
        await store.approvals.grant(some.grant(1))
        till = samples.Till(store, samples.budget(limit=10))
        asked = replace(samples.intent(1, decision="held"), claim=some.claim_of(ticket), grants=("grt_0001",), now_ns=at_ns(2), demand=(
            samples.Demand(till.book, till.subjects, replace(samples.tokens(50), rigid=True))))
        assert type(await store.journal.begin(asked)).__name__ == "Short"
        assert (await desk.state(ticket), (await store.approvals.grants())[0].uses) == (State.APPROVED, 2)
        gone = replace(asked, claim=replace(asked.claim, fence=9))
        assert await store.journal.begin(gone) == Unclaimed(ticket.id)

    async def test_the_end_of_a_call_ends_its_approval_with_the_result(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await desk.end(1, ticket, "succeed", RESULT)
        now = await desk.get(ticket)
        assert (now.state, now.result, now.ended_ns) == (State.SUCCEEDED, RESULT, some.samples.completed(1).ended_ns)
        assert await store.approvals.find(some.KEY, ticket.presented) == now
        assert [each.result for each in await store.approvals.list(TicketFilter())] == [None]
        assert await desk.events(ticket) == ["open", "vote", "approve", "claim", "succeed"]

    async def test_what_was_proven_unsent_is_claimed_again_under_the_next_fence(self, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await desk.end(1, ticket, "return", RESULT)
        back = await desk.get(ticket)
        assert (back.state, back.executed_by, back.fence) == (State.APPROVED, "", 1)
        assert back.expires_ns == ticket.expires_ns, "its time is absolute"
        assert await desk.begin(2, ticket) == Unclaimed(ticket.id)
        assert isinstance(await desk.begin(2, back), Admitted)
        assert (await desk.get(ticket)).fence == 2

    async def test_an_end_that_cannot_happen_any_more_does_not_fail_the_call(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await store.approvals.happen(ticket.id, Event.FAIL, now_ns=at_ns(3), author="ada", reason="it did not")
        await desk.end(1, ticket, "succeed", RESULT)
        now = await desk.get(ticket)
        assert (now.state, now.result, now.reason) == (State.FAILED, None, "it did not")
        call = await store.journal.call(some.samples.call_id(1))
        assert call is not None
        assert call["outcome"] == "completed"

    async def test_what_is_known_late_is_better_than_nothing(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await store.approvals.happen(ticket.id, Event.LOSE, now_ns=at_ns(3))
        await desk.end(1, ticket, "succeed", RESULT)
        assert (await desk.get(ticket)).result == RESULT
        assert await desk.events(ticket) == ["open", "vote", "approve", "claim", "lose", "succeed"]

    async def test_a_call_that_claimed_nothing_ends_nothing(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await store.journal.begin(some.samples.intent(1, approval=ticket.id))
        await desk.end(1, ticket, "succeed", RESULT)
        await desk.begin(2)
        await desk.end(2, some.ticket(9), "succeed")
        assert await desk.get(ticket) == ticket

    async def test_what_is_unknown_is_told(self, store: Store, desk: Any) -> None:
        store.approvals.tell(some.told)
        ticket = await desk.approved(1, notify=("ops", "chat"))
        await desk.begin(1, ticket)
        await desk.end(1, ticket, "lose", message="no answer came")
        assert (await desk.get(ticket)).reason == "no answer came"
        assert sorted((row["kind"], row["channel"], row["ticket"]) for row in await store.outbox.list(9)) == [
            ("unknown", "chat", ticket.id), ("unknown", "ops", ticket.id)]

    async def test_calls_show_the_approval_that_they_waited_for_or_were_made_under(self, store: Store, desk: Any) -> None:
        one, two = await desk.approved(1), await desk.open(2)
        await store.journal.refuse(some.samples.refused(1, code="approval_pending", decision="held", approval=one.id), request=None)
        await desk.begin(2, one)
        await desk.end(2, one, "succeed")
        await store.journal.begin(some.samples.intent(3))
        await store.journal.finish(some.samples.completed(3, approval=two.id), response=None)
        await store.journal.begin(some.samples.intent(4))
        rows = await store.journal.calls(CallFilter())
        assert [row["approval"] for row in rows] == [None, two.id, one.id, one.id]
        for row in rows:
            call = await store.journal.call(row["id"])
            assert call is not None
            assert (call["approval"], call["approvals"]) == (row["approval"], [row["approval"]] if row["approval"] else [])

        async def ids(approval: str, **wanted: Any) -> list[int]:
            return [int(row["id"][5:]) for row in await store.journal.calls(CallFilter(approval=approval, **wanted))]

        assert (await ids(one.id), await ids(two.id), await ids(""), await ids("apr_9")) == ([2, 1], [3], [4], [])
        assert (await ids(one.id, limit=1), await ids(one.id, outcome="refused"), await ids("", outcome="refused")) == ([2], [1], [])

    async def test_of_several_approvals_a_call_shows_the_one_that_it_has_claimed(self, store: Store, desk: Any) -> None:
        claimed, waited = await desk.approved(1), await desk.open(2)
        await desk.begin(1, claimed)
        await store.journal.finish(some.samples.completed(1, decision="held", approval=waited.id), response=None)
        for wanted in (claimed, waited):
            assert [row["approval"] for row in await store.journal.calls(CallFilter(approval=wanted.id))] == [claimed.id]
        call = await store.journal.call(some.samples.call_id(1))
        assert call is not None
        assert call["approvals"] == [claimed.id, waited.id]

    async def test_what_is_released_without_sending_is_over_or_waits_for_its_call(self, store: Store, desk: Any) -> None:
        await desk.begin(1)
        call_id = some.samples.call_id(1)
        used, stays = await desk.approved(1), await desk.approved(2)
        assert await store.approvals.release(some.claim_of(used), call_id=call_id, keep=False, now_ns=at_ns(3))
        now = await desk.get(used)
        assert (now.state, now.fence, now.executed_by, now.ended_ns) == (State.SUCCEEDED, 1, call_id, at_ns(3))
        assert not await store.approvals.release(some.claim_of(used), call_id="call_2", keep=False, now_ns=at_ns(3))
        for _ in range(2):
            assert await store.approvals.release(some.claim_of(stays), call_id=call_id, keep=True, now_ns=at_ns(3))
        assert (await desk.state(stays), await desk.events(stays)) == (State.APPROVED, ["open", "vote", "approve", "release", "release"])
        assert isinstance(await desk.begin(2, stays), Admitted)
        assert not await store.approvals.release(some.claim_of(stays), call_id=call_id, keep=True, now_ns=at_ns(3))
        assert {row["id"] for row in await store.journal.calls(CallFilter(approval=stays.id))} == {call_id, some.samples.call_id(2)}
        late = await desk.approved(3)
        assert not await store.approvals.release(some.claim_of(late), call_id=call_id, keep=True, now_ns=late.expires_ns)

    async def test_a_result_is_noted_as_delivered_once(self, store: Store, desk: Any) -> None:
        ticket = await self._in(desk, State.SUCCEEDED)
        await store.approvals.delivered(ticket.id, now_ns=at_ns(7))
        now = await desk.get(ticket)
        assert (now.delivered_ns, now.changed) == (at_ns(7), ticket.changed + 1)
        await store.approvals.delivered(ticket.id, now_ns=at_ns(8))
        assert await desk.get(ticket) == now

    async def test_an_answer_is_kept_for_its_request_until_it_is_forgotten_or_old(self, store: Store) -> None:
        approvals, ticket = store.approvals, some.ticket(1)
        kept = some.kept(ticket)
        await approvals.open(ticket, bounds=Bounds(9), kept=kept)
        assert await approvals.kept(some.KEY, kept.presented, now_ns=NOW_NS) == kept
        assert await approvals.kept("key2", kept.presented, now_ns=NOW_NS) is None
        assert await approvals.kept(some.KEY, kept.presented, now_ns=kept.expires_ns) is None
        await approvals.forget_kept("key2", kept.presented)
        assert await approvals.kept(some.KEY, kept.presented, now_ns=NOW_NS) is not None
        await approvals.forget_kept(some.KEY, kept.presented)
        assert await approvals.kept(some.KEY, kept.presented, now_ns=NOW_NS) is None

    async def test_of_many_that_take_a_kept_answer_one_has_it_and_may_put_it_back(self, store: Store) -> None:
        approvals, kept = store.approvals, some.kept(some.ticket(1))
        await approvals.open(some.ticket(1), bounds=Bounds(9), kept=kept)
        taken = await asyncio.gather(*(approvals.take_kept(some.KEY, kept.presented) for _ in range(8)))
        assert [each for each in taken if each is not None] == [kept]
        assert await approvals.kept(some.KEY, kept.presented, now_ns=NOW_NS) is None
        await approvals.keep(kept, now_ns=NOW_NS)
        assert await approvals.kept(some.KEY, kept.presented, now_ns=NOW_NS) == kept
        assert await approvals.take_kept("key2", kept.presented) is None

    async def test_an_answer_is_not_kept_under_an_approval_of_another_one(self, store: Store) -> None:
        """Else an approval of the first answer would let the second one go."""
        first, asked = some.ticket(1), some.digest("asked")
        await store.approvals.open(first, bounds=Bounds(9), kept=some.kept(first, reply={"n": 1}))
        other = some.ticket(2, presented=first.presented)
        await store.approvals.open(other, bounds=Bounds(9), kept=some.kept(other, reply={"n": 2}))
        there = await store.approvals.kept(some.KEY, asked, now_ns=NOW_NS)
        assert there is not None
        assert there.reply == {"n": 1}
        await store.approvals.open(replace(first, id="apr_3"), bounds=Bounds(9), kept=some.kept(first, reply={"n": 3}))
        there = await store.approvals.kept(some.KEY, asked, now_ns=NOW_NS)
        assert there is not None
        assert there.reply == {"n": 3}

    async def test_a_sweep_lets_time_pass_for_what_is_due_and_for_nothing_else(self, store: Store, desk: Any) -> None:
        store.approvals.tell(some.told)
        await desk.open(1)
        await desk.open(2, demands=(replace(some.ONE, escalate=("role:cfo",)),))
        await desk.approved(3)
        executing = await desk.approved(4)
        await desk.begin(4, executing)
        await desk.open(5, expires_ns=at_ns(9000))
        assert await store.approvals.sweep(now_ns=at_ns(60), results_before_ns=0) == []
        assert {each.id[-1] for each in await store.approvals.sweep(now_ns=at_ns(61), results_before_ns=0)} == {"3"}
        swept = await store.approvals.sweep(now_ns=at_ns(600), results_before_ns=0)
        assert [(each.id[-1], each.state) for each in swept] == [("1", State.EXPIRED), ("2", State.PENDING)]
        assert [await desk.get(each) for each in swept] == list(swept)
        assert (await desk.get(2)).expires_ns == at_ns(1200)
        assert {each.id[-1] for each in await store.approvals.sweep(now_ns=at_ns(1200), results_before_ns=0)} == {"2"}
        assert [await desk.state(n) for n in (1, 2, 3, 4, 5)] == [
            State.EXPIRED, State.EXPIRED, State.EXPIRED, State.EXECUTING, State.PENDING]
        assert [(row["ticket"][-1], row["kind"]) for row in await store.outbox.list(9)] == [
            ("2", "expired"), ("2", "escalated"), ("1", "expired"), ("3", "expired")]
        assert isinstance(await desk.begin(9, await desk.get(1)), Unclaimed)

    async def test_a_sweep_takes_so_many_at_a_time_the_oldest_first(self, store: Store, desk: Any) -> None:
        for n in range(1, 6):
            await desk.open(n, expires_ns=at_ns(100 - n))
        late, swept = at_ns(200), []
        while found := await store.approvals.sweep(now_ns=late, results_before_ns=0, limit=2):
            swept.append([int(each.id[4:]) for each in found])
        assert swept == [[5, 4], [3, 2], [1]]

    async def test_a_sweep_forgets_old_results_and_answers(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await desk.begin(1, ticket)
        await desk.end(1, ticket, "succeed", RESULT)
        ended_ns, asked = some.samples.completed(1).ended_ns, some.digest("asked")
        await store.approvals.open(some.ticket(2), bounds=Bounds(9), kept=some.kept(some.ticket(2)))
        await store.approvals.sweep(now_ns=at_ns(59), results_before_ns=ended_ns)
        assert (await desk.get(ticket)).result == RESULT
        assert await store.approvals.kept(some.KEY, asked, now_ns=NOW_NS) is not None
        await store.approvals.sweep(now_ns=at_ns(60), results_before_ns=ended_ns + 1)
        assert (await desk.get(ticket)).result is None
        assert await store.approvals.kept(some.KEY, asked, now_ns=NOW_NS) is None

    async def test_tickets_are_listed_by_what_they_are_in_either_order_and_paged(self, store: Store, desk: Any) -> None:
        for n in range(1, 6):
            await desk.open(n, tool="bank.pay" if n % 2 else "mail.send", session=f"s-{n}", mode="execute" if n == 5 else "release")
        await desk.approvals.vote((await desk.get(3)).id, some.vote(await desk.get(3)))

        async def ids(**wanted: Any) -> list[int]:
            return [int(each.id[4:]) for each in await store.approvals.list(TicketFilter(**wanted))]

        after_2 = some.ticket(2).id
        assert await ids() == [1, 2, 3, 4, 5]
        assert await ids(newest=True, limit=2) == [5, 4]
        assert (await ids(after=after_2, limit=2), await ids(after=after_2, newest=True)) == ([3, 4], [1])
        assert (await ids(after="apr_9"), await ids(limit=0)) == ([], [])
        assert (await ids(states=(State.APPROVED,)), await ids(states=(State.PENDING, State.DENIED))) == ([3], [1, 2, 4, 5])
        assert (await ids(tool="mail.send"), await ids(session="s-4"), await ids(mode="execute")) == ([2, 4], [4], [5])
        assert (await ids(rule="any-payment", route="pay", kind="tool", principal=some.KEY, team="blue", shape="sha256:shape")) == [
            1, 2, 3, 4, 5]
        assert (await ids(call_id=some.ticket(4).call_id), await ids(principal="' OR 1=1 --")) == ([4], [])
        named = await desk.open(6, principal="key_6", principal_name="billing")
        assert (await ids(asker="billing"), await ids(asker=named.principal), await ids(asker=some.KEY, tool="mail.send")) == ([6], [6], [2, 4])
        assert (await ids(principal="billing"), await ids(asker="' OR 1=1 --")) == ([], [])
        await desk.approvals.vote(named.id, some.vote(named))
        assert await store.approvals.counts() == {"pending": 4, "approved": 2}

    async def test_a_page_of_large_tickets_ends_early_and_the_next_goes_on(self, store: Store, desk: Any) -> None:
        for n in range(1, 7):
            await desk.open(n, body=b"b" * 12_000_000, expires_ns=NOW_NS)
        pages, after = [], None
        while page := await store.approvals.list(TicketFilter(after=after)):
            pages.append(len(page))
            after = page[-1].id
        assert pages == [3, 3]
        assert [len(await store.approvals.sweep(now_ns=NOW_NS, results_before_ns=0)) for _ in range(3)] == [3, 3, 0]

    async def test_changes_are_told_in_order_each_ticket_once(self, store: Store, desk: Any) -> None:
        one = await desk.open(1)
        await desk.open(2)
        await store.approvals.happen(one.id, Event.WITHDRAW, now_ns=at_ns(2))
        assert await store.approvals.changed(0, 9) == [(some.ticket(2).id, State.PENDING, 2), (one.id, State.WITHDRAWN, 3)]
        assert await store.approvals.changed(0, 1) == [(some.ticket(2).id, State.PENDING, 2)]
        assert await store.approvals.changed(3, 9) == []
        assert await store.approvals.generation() == 3

    async def test_grants_are_used_all_or_none_and_as_often_as_they_say(self, store: Store, desk: Any) -> None:
        approvals = store.approvals
        await approvals.grant(some.grant(1))
        await approvals.grant(some.grant(2, uses=None))
        both = ("grt_0001", "grt_0002", "grt_0001")  # each once, however often it is named
        assert isinstance(await desk.begin(1, grants=both), Admitted)
        assert await approvals.use(both, call_id="call_2", now_ns=at_ns(2))
        assert await desk.begin(3, grants=both) == Unclaimed("")
        assert not await approvals.use(both, call_id="call_3", now_ns=at_ns(2))
        assert [(each.id, each.uses) for each in await approvals.grants()] == [("grt_0002", None), ("grt_0001", 0)]
        (row,) = await store.journal.calls(CallFilter())
        assert not await approvals.use(("grt_0009",), call_id="call_3", now_ns=at_ns(2))
        call = await store.journal.call(row["id"])
        assert call is not None
        assert call["grants"] == ["grt_0001", "grt_0002"]
        uses = await approvals.uses(("grt_0001", "grt_0009"), 9)
        assert ([each[0] for each in uses["grt_0001"]], list(uses["grt_0009"])) == (["call_2", row["id"]], [])
        assert {grant: [tuple(each) for each in used] for grant, used in (await approvals.uses(("grt_0002",), 1)).items()} == {
            "grt_0002": [("call_2", at_ns(2))]}

    async def test_of_many_that_use_a_grant_at_once_as_many_do_as_it_says(self, store: Store, desk: Any) -> None:
        await store.approvals.grant(some.grant(1, uses=5))
        answers = await asyncio.gather(*(desk.begin(n, grants=("grt_0001",)) for n in range(20)))
        assert sum(isinstance(each, Admitted) for each in answers) == 5

    async def test_a_claim_that_cannot_be_had_uses_no_grant_nor_the_other_way_round(self, store: Store, desk: Any) -> None:
        ticket = await desk.approved(1)
        await store.approvals.grant(some.grant(1, uses=1))
        assert await desk.begin(1, replace(some.claim_of(ticket), fence=9), grants=("grt_0001",)) == Unclaimed(ticket.id)
        assert (await store.approvals.grants())[0].uses == 1
        assert await desk.begin(1, ticket, grants=("grt_0009",)) == Unclaimed(ticket.id)
        assert await desk.state(ticket) is State.APPROVED
        assert isinstance(await desk.begin(1, ticket, grants=("grt_0001",)), Admitted)

    async def test_a_grant_ends_with_its_time_and_when_it_is_revoked(self, store: Store, desk: Any) -> None:
        approvals = store.approvals
        for n in (1, 2):
            await approvals.grant(some.grant(n))
        with pytest.raises(StoreError, match="a grant grt_0001 already"):
            await approvals.grant(some.grant(1))
        end_ns = some.grant(1).expires_ns
        assert await approvals.revoke("grt_0001", author="ada", now_ns=at_ns(1))
        for _ in range(2):
            assert not await approvals.revoke("grt_0001", author="eve", now_ns=at_ns(2))
        assert not await approvals.revoke("grt_0009", author="eve", now_ns=at_ns(2))
        assert not await approvals.revoke("grt_0002", author="eve", now_ns=end_ns)
        latest, revoked = await approvals.grants()
        assert (revoked.revoked_ns, revoked.revoked_by, latest) == (at_ns(1), "ada", some.grant(2))
        assert await desk.begin(1, grants=("grt_0001",)) == Unclaimed("")
        assert await desk.begin(1, grants=("grt_0002",), at_s=3600) == Unclaimed("")
        assert await approvals.grants(live_at_ns=at_ns(3)) == [some.grant(2)]
        assert await approvals.grants(live_at_ns=end_ns) == []
        assert (await approvals.grants(rule="any-payment", principal=some.KEY, live_at_ns=at_ns(3), limit=9)) == [some.grant(2)]
        assert await approvals.grants(rule="other") == await approvals.grants(principal="key2") == await approvals.grants(limit=0) == []

    async def test_notices_stay_until_they_are_delivered(self, store: Store) -> None:
        outbox = store.outbox
        await outbox.add([some.notice(2, due_ns=at_ns(2)), some.notice(1, due_ns=at_ns(1)), some.notice(3, due_ns=at_ns(50))])
        await outbox.add([some.notice(1, body={"headline": "again"})])

        async def take(at_s: float, limit: int = 9) -> list[Notice]:
            return list(await outbox.take("one", now_ns=at_ns(at_s), until_ns=at_ns(at_s + 30), limit=limit))

        assert await take(0) == []
        assert await take(2, limit=1) == [some.notice(1, due_ns=at_ns(1), attempts=1)]
        assert await take(2) == [some.notice(2, due_ns=at_ns(2), attempts=1)]
        assert await take(31) == []
        await outbox.done("ntc_0001", now_ns=at_ns(3))
        await outbox.later("ntc_0002", due_ns=at_ns(40), error="refused \ud800", dead=False)
        assert await take(39) == []
        assert [(each.id, each.attempts, each.due_ns) for each in await take(40)] == [("ntc_0002", 2, at_ns(40))]
        assert [each.id for each in await take(70)] == ["ntc_0002", "ntc_0003"]  # whoever had it did not come back
        await outbox.later("ntc_0002", due_ns=at_ns(71), error="gone", dead=True)
        await outbox.done("ntc_0003", now_ns=at_ns(72))
        await outbox.later("ntc_0003", due_ns=at_ns(73), error="late", dead=False)  # it was delivered
        await outbox.done("ntc_0009", now_ns=at_ns(72))
        await outbox.later("ntc_0009", due_ns=at_ns(72), error="", dead=False)
        assert await take(1000) == []
        rows = await outbox.list(9)
        assert [tuple(row) for row in rows] == [NOTICE_FIELDS] * 3
        told = {row["id"]: (row["attempts"], row["done_ns"], row["dead"], row["error"]) for row in rows}
        assert told == {"ntc_0001": (1, at_ns(3), False, None), "ntc_0002": (3, None, True, "gone"), "ntc_0003": (1, at_ns(72), False, None)}
        assert [row["id"] for row in await outbox.list(1)] == ["ntc_0003"]

    async def test_a_sweep_removes_notices_that_were_delivered_long_ago_so_many_at_a_time(self, store: Store) -> None:
        """What waits, was given up, or must not be told twice stays."""
        outbox, sweep = store.outbox, store.approvals.sweep
        kinds = {7: "unknown"}
        await outbox.add([some.notice(n, kind=kinds.get(n, "opened")) for n in range(1, 9)])
        await outbox.take("one", now_ns=at_ns(1), until_ns=at_ns(9), limit=99)
        for n in (3, 1, 2, 5, 7):
            await outbox.done(f"ntc_{n:04d}", now_ns=at_ns(10 + n))
        await outbox.later("ntc_0004", due_ns=at_ns(2), error="gone", dead=True)

        async def left() -> list[int]:
            return sorted(int(row["id"][4:]) for row in await outbox.list(99))

        await sweep(now_ns=at_ns(99), results_before_ns=at_ns(11))
        assert await left() == [1, 2, 3, 4, 5, 6, 7, 8]
        await sweep(now_ns=at_ns(99), results_before_ns=at_ns(99), limit=2)
        assert await left() == [3, 4, 5, 6, 7, 8]
        await sweep(now_ns=at_ns(99), results_before_ns=at_ns(99), limit=0)
        assert await left() == [3, 4, 5, 6, 7, 8]
        await sweep(now_ns=at_ns(99), results_before_ns=at_ns(14))
        assert await left() == [4, 5, 6, 7, 8]
        await outbox.add([some.notice(7, kind="unknown")])
        await sweep(now_ns=at_ns(99), results_before_ns=at_ns(99))
        assert [(row["id"], row["done_ns"]) for row in await outbox.list(99)] == [
            ("ntc_0008", None), ("ntc_0007", at_ns(17)), ("ntc_0006", None), ("ntc_0004", None)]

    async def test_of_many_that_take_notices_at_once_one_has_each(self, store: Store) -> None:
        await store.outbox.add([some.notice(n) for n in range(20)])
        taken = await asyncio.gather(*(
            store.outbox.take(f"p{n}", now_ns=at_ns(1), until_ns=at_ns(9), limit=3) for n in range(10)))
        assert sorted(each.id for some_of in taken for each in some_of) == [f"ntc_{n:04d}" for n in range(20)]

    async def test_hostile_text_is_stored_as_text(self, store: Store, desk: Any) -> None:
        nasty, plain = "\ud800'; DROP TABLE approvals --\x00", "?'; DROP TABLE approvals --\x00"
        given = some.ticket(1, principal=nasty, presented=nasty, message=nasty, session=nasty, shown={nasty: [nasty]}, origin={"o": nasty})
        opened = await store.approvals.open(given, bounds=Bounds(9))
        now = await desk.get(opened)
        assert (now.principal, now.message, now.session, now.shown, now.origin) == (plain, plain, plain, {plain: [plain]}, {"o": plain})
        found = await store.approvals.find(nasty, nasty)
        assert found == now
        voter = replace(some.vote(now).voter, id=nasty + "2", name=nasty, roles=(nasty,))
        voted = await store.approvals.vote(opened.id, some.vote(now, "ada", "deny", voter=voter, comment=nasty))
        assert (await desk.get(opened), voted.reason) == (await store.approvals.get(voted.id), plain)
        assert (await desk.get(opened)).votes[0].voter == replace(voter, id=plain + "2", name=plain, roles=(plain,))
        await store.outbox.add([some.notice(1, body={"about": nasty})])
        (taken,) = await store.outbox.take("p", now_ns=at_ns(1), until_ns=at_ns(2), limit=1)
        assert taken.body == {"about": plain}
