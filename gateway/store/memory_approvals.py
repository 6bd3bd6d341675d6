"""Approvals of the store without a disk: the same steps as on SQLite, on dicts. Every verb is done before it first awaits."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.call import CallRecord
from gateway.core.approval import OPEN, Demand, Event, Grant, NotPossibleError, Result, State, Ticket, Vote
from gateway.core.approval_bounds import Bounds, Full, Queue, asked
from gateway.core.approval_steps import (
    TOLD,
    Moved,
    answered,
    claimable,
    delivered,
    finished,
    happened,
    moved,
    opened,
    overdue,
    released,
    replaced,
    voted,
)
from gateway.errors import StoreError
from gateway.store.approval_rows import (
    HISTORY_FIELDS,
    entry_values,
    grant_of,
    grant_values,
    kept_values,
    reply_of,
    result_of,
    result_values,
    size_of,
    stored,
    ticket_of,
    ticket_values,
)
from gateway.store.approvals_protocol import Claim, KeptAnswer, Notice, Notify, QueueFullError, TicketFilter, tell_nobody
from gateway.store.memory_outbox import MemoryOutbox
from gateway.store.protocol import Intent
from gateway.store.rows import MOST_PAGE_BYTES, json_text, text

_FILTERS = ("rule", "tool", "route", "kind", "principal", "session", "team", "shape", "call_id", "mode")


class MemoryGrants:
    """Grants in a dict."""

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}
        self.uses: list[tuple[str, str, int]] = []  # which, by which call, and when

    def add(self, grant: Grant) -> None:
        """Add one. Raises `StoreError` if the id exists."""
        kept = grant_of(grant_values(grant))
        if kept.id in self._grants:
            raise StoreError(f"there is a grant {grant.id} already")
        self._grants[kept.id] = kept

    def live(self, grants: Iterable[str], now_ns: int, *, principal: str | None = None) -> bool:
        """Whether each of them can be used; with `principal` only where they are this one's."""
        there = [self._grants.get(text(each)) for each in grants]
        return all(each is not None and each.live(now_ns) and principal in (None, each.principal) for each in there)

    def use(self, grants: Iterable[str], call_id: str, now_ns: int) -> None:
        """Use each of them once."""
        for each in dict.fromkeys(map(text, grants)):
            grant = self._grants[each]
            self._grants[each] = replace(grant, uses=None if grant.uses is None else grant.uses - 1)
            self.uses.append((each, text(call_id), now_ns))

    def revoke(self, grant_id: str, author: str, now_ns: int) -> bool:
        """See `Approvals.revoke`."""
        grant = self._grants.get(text(grant_id))
        if grant is None or not grant.live(now_ns):
            return False
        self._grants[grant.id] = replace(grant, revoked_ns=now_ns, revoked_by=text(author))
        return True

    def list(self, rule: str | None, principal: str | None, live_at_ns: int | None, limit: int) -> Sequence[Grant]:
        """See `Approvals.grants`."""
        fit = [each for each in self._grants.values() if rule in (None, each.rule) and principal in (None, each.principal)
               and (live_at_ns is None or each.live(live_at_ns))]
        return sorted(fit, key=lambda each: (each.created_ns, each.id), reverse=True)[:max(limit, 0)]


class MemoryApprovals:
    """`Approvals` in dicts, and what the journal does with them. `links` are the approvals of each call, with the fence it has claimed."""

    def __init__(self, outbox: MemoryOutbox) -> None:
        self.links: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._outbox = outbox
        self._notify: Notify = tell_nobody
        self._tickets: dict[str, Ticket] = {}
        self._ids: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # by principal and either digest
        self._history: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._states: Counter[State] = Counter()
        self._kept: dict[tuple[str, str], tuple[str, tuple[Any, ...], int]] = {}
        self._results_ns: dict[str, int] = {}
        self._grants = MemoryGrants()
        self._queues: defaultdict[str, Queue] = defaultdict(Queue)  # by principal, and of all together under ''
        self._generation = 0

    def tell(self, notify: Notify) -> None:
        self._notify = notify

    async def open(self, ticket: Ticket, notices: Sequence[Notice] = (), *, bounds: Bounds, kept: KeptAnswer | None = None) -> Ticket:
        row = ticket_values(ticket)
        new, whose = opened(ticket_of(row)), text(ticket.principal)
        there = self._found(ticket.principal, ticket.presented)
        late = None if there is None else overdue(there, ticket.created_ns)
        now = late.ticket if late is not None else there
        is_new = now is None or now.state not in OPEN
        full_ns = asked(bounds, self._queues[""], self._queues[whose], size_of(row), ticket.created_ns) if is_new else 0
        if isinstance(full_ns, Full):
            raise QueueFullError(full_ns)
        if late is not None:
            now = self._keep(late)
        if now is None or is_new:
            self._queues[whose] = replace(self._queues[whose], full_ns=full_ns)
            now = self._insert(new, notices)
        if kept is not None and now.digest == ticket.digest:
            self._kept[text(kept.principal), text(kept.presented)] = text(kept.call_id), kept_values(kept), kept.expires_ns
        return now

    async def find(self, principal: str, presented: str) -> Ticket | None:
        return self._found(principal, presented)

    async def get(self, ticket_id: str) -> Ticket | None:
        return self._tickets.get(text(ticket_id))

    async def list(self, wanted: TicketFilter) -> Sequence[Ticket]:
        ordered = sorted(self._tickets.values(), key=lambda each: (each.created_ns, each.id), reverse=wanted.newest)
        if wanted.after is not None:
            places = [each.id for each in ordered]
            ordered = ordered[places.index(text(wanted.after)) + 1:] if text(wanted.after) in places else []
        return _page((each for each in ordered if _fits(each, wanted)), wanted.limit)

    async def counts(self) -> Mapping[str, int]:
        return {state.value: count for state, count in self._states.items() if count}

    async def generation(self) -> int:
        return self._generation

    async def changed(self, since: int, limit: int) -> Sequence[tuple[str, State, int]]:
        changes = sorted((each.changed, each) for each in self._tickets.values() if each.changed > since)
        return [(each.id, each.state, number) for number, each in changes[:max(limit, 0)]]

    async def vote(self, ticket_id: str, vote: Vote, notices: Sequence[Notice] = (), *, grant: Grant | None = None) -> Ticket:
        change = voted(self._expected(ticket_id), vote, grants=grant is not None)
        now = change.ticket
        if grant is not None and now.state is State.APPROVED:
            self._grants.add(grant)
        return self._keep(change, notices if now.state is not State.PENDING else ())

    async def replace(self, ticket_id: str, edited: Ticket, notices: Sequence[Notice] = (), *, author: str, now_ns: int) -> Ticket:
        new = opened(ticket_of(ticket_values(edited)), author)
        self._keep(replaced(self._expected(ticket_id), edited, author=author, now_ns=now_ns))
        return self._insert(new, notices)

    async def happen(  # noqa: PLR0913 - as the protocol has it
        self, ticket_id: str, event: Event, *, now_ns: int, author: str = "", reason: str = "", demands: Sequence[Demand] | None = None,
        fence: int | None = None, result: Result | None = None, notices: Sequence[Notice] = (),
    ) -> Ticket:
        ticket = self._expected(ticket_id)
        change = happened(ticket, event, now_ns=now_ns, author=author, reason=reason, demands=demands, fence=fence)
        return self._keep(change, notices, result)

    async def release(self, claim: Claim, *, call_id: str, keep: bool, now_ns: int) -> bool:
        ticket = self._tickets.get(text(claim.ticket))
        if ticket is None or not claimable(ticket, claim.digest, claim.fence, now_ns):
            return False
        self._keep(released(ticket, call_id=call_id, keep=keep, now_ns=now_ns))
        self._link(text(call_id), ticket.id, 0)
        return True

    async def delivered(self, ticket_id: str, *, now_ns: int) -> None:
        change = delivered(self._expected(ticket_id), now_ns)
        if change is not None:
            self._keep(change)

    async def answer(self, ticket_id: str, result: Result, *, now_ns: int) -> None:
        change = answered(self._expected(ticket_id), now_ns)
        if change is not None:
            self._keep(change, result=result)

    async def kept(self, principal: str, presented: str, *, now_ns: int) -> KeptAnswer | None:
        call_id, packed, expires_ns = self._kept.get((text(principal), text(presented)), ("", (), 0))
        reply = reply_of(*packed) if packed and expires_ns > now_ns else None
        return None if reply is None else KeptAnswer(presented, principal, call_id, reply, expires_ns)

    async def keep(self, kept: KeptAnswer, *, now_ns: int) -> None:
        _ = now_ns
        self._kept[text(kept.principal), text(kept.presented)] = text(kept.call_id), kept_values(kept), kept.expires_ns

    async def take_kept(self, principal: str, presented: str) -> KeptAnswer | None:
        kept = await self.kept(principal, presented, now_ns=0)
        await self.forget_kept(principal, presented)
        return kept

    async def forget_kept(self, principal: str, presented: str) -> None:
        self._kept.pop((text(principal), text(presented)), None)

    async def sweep(self, *, now_ns: int, results_before_ns: int, limit: int = 200) -> Sequence[Ticket]:
        waiting = sorted((each for each in self._tickets.values() if overdue(each, now_ns)), key=lambda each: each.expires_ns)
        changes = [overdue(each, now_ns) for each in _page(waiting, limit)]
        swept = [self._keep(change) for change in changes if change is not None]
        self._kept = {at: kept for at, kept in self._kept.items() if kept[2] > now_ns}
        for ticket_id in [each for each, at_ns in self._results_ns.items() if at_ns < results_before_ns]:
            del self._results_ns[ticket_id]
            self._tickets[ticket_id] = replace(self._tickets[ticket_id], result=None)
        self._outbox.forget(results_before_ns, limit)
        return swept

    async def grants(self, *, rule: str | None = None, principal: str | None = None, live_at_ns: int | None = None,
                     limit: int = 1000) -> Sequence[Grant]:
        return self._grants.list(None if rule is None else text(rule), None if principal is None else text(principal), live_at_ns, limit)

    async def uses(self, grants: Sequence[str], limit: int) -> Mapping[str, Sequence[tuple[str, int]]]:
        latest = self._grants.uses[::-1]
        return {each: [use[1:] for use in latest if use[0] == text(each)][:max(limit, 0)] for each in grants}

    async def grant(self, grant: Grant) -> None:
        self._grants.add(grant)

    async def use(self, grants: Sequence[str], *, call_id: str, now_ns: int) -> bool:
        if not self._grants.live(grants, now_ns):
            return False
        self._grants.use(grants, call_id, now_ns)
        return True

    async def revoke(self, grant_id: str, *, author: str, now_ns: int) -> bool:
        return self._grants.revoke(grant_id, author, now_ns)

    async def history(self, ticket_id: str) -> Sequence[Mapping[str, Any]]:
        return [dict(zip(HISTORY_FIELDS, values, strict=True)) for values in self._history.get(text(ticket_id), ())]

    # What the journal does with them.

    def grants_of(self, call_id: str) -> Sequence[str]:
        """The grants that a call has used."""
        return tuple(dict.fromkeys(grant for grant, call, _at_ns in self._grants.uses if call == call_id))

    def can_take(self, intent: Intent) -> bool:
        """Whether the approval and the grants of an intent can be taken."""
        whose, claim = text(intent.record.principal.id), intent.claim
        if not self._grants.live(intent.grants, intent.now_ns, principal=whose):
            return False
        if claim is None:
            return True
        ticket = self._tickets.get(text(claim.ticket))
        return ticket is not None and ticket.principal == whose and claimable(ticket, claim.digest, claim.fence, intent.now_ns)

    def take(self, intent: Intent) -> None:
        """Take them."""
        record, claim = intent.record, intent.claim
        self._grants.use(intent.grants, record.id, intent.now_ns)
        if claim is None:
            self.note(record)
        else:
            now = self._keep(moved(self._tickets[text(claim.ticket)], Event.CLAIM, now_ns=intent.now_ns, call_id=record.id))
            self._link(record.id, now.id, now.fence)

    def note(self, record: CallRecord) -> None:
        """Note which approval a call waits for."""
        if record.approval:
            self._link(record.id, text(record.approval), 0)

    def end(self, record: CallRecord, result: Result | None) -> None:
        """Let `record.approval_end` happen to the approval that the call has claimed, where that is still possible."""
        ticket = self._tickets.get(text(record.approval))
        fence = self.links[record.id].get(text(record.approval), 0)
        if ticket is not None and fence and record.approval_end:
            change = finished(
                ticket, Event(record.approval_end), call_id=record.id, fence=fence, now_ns=record.ended_ns, reason=record.message)
            if change is not None:
                self._keep(change, result=result)

    def _link(self, call_id: str, ticket_id: str, fence: int) -> None:
        links = self.links[call_id]
        links[ticket_id] = max(fence, links.get(ticket_id, 0))

    # How steps are kept.

    def _found(self, principal: str, presented: str) -> Ticket | None:
        at = text(principal), text(presented)
        there = [self._tickets[each] for each in reversed(self._ids.get(at, ()))]
        met = [each for each in there if each.presented == at[1]]
        live = [each for each in (*met, *there) if each.state in OPEN]
        return next(iter(live or met), None)

    def _count(self, ticket: Ticket, sign: int) -> None:
        """One more or one less is pending."""
        size = size_of(ticket_values(ticket))
        for whose in ("", ticket.principal):
            queue = self._queues[whose]
            self._queues[whose] = replace(queue, pending=queue.pending + sign, size=queue.size + sign * size)

    def _expected(self, ticket_id: str) -> Ticket:
        ticket = self._tickets.get(text(ticket_id))
        if ticket is None:
            raise NotPossibleError(f"There is no approval {text(ticket_id)!r}.")
        return ticket

    def _insert(self, change: Moved, notices: Iterable[Notice]) -> Ticket:
        ticket = change.ticket
        if ticket.id in self._tickets:
            raise StoreError(f"there is an approval {ticket.id} already")
        for digest in {ticket.presented, ticket.digest}:
            self._ids[ticket.principal, digest].append(ticket.id)
        return self._keep(change, notices)

    def _keep(self, change: Moved, notices: Iterable[Notice] = (), result: Result | None = None) -> Ticket:
        self._generation += 1
        before, now = self._tickets.get(change.ticket.id), change.ticket
        now = replace(stored(now), changed=self._generation)
        if result is not None:
            now = replace(now, result=result_of(result_values(result)))
            self._results_ns[now.id] = change.entries[-1].at_ns
        waited = before is not None and before.state is State.PENDING
        if waited != (now.state is State.PENDING):
            self._count(now, -1 if waited else 1)
        if before is not None:
            self._states[before.state] -= 1
        self._states[now.state] += 1
        self._tickets[now.id] = now
        for entry in change.entries:
            self._history[now.id].append(entry_values(entry))
            if entry.event in TOLD:
                self._outbox.put(self._notify(now, TOLD[entry.event], entry.at_ns))
        self._outbox.put(notices)
        return now


def _fits(ticket: Ticket, wanted: TicketFilter) -> bool:
    if wanted.states and ticket.state not in wanted.states:
        return False
    if wanted.asker is not None and text(wanted.asker) not in (ticket.principal, ticket.principal_name):
        return False
    return all(getattr(wanted, name) is None or getattr(ticket, name) == text(getattr(wanted, name)) for name in _FILTERS)


def _page(tickets: Iterable[Ticket], limit: int) -> list[Ticket]:
    """The first of them without their results, as many as fit into a page."""
    page: list[Ticket] = []
    size = 0
    for ticket in tickets:
        if len(page) >= limit or size > MOST_PAGE_BYTES:
            break
        page.append(replace(ticket, result=None))
        size += len(ticket.body) + len(json_text(ticket.shown))
    return page
