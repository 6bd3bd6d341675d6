"""The money of one call: whose accounts it is on, what it asks its target for, what rules and callers are told of it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.call import Call, Origin, Principal, Target
from gateway.core.accounts import Account
from gateway.core.budget import Balance, Granted, Holding, Short
from gateway.core.estimate import Bounds, Measure, input_bound
from gateway.core.money import Price
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget
from gateway.core.windows import Window
from gateway.errors import BudgetBusy, BudgetExceeded, InvalidRequest, PriceUnknown
from gateway.spending import Spending, budget_facts, likely_tokens, refusal, spending_of, subjects_of
from gateway.store.protocol import Standing

WHO = Principal("key_1", name="n", team="search", org="acme")
TO = RouteTarget(Target("p", "m"), Price(1_000_000, 2_000_000), Bounds())
ROUTE = Route("fast", frozenset({"chat"}), (TO,), Deadlines(1, 1, 1, 1, 1), Retry(1, 0, 0))


def call_of(body: Any = None, **given: Any) -> Call:
    body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]} if body is None else body
    usual = {"id": "c", "principal": WHO, "dialect": "openai", "operation": "chat", "route": "fast", "body": body, "stream": False,
             "size": len(json.dumps(body)), "received_ns": 0}
    return Call(**{**usual, **given})


def standing(scope: Any, limit: int | None, posted: int = 0, pending: int = 0, soft: int | None = None) -> Standing:
    return Standing(Account("b", scope, scope, limit, soft_nusd=soft), Balance(posted, pending), 0, None)


def same(text: str) -> str:
    return text


def test_a_call_is_on_the_accounts_of_everything_that_it_names():
    origin = Origin(session="s 1", run="r", tags={"env": "prod", "job": "7"})
    assert subjects_of(call_of(user="ada", origin=origin), "slow", same) == {
        "all": ("all",), "key": ("key_1",), "org": ("acme",), "team": ("search",), "user": ("key_1/ada",), "session": ("key_1/s 1",),
        "run": ("key_1/r",), "route": ("slow",), "tag": ("env=prod", "job=7")}


def test_a_scope_that_a_call_has_not_is_not_there():
    alone = call_of(principal=Principal("key_1"))
    assert subjects_of(alone, "fast", same) == {"all": ("all",), "key": ("key_1",), "route": ("fast",)}


def test_a_call_of_a_tool_is_on_the_tools_account_and_on_no_routes():
    found = subjects_of(call_of({}, operation="tool", route="weather"), "weather", same)
    assert (found["tool"], "route" in found) == (("weather",), False)


def test_two_keys_that_name_the_same_user_share_no_account():
    other = call_of(user="ada", principal=replace(WHO, id="key_2"))
    assert subjects_of(call_of(user="ada"), "f", same)["user"] != subjects_of(other, "f", same)["user"]


def test_a_secret_in_a_name_is_not_kept():
    found = subjects_of(call_of(user="sk-secret", origin=Origin(session="sk-secret", tags={"k": "sk-secret"})), "f",
                        lambda text: text.replace("sk-secret", "[redacted]"))
    assert "sk-secret" not in str(found)
    assert found["tag"] == ("k=[redacted]",)


def test_the_size_is_that_of_the_body_as_it_is_sent():
    call = call_of()
    assert spending_of(call, ROUTE, call.body, same).measured.size == call.size
    changed = replace(call, body={**call.body, "messages": [{"role": "user", "content": "x" * 1000}]})
    assert spending_of(changed, ROUTE, call.body, same).measured.size > 1000


def test_a_schema_that_a_template_writes_over_many_lines_is_still_bounded():
    """Some templates indent what tools are: every number on a line of its own, with its blanks and its comma."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": list(range(10)) * 200}}}]
    call = call_of({"model": "fast", "messages": [], "tools": tools})
    seen = spending_of(call, ROUTE, call.body, same).measured
    lines = json.dumps(tools, indent=4).split("\n")
    assert input_bound(seen, Bounds()) > 3 * len(lines)  # a number, a comma, a line's end with its blanks


def test_numbers_that_are_written_short_and_sent_long_are_counted_as_they_are_sent():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [1e15] * 500}}}]
    call = call_of({"model": "fast", "messages": [], "tools": tools}, size=6 * 500)
    assert spending_of(call, ROUTE, call.body, same).measured.size > 18 * 500


def test_a_limit_that_cannot_be_read_is_refused_before_any_money_is_touched():
    with pytest.raises(InvalidRequest):
        spending_of(call_of({"max_tokens": "5"}), ROUTE, {}, same)


def test_nothing_of_a_body_is_changed_where_no_account_limits_it():
    call = call_of()
    spending = Spending({}, Measure(10, asked=5000))
    assert spending.body(call, TO) is call.body
    spending.granted = Granted(7, None)
    assert spending.body(call, TO) is call.body
    assert spending.shortened is None


def test_a_call_that_produces_no_tokens_is_sent_as_it_is():
    call = call_of({"input": "a"}, operation="embeddings")
    assert Spending({}, Measure(10, produces=False), Granted(7, 0)).body(call, TO) is call.body


@pytest.mark.parametrize(("asked", "bounds", "units", "told"), [
    (100, Bounds(), 100, None), (100, Bounds(), 99, 99), (None, Bounds(), 4096, None), (None, Bounds(), 4095, 4095),
    (None, Bounds(max_output=50), 50, None), (500, Bounds(max_output=50), 50, 50)])
def test_a_client_is_told_where_its_answer_may_not_be_as_long_as_it_asked(asked, bounds, units, told):
    spending = Spending({}, Measure(10, asked=asked), Granted(7, units))
    sent = spending.body(call_of({} if asked is None else {"max_tokens": asked}), replace(TO, bounds=bounds))
    assert (sent["max_tokens"], spending.shortened) == (units, told)


def test_what_an_attempt_needs_is_by_its_targets_price():
    spending = Spending({}, Measure(10, asked=9))
    assert (spending.need(TO).unit_pusd, spending.need(replace(TO, price=Price(1, 7))).unit_pusd) == (2_000_000, 7)
    assert spending.need(replace(TO, price=None)).unpriced


def test_a_second_target_is_asked_in_its_own_words():
    call, spending = call_of({"max_tokens": 9}), Spending({}, Measure(10, asked=9), Granted(7, 5))
    assert spending.body(call, TO) == {"max_tokens": 5}
    assert spending.body(call, replace(TO, bounds=Bounds(output_limit="max_completion_tokens"))) == {"max_completion_tokens": 5}


def test_what_is_left_is_that_of_the_tightest_account_and_never_negative():
    spending = Spending({}, Measure(10))
    assert spending.tightest is None
    spending.standings = [standing("all", None, 5), standing("team", 100, 20, 30), standing("key", 90, 1)]
    assert spending.tightest == ("b/team", 50)
    spending.standings = [standing("team", 100, 200)]
    assert spending.tightest == ("b/team", 0)


def test_the_accounts_that_have_reached_their_soft_limit_warn():
    spending = Spending({}, Measure(10), standings=[
        standing("all", None, 5, soft=5), standing("team", 100, 4, 90, soft=5), standing("key", 100, 6, soft=5), standing("org", 1, 9)])
    assert spending.warnings == ("b/all", "b/key")


def test_rules_read_the_tightest_account_of_each_scope_and_of_all():
    facts = budget_facts([standing("team", 100, 20, 30), standing("team", 60, 50), standing("key", 200, 5), standing("all", None, 70)])
    assert facts.remaining == {"team": 10, "key": 195, "any": 10}
    assert facts.limit == {"team": 60, "key": 200, "any": 60}
    assert facts.spent == {"team": 50, "key": 5, "any": 50, "all": 70}


@pytest.mark.parametrize("standings", [[standing("all", None, 70), standing("all", 100, 20)], [standing("all", 100, 20), standing("all", None, 70)]])
def test_an_account_with_a_limit_is_told_before_one_without(standings):
    facts = budget_facts(standings)
    assert (facts.remaining, facts.spent) == ({"all": 80, "any": 80}, {"all": 20, "any": 20})


def test_accounts_that_are_overdrawn_are_told_as_they_are():
    assert budget_facts([standing("all", 100, 150)]).remaining["any"] == -50


@pytest.mark.parametrize(("measured", "tokens"), [
    (Measure(400, asked=50), 151), (Measure(400), 1125), (Measure(400, asked=10**9, choices=2), 101 + 2048), (Measure(0, produces=False), 1),
    (Measure(400, produces=False), 101)])
def test_a_rate_in_tokens_takes_what_is_likely_and_not_what_is_possible(measured, tokens):
    assert likely_tokens(measured) == tokens


def short(why: Any, window: Window, window_ns: int = 0) -> Short:
    account = Account("b", "team", "team", 2_000_000_000, window)
    return Short(Holding(account, window_ns, Balance(1_500_000_000, 400_000_000)), why, 123_000_000)


FIGURES = {"limit_usd": "2", "used_usd": "1.5", "reserved_usd": "0.4", "needed_usd": "0.123"}


def test_an_exceeded_budget_says_which_how_much_and_until_when():
    error = refusal(short("exceeded", Window("day", "Europe/Berlin"), Window("day", "Europe/Berlin").at(1_795_000_000 * 10**9)), "p/m")
    assert type(error) is BudgetExceeded
    assert (error.account, error.figures) == ("b/team", {**FIGURES, "resets_at": "2026-11-18T23:00:00Z"})
    assert (error.status, error.should_retry, error.retry_after_s) == (429, False, None)
    for told in ("b/team", "1.5 USD of 2", "0.4", "0.123", "resets at 2026-11-18T23:00:00Z"):
        assert told in error.message


def test_a_budget_without_a_window_does_not_promise_to_reset():
    error = refusal(short("exceeded", Window()), "p/m")
    assert isinstance(error, BudgetExceeded)
    assert error.figures["resets_at"] is None
    assert "does not reset by itself" in error.message


def test_a_busy_budget_says_to_try_again_in_a_moment():
    error = refusal(short("busy", Window()), "p/m")
    assert isinstance(error, BudgetBusy)
    assert (error.status, error.should_retry, error.retry_after_s) == (429, True, 1)
    assert error.figures == {**FIGURES, "resets_at": None}


def test_a_price_that_nobody_knows_names_the_budget_and_the_target():
    error = refusal(short("unpriced", Window()), "p/m")
    assert isinstance(error, PriceUnknown)
    assert (error.status, error.should_retry) == (403, False)
    assert "b/team" in error.message
    assert "p/m" in error.message
