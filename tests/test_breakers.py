"""The breakers of a process: what it sees, what it shares through the store, and what it does when the store is no help."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.breakers import Breakers, NoSuchTargetError, Permit
from gateway.call import Target
from gateway.core.breaker import BreakerRules, Condition, Ended, State
from gateway.core.plan import RouteTarget
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.memory import MemoryStore
from gateway.telemetry import Telemetry

S = 1_000_000_000
NOW_NS = 1_700_000_000 * S
RULES = BreakerRules(consecutive=3, calls=4, open_s=5.0, open_cap_s=40.0, cool_cap_s=60.0)
ONE = RouteTarget(Target("alpha", "one"), None, breaker=RULES)
TWO = RouteTarget(Target("beta", "two"), None, breaker=RULES)
WELL, DOWN = Ended("success"), Ended("failure", "reset")
RESTS = Ended("neutral", "status:429", cool_s=10.0)
NEUTRAL = Ended("neutral", "status:404")


class HandClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_ns(self) -> int:
        return NOW_NS + int(self.passed_s * S)

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds


class Longest:
    """Every open time is as long as it can be."""

    def jitter(self) -> float:
        return 1.0


class Heard:
    """What telemetry was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.states: dict[str, str] = {}
        self.trips: list[str] = []

    def event(self, level: str, name: str, **fields: object) -> None:
        self.events.append((name, {"level": level, **fields}))

    def breaker(self, target: str, state: str) -> None:
        self.states[target] = state

    def breaker_tripped(self, target: str) -> None:
        self.trips.append(target)

    @property
    def names(self) -> list[str]:
        return [name for name, _fields in self.events]


class Line:
    """The way to the store, with a note of what went over it, and faults on demand."""

    def __init__(self, store: MemoryStore) -> None:
        self._breakers = store.breakers
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.full = False  # it can be read and not written
        self.hangs = False
        self.loses = False  # the answers to what is written
        self.held, self.release = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        async def ask(*given: Any, **named: Any) -> Any:
            self.asked.append(name if name != "apply" else given[1].event.value)
            if self.fails is not None:
                raise self.fails
            if self.full and name == "apply":
                raise StoreUnavailable("The disk is full.")
            said = None if self.hangs else await getattr(self._breakers, name)(*given, **named)
            if self.hangs or self.loses:
                self.held.set()
                await self.release.wait()
            return said

        return ask


class House:
    """Processes on one store."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.store = MemoryStore("one")

    async def worker(self, *targets: RouteTarget, claim_s: float = 5.0, step_s: float = 5.0) -> "Worker":
        made = Worker(self, claim_s, step_s)
        made.breakers.serve(targets or (ONE, TWO))
        await made.breakers.refresh()
        made.line.asked.clear()
        return made


class Worker:
    """One process: its breakers, its way to the store, and what it told telemetry."""

    def __init__(self, house: House, claim_s: float, step_s: float) -> None:
        self.house = house
        self.line = Line(house.store)
        self.heard = Heard()
        self.breakers = Breakers(
            self.line, house.clock, Longest(), self.heard, claim_s=claim_s, step_s=step_s)  # type: ignore[arg-type] # what it uses of them
        self._calls = 0

    async def send(self, to: RouteTarget = ONE, **given: Any) -> Permit | None:
        self._calls += 1
        return await self.breakers.admit(to, f"call_{id(self)}_{self._calls}", **{"lease_s": 60.0, **given})

    async def call(self, *outcomes: Ended, to: RouteTarget = ONE, **given: Any) -> list[str]:
        """Calls, one after another; what each was let through as, empty where it was not."""
        states = []
        for outcome in outcomes:
            permit = await self.send(to, **given)
            states.append(permit.state if permit else "")
            if permit is not None:
                self.breakers.ended(permit, outcome)
        return states

    async def told(self) -> None:
        await self.breakers.refresh()

    def now(self, to: RouteTarget = ONE) -> Condition:
        return self.breakers.condition(to)

    async def tripped(self) -> "Worker":
        """Its target has opened, and the time for a probe has come."""
        await self.call(DOWN, DOWN, DOWN)
        await self.told()
        self.house.clock.passed_s += 6
        return self


@pytest.fixture
def house() -> House:
    return House()


# ---- Letting calls through, and opening.


async def test_a_call_to_a_target_that_is_well_asks_nobody(house):
    worker = await house.worker()
    assert await worker.call(WELL, DOWN, NEUTRAL, WELL) == ["closed"] * 4
    assert worker.line.asked == []


async def test_failures_open_it_and_calls_are_kept_away_until_a_probe_is_due(house):
    worker = await house.worker()
    assert await worker.call(DOWN, DOWN, DOWN, WELL) == ["closed", "closed", "closed", ""]
    now = worker.now()
    assert (now.state, now.admits, now.until_s, now.failures) == ("open", False, 5.0, 3)
    assert now.cause == "3 calls in a row failed, the last one with reset"
    assert worker.now(TWO).admits, "one target says nothing of another"
    house.clock.passed_s += 4.9
    assert not worker.now().admits
    house.clock.passed_s += 0.2
    assert worker.now().admits
    assert await worker.call(WELL, WELL) == ["half_open", "closed"]


async def test_calls_that_were_sent_before_it_opened_open_it_no_second_time(house):
    worker = await house.worker()
    permits = [await worker.send() for _ in range(30)]
    for permit in permits:
        worker.breakers.ended(permit, DOWN)
    await worker.told()
    assert [row["trips"] for row in worker.breakers.rows()] == [1, 0]
    assert worker.line.asked.count("tripped") == 1


async def test_calls_from_before_an_outage_do_not_open_it_again_after_it(house):
    worker = await house.worker()
    old = [await worker.send() for _ in range(9)]
    await worker.tripped()
    assert await worker.call(WELL) == ["half_open"]
    for permit in old:
        worker.breakers.ended(permit, DOWN)
    assert (worker.now().state, worker.now().calls) == ("closed", 0)


async def test_each_failed_probe_doubles_the_time_and_a_streak_of_successes_begins_anew(house):
    worker = await (await house.worker()).tripped()
    assert await worker.call(DOWN) == ["half_open"]
    assert worker.now().until_s == 10.0
    house.clock.passed_s += 11
    assert await worker.call(WELL, WELL, WELL, WELL) == ["half_open", "closed", "closed", "closed"]
    assert worker.breakers.rows()[0]["trips"] == 2
    await worker.call(WELL)
    assert worker.breakers.rows()[0]["trips"] == 0
    await worker.call(DOWN, DOWN, DOWN)
    assert worker.now().until_s == 5.0
    await worker.told()
    assert (await house.worker()).breakers.rows()[0]["trips"] == 1


async def test_slow_answers_open_it_and_a_slow_probe_keeps_it_open(house):
    strict = replace(ONE, breaker=replace(RULES, slow_first_token_s=1.0))
    worker = await house.worker(strict)
    slow, quick = Ended("success", "", 3.0, 0.1), Ended("success", "", 0.2, 0.1)
    assert await worker.call(*[slow] * 5, to=strict) == ["closed"] * 4 + [""]
    assert worker.now(strict).cause == "4 of 4 answers were slow, the last one with its first token after 3 s"
    house.clock.passed_s += 6
    assert await worker.call(slow, to=strict) == ["half_open"]
    assert worker.now(strict).cause == "a probe was slow, the last one with its first token after 3 s"
    house.clock.passed_s += 11
    assert await worker.call(quick, quick, to=strict) == ["half_open", "closed"]


async def test_something_else_than_calls_may_find_out_that_a_target_is_not_well(house):
    worker = await house.worker()
    worker.breakers.trip(ONE, "3 health checks in a row failed")
    worker.breakers.trip(ONE, "4 health checks in a row failed")
    assert (worker.now().state, worker.now().cause) == ("open", "3 health checks in a row failed")
    assert worker.breakers.rows()[0]["trips"] == 1


async def test_breakers_that_are_switched_off_open_by_hand_alone(house):
    off = replace(ONE, breaker=replace(RULES, enabled=False))
    worker = await house.worker(off)
    assert await worker.call(*[DOWN] * 20, to=off) == ["closed"] * 20
    worker.breakers.trip(off, "no matter")
    assert worker.now(off).admits
    await worker.breakers.set("alpha/one", "open", "ada", "")
    assert await worker.call(WELL, to=off) == [""]


async def test_one_that_was_open_when_breakers_were_switched_off_keeps_nobody_away(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    off = replace(ONE, breaker=replace(RULES, enabled=False, window_s=5.0))
    now = worker.now(off)
    assert (now.state, now.admits, now.until_s, now.calls) == ("closed", True, 0.0, 0)
    assert await worker.call(DOWN, DOWN, DOWN, DOWN, to=off) == ["closed"] * 4


# ---- What it knows of a target.


async def test_its_condition_says_how_a_target_does(house):
    worker = await house.worker()
    assert worker.now() == Condition()
    await worker.call(Ended("success", "", 1.0, 0.1), DOWN, WELL)
    house.clock.passed_s += 2
    now = worker.now()
    assert (now.calls, now.failures, now.answering, now.first_token_s, now.measured_s) == (3, 1, True, 1.0, 2.0)
    assert 0 < now.badness < 1
    await worker.call(DOWN, DOWN, DOWN)
    assert not worker.now().answering
    assert worker.now().badness > 1 > now.badness


async def test_rows_are_fit_for_json(house):
    worker = await (await house.worker()).tripped()
    permit = await worker.send()
    assert permit is not None
    one, two = json.loads(json.dumps(worker.breakers.rows()))
    assert (one["target"], one["state"], one["probes"], one["admits"], one["trips"]) == ("alpha/one", "half_open", 1, False, 1)
    assert (two["target"], two["state"], two["since"], two["admits"], two["cause"], two["author"]) == ("beta/two", "closed", None, True, None, None)
    worker.breakers.ended(permit, NEUTRAL)


async def test_rows_tell_times_for_people_and_seconds_beside_them(house):
    worker = await house.worker()
    house.clock.passed_s += 2
    await worker.call(DOWN, DOWN, DOWN)
    house.clock.passed_s += 1.5
    row = worker.breakers.rows()[0]
    times = ("since", "since_s", "until", "until_s", "rests_until", "rests_s")
    assert [row[name] for name in times] == ["2023-11-14T22:13:22Z", 1.5, "2023-11-14T22:13:27Z", 3.5, None, None]
    house.clock.passed_s += 60
    assert worker.breakers.rows()[0]["until_s"] == 0.0, "a probe is due"
    permit = await worker.send(to=TWO)
    worker.breakers.ended(permit, RESTS)
    row = worker.breakers.rows()[1]
    assert [row[name] for name in times] == [None, None, None, None, "2023-11-14T22:14:33Z", 10.0]
    house.clock.passed_s += 10
    row = worker.breakers.rows()[1]
    assert (row["rests_until"], row["rests_s"]) == (None, None), "a rest that is over is none"


async def test_the_guide_names_every_field_of_a_row(house):
    worker = await house.worker()
    page = (Path(__file__).parents[1] / "docs/journal.md").read_text(encoding="utf-8").partition("## Breakers")[2].partition("\n## ")[0]
    cells = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert worker.breakers.rows()[0].keys() <= cells
    assert cells - worker.breakers.rows()[0].keys() == {"open", "close", "auto"}


async def test_its_repr_tells_its_state(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    assert repr(worker.breakers) == (
        "Breakers(2 targets, {'alpha/one': 'open'}, Exchange(pending=1, failing=False, generation=0))")


# ---- Probes.


@pytest.mark.parametrize(("outcome", "state"), [
    (WELL, "closed"), (DOWN, "open"), (NEUTRAL, "half_open"), (RESTS, "half_open"), (Ended("neutral", "unused"), "half_open"),
])
async def test_whatever_becomes_of_a_probe_its_permit_comes_back(house, outcome, state):
    worker = await (await house.worker()).tripped()
    assert await worker.call(outcome) == ["half_open"]
    assert worker.now().state == state
    await worker.told()
    (stored,) = (await house.store.breakers.all())[1]
    assert (stored.state, stored.permits) == (State(state), ())
    house.clock.passed_s += 11
    assert worker.now().admits


async def test_a_permit_comes_back_once(house):
    worker = await (await house.worker()).tripped()
    permit = await worker.send()
    worker.breakers.ended(permit, WELL)
    worker.breakers.ended(permit, DOWN)
    await worker.told()
    assert worker.now().state == "closed"
    usual = await worker.send()
    for _ in range(9):
        worker.breakers.ended(usual, DOWN)
    assert worker.now().failures == 1


async def test_all_processes_together_send_no_more_probes_than_there_are_permits(house):
    one = await (await house.worker()).tripped()
    two = await house.worker()
    permits = await asyncio.gather(*(each.send() for each in (one, two) for _ in range(10)))
    assert [permit.state for permit in permits if permit] == ["half_open"]


async def test_a_call_that_probes_a_target_twice_has_two_permits(house):
    many = replace(ONE, breaker=replace(RULES, probes=2))
    worker = await (await house.worker(many)).tripped()
    first, second = [await worker.breakers.admit(many, "call_1", lease_s=9.0) for _ in range(2)]
    worker.breakers.ended(first, NEUTRAL)
    worker.breakers.ended(second, NEUTRAL)
    await worker.told()
    assert (await house.store.breakers.all())[1][0].permits == ()
    assert first.holder != second.holder


async def test_the_permit_of_a_process_that_died_is_free_when_its_lease_is_over(house):
    dead = await (await house.worker()).tripped()
    assert (await dead.send()).state == "half_open"
    other = await house.worker()
    assert await other.call(WELL) == [""]
    house.clock.passed_s += 61
    assert await other.call(WELL) == ["half_open"]


async def test_a_caller_that_goes_away_while_a_permit_is_claimed_leaves_it_to_others(house):
    worker = await (await house.worker()).tripped()
    worker.line.loses = True
    caller = asyncio.ensure_future(worker.send())
    await asyncio.wait_for(worker.line.held.wait(), 5)
    assert len((await house.store.breakers.all())[1][0].permits) == 1
    worker.line.loses = False
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await worker.told()
    assert (await house.store.breakers.all())[1][0].permits == ()
    assert await worker.call(WELL) == ["half_open"]


async def test_a_breaker_that_closed_while_the_store_was_asked_lets_the_call_through(house):
    one = await (await house.worker()).tripped()
    two = await house.worker()
    await one.call(WELL)
    await one.told()
    assert two.now().state == "open"
    assert await two.call(WELL) == ["closed"]


async def test_no_more_calls_wait_for_a_permit_than_there_are_probes(house):
    worker = await (await house.worker(claim_s=0.01)).tripped()
    worker.line.hangs = True
    permits = await asyncio.gather(*(worker.send() for _ in range(20)))
    assert permits == [None] * 20
    assert worker.line.asked.count("claimed") == 1


# ---- The last resort.


async def test_where_no_target_is_well_a_call_may_be_sent_all_the_same(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    assert await worker.call(DOWN, DOWN, last_resort=True) == ["last_resort"] * 2
    assert (worker.breakers.rows()[0]["trips"], worker.now().until_s) == (1, 5.0)


async def test_a_last_resort_that_answers_makes_a_probe_due(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    assert await worker.call(WELL, last_resort=True) == ["last_resort"]
    assert worker.now().state == "open"
    assert await worker.call(WELL, WELL) == ["half_open", "closed"]


async def test_a_probe_that_is_due_comes_before_the_last_resort(house):
    worker = await (await house.worker()).tripped()
    first = await worker.send(last_resort=True)
    assert first.state == "half_open"
    second = await worker.send(last_resort=True)
    assert second.state == "last_resort"
    worker.breakers.ended(second, WELL)
    assert worker.now().state == "half_open"
    worker.breakers.ended(first, WELL)
    assert worker.now().state == "closed"


async def test_a_last_resort_at_a_target_that_rests_counts_as_any_call(house):
    worker = await house.worker()
    await worker.call(RESTS)
    assert await worker.call(DOWN, DOWN, DOWN, last_resort=True) == ["last_resort"] * 3
    assert worker.now().state == "open"


# ---- Rests.


async def test_a_target_that_asks_for_a_rest_is_left_alone_by_every_process(house):
    one, two = await house.worker(), await house.worker()
    await one.call(RESTS)
    assert await one.call(WELL) == [""]
    await one.told()
    await two.told()
    assert await two.call(WELL) == [""]
    now = two.now()
    assert (now.state, now.admits, now.cooling_s, now.until_s, now.calls) == ("closed", False, 10.0, 10.0, 0)
    house.clock.passed_s += 10.1
    assert await two.call(WELL) == ["closed"]


async def test_many_calls_that_are_told_to_come_back_later_are_one_word_to_the_store(house):
    worker = await house.worker()
    permits = [await worker.send() for _ in range(100)]
    for n, permit in enumerate(permits):
        house.clock.passed_s += 0.001
        worker.breakers.ended(permit, replace(RESTS, cool_s=10.0 + n / 1000))
    await worker.told()
    assert worker.line.asked.count("cooled") == 1
    assert worker.heard.names == ["target_cooling"]


@pytest.mark.parametrize("cool_s", [0.0, -1.0, 0.1])
async def test_a_rest_of_no_time_worth_the_name_is_none(house, cool_s):
    worker = await house.worker()
    await worker.call(replace(RESTS, cool_s=cool_s))
    assert worker.now() == Condition()


# ---- By hand.


async def test_what_an_operator_says_is_obeyed_by_every_process(house):
    one, two = await house.worker(), await house.worker()
    await one.breakers.set("alpha/one", "open", "ada", "moves house")
    await two.told()
    for worker in (one, two):
        assert await worker.call(WELL) == [""]
        assert await worker.call(WELL, last_resort=True) == [""]
        assert worker.now().badness > 1000
        row = worker.breakers.rows()[0]
        assert (row["state"], row["author"], row["note"]) == ("forced_open", "ada", "moves house")
    await two.breakers.set("alpha/one", "close", "bob", "")
    await one.told()
    assert await one.call(*[DOWN] * 9, RESTS, WELL) == ["forced_closed"] * 11
    assert (one.now().state, one.now().cooling_s) == ("forced_closed", 0.0)
    await one.breakers.set("alpha/one", "auto", "bob", "")
    house.clock.passed_s += 11
    assert await one.call(*[DOWN] * 3, WELL) == ["closed"] * 3 + [""]


async def test_an_operator_hears_what_cannot_be_done(house):
    worker = await house.worker(step_s=0.01)
    with pytest.raises(NoSuchTargetError, match="there are alpha/one, beta/two"):
        await worker.breakers.set("alpha/two", "open", "ada", "")
    with pytest.raises(ValueError, match="open, close, auto"):
        await worker.breakers.set("alpha/one", "ajar", "ada", "")
    worker.line.fails = StoreUnavailable("The disk is full.")
    with pytest.raises(StoreUnavailable, match="full"):
        await worker.breakers.set("alpha/one", "open", "ada", "")
    worker.line.fails, worker.line.hangs = None, True
    with pytest.raises(StoreUnavailable, match="could not be set"):
        await worker.breakers.set("alpha/one", "open", "ada", "")
    worker.line.hangs = False
    assert worker.now().admits


# ---- Several processes.


async def test_a_worker_that_finds_a_target_down_tells_the_others(house):
    one, two = await house.worker(), await house.worker()
    await one.call(DOWN, DOWN, DOWN)
    await one.told()
    await two.told()
    assert (two.now().state, two.now().cause) == ("open", one.now().cause)
    house.clock.passed_s += 6
    assert await two.call(WELL) == ["half_open"]
    await two.told()
    await one.told()
    assert (one.now().state, one.now().calls) == ("closed", 0), "what it had counted was before"


async def test_a_breaker_survives_a_restart(house):
    await (await house.worker()).tripped()
    again = await house.worker()
    assert (again.now().state, again.heard.states["alpha/one"]) == ("open", "open")


async def test_several_that_find_it_out_at_once_are_one_trip_and_one_word(house):
    one, two = await house.worker(), await house.worker()
    for worker in (one, two):
        await worker.call(DOWN, DOWN, DOWN)
    for worker in (one, two):
        await worker.told()
    assert [worker.breakers.rows()[0]["trips"] for worker in (one, two)] == [1, 1]
    assert one.heard.names + two.heard.names == ["breaker_opened"]
    assert one.heard.trips + two.heard.trips == ["alpha/one"]


async def test_while_nothing_changes_the_store_is_asked_for_one_number(house):
    worker = await house.worker()
    for _ in range(5):
        await worker.told()
    assert worker.line.asked == ["generation"] * 5


async def test_a_target_that_nobody_has_configured_yet_is_met_as_the_store_knows_it(house):
    await (await house.worker()).tripped()
    other = await house.worker(TWO)
    assert other.now(ONE).state == "open"


# ---- What is told.


async def test_the_log_tells_what_happens_to_a_breaker(house):
    worker = await (await house.worker()).tripped()
    await worker.call(DOWN)
    house.clock.passed_s += 11
    await worker.call(WELL)
    await worker.call(RESTS)
    await worker.breakers.set("alpha/one", "open", "ada", "moves house")
    await worker.breakers.set("alpha/one", "auto", "ada", "")
    assert [(name, fields["cause"]) for name, fields in worker.heard.events] == [
        ("breaker_opened", "3 calls in a row failed, the last one with reset"),
        ("breaker_half_open", "3 calls in a row failed, the last one with reset"),
        ("breaker_opened", "a probe failed with reset"),
        ("breaker_half_open", "a probe failed with reset"),
        ("breaker_closed", "probe succeeded"),
        ("target_cooling", "status:429"),
        ("breaker_opened", "opened by hand"),
        ("breaker_closed", "released by hand"),
    ]
    first, by_hand = worker.heard.events[0][1], worker.heard.events[6][1]
    assert first == {"level": "warning", "target": "alpha/one", "cause": first["cause"], "until": "2023-11-14T22:13:25.000000Z", "trips": 1}
    assert (by_hand["author"], by_hand["note"], by_hand["until"]) == ("ada", "moves house", None)
    assert worker.heard.trips == ["alpha/one"] * 2
    assert worker.heard.states["alpha/one"] == "closed"


async def test_metrics_show_the_state_of_each_target_and_how_often_it_opened(house):
    telemetry = Telemetry(log_format="json", log_level="info", write=lambda _lines: None, scrub=str, clock=house.clock)
    breakers = Breakers(house.store.breakers, house.clock, Longest(), telemetry)  # type: ignore[arg-type] # what it uses of ids
    breakers.serve([ONE, TWO])
    breakers.trip(ONE, "down")
    await breakers.refresh()
    shown = telemetry.metrics().decode()
    assert 'lockgate_breaker_state{target="alpha/one"} 2.0' in shown
    assert 'lockgate_breaker_state{target="beta/two"} 0.0' in shown
    assert 'lockgate_breaker_trips_total{target="alpha/one"} 1.0' in shown
    breakers.serve([TWO])
    assert 'lockgate_breaker_state{target="alpha/one"} 0.0' in telemetry.metrics().decode()


# ---- A store that is no help.


async def test_a_store_that_is_down_fails_no_call_and_is_told_of_once(house):
    worker = await house.worker()
    worker.line.fails = StoreUnavailable("The disk is full.")
    assert await worker.call(DOWN, DOWN, DOWN, WELL) == ["closed"] * 3 + [""]
    await worker.told()
    await worker.told()
    assert worker.heard.names == ["breakers_not_shared", "breaker_opened"]
    house.clock.passed_s += 6
    assert not worker.now().admits, "a permit that cannot be written is none"
    asked = list(worker.line.asked)
    assert await worker.call(WELL) == [""]
    assert await worker.call(WELL, last_resort=True) == ["last_resort"]
    assert "claimed" not in asked
    worker.line.fails = None
    await worker.told()
    assert (await house.store.breakers.all())[1][0].trips == 1
    assert await worker.call(WELL) == ["half_open"]
    assert worker.heard.names == ["breakers_not_shared", "breaker_opened", "breaker_half_open"]


async def test_a_store_that_can_be_read_and_not_written_is_told_of_once_and_takes_nothing_back(house):
    one, two = await house.worker(), await house.worker()
    one.line.full = True
    await one.call(DOWN, DOWN, DOWN)
    await two.call(RESTS)
    for _ in range(5):
        await two.told()
        await one.told()
    assert one.now().state == "open", "what is on its way to the store is newer than what it says"
    assert one.heard.names == ["breakers_not_shared", "breaker_opened"]
    one.line.full = False
    await one.told()
    assert (one.now().state, one.now().cooling_s) == ("open", 10.0)


async def test_news_that_was_read_before_a_step_of_ones_own_does_not_undo_it(house):
    worker, other = await house.worker(), await house.worker()
    await other.call(RESTS, to=TWO)
    await other.told()
    real = house.store.breakers.all
    read, deliver = asyncio.Event(), asyncio.Event()

    async def slow() -> Any:
        said = await real()
        read.set()
        await deliver.wait()
        return said

    house.store.breakers.all = slow
    hearing = asyncio.ensure_future(worker.told())
    await asyncio.wait_for(read.wait(), 5)
    await worker.call(DOWN, DOWN, DOWN)
    while "pending=1" in repr(worker.breakers):
        await asyncio.sleep(0)
    deliver.set()
    await asyncio.wait_for(hearing, 5)
    assert (worker.now().state, worker.now(TWO).cooling_s) == ("open", 10.0)


async def test_the_end_of_a_probe_is_written_once_the_store_is_back(house):
    worker = await (await house.worker()).tripped()
    permit = await worker.send()
    worker.line.fails = StoreUnavailable("The disk is full.")
    worker.breakers.ended(permit, WELL)
    assert worker.now().state == "closed", "here it counts at once"
    await worker.told()
    assert (await house.store.breakers.all())[1][0].state is State.HALF_OPEN
    worker.line.fails = None
    await worker.told()
    assert (await house.store.breakers.all())[1][0].state is State.CLOSED


async def test_a_store_that_hangs_holds_up_a_call_for_a_moment_and_one_call_only(house):
    worker = await (await house.worker(claim_s=0.01, step_s=0.01)).tripped()
    worker.line.hangs = True
    assert await asyncio.wait_for(worker.call(WELL, WELL, WELL), 5) == ["", "", ""]
    assert worker.line.asked.count("claimed") == 1
    await asyncio.wait_for(worker.told(), 5)
    worker.line.hangs = False
    await worker.told()
    assert await worker.call(WELL) == ["half_open"]


async def test_a_step_that_was_written_without_an_answer_does_not_count_twice(house):
    worker = await house.worker(step_s=0.01)
    worker.line.loses = True
    await worker.call(DOWN, DOWN, DOWN)
    await worker.told()
    worker.line.loses = False
    await worker.told()
    assert worker.line.asked.count("tripped") >= 2
    assert worker.breakers.rows()[0]["trips"] == 1
    assert worker.heard.names.count("breaker_opened") == 1


async def test_a_step_that_the_store_refuses_holds_up_no_other(house):
    worker = await house.worker()
    worker.line.fails = StoreError("this cannot be stored")
    await worker.call(DOWN, DOWN, DOWN)
    await asyncio.sleep(0)
    await worker.told()
    worker.line.fails = None
    await worker.call(*[DOWN] * 3, to=TWO)
    await worker.told()
    assert [each.target for each in (await house.store.breakers.all())[1]] == ["beta/two"]


async def test_a_claim_that_the_store_refuses_is_no_permit(house):
    worker = await (await house.worker()).tripped()
    worker.line.fails = StoreError("this cannot be stored")
    assert await worker.call(WELL) == [""]


async def test_what_waits_for_a_store_that_is_down_is_bounded(house):
    worker = await house.worker()
    worker.line.fails = StoreUnavailable("The disk is full.")
    for n in range(3000):
        to = replace(ONE, target=Target("alpha", f"m{n}"))
        worker.breakers.trip(to, "down")
    await worker.told()
    assert "pending=1024" in repr(worker.breakers)
    worker.line.fails = None
    await worker.told()
    assert len((await house.store.breakers.all())[1]) == 1024


async def test_a_step_that_is_pushed_out_while_it_is_written_takes_no_other_with_it(house):
    worker = await house.worker()
    worker.line.loses = True
    worker.breakers.trip(ONE, "down")
    await asyncio.wait_for(worker.line.held.wait(), 5)
    for n in range(1024):
        worker.breakers.trip(replace(ONE, target=Target("alpha", f"m{n}")), "down")
    worker.line.release.set()
    await worker.breakers.close()
    assert "pending=0" in repr(worker.breakers)
    assert len((await house.store.breakers.all())[1]) == 1025


async def test_what_waits_is_written_before_the_end(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    await worker.breakers.close()
    assert (await house.store.breakers.all())[1][0].state is State.OPEN


async def test_the_end_does_not_wait_for_a_store_that_hangs(house):
    worker = await house.worker(step_s=0.01)
    worker.line.hangs = True
    await worker.call(DOWN, DOWN, DOWN)
    await asyncio.wait_for(worker.breakers.close(), 5)
    await asyncio.wait_for((await house.worker()).breakers.close(), 5)


# ---- The configuration changes.


async def test_targets_that_are_gone_are_forgotten_here_at_once_and_in_the_store_after_an_hour(house):
    worker = await (await house.worker()).tripped()
    worker.breakers.serve([TWO])
    assert [row["target"] for row in worker.breakers.rows()] == ["beta/two"]
    assert worker.heard.states["alpha/one"] == "closed"
    await worker.told()
    assert len((await house.store.breakers.all())[1]) == 1
    house.clock.passed_s += 3601
    worker.breakers.serve([TWO])
    worker.line.fails = StoreUnavailable("The disk is full.")
    await worker.told()
    worker.line.fails = None
    await worker.told()
    assert (await house.store.breakers.all())[1] == []
    await worker.told()
    assert worker.now(ONE).state == "closed"


async def test_a_prune_that_fails_is_tried_again(house):
    worker = await (await house.worker()).tripped()
    house.clock.passed_s += 3601
    worker.breakers.serve([TWO])
    real: Callable[..., Any] = house.store.breakers.prune

    async def full(*_given: Any, **_named: Any) -> int:
        raise StoreUnavailable("The disk is full.")

    house.store.breakers.prune = full
    await worker.told()
    assert len((await house.store.breakers.all())[1]) == 1
    house.store.breakers.prune = real
    await worker.told()
    assert (await house.store.breakers.all())[1] == []


async def test_a_breaker_that_the_store_has_no_more_is_as_good_as_new(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN, DOWN)
    await worker.told()
    await house.store.breakers.prune((), before_ns=2**62)
    await worker.told()
    assert worker.now().admits


async def test_a_reload_keeps_what_was_counted(house):
    worker = await house.worker()
    await worker.call(DOWN, DOWN)
    again = replace(ONE, weight=5)
    worker.breakers.serve([again, TWO])
    assert await worker.call(DOWN, to=again) == ["closed"]
    assert worker.now(again).state == "open"
