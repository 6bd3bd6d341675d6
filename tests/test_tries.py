"""Which target a call tries next: after what wait, with whose permit, out of which retry budget."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from gateway.breakers import Breakers
from gateway.call import Target
from gateway.clock import SystemIds
from gateway.core.breaker import BreakerRules, Ended
from gateway.core.order import Placed, Plan
from gateway.core.plan import Deadlines, Hedge, Retry, Route, RouteTarget
from gateway.core.retries import RetryBudget
from gateway.errors import AttemptFailed, UpstreamFailed
from gateway.store.memory import MemoryStore
from gateway.telemetry import Telemetry
from gateway.tries import Pursuit, Tries, Try

WENT = Ended("success", "")
FAILED = Ended("failure", "reset")
RESET = AttemptFailed("reset", "m", retryable=True)
WRONG = AttemptFailed("status:401", "m", retryable=False, status=401)


class HandClock:
    """Time that passes where somebody sleeps, and nowhere else."""

    def __init__(self) -> None:
        self.s = 1000.0
        self.slept: list[float] = []

    def now_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.s += seconds


class Quiet:
    """A telemetry that hears of retry budgets that are used up."""

    def __init__(self) -> None:
        self.spent: list[str] = []

    def retries_spent(self, route: str) -> None:
        self.spent.append(route)

    def __getattr__(self, _name: str) -> object:
        return lambda *_args, **_fields: None


class Ids(SystemIds):
    def jitter(self) -> float:
        return 0.5


def target(name: str, *, continues: bool = False) -> RouteTarget:
    return RouteTarget(Target(name, "m"), None, breaker=BreakerRules(consecutive=2), continues={} if continues else None)


A, B, C = target("a"), target("b"), target("c")


class Scene:
    """One route and its calls."""

    def __init__(self, *targets: RouteTarget, retry: Retry, hedge: Hedge, total_s: float) -> None:
        self.clock, self.telemetry = HandClock(), Quiet()
        ids, telemetry = Ids(self.clock), cast("Telemetry", self.telemetry)
        self.breakers = Breakers(MemoryStore("me").breakers, self.clock, ids, telemetry)
        self.pursuit = Pursuit(self.breakers, telemetry, self.clock, ids)
        self.route = Route("r", frozenset({"chat"}), targets, Deadlines(1, 1, 1, 1, total_s), retry, hedge=hedge)

    def tries(self, **plan: Any) -> Tries:
        order = tuple(Placed(to, "", self.breakers.condition(to)) for to in self.route.targets)
        return self.pursuit.of("call_x", self.route, Plan("priority", order, **plan), self.route.deadlines.total_s)

    async def through(self, tries: Tries, failure: AttemptFailed = RESET) -> list[str]:
        """Every attempt of a call that fails at all of them."""
        tried: Try | None = await tries.first()
        made = []
        while tried is not None:
            tries.under_way(tried)
            made.append(f"{tried.to.target.provider} {tried.why}".strip())
            self.breakers.ended(tried.permit, Ended("neutral", ""))
            tries.failed(tried.to, failure)
            tried = await tries.next()
        return made


USUAL = Retry(2, 0.2, 5.0)
NO_HEDGE = Hedge()


def scene(*targets: RouteTarget, retry: Retry = USUAL, hedge: Hedge = NO_HEDGE, total_s: float = 60.0) -> Scene:
    return Scene(*targets, retry=retry, hedge=hedge, total_s=total_s)


async def test_each_target_is_tried_as_often_as_the_route_says_before_the_next_one():
    it = scene(A, B)
    assert await it.through(it.tries()) == ["a", "a retry", "b fallback", "b retry"]
    assert it.clock.slept == [0.1, 0.1]  # a fresh target owes nobody a wait


async def test_what_will_not_be_answered_better_is_not_asked_again():
    it = scene(A, B)
    assert await it.through(it.tries(), WRONG) == ["a", "b fallback"]


async def test_a_target_that_asks_to_be_left_alone_is_tried_again_after_its_siblings_and_not_before_it_wants():
    it = scene(A, B)
    limited = AttemptFailed("status:429", "m", retryable=True, status=429, retry_after_s=2.0)
    assert await it.through(it.tries(), limited) == ["a", "b fallback", "a retry", "b retry"]
    assert sum(it.clock.slept) == pytest.approx(2.0, abs=0.1)


async def test_a_target_that_asks_for_more_than_is_waited_is_passed_over():
    it = scene(A, B)
    limited = AttemptFailed("status:429", "m", retryable=True, status=429, retry_after_s=30.0)
    assert await it.through(it.tries(), limited) == ["a", "b fallback"]


async def test_nothing_is_tried_that_the_calls_time_does_not_reach_for():
    it = scene(A, retry=Retry(3, 8.0, 8.0), total_s=3.0)
    assert await it.through(it.tries()) == ["a"]
    assert it.clock.slept == []


async def test_a_last_resort_is_tried_once():
    it = scene(A, B)
    assert await it.through(it.tries(last_resort=True)) == ["a"]


async def test_the_retry_budget_of_a_route_is_for_all_its_calls():
    it = scene(A, retry=Retry(2, 0.0, 5.0, share=0.1, per_second=0.0))
    it.pursuit.budgets["r"] = RetryBudget(0.0, it.clock.s)
    assert [len(await it.through(it.tries())) for _ in range(100)].count(2) in (9, 10)
    assert len(it.telemetry.spent) >= 90


async def test_a_target_that_answers_takes_what_another_has_failed_at_where_the_budget_is_used_up():
    """An outage of one must not take down what the other could do."""
    it = scene(A, B, retry=Retry(2, 0.0, 5.0, share=0.0, per_second=0.0))
    assert await it.through(it.tries()) == ["a"]  # nobody knows that b answers
    permit = await it.breakers.admit(B, "another", lease_s=1)
    assert permit is not None
    it.breakers.ended(permit, WENT)
    assert await it.through(it.tries()) == ["a", "b fallback"]


async def close_to_calls(it: Scene, to: RouteTarget) -> None:
    for _ in range(2):
        permit = await it.breakers.admit(to, "another", lease_s=1)
        assert permit is not None
        it.breakers.ended(permit, FAILED)
    assert not it.breakers.condition(to).admits


async def test_a_breaker_that_opens_while_a_call_is_under_way_is_passed_over():
    it = scene(A, B, C)
    tries = it.tries()
    await close_to_calls(it, B)
    assert await it.through(tries) == ["a", "a retry", "c fallback", "c retry"]


async def test_where_every_breaker_has_opened_since_the_plan_the_first_target_is_tried_all_the_same():
    """A call is worth one attempt, and nobody else finds out that the target is well again."""
    it = scene(A, B)
    tries = it.tries()
    await close_to_calls(it, A)
    await close_to_calls(it, B)
    first = await tries.first()
    assert (first.to, first.permit.state) == (A, "last_resort")


async def test_a_target_that_is_closed_by_hand_is_never_tried():
    it = scene(A)
    it.breakers.serve([A])
    tries = it.tries()
    await it.breakers.set("a/m", "open", "me", "")
    with pytest.raises(UpstreamFailed, match="closed by hand"):
        await tries.first()


async def test_where_all_rest_for_a_while_a_short_one_is_waited_for_and_after_a_long_one_the_first_is_tried_all_the_same():
    """One caller's request may have been too large for it: that shuts it to nobody else."""
    it = scene(A, B)
    assert await it.through(it.tries(wait_s=2.0)) == ["a", "a retry", "b fallback", "b retry"]
    assert it.clock.slept[0] == pytest.approx(2.0, abs=0.05)
    it.clock.slept.clear()
    permit = await it.breakers.admit(A, "another", lease_s=1)
    assert permit is not None
    it.breakers.ended(permit, Ended("neutral", "status:429", cool_s=30.0))
    tries = it.tries(wait_s=20.0)
    assert (await tries.first()).to == B  # which rests no more
    it = scene(A)
    permit = await it.breakers.admit(A, "another", lease_s=1)
    assert permit is not None
    it.breakers.ended(permit, Ended("neutral", "status:429", cool_s=30.0))
    tries = it.tries(wait_s=30.0)
    assert (await tries.first()).permit.state == "last_resort"
    assert it.clock.slept == []
    assert 30 <= (tries.resting("").retry_after_s or 0) <= 32


async def test_nobody_is_told_to_come_back_later_than_sdks_wait():
    it = scene(replace(A, breaker=BreakerRules(cool_cap_s=9999.0)))
    permit = await it.breakers.admit(it.route.targets[0], "another", lease_s=1)
    assert permit is not None
    it.breakers.ended(permit, Ended("neutral", "status:429", cool_s=9999.0))
    assert it.tries().resting(" It said so.").retry_after_s == 60
    assert it.tries().resting(" It said so.").message.endswith("It said so.")


async def test_a_permit_that_was_not_used_is_given_back():
    """A probe's permit is one for all calls: who does not send must not keep it."""
    it = scene(A)
    await close_to_calls(it, A)
    await it.breakers.refresh()
    it.clock.s += 400
    first = it.tries()
    assert (await first.first()).permit.state == "half_open"
    assert not it.breakers.condition(A).admits
    first.close()
    first.close()
    await it.breakers.refresh()
    assert it.breakers.condition(A).admits


async def test_beside_a_slow_attempt_stands_one_of_another_target_that_is_well():
    it = scene(A, B, C, hedge=Hedge(0.1, 1.0))
    tries = it.tries()
    await close_to_calls(it, B)
    first = await tries.first()
    tries.under_way(first)
    beside = await tries.beside(first.to)
    assert beside is not None
    assert (beside.to, beside.why) == (C, "hedge")
    assert await tries.beside(first.to) is not None  # one was there, and one call has put one in
    assert await tries.beside(first.to) is None
    assert not tries.others or [turn.to for turn in tries._turns] == [B]


async def test_beside_the_only_target_stands_the_same_one():
    it = scene(A, hedge=Hedge(0.1, 1.0))
    tries = it.tries()
    first = await tries.first()
    beside = await tries.beside(first.to)
    assert beside is not None
    assert (beside.to, beside.why) == (A, "hedge")


async def test_a_last_resort_has_nothing_beside_it():
    it = scene(A, B, hedge=Hedge(0.1, 1.0))
    tries = it.tries(last_resort=True)
    first = await tries.first()
    assert await tries.beside(first.to) is None


async def test_a_stream_goes_on_at_a_target_that_can_and_last_of_all_where_it_broke_off():
    a, c = target("a", continues=True), target("c", continues=True)
    it = scene(a, B, c)
    tries = it.tries()
    first = await tries.first()
    tries.under_way(first)
    tries.onward(first.to, RESET)
    onward = []
    while (tried := await tries.next("continuation")) is not None:
        tries.under_way(tried)
        onward.append((tried.to.target.provider, tried.why))
    assert onward == [("c", "continuation"), ("a", "continuation")]


async def test_streams_that_break_again_and_again_make_no_more_attempts_than_the_route_allows():
    """Each begins with the whole prompt: two targets that cut after a word must not play a call back and forth for ever."""
    a, b = target("a", continues=True), target("b", continues=True)
    it = scene(a, b, retry=Retry(2, 0.0, 5.0))
    tries = it.tries()
    tried: Try | None = await tries.first()
    made = []
    while tried is not None:
        tries.under_way(tried)
        made.append(tried.to.target.provider)
        tries.onward(tried.to, RESET)
        tried = await tries.next("continuation")
    assert made == ["a", "b", "a", "b"]


async def test_a_target_whose_refusal_is_for_good_does_not_go_on_with_its_own_stream():
    a, c = target("a", continues=True), target("c", continues=True)
    tries = scene(a, c).tries()
    first = await tries.first()
    tries.under_way(first)
    tries.onward(first.to, WRONG)
    assert [turn.to for turn in tries._turns] == [c]


async def test_budgets_of_routes_that_are_gone_are_forgotten():
    it = scene(A)
    it.tries()
    it.pursuit.forget(["another"])
    assert it.pursuit.budgets == {}


async def test_a_call_that_is_cancelled_while_it_waits_holds_nothing():
    it = scene(replace(A, breaker=BreakerRules(consecutive=1)))
    tries = it.tries()
    first = await tries.first()
    tries.under_way(first)
    it.breakers.ended(first.permit, Ended("neutral", ""))
    tries.failed(first.to, RESET)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    it.clock.sleep = lambda _seconds: never  # type: ignore[method-assign,assignment,return-value]
    waiting = asyncio.create_task(tries.next())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    tries.close()
    assert it.breakers.condition(A).admits


async def rests(it: Scene, to: RouteTarget, cool_s: float) -> None:
    """The target has asked another call to leave it alone for a while."""
    permit = await it.breakers.admit(to, "another", lease_s=1)
    assert permit is not None
    it.breakers.ended(permit, Ended("neutral", "status:429", cool_s=cool_s))


async def test_what_was_taken_from_the_retry_budget_for_a_target_that_cannot_be_had_is_given_back():
    it = scene(A, B)
    tries = it.tries()
    tries.under_way(await tries.first())
    await rests(it, B, 30)
    tries.failed(A, WRONG)
    budget = it.pursuit.budgets["r"]
    budget.left = 5.0
    assert await tries.next() is None
    assert budget.left == 5.0


async def test_a_target_that_has_been_tried_is_waited_for_as_long_as_it_rests():
    it = scene(A)
    tries = it.tries()
    tries.under_way(await tries.first())
    tries.failed(A, RESET)
    await rests(it, A, 3)
    again = await tries.next()
    assert again is not None
    assert (again.to, again.why) == (A, "retry")
    assert again.waited_s == pytest.approx(3, abs=0.1)


async def test_a_target_that_rests_is_not_asked_beside_another_and_keeps_its_turn():
    it = scene(A, B, hedge=Hedge(0.1, 1.0))
    tries = it.tries()
    tries.under_way(await tries.first())
    await rests(it, B, 3)
    assert await tries.beside(A) is None
    assert tries.others
    it.clock.s += 4
    tries.failed(A, WRONG)
    further = await tries.next()
    assert further is not None
    assert (further.to, further.why) == (B, "fallback")


async def test_an_attempt_beside_another_one_that_is_not_made_leaves_its_target_its_turn():
    it = scene(A, B, hedge=Hedge(0.1, 1.0))
    tries = it.tries()
    tries.under_way(await tries.first())
    second = await tries.beside(A)
    assert second is not None
    assert (second.to, tries.others) == (B, False)
    tries.not_beside(second)
    assert second.permit.returned
    assert tries.others
    tries.failed(A, WRONG)
    further = await tries.next()
    assert further is not None
    assert (further.to, further.permit.returned) == (B, False)


async def test_one_of_the_same_target_that_is_not_made_gives_it_no_further_turn():
    it = scene(A, hedge=Hedge(0.1, 1.0))
    tries = it.tries()
    tries.under_way(await tries.first())
    second = await tries.beside(A)
    assert second is not None
    tries.not_beside(second)
    assert second.permit.returned
    assert await tries.next() is None


async def test_what_was_taken_for_an_attempt_beside_another_one_that_cannot_be_had_or_is_not_made_is_given_back():
    it = scene(A, B, hedge=Hedge(0.1, 0.0))  # one there is, and no call puts one in
    tries = it.tries()
    tries.under_way(await tries.first())
    await rests(it, B, 3)
    assert await tries.beside(A) is None
    it.clock.s += 4
    second = await tries.beside(A)
    assert second is not None
    tries.not_beside(second)
    assert await tries.beside(A) is not None
    assert await tries.beside(A) is None


async def test_the_next_target_of_a_cascade_is_not_asked_beside_the_first():
    it = scene(A, B, hedge=Hedge(0.1, 1.0))
    tries = it.pursuit.of("call_x", it.route, Plan("cascade", it.tries()._plan.order), it.route.deadlines.total_s)
    tries.under_way(await tries.first())
    second = await tries.beside(A)
    assert second is not None
    assert (second.to, tries.others) == (A, True)


async def test_going_on_in_a_cascade_is_free_and_a_fallback_is_not():
    it = scene(A, B, retry=Retry(1, 0.0, 5.0, 0.0, 0.0))
    for why, made in (("cascade", B), ("fallback", None)):
        tries = it.tries()
        tries.under_way(await tries.first())
        further = await tries.next(why)
        assert (further and further.to) == made
        if further is not None:
            assert further.retries_left is None
