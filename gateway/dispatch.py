"""Sending a call: one attempt after another, now and then two beside each other, until one answers. Nothing has reached the client yet."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from gateway.attempts import listed, sum_up
from gateway.breakers import Breakers
from gateway.call import Attempt, AttemptEnd, Call, Reply
from gateway.clock import Clock
from gateway.core.answer_checks import NOT_ACCEPTED
from gateway.core.breaker import ended_of
from gateway.core.budget import Short
from gateway.core.plan import Deadlines, Route
from gateway.core.question import LARGE
from gateway.errors import (
    AttemptFailed,
    BudgetExceeded,
    CallError,
    StoreUnavailable,
    UpstreamRejected,
)
from gateway.meter import meter_of
from gateway.progress import Progress, Trying
from gateway.race import Answered, NotAccepted, Unfit, answers, first_answer, let_go
from gateway.relay import Limits, LiveStream, Source, hold
from gateway.snapshot import Provider, Snapshot
from gateway.spending import refusal
from gateway.store.protocol import Budgets, DispatchIntent, Journal
from gateway.tools import OPERATION, ToolAdapter
from gateway.tries import CASCADE, ONWARD, Tries, Try
from gateway.upstream.protocol import HttpAnswer, HttpRequest, Transport
from gateway.wire.protocol import Adapter
from gateway.wire.text_size import text_size

_ERROR_BODY_LIMIT: Final = 64 * 1024
_ERROR_BODY_WAIT_S: Final = 5.0
_LONGEST_WHY: Final = 200


@dataclass(frozen=True, slots=True)
class Errand:
    """One call on its way out: what does not change between its attempts. `deadlines` are the route's, as its client waits.

    `going_on`: it asks for the rest of a half answer.
    """

    case: Progress
    call: Call
    route: Route
    deadlines: Deadlines
    tries: Tries
    snapshot: Snapshot
    going_on: bool = False


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Sends calls upstream, with every attempt on disk before it leaves."""

    transport: Transport
    journal: Journal
    budgets: Budgets
    breakers: Breakers
    clock: Clock
    scrub: Callable[[str], str]  # a provider's words may repeat a key

    async def send(self, errand: Errand, first: Try) -> Answered:
        """Try what may be tried, `first` first; the first whole answer, or the first stream that says something, wins.

        Raises:
            UpstreamRejected: a provider refused the request itself; another would too.
            UpstreamFailed, UpstreamTimeout, UpstreamBusy: no target answered; lists every attempt.
        """
        trying = self._start(errand, first)
        kept: NotAccepted | None = None  # of a cascade: not what was wished for, and better than nothing
        while True:
            try:
                return await self._either(errand, trying)
            except NotAccepted as wish:
                failure: AttemptFailed = wish
                kept = wish if wish.valid else kept
            except AttemptFailed as error:
                failure = error
            except UpstreamRejected:
                if kept is None:
                    raise
                return self._after_all(errand.case, kept)
            errand.tries.failed(trying.to, failure)
            further, short = await self._further(errand, CASCADE if failure.cause == NOT_ACCEPTED else "fallback")
            if further is None:
                if kept is not None:
                    return self._after_all(errand.case, kept)
                if isinstance(short, BudgetExceeded):
                    errand.case.account = short.account
                if short is None and errand.route.approve and isinstance(failure, Unfit):
                    return self._unfit(errand.case, failure)
                raise short or _exhausted(errand, failure) from failure
            trying = further

    def _after_all(self, case: Progress, kept: NotAccepted) -> Answered:
        """The answer that a cascade went on from is given: nobody has another one."""
        case.given = kept.n
        case.finish_reasons = tuple(map(self.scrub, kept.reply.finish_reasons))
        return kept.answer

    def _unfit(self, case: Progress, failure: Unfit) -> Answered:
        """People look at the answer that is there: no target has given one that is what the route asks for."""
        case.unfit = failure.message
        case.finish_reasons = tuple(map(self.scrub, failure.reply.finish_reasons))
        return failure.reply

    async def resume(self, errand: Errand, broken: Trying, failure: AttemptFailed) -> Source | None:
        """Have a target go on with a stream that broke off; `errand.call` asks for that. None where nobody does."""
        errand.tries.onward(broken.to, failure)
        while (further := (await self._further(errand, ONWARD))[0]) is not None:
            try:
                got = await self._try(errand, further)
            except (AttemptFailed, UpstreamRejected):
                continue
            return None if isinstance(got, Reply) else got
        return None

    async def _further(self, errand: Errand, why: str) -> tuple[Trying | None, CallError | None]:
        """The next attempt, with its intent on disk and its money aside; None where there is none, and why if that is for want of money."""
        short: CallError | None = None
        while (tried := await errand.tries.next(why)) is not None:
            short = await self._record_intent(errand.case, tried)
            if short is None:
                return self._start(errand, tried), None
            errand.tries.close()  # another one may be cheaper
        return None, short

    async def _record_intent(self, case: Progress, tried: Try) -> CallError | None:
        """Put a further attempt's intent on disk and its money aside; the error where that does not reach."""
        target, spending = tried.to.target, case.spending
        answer = await self.journal.dispatch(DispatchIntent(
            call_id=case.id, n=case.next_n, target=target, started_ns=self.clock.now_ns(), waited_s=tried.waited_s,
            need=spending.need(tried.to) if spending else None, spent_nusd=case.spent_nusd))
        if isinstance(answer, Short):
            return refusal(answer, str(target))
        if spending is not None:
            spending.granted = answer
        return None

    def _start(self, errand: Errand, tried: Try) -> Trying:
        errand.tries.under_way(tried)
        case = errand.case
        return case.start_attempt(Trying(
            case.next_n, tried.to, self.clock.now_ns(), tried.waited_s, sent=False, why=tried.why,
            breaker=tried.permit.state, retries_left=tried.retries_left, permit=tried.permit, ended=partial(self._ended, errand)))

    def _ended(self, errand: Errand, trying: Trying, attempt: Attempt, failure: AttemptFailed | None) -> None:
        deadlines = errand.deadlines
        brief = attempt.ended_ns - attempt.started_ns < deadlines.total_s * 1e9 / 2
        # Time that was up before it had its chance, or in the middle of an answer, which is as long as was asked for and no faster than it
        # is read, says nothing of a target.
        hurried = attempt.cause == "timeout:total" and (deadlines.hurried or brief or attempt.first_byte_ns is not None)
        streamed = errand.call.stream or errand.call.operation == OPERATION
        if trying.permit is not None:
            ended = ended_of(attempt, failure.retry_after_s if failure else None, streamed=streamed, hurried=hurried)
            self.breakers.ended(trying.permit, ended)

    async def _either(self, errand: Errand, trying: Trying) -> Answered:
        """One attempt, and another one beside it where the route says so and it is slow. Raises what `_try` does, where neither answers."""
        hedge = errand.route.hedge
        if not hedge.after_s:
            return await self._try(errand, trying)
        racing = {asyncio.create_task(self._try(errand, trying)): trying}
        asking: asyncio.Task[Try | None] | None = None
        won: asyncio.Task[Answered] | None = None
        try:
            done, _ = await asyncio.wait(racing, timeout=hedge.after_s)
            if not done:
                first = next(iter(racing))
                asking = asyncio.create_task(self._beside(errand, trying))
                while not asking.done() and not answers(first):  # an answer does not wait for it
                    await asyncio.wait({each for each in (first, asking) if not each.done()}, return_when=asyncio.FIRST_COMPLETED)
                if not answers(first) and (tried := asking.result()) is not None:
                    asking, second = None, self._start(errand, tried)
                    racing[asyncio.create_task(self._try(errand, second))] = second
            won = await first_answer(racing)
            if asking is not None and isinstance(won.exception(), AttemptFailed):  # the call goes on: numbers and permits are settled first
                _let_go_of_asking(errand, asking)
                await asyncio.wait({asking})
                asking = None
            return won.result()
        finally:
            if asking is not None:
                _let_go_of_asking(errand, asking)
            self._drop(errand.case, racing, won)  # nothing is waited for: who is cancelled here would leave the winner to nobody

    async def _beside(self, errand: Errand, trying: Trying) -> Try | None:
        """An attempt beside one that is slow, on record; None where it cannot be had, for whatever reason: nobody depends on it."""
        tried = await errand.tries.beside(trying.to)
        if tried is None:
            return None
        had = doubtful = False
        try:
            had = await self._record_intent(errand.case, tried) is None
        except StoreUnavailable:
            doubtful = True
        except asyncio.CancelledError:
            doubtful = True
            raise
        finally:
            if not had:
                _not_made(errand, tried, doubtful=doubtful)
        return tried if had else None

    def _drop(self, case: Progress, racing: Mapping[asyncio.Task[Answered], Trying], won: asyncio.Task[Answered] | None) -> None:
        """End what did not win. Where nothing did, because the call is over, its end is that of all of them."""
        for task, trying in racing.items():
            if task is not won:
                let_go(task)
                late = AttemptFailed("hedged", "another attempt answered first", retryable=False)
                if won is not None:
                    case.end_attempt(trying, AttemptEnd.CANCELLED, ended_ns=self.clock.now_ns(), failure=late)

    async def _try(self, errand: Errand, trying: Trying) -> Answered:
        """One attempt. Its end goes on record here, unless it is an open stream: then whoever relays that records it."""
        case, call = errand.case, errand.call
        streams = call.stream and call.operation != OPERATION
        try:
            if streams:
                return await self._streamed(errand, trying)
            status, reply = await self._plain(errand, trying)
        except NotAccepted as wish:  # its provider has done its work
            wish.scrub(self.scrub)
            wish.n = trying.n
            case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=self.clock.now_ns(), failure=wish, status=wish.status)
            raise
        except AttemptFailed as failure:
            failure.scrub(self.scrub)
            case.end_attempt(trying, AttemptEnd.FAILED, ended_ns=self.clock.now_ns(), failure=failure)
            raise
        except UpstreamRejected as refusal:
            refusal.scrub(self.scrub)
            case.end_attempt(trying, AttemptEnd.REJECTED, ended_ns=self.clock.now_ns(), status=refusal.status, message=refusal.message)
            raise
        case.finish_reasons = tuple(map(self.scrub, reply.finish_reasons))
        case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=self.clock.now_ns(), status=status)
        return reply

    async def _plain(self, errand: Errand, trying: Trying) -> tuple[int, Reply]:
        provider = errand.snapshot.providers[trying.to.target.provider]
        deadlines = errand.deadlines
        answer = await self._head(errand, trying, provider, deadlines)
        try:
            trying.first_byte_ns = self.clock.now_ns()
            body = await answer.read(limit=provider.max_answer, idle_s=deadlines.idle_s)
            reply = _decoded(provider.adapter, errand.call, answer, body)
        finally:
            answer.release()  # back to the pool if it was read to its end, else closed: the provider stops working
        receipt = trying.receipt
        receipt.answered, receipt.text_bytes = True, text_size(reply.body)
        receipt.usage, receipt.usage_bytes = reply.usage, receipt.text_bytes
        await _check(errand, trying, reply, reply)
        return answer.status, reply

    async def _streamed(self, errand: Errand, trying: Trying) -> Source:
        provider = errand.snapshot.providers[trying.to.target.provider]
        deadlines = errand.deadlines
        stream: LiveStream | None = None
        begun = False
        try:
            async with asyncio.timeout(deadlines.first_token_s):
                answer = await self._head(errand, trying, provider, deadlines)
                decoder = _model(provider.adapter).decoder(errand.call)
                stream = LiveStream(answer, decoder, trying.receipt, Limits(deadlines.idle_s, provider.max_answer), self.clock)
                await stream.begin(2 * deadlines.first_token_s)  # the deadline around it is the one that counts
            trying.first_byte_ns = self.clock.now_ns()
            if trying.permit is not None:
                trying.permit = self.breakers.begun(trying.permit, (trying.first_byte_ns - trying.started_ns) / 1e9)
            if errand.route.checks is None:
                begun = True
                return stream
            held, reply = await hold(stream, meter_of(errand.case, trying, self.budgets))
            begun = True  # at its end: whoever shows it takes what comes after
            await _check(errand, trying, held, reply)
        except TimeoutError as error:
            told = f"nothing was said within {deadlines.first_token_s:g} s"
            raise AttemptFailed("timeout:first_token", told, retryable=True) from error
        finally:
            if stream is not None and not begun:
                stream.abort()
        return held

    async def _head(self, errand: Errand, trying: Trying, provider: Provider, deadlines: Deadlines) -> HttpAnswer:
        """Send it and wait for the head of a 2xx answer. Raises what another one means."""
        case, call = errand.case, errand.call
        sent = call if case.spending is None else replace(call, body=case.spending.body(call, trying.to))
        if errand.going_on:
            sent = replace(sent, body={**sent.body, **(trying.to.continues or {})})
        request = _request(sent, provider, trying, f"{case.id}.{trying.n}")
        answer = await self.transport.send(request, connect_s=deadlines.connect_s, headers_s=deadlines.headers_s)
        page = answer.headers.get("content-type", "").startswith("text/html") and call.operation != OPERATION
        if 200 <= answer.status < 300 and not page:
            return answer
        try:
            if 200 <= answer.status < 300:
                raise AttemptFailed("malformed", "the answer is a web page (`Content-Type: text/html`)", retryable=True)
            raise provider.adapter.decode_error(answer.status, answer.headers, await _error_page(answer))
        finally:
            answer.release()


def _request(call: Call, provider: Provider, trying: Trying, name: str) -> HttpRequest:
    made = provider.adapter.encode(call, trying.to.target, provider.api_key)
    headers = {**provider.headers, **made.headers, "x-client-request-id": name}
    if call.origin.traceparent is not None:
        headers["traceparent"] = call.origin.traceparent
    return HttpRequest(made.method, provider.base_url + made.path, headers, made.body, provider.private, trying.sending)


def _decoded(adapter: Adapter | ToolAdapter, call: Call, answer: HttpAnswer, body: bytes) -> Reply:
    """A whole 2xx answer. That of a tool says what it is in its head; that of a model is in its body alone."""
    return adapter.decode(answer.status, answer.headers, body) if isinstance(adapter, ToolAdapter) else adapter.decode(call, body)


async def _check(errand: Errand, trying: Trying, answer: Answered, reply: Reply) -> None:
    """Raise `AttemptFailed` for an answer that is not what the route asks for; of a cascade, while there is another target to ask.

    `reply` is the answer as a whole.
    """
    checks = errand.route.checks
    if checks is None:
        return
    look = partial(checks.fault, reply, str(trying.to.target), accepting=errand.tries.others)
    fault = await asyncio.to_thread(look) if trying.receipt.text_bytes >= LARGE else look()
    if fault is not None and not isinstance(answer, Reply):
        answer.abort()  # all of it has been read
    if fault is None:
        return
    why = checks.why(reply, str(trying.to.target), fault)[:_LONGEST_WHY]
    if fault == NOT_ACCEPTED:
        valid = checks.fault(reply, str(trying.to.target), accepting=False) is None
        raise NotAccepted(answer, reply, f"the answer is not what the cascade accepts: {why}", valid=valid)
    raise Unfit(fault, f"the answer is not what the route asks for: {why}", reply)


def _not_made(errand: Errand, tried: Try, *, doubtful: bool) -> None:
    """An attempt that was to stand beside another one is not made. `doubtful`: it may be on record, so nobody else takes its number."""
    errand.case.lost += doubtful
    errand.tries.not_beside(tried)


def _let_go_of_asking(errand: Errand, asking: asyncio.Task[Try | None]) -> None:
    asking.add_done_callback(partial(_give_back, errand))
    asking.cancel()


def _give_back(errand: Errand, asking: asyncio.Task[Try | None]) -> None:
    """What came of asking for an attempt beside another one once nobody wanted it any more."""
    if not asking.cancelled() and asking.exception() is None and (tried := asking.result()) is not None:
        _not_made(errand, tried, doubtful=True)


async def _error_page(answer: HttpAnswer) -> bytes:
    """The body of an error answer; nothing where it is cut, huge or slow: the status is what decides."""
    try:
        async with asyncio.timeout(_ERROR_BODY_WAIT_S):
            return await answer.read(limit=_ERROR_BODY_LIMIT, idle_s=_ERROR_BODY_WAIT_S)
    except (AttemptFailed, TimeoutError):
        return b""


def _exhausted(errand: Errand, failure: AttemptFailed) -> CallError:
    """The one error for a call that no target answered."""
    attempts = errand.case.attempts
    if failure.retryable and all(attempt.cause == "status:429" for attempt in attempts):
        return errand.tries.resting(f" Attempts: {listed(attempts)}")
    return sum_up(attempts)


def _model(adapter: Adapter | ToolAdapter) -> Adapter:
    """The adapter of a model: only those stream."""
    if isinstance(adapter, ToolAdapter):
        raise TypeError("an HTTP tool does not stream")
    return adapter
