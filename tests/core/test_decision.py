"""The decision as a value, and what of it is kept."""

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.decision import Allowed, Decision, Denied, Held, Reason, reason_json, reasons_json, strictest, verdict_json

REASON = Reason("r", "deny", "matched", "policies/x.toml:7", "no", reads=("route", "tool.args"))
DENIED = Denied("r", "no", None, (REASON,), (), "sha256:0")
DECISIONS: tuple[Decision, ...] = (Allowed(None, None, None, (REASON,), (), "sha256:0"), Held("r", "ask", None, (REASON,), (), "sha256:0"), DENIED)


@pytest.mark.parametrize("decision", DECISIONS)
def test_a_decision_cannot_be_changed_after_it_was_taken(decision: Decision) -> None:
    """What is on record is what was decided."""
    with pytest.raises(FrozenInstanceError):
        decision.rule = "other"  # type: ignore[misc]


def test_a_decision_says_its_name() -> None:
    """The names are what headers and the journal show."""
    assert (Allowed.name, Held.name, Denied.name) == ("allow", "held", "deny")


def test_the_strictest_of_several_decisions_is_the_first_of_the_most_restrictive() -> None:
    """It is what the caller is told of a call with several of them."""
    allowed, held, denied = DECISIONS
    assert strictest([]) is None
    assert strictest([allowed]) is allowed
    assert strictest([allowed, held, allowed]) is held
    assert strictest([held, denied, replace(DENIED, rule="other"), allowed]) is denied


def test_the_values_of_a_decision_stay_out_of_its_repr() -> None:
    """Logs show decisions, and values may be what a caller wrote."""
    assert "hunter2" not in repr(replace(DENIED, values={"texts": ["hunter2"]}))


# What is kept


def test_a_reason_becomes_plain_json() -> None:
    """The journal, the log and `explain` all write it as it is; what says nothing is left out."""
    plain = {"rule": "r", "effect": "deny", "verdict": "matched", "source": "policies/x.toml:7", "message": "no"}
    assert reason_json(REASON, DENIED, "full") == plain
    more = replace(DENIED, phase="tool_call", subject="bank.pay", values={"route": "fast", "tool.args": {"amount": 5}, "unread": 1})
    told = reason_json(replace(REASON, shadow=True), more, "full")
    assert told == {**plain, "phase": "tool_call", "subject": "bank.pay", "shadow": True, "values": {"route": "fast", "tool.args": {"amount": 5}}}
    assert json.loads(json.dumps(told)) == told


def test_only_rules_that_contributed_are_kept() -> None:
    """Most rules that are asked say no."""
    reasons = tuple(replace(REASON, rule=verdict, verdict=verdict) for verdict in ("matched", "not_matched", "error"))
    assert [reason["rule"] for reason in reasons_json(replace(DENIED, reasons=reasons), "full")] == ["matched", "error"]


def test_a_verdict_on_what_came_back_says_all_of_it() -> None:
    """There may be several in one call, so each stands for itself."""
    told = verdict_json(replace(DENIED, phase="tool_result", subject="web.get", message=None, rule=None), "full")
    assert told == {"phase": "tool_result", "subject": "web.get", "decision": "deny", "rule": "", "message": "", "bundle": "sha256:0",
                    "reasons": [reason_json(REASON, replace(DENIED, phase="tool_result", subject="web.get"), "full")]}


def shown(value: Any, bodies: str) -> Any:
    told = reason_json(replace(REASON, reads=("x",)), replace(DENIED, values={"x": value}), bodies)
    return told["values"]["x"]


LONG = "x" * 65


@pytest.mark.parametrize(("value", "full", "redacted", "none"), [
    (5, 5, 5, 5), (True, True, True, True), (1.5, 1.5, 1.5, 1.5), (None, None, None, None),
    ("text", "text", "[4 characters]", "[4 characters]"),
    (LONG, f"{LONG[:64]}… [65 characters]", "[65 characters]", "[65 characters]"),
    (["a", 1], ["a", 1], ["[1 characters]", 1], "[list of 2]"),
    (("a",), ["a"], ["[1 characters]"], ["[1 characters]"]),
    (["a"] * 9, "[list of 9]", "[list of 9]", "[list of 9]"),
    ([["a"]], "[list of 1]", "[list of 1]", "[list of 1]"),
    ({"to": "bob", "amount": 5}, {"to": "bob", "amount": 5}, {"to": "[3 characters]", "amount": 5}, "[object of 2]"),
    ({"my mother's name": 5}, {"my mother's name": 5}, "[object of 1]", "[object of 1]"),
    ({LONG: 5}, "[object of 1]", "[object of 1]", "[object of 1]"),
    ({str(n): n for n in range(9)}, "[object of 9]", "[object of 9]", "[object of 9]"),
    ({"a": {"b": 1}}, "[object of 1]", "[object of 1]", "[object of 1]"),
    (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01 00:00:00+00:00", "2026-01-01 00:00:00+00:00", "2026-01-01 00:00:00+00:00"),
    (timedelta(hours=1), "1:00:00", "1:00:00", "1:00:00"),
])
def test_values_are_kept_as_far_as_the_journal_may_keep_bodies(value: Any, full: Any, redacted: Any, none: Any) -> None:
    """`journal.bodies` is a promise about what callers wrote, wherever it would stand."""
    assert [shown(value, bodies) for bodies in ("full", "redacted", "none")] == [full, redacted, none]


def leaves(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case Mapping():
            return [*value, *(text for item in value.values() for text in leaves(item))]
        case list():
            return [text for item in value for text in leaves(item)]
        case _:
            return []


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=200), lambda inner: st.lists(inner, max_size=12) | st.dictionaries(
    st.text(max_size=80), inner, max_size=12), max_leaves=30))
def test_no_value_is_kept_that_is_long_or_that_the_journal_may_not_keep(value: Any) -> None:
    """With every call of every rule: it has to stay small."""
    assert len(json.dumps(shown(value, "full"))) < 10_000
    assert not [text for text in leaves(shown(value, "none")) if not text.startswith("[")]
    assert all(text.startswith("[") or text.isidentifier() for text in leaves(shown(value, "redacted")))
