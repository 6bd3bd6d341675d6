"""How long to wait before another try, and how many tries a route may make at all. Pure: time and chance come in as arguments."""

from dataclasses import dataclass

from gateway.core.plan import Retry

_BURST_S = 10.0  # of `per_second`, which is there from the beginning
_LEAST_BURST = 10.0


def backoff_s(retry: Retry, earlier: int, jitter: float, retry_after_s: float | None) -> float | None:
    """Seconds to wait before a target is tried again after `earlier` tries: full jitter, never less than the provider asked.

    None where the provider asked for more than `retry.cap_s`: then the next target serves the caller better. `jitter` is in [0, 1).
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, the *full jitter* variant.
    """
    if retry_after_s is not None and retry_after_s > retry.cap_s:
        return None
    wait = min(retry.cap_s, retry.base_s * 2.0 ** min(earlier - 1, 30)) * jitter
    return max(wait, retry_after_s or 0.0)


@dataclass(slots=True)
class RetryBudget:
    """A bucket of further attempts: each call puts `share` of one in, each second `per_second`; a further attempt takes one out.

    Without it a route with two tries of each of two targets answers an outage with four times its load. Source: "The site reliability
    workbook", chapter 22; Finagle's `RetryBudget`.
    """

    left: float
    at_s: float
    hedges: float = 1.0  # a bucket of its own: a share of the calls, and the first one at once

    @classmethod
    def full(cls, retry: Retry, now_s: float) -> "RetryBudget":
        """What a route has before its first call."""
        return cls(_most(retry), now_s)

    def call(self, retry: Retry, hedge_share: float, now_s: float) -> None:
        """A call begins."""
        self._refill(retry, now_s)
        self.left = min(self.left + retry.share, _most(retry))
        self.hedges = min(self.hedges + hedge_share, _LEAST_BURST)

    def take(self, retry: Retry, now_s: float) -> bool:
        """Take a further attempt; False where there is none."""
        self._refill(retry, now_s)
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True

    def give_back(self, retry: Retry) -> None:
        """What was taken was not used."""
        self.left = min(self.left + 1.0, _most(retry))

    def take_hedge(self) -> bool:
        """Take an attempt beside another one; False where there is none."""
        if self.hedges < 1.0:
            return False
        self.hedges -= 1.0
        return True

    def give_back_hedge(self) -> None:
        """The attempt that was taken is not made after all."""
        self.hedges = min(self.hedges + 1.0, _LEAST_BURST)

    def _refill(self, retry: Retry, now_s: float) -> None:
        self.left = min(self.left + max(0.0, now_s - self.at_s) * retry.per_second, _most(retry))
        self.at_s = now_s


def _most(retry: Retry) -> float:
    return max(retry.per_second * _BURST_S, _LEAST_BURST if retry.share or retry.per_second else 0.0)
