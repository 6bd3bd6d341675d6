"""A simulator on a free port, and the two kinds of client that look at it: the official one and a bare one."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from openai import AsyncOpenAI

from gateway.simulator import Simulator

Ask = Callable[..., dict[str, object]]


class HandClock:
    """A clock that ticks a millisecond each time its wall time is read, and goes on by what was waited for as soon as `released`."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000_000_000_000
        self.waited: list[float] = []
        self.released = asyncio.Event()
        self.released.set()

    def now_ns(self) -> int:
        self.ns += 1_000_000
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        target = self.ns + round(seconds * 1e9)
        await self.released.wait()
        self.ns = max(self.ns, target)


class MovedClock:
    """A clock that stands until a test moves it; whoever sleeps wakes when its time has come."""

    def __init__(self) -> None:
        self.s = 0.0
        self.sleeping: list[tuple[float, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000 + round(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        sleeper = (self.s + seconds, asyncio.get_running_loop().create_future())
        self.sleeping.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self.sleeping.remove(sleeper)

    async def move(self, seconds: float) -> None:
        """Let that much time pass, and whoever has waited for it act."""
        self.s = round(self.s + seconds, 9)
        for until_s, sleeper in self.sleeping:
            if until_s <= self.s + 1e-9 and not sleeper.done():
                sleeper.set_result(None)
        for _ in range(10):
            await asyncio.sleep(0)

    async def asleep(self, count: int) -> None:
        """Wait until that many sleep."""
        async with asyncio.timeout(10):
            while len(self.sleeping) < count:
                await asyncio.sleep(0)


@pytest.fixture
def moved_clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def hand_clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=sim.url, api_key="sk-test", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture
async def bare() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


@pytest.fixture
def ask() -> Ask:
    """The smallest body of a chat, with what a test adds to it."""
    def body(text: str = "hello", **more: object) -> dict[str, object]:
        return {"model": "sim-model", "messages": [{"role": "user", "content": text}], **more}
    return body
