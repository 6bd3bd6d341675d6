"""Windows cut time without a gap and without an overlap, whatever clocks do, and money never comes back early."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.windows import STEPS, Kind, Window

NS = 10**9
CALENDAR: tuple[Kind, ...] = ("hour", "day", "week", "month")
# Summer time at night, at midnight (Havana, Cairo), by half an hour (Lord Howe); offsets of :30 and :45; a day that never was (Apia, 2011);
# a midnight that came twice (St. John's, 2010); beyond 12 hours from UTC (Kiritimati, Chatham).
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Africa/Cairo", "Asia/Kolkata", "Asia/Kathmandu",
         "Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Chatham", "Antarctica/Troll")
SINCE_1970 = st.integers(0, int(datetime(2037, 1, 1, tzinfo=UTC).timestamp()) * NS)


def ns(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) * NS


def local(at_ns: int, zone: str) -> str:
    return datetime.fromtimestamp(at_ns // NS, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize("zone", ZONES)
def test_the_zones_that_are_named_can_be_loaded(zone):
    """On a slim machine they come with the package `tzdata`."""
    assert Window("day", zone).at(0) <= 0


@pytest.mark.parametrize(("kind", "begins", "ends"), [
    ("hour", "2026-11-18 15:00", "2026-11-18 16:00"), ("day", "2026-11-18 00:00", "2026-11-19 00:00"),
    ("week", "2026-11-16 00:00", "2026-11-23 00:00"), ("month", "2026-11-01 00:00", "2026-12-01 00:00")])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
def test_a_calendar_window_begins_and_ends_where_people_expect_it(kind, zone, begins, ends):
    window = Window(kind, zone)
    at = window.at(ns("2026-11-18 15:30", zone) + 5)
    assert (local(at, zone), local(window.ends(at) or 0, zone)) == (begins, ends)
    assert window.counts_from(at) == at


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-10-26", 24)])
def test_a_day_has_as_many_hours_as_it_has_and_each_is_a_window(day, hours):
    zone = "Europe/Berlin"
    whole, hour = Window("day", zone), Window("hour", zone)
    start = whole.at(ns(f"{day} 12:00", zone))
    end = whole.ends(start)
    assert end is not None
    assert end - start == hours * 3600 * NS
    assert len({hour.at(at) for at in range(start, end, 900 * NS)}) == hours
    assert (hour.at(start), hour.ends(hour.at(end - 1))) == (start, end)


def test_the_hour_that_comes_twice_is_two_windows():
    hour = Window("hour", "Europe/Berlin")
    first, second = (hour.at(ns("2026-10-25 02:30", "Europe/Berlin", fold)) for fold in (0, 1))
    assert second - first == 3600 * NS
    assert hour.ends(first) == second


def test_a_day_that_begins_without_a_midnight_begins_when_clocks_are_put_forward():
    day = Window("day", "America/Havana")
    start = day.at(ns("2026-03-08 12:00", "America/Havana"))
    assert local(start, "America/Havana") == "2026-03-08 01:00"
    assert day.ends(day.at(start - 1)) == start


def test_a_day_that_has_begun_once_does_not_end_because_clocks_are_put_back_over_midnight():
    zone = "America/St_Johns"  # at 00:01 it was 23:01 again
    day = Window("day", zone)
    start = day.at(ns("2010-11-07 12:00", zone))
    assert {day.at(start + minutes * 60 * NS) for minutes in range(180)} == {start}


@pytest.mark.parametrize(("month", "days"), [("2024-02", 29), ("2026-02", 28), ("2100-02", 28), ("2026-01", 31), ("2026-12", 31), ("2026-04", 30)])
def test_a_month_is_as_long_as_it_is(month, days):
    window = Window("month")
    for day in (1, days):
        start = window.at(ns(f"{month}-{day:02d} 23:59"))
        assert local(start, "UTC") == f"{month}-01 00:00"
        assert window.ends(start) == start + days * 86400 * NS


@settings(derandomize=True, deadline=None, max_examples=400)
@given(kind=st.sampled_from(CALENDAR), zone=st.sampled_from(ZONES), now_ns=SINCE_1970)
def test_every_moment_is_in_one_window_and_windows_touch(kind, zone, now_ns):
    window = Window(kind, zone)
    start = window.at(now_ns)
    end = window.ends(start)
    assert end is not None
    assert start <= now_ns < end
    assert (window.at(start), window.at(end - 1), window.at(end)) == (start, start, end)
    longest = {"hour": 1, "day": 49, "week": 7 * 25, "month": 31 * 25}[kind]
    assert end - start <= longest * 3600 * NS


@pytest.mark.parametrize("now_ns", [-(10**30), -(2**63), -1, 0, 2**63, 10**30])
@pytest.mark.parametrize("window", [Window(), *(Window(kind, "Asia/Kolkata") for kind in CALENDAR), Window("rolling", length_ns=366 * 86400 * NS)])
def test_a_clock_that_is_far_off_makes_windows_that_still_fit_in_64_bits(window, now_ns):
    at = window.at(now_ns)
    for number in (at, window.counts_from(at), window.ends(at) or 0):
        assert -(2**63) <= number < 2**63


def test_without_a_window_money_never_comes_back():
    window = Window()
    assert (window.at(5), window.at(2**62), window.counts_from(0), window.ends(0)) == (0, 0, 0, None)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(length_s=st.integers(60, 366 * 86400), spent_ns=st.integers(0, 2**62), later=st.integers(0, 2 * 366 * 86400 * NS))
def test_money_of_a_rolling_window_counts_for_its_whole_length_and_at_most_a_step_longer(length_s, spent_ns, later):
    window = Window("rolling", length_ns=length_s * NS)
    step = -(-length_s * NS // STEPS)
    spent_in, now = window.at(spent_ns), window.at(spent_ns + later)
    counts = spent_in >= window.counts_from(now)
    if later <= length_s * NS:
        assert counts
    if later >= length_s * NS + step + STEPS:
        assert not counts
    back = window.ends(spent_in)
    assert back is not None
    assert counts == (spent_ns + later < back)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(length_s=st.integers(60, 366 * 86400), now_ns=st.integers(-(2**62), 2**62), more=st.integers(0, 10**15))
def test_steps_of_a_rolling_window_only_go_forward(length_s, now_ns, more):
    window = Window("rolling", length_ns=length_s * NS)
    at = window.at(now_ns)
    assert at <= now_ns < at + -(-length_s * NS // STEPS)
    assert window.at(at) == at
    assert window.at(now_ns + more) >= at


def test_windows_that_are_cut_differently_have_balances_of_their_own():
    windows = [Window(), *(Window(kind, zone) for kind in CALENDAR for zone in ("UTC", "Europe/Berlin")),
               *(Window("rolling", length_ns=seconds * NS) for seconds in (60, 61, 3600))]
    assert len({window.span for window in windows}) == len(windows)
    assert Window("none", "Europe/Berlin").span == Window().span == "none"
    assert Window("rolling", "Europe/Berlin", 60 * NS).span == "rolling 60s"
