"""Attempts as callers are told of them."""

from collections.abc import Sequence

from gateway.call import Attempt
from gateway.errors import CallError, UpstreamFailed, UpstreamTimeout, told


def listed(attempts: Sequence[Attempt]) -> str:
    """Every attempt and how it ended, for callers."""
    return "; ".join(f"{attempt.n}. {attempt.target}: {told(attempt.cause, attempt.message, attempt.status)}" for attempt in attempts)


def sum_up(attempts: Sequence[Attempt]) -> CallError:
    """What was tried and how each try ended."""
    if attempts and all(attempt.cause.startswith("timeout:") for attempt in attempts):
        return UpstreamTimeout(f"No target answered in time. Attempts: {listed(attempts)}")
    return UpstreamFailed(f"Every attempt failed. Attempts: {listed(attempts)}")
