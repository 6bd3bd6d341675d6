"""Who may decide: roles, teams, people, expressions; never the requester, never twice, never on a guess."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.core import approver as approver_module
from gateway.core.approval import Demand, Stage, State, Ticket, Vote, Voter
from gateway.core.approver import ADMIN, FACTS, Approvers, Matter, eligible, variables_table
from gateway.core.condition import ConditionError
from gateway.core.expressions import ExpressionError, Library
from gateway.core.rules import compile_bundle
from gateway.errors import ConfigError
from gateway.rule_config import RuleConfig

NOW = 1_700_000_000_000_000_000  # Tuesday, 2023-11-14 22:13:20 UTC
MINUTE = 60 * 10**9
GRACE = Voter("grace", "Grace", ("finance", "ops"), ("blue",), "oidc", NOW - 5 * MINUTE)
ADA = Voter("ada", "Ada", ("finance",), ("red",), "password", NOW - 120 * MINUTE)
TOKEN = Voter("bot", "Bot", ("finance",), (), "token")
THE_TOKEN = Voter(ADMIN, "admin", ("admin",), method="token")


def ticket(*stages: Stage, **given: Any) -> Ticket:
    usual: dict[str, Any] = {
        "id": "apr_1", "kind": "tool", "mode": "release", "state": State.PENDING, "digest": "sha256:1", "presented": "sha256:1",
        "principal": "key_1", "call_id": "call_1", "rule": "r", "message": "m", "demands": (Demand("r", stages or (Stage(),)),),
        "shown": {"arguments": {"amount": 900, "region": "eu"}}, "body": b"{}", "origin": {}, "shape": "s", "created_ns": NOW - 10 * MINUTE,
        "expires_ns": NOW + MINUTE, "owner": "linus", "team": "blue", "tool": "bank.pay"}
    return Ticket(**{**usual, **given})


@pytest.fixture(scope="session")
def approvers(engine_name: str, library: Library) -> Approvers:
    return Approvers(engine_name, library)


@pytest.mark.parametrize(("text", "fit"), [
    ("role:finance", {"grace", "ada", "bot"}), ("role:ops", {"grace"}), ("team:blue", {"grace"}), ("person:ada", {"ada"}),
    ("role:Finance", set()), ("person:admin", {ADMIN}), ("role:admin", {ADMIN}), ("team:admin", set()),
    ('"finance" in approver.roles && double(approval.args.amount) < 1000.0', {"grace", "ada", "bot"}),
    ('"finance" in approver.roles && double(approval.args.amount) > 1000.0', set()),
    ("approval.team in approver.teams", {"grace"}), ('approver.login_age < duration("15m")', {"grace"}),
    ('approver.method == "password"', {"ada"}), ('approval.args.region == "eu" && approver.id != "bot"', {"grace", "ada"}),
    ('approval.created_age > duration("9m") && approver.name == "Ada"', {"ada"}), ("now.getDayOfWeek() == 2 && approver.id == 'ada'", {"ada"}),
    ('in_list(approver.id, "contractors")', set()), ("true", {"grace", "ada", "bot"}), ("approval.args.nothing == 1", set()),
])
def test_approvers_are_named_by_role_team_person_or_expression(approvers: Approvers, text: str, fit: set[str]) -> None:
    """What cannot be evaluated is true of nobody; an expression is never true of the admin token, which is nobody."""
    waiting = ticket(Stage((text,)))
    assert {voter.id for voter in (GRACE, ADA, TOKEN, THE_TOKEN) if eligible(waiting, voter, NOW, approvers)} == fit


def test_without_approvers_everybody_who_may_vote_at_all_is_asked(approvers: Approvers) -> None:
    """The admin token included."""
    waiting = ticket()
    assert all(eligible(waiting, voter, NOW, approvers).places == ((waiting.demands[0].key, 0),) for voter in (GRACE, TOKEN, THE_TOKEN))


@pytest.mark.parametrize(("given", "why"), [
    ({"principal": "grace"}, "asked for it yourself"), ({"owner": "grace"}, "a key of yours"), ({"state": State.DENIED}, "It is decided on: denied."),
    ({"expires_ns": NOW}, "Its time is over."), ({"votes": (Vote(GRACE, "approve", "sha256:1", NOW),)}, "You have voted."),
])
def test_nobody_votes_on_their_own_twice_or_too_late(approvers: Approvers, given: dict[str, Any], why: str) -> None:
    """Whoever is asked, and whatever stands in the rule."""
    for stage in (Stage(), Stage(("person:grace", "true", "role:finance"), 2)):
        found = eligible(ticket(stage, **given), GRACE, NOW, approvers)
        assert (found.places, bool(found)) == ((), False)
        assert why in found.why_not


def test_a_vote_counts_in_the_present_stage_of_every_demand(approvers: Approvers) -> None:
    """Two rules ask; one of them has had its first stage."""
    demands = (Demand("a", (Stage(("role:finance",)), Stage(("role:ops",)))), Demand("b", (Stage(("team:blue",), 2),)), Demand("c", (Stage(),)))
    done = (Vote(ADA, "approve", "sha256:1", NOW, places=((demands[0].key, 0), (demands[2].key, 0))),)
    waiting = ticket(demands=demands, votes=done)
    assert eligible(waiting, GRACE, NOW, approvers).places == ((demands[0].key, 1), (demands[1].key, 0))
    assert eligible(waiting, TOKEN, NOW, approvers).why_not == "Others are asked at this stage: role:ops, team:blue."
    assert eligible(replace(waiting, demands=demands[2:]), TOKEN, NOW, approvers).why_not == "Nobody is asked any more."


def test_somebody_who_is_not_asked_is_told_who_is_and_what_could_not_be_told(approvers: Approvers) -> None:
    """A long list is cut short."""
    waiting = ticket(Stage(tuple(f"role:r{number}" for number in range(6))))
    assert eligible(waiting, ADA, NOW, approvers).why_not == "Others are asked at this stage: role:r0, role:r1, role:r2, role:r3, …."
    fresh = ticket(Stage(('approver.login_age < duration("1h")', "approval.args.x == 1")))
    assert "approver.login_age: they did not log in" in eligible(fresh, TOKEN, NOW, approvers).why_not


def test_one_expression_that_fails_does_not_hide_another_that_holds(approvers: Approvers) -> None:
    """Any of the approvers will do."""
    assert eligible(ticket(Stage(("approval.args.x == 1", "role:ops"))), GRACE, NOW, approvers)


@pytest.mark.parametrize("text", ["session.count('x') > 1", "nonsense(", "approver.id", "approver.rolez == 1", "messages.size() > 1"])
def test_a_ticket_of_older_rules_whose_expression_is_none_asks_nobody(approvers: Approvers, text: str) -> None:
    """Its rule was checked when it was opened, under other lists and another version."""
    found = eligible(ticket(Stage((text,))), GRACE, NOW, approvers)
    assert not found
    assert "cannot be told of you" in found.why_not


def test_the_arguments_are_read_as_they_are_shown_and_no_more_of_them_than_may_be(approvers: Approvers) -> None:
    """A ticket without any has none; one with a hundred thousand values cannot be read."""
    assert not eligible(ticket(Stage(("has(approval.args.amount)",)), shown={}), GRACE, NOW, approvers)
    large = ticket(Stage(("has(approval.args.x)",)), shown={"arguments": {"x": [[0]] * 200_000}})
    assert not eligible(large, GRACE, NOW, approvers)


def test_every_variable_has_its_declared_type_and_an_example_that_compiles(approvers: Approvers) -> None:
    """The documentation is the schema."""
    types = {"string": str, "bool": bool, "duration": timedelta, "timestamp": datetime, "list(string)": list, "map(string, dyn)": dict}
    for fact in FACTS:
        assert type(fact.extract(Matter(GRACE, ticket(), NOW))) is types[fact.type], fact.name
        approvers.check(fact.example)
        assert approvers.fits(fact.example, Matter(GRACE, ticket(irreversible=True), NOW)) in (True, False)
        assert f"| `{fact.name}` | `{fact.type}` |" in variables_table()


@pytest.mark.parametrize("text", ["role:", "role: ", "role: x", "team:a ", "person:\x07"])
def test_a_name_has_to_be_one(approvers: Approvers, text: str) -> None:
    """A blank that nobody sees would ask a role that nobody has."""
    with pytest.raises(ExpressionError, match="NAME needs a name"):
        approvers.check(text)


def test_expressions_are_kept_and_bounded(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a list of a thousand approvals asks for each of its rows."""
    monkeypatch.setattr(approver_module, "_MOST_KEPT", 2)
    made = Approvers("cel-expr-python", library)
    matter = Matter(GRACE, ticket(), NOW)
    for number in (1, 2, 3, 1):
        assert made.fits(f"{number} == {number}", matter)
    assert list(made._kept) == ["3 == 3", "1 == 1"]


def test_what_the_engine_gives_that_is_no_verdict_is_none(library: Library) -> None:
    """The engine without types finds out when it is asked."""
    with pytest.raises(ConditionError, match="not bool"):
        Approvers("cel-python", library).fits("approver.id", Matter(GRACE, ticket(), NOW))


def test_approvers_that_mean_nobody_are_told_at_load(engine_name: str) -> None:
    """Wherever they stand, with a caret, and with what to write."""
    rule: dict[str, Any] = {"id": "r", "effect": "require_approval", "source": "policies/x.toml:7", "approval": {
        "stages": [{"approvers": ["role:ok"]}, {"approvers": ["finance"]}], "on_expiry": "escalate", "escalate_to": ["approver.nobody"]}}
    with pytest.raises(ConfigError) as caught:
        compile_bundle([RuleConfig.model_validate(rule)], engine_name)
    first, second = caught.value.problems
    assert (first.file, first.line, first.key) == ("policies/x.toml", 7, "rule.approval.stages.1.approvers.0")
    assert " | finance\n | ^" in first.message
    assert first.hint is not None
    assert "role:NAME" in first.hint
    assert second.key == "rule.approval.escalate_to.0"
    with pytest.raises(ConfigError, match=r"rule\.approvers\.0"):
        compile_bundle([RuleConfig.model_validate({"id": "r", "effect": "require_approval", "source": "x:1", "approvers": ["cfo"]})], engine_name)


def test_a_long_list_of_arguments_is_not_gone_through_for_each_of_its_items() -> None:
    """The same bounds as for rules: the arguments are as long as a caller likes."""
    rule = {"id": "r", "effect": "require_approval", "source": "x:1",
            "approvers": ["approval.args.x.exists(a, approval.args.x.exists(b, a == b))"]}
    with pytest.raises(ConfigError, match=r"for every item of `approval\.args`"):
        compile_bundle([RuleConfig.model_validate(rule)], "cel-expr-python")
