"""The breaker's table: every state with every event, the growth of its open time, permits, rests, clocks that step, and what an end tells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Attempt, AttemptEnd, Target
from gateway.core.breaker import (
    COOL_S,
    TABLE,
    Breaker,
    BreakerRules,
    Ended,
    Event,
    Pass,
    State,
    Step,
    after,
    badness,
    by_hand,
    cooling_s,
    diagram,
    ended_of,
    open_for_s,
    open_time_s,
    passes,
    probe_due,
)

S = 1_000_000_000
NOW = 1_700_000_000 * S
RULES = BreakerRules(open_s=5.0, open_cap_s=300.0, cool_cap_s=60.0)
LONGEST = 0.999_999_999


def step(event: Event, at_s: float = 0.0, rules: BreakerRules = RULES, **given: Any) -> Step:
    return Step(event, NOW + int(at_s * S), rules, **{"draw": LONGEST, **given})


def run(*steps: Step, breaker: Breaker | None = None) -> Breaker:
    """A breaker after these steps; `seen` is always what it was."""
    breaker = breaker or Breaker("alpha/one")
    for each in steps:
        breaker = after(breaker, replace(each, seen=breaker.changes))
    return breaker


def half_open(*holders: str, rules: BreakerRules = RULES, lease_s: float = 60.0) -> Breaker:
    claims = [step(Event.CLAIMED, 10, rules, holder=holder, lease_s=lease_s) for holder in holders]
    return run(step(Event.TRIPPED, 0, rules, cause="down"), *claims)


STATES = {
    State.CLOSED: Breaker("alpha/one"),
    State.OPEN: run(step(Event.TRIPPED, -100)),
    State.HALF_OPEN: half_open("p1"),
    State.FORCED_OPEN: run(step(Event.FORCED_OPEN)),
    State.FORCED_CLOSED: run(step(Event.FORCED_CLOSED)),
}


# ---- The table.


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [event for event in Event if event is not Event.PROVED])
def test_every_event_leads_where_the_table_says_and_what_is_not_there_changes_nothing(state, event):
    """With two probes wanted, the first success is not the last."""
    before = STATES[state]
    rules = replace(RULES, probes=2)
    now = after(before, step(event, 20, rules, seen=before.changes, holder="p2" if event is Event.CLAIMED else "p1", lease_s=5.0, cool_s=9.0))
    expected = TABLE.get((state, event))
    if expected is None:
        assert now is before
    else:
        assert now.state is expected
        assert now is not before


def test_a_change_of_state_is_counted_and_dated_and_anything_else_is_not():
    breaker = run(step(Event.TRIPPED, 1))
    assert (breaker.changes, breaker.since_ns) == (1, NOW + S)
    cooled = run(step(Event.COOLED, 2, cool_s=5.0), breaker=breaker)
    assert (cooled.changes, cooled.since_ns) == (1, NOW + S)
    assert run(step(Event.CLAIMED, 9, holder="p", lease_s=1.0), breaker=cooled).changes == 2


def test_the_documentation_shows_the_table():
    page = Path(__file__).parents[2] / "docs" / "resilience.md"
    assert diagram().splitlines()[:3] == ["stateDiagram-v2", "    [*] --> closed", "    closed --> open: tripped"]
    assert sum(line.count(",") + 1 for line in diagram().splitlines()[2:]) == len(TABLE)
    if page.exists():
        assert f"<!-- breaker diagram -->\n```mermaid\n{diagram()}\n```\n<!-- end -->" in page.read_text()


# ---- Opening.


def test_however_many_calls_fail_at_once_it_is_one_trip():
    once = run(step(Event.TRIPPED, 0, cause="down"))
    again = run(step(Event.TRIPPED, 1), step(Event.TRIPPED, 2), breaker=once)
    assert again is once
    assert (once.trips, once.cause, once.since_ns) == (1, "down", NOW)
    assert open_for_s(once, RULES, NOW) == pytest.approx(5)


def test_news_of_a_state_that_has_passed_is_no_news():
    """A worker whose word comes late must not open again what has opened and closed since."""
    breaker = run(*[step(Event.TRIPPED, 0), step(Event.CLAIMED, 10, holder="p", lease_s=9.0), step(Event.PROBE_SUCCEEDED, 11, holder="p")])
    assert breaker.state is State.CLOSED
    for event in (Event.TRIPPED, Event.RECOVERED):
        assert after(breaker, step(event, 12, seen=0)) is breaker
        assert after(breaker, step(event, 12, seen=3)) is not breaker
    assert after(run(step(Event.TRIPPED)), step(Event.ANSWERED, 1, seen=0)).until_ns != NOW + S


def test_the_open_time_doubles_with_each_trip_up_to_its_cap():
    longest = [open_time_s(RULES, trips, LONGEST) for trips in range(1, 9)]
    assert longest == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300])
    assert open_time_s(RULES, 10**9, LONGEST) == pytest.approx(300)
    assert open_time_s(RULES, 1, 0.0) == pytest.approx(0.5)
    assert open_time_s(replace(RULES, open_s=900.0), 1, LONGEST) == pytest.approx(300)


def test_a_probe_that_fails_is_one_more_trip_and_a_longer_time():
    breaker = half_open("p1")
    assert breaker.cause == "down"
    failed = run(step(Event.PROBE_FAILED, 11, holder="p1", cause="still down"), breaker=breaker)
    assert (failed.state, failed.trips, failed.cause, failed.permits) == (State.OPEN, 2, "still down", ())
    assert open_for_s(failed, RULES, NOW + 11 * S) == pytest.approx(10)


def test_calls_are_kept_away_until_a_probe_is_due():
    breaker = run(step(Event.TRIPPED))
    for at_s, due in ((0.0, False), (4.9, False), (5.1, True), (1e6, True)):
        assert probe_due(breaker, RULES, NOW + int(at_s * S)) is due
        assert not passes(breaker, RULES, NOW + int(at_s * S))
    early = step(Event.CLAIMED, 4.9, holder="p", lease_s=9.0)
    assert run(early, breaker=breaker) is breaker


def test_a_call_that_succeeds_all_the_same_makes_a_probe_due():
    breaker = run(step(Event.TRIPPED), step(Event.ANSWERED, 1))
    assert breaker.state is State.OPEN
    assert probe_due(breaker, RULES, NOW + S)


# ---- Probes.


def test_no_more_permits_are_out_than_probes_are_allowed():
    rules = replace(RULES, probes=2)
    breaker = half_open("p1", "p2", "p3", rules=rules)
    assert [each.holder for each in breaker.permits] == ["p1", "p2"]
    returned = run(step(Event.PROBE_RETURNED, 11, rules, holder="p1"), breaker=breaker)
    assert [each.holder for each in run(step(Event.CLAIMED, 12, rules, holder="p4", lease_s=9.0), breaker=returned).permits] == ["p2", "p4"]


def test_it_closes_once_as_many_probes_have_succeeded_as_are_wanted():
    """A permit is out for each success that is still missing, so that a half-open window has no more calls than it needs."""
    rules = replace(RULES, probes=2)
    breaker = run(step(Event.PROBE_SUCCEEDED, 11, rules, holder="p1"), breaker=half_open("p1", "p2", rules=rules))
    assert (breaker.state, breaker.succeeded) == (State.HALF_OPEN, 1)
    assert run(step(Event.CLAIMED, 12, rules, holder="p3", lease_s=9.0), breaker=breaker) is breaker
    closed = run(step(Event.PROBE_SUCCEEDED, 12, rules, holder="p2"), breaker=breaker)
    assert (closed.state, closed.permits, closed.succeeded, closed.cause) == (State.CLOSED, (), 0, "")
    assert closed.trips == 1, "one success does not make it forget how often it has opened"
    assert run(step(Event.RECOVERED, 13), breaker=closed).trips == 0


def test_a_probe_may_be_had_where_fewer_are_wanted_than_before():
    """A reload that lowers `probes` must not leave it half open for ever."""
    before = replace(RULES, probes=3)
    breaker = run(*[step(Event.PROBE_SUCCEEDED, 11, before, holder=holder) for holder in ("p1", "p2")],
                  breaker=half_open("p1", "p2", rules=before))
    assert probe_due(breaker, RULES, NOW + 12 * S)


@pytest.mark.parametrize("event", [Event.PROBE_SUCCEEDED, Event.PROBE_FAILED, Event.PROBE_RETURNED])
def test_a_probe_that_ends_after_its_time_changes_nothing(event):
    """Its breaker has opened again because of another probe, or its permit went to somebody else."""
    rules = replace(RULES, probes=2)
    opened = run(step(Event.PROBE_FAILED, 11, rules, holder="p1"), breaker=half_open("p1", "p2", rules=rules))
    assert run(step(event, 12, rules, holder="p2"), breaker=opened) is opened
    taken = run(step(Event.CLAIMED, 80, holder="p2", lease_s=60.0), breaker=half_open("p1"))
    assert [each.holder for each in taken.permits] == ["p2"]
    assert run(step(event, 81, holder="p1"), breaker=taken) is taken


def test_a_permit_whose_holder_died_is_free_when_its_lease_is_over():
    breaker = half_open("p1", lease_s=60.0)
    assert not probe_due(breaker, RULES, NOW + 69 * S)
    assert probe_due(breaker, RULES, NOW + 71 * S)
    assert breaker.permits == (Pass("p1", 60.0, NOW + 70 * S),)


# ---- Rests.


def test_a_target_that_asks_for_a_rest_gets_it_and_no_longer_than_is_allowed():
    breaker = run(step(Event.COOLED, cool_s=20.0))
    assert breaker.state is State.CLOSED
    assert cooling_s(breaker, RULES, NOW + 5 * S) == pytest.approx(15)
    assert not passes(breaker, RULES, NOW + 19 * S)
    assert passes(breaker, RULES, NOW + 21 * S)
    assert cooling_s(run(step(Event.COOLED, cool_s=1e9)), RULES, NOW) == pytest.approx(60)


def test_a_rest_is_never_made_shorter():
    breaker = run(step(Event.COOLED, cool_s=20.0))
    assert run(step(Event.COOLED, 1, cool_s=5.0), breaker=breaker) is breaker
    assert cooling_s(run(step(Event.COOLED, 1, cool_s=30.0), breaker=breaker), RULES, NOW + S) == pytest.approx(30)


@pytest.mark.parametrize("given_s", [0.0, -5.0, float("nan")])
def test_a_rest_of_no_time_is_none(given_s):
    assert run(step(Event.COOLED, cool_s=given_s)) == Breaker("alpha/one")


def test_no_probe_is_sent_to_a_target_that_rests():
    breaker = run(step(Event.COOLED, 4, cool_s=20.0), breaker=run(step(Event.TRIPPED)))
    assert not probe_due(breaker, RULES, NOW + 10 * S)
    assert run(step(Event.CLAIMED, 10, holder="p", lease_s=9.0), breaker=breaker) is breaker
    assert probe_due(breaker, RULES, NOW + 25 * S)


# ---- By hand.


def test_what_an_operator_says_holds_until_he_says_otherwise():
    opened = after(half_open("p1"), by_hand("open", now_ns=NOW, author="ada", note="moves house"))
    assert (opened.state, opened.author, opened.note, opened.permits, opened.until_ns) == (State.FORCED_OPEN, "ada", "moves house", (), None)
    for at_s in (0, 10**9):
        assert not passes(opened, RULES, NOW + at_s * S)
        assert not probe_due(opened, RULES, NOW + at_s * S)
    closed = after(opened, by_hand("close", now_ns=NOW, author="bob", note=""))
    assert passes(run(step(Event.TRIPPED), step(Event.COOLED, cool_s=50.0), breaker=closed), RULES, NOW)
    released = after(closed, by_hand("auto", now_ns=NOW + S, author="bob", note="done"))
    assert (released.state, released.trips, released.author, released.note) == (State.CLOSED, 0, "bob", "done")
    assert run(step(Event.TRIPPED, 2), breaker=released).author == ""


def test_a_second_word_replaces_the_first():
    opened = after(STATES[State.FORCED_OPEN], by_hand("open", now_ns=NOW, author="bob", note="longer"))
    assert (opened.author, opened.note, opened.changes) == ("bob", "longer", 1)


@pytest.mark.parametrize("given", [
    {"what": "ajar"}, {"what": "half_open"}, {"what": ""}, {"author": "a" * 257}, {"note": "n" * 4097},
])
def test_a_word_that_cannot_be_kept_is_refused(given):
    with pytest.raises(ValueError, match=r"close, auto|characters at most"):
        by_hand(given.pop("what", "open"), **{"now_ns": 1, "author": "ada", "note": "", **given})


# ---- Clocks.


@pytest.mark.parametrize("back_s", [3600, 86_400, 10**8])
def test_a_clock_that_is_set_back_far_closes_nobody_out(back_s):
    """What is farther away than it can be is over."""
    now = NOW - back_s * S
    assert probe_due(run(step(Event.TRIPPED)), RULES, now)
    assert probe_due(half_open("p1"), RULES, now)
    assert passes(run(step(Event.COOLED, cool_s=30.0)), RULES, now)


@pytest.mark.parametrize("back_s", [0.1, 30, 300, 350])
def test_a_clock_that_is_set_back_a_little_costs_no_more_than_the_cap(back_s):
    breaker = run(step(Event.TRIPPED))
    now = NOW - int(back_s * S)
    assert open_for_s(breaker, RULES, now) <= RULES.open_cap_s + 60
    assert probe_due(breaker, RULES, now + int((RULES.open_cap_s + 60) * S))


def test_a_permit_is_not_free_for_a_process_that_has_read_the_clock_a_little_earlier():
    breaker = half_open("p1", lease_s=60.0)
    for before_ms in (1, 500, 20_000):
        assert not probe_due(breaker, RULES, NOW + 10 * S - before_ms * 1_000_000)


# ---- Switched off.


def test_a_breaker_that_was_open_when_breakers_were_switched_off_keeps_nobody_away():
    off = replace(RULES, enabled=False)
    assert passes(run(step(Event.TRIPPED)), off, NOW)
    assert passes(half_open("p1"), off, NOW)
    assert not passes(STATES[State.FORCED_OPEN], off, NOW)
    assert not passes(run(step(Event.COOLED, cool_s=5.0)), off, NOW)


# ---- The least bad one.


def test_the_least_bad_target_is_the_one_that_opened_least_often_then_fails_least_then_is_ready_first():
    once, twice = run(step(Event.TRIPPED)), replace(run(step(Event.TRIPPED)), trips=2)
    order = [badness(*each) for each in (
        (STATES[State.CLOSED], 0.0, 0.0), (STATES[State.CLOSED], 0.0, 1e9), (STATES[State.CLOSED], 0.5, 0.0), (once, 0.2, 1.0),
        (once, 0.2, 2.0), (once, 1.0, 0.0), (once, 1.0, 1e9), (twice, 0.0, 0.0), (replace(twice, trips=10**4), 1.0, 1e9),
        (STATES[State.FORCED_OPEN], 0.0, 0.0))]
    assert order == sorted(order)
    assert len(set(order)) == len(order)


# ---- What an end tells.


def attempt(end: AttemptEnd = AttemptEnd.FAILED, cause: str = "", **given: Any) -> Attempt:
    return Attempt(1, Target("alpha", "one"), NOW, NOW + 9 * S, end, cause, **{"first_byte_ns": NOW + 2 * S, **given})


@pytest.mark.parametrize("cause", [
    "connect", "tls", "reset", "malformed", "cut", "stream_error", "status:500", "status:503", "status:302",
    "timeout:connect", "timeout:headers", "timeout:first_token", "timeout:idle", "timeout:total",
])
def test_what_is_the_targets_own_fault_is_a_failure(cause):
    for end in (AttemptEnd.FAILED, AttemptEnd.CUT):
        assert ended_of(attempt(end, cause)) == Ended("failure", cause)


@pytest.mark.parametrize(("end", "cause"), [
    (AttemptEnd.REJECTED, ""), (AttemptEnd.CANCELLED, ""), (AttemptEnd.CANCELLED, "reset"), (AttemptEnd.FAILED, "hedged"),
    (AttemptEnd.FAILED, "check:schema"), (AttemptEnd.FAILED, "not_accepted"), (AttemptEnd.FAILED, "status:404"), (AttemptEnd.FAILED, ""),
])
def test_what_says_nothing_of_the_target_is_neutral(end, cause):
    assert ended_of(attempt(end, cause)) == Ended("neutral", cause)


def test_a_429_is_no_failure_and_asks_for_a_rest():
    limited = attempt(cause="status:429", status=429)
    assert ended_of(limited, 7.5) == Ended("neutral", "status:429", cool_s=7.5)
    assert ended_of(limited) == Ended("neutral", "status:429", cool_s=COOL_S)
    assert ended_of(replace(limited, end=AttemptEnd.REJECTED)).cool_s == COOL_S


@pytest.mark.parametrize("cause", ["timeout:headers", "timeout:total", "timeout:idle"])
def test_a_client_in_a_hurry_closes_no_target_to_others(cause):
    assert ended_of(attempt(cause=cause), hurried=True) == Ended("neutral", cause)
    assert ended_of(attempt(cause="reset"), hurried=True).kind == "failure"


def test_how_quick_a_target_is_shows_where_its_answer_begins_before_it_is_whole():
    """The first byte of an answer that comes whole says how long the answer is."""
    done = AttemptEnd.SUCCEEDED
    assert ended_of(attempt(done, largest_gap_s=0.5)) == Ended("success", "", 2.0, 0.5)
    assert ended_of(attempt(done), streamed=True) == Ended("success", "", 2.0)
    assert ended_of(attempt(done)) == Ended("success", answered_s=2.0)
    assert ended_of(attempt(done, first_byte_ns=None), streamed=True) == Ended("success")
    assert ended_of(attempt(done, first_byte_ns=NOW - S), streamed=True).first_token_s == 0.0
