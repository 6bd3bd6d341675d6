"""A decision becomes what happens: it goes on, ends, goes elsewhere, or is counted."""

from typing import Any

import pytest

from gateway.call import Call, Origin, Principal, Target
from gateway.core.decision import Allowed, Approval, Decision, Denied, Held, Limit, Rerouting
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget
from gateway.core.rate import Rates
from gateway.enact import count, enact, rerouted
from gateway.errors import ApprovalUnavailable, Forbidden, RateLimited

SECOND_NS = 1_000_000_000
BASE: dict[str, Any] = {"reasons": (), "labels": (), "bundle": "sha256:x"}


def call(session: str | None = None, **of_principal: Any) -> Call:
    who = Principal(**{"id": "key_1", "team": "blue", "org": "acme", **of_principal})
    return Call("call_1", who, "openai", "chat", "fast", {}, stream=False, size=2, received_ns=0, origin=Origin(session=session))


def allowed(**obligations: Any) -> Allowed:
    return Allowed("r", None, None, **BASE, **obligations)


def denied() -> Denied:
    return Denied("no", "Not so.", "Do this.", **BASE)


def held(*approvals: Approval, message: str | None = "Not alone.") -> Held:
    return Held("ask", message, "Ask Ada.", **BASE, approvals=approvals)


def test_what_is_allowed_goes_on():
    enact(allowed())


def test_a_denial_names_its_rule_what_is_wrong_and_what_to_do():
    with pytest.raises(Forbidden) as caught:
        enact(denied())
    assert (caught.value.code, caught.value.status) == ("forbidden", 403)
    assert (caught.value.rule, caught.value.message, caught.value.remedy) == ("no", "Not so.", "Do this.")


def test_a_denial_without_words_is_one_all_the_same():
    with pytest.raises(Forbidden) as caught:
        enact(Denied(None, None, None, **BASE))
    assert (caught.value.rule, caught.value.message) == ("", "")


@pytest.mark.parametrize(("decision", "message"), [
    (held(), "Not alone. Nobody can be asked here, so it is refused."),
    (held(message=None), "Nobody can be asked here, so it is refused."),
    (held(Approval("a", ("role:finance", "team:ops"), 2), Approval("b", ("role:finance",))),
     "Not alone. It needs 2 of role:finance, team:ops. Nobody can be asked here, so it is refused.")], ids=["nobody", "no words", "of two rules"])
def test_an_approval_that_nobody_can_give_is_a_refusal_that_says_so(decision, message):
    with pytest.raises(ApprovalUnavailable) as caught:
        enact(decision)
    assert (caught.value.code, caught.value.status) == ("approval_unavailable", 403)
    assert (caught.value.rule, caught.value.message, caught.value.remedy) == ("ask", message, "Ask Ada.")


def route(name: str, *targets: str, operations: tuple[str, ...] = ("chat",)) -> Route:
    made = tuple(RouteTarget(Target(*target.split("/")), None) for target in targets)
    return Route(name, frozenset(operations), made, Deadlines(1, 1, 1, 1, 1), Retry(1, 0, 0))


ROUTES = {each.name: each for each in (route("fast", "us/a", "eu/b"), route("slow", "eu/c"), route("vectors", "eu/d", operations=("embeddings",)))}


@pytest.mark.parametrize("decision", [allowed(), denied(), held()])
def test_a_call_goes_where_it_was_to_go_where_no_rule_says_otherwise(decision):
    assert rerouted(ROUTES["fast"], call(), decision, ROUTES) is ROUTES["fast"]


def test_a_call_goes_where_the_rules_say():
    elsewhere = rerouted(ROUTES["fast"], call(), allowed(reroutings=(Rerouting("r", to="slow"),)), ROUTES)
    assert elsewhere == ROUTES["slow"]
    inside = rerouted(ROUTES["fast"], call(), allowed(reroutings=(Rerouting("r", only=("eu/*",)),)), ROUTES)
    assert [str(each.target) for each in inside.targets] == ["eu/b"]


@pytest.mark.parametrize("change", [Rerouting("r", to="nowhere"), Rerouting("r", to="vectors"), Rerouting("r", remove=("*",))])
def test_a_call_that_the_rules_leave_nowhere_to_go_is_refused_in_their_name(change):
    with pytest.raises(Forbidden, match="leave nowhere") as caught:
        rerouted(ROUTES["fast"], call(), allowed(reroutings=(change,)), ROUTES)
    assert caught.value.rule == "r"


def limited(*limits: Limit, subject: str = "") -> Decision:
    return Allowed("r", None, None, **BASE, limits=limits, subject=subject)


def test_a_limit_that_is_used_up_says_when_to_come_back():
    rates, two_a_minute = Rates(), limited(Limit("often", 2, 60.0, ("key",)))
    for _ in range(2):
        count(rates, call(), two_a_minute, 0)
    with pytest.raises(RateLimited) as caught:
        count(rates, call(), two_a_minute, SECOND_NS)
    assert (caught.value.status, caught.value.rule, caught.value.retry_after_s) == (429, "often", 29)
    assert "2 in 60 s" in caught.value.message
    count(rates, call(), two_a_minute, 30 * SECOND_NS)


def test_no_client_is_told_to_wait_for_longer_than_clients_do():
    rates, once_a_day = Rates(), limited(Limit("daily", 1, 86400.0, ("key",)))
    count(rates, call(), once_a_day, 0)
    with pytest.raises(RateLimited) as caught:
        count(rates, call(), once_a_day, 0)
    assert caught.value.retry_after_s == 60
    assert "86400 s" in caught.value.message


def test_a_wait_of_less_than_a_second_is_one():
    rates, often = Rates(), limited(Limit("often", 10, 1.0, ("key",)))
    for _ in range(10):
        count(rates, call(), often, 0)
    with pytest.raises(RateLimited) as caught:
        count(rates, call(), often, 0)
    assert caught.value.retry_after_s == 1


@pytest.mark.parametrize(("by", "other"), [
    ("key", call(id="key_2")), ("team", call(team="red")), ("org", call(org="other")), ("session", call(session="s2")), ("session", call("s1", id="key_2"))])
def test_each_combination_has_a_count_of_its_own(by, other):
    rates, once = Rates(), limited(Limit("once", 1, 60.0, (by,)))
    count(rates, call("s1"), once, 0)
    count(rates, other, once, 0)
    for each in (call("s1"), other):
        with pytest.raises(RateLimited):
            count(rates, each, once, 0)


def test_tools_are_counted_apart_where_a_rule_counts_by_tool():
    rates, limit = Rates(), Limit("once", 1, 60.0, ("key", "tool"))
    count(rates, call(), limited(limit, subject="pay"), 0)
    count(rates, call(), limited(limit, subject="see"), 0)
    with pytest.raises(RateLimited):
        count(rates, call(), limited(limit, subject="pay"), 0)


def test_what_one_limit_refuses_uses_up_no_other():
    rates = Rates()
    wide, narrow = Limit("wide", 2, 60.0, ("key",)), Limit("narrow", 1, 60.0, ("key",))
    count(rates, call(), limited(wide, narrow), 0)
    with pytest.raises(RateLimited, match="narrow"):
        count(rates, call(), limited(wide, narrow), 0)
    count(rates, call(), limited(wide), 0)


@pytest.mark.parametrize("decision", [denied(), allowed(), held()])
def test_what_has_no_limit_is_not_counted(decision):
    rates = Rates()
    count(rates, call(), decision, 0)
    assert repr(rates) == "Rates(counts=0)"
