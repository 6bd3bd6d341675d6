"""A call that its process did not live to end is closed as interrupted: once, by whoever looks first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.errors import StoreError
from gateway.store.leases import SIGHTINGS
from gateway.store.sqlite import SqliteStore

LEASE_NS = 10

# The first finds that its own lease is over too, and believes nothing; the next three see the same lease overdue.
BEATS = 1 + SIGHTINGS


async def beats(store: SqliteStore, now_ns: int, times: int = BEATS) -> int:
    """Several heartbeats; how many calls they closed."""
    return sum([await store.heartbeat(now_ns=now_ns, lease_ns=LEASE_NS) for _ in range(times)])


@pytest.fixture
async def others(path: Path, samples: ModuleType) -> AsyncIterator[list[SqliteStore]]:
    """Two more processes on the file of `store`."""
    opened = [SqliteStore(path, name) for name in ("two", "three")]
    for other in opened:
        await other.start(now_ns=samples.NOW_NS)
    yield opened
    for other in opened:
        await other.close()


async def test_an_open_call_of_a_dead_process_is_interrupted_with_its_attempts(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType,
) -> None:
    await store.journal.begin(samples.intent(1))
    await store.journal.dispatch(samples.dispatch(1, 2))
    await store.journal.begin(samples.intent(2))
    await store.journal.finish(samples.completed(2), response=None)
    await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=LEASE_NS)
    assert await beats(others[0], samples.NOW_NS + LEASE_NS) == 0
    assert await beats(others[0], samples.NOW_NS + LEASE_NS + 1, SIGHTINGS - 1) == 0
    assert await beats(others[0], samples.NOW_NS + LEASE_NS + 1, 1) == 1
    call = await others[1].journal.call(samples.call_id(1))
    assert call is not None
    assert (call["outcome"], call["status"], call["cost_usd"]) == ("interrupted", None, None)
    assert call["ended_ns"] == samples.NOW_NS + LEASE_NS + 1
    assert [(tried["n"], tried["target"], tried["end"], tried["cause"]) for tried in call["attempts"]] == [
        (1, "alpha/small-1", "cancelled", "interrupted"), (2, "beta/large-2", "cancelled", "interrupted")]
    finished = await store.journal.call(samples.call_id(2))
    assert finished is not None
    assert finished["outcome"] == "completed"


async def test_processes_that_sweep_at_once_close_each_call_once(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType,
) -> None:
    for n in range(20):
        await store.journal.begin(samples.intent(n))
    late = samples.NOW_NS + 10**15
    closed = await asyncio.gather(*(other.heartbeat(now_ns=late, lease_ns=LEASE_NS) for other in others * 5))
    assert sum(closed) == 20


async def test_a_process_that_slept_through_its_lease_cannot_end_the_call_a_second_time_and_goes_on(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType,
) -> None:
    late = samples.NOW_NS + 10**12
    await store.journal.begin(samples.intent(1))
    assert await beats(others[0], late) == 1
    with pytest.raises(StoreError, match="already has its outcome"):
        await store.journal.finish(samples.completed(1), response=None)
    await store.journal.begin(samples.intent(2))
    assert await store.heartbeat(now_ns=late, lease_ns=LEASE_NS) == 0
    assert await others[0].heartbeat(now_ns=late + 1, lease_ns=LEASE_NS) == 0
    await store.journal.finish(samples.completed(2), response=None)
    assert repr(store._calls) == "OpenCalls(owner=1, open=0)"


async def test_what_a_process_begins_after_its_lease_is_swept_too(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType,
) -> None:
    late = samples.NOW_NS + 10**12
    await beats(others[0], late)
    await store.journal.begin(samples.intent(1))
    assert await beats(others[0], late) == 1


async def test_a_start_recovers_at_once_what_a_former_process_of_the_same_name_left(
    path: Path, store: SqliteStore, samples: ModuleType,
) -> None:
    await store.journal.begin(samples.intent(1))
    successor = SqliteStore(path, "one")
    await successor.start(now_ns=samples.NOW_NS + 5)
    call = await successor.journal.call(samples.call_id(1))
    assert call is not None
    assert call["outcome"] == "interrupted"
    await successor.close()


async def test_a_closed_store_leaves_its_open_calls_to_the_next(
    path: Path, others: list[SqliteStore], samples: ModuleType, sql: Callable[..., Any],
) -> None:
    leaving = SqliteStore(path, "four")
    await leaving.start(now_ns=samples.NOW_NS)
    await leaving.journal.begin(samples.intent(1))
    await leaving.close()
    assert await others[0].heartbeat(now_ns=samples.NOW_NS + 1, lease_ns=LEASE_NS) == 1
    assert sql("SELECT name FROM owners ORDER BY id") == [("two",), ("three",)]


async def test_recovery_looks_no_further_back_than_the_oldest_open_call(
    store: SqliteStore, samples: ModuleType, sql: Callable[..., Any],
) -> None:
    """Otherwise it would read the whole journal, which grows without end."""
    for n in (1, 2, 3):
        await store.journal.begin(samples.intent(n))
    await store.journal.finish(samples.completed(1), response=None)
    await store.journal.finish(samples.completed(3), response=None)
    await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=LEASE_NS)
    assert sql("SELECT floor FROM owners") == [(2,)]
    await store.journal.finish(samples.completed(2), response=None)
    await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=LEASE_NS)
    assert sql("SELECT floor FROM owners") == [(4,)]


async def test_a_call_that_begins_in_the_transaction_of_a_heartbeat_is_found_after_a_death(
    path: Path, others: list[SqliteStore], samples: ModuleType,
) -> None:
    """It would stay open for ever, with its money set aside and its approval claimed."""
    dying = SqliteStore(path, "four")
    await dying.start(now_ns=samples.NOW_NS)
    await asyncio.gather(dying.journal.begin(samples.intent(1)), dying.heartbeat(now_ns=samples.NOW_NS, lease_ns=LEASE_NS))
    await beats(others[0], samples.NOW_NS + LEASE_NS + 1)
    call = await others[1].journal.call(samples.call_id(1))
    assert call is not None
    assert call["outcome"] == "interrupted"
    await dying.close()


async def test_a_call_that_begins_in_the_transaction_of_the_end_is_left_to_the_next(
    path: Path, others: list[SqliteStore], samples: ModuleType,
) -> None:
    leaving = SqliteStore(path, "four")
    await leaving.start(now_ns=samples.NOW_NS)
    begun = asyncio.create_task(leaving.journal.begin(samples.intent(1)))
    await asyncio.sleep(0)
    await leaving.close()
    await begun
    assert await others[0].heartbeat(now_ns=samples.NOW_NS + 1, lease_ns=LEASE_NS) == 1


async def test_a_process_long_dead_is_forgotten(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType, sql: Callable[..., Any],
) -> None:
    await beats(others[0], samples.NOW_NS + 10**18)
    assert sql("SELECT name FROM owners") == [("two",)]
    assert await store.heartbeat(now_ns=samples.NOW_NS + 10**18, lease_ns=LEASE_NS) == 0
    assert sql("SELECT count(*) FROM owners WHERE name = 'one'") == [(1,)]


async def test_a_step_of_the_clock_does_not_end_the_calls_of_the_living(
    store: SqliteStore, others: list[SqliteStore], samples: ModuleType,
) -> None:
    """A laptop wakes, a virtual machine resumes: every lease is over at once, and everybody is alive."""
    await store.journal.begin(samples.intent(1))
    stepped = samples.NOW_NS + 10**15
    for _round in range(10):
        assert await others[0].heartbeat(now_ns=stepped, lease_ns=LEASE_NS) == 0
        assert await store.heartbeat(now_ns=stepped, lease_ns=LEASE_NS) == 0
        stepped += 2 * LEASE_NS
    await store.journal.finish(samples.completed(1), response=None)
