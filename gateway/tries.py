"""The attempts that a call may make: which target is next, after what wait, with whose permit, out of which retry budget."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from gateway.breakers import Breakers, Permit
from gateway.call import Target
from gateway.clock import Clock, Ids
from gateway.core.breaker import Condition, Ended
from gateway.core.order import Plan
from gateway.core.plan import Route, RouteTarget
from gateway.core.retries import RetryBudget, backoff_s
from gateway.errors import AttemptFailed, UpstreamBusy, UpstreamFailed
from gateway.telemetry import Telemetry

_MARGIN_S: Final = 0.01  # by which two clocks may differ about the end of a rest
LEASE_S: Final = 5.0  # past the call's last moment, for its end to be told
_SPREAD_S: Final = 2
_LONGEST_WAIT_S: Final = 60  # that SDKs take from an answer
ONWARD: Final = "continuation"
CASCADE: Final = "cascade"
UNUSED: Final = Ended("neutral", "unused")


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt that may be made now. The fields are those of `Attempt`."""

    to: RouteTarget
    permit: Permit
    why: str = ""
    waited_s: float = 0.0
    retries_left: float | None = None


@dataclass(slots=True)
class _Turn:
    """A target that may be tried, but not before `ready_s`."""

    to: RouteTarget
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pursuit:
    """What the calls of one gateway share: breakers, and the retry budget of each route."""

    breakers: Breakers
    telemetry: Telemetry
    clock: Clock
    ids: Ids
    budgets: dict[str, RetryBudget] = field(default_factory=dict)

    def of(self, call_id: str, route: Route, plan: Plan, total_s: float) -> "Tries":
        """The attempts of one call, which begins now and ends after `total_s` seconds."""
        now_s = self.clock.monotonic()
        budget = self.budgets.get(route.name)
        if budget is None:
            budget = self.budgets[route.name] = RetryBudget.full(route.retry, now_s)
        budget.call(route.retry, route.hedge.share if route.hedge.after_s else 0.0, now_s)
        return Tries(self, call_id, route, plan, budget, now_s + total_s)

    def forget(self, routes: Sequence[str]) -> None:
        """Keep the budgets of these routes alone."""
        for gone in self.budgets.keys() - set(routes):
            del self.budgets[gone]


@dataclass(slots=True)
class Tries:
    """The attempts of one call. A permit that is given out here is taken back by the attempt's end, or by `close`."""

    _shared: Pursuit
    _call_id: str
    _route: Route
    _plan: Plan
    _budget: RetryBudget
    _ends_s: float
    _turns: deque[_Turn] = field(default_factory=deque)
    _made: Counter[Target] = field(default_factory=Counter)  # attempts at each target: no way of going on makes more than the route allows
    _out: Permit | None = None  # the permit of the attempt that is not yet under way

    async def first(self) -> Try:
        """The first attempt.

        Where every target has asked to be left alone, for longer than is waited for, the first of them is tried all the same: that it had
        enough of another call, which may have been too large for it, need not be true of this one.

        Raises:
            UpstreamFailed: no target may be tried.
        """
        if self._plan.wait_s and self._reaches(self._plan.wait_s):
            await self._shared.clock.sleep(self._plan.wait_s + _MARGIN_S)
        turns = [_Turn(placed.to) for placed in self._plan.order]
        for number, turn in enumerate(turns):
            permit = await self._admit(turn.to, last_resort=self._plan.last_resort)
            if permit is not None:
                self._turns.extend([] if self._plan.last_resort else turns[number + 1:])
                return Try(turn.to, permit)
        permit = await self._admit(turns[0].to, last_resort=True) if turns else None  # they have closed since the plan was made
        if permit is None:
            raise UpstreamFailed("No target of this route may be tried: each is closed by hand, or passed over. "
                                 "`GET /-/routes/NAME/plan` says why.")
        return Try(turns[0].to, permit)

    @property
    def others(self) -> bool:
        """Whether another target is left that was not tried."""
        return any(self._fresh(turn.to) for turn in self._turns)

    def failed(self, to: RouteTarget, failure: AttemptFailed) -> None:
        """A target has failed. It has another turn where that may help: at once, or, where it asked to be left alone, after those that have
        not.
        """
        if not self._again(to, failure):
            return
        retry = self._route.retry
        wait_s = backoff_s(retry, self._made[to.target], self._shared.ids.jitter(), failure.retry_after_s)
        if wait_s is None:
            return
        turn = _Turn(to, self._shared.clock.monotonic() + wait_s)
        if failure.status == 429:
            self._turns.append(turn)
        else:
            self._turns.appendleft(turn)

    async def next(self, why: str = "fallback") -> Try | None:
        """What is tried now, once its time has come; None where nothing is left that may be tried in time.

        `why` is that of a target which was not tried yet, or `ONWARD`.
        """
        clock = self._shared.clock
        while self._turns:
            turn = self._turns.popleft()
            now_s = clock.monotonic()
            condition = self._condition(turn.to)
            wait_s = max(0.0, turn.ready_s - now_s)
            fresh = self._fresh(turn.to)
            if not condition.admits and not condition.cooling_s:  # its breaker has opened meanwhile: nobody waits for that
                continue
            if condition.cooling_s and not fresh:
                wait_s = max(wait_s, condition.cooling_s + _MARGIN_S)
            late = now_s + wait_s >= self._ends_s or wait_s > self._route.retry.cap_s + _MARGIN_S
            free = fresh and why == CASCADE  # it is no failure that is made up for
            if late or not (free or self._afford(turn, condition, now_s)):
                continue
            left = None if free else self._budget.left
            if wait_s:
                await clock.sleep(wait_s)
            permit = await self._admit(turn.to)
            if permit is not None:
                return Try(turn.to, permit, why if fresh or why == ONWARD else "retry", wait_s, left)
            if not free:
                self._budget.give_back(self._route.retry)
        return None

    def onward(self, to: RouteTarget, failure: AttemptFailed) -> None:
        """A stream broke off: what is tried from here on are targets that can go on with it, that one last of all."""
        able = [placed.to for placed in self._plan.order if placed.to.continues is not None]
        self._turns = deque(_Turn(each) for each in able if each is not to and self._made[each.target] < self._route.retry.attempts)
        if to in able and self._again(to, failure):
            self._turns.append(_Turn(to))

    def resting(self, attempts: str) -> UpstreamBusy:
        """The error where all that was tried asked to be left alone; `attempts` tells of them. Not all who hear it come back at once."""
        rests = [each for placed in self._plan.order if (each := self._condition(placed.to).cooling_s)]
        seconds = max(1, min(ceil(min(rests, default=1.0)) + round(self._shared.ids.jitter() * _SPREAD_S), _LONGEST_WAIT_S))
        return UpstreamBusy(f"Every target has asked to be left alone for a while (429). Try again in {seconds} s.{attempts}",
                            retry_after_s=seconds)

    async def beside(self, to: RouteTarget) -> Try | None:
        """An attempt beside one of `to` that is slow to answer: of another target, if there is one. None where it cannot be had."""
        if self._plan.last_resort or not self._budget.take_hedge():
            return None
        # Of a cascade the next target is for another answer than this one's, not for the same one sooner.
        turns = self._turns if self._plan.strategy != CASCADE else ()
        other = next((turn for turn in turns if self._fresh(turn.to) and self._condition(turn.to).state == "closed"), None)
        to = other.to if other is not None else to
        permit = await self._admit(to)
        if permit is None:
            self._budget.give_back_hedge()
            return None
        if other is not None:
            self._turns.remove(other)
        return Try(to, permit, "hedge")

    def not_beside(self, tried: Try) -> None:
        """The attempt that was to stand beside another one is not made: its target still has its turn."""
        self._shared.breakers.ended(tried.permit, UNUSED)
        self._budget.give_back_hedge()
        if self._fresh(tried.to):
            self._turns.appendleft(_Turn(tried.to))

    def under_way(self, tried: Try) -> None:
        """An attempt that was given out has begun: its end takes the permit back."""
        self._made[tried.to.target] += 1
        self._out = None

    def close(self) -> None:
        """The call is over: nobody holds a permit for it any more."""
        if self._out is not None:
            self._shared.breakers.ended(self._out, UNUSED)
            self._out = None

    def _reaches(self, wait_s: float) -> bool:
        """Whether a call may wait for so long."""
        return wait_s <= self._route.retry.cap_s and self._shared.clock.monotonic() + wait_s < self._ends_s

    def _afford(self, turn: _Turn, condition: Condition, now_s: float) -> bool:
        """Whether the retry budget has an attempt left. A target that is answering takes what another has failed at, come what may."""
        if self._budget.take(self._route.retry, now_s):
            return True
        if self._fresh(turn.to) and condition.answering:
            return True
        self._shared.telemetry.retries_spent(self._route.name)
        return False

    def _again(self, to: RouteTarget, failure: AttemptFailed) -> bool:
        return failure.retryable and not self._plan.last_resort and self._made[to.target] < self._route.retry.attempts

    def _fresh(self, to: RouteTarget) -> bool:
        return self._made[to.target] == 0

    def _condition(self, to: RouteTarget) -> Condition:
        return self._shared.breakers.condition(to)

    async def _admit(self, to: RouteTarget, *, last_resort: bool = False) -> Permit | None:
        lease_s = max(0.0, self._ends_s - self._shared.clock.monotonic()) + LEASE_S
        self._out = permit = await self._shared.breakers.admit(to, self._call_id, lease_s=lease_s, last_resort=last_resort)
        return permit
