"""A gateway that stops: who has a connection already is answered once more, whoever comes anew is not, and everything ends in time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from gateway.simulator import Fault, FaultRule, Scenario

T = TypeVar("T")
SOON_S = 20
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def bounded(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, SOON_S)


class Wire:
    """A client's connection, byte by byte."""

    def __init__(self, house: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.house = house
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, text: str = "say x", *, stream: bool = False) -> None:
        body = json.dumps({"model": "fast", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
        head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {self.house.key}",
                "Content-Type: application/json", f"Content-Length: {len(body)}"]
        self.send("\r\n".join([*head, "", ""]).encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await bounded(self.reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        return status, headers, await bounded(self.reader.readexactly(int(headers["content-length"])))

    async def events(self) -> str:
        """The rest of a streamed answer, up to the last chunk."""
        return (await bounded(self.reader.readuntil(b"\r\n0\r\n\r\n"))).decode()

    async def end(self) -> bytes:
        """What still comes, up to the connection's end."""
        return await bounded(self.reader.read())


@asynccontextmanager
async def wires(house: Any, count: int = 1) -> AsyncIterator[list[Wire]]:
    port = int(house.gateway.url.rsplit(":", 1)[1])
    made = [Wire(house, *await bounded(asyncio.open_connection("127.0.0.1", port))) for _ in range(count)]
    try:
        yield made
    finally:
        for wire in made:
            wire.writer.close()


async def used(wire: Wire) -> None:
    """A first call, after which the connection is kept open."""
    wire.call()
    status, headers, _body = await wire.answer()
    assert (status, headers.get("connection")) == (200, None)


def stopping(house: Any) -> asyncio.Task[None]:
    return asyncio.create_task(house.gateway.app.stop())


def opened(house: Any, **server: str) -> Any:
    return house.open(config="[server]\n" + "".join(f'{name} = "{value}"\n' for name, value in server.items()))


async def under_way(house: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not house.one.requests:
            await asyncio.sleep(0)


async def draining(house: Any) -> None:
    """The listener is closed; what is open already is being answered."""
    port = int(house.gateway.url.rsplit(":", 1)[1])
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return
            writer.close()


async def test_a_request_on_a_kept_connection_is_answered_and_told_to_be_the_last(house):
    await opened(house, grace="20s")
    async with wires(house, 3) as kept:
        for wire in kept:
            await used(wire)
        stop = stopping(house)
        await draining(house)
        for wire in kept:
            wire.call()
            status, headers, _body = await wire.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await wire.end() == b""
        await bounded(stop)  # nobody is left: it does not wait for the rest of the grace


async def test_the_first_request_of_a_connection_that_was_open_already_is_answered(house):
    await opened(house, grace="20s")
    async with wires(house) as (fresh,):
        stop = stopping(house)
        await draining(house)
        fresh.call()
        status, headers, _body = await fresh.answer()
        assert (status, headers["connection"]) == (200, "close")
        await bounded(stop)


async def test_whoever_comes_anew_is_refused_by_the_system_at_once(house):
    await opened(house, grace="20s")
    async with wires(house) as (kept,):
        await used(kept)
        stop = stopping(house)
        await draining(house)
        assert not stop.done()
        kept.writer.close()
        await bounded(stop)


async def test_readiness_is_gone_at_once_and_liveness_is_not(house):
    await opened(house, grace="20s")
    async with wires(house, 2) as (one, two):
        stop = stopping(house)
        await draining(house)
        one.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, body = await one.answer()
        assert (status, headers["connection"], json.loads(body)["reasons"]) == (503, "close", ["draining"])
        two.send(HEALTH)
        assert (await two.answer())[0] == 200
        await bounded(stop)


async def test_an_idle_connection_is_closed_only_when_it_was_silent_for_the_grace(house):
    await opened(house, grace="300ms")
    async with wires(house, 2) as (kept, fresh):
        await used(kept)
        began = asyncio.get_running_loop().time()
        stop = stopping(house)
        assert (await kept.end(), await fresh.end()) == (b"", b"")
        assert asyncio.get_running_loop().time() - began >= 0.29
        await bounded(stop)


async def test_without_grace_idle_connections_are_closed_at_once_and_calls_still_end(house):
    await opened(house, grace="0s")
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_headers_s=0.2)),)))
    async with wires(house, 2) as (idle, busy):
        await used(idle)
        house.one.requests.clear()
        busy.call()
        await under_way(house)
        stop = stopping(house)
        assert await idle.end() == b""
        status, headers, _body = await busy.answer()
        assert (status, headers["connection"]) == (200, "close")
        await bounded(stop)


async def test_a_call_in_flight_is_told_with_its_answer_that_the_connection_ends(house):
    """It began before: what its connection will be is known when it is answered, not when it comes."""
    await opened(house, grace="20s")
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_headers_s=0.2)),)))
    async with wires(house) as (wire,):
        wire.call()
        await under_way(house)
        stop = stopping(house)
        status, headers, _body = await wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await wire.end() == b""
        await bounded(stop)


async def test_a_stream_under_way_ends_whole_and_its_connection_has_a_grace_of_its_own(house):
    """Its headers promised that the connection is kept: its client may ask again the moment it ends."""
    await opened(house, grace="200ms")
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_between_tokens_s=0.02)),)))
    async with wires(house) as (wire,):
        wire.call("words 30", stream=True)
        status, headers = await wire.head()
        assert (status, headers.get("connection")) == (200, None)
        stop = stopping(house)
        await draining(house)
        assert "data: [DONE]" in await wire.events()  # longer than the grace
        wire.call()
        status, headers, _body = await wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await wire.end() == b""
        await bounded(stop)
    assert house.sql("SELECT outcome FROM outcomes") == [("completed",), ("completed",)]


async def test_a_stream_that_begins_while_the_gateway_stops_ends_whole(house):
    await opened(house, grace="20s")
    async with wires(house) as (wire,):
        stop = stopping(house)
        await draining(house)
        wire.call("words 30", stream=True)
        status, headers = await wire.head()
        assert (status, headers["connection"]) == (200, "close")
        assert "data: [DONE]" in await wire.events()
        await bounded(stop)


async def test_a_head_that_was_begun_in_time_is_answered(house):
    await opened(house, grace="100ms")
    async with wires(house) as (wire,):
        await used(wire)
        stop = stopping(house)
        await draining(house)
        wire.send(HEALTH[:9])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.reader.read(1), 0.4)
        wire.send(HEALTH[9:])
        assert (await wire.answer())[0] == 200
        await bounded(stop)


@pytest.mark.parametrize("grace", ["0s", "20s"])
async def test_everything_ends_in_the_time_that_a_drain_may_take(house, grace):
    """An idle connection, a head that never ends and a call that hangs do not hold up the end."""
    await opened(house, grace=grace, drain_timeout="300ms")
    house.one.play(Scenario(rules=(FaultRule(Fault(hang=True)),)))
    async with wires(house, 3) as (_idle, torn, busy):
        torn.send(HEALTH)
        await torn.answer()
        busy.call()
        await under_way(house)
        stop = stopping(house)
        torn.send(HEALTH[:9])
        status, headers, body = await busy.answer()
        assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (503, "close", "overloaded")
        await bounded(stop)
        assert await torn.end() == b""


async def test_a_client_that_goes_away_meanwhile_is_not_waited_for(house):
    await opened(house, grace="20s")
    house.one.play(Scenario(rules=(FaultRule(Fault(hang=True)),)))
    async with wires(house, 2) as (idle, busy):
        busy.call()
        await under_way(house)
        stop = stopping(house)
        await draining(house)
        busy.writer.close()
        idle.writer.close()
        await bounded(stop)
    assert house.sql("SELECT outcome FROM outcomes") == [("cancelled",)]
    house.assert_doctor_is_content()
