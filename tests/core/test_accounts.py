"""Which accounts bind a call, and with which limits: configuration, what operators set, and raises that end."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts import HIGHEST_LIMIT_NUSD, NOTHING, Account, Budget, BudgetBook, Change, Settings, account_of, accounts_of
from gateway.core.windows import Window

USD = 10**9
CALL: Any = {"all": ("all",), "team": ("search",), "key": ("key_1",), "user": ("key_1/ada",), "tag": ("env=prod", "env=prod", "job=7"), "route": ("fast",)}


def budget(name: str = "b", scope: Any = "team", limit: int | None = USD, **given) -> Budget:
    return Budget(name, scope, limit, **given)


def change(number: int, kind: Any, name: str = "b", subject: str = "", **given) -> Change:
    return Change(number, given.pop("at_ns", number), "ada", kind, name, subject, **given)


def names(book: BudgetBook, after: Settings | None = None, subjects=CALL) -> list[str]:
    return sorted(account.name for account in accounts_of(book, after or Settings(), subjects, 0))


def test_every_subject_of_a_call_has_its_account_once():
    book = BudgetBook([budget(scope, scope) for scope in ("all", "team", "key", "user", "tag", "org", "session")])
    assert names(book) == ["all/all", "key/key_1", "tag/env=prod", "tag/job=7", "team/search", "user/key_1/ada"]


def test_a_call_is_bound_by_every_budget_that_its_subjects_match():
    book = BudgetBook([budget("month"), budget("day"), budget("theirs", of=("ads",)), budget("s", of=("se*", "search"))])
    assert names(book) == ["day/search", "month/search", "s/search"]


@pytest.mark.parametrize(("of", "binds"), [
    (("*",), True), (("search",), True), (("s?arch",), True), (("[st]earch",), True), (("ads", "search"), True), (("ads", "se*"), True),
    (("ads",), False), (("a*",), False), (("Search",), False), (("sear",), False), (("",), False)])
def test_subjects_are_matched_by_name_and_by_glob_with_their_case(of, binds):
    assert names(BudgetBook([budget(of=of)])) == (["b/search"] if binds else [])


def test_what_callers_name_is_matched_without_their_key_and_counted_under_it():
    book = BudgetBook([budget(scope="user", of=("ada",), limits={"bob": 7, "key_2/ada": 8})])
    limits = {account.name: account.limit_nusd for key, name in (("key_1", "ada"), ("key_2", "ada"), ("key_1", "bob"))
              for account in accounts_of(book, Settings(), {"user": (f"{key}/{name}",)}, 0)}
    assert limits == {"b/key_1/ada": USD, "b/key_2/ada": 8}


def test_a_subject_of_its_own_limit_has_that_one():
    book = BudgetBook([budget(limits={"search": 5})])
    assert [account.limit_nusd for account in accounts_of(book, Settings(), CALL, 0)] == [5]
    assert [account.limit_nusd for account in accounts_of(book, Settings(), {"team": ("ads",)}, 0)] == [USD]


def test_an_account_has_what_its_budget_says():
    given = budget("b", "user", 9, window=Window("day"), soft_nusd=3, on_short="deny", least=7)
    (account,) = accounts_of(BudgetBook([given]), Settings(), CALL, 0)
    assert account == Account("b", "key_1/ada", "user", 9, Window("day"), 3, "deny", 7)


def test_a_budget_that_was_set_binds_as_a_configured_one_does():
    after = Settings().after([change(1, "set", budget=budget())])
    assert names(BudgetBook(), after) == ["b/search"]
    assert repr(after.book) == "BudgetBook(b)"
    assert repr(BudgetBook()) == "BudgetBook(empty)"
    assert after.last == 1


def test_a_configured_budget_hides_one_of_its_name_that_was_set_but_not_limits_of_its_accounts():
    after = Settings().after([change(1, "set", budget=budget(scope="key", limit=1)), change(2, "set", subject="search", limit_nusd=2)])
    (account,) = accounts_of(BudgetBook([budget(limit=3)]), after, CALL, 0)
    assert (account.name, account.limit_nusd) == ("b/search", 2)


def test_a_set_limit_leaves_what_it_does_not_name_as_it_is():
    after = Settings().after([change(1, "set", subject="search", limit_nusd=2), change(2, "set", subject="search", soft_nusd=1)])
    found = account_of(budget(soft_nusd=9), "search", after, 0)
    assert (found.limit_nusd, found.soft_nusd) == (2, 1)


def test_of_two_limits_the_more_special_one_holds():
    written = budget(limit=1, limits={"search": 2}, soft_nusd=1)
    of_all = Settings().after([change(1, "set", limit_nusd=3, soft_nusd=2)])
    of_one = of_all.after([change(2, "set", subject="search", limit_nusd=4)])
    assert [account_of(written, "search", each, 0).limit_nusd for each in (Settings(), of_all, of_one)] == [2, 3, 4]
    assert account_of(written, "search", of_one, 0).soft_nusd == 2


def test_a_limit_of_nothing_is_a_limit():
    after = Settings().after([change(1, "set", subject="search", limit_nusd=0)])
    assert account_of(budget(), "search", after, 0).limit_nusd == 0


def test_raises_add_up_until_each_ends():
    after = Settings().after([
        change(1, "raise", subject="search", limit_nusd=10, until_ns=100), change(2, "raise", limit_nusd=20, until_ns=50),
        change(3, "raise", subject="ads", limit_nusd=40, until_ns=100)])
    assert [account_of(budget(limit=1), "search", after, now_ns).limit_nusd for now_ns in (0, 49, 50, 99, 100)] == [31, 31, 11, 11, 1]
    assert account_of(budget(limit=None), "search", after, 0).limit_nusd is None


def test_raises_that_have_ended_do_not_pile_up():
    after = Settings().after([change(n, "raise", subject="search", limit_nusd=1, until_ns=n + 5, at_ns=n) for n in range(1, 1000)])
    assert len(after.own("b", "search").raises) <= 5


def test_a_raise_without_an_end_or_an_amount_raises_nothing():
    after = Settings().after([change(1, "raise", limit_nusd=5), change(2, "raise", until_ns=5)])
    assert account_of(budget(limit=1), "search", after, 0).limit_nusd == 1


def test_no_number_of_raises_makes_a_limit_that_the_store_cannot_hold():
    after = Settings().after([change(n, "raise", limit_nusd=2**60, until_ns=10**6) for n in range(100)])
    assert account_of(budget(), "search", after, 0).limit_nusd == HIGHEST_LIMIT_NUSD


def test_what_was_set_is_taken_back_for_one_account_or_for_all():
    before = Settings().after([
        change(1, "set", budget=budget()), change(2, "set", subject="search", limit_nusd=2), change(3, "set", limit_nusd=3),
        change(4, "set", "c", "search", limit_nusd=4)])
    one = before.after([change(5, "remove", subject="search")])
    assert (one.own("b", "search"), one.own("b", "").limit_nusd, names(BudgetBook(), one)) == (NOTHING, 3, ["b/search"])
    whole = before.after([change(5, "remove")])
    assert (whole.own("b", "search"), whole.own("b", ""), whole.own("c", "search").limit_nusd) == (NOTHING, NOTHING, 4)
    assert names(BudgetBook(), whole) == []
    assert before.own("b", "search").limit_nusd == 2  # what was folded before is not changed


CHANGES = st.lists(st.builds(
    lambda kind, name, subject, amount, until, with_budget: (kind, name, subject, amount, until, with_budget),
    st.sampled_from(["set", "raise", "remove"]), st.sampled_from(["b", "c"]), st.sampled_from(["", "search", "ads"]),
    st.none() | st.integers(0, 99), st.none() | st.integers(0, 30), st.booleans()), max_size=20)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(CHANGES, st.integers(0, 20), st.integers(0, 40))
def test_changes_that_are_folded_one_by_one_are_those_that_are_folded_at_once(drawn, split, now_ns):
    """Each process folds what has come since it looked last; all of them must see the same limits."""
    made = [change(number, kind, name, subject, limit_nusd=amount, until_ns=until,
                   budget=budget(name, limit=number) if kind == "set" and with_budget else None)
            for number, (kind, name, subject, amount, until, with_budget) in enumerate(drawn, 1)]
    at_once, in_two = Settings().after(made), Settings().after(made[:split]).after(made[split:])
    assert at_once.last == in_two.last == len(made)
    for book in (BudgetBook(), BudgetBook([budget("c")])):
        assert accounts_of(book, in_two, CALL, now_ns) == accounts_of(book, at_once, CALL, now_ns)


def test_a_caller_cannot_take_another_keys_own_limit_by_naming_itself_as_that_is_written():
    budget = Budget("users", "user", 0, limits={"key_1/boss": 5, "ada": 3})
    limits = [account_of(budget, subject, Settings(), 0).limit_nusd for subject in ("key_1/boss", "key_2/key_1/boss", "key_2/ada", "key_2/eve")]
    assert limits == [5, 0, 3, 0]
