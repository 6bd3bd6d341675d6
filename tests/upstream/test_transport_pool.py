"""Many requests over few connections: bounded, in order, each with its own answer, and nothing left behind."""

import asyncio
import random
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.errors import AttemptFailed
from gateway.upstream.lean_transport import LeanTransport
from gateway.upstream.protocol import HttpRequest

H = b"HTTP/1.1 200 OK\r\n"
OK = H + b"content-length: 2\r\n\r\nok"


@dataclass
class Seen:
    open: set[Any] = field(default_factory=set)
    most: int = 0


@pytest.fixture
async def echo():
    """An aiohttp server that answers what it was sent, counting the connections it has open."""
    seen = Seen()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.open.add(request.transport)
        seen.open = {transport for transport in seen.open if not transport.is_closing()}
        seen.most = max(seen.most, len(seen.open))
        body = await request.read()
        if request.path == "/stream":
            response = web.StreamResponse()
            await response.prepare(request)
            for at in range(0, len(body), 3):
                await response.write(body[at:at + 3])
            return response
        return web.Response(body=body, headers={"x-path": request.path})

    runner = web.ServerRunner(web.Server(answer), handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}", seen
    await runner.cleanup()


async def exchange(client, url: str, body: bytes) -> Any:
    answer = await client.send(url, body=body)
    try:
        return await answer.read(limit=1000, idle_s=10)
    finally:
        answer.release()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_two_hundred_at_once_over_twenty_connections_each_get_their_own_answer(make, client_of, echo):
    url, seen = echo
    client = client_of(make(connections_per_origin=20))
    bodies = [f"request {n} ".encode() * (n % 7 + 1) for n in range(200)]
    answers = await asyncio.gather(*(exchange(client, url + ("/stream" if n % 2 else "/"), body) for n, body in enumerate(bodies)))
    assert answers == bodies
    assert seen.most <= 20


async def test_whoever_waits_longest_is_next(make, client_of, server):
    client = client_of(make(connections_per_origin=1))
    first, peer = await client.meet(server, OK)
    waiting = []
    for n in range(5):
        waiting.append(client.start(server.url(f"/{n}")))
        await asyncio.sleep(0)
    await client.body(first)
    first.release()
    for n, sending in enumerate(waiting):
        assert (await peer.request()).line == f"POST /{n} HTTP/1.1"
        await peer.send(OK)
        answer = await sending
        await client.body(answer)
        answer.release()


async def test_a_connection_that_breaks_gives_its_place_to_who_waits(make, client_of, server):
    client = client_of(make(connections_per_origin=1))
    first, peer = await client.meet(server, H + b"content-length: 9\r\n\r\n")
    waiting = client.start(server.url("/next"))
    await asyncio.sleep(0)
    peer.reset()
    with pytest.raises(AttemptFailed):
        await first.read(limit=9, idle_s=9)
    first.release()
    other = await server.accept()
    await other.request()
    await other.send(OK)
    assert await client.body(await waiting) == b"ok"


@pytest.mark.parametrize("seed", range(6))
async def test_cancelling_anywhere_loses_no_connection_task_or_file(make, client_of, echo, seed):
    """A slot that is lost with each cancelled call would one day stop all calls."""
    print(f"seed={seed}")
    chance = random.Random(seed)
    url, _ = echo
    files, tasks = open_files(), len(asyncio.all_tasks())
    client = client_of(make(connections_per_origin=5))
    running = [asyncio.ensure_future(exchange(client, url + chance.choice(["/", "/stream"]), b"x" * chance.choice([1, 50, 900])))
               for _ in range(120)]
    while not all(one.done() for one in running):
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        chance.choice(running).cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(one, bytes | asyncio.CancelledError) for one in ended)
    bodies = [str(n).encode() for n in range(20)]
    async with asyncio.timeout(10):
        assert await asyncio.gather(*(exchange(client, url, body) for body in bodies)) == bodies
        await client.transport.close()
        while open_files() > files or len(asyncio.all_tasks()) > tasks:  # the server closes its ends in its own time
            await asyncio.sleep(0)


async def test_a_turn_that_comes_in_the_moment_of_the_cancellation_goes_to_the_next(make, client_of, server, is_lean):
    if not is_lean:
        pytest.skip("aiohttp gives a connection back by itself, so the moment cannot be met")
    client = client_of(make(connections_per_origin=1))
    first, peer = await client.meet(server, OK)
    unlucky, lucky = client.start(server.url("/unlucky")), client.start(server.url("/lucky"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await client.body(first)
    first.release()
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    assert (await peer.request()).line == "POST /lucky HTTP/1.1"
    await peer.send(OK)
    (await lucky).abort()


async def test_an_idle_connection_is_closed_after_its_time(make, client_of, server):
    client = client_of(make(idle_s=0.05))
    answer, peer = await client.meet(server, OK)
    await client.body(answer)
    answer.release()
    await peer.gone()


async def test_connections_to_different_origins_are_never_mixed(client, server, six_server):
    """The host header of the one must not reach the other."""
    for where, host in ((server, "127.0.0.1"), (six_server, "[::1]")):
        answer, _ = await client.meet(where, OK, url=where.url(host=host))
        assert await client.body(answer) == b"ok"
        answer.release()
    assert (len(server.peers), len(six_server.peers)) == (1, 1)


async def test_a_slow_reader_stops_the_server_and_still_gets_everything(client, server):
    """50 MB for a reader that takes one piece: what was read from the server stays bounded, and so does what is in memory."""
    total, piece = 50_000_000, b"x" * 50_000
    answer, peer = await client.meet(server, H + b"content-length: %d\r\n\r\n" % total)
    sent = 0

    async def pour() -> None:
        nonlocal sent
        while sent < total:
            peer.writer.write(piece)
            await peer.writer.drain()
            sent += len(piece)

    pouring = asyncio.ensure_future(pour())
    got = len(await answer.chunk(timeout_s=9))
    with pytest.raises(TimeoutError):  # the server is stuck
        async with asyncio.timeout(0.5):
            await asyncio.shield(pouring)
    assert sent < 20_000_000, "the sockets' own buffers, a few MB, and little more"
    most = 0
    while data := await answer.chunk(timeout_s=9):
        got += len(data)
        most = max(most, len(data))
    await pouring
    answer.release()
    assert got == total
    assert most <= 1_000_000
    (await client.again(server, peer, OK)).abort()


def test_a_transport_lives_in_the_loop_it_was_made_in(kind):
    """Two gateways in one process, each with a loop and a thread of its own."""
    made = []

    def run() -> None:
        async def once() -> None:
            transport = kind()
            await transport.close()
            made.append(transport)
        asyncio.run(once())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 2
    with pytest.raises(RuntimeError):
        kind()


async def test_closing_ends_the_wait_of_whoever_waits_for_a_turn(make, client_of, server, is_lean):
    if not is_lean:
        pytest.skip("aiohttp leaves them to their connect deadline")
    client = client_of(make(connections_per_origin=1))
    first, _ = await client.meet(server, H + b"content-length: 9\r\n\r\n")
    waiting = [client.start(server.url()) for _ in range(3)]
    await asyncio.sleep(0)
    await client.transport.close()
    for sending in waiting:
        with pytest.raises(AttemptFailed, match="stopping"):
            await sending
    first.release()


async def test_of_two_idle_connections_the_one_used_last_is_taken_and_both_grow_old(make, client_of, server, is_lean):
    """So a pool shrinks to what is needed."""
    if not is_lean:
        pytest.skip("the order is aiohttp's own")
    client = client_of(make(idle_s=0.05))
    (one, older), (two, newer) = await client.meet(server, OK), await client.meet(server, OK)
    for answer in (one, two):
        await client.body(answer)
        answer.release()
    again = await client.again(server, newer, OK)
    await client.body(again)
    await older.gone()
    again.release()
    await newer.gone()


async def test_an_answer_is_not_read_after_its_release(client, server, is_lean):
    """Its connection may be carrying another caller's answer."""
    if not is_lean:
        pytest.skip("aiohttp answers with what it has")
    answer, _ = await client.meet(server, OK)
    answer.release()
    with pytest.raises(RuntimeError):
        await answer.read(limit=9, idle_s=9)
    with pytest.raises(RuntimeError):
        await answer.chunk(timeout_s=9)


class Swallowed(asyncio.Transport):
    """A transport whose end is told to nobody, as uvloop's is where the connecting was cancelled when it was open already."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock

    def abort(self) -> None:
        self._sock.close()


async def test_a_caller_that_leaves_as_its_connection_opens_does_not_keep_the_gateway_from_stopping(monkeypatch, server):
    transport = LeanTransport()

    async def opened(make: Any, *, sock: socket.socket, **_given: Any) -> None:
        make().connection_made(Swallowed(sock))
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", opened)
    with pytest.raises(asyncio.CancelledError):
        await transport.send(HttpRequest("GET", server.url(), {}, b""), connect_s=9, headers_s=9)
    async with asyncio.timeout(1):
        await transport.close()
