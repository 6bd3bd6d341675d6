"""Route in, ordered attempts out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Target
from gateway.core.decision import Rerouting
from gateway.core.plan import Deadlines, NowhereError, Retry, Route, RouteTarget, Try, backoff_s, plan, reroute

DEADLINES = Deadlines(connect_s=1, headers_s=2, first_token_s=3, idle_s=4, total_s=5)


def route(attempts: int, *providers: str) -> Route:
    targets = tuple(RouteTarget(Target(provider, "m"), None) for provider in providers)
    return Route("r", frozenset({"chat"}), targets, DEADLINES, Retry(attempts, base_s=0.25, cap_s=5.0))


def test_each_target_is_tried_as_often_as_the_route_says_before_the_next_one():
    made = route(2, "a", "b")
    first, second = made.targets
    assert list(plan(made)) == [Try(first, 0), Try(first, 1), Try(second, 0), Try(second, 1)]


def test_one_attempt_means_no_retry():
    made = route(1, "a")
    assert list(plan(made)) == [Try(made.targets[0], 0)]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_wait_grows_with_full_jitter_and_never_over_the_cap(earlier, jitter):
    wait = backoff_s(Retry(99, base_s=0.25, cap_s=5.0), earlier, jitter, None)
    assert wait is not None
    assert 0 <= wait <= min(5.0, 0.25 * 2.0 ** (min(earlier, 40) - 1))


def test_a_provider_that_asks_for_time_gets_at_least_that():
    assert backoff_s(Retry(2, base_s=0.25, cap_s=5.0), 1, 0.5, 2.0) == 2.0
    assert backoff_s(Retry(2, base_s=4.0, cap_s=5.0), 1, 0.75, 2.0) == 3.0


def test_a_provider_that_asks_for_more_than_the_cap_is_not_waited_for():
    """The caller is better served by the next target than by a wait of a minute."""
    assert backoff_s(Retry(2, base_s=0.25, cap_s=5.0), 1, 0.5, 60.0) is None


def test_the_first_retry_waits_at_most_the_base():
    assert backoff_s(Retry(2, base_s=0.25, cap_s=5.0), 1, 0.999, None) == pytest.approx(0.25, rel=0.01)


def through(name: str, *targets: str, operations: tuple[str, ...] = ("chat",)) -> Route:
    parted = [target.split("/", 1) for target in targets]
    return Route(name, frozenset(operations), tuple(RouteTarget(Target(*part), None) for part in parted), DEADLINES,
                 Retry(1, base_s=0.25, cap_s=5.0))


ASKED = through("asked", "eu/large", "us/large", "us/small")
ROUTES = {"asked": ASKED, "other": through("other", "eu/o", "us/o"), "vectors": through("vectors", "eu/v", operations=("embeddings",))}


def targets(*reroutings: Rerouting) -> list[str]:
    return [str(to.target) for to in reroute(ASKED, "chat", reroutings, ROUTES).targets]


def test_targets_are_taken_out_and_the_rest_keeps_its_order():
    assert targets(Rerouting("r", only=("us/*",))) == ["us/large", "us/small"]
    assert targets(Rerouting("r", remove=("us/*",))) == ["eu/large"]
    assert targets(Rerouting("r", only=("*/large",), remove=("us/*",))) == ["eu/large"]


def test_every_rule_takes_out_its_own_so_none_gives_back_what_another_took():
    assert targets(Rerouting("a", only=("us/*",)), Rerouting("b", only=("*/large",))) == ["us/large"]
    assert targets(Rerouting("a", remove=("us/large",)), Rerouting("b", only=("us/*",))) == ["us/small"]


def test_the_first_rule_that_names_a_route_decides_which_and_what_all_take_out_holds_there_too():
    """Else two rules of which one keeps a call in a region would be fewer than one."""
    assert targets(Rerouting("a", remove=("us/*",)), Rerouting("b", to="other"), Rerouting("c", to="asked")) == ["eu/o"]


@pytest.mark.parametrize(("reroutings", "rule", "says"), [
    ((Rerouting("a", to="nowhere"),), "a", "no route nowhere"),
    ((Rerouting("a"), Rerouting("b", to="vectors")), "b", "no route vectors for chat"),
    ((Rerouting("a", only=("us/*",)), Rerouting("b", only=("eu/*",))), "b", "no target is left"),
    ((Rerouting("a", remove=("*",)),), "a", "no target is left"),
    ((Rerouting("a", only=("US/*",)),), "a", "no target is left"),
])
def test_rules_that_leave_nowhere_to_go_are_said_by_name(reroutings, rule, says):
    """The call ends; it is never sent where a rule took the target out."""
    with pytest.raises(NowhereError, match=says) as caught:
        reroute(ASKED, "chat", reroutings, ROUTES)
    assert caught.value.rule == rule


def test_a_call_of_a_tool_goes_to_that_tool():
    """Its arguments were judged as those of this one."""
    with pytest.raises(NowhereError, match="goes to that tool"):
        reroute(through("pay", "tool:pay/POST", operations=("tool",)), "tool", (Rerouting("a", to="other"),), ROUTES)


def test_a_route_that_no_rule_changes_is_as_it_was():
    assert reroute(ASKED, "chat", (), ROUTES) == ASKED
