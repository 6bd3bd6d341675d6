"""Performs the steps of an answer on one connection and notes in the log what went out. Only this touches connections."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import assert_never

from aiohttp import web

from gateway.clock import Clock
from gateway.simulator.answer import Frame
from gateway.simulator.log import Entry
from gateway.simulator.pace import Pacer
from gateway.simulator.script import Drop, End, Hang, Head, Reset, Steady, Step, Wait, Whole, Write

_LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN (SO_LINGER, socket(7))
_FLUSH_POLL_S = 0.001
_RESET_AFTER_S = 0.02


async def deliver(request: web.Request, entry: Entry, steps: Iterable[Step], pacer: Pacer) -> web.StreamResponse:
    """Send one answer. Returns the response for aiohttp to finish, which writes nothing more on a closed connection.

    Raises:
        ConnectionError: the client has gone.
        asyncio.CancelledError: the client went while the simulator waited, or the simulator is shutting down.
    """
    wire = _Wire(request, entry, pacer.clock)
    for step in steps:
        match step:
            case Write():
                await wire.write(step)
            case Steady():
                await pacer.send(wire, step)
            case Whole():
                await wire.whole(step)
            case Wait():
                await pacer.clock.sleep(step.seconds)
            case Head():
                await wire.head(step)
            case End():
                await wire.end(step)
            case Hang():
                await asyncio.Event().wait()  # ends with this task: when the client goes, or on shutdown
            case Drop() | Reset():
                await wire.break_off(abruptly=isinstance(step, Reset))
            case _:
                assert_never(step)
    return wire.response


class _Wire:
    """The connection that an answer goes out on.

    The pieces of a body go straight to the transport, past aiohttp's writer: a stream costs half as much so, and a length that
    was announced does not clip it.
    """

    def __init__(self, request: web.Request, entry: Entry, clock: Clock) -> None:
        self.response: web.StreamResponse = web.Response()  # of a connection that breaks before any answer
        self._request = request
        self._protocol = request.protocol
        self._entry = entry
        self._clock = clock
        self._chunked = False

    async def whole(self, step: Whole) -> None:
        """A complete answer."""
        self.response = web.Response(status=step.status, body=step.body, headers=self._headers(step))
        await self.response.prepare(self._request)
        self._entry.begun(step.status, self._clock.now_ns())
        await self.response.write_eof()
        self._entry.sent(len(step.body), step.chunks, 0, self._clock.now_ns())
        self._entry.told(step.usage)
        self._entry.end = "cut" if step.cut else "completed"

    async def head(self, step: Head) -> None:
        """The status line and the headers; they leave at once."""
        self.response = web.StreamResponse(status=step.status, headers=self._headers(step))
        self.response.content_length = step.length
        await self.response.prepare(self._request)
        self._chunked = "transfer-encoding" in self.response.headers
        self._entry.begun(step.status, self._clock.now_ns())

    def _headers(self, step: Whole | Head) -> dict[str, str]:
        return {"content-type": step.content_type, "x-request-id": self._entry.request_id, **step.headers}

    async def write(self, step: Write) -> None:
        """Send a piece of the body, no faster than the client reads. Raises as `put` does."""
        self._send(step.data)
        self._entry.tokens += step.tokens  # what a client no longer reads was made all the same
        await self.drained()
        self._entry.sent(len(step.data), step.chunks, 0, self._clock.now_ns())
        self._entry.told(step.usage)

    def put(self, frame: Frame) -> bool:
        """Send a chunk. False where the client reads so slowly that `drained` is to be awaited.

        Raises:
            ConnectionResetError: the client has gone.
        """
        self._send(frame.data)
        self._entry.sent(len(frame.data), 1, frame.tokens, self._clock.now_ns())
        return not self._protocol.writing_paused

    def _send(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def drained(self) -> None:
        """Wait until the client has read most of what was put."""
        await self._request.writer.drain()

    async def end(self, step: End) -> None:
        """The end that HTTP promises."""
        await self.response.write_eof()
        self._entry.sent(0, 0, 0, self._clock.now_ns())
        self._entry.told(step.usage)
        self._entry.end = "cut" if step.cut else "completed"

    async def break_off(self, *, abruptly: bool) -> None:
        """Close the connection before its time, once all that was written is out.

        A reset makes both kernels throw away what has not been read, so it comes a moment after the last byte.
        """
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        while transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport has no event for "all is out"; ends with the task
            await asyncio.sleep(_FLUSH_POLL_S)
        if abruptly and self._entry.sent_bytes:
            await asyncio.sleep(_RESET_AFTER_S)
        self._entry.end = "cut"
        if abruptly:
            reset(transport)
        else:
            transport.close()


def reset(transport: asyncio.Transport) -> None:
    """Break a connection (TCP RST)."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()
