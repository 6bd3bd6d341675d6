"""Rates: the generic cell rate algorithm, pure. One number a count: when the bucket would be empty again.

Source: ITU-T I.371, annex A (the virtual scheduling algorithm).
"""

from collections import OrderedDict
from typing import Final

from gateway.core.decision import Limit

MOST_COUNTS: Final = 100_000  # counts kept by one process; the one that was used longest ago goes first


class Rates:
    """How much of each limit is used, in this process. Times are wall nanoseconds; a clock that steps back costs nobody anything."""

    def __init__(self, most: int = MOST_COUNTS) -> None:
        self._most = most
        self._full_at: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def __repr__(self) -> str:
        return f"Rates(counts={len(self._full_at)})"

    def take(self, wanted: list[tuple[Limit, tuple[str, ...]]], now_ns: int) -> tuple[Limit, int] | None:
        """Count one call against every limit, or none: then the limit that is used up and the nanoseconds to wait."""
        after: list[tuple[tuple[str, ...], int]] = []
        for limit, whose in wanted:
            count = (limit.rule, *whose)
            period_ns = int(limit.per_s * 1e9)
            step_ns = max(1, period_ns // limit.requests)
            full_at = min(max(self._full_at.get(count, now_ns), now_ns), now_ns + period_ns) + step_ns
            if full_at - now_ns > period_ns:
                return limit, full_at - now_ns - period_ns
            after.append((count, full_at))
        for count, full_at in after:
            self._full_at[count] = full_at
            self._full_at.move_to_end(count)
            if len(self._full_at) > self._most:
                self._full_at.popitem(last=False)
        return None
