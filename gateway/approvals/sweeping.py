"""What becomes of approvals as time passes: they expire or go on to others, and somebody asks what came of those that nobody knows of."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.approvals.verifying import Verifier
from gateway.clock import Clock
from gateway.core.approval import State, Ticket
from gateway.notify.notices import Notices
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals, Outbox, TicketFilter
from gateway.telemetry import Telemetry

_MOST_UNKNOWN: Final = 200  # the latest; of those before them people have been told


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a sweep works on. `changed` tells those who wait for an approval."""

    approvals: Approvals
    outbox: Outbox
    notices: Notices
    verifier: Verifier
    changed: Callable[[], Awaitable[None]]


class Sweeper:
    """Looks after approvals each time that `sweep` is called, once a second or so."""

    def __init__(self, snapshot: Callable[[], Snapshot], upkeep: Upkeep, telemetry: Telemetry, clock: Clock) -> None:
        self._snapshot = snapshot
        self._upkeep = upkeep
        self._telemetry = telemetry
        self._clock = clock
        self._seen: int | None = None  # the generation that was looked at last
        self._unknown: Sequence[Ticket] = ()
        self._asked: set[tuple[str, int]] = set()  # the unknown ones that people were told of by this process

    async def sweep(self) -> None:
        """Let happen what is due, and look after what nobody knows the end of."""
        upkeep, now_ns = self._upkeep, self._clock.now_ns()
        before_ns = now_ns - int(self._snapshot().config.approvals.keep_results * 1e9)
        swept = await upkeep.approvals.sweep(now_ns=now_ns, results_before_ns=before_ns)
        for ticket in swept:
            self._telemetry.approval_now(ticket)
        if swept:
            await upkeep.changed()
        await self._look()
        for_people = [each for each in upkeep.verifier.round(self._unknown) if (each.id, each.fence) not in self._asked]
        if for_people:
            await upkeep.outbox.add([notice for ticket in for_people for notice in upkeep.notices.unsolved(ticket, now_ns)])
            self._asked.update((each.id, each.fence) for each in for_people)

    async def _look(self) -> None:
        """Learn what has changed since the last time, where anything has."""
        approvals = self._upkeep.approvals
        generation = await approvals.generation()
        if generation == self._seen:
            return
        counts = await approvals.counts()
        self._telemetry.pending(counts.get(State.PENDING, 0))
        some = counts.get(State.UNKNOWN, 0) > 0
        self._unknown = await approvals.list(TicketFilter(states=(State.UNKNOWN,), newest=True, limit=_MOST_UNKNOWN)) if some else ()
        self._asked &= {(each.id, each.fence) for each in self._unknown}
        self._seen = generation
