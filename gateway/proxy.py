"""The path of one call. `Proxy.handle` is the only place with the order of its steps; what each step does lives elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from gateway.answer import answer_headers, closing_figures
from gateway.call import AttemptEnd, Call, JsonObject, Outcome, Principal, Reply
from gateway.clock import Clock, Ids
from gateway.core.decide import decide
from gateway.core.plan import Route
from gateway.dispatch import Dispatcher
from gateway.enact import enact
from gateway.errors import (
    AttemptFailed,
    CallError,
    ClientGone,
    InternalError,
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    UnknownRoute,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.gather import gather
from gateway.keyring import ANONYMOUS, KeyRing
from gateway.origin import read_origin
from gateway.progress import NOBODY, Progress, Tally
from gateway.relay import OpenStream, read_to_end, relay
from gateway.snapshot import Snapshot
from gateway.store.protocol import Intent, Journal
from gateway.store.scrub import Scrubber, reduce_body
from gateway.telemetry import Telemetry
from gateway.upstream.protocol import Transport
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Dialect
from gateway.wire.strict_json import loads

_CLIENT_CLOSED = 499  # nginx's status for a client that went away; only ever written down, never sent
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request at the door: its headers are read, its body is not. `headers` looks names up without regard to case; `id` is the call's."""

    id: str
    dialect: Dialect
    operation: str
    headers: Mapping[str, str] = field(repr=False)
    credential: str | None = field(repr=False)
    body: Callable[[], Awaitable[bytes]] = field(repr=False)


class Client(Protocol):
    """The way back. Each verb raises `ClientGone` when there is nobody to send to."""

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer."""
        ...

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a streamed answer."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer; waits while the client is slow."""
        ...

    async def end(self, data: bytes) -> None:
        """Send the last part of a streamed answer and close it."""
        ...


class Proxy:
    """Takes calls from their arrival to a settled record. One per gateway; `snapshot` is what new calls are handled under."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, snapshot: Snapshot, *, keyring: KeyRing | None, journal: Journal, transport: Transport, telemetry: Telemetry,
        clock: Clock, ids: Ids,
    ) -> None:
        self.snapshot = snapshot
        self.in_flight = 0
        self._keyring = keyring
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._scrubber = Scrubber(snapshot.secrets)
        self._dispatcher = Dispatcher(transport, journal, clock, ids, self._scrubber.text)
        self._settling: set[asyncio.Task[None]] = set()

    async def handle(self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client) -> None:
        """The steps of one call, in their order. Whatever this raises, `serve` settles and tells."""
        if self.in_flight > snapshot.config.server.max_in_flight:  # first of all: a full house does no work
            raise Overloaded("The gateway is handling as many calls as it may. Try again in a moment.", retry_after_s=1)
        case.principal = self._authenticate(arrival)  # before the body is read: a stranger costs next to nothing
        case.origin = read_origin(arrival.headers)
        body = await arrival.body()
        case.call = call = _read_call(case, arrival, body, snapshot)  # parsed once: what is judged is what is sent
        route = _entitled(snapshot, call)  # before the rules: a route this key may not use does not exist for it
        case.decision = decide(snapshot.bundle, "request", gather(snapshot.bundle, call, case.received_ns))
        enact(case.decision)
        async with asyncio.timeout(route.deadlines.total_s):
            await self._begin(case, call, route)  # on disk before anything leaves
            got = await self._dispatcher.send(case, call, route, snapshot)
            if isinstance(got, OpenStream):
                rest = await self._relay(case, call, arrival.dialect, client, got, idle_s=route.deadlines.idle_s)
        if isinstance(got, Reply):  # settled before the answer's last byte, and outside the deadline: the provider has done its work
            await self._answer(case, call, arrival.dialect, client, got)
        else:
            await self._end_stream(case, call, arrival.dialect, client, got, rest)

    async def serve(self, arrival: Arrival, client: Client) -> None:
        """Handle one call and settle it, however it ends: the record is durable before the client has its whole answer.

        Raises:
            ClientGone: there was nobody left to answer; the call is settled.
        """
        snapshot = self.snapshot  # read once: a call ends under what it began with
        bodies = snapshot.config.journal.bodies
        case = Progress(arrival.id, arrival.dialect.name, arrival.operation, self._clock.now_ns(), bodies)
        self.in_flight += 1
        try:
            await self.handle(case, snapshot, arrival, client)
        except CallError as error:
            await self._tell(case, error, arrival, client)
        except TimeoutError:
            failure = AttemptFailed("timeout:total", "the call's time was up", retryable=False)
            case.end_attempt(AttemptEnd.CUT if case.tally else AttemptEnd.FAILED, ended_ns=self._clock.now_ns(), failure=failure)
            late = UpstreamTimeout("The route's `total` deadline passed before the answer was complete.")
            await self._tell(case, late, arrival, client)
        except (asyncio.CancelledError, ClientGone):
            if not case.settled:
                self._settle_later(case, Outcome.CANCELLED, _CLIENT_CLOSED, ClientGone("The client closed its connection."))
            raise
        finally:
            self.in_flight -= 1
            if not case.settled:  # a defect on the way: whoever catches it answers, the books are closed here
                self._settle_later(case, Outcome.FAILED, 500, InternalError("The gateway failed inside; see its log."))

    def models(self, arrival: Arrival) -> bytes:
        """The models this caller may use, in its dialect. Raises `Unauthenticated`."""
        principal = self._authenticate(arrival)
        return arrival.dialect.models(_names(self.snapshot, principal))

    async def drained(self) -> None:
        """Wait until every settlement that outlived its call is written."""
        while self._settling:
            await asyncio.wait(self._settling)

    def _authenticate(self, arrival: Arrival) -> Principal:
        if self._keyring is None:
            return ANONYMOUS
        return self._keyring.authenticate(arrival.credential, self._clock.now_ns())

    async def _begin(self, case: Progress, call: Call, route: Route) -> None:
        case.begun = True  # even if the wait below is cut short, the intent may be written: an outcome must follow it
        record = self._scrubber.record(case.record(Outcome.INTERRUPTED, ended_ns=case.received_ns, status=0))
        await self._journal.begin(Intent(record, route.targets[0].target, self._stored(case, call.body)))

    async def _answer(self, case: Progress, call: Call, dialect: Dialect, client: Client, reply: Reply) -> None:
        body = dialect.answer(call, reply)
        await self._settle(case, Outcome.COMPLETED, 200, response=reply.body)
        await client.answer(200, answer_headers(case), body)

    async def _relay(
        self, case: Progress, call: Call, dialect: Dialect, client: Client, stream: OpenStream, *, idle_s: float,
    ) -> bytes:
        """Relay a stream up to its end, which is held back; returns the bytes that go out with the end."""
        case.tally = Tally(Assembler() if case.bodies != "none" else None)
        ended = False
        try:
            await client.open(200, answer_headers(case), dialect.stream_content_type)
            rest = await relay(stream, dialect.encoder(call), client, case.tally, idle_s=idle_s)
            ended = True
        except AttemptFailed as failure:
            failure.message = self._scrubber.text(failure.message)
            case.end_attempt(AttemptEnd.CUT, ended_ns=self._clock.now_ns(), failure=failure)
            raise UpstreamFailed(f"The answer broke off: {failure.cause} ({failure.message}).") from failure
        finally:
            case.finish_reasons = tuple(map(self._scrubber.text, case.tally.finish_reasons))
            if not ended:
                stream.answer.abort()  # the provider stops working, and billing, at once
        return rest

    async def _end_stream(
        self, case: Progress, call: Call, dialect: Dialect, client: Client, stream: OpenStream, rest: bytes,
    ) -> None:
        encoder = dialect.encoder(call)
        case.end_attempt(AttemptEnd.SUCCEEDED, ended_ns=self._clock.now_ns(), status=stream.answer.status)
        try:
            await self._settle(case, Outcome.COMPLETED, 200)
            await client.end(rest + encoder.comment(closing_figures(case)) + encoder.end())
        finally:
            self._own(read_to_end(stream.answer))

    async def _tell(self, case: Progress, error: CallError, arrival: Arrival, client: Client) -> None:
        """Settle a call that ended with an error, then give the client that error in its own dialect."""
        outcome = Outcome.CUT if case.tally else Outcome.FAILED if case.begun else Outcome.REFUSED
        case.end_attempt(AttemptEnd.REJECTED, ended_ns=self._clock.now_ns(), message=error.message)  # one that could not even be written
        if isinstance(error, StoreUnavailable):
            self._settle_later(case, outcome, error.status, error)
        else:
            try:
                await self._settle(case, outcome, error.status, error=error)
            except StoreUnavailable as worse:  # an answer is never sent before its record is durable
                error = worse
        if case.tally is not None and case.call is not None:
            await client.end(arrival.dialect.encoder(case.call).error(error, case.id))
        else:
            await client.answer(error.status, answer_headers(case, error), arrival.dialect.error(error, case.id))

    async def _settle(
        self, case: Progress, outcome: Outcome, status: int, *, error: CallError | ClientGone | None = None,
        response: JsonObject | None = None,
    ) -> None:
        """Write the outcome; returns when it is on disk. A caller who was never known leaves no row: a stranger cannot fill the disk."""
        case.settled = True
        record = case.record(outcome, ended_ns=self._clock.now_ns(), status=status, code=error.code if error else "",
                             message=self._scrubber.text(error.message) if error else "")
        if response is None and case.tally and case.tally.assembler:
            response = case.tally.assembler.body()
        try:
            if case.begun:
                await self._journal.finish(record, response=self._stored(case, response))
            elif case.principal is not NOBODY:
                record = self._scrubber.record(record)  # a call that was begun was scrubbed when its intent was written
                await self._journal.refuse(record, request=self._stored(case, case.call.body if case.call else None))
        finally:
            self._telemetry.publish(record)

    def _settle_later(self, case: Progress, outcome: Outcome, status: int, error: CallError | ClientGone) -> None:
        """Settle in a task of the proxy's own, so that a cancelled caller cannot take the record with it."""
        case.end_attempt(AttemptEnd.CANCELLED if outcome is Outcome.CANCELLED else AttemptEnd.FAILED, ended_ns=self._clock.now_ns())
        case.settled = True
        self._own(self._settle(case, outcome, status, error=error))

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.event("error", "settlement_failed", error=f"{type(error).__name__}: {error}")

    def _stored(self, case: Progress, body: JsonObject | None) -> bytes | None:
        if body is None:
            return None
        kept = reduce_body(body, case.bodies)
        return None if kept is None else self._scrubber.bytes(kept)


def _read_call(case: Progress, arrival: Arrival, body: bytes, snapshot: Snapshot) -> Call:
    parsed = loads(body, max_depth=snapshot.config.server.max_depth)
    if not isinstance(parsed, dict):
        raise InvalidRequest("The body must be a JSON object.", pointer="")
    ask = arrival.dialect.read(arrival.operation, parsed)
    return Call(
        id=case.id, principal=case.principal, dialect=arrival.dialect.name, operation=arrival.operation, route=ask.route,
        body=parsed, stream=ask.stream, size=len(body), received_ns=case.received_ns, origin=case.origin,
    )


def _may_use(principal: Principal, route: str) -> bool:
    return any(pattern == "*" or fnmatchcase(route, pattern) for pattern in principal.routes)


def _names(snapshot: Snapshot, principal: Principal) -> list[str]:
    return [name for name in snapshot.routes if _may_use(principal, name)]


def _entitled(snapshot: Snapshot, call: Call) -> Route:
    route = snapshot.routes.get(call.route)
    if route is None or call.operation not in route.operations or not _may_use(call.principal, route.name):
        there = [name for name in _names(snapshot, call.principal) if call.operation in snapshot.routes[name].operations]
        listed = ", ".join(there[:_MOST_NAMES]) + (", …" if len(there) > _MOST_NAMES else "")
        raise UnknownRoute(f"There is no model of that name for {call.operation}. Yours are: {listed or 'none'}.", pointer="/model")
    return route
