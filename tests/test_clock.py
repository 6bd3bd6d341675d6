"""Time, identifiers and randomness."""

import asyncio
import re

from gateway.clock import SystemClock, SystemIds, time_text, ulid


class At:
    """A clock that stands still."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        _ = seconds


def test_a_time_is_told_to_the_second_and_never_is_nothing():
    assert (time_text(1_790_000_000_999_999_999), time_text(None)) == ("2026-09-21T14:13:20Z", None)


def test_a_ulid_is_the_one_of_its_specification():
    assert ulid(1469918176385, bytes(10))[:10] == "01ARYZ6S41".lower()
    assert ulid(2**48 - 1, b"\xff" * 10) == "7" + "z" * 25


def test_call_ids_sort_by_the_time_they_were_made():
    ids = [SystemIds(At(ms * 1_000_000)).call_id() for ms in (1, 2, 1_000, 1_700_000_000_000)]
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"call_[0-9a-hjkmnp-tv-z]{26}", call_id) for call_id in ids)


def test_ten_thousand_ids_and_tokens_are_all_different():
    ids = SystemIds(SystemClock())
    assert len({ids.call_id() for _ in range(10_000)}) == 10_000
    assert len({ids.token(12) for _ in range(10_000)}) == 10_000


def test_a_token_is_of_the_length_asked_for_and_of_letters_and_digits():
    ids = SystemIds(SystemClock())
    for length in (1, 12, 32, 200):
        assert re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", ids.token(length))


def test_jitter_stays_between_nothing_and_all():
    ids = SystemIds(SystemClock())
    assert all(0 <= ids.jitter() < 1 for _ in range(1_000))


async def test_the_system_clock_moves_on():
    clock = SystemClock()
    before = clock.monotonic()
    await asyncio.wait_for(clock.sleep(0.001), 5)
    assert clock.monotonic() > before
    assert clock.now_ns() > 1_700_000_000_000_000_000
