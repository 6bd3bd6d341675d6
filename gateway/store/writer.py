"""The one writing thread: whatever waits goes into one transaction, so that many calls share one fsync.

Waiters are resolved only after COMMIT has returned. A job whose transaction failed is told so; its neighbours are tried again one
by one. Nothing here knows what a job writes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

from gateway.errors import LockgateError, StoreError, StoreUnavailable
from gateway.store.database import Connection, close_quietly, explain
from gateway.store.library import sqlite3

T = TypeVar("T")

# What a record that cannot be stored raises: no text in UTF-8, an integer beyond 64 bits, a value of no storable type.
_UNSTORABLE: Final = (TypeError, ValueError, ArithmeticError)
_BUSY: Final = (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED


class Job(Generic[T]):
    """One thing to write. It is written even if by then nobody waits for it any more."""

    __slots__ = ("error", "result", "waiter")

    def __init__(self) -> None:
        self.waiter: asyncio.Future[T] | None = None
        self.result: T | None = None
        self.error: Exception | None = None

    def prepare(self) -> None:
        """Work that needs no lock, done before the transaction."""

    def apply(self, connection: Connection) -> T:
        """Write, inside the transaction. An error of ours refuses this job alone and must come before the first change."""
        raise NotImplementedError

    def committed(self) -> None:
        """Told, in the writing thread, that the transaction is on disk."""


class Do(Job[T]):
    """A job that is one function of the connection."""

    __slots__ = ("_action",)

    def __init__(self, action: Callable[[Connection], T]) -> None:
        super().__init__()
        self._action = action

    def apply(self, connection: Connection) -> T:
        return self._action(connection)


class Shared:
    """What the jobs of one transaction share beside the connection; here: nothing. Touched by the writing thread only."""

    def begin(self) -> None:
        """Told that a transaction begins: the one before may have been rolled back, with all that was noted in it."""

    def flush(self, connection: Connection) -> None:
        """Write what the jobs have left for the end of the transaction."""

    def committed(self) -> None:
        """Told that the transaction is on disk."""


class Writer:
    """Owns the writing connection and its thread.

    `deadline_s` bounds every wait, `capacity` how many jobs may wait; both refuse with `StoreUnavailable`. `shared` is what jobs share.
    """

    def __init__(self, path: str, *, deadline_s: float, capacity: int = 8192, shared: Shared | None = None) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._capacity = capacity
        self._shared = shared or Shared()
        self._queue: SimpleQueue[list[Job[Any]] | None] = SimpleQueue()
        self._gathered: list[Job[Any]] = []
        self._waiting = 0
        self._deadlines: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event = asyncio.Event()

    def start(self, connection: Connection) -> None:
        """Take over the connection. Runs for the running loop."""
        self._loop = asyncio.get_running_loop()
        Thread(target=self._run, args=(connection, self._loop), name="lockgate-writer", daemon=True).start()

    async def write(self, job: Job[T]) -> T:
        """The job's result, once it is on disk.

        Raises:
            StoreUnavailable: it could not be written, or not in time (then it may still be written).
            StoreError: the job itself was refused.
        """
        loop = self._loop
        if loop is None:
            raise StoreUnavailable(f"the database {self._path} is not open")
        if self._waiting >= self._capacity:
            raise StoreUnavailable(f"{self._waiting} writes already wait for the database {self._path}", retry_after_s=1)
        self._waiting += 1
        waiter: asyncio.Future[T] = loop.create_future()
        job.waiter = waiter
        self._watch(loop, waiter)
        if not self._gathered:
            loop.call_soon(self._hand_over)  # one hand-over for all jobs of this turn of the loop
        self._gathered.append(job)
        return await waiter

    async def close(self, last: Job[Any]) -> None:
        """Write what is queued and then `last`, end the thread and close the connection."""
        if self._loop is None:
            return
        self._loop = None  # from here on `write` refuses
        self._waiting += 1
        self._gathered.append(last)
        self._hand_over()
        self._queue.put(None)
        await self._stopped.wait()
        if self._timer is not None:
            self._timer.cancel()

    def _hand_over(self) -> None:
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def _watch(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[Any]) -> None:
        """One timer for all waiters: every deadline is the same time away, so the oldest waiter is the next to be late."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][1].done():
            deadlines.popleft()
        deadlines.append((loop.time() + self._deadline_s, waiter))
        if self._timer is None:
            self._timer = loop.call_at(deadlines[0][0], self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        deadlines = self._deadlines
        while deadlines and (deadlines[0][1].done() or deadlines[0][0] <= now):
            _when, waiter = deadlines.popleft()
            if not waiter.done():
                waiter.set_exception(StoreUnavailable(
                    f"the database {self._path} did not answer in {self._deadline_s:g} s", retry_after_s=1,
                ))
        self._timer = loop.call_at(deadlines[0][0], self._expire, loop) if deadlines else None

    def _resolve(self, jobs: list[Job[Any]]) -> None:
        self._waiting -= len(jobs)
        for job in jobs:
            waiter = job.waiter
            if waiter is None or waiter.done():
                continue
            if job.error is not None:
                waiter.set_exception(job.error)
            else:
                waiter.set_result(job.result)

    # From here on: the writing thread.

    def _run(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        jobs: list[Job[Any]] = []
        try:
            while jobs := self._next():
                self._commit(connection, jobs)
                _call_soon(loop, self._resolve, jobs)
                jobs = []
        finally:
            close_quietly(connection)
            _call_soon(loop, self._end, jobs)

    def _end(self, jobs: list[Job[Any]]) -> None:
        """Whoever still waits is told at once: only after `close()` is that nobody."""
        self._loop = None
        self._stopped.set()
        left = jobs + self._gathered
        while True:
            try:
                left += self._queue.get_nowait() or []
            except Empty:
                break
        for job in left:
            job.error = StoreUnavailable(f"the database {self._path} was closed")
        self._resolve(left)

    def _next(self) -> list[Job[Any]]:
        """Everything that waits; blocks for the first. Empty when there is to be no more."""
        jobs = self._queue.get()
        if jobs is None:
            return []
        while not self._queue.empty():
            more = self._queue.get()
            if more is None:
                self._queue.put(None)  # the end comes after these
                break
            jobs += more
        return jobs

    def _commit(self, connection: Connection, jobs: list[Job[Any]]) -> None:
        todo = []
        for job in jobs:
            try:
                job.prepare()
            except _UNSTORABLE as error:
                job.error = _unstorable(error)
            else:
                todo.append(job)
        if not todo or self._together(connection, todo) or len(todo) == 1:
            return
        for job in todo:
            job.error = None
            self._together(connection, [job])

    def _together(self, connection: Connection, jobs: list[Job[Any]]) -> bool:
        """All jobs in one transaction. False where it is worth trying them one by one."""
        again = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            again = True
            self._shared.begin()
            for job in jobs:
                try:
                    job.result = job.apply(connection)
                except LockgateError as error:
                    job.error = error
            self._shared.flush(connection)
            connection.execute("COMMIT")
        except (sqlite3.Error, *_UNSTORABLE) as error:
            _roll_back(connection)
            for job in jobs:
                job.error = self._failure(error)  # one each: an exception that two tasks raise collects both their tracebacks
            return not again or getattr(error, "sqlite_errorcode", 0) in _BUSY
        self._shared.committed()
        for job in jobs:
            if job.error is None:
                job.committed()
        return True

    def _failure(self, error: Exception) -> StoreError | StoreUnavailable:
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            return StoreUnavailable(explain(error, self._path), retry_after_s=1)
        return _unstorable(error)


def _unstorable(error: Exception) -> StoreError:
    refusal = StoreError(f"this record cannot be stored: {error}")
    refusal.__cause__ = error
    return refusal


def _roll_back(connection: Connection) -> None:
    if connection.in_transaction:  # a full disk has already rolled it back
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            return


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[list[Job[Any]]], None], jobs: list[Job[Any]]) -> None:
    try:
        loop.call_soon_threadsafe(callback, jobs)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
