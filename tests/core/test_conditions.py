"""Expressions beside rules' own: what makes an action the same, what a grant is for. They are checked at load and fail closed."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.call import ToolCall
from gateway.core import conditions as conditions_module
from gateway.core.approval import Demand, Stage
from gateway.core.condition import ConditionError, compile_condition
from gateway.core.conditions import Conditions
from gateway.core.decision import Approval, Phase
from gateway.core.expressions import Engine, ExpressionError
from gateway.core.question import Question
from gateway.core.rules import Bundle, compile_bundle
from gateway.errors import ConfigError
from gateway.rule_config import RuleConfig

Make = Callable[..., Any]


def paying(question: Make, **args: Any) -> Question:
    made: Question = question(phase="tool_call", tool=ToolCall("t1", "bank.pay", {"amount": 5, "to": "ACME", **args}), known_tool=True)
    return made


def approval(*identity: str) -> Approval:
    return Approval("r", Demand("r", (Stage(),)), identity=identity)


def bundle(engine: str = "auto", **keys: Any) -> Bundle:
    given = {"id": "r", "effect": "require_approval", "phase": "tool_call", "source": "policies/x.toml:7", **keys}
    return compile_bundle([RuleConfig.model_validate(given)], engine)


@pytest.mark.parametrize(("keys", "holds"), [
    ({}, True), ({"phase": "request"}, False), ({"mode": "shadow"}, False), ({"effect": "deny"}, False), ({"phase": "response"}, True),
])
def test_a_bundle_says_whether_people_may_be_asked_about_an_answer(keys: dict[str, Any], *, holds: bool) -> None:
    """Only then an answer may have to be kept."""
    assert bundle(**keys).holds_answers is holds


@pytest.mark.parametrize(("text", "value"), [
    ("tool.args.amount", 5), ("tool.args.to", "ACME"), ("double(tool.args.amount) * 1.5", 7.5), ("tool.args.amount > 4", True),
    ("[tool.args.to, tool.name]", ["ACME", "bank.pay"]), ("tool.args", {"amount": 5, "to": "ACME", "deep": [None, {"a": [1.5, False]}]}),
    ("tool.args.deep", [None, {"a": [1.5, False]}]), ('{"who": tool.args.to, "how": tool.args.deep[1]}', {"who": "ACME", "how": {"a": [1.5, False]}}),
    ("string(now)", None), ("size(tool.args.to)", 4), ("tool.args.deep[0]", None),
])
def test_an_expression_gives_any_value_that_json_has(engine_of: Make, engine_name: str, question: Make, text: str, value: Any) -> None:
    """In Python's own types, whichever engine: they become a part of a digest."""
    engine = engine_of(engine_name, "tool_call")
    if "now" in text:
        with pytest.raises(ExpressionError, match="the time is part of it"):
            compile_condition(text, "tool_call", engine, kind="json")
        return
    given = compile_condition(text, "tool_call", engine, kind="json").value(paying(question, deep=[None, {"a": [1.5, False]}]))
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(("text", "why"), [
    ("bytes(tool.args.to)", "bytes, which JSON does not have|what JSON does not have"),
    ('timestamp("2020-01-01T00:00:00Z")', "timestamp, which JSON does not have|reads nothing"),
    ("[timestamp(tool.args.at)]", "what JSON does not have"),
    ("{tool.args.amount: 1}", "what JSON does not have"),
    ("type(tool.args)", "what JSON does not have"),
    ("tool.args.nothing", "(?i)key|no such"),
    ("tool.args.amount / 0", "(?i)zero"),
    ("1.0 / double(tool.args.zero)", "what JSON does not have|zero"),
])
def test_what_has_no_value_in_json_has_none(engine_of: Make, engine_name: str, question: Make, text: str, why: str) -> None:
    """It is found where it can be: at load, or when it is asked. It never becomes some value or other."""
    with pytest.raises((ConditionError, ExpressionError), match=why):
        compile_condition(text, "tool_call", engine_of(engine_name, "tool_call"), kind="json").value(paying(question, zero=0, at="2020-01-01T00:00:00Z"))


def test_a_condition_that_is_not_a_verdict_is_refused_at_load(engine_of: Make) -> None:
    """The engine that knows types says so; the other one when it is asked."""
    with pytest.raises(ExpressionError, match="gives string, not bool"):
        compile_condition("tool.name", "tool_call", engine_of("cel-expr-python", "tool_call"))


@pytest.mark.parametrize("text", ["session.calls > 3", 'session.count("bank.pay") > 1', '"any" in budget.remaining'])
def test_what_is_asked_of_the_store_for_rules_alone_cannot_be_read(engine_of: Make, engine_name: str, text: str) -> None:
    """Nobody fetches it here, so such a condition would never hold, without a word."""
    with pytest.raises(ExpressionError, match="cannot be read here"):
        compile_condition(text, "tool_call", engine_of(engine_name, "tool_call"))


@pytest.mark.parametrize(("text", "why"), [("1 + 1", "reads nothing"), ('"x"', "reads nothing"), ("now", "the time|timestamp")])
def test_an_identity_that_no_action_or_every_action_has_is_refused(engine_of: Make, text: str, why: str) -> None:
    """One approval would cover every call of the tool, or none ever."""
    with pytest.raises(ExpressionError, match=why):
        compile_condition(text, "tool_call", engine_of("cel-python", "tool_call"), kind="json")


def test_a_grants_condition_may_ask_for_the_time(engine_of: Make, engine_name: str, question: Make) -> None:
    """Only in the morning, for one."""
    condition = compile_condition("now.getHours() == 22", "tool_call", engine_of(engine_name, "tool_call"))
    assert condition.value(paying(question)) is True


def test_a_fact_of_another_phase_is_said_to_be_one(engine_of: Make, engine_name: str) -> None:
    """As in a rule's own condition."""
    with pytest.raises(ExpressionError) as caught:
        compile_condition("response.text", "tool_call", engine_of(engine_name, "tool_call"), kind="json")
    assert caught.value.problems[0].hint == 'set phase = "response"'


def test_a_fact_that_cannot_be_read_has_no_value(engine_of: Make, question: Make) -> None:
    """It says which, and quotes nothing."""
    condition = compile_condition("messages.size() > 0", "request", engine_of("cel-expr-python", "request"))
    with pytest.raises(ConditionError, match="messages: `messages` is not a list"):
        condition.value(question({"messages": "secret"}))


def test_what_an_engine_cannot_take_has_no_value(engine: Engine, question: Make) -> None:
    """More values than it may read."""
    condition = compile_condition("tool.args.to.size() > 0", "tool_call", engine_with("tool_call", engine.name))
    with pytest.raises(ConditionError):
        condition.value(paying(question, to=["x"] * 200_001))


def engine_with(phase: Phase, name: str) -> Engine:
    return compile_bundle([], name).phases[phase].engine


# The rules of now


def test_identity_is_the_values_by_their_expressions(question: Make, engine_name: str) -> None:
    """What a caller rewords is not among them."""
    conditions, rules = Conditions(), bundle(engine_name)
    wanted = approval("tool.args.amount", "tool.args.to.lowerAscii()")
    one = conditions.identity(rules, wanted, paying(question, note="please"))
    assert one == {"tool.args.amount": 5, "tool.args.to.lowerAscii()": "acme"}
    assert one == conditions.identity(rules, wanted, paying(question, note="I beg you", to="Acme"))
    assert conditions.identity(rules, approval(), paying(question)) == {}


def test_identity_that_cannot_be_read_is_an_error_and_not_an_identity(question: Make) -> None:
    """Two calls that both lack a field are not the same action."""
    with pytest.raises(ConditionError):
        Conditions().identity(bundle(), approval("tool.args.iban"), paying(question))


@pytest.mark.parametrize(("text", "holds"), [
    ("", True), ("true", True), ("double(tool.args.amount) < 10.0", True), ("double(tool.args.amount) > 10.0", False),
    ("tool.args.iban == 'x'", False), ("nonsense(", False), ("session.calls < 100", False), ("tool.args.to", False),
])
def test_a_grant_holds_only_where_its_condition_is_certainly_true(question: Make, engine_name: str, text: str, holds: bool) -> None:  # noqa: FBT001 - a case
    """Also where it is none by now: rules, lists and facts may have gone since it was made."""
    conditions, rules = Conditions(), bundle(engine_name)
    assert conditions.holds(rules, text, paying(question)) is holds
    assert conditions.holds(rules, text, paying(question)) is holds  # and from what is kept


def test_conditions_are_compiled_once_for_each_bundle_and_bounded(question: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes grants must not be able to fill the memory."""
    monkeypatch.setattr(conditions_module, "MOST_KEPT", 2)
    compiled: list[str] = []

    def counting(text: str, *given: Any, **more: Any) -> Any:
        compiled.append(text)
        return compile_condition(text, *given, **more)

    monkeypatch.setattr(conditions_module, "compile_condition", counting)
    conditions, rules, others = Conditions(), bundle(), bundle(message="other")
    for text, used in (("1 == 1", rules), ("1 == 1", rules), ("2 == 2", rules), ("1 == 1", rules), ("3 == 3", rules), ("2 == 2", rules), ("2 == 2", others)):
        assert conditions.holds(used, text, paying(question))
    assert compiled == ["1 == 1", "2 == 2", "3 == 3", "2 == 2", "2 == 2"]


# At load


def test_a_wrong_identity_is_told_at_load_with_its_place_and_a_caret(engine_name: str) -> None:
    """`lockgate check` has file, line and key."""
    with pytest.raises(ConfigError) as caught:
        bundle(engine_name, approval={"identity": ["tool.args.amount", "tool.arqs.to", "42"]})
    first, second = caught.value.problems
    assert (first.file, first.line, first.key) == ("policies/x.toml", 7, "rule.approval.identity.1")
    assert " | tool.arqs.to\n | " in first.message
    assert "^" in first.message
    assert '(rule "r")' in first.message
    assert (second.key, second.hint) == ("rule.approval.identity.2", "read `tool.args`, or others")
