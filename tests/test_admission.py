"""Admission when the house is full: bounded, fair, in time, and never a place lost, whatever callers do."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.admission import Admission, House
from gateway.errors import Overloaded

WAIT_S = 5.0


class HandLoop(asyncio.SelectorEventLoop):
    """A loop whose time a test moves: timers fire when it says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Door:
    """An admission, who is inside and who was turned away and why, in the order in which they were told."""

    def __init__(self, loop: HandLoop, house: House) -> None:
        self.loop = loop
        self.house = house
        self.dice = 0.0
        self.reasons: Counter[str] = Counter()
        self.seen_waiting = 0
        self.admission = Admission(self, self, self)  # type: ignore[arg-type] # it is its own clock, dice and witness
        self.inside: deque[str] = deque()
        self.refused: list[tuple[str, Overloaded]] = []
        self.outside: dict[asyncio.Task[None], str] = {}

    def monotonic(self) -> float:
        return self.loop.time()

    def jitter(self) -> float:
        return self.dice

    def waiting(self, calls: int) -> None:
        self.seen_waiting = calls

    def shed(self, reason: str) -> None:
        self.reasons[reason] += 1

    def come(self, *principals: str, deadline_s: float | None = None) -> list[asyncio.Task[None]]:
        """Calls come, one after another; each has gone in, is waiting or was turned away."""
        tasks = [self.loop.create_task(self._enter(principal, deadline_s)) for principal in principals]
        self.outside.update(zip(tasks, principals, strict=True))
        self.settle()
        return tasks

    def go(self, calls: int = 1) -> None:
        """Calls inside come to an end, the oldest first."""
        for _ in range(calls):
            self.inside.popleft()
            self.admission.leave()
        self.settle()

    def later(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settle()

    def settle(self) -> None:
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def _enter(self, principal: str, deadline_s: float | None) -> None:
        try:
            await self.admission.enter(principal, self.house, deadline_s=deadline_s)
            self.inside.append(principal)
        except Overloaded as error:
            self.refused.append((principal, error))
        finally:
            task = asyncio.current_task()
            assert task is not None
            self.outside.pop(task, None)

    def end(self) -> None:
        self.admission.close()
        self.settle()
        assert not self.outside
        self.loop.close()


@pytest.fixture
def door() -> Iterator[Callable[..., Door]]:
    doors: list[Door] = []

    def make(most_inside: int, most_waiting: int = 1000, wait_s: float = WAIT_S) -> Door:
        doors.append(Door(HandLoop(), House(most_inside, most_waiting, wait_s)))
        return doors[-1]

    yield make
    for each in doors:
        each.end()


def names(refused: list[tuple[str, Overloaded]]) -> list[str]:
    return [principal for principal, _error in refused]


def test_a_call_that_finds_room_goes_in_without_giving_way():
    """The usual case must cost nothing: the coroutine ends at its first step."""
    door = Door(HandLoop(), House(1, 0, 0.0))
    with pytest.raises(StopIteration):
        door.admission.enter("a", door.house, deadline_s=None).send(None)
    assert door.admission.inside == 1
    door.loop.close()


def test_those_who_wait_go_in_as_others_leave_the_oldest_first(door):
    house = door(1)
    house.come("a", "a1", "a1", "a1")
    assert (repr(house.admission), house.seen_waiting) == ("Admission(inside=1, waiting=3)", 3)
    house.go()
    assert list(house.inside) == ["a1"]
    assert (house.admission.waiting, house.seen_waiting) == (2, 2)


def test_one_with_ten_thousand_waiting_calls_delays_anothers_one_call_by_a_turn(door):
    house = door(1, 20_000)
    house.come("in", *["greedy"] * 10_000, "modest")
    house.go()
    assert list(house.inside) == ["greedy"]
    house.go()
    assert list(house.inside) == ["modest"]


def test_places_go_round_the_principals_that_wait(door):
    house = door(1)
    house.come("in", *"aaabbc")
    served = []
    for _ in range(6):
        house.go()
        served += house.inside
    assert "".join(served) == "abcaba"


def test_a_newcomer_does_not_overtake_those_who_wait_for_the_place_that_has_just_become_free(door):
    house = door(1)
    house.come("in", "early")
    house.inside.popleft()
    house.admission.leave()  # handed over, and its new holder has not woken up yet
    house.come("late")
    assert list(house.inside) == ["early"]


def test_without_a_queue_a_call_is_turned_away_at_once(door):
    house = door(1, 0)
    house.come("a", "b")
    assert (names(house.refused), house.reasons) == (["b"], {"full": 1})
    assert house.refused[0][1].status == 503
    assert house.refused[0][1].should_retry


def test_a_full_queue_turns_the_newcomer_away_where_it_has_as_many_waiting_as_anybody(door):
    house = door(1, 4)
    house.come("in", *"aabb")
    house.come("a", "b")
    assert (names(house.refused), house.reasons) == (["a", "b"], {"full": 2})
    assert house.admission.waiting == 4


def test_a_full_queue_sheds_the_newest_of_who_has_most_waiting_for_one_who_has_fewer(door):
    house = door(1, 4)
    house.come("in", "a", "a", "b")
    (newest,) = house.come("a")
    house.come("c")
    assert newest.done()
    assert (names(house.refused), house.reasons) == (["a"], {"displaced": 1})
    served = []
    for _ in range(4):
        house.go()
        served += house.inside
    assert "".join(served) == "abca"


def test_between_equals_nobody_is_displaced(door):
    house = door(1, 2)
    house.come("in", "a", "b", "c")
    assert (names(house.refused), house.reasons) == (["c"], {"full": 1})


def test_every_wait_ends_at_the_longest_wait_or_at_the_callers_own_deadline(door):
    house = door(1)
    house.come("in")
    house.come("hurried", deadline_s=2.0)
    house.come("patient", deadline_s=60.0)
    house.later(1.99)
    assert house.refused == []
    house.later(0.02)
    assert names(house.refused) == ["hurried"]
    house.later(WAIT_S - 2.0)
    assert names(house.refused) == ["hurried", "patient"]
    assert (house.reasons, house.admission.waiting) == ({"waited": 2}, 0)


def test_a_call_whose_deadline_has_passed_is_turned_away_only_if_it_would_have_to_wait(door):
    house = door(1)
    house.come("a", "b", deadline_s=0.0)
    assert list(house.inside) == ["a"]
    assert house.reasons == {"early": 1}


def at_a_steady_pace(house: Door, calls: int, pace_s: float) -> None:
    """Calls end one after another while `calls` wait for longer than that."""
    for _ in range(calls):
        house.later(pace_s)
        house.go()


def test_a_call_that_would_not_get_its_turn_in_time_is_turned_away_at_once(door):
    """Ten places a second and five seconds' patience: about fifty have a chance."""
    house = door(1)
    house.come("in", *["a"] * 30)
    at_a_steady_pace(house, 20, 0.1)
    house.come(*["a"] * 100)
    assert 45 <= house.admission.waiting <= 56
    assert house.reasons == {"early": 110 - house.admission.waiting}


def test_who_has_nobody_waiting_is_not_turned_away_because_another_has(door):
    house = door(1)
    house.come("in", *["a"] * 30)
    at_a_steady_pace(house, 20, 0.1)
    house.come(*["a"] * 100)
    refused = len(house.refused)
    house.come("b")
    assert len(house.refused) == refused
    for _ in range(2):
        house.later(0.1)
        house.go()
    assert list(house.inside) == ["b"]


def test_a_call_in_more_of_a_hurry_is_turned_away_earlier(door):
    house = door(1)
    house.come("in", *["a"] * 30)
    at_a_steady_pace(house, 20, 0.1)
    house.come("a", deadline_s=0.5)
    assert house.reasons == {"early": 1}
    house.come("a", deadline_s=1.5)
    assert house.reasons == {"early": 1}


def test_nobody_is_turned_away_on_a_guess(door):
    """A thousand calls come at once: how long the first thousand will take nobody knows yet."""
    house = door(1000)
    house.come(*["a"] * 2000)
    house.later(0.001)
    assert (house.admission.waiting, house.refused) == (1000, [])
    house.later(2.0)
    house.go(1000)
    assert len(house.inside) == 1000
    assert house.refused == []


def test_a_house_in_which_nothing_moves_sends_newcomers_away_and_asks_again_later(door):
    """A provider hangs: after the longest wait it makes no sense to stand behind others. It answers again: all is as before."""
    house = door(1)
    house.come("in", "a")
    house.later(3.0)
    house.come("a")
    house.later(2.5)  # the first has waited in vain, the second still waits
    house.come(*["b"] * 10)
    assert house.reasons == {"waited": 1, "early": 10}
    house.later(WAIT_S)
    house.come(*["c"] * 10)
    assert (house.admission.waiting, house.reasons) == (10, {"waited": 2, "early": 10})


def test_how_long_to_stay_away_grows_with_the_queue_and_is_each_callers_own(door):
    told: dict[tuple[int, float], Any] = {}
    for waiting in (0, 100, 1000):
        for dice in (0.0, 0.5, 0.999):
            house = door(1, waiting)
            house.dice = dice
            house.come("in", *["a"] * waiting, "a")
            ((_principal, error),) = house.refused
            told[waiting, dice] = error.retry_after_s
    assert [told[waiting, 0.0] for waiting in (0, 100, 1000)] == [1, 1, 1]
    assert told[0, 0.999] == 1
    assert 1 < told[100, 0.5] < told[100, 0.999]
    slow = door(1, wait_s=60.0)
    slow.dice = 0.999
    slow.come("in", *["a"] * 900)
    at_a_steady_pace(slow, 20, 0.1)
    slow.come("a")
    assert slow.refused[-1][1].retry_after_s == 30  # however long the queue


def test_a_caller_that_goes_away_leaves_no_trace(door):
    house = door(1)
    house.come("in")
    first, middle, _last = house.come("a", "a", "a")
    for task in (middle, first):
        task.cancel()
    house.settle()
    assert (house.admission.waiting, house.seen_waiting) == (1, 1)
    house.go()
    assert list(house.inside) == ["a"]
    assert not house.admission._queue._lines
    assert not house.admission._queue._of_length


def test_a_place_given_to_a_caller_in_the_moment_of_its_going_goes_to_the_next(door):
    house = door(1)
    house.come("in")
    (gone,) = house.come("gone")
    house.come("next")
    house.inside.popleft()
    house.admission.leave()
    gone.cancel()
    house.settle()
    assert list(house.inside) == ["next"]
    assert house.admission.inside == 1


def test_a_caller_that_goes_away_before_its_place_comes_is_passed_over(door):
    house = door(1)
    house.come("in")
    (gone,) = house.come("gone")
    house.come("next")
    gone.cancel()
    house.inside.popleft()
    house.admission.leave()
    house.settle()
    assert list(house.inside) == ["next"]


def test_a_caller_that_is_turned_away_in_the_moment_of_its_going_takes_no_place_with_it(door):
    house = door(1)
    house.come("in")
    (gone,) = house.come("gone")
    house.admission.close()
    gone.cancel()
    house.settle()
    assert house.admission.inside == 1


def test_a_larger_house_takes_those_who_wait_before_the_newcomer(door):
    house = door(1)
    house.come("in", "a", "b")
    house.house = House(3, 1000, WAIT_S)
    house.come("c")
    assert list(house.inside) == ["in", "a", "b"]
    house.house = House(5, 1000, WAIT_S)
    house.come("d")
    assert sorted(house.inside) == ["a", "b", "c", "d", "in"]


def test_a_smaller_house_empties_first(door):
    house = door(3)
    house.come(*"abc")
    house.house = House(1, 1000, WAIT_S)
    house.come("d")
    house.go(2)
    assert (house.admission.inside, house.admission.waiting) == (1, 1)
    house.go()
    assert list(house.inside) == ["d"]


def test_a_house_that_closes_turns_away_who_waits_and_who_comes(door):
    house = door(1)
    house.come("in", "a", "b")
    house.admission.close()
    house.settle()
    house.come("c")
    house.go()
    house.come("d")
    assert (names(house.refused), house.reasons) == (["a", "b", "c", "d"], {"stopping": 4})
    assert "stopping" in house.refused[0][1].message
    assert (house.admission.waiting, house.admission.inside) == (0, 0)
    assert repr(house.admission) == "Admission(inside=0, waiting=0, closed)"


PRINCIPALS = st.sampled_from("abcde")


class Doors(RuleBasedStateMachine):
    """Callers come, go, hurry and vanish, in any order; limits change."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Door(HandLoop(), House(2, 4, WAIT_S))
        self.bound = 4  # the most that may wait: a queue that is made shorter empties first

    @rule(principal=PRINCIPALS, deadline_s=st.sampled_from([None, None, 0.0, 0.5, 3.0]))
    def a_call_comes(self, principal: str, deadline_s: float | None) -> None:
        free = self.door.house.most_inside - self.door.admission.inside - self.door.admission.waiting
        before = len(self.door.inside)
        self.door.come(principal, deadline_s=deadline_s)
        if free > 0:
            assert len(self.door.inside) > before, "there was room and nobody waited"

    @precondition(lambda self: self.door.inside)
    @rule(calls=st.integers(1, 3))
    def calls_end(self, calls: int) -> None:
        self.door.go(min(calls, len(self.door.inside)))

    @precondition(lambda self: self.door.outside)
    @rule(dice=st.integers(0, 99), handed_over=st.booleans())
    def a_caller_vanishes(self, dice: int, handed_over: bool) -> None:  # noqa: FBT001 - the strategy's
        if handed_over and self.door.inside:
            self.door.inside.popleft()
            self.door.admission.leave()
        tasks = list(self.door.outside)
        tasks[dice % len(tasks)].cancel()
        self.door.settle()

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.door.later(seconds)

    @rule(inside=st.integers(1, 4), waiting=st.integers(0, 6))
    def the_limits_change(self, inside: int, waiting: int) -> None:
        self.bound = max(waiting, self.door.admission.waiting)
        self.door.house = House(inside, waiting, WAIT_S)

    @precondition(lambda self: self.door.outside and self.door.inside)
    @rule(dice=st.integers(0, 99))
    def who_waits_is_served_within_a_round(self, dice: int) -> None:
        """The oldest call of any principal: as many turns as principals wait, and it is inside."""
        while self.door.admission.inside > self.door.admission._limits.most_inside:  # a house that was made smaller
            self.door.go()
        waiting = list(dict.fromkeys(self.door.outside.values()))
        if not waiting or not self.door.inside:
            return
        wanted = waiting[dice % len(waiting)]
        oldest = next(task for task, principal in self.door.outside.items() if principal == wanted)
        for _ in waiting:
            self.door.go()
        assert oldest.done()
        assert oldest not in self.door.outside

    @invariant()
    def nobody_is_lost_and_no_limit_is_passed(self) -> None:
        admission = self.door.admission
        self.bound = max(self.door.house.most_waiting, min(self.bound, admission.waiting))
        assert admission.inside == len(self.door.inside), "a place was lost, or given twice"
        assert admission.waiting == len(self.door.outside) == self.door.seen_waiting
        assert admission.waiting <= self.bound
        assert sum(self.door.reasons.values()) == len(self.door.refused)
        assert all(1 <= (error.retry_after_s or 0) <= 30 for _, error in self.door.refused)
        queue = admission._queue
        lines = {principal: len(line) for principal, line in queue._lines.items()}
        assert lines == Counter(self.door.outside.values())
        assert queue._longest == max(lines.values(), default=0)
        assert {principal: length for length, them in queue._of_length.items() for principal in them} == lines

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        admission = self.door.admission
        assert not admission.waiting or admission.inside >= min(self.door.house.most_inside, admission._limits.most_inside)

    def teardown(self) -> None:
        self.door.end()


Doors.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestDoors = Doors.TestCase
