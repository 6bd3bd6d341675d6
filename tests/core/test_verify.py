"""What a read says of an action that nobody knows the end of: yes, no, or nothing. What cannot be evaluated says nothing."""

from typing import Any

import pytest

from gateway.core.condition import ConditionError
from gateway.core.detectors import Detectors
from gateway.core.expressions import Library
from gateway.core.verify import Engines, Verify, compile_verify, open_engines
from gateway.tool_config import VerifyConfig

SENT = {"account": "DE1", "id": 7, "lines": [{"amount": 2.5}]}
LIBRARY = Library({}, Detectors(()))


@pytest.fixture(params=["cel-expr-python", "cel-python"])
def engines(request: pytest.FixtureRequest) -> Engines:
    return open_engines(request.param, LIBRARY)


def compiled(engines: Engines, happened: str = "true == result.paid", **arguments: str) -> Verify | list[Any]:
    return compile_verify(VerifyConfig.model_validate({"tool": "bank.status", "arguments": arguments, "happened": happened}), engines)


def problems_of(engines: Engines, happened: str) -> list[Any]:
    made = compiled(engines, happened)
    assert isinstance(made, list)
    return made


def verify(engines: Engines, happened: str = "true == result.paid", **arguments: str) -> Verify:
    made = compiled(engines, happened, **arguments)
    assert isinstance(made, Verify), made
    return made


def test_the_read_is_made_of_what_was_sent_and_its_key(engines):
    made = verify(engines, id="arguments.id", key="key", account='arguments.account + "-" + key', first="arguments.lines[0].amount", all="arguments.lines")
    assert made.asks(SENT, "apr_1") == {"id": 7, "key": "apr_1", "account": "DE1-apr_1", "first": 2.5, "all": [{"amount": 2.5}]}
    assert (made.tool, made.after_s, made.attempts, made.every_s) == ("bank.status", 5.0, 3, 30.0)


@pytest.mark.parametrize("source", ["arguments.nothing", "arguments.id / 0", "1.0 / 0.0"])
def test_what_cannot_be_asked_is_not(engines, source):
    with pytest.raises(ConditionError):
        verify(engines, id=source).asks(SENT, "apr_1")


@pytest.mark.parametrize(("happened", "status", "result", "said"), [
    ('result.status == "paid"', 200, {"status": "paid"}, True), ('result.status == "paid"', 200, {"status": "open"}, False),
    ('result == "yes"', 200, "yes", True), ("size(result) > 0", 200, [], False), ("result != null", 200, None, False),
    ('status == 200 && result.status == "paid"', 404, None, False), ("status != 404", 404, None, False), ("status == 409", 409, None, True)])
def test_the_answer_says_yes_or_no(engines, happened, status, result, said):
    assert verify(engines, happened).says(status, result) is said


@pytest.mark.parametrize(("happened", "status", "result"), [
    ('result.status == "paid"', 200, {}), ('result.status == "paid"', 200, None), ('result.status == "paid"', 200, "text"), ("result", 200, "yes"),
    ("result != null", 404, None), ('result.status == "paid"', 500, {"status": "paid"})])
def test_an_answer_that_cannot_be_read_says_nothing(engines, happened, status, result):
    with pytest.raises(ConditionError):
        verify(engines, happened).says(status, result)


@pytest.mark.parametrize(("happened", "arguments", "paths"), [
    ("result.paid ==", {}, [("happened",)]), ("results.paid", {}, [("happened",)]), ("true", {}, [("happened",)]),
    ("result.paid", {"id": "argument.id"}, [("arguments", "id")]), ("result.paid", {"id": "result"}, [("arguments", "id")]),
    ("key == result", {"a": "arguments.", "b": "key"}, [("arguments", "a"), ("happened",)])])
def test_what_is_wrong_is_found_with_its_place(engines, happened, arguments, paths):
    problems: Any = compiled(engines, happened, **arguments)
    assert sorted({each.path for each in problems}) == sorted(paths)


def test_nothing_is_asked_of_a_session(engines):
    problem: Any
    (problem,) = problems_of(engines, 'session.count("bank.pay") == 1 && result.paid')
    assert problem.problem.message == '`session.count("bank.pay")` cannot be asked for here'
