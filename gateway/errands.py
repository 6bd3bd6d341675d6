"""Calls that the gateway makes by itself for a caller's: a mirror's copy, a classifier's question, a read that finds out what came of an
approved one. Each has a record and money of its own.

They are sent once, to a target that is well, and take no rate of their caller's. What goes wrong with one stands in its record, or is
counted where there is none, and is never the caller's business.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from gateway.call import AttemptEnd, Call, Outcome, Reply
from gateway.core.classify import answered, digest, question, text_of
from gateway.core.decision import Denied
from gateway.core.order import Placed, Plan
from gateway.core.plan import Classifier, Deadlines, Retry, Route, RouteTarget, permitted
from gateway.core.retries import RetryBudget
from gateway.dispatch import Dispatcher, Errand
from gateway.errors import AttemptFailed, CallError, InternalError, LockgateError, Overloaded, PriceUnknown, UpstreamFailed, UpstreamTimeout
from gateway.meter import meter_of
from gateway.progress import Progress, Tally
from gateway.relay import Source, let_rest
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import Spending, spending_of
from gateway.tools import OPERATION
from gateway.tries import LEASE_S, UNUSED, Pursuit, Tries, Try
from gateway.wire.assemble import Assembler
from gateway.wire.strict_json import dumps

Done = TypeVar("Done")

MIRROR: Final = "mirror"
CLASSIFIER: Final = "classifier"
VERIFY: Final = "verify"
_MOST_MIRRORS: Final = 100  # under way at a time: a slow one must not fill the process
_MOST_QUESTIONS: Final = 1000
_MOST_REMEMBERED: Final = 10_000
_ONCE: Final = Retry(1, 0.0, 0.0, 0.0, 0.0)


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


@dataclass(frozen=True, slots=True)
class Word:
    """What a classifier says: a task, or None and why there is none."""

    task: str | None
    why: str = ""


class Errands:
    """Makes calls of the gateway's own, and owns them until they are settled. One per gateway."""

    def __init__(self, dispatcher: Dispatcher, pursuit: Pursuit, settler: Settler) -> None:
        self._dispatcher = dispatcher
        self._pursuit = pursuit
        self._settler = settler
        self._tasks: set[asyncio.Task[Any]] = set()
        self._mirrors: set[asyncio.Task[Any]] = set()
        self._asking: dict[bytes, asyncio.Task[Word]] = {}
        self._said: OrderedDict[bytes, tuple[float, Word]] = OrderedDict()  # until when it holds

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
            made.call = copy = replace(call, id=made.id)
            spending = case.spending or spending_of(call, route, call.body, self._dispatcher.scrub)
            alone = _alone(route.name, copy, mirror.to, snapshot.routes[route.name].deadlines)  # whatever the caller's own are
            task = self._own(self._make(Own(MIRROR, made, copy, alone, snapshot, Spending(spending.subjects, spending.measured))))
            self._mirrors.add(task)
            task.add_done_callback(self._mirrors.discard)

    async def classify(self, case: Progress, call: Call, route: Route, snapshot: Snapshot) -> str:
        """What kind of task a call is, as its route's classifier says: one of its `tasks` whatever happens, and in time.

        Where it is the default that counts, `case.notes` say why.
        """
        classifier = route.classifier
        if classifier is None:
            return ""
        word = await self._word(case, call, route, classifier, snapshot)
        if word.task is None:
            case.notes.append(f"classifier: {word.why}")
        return word.task or classifier.default

    async def read(self, case: Progress, call: Call, snapshot: Snapshot) -> Reply | None:
        """Ask a tool that reads, and settle the call. None where it has no answer; how it ended `case` says."""
        route = snapshot.routes[call.route]
        alone = _alone(route.name, call, route.targets[0], route.deadlines)
        spending = spending_of(call, alone, call.body, self._dispatcher.scrub)
        reply, _why = await self._own(self._make(Own(VERIFY, case, call, alone, snapshot, spending)))
        return reply

    async def close(self, wait_s: float, cut_s: float) -> None:
        """Let what is under way end by itself for a while, then end it: each call is settled, as far as the store takes it."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=wait_s)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=cut_s)

    async def _word(self, case: Progress, call: Call, route: Route, classifier: Classifier, snapshot: Snapshot) -> Word:
        text = text_of(call)
        if not text:
            return Word(None, "no text")
        key = digest(classifier, text)
        until_s, word = self._said.get(key, (0.0, None))
        if word is not None and until_s > self._pursuit.clock.monotonic():
            return word
        asking = self._asking.get(key)
        if asking is None:
            reason = self._against(case, classifier.to) or ("full" if len(self._asking) >= _MOST_QUESTIONS else "")
            if reason:
                self._pursuit.telemetry.part_not_made(CLASSIFIER, reason)
                return Word(None, reason)
            own = self._question(case, call, route, classifier, snapshot, text)
            asking = self._asking[key] = self._own(self._ask(own, classifier, key))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        done, _ = await asyncio.wait({asking}, timeout=classifier.deadline_s)  # it goes on for others where this caller is gone
        if not done:
            return Word(None, "late")
        return Word(None, "failed") if asking.cancelled() or asking.exception() else asking.result()

    def _question(
        self, case: Progress, call: Call, route: Route, classifier: Classifier, snapshot: Snapshot, text: str,
    ) -> Own:
        made = self._case(case, CLASSIFIER, "chat")
        body = question(classifier, text)
        made.call = asked = replace(call, id=made.id, operation="chat", body=body, stream=False, size=len(dumps(body)))
        limit_s = classifier.deadline_s
        alone = _alone(route.name, asked, classifier.to, Deadlines(limit_s, limit_s, limit_s, limit_s, limit_s, hurried=True))
        return Own(CLASSIFIER, made, asked, alone, snapshot, spending_of(asked, alone, body, self._dispatcher.scrub))

    async def _ask(self, own: Own, classifier: Classifier, key: bytes) -> Word:
        """Ask, and remember what was said: also that it was none of the tasks, which it would be again. A failure is not remembered."""
        reply, why = await self._make(own)
        if reply is None:
            return Word(None, why)
        task = answered(classifier.tasks, reply.body)
        word = Word(task, "" if task else "unclear")
        if classifier.cache_s:
            self._said[key] = self._pursuit.clock.monotonic() + classifier.cache_s, word
            self._said.move_to_end(key)
            if len(self._said) > _MOST_REMEMBERED:
                self._said.popitem(last=False)
        return word

    def _against(self, case: Progress, to: RouteTarget) -> str:
        """Why a call may not go there; empty where it may. What rules take out of a route, a copy of the call may not reach either."""
        reroutings = [each for decision in case.decisions if not isinstance(decision, Denied) for each in decision.reroutings]
        if not permitted(to, reroutings):
            return "rules"
        return "" if self._pursuit.breakers.condition(to).admits else "breaker"

    def _case(self, whole: Progress, kind: str, operation: str) -> Progress:
        """What is known of a call that is made for another: it goes out under the decision on that one, which has told the reasons."""
        call_id, now_ns = self._pursuit.ids.call_id(), self._pursuit.clock.now_ns()
        decided = [replace(whole.decision, reasons=(), labels=())] if whole.decision is not None else []
        return Progress(call_id, whole.dialect, operation, now_ns, whole.bodies, whole.principal, whole.origin, decisions=decided,
                        labels={kind: None}, part_of=whole.id)

    async def _make(self, own: Own) -> tuple[Reply | None, str]:
        """Make a call and settle it, however it ends; its plain answer, or None and why there is none."""
        case, clock = own.case, self._pursuit.clock
        error: LockgateError = InternalError("The gateway failed inside; see its log.")
        try:
            async with asyncio.timeout(own.route.deadlines.total_s):
                reply = await self._send(own)
            await self._settler.settle(case, Outcome.COMPLETED, 200, response=reply.body if reply else None)
        except NotMadeError as reason:
            case.settled = True
            self._pursuit.telemetry.part_not_made(own.kind, reason.reason)
            return None, reason.reason
        except TimeoutError:
            error = UpstreamTimeout("The `total` deadline passed before the answer was complete.")
            failure = AttemptFailed("timeout:total", "the call's time was up", retryable=False)
            case.end_attempts(AttemptEnd.CUT if case.tally else AttemptEnd.FAILED, ended_ns=clock.now_ns(), failure=failure)
            return None, "late"
        except CallError as failed:
            error = failed
            return None, "failed"
        except asyncio.CancelledError:
            error = Overloaded("The gateway was stopped before the answer was complete.")
            case.end_attempts(AttemptEnd.CANCELLED, ended_ns=clock.now_ns())
            raise
        else:
            return reply, ""
        finally:
            if not case.settled:
                status = error.status if isinstance(error, CallError) else 500
                self._settler.settle_later(case, case.outcome_of_failure, status, error)

    async def _send(self, own: Own) -> Reply | None:
        """Set the money aside, send it, take the answer; None for a stream, which is read to its end.

        Raises:
            NotMadeError: there is no money for it, or its target is not well.
            CallError: it failed.
        """
        case, to, total_s = own.case, own.route.targets[0], own.route.deadlines.total_s
        breakers = self._pursuit.breakers
        permit = await breakers.admit(to, case.id, lease_s=total_s + LEASE_S)
        if permit is None:
            raise NotMadeError("breaker")
        try:
            await self._begin(own)
            plan = Plan("priority", (Placed(to, own.kind, breakers.condition(to)),))
            tries = Tries(self._pursuit, case.id, own.route, plan, RetryBudget(0.0, 0.0), self._pursuit.clock.monotonic() + total_s)
            got = await self._dispatcher.send(Errand(case, own.call, own.route, own.route.deadlines, tries, own.snapshot), Try(to, permit))
            if isinstance(got, Reply):
                return got
            await self._read(case, got)
            return None
        finally:
            if not case.begun_attempts:
                breakers.ended(permit, UNUSED)

    async def _begin(self, own: Own) -> None:
        try:
            await self._settler.begin(own.case, own.call, own.route.targets[0], own.snapshot.budgets, own.spending)
        except CallError as short:
            if own.case.begun:  # nobody can say whether it is on record
                raise
            raise NotMadeError("price" if isinstance(short, PriceUnknown) else "budget") from short

    async def _read(self, case: Progress, source: Source) -> None:
        """Read a stream to its end, and drop it. It costs what it costs: its attempt and its record say how much that was."""
        trying, scrub = case.trying, self._dispatcher.scrub
        if trying is None:
            raise InternalError("A stream is open without an attempt.")
        meter = meter_of(case, trying, self._dispatcher.budgets)
        case.tally = tally = Tally(Assembler() if case.bodies != "none" else None)
        ended = False
        try:
            while not ended and not case.cut_short:
                event = source.take()
                if event is None:
                    await source.more()
                    continue
                ended = event.done
                case.cut_short = not ended and meter is not None and not await meter.covers(event)
                tally.add(event)
        except AttemptFailed as failure:
            failure.scrub(scrub)
            case.end_attempt(trying, AttemptEnd.CUT, ended_ns=self._pursuit.clock.now_ns(), failure=failure)
            raise UpstreamFailed(f"The answer broke off: {failure.cause} ({failure.message}).") from failure
        finally:
            case.finish_reasons = tuple(map(scrub, tally.finish_reasons))
            if not ended:
                source.abort()
        case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=self._pursuit.clock.now_ns(), status=source.status)
        if ended:
            self._own(let_rest(source))

    def _own(self, work: Coroutine[Any, Any, Done]) -> asyncio.Task[Done]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._pursuit.telemetry.event("error", "errand_failed", error=f"{type(error).__name__}: {error}")


def _alone(name: str, call: Call, to: RouteTarget, deadlines: Deadlines) -> Route:
    """A route to one target, which is asked once."""
    return Route(name, frozenset({call.operation}), (to,), deadlines, _ONCE)
