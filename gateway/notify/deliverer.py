"""Takes notices out of the outbox to their receivers: at least once, each under its id, whatever receivers do.

A notice is leased while it is under way, so that of several workers one delivers it; a process that dies between a delivery and its note
of it is the one way to a second one. A channel whose receiver fails rests, so that its backlog holds up no other channel.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.clock import Clock, Ids
from gateway.core.approval import State
from gateway.errors import StoreError, StoreUnavailable
from gateway.notify.channels import Channel, HasChannels
from gateway.notify.senders import Senders
from gateway.notify.undelivered import UndeliveredError
from gateway.store.approvals_protocol import Approvals, Notice, Outbox
from gateway.telemetry import Telemetry

_LEASE_S: Final = 120.0
_MOST: Final = 64  # notices under way
_MOST_A_CHANNEL: Final = 4
_IDLE_S: Final = 1.0  # between two rounds; what is due leaves so soon
_BUSY_S: Final = 0.05  # the same where there was more than could be taken
_DEADLINE_S: Final = 30.0  # for one try
_FIRST_PAUSE_S: Final = 5.0  # between two tries of a notice, doubled with each
_LONGEST_PAUSE_S: Final = 900.0
_FIRST_REST_S: Final = 1.0  # of a channel, doubled with each failure in a row
_LONGEST_REST_S: Final = 60.0
_GIVE_UP_NS: Final = 24 * 3_600 * 10**9  # after a notice was due
_DOUBLINGS: Final = 16  # more than it takes to the longest pause
_LONGEST_ERROR: Final = 300


@dataclass(frozen=True, slots=True)
class _Rest:
    """A channel is left alone until then, after so many failures in a row."""

    failures: int = 0
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Books:
    """What a deliverer reads and writes."""

    outbox: Outbox
    approvals: Approvals


class Deliverer:
    """Delivers what is due each time that `round` is called. One per process; `scrub` takes secrets out of what receivers say."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, snapshot: Callable[[], HasChannels], books: Books, senders: Senders, *, telemetry: Telemetry, clock: Clock, ids: Ids,
        scrub: Callable[[str], str],
    ) -> None:
        self._snapshot = snapshot
        self._outbox = books.outbox
        self._approvals = books.approvals
        self._senders = senders
        self._telemetry = telemetry
        self._clock = clock
        self._ids = ids
        self._scrub = scrub
        self._holder = ids.token(16)
        self._under_way = 0
        self._more = False  # the last round took as much as it could
        self._tasks: set[asyncio.Task[None]] = set()
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_MOST_A_CHANNEL))
        self._rests: dict[str, _Rest] = {}

    def __repr__(self) -> str:
        return f"Deliverer({self._under_way} under way, {len(self._rests)} channels rest)"

    async def round(self) -> None:
        """Take what is due, and begin to deliver it. Waits for no receiver."""
        room = _MOST - self._under_way
        self._more = True
        if room <= 0:
            return
        now_ns = self._clock.now_ns()
        taken = await self._outbox.take(self._holder, now_ns=now_ns, until_ns=now_ns + int(_LEASE_S * 1e9), limit=room)
        self._more = len(taken) == room
        until_s = self._clock.monotonic() + _LEASE_S
        threads: defaultdict[tuple[str, str], list[Notice]] = defaultdict(list)
        for notice in taken:  # what a channel hears of one ticket it hears in order
            threads[notice.channel, notice.ticket].append(notice)
        for thread in threads.values():
            self._own(self._deliver_all(thread, until_s), len(thread))

    def pause_s(self) -> float:
        """How long to wait before the next round."""
        return _BUSY_S if self._more else _IDLE_S

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self, wait_s: float) -> None:
        """Let what is under way end by itself for a while, then end it: others take it over once its lease is over."""
        if self._tasks:
            _done, late = await asyncio.wait(set(self._tasks), timeout=wait_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._senders.close()

    def _own(self, work: Coroutine[Any, Any, None], notices: int) -> None:
        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._under_way -= notices
            if not done.cancelled() and (error := done.exception()) is not None:
                self._telemetry.event("error", "delivery_failed", error=f"{type(error).__name__}: {error}")

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        self._under_way += notices
        task.add_done_callback(ended)

    async def _deliver_all(self, thread: Sequence[Notice], until_s: float) -> None:
        """Deliver what one channel is to hear of one ticket, in order: behind one that has to wait the others wait, too."""
        again_ns = None
        async with self._places[thread[0].channel]:
            for notice in thread:
                if self._clock.monotonic() + _DEADLINE_S > until_s:
                    return  # before it was delivered, somebody else could begin to
                with suppress(StoreError, StoreUnavailable):  # its lease ends, and it is taken once more
                    if again_ns is None:
                        again_ns = await self._deliver(notice)
                    else:
                        again_ns += 1
                        await self._outbox.later(notice.id, due_ns=again_ns, error="", dead=False)

    async def _deliver(self, notice: Notice) -> int | None:
        """One try: when there is to be another one, None where there is not."""
        channel = self._snapshot().channels.get(notice.channel)
        if channel is None or await self._outdated(notice):
            await self._outbox.done(notice.id, now_ns=self._clock.now_ns())
            self._telemetry.notice(notice.channel, "dropped")
            return None
        rest = self._rests.get(channel.name)
        if rest is not None and rest.until_s > self._clock.monotonic():
            return await self._later(notice, rest.until_s - self._clock.monotonic(), "the channel's receiver has just failed")
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._senders.send(notice, channel)
        except (UndeliveredError, TimeoutError) as error:
            return await self._failed(notice, channel, error if isinstance(error, UndeliveredError) else _late())
        self._rests.pop(channel.name, None)
        await self._outbox.done(notice.id, now_ns=self._clock.now_ns())
        self._telemetry.notice(channel.name, "delivered")
        return None

    async def _outdated(self, notice: Notice) -> bool:
        """Whether nobody needs to be reminded any more."""
        if notice.kind != "reminder":
            return False
        ticket = await self._approvals.get(notice.ticket)
        return ticket is None or ticket.state is not State.PENDING

    async def _failed(self, notice: Notice, channel: Channel, failure: UndeliveredError) -> int | None:
        """Let the channel rest, and try again after a pause; or give it up, a day after it was due."""
        failures = self._rests.get(channel.name, _Rest()).failures
        asked_s = min(failure.retry_after_s, _LONGEST_PAUSE_S)
        rest_s = max(_doubled(_FIRST_REST_S, failures, _LONGEST_REST_S), asked_s)
        self._rests[channel.name] = _Rest(failures + 1, self._clock.monotonic() + rest_s)
        error = failure.cause if channel.hidden else self._scrub(f"{failure.cause}: {failure.message}")[:_LONGEST_ERROR]
        told = {"channel": channel.name, "notice": notice.id, "ticket": notice.ticket, "kind": notice.kind, "error": error}
        if self._clock.now_ns() - notice.body["at_ns"] >= _GIVE_UP_NS:
            await self._outbox.later(notice.id, due_ns=notice.due_ns, error=error, dead=True)
            self._telemetry.event("error", "notice_given_up", **told)
            self._telemetry.notice(channel.name, "dead")
            return None
        self._telemetry.event("warning", "notice_not_delivered", **told)
        self._telemetry.notice(channel.name, "failed")
        return await self._later(notice, max(_doubled(_FIRST_PAUSE_S, notice.attempts - 1, _LONGEST_PAUSE_S), asked_s), error)

    async def _later(self, notice: Notice, pause_s: float, error: str) -> int:
        due_ns = self._clock.now_ns() + int(pause_s * (1.0 + self._ids.jitter() / 2) * 1e9)  # notices that failed together come apart
        await self._outbox.later(notice.id, due_ns=due_ns, error=error, dead=False)
        return due_ns


def _doubled(first_s: float, times: int, longest_s: float) -> float:
    return min(first_s * float(2**min(times, _DOUBLINGS)), longest_s)


def _late() -> UndeliveredError:
    return UndeliveredError("timeout:total", f"it was not delivered within {_DEADLINE_S:g} s")
