"""What operators see and change of sessions: both stores keep the same promises; on SQLite they hold between processes."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.session import SessionKey
from gateway.store import session_reads
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store
from gateway.store.session_protocol import OutdatedError, SessionFilter
from gateway.store.sqlite import SqliteStore

KEY = SessionKey("key000000001", "s-1")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_suite = _load("desk_conformance")


class TestSqliteSessionDesk(_suite.DeskConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemorySessionDesk(_suite.DeskConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


@pytest.fixture
async def other(path: Path, store: SqliteStore, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    """Another process on the file of `store`."""
    _ = store
    opened = SqliteStore(path, "two")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


async def test_what_one_process_says_of_a_session_another_one_reads(store: SqliteStore, other: SqliteStore) -> None:
    frozen = await store.session_desk.set_state(KEY, "frozen", author="ada", note="", now_ns=5)
    assert await other.session_desk.states(0) == (1, [frozen])
    await other.session_desk.put_fact(KEY, "tier", "gold", version=0, author="bob", now_ns=6)
    assert (await store.session_desk.facts(KEY))["tier"]["author"] == "bob"
    assert await store.session_desk.generation() == 2


async def test_of_writers_in_two_processes_one_wins_each_version(store: SqliteStore, other: SqliteStore) -> None:
    """A counter that is only ever raised under the version that was read loses no step."""

    async def count(of: SqliteStore) -> None:
        raised = 0
        while raised < 10:
            known = (await of.session_desk.facts(KEY)).get("n", {"value": 0, "version": 0})
            try:
                await of.session_desk.put_fact(KEY, "n", known["value"] + 1, version=known["version"], author="", now_ns=5)
            except OutdatedError:
                continue
            raised += 1

    async with asyncio.timeout(60):
        await asyncio.gather(count(store), count(other))
    fact = (await store.session_desk.facts(KEY))["n"]
    assert (fact["value"], fact["version"]) == (20, 20)


async def test_a_page_of_a_timeline_is_read_by_the_index_and_not_from_all_calls(store: SqliteStore, sql: Callable[..., Any]) -> None:
    """However much is on record of others."""
    _ = store
    tables = {session_reads._CALLS: "places", session_reads._USES: "tool_uses", session_reads._EVENTS: "session_events",
              session_reads._APPROVALS: "approvals", session_reads._VOTES: "approvals"}
    for statement, table in tables.items():
        plan = " ".join(row[3] for row in sql(f"EXPLAIN QUERY PLAN {statement}", KEY.principal, KEY.id, 0, 0, 0, 0, "", 10))
        assert f"SEARCH {table} USING" in plan, plan
        assert "SCAN" not in plan, plan


async def test_a_database_without_sessions_lists_none(store: SqliteStore) -> None:
    assert await store.session_desk.list(SessionFilter()) == []
