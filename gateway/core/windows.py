"""Windows of budgets: which stretch of time a moment belongs to, and when money comes back. Pure; wall times are nanoseconds.

A window's id is when it began. Nothing is ever zeroed: another window is another id. Calendar windows begin at local midnight, or at the
full hour, of a named time zone, so a day may have 23 or 25 hours. A rolling window moves in `STEPS` steps: what was spent counts until the
step that it was spent in has wholly left the window, so money comes back up to one step late and never early.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

Kind: TypeAlias = Literal["none", "hour", "day", "week", "month", "rolling"]

STEPS: Final = 60
_NS: Final = 1_000_000_000
_DAY: Final = timedelta(days=1)
_FARTHEST_NS: Final = 9 * 10**18  # year 2255: a clock that shows more is wrong, and the ends of windows still fit in 64 bits


@dataclass(frozen=True, slots=True)
class Window:
    """How a budget's time is cut. `zone` is an IANA name, for calendar windows; `length_ns` belongs to `rolling`."""

    kind: Kind = "none"
    zone: str = "UTC"
    length_ns: int = 0

    @property
    def span(self) -> str:
        """The text that tells windows of one kind from those of another: part of what a balance is found by."""
        if self.kind == "rolling":
            return f"rolling {self.length_ns // _NS}s"
        return self.kind if self.kind == "none" else f"{self.kind} {self.zone}"

    def at(self, now_ns: int) -> int:
        """The id of the window, or of the rolling window's step, that a moment is in."""
        if self.kind == "none":
            return 0
        now_ns = max(-_FARTHEST_NS, min(now_ns, _FARTHEST_NS))
        if self.kind == "rolling":
            step = self._step_ns
            return now_ns // step * step
        return _calendar(self.kind, self.zone, now_ns // _NS)[0] * _NS

    def counts_from(self, window_ns: int) -> int:
        """The oldest window whose money still counts in this one: itself, but for a rolling window."""
        if self.kind != "rolling":
            return window_ns
        return window_ns - STEPS * self._step_ns

    def ends(self, window_ns: int) -> int | None:
        """When all that is spent in this window has come back; None where it never does."""
        if self.kind == "none":
            return None
        if self.kind == "rolling":
            return window_ns + (STEPS + 1) * self._step_ns
        return _calendar(self.kind, self.zone, window_ns // _NS)[1] * _NS

    @property
    def _step_ns(self) -> int:
        return max(1, -(-self.length_ns // STEPS))


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


@lru_cache(maxsize=1024)  # every account of every call of a second asks the same
def _calendar(kind: str, zone: str, now_s: int) -> tuple[int, int]:
    """When the window that a second is in begins and ends, in seconds."""
    day = datetime.fromtimestamp(now_s, _zone(zone)).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
    if _begins(day + _DAY, zone) <= now_s:  # clocks were put back over midnight: the day that has begun once goes on
        day += _DAY
    after = day + _DAY
    if kind == "week":
        day -= day.weekday() * _DAY
        after = day + 7 * _DAY
    elif kind == "month":
        day = day.replace(day=1)
        after = (day + 32 * _DAY).replace(day=1)
    start, end = _begins(day, zone), _begins(after, zone)
    if kind == "hour":
        start += (now_s - start) // 3600 * 3600
        end = min(start + 3600, end)
    return start, end


def _begins(day: datetime, zone: str) -> int:
    """When a local day begins. Where clocks are put forward over midnight it is the moment of the change, as PEP 495 reads it."""
    return int(day.replace(tzinfo=_zone(zone)).timestamp())
