"""Queries of the journal, as functions of a connection: the store runs them on its reader, the command line on its own."""

from collections.abc import Sequence
from typing import Any, Final

from gateway.store.database import Connection
from gateway.store.protocol import CallFilter, DecidedCall
from gateway.store.rows import (
    ATTEMPT_COLUMNS,
    CALL_COLUMNS,
    DECIDED_COLUMNS,
    DISPATCH_COLUMNS,
    JUDGED_COLUMNS,
    MOST_PAGE_BYTES,
    OUTCOME_COLUMNS,
    PATH_COLUMNS,
    USE_COLUMNS,
    VERDICT_COLUMNS,
    CallRows,
    Row,
    call_json,
    decided_call,
    detail_json,
    text,
)

_COLUMNS: Final = ", ".join([f"calls.{name}" for name in CALL_COLUMNS] + [f"outcomes.{name}" for name in OUTCOME_COLUMNS])
_LAST_TARGET: Final = """
coalesce((SELECT provider || '/' || model FROM attempts WHERE attempts.seq = calls.seq ORDER BY n DESC LIMIT 1),
    (SELECT provider || '/' || model FROM dispatches
        WHERE dispatches.seq = calls.seq AND outcomes.seq IS NULL ORDER BY n DESC LIMIT 1),
    CASE WHEN provider = '' OR outcomes.seq IS NOT NULL THEN '' ELSE provider || '/' || model END)
"""
_ATTEMPT_COUNT: Final = """
CASE WHEN outcomes.seq IS NOT NULL OR provider = '' THEN (SELECT count(*) FROM attempts WHERE attempts.seq = calls.seq)
    ELSE 1 + (SELECT count(*) FROM dispatches WHERE dispatches.seq = calls.seq) END
"""
_APPROVAL: Final = "(SELECT ticket FROM call_approvals WHERE call_approvals.seq = calls.seq ORDER BY fence DESC, ticket DESC LIMIT 1)"
# `seq` is the order of commit: paging by it misses no call that was created earlier and committed later.
_LIST: Final = f"""
SELECT {_COLUMNS}, verdicts.withheld, verdicts.labels, plans.part_of, {_LAST_TARGET}, {_ATTEMPT_COUNT}, {_APPROVAL} FROM calls
LEFT JOIN outcomes ON outcomes.seq = calls.seq LEFT JOIN verdicts ON verdicts.seq = calls.seq LEFT JOIN plans ON plans.seq = calls.seq
WHERE (:before IS NULL OR calls.seq < (SELECT seq FROM calls WHERE id = :before))
    AND (:after IS NULL OR calls.seq > (SELECT seq FROM calls WHERE id = :after))
    AND (:key IS NULL OR calls.key = :key)
    AND (:route IS NULL OR calls.route = :route)
    AND (:session IS NULL OR calls.session = :session)
    AND (:rule IS NULL OR calls.rule = :rule)
    AND (:team IS NULL OR calls.team = :team)
    AND (:code IS NULL OR coalesce(outcomes.code, '') = :code)
    AND (:outcome IS NULL OR coalesce(outcomes.outcome, 'open') = :outcome)
    AND (:part_of IS NULL OR coalesce(plans.part_of, '') = :part_of)
    AND (:approval IS NULL OR (:approval = '' AND calls.seq NOT IN (SELECT seq FROM call_approvals)))
ORDER BY calls.seq DESC LIMIT :limit
"""  # noqa: S608 - built from constants of this module and `rows.py`
# The parts of one call, and the calls of one approval, are found by their index, not by looking through all calls.
_PART: Final = "(:part_of IS NULL OR coalesce(plans.part_of, '') = :part_of)"
_PARTS_ONLY: Final = "calls.seq IN (SELECT seq FROM plans WHERE part_of = :part_of AND part_of != '')"
_APPROVED: Final = "(:approval IS NULL OR (:approval = '' AND calls.seq NOT IN (SELECT seq FROM call_approvals)))"
_APPROVED_ONLY: Final = "calls.seq IN (SELECT seq FROM call_approvals WHERE ticket = :approval)"
_ASKED: Final = ("before", "after", "key", "route", "session", "outcome", "rule", "code", "team", "part_of", "approval")
_CALL: Final = f"SELECT seq, {', '.join(CALL_COLUMNS)}, request_encoding, request FROM calls WHERE id = ?"  # noqa: S608 - constants
_OUTCOME: Final = f"SELECT {', '.join(OUTCOME_COLUMNS)}, response_encoding, response FROM outcomes WHERE seq = ?"  # noqa: S608 - constants
_ATTEMPTS: Final = (
    "SELECT " + ", ".join(f'"{name}"' for name in ATTEMPT_COLUMNS) + " FROM attempts WHERE seq = ? ORDER BY n"  # noqa: S608 - constants
)
_VERDICTS: Final = f"SELECT {', '.join(VERDICT_COLUMNS)} FROM verdicts WHERE seq = ?"  # noqa: S608 - constants
_PATHS: Final = f"SELECT {', '.join(PATH_COLUMNS)} FROM paths WHERE seq = ? ORDER BY n"  # noqa: S608 - constants
_PLAN: Final = "SELECT plan, part_of FROM plans WHERE seq = ?"
_APPROVALS: Final = "SELECT fence, ticket FROM call_approvals WHERE seq = ?"
_GRANTS: Final = "SELECT grant_id FROM grant_uses WHERE call_id = ? ORDER BY id"
_PARTS: Final = "SELECT id FROM plans JOIN calls USING (seq) WHERE part_of = ? AND part_of != '' ORDER BY seq"  # the index is of those
_USES: Final = f"SELECT {', '.join(USE_COLUMNS)} FROM tool_uses WHERE seq = ? ORDER BY n"  # noqa: S608 - constants
# Attempt 1 has its intent in the row of the call; how long after the call's arrival it was sent is not kept.
_PENDING: Final = """
SELECT 1 AS n, provider, model, received_ns AS started_ns, 0.0 AS waited_s FROM calls WHERE seq = :seq AND provider != ''
UNION ALL SELECT n, provider, model, started_ns, waited_s FROM dispatches WHERE seq = :seq ORDER BY n
"""
_DECIDED: Final = f"""
SELECT {", ".join(f"calls.{name}" for name in JUDGED_COLUMNS)}, request_encoding, request,
    outcome, outcomes.cost_nusd, coalesce(verdicts.verdicts, ''), keys.roles, keys.routes FROM calls
LEFT JOIN outcomes ON outcomes.seq = calls.seq LEFT JOIN verdicts ON verdicts.seq = calls.seq LEFT JOIN keys ON keys.id = calls.key
WHERE calls.seq > ? AND calls.received_ns >= ? AND calls.decision != ''
    AND NOT EXISTS (SELECT 1 FROM plans WHERE plans.seq = calls.seq AND part_of != '')
ORDER BY calls.seq LIMIT ?
"""  # noqa: S608 - constants
# Calls are on record in the order in which they were let through, and their clocks are set now and then.
_DISORDER_NS: Final = 3_600_000_000_000


def list_calls(connection: Connection, wanted: CallFilter) -> list[dict[str, Any]]:
    """Calls, newest first, as `JOURNAL_FIELDS`."""
    asked = {name: getattr(wanted, name) for name in _ASKED}
    parameters = {name: None if value is None else text(value) for name, value in asked.items()}
    found = []
    width = len(CALL_COLUMNS)
    sql = _LIST.replace(_PART, _PARTS_ONLY) if wanted.part_of else _LIST
    sql = sql.replace(_APPROVED, _APPROVED_ONLY) if wanted.approval else sql
    for row in connection.execute(sql, {**parameters, "limit": max(wanted.limit, 0)}).fetchall():
        *known, withheld, labels, part_of, target, attempts, approval = row
        outcome = _row(OUTCOME_COLUMNS, known[width:]) if known[width] is not None else None
        verdicts = {"withheld": withheld, "labels": labels} if withheld is not None else None
        met = (approval,) if approval else ()
        rows = CallRows(_row(CALL_COLUMNS, known[:width]), outcome, verdicts, part_of=part_of or "", approvals=met)
        found.append(call_json(rows, target, attempts))
    return found


def one_call(connection: Connection, call_id: str) -> dict[str, Any] | None:
    """One call with everything on record; None if there is none. One transaction, so that its parts belong together."""
    connection.execute("BEGIN")
    try:
        found = connection.execute(_CALL, (text(call_id),)).fetchone()
        if found is None:
            return None
        seq = found[0]
        ended = connection.execute(_OUTCOME, (seq,)).fetchone()
        judged = connection.execute(_VERDICTS, (seq,)).fetchone()
        plan, part_of = connection.execute(_PLAN, (seq,)).fetchone() or ("", "")
        return detail_json(CallRows(
            _row((*CALL_COLUMNS, "request_encoding", "request"), found[1:]),
            _row((*OUTCOME_COLUMNS, "response_encoding", "response"), ended) if ended else None,
            _row(VERDICT_COLUMNS, judged) if judged else None,
            [_row(ATTEMPT_COLUMNS, row) for row in connection.execute(_ATTEMPTS, (seq,)).fetchall()],
            pending_attempts(connection, seq),
            [_row(USE_COLUMNS, row) for row in connection.execute(_USES, (seq,)).fetchall()],
            [_row(PATH_COLUMNS, row) for row in connection.execute(_PATHS, (seq,)).fetchall()],
            plan, part_of, [row[0] for row in connection.execute(_PARTS, (text(call_id),)).fetchall()],
            [ticket for _fence, ticket in sorted(connection.execute(_APPROVALS, (seq,)).fetchall(), reverse=True)],
            list(dict.fromkeys(row[0] for row in connection.execute(_GRANTS, (text(call_id),)))),
        ))
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def decided_calls(connection: Connection, since_ns: int, after: str | None, limit: int) -> list[DecidedCall]:
    """Calls that were judged, in order; see `Journal.decided`."""
    if after is None:
        seq = _seq_before(connection, since_ns - _DISORDER_NS)
    else:
        known = connection.execute("SELECT seq FROM calls WHERE id = ?", (text(after),)).fetchone()
        if known is None:
            return []
        seq = known[0]
    page: list[DecidedCall] = []
    size = 0
    for row in connection.execute(_DECIDED, (seq, since_ns, max(limit, 0))):
        page.append(decided_call(_row(DECIDED_COLUMNS, row)))
        size += len(page[-1].request or b"")
        if size > MOST_PAGE_BYTES:
            break
    return page


def _seq_before(connection: Connection, since_ns: int) -> int:
    """A place in the journal before the calls that arrived since then. There is no index on the time: halving finds it."""
    low, high = 0, connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
    while low < high:
        middle = (low + high) // 2
        received_ns = connection.execute("SELECT received_ns FROM calls WHERE seq > ? ORDER BY seq LIMIT 1", (middle,)).fetchone()[0]
        if received_ns < since_ns:
            low = middle + 1
        else:
            high = middle
    return low


def pending_attempts(connection: Connection, seq: int) -> list[Row]:
    """The intents of a call's attempts, as `DISPATCH_COLUMNS`."""
    return [_row(DISPATCH_COLUMNS, row) for row in connection.execute(_PENDING, {"seq": seq}).fetchall()]


def _row(columns: Sequence[str], values: Sequence[Any]) -> Row:
    return dict(zip(columns, values, strict=True))
