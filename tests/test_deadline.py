"""What a client says that it waits makes its call's time shorter, and our error is there before it gives up."""

from math import inf

import pytest
from multidict import CIMultiDict

from gateway.core.plan import Deadlines
from gateway.deadline import shortened, told, waits_s
from gateway.errors import InvalidRequest, UpstreamTimeout

USUAL = Deadlines(connect_s=5, headers_s=300, first_token_s=120, idle_s=60, total_s=600)


def after(*, stream: bool = False, **headers: str) -> Deadlines:
    return shortened(USUAL, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), stream=stream)


def test_a_client_that_says_nothing_waits_as_long_as_the_route():
    assert after() == USUAL


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_of_the_callers_own_is_for_the_whole_call(stream):
    made = after(stream=stream, x_lockgate_deadline_ms="10000")
    assert (made.total_s, made.silence_s, made.hurried) == (9.5, inf, True)
    assert after(stream=stream, x_lockgate_deadline_ms="10000000").total_s == 600


def test_what_an_sdk_waits_is_the_whole_of_a_plain_answer_and_a_streams_silence():
    """Each byte of a stream begins its wait anew: one that goes on for longer must not be cut."""
    assert (after(x_stainless_read_timeout="30").total_s, after(x_stainless_read_timeout="30").silence_s) == (29, inf)
    streamed = after(stream=True, x_stainless_read_timeout="30.0")
    assert (streamed.total_s, streamed.silence_s, streamed.hurried) == (600, 29, True)


def test_the_usual_wait_of_an_sdk_hurries_nobody():
    assert not after(x_stainless_read_timeout="600").hurried
    assert not after(stream=True, x_stainless_read_timeout="600").hurried


@pytest.mark.parametrize(("wait", "left"), [("0.01", 0.005), ("0.1", 0.08), ("1", 0.95), ("100", 99)])
def test_the_error_is_there_a_moment_before_the_client_gives_up(wait, left):
    assert after(x_stainless_read_timeout=wait).total_s == pytest.approx(left)


@pytest.mark.parametrize("value", ["", "0", "soon", "-5", "1.5", "1e3", " 5", "\N{ARABIC-INDIC DIGIT FIVE}", "9" * 16])
def test_a_deadline_that_cannot_be_read_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match="X-Lockgate-Deadline-Ms"):
        after(x_lockgate_deadline_ms=value)


@pytest.mark.parametrize("value", ["", "0", "None", "NaN", "inf", "-1", "0.0"])
def test_an_sdks_word_that_cannot_be_read_is_none(value):
    """It is not the caller who writes it."""
    assert after(x_stainless_read_timeout=value) == USUAL
    assert waits_s({"X-Stainless-Read-Timeout": value}) is None


def test_who_waits_for_its_turn_waits_no_longer_than_it_says():
    headers = {"X-Stainless-Read-Timeout": "30", "X-Lockgate-Deadline-Ms": "1000"}
    assert waits_s(headers) == 0.95
    assert waits_s({}) is None
    assert waits_s({"X-Lockgate-Deadline-Ms": "soon"}) is None


def test_what_a_call_has_waited_is_taken_off_what_its_client_waits_and_nothing_of_the_routes():
    """A client that is gone by the time of its answer must not be served, and not be charged."""
    told = CIMultiDict({"X-Lockgate-Deadline-Ms": "10000", "X-Stainless-Read-Timeout": "100"})
    assert shortened(USUAL, told, stream=False, used_s=4.0).total_s == 5.5
    assert shortened(USUAL, told, stream=True, used_s=4.0).silence_s == 95
    assert shortened(USUAL, CIMultiDict(), stream=False, used_s=4.0).total_s == 600
    for stream in (False, True):
        with pytest.raises(UpstreamTimeout, match="was up before"):
            shortened(USUAL, told, stream=stream, used_s=9.6)


def test_who_runs_out_of_time_is_told_by_name():
    assert told(USUAL, USUAL) == "the route's `total` deadline of 600 s"
    assert told(after(x_lockgate_deadline_ms="10000"), USUAL) == "the 9.5 s that the client's own deadline leaves"
    assert told(after(stream=True, x_stainless_read_timeout="30"), USUAL) == "the 29 s for which the client waits for a first byte"
