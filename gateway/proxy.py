"""The path of one call. `Proxy.handle` is the only place with the order of its steps; what each step does lives elsewhere."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

from gateway.answer import answer_headers, closing_figures
from gateway.call import AttemptEnd, Call, Origin, Outcome, Principal, Reply, Target
from gateway.clock import Clock, Ids
from gateway.core.budget import Short
from gateway.core.plan import Route
from gateway.core.question import LARGE
from gateway.dispatch import Dispatcher
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
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.keyring import ANONYMOUS, KeyRing
from gateway.meter import Meter
from gateway.origin import read_origin
from gateway.progress import Progress, Tally
from gateway.relay import Limits, OpenStream, Outlet, read_to_end, relay
from gateway.rulings import Rulings
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import spending_of
from gateway.store.protocol import Budgets, Journal, Sessions
from gateway.store.scrub import Scrubber
from gateway.telemetry import Telemetry
from gateway.tools import OPERATION, head_of
from gateway.turns import Turns
from gateway.upstream.protocol import Transport
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Dialect
from gateway.wire.strict_json import loads

_CLIENT_CLOSED = 499  # nginx's status for a client that went away; only ever written down, never sent
_MOST_NAMES = 20
_STORE_FAILS = "The store cannot be used at the moment, so it cannot be known whether this call is allowed, nor put on record. Try again."
_DEFECT_S = 5.0  # how long the answer to a defect waits for its record


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request at the door: its headers are read, its body is not. `headers` looks names up without regard to case; `id` is the call's."""

    id: str
    dialect: Dialect
    operation: str
    headers: Mapping[str, str] = field(repr=False)
    credential: str | None = field(repr=False)
    body: Callable[[], Awaitable[bytes]] = field(repr=False)
    tool: str | None = None  # the HTTP tool that is called; empty where the caller asks which there are


class Client(Protocol):
    """The way back. Each verb raises `ClientGone` when there is nobody to send to."""

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str | None = None) -> None:
        """Send a whole answer; without a content type JSON, or an error of this client's kind."""
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


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed answer on its way: where it comes from, whose words it is written in, who gets it."""

    opened: OpenStream
    dialect: Dialect
    client: Client
    idle_s: float
    contiguous: bool  # the client's own helper counts tool calls by their place, and fails where an index is left out


class Proxy:
    """Takes calls from their arrival to a settled record. One per gateway; `snapshot` is what new calls are handled under."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, snapshot: Snapshot, *, keyring: KeyRing | None, journal: Journal, sessions: Sessions, budgets: Budgets, transport: Transport,
        telemetry: Telemetry, clock: Clock, ids: Ids,
    ) -> None:
        self.snapshot = snapshot
        self.in_flight = 0
        self._keyring = keyring
        self._clock = clock
        self._scrubber = Scrubber(snapshot.secrets)
        self._dispatcher = Dispatcher(transport, journal, clock, ids, self._scrubber.text)
        self._turns = Turns(sessions, clock)
        self._budgets = budgets
        self._rulings = Rulings(sessions, self._turns, budgets, clock, self._scrubber.text)
        self.settler = Settler(journal, telemetry, clock, self._scrubber)
        self._running: set[asyncio.Task[Any] | None] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False  # no new calls

    async def handle(self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client) -> None:
        """The steps of one call, in their order. Whatever this raises, `serve` settles and tells."""
        self._admit(snapshot)  # first of all: a full house does no work
        case.principal = self._authenticate(arrival)  # before the body is read: a stranger costs next to nothing
        case.origin = self._origin(arrival)
        case.tool = arrival.tool if arrival.tool and arrival.tool in snapshot.tools else ""
        body = await arrival.body()
        case.call = call = await _read_call(case, arrival, body, snapshot)  # parsed once: what is judged is what is sent
        route = _entitled(snapshot, call.principal, call.route, call.operation)  # before the rules: what a key may not use is not there
        async with self._turns.turn(snapshot.bundle, call, wait_s=snapshot.config.policy.wait, longest_s=snapshot.longest_s):
            received = call.body
            call, route = await self._rulings.request(case, snapshot, call, route)  # what is left of the call is what leaves
            spending = spending_of(call, route, received, self._scrubber.text)
            async with asyncio.timeout(route.deadlines.total_s):
                await self.settler.begin(case, call, route.targets[0], snapshot.budgets, spending)  # on disk before anything leaves
                try:
                    got = await self._dispatcher.send(case, call, route, snapshot)
                except (UpstreamRejected, UpstreamFailed) as refusal:
                    await self._rulings.rejected(case, snapshot, call, refusal)
                    raise
                case.answered = True
                if isinstance(got, OpenStream):
                    helped = "X-Stainless-Helper-Method" in arrival.headers
                    rest = await self._relay(case, snapshot, call, Stream(got, arrival.dialect, client, route.deadlines.idle_s, helped))
                else:
                    got = await self._rulings.reply(case, snapshot, call, got)
            if isinstance(got, Reply):  # settled before the answer's last byte, and outside the deadline: the provider has done its work
                await self._answer(case, call, arrival.dialect, client, got)
            else:
                await self._end_stream(case, client, got, rest)

    async def serve(self, arrival: Arrival, client: Client) -> None:
        """Handle one call and settle it, however it ends: the record is durable before the client has its whole answer.

        Raises:
            ClientGone: there was nobody left to answer; the call is settled.
        """
        snapshot = self.snapshot  # read once: a call ends under what it began with
        bodies = snapshot.config.journal.bodies
        case = Progress(arrival.id, arrival.dialect.name, arrival.operation, self._clock.now_ns(), bodies)
        task = asyncio.current_task()
        self._running.add(task)
        self.in_flight += 1
        self._idle.clear()
        try:
            await self.handle(case, snapshot, arrival, client)
        except CallError as error:
            await self._tell(case, error, arrival.dialect, client)
        except TimeoutError:
            failure = AttemptFailed("timeout:total", "the call's time was up", retryable=False)
            case.end_attempt(AttemptEnd.CUT if case.tally else AttemptEnd.FAILED, ended_ns=self._clock.now_ns(), failure=failure)
            late = UpstreamTimeout("The route's `total` deadline passed before the answer was complete.")
            await self._tell(case, late, arrival.dialect, client)
        except asyncio.CancelledError:
            if case.settled:
                raise
            if not self.settler.stopping:
                self._gone(case)
                raise
            case.end_attempt(AttemptEnd.CANCELLED, ended_ns=self._clock.now_ns())  # `cut` did this, and the client is still there
            await self._tell(case, Overloaded("The gateway was stopped before the answer was complete."), arrival.dialect, client)
        except ClientGone:
            if not case.settled:
                self._gone(case)
            raise
        finally:
            self._running.discard(task)
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()
            if not case.settled:  # a defect on the way: whoever catches it answers, once the books are closed
                defect = InternalError("The gateway failed inside; see its log.")
                await asyncio.wait({self.settler.settle_later(case, case.outcome_of_failure, defect.status, defect)}, timeout=_DEFECT_S)

    def models(self, arrival: Arrival) -> bytes:
        """The models this caller may use, or the HTTP tools, in its dialect. Raises `Unauthenticated`."""
        principal = self._authenticate(arrival)
        tools = self.snapshot.tools
        return arrival.dialect.models([name for name in _names(self.snapshot, principal) if (name in tools) is (arrival.tool is not None)])

    def swap(self, snapshot: Snapshot) -> None:
        """Handle new calls under this snapshot. Those in flight end under the one that they began with."""
        self._scrubber.learn(snapshot.secrets)
        self.snapshot = snapshot

    async def idle(self, timeout_s: float) -> None:
        """Wait until no call is in flight, `timeout_s` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def cut(self, timeout_s: float) -> None:
        """End every call in flight: each is settled, and its client told. Waits `timeout_s` at most."""
        self.settler.stopping = True
        for task in list(self._running):
            if task is not None:
                task.cancel()
        await self.idle(timeout_s)

    def _admit(self, snapshot: Snapshot) -> None:
        if self.draining:
            raise Overloaded("This gateway is stopping. Try again: another one answers, or this one when it is back.", retry_after_s=1)
        if self.in_flight > snapshot.config.server.max_in_flight:
            raise Overloaded("The gateway is handling as many calls as it may. Try again in a moment.", retry_after_s=1)

    def _authenticate(self, arrival: Arrival) -> Principal:
        if self._keyring is None:
            return ANONYMOUS
        return self._keyring.authenticate(arrival.credential, self._clock.now_ns())

    def _origin(self, arrival: Arrival) -> Origin:
        origin = read_origin(arrival.headers)
        if origin.session is not None and self._scrubber.text(origin.session) != origin.session:
            # It would be kept under another name than it is asked for, and every rule on it would see a session that has just begun.
            raise InvalidRequest("The header X-Lockgate-Session holds what looks like a secret. Give the session another name.")
        return origin

    async def _answer(self, case: Progress, call: Call, dialect: Dialect, client: Client, reply: Reply) -> None:
        body = self._scrubber.bytes(dialect.answer(call, reply))  # a provider that repeats its key gives it to nobody
        status, content_type = head_of(call, reply)
        await self.settler.settle(case, Outcome.COMPLETED, status, response=reply.body)
        await client.answer(status, answer_headers(case), body, content_type)

    async def _relay(self, case: Progress, snapshot: Snapshot, call: Call, stream: Stream) -> bytes:
        """Relay a stream up to its end, which is held back; returns the bytes that go out with the end."""
        encoder = stream.dialect.encoder(call)
        most_bytes = snapshot.providers[_target(case).provider].max_answer
        case.tally = tally = Tally(Assembler() if case.bodies != "none" else None)
        ended = False
        try:
            gate = await self._rulings.gate(case, snapshot, call, contiguous=stream.contiguous)
            case.encoder = encoder
            await stream.client.open(200, answer_headers(case), stream.dialect.stream_content_type)
            meter = self._meter(case)
            outlet = Outlet(gate, tally, lambda event: self._scrubber.bytes(encoder.event(event)), meter)
            rest = await relay(stream.opened, outlet, stream.client, Limits(stream.idle_s, most_bytes))
            if meter is not None and outlet.cut_short:
                case.cut_short = True
                case.account = case.account or ((case.spending and case.spending.tightest) or ("",))[0]
                stream.opened.answer.abort()
                rest += await outlet.end(meter.last(tally.usage or case.estimated_so_far()))
            ended = True
        except AttemptFailed as failure:
            failure.scrub(self._scrubber.text)
            case.end_attempt(AttemptEnd.CUT, ended_ns=self._clock.now_ns(), failure=failure)
            raise UpstreamFailed(f"The answer broke off: {failure.cause} ({failure.message}).") from failure
        except StoreUnavailable:  # more money could not be asked for
            case.end_attempt(AttemptEnd.CUT, ended_ns=self._clock.now_ns(), status=stream.opened.answer.status)
            raise
        except CallError:  # a rule's: the provider has done its work
            case.withheld = True
            case.end_attempt(AttemptEnd.SUCCEEDED, ended_ns=self._clock.now_ns(), status=stream.opened.answer.status)
            raise
        finally:
            case.finish_reasons = tuple(map(self._scrubber.text, tally.finish_reasons))
            if not ended:
                stream.opened.answer.abort()  # the provider stops working, and billing, at once
        return rest

    def _meter(self, case: Progress) -> Meter | None:
        """What watches that a stream does not run over its money; None where no account limits it."""
        spending, trying, tally = case.spending, case.trying, case.tally
        if spending is None or trying is None or tally is None or trying.units is None:
            return None

        async def extend(units: int) -> int:
            spent = sum(attempt.cost_nusd or 0 for attempt in case.attempts)
            answer = await self._budgets.extend(case.id, replace(spending.need(trying.tried.to), most=units), spent_nusd=spent)
            if isinstance(answer, Short):
                case.account = answer.holding.account.name
                return 0
            spending.granted = answer
            trying.units = answer.units
            return units if answer.units is None else answer.units

        return Meter(tally, trying.units, spending.measured.choices, extend)

    async def _end_stream(self, case: Progress, client: Client, stream: OpenStream, rest: bytes) -> None:
        case.end_attempt(AttemptEnd.SUCCEEDED, ended_ns=self._clock.now_ns(), status=stream.answer.status)
        try:
            await self.settler.settle(case, Outcome.COMPLETED, 200)
            if case.encoder is not None:
                await client.end(rest + case.encoder.comment(closing_figures(case)) + case.encoder.end())
        finally:
            if not case.cut_short:
                self.settler.own(read_to_end(stream.answer))

    async def _tell(self, case: Progress, error: CallError, dialect: Dialect, client: Client) -> None:
        """Settle a call that ended with an error, then give the client that error in its own dialect."""
        outcome = case.outcome_of_failure
        case.end_attempt(AttemptEnd.REJECTED, ended_ns=self._clock.now_ns(), message=error.message)  # one that could not even be written
        try:
            if isinstance(error, StoreUnavailable):
                raise error
            await self.settler.settle(case, outcome, error.status, error=error)
        except StoreUnavailable as worse:  # an answer is never sent before its record is durable, so this is the answer
            self.settler.settle_later(case, outcome, worse.status, worse)
            error = StoreUnavailable(_STORE_FAILS, retry_after_s=1)  # where the store is and what ails it is the log's to say
        if case.encoder is not None:
            await client.end(case.encoder.error(error, case.id))
        else:
            await client.answer(error.status, answer_headers(case, error), dialect.error(error, case.id))

    def _gone(self, case: Progress) -> None:
        gone = ClientGone("The client closed its connection.")
        self.settler.settle_later(case, Outcome.CANCELLED, _CLIENT_CLOSED, gone)


def _target(case: Progress) -> Target:
    if case.trying is None:
        raise InternalError("A stream is open without an attempt.")
    return case.trying.tried.to.target


async def _read_call(case: Progress, arrival: Arrival, body: bytes, snapshot: Snapshot) -> Call:
    if len(body) < LARGE:
        return _parsed(case, arrival, body, snapshot)
    return await asyncio.to_thread(_parsed, case, arrival, body, snapshot)  # other calls do not wait for it


def _parsed(case: Progress, arrival: Arrival, body: bytes, snapshot: Snapshot) -> Call:
    parsed = loads(body, max_depth=snapshot.config.server.max_depth)
    if not isinstance(parsed, dict):
        raise InvalidRequest("The body must be a JSON object.", pointer="")
    if arrival.tool is not None:  # before its schema has a word to say: to others it does not exist
        _entitled(snapshot, case.principal, arrival.tool, arrival.operation)
    ask = arrival.dialect.read(arrival.operation, parsed)
    return Call(
        id=case.id, principal=case.principal, dialect=arrival.dialect.name, operation=arrival.operation, route=ask.route,
        body=parsed, stream=ask.stream, size=len(body), received_ns=case.received_ns, origin=case.origin,
        user=case.origin.user or ask.user,
    )


def _may_use(principal: Principal, route: str) -> bool:
    return any(pattern == "*" or fnmatchcase(route, pattern) for pattern in principal.routes)


def _names(snapshot: Snapshot, principal: Principal) -> list[str]:
    return [name for name in snapshot.routes if _may_use(principal, name)]


def _entitled(snapshot: Snapshot, principal: Principal, name: str, operation: str) -> Route:
    route = snapshot.routes.get(name)
    if route is None or operation not in route.operations or not _may_use(principal, name):
        there = [each for each in _names(snapshot, principal) if operation in snapshot.routes[each].operations]
        listed = (", ".join(there[:_MOST_NAMES]) + (", …" if len(there) > _MOST_NAMES else "")) or "none"
        if operation == OPERATION:
            raise UnknownRoute(f"There is no tool of that name. Yours are: {listed}.")
        raise UnknownRoute(f"There is no model of that name for {operation}. Yours are: {listed}.", pointer="/model")
    return route
