"""The end of a call's path: its books are closed, then its client has its answer, its error, or the end of its stream."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gateway.answer import accepted, answer_headers, closing_figures, figures
from gateway.approvals.holding import Finished, Holding
from gateway.call import AttemptEnd, Call, Outcome, Reply
from gateway.clock import Clock
from gateway.core.approval import WAITS_FOR, Result
from gateway.errors import (
    LONGEST_MESSAGE,
    ApprovalAccepted,
    ApprovalDenied,
    ApprovalPending,
    CallError,
    Forbidden,
    InternalError,
    StoreUnavailable,
    Unauthenticated,
    UnknownRoute,
    UpstreamFailed,
)
from gateway.gate import as_events
from gateway.progress import Progress
from gateway.relay import Client, Source, let_rest
from gateway.settle import Settler
from gateway.store.scrub import Scrubber
from gateway.tools import OPERATION, head_of
from gateway.wire.protocol import Dialect
from gateway.wire.strict_json import dumps, loads

_STORE_FAILS: Final = (
    "The store cannot be used at the moment, so it cannot be known whether this call is allowed, nor put on record. Try again.")


@dataclass(frozen=True, slots=True)
class Answering:
    """Gives answers, each once its record is durable. One per gateway."""

    settler: Settler
    holding: Holding
    scrubber: Scrubber
    clock: Clock

    async def answer(self, case: Progress, call: Call, dialect: Dialect, client: Client, reply: Reply) -> None:
        """Settle a call that has its whole answer, and give it."""
        body = self.scrubber.bytes(dialect.answer(call, reply))  # a provider that repeats its key gives it to nobody
        status, content_type = head_of(call, reply)
        if case.claim is not None or case.kept is not None:
            kept = body if call.operation == OPERATION else self.scrubber.bytes(dumps(reply.body))
            case.result = Result(status, content_type or "", kept, figures(case))
        await self.settler.settle(case, Outcome.COMPLETED, status, response=reply.body)
        if case.kept is not None and case.result is not None:
            with contextlib.suppress(StoreUnavailable):  # then it is for this caller alone
                await self.holding.answers.stands(case, case.result)
        case.shown = True
        if case.presence.begin is None:
            await client.answer(status, answer_headers(case), body, content_type)
        else:
            await self._answer_streamed(case, client, reply)
        await self._given(case)

    async def _answer_streamed(self, case: Progress, client: Client, reply: Reply, made: Mapping[str, str] = MappingProxyType({})) -> None:
        """A whole answer for a client that asked for a stream; `made` is what it says of itself where it was made before."""
        if case.presence.begin is not None:
            await case.presence.begin()
        encoder = case.encoder
        if encoder is None:
            raise InternalError("A stream has no encoder.")
        data = b"".join([encoder.event(event) for event in as_events(reply)])
        await client.end(self.scrubber.bytes(data) + encoder.comment(closing_figures(case, made)) + encoder.end())

    async def _given(self, case: Progress) -> None:
        """Whoever waited for an approval has its answer: it is not kept any longer."""
        if case.approval is not None and not case.presence.performing:
            with contextlib.suppress(StoreUnavailable):  # then it is given once more where it is asked for once more
                await self.holding.answers.given(case)

    async def give(self, case: Progress, done: Finished, dialect: Dialect, client: Client) -> None:
        """Settle a call whose action was done before, under its approval, and give its client what came of it."""
        result, call = done.result, case.call
        well = result.status < 400
        # What an upstream has said stands with the call that it was said to, as far as it is kept.
        error = None if well else UpstreamFailed(f"The approved action failed, see the call that made it ({done.ticket.executed_by}).")
        await self.settler.settle(case, Outcome.COMPLETED if well else case.outcome_of_failure, result.status, error=error)
        made = {**result.headers, **({} if done.ticket.delivered_ns is None else {"X-Lockgate-Replayed": "true"})}
        headers = {**answer_headers(case), **({} if well else {"X-Should-Retry": "false"}), **made}
        if call is None or call.operation == OPERATION or not well:
            if case.encoder is not None:
                failed = UpstreamFailed(f"The approved action failed: {result.body.decode(errors='replace')[:LONGEST_MESSAGE]}")
                await client.end(case.encoder.error(failed, case.id))
            else:
                await client.answer(result.status, headers, result.body, result.content_type or None)
        else:
            reply = Reply(loads(result.body), None)
            if case.presence.begin is not None:
                await self._answer_streamed(case, client, reply, made)
            else:
                await client.answer(result.status, headers, dialect.answer(call, reply))
        await self._given(case)

    async def end_stream(self, case: Progress, client: Client, stream: Source, rest: bytes) -> None:
        """Settle a call whose stream has come to its end, and give the end."""
        case.end_attempts(AttemptEnd.SUCCEEDED, ended_ns=self.clock.now_ns(), status=stream.status)
        if case.claim is not None and case.tally is not None and case.tally.assembler is not None:
            case.result = Result(200, "", self.scrubber.bytes(dumps(case.tally.assembler.body())), figures(case))
        try:
            await self.settler.settle(case, Outcome.COMPLETED, 200)
            if case.encoder is not None:
                await client.end(rest + case.encoder.comment(closing_figures(case)) + case.encoder.end())
            await self._given(case)
        finally:
            if not case.cut_short:
                self.settler.own(let_rest(stream))

    async def fail(self, case: Progress, error: CallError, dialect: Dialect, client: Client) -> None:
        """Settle a call that ended with an error, then give the client that error in its own dialect."""
        outcome = case.outcome_of_failure
        for trying in tuple(case.open):  # one that could not even be written, or one whose provider works for nobody any more
            end = AttemptEnd.CANCELLED if trying.sent else AttemptEnd.REJECTED
            case.end_attempt(trying, end, ended_ns=self.clock.now_ns(), message=error.message)
        try:
            if isinstance(error, StoreUnavailable):
                raise error
            await self.holding.answers.put_back(case)
            if case.presence.performing and isinstance(error, Forbidden | ApprovalDenied | UnknownRoute | Unauthenticated):
                await self.holding.refuse(case.presence.performing, error.message)  # denied is denied, whoever had approved it
            if case.claim is not None:
                words = b"" if isinstance(error, ApprovalPending) else dialect.error(error, case.id)
                waits = {WAITS_FOR: error.ticket} if isinstance(error, ApprovalPending) else {}
                case.result = Result(error.status, "", words, {**figures(case), **waits})
            await self.settler.settle(case, outcome, error.status, error=error)
        except StoreUnavailable as worse:  # an answer is never sent before its record is durable, so this is the answer
            self.settler.settle_later(case, outcome, worse.status, worse)
            error = StoreUnavailable(_STORE_FAILS, retry_after_s=1)  # where the store is and what ails it is the log's to say
        if case.encoder is not None:
            await client.end(case.encoder.error(error, case.id))
        elif isinstance(error, ApprovalAccepted):
            await client.answer(error.status, answer_headers(case, error), accepted(error))
        else:
            await client.answer(error.status, answer_headers(case, error), dialect.error(error, case.id))
