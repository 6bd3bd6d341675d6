"""What is known of a call so far, and what it cost."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.call import AttemptEnd, Outcome, Target, ToolUse, Usage
from gateway.core.budget import Granted
from gateway.core.decision import Allowed, Decision, Denied, Held, Reason, Verdict
from gateway.core.estimate import Bounds, Measure
from gateway.core.money import Price
from gateway.core.plan import RouteTarget
from gateway.errors import AttemptFailed
from gateway.progress import Progress, Receipt, Tally, Trying, id_of
from gateway.spending import Spending
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event

PRICED = RouteTarget(Target("p", "m"), Price(input=1_000_000, output=2_000_000))
UNPRICED = RouteTarget(Target("q", "m"), None)
USAGE = Usage(input_tokens=3, output_tokens=2)


def progress(*ends: tuple[RouteTarget, AttemptEnd, str, Usage | None]) -> Progress:
    case = Progress("call_x", "openai", "chat", received_ns=0)
    for tried, end, cause, usage in ends:
        trying = begun(case, tried)
        trying.receipt.usage = usage
        case.end_attempt(trying, end, ended_ns=2, failure=AttemptFailed(cause, "m", retryable=True) if cause else None)
    return case


def begun(case: Progress, to: RouteTarget, *, sent: bool = True) -> Trying:
    return case.start_attempt(Trying(case.begun_attempts + 1, to, started_ns=1, sent=sent))


SUCCESS = (PRICED, AttemptEnd.SUCCEEDED, "", USAGE)


@pytest.mark.parametrize(("ends", "cost"), [
    ([], 0), ([SUCCESS], 7_000), ([(UNPRICED, AttemptEnd.SUCCEEDED, "", USAGE)], None), ([(PRICED, AttemptEnd.SUCCEEDED, "", None)], None),
    ([(PRICED, AttemptEnd.FAILED, "connect", None)], 0), ([(PRICED, AttemptEnd.FAILED, "status:503", None), SUCCESS], 7_000),
    ([(PRICED, AttemptEnd.FAILED, "timeout:headers", None)], None), ([(PRICED, AttemptEnd.REJECTED, "", None)], 0),
    ([(PRICED, AttemptEnd.CUT, "cut", None)], None), ([(PRICED, AttemptEnd.CANCELLED, "", None)], None),
], ids=["refused", "priced", "no price", "no usage", "never connected", "error status, then success", "sent and silent", "rejected", "cut", "client gone"])
def test_the_cost_is_known_or_said_to_be_unknown_and_never_zero_for_unknown(ends, cost):
    assert progress(*ends).cost_nusd() == cost


BOUNDS = Bounds(max_output=1000)
BOUNDED = RouteTarget(Target("p", "m"), Price(input=1_000_000, output=2_000_000), BOUNDS)
FORGIVING = RouteTarget(Target("p", "m"), Price(input=1_000_000, output=2_000_000), replace(BOUNDS, bills_unanswered=False))


@pytest.mark.parametrize(("tried", "cause", "received", "streamed", "usage"), [
    (BOUNDED, "", 40, None, (51, 40)), (BOUNDED, "", 4000, None, (51, 1000)), (BOUNDED, "timeout:headers", None, None, (51, 1000)),
    (FORGIVING, "timeout:headers", None, None, (51, 0)), (BOUNDED, "", None, "hello", (51, 5)), (BOUNDED, "cut", None, "hello", (51, 261)),
    (BOUNDED, "cut", None, "", (51, 1000)), (FORGIVING, "cut", None, "hello", (51, 5)),
], ids=["answered", "long answer", "silent", "silent and unbilled", "stream", "cut stream", "cut at once", "cut and unbilled"])
def test_what_a_provider_does_not_say_is_estimated_from_what_came(tried, cause, received, streamed, usage):
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50)))
    trying = begun(case, tried)
    trying.receipt.answered = received is not None or streamed is not None
    trying.receipt.text_bytes = received or 0
    if streamed is not None:
        trying.receipt.answered = True
        trying.receipt.meter(Event({"choices": [{"delta": {"content": streamed}}]}))
    failure = AttemptFailed(cause, "m", retryable=True) if cause else None
    case.end_attempt(trying, AttemptEnd.FAILED if cause else AttemptEnd.SUCCEEDED, ended_ns=2, failure=failure)
    told = case.attempts[0].usage
    assert told is not None
    assert (told.input_tokens, told.output_tokens, told.estimated) == (*usage, True)
    assert case.attempts[0].cost_nusd == 1000 * usage[0] + 2000 * usage[1] > 0


@pytest.mark.parametrize(("asks", "model", "whole"), [(True, None, True), (False, None, False), (False, True, True), (True, False, False)])
def test_of_a_model_that_thinks_unseen_all_that_was_granted_counts_where_nobody_says_what_was_used(asks, model, whole):
    """A client that leaves after the first word must not have the thinking before it for nothing."""
    tried = RouteTarget(Target("p", "m"), Price(1, 1), replace(BOUNDS, hidden_reasoning=model))
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50, thinks=asks), Granted(1, 900)))
    trying = begun(case, tried)
    trying.receipt.answered = True
    trying.receipt.meter(Event({"choices": [{"delta": {"content": "word"}}]}))
    case.end_attempt(trying, AttemptEnd.CANCELLED, ended_ns=2)
    usage = case.attempts[0].usage
    assert usage is not None
    assert usage.output_tokens == (900 if whole else 260)


def test_what_was_never_sent_costs_nothing_however_it_ended():
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50)))
    trying = begun(case, BOUNDED, sent=False)
    case.end_attempt(trying, AttemptEnd.CANCELLED, ended_ns=2)
    trying = begun(case, BOUNDED, sent=False)
    trying.sending()
    case.end_attempt(trying, AttemptEnd.CANCELLED, ended_ns=2)
    assert [attempt.cost_nusd for attempt in case.attempts] == [0, 1000 * 51 + 2000 * 1000]


@pytest.mark.parametrize("reports", [[(5, 1), "more words"], [(5, 0)], [(0, 0)], [(5, 9), (0, 0)]], ids=["early", "no output", "nothing", "taken back"])
def test_a_report_that_does_not_fit_what_came_is_not_believed(reports):
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50)))
    trying = begun(case, BOUNDED)
    trying.receipt.answered = True
    trying.receipt.meter(Event({"choices": [{"delta": {"content": "four words or more"}}]}))
    for report in reports:
        if isinstance(report, str):
            trying.receipt.meter(Event({"choices": [{"delta": {"content": report}}]}))
        else:
            trying.receipt.meter(Event({"choices": []}, usage=Usage(*report)))
    case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=2)
    usage = case.attempts[0].usage
    assert usage is not None
    assert (usage.output_tokens, usage.estimated) == ((9, False) if (5, 9) in reports else (sum(len(each) for each in reports if isinstance(each, str)) + 18, True))


def test_an_answer_beyond_what_was_granted_is_booked_as_far_as_it_certainly_came():
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50), Granted(1, 7)))
    trying = begun(case, BOUNDED)
    trying.receipt.answered, trying.receipt.text_bytes = True, 8000
    case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=2)
    usage = case.attempts[0].usage
    assert usage is not None
    assert usage.output_tokens == 1000


def test_no_more_is_estimated_than_was_granted():
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50, choices=2), Granted(1, 7)))
    trying = begun(case, BOUNDED)
    case.end_attempt(trying, AttemptEnd.CANCELLED, ended_ns=2)
    usage = case.attempts[0].usage
    assert usage is not None
    assert usage.output_tokens == 14


def test_pictures_of_the_request_are_charged_beside_the_tokens_that_the_provider_counted():
    priced = RouteTarget(Target("p", "m"), Price(input=1_000_000, output=2_000_000, image=5_000_000))
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50, images=3)))
    trying = begun(case, priced)
    trying.receipt.usage = USAGE
    case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=2)
    assert case.cost_nusd() == 7_000 + 3 * 5_000


def test_attempts_are_numbered_in_the_order_they_ended():
    case = progress((PRICED, AttemptEnd.FAILED, "reset", None), SUCCESS)
    assert [(attempt.n, attempt.end) for attempt in case.attempts] == [(1, AttemptEnd.FAILED), (2, AttemptEnd.SUCCEEDED)]


def test_ending_an_attempt_twice_records_it_once():
    """A cancelled caller and its clean-up may both want to end it."""
    case = progress()
    trying = begun(case, PRICED)
    for _ in range(2):
        case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=2)
        case.end_attempts(AttemptEnd.CANCELLED, ended_ns=3)
    assert [attempt.end for attempt in case.attempts] == [AttemptEnd.SUCCEEDED]


def test_of_two_attempts_beside_each_other_the_record_tells_in_the_order_they_began_and_what_the_one_that_delivered_used():
    case = progress()
    first, second = begun(case, PRICED), begun(case, PRICED)
    second.receipt.usage = USAGE
    case.end_attempt(second, AttemptEnd.SUCCEEDED, ended_ns=2)
    case.end_attempt(first, AttemptEnd.CANCELLED, ended_ns=3, failure=AttemptFailed("hedged", "m", retryable=False))
    record = case.record(Outcome.COMPLETED, ended_ns=4, status=200)
    assert [(each.n, each.end) for each in record.attempts] == [(1, AttemptEnd.CANCELLED), (2, AttemptEnd.SUCCEEDED)]
    assert record.usage == USAGE


def test_what_is_spent_counts_all_that_was_set_aside_while_an_attempt_is_under_way():
    """A further attempt comes on top of the one that runs, whatever that costs in the end."""
    case = Progress("call_x", "openai", "chat", received_ns=0, spending=Spending({}, Measure(50), Granted(900, 7)))
    trying = begun(case, PRICED)
    assert case.spent_nusd == 900
    trying.receipt.usage = USAGE
    case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=2)
    assert case.spent_nusd == 7000


def test_a_record_of_a_call_that_was_never_read_is_still_whole():
    record = Progress("call_x", "openai", "chat", received_ns=5).record(Outcome.REFUSED, ended_ns=6, status=400, code="invalid_request")
    assert (record.route, record.decision, record.attempts, record.cost_nusd, record.code) == ("", "", (), 0, "invalid_request")


def decision(kind: type[Decision], rule: str | None = None, **more: Any) -> Decision:
    base: dict[str, Any] = {"reasons": (), "labels": (), "bundle": "sha256:x"}
    return kind(rule, None, None, **{**base, **more})


def reason(rule: str, verdict: Verdict = "matched") -> Reason:
    return Reason(rule, "log", verdict, "a.toml:1", "")


def test_what_is_decided_before_the_answer_and_after_it_is_kept_apart():
    case = progress()
    case.decided(decision(Allowed, labels=("seen",), reasons=(reason("before"),)))
    case.answered = True
    case.decided(decision(Denied, "late", labels=("secret", "seen"), reasons=(reason("after"), reason("other", "not_matched"))))
    case.decided(decision(Allowed))
    record = case.record(Outcome.COMPLETED, ended_ns=6, status=200)
    assert (record.decision, record.rule, record.bundle) == ("allow", "", "sha256:x")
    assert [told["rule"] for told in record.reasons] == ["before"]
    assert [(told["rule"], [each["rule"] for each in told["reasons"]]) for told in record.verdicts] == [("late", ["after"])]
    assert (record.labels, record.answer_labels) == (("seen", "secret"), ("secret", "seen"))


@pytest.mark.parametrize(("before", "after", "rule"), [
    ([], [], None), ([Allowed], [], "b0"), ([Allowed, Held], [Allowed], "b1"), ([Held], [Denied, Allowed, Denied], "a0"), ([Denied], [Denied], "b0")])
def test_the_header_names_the_strictest_decision_and_the_first_of_its_kind(before, after, rule):
    case = progress()
    for n, kind in enumerate(before):
        case.decided(decision(kind, f"b{n}"))
    case.answered = True
    for n, kind in enumerate(after):
        case.decided(decision(kind, f"a{n}"))
    assert (case.strictest.rule if case.strictest else None) == rule


def test_why_a_tool_was_not_offered_is_on_record_beside_why_the_call_was_let_through():
    case = progress()
    case.decided(decision(Allowed, reasons=(reason("let"),)))
    case.offers.append(decision(Denied, "no", reasons=(reason("no"),), phase="tool_call", subject="shell"))
    record = case.record(Outcome.COMPLETED, ended_ns=6, status=200)
    assert [(told["rule"], told.get("offered"), told.get("subject")) for told in record.reasons] == [("let", None, None), ("no", False, "shell")]
    assert record.decision == "allow"


def test_a_decision_that_let_it_pass_without_a_word_leaves_no_verdict():
    case = progress()
    case.answered = True
    for verdict in ("not_matched", "matched", "error"):
        case.decided(decision(Allowed, reasons=(reason(verdict, verdict),)))
    record = case.record(Outcome.COMPLETED, ended_ns=6, status=200)
    assert [told["reasons"][0]["rule"] for told in record.verdicts] == ["matched", "error"]


@pytest.mark.parametrize(("begun", "streams", "withheld", "outcome"), [
    (False, False, False, Outcome.REFUSED), (True, False, False, Outcome.FAILED), (True, True, False, Outcome.CUT),
    (True, False, True, Outcome.WITHHELD), (True, True, True, Outcome.WITHHELD)])
def test_what_an_error_makes_of_a_call_depends_on_how_far_it_came(begun, streams, withheld, outcome):
    case = progress()
    case.begun, case.withheld, case.tally = begun, withheld, Tally(None) if streams else None
    assert case.outcome_of_failure is outcome


def test_a_receipt_has_what_came_and_a_tally_what_went_out():
    """What a gate holds back was paid for and is not part of the answer."""
    receipt, tally = Receipt(), Tally(Assembler())
    receipt.meter(Event({"choices": []}, usage=USAGE))
    receipt.meter(Event())
    assert (receipt.stated, tally.finish_reasons) == (USAGE, [])
    for _ in range(200):
        tally.add(Event({"choices": [{"index": 0, "delta": {"content": "a"}}]}, finish_reason="stop"))
    tally.add(Event())
    assert len(tally.finish_reasons) == 128
    assert tally.assembler is not None
    assert tally.assembler.body()["choices"][0]["message"]["content"] == "a" * 200
    Tally(None).add(Event({"choices": []}))


def test_an_attempt_that_is_cut_costs_what_the_stream_had_said_by_then():
    case = progress()
    trying = begun(case, PRICED)
    trying.receipt.usage = USAGE
    case.end_attempt(trying, AttemptEnd.CUT, ended_ns=2)
    assert case.cost_nusd() == 7_000


def test_tool_calls_and_results_are_part_of_the_record():
    case = progress()
    use = ToolUse("call_x", "c1", "pay", "model", {}, released=True, at_ns=5)
    case.uses.append(use)
    case.results["c0"] = "done"
    record = case.record(Outcome.COMPLETED, ended_ns=6, status=200)
    assert (record.tool_uses, record.tool_results) == ((use,), (("c0", "done"),))


def decided(kind: type[Allowed | Denied], **said: Any) -> Allowed | Denied:
    return kind(**{"rule": None, "message": None, "remedy": None, "reasons": (), "labels": (), "bundle": "", **said})


def test_what_rules_take_off_the_session_is_on_record_where_they_let_it_pass_and_the_call_itself_has_not_put_it_on() -> None:
    case = Progress("call_1", "openai", "chat", 1)
    case.decided(decided(Allowed, labels=("own",), unlabels=("a", "own")))
    case.decided(decided(Denied, unlabels=("never",)))
    assert list(case.unlabels) == ["a"]
    case.begun = case.answered = True  # from here on the store knows of those
    case.decided(decided(Allowed, unlabels=("b", "a")))
    case.decided(decided(Denied, unlabels=("never",)))
    assert list(case.unlabels) == ["b", "a"]
    record = case.record(Outcome.COMPLETED, ended_ns=2, status=200)
    assert (record.unlabels, record.answer_unlabels) == (("a", "own"), ("b", "a"))


@pytest.mark.parametrize(("body", "found"), [({"id": "x"}, "x"), ({}, ""), ({"id": None}, ""), ({"id": 5}, ""), ({"id": "x" * 1001}, "")])
def test_the_id_of_an_answer_is_a_text_of_a_bounded_length(body: dict[str, Any], found: str) -> None:
    """A provider may write anything there."""
    assert id_of(body) == found


def test_a_stream_has_the_id_of_its_first_piece_that_has_one() -> None:
    tally = Tally(None)
    pieces: list[dict[str, Any] | None] = [None, {"choices": []}, {"id": "first"}, {"id": "second"}]
    for body in pieces:
        tally.add(Event(body=body))
    assert tally.answer_id == "first"
