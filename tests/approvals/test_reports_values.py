"""An approval tells what its rules read of the action: out of the action itself, so that nothing else is kept or shown."""

from typing import Any

import pytest

from gateway.approvals.reports import LONGEST_SUMMARY, approval_details
from gateway.core.approval import Demand, Stage, State, Ticket
from gateway.core.rules import compile_bundle
from gateway.rule_config import RuleConfig


def values(when: str | None, arguments: dict[str, Any], match: dict[str, Any] | None = None, **given: Any) -> Any:
    """What is told of a rule with this condition, of a call with these arguments."""
    rule = {"id": "r", "phase": "tool_call", "effect": "require_approval", "message": "m", **({"when": when} if when else {}),
            **({"match": match} if match else {})}
    bundle = compile_bundle([RuleConfig.model_validate(rule)], "auto")
    ticket = Ticket(**{
        "id": "apr_1", "kind": "tool", "mode": "release", "state": State.PENDING, "digest": "d", "presented": "d", "principal": "key_1",
        "call_id": "call_1", "rule": "r", "message": "m", "demands": (Demand("r", (Stage(),)),), "shown": {"arguments": arguments}, "body": b"{}",
        "origin": {}, "shape": "s", "created_ns": 1, "expires_ns": 2, "tool": "bank.pay", "team": "blue", **given})
    return approval_details(ticket, [], bundle)["rules"][0]["values"]


@pytest.mark.parametrize(("when", "arguments", "told"), [
    ("double(tool.args.amount) > 1000.0", {"amount": 1200, "to": "x"}, {"tool.args.amount": 1200}),
    ("tool.args.amount == 9007199254740993", {"amount": 2**53 + 1}, {"tool.args.amount": 2**53 + 1}),
    ("tool.args.to.startsWith('A') && has(tool.args.by)", {"to": "ACME"}, {"tool.args.to": "ACME"}),  # what is not there is not told
    ("tool.args.a.b.c == 1 || tool.args['x y'][0].z == 2", {"a": {"b": {"c": 1}}, "x y": [{"z": False}]},
     {"tool.args.a.b.c": 1, "tool.args['x y'][0].z": False}),
    ("tool.args.lines.exists(line, line.amount > 5)", {"lines": [{"amount": 6}, {"amount": 1}]}, {"tool.args.lines": "[list of 2]"}),
    ("size(tool.args.deep) > 0", {"deep": {"a": 1}}, {"tool.args.deep": "[object of 1]"}),
    ("size(tool.args.text) > 0", {"text": "x" * 1000}, {"tool.args.text": "x" * LONGEST_SUMMARY + "\u2026"}),
    ("tool.args.a.b == 1 || tool.args.l[7] == 1 || tool.args.l.x == 1", {"a": 3, "l": [1]}, {}),  # not of that kind
    ("size(tool.args) > 3", {"a": 1}, {}),
])
def test_what_a_condition_reads_of_the_arguments_is_told_by_its_path(when: str, arguments: dict[str, Any], told: dict[str, Any]) -> None:
    """As it is written there; of what is long only how long it is."""
    assert values(when, arguments) == told


def test_who_asks_is_told_where_the_rule_reads_it() -> None:
    """And nothing that it does not read."""
    assert values("principal.team == 'blue'", {"secret": "s"}, {"tools": ["bank.pay"]}) == {"tool.name": "bank.pay", "principal.team": "blue"}
    assert values(None, {"secret": "s"}, {"tools": ["bank.pay"]}) == {"tool.name": "bank.pay"}
    assert values("principal.id != '' && principal.on_behalf_of == ''", {}) == {"principal.id": "key_1", "principal.on_behalf_of": ""}


def test_a_condition_of_very_many_values_tells_some() -> None:
    """A page has room for so many."""
    when = " && ".join(f"has(tool.args.a{n})" for n in range(40))
    assert len(values(when, {f"a{n}": n for n in range(40)})) == 20
