"""Calls that wait for a decision: who waits for which approval, and until when. One task of the gateway looks after all of them."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal, TypeAlias

from gateway.clock import Clock

Woken: TypeAlias = Literal["changed", "late", "stopping"]

_SPARE: Final = 10_000  # entries of the past that are not worth looking for


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who waits. `told` becomes why they need not wait any longer; `streams`: they are told of a stop as late as possible."""

    ticket: str
    told: asyncio.Future[Woken]
    streams: bool


@dataclass(slots=True)
class Presence:
    """How the caller of one call waits, and what it has waited for.

    `arrived_s` is monotonic; `waits_s` how long it waits for an answer, and `whole_s` for the end of it, as far as it says; `later`: it
    would rather come back (`Prefer: respond-async`). `begin` begins a streamed answer, None for a plain one. `performing` is the approval
    that the gateway itself makes the call for, empty for a caller's own. `limit` is the deadline that the time of a wait is no part of.
    """

    arrived_s: float = 0.0
    waits_s: float | None = None
    whole_s: float | None = None
    later: bool = False
    begin: Callable[[], Awaitable[None]] | None = None
    performing: str = ""
    limit: asyncio.Timeout | None = None
    waited: tuple[str, ...] = ()

    def pause(self) -> float | None:
        """Stop the deadline, and say how much of it is left; None where none runs."""
        when = self.limit.when() if self.limit is not None else None
        if self.limit is None or when is None:
            return None
        self.limit.reschedule(None)
        return when - asyncio.get_running_loop().time()

    def go_on(self, left_s: float | None) -> None:
        """Let the deadline run again, with so much of it left."""
        if self.limit is not None and left_s is not None:
            self.limit.reschedule(asyncio.get_running_loop().time() + left_s)


@dataclass(slots=True)
class Waiting:
    """The waiters of one process. A wait costs a future and two entries, whatever is waited for."""

    clock: Clock
    stopping: bool = False
    _by_ticket: dict[str, list[Waiter]] = field(default_factory=dict)
    _due: list[tuple[float, int, Waiter]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _waiting: int = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, ticket: str, *, until_s: float, streams: bool) -> Waiter:
        """Somebody begins to wait, until that monotonic time at the most. `drop` them, whatever happens."""
        waiter = Waiter(ticket, asyncio.get_running_loop().create_future(), streams)
        self._by_ticket.setdefault(ticket, []).append(waiter)
        self._waiting += 1
        heapq.heappush(self._due, (until_s, next(self._numbers), waiter))
        if self.stopping and not streams:
            waiter.told.set_result("stopping")
        return waiter

    def drop(self, waiter: Waiter) -> bool:
        """They wait no longer; whether nobody else waits for the same."""
        waiters = self._by_ticket.get(waiter.ticket, [])
        if waiter in waiters:
            waiters.remove(waiter)
            self._waiting -= 1
        if not waiters:
            self._by_ticket.pop(waiter.ticket, None)
        waiter.told.cancel()
        return not waiters

    def wake(self, tickets: Iterable[str]) -> None:
        """Something has happened to these approvals."""
        for ticket in tickets:
            for waiter in self._by_ticket.get(ticket, ()):
                _tell(waiter, "changed")

    def look(self) -> None:
        """Tell those whose time is up. To be called a few times a second."""
        now_s = self.clock.monotonic()
        while self._due and (self._due[0][0] <= now_s or self._due[0][2].told.done()):
            _until_s, _number, waiter = heapq.heappop(self._due)
            _tell(waiter, "late")
        if len(self._due) > 2 * len(self._by_ticket) + _SPARE:  # most of those who came have left long before their time
            self._due = [entry for entry in self._due if not entry[2].told.done()]
            heapq.heapify(self._due)

    def stop(self) -> None:
        """Tell everybody who can come back that this gateway ends, and whoever comes from now on."""
        self.stopping = True
        for waiters in self._by_ticket.values():
            for waiter in waiters:
                if not waiter.streams:
                    _tell(waiter, "stopping")


def _tell(waiter: Waiter, why: Woken) -> None:
    if not waiter.told.done():
        waiter.told.set_result(why)
