"""What the tests of stores share: sample records, an open SQLite store, and a way to look into its file."""

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.store.database import Connection, open_readonly, open_writable
from gateway.store.doctor import examine
from gateway.store.invariants import Finding
from gateway.store.sqlite import SqliteStore


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    return _load("samples")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lockgate.db"


@pytest.fixture
async def store(path: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path, "one")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


@pytest.fixture
def sql(path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Run one statement on the file from outside, as an operator with the `sqlite3` shell would."""
    opened: list[Connection] = []

    def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if not opened:
            opened.append(open_writable(path, synchronous="normal", busy_timeout_s=5.0))
        found: list[tuple[Any, ...]] = opened[0].execute(statement, values).fetchall()
        return found

    yield run
    for connection in opened:
        connection.close()


@pytest.fixture
def diagnose(path: Path, samples: ModuleType) -> Callable[..., list[Finding]]:
    """What the doctor finds in the file."""

    def run(now_ns: int = samples.NOW_NS) -> list[Finding]:
        with closing(open_readonly(path)) as connection:
            return list(examine(connection, now_ns=now_ns))

    return run
