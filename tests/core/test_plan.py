"""What rules make of a route."""

from dataclasses import replace

import pytest

from gateway.call import Target
from gateway.core.decision import Rerouting
from gateway.core.plan import Classifier, Deadlines, Mirror, NowhereError, Retry, Route, RouteTarget, permitted, reroute

DEADLINES = Deadlines(connect_s=1, headers_s=2, first_token_s=3, idle_s=4, total_s=5)


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


@pytest.mark.parametrize(("reroutings", "allowed"), [
    ([], True), ([Rerouting("r", to="other")], True), ([Rerouting("r", only=("eu/*",))], True), ([Rerouting("r", only=("us/*",))], False),
    ([Rerouting("r", remove=("*/m",))], False), ([Rerouting("r", only=("eu/*",)), Rerouting("s", remove=("eu/m",))], False)])
def test_what_rules_take_out_of_a_route_no_part_of_the_call_may_go_to(reroutings, allowed):
    """A mirror or a classifier is none of the route's targets, and gets the same words."""
    assert permitted(RouteTarget(Target("eu", "m"), None), reroutings) is allowed


def test_everything_that_a_route_may_reach_is_known_mirrors_and_classifiers_too():
    mirror, classifier = RouteTarget(Target("mirror", "m"), None), RouteTarget(Target("small", "m"), None)
    whole = replace(ASKED, mirrors=(Mirror(mirror, 5.0),), classifier=Classifier(classifier, ("a", "b"), "a", "", 1.0, 1.0))
    assert [str(to.target) for to in whole.reached] == ["eu/large", "us/large", "us/small", "mirror/m", "small/m"]
    assert ASKED.reached == ASKED.targets
