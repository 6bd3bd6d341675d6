"""Rows of money for programs and spreadsheets."""

import csv
import io
import json
from typing import Any

import pytest

from gateway.budget_changes import Catalogue
from gateway.core.accounts import Account, Budget, BudgetBook, Change
from gateway.core.budget import Balance
from gateway.core.windows import Window
from gateway.money_reports import (
    OTHERS,
    account_row,
    budget_row,
    change_row,
    cost_row,
    costs_csv,
    costs_report,
    moment,
    raise_rows,
    settings_of,
    suspect_row,
    window_row,
)
from gateway.store.protocol import Standing

NOW_NS = 1_790_000_000_000_000_000
USD = 10**9
DAY = Window("day", "Europe/Berlin")


@pytest.mark.parametrize(("text", "back", "expected"), [
    ("7d", True, NOW_NS - 7 * 86400 * USD), ("90m", False, NOW_NS + 5400 * USD), ("1970-01-02", True, 86400 * USD),
    ("2030-01-31T12:00:00Z", False, 1_896_091_200 * USD), ("2030-01-31T12:00:00+01:00", False, 1_896_087_600 * USD),
    ("2030-01-31 12:00", False, 1_896_091_200 * USD),
])
def test_a_moment_is_a_distance_from_now_or_a_time(text: str, *, back: bool, expected: int) -> None:
    assert moment(text, NOW_NS, back=back) == expected


@pytest.mark.parametrize("text", [
    "", "yesterday", "7", "7w", "-1d", "1969-12-31", "2261-01-02", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "400d", "2030-02-30",
])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a duration|outside the years"):
        moment(text, NOW_NS, back=False)


def test_more_time_back_than_there_was_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the years"):
        moment("7d", 86400 * USD, back=True)


def test_an_account_is_told_in_texts_beside_integers() -> None:
    account = Account("teams", "search", "team", 10 * USD, DAY, soft_nusd=4 * USD)
    row = account_row(Standing(account, Balance(4 * USD + 1, USD // 2), 0, NOW_NS))
    assert row == {
        "account": "teams/search", "budget": "teams", "subject": "search", "scope": "team", "limit_usd": "10", "limit_nusd": 10 * USD,
        "soft_usd": "4", "soft_nusd": 4 * USD, "used_usd": "4.000000001", "used_nusd": 4 * USD + 1, "reserved_usd": "0.5",
        "reserved_nusd": USD // 2, "remaining_usd": "5.499999999", "remaining_nusd": 5_499_999_999, "used_percent": 40.0,
        "past_soft_limit": True, "window": "day", "timezone": "Europe/Berlin", "resets_at": "2026-09-21T14:13:20Z", "resets_ns": NOW_NS,
    }
    json.dumps(row)


@pytest.mark.parametrize(("limit", "posted", "remaining", "percent"), [
    (None, USD, None, None), (0, 0, "0", None), (0, USD, "0", None), (USD, 3 * USD, "0", 300.0),
])
def test_what_is_left_is_never_less_than_nothing(limit: int | None, posted: int, remaining: str | None, percent: float | None) -> None:
    row = account_row(Standing(Account("b", "s", "team", limit), Balance(posted), 0, None))
    assert (row["remaining_usd"], row["used_percent"], row["past_soft_limit"]) == (remaining, percent, False)
    assert (row["resets_at"], row["window"]) == (None, "none")


def test_settings_are_told_as_they_are_written() -> None:
    rolling = Budget("b", "user", None, Window("rolling", length_ns=7200 * USD), ("a*",), USD // 4, "deny", 32, {"k1/ada": 3 * USD})
    assert settings_of(rolling) == {
        "scope": "user", "of": ["a*"], "limit": None, "soft": "0.25", "limits": {"k1/ada": "3"}, "window": "2h", "timezone": "UTC",
        "on_short": "deny", "least_output": 32,
    }
    known = Catalogue.of(BudgetBook([rolling]), ())
    assert (budget_row(known, rolling)["source"], budget_row(Catalogue.of(BudgetBook(), ()), rolling)["source"]) == ("config.toml", "set")


def test_a_change_is_told_whole() -> None:
    made = Budget("b", "team", USD)
    known = Catalogue.of(BudgetBook(), ())
    row = change_row(known, Change(7, NOW_NS, "ada", "set", "b", budget=made))
    assert (row["id"], row["author"], row["changed_at"], row["settings"]["limit"]) == (7, "ada", "2026-09-21T14:13:20Z", "1")
    raised = change_row(known, Change(8, NOW_NS, "bob", "raise", "b", "s", limit_nusd=5, until_ns=NOW_NS + USD, note="why"))
    assert (raised["limit_usd"], raised["until_at"], raised["note"], raised["settings"], raised["soft_usd"]) == (
        "0.000000005", "2026-09-21T14:13:21Z", "why", None, None)


def test_the_raises_that_hold_are_told() -> None:
    changes = [Change(n, 0, "ada", "raise", "b", subject, limit_nusd=n, until_ns=until)
               for n, subject, until in ((1, "", 5), (2, "s", 5), (3, "s", 2))]
    rows = raise_rows(Catalogue.of(BudgetBook([Budget("b", "team", USD)]), changes), "b", 2)
    assert [(row["subject"], row["by_nusd"], row["until_ns"]) for row in rows] == [("", 1, 5), ("s", 2, 5)]


def test_windows_and_suspects_are_told() -> None:
    window = window_row({"budget": "b", "subject": "s", "scope": "team", "span": "none", "window_ns": 0, "ends_ns": None, "posted_nusd": 5,
                         "pending_nusd": 6, "limit_nusd": None, "over_nusd": 1})
    assert (window["account"], window["began_at"], window["ends_at"], window["used_nusd"], window["limit_usd"]) == ("b/s", None, None, 5, None)
    suspect = suspect_row({"call": "c", "key": "k", "team": "", "route": "r", "target": "p/m", "accounts": ["b/s"], "received_ns": NOW_NS,
                           "at_ns": NOW_NS + USD, "cost_nusd": 10})
    assert (suspect["received_at"], suspect["booked_ns"], suspect["cost_usd"]) == ("2026-09-21T14:13:20Z", NOW_NS + USD, "0.00000001")


def cost(group: str | None, nusd: int = 5, **more: Any) -> dict[str, Any]:
    return {"group": group, "cost_nusd": nusd, "estimated_nusd": 1, "calls": 2, "lines": 3, **more}


def test_the_costs_add_up() -> None:
    report = costs_report("team", 0, NOW_NS, [cost("a", 10**18), cost("b", 1), cost(None, -3)])
    assert (report["total_nusd"], report["total_usd"], report["estimated_nusd"], report["lines"]) == (
        10**18 - 2, "999999999.999999998", 3, 9)
    assert [group["group"] for group in report["groups"]] == ["a", "b", None]
    assert costs_report("team", 0, 1, [])["total_usd"] == "0"
    assert cost_row(cost("a", -3))["cost_usd"] == "-0.000000003"


@pytest.mark.parametrize("group", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "a\x1b]0;owned\x07", "\N{RIGHT-TO-LEFT OVERRIDE}x"])
def test_no_cell_of_a_csv_acts_on_a_spreadsheet_or_a_terminal(group: str) -> None:
    rows = list(csv.reader(io.StringIO(costs_csv("session", [cost(group)]))))
    cell = rows[1][0]
    assert not cell.strip().startswith(("=", "+", "-", "@"))
    assert cell.isprintable()


def test_a_csv_has_a_row_for_each_group_and_one_for_the_rest() -> None:
    text = costs_csv("team", [cost('say "a", b', 1_500_000_000), cost(""), cost(None)])
    assert text.startswith("team,cost_usd,estimated_usd,calls,lines\r\n")
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        ['say "a", b', "1.5", "0.000000001", "2", "3"], ["", "0.000000005", "0.000000001", "2", "3"],
        [OTHERS, "0.000000005", "0.000000001", "2", "3"]]
