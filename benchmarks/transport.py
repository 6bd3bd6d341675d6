"""CPU time of each transport: per plain request and per streamed chunk, against a trivial server in another process.

    python benchmarks/transport.py [--requests 20000] [--concurrency 64] [--json]

CPU time of this process alone, so the server's work does not count. The figures depend on the machine; what to compare is the ratio.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Final, cast

import uvloop

from gateway.upstream.aiohttp_transport import AiohttpTransport
from gateway.upstream.lean_transport import LeanTransport
from gateway.upstream.protocol import HttpRequest, Transport

BODY: Final = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"}}]}'
PLAIN: Final = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nx-request-id: req_1\r\n"
                b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
CHUNK: Final = b"%x\r\n" % len(EVENT) + EVENT + b"\r\n"
CHUNKS: Final = 100
REQUEST_HEADERS: Final = {"content-type": "application/json", "authorization": "Bearer key", "x-client-request-id": "call_1.1"}


class Trivial(asyncio.Protocol):
    """Answers whatever comes: one request is one packet. A path that begins with /s gets a stream, a chunk a turn of the loop."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"POST /s"):
            self._transport.write(PLAIN)
            return
        self._transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        self._next(CHUNKS)

    def _next(self, left: int) -> None:
        self._transport.write(CHUNK if left else b"0\r\n\r\n")
        if left:
            asyncio.get_running_loop().call_later(0.001, self._next, left - 1)


def serve(ready: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, ready.recv)  # until the parent says so, or is gone

    uvloop.run(run())


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def plain(transport: Transport, url: str) -> int:
    request = HttpRequest("POST", url + "/v1/chat/completions", REQUEST_HEADERS, BODY)
    answer = await transport.send(request, connect_s=5.0, headers_s=60.0)
    await answer.read(limit=1 << 20, idle_s=60.0)
    answer.release()
    return 1


async def stream(transport: Transport, url: str) -> int:
    request = HttpRequest("POST", url + "/stream", REQUEST_HEADERS, BODY)
    answer = await transport.send(request, connect_s=5.0, headers_s=60.0)
    chunks = 0
    while await answer.chunk(timeout_s=60.0):
        chunks += 1
    answer.release()
    return chunks


async def measure(transport: Transport, one: Callable[[Transport, str], Awaitable[int]], url: str, count: int, concurrency: int) -> float:
    """Microseconds of CPU per unit of work, after a warm-up of a tenth."""
    async def worker(times: int) -> int:
        return sum([await one(transport, url) for _ in range(times)])

    async def round_of(times: int) -> int:
        return sum(await asyncio.gather(*(worker(max(1, times // concurrency)) for _ in range(concurrency))))

    await round_of(count // 10)
    before = cpu_s()
    done = await round_of(count)
    return (cpu_s() - before) / done * 1e6


async def measure_both(url: str, requests: int, concurrency: int) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for name, make in (("aiohttp", AiohttpTransport), ("lean", LeanTransport)):
        transport: Transport = make()
        figures[name] = {
            "request_us": await measure(transport, plain, url, requests, concurrency),
            "chunk_us": await measure(transport, stream, url, max(concurrency, requests // CHUNKS * 2), concurrency),
        }
        await transport.close()
    figures["ratio"] = {unit: figures["aiohttp"][unit] / figures["lean"][unit] for unit in ("request_us", "chunk_us")}
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--requests", type=int, default=20_000)
    arguments.add_argument("--concurrency", type=int, default=64)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    figures = uvloop.run(measure_both(url, chosen.requests, chosen.concurrency))
    ours.send("done")
    server.join(10)
    if chosen.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'':10}{'µs CPU a request':>20}{'µs CPU a chunk':>20}")
    for name, row in figures.items():
        print(f"{name:10}{row['request_us']:20.1f}{row['chunk_us']:20.1f}")


if __name__ == "__main__":
    main()
