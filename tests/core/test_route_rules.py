"""The rules of a route: the first that holds chooses; one that cannot be evaluated does not hold and says so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.call import Origin
from gateway.core.expressions import Engine, ExpressionError, Library
from gateway.core.question import BudgetFacts
from gateway.core.route_rules import Choice, RouteRules, compile_rule, route_engine, route_rules
from gateway.session import SessionFacts, SessionQuery


@pytest.fixture(scope="module")
def engine(engine_name: str, library: Library) -> Engine:
    """Either engine, for rules of routes."""
    return route_engine(engine_name, library)


@pytest.fixture
def compiled(engine: Engine) -> Callable[..., RouteRules]:
    def make(*rules: tuple[str, str]) -> RouteRules:
        made = route_rules(engine, [compile_rule(engine, when, [glob]) for when, glob in rules])
        assert made is not None
        return made

    return make


def test_the_first_rule_that_holds_chooses(compiled, question):
    rules = compiled(('task == "code"', "big/*"), ("request.size > 50", "middle/*"), ("true", "small/*"))
    assert rules.choose(question(size=10), "code") == Choice(("big/*",), 'task == "code"')
    assert rules.choose(question(size=60), "talk") == Choice(("middle/*",), "request.size > 50")
    assert rules.choose(question(size=10), "") == Choice(("small/*",), "true")


def test_where_none_holds_nothing_is_chosen(compiled, question):
    assert compiled(("false", "a/*")).choose(question(), "") == Choice()


def test_a_route_without_rules_has_none(engine):
    assert route_rules(engine, []) is None


def test_rules_read_tags_and_principals(compiled, question):
    rules = compiled(('"env" in tags && tags["env"] == "prod" && principal.team == "blue"', "a/*"))
    assert rules.choose(question(team="blue", origin=Origin(tags={"env": "prod"})), "").targets == ("a/*",)
    assert rules.choose(question(team="red", origin=Origin(tags={"env": "prod"})), "").targets is None


def test_a_rule_that_cannot_be_evaluated_does_not_hold_and_says_why(compiled, question):
    """It is no policy: what it could not find out must not send the call anywhere."""
    rules = compiled(('tags["env"] == "prod"', "a/*"), ("true", "b/*"))
    choice = rules.choose(question(), "")
    assert choice.targets == ("b/*",)
    assert len(choice.notes) == 1
    assert choice.notes[0].startswith('tags["env"] == "prod": ')


def test_a_fact_that_the_body_does_not_hold_is_noted_for_the_rules_that_read_it(compiled, question):
    rules = compiled(("messages.size() > 5", "a/*"), ("true", "b/*"))
    choice = rules.choose(question({"messages": "no list"}), "")
    assert choice == Choice(("b/*",), "true", ("messages.size() > 5: messages: `messages` is not a list",))


def test_what_the_body_holds_is_not_quoted(compiled, question):
    rules = compiled(('int(tags["n"]) > 5', "a/*"))
    choice = rules.choose(question(origin=Origin(tags={"n": "my-secret-text"})), "")
    assert choice.targets is None
    assert "my-secret" not in "".join(choice.notes)


def test_a_session_is_asked_for_what_the_rules_read(compiled, question):
    rules = compiled(('session.calls > 3 || session.called("mail.send")', "a/*"))
    assert rules.reads_session
    assert rules.queries == {SessionQuery("called", "mail.send")}
    answers = {SessionQuery("called", "mail.send"): True}
    assert rules.choose(question(session=SessionFacts(calls=0, answers=answers)), "").targets == ("a/*",)


def test_a_call_without_a_session_misses_only_what_the_verdict_hangs_on(compiled, question):
    assert compiled(('session.id == "" || session.calls > 3', "a/*")).choose(question(), "").targets == ("a/*",)
    lacking = compiled(("session.calls > 3", "a/*")).choose(question(), "")
    assert lacking.targets is None
    assert "the call belongs to no session" in lacking.notes[0]


def test_what_is_left_of_a_budget_chooses(compiled, question):
    rules = compiled(('"any" in budget.remaining && budget.remaining["any"] < usd("1.00")', "cheap/*"))
    assert rules.reads_budgets
    assert not rules.reads_session

    def left(nusd: int) -> Any:
        return replace(question(), budgets=BudgetFacts({"any": nusd}, {}, {}))

    assert rules.choose(left(10**8), "").targets == ("cheap/*",)
    assert rules.choose(left(10**10), "").targets is None


def test_only_what_is_read_is_asked_for(compiled):
    rules = compiled(("request.size > 1", "a/*"), ('task == "x"', "b/*"))
    assert [fact.name for fact in rules.facts] == ["request.size"]
    assert (rules.reads_task, rules.reads_session, rules.reads_budgets, rules.queries) == (True, False, False, frozenset())


def test_values_that_no_engine_takes_are_noted(compiled, question):
    """100,001 values are more than an engine converts in the time that a decision may take."""
    rules = compiled(("size(request.body.x) > 0", "a/*"))
    choice = rules.choose(question({"x": [0] * 100_001}, size=10), "")
    assert choice.targets in (None, ("a/*",))
    assert (choice.targets is None) is bool(choice.notes)


@pytest.mark.parametrize("when", ["tsk == 1", "task == ", "response.text == ''"])
def test_what_cannot_be_used_is_refused_at_load(engine, when):
    with pytest.raises(ExpressionError):
        compile_rule(engine, when, ["a/*"])
