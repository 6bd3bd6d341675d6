"""The background task runner: every task beside the calls has an owner, and a failure in one is told and does not end it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from gateway.clock import Clock
from gateway.telemetry import Telemetry


class Background:
    """Owns a gateway's tasks beside the calls, and is the boundary where a failure in one is told."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()

    def every(self, interval_s: float | Callable[[], float], work: Callable[[], Awaitable[object]], *, name: str) -> asyncio.Task[None]:
        """Run `work` now and then until `stop`, or until the task is cancelled; `interval_s` apart, which may be asked for each time."""
        return self._own(self._repeat(interval_s, work, name), name)

    def whenever(self, told: AsyncIterator[None], work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Run `work` each time that `told` yields, until `stop`."""
        async def follow() -> None:
            async for _ in told:
                await self._try(work, name)

        self._own(self._try(follow, name), name)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _repeat(self, interval_s: float | Callable[[], float], work: Callable[[], Awaitable[object]], name: str) -> None:
        while True:
            await self._try(work, name)
            await self._clock.sleep(interval_s() if callable(interval_s) else interval_s)

    async def _try(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the background boundary
            self._telemetry.event("error", "background_failed", task=name, error=f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        """Cancel every task and wait until it is gone."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
