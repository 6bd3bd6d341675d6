"""The port that a simulator listens on: it opens, refuses connections as a dead host does, and opens again at the same number."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.clock import Clock
from gateway.simulator.delivery import reset
from gateway.simulator.log import RequestLog

_BACKLOG: Final = 1024
Refusal = Callable[[], tuple[bool, float | None]]  # whether to refuse now, and in how many seconds to ask again (None: never)


class Port:
    """The listening sockets, and who may connect. `refusals` counts how often the connections were broken off.

    While it refuses, sockets that are bound and do not listen keep the number: the kernel refuses in their name, and nobody else
    is given the port.
    """

    def __init__(self, host: str, number: int, log: RequestLog, clock: Clock) -> None:
        self.host = host
        self.number = number
        self.refusing = False
        self.refusals = 0
        self.spared: set[RequestHandler] = set()  # connections of the simulator's own endpoints
        self._log = log
        self._clock = clock
        self._accepts: web.Server | None = None
        self._servers: list[asyncio.Server] = []
        self._addresses: list[tuple[int, Any]] = []
        self._held: list[socket.socket] = []
        self._opening: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return 0 if self._accepts is None else len(self._accepts.connections)

    async def open(self, accepts: web.Server) -> None:
        """Listen for the first time. Raises OSError where that cannot be."""
        self._accepts = accepts
        server = await asyncio.get_running_loop().create_server(self._accepted, self.host, self.number, backlog=_BACKLOG)
        self._servers = [server]
        self._addresses = [(one.family, one.getsockname()) for one in server.sockets]
        self.number = self._addresses[0][1][1]

    def _accepted(self) -> asyncio.Protocol:
        assert self._accepts is not None  # noqa: S101 - nothing listens before `open`; tells mypy so
        self._log.connections += 1
        return self._accepts()

    def refuse(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        if self._accepts is None or self.refusing:
            return
        self.refusing = True
        self.refusals += 1
        if self._opening is None:
            self._shut()
        for connection in self._accepts.connections:
            transport = connection.transport
            if connection not in self.spared and transport is not None and not transport.is_closing():
                reset(transport)

    def _shut(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        self._held = [_bound(family, address) for family, address in self._addresses]

    def accept(self) -> None:
        """Accept connections again: they succeed from now on, and are served as soon as the loop comes to it."""
        if not self.refusing:
            return
        self.refusing = False
        for held in self._held:
            held.listen(_BACKLOG)
        if self._opening is None:
            self._opening = asyncio.create_task(self._reopen())

    async def _reopen(self) -> None:
        loop = asyncio.get_running_loop()
        held, self._held = self._held, []
        self._servers = [await loop.create_server(self._accepted, sock=one, backlog=_BACKLOG) for one in held]
        self._opening = None
        if self.refusing:  # it was told so meanwhile
            self._shut()

    async def accepting(self) -> None:
        """Wait until connections are served again."""
        if self._opening is not None:
            await self._opening

    def follow(self, refusal: Refusal) -> None:
        """Refuse and accept as that says, until told otherwise."""
        self.stay()
        if self._accepts is not None:
            left_s = self._obey(refusal)
            if left_s is not None:
                self._following = asyncio.create_task(self._follow(refusal, left_s))

    async def _follow(self, refusal: Refusal, left_s: float | None) -> None:
        while left_s is not None:
            await self._clock.sleep(left_s)
            left_s = self._obey(refusal)

    def _obey(self, refusal: Refusal) -> float | None:
        refuses, left_s = refusal()
        if refuses:
            self.refuse()
        else:
            self.accept()
        return left_s

    def stay(self) -> None:
        """Follow nothing any more: refuse or accept as it does now."""
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def close(self) -> None:
        """Listen no more."""
        self.stay()
        await self.accepting()
        for server in self._servers:
            server.close()
        for held in self._held:
            held.close()


def _bound(family: int, address: Any) -> socket.socket:
    """A socket that has that address and does not listen."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may still be in TIME_WAIT
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio opens them: the other family has its own
    made.bind(address)
    return made
