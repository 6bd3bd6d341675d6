"""A pooled HTTP/1.1 client on aiohttp's. It adds deadlines and strictness; what aiohttp raises is mapped here.

Known to be weaker than the lean client (aiohttp 3.14.5): its parser takes bare line feeds and folded headers, and an incomplete second
answer in the packet that ends the first one is dropped without a word, so that the connection is used again.
"""

import asyncio
import functools
import io
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.errors import AttemptFailed
from gateway.upstream import failures, message
from gateway.upstream.addresses import Resolve, is_public
from gateway.upstream.protocol import HttpRequest

_OURS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)  # every deadline is set here
_FOREIGN: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)
_LARGE: Final = 1024 * 1024  # bytes from which on a body is handed over in pieces


class _Sending:
    """A request on its way. Its one timeout bounds the connection first and then, from there on, the headers."""

    __slots__ = ("headers_s", "on_sending", "protocol", "timeout", "transport")

    def __init__(self, timeout: asyncio.Timeout, headers_s: float, on_sending: Callable[[], None] | None) -> None:
        self.timeout = timeout
        self.headers_s = headers_s
        self.on_sending = on_sending
        self.protocol: ResponseHandler | None = None
        self.transport: asyncio.Transport | None = None

    def connected(self, connection: Connection) -> None:
        self.protocol = connection.protocol
        self.transport = connection.transport
        self.timeout.reschedule(asyncio.get_running_loop().time() + self.headers_s)
        if self.on_sending is not None:
            self.on_sending()


_SENDING: Final[ContextVar[_Sending]] = ContextVar("sending")


class _Resolver(AbstractResolver):
    """Our kind of resolver as aiohttp asks it."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST)
                for kind, _, protocol, _, address in await self._resolve(host, port) if family in (socket.AF_UNSPEC, kind)]

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What holds for both pools of a transport; see `AiohttpTransport`."""

    connections_per_origin: int
    idle_s: float
    tls: ssl.SSLContext
    resolve: Resolve | None


class _Connector(aiohttp.TCPConnector):
    """A pool that tells a request when it has its connection, and a reader when its connection is gone. aiohttp does neither.

    `guarded`: it connects to public addresses only.
    """

    def __init__(self, rules: _Rules, *, guarded: bool) -> None:
        super().__init__(limit=0, limit_per_host=rules.connections_per_origin, keepalive_timeout=rules.idle_s, ssl=rules.tls,
                         resolver=_Resolver(rules.resolve) if rules.resolve else None)
        self._guarded = guarded
        self._readers: dict[ResponseHandler, aiohttp.StreamReader] = {}
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def _resolve_host(self, host: str, port: int,
                            traces: Sequence[aiohttp.tracing.Trace] | None = None) -> list[ResolveResult]:
        """The addresses that aiohttp connects to. It asks no resolver for an address that stands in the URL, so a resolver would not do."""
        found = await super()._resolve_host(host, port, traces)
        if self._guarded:
            found = [each for each in found if is_public(each["host"])]
            if not found:
                raise failures.not_public(host)
        return found

    def watch(self, protocol: ResponseHandler, content: aiohttp.StreamReader) -> None:
        """Let `content` fail when the connection does. aiohttp leaves its reader waiting after a bad chunk (seen in 3.14.5)."""
        closed = protocol.closed
        if closed is None or content.is_eof():
            return
        if protocol not in self._readers:
            closed.add_done_callback(functools.partial(self._gone, protocol))
        self._readers[protocol] = content

    def _gone(self, protocol: ResponseHandler, closed: asyncio.Future[None]) -> None:
        closed.exception()  # taken note of, else asyncio would log it
        content = self._readers.pop(protocol)
        if not content.is_eof() and content.exception() is None:
            content.set_exception(HttpProcessingError(message="it breaks off in what is no chunk"))

    async def connect(self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace],
                      timeout: aiohttp.ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's signature
        connection = await super().connect(req, traces, timeout)
        while self._is_stale(connection):
            connection.close()
            connection = await super().connect(req, traces, timeout)
        if connection.protocol is not None:
            self._used.add(connection.protocol)
        _SENDING.get().connected(connection)
        return connection

    def _is_stale(self, connection: Connection) -> bool:
        """Whether a used connection holds what nobody asked for, here or in its socket: it would pass for the next answer."""
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or protocol not in self._used:
            return False
        return protocol.should_close or not message.is_quiet(message.poll(transport))


class AiohttpAnswer:
    """See `HttpAnswer`."""

    __slots__ = ("_protocol", "_response", "_where", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, protocol: ResponseHandler, where: str) -> None:
        self._response = response
        self._protocol = protocol
        self._where = where
        self.status = response.status
        headers: dict[str, str] = {}
        for name, value in response.raw_headers:
            headers.setdefault(name.lower().decode("latin-1"), value.decode("latin-1"))
        self.headers: Mapping[str, str] = headers

    def fault(self) -> str | None:
        """Why this answer cannot be taken, or None."""
        version = self._response.version or aiohttp.HttpVersion10
        return message.answer_fault(self.status, f"{version.major}.{version.minor}", self._every(b"transfer-encoding"),
                                    self._every(b"content-encoding"))

    def _every(self, wanted: bytes) -> list[str]:
        return [value.decode("latin-1") for name, value in self._response.raw_headers if name.lower() == wanted]

    async def read(self, *, limit: int, idle_s: float) -> bytes:
        parts: list[bytes] = []
        size = 0 if self._response.content.at_eof() else self._response.content_length or 0
        if size <= limit:
            size = 0
            while data := await self.chunk(timeout_s=idle_s):
                size += len(data)
                if size > limit:
                    break
                parts.append(data)
            else:
                return b"".join(parts)
        self.abort()
        raise failures.too_large(self._where, limit)

    async def chunk(self, *, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._response.content.readany()
            if not data and isinstance(error := self._protocol.exception(), OSError) and self._until_close():
                raise error  # aiohttp takes a reset for the end of an answer that ends with its connection
        except TimeoutError as error:
            self.abort()
            raise failures.late(self._where, "idle", timeout_s) from error
        except _FOREIGN as error:
            failure = _mapped(error, self._where, self._protocol)  # first: aiohttp's close forgets how the connection ended
            self.abort()
            raise failure from error
        except BaseException:
            self.abort()
            raise
        return data

    def _until_close(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    def release(self) -> None:
        self.abort()  # aiohttp has taken the connection back by itself where the body was read to its end

    def abort(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # aiohttp's close would first send what is still to be sent
        self._response.close()


class AiohttpTransport:
    """See `Transport`. Made inside a running event loop and used in that loop alone.

    `connections_per_origin` bounds the open connections to one origin: a caller beyond it waits, within its connect deadline.
    A connection that was idle for `idle_s` seconds is closed. `tls` is for private certificate authorities, `resolve` for names that the
    system's resolver does not know.
    """

    def __init__(self, *, connections_per_origin: int = 512, idle_s: float = 30.0, tls: ssl.SSLContext | None = None,
                 resolve: Resolve | None = None) -> None:
        rules = _Rules(connections_per_origin, idle_s, tls or message.tls_context(), resolve)
        self._connectors = {private: _Connector(rules, guarded=not private) for private in (True, False)}
        self._sessions = {private: _session(connector) for private, connector in self._connectors.items()}

    async def send(self, request: HttpRequest, *, connect_s: float, headers_s: float) -> AiohttpAnswer:
        prefix, _ = message.split_url(request.url)
        where = str(message.origin(prefix))
        message.header_lines(request)
        if self._sessions[request.private].closed:
            raise failures.no_connection(where, ConnectionAbortedError("the gateway is stopping"))
        sending, response = await self._response(request, where, connect_s, headers_s)
        assert sending.protocol is not None  # noqa: S101 - for the type checker: what was answered had a connection
        assert sending.transport is not None  # noqa: S101 - the same
        answer = AiohttpAnswer(response, sending.protocol, where)
        fault = answer.fault()
        if fault is not None:
            sending.transport.abort()  # with a short body it lies in the pool already
            answer.abort()
            raise failures.malformed(where, fault)
        self._connectors[request.private].watch(sending.protocol, response.content)
        return answer

    async def _response(self, request: HttpRequest, where: str, connect_s: float,
                        headers_s: float) -> tuple[_Sending, aiohttp.ClientResponse]:
        body = request.body if len(request.body) < _LARGE else io.BytesIO(request.body)
        timeout = asyncio.timeout(connect_s)
        sending = _Sending(timeout, headers_s, request.on_sending)
        _SENDING.set(sending)
        try:
            async with timeout:
                response = await self._sessions[request.private].request(
                    request.method, URL(request.url, encoded=True), data=body or None, allow_redirects=False,
                    headers={**request.headers, "accept-encoding": "identity"})
        except BaseException as error:
            if sending.transport is not None:
                sending.transport.abort()  # at once, where aiohttp would first send the rest
            if isinstance(error, TimeoutError):
                name, seconds = ("connect", connect_s) if sending.protocol is None else ("headers", headers_s)
                raise failures.late(where, name, seconds) from error
            if isinstance(error, _FOREIGN):
                raise _mapped(error, where, None) from error
            raise
        return sending, response

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


def _session(connector: _Connector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector, timeout=_OURS, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
        read_bufsize=message.BUFFER // 2, max_field_size=message.MAX_HEAD, max_headers=message.MAX_HEADERS,
        skip_auto_headers=("accept", "content-type", "user-agent"))


def _mapped(error: Exception, where: str, reading: ResponseHandler | None) -> AttemptFailed:
    """Everything that aiohttp raises, in our words. `reading` is the connection where the answer's headers have arrived."""
    match error:
        case aiohttp.ClientSSLError():
            return failures.no_tls(where, error)
        case aiohttp.ClientConnectorError() | aiohttp.InvalidURL() | UnicodeError():
            return failures.no_connection(where, error)
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return failures.malformed(where, " ".join(error.message.split()))
        case _ if reading is not None and not isinstance(reading.exception(), OSError):
            return failures.cut(where)
        case _:
            return failures.reset(where, error)
