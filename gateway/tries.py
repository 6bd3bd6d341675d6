"""The attempts that a call may make: which target is next, after what wait, with whose permit, out of which retry budget."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from gateway.breakers import Breakers, Permit
from gateway.clock import Clock, Ids
from gateway.core.breaker import Condition, Ended
from gateway.core.order import Plan
from gateway.core.plan import Route, RouteTarget
from gateway.core.retries import RetryBudget, backoff_s
from gateway.errors import AttemptFailed, UpstreamBusy, UpstreamFailed
from gateway.telemetry import Telemetry

_MARGIN_S: Final = 0.01  # by which two clocks may differ about the end of a rest
_LEASE_S: Final = 5.0  # past the call's last moment, for its end to be told
_LONGEST_WAIT_S: Final = 60  # that SDKs take from an answer
ONWARD: Final = "continuation"
_UNUSED: Final = Ended("neutral", "unused")


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt that may be made now. The fields are those of `Attempt`."""

    to: RouteTarget
    permit: Permit
    made: int  # tries of this target, this one included
    why: str = ""
    waited_s: float = 0.0
    retries_left: float | None = None


@dataclass(slots=True)
class _Turn:
    """A target that may be tried: it was so often before, and is not before `ready_s`."""

    to: RouteTarget
    made: int = 0
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pursuit:
    """What the calls of one gateway share: breakers, and the retry budget of each route."""

    breakers: Breakers
    telemetry: Telemetry
    clock: Clock
    ids: Ids
    budgets: dict[str, RetryBudget] = field(default_factory=dict)

    def of(self, call_id: str, route: Route, plan: Plan) -> "Tries":
        """The attempts of one call, which begins now."""
        now_s = self.clock.monotonic()
        budget = self.budgets.get(route.name)
        if budget is None:
            budget = self.budgets[route.name] = RetryBudget.full(route.retry, now_s)
        budget.call(route.retry, route.hedge.share if route.hedge.after_s else 0.0, now_s)
        return Tries(self, call_id, route, plan, budget, now_s + route.deadlines.total_s)

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
    _out: Permit | None = None  # the permit of the attempt that is not yet under way

    async def first(self) -> Try:
        """The first attempt.

        Raises:
            UpstreamBusy: every target asked to be left alone for longer than is waited for.
            UpstreamFailed: no target may be tried.
        """
        await self._rest()
        turns = [_Turn(placed.to) for placed in self._plan.order]
        for number, turn in enumerate(turns):
            permit = await self._admit(turn.to, last_resort=self._plan.last_resort)
            if permit is not None:
                self._turns.extend([] if self._plan.last_resort else turns[number + 1:])
                return Try(turn.to, permit, 1)
        permit = await self._admit(turns[0].to, last_resort=True) if turns else None  # they have closed since the plan was made
        if permit is None:
            raise UpstreamFailed("No target of this route may be tried: each is closed by hand, or passed over. "
                                 "`GET /-/routes/NAME/plan` says why.")
        return Try(turns[0].to, permit, 1)

    @property
    def others(self) -> bool:
        """Whether another target is left that was not tried."""
        return any(turn.made == 0 for turn in self._turns)

    def failed(self, to: RouteTarget, made: int, failure: AttemptFailed) -> None:
        """A target has failed, after so many tries of it. It has another turn where that may help: at once, or, where it asked to be left
        alone, after those that have not.
        """
        retry = self._route.retry
        if self._plan.last_resort or not failure.retryable or made >= retry.attempts:
            return
        wait_s = backoff_s(retry, made, self._shared.ids.jitter(), failure.retry_after_s)
        if wait_s is None:
            return
        turn = _Turn(to, made, self._shared.clock.monotonic() + wait_s)
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
            if turn.made and condition.cooling_s:
                wait_s = max(wait_s, condition.cooling_s + _MARGIN_S)
            late = now_s + wait_s >= self._ends_s or wait_s > self._route.retry.cap_s + _MARGIN_S
            if late or not self._afford(turn, condition, now_s):
                continue
            left = self._budget.left
            if wait_s:
                await clock.sleep(wait_s)
            permit = await self._admit(turn.to)
            if permit is not None:
                return Try(turn.to, permit, turn.made + 1, "retry" if turn.made and why != ONWARD else why, wait_s, left)
        return None

    def onward(self, to: RouteTarget, made: int, failure: AttemptFailed) -> None:
        """A stream broke off: what is tried from here on are targets that can go on with it, that one last of all."""
        able = [placed.to for placed in self._plan.order if placed.to.continues is not None]
        self._turns = deque(_Turn(each) for each in able if each is not to)
        if to in able and failure.retryable and made < self._route.retry.attempts:
            self._turns.append(_Turn(to, made))

    def rest_s(self) -> float:
        """How long the first of the targets still wants to be left alone, 1 s where none says."""
        return min((each for placed in self._plan.order if (each := self._condition(placed.to).cooling_s)), default=1.0)

    async def beside(self, to: RouteTarget, made: int) -> Try | None:
        """An attempt beside one of `to` that is slow to answer: of another target, if there is one. None where it cannot be had."""
        if self._plan.last_resort or not self._budget.take_hedge():
            return None
        other = next((turn for turn in self._turns if turn.made == 0 and self._condition(turn.to).state == "closed"), None)
        if other is not None:
            self._turns.remove(other)
            to, made = other.to, 0
        permit = await self._admit(to)
        return Try(to, permit, made + 1, "hedge") if permit is not None else None

    def under_way(self) -> None:
        """The last attempt that was given out has begun: its end takes the permit back."""
        self._out = None

    def close(self) -> None:
        """The call is over: nobody holds a permit for it any more."""
        if self._out is not None:
            self._shared.breakers.ended(self._out, _UNUSED)
            self._out = None

    async def _rest(self) -> None:
        """Wait where every target asked to be left alone for a while, and it is not long."""
        wait_s = self._plan.wait_s
        if not wait_s:
            return
        if wait_s > self._route.retry.cap_s or self._shared.clock.monotonic() + wait_s >= self._ends_s:
            raise busy(wait_s)
        await self._shared.clock.sleep(wait_s + _MARGIN_S)

    def _afford(self, turn: _Turn, condition: Condition, now_s: float) -> bool:
        """Whether the retry budget has an attempt left. A target that is answering takes what another has failed at, come what may."""
        if self._budget.take(self._route.retry, now_s):
            return True
        if turn.made == 0 and condition.answering:
            return True
        self._shared.telemetry.retries_spent(self._route.name)
        return False

    def _condition(self, to: RouteTarget) -> Condition:
        return self._shared.breakers.condition(to)

    async def _admit(self, to: RouteTarget, *, last_resort: bool = False) -> Permit | None:
        lease_s = self._route.deadlines.total_s + _LEASE_S
        self._out = permit = await self._shared.breakers.admit(to, self._call_id, lease_s=lease_s, last_resort=last_resort)
        return permit


def busy(wait_s: float) -> UpstreamBusy:
    """The error where every target asks to be left alone."""
    seconds = max(1, min(ceil(wait_s), _LONGEST_WAIT_S))
    return UpstreamBusy(f"Every target has asked to be left alone for a while (429). Try again in {seconds} s.", retry_after_s=seconds)
