"""The path of one call. `Proxy.handle` is the only place with the order of its steps; what each step does lives elsewhere."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from gateway.admission import Admission, House
from gateway.answer import answer_headers, closing_figures
from gateway.breakers import Breakers
from gateway.call import AttemptEnd, Call, Origin, Outcome, Principal, Reply
from gateway.clock import Clock, Ids
from gateway.core.order import plan_json
from gateway.core.plan import Route
from gateway.core.question import LARGE
from gateway.deadline import shortened, told, waits_s
from gateway.dispatch import Dispatcher, Errand
from gateway.errands import Errands
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
from gateway.keep_alive import KeepAlive
from gateway.keyring import ANONYMOUS, KeyRing
from gateway.origin import read_origin
from gateway.progress import Progress
from gateway.race import Answered
from gateway.relay import Client, Source, let_rest
from gateway.routing import Routing
from gateway.rulings import Rulings
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import spending_of
from gateway.store.protocol import Budgets, Journal, Sessions
from gateway.store.scrub import Scrubber
from gateway.streaming import Streaming, Way
from gateway.telemetry import Telemetry
from gateway.tools import OPERATION, head_of
from gateway.tries import Pursuit, Try
from gateway.turns import Turns
from gateway.upstream.protocol import Transport
from gateway.wire.protocol import Dialect
from gateway.wire.strict_json import loads

_CLIENT_CLOSED = 499  # nginx's status for a client that went away; only ever written down, never sent
_MOST_NAMES = 20
_STORE_FAILS = "The store cannot be used at the moment, so it cannot be known whether this call is allowed, nor put on record. Try again."
_DEFECT_S = 5.0  # how long the answer to a defect waits for its record


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request at the door: its headers are read, its body is not. `headers` looks names up without regard to case; `id` is the call's.

    `here`: its body has come with its headers.
    """

    id: str
    dialect: Dialect
    operation: str
    headers: Mapping[str, str] = field(repr=False)
    credential: str | None = field(repr=False)
    body: Callable[[], Awaitable[bytes]] = field(repr=False)
    here: bool = True
    tool: str | None = None  # the HTTP tool that is called; empty where the caller asks which there are


class Proxy:
    """Takes calls from their arrival to a settled record. One per gateway; `snapshot` is what new calls are handled under."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, snapshot: Snapshot, *, keyring: KeyRing | None, journal: Journal, sessions: Sessions, budgets: Budgets, breakers: Breakers,
        transport: Transport, telemetry: Telemetry, clock: Clock, ids: Ids,
    ) -> None:
        self.snapshot = snapshot
        self.in_flight = 0
        self.admission = Admission(clock, ids, telemetry)
        self.keep_alive = KeepAlive(clock)
        self._keyring = keyring
        self._clock = clock
        self._scrubber = scrubber = Scrubber(snapshot.secrets)
        self._turns = Turns(sessions, clock)
        self._rulings = Rulings(sessions, self._turns, budgets, clock, scrubber.text)
        self.settler = Settler(journal, telemetry, clock, scrubber)
        self._dispatcher = Dispatcher(transport, journal, budgets, breakers, clock, scrubber.text)
        self._pursuit = Pursuit(breakers, telemetry, clock, ids)
        self.errands = Errands(self._dispatcher, self._pursuit, self.settler)
        self.routing = Routing(breakers.condition, self.errands.classify, sessions, budgets, clock, ids)
        self._streaming = Streaming(self._dispatcher, self._rulings, budgets, self.keep_alive, clock, scrubber.text, scrubber.bytes)
        self._running: set[asyncio.Task[Any] | None] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def handle(self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client) -> None:
        """The steps of one call, in their order. Whatever this raises, `serve` settles and tells."""
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        case.principal = self._authenticate(arrival)  # before the body is read: a stranger costs next to nothing, and waits for nobody
        case.origin = self._origin(arrival)
        case.tool = arrival.tool if arrival.tool and arrival.tool in snapshot.tools else ""
        body, sent_s = await self._let_in(case, snapshot, arrival)  # a full house does no work; who waits is let in in fair turns
        case.call = call = await _read_call(case, arrival, body, snapshot)  # parsed once: what is judged is what is sent
        route = _entitled(snapshot, call.principal, call.asked, call.operation)  # before the rules: what a key may not use is not there
        async with self._turns.turn(snapshot.bundle, call, wait_s=snapshot.config.policy.wait, longest_s=snapshot.longest_s):
            received = call.body
            call, route = await self._rulings.request(case, snapshot, call, route)  # what is left of the call is what leaves
            spending = spending_of(call, route, received, self._scrubber.text)
            begun_s = loop.time()  # the route's time begins now, the client's own when it came; an SDK's once it has sent its body
            deadlines = shortened(route.deadlines, arrival.headers, stream=call.stream, used_s=begun_s - arrived_s, sent_s=sent_s)
            async with asyncio.timeout_at(begun_s + min(deadlines.total_s, deadlines.silence_s)) as limit:
                case.patience = told(deadlines, route.deadlines)
                plan = await self.routing.plan(case, snapshot, call, route, spending)  # where it may go, best first, and why
                case.plan = plan_json(plan)
                with self._way(case, snapshot, arrival, client) as way, contextlib.closing(
                        self._pursuit.of(case.id, route, plan, deadlines.total_s)) as tries:
                    first = await tries.first()
                    await self.settler.begin(case, call, first.to, snapshot.budgets, spending)  # on disk before anything leaves
                    self.errands.mirror(case, call, route, snapshot)
                    errand = Errand(case, call, route, deadlines, tries, snapshot)
                    heard = partial(limit.reschedule, begun_s + deadlines.total_s)  # from then on the client hears something
                    try:
                        got = await self._sent(errand, first, way, heard)
                    except (UpstreamRejected, UpstreamFailed) as refusal:
                        await self._rulings.rejected(case, snapshot, call, refusal)
                        raise
                    case.answered = True
                    if isinstance(got, Reply):
                        got = await self._rulings.reply(case, snapshot, call, got)
                    elif way is not None:
                        heard()
                        got, rest = await self._streaming.relay(errand, got, way)
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
            case.end_attempts(AttemptEnd.CUT if case.tally else AttemptEnd.FAILED, ended_ns=self._clock.now_ns(), failure=failure)
            late = UpstreamTimeout(f"The answer was not complete in time: {case.patience} passed.")
            await self._tell(case, late, arrival.dialect, client)
        except asyncio.CancelledError:
            if case.settled:
                raise
            if not self.settler.stopping:
                self._gone(case)
                raise
            case.end_attempts(AttemptEnd.CANCELLED, ended_ns=self._clock.now_ns())  # `cut` did this, and the client is still there
            await self._tell(case, Overloaded("The gateway was stopped before the answer was complete."), arrival.dialect, client)
        except ClientGone:
            if not case.settled:
                self._gone(case)
            raise
        finally:
            self._left(case, task)
            if not case.settled:  # a defect on the way: whoever catches it answers, once the books are closed
                defect = InternalError("The gateway failed inside; see its log.")
                await asyncio.wait({self.settler.settle_later(case, case.outcome_of_failure, defect.status, defect)}, timeout=_DEFECT_S)

    def _left(self, case: Progress, task: asyncio.Task[Any] | None) -> None:
        self._running.discard(task)
        self.in_flight -= 1
        if case.inside:
            self.admission.leave()
        if self.in_flight == 0:
            self._idle.set()

    def models(self, arrival: Arrival) -> bytes:
        """The models this caller may use, or the HTTP tools, in its dialect. Raises `Unauthenticated`."""
        principal = self._authenticate(arrival)
        tools = self.snapshot.tools
        return arrival.dialect.models([name for name in _names(self.snapshot, principal) if (name in tools) is (arrival.tool is not None)])

    def swap(self, snapshot: Snapshot) -> None:
        """Handle new calls under this snapshot. Those in flight end under the one that they began with."""
        self._pursuit.forget([route.name for route in snapshot.routes.values()])
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
        self.admission.close()
        for task in list(self._running):
            if task is not None:
                task.cancel()
        await self.idle(timeout_s)

    async def _let_in(self, case: Progress, snapshot: Snapshot, arrival: Arrival) -> tuple[bytes, float]:
        """The body of a call that has its place, and the seconds that it took to come: meanwhile it takes nobody's place."""
        if arrival.here:
            await self._enter(case, snapshot, arrival)
            return await arrival.body(), 0.0
        clock = asyncio.get_running_loop()
        begun_s = clock.time()
        body = await arrival.body()
        sent_s = clock.time() - begun_s
        await self._enter(case, snapshot, arrival)
        return body, sent_s

    async def _enter(self, case: Progress, snapshot: Snapshot, arrival: Arrival) -> None:
        server = snapshot.config.server
        house = House(server.max_in_flight, server.queue, server.queue_wait)
        await self.admission.enter(case.principal.id, house, deadline_s=waits_s(arrival.headers))
        case.inside = True

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

    @contextlib.contextmanager
    def _way(self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client) -> Iterator[Way | None]:
        """The client's side of a streamed answer; None where it is a plain one."""
        call = case.call
        if call is None or not call.stream:
            yield None
            return
        every_s = min(snapshot.config.server.keep_alive, (waits_s(arrival.headers) or inf) / 2)
        way = Way(case, call, arrival.dialect, client, every_s=every_s, contiguous="X-Stainless-Helper-Method" in arrival.headers)
        try:
            yield way
        finally:
            way.close(self.keep_alive)

    async def _sent(self, errand: Errand, first: Try, way: Way | None, heard: Callable[[], None]) -> Answered:
        sending = self._dispatcher.send(errand, first)
        return await (sending if way is None or not errand.route.early_s else self._streaming.early(errand, way, sending, heard))

    async def _end_stream(self, case: Progress, client: Client, stream: Source, rest: bytes) -> None:
        case.end_attempts(AttemptEnd.SUCCEEDED, ended_ns=self._clock.now_ns(), status=stream.status)
        try:
            await self.settler.settle(case, Outcome.COMPLETED, 200)
            if case.encoder is not None:
                await client.end(rest + case.encoder.comment(closing_figures(case)) + case.encoder.end())
        finally:
            if not case.cut_short:
                self.settler.own(let_rest(stream))

    async def _tell(self, case: Progress, error: CallError, dialect: Dialect, client: Client) -> None:
        """Settle a call that ended with an error, then give the client that error in its own dialect."""
        outcome = case.outcome_of_failure
        for trying in tuple(case.open):  # one that could not even be written, or one whose provider works for nobody any more
            end = AttemptEnd.CANCELLED if trying.sent else AttemptEnd.REJECTED
            case.end_attempt(trying, end, ended_ns=self._clock.now_ns(), message=error.message)
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
    known = snapshot.routes.get(ask.route)
    return Call(
        id=case.id, principal=case.principal, dialect=arrival.dialect.name, operation=arrival.operation,
        route=known.name if known is not None else ask.route, asked=ask.route,
        body=parsed, stream=ask.stream, size=len(body), received_ns=case.received_ns, origin=case.origin,
        user=case.origin.user or ask.user,
    )


def _names(snapshot: Snapshot, principal: Principal) -> list[str]:
    return [name for name in snapshot.routes if principal.may_use(name)]


def _entitled(snapshot: Snapshot, principal: Principal, name: str, operation: str) -> Route:
    route = snapshot.routes.get(name)
    if route is None or operation not in route.operations or not principal.may_use(name):
        there = [each for each in _names(snapshot, principal) if operation in snapshot.routes[each].operations]
        listed = (", ".join(there[:_MOST_NAMES]) + (", …" if len(there) > _MOST_NAMES else "")) or "none"
        if operation == OPERATION:
            raise UnknownRoute(f"There is no tool of that name. Yours are: {listed}.")
        raise UnknownRoute(f"There is no model of that name for {operation}. Yours are: {listed}.", pointer="/model")
    return route
