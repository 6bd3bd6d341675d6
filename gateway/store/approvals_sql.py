"""Approvals as functions of a connection: how tickets are read, and how a step is written, inside a transaction of the writer."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from gateway.core.approval import OPEN, NotPossibleError, Result, Ticket, Vote
from gateway.core.approval_bounds import Bounds, Full, Queue, asked
from gateway.core.approval_steps import TOLD, Entry, Moved, opened, overdue
from gateway.store.approval_rows import (
    ENTRY_COLUMNS,
    NOTICE_COLUMNS,
    RESULT_COLUMNS,
    STEP_COLUMNS,
    TICKET_COLUMNS,
    VOTE_COLUMNS,
    entry_values,
    kept_values,
    notice_values,
    result_of,
    result_values,
    size_of,
    step_values,
    stored,
    ticket_of,
    ticket_values,
    vote_of,
    vote_values,
)
from gateway.store.approvals_protocol import KeptAnswer, Notice, Notify, QueueFullError, TicketFilter
from gateway.store.database import Connection
from gateway.store.rows import MOST_PAGE_BYTES, text


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" * len(columns))


# Built from constants of this package: no value of anybody's stands in a statement.
_COLUMNS: Final = ", ".join(TICKET_COLUMNS)
_CHANGED_AT: Final = TICKET_COLUMNS.index("changed")
_OPEN: Final = "state IN ('pending', 'approved', 'executing', 'unknown')"  # `OPEN`, in the words of the partial indices
_INSERT: Final = f"INSERT INTO approvals ({_COLUMNS}) VALUES ({_marks(TICKET_COLUMNS)})"  # noqa: S608
_STEP: Final = f"UPDATE approvals SET ({', '.join(STEP_COLUMNS)}) = ({_marks(STEP_COLUMNS)}) WHERE id = ?"  # noqa: S608
_VOTE: Final = f"INSERT INTO approval_votes (ticket, {', '.join(VOTE_COLUMNS)}) VALUES (?, {_marks(VOTE_COLUMNS)})"  # noqa: S608
_ENTRY: Final = f"INSERT INTO approval_events (ticket, {', '.join(ENTRY_COLUMNS)}) VALUES (?, {_marks(ENTRY_COLUMNS)})"  # noqa: S608
_RESULT: Final = (
    f"INSERT OR REPLACE INTO approval_results (ticket, at_ns, {', '.join(RESULT_COLUMNS)}) VALUES (?, ?, {_marks(RESULT_COLUMNS)})")  # noqa: S608
_NOTICE: Final = (
    f"INSERT INTO outbox ({', '.join(NOTICE_COLUMNS)}, holder, until_ns, attempts, done_ns, dead, error) "  # noqa: S608
    f"VALUES ({_marks(NOTICE_COLUMNS)}, '', 0, 0, NULL, 0, '') ON CONFLICT DO NOTHING")
_KEEP: Final = """
INSERT OR REPLACE INTO kept_answers (principal, presented, call_id, at_ns, expires_ns, encoding, reply) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_CHANGED: Final = "UPDATE counters SET value = value + 1 WHERE name = 'approvals_generation'"
_GENERATION: Final = "SELECT value FROM counters WHERE name = 'approvals_generation'"
_QUEUES: Final = "SELECT principal, pending, size, full_ns FROM approval_queues WHERE principal IN ('', ?)"
_ASKED: Final = """
INSERT INTO approval_queues (principal, pending, size, full_ns) VALUES (?, 0, 0, ?) ON CONFLICT DO UPDATE SET full_ns = excluded.full_ns
"""

_BY_ID: Final = f"SELECT {_COLUMNS} FROM approvals WHERE id = ?"  # noqa: S608
_PRESENTED: Final = f"SELECT {_COLUMNS} FROM approvals WHERE principal = ? AND presented = ? AND {_OPEN}"  # noqa: S608
_EDITED: Final = (
    f"SELECT {_COLUMNS} FROM approvals WHERE principal = ? AND digest = ? AND digest != presented AND {_OPEN} "  # noqa: S608
    "ORDER BY rowid DESC LIMIT 1")
_LATEST: Final = f"SELECT {_COLUMNS} FROM approvals WHERE principal = ? AND presented = ? ORDER BY rowid DESC LIMIT 1"  # noqa: S608
_DUE: Final = (
    f"SELECT {_COLUMNS} FROM approvals INDEXED BY approvals_due "  # noqa: S608
    "WHERE state IN ('pending', 'approved') AND expires_ns <= ? ORDER BY expires_ns LIMIT ?")
_VOTES: Final = f"SELECT {', '.join(VOTE_COLUMNS)} FROM approval_votes WHERE ticket = ?"  # noqa: S608
_RESULT_OF: Final = f"SELECT {', '.join(RESULT_COLUMNS)} FROM approval_results WHERE ticket = ?"  # noqa: S608
_FILTERS: Final = ("rule", "tool", "route", "kind", "principal", "session", "team", "shape", "call_id", "mode")


@contextmanager
def moment(connection: Connection) -> Iterator[None]:
    """Let everything that is read see the database of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def generation(connection: Connection) -> int:
    """The number of the last change of any ticket."""
    value: int = connection.execute(_GENERATION).fetchone()[0]
    return value


def next_generation(connection: Connection) -> int:
    """The number of the change that is being written."""
    connection.execute(_CHANGED)
    return generation(connection)


def ticket_at(connection: Connection, ticket_id: str) -> Ticket | None:
    """A ticket with its votes and result."""
    return _whole(connection, connection.execute(_BY_ID, (text(ticket_id),)).fetchone())


def expected(connection: Connection, ticket_id: str) -> Ticket:
    """A ticket that is there. Raises `NotPossibleError`."""
    ticket = ticket_at(connection, ticket_id)
    if ticket is None:
        raise NotPossibleError(f"There is no approval {text(ticket_id)!r}.")
    return ticket


def found(connection: Connection, principal: str, presented: str) -> Ticket | None:
    """See `Approvals.find`."""
    asked = text(principal), text(presented)
    for query in (_PRESENTED, _EDITED, _LATEST):
        row = connection.execute(query, asked).fetchone()
        if row is not None:
            return _whole(connection, row)
    return None


def listed(connection: Connection, wanted: TicketFilter) -> list[Ticket]:
    """See `Approvals.list`."""
    conditions, values = ["TRUE"], []
    if wanted.states:
        conditions.append(f"state IN ({_marks(wanted.states)})")
        values += [state.value for state in wanted.states]
    for name in _FILTERS:
        if getattr(wanted, name) is not None:
            conditions.append(f"{name} = ?")
            values.append(text(getattr(wanted, name)))
    if wanted.asker is not None:
        conditions.append("? IN (principal, principal_name)")
        values.append(text(wanted.asker))
    if wanted.after is not None:
        further = "<" if wanted.newest else ">"
        conditions.append(f"(created_ns, id) {further} (SELECT created_ns, id FROM approvals WHERE id = ?)")  # noqa: S608
        values.append(text(wanted.after))
    order = "DESC" if wanted.newest else "ASC"
    sql = f"SELECT {_COLUMNS} FROM approvals WHERE {' AND '.join(conditions)} ORDER BY created_ns {order}, id {order} LIMIT ?"  # noqa: S608
    return _page(connection, sql, (*values, max(wanted.limit, 0)))


def due(connection: Connection, now_ns: int, limit: int) -> list[Ticket]:
    """Tickets whose time is over, those first that have been so for longest; fewer than `limit` where they are large."""
    return _page(connection, _DUE, (now_ns, max(limit, 0)))


def insert(connection: Connection, change: Moved, notices: Iterable[Notice], *, notify: Notify, row: Sequence[Any]) -> Ticket:
    """Write a new ticket; `row` are its `ticket_values`."""
    ticket = replace(stored(change.ticket), changed=next_generation(connection))
    connection.execute(_INSERT, (*row[:_CHANGED_AT], ticket.changed, *row[_CHANGED_AT + 1:]))
    _write_down(connection, ticket, change.entries, notices, notify)
    return ticket


def write_step(
    connection: Connection, change: Moved, *, notify: Notify, notices: Iterable[Notice] = (), result: Result | None = None,
) -> Ticket:
    """Write a step: the ticket as it is after it."""
    ticket = replace(stored(change.ticket), changed=next_generation(connection))
    connection.execute(_STEP, (*step_values(ticket), ticket.id))
    if result is not None:
        ticket = replace(ticket, result=result)
        connection.execute(_RESULT, (ticket.id, change.entries[-1].at_ns, *result_values(result)))
    _write_down(connection, ticket, change.entries, notices, notify)
    return ticket


def open_ticket(connection: Connection, ticket: Ticket, notices: Iterable[Notice], *, bounds: Bounds,
                kept: KeptAnswer | None, notify: Notify) -> Ticket:
    """See `Approvals.open`."""
    new, row = opened(ticket), ticket_values(ticket)
    there = found(connection, ticket.principal, ticket.presented)
    late = None if there is None else overdue(there, ticket.created_ns)
    now = late.ticket if late is not None else there
    is_new = now is None or now.state not in OPEN
    asks_ns = _room(connection, ticket, bounds, row) if is_new else 0  # it refuses before anything is changed
    if late is not None:
        now = write_step(connection, late, notify=notify)
    if now is None or is_new:
        connection.execute(_ASKED, (text(ticket.principal), asks_ns))
        now = insert(connection, new, notices, notify=notify, row=row)
    if kept is not None and now.digest == ticket.digest:
        keep(connection, kept, now_ns=ticket.created_ns)
    return now


def _room(connection: Connection, ticket: Ticket, bounds: Bounds, row: Sequence[Any]) -> int:
    """How often its caller has asked lately once this ticket is opened. Raises `QueueFullError`."""
    whose = text(ticket.principal)
    queues = {principal: Queue(*numbers) for principal, *numbers in connection.execute(_QUEUES, (whose,))}
    found = asked(bounds, queues[""], queues.get(whose, Queue()), size_of(row), ticket.created_ns)
    if isinstance(found, Full):
        raise QueueFullError(found)
    return found


def keep(connection: Connection, kept: KeptAnswer, *, now_ns: int) -> None:
    """Keep an answer, in place of the one that is kept for the same request."""
    connection.execute(_KEEP, (
        text(kept.principal), text(kept.presented), text(kept.call_id), now_ns, kept.expires_ns, *kept_values(kept)))


def add_vote(connection: Connection, ticket_id: str, vote: Vote, n: int) -> None:
    """Write a ticket's nth vote."""
    connection.execute(_VOTE, (text(ticket_id), *vote_values(vote, n)))


def write_entry(connection: Connection, ticket_id: str, entry: Entry) -> None:
    """Write a line of a ticket's history."""
    connection.execute(_ENTRY, (text(ticket_id), *entry_values(entry)))


def add_notices(connection: Connection, notices: Iterable[Notice]) -> None:
    """Put notices into the outbox, but for those that are there."""
    for notice in notices:
        connection.execute(_NOTICE, notice_values(notice))


def _write_down(connection: Connection, ticket: Ticket, entries: Iterable[Entry], notices: Iterable[Notice], notify: Notify) -> None:
    for entry in entries:
        write_entry(connection, ticket.id, entry)
        if entry.event in TOLD:
            add_notices(connection, notify(ticket, TOLD[entry.event], entry.at_ns))
    add_notices(connection, notices)


def _whole(connection: Connection, row: Sequence[Any] | None) -> Ticket | None:
    if row is None:
        return None
    result = connection.execute(_RESULT_OF, (row[0],)).fetchone()
    return ticket_of(row, _votes(connection, row[0]), None if result is None else result_of(result))


def _page(connection: Connection, sql: str, values: Sequence[Any]) -> list[Ticket]:
    page: list[Ticket] = []
    size = 0
    for row in connection.execute(sql, values):
        page.append(ticket_of(row, _votes(connection, row[0])))
        size += len(page[-1].body) + len(row[-4])  # and what is shown of it
        if size > MOST_PAGE_BYTES:
            break
    return page


def _votes(connection: Connection, ticket_id: str) -> list[Vote]:
    return [vote_of(row) for row in sorted(connection.execute(_VOTES, (ticket_id,)).fetchall())]  # `n` is the first column
