"""Rates: the generic cell rate algorithm, pure. One number a count: when the bucket would be empty again.

Source: ITU-T I.371, annex A (the virtual scheduling algorithm).
"""

from collections import OrderedDict
from typing import Final

from gateway.core.decision import Limit

MOST_COUNTS: Final = 100_000  # counts kept by one process; of the rule with the most, the one that was used longest ago goes first


class Rates:
    """How much of each limit is used, in this process. Times are wall nanoseconds; a clock that steps back costs nobody anything."""

    def __init__(self, most: int = MOST_COUNTS) -> None:
        self._most = most
        self._held = 0
        self._full_at: dict[str, OrderedDict[tuple[str, ...], int]] = {}  # by the rule, then by whose count it is

    def __repr__(self) -> str:
        return f"Rates(counts={self._held})"

    def take(self, wanted: list[tuple[Limit, tuple[str, ...]]], now_ns: int) -> tuple[Limit, int] | None:
        """Count one call against every limit, or none: then the limit that is used up and the nanoseconds to wait."""
        after: list[tuple[str, tuple[str, ...], int]] = []
        for limit, whose in wanted:
            period_ns = int(limit.per_s * 1e9)
            step_ns = max(1, period_ns // limit.requests)
            counts = self._full_at.get(limit.rule)
            known = now_ns if counts is None else counts.get(whose, now_ns)
            full_at = min(max(known, now_ns), now_ns + period_ns) + step_ns
            if full_at - now_ns > period_ns:
                return limit, full_at - now_ns - period_ns
            after.append((limit.rule, whose, full_at))
        for rule, whose, full_at in after:
            self._keep(rule, whose, full_at)
        return None

    def _keep(self, rule: str, whose: tuple[str, ...], full_at: int) -> None:
        """Keep a count. What is too much goes where there is most: names that callers invent push out no other rule's counts."""
        counts = self._full_at.setdefault(rule, OrderedDict())
        self._held += whose not in counts
        counts[whose] = full_at
        counts.move_to_end(whose)
        if self._held > self._most:
            max(self._full_at.values(), key=len).popitem(last=False)
            self._held -= 1
