"""The one reading thread: queries beside the writer, never on the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway.errors import StoreUnavailable
from gateway.store.database import Connection, close_quietly, explain
from gateway.store.library import sqlite3

T = TypeVar("T")

_CAPACITY = 8192  # as of the writer: rules on budgets or on sessions ask once for every call that arrives


class Reader:
    """Owns the reading connection. A query that is late is interrupted, so that the next one finds the thread free."""

    def __init__(self, path: str, *, deadline_s: float) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lockgate-reader")
        self._connection: Connection | None = None
        self._waiting = 0
        self._running: Callable[[Connection], object] | None = None  # the latest query that has begun

    def start(self, connection: Connection) -> None:
        """Take over the connection."""
        self._connection = connection

    async def read(self, query: Callable[[Connection], T]) -> T:
        """What the query returns.

        Raises:
            StoreUnavailable: it failed, was late, or too many already wait.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"the database {self._path} is not open")
        if self._waiting >= _CAPACITY:
            raise StoreUnavailable(f"{self._waiting} queries already wait for the database {self._path}", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, query, connection)
        except TimeoutError as error:
            if self._running is query:  # one that still waits for its turn must not end another's
                connection.interrupt()
            raise StoreUnavailable(
                f"the database {self._path} did not answer in {self._deadline_s:g} s", retry_after_s=1,
            ) from error
        except sqlite3.Error as error:
            raise StoreUnavailable(explain(error, self._path), retry_after_s=1) from error
        finally:
            self._waiting -= 1

    def _run(self, query: Callable[[Connection], T], connection: Connection) -> T:
        self._running = query
        return query(connection)

    async def close(self) -> None:
        """Let queries that run end, and close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, close_quietly, connection)
        self._executor.shutdown(wait=False)
