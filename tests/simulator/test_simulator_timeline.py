"""Where a time line is at a moment, and which time lines there cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.faults import Fault
from gateway.simulator.match import Match
from gateway.simulator.timeline import NO_TIMELINE, Moment, Timeline, TimelineStep

BROKEN, SLOW = TimelineStep(Fault(status=503), for_s=20.0), TimelineStep(Fault(delay_first_token_s=2.0), for_s=10.0)


@pytest.mark.parametrize(("elapsed_s", "moment"), [
    (0.0, Moment(BROKEN, 0, 20.0)), (19.5, Moment(BROKEN, 0, 0.5)), (20.0, Moment(SLOW, 1, 10.0)), (29.0, Moment(SLOW, 1, 1.0)),
    (30.0, Moment(None, 2, None)), (1e9, Moment(None, 2, None)),
])
def test_steps_follow_one_another_and_then_it_behaves(elapsed_s, moment):
    assert Timeline((BROKEN, SLOW)).at(elapsed_s) == moment


def test_a_last_step_may_last_for_ever():
    dead = TimelineStep(refuse=True)
    assert Timeline((BROKEN, dead)).at(1e9) == Moment(dead, 1, None)


def test_repeated_steps_begin_again_and_each_round_has_numbers_of_its_own():
    line = Timeline((BROKEN, SLOW), repeat=True)
    assert [line.at(elapsed_s) for elapsed_s in (0.0, 29.0, 30.0, 55.0)] == [
        Moment(BROKEN, 0, 20.0), Moment(SLOW, 1, 1.0), Moment(BROKEN, 2, 20.0), Moment(SLOW, 3, 5.0)]


@given(st.lists(st.floats(0.001, 3600.0), min_size=1, max_size=6), st.floats(0.0, 1e7))
def test_a_repeated_time_line_is_always_in_a_step_that_goes_on(lengths, elapsed_s):
    """Sums of floats do not come out even; a moment between two rounds would make who follows it wait for ever or not at all."""
    line = Timeline(tuple(TimelineStep(for_s=length) for length in lengths), repeat=True)
    moment = line.at(elapsed_s)
    assert moment.step in line.steps
    assert moment.left_s is not None
    assert moment.step.for_s is not None
    assert 0 < moment.left_s <= moment.step.for_s


def test_a_rounding_error_at_the_end_of_a_round_is_the_beginning_of_the_next():
    line = Timeline(tuple(TimelineStep(for_s=length) for length in (12.2, 10.4, 25.4)), repeat=True)
    assert line.at(47.99999999999999) == Moment(line.steps[0], 3, 12.2)


def test_no_time_line_is_well_for_ever():
    assert NO_TIMELINE.at(0.0) == Moment(None, 0, None)
    assert not NO_TIMELINE.refuses


@pytest.mark.parametrize(("make", "words"), [
    (lambda: TimelineStep(for_s=0.0), "above 0"), (lambda: TimelineStep(for_s=float("nan")), "above 0"),
    (lambda: TimelineStep(Fault(hang=True), refuse=True), "stands alone"),
    (lambda: TimelineStep(match=Match("a"), refuse=True), "stands alone"),
    (lambda: Timeline((TimelineStep(), BROKEN)), "step 1 has no `for`"),
    (lambda: Timeline((BROKEN, TimelineStep()), repeat=True), "repeat needs"), (lambda: Timeline(repeat=True), "repeat needs"),
])
def test_what_cannot_be_played_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
