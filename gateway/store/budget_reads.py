"""What the ledger and the balances tell, as functions of a connection that is in a transaction: the store runs them on its reader."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from gateway.core.accounts import NOTHING, UNDER_KEY, Budget, BudgetBook, Settings, Subjects, account_of
from gateway.errors import StoreError
from gateway.store.balances_sql import Balances, place_of, seats_of, standings
from gateway.store.database import Connection
from gateway.store.ledger_rows import COST_FIELDS, COST_GROUPS, SUSPECT_FIELDS, WINDOW_FIELDS
from gateway.store.protocol import AccountFilter, Standing
from gateway.store.rows import text
from gateway.store.settings_sql import changed_subjects

_ACTIVE: Final = "SELECT DISTINCT subject FROM balances WHERE budget = ? AND span = ? AND window_ns BETWEEN ? AND ?"
_END_OF_TIME: Final = 2**63 - 1
_MOST_ROWS: Final = 1_000_000
_WINDOWS: Final = f"""
SELECT {", ".join(WINDOW_FIELDS)} FROM balances WHERE budget = ? AND (? IS NULL OR subject = ?)
ORDER BY window_ns DESC, subject, span LIMIT ?
"""  # noqa: S608 - a constant
_SUSPECTS: Final = """
SELECT calls.id, received_ns, settlements.at_ns, key, team, route, coalesce(ledger.provider || '/' || ledger.model, ''),
    settlements.cost_nusd, reservations.balances
FROM settlements JOIN calls USING (seq) JOIN reservations USING (seq)
LEFT JOIN ledger ON ledger.seq = settlements.seq AND ledger.n = (SELECT max(n) FROM ledger AS every WHERE every.seq = settlements.seq)
WHERE suspect = 1 ORDER BY settlements.seq LIMIT ?
"""
_NAME: Final = "SELECT budget || '/' || subject FROM balances WHERE id = ?"

# What a line counts for; '' where it has no such thing. Names that callers choose belong to their key.
_GROUPS: Final[Mapping[str, str]] = {
    "model": "ledger.provider || '/' || ledger.model",
    "team": "calls.team", "org": "calls.org", "key": "calls.key",
    "session": "CASE calls.session WHEN '' THEN '' ELSE calls.key || '/' || calls.session END",
    "run": "CASE calls.run WHEN '' THEN '' ELSE calls.key || '/' || calls.run END",
    "route": "CASE calls.operation WHEN 'tool' THEN '' ELSE calls.route END",
    "tool": "CASE calls.operation WHEN 'tool' THEN calls.route ELSE '' END",
    "day": "date(ledger.at_ns / 1000000000, 'unixepoch')",
}
# A line that was booked at an estimate is none any more once somebody has said what it was.
_LINES: Final = """
FROM ledger JOIN calls USING (seq) LEFT JOIN settlements USING (seq) WHERE ledger.at_ns >= ? AND ledger.at_ns < ?
"""
_SUMS: Final = """
sum(ledger.cost_nusd), coalesce(sum(ledger.cost_nusd) FILTER (WHERE estimated = 1 AND coalesce(how, '') != 'resolved'), 0),
count(DISTINCT ledger.seq), count(*)
"""
_COSTS: Final = {
    by: f"SELECT {group} AS what, {_SUMS} {_LINES} GROUP BY what ORDER BY sum(ledger.cost_nusd) DESC, what LIMIT ?"
    for by, group in _GROUPS.items()
}
_REST: Final = {
    by: f"""
    WITH ranked AS (SELECT {group} AS what {_LINES} GROUP BY what ORDER BY sum(ledger.cost_nusd) DESC, what LIMIT -1 OFFSET ?)
    SELECT NULL, {_SUMS} {_LINES} AND {group} IN (SELECT what FROM ranked)
    """  # noqa: S608 - constants
    for by, group in _GROUPS.items()
}


def standings_of(
    connection: Connection, book: BudgetBook, settings: Settings, subjects: Subjects, now_ns: int,
) -> tuple[Standing, ...]:
    """See `Budgets.standing`."""
    return standings(connection, Balances(), [place_of(*seat) for seat in seats_of(book, settings, subjects, now_ns)])


def listed_accounts(
    connection: Connection, book: BudgetBook, settings: Settings, wanted: AccountFilter, now_ns: int,
) -> tuple[Standing, ...]:
    """See `Budgets.accounts`."""
    budgets = {**settings.book.budgets, **book.budgets}  # a configured one hides one of its name that was set
    found = [
        place_of(account_of(budget, subject, settings, now_ns), budget.window.at(now_ns))
        for name, budget in sorted(budgets.items()) if wanted.budget in (None, name) and wanted.scope in (None, budget.scope)
        for subject in sorted(_subjects(connection, budget, settings, now_ns)) if wanted.subject in (None, subject)
    ]
    return standings(connection, Balances(), found[:_bounded(wanted.limit)])


def _subjects(connection: Connection, budget: Budget, settings: Settings, now_ns: int) -> set[str]:
    """Who has a balance in the current window of a budget, or a limit of their own."""
    window = budget.window
    at_ns = window.at(now_ns)
    last_ns = _END_OF_TIME if window.kind == "rolling" else at_ns
    active = connection.execute(_ACTIVE, (budget.name, window.span, window.counts_from(at_ns), last_ns)).fetchall()
    own = [subject for subject in changed_subjects(connection, budget.name) if settings.own(budget.name, subject) != NOTHING]
    written = [subject for subject in budget.limits if budget.scope not in UNDER_KEY or "/" in subject]
    return {row[0] for row in active}.union(own, written)


def balance_windows(connection: Connection, budget: str, subject: str | None, limit: int) -> list[dict[str, Any]]:
    """See `Budgets.windows`."""
    whose = None if subject is None else text(subject)
    return _rows(WINDOW_FIELDS, connection.execute(_WINDOWS, (text(budget), whose, whose, _bounded(limit))).fetchall())


def suspect_calls(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """See `Budgets.suspects`."""
    found = _rows(SUSPECT_FIELDS, connection.execute(_SUSPECTS, (_bounded(limit),)).fetchall())
    for row in found:
        names = [connection.execute(_NAME, (balance_id,)).fetchone() for balance_id in orjson.loads(row["accounts"] or "[]")]
        row["accounts"] = [name[0] for name in names if name is not None]
    return found


def ledger_costs(connection: Connection, by: str, between: tuple[int, int], limit: int) -> list[dict[str, Any]]:
    """See `Budgets.costs`."""
    if by not in COST_GROUPS:
        raise StoreError(f"costs are grouped by {', '.join(COST_GROUPS)}, not by {by!r}")
    shown = _bounded(limit)
    since_ns, until_ns = (min(max(each, 0), _END_OF_TIME) for each in between)
    rows = connection.execute(_COSTS[by], (since_ns, until_ns, shown)).fetchall()
    if len(rows) == shown:
        rest = connection.execute(_REST[by], (since_ns, until_ns, shown, since_ns, until_ns)).fetchall()
        rows += [row for row in rest if row[-1]]
    return _rows(COST_FIELDS, rows)


def _rows(fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(fields, row, strict=True)) for row in rows]


def _bounded(limit: int) -> int:
    return min(max(limit, 0), _MOST_ROWS)
