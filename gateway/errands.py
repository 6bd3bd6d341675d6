"""Calls that the gateway makes by itself for a caller's: a mirror's copy, a classifier's question. Each has its own record and its own money.

They are sent once, to a target that is well, and take no rate of their caller's. What goes wrong with one stands in its record, or is
counted where there is none, and is never the caller's business.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.call import AttemptEnd, Call, JsonObject, Outcome, Reply
from gateway.core.breaker import Ended
from gateway.core.classify import answered, digest, question, text_of
from gateway.core.decision import Denied
from gateway.core.order import Placed, Plan
from gateway.core.plan import Classifier, Deadlines, Retry, Route, RouteTarget, permitted
from gateway.core.retries import RetryBudget
from gateway.dispatch import Dispatcher, Errand
from gateway.errors import AttemptFailed, CallError, InternalError, LockgateError, Overloaded, PriceUnknown, UpstreamFailed, UpstreamTimeout
from gateway.meter import meter_of
from gateway.progress import Progress, Tally
from gateway.relay import Source
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import Spending, spending_of
from gateway.tools import OPERATION
from gateway.tries import Pursuit, Tries, Try
from gateway.wire.assemble import Assembler
from gateway.wire.strict_json import dumps

MIRROR: Final = "mirror"
CLASSIFIER: Final = "classifier"
_MOST_MIRRORS: Final = 100  # under way at a time: a slow one must not fill the process
_MOST_QUESTIONS: Final = 1000
_MOST_REMEMBERED: Final = 10_000
_LEASE_S: Final = 5.0  # past an errand's last moment, for its end to be told
_ONCE: Final = Retry(1, 0.0, 0.0, 0.0, 0.0)
_UNUSED: Final = Ended("neutral", "unused")
_CANCELLED: Final = 499


class NotMadeError(Exception):
    """Nothing was sent, and nothing is on record. `reason` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Own:
    """One call of the gateway's own. `route` has its only target, and its deadlines."""

    kind: str
    case: Progress
    call: Call
    route: Route
    snapshot: Snapshot
    spending: Spending

    @property
    def to(self) -> RouteTarget:
        """Where it goes."""
        return self.route.targets[0]


class Errands:
    """Makes calls of the gateway's own, and owns them until they are settled. One per gateway."""

    def __init__(self, dispatcher: Dispatcher, pursuit: Pursuit, settler: Settler) -> None:
        self._dispatcher = dispatcher
        self._pursuit = pursuit
        self._settler = settler
        self._tasks: set[asyncio.Task[Any]] = set()
        self._mirrors: set[asyncio.Task[Any]] = set()
        self._asking: dict[bytes, asyncio.Task[str | None]] = {}
        self._said: OrderedDict[bytes, tuple[float, str | None]] = OrderedDict()  # until when it holds, and the task that was named

    def __repr__(self) -> str:
        return f"Errands({len(self._mirrors)} mirrors, {len(self._asking)} questions, {len(self._said)} remembered)"

    def mirror(self, case: Progress, call: Call, route: Route, snapshot: Snapshot) -> None:
        """Send a copy of a call, whose intent is on disk, to each mirror of its route that its lot falls on. Waits for nothing."""
        for mirror in route.mirrors if call.operation != OPERATION else ():
            if self._pursuit.ids.jitter() * 100 >= mirror.percent:
                continue
            reason = self._against(case, mirror.to) or ("full" if len(self._mirrors) >= _MOST_MIRRORS else "")
            if reason:
                self._pursuit.telemetry.part_not_made(MIRROR, reason)
                continue
            made = self._case(case, MIRROR, call.operation)
            copy = made.call = replace(call, id=made.id)
            spending = case.spending or spending_of(call, route, call.body, self._dispatcher.scrub)
            own = Own(MIRROR, made, copy, _alone(route.name, copy, mirror.to, route.deadlines), snapshot,
                      Spending(spending.subjects, spending.measured))
            task = self._own(self._make(own))
            self._mirrors.add(task)
            task.add_done_callback(self._mirrors.discard)

    async def classify(self, case: Progress, call: Call, route: Route, snapshot: Snapshot) -> str:
        """What kind of task a call is, as its route's classifier says: one of its `tasks` whatever happens, and in time.

        Where it is the default that counts, why is noted in `case.notes`.
        """
        classifier = route.classifier
        if classifier is None:
            return ""
        text = text_of(call)
        try:
            if not text:
                raise NotMadeError("no text")
            task = await self._task(case, call, replace(route, classifier=classifier), snapshot, text)
        except NotMadeError as error:
            case.notes.append(f"classifier: {error.reason}; taken for {classifier.default}")
            return classifier.default
        return task

    async def close(self, wait_s: float, cut_s: float) -> None:
        """Let what is under way end by itself for a while, then end it. Each call is settled, as far as the store takes it."""
        for end, patience_s in ((False, wait_s), (True, cut_s)):
            tasks = set(self._tasks)
            for task in tasks if end else ():
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=patience_s)
