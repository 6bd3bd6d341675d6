"""The background task runner: every task beside the calls has an owner, and a failure in one is told and does not end it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.clock import Clock
from gateway.telemetry import Telemetry


class Background:
    """Owns a gateway's tasks beside the calls, and is the boundary where a failure in one is told."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, interval_s: float, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Run `work` now and then, `interval_s` apart, until `stop`."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._repeat(interval_s, work, name), name=name))

    def whenever(self, told: AsyncIterator[None], work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Run `work` each time that `told` yields, until `stop`."""
        async def follow() -> None:
            async for _ in told:
                await self._try(work, name)

        self._tasks.append(asyncio.get_running_loop().create_task(self._try(follow, name), name=name))

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[object]], name: str) -> None:
        while True:
            await self._try(work, name)
            await self._clock.sleep(interval_s)

    async def _try(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the background boundary
            self._telemetry.event("error", "background_failed", task=name, error=f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        """Cancel every task and wait until it is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
