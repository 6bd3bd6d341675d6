"""One HTTP/1.1 connection: a request out, its answer in, at most one exchange at a time.

It never decides who uses it next, only whether it may be used again: after a whole message, with nothing left over in either
direction and nothing in the message that forbids it. In doubt it is closed: a byte of one answer read as part of the next would
give one caller's answer to another (RFC 9112, section 11).
"""

import asyncio
import select
from typing import Final, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.errors import AttemptFailed
from gateway.upstream import failures
from gateway.upstream.message import BUFFER, MAX_HEAD, MAX_HEADERS, answer_fault, is_quiet, poll

_PIECE: Final = 64 * 1024  # bytes of a request's body handed to the socket at once


class Owner(Protocol):
    """Who keeps count of connections."""

    def opened(self, connection: "Connection") -> None:
        """Its socket is open, and TLS is agreed where there is any. Not called for one that never came to that."""
        ...

    def retired(self, connection: "Connection") -> None:
        """It cannot carry another exchange. Called once, opened or not."""
        ...

    def lost(self, connection: "Connection") -> None:
        """Its socket is closed. Called once where `opened` was."""
        ...


class Connection(asyncio.Protocol):
    """A connection of a pool, open from `connection_made` on. `where` names the peer in messages."""

    __slots__ = ("_active", "_buffered", "_chunks", "_codings", "_complete", "_deadline", "_deadline_name",
                 "_deadline_s", "_encodings", "_error", "_error_cause", "_fault", "_head_count", "_head_done",
                 "_head_only", "_head_size", "_interim", "_keep", "_loop", "_owner", "_parser", "_poll", "_quiet",
                 "_reading_paused", "_rest", "_retired", "_timer", "_timer_at", "_transport", "_until_close",
                 "_waiter", "_where", "_writing_paused", "headers", "idle_since", "status")

    def __init__(self, where: str, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._where = where
        self._loop = loop
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._poll: select.poll | None = None
        self._retired = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._writing_paused = False
        self.idle_since = 0.0
        self._begin(head_only=False)
        self._active = False

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "busy" if self._active else "idle"
        return f"<Connection to {self._where} {state}>"

    def _begin(self, *, head_only: bool) -> None:
        """Forget the exchange before."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self._active = True
        self._head_only = head_only
        self._encodings: list[str] = []
        self._codings: list[str] = []
        self._head_size = 0
        self._head_count = 0
        self._quiet = 0
        self._interim = False
        self._head_done = False
        self._until_close = False
        self._complete = False
        self._keep = False
        self._fault: str | None = None
        self._error: AttemptFailed | None = None
        self._error_cause: BaseException | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._reading_paused = False
        self._rest: memoryview | None = None

    # What the pool and an answer ask for.

    def is_quiet(self) -> bool:
        """Whether it is open, with nothing in its socket."""
        return self._poll is not None and is_quiet(self._poll)

    async def exchange(self, head: bytes, body: bytes, *, head_only: bool, headers_s: float) -> None:
        """Send a request and wait for the final answer's headers, `headers_s` seconds from now."""
        self._begin(head_only=head_only)
        if self._transport is None:
            self._error = failures.reset(self._where, None)
        if len(body) <= _PIECE:
            self._write(head + body)
        else:
            self._rest = memoryview(body)
            self._write(head)
            self._write_rest()
        while not self._head_done:
            await self._more(headers_s, "headers")

    async def chunk(self, timeout_s: float) -> bytes:
        """Whatever of the body has arrived and was not yet taken; `b""` at its end."""
        while not self._chunks:
            if self._complete:
                return b""
            await self._more(timeout_s, "idle")
        return self._take()

    async def read(self, limit: int, timeout_s: float) -> bytes:
        """The rest of the body."""
        parts: list[bytes] = []
        size = 0
        while True:
            size += self._buffered
            if size > limit or (not self._complete and int(self.headers.get("content-length", 0)) > limit):
                self.close()
                raise failures.too_large(self._where, limit)
            if self._chunks:
                parts.append(self._take())
            if self._complete:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            await self._more(timeout_s, "idle")

    def release(self) -> bool:
        """End the exchange. True where the connection may carry another one; else it is closed."""
        self._active = False
        if self._complete and self._keep and not self._chunks and self._rest is None and self._transport is not None \
                and not self._transport.get_write_buffer_size():
            return True
        self.close()
        return False

    def close(self) -> None:
        """Close the socket at once: what is not yet sent is dropped, and for TLS no goodbye is waited for."""
        transport, self._transport = self._transport, None
        self._poll = self._parser = self._rest = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._complete and self._error is None:
            self._error = failures.reset("the gateway", None)
        if transport is not None:
            transport.abort()
        if not self._retired:
            self._retired = True
            self._owner.retired(self)
        self._wake()

    # Waiting.

    async def _more(self, timeout_s: float, name: str) -> None:
        """Wait for news of the answer. A cancelled wait closes the connection: nobody is left to read the rest."""
        if self._error is not None:
            raise self._error from self._error_cause
        self._waiter = self._loop.create_future()
        self._arm(timeout_s, name)
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _arm(self, timeout_s: float, name: str) -> None:
        """Set the deadline of this wait. A timer that fires too early sets itself anew, so most waits of a stream make none."""
        self._deadline = self._loop.time() + timeout_s
        self._deadline_name = name
        self._deadline_s = timeout_s
        if self._timer is not None:
            if self._timer_at <= self._deadline:
                return
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline:
            self._timer_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
        else:
            self._fail(failures.late(self._where, self._deadline_name, self._deadline_s), None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: AttemptFailed, cause: BaseException | None) -> None:
        """The answer ends here, with this. Bytes that came before are still given out first."""
        self._complete = False
        self._error = failure
        self._error_cause = cause
        self.close()

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    # Writing.

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _write_rest(self) -> None:
        """Hand over the body while the socket takes it. It goes on beside a reader, as an answer may begin before the request ends."""
        while self._rest is not None and not self._writing_paused:
            piece, rest = self._rest[:_PIECE], self._rest[_PIECE:]
            self._rest = rest or None
            self._write(piece)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._write_rest()

    # What the socket says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = HttpResponseParser(self)
        self._poll = poll(transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        if not self._active or self._complete:  # bytes that nobody asked for: whose they are cannot be known
            self.close()
            return
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                self._fail(failures.malformed(self._where, error), error)
            else:
                self.close()  # the answer is whole and good; what follows it is not
            return
        if self._quiet > MAX_HEAD and not self._complete:
            self._fault = "headers, trailers or chunk extensions without an end"
        if self._fault is not None:
            self._fail(failures.malformed(self._where, self._fault), None)
        elif self._buffered > BUFFER and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._owner.lost(self)

    def _end(self, error: Exception | None) -> None:
        """The peer will send no more. That is an answer's proper end only where its head said so, or where it ended before."""
        if self._error is None and not self._complete and self._active:
            if self._head_done and self._until_close and error is None:
                self._complete = True
            else:
                failure = failures.cut(self._where) if self._head_done and error is None else failures.reset(self._where, error)
                self._fail(failure, error)
        self.close()

    # What the parser says. It is strict as it stands; what it lets pass and may not is caught here.

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep = False
            self.close()  # a second answer in the same packet
        else:
            self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._head_size += len(name) + len(value) + 4
        self._head_count += 1
        if self._head_size > MAX_HEAD or self._head_count > MAX_HEADERS:
            self._fault = f"more than {MAX_HEADERS} headers or {MAX_HEAD} bytes of them"
        elif not self._head_done:  # a trailer is dropped: nothing that decides may come after the body
            lower, text = name.lower().decode("latin-1"), value.decode("latin-1")
            if lower == "transfer-encoding":
                self._encodings.append(text)
            elif lower == "content-encoding":
                self._codings.append(text)
            self.headers.setdefault(lower, text)

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self._complete or self._fault is not None or parser is None:
            return
        status = parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim = True
            return
        self._fault = answer_fault(status, parser.get_http_version(), self._encodings, self._codings)
        if self._fault is not None:
            return
        self.status = status
        self._quiet = 0
        self._head_done = True
        if self._head_only:  # whatever follows is not read: the parser does not know that no body may come
            self._complete = True
        else:
            self._until_close = not self._encodings and "content-length" not in self.headers
        self._wake()

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._quiet = 0
            self._chunks.append(data)
            self._buffered += len(data)
            self._wake()

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self._complete and self._parser is not None and self._fault is None:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
            self._wake()
