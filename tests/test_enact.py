"""A decision becomes what happens: it goes on, ends, goes elsewhere, or is counted."""

from typing import Any

import pytest

from gateway.call import Call, Origin, Principal, Target
from gateway.core.accounts import SCOPES, Scope, Subjects
from gateway.core.approval import Demand, Stage
from gateway.core.decision import Allowed, Approval, Denied, Held, Limit, Rerouting
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget
from gateway.core.rate import Spent, Take
from gateway.enact import enact, rate_spent, rerouted, takes_of
from gateway.errors import Forbidden

MINUTE_NS = 60_000_000_000
BASE: dict[str, Any] = {"reasons": (), "labels": (), "bundle": "sha256:x"}


def call() -> Call:
    return Call("call_1", Principal("key_1"), "openai", "chat", "fast", {}, stream=False, size=2, received_ns=0, origin=Origin())


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


def test_what_people_have_to_decide_is_handed_on():
    decision = held(Approval("a", Demand("a", (Stage(),))))
    assert enact(decision) == (decision,)
    assert enact(allowed()) == ()


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


WHO: Subjects = {
    "all": ("all",), "org": ("acme",), "team": ("blue",), "key": ("key_1",), "user": ("key_1/ada",), "session": ("key_1/s1",),
    "run": ("key_1/r1",), "route": ("fast",), "tag": ("env=prod",)}
NOBODY: Subjects = {"all": ("all",), "key": ("key_1",)}


def whose(by: tuple[Scope, ...], subjects: Subjects, tool: str = "") -> list[str]:
    return [take.whose for take in takes_of([(Limit("r", 60.0, by, requests=1), tool)], subjects, 0)]


def test_a_limit_takes_of_all_that_it_names_and_each_of_its_own():
    limit = Limit("r", 60.0, ("key",), requests=5, tokens=1000, concurrent=2)
    assert takes_of([(limit, ""), (Limit("s", 0.0015, ("all",), requests=1), "")], WHO, 70) == (
        Take("r", "key=key_1", "requests", 5, MINUTE_NS, 1), Take("r", "key=key_1", "tokens", 1000, MINUTE_NS, 70),
        Take("r", "key=key_1", "concurrent", 2, MINUTE_NS, 1), Take("s", "all=all", "requests", 1, 1_500_000, 1))


def test_without_a_limit_nothing_is_taken():
    assert takes_of([], WHO, 70) == ()


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_has_counts_of_its_own(scope):
    """Two subjects of it never share one."""
    names = {**WHO, "tool": ("pay",)}
    assert whose((scope,), names) != whose((scope,), {**names, scope: ("other",)})


def test_each_combination_has_a_count_of_its_own():
    assert whose(("team", "route"), WHO) == ["team=blue route=fast"]


@pytest.mark.parametrize(("scope", "told"), [
    ("user", "user=key_1/"), ("session", "session=key_1/"), ("run", "run=key_1/"), ("team", "team="), ("org", "org="), ("tag", "tag="), ("tool", "tool=")])
def test_what_a_call_leaves_out_gets_it_round_no_limit(scope, told):
    """It counts with the others that leave it out: those of the same key, where each key has names of its own."""
    assert whose((scope,), NOBODY) == [told]
    assert (whose((scope,), {**NOBODY, "key": ("key_2",)}) == [told]) is (scope not in ("user", "session", "run"))


def test_a_call_with_several_tags_counts_for_each_of_them():
    """Else one tag more, which nobody has seen yet, would get round the limit of every other."""
    several: Subjects = {**WHO, "tag": ("env=prod", "nonce=1")}
    assert whose(("key", "tag"), several) == ["key=key_1 tag=env%3Dprod", "key=key_1 tag=nonce%3D1"]
    assert whose(("key", "tag"), WHO)[0] in whose(("key", "tag"), several)


def test_tools_are_counted_apart_where_a_rule_counts_by_tool():
    """A tool that a model proposes is named by the decision; of a call of an HTTP tool it is the tool that is called."""
    assert whose(("tool",), WHO, "pay") == ["tool=pay"]
    assert whose(("tool",), {**NOBODY, "tool": ("see",)}) == ["tool=see"]
    assert whose(("route",), {**NOBODY, "tool": ("see",)}) == ["route=see"]


HOSTILE = ["a b", "a", "", "a team=b", "a,b", "a=b", "a%20b", "a\nb", "a\0b", "\udcff", "\N{SNOWMAN}", "a" * 5000, "a" * 5001,
           "sha256:" + "0" * 64, "key_1/a", "a/"]


def test_no_name_runs_into_the_next_one():
    """Callers choose names of users, sessions and tags: with none may they take from, or fill, the count of another."""
    scopes: tuple[Scope, ...] = ("user", "tag")
    seen = {tuple(whose(scopes, {**WHO, "user": (one,), "tag": (other,)})) for one in HOSTILE for other in HOSTILE}
    assert len(seen) == len(HOSTILE) ** 2


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_kept_of_a_name_is_short_plain_text(name):
    for kept in whose(("user", "session", "tag"), {**WHO, "user": (name,), "session": (name,), "tag": (name, name)}):
        assert len(kept) <= 256
        assert kept.isascii()
        assert kept.isprintable()


def test_a_rate_that_is_used_up_says_which_and_when_to_come_back():
    error = rate_spent(Spent(Take("often", "key=key_1", "requests", 2, MINUTE_NS), 28_000_000_001))
    assert (error.status, error.code, error.rule, error.retry_after_s) == (429, "rate_limited", "often", 29)
    assert error.message == "The rate of 2 requests in 1m is used up for now (rule often). Try again in 29 s."


def test_a_rate_of_one_is_told_as_one():
    assert "The rate of 1 request in 1h is" in rate_spent(Spent(Take("r", "", "requests", 1, 60 * MINUTE_NS), 1)).message


def test_a_rate_in_tokens_says_what_the_call_is_taken_for():
    """A client sees why a shorter one may go through before."""
    error = rate_spent(Spent(Take("tpm", "", "tokens", 1000, MINUTE_NS, 70), 3_000_000_000))
    assert error.message == "The rate of 1000 tokens in 1m is used up for now (rule tpm); this call is taken for 70. Try again in 3 s."
    assert error.retry_after_s == 3


def test_calls_under_way_end_nobody_knows_when():
    error = rate_spent(Spent(Take("few", "", "concurrent", 4, 0), 0))
    assert (error.rule, error.retry_after_s) == ("few", 1)
    assert error.message == "At most 4 at a time are let through (rule few), and as many are under way. Try again in a moment."


def test_no_client_is_told_to_wait_for_longer_than_clients_do():
    """It is told the whole time in words."""
    error = rate_spent(Spent(Take("daily", "", "requests", 1, 24 * 60 * MINUTE_NS), 24 * 60 * MINUTE_NS))
    assert error.retry_after_s == 60
    assert error.message == "The rate of 1 request in 1d is used up for now (rule daily). Try again in 86400 s."


@pytest.mark.parametrize(("wait_ns", "told"), [(1, 1), (999_999_999, 1), (1_000_000_000, 1), (1_000_000_001, 2), (60_000_000_000, 60)])
def test_the_wait_is_exact_to_the_second_above_it(wait_ns, told):
    """Who comes back then gets through: not a second too early."""
    assert rate_spent(Spent(Take("r", "", "requests", 1, MINUTE_NS), wait_ns)).retry_after_s == told
