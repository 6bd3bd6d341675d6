"""Queries of sessions for people, as functions of a connection: the store runs them on its reader, the command line on its own.

A page of a timeline costs what is in it: each kind is read in the order of its index, and no further than the page may reach.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final

import orjson

from gateway.session import SessionKey
from gateway.store.database import Connection
from gateway.store.rows import text
from gateway.store.session_protocol import SessionFilter
from gateway.store.session_rows import (
    APPROVALS,
    CALLS,
    EVENTS,
    MOST_OWNERS,
    USES,
    VOTES,
    Place,
    approval_entry,
    call_entry,
    event_entry,
    placed,
    session_row,
    use_entry,
    vote_entry,
)

# One that an operator has frozen, or given a fact, before its first call is there too.
_KNOWN: Final = """
WITH known (principal, id, created_ns, last_ns, calls, spend_nusd, labels) AS (
    SELECT principal, id, created_ns, last_ns, calls, spend_nusd, labels FROM sessions
    UNION ALL SELECT principal, id, NULL, at_ns, 0, 0, '' FROM session_states AS said
        WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.principal = said.principal AND sessions.id = said.id)
    UNION ALL SELECT principal, id, NULL, max(at_ns), 0, 0, '' FROM session_facts AS put
        WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.principal = put.principal AND sessions.id = put.id)
        AND NOT EXISTS (SELECT 1 FROM session_states AS said WHERE said.principal = put.principal AND said.id = put.id)
        GROUP BY principal, id
)
SELECT known.principal, known.id, coalesce(keys.name, ''), coalesce(keys.team, ''), coalesce(state, 'active'), coalesce(author, ''),
    coalesce(note, ''), at_ns, known.created_ns, last_ns, calls, spend_nusd, labels
FROM known LEFT JOIN session_states AS states ON states.principal = known.principal AND states.id = known.id
LEFT JOIN keys ON keys.id = known.principal
"""
_LIST: Final = f"""
{_KNOWN} WHERE (? = '' OR known.principal = ?) AND last_ns >= ? AND (last_ns, known.principal, known.id) < (?, ?, ?)
ORDER BY last_ns DESC, known.principal DESC, known.id DESC LIMIT ?
"""
_ONE: Final = f"{_KNOWN} WHERE known.principal = ? AND known.id = ?"
_OWNERS: Final = """
SELECT principal FROM sessions WHERE id = ? UNION SELECT principal FROM session_states WHERE id = ?
UNION SELECT principal FROM session_facts WHERE id = ? ORDER BY principal LIMIT ?
"""
_FACTS: Final = "SELECT name, value, version, author, at_ns FROM session_facts WHERE principal = ? AND id = ? ORDER BY name"
_BEYOND: Final = (2**63 - 1, "\U0010ffff", "")  # every session comes after it

_CALLS: Final = """
SELECT places.at_ns, printf('%020d', places.seq), calls.id, calls.received_ns, operation, route, decision, rule, calls.labels,
    verdicts.labels, withheld, ended_ns, outcome, status, code, outcomes.message, cost_nusd, coalesce(part_of, '')
FROM session_calls AS places CROSS JOIN calls ON calls.seq = places.seq LEFT JOIN outcomes ON outcomes.seq = places.seq
LEFT JOIN verdicts ON verdicts.seq = places.seq LEFT JOIN plans ON plans.seq = places.seq
WHERE places.principal = ? AND places.id = ? AND places.at_ns >= ? AND (places.at_ns, ?, printf('%020d', places.seq)) > (?, ?, ?)
ORDER BY places.at_ns, places.seq LIMIT ?
"""
# What waited for people was not kept back: it is another call's, which made it, or nobody's yet. See `session_rows.waited`.
_USES: Final = """
SELECT at_ns, printf('%020d.%010d', tool_uses.seq, n), tool_uses.name, tool_call_id, via, released, calls.id
FROM tool_uses JOIN calls ON calls.seq = tool_uses.seq LEFT JOIN outcomes ON outcomes.seq = tool_uses.seq
WHERE principal = ? AND tool_uses.session = ? AND (via != 'http' OR released = 1 OR coalesce(code, 'open') NOT IN ('', 'approval_pending'))
AND at_ns >= ? AND (at_ns, ?, printf('%020d.%010d', tool_uses.seq, n)) > (?, ?, ?)
ORDER BY at_ns, tool_uses.seq, n LIMIT ?
"""
_APPROVALS: Final = """
SELECT at_ns, printf('%020d', told.id), ticket, rule, tool, route, approvals.call_id, event, told.state, author, told.reason
FROM approvals JOIN approval_events AS told ON told.ticket = approvals.id
WHERE principal = ? AND session = ? AND session != '' AND event != 'vote' AND at_ns >= ?
AND (at_ns, ?, printf('%020d', told.id)) > (?, ?, ?)
ORDER BY at_ns, told.id LIMIT ?
"""
_VOTES: Final = """
SELECT at_ns, ticket || ' ' || person, ticket, person, voter, verdict, comment
FROM approvals JOIN approval_votes ON ticket = approvals.id
WHERE principal = ? AND session = ? AND session != '' AND at_ns >= ? AND (at_ns, ?, ticket || ' ' || person) > (?, ?, ?)
ORDER BY at_ns, ticket, person LIMIT ?
"""
_EVENTS: Final = """
SELECT at_ns, printf('%020d', n), kind, author, detail FROM session_events
WHERE principal = ? AND id = ? AND at_ns >= ? AND (at_ns, ?, printf('%020d', n)) > (?, ?, ?) ORDER BY at_ns, n LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """One kind of entries: its statement gives the time, the name and then what `entry` is made of."""

    rank: int
    statement: str
    entry: Callable[..., dict[str, Any]]


def list_sessions(connection: Connection, wanted: SessionFilter) -> list[dict[str, Any]]:
    """See `SessionDesk.list`."""
    principal, after = text(wanted.principal), wanted.after or _BEYOND
    rows = connection.execute(_LIST, (principal, principal, wanted.since_ns, after[0], text(after[1]), text(after[2]), wanted.limit))
    return [session_row(row) for row in rows]


def one_session(connection: Connection, key: SessionKey) -> dict[str, Any] | None:
    """See `SessionDesk.get`."""
    row = connection.execute(_ONE, (key.principal, text(key.id))).fetchone()
    return None if row is None else session_row(row)


def owners_of(connection: Connection, session_id: str) -> list[str]:
    """See `SessionDesk.owners`."""
    session_id = text(session_id)
    return [row[0] for row in connection.execute(_OWNERS, (session_id, session_id, session_id, MOST_OWNERS))]


def facts_of(connection: Connection, key: SessionKey) -> dict[str, dict[str, Any]]:
    """See `SessionDesk.facts`."""
    rows = connection.execute(_FACTS, (key.principal, text(key.id)))
    return {name: {"value": orjson.loads(value), "version": version, "author": author, "at_ns": at_ns}
            for name, value, version, author, at_ns in rows}


def timeline(connection: Connection, key: SessionKey, *, after: Place | None, limit: int) -> list[dict[str, Any]]:
    """See `SessionDesk.timeline`."""
    begin = after or (-(2**63), 0, "")
    with _one_moment(connection):
        return list(islice(merge(*[_entries(connection, source, key, begin, limit) for source in _SOURCES],
                                 key=lambda entry: entry["place"]), limit))


def _entries(connection: Connection, source: _Source, key: SessionKey, begin: Place, limit: int) -> list[dict[str, Any]]:
    asked = (key.principal, text(key.id), begin[0], source.rank, *begin[:2], text(begin[2]), limit)
    return [placed(source.entry(*what), (at_ns, source.rank, name))
            for at_ns, name, *what in connection.execute(source.statement, asked)]


@contextmanager
def _one_moment(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


_CALL_NAMES: Final = ("id", "received_ns", "operation", "route", "decision", "rule", "labels")
_OUTCOME_NAMES: Final = ("ended_ns", "outcome", "status", "code", "message", "cost_nusd")


def _call(*values: Any) -> dict[str, Any]:
    call = dict(zip(_CALL_NAMES, values[:7], strict=True))
    ended = dict(zip(_OUTCOME_NAMES, values[9:15], strict=True)) if values[10] is not None else {}
    return call_entry(call, ended, {"labels": values[7], "withheld": values[8]}, values[15])


def _use(name: str, tool_call_id: str, via: str, released: int, call_id: str) -> dict[str, Any]:
    return use_entry({"name": name, "tool_call_id": tool_call_id, "via": via, "released": released}, call_id)


def _approval(*values: Any) -> dict[str, Any]:
    return approval_entry(dict(zip(("id", "rule", "tool", "route", "call_id"), values[:5], strict=True)), *values[5:])


def _vote(ticket: str, person: str, voter: str, verdict: str, comment: str) -> dict[str, Any]:
    return vote_entry(ticket, person, orjson.loads(voter or "{}"), verdict, comment)


def _event(kind: str, author: str, detail: str) -> dict[str, Any]:
    return event_entry(kind, author, orjson.loads(detail or "{}"))


_SOURCES: Final[Sequence[_Source]] = (
    _Source(CALLS, _CALLS, _call), _Source(USES, _USES, _use), _Source(APPROVALS, _APPROVALS, _approval),
    _Source(VOTES, _VOTES, _vote), _Source(EVENTS, _EVENTS, _event),
)
