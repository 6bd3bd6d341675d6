"""Opening the SQLite file: which library, which pragmas, which schema, and a clear refusal of what cannot be used."""

import os
import threading
from pathlib import Path
from typing import Any, Final, TypeAlias

from sqlite_utils import Database

from gateway.errors import StoreError
from gateway.store.library import sqlite3
from gateway.store.migrations import APPLICATION_ID, SCHEMA_VERSION, migrations

Connection: TypeAlias = Any  # a connection of whichever SQLite library is in use; the two have no common type

_ROUNDS: Final = 3  # each waits up to the busy timeout wherever SQLite waits at all
_PAUSE_S: Final = 0.2
_BUSY: Final = frozenset({5, 6})  # SQLITE_BUSY, SQLITE_LOCKED

_SYNCHRONOUS: Final = {"full": "PRAGMA synchronous = FULL", "normal": "PRAGMA synchronous = NORMAL"}


def open_writable(path: Path, *, synchronous: str, busy_timeout_s: float) -> Connection:
    """A migrated connection in WAL mode, in autocommit, usable from any one thread at a time.

    Raises:
        StoreError: the path is a directory or read-only, the file is no database, someone else's, locked or from a newer version.
    """
    _create_private(path)
    for _round in range(_ROUNDS):
        try:
            return _open(path, synchronous, busy_timeout_s)
        except _LockedError as locked:
            last = locked
            threading.Event().wait(_PAUSE_S)
    raise StoreError(last.message) from last


class _LockedError(StoreError):
    """Another process holds the file just now. Turning a new file to WAL fails at once for all but one of those that start together:
    SQLite does not wait there, whatever the busy timeout says.
    """


def _open(path: Path, synchronous: str, busy_timeout_s: float) -> Connection:
    connection = None
    try:
        connection = _connect(f"{path.resolve().as_uri()}?mode=rw", busy_timeout_s)
        check_version(connection, path, empty_is_fine=True)
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_SYNCHRONOUS[synchronous])
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, path)
    except sqlite3.Error as error:
        close_quietly(connection)
        kind = _LockedError if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY else StoreError
        raise kind(explain(error, path)) from error
    except StoreError:
        close_quietly(connection)
        raise
    return connection


def open_readonly(path: Path, *, busy_timeout_s: float = 5.0) -> Connection:
    """A connection that cannot write, beside a running gateway or without one.

    Raises:
        StoreError: there is no such file, or it is not a database of this version.
    """
    if path.is_dir():
        raise StoreError(_DIRECTORY.format(path=path))
    if not path.exists():
        raise StoreError(f"there is no database at {path}; `lockgate serve` makes it, or name another file")
    connection = None
    try:
        connection = _connect(f"{path.resolve().as_uri()}?mode=ro", busy_timeout_s)
        check_version(connection, path)
        if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
            raise StoreError(
                f"{path} was written by an older Lockgate; back it up, then run `lockgate serve`, which brings it up to date"
            )
    except sqlite3.Error as error:
        close_quietly(connection)
        raise StoreError(explain(error, path)) from error
    except StoreError:
        close_quietly(connection)
        raise
    return connection


def close_quietly(connection: Connection | None) -> None:
    """Close, where nothing can be done about a failure to."""
    if connection is not None:
        try:
            connection.close()
        except sqlite3.Error:
            return


def check_version(connection: Connection, path: Path, *, empty_is_fine: bool = False) -> None:
    """Refuse a database that is not ours, or that a newer Lockgate has written."""
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]  # first: another process may be making them now
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables == 0 and empty_is_fine:
        return
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is not a Lockgate database; set `store.path` to a new file, or to the right one")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer Lockgate (schema {version}, this one knows {SCHEMA_VERSION}); "
            "start the newer version, or restore a backup from before the upgrade"
        )


_DIRECTORY = "{path} is a directory; set `store.path` to a file"
_UNWRITABLE = ("the database {path} cannot be opened for writing: {why}; "
               "check that the folder exists and that the gateway's user may write to it and to the file")

# Primary result codes (https://sqlite.org/rescode.html) and what an operator does about each.
_ADVICE: Final = {
    3: "permission denied; give the gateway's user the file and its folder",
    5: "another program holds it locked; stop that program, or raise `store.busy_timeout`",
    6: "another program holds it locked; stop that program, or raise `store.busy_timeout`",
    8: "it, or its folder, is read-only; give the gateway's user write access to both",
    10: "the disk failed; look at the system's log, and restore a backup if the file is damaged",
    11: "the file is damaged; restore a backup, or recover what is left with `sqlite3 DB .recover`",
    13: "the disk is full; make room",
    14: "it cannot be opened; check that the folder exists and that the gateway's user may write there",
    26: "it is not a SQLite database; set `store.path` to a new file, or to the right one",
}


def explain(error: Exception, path: Path | str) -> str:
    """What happened to which file and what to do, from an error of SQLite."""
    advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return f"the database {path} cannot be used: {advice} ({error})" if advice else f"the database {path} cannot be used: {error}"


def _connect(uri: str, busy_timeout_s: float) -> Connection:
    # isolation_level None: transactions begin and end where this code says so, never behind its back.
    return sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)


def _create_private(path: Path) -> None:
    """Make the file before SQLite does, readable by its owner alone; the -wal and -shm files take over its mode.

    A file that exists is not opened: closing it would take this process's POSIX locks on it away from another connection.
    """
    if path.is_dir():
        raise StoreError(_DIRECTORY.format(path=path))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreError(_UNWRITABLE.format(path=path, why="Permission denied")) from None
    except OSError as error:
        raise StoreError(_UNWRITABLE.format(path=path, why=error.strerror)) from error


def _migrate(connection: Connection, path: Path) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # several workers start at once: one migrates, the others find it done
    try:
        check_version(connection, path, empty_is_fine=True)
        migrations().apply(Database(connection, recursive_triggers=False, execute_plugins=False))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
