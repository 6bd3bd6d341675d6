"""A server whose every byte the test writes, and the transports under test, on both event loops."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from gateway.upstream.aiohttp_transport import AiohttpTransport
from gateway.upstream.lean_transport import LeanTransport
from gateway.upstream.message import tls_context
from gateway.upstream.protocol import HttpAnswer, HttpRequest, Transport

T = TypeVar("T")
DATA = Path(__file__).parent / "data"
WAIT_S = 10.0  # no wait of a test lasts longer; none should come near


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook's signature
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def bounded(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


@dataclass
class Received:
    """A request as it came over the wire; names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


@dataclass
class Peer:
    """The server's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> Received:
        raw = await bounded(self.reader.readuntil(b"\r\n\r\n"))
        line, *fields = raw.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in fields)}
        assert len(headers) == len(fields), "no header is sent twice"
        return Received(line, headers, b"", raw)

    async def request(self) -> Received:
        received = await self.head()
        received.body = await bounded(self.reader.readexactly(int(received.headers.get("content-length", 0))))
        return received

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await bounded(self.writer.drain())

    def send_now(self, data: bytes) -> None:
        """Into the socket before this returns, while the client has no chance to look."""
        sock = socket.socket(fileno=socket.dup(self.writer.get_extra_info("socket").fileno()))
        with sock:
            assert sock.send(data) == len(data)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the client has closed its end, by whatever means."""
        with suppress(ConnectionError):
            while await bounded(self.reader.read(65536)):
                pass


@dataclass
class FaultServer:
    """Accepts connections and leaves everything else to the test."""

    port: int = 0
    peers: list[Peer] = field(default_factory=list)
    arrivals: "asyncio.Queue[Peer]" = field(default_factory=asyncio.Queue)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self.arrivals.put_nowait(peer)

    async def accept(self) -> Peer:
        return await bounded(self.arrivals.get())

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


async def _serve(**options) -> AsyncIterator[FaultServer]:
    faults = FaultServer()
    server = await asyncio.start_server(faults.connected, options.pop("host", "127.0.0.1"), 0, **options)
    faults.port = server.sockets[0].getsockname()[1]
    yield faults
    server.close()
    for peer in faults.peers:
        peer.writer.transport.abort()
    await bounded(server.wait_closed())


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async for faults in _serve():
        yield faults


@pytest.fixture
async def six_server() -> AsyncIterator[FaultServer]:
    try:
        async for faults in _serve(host="::1"):
            yield faults
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")


@pytest.fixture
async def tls_server() -> AsyncIterator[FaultServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "localhost.pem", DATA / "localhost.key.pem")
    async for faults in _serve(ssl=context):
        yield faults


@pytest.fixture
def authority() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(DATA / "authority.pem"))


@pytest.fixture(params=[LeanTransport, AiohttpTransport], ids=["lean", "aiohttp"])
def kind(request: pytest.FixtureRequest) -> type[LeanTransport] | type[AiohttpTransport]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def is_lean(kind) -> bool:
    return kind is LeanTransport


Make = Callable[..., Transport]


@pytest.fixture(scope="session")
def system_tls() -> ssl.SSLContext:
    """Once for all: reading the system's authorities takes longer than a test."""
    return tls_context()


@pytest.fixture
async def make(kind, system_tls) -> AsyncIterator[Make]:
    """Makes transports; afterwards nothing of them may be left."""
    made: list[Transport] = []

    def new(**options) -> Transport:
        made.append(kind(**{"tls": system_tls, **options}))
        return made[-1]

    before = asyncio.all_tasks()
    yield new
    for transport in made:
        await bounded(transport.close())
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"


@dataclass
class Client:
    """Sends with deadlines that a test does not meet unless it says so."""

    transport: Transport

    async def send(self, url: str, *, method: str = "POST", body: bytes = b"", headers: dict[str, str] | None = None,
                   connect_s: float = WAIT_S, headers_s: float = WAIT_S) -> HttpAnswer:
        return await self.transport.send(HttpRequest(method, url, headers or {}, body), connect_s=connect_s, headers_s=headers_s)

    def start(self, url: str, **options) -> "asyncio.Task[HttpAnswer]":
        return asyncio.ensure_future(self.send(url, **options))

    async def meet(self, server: FaultServer, *pieces: bytes, url: str | None = None, **options) -> tuple[HttpAnswer, Peer]:
        """A request on a new connection, answered with `pieces`."""
        sending = self.start(url or server.url(), **options)
        peer = await server.accept()
        await peer.request()
        await peer.send(*pieces)
        return await bounded(sending), peer

    async def again(self, server: FaultServer, peer: Peer, piece: bytes) -> HttpAnswer:
        """A request that must come over the connection of `peer`."""
        sending = self.start(server.url("/again"))
        assert (await peer.request()).line == "POST /again HTTP/1.1"
        await peer.send(piece)
        return await bounded(sending)

    @staticmethod
    async def body(answer: HttpAnswer) -> bytes:
        parts = []
        while part := await answer.chunk(timeout_s=WAIT_S):
            parts.append(part)
        return b"".join(parts)


@pytest.fixture
async def client(make: Make) -> Client:
    return Client(make())


@pytest.fixture
def client_of() -> type[Client]:
    return Client
