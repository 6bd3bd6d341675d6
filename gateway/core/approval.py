"""The life of an approval as a table, and what its votes amount to. Pure.

`(state, event) -> state`; whatever is not in the table cannot happen. The diagram in the guide is made from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from gateway.call import Json, JsonObject
from gateway.errors import LockgateError

Mode: TypeAlias = Literal["release", "execute"]
Kind: TypeAlias = Literal["request", "tool", "tool_call", "response"]
Verdict: TypeAlias = Literal["approve", "deny"]


class State(StrEnum):
    """Where an approval is."""

    PENDING = "pending"  # people are asked
    APPROVED = "approved"  # it may be dispatched, once
    EXECUTING = "executing"  # its intent is on disk
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"  # it was sent, and nobody knows what came of it: a person is asked
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"  # by its caller, or because an edited one stands in its place


class Event(StrEnum):
    """What happens to an approval."""

    APPROVE = "approve"  # the last vote that was missing
    DENY = "deny"
    EXPIRE = "expire"
    WITHDRAW = "withdraw"
    STRENGTHEN = "strengthen"  # asked again, the rules want more votes than there are
    CLAIM = "claim"  # in the transaction of the intent
    RETURN = "return"  # the process died: proven unsent, or safe to send again with the same key
    SUCCEED = "succeed"
    FAIL = "fail"
    LOSE = "lose"  # the process died, or the answer did not come: it may have happened


# A person's or a rule's denial ends what has not been claimed; an answer that comes after its process was taken for dead still counts.
TABLE: Final[Mapping[tuple[State, Event], State]] = {
    (State.PENDING, Event.APPROVE): State.APPROVED,
    (State.PENDING, Event.DENY): State.DENIED,
    (State.PENDING, Event.EXPIRE): State.EXPIRED,
    (State.PENDING, Event.WITHDRAW): State.WITHDRAWN,
    (State.PENDING, Event.STRENGTHEN): State.PENDING,
    (State.APPROVED, Event.DENY): State.DENIED,
    (State.APPROVED, Event.EXPIRE): State.EXPIRED,
    (State.APPROVED, Event.WITHDRAW): State.WITHDRAWN,
    (State.APPROVED, Event.STRENGTHEN): State.PENDING,
    (State.APPROVED, Event.CLAIM): State.EXECUTING,
    (State.EXECUTING, Event.RETURN): State.APPROVED,
    (State.EXECUTING, Event.SUCCEED): State.SUCCEEDED,
    (State.EXECUTING, Event.FAIL): State.FAILED,
    (State.EXECUTING, Event.LOSE): State.UNKNOWN,
    (State.UNKNOWN, Event.SUCCEED): State.SUCCEEDED,
    (State.UNKNOWN, Event.FAIL): State.FAILED,
}
WAITING: Final = frozenset({State.PENDING, State.APPROVED})  # its time can run out
OPEN: Final = frozenset({State.PENDING, State.APPROVED, State.EXECUTING, State.UNKNOWN})  # something may still come of it
ENDED: Final = frozenset(State) - OPEN


WAITS_FOR: Final = "X-Lockgate-Approval"  # the header of a `Result` that is none yet


class NotPossibleError(LockgateError):
    """What was asked for cannot happen to the approval as it is: it is decided, claimed or over. The message says how it is."""

    code = "approval_conflict"


def after(state: State, event: Event) -> State:
    """The state that an event leads to. Raises `NotPossibleError` where the event cannot happen in this state."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise NotPossibleError(f"The approval is {state}; it cannot {event}.") from None


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.PENDING}"]
    for state in State:
        moves: dict[State, list[str]] = {}
        for event in Event:
            target = TABLE.get((state, event))
            if target is not None:
                moves.setdefault(target, []).append(event.value)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in moves.items()]
        lines += [f"    {state} --> [*]"] if state in ENDED else []
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a quorum: so many people out of those that `approvers` names (`role:NAME`, `team:NAME`, a person's id, or CEL).

    Empty `approvers`: anybody who may vote at all.
    """

    approvers: tuple[str, ...] = ()
    quorum: int = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """What one rule asks for: its stages in order, each by people of its own; so many denials end it.

    `escalate` are the approvers that take over where nobody has decided in time, empty where it expires then.
    """

    rule: str
    stages: tuple[Stage, ...]
    denials: int = 1
    escalate: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """Whether one person is enough."""
        return len(self.stages) == 1 and self.stages[0].quorum == 1

    @property
    def key(self) -> str:
        """What votes for it name it by: its rule, and whom it asks. Where a rule asks others, earlier votes do not count for it."""
        asked = "\0".join("\1".join(stage.approvers) for stage in self.stages)
        return f"{self.rule}#{sha256(asked.encode(errors='surrogatepass')).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Voter:
    """A person who votes, as they were when they did. `method` is how they proved who they are: `token`, `password`, `oidc`."""

    id: str
    name: str = ""
    roles: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    method: str = ""
    login_ns: int = 0


@dataclass(frozen=True, slots=True)
class Vote:
    """One person's decision, as it is on record. `places` are the `(Demand.key, stage)` that it counts for; `digest` is what was shown."""

    voter: Voter
    verdict: Verdict
    digest: str
    at_ns: int
    comment: str = ""
    places: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a demand stands: the stage whose votes are missing (None: it is met), and how many it has."""

    demand: Demand
    stage: int | None
    have: int
    denials: int = 0


def standing(demand: Demand, votes: Iterable[Vote]) -> Standing:
    """Count the votes for a demand. A stage counts once those before it are met; nobody counts for two of them."""
    approvals = [0] * len(demand.stages)
    denials = 0
    for vote in votes:
        stages = [stage for key, stage in vote.places if key == demand.key]
        if not stages:
            continue
        if vote.verdict == "deny":
            denials += 1
        elif stages[0] < len(approvals):
            approvals[stages[0]] += 1
    for number, stage in enumerate(demand.stages):
        if approvals[number] < stage.quorum:
            return Standing(demand, number, approvals[number], denials)
    return Standing(demand, None, 0, denials)


def verdict_of(demands: Sequence[Demand], votes: Sequence[Vote]) -> Event | None:
    """What the votes amount to: `DENY`, `APPROVE`, or nothing yet. An approval that nobody demands any more is met."""
    standings = [standing(demand, votes) for demand in demands]
    if any(each.denials >= each.demand.denials for each in standings):
        return Event.DENY
    return Event.APPROVE if all(each.stage is None for each in standings) else None


def escalated(demands: Sequence[Demand]) -> tuple[Demand, ...] | None:
    """The demands with those who take over in place of those who did not decide; None where there is nobody to take over."""
    if not any(demand.escalate for demand in demands):
        return None
    return tuple(
        replace(demand, stages=tuple(replace(stage, approvers=demand.escalate) for stage in demand.stages), escalate=())
        if demand.escalate else demand for demand in demands)


@dataclass(frozen=True, slots=True)
class Ticket:
    """An approval as it is on record.

    `digest` names the exact action, `presented` the one that its caller presents: they differ where an approver has edited it. `body` is
    what the caller sent, as it is sent once approved; `shown` the action as people see it. `origin` holds what a call needs beside its
    body to be made again. `fence` grows with every claim. `call_id` is the call that opened it, `executed_by` the one that has claimed it.
    `expires_ns` is absolute; `changed` the number of its last change among all tickets'. `result` is what came of it, kept for its caller;
    `delivered_ns` when they had it.
    """

    id: str
    kind: Kind
    mode: Mode
    state: State
    digest: str
    presented: str
    principal: str
    call_id: str
    rule: str
    message: str
    demands: tuple[Demand, ...]
    shown: JsonObject = field(repr=False)
    body: bytes = field(repr=False)
    origin: JsonObject = field(repr=False)
    shape: str
    created_ns: int
    expires_ns: int
    effect: str = "at_most_once"  # the contract of what is sent: read, idempotent, at_most_once; `model` for a model call
    principal_name: str = ""
    team: str = ""
    on_behalf_of: str = ""
    owner: str = ""  # the person who the requesting key belongs to, where that is known: they may not vote
    route: str = ""
    tool: str = ""
    session: str = ""
    patience_s: float = 0.0  # how long one group of approvers has: what `escalate` begins again
    unexpired_s: float = 3_600.0  # how long it may wait for its claim once it is approved
    irreversible: bool = False
    on_disconnect: str = "leave"
    notify: tuple[str, ...] = ()
    edited_from: str = ""
    replaced_by: str = ""
    patch: Json = None
    votes: tuple[Vote, ...] = ()
    fence: int = 0
    executed_by: str = ""
    decided_ns: int | None = None
    ended_ns: int | None = None
    delivered_ns: int | None = None
    reason: str = ""  # why it is as it is: why it was denied, failed or is unknown
    changed: int = 0
    result: "Result | None" = field(default=None, repr=False)

    def asked_by(self, person: str) -> bool:
        """Whether it is this person's own: asked for by them, with a key of theirs, or on their behalf, as an identity provider says."""
        for_them = self.on_behalf_of and (person == self.on_behalf_of or person.startswith(f"oidc:{self.on_behalf_of}@"))
        return bool(for_them) or person in (self.principal, self.owner)

    @property
    def answer(self) -> "Result | None":
        """What came of it, where that does not wait for people itself."""
        return None if self.next else self.result

    @property
    def next(self) -> str:
        """The approval that what came of it waits for, empty where there is none."""
        return "" if self.result is None else self.result.headers.get(WAITS_FOR, "")

    @property
    def verdict(self) -> Event | None:
        """What its votes amount to."""
        return verdict_of(self.demands, self.votes)


@dataclass(frozen=True, slots=True)
class Result:
    """What an approved action brought, as its caller gets it: an answer, or the gateway's error. `headers` are the contract's."""

    status: int
    content_type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission that came out of an approval: calls that `rule` would hold go on, as long as it lasts and `condition` (CEL) is true.

    `uses` are left, None for any number; `session` empty: any of the principal's. `tool` is the one it is for, empty for a model call.
    `demand` is the key of what the rule demanded: a rule that asks others by now is not covered.
    """

    id: str
    rule: str
    principal: str
    condition: str
    author: str
    created_ns: int
    expires_ns: int
    uses: int | None = None
    session: str = ""
    tool: str = ""
    demand: str = ""
    ticket: str = ""
    revoked_ns: int | None = None
    revoked_by: str = ""
    note: str = ""

    def live(self, now_ns: int) -> bool:
        """Whether it still counts."""
        return self.revoked_ns is None and now_ns < self.expires_ns and self.uses != 0
