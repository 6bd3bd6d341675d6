"""Many callers at once that wait for people, for held.py: each keeps its connection open, and presents its call again where that is lost.

Every caller asks for something of its own, so that each waits for an approval of its own; every second one asks for a stream. What is told
on standard output is a line of JSON each: `sent` once all have sent their call, and for every answer `answered` with the number of the
caller, the time (of the system's monotonic clock) and whether it is right.
"""

import argparse
import asyncio
import json
import time
from typing import Any, Final, cast

from benchmarks.processes import allow_all_descriptors
from gateway.cli.process import run_loop, settle_memory

AGAIN_S: Final = 0.2  # before a call is presented again
CONNECTING: Final = 100  # callers at a time
PENDING: Final = b'"approval_pending"'


class Load:
    """All callers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.host, _, port = options.to.rpartition(":")
        self.port = int(port)
        self.room = asyncio.Semaphore(CONNECTING)
        self.left: int = options.calls
        self.again = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.all_answered = asyncio.Event()

    def request(self, number: int) -> bytes:
        stream = {"stream": True} if number % 2 else {}
        said = f"say held {number} {'x' * self.options.letters}"
        body = json.dumps({"model": "held", "messages": [{"role": "user", "content": said}], **stream})
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {self.options.key}", "Content-Type: application/json",
                 f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body.encode()

    def present(self, number: int, after_s: float = 0.0) -> None:
        task = asyncio.get_running_loop().create_task(self._present(number, after_s))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _present(self, number: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self.room:
            try:
                await asyncio.get_running_loop().create_connection(lambda: Caller(self, number), self.host, self.port)
            except OSError:
                self.present(number, AGAIN_S)

    def lost(self, caller: "Caller") -> None:
        """A connection has ended: with the answer, or without one."""
        answer = bytes(caller.answer)
        if not caller.ended or PENDING in answer:
            self.again += 1
            self.present(caller.number, AGAIN_S)
            return
        words = b"".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "").encode() for line in answer.splitlines()
                         if line.startswith(b'data: {"') and b'"delta"' in line) if caller.number % 2 else answer
        right = answer.startswith(b"HTTP/1.1 200 ") and f"held {caller.number} ".encode() in words
        tell("answered", number=caller.number, at_s=caller.answered_s, right=right, **({} if right else {"said": answer[-300:].decode(errors="replace")}))
        self.left -= 1
        if self.left == 0:
            self.all_answered.set()


class Caller(asyncio.Protocol):
    """One call on a connection of its own."""

    __slots__ = ("_load", "answer", "answered_s", "ended", "number", "transport")

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self.number = number
        self.answer = bytearray()
        self.ended = False
        self.answered_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its class
        self.transport.write(self._load.request(self.number))

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, _, body = self.answer.partition(b"\r\n\r\n")
        whole = self.answer.endswith(b"0\r\n\r\n") if self.number % 2 and b"chunked" in head.lower() else length_of(head) == len(body)
        if whole:
            self.ended, self.answered_s = True, time.monotonic()
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        self._load.lost(self)


def length_of(head: bytes | bytearray) -> int:
    """What `Content-Length` says; -1 where there is none."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return -1


def tell(when: str, **more: Any) -> None:
    print(json.dumps({"when": when, **more}), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--key", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--letters", type=int, required=True, help="of each call's message")
    parser.add_argument("--rate", type=float, required=True, help="calls a second at the beginning")
    options = parser.parse_args()
    allow_all_descriptors()
    load = Load(options)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for number in range(options.calls):
        await asyncio.sleep(max(0.0, began_s + number / options.rate - loop.time()))
        load.present(number)
    settle_memory()
    tell("sent", seconds=round(loop.time() - began_s, 1))
    await load.all_answered.wait()
    tell("over", again=load.again)


if __name__ == "__main__":
    run_loop(main())
