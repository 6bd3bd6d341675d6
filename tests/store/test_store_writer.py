"""The writing thread, with a connection that only takes notes."""

import asyncio
import threading
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.store.library import sqlite3
from gateway.store.writer import Do, Writer


class Notes:
    """Stands in for a connection: remembers statements, fails and blocks where told."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.in_transaction = False
        self.failing: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def execute(self, statement: str) -> None:
        assert self.gate.wait(30)
        self.statements.append(statement)
        if statement in self.failing:
            raise self.failing[statement]
        self.in_transaction = statement == "BEGIN IMMEDIATE" or (self.in_transaction and statement not in {"COMMIT", "ROLLBACK"})

    def close(self) -> None:
        self.closed = True
        raise sqlite3.OperationalError("closing may fail as well")


def _job(name: str, result: Any = None) -> Do[Any]:
    def write(connection: Any) -> Any:
        connection.execute(name)
        return result

    return Do(write)


@pytest.fixture
def notes() -> Notes:
    return Notes()


async def test_all_that_waits_goes_into_one_transaction(notes: Notes) -> None:
    writer = Writer("db", deadline_s=30)
    writer.start(notes)
    results = await asyncio.gather(*(writer.write(_job(f"w{n}", n)) for n in range(50)))
    assert results == list(range(50))
    assert notes.statements == ["BEGIN IMMEDIATE", *(f"w{n}" for n in range(50)), "COMMIT"]
    await writer.close(_job("last"))
    assert notes.statements[-3:] == ["BEGIN IMMEDIATE", "last", "COMMIT"]
    assert notes.closed


async def test_what_arrives_during_a_transaction_shares_the_next_one(notes: Notes) -> None:
    writer = Writer("db", deadline_s=30)
    notes.gate.clear()
    writer.start(notes)
    first = asyncio.ensure_future(writer.write(_job("first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = []
    for n in range(3):  # three turns of the loop, three hand-overs
        later.append(asyncio.ensure_future(writer.write(_job(f"w{n}"))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    notes.gate.set()
    await asyncio.gather(first, *later)
    assert notes.statements.count("COMMIT") <= 2
    await writer.close(_job("last"))


async def test_a_failed_transaction_is_rolled_back_and_its_jobs_tried_one_by_one(notes: Notes) -> None:
    notes.failing["bad"] = sqlite3.OperationalError("no such thing")
    writer = Writer("db", deadline_s=30)
    writer.start(notes)
    results = await asyncio.gather(
        writer.write(_job("a", 1)), writer.write(_job("bad")), writer.write(_job("c", 3)), return_exceptions=True)
    assert (results[0], results[2]) == (1, 3)
    assert isinstance(results[1], StoreUnavailable)
    assert notes.statements == [
        "BEGIN IMMEDIATE", "a", "bad", "ROLLBACK", "BEGIN IMMEDIATE", "a", "COMMIT", "BEGIN IMMEDIATE", "bad", "ROLLBACK",
        "BEGIN IMMEDIATE", "c", "COMMIT"]
    await writer.close(_job("last"))


async def test_nobody_is_told_of_success_before_the_commit_has_returned(notes: Notes) -> None:
    notes.failing["COMMIT"] = sqlite3.OperationalError("disk I/O error")
    notes.failing["ROLLBACK"] = sqlite3.OperationalError("disk I/O error")
    writer = Writer("db", deadline_s=30)
    writer.start(notes)
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await writer.write(_job("a"))
    notes.failing.clear()
    await writer.close(_job("last"))


async def test_a_full_queue_refuses_at_once(notes: Notes) -> None:
    writer = Writer("db", deadline_s=30, capacity=2)
    notes.gate.clear()
    writer.start(notes)
    waiting = [asyncio.ensure_future(writer.write(_job(f"w{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="2 writes already wait") as refused:
        await writer.write(_job("third"))
    assert refused.value.retry_after_s == 1
    notes.gate.set()
    await asyncio.gather(*waiting)
    await writer.write(_job("now there is room"))
    await writer.close(_job("last"))


async def test_a_waiter_past_its_deadline_is_told_and_its_write_may_still_happen(notes: Notes) -> None:
    writer = Writer("db", deadline_s=0.02)
    notes.gate.clear()
    writer.start(notes)
    late = await asyncio.gather(*(writer.write(_job(f"w{n}")) for n in range(3)), return_exceptions=True)
    assert {type(result) for result in late} == {StoreUnavailable}
    notes.gate.set()
    await writer.close(_job("last"))
    assert {"w0", "w1", "w2", "last"} <= set(notes.statements)


async def test_a_thread_that_ends_by_a_defect_leaves_nobody_waiting(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no record can cause is a defect: the store becomes unavailable, it does not hang."""
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: seen.append(hook.exc_type))
    notes.failing["defect"] = RuntimeError("a defect")
    writer = Writer("db", deadline_s=30)
    writer.start(notes)
    with pytest.raises(StoreUnavailable, match="was closed"):
        await writer.write(_job("defect"))
    with pytest.raises(StoreUnavailable, match="not open"):
        await writer.write(_job("later"))
    assert seen == [RuntimeError]
    await writer.close(_job("last"))


async def test_a_loop_that_is_gone_does_not_break_the_thread(notes: Notes) -> None:
    writer = Writer("db", deadline_s=30)

    async def one_loop() -> None:
        notes.gate.clear()
        writer.start(notes)
        writer._gathered.append(_job("orphan"))
        writer._hand_over()

    await asyncio.to_thread(asyncio.run, one_loop())
    thread = next(thread for thread in threading.enumerate() if thread.name == "lockgate-writer")
    notes.gate.set()
    writer._queue.put(None)
    await asyncio.to_thread(thread.join, 30)
    assert notes.statements == ["BEGIN IMMEDIATE", "orphan", "COMMIT"]
