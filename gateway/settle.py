"""The books of a call: its intent before anything leaves, exactly one outcome after, whatever the caller or the store does meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

import orjson

from gateway.call import AttemptEnd, Call, CallRecord, JsonObject, Outcome
from gateway.clock import Clock
from gateway.core.accounts import BudgetBook
from gateway.core.approval import Event
from gateway.core.budget import Short
from gateway.core.plan import RouteTarget
from gateway.core.rate import Spent
from gateway.derive import answer_name
from gateway.enact import rate_spent, takes_of
from gateway.errors import (
    ApprovalPending,
    CallError,
    InvalidRequest,
    LockgateError,
    Overloaded,
    RateLimited,
    StoreError,
    StoreUnavailable,
    UpstreamFailed,
    UpstreamRejected,
)
from gateway.progress import NOBODY, Progress, id_of
from gateway.spending import Spending, likely_tokens, refusal
from gateway.store.approvals_protocol import Unclaimed
from gateway.store.protocol import Admitted, Booked, Demand, Intent, Journal
from gateway.store.scrub import Scrubber, reduce_body
from gateway.telemetry import Telemetry
from gateway.tools import OPERATION

_FIRST_PAUSE_S: Final = 0.1  # between two tries to write an outcome that the store could not take
_LONGEST_PAUSE_S: Final = 5.0
_LONGEST_RESULT: Final = 64 * 1024  # characters of a tool's result that rules may ask for later
_MOST_SETTLING: Final = 10_000  # outcomes that wait for a store to come back; more are given up, and their calls marked at the next start


class Settler:
    """Writes intents and outcomes. Owns the settlements that outlive their calls; `stopping` ends their patience with the store."""

    def __init__(self, journal: Journal, telemetry: Telemetry, clock: Clock, scrubber: Scrubber) -> None:
        self.stopping = False
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._scrubber = scrubber
        self._settling: set[asyncio.Task[None]] = set()

    async def begin(self, case: Progress, call: Call, first: RouteTarget, book: BudgetBook, spending: Spending) -> None:
        """Write the intent of a call and of its first attempt, with its money and its rates; returns when it is on disk.

        Raises:
            BudgetExceeded, BudgetBusy, PriceUnknown, RateLimited: an account or a rate does not reach; nothing is written.
            StoreUnavailable: nobody can say whether it is.
        """
        case.spending = spending
        takes = takes_of(case.limits, spending.subjects, likely_tokens(spending.measured))
        demand = Demand(book, spending.subjects, spending.need(first), takes)
        case.begun = True  # even if the wait below is cut short, the intent may be written: an outcome must follow it
        record = self._scrubber.record(self._kept(case, case.record(Outcome.INTERRUPTED, ended_ns=case.received_ns, status=0)))
        try:
            intent = Intent(record, first.target, self._stored(case, call.body), demand, case.claim, case.grants, self._clock.now_ns())
            answer = await self._journal.begin(intent)
        except (StoreUnavailable, asyncio.CancelledError):
            case.doubtful = True
            raise
        match answer:
            case Admitted():
                spending.granted, spending.standings = answer.granted, answer.standings
                case.granted += case.grants
                if case.claim is not None and case.under is not None:
                    self._telemetry.approval("claimed", case.under, call=case.id)
            case Short():
                case.begun = False
                case.account = answer.holding.account.name
                raise refusal(answer, str(first.target))
            case Spent():
                case.begun = False
                raise rate_spent(answer)
            case Unclaimed():
                case.begun, case.claim = False, None
                raise _not_claimed(case)

    async def settle(
        self, case: Progress, outcome: Outcome, status: int, *, error: CallError | None = None, response: JsonObject | None = None,
    ) -> None:
        """Write the outcome; returns when it is on disk. Raises `StoreUnavailable`, and then the call is not settled yet."""
        case.settled = True
        record, write = self._closing(case, outcome, status, error, response)
        written = True
        try:
            self._note(case, await write())
        except StoreUnavailable:
            case.settled = written = False
            raise
        except asyncio.CancelledError:  # a write is queued, but may fail: then nobody else would try again
            case.doubtful = True
            self.own(self._write_until_written(case, write))
            raise
        finally:
            if written:
                self._telemetry.publish(record)

    def settle_later(self, case: Progress, outcome: Outcome, status: int, error: LockgateError) -> asyncio.Task[None]:
        """Settle in a task of its own: neither a cancelled caller nor a store that fails for a while can take the record with it."""
        cancelled = outcome in (Outcome.CANCELLED, Outcome.INTERRUPTED)
        case.end_attempts(AttemptEnd.CANCELLED if cancelled else AttemptEnd.FAILED, ended_ns=self._clock.now_ns())
        case.settled = True
        record, write = self._closing(case, outcome, status, error, None)
        self._telemetry.publish(record)
        return self.own(self._write_until_written(case, write))

    def _closing(
        self, case: Progress, outcome: Outcome, status: int, error: LockgateError | None, response: JsonObject | None,
    ) -> tuple[CallRecord, Callable[[], Awaitable[Booked | None]]]:
        """The record of a call that ends now, and what writes it. A stranger leaves no row, and so cannot fill the disk."""
        if case.chained:
            answer_id = id_of(response) if response is not None else case.tally.answer_id if case.tally else ""
            case.answer_id = answer_name(answer_id, self._scrubber.text) if answer_id else ""
        record = case.record(outcome, ended_ns=self._clock.now_ns(), status=status, code=error.code if error else "",
                             message=self._scrubber.text(_told(case, error)) if error else "")
        if isinstance(error, RateLimited):  # no decision says it: the rules let the call go on, but not so often
            record = replace(record, rule=error.rule)
        record = self._kept(case, record)
        if case.begun:  # scrubbed when its intent was written, but for what came back
            if record.verdicts or record.tool_uses:
                record = self._scrubber.record(record)
            if response is None and case.tally and case.tally.assembler:
                response = case.tally.assembler.body()
            result = case.result if record.approval_end in (Event.SUCCEED, Event.FAIL) else None  # else nobody knows yet what came of it
            return record, partial(self._journal.finish, record, response=self._stored(case, response), result=result)
        record = self._scrubber.record(record)
        if case.principal is NOBODY:
            return record, _write_nothing
        return record, partial(self._journal.refuse, record, request=self._stored(case, case.call.body if case.call else None))

    def _note(self, case: Progress, booked: Booked | None) -> None:
        """What the books say once a call is in them: what is left, and what somebody should hear of."""
        if booked is None:
            return
        case.booked = booked
        if case.spending is not None and booked.standings:
            case.spending.standings, case.spending.open = booked.standings, False
        for account in booked.crossed:
            self._telemetry.soft_limit(account.name, account.soft_nusd or 0, call=case.id)
        if booked.overrun_nusd:
            self._telemetry.overrun([each.account.name for each in booked.standings], booked.overrun_nusd, call=case.id)

    async def _write_until_written(self, case: Progress, write: Callable[[], Awaitable[Booked | None]]) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                self._note(case, await write())
            except StoreUnavailable:
                if self.stopping or len(self._settling) > _MOST_SETTLING:
                    raise
            except StoreError as error:  # it has its outcome; or it never began, which is what was in doubt
                if not case.doubtful:
                    self._telemetry.event("error", "outcome_not_written", call=case.id, error=error.message)
                return
            else:
                return
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.event("error", "settlement_failed", error=f"{type(error).__name__}: {error}")

    async def drained(self, timeout_s: float = 10.0) -> None:
        """Wait until every settlement that outlived its call is written, `timeout_s` at most; what is left then is given up."""
        if self._settling:
            _done, late = await asyncio.wait(self._settling, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _kept(self, case: Progress, record: CallRecord) -> CallRecord:
        """The record with as much of arguments and results as the journal may keep."""
        if _keeps_no_words(case):
            record = replace(record, attempts=tuple(replace(each, message="") if each.status else each for each in record.attempts))
        if not record.tool_uses and not record.tool_results:
            return record
        if case.bodies == "full":
            return replace(record, tool_results=tuple((name, text[:_LONGEST_RESULT]) for name, text in record.tool_results))
        uses = tuple(replace(use, args=orjson.loads(self._stored(case, use.args, invented=True) or b"{}")) for use in record.tool_uses)
        return replace(record, tool_uses=uses, tool_results=())

    def _stored(self, case: Progress, body: JsonObject | None, *, invented: bool = False) -> bytes | None:
        if body is None:
            return None
        kept = reduce_body(body, case.bodies, invented=invented or case.operation == "tool")
        return None if kept is None else self._scrubber.bytes(kept)


def _keeps_no_words(case: Progress) -> bool:
    """Whether the words of a tool's errors, which are its results, may not be kept: bodies may not, or a rule had a say in it.

    What the rule let pass stands in the message of the call.
    """
    return case.operation == OPERATION and (case.bodies != "full" or any(each.phase == "tool_result" for each in case.verdicts))


def _told(case: Progress, error: LockgateError) -> str:
    """What the caller was told, as far as it may be kept: a tool's words and names of arguments no longer than bodies."""
    if case.operation != OPERATION or case.bodies == "full":
        return error.message
    quoted = isinstance(error, UpstreamRejected | UpstreamFailed) and any(each.status for each in case.attempts)
    named = isinstance(error, InvalidRequest) and case.bodies == "none"
    return f"[redacted: {len(error.message)} characters]" if quoted or named else error.message


def _not_claimed(case: Progress) -> CallError:
    """Another call was faster, or what was approved or granted has ended in this very moment. Nothing was sent."""
    if case.approval is None:
        return Overloaded("What was granted for this call is used up or revoked. Try again.", retry_after_s=1)
    return ApprovalPending("The approval of this call has just been taken by another one. Send it again to learn what came of it.",
                           ticket=case.approval.id, rule=case.approval.rule, retry_after_s=1)


async def _write_nothing() -> None:
    """Write nothing: nobody known asked for anything."""
