"""What an operator may change of budgets, and what is refused with a reason."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.budget_changes import LONGEST, Catalogue, Stamp, check_author, raise_limit, remove, set_budget, set_limits, shown
from gateway.budgets import BudgetError
from gateway.config import BudgetConfig
from gateway.core.accounts import Budget, BudgetBook, Change
from gateway.core.windows import Window

NOW_NS = 1_790_000_000_000_000_000
LATER_NS = NOW_NS + 10**9
USD = 10**9
STAMP = Stamp("ada", NOW_NS, "because")
KEY = "lgk_abcdefghijkl_" + "s" * 32
CONFIGURED = BudgetBook([
    Budget("teams", "team", 10 * USD, Window("day"), soft_nusd=5 * USD, limits={"search": 20 * USD}),
    Budget("users", "user", 2 * USD, of=("a*",)),
    Budget("jobs", "tag", 2 * USD, of=("job=*",)),
    Budget("all", "all", None, soft_nusd=USD),
])


class Desk:
    """An operator's changes one after the other."""

    def __init__(self, configured: BudgetBook = CONFIGURED) -> None:
        self.configured = configured
        self.changes: list[Change] = []

    @property
    def known(self) -> Catalogue:
        return Catalogue.of(self.configured, self.changes)

    def keep(self, change: Change) -> Change:
        self.changes.append(change)
        return change

    def limit(self, name: str, subject: str) -> tuple[int | None, int | None]:
        account = self.known.account(name, subject, NOW_NS)
        return account.limit_nusd, account.soft_nusd


@pytest.fixture
def desk() -> Desk:
    return Desk()


def refusal(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(BudgetError) as raised:
        work()
    return raised.value.key, str(raised.value)


def set_new(desk: Desk, name: str = "mine", **settings: Any) -> Change:
    given = BudgetConfig.model_validate({"scope": "team", "limit": "3", **settings})
    return desk.keep(set_budget(desk.known, name, given, STAMP))


def test_a_new_budget_is_there_and_says_who_made_it_and_why(desk: Desk) -> None:
    made = set_new(desk, window="24h", soft="1")
    assert (made.kind, made.name, made.author, made.at_ns, made.note) == ("set", "mine", "ada", NOW_NS, "because")
    assert desk.known.budget("mine").window == Window("rolling", length_ns=24 * 3600 * USD)
    assert desk.limit("mine", "anybody") == (3 * USD, USD)


@pytest.mark.parametrize(("name", "why"), [
    ("", "letters, digits"), ("a/b", "letters, digits"), ("x" * 65, "letters, digits"), ("-x", "begins with"), ("a\n", "letters, digits"),
    ("teams", "stands in config.toml"),
])
def test_a_name_that_no_budget_may_have_is_refused(desk: Desk, name: str, why: str) -> None:
    key, message = refusal(lambda: set_new(desk, name))
    assert (key, why in message) == ("name", True)


@pytest.mark.parametrize(("settings", "key"), [
    ({"window": "monthly"}, "window"), ({"window": "5s"}, "window"), ({"timezone": "Mars/Base"}, "timezone"), ({"soft": "4"}, "soft"),
    ({"limit": None}, "limit"),
])
def test_settings_that_make_no_sense_are_refused_as_in_config_toml(desk: Desk, settings: dict[str, Any], key: str) -> None:
    assert refusal(lambda: set_new(desk, **settings))[0] == key


def test_a_limit_of_one_account_leaves_the_others_as_they_are(desk: Desk) -> None:
    desk.keep(set_limits(desk.known, "teams", "ads", (50 * USD, None), STAMP))
    desk.keep(set_limits(desk.known, "teams", "ads", (None, 40 * USD), STAMP))
    assert (desk.limit("teams", "ads"), desk.limit("teams", "other")) == ((50 * USD, 40 * USD), (10 * USD, 5 * USD))


def test_the_limit_of_a_budget_that_was_set_is_the_budgets_own(desk: Desk) -> None:
    """Else a budget that is set anew would be hidden by a limit of before."""
    set_new(desk, limits={"ads": "9"})
    desk.keep(set_limits(desk.known, "mine", "", (50 * USD, None), STAMP))
    assert (desk.limit("mine", "search"), desk.limit("mine", "ads")) == ((50 * USD, None), (9 * USD, None))
    desk.keep(set_limits(desk.known, "mine", "", (None, 7 * USD), STAMP))
    assert desk.limit("mine", "search") == (50 * USD, 7 * USD)
    set_new(desk, limit="1")
    assert desk.limit("mine", "search") == (USD, None)


def test_those_whom_a_limit_for_all_does_not_reach_are_known(desk: Desk) -> None:
    set_new(desk, limits={"ads": "9"})
    desk.keep(set_limits(desk.known, "mine", "search", (USD, None), STAMP))
    desk.keep(set_limits(desk.known, "mine", "warned", (None, USD), STAMP))
    assert desk.known.with_own_limits("mine") == ["ads", "search"]
    desk.keep(set_limits(desk.known, "teams", "ads", (USD, None), STAMP))
    assert desk.known.with_own_limits("teams") == ["ads"]


def test_a_limit_for_all_accounts_of_a_configured_budget_is_set_beside_it(desk: Desk) -> None:
    made = desk.keep(set_limits(desk.known, "teams", "", (USD, None), STAMP))
    assert (made.budget, desk.limit("teams", "search")) == (None, (USD, 5 * USD))


def test_a_limit_that_would_hide_a_new_budget_of_its_name_is_removed_first(desk: Desk) -> None:
    desk.keep(set_limits(desk.known, "teams", "", (50 * USD, None), STAMP))
    desk.configured = BudgetBook()  # it was taken out of config.toml
    assert "remove teams first" in refusal(lambda: set_new(desk, "teams"))[1]
    desk.keep(remove(desk.known, "teams", "", STAMP))
    set_new(desk, "teams")
    assert desk.limit("teams", "search") == (3 * USD, None)


def test_a_limit_for_all_that_is_there_already_is_the_one_that_changes(desk: Desk) -> None:
    set_new(desk)
    desk.configured = BudgetBook([Budget("mine", "team", USD)])  # it came into config.toml, got a limit for all, and was taken out
    desk.keep(set_limits(desk.known, "mine", "", (50 * USD, None), STAMP))
    desk.configured = BudgetBook()
    desk.keep(set_limits(desk.known, "mine", "", (40 * USD, None), STAMP))
    assert desk.limit("mine", "search")[0] == 40 * USD


@pytest.mark.parametrize(("subject", "limits", "key"), [
    ("ads", (None, None), "limit"), ("ads", (5 * USD, 6 * USD), "soft"), ("ads", (None, 11 * USD), "soft"),
])
def test_limits_that_make_no_sense_are_refused(desk: Desk, subject: str, limits: tuple[int | None, int | None], key: str) -> None:
    assert refusal(lambda: set_limits(desk.known, "teams", subject, limits, STAMP))[0] == key


def test_a_limit_under_the_soft_one_is_no_slip(desk: Desk) -> None:
    """Whoever stops an account at once need not think of when it would have warned."""
    desk.keep(set_limits(desk.known, "teams", "ads", (0, None), STAMP))
    assert desk.limit("teams", "ads") == (0, 5 * USD)


@pytest.mark.parametrize(("name", "subject", "why"), [
    ("users", "ada", "KEY_ID/NAME"), ("users", "k1/", "KEY_ID/NAME"), ("users", "/ada", "KEY_ID/NAME"), ("users", "k1/bob", "does not bind 'bob'"),
    ("jobs", "nightly", "NAME=VALUE"), ("jobs", "env=test", "it is for job=*"), ("all", "search", "the one subject 'all'"),
    ("teams", "a\x1b[2J", "cannot be shown"), ("teams", "x" * 1001, "1001 characters"), ("teams", KEY, "virtual key"),
])
def test_who_can_have_no_account_is_refused(desk: Desk, name: str, subject: str, why: str) -> None:
    key, message = refusal(lambda: set_limits(desk.known, name, subject, (1, None), STAMP))
    assert (key, why in message, "s" * 32 in message) == ("subject", True, False)


@pytest.mark.parametrize(("name", "subject"), [("users", "k1/ada"), ("jobs", "job=nightly"), ("all", "all"), ("teams", "größe, a")])
def test_who_can_have_an_account_has_one(desk: Desk, name: str, subject: str) -> None:
    desk.keep(set_limits(desk.known, name, subject, (7 * USD, None), STAMP))
    assert desk.limit(name, subject)[0] == 7 * USD


def test_a_raise_holds_until_it_ends(desk: Desk) -> None:
    desk.keep(raise_limit(desk.known, "teams", "ads", (3 * USD, LATER_NS), STAMP))
    desk.keep(raise_limit(desk.known, "teams", "", (2 * USD, LATER_NS), STAMP))
    assert (desk.limit("teams", "ads")[0], desk.limit("teams", "other")[0]) == (15 * USD, 12 * USD)
    assert desk.known.raises("teams", NOW_NS) == [("", 2 * USD, LATER_NS), ("ads", 3 * USD, LATER_NS)]
    assert (desk.known.account("teams", "ads", LATER_NS).limit_nusd, desk.known.raises("teams", LATER_NS)) == (10 * USD, [])


@pytest.mark.parametrize(("name", "subject", "raised", "key"), [
    ("teams", "ads", (0, LATER_NS), "by"), ("teams", "ads", (1, NOW_NS), "until"), ("all", "all", (1, LATER_NS), "name"),
    ("all", "", (1, LATER_NS), "name"), ("users", "ada", (1, LATER_NS), "subject"), ("nobody", "", (1, LATER_NS), "name"),
])
def test_a_raise_of_nothing_or_for_no_time_is_refused(desk: Desk, name: str, subject: str, raised: tuple[int, int], key: str) -> None:
    assert refusal(lambda: raise_limit(desk.known, name, subject, raised, STAMP))[0] == key


def test_a_budget_without_a_limit_is_raised_where_an_account_has_one(desk: Desk) -> None:
    assert refusal(lambda: raise_limit(desk.known, "all", "", (1, LATER_NS), STAMP))[0] == "name"
    desk.keep(set_limits(desk.known, "all", "all", (9 * USD, None), STAMP))
    desk.keep(raise_limit(desk.known, "all", "", (1, LATER_NS), STAMP))
    assert desk.limit("all", "all")[0] == 9 * USD + 1


def test_what_was_set_is_taken_back_of_one_account_or_of_all(desk: Desk) -> None:
    desk.keep(set_limits(desk.known, "teams", "ads", (USD, None), STAMP))
    desk.keep(raise_limit(desk.known, "teams", "search", (USD, LATER_NS), STAMP))
    desk.keep(remove(desk.known, "teams", "ads", STAMP))
    assert (desk.limit("teams", "ads")[0], desk.limit("teams", "search")[0]) == (10 * USD, 21 * USD)
    desk.keep(remove(desk.known, "teams", "", STAMP))
    assert desk.limit("teams", "search")[0] == 20 * USD
    set_new(desk)
    desk.keep(remove(desk.known, "mine", "", STAMP))
    assert "mine" not in desk.known.budgets


def test_what_was_not_set_cannot_be_taken_back(desk: Desk) -> None:
    assert "stands in config.toml is removed there" in refusal(lambda: remove(desk.known, "teams", "", STAMP))[1]
    assert "nothing is set for teams/ads" in refusal(lambda: remove(desk.known, "teams", "ads", STAMP))[1]
    assert 'did you mean "teams"' in refusal(lambda: remove(desk.known, "taems", "", STAMP))[1]
    set_new(desk)
    assert refusal(lambda: remove(desk.known, "mine", "ads", STAMP))[1] == "nothing is set for mine/ads"


@pytest.mark.parametrize(("stamp", "key"), [
    (Stamp(" ", NOW_NS), "author"), (Stamp("a\x07", NOW_NS), "author"), (Stamp("a" * (LONGEST["author"] + 1), NOW_NS), "author"),
    (Stamp(KEY, NOW_NS), "author"), (Stamp("ada", NOW_NS, "n" * (LONGEST["note"] + 1)), "note"),
    (Stamp("ada", NOW_NS, "two\nlines"), "note"), (Stamp("ada", NOW_NS, f"for {KEY}"), "note"),
])
def test_what_is_written_into_the_history_is_short_visible_and_no_secret(desk: Desk, stamp: Stamp, key: str) -> None:
    found, message = refusal(lambda: set_limits(desk.known, "teams", "ads", (1, None), stamp))
    assert (found, "s" * 32 in message) == (key, False)


def test_an_author_is_checked_where_nothing_else_is_said() -> None:
    check_author("Ada L.")
    assert refusal(lambda: check_author(""))[0] == "author"


def test_an_unknown_budget_is_told_with_the_nearest_and_without_a_secret(desk: Desk) -> None:
    assert 'did you mean "teams"' in refusal(lambda: desk.known.budget("team"))[1]
    assert "none is configured, and none was set" in refusal(lambda: Desk(BudgetBook()).known.budget("x"))[1]
    assert "s" * 32 not in refusal(lambda: desk.known.budget(KEY))[1]
    assert shown("x" * 500) == "x" * 100 + "…"
