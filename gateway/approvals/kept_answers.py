"""Answers of which people look at a part: kept for whoever presents their request again, and given to one of them."""

from dataclasses import dataclass, replace

from gateway.approvals.tickets import asked_key
from gateway.call import Call
from gateway.clock import Clock
from gateway.core.approval import WAITS_FOR, Result, State, Ticket
from gateway.errors import ApprovalConflict
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """One per gateway."""

    store: Approvals
    clock: Clock

    async def look_up(self, case: Progress, snapshot: Snapshot, call: Call) -> None:
        """Note the answer that is kept for a request, of which a part is held for people, where there is one (`case.kept`)."""
        route = snapshot.routes.get(call.route)
        held = snapshot.bundle.holds_answers or (route is not None and route.approve)
        if held and not case.presence.performing:
            case.asked_again = asked_key(call)
            await self.find(case, case.asked_again)

    async def take(self, case: Progress) -> None:
        """Something of an answer goes on to this caller, so that nobody else may be given the same. Raises `ApprovalConflict`."""
        if not case.asked_again or case.taken is not None:
            return
        case.taken = await self.store.take_kept(case.principal.id, case.asked_again)
        if case.taken is None and case.keeps:
            raise ApprovalConflict("The answer that this waited for has just been given to another connection of yours.")

    async def put_back(self, case: Progress) -> None:
        """Nothing of the answer has reached its caller after all: it is kept for when they come back, with what was let go on already."""
        taken, case.taken = case.taken, None
        if taken is not None and not case.shown:
            released = [*taken.reply.get("released", ()), *case.released]
            await self.store.keep(replace(taken, reply={**taken.reply, "released": released}), now_ns=self.clock.now_ns())

    async def given(self, case: Progress) -> None:
        """The caller has its answer: nothing of it is kept any longer."""
        if case.keeps and case.taken is None:
            await self.store.forget_kept(case.principal.id, case.asked_again)
        case.taken = None
        if under := kept_under(case):
            await self.store.delivered(under, now_ns=self.clock.now_ns())
        elif case.under is not None and (case.claim is not None or case.under.state in (State.SUCCEEDED, State.FAILED)):
            await self.store.delivered(case.under.id, now_ns=self.clock.now_ns())

    async def there(self, case: Progress) -> bool:
        """Whether the answer that is given now is this call's to give: it is kept still, or this call has taken it."""
        at = case.principal.id, case.asked_again
        return case.taken is not None or await self.store.kept(*at, now_ns=self.clock.now_ns()) is not None

    async def stands(self, case: Progress, result: Result) -> None:
        """The answer that was kept goes to its caller: from now on it is what came of the approved call that brought it."""
        under = kept_under(case)
        ticket = await self.store.get(under) if under and not case.once else None
        if ticket is not None and ticket.result is not None:
            figures = {name: value for name, value in ticket.result.headers.items() if name != WAITS_FOR}
            await self.store.answer(under, replace(result, headers=figures), now_ns=self.clock.now_ns())

    async def find(self, case: Progress, asked: str) -> bool:
        """Whether an answer is kept under this."""
        kept = await self.store.kept(case.principal.id, asked, now_ns=self.clock.now_ns()) if asked else None
        if kept is not None:
            case.kept, case.asked_again, case.keeps = kept, asked, True
        return kept is not None


def kept_under(case: Progress) -> str:
    """The approval of the call that has brought the answer that is given now; empty where it was made under none."""
    return "" if case.kept is None else str(case.kept.reply.get("under", ""))


def of_kept(case: Progress, ticket: Ticket) -> bool:
    """Whether something of the answer that is given now was let go on under this ticket, and none of it has arrived: once for each."""
    return case.kept is not None and ticket.id in case.kept.reply.get("released", ()) and ticket.id not in case.released
