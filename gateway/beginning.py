"""The moment before a call leaves: its intent is written, or another call of the same caller has just claimed what they both wait for."""

from dataclasses import dataclass

from gateway.approvals.holding import Finished, Holding
from gateway.approvals.tickets import outline, refuse
from gateway.call import Call
from gateway.core.approval import State, Ticket
from gateway.core.plan import RouteTarget
from gateway.errors import ApprovalPending
from gateway.progress import Progress
from gateway.settle import Settler
from gateway.snapshot import Snapshot
from gateway.spending import Spending
from gateway.store.approvals_protocol import Approvals


@dataclass(frozen=True, slots=True)
class Beginning:
    """One per gateway."""

    settler: Settler
    holding: Holding
    approvals: Approvals

    async def begin(self, case: Progress, call: Call, first: RouteTarget, snapshot: Snapshot, spending: Spending) -> None:
        """Write the intent; returns when it is on disk. Raises as `Settler.begin`, and `Finished` where another call was faster.

        Two that present one approved action at once, on one connection each, have one answer: an SDK's stream would not come back for it.
        """
        try:
            await self.settler.begin(case, call, first, snapshot.budgets, spending)
        except ApprovalPending:
            if case.under is not None and not case.presence.performing:
                await self._other(case, snapshot, case.under)
            raise

    async def _other(self, case: Progress, snapshot: Snapshot, under: Ticket) -> None:
        """Wait for what comes of the other call. Raises it, where that is known."""
        ticket = await self.approvals.get(under.id)
        while ticket is not None and ticket.state is State.EXECUTING:
            await self.holding.wait(case, snapshot, outline(ticket))
            ticket = await self.approvals.get(under.id)
        if ticket is not None:
            refuse(ticket)
        if ticket is not None and ticket.result is not None:
            case.approval = case.under = ticket
            raise Finished(ticket, ticket.result)
