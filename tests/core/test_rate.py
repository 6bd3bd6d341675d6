"""Rates: a whole burst, then exactly one for each step, the exact time to wait, and an estimate that is put right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.rate import Spent, Take, all_taken, corrected, taken

S = 1_000_000_000


def take(amount: int = 1, most: int = 10, period_s: int = 10) -> Take:
    return Take("r", "key=a", "requests", most, period_s * S, amount)


def counted(full_at: int, asked: Take, now: int) -> int:
    after = taken(asked, full_at, now)
    assert isinstance(after, int), after
    return after


def test_as_many_as_allowed_may_come_at_once_and_then_one_for_each_step():
    full_at = 0
    for _ in range(10):
        full_at = counted(full_at, take(), 0)
    assert taken(take(), full_at, 0) == Spent(take(), S)
    assert taken(take(), full_at, S - 1) == Spent(take(), 1)
    assert isinstance(taken(take(), full_at, S), int)


def test_an_amount_above_all_that_is_allowed_goes_through_when_nothing_else_is_taken():
    """It could else never."""
    huge = take(amount=10**9)
    full_at = counted(0, huge, 0)
    assert taken(take(), full_at, 0) == Spent(take(), S)
    assert taken(huge, full_at, 1) == Spent(huge, 10 * S - 1)
    assert isinstance(taken(huge, full_at, 10 * S), int)


def test_a_clock_that_steps_forward_gives_no_more_than_the_burst():
    full_at, passed = 0, 0
    while isinstance(after := taken(take(), full_at, 10**9 * S), int):
        full_at, passed = after, passed + 1
    assert passed == 10


@pytest.mark.parametrize(("estimated", "real"), [(5, 0), (5, 3), (5, 5), (3, 10), (3, 50), (50, 3), (3, 99), (3, 1000)])
def test_an_estimate_that_is_put_right_leaves_what_the_real_amount_would_have(estimated, real):
    full_at = counted(0, take(estimated), 0)
    assert corrected(take(estimated), full_at, real, 0) == min(max(real, 0), 100) * S


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(1, 1000), st.integers(1, 100), st.integers(0, 2000), st.integers(0, 1000), st.integers(0, 100 * S))
def test_a_correction_leaves_to_a_few_nanoseconds_what_the_real_amount_would_have(most, period_s, estimated, real, full_at):
    asked = take(estimated, most, period_s)
    after = corrected(asked, counted(full_at, asked, full_at), min(real, most), full_at)
    assert abs(after - counted(full_at, take(min(real, most), most, period_s), full_at)) <= 2


def test_what_was_used_beyond_the_rate_is_owed_and_the_wait_says_so_exactly():
    """A rate of tokens holds over time, however much each call turns out to use."""
    asked = take(1)
    full_at = corrected(asked, counted(0, asked, 0), 35, 0)
    refused = taken(asked, full_at, 0)
    assert refused == Spent(asked, 26 * S)
    assert isinstance(taken(asked, full_at, 26 * S), int)


def test_a_clock_that_stepped_back_a_long_way_is_started_with_anew():
    full_at = counted(0, take(1), 10_000 * S)
    assert counted(full_at, take(1), 0) == S


@settings(derandomize=True, deadline=None, max_examples=300)
@given(most=st.integers(1, 50), asked=st.lists(st.tuples(st.integers(0, 2 * S), st.integers(0, 60)), max_size=80))
def test_no_period_holds_more_than_a_burst_and_what_comes_back_meanwhile_and_the_wait_is_exact(most, asked):
    full_at, now = 0, 0
    passed: list[tuple[int, int]] = []
    for gap, amount in asked:
        now += gap
        wanted = take(amount, most, 5)
        after = taken(wanted, full_at, now)
        if isinstance(after, int):
            full_at = after
            passed.append((now, min(amount, most)))
        else:
            assert isinstance(taken(wanted, full_at, now + after.wait_ns), int)
            assert isinstance(taken(wanted, full_at, now + after.wait_ns - 1), Spent)
    for start, _ in passed:
        assert sum(amount for at, amount in passed if start <= at < start + 5 * S) <= 2 * most


def test_all_of_several_rates_are_taken_or_none_of_them():
    """Two of one count are taken one after the other, and the first that does not allow it says how long to wait."""
    under_way = Take("jobs", "key=a", "concurrent", 2, 0)
    known = {("jobs", "key=a", "concurrent"): 1}

    def asked(*takes: Take) -> object:
        return all_taken(takes, lambda each: (each.rule, each.whose, each.measure), lambda count: known.get(count, 0), 0)

    assert asked(take(9), under_way) == {("r", "key=a", "requests"): 9 * S, ("jobs", "key=a", "concurrent"): 2}
    assert asked(take(9), take(1)) == {("r", "key=a", "requests"): 10 * S}
    assert asked(take(9), take(2)) == Spent(take(2), S)
    assert asked(under_way, under_way) == Spent(under_way, 0)
    assert asked() == {}
