"""Tool calls of one answer see each other."""

import pytest

from gateway.call import ToolUse
from gateway.core.session_uses import with_uses
from gateway.session import SessionFacts, SessionQuery

CALLED, COUNT, LAST = (SessionQuery(function, "pay") for function in ("called", "count", "last"))
SUM = SessionQuery("sum", "pay", None, "args.amount")
FACTS = SessionFacts(answers={CALLED: False, COUNT: 1, LAST: None, SUM: 5.0})


def use(name: str = "pay", *, released: bool = True, via: str = "model", **args: object) -> ToolUse:
    return ToolUse("call", "id", name, via, args, released, 7)


def test_what_was_let_through_counts():
    facts = with_uses(FACTS, [use(amount=10), use(amount=2.5)])
    assert facts.answers == {CALLED: True, COUNT: 3, LAST: {"args": {"amount": 2.5}, "result": None, "at_ns": 7}, SUM: 17.5}
    assert FACTS.answers[COUNT] == 1


def test_what_was_refused_or_is_another_tool_or_is_on_record_already_does_not():
    assert with_uses(FACTS, [use(released=False), use("other"), use(via="http")]).answers == FACTS.answers
    assert with_uses(FACTS, []) is FACTS


@pytest.mark.parametrize("args", [{}, {"amount": "10"}, {"amount": True}, {"amount": None}, {"amount": {"x": 1}}])
def test_a_sum_over_what_is_no_number_is_unknown(args):
    assert SUM not in with_uses(FACTS, [use(**args)]).answers


def test_a_path_goes_through_objects_only():
    deep = SessionQuery("sum", "pay", None, "args.a.b")
    assert with_uses(SessionFacts(answers={deep: 0.0}), [use(a={"b": 2})]).answers == {deep: 2.0}
    assert with_uses(SessionFacts(answers={deep: 0.0}), [use(a=3)]).answers == {}
