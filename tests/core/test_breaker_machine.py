"""The breaker as a state machine: several processes on one store, a clock that is moved by hand, processes that are killed, every exit.

Never stuck, never more probes than permits, no permit lost whatever the exit, and an operator's word is obeyed.
"""

import asyncio
import os
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gateway.breakers import Breakers, Permit
from gateway.call import Target
from gateway.core.breaker import Breaker, BreakerRules, Ended, State
from gateway.core.plan import RouteTarget
from gateway.errors import StoreUnavailable
from gateway.store.memory import MemoryStore

SEED = int(os.environ.get("LOCKGATE_SEED", "20250607"))
LONG = os.environ.get("LOCKGATE_LONG") == "1"
T = TypeVar("T")
S = 1_000_000_000
CAP_S, LEASE_S, SLACK_S = 20.0, 30.0, 60.0
SUCCESS, FAILURE = Ended("success"), Ended("failure", "reset")
EXITS = {
    "success": SUCCESS, "failure": FAILURE, "neutral": Ended("neutral", "status:404"), "cancelled": Ended("neutral", "client_gone"),
    "unused": Ended("neutral", "unused"), "rests": Ended("neutral", "status:429", cool_s=3.0), "rests long": Ended("neutral", "status:429", cool_s=1e9),
    "slow": Ended("success", "", 9.0, 0.1),
}


class HandClock:
    """Time that passes when it is told to; the wall clock may be set back beside it."""

    def __init__(self) -> None:
        self.mono_s = 1000.0
        self.wall_ns = 1_700_000_000 * S

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic(self) -> float:
        return self.mono_s

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.mono_s += seconds
        self.wall_ns += int(seconds * S)


class Dice:
    """Chance that can be had again."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)

    def jitter(self) -> float:
        return self._random.random()


@dataclass
class Heard:
    """What telemetry is told."""

    said: list[str] = field(default_factory=list)

    def event(self, _level: str, name: str, **_fields: object) -> None:
        self.said.append(name)

    def breaker(self, _target: str, _state: str) -> None:
        """A gauge."""

    def breaker_tripped(self, _target: str) -> None:
        """A counter."""


class Line:
    """The way to the store: may be down, may lose the answer to what was written, may never answer."""

    def __init__(self, store: MemoryStore) -> None:
        self._breakers = store.breakers
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        async def ask(*given: Any, **named: Any) -> Any:
            await asyncio.sleep(0)
            if self.fault == "down":
                raise StoreUnavailable("The disk is full.")
            said = await getattr(self._breakers, name)(*given, **named)
            if self.fault == "deaf":
                raise StoreUnavailable("It is written, and nobody knows.")
            return said

        return ask


@dataclass
class Flight:
    """A call under way: `window` is how often the breaker had changed when it was let through as a probe."""

    permit: Permit
    of: int
    window: int
    until_ns: int


class BreakerMachine(RuleBasedStateMachine):
    """Up to three processes that send calls to one target."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = HandClock()
        self.dice = Dice()
        self.shared = MemoryStore("one")
        self.lines: list[Line] = []
        self.workers: list[Breakers] = []
        self.flights: list[Flight] = []
        self.lost: list[Flight] = []
        self.succeeded: dict[int, int] = {}
        self.calls = 0

    @initialize(probes=st.integers(1, 3), workers=st.integers(1, 3), slow=st.booleans())
    def begin(self, probes: int, workers: int, *, slow: bool) -> None:
        rules = BreakerRules(window_s=10.0, calls=4, consecutive=3, open_s=2.0, open_cap_s=CAP_S, probes=probes, cool_cap_s=10.0,
                             slow_first_token_s=1.0 if slow else None)
        self.limits = rules
        self.to = RouteTarget(Target("alpha", "one"), None, breaker=rules)
        for _ in range(workers):
            self.lines.append(Line(self.shared))
            self.workers.append(self.worker(self.lines[-1]))

    def worker(self, line: Line) -> Breakers:
        made = Breakers(line, self.clock, self.dice, Heard())  # type: ignore[arg-type] # what it uses of them
        made.serve([self.to])
        self.run(made.refresh())
        return made

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def stored(self) -> Breaker:
        _generation, rows = self.run(self.shared.breakers.all())
        return rows[0] if rows else Breaker("alpha/one")

    def live(self, flight: Flight) -> bool:
        return 0 < flight.until_ns - self.clock.wall_ns <= int((LEASE_S + SLACK_S) * S)

    def send(self, which: int, *, last_resort: bool = False) -> Flight | None:
        self.calls += 1
        permit = self.run(self.workers[which].admit(self.to, f"call_{self.calls}", lease_s=LEASE_S, last_resort=last_resort))
        if permit is None:
            return None
        window = self.stored().changes
        if permit.state == State.HALF_OPEN:
            others = [each for each in (*self.flights, *self.lost)
                      if each.permit.state == State.HALF_OPEN and each.window == window and self.live(each)]
            assert len(others) < max(1, self.limits.probes - self.succeeded.get(window, 0)), "more probes than permits"
        flight = Flight(permit, which, window, self.clock.wall_ns + int(LEASE_S * S))
        self.flights.append(flight)
        return flight

    def end(self, flight: Flight, ended: Ended) -> None:
        async def told() -> None:
            self.workers[flight.of].ended(flight.permit, ended)
            self.workers[flight.of].ended(flight.permit, FAILURE)  # a second end is none
            await asyncio.sleep(0)

        before = self.stored()
        self.run(told())
        self.flights.remove(flight)
        if flight.permit.state == State.HALF_OPEN and ended.kind == "success" and before.changes == flight.window:
            self.succeeded[flight.window] = self.succeeded.get(flight.window, 0) + 1

    # ---- What happens.

    @rule(data=st.data(), last_resort=st.booleans(), heard=st.booleans(), fault=st.sampled_from(["", "", "", "deaf", "down"]))
    def outage(self, data: st.DataObject, fault: str, *, last_resort: bool, heard: bool) -> None:
        """The target fails until its breaker opens, and as long as that takes to let a probe through."""
        which = data.draw(st.integers(0, len(self.workers) - 1))
        for _ in range(3):
            flight = self.send(which, last_resort=last_resort)
            if flight is not None:
                self.end(flight, FAILURE)
        if heard:
            self.run(self.workers[which].refresh())
        self.lines[which].fault = fault
        self.clock.advance(21.0)

    @rule(data=st.data(), last_resort=st.booleans(), times=st.sampled_from([1, 1, 3]))
    def call(self, data: st.DataObject, times: int, *, last_resort: bool) -> None:
        which = data.draw(st.integers(0, len(self.workers) - 1))
        for _ in range(times):
            flight = self.send(which, last_resort=last_resort)
            state = self.workers[which].condition(self.to).state
            if state == "forced_open":
                assert flight is None
            if state == "forced_closed" or (last_resort and state != "forced_open"):
                assert flight is not None

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), exit_=st.sampled_from([*EXITS, "failure", "failure", "success"]), all_of_them=st.booleans())
    def answer(self, data: st.DataObject, exit_: str, *, all_of_them: bool) -> None:
        ending = list(self.flights) if all_of_them else [data.draw(st.sampled_from(self.flights))]
        for flight in ending:
            self.end(flight, EXITS[exit_])

    @rule(data=st.data(), turns=st.integers(0, 4))
    def give_up_while_waiting_for_a_permit(self, data: st.DataObject, turns: int) -> None:
        """A caller goes away in the middle of `admit`: a permit that was written for it comes back."""
        which = data.draw(st.integers(0, len(self.workers) - 1))
        self.calls += 1

        async def hurried() -> Permit | None:
            task = asyncio.ensure_future(self.workers[which].admit(self.to, f"call_{self.calls}", lease_s=LEASE_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                return None

        permit = self.run(hurried())
        if permit is not None:
            flight = Flight(permit, which, self.stored().changes, self.clock.wall_ns + int(LEASE_S * S))
            self.flights.append(flight)
            self.end(flight, EXITS["unused"])

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """A process dies with its calls; another takes its place."""
        which = data.draw(st.integers(0, len(self.workers) - 1))
        self.lost += [each for each in self.flights if each.of == which]
        self.flights = [each for each in self.flights if each.of != which]
        self.lines[which].fault = "down"  # nothing of it reaches the store any more
        self.run(self.workers[which].close())
        self.lines[which] = Line(self.shared)
        self.workers[which] = self.worker(self.lines[which])

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 2.5, 6.0, 21.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-0.01, -5.0, -3600.0, 3600.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.clock.wall_ns += int(seconds * S)

    @rule(data=st.data(), fault=st.sampled_from(["", "down", "deaf"]))
    def trouble_the_store(self, data: st.DataObject, fault: str) -> None:
        data.draw(st.sampled_from(self.lines)).fault = fault

    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.workers)).refresh())

    @rule(data=st.data(), what=st.sampled_from(["open", "close", *["auto"] * 5]))
    def say(self, data: st.DataObject, what: Any) -> None:
        which = data.draw(st.integers(0, len(self.workers) - 1))
        try:
            self.run(self.workers[which].set("alpha/one", what, "ada", "because"))
        except StoreUnavailable:
            assert self.lines[which].fault
            return
        for line, worker in zip(self.lines, self.workers, strict=True):
            if not line.fault:
                self.run(worker.refresh())
                forced = {"open": State.FORCED_OPEN, "close": State.FORCED_CLOSED}
                assert (worker.condition(self.to).state in forced.values()) is (what != "auto")
                assert what == "auto" or worker.condition(self.to).state == forced[what]

    @invariant()
    def no_more_permits_are_written_than_there_are_probes(self) -> None:
        stored = self.stored()
        now_ns = self.clock.wall_ns
        live = [each for each in stored.permits if each.until_ns > now_ns]
        assert len(live) <= self.limits.probes
        assert not stored.permits or stored.state is State.HALF_OPEN

    # ---- The end of it all.

    def quiet(self) -> None:
        """The store is well, and everybody has heard everything."""
        for line in self.lines:
            line.fault = ""
        for _ in range(3):
            for worker in self.workers:
                self.run(worker.refresh())

    def teardown(self) -> None:
        if self.workers:
            self.no_permit_is_lost()
            self.traffic_gets_through()
            for worker in self.workers:
                self.run(worker.close())
        self.loop.close()

    def no_permit_is_lost(self) -> None:
        """Once every call has ended, only those have a permit whose processes died."""
        for flight in list(self.flights):
            self.end(flight, EXITS["neutral"])
        self.quiet()
        assert {each.holder for each in self.stored().permits} <= {each.permit.holder for each in self.lost}

    def traffic_gets_through(self) -> None:
        """The target answers again, and no operator keeps calls away: they get through, by every process, in bounded time."""
        if self.stored().state in (State.FORCED_OPEN, State.FORCED_CLOSED):
            self.run(self.workers[0].set("alpha/one", "auto", "ada", ""))
        passed_s = 0.0
        while True:
            self.quiet()
            flights = [self.send(which) for which in range(len(self.workers))]
            if all(each is not None and each.permit.state == "closed" for each in flights):
                break
            for flight in flights:
                if flight is not None:
                    self.end(flight, SUCCESS)
            assert passed_s <= CAP_S + LEASE_S + 2 * SLACK_S, (self.stored(), self.workers)  # a rest has its own bound, shorter than these
            self.clock.advance(0.5)
            passed_s += 0.5


def test_a_breaker_is_never_stuck_and_never_lets_through_more_probes_than_permits() -> None:
    """Whatever the order of calls, ends, deaths, faults of the store and steps of the clock."""
    print(f"LOCKGATE_SEED={SEED}")
    chosen = settings(
        max_examples=3000 if LONG else 150, stateful_step_count=80 if LONG else 40, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(hypothesis.seed(SEED)(BreakerMachine), settings=chosen)
