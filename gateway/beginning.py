"""The moment before a call leaves: its intent is written, or another call of the same caller has just claimed what they both wait for."""

from dataclasses import dataclass

from gateway.approvals.holding import Holding, OnHold
from gateway.call import Call
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
        """Write the intent; returns when it is on disk. Raises as `Settler.begin`, and `OnHold` where another call was faster, in whatever
        process: what that brings is for both, and an SDK's stream would not come back for it.
        """
        try:
            await self.settler.begin(case, call, first, snapshot.budgets, spending)
        except ApprovalPending:
            under = case.under
            if under is None or case.presence.performing:
                raise
            latest = await self.approvals.get(under.id)
            if latest is not None and latest.changed == under.changed:  # it was a grant that is used up: the approval is anybody's
                self.holding.ended(case)
            await self.holding.refresh()
            raise OnHold(under) from None
