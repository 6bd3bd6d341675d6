"""Grants as calls meet them: which rules that would hold an action are covered by one."""

from dataclasses import dataclass

from gateway.approvals.tickets import Matter
from gateway.clock import Clock
from gateway.core.conditions import Conditions
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals


@dataclass(frozen=True, slots=True)
class Granting:
    """One per gateway."""

    store: Approvals
    clock: Clock
    conditions: Conditions

    async def covered(self, case: Progress, snapshot: Snapshot, matter: Matter) -> dict[str, str]:
        """The rules that live grants cover, with their ids."""
        now_ns, found = self.clock.now_ns(), {}
        for approval in matter.approvals:
            if not approval.grants or matter.irreversible or not approval.demand.single:
                continue
            for grant in await self.store.grants(rule=approval.rule, principal=case.principal.id, live_at_ns=now_ns):
                fits = (grant.demand, grant.tool) == (approval.demand.key, matter.action.tool)
                fits = fits and grant.session in ("", case.origin.session) and grant.live(now_ns)
                if fits and self.conditions.holds(snapshot.bundle, grant.condition, matter.question):
                    found[approval.rule] = grant.id
                    break
        return found
