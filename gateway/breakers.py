"""The breakers of one process: what it has seen of its targets, and what all processes know of them through the store.

Windows are each process's own; what moves a breaker (a trip, a probe, a rest, an operator's word) is shared. It counts here at once and in
the store as soon as that takes it: a store that is down or slow fails no call and delays none, only nobody gets a permit for a probe.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from gateway.clock import Clock, Ids
from gateway.core.breaker import (
    MOST_LEASE_S,
    Breaker,
    BreakerRules,
    Condition,
    Ended,
    Event,
    Hand,
    State,
    Step,
    after,
    badness,
    by_hand,
    cooling_s,
    open_for_s,
    passes,
    probe_due,
)
from gateway.core.breaker_window import Window, slowness
from gateway.core.plan import RouteTarget
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.protocol import Breakers as StoredBreakers
from gateway.telemetry import Telemetry

LAST_RESORT: Final = "last_resort"
_CLAIM_S: Final = 0.25  # a call waits no longer for a permit
_STEP_S: Final = 5.0  # for what no call waits for
_MOST_PENDING: Final = 1024
_SAME_REST_S: Final = 0.25  # calls that were under way together are told to come back at times that differ by as little
_FORGET_NS: Final = 3_600_000_000_000  # while workers are replaced, some have targets that others no longer have
_DOWN: Final = (StoreUnavailable, TimeoutError)


class NoSuchTargetError(ValueError):
    """No route and no tool has this target."""


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to send one call to a target; `Breakers.ended` takes it back. `state` is what the breaker was: `closed`, `forced_closed`,
    `half_open` for a probe, `last_resort` for a call that is sent because no target is well.
    """

    to: RouteTarget
    state: str
    holder: str
    seen: int = 0  # how often the breaker had changed: what is heard of a call that was sent before a change is no news
    returned: bool = False


@dataclass(slots=True)
class _Watched:
    """A target, what is known of its breaker, and what was seen of it."""

    to: RouteTarget
    breaker: Breaker
    window: Window
    claims: int = 0  # under way

    @property
    def rules(self) -> BreakerRules:
        return self.to.breaker


@dataclass(slots=True)
class _Pending:
    """A step that counts here and is not in the store yet."""

    step: Step
    before: Breaker
    now: Breaker
    told: bool = False


@dataclass(slots=True)
class _Outbox:
    """What waits for the store, in order."""

    steps: deque[_Pending] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None

    def holds(self, target: str) -> bool:
        return any(each.before.target == target for each in self.steps)


class Breakers:
    """Every breaker of this process. `stored` is what it shares with others; `claim_s` is how long a call waits for that at the most."""

    def __init__(
        self, stored: StoredBreakers, clock: Clock, ids: Ids, telemetry: Telemetry, *, claim_s: float = _CLAIM_S, step_s: float = _STEP_S,
    ) -> None:
        self._stored = stored
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._claim_s = claim_s
        self._step_s = step_s
        self._watched: dict[str, _Watched] = {}
        self._served: frozenset[str] | None = None
        self._known: dict[str, Breaker] = {}  # as the store last told, of targets that are not watched, too
        self._generation = -1
        self._outbox = _Outbox()
        self._failing = False
        self._prunes = False
        self._claimed = 0

    def __repr__(self) -> str:
        states = {name: each.breaker.state.value for name, each in self._watched.items() if each.breaker.state is not State.CLOSED}
        return f"Breakers({len(self._watched)} targets, {states}, pending={len(self._outbox.steps)}, failing={self._failing})"

    def serve(self, targets: Iterable[RouteTarget]) -> None:
        """These are the targets from now on, at start and after a reload. Others are forgotten, in the store after an hour."""
        kept = {str(to.target): self._of(to) for to in targets}
        for name in self._watched.keys() - kept.keys():
            self._telemetry.breaker(name, State.CLOSED.value)
        self._watched = kept
        self._served = frozenset(kept)
        self._prunes = True
        for name, watched in kept.items():
            self._telemetry.breaker(name, watched.breaker.state.value)

    def condition(self, to: RouteTarget) -> Condition:
        """What is known of a target now."""
        watched = self._of(to)
        breaker, rules, window = watched.breaker, watched.rules, watched.window
        now_ns, now_s = self._clock.now_ns(), self._clock.monotonic()
        calls, failures, slow = window.counts(now_s)
        rest_s = 0.0 if breaker.state is State.FORCED_CLOSED else cooling_s(breaker, rules, now_ns)
        until_s = max(open_for_s(breaker, rules, now_ns), rest_s)
        through = passes(breaker, rules, now_ns)
        measured = window.measured_at_s
        return Condition(
            state=breaker.state.value, admits=through or self._may_probe(watched, now_ns), until_s=until_s, cooling_s=rest_s,
            answering=through and calls > failures, badness=badness(breaker, failures / calls if calls else 0.0, until_s),
            first_token_s=window.first_token_s, measured_s=None if measured is None else now_s - measured,
            calls=calls, failures=failures, slow=slow, cause=breaker.cause)

    async def admit(self, to: RouteTarget, holder: str, *, lease_s: float, last_resort: bool = False) -> Permit | None:
        """Leave to send a call to a target; None where there is none.

        A probe's permit is claimed from the store and is free again after `lease_s` if its process dies. `last_resort`: send it although the
        breaker keeps calls away, unless an operator wants that.
        """
        watched = self._of(to)
        if not passes(watched.breaker, watched.rules, now_ns := self._clock.now_ns()):
            if self._may_probe(watched, now_ns) and (permit := await self._claim(watched, holder, lease_s)) is not None:
                return permit
            if not passes(watched.breaker, watched.rules, now_ns):  # it may have closed while the store was asked
                forced = watched.breaker.state is State.FORCED_OPEN
                return Permit(to, LAST_RESORT, holder, watched.breaker.changes) if last_resort and not forced else None
        forced_closed = watched.breaker.state is State.FORCED_CLOSED
        return Permit(to, "forced_closed" if forced_closed else "closed", holder, watched.breaker.changes)

    def ended(self, permit: Permit, ended: Ended) -> None:
        """Take a permit back, whatever became of its call. A second time is nothing."""
        if permit.returned:
            return
        permit.returned = True
        watched = self._of(permit.to)
        now_ns = self._clock.now_ns()
        if ended.cool_s is not None and ended.cool_s - cooling_s(watched.breaker, watched.rules, now_ns) > _SAME_REST_S:
            self._happens(watched, Step(Event.COOLED, now_ns, watched.rules, cause=ended.cause, cool_s=ended.cool_s))
        if permit.state == State.HALF_OPEN:
            self._probe_ended(watched, permit.holder, ended, now_ns)
        elif permit.seen != watched.breaker.changes:
            return
        elif permit.state != LAST_RESORT:
            self._count(watched, ended, now_ns)
        elif ended.kind == "success" and watched.breaker.state is State.OPEN and open_for_s(watched.breaker, watched.rules, now_ns):
            self._happens(watched, Step(Event.ANSWERED, now_ns, watched.rules, seen=permit.seen))

    def trip(self, to: RouteTarget, cause: str) -> None:
        """Open a breaker that is closed: something other than calls has found out that its target is not well."""
        watched = self._of(to)
        if watched.rules.enabled:
            self._trip(watched, cause, self._clock.now_ns())

    async def refresh(self) -> None:
        """Tell the store what waits, and hear what others have told it. To be called every quarter of a second or so, and before the start."""
        await self._flushed()
        try:
            async with asyncio.timeout(self._step_s):
                if self._prunes and self._served is not None:
                    await self._stored.prune(self._served, before_ns=self._clock.now_ns() - _FORGET_NS)
                    self._prunes = False
                if await self._stored.generation() != self._generation:
                    self._learn(*await self._stored.all())
        except (*_DOWN, StoreError) as error:
            self._store_failed(error)
        else:
            self._failing = False

    async def set(self, target: str, state: Hand, author: str, note: str) -> None:
        """Open or close a breaker by hand, or let it act by itself again (`automatic`).

        Raises:
            NoSuchTargetError: there is no such target.
            ValueError: the author or the note is too long, or the state is none.
            StoreUnavailable: it cannot be kept, and so does not count.
        """
        watched = self._watched.get(target)
        if watched is None:
            raise NoSuchTargetError(f"there is no target {target}; there are {', '.join(sorted(self._watched)) or 'none'}")
        step = by_hand(state, now_ns=self._clock.now_ns(), author=author, note=note)
        await self._flushed()  # what happened before comes first
        try:
            async with asyncio.timeout(self._step_s):
                before, now = await self._stored.apply(target, step)
        except TimeoutError as error:
            raise StoreUnavailable(f"the breaker of {target} could not be set in {self._step_s:g} s", retry_after_s=1) from error
        self._adopt(watched, now)
        self._tell(before, now, step)

    def rows(self) -> Sequence[dict[str, Any]]:
        """Every breaker, JSON-ready, by target: what the store knows and what this process has seen."""
        return [self._row(name, self._watched[name]) for name in sorted(self._watched)]

    async def close(self) -> None:
        """Tell the store what waits, as long as it takes it."""
        await self._flushed()
        if self._outbox.task is not None:
            self._outbox.task.cancel()

    def _of(self, to: RouteTarget) -> _Watched:
        name = str(to.target)
        watched = self._watched.get(name)
        if watched is None:
            breaker = self._known.get(name) or Breaker(name)
            watched = self._watched[name] = _Watched(to, breaker, Window(to.breaker.window_s))
        elif watched.to is not to:
            if watched.rules.window_s != to.breaker.window_s:
                watched.window = Window(to.breaker.window_s)
            watched.to = to
        return watched

    def _may_probe(self, watched: _Watched, now_ns: int) -> bool:
        """Whether it is worth asking the store for a permit."""
        return not self._failing and watched.claims < watched.rules.probes and probe_due(watched.breaker, watched.rules, now_ns)

    async def _claim(self, watched: _Watched, holder: str, lease_s: float) -> Permit | None:
        self._claimed += 1
        name = f"{holder}.{self._claimed}"  # a call may probe a target twice
        step = Step(Event.CLAIMED, self._clock.now_ns(), watched.rules, holder=name, lease_s=min(lease_s, MOST_LEASE_S))
        watched.claims += 1
        in_doubt = True
        try:
            async with asyncio.timeout(self._claim_s):
                before, now = await self._stored.apply(watched.breaker.target, step)
            in_doubt = False
        except (*_DOWN, StoreError) as error:
            self._store_failed(error)
            return None
        finally:
            watched.claims -= 1
            if in_doubt:  # it may still be written, and then nobody knows that the permit is out
                self._send(watched, replace(step, event=Event.PROBE_RETURNED))
        self._adopt(watched, now)
        self._tell(before, now, step)
        if all(each.holder != name for each in now.permits):
            return None
        return Permit(watched.to, State.HALF_OPEN.value, name, now.changes)

    def _probe_ended(self, watched: _Watched, holder: str, ended: Ended, now_ns: int) -> None:
        """A slow probe has failed: else a breaker that opened because answers were slow would close at the first slow one."""
        late = slowness(ended, watched.rules) if ended.kind == "success" else ""
        event = {"success": Event.PROBE_SUCCEEDED, "failure": Event.PROBE_FAILED, "neutral": Event.PROBE_RETURNED}[ended.kind]
        cause = f"a probe was slow, {late}" if late else f"a probe failed with {ended.cause}"
        self._send(watched, Step(Event.PROBE_FAILED if late else event, now_ns, watched.rules, cause=cause, holder=holder,
                                 draw=self._ids.jitter()))

    def _count(self, watched: _Watched, ended: Ended, now_ns: int) -> None:
        rules, window = watched.rules, watched.window
        cause = window.add(ended, rules, self._clock.monotonic())
        if cause and rules.enabled:
            self._trip(watched, cause, now_ns)
        elif watched.breaker.trips and window.streak >= rules.calls:
            self._happens(watched, Step(Event.RECOVERED, now_ns, rules, seen=watched.breaker.changes))

    def _trip(self, watched: _Watched, cause: str, now_ns: int) -> None:
        self._happens(watched, Step(
            Event.TRIPPED, now_ns, watched.rules, seen=watched.breaker.changes, cause=cause, draw=self._ids.jitter()))

    def _happens(self, watched: _Watched, step: Step) -> None:
        """A step of this process; nothing where it changes nothing here."""
        if after(watched.breaker, step) is not watched.breaker:
            self._send(watched, step)

    def _send(self, watched: _Watched, step: Step) -> None:
        """Let a step count here, and have it told to the store."""
        before = watched.breaker
        self._move(watched, after(before, step))
        outbox = self._outbox
        if len(outbox.steps) >= _MOST_PENDING:
            outbox.steps.popleft()  # a permit is free again when its lease is over, and what others do not hear they find out
        outbox.steps.append(_Pending(step, before, watched.breaker))
        self._wake()

    def _wake(self) -> None:
        outbox = self._outbox
        if outbox.steps and (outbox.task is None or outbox.task.done()):
            outbox.task = asyncio.get_running_loop().create_task(self._write(), name="breakers")

    async def _flushed(self) -> None:
        """Wait until what waits is written, or cannot be."""
        self._wake()
        if self._outbox.task is not None:
            await asyncio.wait({self._outbox.task}, timeout=self._step_s)

    async def _write(self) -> None:
        steps = self._outbox.steps
        while steps:
            pending = steps[0]
            target = pending.before.target
            try:
                async with asyncio.timeout(self._step_s):
                    before, now = await self._stored.apply(target, pending.step)
            except _DOWN as error:
                self._store_failed(error)
                for each in steps:
                    self._tell_pending(each, each.before, each.now)
                return
            except StoreError as error:  # this one it will never take
                self._store_failed(error)
                before, now = pending.before, pending.now
            self._failing = False
            if steps and steps[0] is pending:
                steps.popleft()
            self._tell_pending(pending, before, now)
            watched = self._watched.get(target)
            if watched is not None:
                self._adopt(watched, now)

    def _learn(self, generation: int, breakers: Sequence[Breaker]) -> None:
        """What the store holds. A breaker that it has no more is as good as new."""
        self._known = {each.target: each for each in breakers}
        self._generation = generation
        for name, watched in self._watched.items():
            self._adopt(watched, self._known.get(name) or Breaker(name, generation=generation))

    def _adopt(self, watched: _Watched, told: Breaker) -> None:
        """Take over what the store says, unless it is older than what is known, or something is on its way there."""
        if told.generation >= watched.breaker.generation and not self._outbox.holds(told.target):
            self._move(watched, told)

    def _move(self, watched: _Watched, now: Breaker) -> None:
        before, watched.breaker = watched.breaker, now
        if now.changes != before.changes and now.state in (State.CLOSED, State.FORCED_CLOSED):
            watched.window.clear()
        if now.state is not before.state:
            self._telemetry.breaker(now.target, now.state.value)

    def _store_failed(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            self._telemetry.event("error", "breakers_not_shared", error=f"{type(error).__name__}: {error}")

    def _tell_pending(self, pending: _Pending, before: Breaker, now: Breaker) -> None:
        if not pending.told:
            pending.told = True
            self._tell(before, now, pending.step)

    def _tell(self, before: Breaker, now: Breaker, step: Step) -> None:
        """Say what a step of this process has changed."""
        if now is before:
            return
        event = self._telemetry.event
        if step.event is Event.COOLED:
            event("info", "target_cooling", target=now.target, cause=step.cause, until=_moment(now.cooling_ns))
        if now.state is before.state:
            return
        by = {"author": step.author, "note": step.note} if step.author else {}
        match now.state:
            case State.OPEN | State.FORCED_OPEN:
                self._telemetry.breaker_opened(now.target)
                event("warning", "breaker_opened", target=now.target, cause=now.cause or step.event.value, until=_moment(now.until_ns),
                      trips=now.trips, **by)
            case State.HALF_OPEN:
                event("info", "breaker_half_open", target=now.target, cause=now.cause, trips=now.trips)
            case State.CLOSED | State.FORCED_CLOSED:
                event("info", "breaker_closed", target=now.target, cause=step.event.value, trips=now.trips, **by)

    def _row(self, name: str, watched: _Watched) -> dict[str, Any]:
        breaker = watched.breaker
        now = self.condition(watched.to)
        return {
            "target": name, "state": now.state, "admits": now.admits, "since_ns": breaker.since_ns or None, "until_s": now.until_s,
            "cooling_s": now.cooling_s, "cause": breaker.cause, "trips": breaker.trips, "probes": len(breaker.permits),
            "author": breaker.author, "note": breaker.note, "calls": now.calls, "failures": now.failures, "slow": now.slow,
            "first_token_s": now.first_token_s,
        }


def _moment(at_ns: int | None) -> str | None:
    return None if at_ns is None else datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
