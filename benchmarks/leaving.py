"""Clients that go away: one call on a socket of its own, broken off at a chosen point."""

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

# From the first byte that is not sent to the last that is not read; the last one leaves nothing out.
POINTS: Final = ("connecting", "head", "headers", "body", "waiting", "first", "middle", "last", "end", "never")
PLAIN_POINTS: Final = tuple(point for point in POINTS if point != "middle")  # a plain answer comes in one piece
USERS: Final = 50
_LINGER_NONE: Final = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN (SO_LINGER, socket(7))
_LONGEST_S: Final = 60.0
_LAST: Final = b'"finish_reason":"stop"'
_DONE: Final = b"data: [DONE]"


@dataclass(frozen=True)
class Leaver:
    """One call and where its client leaves. `patience_s` is how long it waits before it leaves where nothing tells it when."""

    number: int
    route: str
    words: int
    stream: bool
    point: str
    abruptly: bool  # by a reset in place of an orderly end
    patience_s: float
    share: float  # of what is sent or read at the point, where that is more than a byte

    @property
    def text(self) -> str:
        """What it asks: its number is in it, so that it is known from a provider's log."""
        return f"words {self.words} of call {self.number}"

    @property
    def body(self) -> bytes:
        body: dict[str, Any] = {"model": self.route, "user": f"u{self.number % USERS}", "max_tokens": self.words + 5,
                                "messages": [{"role": "user", "content": self.text}]}
        return json.dumps(body | ({"stream": True} if self.stream else {})).encode()


def draw(dice: random.Random, number: int, routes: tuple[str, ...]) -> Leaver:
    """The call of a number."""
    stream = dice.random() < 0.6
    return Leaver(number, dice.choice(routes), dice.randrange(5, 40), stream, dice.choice(POINTS if stream else PLAIN_POINTS),
                  dice.random() < 0.5, dice.choice((0.0, 0.01, 0.05, 0.2, 0.5)) * dice.random(), dice.random())


async def leave(leaver: Leaver, host: str, port: int, key: str) -> tuple[str, int]:
    """Make the call and leave; what was seen of it (`left`, `whole`, a status, `closed`), and when the client left, in wall-clock ns."""
    async with asyncio.timeout(_LONGEST_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            seen = await _until(leaver, reader, writer, key)
        except (ConnectionError, asyncio.IncompleteReadError):
            seen = "closed"
        left_ns = time.time_ns()
        if leaver.abruptly:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return seen, left_ns


async def _until(leaver: Leaver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> str:
    """Send and read up to the point."""
    body = leaver.body
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "", "")
    head = "\r\n".join(lines).encode()
    sent = {"connecting": b"", "head": head[:1 + int(leaver.share * (len(head) - 2))], "headers": head,
            "body": head + body[:1 + int(leaver.share * (len(body) - 2))]}
    data = sent.get(leaver.point, head + body)
    if data:
        writer.write(data)
        await writer.drain()
    if leaver.point in sent or leaver.point == "waiting":
        await asyncio.sleep(leaver.patience_s)
        return "left"
    answer = await reader.readuntil(b"\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    if status != 200:
        return str(status)
    return await (_read_events(leaver, reader) if leaver.stream else _read_plain(leaver, reader, _length(answer)))


def _length(head: bytes) -> int:
    return next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))


async def _read_plain(leaver: Leaver, reader: asyncio.StreamReader, length: int) -> str:
    wanted = {"first": 1, "last": length - 1}.get(leaver.point, length)
    await reader.readexactly(wanted)
    return "whole" if wanted == length else "left"


async def _read_events(leaver: Leaver, reader: asyncio.StreamReader) -> str:
    """Read events, in their chunks, up to the point. `end` leaves with the stream's last event and before the answer's last chunk is read."""
    wanted = {"first": 1, "middle": 2 + int(leaver.share * leaver.words)}.get(leaver.point, 0)
    events, ended = 0, False
    while line := await reader.readline():
        events += line.startswith(b"data:")
        if (wanted and events >= wanted) or (leaver.point == "last" and _LAST in line):
            return "left"
        if line.startswith(_DONE):
            ended = True
            if leaver.point == "end":
                return "left"
        if line == b"0\r\n":
            return "whole" if ended else "cut"
    return "cut"
