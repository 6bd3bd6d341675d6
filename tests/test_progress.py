"""What is known of a call so far, and what it cost."""

import pytest

from gateway.call import AttemptEnd, Outcome, Target, Usage
from gateway.core.money import Price
from gateway.core.plan import RouteTarget, Try
from gateway.errors import AttemptFailed
from gateway.progress import Progress

PRICED = Try(RouteTarget(Target("p", "m"), Price(input=1_000_000, output=2_000_000)), 0)
UNPRICED = Try(RouteTarget(Target("q", "m"), None), 0)
USAGE = Usage(input_tokens=3, output_tokens=2)


def progress(*ends: tuple[Try, AttemptEnd, str, Usage | None]) -> Progress:
    case = Progress("call_x", "openai", "chat", received_ns=0)
    for tried, end, cause, usage in ends:
        case.start_attempt(tried, started_ns=1, waited_s=0.0)
        case.end_attempt(end, ended_ns=2, failure=AttemptFailed(cause, "m", retryable=True) if cause else None, usage=usage)
    return case


SUCCESS = (PRICED, AttemptEnd.SUCCEEDED, "", USAGE)


@pytest.mark.parametrize(("ends", "cost"), [
    ([], 0), ([SUCCESS], 7_000), ([(UNPRICED, AttemptEnd.SUCCEEDED, "", USAGE)], None), ([(PRICED, AttemptEnd.SUCCEEDED, "", None)], None),
    ([(PRICED, AttemptEnd.FAILED, "connect", None)], 0), ([(PRICED, AttemptEnd.FAILED, "status:503", None), SUCCESS], 7_000),
    ([(PRICED, AttemptEnd.FAILED, "timeout:headers", None)], None), ([(PRICED, AttemptEnd.REJECTED, "", None)], 0),
    ([(PRICED, AttemptEnd.CUT, "cut", None)], None), ([(PRICED, AttemptEnd.CANCELLED, "", None)], None),
], ids=["refused", "priced", "no price", "no usage", "never connected", "error status, then success", "sent and silent", "rejected", "cut", "client gone"])
def test_the_cost_is_known_or_said_to_be_unknown_and_never_zero_for_unknown(ends, cost):
    assert progress(*ends).cost_nusd() == cost


def test_attempts_are_numbered_in_the_order_they_ended():
    case = progress((PRICED, AttemptEnd.FAILED, "reset", None), SUCCESS)
    assert [(attempt.n, attempt.end) for attempt in case.attempts] == [(1, AttemptEnd.FAILED), (2, AttemptEnd.SUCCEEDED)]


def test_ending_an_attempt_twice_records_it_once():
    """A cancelled caller and its clean-up may both want to end it."""
    case = progress(SUCCESS)
    case.end_attempt(AttemptEnd.CANCELLED, ended_ns=3)
    assert len(case.attempts) == 1


def test_a_record_of_a_call_that_was_never_read_is_still_whole():
    record = Progress("call_x", "openai", "chat", received_ns=5).record(Outcome.REFUSED, ended_ns=6, status=400, code="invalid_request")
    assert (record.route, record.decision, record.attempts, record.cost_nusd, record.code) == ("", "", (), 0, "invalid_request")
