"""People: both stores keep the same promises; on SQLite they hold between processes and over restarts."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.store import memory_people
from gateway.store import people as sqlite_people
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store, StoredKey
from gateway.store.sqlite import SqliteStore


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_suite = _load("people_conformance")


class TestSqlitePeople(_suite.PeopleConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryPeople(_suite.PeopleConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


async def test_two_processes_share_one_count_of_wrong_passwords(store: SqliteStore, path: Path, samples: ModuleType) -> None:
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    answers = [await each.people.attempt({b"n" * 32: 4}, now_ns=1, lock_until_ns=9) for each in (store, other) * 3]
    assert answers == [None, None, None, None, 9, 9]
    await other.close()


async def test_an_account_and_a_login_survive_a_restart(store: SqliteStore, path: Path, samples: ModuleType) -> None:
    await store.people.add(_suite.ADA, _suite.stamp())
    await store.people.log_in(_suite.login())
    await store.close()
    again = SqliteStore(path, "two")
    await again.start(now_ns=samples.NOW_NS)
    assert await again.people.login(_suite.login().id, now_ns=11) == (_suite.login(), _suite.ADA)
    await again.close()


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_names_that_nobody_has_do_not_heap_up(
    store: SqliteStore, kind: str, monkeypatch: pytest.MonkeyPatch, sql: Callable[..., Any],
) -> None:
    monkeypatch.setattr(sqlite_people, "MOST_NAMES", 10)
    monkeypatch.setattr(memory_people, "MOST_NAMES", 10)
    people = store.people if kind == "sqlite" else memory_people.MemoryPeople()
    for n in range(30):
        assert await people.attempt({n.to_bytes(32): 1}, now_ns=n, lock_until_ns=1000) is None
    assert await people.attempt({(29).to_bytes(32): 1}, now_ns=31, lock_until_ns=2000) == 1000  # the latest is still known
    assert await people.attempt({(1).to_bytes(32): 1}, now_ns=31, lock_until_ns=2000) is None
    if kind == "sqlite":
        assert sql("SELECT count(*) FROM login_attempts") == [(10,)]


async def test_hostile_texts_are_kept_as_texts(store: SqliteStore) -> None:
    hostile = replace(_suite.BOB, id="x'; DROP TABLE people; --", name="\ud800\x00'\"", roles=("\u202e", "a,b"))
    await store.people.add(hostile, _suite.stamp())
    (found,) = await store.people.all()
    assert (found.id, found.name, found.roles) == (hostile.id, "?\x00'\"", ("\u202e", "a,b"))


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_a_key_keeps_whose_it_is(store: SqliteStore, kind: str) -> None:
    keys = (store if kind == "sqlite" else MemoryStore("one")).keys
    await keys.create(StoredKey("k1", "ci", b"d" * 32, owner="ada", created_ns=1))
    await keys.create(StoredKey("k2", "ci", b"e" * 32, created_ns=2))
    _generation, found = await keys.all()
    assert [(key.id, key.owner) for key in found] == [("k1", "ada"), ("k2", "")]
