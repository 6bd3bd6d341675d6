"""Time, identifiers and randomness. Nothing else in the engine asks the system for any of the three."""

import asyncio
import os
import random
import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Tests pass one that they move by hand."""

    def now_ns(self) -> int:
        """Wall time in nanoseconds since the epoch, UTC. May step backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, for deadlines and durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let that much monotonic time pass."""
        ...


class Ids(Protocol):
    """Where identifiers and jitter come from."""

    def call_id(self) -> str:
        """A new call id: `call_` and 26 characters that sort by time of creation."""
        ...

    def token(self, characters: int) -> str:
        """`characters` random letters and digits, fit for a secret."""
        ...

    def jitter(self) -> float:
        """A float in [0, 1), for full-jitter backoff. Not for secrets."""
        ...


class SystemClock:
    """The real time."""

    __slots__ = ()

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def time_text(at_ns: int | None) -> str | None:
    """Wall nanoseconds as people and spreadsheets read them: ISO 8601, UTC, to the second; None where there are none."""
    return None if at_ns is None else f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]  # ten bits at a time: half the look-ups


def ulid(milliseconds: int, randomness: bytes) -> str:
    """26 Crockford base-32 characters: 48 bits of time, 80 bits of randomness (https://github.com/ulid/spec), in lower case."""
    number = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


class SystemIds:
    """Identifiers from the system's randomness."""

    __slots__ = ("_clock", "_lock", "_random")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - spreads retries in time; secrets come from os.urandom
        self._lock = threading.Lock()

    def call_id(self) -> str:
        return "call_" + ulid(self._clock.now_ns() // 1_000_000, os.urandom(10))

    def token(self, characters: int) -> str:
        picked: list[str] = []
        while len(picked) < characters:  # bytes of 248 and above are dropped, so that every character is equally likely
            picked += [_ALPHANUMERIC[byte % 62] for byte in os.urandom(characters) if byte < 248]
        return "".join(picked[:characters])

    def jitter(self) -> float:
        with self._lock:
            return self._random.random()
