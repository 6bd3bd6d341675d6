"""What runs beside the calls is told when it fails, goes on, and ends with its gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gateway.background import Background
from gateway.clock import SystemClock

SOON_S = 20


class Log:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, level: str, name: str, **fields: object) -> None:
        self.events.append({"level": level, "name": name, **fields})


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


async def test_work_is_done_each_time_it_is_asked_for_and_a_failure_ends_nothing():
    log: Any = Log()
    background = Background(SystemClock(), log)
    asked: asyncio.Queue[int] = asyncio.Queue()
    done: list[int] = []

    async def asking() -> AsyncIterator[None]:
        while await asked.get():
            yield

    async def work() -> None:
        done.append(len(done))
        if len(done) == 1:
            raise ValueError("the first")

    background.whenever(asking(), work, name="reload")
    for count in (1, 2, 3):
        asked.put_nowait(1)
        await until(lambda count=count: len(done) == count)
    assert log.events == [{"level": "error", "name": "background_failed", "task": "reload", "error": "ValueError: the first"}]
    await background.stop()
    asked.put_nowait(1)
    await asyncio.sleep(0)
    assert len(done) == 3


async def test_who_asks_no_more_because_of_a_failure_is_told():
    log: Any = Log()
    background = Background(SystemClock(), log)

    async def asking() -> AsyncIterator[None]:
        yield
        raise OSError("gone")

    async def work() -> None: ...

    background.whenever(asking(), work, name="watch")
    await until(lambda: log.events)
    assert log.events == [{"level": "error", "name": "background_failed", "task": "watch", "error": "OSError: gone"}]
    await background.stop()


async def test_one_task_can_be_ended_by_itself_and_its_pace_may_differ_each_time():
    log: Any = Log()
    background = Background(SystemClock(), log)
    done: list[str] = []
    asked: list[float] = []

    def interval_s() -> float:
        asked.append(0.0)
        return asked[-1]

    async def work(name: str) -> None:
        done.append(name)

    one = background.every(interval_s, lambda: work("one"), name="one")
    background.every(0.0, lambda: work("two"), name="two")
    await until(lambda: done.count("one") > 2 < done.count("two"))
    one.cancel()
    await asyncio.wait({one})
    done.clear()
    await until(lambda: done.count("two") > 2)
    assert "one" not in done
    assert len(asked) > 2
    await background.stop()
