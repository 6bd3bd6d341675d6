"""What happens to a ticket, step by step: it opens, people vote, time passes, it is claimed, something comes of it. Pure.

Both stores do these steps to what is on record, each in one transaction. Every change of a state goes through `approval.after`; what cannot
happen raises `NotPossibleError`, and nothing has happened then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.core.approval import (
    ENDED,
    WAITING,
    Demand,
    Event,
    NotPossibleError,
    State,
    Ticket,
    Vote,
    after,
    escalated,
    standing,
)

# What is on record of a ticket beside the events that change its state.
OPENED: Final = "open"
VOTED: Final = "vote"
ESCALATED: Final = "escalate"
RELEASED: Final = "release"  # a proposed tool call went on to the client; the call itself is still to come
DELIVERED: Final = "deliver"
ANSWERED: Final = "answer"  # what came of it had to wait for people as well
STILL: Final = frozenset({VOTED, ESCALATED, RELEASED, DELIVERED, ANSWERED})  # they leave the state as it is

# Of the steps that nobody asks for: what people are told of them.
TOLD: Final[Mapping[str, str]] = {Event.EXPIRE: "expired", ESCALATED: "escalated", Event.LOSE: "unknown"}

DIED: Final = "The gateway process that made the call stopped before the call ended."
_LATE: Final = "Nobody decided in time."
_UNUSED: Final = "It was approved, and nobody came for it in time."
# Sent once more, it does nothing that it has not done: that is the contract of what is sent. A model call may be asked for again.
_AFTER_A_DEATH: Final[Mapping[str, Event]] = {"read": Event.RETURN, "idempotent": Event.RETURN, "model": Event.FAIL}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a ticket's history: what happened, the state after it, who did it and why. `call_id` is the call that claims it or ends."""

    event: str
    state: State
    at_ns: int
    author: str = ""
    reason: str = ""
    call_id: str = ""
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """A ticket as it is after a step, and what to write down of the step."""

    ticket: Ticket
    entries: tuple[Entry, ...]


def opened(ticket: Ticket, author: str = "") -> Moved:
    """A new ticket, by its principal or by who has edited it. Raises `NotPossibleError` for one that is not new."""
    if ticket.state is not State.PENDING or ticket.votes or ticket.fence or ticket.result is not None:
        raise NotPossibleError(f"The approval {ticket.id} cannot be opened as it is: nobody has decided on it yet.")
    return Moved(ticket, (_entry(ticket, OPENED, ticket.created_ns, author=author or ticket.principal),))


def moved(ticket: Ticket, event: Event, *, now_ns: int, author: str = "", reason: str = "", call_id: str = "") -> Moved:
    """A ticket after an event of the table, and only of that: who may bring it about, and when, is looked at before."""
    state = after(ticket.state, event)
    changes: dict[str, Any] = {"state": state, "reason": reason, "ended_ns": now_ns if state in ENDED else None}
    match event:
        case Event.APPROVE:
            changes |= {"decided_ns": now_ns, "expires_ns": now_ns + _ns(ticket.unexpired_s)}  # absolute: one that comes back has no more
        case Event.DENY:
            changes["decided_ns"] = now_ns
        case Event.STRENGTHEN if ticket.state is State.APPROVED:  # people have their whole time again, for it is another question
            changes |= {"decided_ns": None, "expires_ns": now_ns + _ns(ticket.patience_s)}
        case Event.CLAIM:
            changes |= {"fence": ticket.fence + 1, "executed_by": call_id}
        case Event.RETURN:
            changes["executed_by"] = ""
        case _:
            pass
    now: Ticket = replace(ticket, **changes)
    return Moved(now, (_entry(now, event, now_ns, author=author, reason=reason, call_id=call_id or ticket.executed_by),))


def voted(ticket: Ticket, vote: Vote, *, grants: bool = False) -> Moved:
    """A ticket after a vote, and after what the votes amount to. `grants`: the vote is to permit more than this one action.

    Raises:
        NotPossibleError: it is not pending, has expired, shows another action, this person has voted or may not.
    """
    person = vote.voter.id
    if ticket.state is not State.PENDING:
        raise NotPossibleError(f"The approval is {ticket.state}; nobody votes on it any more.")
    if vote.at_ns >= ticket.expires_ns:
        raise NotPossibleError("The time to decide on this approval is over.")
    if grants and ticket.irreversible:
        raise NotPossibleError("What cannot be undone is approved one by one: nothing is granted with it.")
    if vote.digest != ticket.digest:
        raise NotPossibleError("The approval is of another action than the one that you were shown; look at it again.")
    if ticket.asked_by(person):
        raise NotPossibleError(f"{person} asks for this action, owns the key that does, or is whom it is for: they may not vote on it.")
    if any(each.voter.id == person for each in ticket.votes):
        raise NotPossibleError(f"{person} has voted on this approval already; a person has one vote.")
    stages = {demand.key: standing(demand, ticket.votes).stage for demand in ticket.demands}
    if not vote.places or any(stages.get(key) != stage for key, stage in vote.places):
        raise NotPossibleError(f"{person} is not asked, or not at this stage of the approval.")
    now = replace(ticket, votes=(*ticket.votes, vote))
    entry = _entry(now, VOTED, vote.at_ns, author=person, reason=vote.comment)
    return _then(Moved(now, (entry,)), now_ns=vote.at_ns, author=person, reason=vote.comment if vote.verdict == "deny" else "")


def happened(ticket: Ticket, event: Event, *, now_ns: int, author: str = "", reason: str = "",  # noqa: PLR0913 - of `Approvals.happen`
             demands: Sequence[Demand] | None = None, fence: int | None = None) -> Moved:
    """A ticket after an event that is neither a vote nor a claim. With new demands, what the votes amount to happens next.

    Raises:
        NotPossibleError: it cannot happen to the ticket as it is, or its fence is another.
    """
    if fence is not None and fence != ticket.fence:
        raise NotPossibleError("The approval has been claimed once more since you looked at it.")
    if event in (Event.APPROVE, Event.CLAIM):
        raise NotPossibleError(f"To {event} an approval is no event by itself: people vote, and a call claims.")
    if event is Event.STRENGTHEN and now_ns >= ticket.expires_ns:
        raise NotPossibleError("The time of this approval is over.")
    if event is not Event.STRENGTHEN:
        return moved(ticket, event, now_ns=now_ns, author=author, reason=reason)
    asked = ticket if demands is None else replace(ticket, demands=tuple(demands))
    return _then(moved(asked, event, now_ns=now_ns, author=author, reason=reason), now_ns=now_ns, author=author, reason=reason)


def replaced(ticket: Ticket, edited: Ticket, *, author: str, now_ns: int) -> Moved:
    """A pending ticket after somebody has edited its action. Raises `NotPossibleError`."""
    if ticket.state is not State.PENDING or now_ns >= ticket.expires_ns:
        raise NotPossibleError(f"The approval is {ticket.state} or its time is over; it cannot be edited.")
    if (edited.edited_from, edited.principal, edited.presented) != (ticket.id, ticket.principal, ticket.presented):
        raise NotPossibleError("An edited approval is of the same caller, who finds it by what it presents.")
    change = moved(ticket, Event.WITHDRAW, now_ns=now_ns, author=author, reason=f"Edited: {edited.id} stands in its place.")
    return replace(change, ticket=replace(change.ticket, replaced_by=edited.id))


def overdue(ticket: Ticket, now_ns: int) -> Moved | None:
    """A ticket whose time is over: others take over, once, or it expires. None where there is time left."""
    if ticket.state not in WAITING or now_ns < ticket.expires_ns:
        return None
    demands = escalated(ticket.demands) if ticket.state is State.PENDING else None
    if demands is None:
        return moved(ticket, Event.EXPIRE, now_ns=now_ns, reason=_LATE if ticket.state is State.PENDING else _UNUSED)
    now = replace(ticket, demands=demands, expires_ns=now_ns + _ns(ticket.patience_s))
    return Moved(now, (_entry(now, ESCALATED, now_ns, reason=_LATE),))


def claimable(ticket: Ticket, digest: str, fence: int, now_ns: int) -> bool:
    """Whether it can be claimed as what it was looked at."""
    return ticket.state is State.APPROVED and (ticket.digest, ticket.fence) == (digest, fence) and now_ns < ticket.expires_ns


def released(ticket: Ticket, *, call_id: str, keep: bool, now_ns: int) -> Moved:
    """A ticket that can be claimed, after what is asked for went on to the client: there is nothing more to come of it, or with `keep`
    the call that the client will make of it.
    """
    if keep:
        return Moved(ticket, (_entry(ticket, RELEASED, now_ns, call_id=call_id),))
    claimed = moved(ticket, Event.CLAIM, now_ns=now_ns, call_id=call_id)
    ended = moved(claimed.ticket, Event.SUCCEED, now_ns=now_ns, call_id=call_id)
    return Moved(ended.ticket, (*claimed.entries, *ended.entries))


def finished(ticket: Ticket, event: Event, *, call_id: str, fence: int, now_ns: int, reason: str) -> Moved | None:
    """A ticket after the end of the call that claimed it; None where that cannot happen any more: its process was taken for dead. What is
    known of one that counts as lost is better than that.
    """
    mine = (ticket.executed_by, ticket.fence) == (call_id, fence)
    known = ticket.state is State.EXECUTING or (ticket.state is State.UNKNOWN and event in (Event.SUCCEED, Event.FAIL))
    return moved(ticket, event, now_ns=now_ns, reason=reason, call_id=call_id) if mine and known else None


def died(ticket: Ticket, *, call_id: str, fence: int, now_ns: int) -> Moved | None:
    """A ticket after the death of the process whose call had claimed it; None where it did not execute any more."""
    if (ticket.state, ticket.executed_by, ticket.fence) != (State.EXECUTING, call_id, fence):
        return None
    return moved(ticket, _AFTER_A_DEATH.get(ticket.effect, Event.LOSE), now_ns=now_ns, reason=DIED, call_id=call_id)


def delivered(ticket: Ticket, now_ns: int) -> Moved | None:
    """A ticket after its caller has had the result; None where they had it before."""
    if ticket.delivered_ns is not None:
        return None
    return Moved(replace(ticket, delivered_ns=now_ns), (_entry(ticket, DELIVERED, now_ns),))


def answered(ticket: Ticket, now_ns: int) -> Moved | None:
    """A ticket after people have let pass what came of it; None where nothing waits for that."""
    return Moved(ticket, (_entry(ticket, ANSWERED, now_ns),)) if ticket.next else None


def _then(change: Moved, *, now_ns: int, author: str, reason: str) -> Moved:
    """What the votes of a pending ticket amount to, after a change of them or of what is asked for."""
    verdict = change.ticket.verdict
    if verdict is None:
        return change
    decided = moved(change.ticket, verdict, now_ns=now_ns, author=author, reason=reason)
    return Moved(decided.ticket, (*change.entries, *decided.entries))


def _entry(ticket: Ticket, event: str, at_ns: int, *, author: str = "", reason: str = "", call_id: str = "") -> Entry:
    return Entry(event, ticket.state, at_ns, author, reason, call_id, ticket.fence)


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
