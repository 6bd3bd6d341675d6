"""`/-/events`: tells pages that something has changed, so that they ask again. Says how often, never what: that is each endpoint's to show.

Listeners are few and bounded, also those of one person; each is dropped where it does not read, and none of them is a reason for a process
to stay.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gateway.errors import CallError, ClientGone, Overloaded
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import query_of
from gateway.store.protocol import CallFilter
from gateway.wire.strict_json import dumps

AT: Final = "/-/events"
MOST_LISTENERS: Final = 64  # of one process
MOST_EACH: Final = 8  # of them one person's
LOOK_S: Final = 1.0
ALIVE_S: Final = 10.0  # between two comments: proxies cut what is idle
LONGEST_S: Final = 900.0  # then the page comes back: who may listen is asked anew
_STUCK_S: Final = 5.0  # for a reader that does not read
_FRESH_S: Final = 0.5  # how long one look is good for all listeners
_LATER: Final = b"retry: 30000\n\n"  # ms after which whoever has made room comes back: pages of one person must not chase each other


@dataclass(slots=True, eq=False)
class _Listener:
    """Somebody who listens; `over`: another page of theirs has taken the place."""

    person: str
    over: bool = False


class Events:
    """The endpoint. One look at the store serves every listener."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._listening: list[_Listener] = []  # as they came
        self._seen: tuple[float, Mapping[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"Events({len(self._listening)} listen)"

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", AT): self.listen}

    async def listen(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/events`: server-sent events, one whenever something has changed."""
        actor = await self._control.authorise(request, "view", used=False)
        query_of(request)
        async with self._place(actor.id) as listener:
            seen = await self._look()
            await client.open(200, {}, "text/event-stream; charset=utf-8")
            await self._write(client, _event(seen))
            await self._follow(request, client, listener, seen)
            await client.end(_LATER if listener.over else b"")

    async def _follow(self, request: web.BaseRequest, client: HttpClient, listener: _Listener, seen: Mapping[str, Any]) -> None:
        """Tell of changes until the login ends, the time is up, another page takes the place, or the process stops."""
        clock = self._control.clock
        until_s, alive_s = clock.monotonic() + LONGEST_S, clock.monotonic() + ALIVE_S
        while clock.monotonic() < until_s and not self._control.draining:
            await clock.sleep(LOOK_S)
            if listener.over:
                return
            try:
                now = await self._look()
                if clock.monotonic() >= alive_s:
                    await self._control.authorise(request, "view", used=False)
            except CallError:  # the login is over, or the store cannot be read: whoever comes back is told
                return
            if now != seen:
                seen = now
                await self._write(client, _event(seen))
            if clock.monotonic() >= alive_s:
                alive_s = clock.monotonic() + ALIVE_S
                await self._write(client, b": alive\n\n")

    async def _look(self) -> Mapping[str, Any]:
        """How far everything has come."""
        now_s = self._control.clock.monotonic()
        if self._seen is None or now_s - self._seen[0] > _FRESH_S:
            store = self._control.store
            latest = await store.journal.calls(CallFilter(1))
            self._seen = now_s, {
                "approvals": await store.approvals.generation(), "calls": latest[0]["id"] if latest else None,
                "sessions": await store.session_desk.generation(), "breakers": await store.breakers.generation()}
        return self._seen[1]

    async def _write(self, client: HttpClient, data: bytes) -> None:
        try:
            async with asyncio.timeout(_STUCK_S):
                await client.write(data)
        except TimeoutError as error:
            raise ClientGone("It does not read what it listens to.") from error

    @asynccontextmanager
    async def _place(self, person: str) -> AsyncIterator[_Listener]:
        """One of the places there are; where there is none, that of this person's oldest page. Raises `Overloaded`."""
        own = [each for each in self._listening if each.person == person]
        if own and (len(own) >= MOST_EACH or len(self._listening) >= MOST_LISTENERS):
            own[0].over = True
            self._listening.remove(own[0])
        if len(self._listening) >= MOST_LISTENERS:
            raise Overloaded(f"{MOST_LISTENERS} pages listen already. Ask again now and then instead.", retry_after_s=30)
        listener = _Listener(person)
        self._listening.append(listener)
        try:
            yield listener
        finally:
            if not listener.over:
                self._listening.remove(listener)


def _event(seen: Mapping[str, Any]) -> bytes:
    return b"event: changed\ndata: " + dumps(seen) + b"\n\n"
