"""What every store promises of breakers. Inherit `BreakerConformance` and give it a `store` fixture: an open, empty store."""

import asyncio
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from gateway.core.breaker import Breaker, BreakerRules, Event, Pass, State, Step, by_hand
from gateway.store.protocol import Store

ONE, TWO = "alpha/small-1", "beta/large-2"
S = 1_000_000_000


class Desk:
    """A store's breakers, with a clock of one's own."""

    def __init__(self, store: Store, now_ns: int) -> None:
        self.breakers = store.breakers
        self.now_ns = now_ns

    async def step(self, event: Event, target: str = ONE, **given: Any) -> tuple[Breaker, Breaker]:
        return await self.breakers.apply(target, Step(event, self.now_ns, **given))

    async def claim(self, holder: str, target: str = ONE, probes: int = 1) -> bool:
        _before, now = await self.step(Event.CLAIMED, target, holder=holder, lease_s=60.0, rules=BreakerRules(probes=probes))
        return any(each.holder == holder for each in now.permits)

    async def open(self, target: str = ONE) -> None:
        """Open it, and let its time pass."""
        await self.step(Event.TRIPPED, target, cause="5 calls in a row failed")
        self.now_ns += 6 * S


class BreakerConformance:
    """Breakers, through the protocol alone."""

    @pytest.fixture
    def desk(self, store: Store, samples: ModuleType) -> Desk:
        return Desk(store, samples.NOW_NS)

    async def test_there_are_none_until_something_happens(self, desk: Desk) -> None:
        assert await desk.breakers.all() == (0, [])
        assert await desk.breakers.generation() == 0

    async def test_a_step_says_what_was_and_what_is(self, desk: Desk) -> None:
        before, now = await desk.step(Event.TRIPPED, cause="down", draw=0.5)
        assert before == Breaker(ONE)
        assert (now.target, now.state, now.trips, now.cause, now.changes, now.generation) == (ONE, State.OPEN, 1, "down", 1, 1)
        assert await desk.breakers.all() == (1, [now])

    async def test_a_step_that_changes_nothing_is_no_change(self, desk: Desk) -> None:
        _before, opened = await desk.step(Event.TRIPPED)
        assert await desk.step(Event.TRIPPED, seen=1) == (opened, opened)
        assert await desk.step(Event.PROBE_FAILED, TWO, holder="p") == (Breaker(TWO), Breaker(TWO))
        assert await desk.breakers.all() == (1, [opened])

    async def test_every_change_has_the_next_number_and_all_are_listed_by_target(self, desk: Desk) -> None:
        for target in (TWO, ONE, "tool:kyc/GET"):
            await desk.step(Event.TRIPPED, target)
        generation, breakers = await desk.breakers.all()
        assert generation == await desk.breakers.generation() == 3
        assert [(each.target, each.generation) for each in breakers] == [(ONE, 2), (TWO, 1), ("tool:kyc/GET", 3)]

    async def test_all_that_is_known_of_a_breaker_is_kept(self, desk: Desk) -> None:
        await desk.open()
        assert await desk.claim("call_1.1", probes=3)
        assert await desk.claim("call_2.1", probes=3)
        await desk.step(Event.PROBE_SUCCEEDED, holder="call_1.1", rules=BreakerRules(probes=3))
        _before, now = await desk.step(Event.COOLED, cool_s=2.5)
        assert (await desk.breakers.all())[1] == [now]
        assert now == Breaker(
            ONE, State.HALF_OPEN, changes=2, since_ns=desk.now_ns, cooling_ns=desk.now_ns + int(2.5 * S), trips=1, succeeded=1,
            permits=(Pass("call_2.1", 60.0, desk.now_ns + 60 * S),), cause="5 calls in a row failed", generation=5)

    async def test_of_many_that_claim_at_once_as_many_get_a_permit_as_there_are_probes(self, desk: Desk) -> None:
        await desk.open()
        got = await asyncio.gather(*(desk.claim(f"call_{n}.1", probes=3) for n in range(20)))
        assert got == [True] * 3 + [False] * 17

    async def test_of_many_that_trip_at_once_one_counts(self, desk: Desk) -> None:
        told = await asyncio.gather(*(desk.step(Event.TRIPPED) for _ in range(10)))
        assert [now.trips for _before, now in told] == [1] * 10
        assert sum(before.state is not now.state for before, now in told) == 1

    async def test_an_operators_word_is_kept_with_his_name(self, desk: Desk) -> None:
        hostile = "moves house \ud800 '); DROP TABLE breakers; --\x00"
        await desk.breakers.apply(ONE, by_hand("open", now_ns=desk.now_ns, author="ada", note=hostile))
        (kept,) = (await desk.breakers.all())[1]
        assert (kept.state, kept.author, kept.note) == (State.FORCED_OPEN, "ada", hostile.replace("\ud800", "?"))

    async def test_breakers_of_targets_that_are_gone_are_forgotten_after_a_while(self, desk: Desk) -> None:
        await desk.open(ONE)
        await desk.open(TWO)
        await desk.open("gamma/new")
        assert await desk.breakers.prune({ONE}, before_ns=desk.now_ns - 7 * S) == 1
        assert [each.target for each in (await desk.breakers.all())[1]] == [ONE, "gamma/new"]
        assert await desk.breakers.generation() == 4
        assert await desk.breakers.prune({ONE}, before_ns=desk.now_ns - 7 * S) == 0
        assert await desk.breakers.generation() == 4
        assert await desk.breakers.prune((), before_ns=desk.now_ns) == 2

    async def test_a_breaker_that_was_forgotten_begins_anew(self, desk: Desk) -> None:
        await desk.open()
        await desk.breakers.prune((), before_ns=desk.now_ns)
        before, now = await desk.step(Event.TRIPPED)
        assert before == Breaker(ONE)
        assert (now.trips, now.generation) == (1, 3)

    async def test_what_comes_late_counts_where_the_breaker_has_not_moved_on(self, desk: Desk) -> None:
        await desk.open()
        await desk.claim("call_1.1")
        _before, closed = await desk.step(Event.PROBE_SUCCEEDED, holder="call_1.1")
        assert closed.state is State.CLOSED
        assert await desk.step(Event.TRIPPED, seen=0) == (closed, closed)
        assert (await desk.step(Event.TRIPPED, seen=closed.changes))[1].trips == 2

    async def test_a_target_named_in_no_utf_8_is_found_again(self, desk: Desk) -> None:
        _before, now = await desk.step(Event.TRIPPED, "alpha/\udcff")
        assert (await desk.step(Event.COOLED, "alpha/\udcff", cool_s=1.0))[0] == replace(now)
