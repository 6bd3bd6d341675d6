"""The path of one call. `Proxy.handle` is the only place with the order of its steps; what each step does lives elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from gateway.admission import Admission, House
from gateway.answering import Answering
from gateway.approvals.holding import Finished, Holding, OnHold
from gateway.approvals.kept import kept_reply
from gateway.approvals.performing import Collected, body_in, origin_in, principal_in
from gateway.approvals.proposals import Proposals
from gateway.approvals.tickets import pending
from gateway.asking import Asking
from gateway.beginning import Beginning
from gateway.breakers import Breakers
from gateway.call import AttemptEnd, Call, Origin, Outcome, Principal, Reply
from gateway.clock import Clock, Ids
from gateway.core.approval import Result, State, Ticket
from gateway.core.order import plan_json
from gateway.core.plan import Route
from gateway.deadline import shortened, told, waits_s, whole_s
from gateway.derive import check_named, in_session
from gateway.dispatch import Dispatcher, Errand
from gateway.errands import Errands
from gateway.errors import (
    AttemptFailed,
    CallError,
    ClientGone,
    InternalError,
    InvalidRequest,
    Overloaded,
    UpstreamFailed,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.frozen import Frozen
from gateway.keep_alive import KeepAlive
from gateway.keyring import ANONYMOUS, KeyRing
from gateway.origin import read_origin
from gateway.progress import Progress
from gateway.race import Answered
from gateway.reading import entitled, names_for, read_call
from gateway.relay import Client
from gateway.routing import Routing
from gateway.rulings import Rulings
from gateway.session import SessionKey
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import spending_of
from gateway.store.approvals_protocol import Approvals, Notify
from gateway.store.protocol import Budgets, Journal, Sessions
from gateway.store.scrub import Scrubber
from gateway.store.session_protocol import SessionDesk
from gateway.streaming import Streaming, Way
from gateway.telemetry import Telemetry
from gateway.tools import OPERATION, ToolDialect
from gateway.tries import Pursuit, Try
from gateway.turns import Turns
from gateway.upstream.protocol import Transport
from gateway.waiting import Presence
from gateway.wire.protocol import Dialect

_CLIENT_CLOSED = 499  # nginx's status for a client that went away; only ever written down, never sent
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
    made: Ticket | None = None  # what people have approved for the gateway to make: then nobody presents a credential
    tool: str | None = None  # the HTTP tool that is called; empty where the caller asks which there are


class Proxy:
    """Takes calls from their arrival to a settled record. One per gateway; `snapshot` is what new calls are handled under."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, snapshot: Snapshot, *, keyring: KeyRing | None, journal: Journal, sessions: Sessions, budgets: Budgets, breakers: Breakers,
        approvals: Approvals, session_desk: SessionDesk, transport: Transport, telemetry: Telemetry, clock: Clock, ids: Ids, notify: Notify,
    ) -> None:
        self.snapshot = snapshot
        self.in_flight = 0
        self.admission = Admission(clock, ids, telemetry)
        self.keep_alive = KeepAlive(clock)
        self._keyring = keyring
        self._clock = clock
        self._scrubber = scrubber = Scrubber(snapshot.secrets)
        self._turns = Turns(sessions, clock)
        self.holding = Holding(approvals, self.admission, telemetry, clock, ids, scrub=scrubber.bytes, perform=self._perform, notify=notify)
        asking = Asking(self._turns, budgets, clock, scrubber.text)
        proposals = Proposals(asking, self.holding, lambda: self.snapshot)
        self._rulings = Rulings(sessions, asking, self.holding, proposals)
        self.settler = Settler(journal, telemetry, clock, scrubber)
        self._beginning = Beginning(self.settler, self.holding, approvals)
        self._dispatcher = Dispatcher(transport, journal, budgets, breakers, clock, scrubber.text)
        self._pursuit = Pursuit(breakers, telemetry, clock, ids)
        self.errands = Errands(self._dispatcher, self._pursuit, self.settler)
        self.routing = Routing(breakers.condition, self.errands.classify, sessions, budgets, clock, ids)
        self._streaming = Streaming(self._dispatcher, self._rulings, budgets, clock, scrubber.text, scrubber.bytes)
        self.frozen = Frozen(session_desk, telemetry, self._end_session)
        self._session_desk = session_desk
        self._answering = Answering(self.settler, self.holding, scrubber, clock)
        self._running: dict[asyncio.Task[Any] | None, Progress] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def handle(self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client) -> None:
        """The steps of one call, in their order. Whatever this raises, `serve` settles and tells."""
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        case.presence = self._presence(arrival)
        case.asked_again = arrival.made.origin["asked_key"] if arrival.made is not None else ""
        case.principal = await self._authenticate(arrival)  # before the body is read: a stranger costs next to nothing, and no place
        case.origin = self._origin(arrival, snapshot)
        case.tool = arrival.tool if arrival.tool and arrival.tool in snapshot.tools else ""
        body, sent_s = await self._let_in(case, snapshot, arrival)  # a full house does no work; who waits is let in in fair turns
        asked = await read_call(case, arrival.dialect, arrival.tool, body, snapshot)  # parsed once: what is judged is what is sent
        asked = await self._in_session(case, snapshot, asked)
        del body  # whoever waits for people keeps what it says, once
        with self._way(case, snapshot, arrival, client) as way:
            await self.holding.answers.look_up(case, snapshot, asked)  # an answer of which people look at a part is not asked for twice
            while True:  # once more where people have to decide first, or another call of the same was faster
                try:
                    async with self._permitted(case, snapshot, asked) as (call, route):  # what rules say, and people
                        if case.kept is not None:
                            case.answered, case.unfit = True, case.kept.reply["unfit"]
                            kept = await self._rulings.reply(case, snapshot, call, kept_reply(case.kept.reply))
                            self._hush(way)
                            await self._answering.answer(case, call, arrival.dialect, client, kept)
                            return
                        spending = spending_of(call, route, case.received, self._scrubber.text)
                        begun_s = loop.time()  # the route's time begins now, the client's own when it came, an SDK's once its body was sent
                        deadlines = shortened(route.deadlines, arrival.headers, stream=call.stream, used_s=begun_s - arrived_s,
                                              sent_s=sent_s, spoken=case.encoder is not None)
                        async with asyncio.timeout_at(begun_s + min(deadlines.total_s, deadlines.silence_s)) as limit:
                            case.presence.limit = limit
                            case.patience = told(deadlines, route.deadlines)
                            plan = await self.routing.plan(case, snapshot, call, route, spending)  # where it may go, best first, and why
                            case.plan = plan_json(plan)
                            with contextlib.closing(self._pursuit.of(case.id, route, plan, deadlines.total_s)) as tries:
                                first = await tries.first()
                                await self._beginning.begin(case, call, first.to, snapshot, spending)  # on disk before anything leaves
                                self.errands.mirror(case, call, route, snapshot)
                                errand = Errand(case, call, route, deadlines, tries, snapshot)
                                heard = partial(limit.reschedule, begun_s + deadlines.total_s)  # from then on the client hears something
                                got = await self._sent(errand, first, way, heard)
                                if isinstance(got, Reply):
                                    got = await self._rulings.reply(case, snapshot, call, got)
                                elif way is not None:
                                    heard()
                                    got, rest = await self._streaming.relay(errand, got, way)
                        self._hush(way)
                        if isinstance(got, Reply):  # settled before its last byte, outside the deadline: the provider has done its work
                            await self._answering.answer(case, call, arrival.dialect, client, got)
                        else:
                            await self._answering.end_stream(case, client, got, rest)
                        return
                except OnHold as hold:
                    ticket = hold.ticket
                snapshot = await self._waited(case, snapshot, arrival, ticket)

    async def serve(self, arrival: Arrival, client: Client) -> None:
        """Handle one call and settle it, however it ends: the record is durable before the client has its whole answer.

        Raises:
            ClientGone: there was nobody left to answer; the call is settled.
        """
        snapshot = self.snapshot  # read once: a call ends under what it began with
        bodies = snapshot.config.journal.bodies
        case = Progress(arrival.id, arrival.dialect.name, arrival.operation, self._clock.now_ns(), bodies,
                        part_of=arrival.made.call_id if arrival.made is not None else "")
        task = asyncio.current_task()
        self._running[task] = case
        self.in_flight += 1
        self._idle.clear()
        try:
            await self.handle(case, snapshot, arrival, client)
        except CallError as error:
            await self._answering.fail(case, error, arrival.dialect, client)
        except Finished as done:
            await self._answering.give(case, done, arrival.dialect, client)
        except TimeoutError:
            failure = AttemptFailed("timeout:total", "the call's time was up", retryable=False)
            case.end_attempts(AttemptEnd.CUT if case.tally else AttemptEnd.FAILED, ended_ns=self._clock.now_ns(), failure=failure)
            late = UpstreamTimeout(f"The answer was not complete in time: {case.patience} passed.")
            await self._answering.fail(case, late, arrival.dialect, client)
        except asyncio.CancelledError:
            if case.settled:
                raise
            if case.ended_by is None and not self.settler.stopping:
                self._gone(case)
                raise
            case.end_attempts(AttemptEnd.CANCELLED, ended_ns=self._clock.now_ns())  # the gateway did this, and the client is still there
            await self._answering.fail(case, case.ended_by or self._stopped(case), arrival.dialect, client)
        except ClientGone:
            self._gone(case)
            raise
        finally:
            self._left(case, task)
            if not case.settled:  # a defect on the way: whoever catches it answers, once the books are closed
                defect = InternalError("The gateway failed inside; see its log.")
                await asyncio.wait({self.settler.settle_later(case, case.outcome_of_failure, defect.status, defect)}, timeout=_DEFECT_S)

    def _stopped(self, case: Progress) -> CallError:
        """What a caller is told whose call the end of this gateway ends."""
        if case.approval is not None and case.approval.state is State.PENDING:
            return pending(case.approval, self.snapshot.config.approvals.retry_after)
        return Overloaded("The gateway was stopped before the answer was complete.")

    def _left(self, case: Progress, task: asyncio.Task[Any] | None) -> None:
        self._running.pop(task, None)
        self.holding.ended(case)
        self.in_flight -= 1
        if case.inside:
            self.admission.leave()
        if self.in_flight == 0:
            self._idle.set()

    async def principal_of(self, credential: str | None) -> Principal:
        """Who presents this credential. Raises `Unauthenticated`, or `IdentityUnavailable` where nobody can know."""
        if self._keyring is None:
            return ANONYMOUS
        who = self._keyring.identify(credential, self._clock.now_ns())
        return who if isinstance(who, Principal) else await who  # a token whose issuer has to be asked for its keys

    async def models(self, arrival: Arrival) -> bytes:
        """The models this caller may use, or the HTTP tools, in its dialect. Raises as `principal_of`."""
        principal = await self._authenticate(arrival)
        tools = self.snapshot.tools
        asked = arrival.tool is not None
        return arrival.dialect.models([name for name in names_for(self.snapshot, principal) if (name in tools) is asked])

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

    def _end_session(self, key: SessionKey, error: CallError) -> None:
        """End the calls of a session that are under way: each is settled, and its client told this."""
        for task, case in self._running.items():
            if task is not None and not case.settled and case.ended_by is None and (case.principal.id, case.origin.session) == key:
                case.ended_by = error
                task.cancel()

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

    def _presence(self, arrival: Arrival) -> Presence:
        """How its caller waits, as its headers say. `begin` comes with its stream."""
        later = any(each.strip().lower() == "respond-async" for each in arrival.headers.get("Prefer", "").split(","))
        return Presence(self._clock.monotonic(), waits_s(arrival.headers), whole_s(arrival.headers), later,
                        performing=arrival.made.id if arrival.made else "")

    @contextlib.asynccontextmanager
    async def _permitted(self, case: Progress, snapshot: Snapshot, call: Call) -> AsyncIterator[tuple[Call, Route]]:
        """The call as it may leave, and where to: what the rules say, and people where the rules ask for them."""
        self.frozen.check(call)
        route = entitled(snapshot, call.principal, call.asked, call.operation)  # a route that a key may not use is not there
        async with self._turns.turn(snapshot.bundle, call, wait_s=snapshot.config.policy.wait, longest_s=snapshot.longest_s):
            yield await self._rulings.request(case, snapshot, call, route)  # what is left of the call is what leaves

    async def _waited(self, case: Progress, snapshot: Snapshot, arrival: Arrival, ticket: Ticket) -> Snapshot:
        """Wait for what happens to an approval. Nothing is held for the call meanwhile: no turn, no place, no money. Then the rules of that
        moment are asked again: their snapshot.
        """
        case.presence.limit = None  # its time begins anew
        await self.holding.wait(case, snapshot, ticket)
        snapshot = self.snapshot
        await self._enter(case, snapshot, arrival)
        case.again()
        return snapshot

    async def _authenticate(self, arrival: Arrival) -> Principal:
        if arrival.made is not None:
            return self._still(principal_in(arrival.made))
        return await self.principal_of(arrival.credential)

    def _still(self, principal: Principal) -> Principal:
        """The principal whose call it was, as it is now. Raises `Unauthenticated` where its key was revoked meanwhile."""
        return principal if self._keyring is None else self._keyring.still(principal, self._clock.now_ns())

    def _origin(self, arrival: Arrival, snapshot: Snapshot) -> Origin:
        if arrival.made is not None:
            return origin_in(arrival.made)
        origin = read_origin(arrival.headers)
        check_named(origin.session, snapshot.config.sessions.derive)
        if origin.session is not None and self._scrubber.text(origin.session) != origin.session:
            # It would be kept under another name than it is asked for, and every rule on it would see a session that has just begun.
            raise InvalidRequest("The header X-Lockgate-Session holds what looks like a secret. Give the session another name.")
        return origin

    async def _in_session(self, case: Progress, snapshot: Snapshot, call: Call) -> Call:
        """The call in the session that it says it belongs to, in whatever way it does."""
        order = snapshot.config.sessions.derive
        case.call = call = await in_session(call, case.hints, order, self._session_desk.linked, self._scrubber.text)
        case.origin, case.received = call.origin, call.body
        case.chained = "previous" in order and call.origin.session is not None
        return call

    async def _perform(self, ticket: Ticket) -> Result:
        """Make the call that people have approved, as its caller stored it; what its caller is to be told."""
        dialects = {each.name: each for each in self.snapshot.dialects}
        model = ticket.kind == "request"
        dialect = dialects.get(ticket.origin["dialect"]) if model else ToolDialect(self.snapshot.tools, ticket.tool, safe=False)
        if dialect is None:
            raise InternalError(f"The dialect {ticket.origin['dialect']} of the approved call is not there any more.")

        async def stored() -> bytes:
            return body_in(ticket)

        collected = Collected()
        arrival = Arrival(self._pursuit.ids.call_id(), dialect, ticket.origin["operation"] if model else OPERATION, {}, None, stored,
                          made=ticket, tool=None if model else ticket.tool)
        await self.serve(arrival, collected)
        return Result(collected.status, collected.content_type, collected.body, collected.headers)

    def _way(
        self, case: Progress, snapshot: Snapshot, arrival: Arrival, client: Client,
    ) -> Way | contextlib.AbstractContextManager[None]:
        """The client's side of a streamed answer; None where it is a plain one."""
        call = case.call
        if call is None or not call.stream:
            return contextlib.nullcontext()
        every_s = min(snapshot.config.server.keep_alive, (case.presence.waits_s or inf) / 2)
        contiguous = "X-Stainless-Helper-Method" in arrival.headers
        way = Way(case, call, arrival.dialect, client, self.keep_alive, every_s=every_s, contiguous=contiguous)
        case.presence.begin = way.open
        return way

    def _hush(self, way: Way | None) -> None:
        """From here on whoever closes the books writes the end."""
        if way is not None:
            way.close()

    async def _sent(self, errand: Errand, first: Try, way: Way | None, heard: Callable[[], None]) -> Answered:
        sending = self._dispatcher.send(errand, first)
        try:
            got = await (sending if way is None or not errand.route.early_s else self._streaming.early(errand, way, sending, heard))
        except (UpstreamRejected, UpstreamFailed) as refusal:  # a tool's words are what it gave back
            await self._rulings.rejected(errand.case, errand.snapshot, errand.call, refusal)
            raise
        errand.case.answered = True
        return got

    def _gone(self, case: Progress) -> None:
        if case.taken is not None:
            self.holding.performing.own(self.holding.answers.put_back(case))
        if not case.settled:
            gone = ClientGone("The client closed its connection.")
            self.settler.settle_later(case, Outcome.CANCELLED, _CLIENT_CLOSED, gone)
