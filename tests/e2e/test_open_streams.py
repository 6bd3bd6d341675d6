"""Many streams open at once, in lock step: each is whole and right, and nothing of them stays, while they are open or after.

`benchmarks/streams.py` measures 5,000 of them on real workers.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from gateway.simulator import Fault, Scenario, Simulator

STREAMS, WORDS = 200, 40
SETTLED, LATER = 5, 35  # tokens that every stream has when memory is looked at
EVERY_S = 0.05
SOON_S = 60
ROUTE = '[[route]]\nname = "steady"\n[[route.targets]]\nprovider = "steady"\nmodel = "m"\n[route.retry]\nattempts = 1\n'
CONFIG = """
[providers.steady]
adapter = "openai"
base_url = "{url}"
[prices."steady/m"]
input = "1.00"
output = "2.00"
[journal]
bodies = "none"
[budgets.all]
scope = "all"
limit = "1000"
"""


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._moved = asyncio.Event()

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.now_s * 1e9)

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            await self._moved.wait()

    def move(self, seconds: float) -> None:
        self.now_s += seconds
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class Reader(asyncio.Protocol):
    """One client, which keeps its bytes and nothing else."""

    def __init__(self, request: bytes) -> None:
        self.got = bytearray()
        self.tokens = 0
        self.ended = False
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.tokens = self.got.count(b'"delta":{"content":"')
        self.ended = self.got.endswith(b"\r\n0\r\n\r\n")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it by its name
        self.ended = True


def asks(number: int) -> dict[str, Any]:
    return {"model": "steady", "messages": [{"role": "user", "content": f"words {WORDS} of stream {number}"}]}


def request_of(number: int, key: str) -> bytes:
    body = json.dumps({**asks(number), "stream": True})
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "", body)
    return "\r\n".join(lines).encode()


def said(answer: bytes) -> str:
    """The text of a streamed answer; everything else about it must be as it should."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[:int(size, 16)], rest[int(size, 16) + 2:]
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: ")]
    assert events.pop() == b"[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events]
    assert chunks[-1]["finish_reason"] == "stop"
    return "".join(chunk["delta"].get("content") or "" for chunk in chunks)


def sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own descriptor is closed by now
            count += str(link.readlink()).startswith("socket:")
    return count


def all_have(readers: list[Reader], tokens: int) -> bool:
    return all(reader.tokens >= tokens for reader in readers)


async def spin_until(holds: Callable[[], bool], each_time: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            each_time()
            await asyncio.sleep(0)


async def test_200_streams_at_once_are_each_whole_and_right_and_leave_nothing_behind(house):
    clock, loop = HandClock(), asyncio.get_running_loop()
    readers: list[Reader] = []
    async with Simulator(Scenario(pacing=Fault(delay_between_tokens_s=EVERY_S)), clock=clock) as steady:
        house.write("routes/steady.toml", ROUTE)
        await house.open(config=CONFIG.format(url=steady.url))
        host, port = house.gateway.url.removeprefix("http://").split(":")
        tasks_before, sockets_before = asyncio.all_tasks(), sockets()
        for number in range(STREAMS):
            _transport, reader = await loop.create_connection(partial(Reader, request_of(number, house.key)), host, int(port))
            readers.append(reader)
        await spin_until(lambda: len(steady.requests) == STREAMS)
        blocks = []
        for tokens in (SETTLED, LATER):
            await spin_until(partial(all_have, readers, tokens), lambda: clock.move(EVERY_S / 10))
            assert not any(reader.ended for reader in readers), "all of them are open"
            gc.collect()
            blocks.append(sys.getallocatedblocks())
        await spin_until(lambda: all(reader.ended for reader in readers), lambda: clock.move(EVERY_S))
        assert [said(bytes(reader.got)) for reader in readers] == (expected := await straight(steady))
        assert len(set(expected)) == STREAMS
        for reader in readers:
            reader.transport.close()
    print(f"allocated blocks: {blocks}")
    assert blocks[1] - blocks[0] < STREAMS * (LATER - SETTLED) / 4, "nothing is kept of a token that has gone through"
    await spin_until(lambda: asyncio.all_tasks() <= tasks_before)
    await spin_until(lambda: sockets() <= sockets_before)
    bills = [entry.billed for entry in steady.requests[:STREAMS] if entry.billed is not None]
    assert await house.spent("all/all") == sum(each.prompt_tokens * 1_000 + each.completion_tokens * 2_000 for each in bills)


async def straight(steady: Simulator) -> list[str]:
    """What the provider says to each where nothing stands in between."""
    expected = []
    async with aiohttp.ClientSession() as session:
        for number in range(STREAMS):
            async with session.post(f"{steady.url}/chat/completions", json=asks(number), headers={"x-sim-fault": "delay_between_tokens=0"}) as answer:
                expected.append((await answer.json())["choices"][0]["message"]["content"])
    return expected
