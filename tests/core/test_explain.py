"""An explanation names the rules that decided, what they saw, and what would have to change; what is not on record it leaves open."""

import json
from typing import Any

import pytest

from gateway.core.explain import LONGEST_VALUE, MOST_PARTS, alternatives, explain


def reason(**given: Any) -> dict[str, Any]:
    return {"rule": "r", "effect": "deny", "verdict": "matched", "source": "policies/x.toml:7", "message": "no", **given}


def call(*reasons: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {"id": "call_1", "received_ns": 0, "key": "key_1", "team": "blue", "operation": "chat", "route": "fast", "outcome": "refused",
            "status": 403, "code": "forbidden", "decision": "deny", "rule": "r", "message": "no", "labels": ["seen"],
            "bundle": "sha256:1", "reasons": list(reasons), "verdicts": [], **given}


def content(*rules: dict[str, Any], **lists: list[str]) -> bytes:
    return json.dumps({"rules": rules, "defaults": {}, "lists": lists}).encode()


def rule(when: str | None = None, **given: Any) -> dict[str, Any]:
    return {"id": "r", "effect": "deny", **({"when": when} if when else {}), **given}


def parts(told: dict[str, Any]) -> list[list[tuple[str, bool | None]]]:
    """The first rule's parts and whether each held."""
    return [[(part["text"], part["held"]) for part in each["parts"]] for each in told["rules"][0]["alternatives"]]


@pytest.mark.parametrize(("when", "expected"), [
    ("a", [["a"]]),
    ("a && b", [["a", "b"]]),
    ("a || b && c", [["a"], ["b", "c"]]),
    ("((a && b))", [["a", "b"]]),
    ("(a) && (b || c)", [["(a)", "(b || c)"]]),
    ("(a || b) && c", [["(a || b)", "c"]]),
    ("x.exists(y, y && z) || [a || b, {k: c && d}][0]", [["x.exists(y, y && z)"], ["[a || b, {k: c && d}][0]"]]),
    ('"a && b" == c && d', [['"a && b" == c', "d"]]),
    (r"""'it\'s || so' == c || d""", [[r"""'it\'s || so' == c"""], ["d"]]),
    ('r"\\" == c && d', [['r"\\" == c', "d"]]),
    ('"""a " && b""" == c && d', [['"""a " && b""" == c', "d"]]),
    ("r'''a ' && b''' == c && d", [["r'''a ' && b''' == c", "d"]]),
    ("a // && not here\n&& b", [["a // && not here", "b"]]),
    ("a ? b && c : d", [["a ? b && c : d"]]),
    ("a && b ? c : d", [["a && b ? c : d"]]),
    ("tool.args.?x.orValue(1) > 2 && b", [["tool.args.?x.orValue(1) > 2", "b"]]),
    ("  a\n  && b ", [["a", "b"]]),
    ("(a) ", [["a"]]),
    ("", [[""]]),
])
def test_an_expression_is_split_where_its_parts_stand_on_top(when: str, expected: list[list[str]]) -> None:
    """A sign within brackets, a text or a comment joins nothing on top."""
    assert alternatives(when) == expected


def test_a_long_expression_is_one_part() -> None:
    """What is told stays short."""
    when = " && ".join(["a"] * (MOST_PARTS + 1))
    assert alternatives(when) == [[when]]


def test_the_parts_of_a_rule_that_matched_all_held_and_show_what_they_read() -> None:
    """Where all had to be true, all were."""
    told = explain(call(reason(values={"route": "large", "request.max_tokens": 5000, "principal.team": "blue"})),
                   content(rule('route == "large" && request.max_tokens > 10 && !("x" in tags)')))
    assert (told["decision"], told["rule"], told["labels"]) == ("deny", "r", ["seen"])
    assert told["bundle"] == {"digest": "sha256:1", "known": True}
    assert parts(told) == [[('route == "large"', True), ("request.max_tokens > 10", True), ('!("x" in tags)', True)]]
    assert [part["values"] for part in told["rules"][0]["alternatives"][0]["parts"]] == [{"route": "large"}, {"request.max_tokens": 5000}, {}]
    assert told["change"] == [
        'For rule r not to match, one of these would have to be false: `route == "large"` (route was "large"), `request.max_tokens > 10` (request.max_tokens was 5000), `!("x" in tags)`.']


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_of_alternatives_those_that_held_are_told_by_asking_again(engine: str) -> None:
    """With what is on record, and only where it is on record whole."""
    values = {"route": "large", "request.max_tokens": 5, "now": "2026-11-22 03:00:00+00:00", "texts": "[list of 9]"}
    when = 'request.max_tokens > 10 || route == "large" && now.getHours() == 3 || texts.exists(t, t == "x")'
    told = explain(call(reason(values=values)), content(rule(when)), engine)
    assert parts(told) == [[("request.max_tokens > 10", False)], [('route == "large"', True), ("now.getHours() == 3", True)],
                           [('texts.exists(t, t == "x")', None)]]
    assert [each["held"] for each in told["rules"][0]["alternatives"]] == [False, True, None]
    assert told["change"][0].startswith("For rule r not to match, one of these would have to be false: `route")
    assert "and `texts" in told["change"][0]


def test_where_no_other_alternative_held_the_last_one_did() -> None:
    """Something made the rule match."""
    told = explain(call(reason(values={"route": "small"})), content(rule('route == "large" || texts.size() > 1')))
    assert parts(told) == [[('route == "large"', False)], [("texts.size() > 1", True)]]
    assert told["change"] == ["For rule r not to match, `texts.size() > 1` would have to be false."]


@pytest.mark.parametrize(("when", "values"), [
    ("session.calls > 1 || route.in_list('models')", {"route": "x… [70 characters]", "session.calls": "[3 characters]"}),
    ("session.called('a') || route == 'x'", {}),
    ("session.age > duration('1h') || route == 'x'", {"session.age": "1:00:00"}),
    ("tags['a'] == 'b' || route == 'x'", {"tags": {"a": "[1 characters]"}}),
    ("tags['a'] == 'b' || route == 'x'", {"tags": {}}),
    ("principal.roles.exists(x, x == 'b') || route == 'x'", {"principal.roles": ["[1 characters]"]}),
    ("no such rule || route == 'x'", {}),
    ("route == 'x' || unheard.of == 1", {"unheard.of": 1}),
])
def test_what_is_not_on_record_whole_is_left_open(when: str, values: dict[str, Any]) -> None:
    """Nothing is guessed: a shortened value, an unknown one, a part that cannot be read, what the session had done."""
    assert [[held for _, held in each] for each in parts(explain(call(reason(values=values)), content(rule(when))))] == [[None], [None]]


def test_lists_are_those_of_then() -> None:
    """The content of a bundle holds its lists."""
    told = explain(call(reason(values={"route": "x"})), content(rule("route.in_list('ours') || route == 'y'"), ours=["x"]))
    assert parts(told) == [[("route.in_list('ours')", True)], [("route == 'y'", False)]]


def test_a_rule_that_matches_by_its_keys_alone_names_them() -> None:
    """There is no expression to take apart."""
    told = explain(call(reason()), content(rule(match={"teams": ["interns", "guests"], "tools": ["bank.*"]})))
    assert told["rules"][0]["match"] == {"teams": ["interns", "guests"], "tools": ["bank.*"]}
    assert told["change"] == [
        "For rule r not to match, the call would have to be outside of its match (teams interns or guests, tools bank.*)."]


def test_a_rule_of_a_team_is_for_that_team() -> None:
    """And names the keys beside its expression."""
    told = explain(call(reason()), content(rule("request.stream", team="blue")))
    assert told["change"] == ["For rule r not to match, `request.stream` would have to be false, or the call would have to be outside of its match (teams blue)."]


def test_a_rule_that_matches_everything_says_so() -> None:
    """Nobody can call around it."""
    assert explain(call(reason()), content(rule()))["change"] == [
        "For rule r not to match, it would have to be changed: it matches everything."]


def test_a_rule_that_could_not_be_evaluated_says_why() -> None:
    """What has to be there comes first."""
    told = explain(call(reason(verdict="error", message="policy_error: messages: `messages` is not a list", values={"route": "x"})),
                   content(rule("messages.size() > 1 && route == 'x'")))
    assert parts(told) == [[("messages.size() > 1", None), ("route == 'x'", True)]]
    assert told["change"] == ["Rule r would have to be evaluated, which failed (policy_error: messages: `messages` is not a list); then it would have to be false."]


def test_every_rule_that_decides_would_have_to_change_and_no_other() -> None:
    """A shadow rule, a label and a tool that was not offered stopped nothing."""
    told = explain(call(reason(), reason(rule="second"), reason(rule="dark", shadow=True), reason(rule="seen", effect="log"),
                        reason(rule="unoffered", offered=False, phase="tool_call", subject="x")), content(rule(), rule(id="second")))
    assert [(each["rule"], each["decisive"]) for each in told["rules"]] == [
        ("r", True), ("second", True), ("dark", False), ("seen", False), ("unoffered", False)]
    assert len(told["change"]) == 2


def test_a_call_that_waits_for_a_person_names_the_rules_that_ask_for_one() -> None:
    """They stand in the way, and no `deny` does."""
    told = explain(call(reason(effect="require_approval"), decision="held"), content(rule("request.stream", effect="require_approval")))
    assert told["change"] == ["For rule r not to match, `request.stream` would have to be false."]


@pytest.mark.parametrize(("operation", "rules", "expected"), [
    ("chat", [rule(id="a", effect="allow"), rule(id="off", effect="allow", mode="off"), rule(id="t", effect="allow", phase="tool_call")],
     "One of the `allow` rules of phase request would have to match: a."),
    ("tool", [rule(id="a", effect="allow"), rule(id="t", effect="allow", phase="tool_call")],
     "One of the `allow` rules of phase tool_call would have to match: t."),
    ("chat", [], "There would have to be an `allow` rule of phase request: nothing is let through without one."),
])
def test_what_no_rule_allows_needs_a_rule_that_does(operation: str, rules: list[dict[str, Any]], expected: str) -> None:
    """By default nothing is allowed there."""
    assert explain(call(rule="default", operation=operation), content(*rules))["change"] == [expected]


def test_arguments_that_do_not_fit_are_the_models_to_change() -> None:
    """The gateway itself refused them, by no rule."""
    verdict = {"phase": "tool_call", "subject": "pay", "decision": "deny", "rule": "arguments", "message": "bad", "bundle": "sha256:1",
               "reasons": [reason(rule="arguments", phase="tool_call", subject="pay")]}
    told = explain(call(decision="allow", rule=None, code=None, verdicts=[verdict]), content(rule()))
    assert told["change"] == []
    later = told["later"][0]
    assert (later["phase"], later["subject"], later["decision"]) == ("tool_call", "pay", "deny")
    assert later["change"] == ["The arguments of the tool call would have to be JSON that fits the tool's own schema."]


@pytest.mark.parametrize(("given", "expected"), [
    ({"decision": None, "rule": None, "code": "unknown_route", "reasons": [], "bundle": None}, "The call ended before the rules were asked."),
    ({"decision": "allow", "code": "rate_limited"}, "The rules allow the call, but not so often: wait, or raise the limit."),
    ({"decision": "allow", "code": "budget_exceeded", "account": "month/blue"},
     "The rules allow the call, but the account month/blue has not enough money left: wait for its next window, or raise its limit."),
    ({"decision": "allow", "code": "budget_busy", "account": "month/{x}"},
     "The rules allow the call, but the rest of the account month/{x} was held by calls in flight: try again."),
    ({"decision": "allow", "code": "price_unknown"},
     "The rules allow the call, but a budget binds it, and nobody knows what it costs: set the price of its target."),
])
def test_what_no_rule_ended_says_what_did(given: dict[str, Any], expected: str) -> None:
    """An explanation is asked for any call."""
    assert explain(call(**given), None)["change"] == [expected]


def test_how_a_call_that_was_let_through_ended_is_no_reason_of_the_decision() -> None:
    """Its message is on the call, and stands where it is told what the client got."""
    failed = explain(call(decision="allow", rule=None, outcome="failed", code="upstream_failed", message="Every attempt failed."), None)
    assert (failed["message"], failed["call"]["message"]) == ("", "Every attempt failed.")
    assert "Every attempt failed." in failed["answer"]["said"]
    denied = explain(call(decision="deny", message="No."), None)
    assert denied["message"] == "No."


def test_without_the_rules_of_then_the_record_is_told_and_no_more() -> None:
    """They may have been decided under an older version, which kept none."""
    told = explain(call(reason(values={"route": "x"})), None)
    assert told["bundle"]["known"] is False
    assert (told["rules"][0]["values"], told["rules"][0]["when"], told["rules"][0]["alternatives"]) == ({"route": "x"}, None, [])
    assert told["change"][-1] == "The rules that were in force are not on record any more, so it cannot be said what they look at."


def test_no_value_is_long() -> None:
    """Whoever wrote the record."""
    long = "x" * (LONGEST_VALUE + 1)
    short = f"{long[:LONGEST_VALUE]}… [65 characters]"
    told = explain(call(reason(values={"a": long, "b": [long, 1], "c": {"d": long}, "e": short})), None)
    assert told["rules"][0]["values"] == {"a": short, "b": [short, 1], "c": {"d": short}, "e": short}


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_money_is_told_in_usd_and_decided_in_whole_numbers(engine: str) -> None:
    """People read 4.5 USD, and the part is evaluated on what was on record."""
    when = '"team" in budget.remaining && budget.remaining["team"] < usd("5") || session.spend > usd("1") || user == "x"'
    values = {"budget.remaining": {"team": 4_500_000_000, "any": -1}, "session.spend": 7, "user": "[3 characters]"}
    told = explain(call(reason(values=values)), content(rule(when)), engine)
    assert parts(told) == [[('"team" in budget.remaining', True), ('budget.remaining["team"] < usd("5")', True)],
                           [('session.spend > usd("1")', False)], [('user == "x"', None)]]
    assert told["rules"][0]["values"] == values
    assert '(budget.remaining was {"team": "4.5 USD", "any": "-0.000000001 USD"})' in told["change"][0]


def test_what_somebody_else_wrote_as_an_amount_is_shown_as_it_is() -> None:
    """A record is a file, and files are edited."""
    told = explain(call(reason(values={"session.spend": "much", "budget.limit": {"team": "more"}})),
                   content(rule("session.spend > 5 && budget.limit.team > 5")))
    assert '(session.spend was "much")' in told["change"][0]
    assert '(budget.limit was {"team": "more"})' in told["change"][0]
