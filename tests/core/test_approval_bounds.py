"""How much may wait for people: each bound names its setting and whose it is, and lets in what fits."""

from typing import Any

import pytest

from gateway.core.approval_bounds import HOUR_NS, Bounds, Full, Queue, asked

S = 1_000_000_000
NOW_NS = 1_000 * HOUR_NS


@pytest.mark.parametrize(("bounds", "everybody", "caller", "setting", "mine"), [
    ({"pending": 3}, Queue(3), Queue(0), "approvals.max_pending`", False),
    ({"pending": 0}, Queue(), Queue(), "approvals.max_pending`", False),
    ({"pending_each": 2}, Queue(5), Queue(2), "approvals.max_pending_each`", True),
    ({"pending_bytes": 100}, Queue(5, 91), Queue(1, 1), "approvals.max_pending_bytes`", False),
    ({"pending_bytes_each": 100}, Queue(5, 900), Queue(1, 91), "approvals.max_pending_bytes_each`", True),
])
def test_what_does_not_fit_is_refused_by_the_name_of_its_setting(
    bounds: dict[str, Any], everybody: Queue, caller: Queue, setting: str, mine: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    full = asked(Bounds(**{"pending": 9, **bounds}), everybody, caller, 10, NOW_NS)
    assert isinstance(full, Full)
    assert (setting in full.message, "of this caller" in full.message, full.often) == (True, mine, False)


def test_what_just_fits_goes_in() -> None:
    bounds = Bounds(3, 2, 100, 50)
    assert asked(bounds, Queue(2, 90), Queue(1, 40), 10, NOW_NS) == 0
    assert isinstance(asked(bounds, Queue(2, 90), Queue(1, 40), 11, NOW_NS), Full)


def test_one_that_is_larger_than_all_that_may_wait_goes_in_where_nothing_else_waits() -> None:
    bounds = Bounds(3, 2, 100, 50)
    assert asked(bounds, Queue(), Queue(), 1_000, NOW_NS) == 0
    assert isinstance(asked(bounds, Queue(1, 1), Queue(), 1_000, NOW_NS), Full)


def test_who_has_asked_as_often_as_may_be_is_told_when_there_is_room_again() -> None:
    bounds, caller = Bounds(9, opened_each=4), Queue()
    for _ in range(4):
        full_ns = asked(bounds, Queue(), caller, 1, NOW_NS)
        assert isinstance(full_ns, int)
        caller = Queue(full_ns=full_ns)
    full = asked(bounds, Queue(), caller, 1, NOW_NS)
    assert isinstance(full, Full)
    assert (full.often, full.retry_after_s) == (True, 900)
    assert "4 approvals within an hour" in full.message
    assert "approvals.max_opened_each" in full.message
    later_ns = NOW_NS + full.retry_after_s * S
    assert isinstance(asked(bounds, Queue(), caller, 1, later_ns - S), Full)
    assert isinstance(asked(bounds, Queue(), caller, 1, later_ns), int)
