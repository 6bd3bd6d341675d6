"""An approval as a call meets it: what people are asked about, the ticket that is made of it, what it says to its caller. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from gateway.call import Call
from gateway.core.action import Action, json_patch, without_delivery
from gateway.core.approval import Demand, Event, Kind, Result, State, Ticket, escalated, verdict_of
from gateway.core.approval_bounds import Bounds, Full
from gateway.core.decision import Approval, Held
from gateway.core.question import Question
from gateway.errors import ApprovalDenied, ApprovalPending, ApprovalUnknown, Overloaded, RateLimited
from gateway.people_config import ApprovalsConfig
from gateway.progress import Progress
from gateway.tool_offers import definitions
from gateway.wire.strict_json import dumps

WHOLE: Final[frozenset[Kind]] = frozenset({"request", "tool"})  # kinds that are about a call as a whole
_OVER: Final = {
    State.DENIED: "It was denied.", State.EXPIRED: "Its time is over, so it is refused.", State.WITHDRAWN: "It was withdrawn."}


@dataclass(frozen=True, slots=True)
class Matter:
    """What people are to look at: one action, why, and what it is about. `effect` is as `Ticket.effect`."""

    kind: Kind
    action: Action
    held: tuple[Held, ...]
    question: Question
    effect: str
    irreversible: bool = False

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """What the rules ask for, each rule once."""
        return tuple({each.rule: each for held in self.held for each in held.approvals}.values())


def ticket_of(
    case: Progress, matter: Matter, approvals: Sequence[Approval], *, ticket_id: str, now_ns: int, unexpired_s: float,
) -> Ticket:
    """The approval that a call needs, as it is opened."""
    action, principal, call = matter.action, case.principal, matter.question.call
    expires_s = min(each.expires_s for each in approvals)
    first = next((held for held in matter.held if held.rule == approvals[0].rule), matter.held[0])
    told = None if any(each.notify is None for each in approvals) else {name for each in approvals for name in each.notify or ()}
    origin: dict[str, Any] = {
        "principal": asdict(principal), "origin": {**asdict(replace(case.origin, tags={})), "tags": dict(case.origin.tags)},
        "dialect": call.dialect, "operation": call.operation, "asked": call.asked, "user": call.user, "kind": matter.kind,
        "phase": matter.question.phase, "asked_key": case.asked_again if matter.kind in WHOLE else ""}
    if matter.kind == "tool_call":
        origin["definitions"] = definitions(call).get(action.tool, [])  # what arguments have to fit that people write instead
    return Ticket(
        id=ticket_id, kind=matter.kind,
        mode="execute" if matter.kind in ("request", "tool") and any(each.mode == "execute" for each in approvals) else "release",
        state=State.PENDING, digest=action.digest, presented=action.presented, principal=principal.id,
        call_id=case.kept.call_id if case.kept is not None else case.id,
        rule=approvals[0].rule, message=first.message or "This call needs approval.", demands=tuple(each.demand for each in approvals),
        shown=action.shown(), body=dumps(case.received) if matter.kind in ("request", "tool") else b"{}", origin=origin, shape=action.shape,
        created_ns=now_ns, expires_ns=now_ns + int(expires_s * 1e9), effect=matter.effect, principal_name=principal.name,
        team=principal.team, on_behalf_of=principal.on_behalf_of, owner=principal.owner, route=call.route, tool=action.tool,
        session=case.origin.session or "", patience_s=expires_s, unexpired_s=unexpired_s, irreversible=matter.irreversible,
        on_disconnect="withdraw" if any(each.on_disconnect == "withdraw" for each in approvals) else "leave",
        notify=("*",) if told is None else tuple(sorted(told)))


def bounds_of(config: ApprovalsConfig) -> Bounds:
    """How much may be asked of people, as the settings say."""
    return Bounds(config.max_pending, config.max_pending_each, config.max_pending_bytes, config.max_pending_bytes_each,
                  config.max_opened_each)


def no_room(full: Full, rule: str) -> Overloaded | RateLimited:
    """What a caller is told whose call needs an approval, where nobody can be asked for another one."""
    if full.often:
        return RateLimited(full.message, rule=rule, retry_after_s=full.retry_after_s)
    return Overloaded(full.message, retry_after_s=full.retry_after_s)


def outline(ticket: Ticket) -> Ticket:
    """What there is to say of a ticket, without what it is about."""
    return replace(ticket, shown={}, body=b"", origin={}, demands=(), votes=(), patch=None, shape="")


def refuse(ticket: Ticket) -> None:
    """Raise for a ticket whose action will not go on: `ApprovalDenied`, `ApprovalUnknown`."""
    if ticket.state is State.UNKNOWN:
        raise ApprovalUnknown(
            f"The approved action was sent, and nobody knows what came of it; it is not sent again. {ticket.reason}".strip(),
            ticket=ticket.id, rule=ticket.rule)
    if ticket.state in _OVER:
        said = next((vote for vote in reversed(ticket.votes) if vote.verdict == "deny" and vote.comment), None)
        words = f' {said.voter.name or said.voter.id} says: "{said.comment}"' if said else f" {ticket.reason}" if ticket.reason else ""
        raise ApprovalDenied(f"{ticket.message} {_OVER[ticket.state]}{words}", ticket=ticket.id, rule=ticket.rule)


def asked_key(call: Call) -> str:
    """The digest of what a caller asked, as it asked it: what an answer to it is kept under."""
    asked = Action("request", call.operation, call.principal.id, call.principal.on_behalf_of, call.asked or call.route, "", "",
                   without_delivery(call.body))
    return asked.digest


def met(demands: tuple[Demand, ...], ticket: Ticket) -> bool:
    """Whether the votes are enough for what the rules ask for now, or for those who took over where nobody had decided."""
    return any(each is not None and verdict_of(each, ticket.votes) is Event.APPROVE for each in (demands, escalated(demands))) or (
        set(demands) <= set(ticket.demands))


def found_out(ticket: Ticket, how: str) -> Result:
    """What the caller of an action is told whose answer is lost, once somebody knows that it was done all the same, and how."""
    words = {"ticket": ticket.id, "state": State.SUCCEEDED.value, "message": f"It was done, and its answer is lost. {how}".strip()}
    return Result(200, "application/json", dumps(words))


def nothing_kept(ticket: Ticket) -> Result:
    """What a caller is told of an action whose answer is not there any more."""
    words = {"ticket": ticket.id, "state": ticket.state.value, "message": "It was done, and its answer is not kept any more."}
    return Result(200, "application/json", dumps(words))


def as_told(ticket: Ticket, matter: Matter) -> Ticket:
    """The ticket as its caller is told of it: what is done in place of what they ask now stands in its patch."""
    if matter.kind not in WHOLE or ticket.digest == matter.action.digest:
        return ticket
    return replace(ticket, patch=json_patch(dict(matter.action.arguments), dict(ticket.shown["arguments"])))


def pending(ticket: Ticket, retry_after_s: float) -> ApprovalPending:
    """What a caller is told that should come back."""
    said = "Nobody has decided yet" if ticket.state is State.PENDING else "It is being done"
    return ApprovalPending(f"{ticket.message} {said}: send the same request again, it finds this approval ({ticket.id}).",
                           ticket=ticket.id, rule=ticket.rule, retry_after_s=max(1, round(retry_after_s)))
