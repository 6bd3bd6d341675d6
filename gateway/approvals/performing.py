"""What the gateway needs to make a call by itself that people have approved: whose it was, where it belongs, and who takes its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from gateway.call import Origin, Principal
from gateway.clock import Clock
from gateway.core.action import without_delivery
from gateway.core.approval import Result, State, Ticket
from gateway.errors import InternalError
from gateway.store.approvals_protocol import Approvals, TicketFilter
from gateway.telemetry import Telemetry
from gateway.wire.strict_json import dumps, loads

Done = TypeVar("Done")
Perform = Callable[[Ticket], Awaitable[Result]]

_MOST_AT_ONCE: Final = 50  # calls that the gateway makes by itself
_FIRST_PAUSE_S: Final = 10.0  # before one that could not begin is tried again
_LONGEST_PAUSE_S: Final = 300.0
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


@dataclass(frozen=True, slots=True)
class _Rest:
    """Until when a call that could not begin is left alone, on the monotonic clock, and how long that pause is."""

    until_s: float
    pause_s: float


class Performing:
    """Makes approved calls, each in a task of its own. One per gateway; `refresh` tells whoever waits."""

    def __init__(
        self, store: Approvals, perform: Perform, refresh: Callable[[], Awaitable[None]], telemetry: Telemetry, clock: Clock,
    ) -> None:
        self._store = store
        self._perform = perform
        self._refresh = refresh
        self._telemetry = telemetry
        self._clock = clock
        self._after: str | None = None
        self._resting: dict[str, _Rest] = {}
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

    async def approved(self, tickets: Sequence[str]) -> None:
        """Make those of them that are for the gateway to make."""
        for ticket_id in tickets:
            ticket = await self._store.get(ticket_id)
            if ticket is not None and ticket.state is State.APPROVED and ticket.mode == "execute":
                self.of(ticket)

    async def catch_up(self) -> None:
        """Make the calls that people have approved for the gateway to make, and that nobody has made yet: a page of them now and then.

        One that cannot begin (its budget is spent, its target rests) is tried less and less often, and keeps nobody else waiting.
        """
        page = await self._store.list(TicketFilter(states=(State.APPROVED,), mode="execute", after=self._after, limit=_MOST_AT_ONCE))
        self._after = page[-1].id if len(page) == _MOST_AT_ONCE else None
        now_s = self._clock.monotonic()
        self._resting = {each: rest for each, rest in self._resting.items() if rest.until_s + rest.pause_s > now_s}
        for ticket in page:
            rest = self._resting.get(ticket.id)
            if rest is None or rest.until_s <= now_s:
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
        if latest is None or latest.state is not State.APPROVED:
            self._resting.pop(ticket.id, None)
            return None
        before = self._resting.get(ticket.id)
        pause_s = _FIRST_PAUSE_S if before is None else min(2 * before.pause_s, _LONGEST_PAUSE_S)
        self._resting[ticket.id] = _Rest(self._clock.monotonic() + pause_s, pause_s)
        return told

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
