"""Approvals on SQLite: the steps of `core/approval_steps.py`, each done to what is on record in one transaction of the writer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from gateway.core.approval import Demand, Event, Grant, Result, State, Ticket, Vote
from gateway.core.approval_bounds import Bounds
from gateway.core.approval_steps import answered, claimable, delivered, happened, opened, overdue, released, replaced, voted
from gateway.store.approval_rows import HISTORY_FIELDS, reply_of, ticket_values
from gateway.store.approvals_protocol import Claim, KeptAnswer, Notice, Notify, TicketFilter
from gateway.store.approvals_sql import (
    add_vote,
    due,
    expected,
    found,
    generation,
    insert,
    keep,
    listed,
    moment,
    open_ticket,
    ticket_at,
    write_step,
)
from gateway.store.claims import link_released
from gateway.store.database import Connection
from gateway.store.grants_sql import add_grant, all_live, list_grants, revoke_grant, use_grants, uses_of
from gateway.store.journal import OpenCalls
from gateway.store.reader import Reader
from gateway.store.rows import text
from gateway.store.writer import Do, Writer

T = TypeVar("T")

_COUNTS: Final = "SELECT state, count(*) FROM approvals GROUP BY state"
_CHANGES: Final = "SELECT id, state, changed FROM approvals WHERE changed > ? ORDER BY changed LIMIT ?"
_HISTORY: Final = f"SELECT {', '.join(HISTORY_FIELDS)} FROM approval_events WHERE ticket = ? ORDER BY id"  # noqa: S608 - constants
_KEPT: Final = "SELECT call_id, encoding, reply, expires_ns FROM kept_answers WHERE principal = ? AND presented = ? AND expires_ns > ?"
_FORGET: Final = "DELETE FROM kept_answers WHERE principal = ? AND presented = ?"
_TAKE_KEPT: Final = "DELETE FROM kept_answers WHERE principal = ? AND presented = ? RETURNING call_id, encoding, reply, expires_ns"
_OLD_ANSWERS: Final = """
DELETE FROM kept_answers WHERE rowid IN (SELECT rowid FROM kept_answers WHERE expires_ns <= ? ORDER BY expires_ns LIMIT ?)
"""
_OLD_RESULTS: Final = """
DELETE FROM approval_results WHERE ticket IN (SELECT ticket FROM approval_results WHERE at_ns < ? ORDER BY at_ns LIMIT ?)
"""
_OLD_NOTICES: Final = """
DELETE FROM outbox WHERE rowid IN (SELECT rowid FROM outbox WHERE done_ns < ? AND kind != 'unknown' ORDER BY done_ns LIMIT ?)
"""


class SqliteApprovals:
    """`Approvals` on the store's writer and reader. What is told of steps that nobody asked for is the open calls' to know as well."""

    def __init__(self, writer: Writer, reader: Reader, calls: OpenCalls) -> None:
        self._writer = writer
        self._reader = reader
        self._calls = calls

    def tell(self, notify: Notify) -> None:
        self._calls.notify = notify

    async def open(self, ticket: Ticket, notices: Sequence[Notice] = (), *, bounds: Bounds, kept: KeptAnswer | None = None) -> Ticket:
        return await self._write(
            lambda connection: open_ticket(connection, ticket, notices, bounds=bounds, kept=kept, notify=self._calls.notify))

    async def find(self, principal: str, presented: str) -> Ticket | None:
        return await self._read(lambda connection: found(connection, principal, presented))

    async def get(self, ticket_id: str) -> Ticket | None:
        return await self._read(lambda connection: ticket_at(connection, ticket_id))

    async def list(self, wanted: TicketFilter) -> Sequence[Ticket]:
        return await self._read(lambda connection: listed(connection, wanted))

    async def counts(self) -> Mapping[str, int]:
        return await self._read(lambda connection: dict(connection.execute(_COUNTS).fetchall()))

    async def generation(self) -> int:
        return await self._reader.read(generation)

    async def changed(self, since: int, limit: int) -> Sequence[tuple[str, State, int]]:
        rows = await self._read(lambda connection: connection.execute(_CHANGES, (since, max(limit, 0))).fetchall())
        return [(ticket_id, State(state), number) for ticket_id, state, number in rows]

    async def vote(self, ticket_id: str, vote: Vote, notices: Sequence[Notice] = (), *, grant: Grant | None = None) -> Ticket:
        return await self._write(lambda connection: self._vote(connection, ticket_id, vote, notices, grant))

    async def replace(self, ticket_id: str, edited: Ticket, notices: Sequence[Notice] = (), *, author: str, now_ns: int) -> Ticket:
        def write(connection: Connection) -> Ticket:
            new = opened(edited, author)
            change = replaced(expected(connection, ticket_id), edited, author=author, now_ns=now_ns)
            write_step(connection, change, notify=self._calls.notify)
            return insert(connection, new, notices, notify=self._calls.notify, row=ticket_values(edited))

        return await self._write(write)

    async def happen(  # noqa: PLR0913 - as the protocol has it
        self, ticket_id: str, event: Event, *, now_ns: int, author: str = "", reason: str = "", demands: Sequence[Demand] | None = None,
        fence: int | None = None, result: Result | None = None, notices: Sequence[Notice] = (),
    ) -> Ticket:
        def write(connection: Connection) -> Ticket:
            ticket = expected(connection, ticket_id)
            change = happened(ticket, event, now_ns=now_ns, author=author, reason=reason, demands=demands, fence=fence)
            return write_step(connection, change, notify=self._calls.notify, notices=notices, result=result)

        return await self._write(write)

    async def release(self, claim: Claim, *, call_id: str, keep: bool, now_ns: int) -> bool:
        return await self._write(lambda connection: self._release(connection, claim, call_id, stays=keep, now_ns=now_ns))

    async def delivered(self, ticket_id: str, *, now_ns: int) -> None:
        def write(connection: Connection) -> None:
            change = delivered(expected(connection, ticket_id), now_ns)
            if change is not None:
                write_step(connection, change, notify=self._calls.notify)

        await self._write(write)

    async def answer(self, ticket_id: str, result: Result, *, now_ns: int) -> None:
        def write(connection: Connection) -> None:
            change = answered(expected(connection, ticket_id), now_ns)
            if change is not None:
                write_step(connection, change, notify=self._calls.notify, result=result)

        await self._write(write)

    async def kept(self, principal: str, presented: str, *, now_ns: int) -> KeptAnswer | None:
        asked = text(principal), text(presented), now_ns
        row = await self._read(lambda connection: connection.execute(_KEPT, asked).fetchone())
        reply = None if row is None else reply_of(row[1], row[2])
        return None if reply is None else KeptAnswer(presented, principal, row[0], reply, row[3])

    async def keep(self, kept: KeptAnswer, *, now_ns: int) -> None:
        await self._write(lambda connection: keep(connection, kept, now_ns=now_ns))

    async def take_kept(self, principal: str, presented: str) -> KeptAnswer | None:
        row = await self._write(lambda connection: connection.execute(_TAKE_KEPT, (text(principal), text(presented))).fetchone())
        reply = None if row is None else reply_of(row[1], row[2])
        return None if reply is None else KeptAnswer(presented, principal, row[0], reply, row[3])

    async def forget_kept(self, principal: str, presented: str) -> None:
        await self._write(lambda connection: connection.execute(_FORGET, (text(principal), text(presented))).rowcount)

    async def sweep(self, *, now_ns: int, results_before_ns: int, limit: int = 200) -> Sequence[Ticket]:
        def write(connection: Connection) -> list[Ticket]:
            changes = [overdue(ticket, now_ns) for ticket in due(connection, now_ns, limit)]
            swept = [write_step(connection, change, notify=self._calls.notify) for change in changes if change is not None]
            connection.execute(_OLD_ANSWERS, (now_ns, max(limit, 0)))
            connection.execute(_OLD_RESULTS, (results_before_ns, max(limit, 0)))
            connection.execute(_OLD_NOTICES, (results_before_ns, max(limit, 0)))
            return swept

        return await self._write(write)

    async def grants(self, *, rule: str | None = None, principal: str | None = None, live_at_ns: int | None = None,
                     limit: int = 1000) -> Sequence[Grant]:
        return await self._read(
            lambda connection: list_grants(connection, rule=rule, principal=principal, live_at_ns=live_at_ns, limit=limit))

    async def uses(self, grants: Sequence[str], limit: int) -> Mapping[str, Sequence[tuple[str, int]]]:
        return await self._read(lambda connection: uses_of(connection, grants, limit))

    async def grant(self, grant: Grant) -> None:
        await self._write(lambda connection: add_grant(connection, grant))

    async def use(self, grants: Sequence[str], *, call_id: str, now_ns: int) -> bool:
        def write(connection: Connection) -> bool:
            if not all_live(connection, grants, principal=None, now_ns=now_ns):
                return False
            use_grants(connection, grants, call_id=call_id, now_ns=now_ns)
            return True

        return await self._write(write)

    async def revoke(self, grant_id: str, *, author: str, now_ns: int) -> bool:
        return await self._write(lambda connection: revoke_grant(connection, grant_id, author=author, now_ns=now_ns))

    async def history(self, ticket_id: str) -> Sequence[Mapping[str, Any]]:
        rows = await self._read(lambda connection: connection.execute(_HISTORY, (text(ticket_id),)).fetchall())
        return [dict(zip(HISTORY_FIELDS, row, strict=True)) for row in rows]

    def _vote(self, connection: Connection, ticket_id: str, vote: Vote, notices: Sequence[Notice], grant: Grant | None) -> Ticket:
        before = expected(connection, ticket_id)
        change = voted(before, vote, grants=grant is not None)
        if grant is not None and change.ticket.state is State.APPROVED:
            add_grant(connection, grant)
        add_vote(connection, ticket_id, vote, len(change.ticket.votes))
        decided = change.ticket.state is not State.PENDING
        return write_step(connection, change, notify=self._calls.notify, notices=notices if decided else ())

    def _release(self, connection: Connection, claim: Claim, call_id: str, *, stays: bool, now_ns: int) -> bool:
        ticket = ticket_at(connection, claim.ticket)
        if ticket is None or not claimable(ticket, claim.digest, claim.fence, now_ns):
            return False
        write_step(connection, released(ticket, call_id=call_id, keep=stays, now_ns=now_ns), notify=self._calls.notify)
        link_released(connection, call_id, ticket.id)
        return True

    async def _read(self, query: Callable[[Connection], T]) -> T:
        def run(connection: Connection) -> T:
            with moment(connection):
                return query(connection)

        return await self._reader.read(run)

    async def _write(self, action: Callable[[Connection], T]) -> T:
        return await self._writer.write(Do(action))
