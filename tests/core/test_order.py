"""Which targets a call tries, in which order, and why: rules, canaries, strategies, contexts, breakers, and what is left where none is well."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Target
from gateway.core.breaker import Condition
from gateway.core.estimate import Bounds
from gateway.core.order import Passed, Placed, Plan, Wanted, order, plan_json
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget

DEADLINES = Deadlines(connect_s=1, headers_s=2, first_token_s=3, idle_s=4, total_s=5)
FORCED = Condition("forced_open", admits=False, cause="by ops")
OPEN = Condition("open", admits=False, until_s=4.2, cause="reset", badness=2.0)
COOLING = Condition("closed", admits=False, cooling_s=3.0, badness=1.0)


def to(name: str, **given: Any) -> RouteTarget:
    provider, _, model = name.partition("/")
    return RouteTarget(Target(provider, model or "m"), None, **given)


def route(*targets: RouteTarget | str, strategy: Any = "priority") -> Route:
    made = tuple(to(each) if isinstance(each, str) else each for each in targets)
    return Route("r", frozenset({"chat"}), made, DEADLINES, Retry(1, 0.25, 5.0), strategy=strategy)


def planned(made: Route, wanted: Wanted | None = None, **conditions: Condition) -> Plan:
    return order(made, wanted or Wanted(), {Target(name, "m"): condition for name, condition in conditions.items()})


def names(plan: Plan) -> list[str]:
    return [each.to.target.provider for each in plan.order]


def whys(plan: Plan) -> list[str]:
    return [each.why for each in plan.order]


def passed(plan: Plan) -> dict[str, str]:
    return {each.to.target.provider: each.why for each in plan.passed}


# Strategies.


@pytest.mark.parametrize("strategy", ["priority", "cascade"])
def test_targets_are_tried_in_their_order(strategy):
    plan = planned(route("a", "b", "c", "d", strategy=strategy))
    assert names(plan) == ["a", "b", "c", "d"]
    assert whys(plan) == ["1st in order", "2nd in order", "3rd in order", "4th in order"]
    assert plan.strategy == strategy


def test_the_cheapest_goes_first_and_what_nobody_knows_the_price_of_last():
    plan = planned(route("a", "b", "c", "d", strategy="cheapest"), Wanted(cost_nusd=[None, 3_400_000, 1_200_000, 3_400_000]))
    assert names(plan) == ["c", "b", "d", "a"]
    assert whys(plan) == ["cheapest: 0.0012 USD at the most", "2nd cheapest: 0.0034 USD at the most", "3rd cheapest: 0.0034 USD at the most",
                          "nobody knows its price"]


def test_what_is_free_is_cheaper_than_what_nobody_knows():
    assert names(planned(route("a", "b", strategy="cheapest"), Wanted(cost_nusd=[None, 0]))) == ["b", "a"]


def measured(first_token_s: float, measured_s: float = 1.0) -> Condition:
    return Condition(first_token_s=first_token_s, measured_s=measured_s)


def test_the_fastest_goes_first():
    plan = planned(route("a", "b", "c", strategy="fastest"), a=measured(0.3), b=measured(0.12), c=measured(0.2))
    assert names(plan) == ["b", "c", "a"]
    assert whys(plan) == ["fastest: 120 ms to the first token", "200 ms to the first token", "300 ms to the first token"]


def test_calls_that_are_not_streamed_go_by_how_long_whole_answers_took():
    plan = planned(route("a", "b", strategy="fastest"), Wanted(streamed=False), a=Condition(first_token_s=0.1, answered_s=2.0, measured_s=1.0),
                   b=Condition(first_token_s=0.2, answered_s=1.0, measured_s=1.0))
    assert names(plan) == ["b", "a"]
    assert whys(plan)[0] == "fastest: 1000 ms for a whole answer"


def test_where_no_whole_answer_was_measured_the_first_token_tells():
    plan = planned(route("a", "b", strategy="fastest"), Wanted(streamed=False), a=measured(0.3), b=measured(0.2))
    assert names(plan) == ["b", "a"]


def test_what_was_never_measured_goes_before_the_fastest():
    """Else a target that is added would never be tried."""
    plan = planned(route("a", "b", strategy="fastest"), a=measured(0.01))
    assert names(plan) == ["b", "a"]
    assert whys(plan)[0] == "not measured yet"


@pytest.mark.parametrize(("draw", "age_s", "expected"), [
    (0.049, 61.0, ["c", "a", "b"]), (0.05, 61.0, ["a", "b", "c"]), (0.0, 60.0, ["a", "b", "c"])])
def test_one_call_in_twenty_measures_again_what_was_measured_long_ago(draw, age_s, expected):
    """A target that was slow once would stay last for ever."""
    made = route("a", "b", "c", strategy="fastest")
    plan = planned(made, Wanted(draws=[draw, 0.5, 0.5]), a=measured(0.1), b=measured(0.2), c=measured(0.3, age_s))
    assert names(plan) == expected
    assert (whys(plan)[0] == "measured 61 s ago, so it is tried again") is (expected[0] == "c")


def test_calls_go_to_targets_by_their_weight():
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    made = route(to("a", weight=6), to("b", weight=3), to("c", weight=1), strategy="weighted")
    plans = [planned(made, Wanted(draws=[dice.random() for _ in range(3)])) for _ in range(4000)]
    first = Counter(names(plan)[0] for plan in plans)
    assert abs(first["a"] / 4000 - 0.6) < 0.05
    assert abs(first["b"] / 4000 - 0.3) < 0.05
    assert Counter(names(plan)[1] for plan in plans).keys() == {"a", "b", "c"}, "what is next is drawn, too"
    assert sorted(whys(plans[0])) == ["weight 1 of 10", "weight 3 of 10", "weight 6 of 10"]


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4), st.lists(st.integers(1, 1_000_000), min_size=4, max_size=4))
def test_whatever_is_drawn_every_target_has_its_place(draws, weights):
    made = route(*(to(name, weight=weight) for name, weight in zip("abcd", weights, strict=True)), strategy="weighted")
    assert sorted(names(planned(made, Wanted(draws=draws)))) == ["a", "b", "c", "d"]


def test_a_session_stays_where_it_was():
    made = route("a", "b", "c", strategy="sticky")
    assert len({tuple(names(planned(made, Wanted(stick="s1")))) for _ in range(5)}) == 1
    reordered = route("c", "a", "b", strategy="sticky")
    assert names(planned(reordered, Wanted(stick="s1"))) == names(planned(made, Wanted(stick="s1")))


def test_where_a_target_is_lost_its_sessions_alone_move():
    made, smaller = route("a", "b", "c", "d", strategy="sticky"), route("a", "b", "d", strategy="sticky")
    before = {each: names(planned(made, Wanted(stick=f"s{each}"))) for each in range(1000)}
    after = {each: names(planned(smaller, Wanted(stick=f"s{each}")))[0] for each in range(1000)}
    moved = {each for each in before if before[each][0] != after[each]}
    assert moved == {each for each in before if before[each][0] == "c"}
    assert all(after[each] == before[each][1] for each in moved), "they go where they would have gone next"
    assert 150 < len(moved) < 350


def test_sessions_spread_by_weight():
    made = route(to("a", weight=3), to("b", weight=1), strategy="sticky")
    first = Counter(names(planned(made, Wanted(stick=f"s{each}")))[0] for each in range(2000))
    assert abs(first["a"] / 2000 - 0.75) < 0.05


def test_a_session_that_is_half_a_character_sticks_too():
    assert len(names(planned(route("a", "b", strategy="sticky"), Wanted(stick="\ud800")))) == 2


# What rules choose.


def test_a_rule_chooses_targets_in_the_order_of_its_globs():
    plan = planned(route("a", "b", "c", "d"), Wanted(chosen=("c/*", "[ab]/m"), rule='task == "code"', task="code"))
    assert names(plan) == ["c", "a", "b"]
    assert whys(plan)[0] == 'rule: task == "code"; 1st in order'
    assert passed(plan) == {"d": 'not of rule: task == "code"'}
    assert (plan.rule, plan.task) == ('task == "code"', "code")


def test_the_strategy_ranks_what_a_rule_has_chosen():
    plan = planned(route("a", "b", "c", strategy="cheapest"), Wanted(cost_nusd=[1, 3, 2], chosen=("[bc]/m",), rule="true"))
    assert names(plan) == ["c", "b"]
    assert whys(plan)[0] == "rule: true; cheapest: 0.000000002 USD at the most"


def test_what_policy_has_taken_out_a_rule_does_not_bring_back():
    plan = planned(route("a", "b"), Wanted(chosen=("gone/*",), rule="true"))
    assert plan.order == ()
    assert set(passed(plan)) == {"a", "b"}
    assert not plan.last_resort


def test_a_long_rule_is_cut_where_it_is_told():
    plan = planned(route("a", "b"), Wanted(chosen=("a/*",), rule="x" * 4096))
    assert all(len(why) < 120 for why in (*whys(plan), *passed(plan).values()))
    assert len(json.dumps(plan_json(plan))) < 700


# Canaries.


CANARIES = route("a", to("b", canary=5.0, canary_from=0.0), to("c", canary=20.0, canary_from=5.0))


def test_canaries_get_their_share_of_sessions_and_no_other():
    plans = {lot: planned(CANARIES, Wanted(lot=f"k s{lot}")) for lot in range(4000)}
    first = Counter(names(plan)[0] for plan in plans.values())
    assert abs(first["b"] / 4000 - 0.05) < 0.02
    assert abs(first["c"] / 4000 - 0.20) < 0.03
    for plan in plans.values():
        assert names(plan) in (["a"], ["b", "a"], ["c", "a"])
    drawn = next(plan for plan in plans.values() if names(plan) == ["b", "a"])
    assert whys(drawn) == ["canary (5 %)", "1st in order"]
    assert passed(drawn) == {"c": "canary (20 %): the lot did not fall on it"}


def test_a_session_keeps_its_lot():
    lots = [f"k s{each}" for each in range(50)]
    assert [names(planned(CANARIES, Wanted(lot=lot))) for lot in lots] == [names(planned(CANARIES, Wanted(lot=lot))) for lot in lots]


def test_a_canary_is_not_even_the_last_resort_of_who_was_not_drawn():
    lot = next(f"k s{each}" for each in range(100) if names(planned(CANARIES, Wanted(lot=f"k s{each}"))) == ["a"])
    assert planned(CANARIES, Wanted(lot=lot), a=FORCED).order == ()


def test_a_canary_of_all_calls_always_goes_first():
    made = route("a", to("b", canary=100.0))
    assert all(names(planned(made, Wanted(lot=str(each)))) == ["b", "a"] for each in range(200))


# Contexts.


def test_a_context_that_is_surely_too_small_goes_last():
    made = route(to("a", bounds=Bounds(context=1000)), to("b", bounds=Bounds(context=9000)), to("c"))
    plan = planned(made, Wanted(tokens=1001))
    assert names(plan) == ["b", "c", "a"]
    assert whys(plan)[2] == "last: its context of 1000 tokens is too small for 1001 and more"
    assert names(planned(made, Wanted(tokens=1000))) == ["a", "b", "c"]


# Breakers.


def test_what_does_not_admit_is_passed_over_and_said_why():
    half = Condition("half_open", admits=False, cause="timeout:headers")
    plan = planned(route("a", "b", "c", "d", "e"), a=OPEN, b=COOLING, c=half, d=FORCED)
    assert names(plan) == ["e"]
    assert passed(plan) == {
        "a": "open for 4.2 s: reset", "b": "rests for 3.0 s: it asked for that with a 429",
        "c": "half-open: the call that is to show whether it is well is under way: timeout:headers", "d": "opened by hand: by ops"}
    assert not plan.last_resort


def test_what_is_open_and_due_is_tried_in_its_place():
    plan = planned(route("a", "b"), a=Condition("half_open", admits=True))
    assert names(plan) == ["a", "b"]


def test_nobody_knows_for_how_long_and_why():
    assert passed(planned(route("a", "b"), a=Condition("open", admits=False))) == {"a": "open"}


def test_where_none_is_well_the_least_bad_is_left_alone():
    worse = Condition("open", admits=False, badness=3.0)
    plan = planned(route("a", "b", "c", "d"), a=worse, b=OPEN, c=FORCED, d=worse)
    assert names(plan) == ["b"]
    assert plan.last_resort
    assert whys(plan) == ["last resort, the least bad: open for 4.2 s: reset"]
    assert set(passed(plan)) == {"a", "c", "d"}
    assert plan.wait_s == 0.0


def test_where_all_only_rest_the_first_that_is_ready_is_waited_for():
    later = Condition("closed", admits=False, cooling_s=9.0)
    plan = planned(route("a", "b", "c"), a=later, b=COOLING, c=FORCED)
    assert names(plan) == ["b", "a"]
    assert plan.wait_s == 3.0
    assert not plan.last_resort
    assert set(passed(plan)) == {"c"}


def test_what_is_open_and_rests_is_not_only_resting():
    both = Condition("open", admits=False, cooling_s=3.0, badness=1.0)
    plan = planned(route("a", "b"), a=both, b=COOLING)
    assert plan.last_resort
    assert plan.wait_s == 0.0


def test_what_was_opened_by_hand_is_never_tried():
    plan = planned(route("a", "b"), a=FORCED, b=FORCED)
    assert plan.order == ()
    assert set(passed(plan)) == {"a", "b"}
    assert not plan.last_resort


CONDITIONS = st.builds(
    Condition, st.sampled_from(["closed", "open", "half_open", "forced_open", "forced_closed"]), st.booleans(), st.floats(0, 300),
    st.one_of(st.just(0.0), st.floats(0.001, 60)), st.booleans(), st.floats(0, 10), st.one_of(st.none(), st.floats(0, 10)),
    st.one_of(st.none(), st.floats(0, 1000)))


@given(
    st.sampled_from(["priority", "weighted", "cheapest", "fastest", "sticky", "cascade"]), st.lists(CONDITIONS, min_size=1, max_size=6),
    st.data())
def test_every_target_is_either_tried_or_passed_over_and_a_record_of_it_is_small(strategy, conditions, data):
    canaries = data.draw(st.lists(st.one_of(st.none(), st.floats(0.1, 100)), min_size=len(conditions), max_size=len(conditions)))
    many = len(conditions)
    targets = [to(f"p{number}", canary=canary, bounds=Bounds(context=data.draw(st.one_of(st.none(), st.integers(1, 10)))))
               for number, canary in enumerate(canaries)]
    wanted = Wanted(
        lot=data.draw(st.text(max_size=5)), stick=data.draw(st.text(max_size=5)), tokens=data.draw(st.integers(0, 20)),
        cost_nusd=data.draw(st.lists(st.one_of(st.none(), st.integers(0, 10**9)), min_size=many, max_size=many)),
        draws=data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=many, max_size=many)),
        chosen=data.draw(st.one_of(st.none(), st.just(("p[024]/*", "p1/m")))), rule="r")
    plan = order(route(*targets, strategy=strategy), wanted, {Target(f"p{number}", "m"): each for number, each in enumerate(conditions)})
    every: list[Placed | Passed] = [*plan.order, *plan.passed]
    told = [each.to.target for each in every]
    assert sorted(map(str, told)) == sorted(str(each.target) for each in targets)
    assert all(each.condition.state != "forced_open" or each.condition.admits for each in plan.order)
    assert not (plan.last_resort and len(plan.order) != 1)
    assert not (plan.wait_s and not plan.order)
    assert all(each.why for each in every)
    json.dumps(plan_json(plan))


# On record.


def test_a_plan_that_left_nothing_to_choose_is_not_kept():
    assert plan_json(planned(route("a"))) is None
    assert plan_json(planned(route("a", "b"))) is None  # as the route says


@pytest.mark.parametrize("plan", [
    planned(route("a", "b", strategy="weighted")), planned(route("a", "b"), b=OPEN), planned(route("a"), a=OPEN), planned(route("a"), Wanted(task="code")), planned(route("a"), Wanted(notes=("x",))),
    planned(route("a"), Wanted(chosen=("a/*",), rule="true")), planned(route("a"), a=Condition("forced_closed")),
    planned(route("a"), a=COOLING), planned(route("a"), a=Condition("half_open"))])
def test_a_plan_that_says_something_is_kept(plan):
    assert plan_json(plan) is not None


def test_a_plan_is_kept_with_what_it_says_and_nothing_else():
    plan = planned(route("a", "b"), Wanted(task="code", notes=("r1: no",)), b=OPEN)
    assert plan_json(plan) == {
        "strategy": "priority", "order": [{"target": "a/m", "why": "1st in order"}],
        "passed": [{"target": "b/m", "why": "open for 4.2 s: reset", "breaker": "open"}], "task": "code", "notes": ["r1: no"]}
    assert plan_json(planned(route("a", "b"), a=COOLING, b=COOLING)) == {
        "strategy": "priority", "wait_s": 3.0, "order": [{"target": "a/m", "why": "1st in order"}, {"target": "b/m", "why": "2nd in order"}]}


def test_a_plan_on_record_is_bounded():
    targets = [RouteTarget(Target("p" * 64, "m" * 256), None) for _ in range(32)]
    placed = tuple(Placed(each, "w" * 10_000, Condition("open", cause="c" * 10_000)) for each in targets)
    plan = Plan("priority", placed, rule="r" * 10_000, task="t" * 10_000, notes=("n" * 10_000,) * 100)
    assert len(json.dumps(plan_json(plan))) < 25_000


@pytest.mark.parametrize(("number", "ending"), [(11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (22, "22nd"), (23, "23rd"), (24, "24th")])
def test_places_are_counted_as_people_do(number, ending):
    plan = planned(route(*(f"p{each}" for each in range(30))))
    assert whys(plan)[number - 1] == f"{ending} in order"
