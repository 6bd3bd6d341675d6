"""What becomes of a call that a rule holds for people: the approval that it meets, and how its caller waits for it.

Owns no order: whoever asks the rules asks here, leaves what they hold, waits, and asks the rules again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from gateway.admission import Admission
from gateway.approvals.granting import Granting
from gateway.approvals.kept_answers import KeptAnswers, kept_under, of_kept
from gateway.approvals.performing import Perform, Performing
from gateway.approvals.tickets import WHOLE, Matter, as_told, bounds_of, met, no_room, nothing_kept, outline, pending, refuse, ticket_of
from gateway.call import Json, JsonObject
from gateway.clock import Clock, Ids
from gateway.core.action import UncanonicalError
from gateway.core.approval import OPEN, Demand, Event, NotPossibleError, Result, State, Ticket
from gateway.core.conditions import Conditions
from gateway.core.decision import Approval, Held
from gateway.errors import (
    ApprovalAccepted,
    ApprovalConflict,
    ApprovalDenied,
    ApprovalUnavailable,
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    UpstreamFailed,
)
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals, Claim, KeptAnswer, Notify, QueueFullError
from gateway.telemetry import Telemetry
from gateway.waiting import Waiting
from gateway.wire.strict_json import dumps

_SPARE_S: Final = 5.0  # before a client gives up: for the answer itself, once people have decided
_DOING_S: Final = 600.0  # the longest wait for what is being done, of a caller who does not say how long it waits
_LATEST: Final = 1000  # changes that are looked at in one step


class OnHold(Exception):
    """No error, but a step of the call's path. The call cannot go on before something happens to `ticket`.

    Thousands may wait for people: one that does has no more of its ticket than a wait needs.
    """

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(ticket.id)
        self.ticket = ticket if ticket.state is State.APPROVED else outline(ticket)


class Finished(Exception):
    """No error: the call has its answer. The action was done before, under `ticket`; `result` is what came of it."""

    def __init__(self, ticket: Ticket, result: Result) -> None:
        super().__init__(ticket.id)
        self.ticket = ticket
        self.result = result


class Holding:
    """Approvals as calls meet them. One per gateway; `perform` makes a stored call, `notify` the notices of what happens to a ticket."""

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, store: Approvals, admission: Admission, telemetry: Telemetry, clock: Clock, ids: Ids, *, scrub: Callable[[bytes], bytes],
        perform: Perform, notify: Notify,
    ) -> None:
        self.waiting = Waiting(clock)
        self.conditions = Conditions()
        self.answers = KeptAnswers(store, clock)
        self._granting = Granting(store, clock, self.conditions)
        self._telemetry = telemetry
        self._store = store
        self._admission = admission
        self.performing = Performing(store, perform, self.refresh, telemetry, clock)
        self._clock = clock
        self._ids = ids
        self._scrub = scrub
        self._notify = notify
        self._known = 0
        self._live: dict[str, str] = {}  # the calls whose streams take an approval, by its id

    def __repr__(self) -> str:
        return f"Holding({len(self.waiting)} wait, {self.performing!r})"

    async def permit(self, case: Progress, snapshot: Snapshot, matter: Matter, answer: JsonObject | None = None) -> Ticket | None:
        """The approval that the action may go on under; None where grants cover it, which are noted in `case.grants`.

        `answer` is what of a provider's answer is to be kept meanwhile, for an action that stands in one.

        Raises:
            OnHold: people have not decided yet, or it is being done.
            Finished: it is done.
            ApprovalDenied, ApprovalUnknown, ApprovalUnavailable, Overloaded: it will not go on.
            StoreUnavailable: nobody can say.
        """
        whole = matter.kind in WHOLE
        performing = case.presence.performing if whole else ""
        granted = {} if performing else await self._needed(case, matter, await self._granting.covered(case, snapshot, matter))
        approvals = [each for each in matter.approvals if each.rule not in granted]
        ticket = None
        if approvals or performing:  # what was approved is claimed, also where nobody asks for that any more
            ticket = await self._met_by(case, snapshot, matter, approvals, answer)
            case.approval = as_told(ticket, matter)
            if whole:
                case.under = ticket
            await self._check(case, matter, ticket, tuple(each.demand for each in approvals))
        case.grants = tuple(granted.values())
        return ticket

    async def reconsider(self, case: Progress, matter: Matter, ticket: Ticket, held: Sequence[Held]) -> None:
        """Check that an approval is enough for what the rules of now ask about the exact action that people saw. Raises `OnHold`."""
        demands = tuple({each.rule: each.demand for one in held for each in one.approvals}.values())
        if ticket.state is State.APPROVED and not met(demands, ticket):
            raise OnHold(await self._strengthened(case, matter, ticket, demands))

    async def wait(self, case: Progress, snapshot: Snapshot, ticket: Ticket) -> None:
        """Wait until something happens to a ticket: then the rules are to be asked again. What the call holds is given back meanwhile.

        Raises:
            ApprovalPending: its caller should come back: the wait was long enough, or this gateway stops.
            ApprovalAccepted: its caller wants to come back.
            Finished: it was approved, and could not be begun all the same.
        """
        presence, approvals = case.presence, snapshot.config.approvals
        if presence.performing:  # whoever waits for it waits elsewhere
            raise pending(ticket, snapshot.config.approvals.retry_after)
        if presence.later and ticket.state is State.PENDING and case.encoder is None:
            raise ApprovalAccepted(ticket.message, ticket=ticket.id, rule=ticket.rule, retry_after_s=round(approvals.retry_after))
        case.approval = ticket
        if case.under is not None and case.under.id == ticket.id:
            case.under = ticket
        if ticket.id not in presence.waited:
            presence.waited += (ticket.id,)
        if len(self.waiting) >= approvals.max_held:
            raise pending(ticket, snapshot.config.approvals.retry_after)
        if case.inside:
            case.inside = False
            self._admission.leave()
        left_s = presence.pause()
        if presence.begin is not None:
            await presence.begin()
        waits = ticket.state is not State.APPROVED or ticket.id in self._live
        performing = None if waits else self.performing.of(ticket)
        await self._wait(case, snapshot, ticket, performing)
        if performing is not None and performing.done() and (result := performing.result()) is not None:
            raise Finished(ticket, result)  # it could not be begun
        presence.go_on(left_s)

    async def release(self, case: Progress, matter: Matter, ticket: Ticket | None, *, grants: Sequence[str], keep: bool) -> Json:
        """Let something that nothing is sent for go on, under a ticket or grants: what it goes on with where people have changed it, else
        None.

        Raises:
            OnHold: the ticket, or a grant, is another by now.
            Finished, ApprovalConflict: another connection has been given the answer.
        """
        now_ns = self._clock.now_ns()
        try:
            await self.answers.take(case)
        except ApprovalConflict:
            await self._shared(case)
            raise
        case.once = case.once or matter.kind == "tool_call"
        if grants and not await self._store.use(grants, call_id=case.id, now_ns=now_ns):
            raise OnHold(ticket or await self._latest(case, matter))
        case.granted += tuple(grants)
        if case.tally is not None:  # a stream that is relayed: it goes out at once
            case.shown = True
        if ticket is None:
            return None
        if ticket.state is State.APPROVED:
            claim = Claim(ticket.id, ticket.digest, ticket.fence)
            if not await self._store.release(claim, call_id=case.id, keep=keep, now_ns=now_ns):
                raise OnHold(await self._latest(case, matter))
            self._telemetry.approval("released" if keep else "claimed", ticket, call=case.id)
            await self.refresh()
        case.released |= {ticket.id}
        return None if ticket.digest == matter.action.digest else ticket.shown["arguments"]

    async def _shared(self, case: Progress) -> None:
        """Raise what comes of an answer that was kept, where another connection is given it and it is for both."""
        under = kept_under(case)
        ticket = await self._store.get(under) if under and not await self.answers.there(case) else None
        if ticket is not None and ticket.answer is not None:
            raise Finished(ticket, ticket.answer)
        if ticket is not None and ticket.delivered_ns is None:
            raise OnHold(ticket)

    def ended(self, case: Progress) -> None:
        """A call is over: if its stream was taking an approval, and did not, another one may."""
        if case.under is not None and self._live.get(case.under.id) == case.id:
            del self._live[case.under.id]
            self.waiting.wake([case.under.id])

    async def refresh(self) -> None:
        """Look for what has happened to approvals, here or in another process, and tell who waits. Every quarter of a second or so."""
        self.waiting.look()
        while await self._store.generation() > self._known:
            changes = await self._store.changed(self._known, _LATEST)
            if not changes:
                return
            self.waiting.wake(ticket for ticket, _state, _number in changes)
            self._known = max(self._known, changes[-1][2])
            if not self.waiting.stopping:
                await self.performing.approved([ticket for ticket, state, _number in changes if state is State.APPROVED])

    async def start(self) -> None:
        """Begin with what is there: nobody waits for it yet."""
        self._known = await self._store.generation()

    async def refuse(self, ticket_id: str, reason: str) -> None:
        """The rules deny by now what people have approved."""
        ticket = await self._store.get(ticket_id)
        if ticket is not None and ticket.state is State.APPROVED:
            with contextlib.suppress(NotPossibleError):  # it has expired in this very moment
                await self._happen(ticket, Event.DENY, reason=reason)

    # What a ticket is to a call.

    def _over(self, case: Progress, ticket: Ticket, *, whole: bool) -> bool:
        """Whether the ticket is of another time: this presentation begins anew."""
        if ticket.state in OPEN:
            return False
        waited = ticket.id in case.presence.waited
        if ticket.state is State.DENIED:  # it stands for as long as people would have had
            return not waited and ticket.expires_ns <= self._clock.now_ns()
        if ticket.state not in (State.SUCCEEDED, State.FAILED):
            return not waited
        if not whole:
            return not of_kept(case, ticket)  # it was for another answer, which held the same
        if waited:
            return ticket.state is State.FAILED and ticket.result is None  # whoever made it has died
        wanted = ticket.delivered_ns is None or (ticket.mode == "execute" and ticket.state is State.SUCCEEDED and not ticket.next)
        return ticket.result is None or not wanted

    def _claim(self, case: Progress, matter: Matter, ticket: Ticket) -> None:
        """Have the call's intent take the ticket; or have the gateway make the stored call, which goes on where its caller leaves.

        A stream is made by its caller's own call, so that it comes as it is made.
        """
        performing = case.presence.performing == ticket.id
        alike = ticket.digest == matter.action.digest
        if performing and not alike:
            raise ApprovalDenied("The rules make another action of it by now than what was approved.", ticket=ticket.id, rule=ticket.rule)
        streams = matter.kind == "request" and ticket.mode == "release" and alike and case.presence.begin is not None
        if streams and self._live.setdefault(ticket.id, case.id) != case.id:
            raise OnHold(ticket)  # another stream is taking it: what that brings is for both
        if performing or streams:
            case.claim = Claim(ticket.id, ticket.digest, ticket.fence)
            return
        raise OnHold(ticket)

    async def _strengthened(self, case: Progress, matter: Matter, ticket: Ticket, demands: tuple[Demand, ...]) -> Ticket:
        try:
            return await self._happen(ticket, Event.STRENGTHEN, demands=demands)
        except NotPossibleError:  # it was claimed, or has expired, in this very moment
            return await self._latest(case, matter)

    async def _met_by(
        self, case: Progress, snapshot: Snapshot, matter: Matter, approvals: Sequence[Approval], answer: JsonObject | None,
    ) -> Ticket:
        """The ticket that the action meets: the one that is there, else a new one."""
        whole = matter.kind in WHOLE
        performing = case.presence.performing if whole else ""
        presented, known, under = _presented(matter), performing, case.under
        if under is not None and under.presented != presented == under.digest:
            known = under.id  # an edited one, which is found by what it is only while it is open
        # What people have edited is found as it was asked for: its own identity leads nowhere.
        ticket = await (self._store.get(known) if known else self._store.find(case.principal.id, presented))
        if ticket is None or (not performing and self._over(case, ticket, whole=whole)):  # nobody asks anew for what was withdrawn
            await self._shared(case)
            return await self._open(case, snapshot, matter, approvals, answer)
        return ticket

    async def _check(self, case: Progress, matter: Matter, ticket: Ticket, demands: tuple[Demand, ...]) -> None:
        """Raise what `permit` raises for a ticket that the action may not go on under, or not yet."""
        whole = matter.kind in WHOLE
        refuse(ticket)
        if ticket.state in (State.SUCCEEDED, State.FAILED):
            if not whole:
                return  # it was released, and the answer that it stands in did not arrive
            if await self.answers.find(case, ticket.origin["asked_key"]):
                return  # it was done, and people look at a part of its answer
            if ticket.answer is None and matter.kind == "request":
                raise UpstreamFailed("It was done, and its answer is not kept any more.")
            raise Finished(ticket, ticket.answer or nothing_kept(ticket))
        if ticket.state is not State.APPROVED:
            raise OnHold(ticket)
        if not met(demands, ticket):
            raise OnHold(await self._strengthened(case, matter, ticket, demands))
        if whole:
            self._claim(case, matter, ticket)

    async def _needed(self, case: Progress, matter: Matter, granted: dict[str, str]) -> dict[str, str]:
        """Of these grants those that are needed: what people were asked about goes by their word, else it would be done twice."""
        ticket = await self._store.find(case.principal.id, _presented(matter)) if granted else None
        if ticket is None or self._over(case, ticket, whole=matter.kind in WHOLE):
            return granted
        asked = {demand.rule for demand in ticket.demands}
        return {rule: grant for rule, grant in granted.items() if rule not in asked}

    async def _open(
        self, case: Progress, snapshot: Snapshot, matter: Matter, approvals: Sequence[Approval], answer: JsonObject | None,
    ) -> Ticket:
        config, now_ns = snapshot.config.approvals, self._clock.now_ns()
        ticket_id = f"apr_{self._ids.call_id().removeprefix('call_')}"
        ticket = ticket_of(case, matter, approvals, ticket_id=ticket_id, now_ns=now_ns, unexpired_s=config.unexpired)
        stored = dumps({"shown": ticket.shown, "answer": answer}) + ticket.body
        if self._scrub(stored) != stored:
            why = "It holds a secret of this gateway, which nobody is to be shown, so nobody can be asked."
            raise ApprovalUnavailable(why, rule=ticket.rule)
        kept = None
        if answer is not None and case.asked_again:
            first = case.kept.call_id if case.kept is not None else case.id
            released = list(case.kept.reply.get("released", ())) if case.kept is not None else []
            under = case.under.id if case.claim is not None and case.under is not None else kept_under(case)
            reply = {**answer, "released": released, "under": under}
            kept = KeptAnswer(case.asked_again, case.principal.id, first, reply, now_ns + int(config.keep_results * 1e9))
            case.keeps = True
        try:
            opened = await self._store.open(ticket, self._notify(ticket, "opened", now_ns), bounds=bounds_of(config), kept=kept)
        except QueueFullError as error:
            raise no_room(error.full, ticket.rule) from error
        if opened.id == ticket_id:  # else it was there
            self._telemetry.approval("opened", opened, call=case.id)
        await self.refresh()
        return opened

    # Waiting.

    async def _wait(
        self, case: Progress, snapshot: Snapshot, ticket: Ticket, performing: asyncio.Task[Result | None] | None,
    ) -> None:
        what = ticket.id if performing is None else f"{ticket.id} is made"  # to its end, else one that comes back is made over and over
        waiter = self.waiting.add(what, until_s=self._until_s(case, snapshot, ticket), streams=case.presence.begin is not None)
        if performing is not None:
            performing.add_done_callback(lambda _: self.waiting.wake([what]))
        alone = False
        try:
            if performing is None and self._known > ticket.changed and await self._has_changed(ticket):
                return
            why = await waiter.told
        except asyncio.CancelledError:
            alone = self.waiting.drop(waiter)
            if alone and ticket.on_disconnect == "withdraw" and not self.waiting.stopping:
                self.performing.own(self._withdraw(ticket))
            raise
        finally:
            if not alone:
                self.waiting.drop(waiter)
        if why != "changed":
            raise pending(ticket, snapshot.config.approvals.retry_after)

    async def _has_changed(self, ticket: Ticket) -> bool:
        """Whether something has happened to it since it was looked at, before there was anybody to be told."""
        latest = await self._store.get(ticket.id)
        return latest is None or latest.changed != ticket.changed

    def _until_s(self, case: Progress, snapshot: Snapshot, ticket: Ticket) -> float:
        """Until when its caller's connection is held, on the monotonic clock. `hold` is for people: what is done takes its own time."""
        decided = [*case.decisions, *case.verdicts]
        holds = [each.hold_s for held in decided if isinstance(held, Held) for each in held.approvals if each.hold_s is not None]
        presence, hold_s = case.presence, min(holds, default=snapshot.config.approvals.hold)
        until_s = presence.arrived_s + hold_s if ticket.state is State.PENDING else self._clock.monotonic() + _DOING_S
        waits_s = presence.waits_s if presence.begin is None else presence.whole_s  # each byte of a stream is patience anew
        if waits_s is None:
            return until_s
        return min(until_s, presence.arrived_s + max(waits_s - _SPARE_S, waits_s / 2))

    async def _withdraw(self, ticket: Ticket) -> None:
        try:
            await self._happen(ticket, Event.WITHDRAW, reason="Its caller has hung up.")
        except (NotPossibleError, StoreUnavailable):
            return  # decided in this very moment; or it expires by itself

    async def _happen(self, ticket: Ticket, event: Event, *, reason: str = "", demands: tuple[Demand, ...] | None = None) -> Ticket:
        now_ns = self._clock.now_ns()
        changed = await self._store.happen(
            ticket.id, event, now_ns=now_ns, author="gateway", reason=reason, demands=demands, fence=ticket.fence)
        self._telemetry.approval_now(changed, "gateway")
        await self.refresh()
        return changed

    async def _latest(self, case: Progress, matter: Matter) -> Ticket:
        ticket = await self._store.find(case.principal.id, matter.action.presented)
        if ticket is None:
            raise Overloaded("What was granted is used up. Try again.", retry_after_s=1)
        return ticket


def _presented(matter: Matter) -> str:
    """What a caller's action is found by. Raises `InvalidRequest`."""
    try:
        return matter.action.presented
    except UncanonicalError as error:
        raise InvalidRequest(f"The call cannot be shown to anybody as it is: {error}.") from error
