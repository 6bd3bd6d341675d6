"""Sending a call: one target after another until one answers. Nothing has reached the client while this runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.call import Attempt, AttemptEnd, Call, Reply, Target
from gateway.clock import Clock, Ids
from gateway.core.budget import Short
from gateway.core.plan import Deadlines, Retry, Route, Try, backoff_s, plan
from gateway.errors import AttemptFailed, CallError, UpstreamFailed, UpstreamRejected, UpstreamTimeout
from gateway.progress import Progress
from gateway.relay import OpenStream, first_event
from gateway.snapshot import Provider, Snapshot
from gateway.spending import refusal
from gateway.store.protocol import DispatchIntent, Journal
from gateway.tools import ToolAdapter
from gateway.upstream.protocol import HttpAnswer, HttpRequest, Transport
from gateway.wire.protocol import Adapter
from gateway.wire.text_size import text_size

_ERROR_BODY_LIMIT = 64 * 1024
_ERROR_BODY_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Sends calls upstream, with every attempt on disk before it leaves."""

    transport: Transport
    journal: Journal
    clock: Clock
    ids: Ids
    scrub: Callable[[str], str]  # a provider's words may repeat a key

    async def send(self, case: Progress, call: Call, route: Route, snapshot: Snapshot) -> Reply | OpenStream:
        """Try the route's targets in order; the first whole answer, or the first stream with a valid event, wins.

        Raises:
            UpstreamRejected: a provider refused the request itself; another would too.
            UpstreamFailed, UpstreamTimeout: no target answered; lists every attempt.
        """
        failure: AttemptFailed | None = None
        short: CallError | None = None
        hopeless: Target | None = None  # this target will not answer better if it is asked again
        for tried in plan(route):
            target = tried.to.target
            if tried.earlier and target is hopeless:
                continue
            waited_s = self._wait_s(route.retry, tried, failure)
            if waited_s is None:
                hopeless = target
                continue
            if waited_s:
                await self.clock.sleep(waited_s)
            if failure is not None:  # the first attempt's intent is part of the call's own
                short = await self._record_intent(case, tried, waited_s)
                if short is not None:
                    hopeless = target  # another one may be cheaper
                    continue
            case.start_attempt(tried, started_ns=self.clock.now_ns(), waited_s=waited_s, sent=False)
            try:
                return await self._try(case, call, route.deadlines, snapshot.providers[target.provider], target)
            except AttemptFailed as error:
                failure = error
                hopeless = None if error.retryable else target
        raise short or sum_up(case.attempts) from failure

    def _wait_s(self, retry: Retry, tried: Try, failure: AttemptFailed | None) -> float | None:
        if tried.earlier == 0 or failure is None:
            return 0.0  # a fresh target owes nobody a wait
        return backoff_s(retry, tried.earlier, self.ids.jitter(), failure.retry_after_s)

    async def _record_intent(self, case: Progress, tried: Try, waited_s: float) -> CallError | None:
        """Put a further attempt's intent on disk and its money aside; the error where that does not reach."""
        target = tried.to.target
        spending = case.spending
        answer = await self.journal.dispatch(DispatchIntent(
            call_id=case.id, n=len(case.attempts) + 1, target=target, started_ns=self.clock.now_ns(), waited_s=waited_s,
            need=spending.need(tried.to) if spending else None, spent_nusd=sum(attempt.cost_nusd or 0 for attempt in case.attempts)))
        if isinstance(answer, Short):
            case.account = answer.holding.account.name
            return refusal(answer, str(target))
        if spending is not None:
            spending.granted = answer
        return None

    async def _try(self, case: Progress, call: Call, deadlines: Deadlines, provider: Provider, target: Target) -> Reply | OpenStream:
        """One try of one target. Its end goes on record here, unless it is an open stream: then whoever relays that records it."""
        sent = call if case.spending is None or case.trying is None else replace(call, body=case.spending.body(call, case.trying.tried.to))
        request = _request(case, sent, provider, target)
        answer: HttpAnswer | None = None
        try:
            answer = await self.transport.send(request, connect_s=deadlines.connect_s, headers_s=deadlines.headers_s)
            if not 200 <= answer.status < 300:
                raise provider.adapter.decode_error(answer.status, answer.headers, await _error_page(answer))
            adapter = provider.adapter
            if call.stream and not isinstance(adapter, ToolAdapter):
                decoder = adapter.decoder(call)
                stream = OpenStream(answer, decoder, await first_event(answer, decoder, deadlines.first_token_s))
                case.first_byte_ns = self.clock.now_ns()
                answer = None  # the stream's from here on
                return stream
            first_byte_ns = self.clock.now_ns()
            body = await answer.read(limit=provider.max_answer, timeout_s=deadlines.total_s)
            reply = _decoded(adapter, call, answer, body)
            if case.trying is not None:  # of one that cannot be read nobody knows how much was made for it
                case.trying.received = text_size(reply.body)
        except AttemptFailed as failure:
            failure.scrub(self.scrub)
            case.end_attempt(AttemptEnd.FAILED, ended_ns=self.clock.now_ns(), failure=failure)
            raise
        except UpstreamRejected as refusal:
            refusal.scrub(self.scrub)
            case.end_attempt(AttemptEnd.REJECTED, ended_ns=self.clock.now_ns(), status=refusal.status, message=refusal.message)
            raise
        finally:
            if answer is not None:
                answer.release()  # back to the pool if it was read to its end, else closed: the provider stops working
        case.first_byte_ns = first_byte_ns
        case.finish_reasons = tuple(map(self.scrub, reply.finish_reasons))
        case.end_attempt(AttemptEnd.SUCCEEDED, ended_ns=self.clock.now_ns(), status=answer.status, usage=reply.usage)
        return reply


def _request(case: Progress, call: Call, provider: Provider, target: Target) -> HttpRequest:
    made = provider.adapter.encode(call, target, provider.api_key)
    headers = {**provider.headers, **made.headers, "x-client-request-id": f"{case.id}.{len(case.attempts) + 1}"}
    if call.origin.traceparent is not None:
        headers["traceparent"] = call.origin.traceparent
    return HttpRequest(made.method, provider.base_url + made.path, headers, made.body, provider.private, case.sending)


def _decoded(adapter: Adapter | ToolAdapter, call: Call, answer: HttpAnswer, body: bytes) -> Reply:
    """A whole 2xx answer. That of a tool says what it is in its head; that of a model is in its body alone."""
    return adapter.decode(answer.status, answer.headers, body) if isinstance(adapter, ToolAdapter) else adapter.decode(call, body)


async def _error_page(answer: HttpAnswer) -> bytes:
    """The body of an error answer; nothing where it is cut, huge or slow: the status is what decides."""
    try:
        return await answer.read(limit=_ERROR_BODY_LIMIT, timeout_s=_ERROR_BODY_WAIT_S)
    except AttemptFailed:
        return b""


def sum_up(attempts: Sequence[Attempt]) -> CallError:
    """The one error for a call that no target answered: what was tried and how each try ended."""
    told = "; ".join(f"{attempt.n}. {attempt.target}: {attempt.cause} ({attempt.message})" for attempt in attempts)
    if attempts and all(attempt.cause.startswith("timeout:") for attempt in attempts):
        return UpstreamTimeout(f"No target answered in time. Attempts: {told}")
    return UpstreamFailed(f"Every attempt failed. Attempts: {told}")
