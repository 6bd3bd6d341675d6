"""Many streams read at once by one lean process, for streams.py: it opens them, notes when each piece comes, and says what it saw.

It does no more with an answer than to count the events in what the socket gives: a client library would be most of the load. It prints
three lines of JSON: when all streams have begun (`opened`), after the seconds in which gaps count (`window`), when all have ended (`ended`).
"""

import argparse
import asyncio
import itertools
import json
import time
from typing import Any, Final, cast

from benchmarks.processes import allow_all_descriptors
from gateway.cli.process import run_loop, settle_memory

STEP_S: Final = 0.0001  # what gaps are told apart by
STEPS: Final = 100_000  # ten seconds; longer ones count as that
WAITING: Final = 200  # streams that have not begun yet, at most
OPENING_S: Final = 300.0


class Load:
    """What all streams have seen. `gaps` counts them by their length, in steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        body = json.dumps({"model": "streams", "stream": True, "messages": [{"role": "user", "content": f"words {options.tokens}"}]})
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {options.key}", "Content-Type: application/json",
                 f"Content-Length: {len(body)}", "", ""]
        self.request = "\r\n".join(lines).encode() + body.encode()
        self.tokens: int = options.tokens
        self.room = asyncio.Semaphore(WAITING)
        self.all_ended = asyncio.Event()
        self.open: set[Stream] = set()
        self.left: int = options.streams
        self.begun = self.whole = self.broken = 0
        self.said: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Gaps count from now on."""
        self.gaps = [0] * STEPS
        self.events = 0
        self.longest_s = 0.0

    def piece(self, gap_s: float, events: int) -> None:
        self.gaps[min(int(gap_s / STEP_S), STEPS - 1)] += 1
        self.gaps[0] += events - 1
        self.events += events
        self.longest_s = max(self.longest_s, gap_s)

    def leave(self) -> None:
        """Hang up on all that are open."""
        for stream in list(self.open):
            stream.transport.abort()

    def lost(self, stream: "Stream") -> None:
        self.open.discard(stream)
        if stream.whole:
            self.whole += 1
        else:
            self.broken += 1
            if len(self.said) < 3:
                self.said.add(bytes(stream.tail).decode(errors="replace"))
        self.left -= 1
        if self.left == 0:
            self.all_ended.set()

    def gap_ms(self, share: float) -> float:
        """The gap that this share of all is no longer than."""
        wanted = share * sum(self.gaps)
        step = next((step for step, seen in enumerate(itertools.accumulate(self.gaps)) if seen >= wanted), 0)
        return round((step + 1) * STEP_S * 1000, 1)


class Stream(asyncio.Protocol):
    """One answer on a connection of its own."""

    __slots__ = ("_edge", "_events", "_last_s", "_load", "tail", "transport")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._last_s = 0.0
        self._events = 0
        self._edge = False  # the last piece ended in the middle of what separates two events, perhaps
        self.tail = b""

    @property
    def whole(self) -> bool:
        """All of it came: every token, the end of the stream and the end of the answer."""
        return self._events > self._load.tokens and b"data: [DONE]\n\n" in self.tail and self.tail.endswith(b"0\r\n\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its class
        self.transport.write(self._load.request)
        self._load.open.add(self)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        events = data.count(b"\n\n") + (self._edge and data.startswith(b"\n"))
        self._edge = data.endswith(b"\n") and not data.endswith(b"\n\n")
        refused = not self.tail and not data.startswith(b"HTTP/1.1 200 ")
        self.tail = (self.tail + data)[-200:]
        if events:
            if self._last_s:
                self._load.piece(now_s - self._last_s, events)
            else:
                self._load.begun += 1
                self._load.room.release()
            self._last_s = now_s
            self._events += events
        if refused or (data.endswith(b"0\r\n\r\n") and b"data: [DONE]\n\n" in self.tail):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        if not self._last_s:
            self._load.room.release()
        self._load.lost(self)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", nargs="+", required=True, metavar="HOST:PORT", help="where streams are opened, in turn")
    parser.add_argument("--key", default="none")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of each answer")
    parser.add_argument("--opens", type=float, required=True, help="streams that are opened a second, at most")
    parser.add_argument("--seconds", type=float, required=True, help="in which gaps count, once all streams have begun")
    parser.add_argument("--leave", action="store_true", help="hang up then, in place of reading all streams to their end")
    parser.add_argument("--patience", type=float, required=True, help="seconds for all streams to end after that")
    options = parser.parse_args()
    allow_all_descriptors()
    load = Load(options)
    began_s = time.monotonic()
    await open_all(load, options)
    settle_memory()
    tell("opened", load, seconds=round(time.monotonic() - began_s, 2))
    load.forget()
    used_s, from_s = time.process_time(), time.monotonic()
    await asyncio.sleep(options.seconds)
    seconds = time.monotonic() - from_s
    tell("window", load, seconds=round(seconds, 2), events=load.events, p50_ms=load.gap_ms(0.5), p99_ms=load.gap_ms(0.99),
         max_ms=round(1000 * load.longest_s, 1), cpu_s=time.process_time() - used_s)
    if options.leave:
        load.leave()
    try:
        await asyncio.wait_for(load.all_ended.wait(), options.patience)
    except TimeoutError:
        load.said.add(f"{load.left} streams had not ended in time")
    tell("ended", load)


async def open_all(load: Load, options: argparse.Namespace) -> None:
    """Open the streams at their pace; returns when each has begun, or ended."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    async with asyncio.timeout(OPENING_S):
        for number in range(options.streams):
            await asyncio.sleep(max(0.0, started_s + number / options.opens - loop.time()))
            await load.room.acquire()
            host, _, port = options.to[number % len(options.to)].rpartition(":")
            await loop.create_connection(lambda: Stream(load), host, int(port))
        for _ in range(WAITING):
            await load.room.acquire()


def tell(when: str, load: Load, **more: Any) -> None:
    print(json.dumps({"when": when, "begun": load.begun, "whole": load.whole, "broken": load.broken, "said": sorted(load.said), **more}), flush=True)


if __name__ == "__main__":
    run_loop(main())
