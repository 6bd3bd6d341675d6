"""Limits: exact over any window, per count, nothing taken where one of several is used up."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.decision import Limit
from gateway.core.rate import Rates

S = 1_000_000_000


def limit(requests: int, per_s: float, rule: str = "r") -> Limit:
    return Limit(rule, requests, per_s, ("key",))


def test_as_many_as_allowed_may_come_at_once_and_then_one_for_each_step():
    rates, ten = Rates(), limit(10, 10.0)
    assert [rates.take([(ten, ("a",))], 0) for _ in range(10)] == [None] * 10
    assert rates.take([(ten, ("a",))], 0) == (ten, S)
    assert rates.take([(ten, ("a",))], S - 1) == (ten, 1)
    assert rates.take([(ten, ("a",))], S) is None
    assert rates.take([(ten, ("b",))], 0) is None


def test_what_one_limit_refuses_is_counted_by_none():
    """Else a client that is refused by the narrow limit would use up the wide one."""
    rates, wide, narrow = Rates(), limit(2, 60.0, "wide"), limit(1, 60.0, "narrow")
    assert rates.take([(wide, ("a",)), (narrow, ("a",))], 0) is None
    refused = rates.take([(wide, ("a",)), (narrow, ("a",))], 0)
    assert refused is not None
    assert refused[0] is narrow
    assert rates.take([(wide, ("a",))], 0) is None


def test_a_clock_that_steps_back_makes_nobody_wait_longer_than_the_period():
    rates, one = Rates(), limit(1, 1.0)
    assert rates.take([(one, ("a",))], 1000 * S) is None
    refused = rates.take([(one, ("a",))], 0)
    assert refused is not None
    assert refused[1] <= S


def test_counts_are_bounded():
    rates = Rates(most=10)
    for number in range(100):
        rates.take([(limit(1, 1.0), (str(number),))], 0)
    assert repr(rates) == "Rates(counts=10)"


def test_names_that_callers_invent_push_out_no_other_rules_counts():
    """A session has any name that its caller gives it: a flood of them must not make room for more calls under another limit."""
    rates, spent, sessions = Rates(most=10), limit(1, 3600.0, "spent"), limit(1, 3600.0, "sessions")
    assert rates.take([(spent, ("a",))], 0) is None
    for number in range(100):
        rates.take([(sessions, (str(number),))], 0)
    assert rates.take([(spent, ("a",))], 0) is not None
    assert repr(rates) == "Rates(counts=10)"


@settings(derandomize=True, max_examples=200)
@given(requests=st.integers(1, 20), gaps=st.lists(st.integers(0, 2 * S), max_size=80))
def test_no_window_ever_holds_more_than_twice_what_is_allowed_and_the_wait_is_exact(requests, gaps):
    """GCRA with a burst of the whole limit: a window may hold the burst and what trickles in, never more."""
    rates, bound, now = Rates(), limit(requests, 5.0), 0
    passed = []
    for gap in gaps:
        now += gap
        refused = rates.take([(bound, ("a",))], now)
        if refused is None:
            passed.append(now)
        else:
            assert rates.take([(bound, ("a",))], now + refused[1] - 1) is not None or refused[1] <= 1
    for start in passed:
        within = [at for at in passed if start <= at < start + 5 * S]
        assert len(within) <= 2 * requests
