"""What clients may take of the listener: every connection is bounded, and a client that goes away is seen whatever it sent before."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from aiohttp import web

from gateway.http.connection import Limits
from gateway.http.server import Listener
from gateway.simulator import Fault, FaultRule, Scenario

T = TypeVar("T")
CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HANGS = Scenario(rules=(FaultRule(Fault(hang=True)),))


@asynccontextmanager
async def listening(house, *, most_open: int = 100, **seconds: float) -> AsyncIterator[int]:
    """A further listener of the same gateway, with limits a test can wait for; its port."""
    made = Limits(most_open, **seconds)
    runner = web.ServerRunner(Listener(house.gateway.app.surface, max_body=2**20, limits=made), handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, sock).start()
    try:
        yield sock.getsockname()[1]
    finally:
        await runner.cleanup()


async def bounded(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, 20)


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await bounded(asyncio.open_connection("127.0.0.1", port))


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of the next answer on a connection."""
    head = await bounded(reader.readuntil(b"\r\n\r\n"))
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return int(head.split(b" ", 2)[1]), await bounded(reader.readexactly(length))


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What still comes, up to the connection's end."""
    try:
        return await bounded(reader.read())
    except ConnectionError:
        return b""


def call(house, body: bytes = GOOD, *lines: str) -> bytes:
    framing = lines or (f"Content-Length: {len(body)}",)
    head = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Authorization: Bearer {house.key}", "Content-Type: application/json", *framing, "", ""]
    return "\r\n".join(head).encode() + body


async def test_a_connection_that_says_nothing_is_closed(house):
    await house.open()
    async with listening(house, head_s=0.05) as port:
        reader, writer = await connect(port)
        assert await closed(reader) == b""
        writer.close()


async def test_a_head_that_is_begun_and_not_ended_is_closed_also_behind_a_good_request(house):
    """Slow loris behind one good request: each byte must not buy it more time."""
    await house.open()
    async with listening(house, head_s=0.1) as port:
        reader, writer = await connect(port)
        for _ in range(2):
            writer.write(HEALTH)
            assert (await one_answer(reader))[0] == 200
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert await closed(reader) == b""
        writer.close()


async def test_a_head_in_pieces_is_answered_and_its_timer_ends_with_it(house):
    await house.open()
    house.one.play(HANGS)
    async with listening(house, head_s=0.2) as port:
        reader, writer = await connect(port)
        for half in (HEALTH[:9], HEALTH[9:]):
            writer.write(half)
            await writer.drain()
        assert (await one_answer(reader))[0] == 200
        writer.write(call(house))  # takes longer than a head may
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)
        writer.close()


async def test_a_connection_that_is_idle_between_requests_is_closed(house):
    await house.open()
    async with listening(house, idle_s=0.05) as port:
        reader, writer = await connect(port)
        writer.write(HEALTH)
        assert (await one_answer(reader))[0] == 200
        assert await closed(reader) == b""
        writer.close()


async def test_a_connection_over_the_limit_is_turned_away_and_one_that_closes_makes_room(house):
    await house.open()
    async with listening(house, most_open=2) as port:
        kept = [await connect(port) for _ in range(2)]
        for reader, writer in kept:
            writer.write(HEALTH)
            assert (await one_answer(reader))[0] == 200
        reader, writer = await connect(port)
        status, body = await one_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        assert await closed(reader) == b""
        for _, open_ in (*kept, (reader, writer)):
            open_.close()
        async with asyncio.timeout(20):
            while True:
                reader, writer = await connect(port)
                writer.write(HEALTH)
                status, _ = await one_answer(reader)
                writer.close()
                if status == 200:
                    break


BEHIND = {
    "40 requests": HEALTH * 40,
    "a large body": f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n".encode() + b"x" * 4_000_000,
    "garbage": b"\x00\r\n" * 100_000,
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_a_client_that_goes_away_is_seen_whatever_it_sent_behind_its_call(house, behind):
    """Reading stops where too much waits, and a client's going away is only seen by who reads."""
    await house.open()
    house.one.play(HANGS)
    async with listening(house) as port:
        reader, writer = await connect(port)
        writer.write(call(house))
        async with asyncio.timeout(20):
            while not house.one.requests:
                await asyncio.sleep(0)
        writer.write(behind)
        writer.close()
        (entry,) = await bounded(house.one.finished(1))
        assert entry.end == "client_gone"
        await closed(reader)


async def test_what_is_behind_a_call_from_the_start_does_not_hide_its_client_either(house):
    await house.open()
    house.one.play(HANGS)
    async with listening(house) as port:
        reader, writer = await connect(port)
        writer.write(call(house) + HEALTH * 40)
        assert await closed(reader) == b""
        writer.close()
        async with asyncio.timeout(20):
            while house.gateway.app.proxy.in_flight:
                await asyncio.sleep(0)


async def test_an_upgrade_that_is_not_taken_does_not_hide_its_client(house):
    await house.open()
    house.one.play(HANGS)
    async with listening(house) as port:
        reader, writer = await connect(port)
        writer.write(call(house, GOOD, f"Content-Length: {len(GOOD)}", "Connection: upgrade", "Upgrade: websocket"))
        async with asyncio.timeout(20):
            while not house.one.requests:
                await asyncio.sleep(0)
        writer.write(b"x" * 1_000_000)
        writer.close()
        (entry,) = await bounded(house.one.finished(1))
        assert entry.end == "client_gone"
        await closed(reader)


async def test_a_few_requests_at_once_are_answered_in_their_order(house):
    await house.open()
    async with listening(house) as port:
        reader, writer = await connect(port)
        writer.write(call(house) + HEALTH * 8)
        assert b"chat.completion" in (await one_answer(reader))[1]
        for _ in range(8):
            assert await one_answer(reader) == (200, b'{"status":"ok"}')
        writer.close()


async def test_a_large_body_in_one_go_is_no_reason_to_hang_up(house):
    await house.open()
    body = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "x" * 900_000}]}).encode()
    async with listening(house) as port:
        reader, writer = await connect(port)
        for _ in range(2):
            writer.write(call(house, body))
            assert (await one_answer(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("first", [b"", b'5\r\n{"mod\r\n'], ids=["no chunk", "a good chunk"])
async def test_a_chunk_that_breaks_while_the_body_is_read_is_refused_at_once(house, first):
    await house.open()  # the body's own deadline is 30 s
    async with listening(house) as port:
        reader, writer = await connect(port)
        writer.write(call(house, first, "Transfer-Encoding: chunked", "Expect: 100-continue"))
        assert b"100 Continue" in await bounded(reader.readuntil(b"\r\n\r\n"))  # the handler waits for the body
        writer.write(b"zz\r\nnonsense\r\n")
        status, body = await one_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")
        assert await closed(reader) == b""  # and nothing behind it is taken for a request
        writer.close()
    assert house.one.requests == []
    (row,) = await house.calls()
    assert (row["outcome"], row["code"]) == ("refused", "invalid_request")


def small_window(port: int) -> socket.socket:
    """A client whose machine takes little ahead of its reading."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


async def ask_large(house, port: int) -> socket.socket:
    """A call whose answer of 8 MiB no buffer on the way holds."""
    house.one.play(Scenario(rules=(FaultRule(Fault(huge=8 * 2**20)),)))
    sock = small_window(port)
    await bounded(asyncio.get_running_loop().sock_sendall(sock, call(house, GOOD, f"Content-Length: {len(GOOD)}", "Connection: close")))
    return sock


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(house):
    await house.open()
    async with listening(house, stuck_s=0.1) as port:
        sock = await ask_large(house, port)
        await bounded(house.one.finished(1))
        async with asyncio.timeout(20):
            while house.gateway.app.proxy.in_flight:
                await asyncio.sleep(0)
        sock.close()


async def test_a_client_that_reads_slowly_gets_its_whole_answer(house):
    """It is slower than the limit by far, but it reads."""
    await house.open()
    async with listening(house, stuck_s=0.25) as port:
        sock = await ask_large(house, port)
        loop, got, began = asyncio.get_running_loop(), 0, asyncio.get_running_loop().time()
        while data := await bounded(loop.sock_recv(sock, 65536)):
            got += len(data)
            await asyncio.sleep(len(data) / 2**20 / 8)  # 8 MiB/s at most
        assert got > 8 * 2**20
        assert loop.time() - began > 3 * 0.25
        sock.close()
