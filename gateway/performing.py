"""What the gateway needs to make a call by itself that people have approved: whose it was, where it belongs, and who takes its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from gateway.call import Origin, Principal
from gateway.core.action import without_delivery
from gateway.core.approval import Result, State, Ticket
from gateway.errors import InternalError
from gateway.store.approvals_protocol import Approvals, TicketFilter
from gateway.telemetry import Telemetry
from gateway.wire.strict_json import dumps, loads

Done = TypeVar("Done")
Perform = Callable[[Ticket], Awaitable[Result]]

_MOST_AT_ONCE: Final = 50  # calls that the gateway makes by itself
_SAID: Final = ("X-Should-Retry", "Retry-After", "X-Lockgate-Rule")  # what goes on to whoever waits, where it could not be begun


@dataclass(slots=True)
class Collected:
    """A client that keeps the answer. It is asked for plain answers only."""

    status: int = 500
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str | None = None) -> None:
        self.status, self.body, self.content_type = status, body, content_type or ""
        self.headers = {name: headers[name] for name in _SAID if name in headers}

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        raise InternalError(f"A stored call is answered as a stream ({status}, {content_type}, {len(headers)} headers).")

    async def write(self, data: bytes) -> None:
        raise InternalError(f"A stored call is answered as a stream ({len(data)} bytes).")

    async def end(self, data: bytes) -> None:
        await self.write(data)


def body_in(ticket: Ticket) -> bytes:
    """What its caller sent, or what a model proposed and its application then calls; answered as a whole."""
    if ticket.kind == "tool_call":
        return dumps(ticket.shown["arguments"])
    return dumps(without_delivery(loads(ticket.body))) if ticket.kind == "request" else ticket.body


def principal_in(ticket: Ticket) -> Principal:
    """Whose call it was, as it was then."""
    told = ticket.origin["principal"]
    return Principal(**{**told, "roles": tuple(told["roles"]), "routes": tuple(told["routes"])})


def origin_in(ticket: Ticket) -> Origin:
    """Where the call belongs."""
    return Origin(**ticket.origin["origin"])


class Performing:
    """Makes approved calls, each in a task of its own. One per gateway; `refresh` tells whoever waits."""

    def __init__(self, store: Approvals, perform: Perform, refresh: Callable[[], Awaitable[None]], telemetry: Telemetry) -> None:
        self._store = store
        self._perform = perform
        self._refresh = refresh
        self._telemetry = telemetry
        self._running: dict[str, asyncio.Task[Result | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Performing({len(self._running)})"

    def of(self, ticket: Ticket) -> asyncio.Task[Result | None]:
        """Make a stored call that is approved, once at a time, in a task of its own: nobody's leaving ends it.

        Gives what its caller is to be told where it could not be begun; else it stands with the ticket.
        """
        running = self._running.get(ticket.id)
        if running is None:
            running = self._running[ticket.id] = self.own(self._performed(ticket))
        return running

    async def catch_up(self) -> None:
        """Make the calls that people have approved for the gateway to make, where nobody has yet. Now and then, and when one is."""
        for ticket in await self._store.list(TicketFilter(states=(State.APPROVED,), mode="execute", limit=_MOST_AT_ONCE)):
            if len(self._running) < _MOST_AT_ONCE:
                self.of(ticket)

    async def close(self, timeout_s: float) -> None:
        """End what is under way beside the calls."""
        if self._tasks:
            _done, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()

    async def _performed(self, ticket: Ticket) -> Result | None:
        try:
            told = await self._perform(ticket)
            latest = await self._store.get(ticket.id)
        finally:
            self._running.pop(ticket.id, None)
        await self._refresh()
        return told if latest is not None and latest.state is State.APPROVED else None

    def own(self, work: Coroutine[Any, Any, Done]) -> asyncio.Task[Done]:
        """A task beside the calls, whose failure is told."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.event("error", "approval_task_failed", error=f"{type(error).__name__}: {error}")
