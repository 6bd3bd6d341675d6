"""The durable store: one SQLite file, one writing thread, one reading thread. Several processes may share the file."""

import asyncio
from pathlib import Path
from typing import Final

from gateway.errors import SetupError, StoreError, StoreUnavailable
from gateway.store.approvals import SqliteApprovals
from gateway.store.approvals_protocol import Approvals, Outbox, People
from gateway.store.breakers import SqliteBreakers
from gateway.store.budgets import SqliteBudgets
from gateway.store.bundles import SqliteBundles
from gateway.store.database import Connection, open_readonly, open_writable
from gateway.store.journal import OpenCalls, SqliteJournal
from gateway.store.keys import SqliteKeys
from gateway.store.leases import Extend, Join, Leave
from gateway.store.library import sqlite3
from gateway.store.outbox import SqliteOutbox
from gateway.store.people import SqlitePeople
from gateway.store.protocol import Breakers, Budgets, Bundles, Journal, Keys, Sessions
from gateway.store.reader import Reader
from gateway.store.session_desk import SqliteSessionDesk
from gateway.store.session_protocol import SessionDesk
from gateway.store.sessions import SqliteSessions
from gateway.store.writer import Do, Writer

# Older libraries can corrupt a WAL that several connections write (https://sqlite.org/wal.html, "the WAL-reset bug").
_SAFE_FOR_SEVERAL_WRITERS: Final = (3, 51, 3)


def require_safe_for_several_writers() -> None:
    """Raise `SetupError` where the SQLite library in use may damage a file that several processes write."""
    if sqlite3.sqlite_version_info < _SAFE_FOR_SEVERAL_WRITERS:
        wanted = ".".join(str(part) for part in _SAFE_FOR_SEVERAL_WRITERS)
        raise SetupError(
            f"SQLite {sqlite3.sqlite_version} can damage a database that several processes write; "
            f"install one of {wanted} or newer (`pip install pysqlite3`), or run one worker"
        )


class SqliteStore:
    """`Store` on a file.

    `owner` names this process among those that share the file: unique among the living. `synchronous` is `full` (a commit is on
    disk when it returns) or `normal` (the last commits may be lost when the machine, not the process, dies). `busy_timeout_s` is
    how long to wait for another process's transaction, `deadline_s` how long any verb may take in all.
    """

    journal: Journal
    keys: Keys
    sessions: Sessions
    budgets: Budgets
    breakers: Breakers
    bundles: Bundles
    approvals: Approvals
    outbox: Outbox
    people: People
    session_desk: SessionDesk

    def __init__(
        self, path: Path | str, owner: str, *, synchronous: str = "full", busy_timeout_s: float = 5.0, deadline_s: float = 15.0,
    ) -> None:
        if synchronous not in {"full", "normal"}:
            raise StoreError(f'`store.synchronous` is "full" or "normal", not {synchronous!r}')
        self._path = Path(path)
        self._owner = owner
        self._synchronous = synchronous
        self._busy_timeout_s = busy_timeout_s
        self._calls = OpenCalls()
        self._writer = Writer(str(path), deadline_s=deadline_s, shared=self._calls.till)
        self._reader = Reader(str(path), deadline_s=deadline_s)
        self.journal = SqliteJournal(self._writer, self._reader, self._calls)
        self.keys = SqliteKeys(self._writer, self._reader)
        self.sessions = SqliteSessions(self._writer, self._reader, self._calls)
        self.budgets = SqliteBudgets(self._writer, self._reader, self._calls)
        self.breakers = SqliteBreakers(self._writer, self._reader)
        self.bundles = SqliteBundles(self._writer, self._reader)
        self.approvals = SqliteApprovals(self._writer, self._reader, self._calls)
        self.outbox = SqliteOutbox(self._writer, self._reader)
        self.people = SqlitePeople(self._writer, self._reader)
        self.session_desk = SqliteSessionDesk(self._writer, self._reader)

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path)!r}, owner={self._owner!r}, {self._calls!r})"

    async def start(self, *, now_ns: int) -> None:
        writing, reading = await asyncio.to_thread(self._open)
        self._writer.start(writing)
        self._reader.start(reading)
        try:
            await self._writer.write(Join(self._calls, self._owner, now_ns=now_ns))
        except StoreUnavailable as error:
            await self.close()
            raise StoreError(error.message) from error

    async def heartbeat(self, *, now_ns: int, lease_ns: int) -> int:
        return await self._writer.write(Extend(self._calls, self._owner, now_ns=now_ns, lease_ns=lease_ns))

    async def check(self) -> None:
        await self._writer.write(Do(lambda connection: _touch(connection, self._calls.owner)))
        await self.keys.generation()

    async def close(self) -> None:
        await self._reader.close()  # first: only a writer that closes last can fold the WAL into the file
        await self._writer.close(Leave(self._calls))

    def _open(self) -> tuple[Connection, Connection]:
        writing = open_writable(self._path, synchronous=self._synchronous, busy_timeout_s=self._busy_timeout_s)
        try:
            return writing, open_readonly(self._path, busy_timeout_s=self._busy_timeout_s)
        except StoreError:
            writing.close()
            raise


def _touch(connection: Connection, owner: int) -> None:
    """A real write: taking the lock alone would not notice a full disk."""
    connection.execute("UPDATE owners SET lease_ns = lease_ns WHERE id = ?", (owner,))
