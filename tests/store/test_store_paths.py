"""How calls found their way: both stores keep the same; on SQLite a plain call costs no row more, and a part is found by an index."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.errors import StoreError
from gateway.store.invariants import Finding
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store
from gateway.store.sqlite import SqliteStore

_spec = importlib.util.spec_from_file_location("store_path_conformance", Path(__file__).with_name("path_conformance.py"))
assert _spec is not None
assert _spec.loader is not None
_conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_conformance)


class TestSqlitePaths(_conformance.PathConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryPaths(_conformance.PathConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


async def test_a_plain_call_costs_no_row_more(store: SqliteStore, samples: ModuleType, sql: Callable[..., list[Any]]) -> None:
    await store.journal.begin(samples.intent(1))
    await store.journal.finish(samples.completed(1, attempts=(samples.attempt(1, largest_gap_s=0.5),)), response=None)
    await store.journal.refuse(samples.refused(2), request=None)
    assert (sql("SELECT * FROM paths"), sql("SELECT * FROM plans")) == ([], [])


async def test_a_part_whose_process_dies_is_still_one(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    await store.journal.begin(samples.intent(2, part_of=samples.call_id(1)))
    successor = SqliteStore(path, "two")
    await successor.start(now_ns=samples.NOW_NS + 10**15)
    part = await successor.journal.call(samples.call_id(2))
    await successor.close()
    assert part is not None
    assert (part["outcome"], part["part_of"]) == ("interrupted", samples.call_id(1))
    assert diagnose() == []


async def test_an_outcome_that_is_not_kept_leaves_no_path_behind(store: SqliteStore, samples: ModuleType, sql: Callable[..., list[Any]]) -> None:
    """They are one transaction."""
    await store.journal.begin(samples.intent(1))
    sql("CREATE TRIGGER full BEFORE INSERT ON plans BEGIN SELECT raise(ABORT, 'no room'); END")
    further = samples.completed(1, attempts=(samples.attempt(1, breaker="half_open"),), plan={"strategy": "priority"})
    with pytest.raises(StoreError, match="no room"):
        await store.journal.finish(further, response=None)
    assert (sql("SELECT * FROM paths"), sql("SELECT * FROM outcomes")) == ([], [])


async def test_the_parts_of_a_call_are_found_without_reading_the_journal(store: SqliteStore, sql: Callable[..., list[Any]]) -> None:
    _ = store
    steps = sql("EXPLAIN QUERY PLAN SELECT id FROM plans JOIN calls USING (seq) WHERE part_of = ? AND part_of != '' ORDER BY seq", "call_1")
    assert "plans_by_whole" in steps[0][3]
    assert not any("SCAN" in step[3] for step in steps)
