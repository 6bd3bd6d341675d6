"""Approvals: both stores keep the same promises; on SQLite they hold between processes and over restarts."""

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlite_utils import Database

from gateway.core.approval import OPEN, WAITING, Event, Result, State
from gateway.core.approval_bounds import Bounds
from gateway.core.approval_steps import DIED
from gateway.errors import StoreError
from gateway.store.approval_rows import TICKET_COLUMNS, size_of, ticket_values
from gateway.store.approvals_protocol import QueueFullError, TicketFilter
from gateway.store.invariants import Finding
from gateway.store.leases import SIGHTINGS
from gateway.store.library import sqlite3
from gateway.store.memory import MemoryStore
from gateway.store.migrations import migrations
from gateway.store.protocol import Admitted, Store
from gateway.store.sqlite import SqliteStore
from gateway.store.writer import Do


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_suite, some = _load("approval_conformance"), _load("approval_samples")


class TestSqliteApprovals(_suite.ApprovalConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryApprovals(_suite.ApprovalConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


async def _beats(store: SqliteStore, now_ns: int) -> int:
    """So many heartbeats that the dead are known to be dead; how many calls they closed."""
    return sum([await store.heartbeat(now_ns=now_ns, lease_ns=10) for _ in range(1 + SIGHTINGS)])


@pytest.fixture
async def other(path: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    """Another process on the file of `store`."""
    opened = SqliteStore(path, "two")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


async def test_what_waited_before_queues_were_counted_is_counted(path: Path, diagnose: Callable[..., list[Finding]]) -> None:
    """A database of the version before, with three that wait and one that does not."""
    tickets = [some.ticket(101), some.ticket(102), some.ticket(103, principal="key2"), some.ticket(104, state=State.WITHDRAWN)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrations().apply(Database(connection), stop_before="0006_approval_queues")
        for ticket in tickets:
            values = ticket_values(ticket)
            columns, marks = ", ".join(TICKET_COLUMNS), ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO approvals ({columns}) VALUES ({marks})", values)  # noqa: S608 - constants
            connection.execute("INSERT INTO approval_events (ticket, at_ns, event, state, fence, author, reason, call_id) "
                               "VALUES (?, 1, 'open', 'pending', 0, '', '', '')", (ticket.id,))
    store = SqliteStore(path, "one")
    await store.start(now_ns=some.NOW_NS)
    with pytest.raises(QueueFullError, match=r"2 approvals of this caller are pending already"):
        await store.approvals.open(some.ticket(105), bounds=Bounds(9, 2))
    size = size_of(ticket_values(tickets[0]))
    with pytest.raises(QueueFullError, match=rf"The approvals that are pending hold {3 * size} bytes"):
        await store.approvals.open(some.ticket(105), bounds=Bounds(9, pending_bytes=3 * size))
    await store.approvals.vote(tickets[0].id, some.vote(tickets[0]))
    assert (await store.approvals.open(some.ticket(105), bounds=Bounds(9, 2))).state is State.PENDING
    await store.close()
    assert [each.invariant.name for each in diagnose() if each.invariant.name == "queue-is-what-is-pending"] == []


async def test_a_restart_loses_nothing(store: SqliteStore, path: Path) -> None:
    desk = some.Desk(store)
    ticket = await desk.open(1, demands=(some.TWO,))
    await store.approvals.vote(ticket.id, some.vote(ticket), [some.notice(1)])
    kept = some.kept(some.ticket(2))
    await store.approvals.open(some.ticket(2), [some.notice(2)], bounds=Bounds(9), kept=kept)
    await store.approvals.grant(some.grant(1))
    before = await store.approvals.list(TicketFilter()), await store.approvals.grants(), await store.outbox.list(9)
    await store.close()
    again = SqliteStore(path, "two")
    await again.start(now_ns=some.NOW_NS)
    assert before == (await again.approvals.list(TicketFilter()), await again.approvals.grants(), await again.outbox.list(9))
    assert await again.approvals.kept(some.KEY, kept.presented, now_ns=some.NOW_NS) == kept
    assert await again.approvals.generation() == 3
    await again.close()


async def test_of_the_claimers_of_several_processes_one_has_it(store: SqliteStore, other: SqliteStore) -> None:
    ours, theirs = some.Desk(store), some.Desk(other)
    for n in range(5):
        ticket = await ours.approved(n)
        answers = await asyncio.gather(*(desk.begin(100 * n + k, ticket) for k, desk in enumerate([ours, theirs] * 16)))
        assert sum(isinstance(each, Admitted) for each in answers) == 1
        assert (await theirs.get(n)).fence == 1


async def test_two_processes_that_decide_and_sweep_at_once_leave_one_end(
    store: SqliteStore, other: SqliteStore, diagnose: Callable[..., list[Finding]],
) -> None:
    desk = some.Desk(store)
    for n in range(10):
        ticket = await desk.open(n, expires_ns=some.at_ns(2))
        await asyncio.gather(
            store.approvals.vote(ticket.id, some.vote(ticket, "ada")), other.approvals.vote(ticket.id, some.vote(ticket, "bob", "deny")),
            other.approvals.sweep(now_ns=some.at_ns(3), results_before_ns=0),
            store.approvals.happen(ticket.id, Event.WITHDRAW, now_ns=some.at_ns(1)), return_exceptions=True)
    assert diagnose() == []


async def test_a_refused_step_leaves_those_that_share_its_transaction_alone(store: SqliteStore) -> None:
    desk = some.Desk(store)
    tickets = [await desk.open(n) for n in range(6)]
    cast = [store.approvals.vote(each.id, some.vote(each, "olga" if n % 2 else "ada")) for n, each in enumerate(tickets)]
    told = await asyncio.gather(*cast, return_exceptions=True)
    assert [type(each).__name__ for each in told] == ["Ticket", "NotPossibleError"] * 3
    assert await store.approvals.counts() == {"approved": 3, "pending": 3}


@pytest.mark.parametrize(("effect", "state", "notices"), [
    ("read", State.APPROVED, 0), ("idempotent", State.APPROVED, 0), ("model", State.FAILED, 0), ("at_most_once", State.UNKNOWN, 2),
])
async def test_with_a_dead_process_goes_what_it_executed_in_the_step_that_closes_its_call(
    store: SqliteStore, other: SqliteStore, diagnose: Callable[..., list[Finding]], effect: str, state: State, notices: int,
) -> None:
    other.approvals.tell(some.told)
    desk, late = some.Desk(store), some.NOW_NS + 10**12
    ticket = await desk.approved(1, effect=effect, notify=("ops", "chat"), unexpired_s=10_000.0)
    await desk.begin(1, ticket)
    await store.journal.refuse(some.samples.refused(2, approval=ticket.id), request=None)
    assert await _beats(other, late) == 1
    now = await some.Desk(other).get(ticket)
    assert (now.state, now.reason, now.fence) == (state, DIED, 1)
    assert now.executed_by == ("" if state is State.APPROVED else some.samples.call_id(1))
    rows = await other.outbox.list(9)
    assert [(row["kind"], row["due_ns"]) for row in rows] == [("unknown", late)] * notices
    last = (await other.approvals.history(ticket.id))[-1]
    assert (last["at_ns"], last["call_id"], last["reason"]) == (late, some.samples.call_id(1), DIED)
    if state is State.APPROVED:  # the same approval, and so the same idempotency key
        assert now.expires_ns == ticket.expires_ns
        assert isinstance(await some.Desk(other).begin(3, now, at_s=1001), Admitted)
    assert [finding for finding in diagnose() if not finding.invariant.note] == []


async def test_a_start_recovers_the_approvals_of_a_former_process_of_its_name(store: SqliteStore, path: Path) -> None:
    desk = some.Desk(store)
    await desk.begin(1, await desk.approved(1))
    successor = SqliteStore(path, "one")
    successor.approvals.tell(some.told)
    await successor.start(now_ns=some.NOW_NS + 5)
    assert (await some.Desk(successor).get(1)).state is State.UNKNOWN
    assert [row["kind"] for row in await successor.outbox.list(9)] == ["unknown"]
    await successor.close()


@pytest.mark.parametrize(("effect", "event", "state"), [
    ("at_most_once", "succeed", State.SUCCEEDED), ("at_most_once", "fail", State.FAILED), ("at_most_once", "lose", State.UNKNOWN),
    ("model", "succeed", State.FAILED), ("idempotent", "succeed", State.APPROVED),
])
async def test_what_a_process_knows_that_was_taken_for_dead_counts_although_its_call_is_closed(
    store: SqliteStore, other: SqliteStore, diagnose: Callable[..., list[Finding]], effect: str, event: str, state: State,
) -> None:
    desk, result = some.Desk(store), Result(200, "application/json", b"{}")
    ticket = await desk.approved(1, effect=effect)
    await desk.begin(1, ticket)
    await _beats(other, some.NOW_NS + 10**12)
    with pytest.raises(StoreError, match="already has its outcome"):
        await desk.end(1, ticket, event, result)
    now = await desk.get(ticket)
    assert (now.state, now.result) == (state, result if effect == "at_most_once" and event != "lose" else None)
    call = await store.journal.call(some.samples.call_id(1))
    assert call is not None
    assert call["outcome"] == "interrupted"
    assert [finding for finding in diagnose() if not finding.invariant.note] == []


async def test_a_process_that_wakes_does_not_end_what_another_has_begun_again(store: SqliteStore, other: SqliteStore) -> None:
    desk, theirs = some.Desk(store), some.Desk(other)
    ticket = await desk.approved(1, effect="idempotent", unexpired_s=10_000.0)
    await desk.begin(1, ticket)
    await _beats(other, some.NOW_NS + 10**12)
    await theirs.begin(2, await theirs.get(1), at_s=1001)
    with pytest.raises(StoreError):
        await desk.end(1, ticket, "fail")
    assert await desk.state(1) is State.EXECUTING
    await theirs.end(2, ticket, "succeed")
    assert await desk.state(1) is State.SUCCEEDED


@pytest.mark.parametrize("change", [
    "demands = '['", "demands = '[{}]'", "demands = '7'", "state = 'fine'", "shown = '{'", "encoding = 'zlib'", "encoding = 'new'",
])
async def test_an_approval_that_cannot_be_read_allows_nothing(store: SqliteStore, sql: Callable[..., Any], change: str) -> None:
    desk = some.Desk(store)
    await desk.open(1)
    good = await desk.open(2)
    sql(f"UPDATE approvals SET {change} WHERE id = ?", some.ticket(1).id)  # noqa: S608 - fixed texts
    for asked in (
        store.approvals.get(some.ticket(1).id), store.approvals.find(some.KEY, some.ticket(1).presented) if "state" not in change else
        store.approvals.get(some.ticket(1).id), store.approvals.vote(some.ticket(1).id, some.vote(some.ticket(1))),
    ):
        with pytest.raises(StoreError, match="cannot be read"):
            await asked
    assert (await store.approvals.vote(good.id, some.vote(good))).state is State.APPROVED


async def test_a_damaged_result_or_answer_is_as_good_as_none(store: SqliteStore, sql: Callable[..., Any]) -> None:
    desk = some.Desk(store)
    ticket = await desk.approved(1)
    await desk.begin(1, ticket)
    await desk.end(1, ticket, "succeed", Result(200, "", b"{}"))
    await store.approvals.open(some.ticket(2), bounds=Bounds(9), kept=some.kept(some.ticket(2)))
    sql("UPDATE approval_results SET encoding = 'zlib'")
    sql("UPDATE kept_answers SET reply = x'5b'")
    assert (await desk.get(1)).result is None
    assert await store.approvals.kept(some.KEY, some.digest("asked"), now_ns=some.NOW_NS) is None


async def test_the_database_itself_refuses_a_second_open_approval_of_an_action_and_a_second_claim_of_a_fence(
    store: SqliteStore, sql: Callable[..., Any],
) -> None:
    desk = some.Desk(store)
    await desk.begin(1, await desk.approved(1))
    await desk.open(2)
    await desk.begin(2)
    with pytest.raises(sqlite3.IntegrityError):
        sql("UPDATE approvals SET presented = ? WHERE id = ?", some.ticket(1).presented, some.ticket(2).id)
    with pytest.raises(sqlite3.IntegrityError):
        sql("INSERT INTO call_approvals VALUES (2, ?, 1)", some.ticket(1).id)
    with pytest.raises(sqlite3.IntegrityError):
        sql("INSERT INTO approval_votes SELECT ticket, person, 2, at_ns, verdict, digest, comment, voter, places FROM approval_votes")


async def test_the_states_that_the_indices_name_are_those_of_the_table(store: SqliteStore, sql: Callable[..., Any]) -> None:
    """They stand in SQL, where nothing looks them up."""
    await store.check()
    for name, states in (("approvals_open", OPEN), ("approvals_due", WAITING)):
        ((statement,),) = sql("SELECT sql FROM sqlite_schema WHERE name = ?", name)
        assert set(re.findall(r"'(\w+)'", statement)) == set(states)


async def test_nothing_that_happens_to_an_approval_reads_a_whole_table_or_sorts_one(store: SqliteStore) -> None:
    """So it costs the same among ten and among a million that have ended. Only `counts` goes over all of them, in an index."""
    desk, seen = some.Desk(store), list[str]()
    await store._writer.write(Do(lambda connection: connection.set_trace_callback(seen.append)))
    await store._reader.read(lambda connection: connection.set_trace_callback(seen.append))
    old = await desk.open(1)
    new = some.ticket(2, presented=old.presented, digest=some.digest("e"), edited_from=old.id)
    await store.approvals.replace(old.id, new, [some.notice(1)], author="ada", now_ns=some.at_ns(1))
    voted = await store.approvals.vote(new.id, some.vote(new))
    assert await store.approvals.find(some.KEY, some.digest("e")) == voted
    await store.approvals.grant(some.grant(1))
    await store.approvals.grants(rule="any-payment", principal=some.KEY, live_at_ns=some.at_ns(1))
    await desk.begin(1, voted, grants=("grt_0001",))
    await desk.end(1, voted, "succeed", Result(200, "", b"{}"))
    await store.approvals.find(some.KEY, old.presented)
    await store.approvals.delivered(new.id, now_ns=some.at_ns(9))
    await store.approvals.history(new.id)
    await store.approvals.open(some.ticket(3), bounds=Bounds(9, 9), kept=some.kept(some.ticket(3)))
    await store.approvals.kept(some.KEY, some.digest("asked"), now_ns=some.NOW_NS)
    await store.approvals.forget_kept(some.KEY, some.digest("asked"))
    await store.approvals.sweep(now_ns=some.at_ns(10_000), results_before_ns=some.at_ns(10_000))
    await store.approvals.changed(1, 10)
    for wanted in (TicketFilter(), TicketFilter(states=(State.PENDING,), after=old.id), TicketFilter(newest=True, after=new.id)):
        await store.approvals.list(wanted)
    await store.outbox.take("one", now_ns=some.at_ns(9), until_ns=some.at_ns(10), limit=9)
    await store.outbox.list(9)
    await store._reader.read(lambda connection: connection.set_trace_callback(None))
    asked = [text for text in seen if not re.match(r"\s*(BEGIN|COMMIT|ROLLBACK|--)", text)]
    plans = await store._reader.read(lambda connection: [
        f"{row[3]}  <-  {text}" for text in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()])
    assert len(asked) > 40
    in_order = r"SCAN (outbox  <-  SELECT .* ORDER BY rowid DESC|approvals USING INDEX approvals_by_time|CONSTANT ROW|\(subquery)"
    assert [plan for plan in plans if re.match(r"SCAN|USE TEMP B-TREE", plan) and not re.match(in_order, plan)] == []
