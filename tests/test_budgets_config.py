"""What `[budgets]` says becomes budgets, or a problem with the setting that is wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.budgets import BudgetError, budget_of, window_of
from gateway.config import BudgetConfig, PriceConfig
from gateway.core.accounts import Budget
from gateway.core.windows import Window
from gateway.units import parse_money

S = 10**9


def given(**settings: Any) -> BudgetConfig:
    return BudgetConfig.model_validate({"scope": "team", **settings})


def test_every_setting_arrives_where_it_belongs():
    written = given(of=["a*", "b"], limit="100.00", soft="80", limits={"b": "0.5"}, window="month", timezone="Europe/Berlin", on_short="deny",
                    least_output=99)
    assert budget_of("n", written) == Budget(
        "n", "team", 100 * S, Window("month", "Europe/Berlin"), ("a*", "b"), 80 * S, "deny", 99, {"b": S // 2})


def test_a_budget_of_a_limit_alone_is_for_everybody_and_for_ever():
    assert budget_of("n", given(limit="1")) == Budget("n", "team", S)


@pytest.mark.parametrize("settings", [{"soft": "1"}, {"limits": {"a": "1"}}, {"limit": "0"}, {"limit": "1", "soft": "1"}])
def test_a_budget_needs_one_amount(settings):
    assert budget_of("n", given(**settings)).name == "n"


@pytest.mark.parametrize(("settings", "key"), [
    ({}, "limit"), ({"limit": "1", "soft": "1.01"}, "soft"), ({"limit": "1", "window": "fortnight"}, "window"), ({"limit": "1", "window": "59s"}, "window"),
    ({"limit": "1", "window": "367d"}, "window"), ({"limit": "1", "window": ""}, "window"), ({"limit": "1", "window": "90.5s"}, "window"),
    ({"limit": "1", "timezone": "Europe/Atlantis"}, "timezone"), ({"limit": "1", "timezone": ""}, "timezone")])
def test_what_cannot_be_is_told_with_the_setting_that_is_wrong(settings, key):
    with pytest.raises(BudgetError) as wrong:
        budget_of("n", given(**settings))
    assert wrong.value.key == key


@pytest.mark.parametrize("zone", ["../etc/passwd", "/etc/passwd", "Europe", "Europe/Berlin\0", "a" * 5000, "right/UTC", "tzdata.zi", "\ud800", "zone.tab", "."])
def test_a_time_zone_is_a_name_and_no_file_of_the_machine(zone):
    with pytest.raises(BudgetError, match="there is no time zone"):
        window_of("day", zone)


@pytest.mark.parametrize(("text", "window"), [
    ("none", Window()), ("hour", Window("hour")), ("day", Window("day")), ("week", Window("week")), ("month", Window("month")),
    ("60s", Window("rolling", length_ns=60 * S)), ("24h", Window("rolling", length_ns=86400 * S)), ("0.07h", Window("rolling", length_ns=252 * S)),
    ("366d", Window("rolling", length_ns=366 * 86400 * S))])
def test_windows_are_named_or_last_as_long_as_they_say(text, window):
    assert window_of(text, "UTC") == window


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/Argentina/Buenos_Aires", "Etc/GMT+12"])
def test_the_named_zones_of_the_world_are_there(zone):
    assert window_of("day", zone) == Window("day", zone)


def test_time_zones_are_there_where_the_system_has_none():
    """A slim image has no zones of its own: they come with the package `tzdata`."""
    asked = "from gateway.budgets import window_of; print(window_of('day', 'Europe/Berlin').at(1_795_000_000 * 10**9))"
    environ = {**os.environ, "PYTHONTZPATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) == Window("day", "Europe/Berlin").at(1_795_000_000 * 10**9)


@pytest.mark.parametrize(("text", "nusd"), [("0", 0), ("1", S), ("0.40", 400_000_000), ("0.000000001", 1), ("999999999.999999999", 10**18 - 1), ("1.0000000000", S)])
def test_money_is_read_exactly(text, nusd):
    assert parse_money(text) == nusd


@pytest.mark.parametrize("wrong", [1, 1.5, True, None, "", "-1", "+1", "1e3", "1,5", " 1", "1 USD", "1.", ".5", "0.0000000001", "1" * 10, "\u0661", "NaN", "Infinity"])
def test_money_that_is_not_exact_is_refused(wrong):
    with pytest.raises(ValueError, match=r"amount"):
        parse_money(wrong)


@pytest.mark.parametrize("wrong", [
    {"scope": "everybody"}, {"of": []}, {"of": [""]}, {"on_short": "wait"}, {"least_output": 0}, {"limit": 5}, {"limits": {"a": 5}}, {"window": 5}, {"unknown": 1}])
def test_a_setting_of_another_shape_is_refused(wrong):
    with pytest.raises(ValidationError):
        given(**{"limit": "1", **wrong})


PLAIN = {"input": "1", "output": "2"}


@pytest.mark.parametrize("price", [
    {"reasoning": "1001"}, {"input_audio": "0.0001"}, {"image": "1.01"}, {"tiers": [{"above": 9, "input": "1001", "output": "1"}]},
    {"tiers": [{"above": 9, "input": "1", "output": "1"}, {"above": 10, "input": "1", "output": "0.0001"}]},
    {"tiers": [{"above": 9, "input": "1", "output": "1", "cached_input": "2000"}]}, {"tiers": [{"above": 9, "input": "1", "output": "1", "cache_write": "2000"}]}])
def test_a_price_that_is_most_likely_a_slip_is_refused_unless_it_is_forced(price):
    with pytest.raises(ValidationError, match="a slip of the unit"):
        PriceConfig.model_validate({**PLAIN, **price})
    PriceConfig.model_validate({**PLAIN, **price, "force": True})


def test_two_tiers_that_begin_at_the_same_place_are_refused():
    tier = {"above": 9, "input": "1", "output": "1"}
    with pytest.raises(ValidationError, match="two tiers begin at the same number"):
        PriceConfig.model_validate({**PLAIN, "tiers": [tier, tier]})


def test_the_tier_that_is_wrong_is_named():
    with pytest.raises(ValidationError, match=r"\[1\]\.output: \$5000 per million"):
        PriceConfig.model_validate({**PLAIN, "tiers": [{"above": 9, "input": "1", "output": "1"}, {"above": 10, "input": "1", "output": "5000"}]})


def test_a_budget_is_not_called_as_an_address_is():
    with pytest.raises(BudgetError, match="address of its own") as caught:
        budget_of("suspects", BudgetConfig.model_validate({"scope": "team", "limit": "1"}))
    assert caught.value.key == "name"


def test_a_tag_that_can_never_match_is_refused():
    with pytest.raises(BudgetError, match="NAME=VALUE"):
        budget_of("jobs", BudgetConfig.model_validate({"scope": "tag", "limit": "1", "of": ["nightly"]}))
