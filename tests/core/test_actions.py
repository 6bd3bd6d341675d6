"""What an effect's tables become, and what they are refused for: all of it at load."""

from datetime import date
from typing import Any

import pytest

from gateway.core.accounts import SCOPES
from gateway.core.actions import action_of
from gateway.core.approval import Demand, Stage
from gateway.core.decision import Action, Approval, Clamp, Limit, Redaction, Rerouting, Setting
from gateway.core.detectors import Detectors
from gateway.rule_config import RuleConfig


def action(effect: str, table: dict[str, Any] | None = None, phase: str = "request", **more: Any) -> Action | None:
    tables = {effect: table} if table is not None else {}
    return action_of(RuleConfig.model_validate({"id": "r", "effect": effect, "phase": phase, **tables, **more}), Detectors())


@pytest.mark.parametrize("effect", ["deny", "allow", "log"])
def test_an_effect_that_its_name_says_all_of_has_no_action(effect: str) -> None:
    """`decide` knows what they mean."""
    assert action(effect) is None


def test_every_table_becomes_an_action_under_its_rules_id() -> None:
    """One value of each, so that no two are mixed up."""
    finance = Demand("r", (Stage(("role:finance",), 2),))
    assert action("require_approval", approvers=["role:finance"], quorum=2) == Approval("r", finance)
    assert action("require_approval", approval={"stages": [{"quorum": 2}, {"approvers": ["team:ops"]}], "denials": 2, "mode": "execute",
                  "expires": "1h", "on_expiry": "escalate", "escalate_to": ["role:boss"], "hold": "5s", "identity": ["tool.name"],
                  "by_session": True, "on_disconnect": "withdraw", "notify": ["mail"], "remind": "10m", "grants": False}) == Approval(
        "r", Demand("r", (Stage((), 2), Stage(("team:ops",), 1)), 2, ("role:boss",)), "execute", 3600.0, 5.0, ("tool.name",),
        by_session=True, on_disconnect="withdraw", notify=("mail",), remind_s=600.0, grants=False)
    assert action("limit", {"requests": 5, "per": "1m", "by": ["team", "tool"]}) == Limit("r", 60.0, ("team", "tool"), requests=5)
    assert action("limit", {"tokens": 7, "per": "1s", "concurrent": 3}) == Limit("r", 1.0, ("key",), tokens=7, concurrent=3)
    assert action("limit", {"concurrent": 3, "by": ["user", "tag"]}) == Limit("r", 0.0, ("user", "tag"), concurrent=3)
    assert action("route", {"to": "other", "only": ["eu/*"], "remove": ["us/*"]}) == Rerouting("r", "other", ("eu/*",), ("us/*",))
    assert action("set", {"values": {"temperature": 0}, "clamp": {"/max_tokens": {"min": 1, "max": 5}}, "system": "Be kind."}) == Setting(
        "r", {"/temperature": 0}, (Clamp("/max_tokens", 1.0, 5.0),), "Be kind.", replace_system=False)
    assert action("set", {"system": "Be kind.", "system_mode": "replace"}) == Setting("r", system="Be kind.", replace_system=True)
    redaction = action("redact", {"detectors": ["email"], "patterns": ["a+"], "fields": ["user", "/a/*/b"], "replacement": "[{what}]"})
    assert isinstance(redaction, Redaction)
    assert (redaction.rule, redaction.fields, redaction.replacement) == ("r", ("/user", "/a/*/b"), "[{what}]")
    assert [detector.name for detector in redaction.detectors] == ["email", "pattern"]


def test_a_limit_counts_by_every_scope_that_a_budget_can_have() -> None:
    """A new one fails here."""
    made = action("limit", {"concurrent": 1, "by": list(SCOPES)})
    assert isinstance(made, Limit)
    assert made.by == SCOPES


def test_a_family_of_detectors_stands_for_all_of_it() -> None:
    """`pii` is a word for several."""
    redaction = action("redact", {"detectors": ["pii"]})
    assert isinstance(redaction, Redaction)
    assert {"email", "credit_card", "iban"} <= {detector.name for detector in redaction.detectors}


@pytest.mark.parametrize(("table", "says"), [
    ({"detectors": ["nobody-knows-this"]}, "nobody-knows-this"), ({"patterns": ["("]}, "RE2"), ({"patterns": [r"(a)\1"]}, "RE2"),
    ({"patterns": ["(?=a)"]}, "RE2")])
def test_what_nobody_can_look_for_is_refused(table: dict[str, Any], says: str) -> None:
    """A redaction that finds nothing is worse than none: somebody relies on it."""
    with pytest.raises(ValueError, match=says):
        action("redact", table)


@pytest.mark.parametrize("name", ["customer/ssn", "a~b", "/a~b", "/a~2", "~", "", "args.x/y"])
@pytest.mark.parametrize("phase", ["request", "tool_call"])
def test_a_name_that_would_find_nothing_is_refused(name: str, phase: str) -> None:
    """`customer/ssn` is neither a name at the top nor a pointer: taken for either, it would be the wrong one half of the time."""
    with pytest.raises(ValueError, match="JSON pointer"):
        action("redact", {"fields": [name]}, phase)
    with pytest.raises(ValueError, match="JSON pointer"):
        action("set", {"values": {name: 1}}, phase)
    with pytest.raises(ValueError, match="JSON pointer"):
        action("set", {"clamp": {name: {"max": 1}}}, phase)


@pytest.mark.parametrize("name", ["model", "/model", "stream", "/stream_options/include_usage", "messages", "/messages/0/content", "tools",
                                  "functions", "input", "prompt"])
def test_what_drives_the_gateway_itself_cannot_be_set(name: str) -> None:
    """Another model is the effect `route`; the rest would be judged as one thing and sent as another."""
    for table in ({"values": {name: 1}}, {"clamp": {name: {"max": 1}}}):
        with pytest.raises(ValueError, match="cannot be set"):
            action("set", table)
    assert action("set", {"values": {name: 1}}, "tool_call") is not None


@pytest.mark.parametrize("name", ["model", "/stream", "/*", "/stream_options/include_usage"])
def test_what_drives_the_gateway_itself_cannot_be_taken_out(name: str) -> None:
    """A text in the place of `stream` would make it another call than the one that was judged."""
    with pytest.raises(ValueError, match="cannot be taken out"):
        action("redact", {"fields": [name]})
    assert action("redact", {"fields": [name]}, "tool_result") is not None


def test_an_answer_has_no_fields_to_take_out() -> None:
    """It is judged as text, so a rule that names fields would take nothing out."""
    with pytest.raises(ValueError, match="judged as text"):
        action("redact", {"fields": ["/choices"]}, "response")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, date(2026, 1, 1), 2**64, -2**63 - 1])
def test_a_value_that_is_no_json_cannot_be_set(value: Any) -> None:
    """TOML has dates, infinities and integers of any size. JSON has not, and what is written must be what is sent."""
    with pytest.raises(ValueError, match="JSON"):
        action("set", {"values": {"x": value}})


def test_a_value_that_is_json_can_be_set_whatever_its_shape() -> None:
    """Tables and lists too."""
    value = {"a": [1, 2.5, "x", True, None, {"b": []}], "c": 2**63}
    assert action("set", {"values": {"x": value}}) == Setting("r", {"/x": value})


def test_a_system_message_belongs_to_a_request() -> None:
    """Nothing else has messages."""
    with pytest.raises(ValueError, match="phase `request`"):
        action("set", {"system": "Be kind."}, "tool_call")


@pytest.mark.parametrize(("table", "phase", "says"), [
    ({}, "request", "nothing to limit"), ({"per": "1m"}, "request", "nothing to limit"), ({"requests": 1}, "request", "need `per`"),
    ({"tokens": 1, "concurrent": 1}, "request", "need `per`"), ({"concurrent": 1, "per": "1m"}, "request", "`per` belongs to"),
    ({"requests": 0, "per": "1m"}, "request", "greater than or equal to 1"), ({"concurrent": -1}, "request", "greater than or equal to 1"),
    ({"requests": 1, "per": "0s"}, "request", "greater than 0"), ({"requests": 1, "per": "1m", "by": []}, "request", "at least 1 item"),
    ({"requests": 1, "per": "1m", "by": ["nation"]}, "request", "Input should be"), ({"concurrent": 1}, "tool_call", "only `requests` of a tool call"),
    ({"tokens": 1, "per": "1m"}, "tool_call", "only `requests` of a tool call"),
    ({"requests": 1, "tokens": 1, "per": "1m"}, "tool_call", "only `requests` of a tool call"),
    ({"requests": 1, "per": "1m"}, "response", "no meaning in phase `response`")])
def test_a_limit_that_would_not_do_what_it_says_is_refused(table: dict[str, Any], phase: str, says: str) -> None:
    """A proposed tool call has no end that the gateway sees: a count of those under way would never come down."""
    with pytest.raises(ValueError, match=says):
        action("limit", table, phase)
