"""The breakers of one process: what it has seen of its targets, and what all processes know of them through the store.

Windows are each process's own; what moves a breaker (a trip, a probe, a rest, an operator's word) is shared. It counts here at once and in
the store as soon as that takes it: a store that is down or slow fails no call and delays none, only nobody gets a permit for a probe.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.breaker_exchange import Exchange
from gateway.clock import Clock, Ids, time_text
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
from gateway.store.protocol import Breakers as StoredBreakers
from gateway.telemetry import Telemetry

LAST_RESORT: Final = "last_resort"
_CLAIM_S: Final = 0.25  # a call waits no longer for a permit
_STEP_S: Final = 5.0  # for what no call waits for
_SAME_REST_S: Final = 0.25  # calls that were under way together are told to come back at times that differ by as little
_FORGET_NS: Final = 3_600_000_000_000  # while workers are replaced, some have targets that others no longer have
_PROBED: Final = {"success": Event.PROBE_SUCCEEDED, "failure": Event.PROBE_FAILED, "neutral": Event.PROBE_RETURNED}


class NoSuchTargetError(ValueError):
    """No route and no tool has this target."""


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to send one call to a target; `Breakers.ended` takes it back.

    `state` is what the breaker was: `closed`, `forced_closed`, `half_open` for a probe, `last_resort` where no target is well. `seen` is
    how often it had changed by then: what is heard of a call that was sent before a change is no news.
    """

    to: RouteTarget
    state: str
    holder: str
    seen: int = 0
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


class Breakers:
    """Every breaker of this process. `stored` is what it shares with others; `claim_s` is how long a call waits for that at the most."""

    def __init__(
        self, stored: StoredBreakers, clock: Clock, ids: Ids, telemetry: Telemetry, *, claim_s: float = _CLAIM_S, step_s: float = _STEP_S,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._exchange = Exchange(stored, telemetry, self._adopt, claim_s=claim_s, step_s=step_s)
        self._watched: dict[str, _Watched] = {}
        self._known: dict[str, Breaker] = {}  # as the store last told, of targets that are not watched, too
        self._to_prune: frozenset[str] | None = None  # all but these
        self._claims = 0

    def __repr__(self) -> str:
        states = {name: each.breaker.state.value for name, each in self._watched.items() if each.breaker.state is not State.CLOSED}
        return f"Breakers({len(self._watched)} targets, {states}, {self._exchange!r})"

    def serve(self, targets: Iterable[RouteTarget]) -> None:
        """These are the targets from now on, at start and after a reload. Others are forgotten; in the store, after an hour."""
        kept = {str(to.target): self._of(to) for to in targets}
        for name in self._watched.keys() - kept.keys():
            self._telemetry.breaker(name, State.CLOSED.value)
        self._watched = kept
        self._to_prune = frozenset(kept)
        for name, watched in kept.items():
            self._telemetry.breaker(name, watched.breaker.state.value)

    def condition(self, to: RouteTarget) -> Condition:
        """What is known of a target now."""
        watched = self._of(to)
        breaker, rules, window = watched.breaker, watched.rules, watched.window
        now_ns, now_s = self._clock.now_ns(), self._clock.monotonic()
        calls, failures, slow = window.counts(now_s)
        state = _shown(breaker, rules)
        rest_s = 0.0 if state is State.FORCED_CLOSED else cooling_s(breaker, rules, now_ns)
        until_s = max(open_for_s(breaker, rules, now_ns) if state is State.OPEN else 0.0, rest_s)
        through = passes(breaker, rules, now_ns)
        measured_at_s = window.measured_at_s
        return Condition(
            state=state.value, admits=through or self._may_probe(watched, now_ns), until_s=until_s, cooling_s=rest_s,
            answering=through and calls > failures, badness=badness(breaker, failures / calls if calls else 0.0, until_s),
            first_token_s=window.first_token_s, answered_s=window.answered_s,
            measured_s=None if measured_at_s is None else now_s - measured_at_s,
            calls=calls, failures=failures, slow=slow, cause=breaker.cause)

    async def admit(self, to: RouteTarget, holder: str, *, lease_s: float, last_resort: bool = False) -> Permit | None:
        """Leave to send a call to a target; None where there is none.

        A probe's permit is claimed from the store and is free again after `lease_s` if its process dies. `last_resort`: send the call
        although the breaker keeps calls away, unless an operator wants that.
        """
        watched = self._of(to)
        now_ns = self._clock.now_ns()
        if not passes(watched.breaker, watched.rules, now_ns):
            if self._may_probe(watched, now_ns) and (permit := await self._claim(watched, holder, lease_s)) is not None:
                return permit
            if not passes(watched.breaker, watched.rules, now_ns):  # else it has closed while the store was asked
                hopeless = watched.breaker.state is State.FORCED_OPEN or not last_resort
                return None if hopeless else Permit(to, LAST_RESORT, holder, watched.breaker.changes)
        return Permit(to, _shown(watched.breaker, watched.rules).value, holder, watched.breaker.changes)

    def ended(self, permit: Permit, ended: Ended) -> None:
        """Take a permit back, whatever became of its call. A second time is nothing."""
        if permit.returned:
            return
        permit.returned = True
        watched = self._of(permit.to)
        breaker, rules, now_ns = watched.breaker, watched.rules, self._clock.now_ns()
        news = permit.seen == breaker.changes
        if ended.cool_s is not None and ended.cool_s - cooling_s(breaker, rules, now_ns) > _SAME_REST_S:
            self._happens(watched, Step(Event.COOLED, now_ns, rules, cause=ended.cause, cool_s=ended.cool_s))
        if permit.state == State.HALF_OPEN:
            self._probe_ended(watched, permit.holder, ended, now_ns)
        elif news and (permit.state != LAST_RESORT or breaker.state is State.CLOSED):
            self._count(watched, ended, now_ns)
        elif news and ended.kind == "success" and open_for_s(breaker, rules, now_ns):
            self._happens(watched, Step(Event.ANSWERED, now_ns, rules, seen=permit.seen))

    def begun(self, permit: Permit, first_token_s: float) -> Permit:
        """A stream has begun. A probe has shown what it was to show: its permit is taken back, for the answer may take long. What becomes
        of the rest counts as any other call's, under the permit that this gives.
        """
        if permit.state != State.HALF_OPEN or permit.returned:
            return permit
        self.ended(permit, Ended("success", "", first_token_s))
        return Permit(permit.to, "closed", permit.holder, self._of(permit.to).breaker.changes)

    def trip(self, to: RouteTarget, cause: str) -> None:
        """Open a breaker that is closed: something other than calls has found out that its target is not well."""
        watched = self._of(to)
        if watched.rules.enabled:
            self._trip(watched, cause, self._clock.now_ns())

    async def refresh(self) -> None:
        """Tell the store what waits and hear what others have told it. To be called at the start and every quarter of a second or so."""
        told = await self._exchange.news()
        if told is not None:
            self._known = {each.target: each for each in told}
            for name in self._watched:  # of one that the store has no more, all is forgotten
                self._adopt(self._known.get(name) or Breaker(name, generation=self._exchange.generation))
        keep = self._to_prune
        if keep is not None and not self._exchange.failing:
            self._to_prune = None
            if not await self._exchange.prune(keep, before_ns=self._clock.now_ns() - _FORGET_NS):
                self._to_prune = keep

    async def set(self, target: str, state: Hand, author: str, note: str) -> None:
        """Open or close a breaker by hand, or let it act by itself again (`auto`).

        Raises:
            NoSuchTargetError: there is no such target.
            ValueError: the author or the note is too long, or the state is none.
            StoreUnavailable, StoreError: it cannot be kept, and so does not count.
        """
        if target not in self._watched:
            raise NoSuchTargetError(f"there is no target {target}; there are {', '.join(sorted(self._watched)) or 'none'}")
        await self._exchange.command(target, by_hand(state, now_ns=self._clock.now_ns(), author=author, note=note))

    def rows(self) -> Sequence[dict[str, Any]]:
        """Every breaker, JSON-ready, by target: what the store knows and what this process has seen."""
        return [self._row(self._watched[name]) for name in sorted(self._watched)]

    async def close(self) -> None:
        """Tell the store what waits, as far as it takes it."""
        await self._exchange.close()

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
        free = watched.claims < watched.rules.probes and not self._exchange.failing
        return free and probe_due(watched.breaker, watched.rules, now_ns)

    async def _claim(self, watched: _Watched, holder: str, lease_s: float) -> Permit | None:
        self._claims += 1
        name = f"{holder}.{self._claims}"  # a call may probe a target twice
        step = Step(Event.CLAIMED, self._clock.now_ns(), watched.rules, holder=name, lease_s=min(lease_s, MOST_LEASE_S))
        watched.claims += 1
        try:
            now = await self._exchange.claim(watched.breaker.target, step)
        finally:
            watched.claims -= 1
        granted = now is not None and any(each.holder == name for each in now.permits)
        return Permit(watched.to, State.HALF_OPEN.value, name) if granted else None

    def _probe_ended(self, watched: _Watched, holder: str, ended: Ended, now_ns: int) -> None:
        """A slow probe has failed: else a breaker that opened because answers were slow would close at the first slow one."""
        late = slowness(ended, watched.rules) if ended.kind == "success" else ""
        event = Event.PROBE_FAILED if late else _PROBED[ended.kind]
        cause = f"a probe was slow, {late}" if late else f"a probe failed with {ended.cause}"
        self._send(watched, Step(event, now_ns, watched.rules, cause=cause, holder=holder, draw=self._ids.jitter()))

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
        """A step that this process has seen; nothing where it changes nothing here."""
        if after(watched.breaker, step) is not watched.breaker:
            self._send(watched, step)

    def _send(self, watched: _Watched, step: Step) -> None:
        """Let a step count here, and have the store told of it."""
        before = watched.breaker
        now = after(before, step)
        self._move(watched, now)
        self._exchange.send(step, before, now)

    def _adopt(self, told: Breaker) -> None:
        """Take over what the store says, unless it is older than what is known, or something is on its way there."""
        watched = self._watched.get(told.target)
        if watched is not None and told.generation >= watched.breaker.generation and not self._exchange.waits(told.target):
            self._move(watched, told)

    def _move(self, watched: _Watched, now: Breaker) -> None:
        before, watched.breaker = watched.breaker, now
        if now.changes != before.changes and now.state in (State.CLOSED, State.FORCED_CLOSED):
            watched.window.clear()
        if now.state is not before.state:
            self._telemetry.breaker(now.target, now.state.value)

    def _row(self, watched: _Watched) -> dict[str, Any]:
        now = self.condition(watched.to)
        return {
            **breaker_row(watched.breaker, self._clock.now_ns()), "state": now.state, "admits": now.admits, "calls": now.calls,
            "failures": now.failures, "slow": now.slow, "first_token_s": now.first_token_s, "answered_s": now.answered_s,
        }


def breaker_row(breaker: Breaker, now_ns: int) -> dict[str, Any]:
    """What all processes know of a breaker, JSON-ready: since when it is so, until when it is open, until when its target rests. What is
    not, or is over, is None.
    """
    since_ns, rests_ns = breaker.since_ns or None, breaker.cooling_ns
    if rests_ns is not None and rests_ns <= now_ns:
        rests_ns = None
    return {
        "target": breaker.target, "state": breaker.state.value, "since": time_text(since_ns), "since_s": _apart_s(since_ns, now_ns),
        "until": time_text(breaker.until_ns), "until_s": _apart_s(now_ns, breaker.until_ns), "rests_until": time_text(rests_ns),
        "rests_s": _apart_s(now_ns, rests_ns), "trips": breaker.trips, "probes": len(breaker.permits), "cause": breaker.cause or None,
        "author": breaker.author or None, "note": breaker.note or None,
    }


def _apart_s(begin_ns: int | None, end_ns: int | None) -> float | None:
    """Seconds from one time to another one, 0 where that is over."""
    return None if begin_ns is None or end_ns is None else max(0.0, round((end_ns - begin_ns) / 1e9, 3))


def _shown(breaker: Breaker, rules: BreakerRules) -> State:
    """The state as calls meet it: one that opened before breakers were switched off keeps nobody away."""
    return State.CLOSED if not rules.enabled and breaker.state in (State.OPEN, State.HALF_OPEN) else breaker.state
