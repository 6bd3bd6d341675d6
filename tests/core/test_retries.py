"""How long is waited before another try, and how many tries a route may make at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.plan import Retry
from gateway.core.retries import RetryBudget, backoff_s

USUAL = Retry(2, base_s=0.25, cap_s=5.0)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_wait_grows_with_full_jitter_and_never_over_the_cap(earlier, jitter):
    wait = backoff_s(Retry(99, base_s=0.25, cap_s=5.0), earlier, jitter, None)
    assert wait is not None
    assert 0 <= wait <= min(5.0, 0.25 * 2.0 ** (min(earlier, 40) - 1))


def test_a_provider_that_asks_for_time_gets_at_least_that():
    assert backoff_s(USUAL, 1, 0.5, 2.0) == 2.0
    assert backoff_s(Retry(2, base_s=4.0, cap_s=5.0), 1, 0.75, 2.0) == 3.0


def test_a_provider_that_asks_for_more_than_the_cap_is_not_waited_for():
    """The caller is better served by the next target than by a wait of a minute."""
    assert backoff_s(USUAL, 1, 0.5, 60.0) is None


def test_the_first_retry_waits_at_most_the_base():
    assert backoff_s(USUAL, 1, 0.999, None) == pytest.approx(0.25, rel=0.01)


def spend(budget: RetryBudget, retry: Retry, now_s: float) -> int:
    taken = 0
    while budget.take(retry, now_s):
        taken += 1
    return taken


def test_an_outage_gets_a_fifth_of_the_traffic_and_a_few_a_second_more_after_what_was_saved_up():
    budget = RetryBudget.full(USUAL, 0.0)
    assert spend(budget, USUAL, 0.0) == 30
    for number in range(1000):
        budget.call(USUAL, 0.0, number / 1000)
    assert spend(budget, USUAL, 1.0) == 30  # what is not used is lost: an outage must not meet an hour's savings
    taken = 0
    for number in range(1000):
        budget.call(USUAL, 0.0, 1.0 + number / 100)
        taken += spend(budget, USUAL, 1.0 + number / 100)
    assert 225 <= taken <= 231  # 1000 calls in 10 s


def test_a_route_without_a_budget_never_tries_again():
    none = Retry(5, base_s=0.25, cap_s=5.0, share=0.0, per_second=0.0)
    budget = RetryBudget.full(none, 0.0)
    budget.call(none, 0.0, 1.0)
    assert not budget.take(none, 1e6)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    budget = RetryBudget.full(USUAL, 100.0)
    spend(budget, USUAL, 100.0)
    assert not budget.take(USUAL, 50.0)
    assert not budget.take(USUAL, 50.0)


def test_what_was_taken_and_not_used_is_there_again_and_no_more_than_fits():
    budget = RetryBudget.full(USUAL, 0.0)
    budget.give_back(USUAL)
    assert budget.left == 30
    assert budget.take(USUAL, 0.0)
    budget.give_back(USUAL)
    assert spend(budget, USUAL, 0.0) == 30


def test_hedges_are_a_share_of_the_calls_and_the_first_may_be_had_at_once():
    budget = RetryBudget.full(USUAL, 0.0)
    assert budget.take_hedge()
    assert not budget.take_hedge()
    budget.give_back_hedge()  # it was not made
    assert budget.take_hedge()
    assert not budget.take_hedge()
    for _ in range(100):
        budget.call(USUAL, 0.05, 0.0)
    assert sum(budget.take_hedge() for _ in range(10)) in (4, 5)  # the sum of a hundred twentieths may be a hair below 5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=300))
def test_no_run_of_calls_and_tries_makes_more_than_was_put_in(steps):
    budget, now_s, calls, taken = RetryBudget.full(USUAL, 0.0), 0.0, 0, 0
    for call, later_s in steps:
        now_s += later_s
        if call:
            calls += 1
            budget.call(USUAL, 0.0, now_s)
        else:
            taken += budget.take(USUAL, now_s)
    assert taken <= 30 + 0.2 * calls + 3.0 * now_s + 1e-6
