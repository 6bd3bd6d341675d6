"""The arithmetic of budgets against a naive model: never more than there is, never a refusal of what is free, the right reason."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.core.accounts import Account
from gateway.core.budget import MOST_NUSD, Balance, Granted, Holding, Need, Short, admit, counted, crossed, reserved, settled

AMOUNTS = st.integers(0, 5000)
NEEDS = st.builds(Need, st.integers(0, 3000), st.integers(0, 20_000) | st.integers(0, 3), st.integers(0, 500), rigid=st.booleans())


def holding(limit: int | None, posted: int = 0, pending: int = 0, **given) -> Holding:
    return Holding(Account(given.pop("budget", "b"), "s", "team", limit, **given), 0, Balance(posted, pending))


HOLDINGS = st.lists(st.builds(
    lambda limit, posted, pending, on_short, least: holding(limit, posted, pending, on_short=on_short, least=least),
    st.none() | AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from(["clamp", "deny"]), st.integers(1, 40)), max_size=4)


def test_what_fits_is_granted_in_full():
    assert admit([holding(1000), holding(None)], Need(100, 2000, 50)) == Granted(200, 50)


def test_where_no_account_has_a_limit_nothing_of_the_call_is_changed():
    assert admit([holding(None, 5, 5)], Need(100, 2000, 50)) == Granted(200, None)
    assert admit([], Need(0, unpriced=True)) == Granted(0, None)


def test_short_money_shortens_the_answer_to_what_the_tightest_account_affords():
    assert admit([holding(180), holding(150, budget="c"), holding(190, budget="d")], Need(100, 2000, 50)) == Granted(150, 25)


@pytest.mark.parametrize(("given", "need", "needed"), [
    ({"least": 30}, Need(100, 2000, 50), 160), ({"on_short": "deny"}, Need(100, 2000, 50), 200), ({}, Need(100, 2000, 50, rigid=True), 200),
    ({}, Need(151), 151)])
def test_an_answer_that_is_too_short_to_be_worth_it_is_refused_and_says_what_would_have_done(given, need, needed):
    short = admit([holding(150, **given)], need)
    assert short == Short(holding(150, **given), "exceeded", needed)
    assert isinstance(admit([holding(needed, **given)], need), Granted)


def test_a_call_that_asks_for_less_than_the_smallest_useful_answer_has_it():
    assert admit([holding(101, least=16)], Need(100, 1000, 1)) == Granted(101, 1)


def test_it_is_busy_where_the_rest_is_only_held_by_calls_in_flight():
    assert admit([holding(200, 50, 100)], Need(100)) == Short(holding(200, 50, 100), "busy", 100)
    assert admit([holding(200, 101, 50)], Need(100)) == Short(holding(200, 101, 50), "exceeded", 100)


def test_an_account_that_waiting_does_not_help_is_named_before_one_that_it_would():
    """Else a client would be told to try again, for nothing."""
    busy, empty = holding(100, 0, 100, budget="busy"), holding(100, 100, 0, budget="empty")
    for holdings in ([busy, empty], [empty, busy]):
        assert admit(holdings, Need(50)) == Short(empty, "exceeded", 50)
    assert admit([busy, holding(100, 0, 60, budget="second")], Need(50)) == Short(busy, "busy", 50)


def test_what_nobody_knows_the_price_of_is_refused_where_an_account_has_a_limit():
    assert admit([holding(None), holding(100)], Need(0, unpriced=True)) == Short(holding(100), "unpriced", 0)


def test_what_is_free_of_charge_goes_through_where_no_money_is_left():
    for left in (holding(0), holding(10, 20, 30), holding(10, 0, 500, on_short="deny")):
        assert admit([left], Need(0, 0, 70)) == Granted(0, 70)


def test_a_call_does_not_compete_with_its_own_reservation():
    mine = holding(100, 0, 100)  # all of it is set aside, and for this call
    assert admit([mine], Need(60), spent_nusd=40, reserved_nusd=100) == Granted(100, 0)
    assert admit([mine], Need(61), spent_nusd=40, reserved_nusd=100) == Short(mine, "exceeded", 61)


def test_a_further_attempt_grows_the_reservation_and_never_shrinks_it():
    assert admit([holding(500, 0, 100)], Need(300), spent_nusd=50, reserved_nusd=100) == Granted(350, 0)
    assert admit([holding(500, 0, 100)], Need(10), spent_nusd=50, reserved_nusd=100) == Granted(100, 0)


def test_a_free_attempt_after_one_that_cost_too_much_sets_nothing_aside_that_is_not_there():
    assert admit([holding(100, 0, 100)], Need(0), spent_nusd=150, reserved_nusd=100) == Granted(100, 0)


@pytest.mark.parametrize(("nusd", "units"), [(-1, None), (9, None), (10, 0), (12, 0), (13, 1), (15, 2), (10**9, 7)])
def test_so_much_money_pays_for_so_many_units(nusd, units):
    assert Need(10, 2500, 7).affordable(nusd) == units


@settings(derandomize=True, deadline=None, max_examples=500)
@given(NEEDS, st.integers(-10, 20_000))
def test_what_is_affordable_costs_no_more_than_there_is_and_one_more_would(need, nusd):
    units = need.affordable(nusd)
    if need.cost(need.most) == 0:
        assert units == need.most
    elif units is None:
        assert nusd < need.fixed_nusd
    else:
        assert need.cost(units) <= nusd
        assert units == need.most or need.cost(units + 1) > nusd


def naive(holdings: list[Holding], need: Need, spent: int, own: int) -> tuple[str, int | None]:
    """The same, by trying every length: the longest answer that leaves no account beyond its limit."""
    bound = [each for each in holdings if each.account.limit_nusd is not None]
    whole = need.cost(need.most)

    def fits(each: Holding, units: int, pending: int) -> bool:
        return whole == 0 or each.counted.posted + pending - own + spent + need.cost(units) <= (each.account.limit_nusd or 0)

    def least(each: Holding) -> int:
        return need.most if need.rigid or each.account.on_short == "deny" else min(each.account.least, need.most)

    short = [each for each in bound if not fits(each, least(each), each.counted.pending)]
    if short:
        return ("busy" if all(fits(each, least(each), own) for each in short) else "exceeded"), None
    return "granted", max(units for units in range(need.most + 1) if all(fits(each, units, each.counted.pending) for each in bound))


@settings(derandomize=True, deadline=None, max_examples=800)
@given(HOLDINGS, NEEDS, st.integers(0, 2000), st.integers(0, 2000))
def test_it_agrees_with_trying_every_length(holdings, need, spent, own):
    assume(all(each.counted.pending >= own for each in holdings))  # what is set aside for a call is part of every account's pending
    answer, (verdict, units) = admit(holdings, need, spent_nusd=spent, reserved_nusd=own), naive(holdings, need, spent, own)
    if isinstance(answer, Short):
        assert (answer.why, units) == (verdict, None)
        assert answer.holding in holdings
        return
    limited = any(each.account.limit_nusd is not None for each in holdings)
    assert (verdict, answer.units) == ("granted", units if limited else None)
    assert answer.amount_nusd >= own
    assert answer.amount_nusd >= spent + need.cost(need.most if answer.units is None else answer.units) or need.cost(need.most) == 0
    for each in holdings:
        more = answer.amount_nusd - own
        assert more == 0 or each.account.limit_nusd is None or each.counted.posted + each.counted.pending + more <= each.account.limit_nusd


@settings(derandomize=True, deadline=None, max_examples=200)
@given(limit=st.integers(0, 4000), calls=st.lists(st.tuples(NEEDS, st.integers(0, 100), st.booleans()), max_size=30))
def test_calls_that_cost_no_more_than_was_granted_never_overspend(limit, calls):
    balance = Balance()
    open_: list[tuple[int, int]] = []
    for need, share, ends in calls:
        answer = admit([Holding(Account("b", "s", "all", limit), 0, balance)], need)
        if isinstance(answer, Granted):
            balance = reserved(balance, answer.amount_nusd)
            open_.append((answer.amount_nusd, need.cost(answer.units or 0) * share // 100))
        if ends and open_:
            balance = settled(balance, *open_.pop(0))
        assert 0 <= balance.posted + balance.pending <= limit
    for amount, cost in open_:
        balance = settled(balance, amount, cost)
    assert balance.pending == 0
    assert balance.posted <= limit


def test_a_settlement_gives_back_what_was_set_aside_and_books_the_cost():
    assert settled(reserved(Balance(5, 7), 10), 10, 4) == Balance(9, 7)
    assert settled(Balance(MOST_NUSD - 1, 1), 1, 5) == Balance(MOST_NUSD, 0)


def test_windows_are_counted_together():
    assert counted([]) == Balance()
    assert counted([Balance(1, 2), Balance(30, 40)]) == Balance(31, 42)


@pytest.mark.parametrize(("soft", "before", "after", "told"), [
    (None, 0, 9, False), (5, 4, 5, True), (5, 0, 9, True), (5, 5, 9, False), (5, 0, 4, False)])
def test_a_soft_limit_is_crossed_once(soft, before, after, told):
    assert crossed(Account("b", "s", "all", None, soft_nusd=soft), Balance(before), Balance(after)) is told
