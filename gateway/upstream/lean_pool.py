"""The connections to one origin: how many, who gets the next one, when an idle one is closed. It knows nothing of messages."""

import asyncio
import contextlib
import ssl
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from aiohappyeyeballs import start_connection

from gateway.errors import AttemptFailed
from gateway.upstream import failures
from gateway.upstream.addresses import Resolve, public
from gateway.upstream.lean_connection import Connection
from gateway.upstream.message import Origin

_CLOSE_S: Final = 5.0
_NEXT_ADDRESS_S: Final = 0.25  # the "Connection Attempt Delay" of RFC 8305


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What holds for the pools of a transport. `limit` is the number of connections to one origin; `resolve` finds a name's addresses.

    `guarded`: connections are opened to public addresses only.
    """

    limit: int
    idle_s: float
    tls: ssl.SSLContext
    resolve: Resolve
    guarded: bool = False


class Pool:
    """`_size` counts slots: connections that are open, idle or busy, and those that are being opened.

    A slot or a connection that becomes free is handed to the caller who has waited longest; nobody can take it in between.
    """

    __slots__ = ("_closed", "_emptied", "_idle", "_loop", "_rules", "_size", "_sockets", "_sweeper", "_waiters", "origin")

    def __init__(self, origin: Origin, rules: PoolRules, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self._rules = rules
        self._loop = loop
        self._size = 0
        self._sockets: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # the last used on the right, and taken first: so the others grow old and go
        self._waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Pool {self.origin} size={self._size} idle={len(self._idle)} waiting={len(self._waiters)}>"

    def take(self) -> Connection | None:
        """An idle connection that is still good, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def wait(self, connect_s: float) -> Connection:
        """A connection that another caller is done with, or a new one.

        Raises:
            AttemptFailed: `connect`, `tls`, `timeout:connect`.
        """
        try:
            async with asyncio.timeout(connect_s):
                while True:
                    given = await self._turn()
                    if given is None:
                        return await self._connect()
                    if given.is_quiet():
                        return given
                    given.close()
        except TimeoutError as error:
            raise failures.late(str(self.origin), "connect", connect_s) from error

    def give(self, connection: Connection) -> None:
        """Take back a connection that is good for another exchange."""
        connection.idle_since = self._loop.time()
        if self._hand(connection):
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._rules.idle_s, self._sweep)

    async def close(self) -> None:
        """Close every connection; whoever still waits for one gets `connect`. Waits for the sockets, for a while at the most."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._sockets):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while self._sockets:
                    self._emptied.clear()
                    await self._emptied.wait()

    # What a connection tells.

    def opened(self, connection: Connection) -> None:
        self._sockets.add(connection)

    def retired(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._hand(None):
            self._size -= 1

    def lost(self, connection: Connection) -> None:
        self._sockets.discard(connection)
        if not self._sockets:
            self._emptied.set()

    async def _turn(self) -> Connection | None:
        """Wait for a connection, or for a slot to open one in: then None, and the slot is the caller's."""
        if self._size < self._rules.limit:
            self._size += 1
            return None
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            return await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():  # given in the very moment of the cancellation: pass it on
                given = waiter.result()
                if given is not None:
                    self.give(given)
                elif not self._hand(None):
                    self._size -= 1
            raise

    def _hand(self, given: Connection | None) -> bool:
        """Give a connection or a slot to the first who waits. False where nobody does."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(given)
                return True
        return False

    async def _connect(self) -> Connection:
        """Open a connection in a slot that is already the caller's; where that fails, `close` gives the slot back."""
        origin = self.origin
        connection = Connection(str(origin), self._loop, self)
        connecting = True
        try:
            if self._closed:
                raise ConnectionAbortedError("the gateway is stopping")
            addresses = await self._rules.resolve(origin.host, origin.port)
            if self._rules.guarded:
                addresses = public(addresses)  # what is connected to is what was looked at: the name is not resolved again
                if not addresses:
                    raise failures.not_public(str(origin))
            opened = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1, loop=self._loop)
            connecting = False
            await self._loop.create_connection(lambda: connection, sock=opened, ssl=self._rules.tls if origin.tls else None,
                                               server_hostname=origin.host if origin.tls else None)
            if self._closed:
                raise ConnectionAbortedError("the gateway is stopping")
        except (OSError, UnicodeError, RuntimeError) as error:
            connection.close()
            raise _mapped(error, origin, connecting=connecting) from error
        except BaseException:
            connection.close()
            self.lost(connection)  # uvloop may have opened it by now, and says nothing of its end where it was cancelled here
            raise
        return connection

    def _sweep(self) -> None:
        """Close what was idle for too long; come again when the next may be."""
        self._sweeper = None
        oldest = self._loop.time() - self._rules.idle_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle[0].close()
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0].idle_since + self._rules.idle_s, self._sweep)


def _mapped(error: Exception, origin: Origin, *, connecting: bool) -> AttemptFailed:
    """Everything that opening a connection can raise: an impossible name is a UnicodeError, and uvloop has RuntimeErrors of its own."""
    where = str(origin)
    return failures.no_tls(where, error) if origin.tls and not connecting else failures.no_connection(where, error)
