"""One client connection: what aiohttp leaves open is bounded here, with a timer for each slow thing and none for a request that is quick.

It must never stop listening to a client whose call is running: whoever goes away has to be seen, so that the provider is told.
"""

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from aiohttp.http import RawRequestMessage

from gateway.errors import CallError, HeadersTooLarge, InternalError, InvalidRequest, Overloaded

SERVER: Final = "lockgate"  # aiohttp would name itself and its version otherwise
_LOOK_S: Final = 0.5  # between two looks at a connection that has something to do while the doors close


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take of one listener. `most_open` is a number of connections, the rest are seconds."""

    most_open: int
    head_s: float = 30.0  # for a request's line and headers, from their first byte
    idle_s: float = 75.0  # between two requests; also bounds a head that was begun before the answer to the last one ended
    stuck_s: float = 60.0  # for a client that takes nothing of what waits for it


@dataclass(slots=True)
class Doors:
    """What the connections of one listener share. `refusal` makes the answer to what never becomes a request.

    `grace_s`: the doors close, and this is how long a connection may say nothing before it is closed; None while they are open.
    """

    limits: Limits
    refusal: Callable[[CallError], web.Response]
    open: int = 0
    grace_s: float | None = None
    deserted: asyncio.Event = field(default_factory=asyncio.Event)  # the doors close, and no connection is open


class _Queue(list[Any]):
    """As much of a deque as aiohttp uses for requests that wait: a deque takes 760 bytes, also while it is empty."""

    __slots__ = ()

    def popleft(self) -> Any:
        return self.pop(0)


class Connection(web.RequestHandler):
    """aiohttp's connection with our limits and our words for what is not HTTP at all.

    Thousands of them may wait for people, so it keeps nothing that nobody asks for. `peername` is the client's address alone.
    """

    __slots__ = ("_doors", "_head", "_look", "_stuck", "_taken", "peername")

    sockname = None  # each request would ask for these
    ssl_context = None

    def __init__(self, doors: Doors, manager: web.Server, **settings: Any) -> None:
        self._doors = doors
        self._head: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._taken = 0
        super().__init__(manager, keepalive_timeout=doors.limits.idle_s, auto_decompress=False, **settings)
        self.peername: str | None = None
        self._messages = _Queue()  # type: ignore[assignment] # aiohttp declares the deque that it makes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._doors.open += 1
        if self._doors.open > self._doors.limits.most_open and isinstance(transport, asyncio.WriteTransport):
            self._force_close = True
            full = Overloaded("Too many connections are open. Try again in a moment.", retry_after_s=1)
            transport.write(_plain(self._doors.refusal(full)))
            transport.close()
            return
        peer = transport.get_extra_info("peername")
        self.peername = peer[0] if isinstance(peer, tuple) else peer
        super().connection_made(transport)
        self.keep_alive(True)  # its timer begins with the end of the first answer; until the first request there is one for its head
        self._await_head()
        self.retire()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._doors.open -= 1
        if self._doors.open == 0 and self._doors.grace_s is not None:
            self._doors.deserted.set()
        for timer in (self._head, self._stuck, self._look):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def retire(self) -> None:
        """Where the doors close: be closed once nothing was asked here for `Doors.grace_s`.

        Not at once: a client that was not told may be writing its next request in this very moment.
        """
        if self._doors.grace_s is not None:
            self._look = self._loop.call_later(self._doors.grace_s, self._close_if_idle, self._doors.grace_s)

    def _close_if_idle(self, grace_s: float) -> None:
        if self.transport is None:
            return
        idle_s = self._loop.time() - (self._next_keepalive_close_time - self._doors.limits.idle_s)  # since the last answer's end
        waits = self._waiter is not None and not self._waiter.done() and self._count_unread() == 0
        begun = self._head is not None and self._request_count > 0
        if waits and not begun and idle_s >= grace_s:
            self.force_close()
        else:
            again_s = grace_s - idle_s if idle_s < grace_s else max(grace_s, _LOOK_S)
            self._look = self._loop.call_later(again_s, self._close_if_idle, grace_s)

    def data_received(self, data: bytes) -> None:
        known = self._request_count
        super().data_received(data)
        if self._request_count != known:
            if self._head is not None:
                self._head.cancel()
                self._head = None
            if not isinstance(self._messages[-1][0], RawRequestMessage):
                self._break_body()
        elif self._head is None and self._waiter is not None and not self._waiter.done():
            self._await_head()  # the connection was idle and still has no whole head
        if self._current_request is not None:
            self.hang_up_if_deaf()

    def hang_up_if_deaf(self) -> None:
        """Cut a client that sent so much behind the request at hand that reading is paused: its going away would not be seen.

        A pause for the body of the request at hand is none of this: nothing is queued then.
        """
        if (self._messages or self._upgraded) and self.transport is not None and not self.transport.is_reading():
            self.transport.abort()

    def _break_body(self) -> None:
        """Fail the body that the parser broke off in; aiohttp leaves its reader waiting. Nothing after it can be told apart."""
        request = self._current_request
        body = self._messages[-2][1] if len(self._messages) > 1 else None if request is None else request.content
        if body is not None and not body.is_eof():
            body.set_exception(web.RequestPayloadError("the transfer encoding is broken"))
            body.feed_eof()
            self._messages.pop()
            self.close()

    def _await_head(self) -> None:
        self._head = self._loop.call_later(self._doors.limits.head_s, self.force_close)

    def pause_writing(self) -> None:
        """The client is slower than its answer. Costs nothing while clients are fast, unlike a deadline around every write."""
        super().pause_writing()
        self._taken = self._count_taken()
        self._stuck = self._loop.call_later(self._doors.limits.stuck_s, self._abort_if_stuck)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _abort_if_stuck(self) -> None:
        before, self._taken = self._taken, self._count_taken()
        if self._taken > before:
            self._stuck = self._loop.call_later(self._doors.limits.stuck_s, self._abort_if_stuck)
        elif self.transport is not None:
            self.transport.abort()

    def _count_taken(self) -> int:
        """How many bytes of the present answer have arrived at the client's machine."""
        if self.transport is None or self._current_request is None:
            return 0
        sock = self.transport.get_extra_info("socket")
        in_kernel = b""
        with contextlib.suppress(OSError):  # only Linux counts these for a socket; they are megabytes, minutes for a slow client
            in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        waiting = self.transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)
        return self._current_request.writer.output_size - waiting

    def _count_unread(self) -> int:
        """How many bytes of the client have arrived at this machine that nobody has read."""
        if self.transport is None:
            return 0
        waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(waiting, sys.byteorder)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed as HTTP; the connection is closed after it. Never echoes what was sent."""
        _ = (request, message)
        error: CallError
        if type(exc).__name__ == "LineTooLong":
            error = HeadersTooLarge("The request line or a header is too long (8 KiB at most).")
        elif status == 400:
            error = InvalidRequest("This is not a well-formed HTTP/1.1 request.")
        else:
            error = InternalError("The gateway failed inside.")
        return self._doors.refusal(error)


def _plain(response: web.Response) -> bytes:
    """An answer as bytes, for a connection that no request is read from."""
    body = response.body if isinstance(response.body, bytes) else b""
    headers = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
