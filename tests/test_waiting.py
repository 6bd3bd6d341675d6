"""Who waits for which approval, and until when: nobody for ever, and nothing left of those who have gone."""

import asyncio

import pytest

from gateway.waiting import Waiting


class HandClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing sleeps here: {seconds}")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def waiting(clock: HandClock) -> Waiting:
    return Waiting(clock)


async def test_whoever_waits_for_an_approval_hears_of_it_and_nobody_else(waiting):
    one, other, elsewhere = (waiting.add(ticket, until_s=10, streams=False) for ticket in ("a", "a", "b"))
    waiting.wake(["a"])
    assert (one.told.result(), other.told.result(), elsewhere.told.done()) == ("changed", "changed", False)
    waiting.wake(["a"])  # it may change again before they have left
    assert len(waiting) == 3


async def test_each_is_told_when_their_own_time_is_up(waiting, clock):
    late, later = waiting.add("a", until_s=5, streams=False), waiting.add("a", until_s=9, streams=True)
    waiting.look()
    assert not late.told.done()
    clock.now_s = 5
    waiting.look()
    assert (late.told.result(), later.told.done()) == ("late", False)
    clock.now_s = 9
    waiting.look()
    assert later.told.result() == "late"


async def test_who_leaves_is_forgotten_and_the_last_one_is_told_to_be_the_last(waiting):
    one, other = waiting.add("a", until_s=10, streams=False), waiting.add("a", until_s=10, streams=False)
    assert waiting.drop(one) is False
    assert waiting.drop(other) is True
    assert waiting.drop(other) is True, "leaving twice does no harm"
    assert len(waiting) == 0
    assert other.told.cancelled()
    waiting.wake(["a"])


async def test_a_gateway_that_stops_tells_those_who_can_come_back_and_streams_as_late_as_possible(waiting):
    plain, stream = waiting.add("a", until_s=10, streams=False), waiting.add("a", until_s=10, streams=True)
    waiting.stop()
    assert (plain.told.result(), stream.told.done()) == ("stopping", False)
    assert waiting.add("b", until_s=10, streams=False).told.result() == "stopping"
    waiting.wake(["a"])
    assert (plain.told.result(), stream.told.result()) == ("stopping", "changed")


async def test_those_who_come_and_go_leave_nothing_behind(waiting):
    for _ in range(50_000):
        waiting.drop(waiting.add("a", until_s=600, streams=False))
    waiting.look()
    assert len(waiting._due) == 0


async def test_ten_thousand_waits_cost_little_time_to_look_after(waiting, clock):
    waiters = [waiting.add(f"t{n}", until_s=600, streams=False) for n in range(10_000)]
    clock.now_s = 1
    waiting.look()
    waiting.wake(["t77"])
    assert [n for n, waiter in enumerate(waiters) if waiter.told.done()] == [77]
    await asyncio.sleep(0)
