"""Counts of rates as one transaction sees them: each is read once and written once."""

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.core.rate import Count, Spent, Take, all_taken, corrected
from gateway.store.database import Connection
from gateway.store.rows import rate_key

_SELECT: Final = "SELECT value FROM rates WHERE rule = ? AND whose = ? AND measure = ?"
_UPSERT: Final = """
INSERT INTO rates (rule, whose, measure, value) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value
"""
_PRUNE: Final = "DELETE FROM rates WHERE value <= CASE measure WHEN 'concurrent' THEN 0 ELSE ? END"


class Rates:
    """The rows of `rates` that a transaction has looked at. Thrown away at its end."""

    def __init__(self) -> None:
        self._values: dict[Count, int | None] = {}
        self._changed: set[Count] = set()

    def after(self, connection: Connection, takes: Sequence[Take], now_ns: int) -> dict[Count, int] | Spent:
        """What the counts would be with all of these taken; or the first that does not allow it. Nothing is taken yet."""
        return all_taken(takes, rate_key, lambda at: self._value(connection, at) or 0, now_ns)

    def keep(self, counts: Mapping[Count, int]) -> None:
        """Take what `after` has worked out."""
        self._values.update(counts)
        self._changed.update(counts)

    def end(self, connection: Connection, takes: Sequence[Take], tokens: int | None, now_ns: int) -> None:
        """Give back what was taken for a time, and correct an estimate, where `tokens` are known.

        A count that is no longer there was empty: there is nothing to give back, and what is owed has run out.
        """
        for take in takes:
            key = rate_key(take)
            value = self._value(connection, key)
            if value is None:
                continue
            if take.measure == "concurrent":
                self.keep({key: max(0, value - take.amount)})
            elif take.measure == "tokens" and tokens is not None:
                self.keep({key: corrected(take, value, tokens, now_ns)})

    def flush(self, connection: Connection) -> None:
        """Write what has changed."""
        if self._changed:
            connection.executemany(_UPSERT, [(*key, self._values[key]) for key in self._changed])

    def _value(self, connection: Connection, key: Count) -> int | None:
        if key not in self._values:
            row = connection.execute(_SELECT, key).fetchone()
            self._values[key] = None if row is None else row[0]
        return self._values[key]


def prune_rates(connection: Connection, now_ns: int) -> None:
    """Forget the counts that are empty again: callers choose whose they are, so there may be many."""
    connection.execute(_PRUNE, (now_ns,))
