"""A pooled HTTP/1.1 client with little between the caller and the socket: every call pays for it.

It owns the connections to each origin: how many, who is next, when an idle one is closed. One connection's own state is
`lean_connection`'s. It never sends a request twice.
"""

import asyncio
import socket
import ssl
from collections import OrderedDict, deque
from collections.abc import Coroutine, Mapping
from typing import Any

from aiohappyeyeballs import start_connection

from gateway.errors import AttemptFailed
from gateway.upstream import failures, message
from gateway.upstream.lean_connection import Connection
from gateway.upstream.protocol import HttpRequest

_NEXT_ADDRESS_S = 0.25  # "Connection Attempt Delay" of RFC 8305


class LeanAnswer:
    """See `HttpAnswer`."""

    __slots__ = ("_connection", "_pool", "headers", "status")

    def __init__(self, connection: Connection, pool: "_Pool") -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    def read(self, *, limit: int, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        return self._open().read(limit, timeout_s)

    def chunk(self, *, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        return self._open().chunk(timeout_s)

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.release():
            self._pool.give(connection)

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> Connection:
        if self._connection is None:  # the connection may be another caller's by now
            raise RuntimeError("an answer is not read after its release or abort")
        return self._connection


class _Pool:
    """The connections to one origin. `size` counts slots: open connections, idle or busy, and those being opened.

    A slot or a connection that becomes free is handed to the longest waiting caller; it is not up for grabs in between.
    """

    __slots__ = ("_limit", "_loop", "head", "idle", "origin", "size", "waiters")

    def __init__(self, origin: message.Origin, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.head = f"host: {origin.authority}\r\naccept-encoding: identity\r\n"
        self._limit = limit
        self._loop = loop
        self.size = 0
        self.idle: deque[Connection] = deque()  # the last used on the right: taken first, so that the others may grow old
        self.waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<_Pool {self.origin} size={self.size} idle={len(self.idle)} waiting={len(self.waiters)}>"

    def take(self) -> Connection | None:
        """An idle connection that is still good."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def turn(self) -> Connection | None:
        """Wait for a connection, or for a slot to open one in: then None, and the slot is the caller's."""
        if self.size < self._limit:
            self.size += 1
            return None
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self.waiters[waiter] = None
        try:
            return await waiter
        except BaseException:
            self.waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():  # given in the moment of the cancellation: pass it on
                given = waiter.result()
                if given is None:
                    self.free()
                else:
                    self.give(given)
            raise

    def give(self, connection: Connection) -> None:
        """A connection after its exchange, good for another."""
        connection.idle_since = self._loop.time()
        if not self._hand(connection):
            self.idle.append(connection)

    def free(self) -> None:
        """A slot has become free."""
        if not self._hand(None):
            self.size -= 1

    def retire(self, connection: Connection) -> None:
        """A connection is closed, by whomever."""
        if connection in self.idle:
            self.idle.remove(connection)
        self.free()

    def _hand(self, given: Connection | None) -> bool:
        while self.waiters:
            waiter, _ = self.waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(given)
                return True
        return False


class LeanTransport:
    """See `Transport`. Made inside a running event loop and used in that loop alone.

    `connections_per_origin` bounds the open connections to one origin; a caller beyond it waits, within its connect deadline.
    An idle connection is closed after `idle_s` seconds, at most twice that. `tls` is for private certificate authorities.
    """

    def __init__(self, *, connections_per_origin: int = 512, idle_s: float = 30.0, tls: ssl.SSLContext | None = None) -> None:
        self._limit = connections_per_origin
        self._idle_s = idle_s
        self._tls = tls or message.tls_context()
        self._loop = asyncio.get_running_loop()
        self._pools: dict[str, _Pool] = {}
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None

    async def send(self, request: HttpRequest, *, connect_s: float, headers_s: float) -> LeanAnswer:
        prefix, target = message.split_url(request.url)
        lines = message.header_lines(request)
        pool = self._pools.get(prefix) or self._new_pool(prefix)
        host = pool.head if "host" not in request.headers else "accept-encoding: identity\r\n"
        length = f"content-length: {len(request.body)}\r\n" if request.body or request.method not in ("GET", "HEAD") else ""
        head = f"{request.method} {target} HTTP/1.1\r\n{host}{lines}{length}\r\n".encode()
        connection = pool.take() or await self._wait(pool, connect_s)
        await connection.exchange(head, request.body, head_only=request.method == "HEAD", headers_s=headers_s)
        return LeanAnswer(connection, pool)

    async def close(self) -> None:
        """Close every connection; whoever still waits for one gets `connect`. Returns when the sockets are closed."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            if self._sweeper is not None:
                self._sweeper.cancel()
            for connection in tuple(self._sockets):
                connection.close()
            if not self._sockets:
                self._closed.set_result(None)
        await asyncio.shield(self._closed)

    def _new_pool(self, prefix: str) -> _Pool:
        pool = self._pools[prefix] = _Pool(message.origin(prefix), self._limit, self._loop)
        return pool

    async def _wait(self, pool: _Pool, connect_s: float) -> Connection:
        """A connection that another caller is done with, or a new one."""
        where = str(pool.origin)
        try:
            async with asyncio.timeout(connect_s):
                while True:
                    given = await pool.turn()
                    if given is None:
                        return await self._connect(pool)
                    if given.is_quiet():
                        return given
                    given.close()
        except TimeoutError as error:
            raise failures.late(where, "connect", connect_s) from error

    async def _connect(self, pool: _Pool) -> Connection:
        """Open a connection in a slot that is already the caller's; the slot is given back where that fails."""
        origin = pool.origin
        connection = Connection(str(origin), self._loop, pool.retire, self._lost)
        connecting = True
        try:
            addresses = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
            opened = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1, loop=self._loop)
            connecting = False
            self._sockets.add(connection)
            await self._loop.create_connection(
                lambda: connection, sock=opened, ssl=self._tls if origin.tls else None,
                server_hostname=origin.host if origin.tls else None)
            if self._closed is not None:
                raise ConnectionAbortedError("the gateway is stopping")
        except (OSError, UnicodeError, RuntimeError) as error:  # an impossible name is a UnicodeError; uvloop has RuntimeError too
            self._give_up(connection)
            raise _mapped(error, origin, connecting=connecting) from error
        except BaseException:
            self._give_up(connection)
            raise
        return connection
