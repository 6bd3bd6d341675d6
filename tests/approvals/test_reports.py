"""Approvals as people read them: one line of anybody's words, the exact action, and what is still missing."""

from typing import Any

import pytest

from gateway.approvals.reports import (
    LONGEST_SUMMARY,
    approval_details,
    approval_rule,
    comment_of,
    missing,
    one_line,
    similar_row,
    summary,
    ticket_row,
)
from gateway.core.approval import Demand, Result, Stage, State, Ticket, Vote, Voter
from gateway.core.rules import compile_bundle
from gateway.rule_config import RuleConfig

ADA, GRACE = Voter("ada", "Ada"), Voter("grace", "Grace")


def ticket(**given: Any) -> Ticket:
    usual: dict[str, Any] = {
        "id": "apr_1", "kind": "tool", "mode": "release", "state": State.PENDING, "digest": "sha256:1", "presented": "sha256:1", "principal": "key_1",
        "call_id": "call_1", "rule": "r", "message": "m", "demands": (Demand("r", (Stage(),)),), "shown": {"arguments": {}}, "body": b"{}", "origin": {},
        "shape": "s", "created_ns": 1, "expires_ns": 2, "tool": "bank.pay"}
    return Ticket(**{**usual, **given})


@pytest.mark.parametrize(("kind", "arguments", "line"), [
    ("tool", {"amount": 900, "to": 'AC"ME', "list": [1, 2], "deep": {"a": 1}, "no": None}, r'bank.pay amount=900 to="AC\"ME" list=[2] deep={1} no=null'),
    ("tool_call", {}, "bank.pay"), ("request", {"messages": [{"content": "first"}, {"content": [{"text": "last\nwords"}]}]}, "fast: text last words"),
    ("request", {"messages": ["odd"]}, "fast: odd"), ("request", {"messages": [], "prompt": "p"}, "fast: p"), ("request", {"input": ["a", "b"]}, "fast: a b"),
    ("response", {"choices": [{"message": {"content": "said"}}, "odd", {"message": 3}]}, "fast: said"), ("response", {"text": "body"}, "fast: body"),
    ("response", {}, "fast"),
])
def test_a_summary_is_one_line_whatever_the_action_is(kind: Any, arguments: dict[str, Any], line: str) -> None:
    """A list has room for as much."""
    told = {"kind": kind, "shown": {"arguments": arguments}, **({} if kind.startswith("tool") else {"tool": "", "route": "fast"})}
    assert summary(ticket(**told)) == line


def test_a_summary_of_megabytes_is_as_short_as_any_and_cannot_turn_a_line_round() -> None:
    """Also where the names are long, or the text holds what prints nothing."""
    for arguments in ({"x" * 10**6: 1}, {"a": "y" * 10**6}, {"a": "\u202e\x07\n" * 1000}, {str(number): "z" for number in range(1000)}):
        line = summary(ticket(shown={"arguments": arguments}))
        assert len(line) <= LONGEST_SUMMARY
        assert line.isprintable()
    assert one_line("abcdef", 4) == "abc…"


def test_what_is_missing_is_counted_over_stages_and_the_longest_of_several_demands() -> None:
    """One person may count for both."""
    demands = (Demand("a", (Stage(("role:x",), 2), Stage())), Demand("b", (Stage(),)))
    assert missing(ticket(demands=demands)) == 3
    voted = (Vote(ADA, "approve", "d", 1, places=((demands[0].key, 0), (demands[1].key, 0))),)
    assert missing(ticket(demands=demands, votes=voted)) == 2
    assert missing(ticket(demands=())) == 0


def test_a_caller_is_told_why_it_was_denied_and_not_what_others_said_before() -> None:
    """The latest comment of the verdict that counts."""
    votes = (Vote(ADA, "approve", "d", 1, "fine"), Vote(GRACE, "deny", "d", 2, "no"), Vote(Voter("x"), "deny", "d", 3))
    assert comment_of(ticket(votes=votes, state=State.DENIED)) == "no"
    assert comment_of(ticket(votes=votes[:1], state=State.APPROVED)) == "fine"
    assert comment_of(ticket()) is None


@pytest.mark.parametrize(("content_type", "body", "told"), [
    ("application/json", b'{"a": 1}', {"a": 1}), ("", b'{"a": 1}', {"a": 1}), ("text/plain", b"\xffhi", "\ufffdhi"), ("application/json", b"<html>", "<html>"),
])
def test_a_kept_answer_is_a_value_where_it_is_one(content_type: str, body: bytes, told: Any) -> None:
    """And the text where its upstream called it what it is not."""
    row = ticket_row(ticket(state=State.SUCCEEDED, result=Result(200, content_type, body)))
    assert row["result"] == {"status": 200, "content_type": content_type, "body": told}
    assert row["votes_needed"] == 0


def test_what_is_too_long_to_compare_is_not_compared() -> None:
    """A difference takes time by the product of the two."""
    large = ticket(shown={"arguments": {"note": "x" * 100_000}}, decided_ns=10**9)
    assert similar_row(ticket(), large) == {"id": "apr_1", "state": "pending", "decided_at": "1970-01-01T00:00:01Z", "patch": None}
    assert similar_row(large, ticket())["patch"] is None
    assert similar_row(ticket(shown={"arguments": {"a": 2}}), ticket(shown={"arguments": {"a": 1}}))["patch"] == [{"op": "replace", "path": "/a", "value": 2}]


def test_rules_are_told_as_they_stand_now_and_one_that_is_gone_by_its_name() -> None:
    """The files may have changed since it was asked."""
    rules = [RuleConfig.model_validate({"id": name, "effect": effect, "source": f"x.toml:{line}", "message": "why"})
             for line, (name, effect) in enumerate([("log", "log"), ("r", "require_approval"), ("gone", "deny")], 1)]
    bundle = compile_bundle(rules, "auto")
    asked = ticket(demands=(Demand("r", (Stage(),)), Demand("gone", (Stage(),))))
    told = approval_details(asked, [{"at_ns": 10**9, "event": "open", "state": "pending", "author": "a", "reason": ""}], bundle)
    assert [(each["rule"], each["source"], each["message"]) for each in told["rules"]] == [("r", "x.toml:2", "why"), ("gone", None, None)]
    assert told["history"] == [{"at": "1970-01-01T00:00:01Z", "event": "open", "state": "pending", "author": "a", "reason": ""}]
    assert approval_rule(bundle, "gone") is None
