"""What a process and the store tell each other of breakers: steps on their way there, claims of permits, news from other processes.

Every word has a deadline. What cannot be said now is said later; only a claim that cannot be written is no permit.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.breaker import Breaker, Event, State, Step
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.protocol import Breakers as StoredBreakers
from gateway.telemetry import Telemetry
from gateway.telemetry.log_lines import log_time

_MOST_PENDING: Final = 1024
_DOWN: Final = (StoreUnavailable, TimeoutError)


@dataclass(slots=True)
class _Pending:
    """A step that counts here, with what it did here, and is not in the store yet."""

    step: Step
    before: Breaker
    now: Breaker
    told: bool = False


class Exchange:
    """The store's breakers as one process deals with them. `adopt` is given what the store says of a breaker.

    `claim_s` is how long a call waits for a permit at the most, `step_s` how long any other word may take. `failing`: the store did not
    answer the last time.
    """

    def __init__(
        self, stored: StoredBreakers, telemetry: Telemetry, adopt: Callable[[Breaker], None], *, claim_s: float, step_s: float,
    ) -> None:
        self._stored = stored
        self._telemetry = telemetry
        self._adopt = adopt
        self._claim_s = claim_s
        self._step_s = step_s
        self._pending: deque[_Pending] = deque()
        self._waiting: Counter[str] = Counter()  # of these, by target
        self._task: asyncio.Task[None] | None = None
        self._generation = -1
        self.failing = False

    def __repr__(self) -> str:
        return f"Exchange(pending={len(self._pending)}, failing={self.failing}, generation={self._generation})"

    def waits(self, target: str) -> bool:
        """Whether the store has yet to hear something of a target, so that what it says is out of date."""
        return target in self._waiting

    def send(self, step: Step, before: Breaker, now: Breaker) -> None:
        """Have a step told to the store: `before` and `now` are what it did here."""
        if len(self._pending) >= _MOST_PENDING:
            self._drop_first()  # a permit is free again when its lease is over, and what others do not hear they find out
        self._pending.append(_Pending(step, before, now))
        self._waiting[before.target] += 1
        self._wake()

    async def claim(self, target: str, step: Step) -> Breaker | None:
        """The breaker once a permit was claimed; None where nobody can say. A permit that may be out all the same is given back."""
        in_doubt = False
        try:
            async with asyncio.timeout(self._claim_s):
                if self.waits(target):  # that it has opened, above all
                    await self.flushed()
                in_doubt = True
                before, now = await self._stored.apply(target, step)
            in_doubt = False
        except (*_DOWN, StoreError) as error:
            self._failed(error)
            return None
        finally:
            if in_doubt:
                unknown = Breaker(target)
                self.send(replace(step, event=Event.PROBE_RETURNED), unknown, unknown)
        self._adopt(now)
        self._tell(before, now, step)
        return now

    async def command(self, target: str, step: Step) -> None:
        """Write an operator's step, after what happened before it. Raises `StoreUnavailable` where that cannot be done in time."""
        await self.flushed()
        try:
            async with asyncio.timeout(self._step_s):
                before, now = await self._stored.apply(target, step)
        except TimeoutError as error:
            raise StoreUnavailable(f"the breaker of {target} could not be set in {self._step_s:g} s", retry_after_s=1) from error
        self._adopt(now)
        self._tell(before, now, step)

    async def news(self) -> Sequence[Breaker] | None:
        """Every breaker of the store, if anything has changed since the last time; else None."""
        await self.flushed()
        if self._task is not None and self._task.done():
            self._task.result()  # a defect is told where there is somebody to hear it
        try:
            async with asyncio.timeout(self._step_s):
                told = None
                if await self._stored.generation() != self._generation:
                    self._generation, told = await self._stored.all()
        except (*_DOWN, StoreError) as error:
            self._failed(error)
            return None
        if not self._pending:  # what can be read cannot always be written
            self.failing = False
        return told

    @property
    def generation(self) -> int:
        """That of the last news."""
        return self._generation

    async def prune(self, keep: Collection[str], *, before_ns: int) -> bool:
        """Have the store forget other targets; False where it could not."""
        try:
            async with asyncio.timeout(self._step_s):
                await self._stored.prune(keep, before_ns=before_ns)
        except (*_DOWN, StoreError) as error:
            self._failed(error)
            return False
        return True

    async def flushed(self) -> None:
        """Wait until what waits is written, or cannot be."""
        self._wake()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._step_s)

    async def close(self) -> None:
        """Write what waits, as far as the store takes it."""
        await self.flushed()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _wake(self) -> None:
        if self._pending and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._write(), name="breakers")

    async def _write(self) -> None:
        while self._pending:
            first = self._pending[0]
            try:
                async with asyncio.timeout(self._step_s):
                    before, now = await self._stored.apply(first.before.target, first.step)
            except _DOWN as error:
                self._failed(error)
                for each in self._pending:
                    self._tell_once(each, each.before, each.now)
                return  # the next news will try again
            except StoreError as error:  # this one it will never take
                self._failed(error)
                before, now = first.before, first.now
            if self._pending[0] is first:  # else there were too many
                self._drop_first()
            self._tell_once(first, before, now)
            self._adopt(now)

    def _drop_first(self) -> None:
        target = self._pending.popleft().before.target
        self._waiting[target] -= 1
        if not self._waiting[target]:
            del self._waiting[target]

    def _failed(self, error: BaseException) -> None:
        if not self.failing:
            self.failing = True
            self._telemetry.event("error", "breakers_not_shared", error=f"{type(error).__name__}: {error}")

    def _tell_once(self, pending: _Pending, before: Breaker, now: Breaker) -> None:
        if not pending.told:
            pending.told = True
            self._tell(before, now, pending.step)

    def _tell(self, before: Breaker, now: Breaker, step: Step) -> None:
        """Say what a step of this process has changed: in the store, or here while the store is down."""
        event = self._telemetry.event
        if step.event is Event.COOLED and now is not before:
            event("info", "target_cooling", target=now.target, cause=step.cause, until=_moment(now.cooling_ns))
        if now.state is before.state:
            return
        by = {"author": step.author, "note": step.note} if step.author else {}
        match now.state:
            case State.OPEN:
                self._telemetry.breaker_tripped(now.target)
                event("warning", "breaker_opened", target=now.target, cause=now.cause, until=_moment(now.until_ns), trips=now.trips)
            case State.FORCED_OPEN:
                event("warning", "breaker_opened", target=now.target, cause=step.event.value, until=None, trips=now.trips, **by)
            case State.HALF_OPEN:
                event("info", "breaker_half_open", target=now.target, cause=now.cause, trips=now.trips)
            case State.CLOSED | State.FORCED_CLOSED:
                event("info", "breaker_closed", target=now.target, cause=step.event.value, trips=now.trips, **by)


def _moment(at_ns: int | None) -> str | None:
    return None if at_ns is None else log_time(at_ns)
