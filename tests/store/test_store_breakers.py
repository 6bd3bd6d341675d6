"""Breakers: both stores keep the same promises; on SQLite they hold between processes and over restarts."""

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.core.breaker import Breaker, Event, State, Step
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store
from gateway.store.sqlite import SqliteStore

ONE = "alpha/small-1"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_suite = _load("breaker_conformance")


class TestSqliteBreakers(_suite.BreakerConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryBreakers(_suite.BreakerConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


async def test_a_breaker_survives_a_restart(store: SqliteStore, path: Path, samples: ModuleType) -> None:
    _before, now = await store.breakers.apply(ONE, Step(Event.TRIPPED, samples.NOW_NS, cause="down"))
    await store.close()
    again = SqliteStore(path, "two")
    await again.start(now_ns=samples.NOW_NS)
    assert await again.breakers.all() == (1, [now])
    await again.close()


async def test_several_processes_together_get_no_more_permits_than_there_are_probes(
    store: SqliteStore, path: Path, samples: ModuleType,
) -> None:
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    await store.breakers.apply(ONE, Step(Event.TRIPPED, samples.NOW_NS))
    later = samples.NOW_NS + 10 * samples.SECOND_NS

    async def claim(of: SqliteStore, holder: str) -> bool:
        _before, now = await of.breakers.apply(ONE, Step(Event.CLAIMED, later, holder=holder, lease_s=60.0))
        return any(each.holder == holder for each in now.permits)

    got = await asyncio.gather(*(claim(of, f"{name}.{n}") for n in range(10) for name, of in (("one", store), ("two", other))))
    await other.close()
    assert sum(got) == 1


@pytest.mark.parametrize("change", [
    "state = 'ajar'", "permits = '{'", "permits = '[[1]]'", "permits = '[[\"p\", \"long\", 5]]'", "permits = '7'", "permits = '[7]'",
])
async def test_a_row_that_cannot_be_read_closes_nobody_out_and_is_put_right_by_the_next_change(
    store: SqliteStore, sql: Callable[..., Any], samples: ModuleType, change: str,
) -> None:
    await store.breakers.apply(ONE, Step(Event.TRIPPED, samples.NOW_NS))
    sql(f"UPDATE breakers SET {change}")  # noqa: S608 - fixed texts
    assert (await store.breakers.all())[1] == []
    before, now = await store.breakers.apply(ONE, Step(Event.TRIPPED, samples.NOW_NS))
    assert before == Breaker(ONE)
    assert (await store.breakers.all())[1] == [now]
    assert now.state is State.OPEN
