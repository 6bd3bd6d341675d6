"""Sessions on SQLite, as functions of a connection: what the journal's jobs write, what rules ask, whose turn it is."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from gateway.session import SessionFacts, SessionKey, SessionQuery
from gateway.store.answers import MOST_SPEND_NUSD, last_use, since_ns, taken_off, tool_reply, total, with_labels
from gateway.store.database import Connection
from gateway.store.rows import body_text, json_text, text
from gateway.store.session_rows import UNLABELLED, unlabelled
from gateway.store.traces import HTTP, Trace
from gateway.wire.tool_calls import parsed_result

_INSERT_VERDICTS: Final = "INSERT INTO verdicts (seq, withheld, verdicts, labels) VALUES (?, ?, ?, ?)"
_INSERT_USE: Final = """
INSERT INTO tool_uses (seq, n, at_ns, via, released, principal, session, tool_call_id, name, args)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
# A result belongs to the latest tool call of its id that was let through, and the first one that is given for it stays.
_INSERT_RESULT: Final = """
INSERT INTO tool_results (use_seq, tool_call_id, seq, at_ns, text)
SELECT used.seq, used.tool_call_id, ?, ?, ? FROM tool_uses AS used
WHERE principal = ? AND session = ? AND tool_call_id = ? AND released = 1 AND via = 'model' ORDER BY used.seq DESC LIMIT 1
ON CONFLICT DO NOTHING
"""
_COUNT_CALL: Final = """
INSERT INTO sessions (principal, id, created_ns, last_ns, first_seq, calls, spend_nusd, labels) VALUES (?, ?, ?, ?, ?, ?, 0, '')
ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, last_ns = max(last_ns, excluded.last_ns)
"""
# A sum beyond 64 bits would be a REAL, which the column refuses.
_ADD_COST: Final = "UPDATE sessions SET spend_nusd = min(spend_nusd + ?, ?) WHERE principal = ? AND id = ?"
_LABELS: Final = "SELECT labels FROM sessions WHERE principal = ? AND id = ?"
_SET_LABELS: Final = "UPDATE sessions SET labels = ? WHERE principal = ? AND id = ?"
_INSERT_PLACE: Final = "INSERT INTO session_calls (principal, id, at_ns, seq) VALUES (?, ?, ?, ?)"
_INSERT_EVENT: Final = "INSERT INTO session_events (principal, id, at_ns, kind, author, detail) VALUES (?, ?, ?, ?, ?, ?)"
# A provider that gives an id twice has moved on: so has whoever goes on from it.
_INSERT_LINK: Final = """
INSERT INTO session_links (principal, answer_id, session, at_ns) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET session = excluded.session, at_ns = excluded.at_ns
"""

_SESSION: Final = "SELECT created_ns, calls, spend_nusd, labels FROM sessions WHERE principal = ? AND id = ?"
_FACTS: Final = "SELECT name, value FROM session_facts WHERE principal = ? AND id = ? ORDER BY name"
_USES: Final = """
FROM tool_uses AS used WHERE principal = ? AND session = ? AND name = ? AND released = 1 AND at_ns >= ?
AND (via != 'http' OR EXISTS (SELECT 1 FROM outcomes WHERE outcomes.seq = used.seq AND outcome = 'completed'))
"""
_CALLED: Final = f"SELECT EXISTS (SELECT 1 {_USES})"
_COUNT: Final = f"SELECT count(*) {_USES}"
_ARGS: Final = f"SELECT args {_USES}"
_LAST: Final = f"""
SELECT seq, via, tool_call_id, args, at_ns {_USES} ORDER BY at_ns DESC, seq DESC, via DESC, rowid DESC LIMIT 1
"""
_RESPONSE: Final = "SELECT response_encoding, response FROM outcomes WHERE seq = ?"
_RESULT: Final = "SELECT text FROM tool_results WHERE use_seq = ? AND tool_call_id = ?"
# No call below the floor of its process is open; a process whose lease is over has died in the middle of its calls.
_IN_FLIGHT: Final = """
SELECT EXISTS (
    SELECT 1 FROM tool_uses AS used CROSS JOIN calls ON calls.seq = used.seq CROSS JOIN owners ON owners.id = calls.owner
    WHERE used.principal = ? AND used.session = ? AND used.name = ? AND used.released = 1 AND used.via = 'http'
    AND used.seq >= (SELECT min(floor) FROM owners) AND owners.lease_ns >= ?
    AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.seq = used.seq)
)
"""
_RELEASED: Final = "SELECT max(released) FROM tool_uses WHERE principal = ? AND tool_call_id = ? AND via = 'model'"
_ENTER: Final = """
INSERT INTO turns (principal, session, holder, until_ns) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET holder = excluded.holder, until_ns = excluded.until_ns
WHERE turns.until_ns < ? OR turns.holder = excluded.holder
"""
_LEAVE: Final = "DELETE FROM turns WHERE principal = ? AND session = ? AND holder = ?"
_SWEEP: Final = "DELETE FROM turns WHERE until_ns < ?"


def write_trace(connection: Connection, seq: int, trace: Trace) -> None:
    """Write what the call at `seq` leaves behind, in the transaction of its rows."""
    if trace.verdicts is not None:
        connection.execute(_INSERT_VERDICTS, (seq, *trace.verdicts))
    for values in trace.uses:
        connection.execute(_INSERT_USE, (seq, *values))
    if trace.session is None:
        return
    if trace.calls is not None:
        connection.execute(_COUNT_CALL, (*trace.session, trace.received_ns, trace.received_ns, seq, trace.calls))
        connection.execute(_INSERT_PLACE, (*trace.session, trace.received_ns, seq))
    if trace.cost_nusd:
        connection.execute(_ADD_COST, (trace.cost_nusd, MOST_SPEND_NUSD, *trace.session))
    if trace.labels or trace.unlabels:
        _change_labels(connection, trace.session, trace)
    if trace.answer_id:
        connection.execute(_INSERT_LINK, (trace.principal, text(trace.answer_id), trace.session.id, trace.received_ns))
    for use_id, said in trace.results:
        connection.execute(_INSERT_RESULT, (seq, trace.received_ns, said, *trace.session, use_id))


def add_event(connection: Connection, session: SessionKey, *, at_ns: int, kind: str, author: str, detail: Mapping[str, Any]) -> None:
    """Put on record what happened to a session beside its calls."""
    connection.execute(_INSERT_EVENT, (*session, at_ns, kind, text(author), json_text(detail)))


def _change_labels(connection: Connection, session: SessionKey, trace: Trace) -> None:
    row = connection.execute(_LABELS, session).fetchone()
    if row is None:  # it began before there were sessions
        return
    known = _labels(row[0])
    gone = taken_off(known, trace.unlabels)
    left = [label for label in known if label not in gone]
    merged = with_labels(left, trace.labels)
    if merged != known:
        connection.execute(_SET_LABELS, (json_text(merged), *session))
    lost = [label for label in gone if label not in merged]
    if lost:
        add_event(connection, session, at_ns=trace.received_ns, kind=UNLABELLED, author="", detail=unlabelled(lost, trace.call_id))


def _labels(stored: str) -> list[str]:
    return orjson.loads(stored) if stored else []


def session_facts(
    connection: Connection, key: SessionKey, queries: frozenset[SessionQuery], *, now_ns: int, with_facts: bool = False,
) -> SessionFacts:
    """What is known of a session and the answers to `queries`, of one moment. A question without an answer is left out."""
    key = _stored(key)
    connection.execute("BEGIN")
    try:
        answers = dict(answer for query in queries for answer in _answer(connection, key, query, now_ns))
        row = connection.execute(_SESSION, key).fetchone()
        facts = {name: orjson.loads(value) for name, value in connection.execute(_FACTS, key)} if with_facts else {}
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
    if row is None:
        return SessionFacts(answers=answers, facts=facts)
    created_ns, calls, spend_nusd, labels = row
    return SessionFacts(max(0, now_ns - created_ns) / 1e9, tuple(_labels(labels)), calls, spend_nusd, answers, facts)


def _answer(connection: Connection, key: SessionKey, query: SessionQuery, now_ns: int) -> list[tuple[SessionQuery, Any]]:
    """The question with its answer; nothing where there is none."""
    asked = (*key, query.tool, since_ns(query, now_ns))
    match query.function:
        case "called":
            return [(query, bool(connection.execute(_CALLED, asked).fetchone()[0]))]
        case "count":
            return [(query, connection.execute(_COUNT, asked).fetchone()[0])]
        case "sum":
            whole = total(query.path, (row[0] for row in connection.execute(_ARGS, asked)))
            return [] if whole is None else [(query, whole)]
        case "last":
            return [(query, _last(connection, asked))]


def _last(connection: Connection, asked: tuple[str, str, str, int]) -> dict[str, Any] | None:
    row = connection.execute(_LAST, asked).fetchone()
    if row is None:
        return None
    seq, via, use_id, args, at_ns = row
    if via == HTTP:
        return last_use(args, tool_reply(body_text(*connection.execute(_RESPONSE, (seq,)).fetchone())), at_ns)
    given = connection.execute(_RESULT, (seq, use_id)).fetchone()
    return last_use(args, parsed_result(given[0]) if given else None, at_ns)


def any_in_flight(connection: Connection, key: SessionKey, tools: frozenset[str], *, beat_ns: int) -> bool:
    """Whether a call of one of these tools is open in a process whose lease was good at `beat_ns`."""
    session = _stored(key)
    return any(connection.execute(_IN_FLIGHT, (*session, tool, beat_ns)).fetchone()[0] for tool in tools)


def released_ids(connection: Connection, principal: str, ids: Sequence[str]) -> dict[str, bool]:
    """See `Sessions.released`."""
    known = {use_id: connection.execute(_RELEASED, (principal, text(use_id))).fetchone()[0] for use_id in dict.fromkeys(ids)}
    return {use_id: bool(released) for use_id, released in known.items() if released is not None}


def enter(connection: Connection, key: SessionKey, holder: str, *, now_ns: int, until_ns: int) -> bool:
    """See `Sessions.enter`."""
    return bool(connection.execute(_ENTER, (*_stored(key), holder, until_ns, now_ns)).rowcount)


def leave(connection: Connection, key: SessionKey, holder: str) -> None:
    """See `Sessions.leave`."""
    connection.execute(_LEAVE, (*_stored(key), holder))


def sweep_turns(connection: Connection, *, now_ns: int) -> None:
    """Delete the turns that nobody left: their processes died."""
    connection.execute(_SWEEP, (now_ns,))


def _stored(key: SessionKey) -> SessionKey:
    return key._replace(id=text(key.id))
