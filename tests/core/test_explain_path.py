"""The way of a call is told from its record: what was planned, what was tried and why, what the client got; nothing is made up."""

from typing import Any

import pytest

from gateway.core.explain import explain
from gateway.core.explain_path import kind_of, path_of

MS = 1_000_000


def call(*attempts: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {"id": "call_1", "received_ns": 0, "ended_ns": 900 * MS, "outcome": "completed", "status": 200, "code": None, "message": None,
            "plan": None, "part_of": None, "attempts": list(attempts), **given}


def attempt(n: int, **given: Any) -> dict[str, Any]:
    return {"n": n, "target": "alpha/small", "why": None, "started_ns": 100 * n * MS, "ended_ns": 100 * n * MS + 50 * MS, "end": "succeeded",
            "cause": None, "message": None, "status": 200, "first_byte_ns": None, "waited_s": 0.0, "largest_gap_s": None, "breaker": "closed",
            "retries_left": None, "usage": None, "cost_usd": "0.1", **given}


def part(**given: Any) -> dict[str, Any]:
    return {"id": "call_2", "labels": ["mirror"], "target": "beta/large", "outcome": "completed", "received_ns": 20 * MS, "ended_ns": 140 * MS,
            "cost_usd": "0.02", **given}


def said(*attempts: dict[str, Any]) -> list[str]:
    return [tried["said"] for tried in path_of(call(*attempts), ())["attempts"]]


USAGE = {"output_tokens": 42, "estimated": True}


@pytest.mark.parametrize(("tried", "expected"), [
    (attempt(2, why="retry", waited_s=0.2), "retry after 200 ms"),
    (attempt(2, why="fallback"), "fallback"),
    (attempt(2, why="cascade"), "cascade: the answer of attempt 1 was not good enough"),
    (attempt(2, why="continuation"), "continuation after 42 tokens of attempt 1"),
    (attempt(2), "the same target again"),
    (attempt(2, target="beta/large", waited_s=0.05), "another target after 50 ms"),
])
def test_an_attempt_says_why_it_was_made(tried: dict[str, Any], expected: str) -> None:
    """Where the record is older than the reasons, it says what can be seen."""
    assert said(attempt(1, usage=USAGE | {"estimated": False}), tried) == ["first", expected]


def test_a_stream_of_which_nobody_knows_how_much_came_is_continued_all_the_same() -> None:
    """There is no usage of an attempt that broke off, or one that is the most that it may have been."""
    for usage in (None, USAGE):
        assert said(attempt(1, usage=usage), attempt(2, why="continuation")) == ["first", "continuation of attempt 1"]


def test_a_hedge_stands_beside_the_attempt_that_was_under_way() -> None:
    """Which is not the one before it where that had failed, and may still be under way."""
    slow, failed = attempt(1, ended_ns=800 * MS), attempt(2, why="hedge", end="failed")
    assert said(slow, failed, attempt(3, why="hedge")) == ["first", "hedge beside attempt 1", "hedge beside attempt 1"]
    assert said(attempt(1, ended_ns=None), attempt(2, why="hedge"))[1] == "hedge beside attempt 1"
    assert said(attempt(1), attempt(2, why="hedge"))[1] == "hedge beside attempt 1"  # a clock that was set: it stood beside something


def test_an_attempt_has_its_moments_after_the_arrival_of_the_call() -> None:
    told = path_of(call(attempt(1, first_byte_ns=120 * MS, usage=USAGE, breaker="half_open", retries_left=2.5, cause="status:500",
                                message="x" * 201, largest_gap_s=0.25)), ())["attempts"][0]
    assert {name: told[name] for name in ("at_ms", "ms", "first_byte_ms", "output_tokens", "estimated")} == {
        "at_ms": 100.0, "ms": 50.0, "first_byte_ms": 20.0, "output_tokens": 42, "estimated": True}
    assert (told["breaker"], told["retries_left"], told["largest_gap_s"], told["cause"]) == ("half_open", 2.5, 0.25, "status:500")
    assert told["message"] == "x" * 200 + "…"


def test_an_open_attempt_has_no_end() -> None:
    told = path_of(call(attempt(1, end=None, ended_ns=None), ended_ns=None, outcome="open"), ())
    assert (told["attempts"][0]["ms"], told["answer"]) == (None, {"at_ms": None, "said": "the call has not ended yet"})


def test_the_task_is_told_with_the_classifier_that_said_it() -> None:
    """A word from the cache had no call of its own."""
    plan = {"strategy": "priority", "order": [], "task": "code"}
    asked = part(labels=["checked", "classifier"])
    assert path_of(call(plan=plan), [part(), asked])["task"] == {"name": "code", "classifier": {
        "call": "call_2", "target": "beta/large", "outcome": "completed", "ms": 120.0, "cost_usd": "0.02"}}
    assert path_of(call(plan=plan), [])["task"] == {"name": "code", "classifier": None}
    assert path_of(call(plan={"strategy": "priority"}), [asked])["task"] is None


def test_parts_are_told_by_their_kind() -> None:
    told = path_of(call(part_of="call_0"), [part(), part(id="call_3", labels=[], ended_ns=None, outcome="open", cost_usd=None)])
    assert [(each["call"], each["kind"], each["at_ms"], each["ms"]) for each in told["parts"]] == [
        ("call_2", "mirror", 20.0, 120.0), ("call_3", "part", 20.0, None)]
    assert told["part_of"] == "call_0"
    assert kind_of(()) == "part"


@pytest.mark.parametrize(("given", "expected"), [
    ({}, "the client got the whole answer (200)"),
    ({"outcome": "refused", "status": 403, "code": "forbidden", "message": "no"}, "the client got 403 forbidden, and nothing was sent on"),
    ({"outcome": "refused", "status": 429, "code": "budget_exceeded", "decision": "allow", "message": "Too little is left."},
     "the client got 429 budget_exceeded, and nothing was sent on: Too little is left."),
    ({"outcome": "failed", "status": 502, "code": "upstream_failed", "message": "It is gone."}, "the client got 502 upstream_failed: It is gone."),
    ({"outcome": "withheld", "status": 403, "code": "forbidden"}, "the answer was kept from the client, which got 403 forbidden"),
    ({"outcome": "cut", "code": "upstream_failed", "message": "It broke."},
     "the client got a part of the answer, and then the error upstream_failed: It broke."),
    ({"outcome": "cancelled"}, "the client went away before the end"),
    ({"outcome": "interrupted", "status": None}, "the gateway stopped before the end, so that nobody knows what the client got"),
])
def test_what_the_client_got_is_told_of_every_outcome(given: dict[str, Any], expected: str) -> None:
    assert path_of(call(**given), ())["answer"] == {"at_ms": 900.0, "said": expected}


def test_a_record_of_before_there_were_plans_is_told_as_far_as_it_goes() -> None:
    """It has none of the fields."""
    old = {"id": "call_1", "received_ns": 0, "outcome": "completed"}
    assert path_of(old, ()) == {
        "part_of": None, "approval": None, "grants": [], "task": None, "plan": None, "attempts": [], "parts": [],
        "answer": {"at_ms": None, "said": "the client got the whole answer ()"}}
    assert explain({**old, "grants": ["grt_1"]}, None)["grants"] == ["grt_1"]
    assert explain(old, None)["attempts"] == []
    assert explain({**old, "approval": "apr_1"}, None)["approval"] == "apr_1"
