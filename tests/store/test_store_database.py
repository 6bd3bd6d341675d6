"""What cannot be a database is refused with what to do; what can is opened privately, durably and once."""

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlite_utils import Database

from gateway.errors import SetupError, StoreError
from gateway.session import SessionKey
from gateway.store import sqlite as sqlite_module
from gateway.store.database import open_readonly, open_writable
from gateway.store.invariants import Finding
from gateway.store.library import sqlite3
from gateway.store.migrations import SCHEMA_VERSION, migrations
from gateway.store.protocol import CallFilter
from gateway.store.sqlite import SqliteStore, require_safe_for_several_writers


def _open(path: Path) -> None:
    open_writable(path, synchronous="full", busy_timeout_s=0.05).close()


def test_the_file_and_its_companions_are_readable_by_their_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(open_writable(path, synchronous="full", busy_timeout_s=1)) as connection:
            connection.execute("UPDATE counters SET value = 1")
            files = list(path.parent.iterdir())
    finally:
        os.umask(before)
    assert {file.name for file in files} == {"lockgate.db", "lockgate.db-wal", "lockgate.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in [path]} == {0o600}


@pytest.mark.parametrize(("setting", "level"), [("full", 2), ("normal", 1)])
def test_the_connection_is_durable_and_strict(path: Path, setting: str, level: int) -> None:
    with closing(open_writable(path, synchronous=setting, busy_timeout_s=1.5)) as connection:
        pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0]
                   for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "user_version")}
    assert pragmas == {"journal_mode": "wal", "synchronous": level, "foreign_keys": 1, "busy_timeout": 1500, "user_version": SCHEMA_VERSION}


def test_a_directory_is_refused(tmp_path: Path) -> None:
    for use in (_open, open_readonly):
        with pytest.raises(StoreError, match=r"is a directory; set `store\.path` to a file"):
            use(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="check that the folder exists"):
        _open(tmp_path / "missing" / "lockgate.db")


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("dear diary, " * 100)
    for use in (_open, open_readonly):
        with pytest.raises(StoreError, match="not a SQLite database"):
            use(path)
    assert path.read_text().startswith("dear diary")


def test_someone_elses_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE diary (entry TEXT)")
    for use in (_open, open_readonly):
        with pytest.raises(StoreError, match="not a Lockgate database"):
            use(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("diary",)]


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    _open(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for use in (_open, open_readonly):
        with pytest.raises(StoreError, match=rf"newer Lockgate \(schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}\); start the newer version"):
            use(path)


@pytest.fixture
def version_1(path: Path) -> Path:
    """A database as the first version wrote it, with a call on record."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrations().apply(Database(connection), stop_before="0002_sessions_and_verdicts")
        connection.execute(
            "INSERT INTO calls VALUES (1, 'call_1', 1, 5, 'k', '', '', '', 'openai', 'chat', 'fast', 0, 's-1', '', '', '', '', 'allow', '', "
            "'[\"old\"]', '', '', 'p', 'm', '', x'')")
        connection.execute(
            "INSERT INTO outcomes (seq, ended_ns, outcome, status, code, message, finish_reasons, cost_nusd, response_encoding, response) "
            "VALUES (1, 6, 'failed', 502, 'upstream_failed', '', '', 0, '', x'')")
    return path


async def test_a_database_of_the_first_version_is_brought_up_to_date_with_all_that_is_in_it(
    version_1: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    store = SqliteStore(version_1, "one")
    await store.start(now_ns=samples.NOW_NS)
    assert [(row["id"], row["outcome"], row["labels"], row["withheld"]) for row in await store.journal.calls(CallFilter())] == [
        ("call_1", "failed", ["old"], False)]
    call = await store.journal.call("call_1")
    assert call is not None
    assert (call["verdicts"], call["tool_uses"]) == ([], [])
    await store.journal.begin(samples.intent(1))
    await store.journal.finish(samples.completed(1), response=None)
    assert (await store.sessions.facts(SessionKey("key000000001", "s-1"), frozenset(), now_ns=samples.NOW_NS)).calls == 1
    await store.close()
    assert diagnose() == []


def test_bringing_a_database_up_to_date_reads_no_table_that_may_be_large(version_1: Path) -> None:
    """Adding a column to a STRICT table reads all of it, and so does an index: on a journal of a year that is an outage."""
    with closing(sqlite3.connect(version_1, isolation_level=None)) as connection:
        connection.execute("WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO outcomes "
                           "SELECT i, 6, 'failed', 502, '', '', NULL, '', 1, 1, 1, 1, 1, 1, 1, 0, 1, 'raw', zeroblob(200) FROM n")
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(count, 100)
        migrations().apply(Database(connection))
        connection.set_progress_handler(None, 0)
    assert steps * 100 < 20_000


def test_a_database_of_an_older_version_is_not_read_before_it_is_up_to_date(version_1: Path) -> None:
    with pytest.raises(StoreError, match=r"written by an older Lockgate; back it up, then run `lockgate serve`"):
        open_readonly(version_1)
    _open(version_1)
    open_readonly(version_1).close()


def test_a_database_that_is_not_there_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database at"):
        open_readonly(path)
    assert not path.exists()


def test_a_locked_database_is_refused_at_the_start(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="another program holds it locked"):
            _open(path)


def test_a_reading_connection_cannot_write(path: Path) -> None:
    _open(path)
    with closing(open_readonly(path)) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM keys")


def test_a_path_with_marks_of_a_uri_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory#b%20c.db"
    _open(path)
    assert path.stat().st_size > 0


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that another user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the test's own folder: the other user must be able to see it
        yield Path(folder)


@pytest.mark.parametrize("read_only", ["file", "folder"])
def test_a_read_only_file_or_folder_is_refused(public_folder: Path, read_only: str) -> None:
    """As another user where the tests run as root, who may write anywhere."""
    path = public_folder / "lockgate.db"
    if read_only == "file":
        _open(path)
    path.touch()
    path.chmod(0o444 if read_only == "file" else 0o666)
    public_folder.chmod(0o777 if read_only == "file" else 0o555)
    if read_only == "folder":
        path.unlink()
    program = (
        "import os, sys; from pathlib import Path; from gateway.errors import StoreError\n"
        "from gateway.store.database import open_writable\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # after the imports: this user may not read the interpreter
        "try: open_writable(Path(sys.argv[1]), synchronous='full', busy_timeout_s=1)\n"
        "except StoreError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(sqlite_module.__file__).parents[2],
    )
    assert "cannot be opened for writing: Permission denied" in done.stdout, done.stderr


async def test_several_processes_may_open_a_new_file_at_once(path: Path, samples: ModuleType) -> None:
    stores = [SqliteStore(path, f"worker {n}") for n in range(4)]
    await asyncio.gather(*(store.start(now_ns=samples.NOW_NS) for store in stores))
    await stores[0].keys.create(samples.key(1))
    assert [await store.keys.generation() for store in stores] == [1, 1, 1, 1]
    for store in stores:
        await store.close()


def test_what_is_there_survives_being_opened_again(path: Path) -> None:
    with closing(open_writable(path, synchronous="full", busy_timeout_s=1)) as connection:
        connection.execute("UPDATE counters SET value = 7")
        applied = connection.execute("SELECT count(*) FROM _sqlite_migrations").fetchone()
    with closing(open_writable(path, synchronous="full", busy_timeout_s=1)) as connection:
        assert connection.execute("SELECT value FROM counters").fetchone() == (7,)
        assert connection.execute("SELECT count(*) FROM _sqlite_migrations").fetchone() == applied


def test_several_writers_need_a_safe_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        sqlite_version = "3.40.1"
        sqlite_version_info = (3, 40, 1)

    monkeypatch.setattr(sqlite_module, "sqlite3", Old)
    with pytest.raises(SetupError, match=r"SQLite 3\.40\.1 can damage .* install one of 3\.51\.3 or newer"):
        require_safe_for_several_writers()
    Old.sqlite_version_info = (3, 51, 3)
    require_safe_for_several_writers()


async def test_a_store_that_cannot_start_says_so_and_holds_nothing(path: Path, sql: Callable[..., Any], samples: ModuleType) -> None:
    sql("BEGIN IMMEDIATE")
    store = SqliteStore(path, "one", busy_timeout_s=0.01)
    with pytest.raises(StoreError, match="holds it locked"):
        await store.start(now_ns=samples.NOW_NS)
    sql("COMMIT")
    with pytest.raises(StoreError, match='is "full" or "normal"'):
        SqliteStore(path, "one", synchronous="off")


async def test_a_store_that_cannot_be_read_does_not_keep_its_writing_connection(
    path: Path, samples: ModuleType, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise StoreError("no more file descriptors")

    monkeypatch.setattr(sqlite_module, "open_readonly", fail)
    with pytest.raises(StoreError, match="descriptors"):
        await SqliteStore(path, "one").start(now_ns=samples.NOW_NS)
    assert [file.name for file in path.parent.iterdir()] == ["lockgate.db"]  # a connection that is open has a -wal beside it
