"""What is counted of a target: two sliding windows, failures in a row, and what makes one too many."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.breaker import BreakerRules, Ended
from gateway.core.breaker_window import Window, slowness

RULES = BreakerRules(window_s=30.0, calls=10, failures=0.5, consecutive=5, slow=0.8, slow_first_token_s=2.0, slow_gap_s=1.0)
WELL, DOWN, NEUTRAL = Ended("success"), Ended("failure", "reset"), Ended("neutral", "status:404")
QUICK, SLOW, HALTING = Ended("success", "", 0.1, 0.1), Ended("success", "", 3.0), Ended("success", "", 0.1, 5.0)


def fed(*outcomes: Ended, rules: BreakerRules = RULES, at_s: float = 100.0) -> tuple[Window, list[str]]:
    window = Window(rules.window_s)
    return window, [window.add(each, rules, at_s) for each in outcomes]


def test_so_many_failures_in_a_row_are_too_many_however_few_calls_there_are():
    window, said = fed(*[DOWN] * 5)
    assert said == ["", "", "", "", "5 calls in a row failed, the last one with reset"]
    assert repr(window) == "Window(calls=5, failures=5, slow=0, in_a_row=5, streak=0)"
    assert not any(fed(*[DOWN] * 4, WELL, *[DOWN] * 4)[1][:8])


def test_a_share_of_failures_is_too_much_once_there_are_enough_calls():
    _window, said = fed(*[WELL, DOWN] * 5)
    assert said == [""] * 9 + ["5 of 10 calls failed, the last one with reset"]
    assert not any(fed(*[WELL, WELL, DOWN] * 20)[1])


def test_a_success_never_opens_a_breaker_unless_it_is_slow():
    assert not any(fed(*[WELL] * 20, rules=replace(RULES, failures=0.0))[1])


def test_a_share_of_slow_answers_is_too_much_once_there_are_enough():
    _window, said = fed(*[SLOW] * 10)
    assert said == [""] * 9 + ["10 of 10 answers were slow, the last one with its first token after 3 s"]
    assert fed(QUICK, QUICK, *[HALTING] * 8)[1][-1] == "8 of 10 answers were slow, the last one with a gap of 5 s"
    assert not any(fed(QUICK, QUICK, QUICK, *[HALTING] * 9)[1])


def test_answers_that_were_not_measured_make_no_share_of_slow_ones_smaller():
    assert fed(*[WELL] * 50, *[SLOW] * 10)[1][-1] != ""


def test_without_limits_nothing_is_slow():
    calm = replace(RULES, slow_first_token_s=None, slow_gap_s=None)
    assert not any(fed(*[SLOW, HALTING] * 20, rules=calm)[1])
    assert slowness(Ended("success", "", None, None), RULES) == ""


def test_what_is_neutral_is_not_counted():
    window, said = fed(*[DOWN] * 4, *[NEUTRAL] * 5, DOWN)
    assert said[:9] == [""] * 9
    assert said[9] != "", "a neutral end does not break a row of failures either"
    assert window.counts(100.0) == (5, 5, 0)


def test_what_is_older_than_the_window_is_forgotten():
    window, _said = fed(*[WELL] * 3, DOWN, SLOW)
    assert window.counts(126.9) == (5, 1, 1)
    assert window.counts(131.0) == (0, 0, 0)
    assert window.counts(10**9) == (0, 0, 0)


def test_a_fresh_start_forgets_outcomes_and_not_how_quick_the_target_is():
    window, _said = fed(DOWN, QUICK)
    window.clear()
    assert (window.counts(100.0), window.in_a_row, window.streak) == ((0, 0, 0), 0, 0)
    assert (window.first_token_s, window.measured_at_s) == (0.1, 100.0)


def test_the_time_of_a_whole_answer_is_measured_too():
    window, _said = fed(Ended("success", answered_s=2.0))
    assert (window.answered_s, window.first_token_s, window.measured_at_s) == (2.0, None, 100.0)


def test_the_time_to_the_first_token_is_a_moving_average():
    window, _said = fed(WELL)
    assert window.first_token_s is None
    window.add(Ended("success", "", 1.0), RULES, 101.0)
    window.add(Ended("success", "", 2.0), RULES, 102.0)
    window.add(Ended("success", "", None, 0.5), RULES, 103.0)
    assert window.first_token_s == pytest.approx(1.2)
    assert window.measured_at_s == 102.0


def test_a_streak_of_successes_ends_with_a_failure():
    window, _said = fed(WELL, WELL, DOWN, WELL)
    assert (window.streak, window.in_a_row) == (1, 0)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([WELL, DOWN, SLOW, QUICK, NEUTRAL]), st.sampled_from([0.0, 0.5, 3.0, 7.0, 29.0, 100.0])), max_size=60))
def test_the_counts_are_those_of_the_calls_in_the_window_to_a_tenth_of_it(calls):
    window, now_s, seen = Window(30.0), 50.0, []
    for ended, wait_s in calls:
        now_s += wait_s
        window.add(ended, RULES, now_s)
        seen.append((int(now_s / 3.0), ended))
        lately = [each for at, each in seen if at > int(now_s / 3.0) - 10]
        assert window.counts(now_s) == (
            sum(each.kind != "neutral" for each in lately), lately.count(DOWN), lately.count(SLOW))


def test_a_million_calls_take_no_more_room_than_ten():
    window, dice = Window(30.0), random.Random(5)
    for n in range(20_000):
        window.add(dice.choice([WELL, QUICK, SLOW]), RULES, n / 100)
    assert len(window._buckets) == 10
    assert window.counts(200.0)[0] <= 3000
