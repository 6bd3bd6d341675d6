"""The decision as a value."""

import json
from dataclasses import FrozenInstanceError

import pytest

from gateway.core.decision import Allowed, Denied, Reason, reason_json

REASON = Reason("r", "deny", "matched", "policies/x.toml:7", "no")


def test_a_reason_becomes_plain_json() -> None:
    """The journal, the log and `explain` all write it as it is."""
    assert json.loads(json.dumps(reason_json(REASON))) == {
        "rule": "r", "effect": "deny", "verdict": "matched", "source": "policies/x.toml:7", "message": "no"}


@pytest.mark.parametrize("decision", [
    Allowed(None, None, None, (REASON,), (), "sha256:0"), Denied("r", "no", None, (REASON,), (), "sha256:0")])
def test_a_decision_cannot_be_changed_after_it_was_taken(decision: Allowed | Denied) -> None:
    """What is on record is what was decided."""
    with pytest.raises(FrozenInstanceError):
        decision.rule = "other"  # type: ignore[misc]


def test_a_decision_says_its_name() -> None:
    """The names are what headers and the journal show."""
    assert (Allowed.name, Denied.name) == ("allow", "deny")
