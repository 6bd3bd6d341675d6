"""A stream that is silent gets comments, whole ones, between what is written, and nothing is left behind when it ends."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.errors import ClientGone
from gateway.keep_alive import KeepAlive


class HandClock:
    """Time that a test moves; who sleeps wakes when it has come."""

    def __init__(self) -> None:
        self.s = 0.0
        self.sleeping: list[tuple[float, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleeping.append((self.s + seconds, waiting))
        await waiting

    async def pass_on(self, seconds: float) -> None:
        until = self.s + seconds
        await asyncio.sleep(0)  # who is about to sleep does
        while self.s < until:
            self.s = min([until, *(at for at, waiting in self.sleeping if not waiting.done())])
            for at, waiting in self.sleeping:
                if at <= self.s and not waiting.done():
                    waiting.set_result(None)
            self.sleeping = [each for each in self.sleeping if not each[1].done()]
            for _ in range(5):
                await asyncio.sleep(0)


class Client:
    """A client that takes bytes, unless it is told to be slow or to be gone."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()
        self.gone = False

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ClientGone("gone")
        self.got.append(data)
        await self.go.wait()


@pytest.fixture
async def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def keep_alive(clock: HandClock) -> AsyncIterator[KeepAlive]:
    made = KeepAlive(clock)
    yield made
    await made.close()
    assert [task for task in asyncio.all_tasks() if "KeepAlive" in repr(task.get_coro())] == []


async def test_a_silent_stream_says_something_now_and_then_and_one_that_speaks_does_not(clock, keep_alive):
    silent, speaking = Client(), Client()
    keep_alive.add(silent.write, b": waiting\n\n", 10.0)
    line = keep_alive.add(speaking.write, b": waiting\n\n", 10.0)
    for _ in range(30):
        await clock.pass_on(1.0)
        await line.write(b"word")
    assert len(silent.got) in (2, 3)
    assert set(silent.got) == {b": waiting\n\n"}
    assert speaking.got == [b"word"] * 30


async def test_a_stream_that_is_over_is_left_alone(clock, keep_alive):
    client = Client()
    keep_alive.drop(keep_alive.add(client.write, b": waiting\n\n", 1.0))
    await clock.pass_on(30.0)
    assert client.got == []


async def test_who_writes_waits_for_a_comment_that_is_under_way(clock, keep_alive):
    """Two writers at once could mix their bytes."""
    client = Client()
    line = keep_alive.add(client.write, b": waiting\n\n", 1.0)
    client.go.clear()
    await clock.pass_on(5.0)
    assert client.got == [b": waiting\n\n"]  # one, however long the client takes for it
    writing = asyncio.create_task(line.write(b"word"))
    await asyncio.sleep(0)
    assert client.got == [b": waiting\n\n"]
    client.go.set()
    await writing
    assert client.got == [b": waiting\n\n", b"word"]


async def test_a_client_that_is_gone_is_noticed_by_who_writes(clock, keep_alive):
    client = Client()
    line = keep_alive.add(client.write, b": waiting\n\n", 1.0)
    client.gone = True
    await clock.pass_on(5.0)
    with pytest.raises(ClientGone):
        await line.write(b"word")


async def test_a_comment_that_nobody_takes_ends_with_its_stream(clock, keep_alive):
    client = Client()
    line = keep_alive.add(client.write, b": waiting\n\n", 1.0)
    client.go.clear()
    await clock.pass_on(5.0)
    speaking = line.speaking
    assert speaking is not None
    keep_alive.drop(line)
    await asyncio.wait({speaking})
    assert speaking.cancelled()
