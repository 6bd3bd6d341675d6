"""Errors as RFC 9457: every one can be written, and says what a program needs."""

import orjson
import pytest

from gateway.errors import ApprovalPending, ApprovalUnavailable, BudgetExceeded, Forbidden, InvalidRequest, Overloaded, RateLimited
from gateway.wire.problem import problem

PLAIN = {"type": "about:blank", "title": "overloaded", "status": 503, "detail": "Later.", "code": "overloaded"}


@pytest.mark.parametrize(("error", "more"), [
    (Forbidden("Later.", rule="r"), {"rule": "r"}),
    (ApprovalUnavailable("Later.", rule="r", remedy="Ask."), {"rule": "r", "remedy": "Ask."}),
    (RateLimited("Later.", rule="r", retry_after_s=3), {"rule": "r"}),
    (ApprovalPending("Later.", ticket="apr_1", rule="r"), {"rule": "r", "ticket": "apr_1"}),
    (BudgetExceeded("Later.", account="b/team", figures={"limit_usd": "2", "resets_at": None}),
     {"account": "b/team", "limit_usd": "2", "resets_at": None}),
    (InvalidRequest("Later.", pointer="/a"), {"pointer": "/a"}),
    (InvalidRequest("Later.", pointer=""), {"pointer": ""}),
    (InvalidRequest("Later."), {}),
])
def test_an_error_says_what_it_knows_and_no_more(error, more):
    told = orjson.loads(problem(error, None))
    assert told == {**PLAIN, "title": error.code, "code": error.code, "status": error.status, **more}


def test_the_call_is_named_where_there_is_one():
    assert orjson.loads(problem(Overloaded("Later."), "call_1")) == {**PLAIN, "call_id": "call_1"}


def test_what_is_not_unicode_becomes_a_question_mark():
    assert orjson.loads(problem(InvalidRequest("a\udcffb", pointer="/\ud800"), None))["detail"] == "a?b"
