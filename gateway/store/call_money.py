"""The money of one call as it is on record: what was set aside on which accounts, what was booked, its lines of the ledger. Reads only."""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.core.money import usd
from gateway.store.database import Connection
from gateway.store.rows import text

_RESERVED: Final = "SELECT seq, amount_nusd, units, balances FROM calls LEFT JOIN reservations USING (seq) WHERE id = ?"
_ACCOUNT: Final = "SELECT budget || '/' || subject FROM balances WHERE id = ?"
_SETTLED: Final = "SELECT at_ns, cost_nusd, how, suspect, author FROM settlements WHERE seq = ?"
_LINES: Final = """
SELECT n, at_ns, provider || '/' || model AS target, cost_nusd, estimated, images, prices FROM ledger WHERE seq = ? ORDER BY n = 0, n
"""
_LINE_FIELDS: Final = ("n", "at_ns", "target", "cost_nusd", "estimated", "images", "prices")


def call_money(connection: Connection, call_id: str) -> dict[str, Any] | None:
    """What is on record of a call's money, JSON-ready; None where nothing is. A line of attempt 0 is what an operator corrected.

    `granted_tokens` is the longest answer that the accounts afforded, None where none limited it; `settlement` is None while it is open.
    """
    connection.execute("BEGIN")
    try:
        found = connection.execute(_RESERVED, (text(call_id),)).fetchone()
        if found is None:
            return None
        seq, amount, units, ids = found
        names = [connection.execute(_ACCOUNT, (each,)).fetchone() for each in orjson.loads(ids or "[]")]
        settled = connection.execute(_SETTLED, (seq,)).fetchone()
        lines = connection.execute(_LINES, (seq,)).fetchall()
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
    if amount is None and not lines:
        return None
    return {
        "accounts": [name[0] for name in names if name is not None],
        "reserved_nusd": amount, "reserved_usd": None if amount is None else usd(amount), "granted_tokens": units,
        "settlement": None if settled is None else _settlement(*settled), "lines": [_line(line) for line in lines],
    }


def _settlement(at_ns: int, cost: int, how: str, suspect: int, author: str) -> dict[str, Any]:
    return {"at_ns": at_ns, "cost_nusd": cost, "cost_usd": usd(cost), "how": how, "suspect": bool(suspect), "author": author or None}


def _line(values: Sequence[Any]) -> dict[str, Any]:
    line = dict(zip(_LINE_FIELDS, values, strict=True))
    return {**line, "cost_usd": usd(line["cost_nusd"]), "estimated": bool(line["estimated"])}
