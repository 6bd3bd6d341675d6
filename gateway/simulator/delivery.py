"""Performs the steps of an answer on one connection and notes in the log what went out. Only this touches sockets."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import assert_never

from aiohttp import web

from gateway.clock import Clock
from gateway.simulator.log import Entry
from gateway.simulator.script import Drop, End, Hang, Head, Reset, Step, Wait, Whole, Write

_LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN (SO_LINGER, socket(7))
_FLUSH_POLL_S = 0.001
_RESET_AFTER_S = 0.02


async def deliver(request: web.Request, entry: Entry, steps: Iterable[Step], clock: Clock) -> web.StreamResponse:
    """Send one answer. Returns the response for aiohttp to finish, which writes nothing more on a closed connection.

    Raises:
        ConnectionError: the client has gone.
        asyncio.CancelledError: the client went while the simulator waited, or the simulator is shutting down.
    """
    response: web.StreamResponse | None = None
    for step in steps:
        match step:
            case Write() if response is not None:
                entry.made(step.tokens)  # before it is sent: what a client no longer reads was made all the same
                await response.write(step.data)
                entry.sent(len(step.data), step.chunks, step.usage)
            case Whole():
                response = await _whole(request, entry, step)
            case Wait():
                await clock.sleep(step.seconds)
            case Head():
                response = await _head(request, entry, step)
            case End() if response is not None:
                await response.write_eof()
                entry.sent(0, 0, step.usage)
                entry.end = "cut" if step.cut else "completed"
            case Hang():
                await asyncio.Event().wait()  # ends with this task: when the client goes, or on shutdown
            case Drop() | Reset():
                await _break(request, entry, abruptly=isinstance(step, Reset))
            case Write() | End():
                raise AssertionError("a script writes nothing before its head")
            case _:
                assert_never(step)
    return web.Response() if response is None else response


async def _whole(request: web.Request, entry: Entry, step: Whole) -> web.StreamResponse:
    headers = {"content-type": step.content_type, "x-request-id": entry.request_id, **step.headers}
    response = web.Response(status=step.status, body=step.body, headers=headers)
    entry.status = step.status
    await response.prepare(request)
    await response.write_eof()
    entry.sent(len(step.body), step.chunks, step.usage)
    entry.end = "cut" if step.cut else "completed"
    return response


async def _head(request: web.Request, entry: Entry, step: Head) -> web.StreamResponse:
    headers = {"content-type": step.content_type, "x-request-id": entry.request_id, **step.headers}
    response = web.StreamResponse(status=step.status, headers=headers)
    if step.length is not None:
        response.content_length = step.length
    entry.status = step.status
    await response.prepare(request)
    return response


async def _break(request: web.Request, entry: Entry, *, abruptly: bool) -> None:
    """Close the connection before its time, once all that was written is out.

    A reset makes both kernels throw away what has not been read, so it comes a moment after the last byte.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    while transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport has no event for "all is out"; ends with the task
        await asyncio.sleep(_FLUSH_POLL_S)
    if abruptly and entry.sent_bytes:
        await asyncio.sleep(_RESET_AFTER_S)
    entry.end = "cut"
    if abruptly:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        transport.abort()
    else:
        transport.close()
