"""A pooled HTTP/1.1 client with little between the caller and the socket: every call pays for it.

It writes requests and hands out answers. It never sends a request twice: that is for the caller to decide.
"""

import asyncio
import socket
import ssl
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gateway.upstream import message
from gateway.upstream.addresses import Resolve
from gateway.upstream.lean_connection import Connection
from gateway.upstream.lean_pool import Pool, PoolRules
from gateway.upstream.protocol import HttpRequest


class LeanAnswer:
    """See `HttpAnswer`."""

    __slots__ = ("_connection", "_pool", "headers", "status")

    def __init__(self, connection: Connection, pool: Pool) -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    def read(self, *, limit: int, idle_s: float) -> Coroutine[Any, Any, bytes]:
        return self._mine().read(limit, idle_s)

    def chunk(self, *, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        return self._mine().chunk(timeout_s)

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.release():
            self._pool.give(connection)

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _mine(self) -> Connection:
        if self._connection is None:  # it may be another caller's by now
            raise RuntimeError("an answer is not read after its release or abort")
        return self._connection


class LeanTransport:
    """See `Transport`. Made inside a running event loop and used in that loop alone.

    `connections_per_origin` bounds the open connections to one origin: a caller beyond it waits, within its connect deadline.
    A connection that was idle for `idle_s` seconds is closed. `tls` is for private certificate authorities, `resolve` for names that the
    system's resolver does not know.
    """

    def __init__(self, *, connections_per_origin: int = 512, idle_s: float = 30.0, tls: ssl.SSLContext | None = None,
                 resolve: Resolve | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        resolve = resolve or partial(self._loop.getaddrinfo, type=socket.SOCK_STREAM)
        self._rules = PoolRules(connections_per_origin, idle_s, tls or message.tls_context(), resolve)
        # One for each origin in the configuration, so they stay small. A connection is used by requests of its own kind alone.
        self._pools: dict[str, Pool] = {}
        self._guarded: dict[str, Pool] = {}

    async def send(self, request: HttpRequest, *, connect_s: float, headers_s: float) -> LeanAnswer:
        prefix, target = message.split_url(request.url)
        lines = message.header_lines(request)
        pool = (self._pools if request.private else self._guarded).get(prefix) or self._new_pool(prefix, request.private)
        host = "" if "host" in request.headers else f"host: {pool.origin.authority}\r\n"
        length = "" if request.method in message.WITHOUT_BODY and not request.body else f"content-length: {len(request.body)}\r\n"
        head = f"{request.method} {target} HTTP/1.1\r\n{host}{lines}accept-encoding: identity\r\n{length}\r\n"
        connection = pool.take() or await pool.wait(connect_s)
        if request.on_sending is not None:
            request.on_sending()
        await connection.exchange(head.encode(), request.body, head_only=request.method == "HEAD", headers_s=headers_s)
        return LeanAnswer(connection, pool)

    async def close(self) -> None:
        for pool in (*self._pools.values(), *self._guarded.values()):
            await pool.close()

    def _new_pool(self, prefix: str, private: bool) -> Pool:  # noqa: FBT001 - the request's own field
        pool = Pool(message.origin(prefix), self._rules if private else replace(self._rules, guarded=True), self._loop)
        (self._pools if private else self._guarded)[prefix] = pool
        return pool
