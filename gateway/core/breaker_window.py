"""What a process has seen of a target lately: two sliding windows in one ring of buckets, of failures and of slow answers. Pure."""

from typing import Final

from gateway.core.breaker import BreakerRules, Ended

_BUCKETS: Final = 10
_CALLS, _FAILURES, _MEASURED, _SLOW = range(4)
_WEIGHT: Final = 0.2  # of the newest time in a moving average


class Window:
    """Counts of the last `window_s` seconds, to a tenth of that. A count costs the same however many calls there are.

    `in_a_row` is how many calls in a row have failed, `streak` how many have succeeded. `first_token_s` and `answered_s`, of streams and of
    answers that come as a whole, are moving averages, None where nothing was measured. `now_s` is monotonic time.
    """

    __slots__ = ("_at", "_buckets", "_sums", "_width_s", "answered_s", "first_token_s", "in_a_row", "measured_at_s", "streak", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.first_token_s: float | None = None
        self.answered_s: float | None = None
        self.measured_at_s: float | None = None
        self._width_s = window_s / _BUCKETS
        self._at = 0
        self.clear()

    def __repr__(self) -> str:
        calls, failures, _measured, slow = self._sums
        return f"Window(calls={calls}, failures={failures}, slow={slow}, in_a_row={self.in_a_row}, streak={self.streak})"

    def clear(self) -> None:
        """Forget all outcomes: the target may be another now. How quick it is stays known."""
        self._buckets = [[0, 0, 0, 0] for _ in range(_BUCKETS)]
        self._sums = [0, 0, 0, 0]
        self.in_a_row = 0
        self.streak = 0

    def counts(self, now_s: float) -> tuple[int, int, int]:
        """Calls, failures and slow answers."""
        self._move(now_s)
        calls, failures, _measured, slow = self._sums
        return calls, failures, slow

    def add(self, ended: Ended, rules: BreakerRules, now_s: float) -> str:
        """Count how a call ended. What makes it one too many, in words; empty where nothing does."""
        self._move(now_s)
        if ended.kind == "failure":
            return self._failed(ended.cause, rules)
        if ended.kind == "success":
            return self._succeeded(ended, rules, now_s)
        return ""

    def _failed(self, cause: str, rules: BreakerRules) -> str:
        self._count(_CALLS, _FAILURES)
        self.in_a_row += 1
        self.streak = 0
        calls, failures, _measured, _slow = self._sums
        if self.in_a_row >= rules.consecutive:
            return f"{self.in_a_row} calls in a row failed, the last one with {cause}"
        if calls >= rules.calls and failures >= rules.failures * calls:
            return f"{failures} of {calls} calls failed, the last one with {cause}"
        return ""

    def _succeeded(self, ended: Ended, rules: BreakerRules, now_s: float) -> str:
        self._count(_CALLS)
        self.in_a_row = 0
        self.streak += 1
        if ended.first_token_s is not None:
            self.first_token_s = _moved(self.first_token_s, ended.first_token_s)
        if ended.answered_s is not None:
            self.answered_s = _moved(self.answered_s, ended.answered_s)
        if ended.first_token_s is not None or ended.answered_s is not None:
            self.measured_at_s = now_s
        if ended.first_token_s is None and ended.largest_gap_s is None:
            return ""
        self._count(_MEASURED)
        if not (why := slowness(ended, rules)):
            return ""
        self._count(_SLOW)
        _calls, _failures, measured, slow = self._sums
        return f"{slow} of {measured} answers were slow, {why}" if measured >= rules.calls and slow >= rules.slow * measured else ""

    def _count(self, *what: int) -> None:
        bucket = self._buckets[self._at % _BUCKETS]
        for each in what:
            bucket[each] += 1
            self._sums[each] += 1

    def _move(self, now_s: float) -> None:
        """Drop the buckets that are out of the window by now."""
        at = int(now_s / self._width_s)
        if at == self._at:
            return
        for n in range(max(self._at + 1, at - _BUCKETS + 1), at + 1):
            gone = self._buckets[n % _BUCKETS]
            self._sums = [whole - part for whole, part in zip(self._sums, gone, strict=True)]
            self._buckets[n % _BUCKETS] = [0, 0, 0, 0]
        self._at = at


def _moved(known_s: float | None, new_s: float) -> float:
    return new_s if known_s is None else known_s + (new_s - known_s) * _WEIGHT


def slowness(ended: Ended, rules: BreakerRules) -> str:
    """What of an answer was slow, in words; empty where nothing was. Its length says nothing: some answers are long."""
    first_s, gap_s = ended.first_token_s, ended.largest_gap_s
    if rules.slow_first_token_s is not None and first_s is not None and first_s > rules.slow_first_token_s:
        return f"the last one with its first token after {first_s:.3g} s"
    if rules.slow_gap_s is not None and gap_s is not None and gap_s > rules.slow_gap_s:
        return f"the last one with a gap of {gap_s:.3g} s"
    return ""
