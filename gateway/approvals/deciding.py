"""What people do with approvals: vote, edit, resolve, withdraw, and let calls like one go on for a while. Owns who may do what to which.

Every change is one verb of the store; whoever waits hears of it at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from gateway.approvals.editing import Editing
from gateway.approvals.holding import Holding
from gateway.approvals.reports import approval_rule
from gateway.approvals.tickets import found_out
from gateway.call import JsonObject
from gateway.clock import Clock, Ids
from gateway.core.action import canonical
from gateway.core.approval import Event, Grant, NotPossibleError, Result, State, Ticket, Verdict, Vote, Voter
from gateway.core.approver import Eligibility, eligible
from gateway.core.condition import compile_condition
from gateway.core.expressions import ExpressionError
from gateway.errors import ApprovalConflict, InvalidRequest, NotPermitted, UnknownUrl
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals, Notify
from gateway.telemetry import Telemetry
from gateway.telemetry.log_lines import log_time

LONGEST_GRANT_S: Final = 30 * 86_400.0
MOST_USES: Final = 1000
MOST_VOTES: Final = 100  # in one batch
_NS: Final = 10**9
_ALWAYS: Final = "true"
_NO_VOTES: Final = "You have voted."  # what `eligible` says of it


@dataclass(frozen=True, slots=True)
class Offer:
    """A grant as it is asked for. `uses` None: any number; `session`: for the session of the approval alone."""

    lasting_s: float
    condition: str = ""
    uses: int | None = None
    session: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """A vote as it is cast: by whom, on what they were shown."""

    voter: Voter
    verdict: Verdict
    digest: str
    comment: str = ""
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class Deciding:
    """One per gateway. `current` gives the snapshot that is in force, `notify` the notices of what happens to a ticket."""

    store: Approvals
    holding: Holding
    editing: Editing
    current: Callable[[], Snapshot]
    notify: Notify
    clock: Clock
    ids: Ids
    telemetry: Telemetry

    async def ticket(self, ticket_id: str) -> Ticket:
        """A ticket. Raises `UnknownUrl`."""
        ticket = await self.store.get(ticket_id)
        if ticket is None:
            raise UnknownUrl("There is no approval of that id. `GET /-/approvals` lists those that wait.")
        return ticket

    def eligible(self, ticket: Ticket, voter: Voter) -> Eligibility:
        """Where somebody's vote would count."""
        return eligible(ticket, voter, self.clock.now_ns(), self.current().bundle.approvers)

    def why_not_grantable(self, ticket: Ticket) -> str:
        """Why calls like this one cannot be let go on for a while; empty where they can."""
        if ticket.kind == "response":
            return "An answer is read one at a time."
        if ticket.irreversible:
            return "Nothing takes back what the tool does, so each call is approved by itself."
        rule = approval_rule(self.current().bundle, ticket.rule)
        if rule is None:
            return f"The rule {ticket.rule} asks for no approval any more."
        if not rule[1].grants:
            return f"The rule {ticket.rule} wants every call approved by itself (`approval.grants`)."
        if len(ticket.demands) != 1 or not ticket.demands[0].single or not rule[1].demand.single:
            return "Several people have to approve, so one of them alone cannot allow what comes after."
        return ""

    async def vote(self, ticket_id: str, ballot: Ballot) -> Ticket:
        """Cast a vote.

        Raises:
            UnknownUrl: there is no such ticket.
            ApprovalConflict: it is another by now than the voter was shown, or they have voted.
            NotPermitted: others are asked.
            InvalidRequest: the grant cannot be made.
        """
        ticket = await self.ticket(ticket_id)
        places = self._places(ticket, ballot.voter, ballot.digest)
        now_ns = self.clock.now_ns()
        vote = Vote(ballot.voter, ballot.verdict, ballot.digest, now_ns, ballot.comment, places)
        grant = self._grant(ticket, ballot, now_ns) if ballot.offer is not None else None
        notices = self.notify(_as_decided(ticket, vote), "decided", now_ns)  # they leave where this vote is the one that decides
        with conflicting():
            voted = await self.store.vote(ticket.id, vote, notices, grant=grant)
        self._tell(voted, ballot, grant)
        await self.holding.refresh()
        return voted

    async def edit(self, ticket_id: str, ballot: Ballot, arguments: JsonObject, *, approve: bool) -> Ticket:
        """Put an edited action in the place of one, and approve it at once where the editor says so: the new ticket.

        Raises as `vote` and `Editing.edited` do.
        """
        ticket = await self.ticket(ticket_id)
        self._places(ticket, ballot.voter, ballot.digest)
        edited = await self.editing.edited(self.current(), ticket, arguments)
        if approve and not _as_written(edited, arguments):
            raise InvalidRequest("Rules make something else of what you wrote. Edit without `approve`, and look at it first.",
                                 pointer="/approve")
        if approve and not self.eligible(edited, ballot.voter):
            raise NotPermitted(self.eligible(edited, ballot.voter).why_not)
        now_ns = self.clock.now_ns()
        with conflicting():
            edited = await self.store.replace(
                ticket.id, edited, self.notify(edited, "opened", now_ns), author=ballot.voter.id, now_ns=now_ns)
        self.telemetry.approval_now(replace(ticket, state=State.WITHDRAWN, replaced_by=edited.id), author=ballot.voter.id)
        self.telemetry.approval("opened", edited, call=edited.call_id, edited_from=ticket.id)
        await self.holding.refresh()
        return await self.vote(edited.id, replace(ballot, digest=edited.digest)) if approve else edited

    async def resolve(self, ticket_id: str, event: Event, *, author: str, comment: str) -> Ticket:
        """Say what came of an action that nobody knows it of."""
        ticket = await self.ticket(ticket_id)
        if ticket.state is not State.UNKNOWN:
            raise ApprovalConflict(f"The approval is {ticket.state}: only what came of an unknown one can be said.")
        result = found_out(ticket, comment) if event is Event.SUCCEED else None
        resolved = await self._happen(ticket, event, author, comment, result)
        self.telemetry.approval("resolved", resolved, outcome=resolved.state.value, person=author)
        return resolved

    async def withdraw(self, ticket: Ticket, *, author: str, comment: str) -> Ticket:
        """Take an action back that has not been done."""
        withdrawn = await self._happen(ticket, Event.WITHDRAW, author, comment)
        self.telemetry.approval_now(withdrawn, author=author)
        return withdrawn

    async def _happen(self, ticket: Ticket, event: Event, author: str, reason: str, result: Result | None = None) -> Ticket:
        with conflicting():
            changed = await self.store.happen(
                ticket.id, event, now_ns=self.clock.now_ns(), author=author, reason=reason, fence=ticket.fence, result=result)
        await self.holding.refresh()
        return changed

    def _places(self, ticket: Ticket, voter: Voter, digest: str) -> tuple[tuple[str, int], ...]:
        """Where a vote on what was shown counts. Raises as `vote` does."""
        if ticket.state is not State.PENDING or self.clock.now_ns() >= ticket.expires_ns:
            over = ticket.state if ticket.state is not State.PENDING else "expired"
            there = f" {ticket.replaced_by} stands in its place." if ticket.replaced_by else ""
            raise ApprovalConflict(f"The approval is {over}: nobody votes on it any more.{there}")
        if digest != ticket.digest:
            raise ApprovalConflict("You were shown another action than the one that waits: look at it again.", pointer="/digest")
        may = self.eligible(ticket, voter)
        if not may:
            raise (ApprovalConflict if may.why_not == _NO_VOTES else NotPermitted)(may.why_not)
        return may.places

    def _grant(self, ticket: Ticket, ballot: Ballot, now_ns: int) -> Grant:
        """The grant that a vote makes. Its condition is compiled before it is kept: one that can never hold would be a silent no."""
        offer = ballot.offer or Offer(0.0)
        if ballot.verdict != "approve":
            raise InvalidRequest("A grant is made by approving.", pointer="/grant")
        why_not = self.why_not_grantable(ticket)
        if why_not:
            raise InvalidRequest(why_not, pointer="/grant")
        if offer.session and not ticket.session:
            raise InvalidRequest("It was asked in no session.", pointer="/grant/session")
        phase = ticket.origin["phase"]
        try:
            compile_condition(offer.condition or _ALWAYS, phase, self.current().bundle.phases[phase].engine)
        except ExpressionError as error:
            told = [each.pointed(offer.condition) + (f" ({each.hint})" if each.hint else "") for each in error.problems]
            raise InvalidRequest(f"The condition of the grant: {'; '.join(told)}", pointer="/grant/condition") from error
        return Grant(
            id=f"grt_{self.ids.call_id().removeprefix('call_')}", rule=ticket.rule, demand=self._demanded(ticket.rule),
            principal=ticket.principal, condition=offer.condition, author=ballot.voter.id, created_ns=now_ns,
            expires_ns=now_ns + int(offer.lasting_s * _NS), uses=offer.uses,
            session=ticket.session if offer.session else "", tool=ticket.tool, ticket=ticket.id, note=offer.note)

    def _tell(self, voted: Ticket, ballot: Ballot, grant: Grant | None) -> None:
        """What a vote has brought about, for the log and the metrics: none of what was said with it."""
        person = ballot.voter.id
        self.telemetry.approval("voted", voted, person=person, verdict=ballot.verdict)
        if voted.state is not State.PENDING:
            self.telemetry.approval_now(voted)
        if grant is not None and voted.state is State.APPROVED:
            self.telemetry.approval("granted", voted, person=person, grant=grant.id, uses=grant.uses, until=log_time(grant.expires_ns))

    def _demanded(self, name: str) -> str:
        """What a rule demands now, by its key."""
        rule = approval_rule(self.current().bundle, name)
        return rule[1].demand.key if rule is not None else ""


@contextmanager
def conflicting() -> Iterator[None]:
    """What cannot happen to an approval as it is, as its caller is told."""
    try:
        yield
    except NotPossibleError as error:
        raise ApprovalConflict(error.message) from error


def _as_written(edited: Ticket, arguments: JsonObject) -> bool:
    """Whether an edited action is what its editor wrote, and no rule has made something else of it. The model is not theirs to write."""
    shown = edited.shown["arguments"]
    return canonical({**({"model": shown["model"]} if edited.kind == "request" else {}), **arguments}) == canonical(shown)


def _as_decided(ticket: Ticket, vote: Vote) -> Ticket:
    """The ticket as it is once this vote has decided it, for the notice that goes with it."""
    state = State.DENIED if vote.verdict == "deny" else State.APPROVED
    return replace(ticket, state=state, votes=(*ticket.votes, vote), decided_ns=vote.at_ns)
