"""What was acknowledged survives; what cannot be written is refused at once; nobody waits for ever."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gateway
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.invariants import Finding
from gateway.store.protocol import Admitted, CallFilter
from gateway.store.sqlite import SqliteStore
from gateway.store.writer import Do

PROGRAM = Path(__file__).with_name("writing_process.py")
ROUNDS = 5


def _start(path: Path, owner: str, count: int) -> "subprocess.Popen[str]":
    root = str(Path(gateway.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(path), owner, str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


async def _all(store: SqliteStore) -> dict[str, dict[str, Any]]:
    return {row["id"]: dict(row) for row in await store.journal.calls(CallFilter(limit=1_000_000))}


async def test_after_kill_9_at_any_moment_every_acknowledged_verb_is_on_disk(
    path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    """The intent of whatever was sent, and the outcome of whatever was answered."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    acknowledged: set[tuple[str, int]] = set()
    for n in range(ROUNDS):
        process = _start(path, f"victim {n}", 100_000)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 120))]
        process.send_signal(signal.SIGKILL)
        rest, errors = process.communicate(timeout=60)
        assert not errors, (seed, errors)
        whole = "".join(lines) + rest
        for line in whole[:whole.rfind("\n") + 1].splitlines():
            verb, _, number = line.partition(" ")
            acknowledged.add((verb, int(number)))
    store = SqliteStore(path, "survivor")
    await store.start(now_ns=samples.NOW_NS + 10**15)
    found = await _all(store)
    await store.close()
    for verb, n in acknowledged:
        row = found[samples.call_id(n)]
        assert verb == "begun" or row["outcome"] == "completed", (seed, row)
    assert {row["outcome"] for row in found.values()} <= {"completed", "interrupted"}, seed
    assert diagnose(now_ns=samples.NOW_NS + 10**15) == [], seed


async def test_two_processes_write_one_file_and_lose_nothing(
    path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    processes = [_start(path, f"worker {n}", 80) for n in (1, 2)]
    for process in processes:
        _out, errors = await asyncio.to_thread(process.communicate, timeout=100)
        assert (process.returncode, errors) == (0, "")
    store = SqliteStore(path, "reader")
    await store.start(now_ns=samples.NOW_NS)
    found = await _all(store)
    await store.close()
    assert len(found) == 160
    assert {row["outcome"] for row in found.values()} == {"completed"}
    assert diagnose() == []


async def test_a_full_disk_fails_what_does_not_fit_and_recovers_when_there_is_room(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    await store.journal.begin(samples.intent(1))
    pages = await store._writer.write(Do(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0]))
    await store._writer.write(Do(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()))
    big = os.urandom(200_000)
    results = await asyncio.gather(
        store.journal.begin(samples.intent(2)), store.journal.begin(samples.intent(3, request=big)), return_exceptions=True)
    assert isinstance(results[0], Admitted)
    assert isinstance(results[1], StoreUnavailable)
    assert "the disk is full; make room" in results[1].message
    await store._writer.write(Do(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone()))
    await store.journal.begin(samples.intent(3, request=big))
    await store.check()
    assert diagnose() == []


async def test_a_database_that_became_read_only_is_unavailable_and_not_silently_lossy(store: SqliteStore, samples: ModuleType) -> None:
    connection = await store._writer.write(Do(lambda connection: connection))
    connection.execute("PRAGMA query_only = ON")
    for verb in (store.check(), store.journal.begin(samples.intent(1)), store.keys.create(samples.key(1))):
        with pytest.raises(StoreUnavailable, match="read-only"):
            await verb
    connection.execute("PRAGMA query_only = OFF")
    await store.check()
    await store.journal.begin(samples.intent(1))


async def test_a_writer_elsewhere_that_takes_too_long_makes_the_store_unavailable_for_as_long(
    path: Path, samples: ModuleType, sql: Callable[..., Any],
) -> None:
    store = SqliteStore(path, "one", busy_timeout_s=0.01)
    await store.start(now_ns=samples.NOW_NS)
    sql("BEGIN IMMEDIATE")
    results = await asyncio.gather(*(store.journal.begin(samples.intent(n)) for n in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    assert "another program holds it locked" in str(results[0])
    with pytest.raises(StoreUnavailable):
        await store.check()
    sql("COMMIT")
    await store.check()
    await store.journal.begin(samples.intent(1))
    await store.close()


async def test_no_wait_is_longer_than_the_deadline(path: Path, samples: ModuleType, sql: Callable[..., Any]) -> None:
    store = SqliteStore(path, "one", busy_timeout_s=5.0, deadline_s=0.05)
    await store.start(now_ns=samples.NOW_NS)
    sql("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"did not answer in 0\.05 s"):
        await store.journal.begin(samples.intent(1))
    sql("COMMIT")
    await store.close()


async def test_a_slow_query_is_interrupted_at_the_deadline_and_the_next_one_is_answered(path: Path, samples: ModuleType) -> None:
    store = SqliteStore(path, "one", deadline_s=0.2)
    await store.start(now_ns=samples.NOW_NS)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await store._reader.read(lambda connection: connection.execute(endless).fetchone())
    assert await store.keys.generation() == 0
    await store.close()


async def test_one_bad_record_does_not_take_its_neighbours_with_it(store: SqliteStore, samples: ModuleType) -> None:
    bad = samples.intent(5, received_ns=2**70)  # no column holds it
    results = await asyncio.gather(
        *(store.journal.begin(samples.intent(n)) for n in range(5)), store.journal.begin(bad), store.journal.begin(samples.intent(3)),
        *(store.journal.begin(samples.intent(n)) for n in range(7, 10)), return_exceptions=True)
    assert [type(result) for result in results] == [Admitted] * 5 + [StoreError] * 2 + [Admitted] * 3
    assert "cannot be stored" in str(results[5])
    assert "already recorded" in str(results[6])
    assert len(await _all(store)) == 8


async def test_a_record_that_makes_no_row_is_refused_before_it_costs_a_transaction(store: SqliteStore, samples: ModuleType) -> None:
    await store.journal.begin(samples.intent(1))
    with pytest.raises(StoreError, match="cannot be stored"):
        await store.journal.finish(samples.completed(1, attempts=(samples.attempt(1, waited_s="soon"),)), response=None)
    await store.journal.finish(samples.completed(1), response=None)


async def test_a_query_that_fails_and_one_too_many_make_the_store_unavailable(store: SqliteStore) -> None:
    with pytest.raises(StoreUnavailable, match="no such column"):
        await store._reader.read(lambda connection: connection.execute("SELECT no_such"))
    waiting = [asyncio.ensure_future(store.keys.generation()) for _ in range(8193)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [result for result in results if result != 0] == [results[-1]]
    assert "8192 queries already wait" in str(results[-1])


async def test_a_cancelled_wait_neither_loses_nor_tears_the_record(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    """The caller went away while its intent was on the way to the disk: it is written, and its outcome can follow."""
    waits = [asyncio.ensure_future(store.journal.begin(samples.intent(n))) for n in range(10)]
    await asyncio.sleep(0)
    for wait in waits[::2]:
        wait.cancel()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 5
    for n in range(10):
        await store.journal.finish(samples.completed(n), response=None)
    assert {row["outcome"] for row in (await _all(store)).values()} == {"completed"}
    assert diagnose() == []


async def test_a_closed_store_writes_what_was_queued_and_refuses_what_comes_later(path: Path, samples: ModuleType) -> None:
    store = SqliteStore(path, "one")
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.journal.begin(samples.intent(0))
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.keys.generation()
    await store.start(now_ns=samples.NOW_NS)
    queued = [asyncio.ensure_future(store.journal.begin(samples.intent(n))) for n in range(100)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    await asyncio.gather(*queued)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.journal.begin(samples.intent(200))
    assert not path.with_name("lockgate.db-wal").exists()
    again = SqliteStore(path, "two")
    await again.start(now_ns=samples.NOW_NS)
    assert len(await _all(again)) == 100
    await again.close()
