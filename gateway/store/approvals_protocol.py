"""The seam to approvals and people: domain verbs, frozen dataclasses in and out, as in `protocol.py`.

Every verb that changes something is one transaction. `now_ns` is always an argument.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from gateway.call import JsonObject
from gateway.core.approval import Demand, Event, Grant, Result, State, Ticket, Vote
from gateway.core.approval_bounds import Bounds, Full
from gateway.errors import StoreError


@dataclass(frozen=True, slots=True)
class Claim:
    """What the transaction of an intent takes: the approval, as it was looked at. Nothing is begun where it is another by now."""

    ticket: str
    digest: str
    fence: int


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """The approval or the grant could not be claimed, so nothing was begun: it was claimed, has expired, was denied, revoked or used up.

    `ticket` is empty where it was a grant, and no approval was to be claimed.
    """

    ticket: str


class QueueFullError(StoreError):
    """As many approvals are pending as may be, or were asked for by one caller: `full` says which bound it is, and when to come back."""

    def __init__(self, full: Full) -> None:
        super().__init__(full.message)
        self.full = full


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer of a provider that is held for a person, kept for whoever presents its request again. `reply` is JSON-ready."""

    presented: str
    principal: str
    call_id: str
    reply: JsonObject = field(repr=False)
    expires_ns: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """One message to one channel, in the outbox until it is delivered. `body` is JSON-ready and holds no secret.

    `attempts` is how often somebody has taken it to deliver it, this time included.
    """

    id: str
    channel: str
    kind: str  # opened, reminder, escalated, decided, expired, unknown
    ticket: str
    body: JsonObject
    due_ns: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which approvals to list: oldest first, or with `newest` the other way; empty fields do not filter. `after` is the id of the last of
    the page before; `asker` the id of a principal, or its name.
    """

    states: tuple[State, ...] = ()
    rule: str | None = None
    tool: str | None = None
    route: str | None = None
    kind: str | None = None
    principal: str | None = None
    asker: str | None = None
    session: str | None = None
    team: str | None = None
    shape: str | None = None
    call_id: str | None = None
    mode: str | None = None
    after: str | None = None
    newest: bool = False
    limit: int = 50


def waits_of(call_id: str) -> TicketFilter:
    """The approval that a call which is not on record yet has opened: it waits for that, or for what is done under it."""
    return TicketFilter(states=(State.PENDING, State.APPROVED, State.EXECUTING, State.UNKNOWN), call_id=call_id, newest=True, limit=1)


Notify: TypeAlias = Callable[[Ticket, str, int], Sequence[Notice]]
"""Makes the notices of a ticket: what of (`Notice.kind`), and when. It is called inside a transaction: it only looks at its arguments."""


def tell_nobody(ticket: Ticket, kind: str, at_ns: int) -> Sequence[Notice]:
    """A `Notify` for where there are no channels."""
    _ = ticket, kind, at_ns
    return ()


class Approvals(Protocol):
    """The queue. Each change of a ticket raises `generation` by one in the same transaction and writes it into `Ticket.changed`.

    The steps themselves are those of `core/approval_steps.py`. What cannot happen raises `NotPossibleError`, also where there is no such
    ticket. The time of a ticket counts by `now_ns`, whether or not a sweep has found it.
    """

    def tell(self, notify: Notify) -> None:
        """From now on put the notices that this makes into the outbox, in the same transaction, for what no caller of a verb brings about:
        a ticket that expires, escalates, or is unknown after the death of a process or an answer that did not come.
        """
        ...

    async def open(self, ticket: Ticket, notices: Sequence[Notice] = (), *, bounds: Bounds, kept: KeptAnswer | None = None) -> Ticket:
        """Add a ticket with its notices, or give the one that there is for the same principal and presented digest, where something may
        still come of it (`State` in `OPEN`) and its time is not over. Raises `QueueFullError` where `bounds` do not allow another one.

        `kept` is kept where the ticket that is given back is of the same action.
        """
        ...

    async def find(self, principal: str, presented: str) -> Ticket | None:
        """The latest ticket for what a caller presents: one that is open, else the latest that ended; its votes and result included.

        An open one is also found by its own digest: an edited tool call that its application then makes.
        """
        ...

    async def get(self, ticket_id: str) -> Ticket | None:
        """A ticket with its votes and result."""
        ...

    async def list(self, wanted: TicketFilter) -> Sequence[Ticket]:
        """Tickets with their votes, without results; fewer than `limit` where they are large. An empty page is the end."""
        ...

    async def counts(self) -> Mapping[str, int]:
        """How many tickets there are, by state."""
        ...

    async def generation(self) -> int:
        """The number of the last change of any ticket."""
        ...

    async def changed(self, since: int, limit: int) -> Sequence[tuple[str, State, int]]:
        """Id, state and number of the tickets that changed after that number, in order."""
        ...

    async def vote(self, ticket_id: str, vote: Vote, notices: Sequence[Notice] = (), *, grant: Grant | None = None) -> Ticket:
        """Put a vote on record and let happen what the votes amount to: where that ends the vote, `notices` are added. `grant` is made
        where this vote is the one that approves. An approved ticket lives for `Ticket.unexpired_s` from then on.

        Raises:
            NotPossibleError: it is not pending, has expired, the digest is another, this person has voted already, may not, or is not asked
                at this stage; or a grant is asked for of what is irreversible.
        """
        ...

    async def replace(self, ticket_id: str, edited: Ticket, notices: Sequence[Notice] = (), *, author: str, now_ns: int) -> Ticket:
        """Withdraw a pending ticket for an edited one (`edited.edited_from`), which is given back. Raises `NotPossibleError`."""
        ...

    async def happen(  # noqa: PLR0913 - what may be said of an event
        self, ticket_id: str, event: Event, *, now_ns: int, author: str = "", reason: str = "", demands: Sequence[Demand] | None = None,
        fence: int | None = None, result: Result | None = None, notices: Sequence[Notice] = (),
    ) -> Ticket:
        """Let an event happen that is no vote and no claim of an intent: withdraw, deny by a rule, strengthen (with the new demands), an
        outcome. With `fence` only where it is still that one. Raises `NotPossibleError`.

        Where the votes that there are already meet the new demands, the ticket is approved at once. One that was approved and is asked
        about again has `patience_s` again.
        """
        ...

    async def release(self, claim: Claim, *, call_id: str, keep: bool, now_ns: int) -> bool:
        """Take an approved ticket for something that nothing is sent for: a tool call or an answer that goes on to the client. It has
        succeeded then; with `keep` it stays approved, for the call that the application will make. False where it cannot be claimed.
        """
        ...

    async def delivered(self, ticket_id: str, *, now_ns: int) -> None:
        """Note that the caller has had the result."""
        ...

    async def answer(self, ticket_id: str, result: Result, *, now_ns: int) -> None:
        """People have let pass what came of a ticket (`Ticket.next`): it is what its caller gets. Nothing where nothing waits for that."""
        ...

    async def kept(self, principal: str, presented: str, *, now_ns: int) -> KeptAnswer | None:
        """The answer that is kept for a request."""
        ...

    async def keep(self, kept: KeptAnswer, *, now_ns: int) -> None:
        """Keep an answer that was taken, and did not arrive."""
        ...

    async def take_kept(self, principal: str, presented: str) -> KeptAnswer | None:
        """The kept answer, which is not kept any longer: of any number of callers one has it."""
        ...

    async def forget_kept(self, principal: str, presented: str) -> None:
        """The answer has been given, or has been denied."""
        ...

    async def sweep(self, *, now_ns: int, results_before_ns: int, limit: int = 200) -> Sequence[Ticket]:
        """Expire or escalate what is due, and forget results and kept answers that are: the tickets that changed, without results, `limit`
        at most. With the results go notices that were delivered, but for those of an unknown end: of that people are told once.
        Escalating begins the time of `patience_s` again, once.
        """
        ...

    async def grants(self, *, rule: str | None = None, principal: str | None = None, live_at_ns: int | None = None,
                     limit: int = 1000) -> Sequence[Grant]:
        """Grants, newest first."""
        ...

    async def uses(self, grants: Sequence[str], limit: int) -> Mapping[str, Sequence[tuple[str, int]]]:
        """Of each of these grants the latest calls that used it, the latest first, and when: `limit` of each."""
        ...

    async def grant(self, grant: Grant) -> None:
        """Add a grant. Raises `StoreError` if the id exists."""
        ...

    async def use(self, grants: Sequence[str], *, call_id: str, now_ns: int) -> bool:
        """Use grants for something that nothing is sent for, all of them or none; False where one is not live."""
        ...

    async def revoke(self, grant_id: str, *, author: str, now_ns: int) -> bool:
        """Revoke a grant; False where there is no live one of that id."""
        ...

    async def history(self, ticket_id: str) -> Sequence[Mapping[str, Any]]:
        """Everything that happened to a ticket, in order: `HISTORY_FIELDS` of `store/approval_rows.py`."""
        ...


class Outbox(Protocol):
    """Notices until they are delivered: at least once, each under its id."""

    async def add(self, notices: Sequence[Notice]) -> None:
        """Add notices; one whose id is there already is left out (a reminder that two workers make)."""
        ...

    async def take(self, holder: str, *, now_ns: int, until_ns: int, limit: int) -> Sequence[Notice]:
        """Notices that are due and that nobody else is delivering, for this holder until then."""
        ...

    async def done(self, notice_id: str, *, now_ns: int) -> None:
        """It was delivered."""
        ...

    async def later(self, notice_id: str, *, due_ns: int, error: str, dead: bool) -> None:
        """It could not be delivered: try again then, or give it up where it is `dead`."""
        ...

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """The latest notices, newest first, with what became of them: `NOTICE_FIELDS` of `store/approval_rows.py`."""
        ...


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may log in. `password` is an argon2 hash, empty for none; `token` the HMAC of an API token, empty for none.

    `subject` is `ISSUER SUBJECT` for somebody known by OpenID Connect. `permission` is what they may do here: `view`, `approve`, `operate`,
    `admin`, each including those before it.
    """

    id: str
    name: str
    permission: str
    roles: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    email: str = ""
    password: str = field(default="", repr=False)
    token: bytes = field(default=b"", repr=False)
    subject: str = ""
    created_ns: int = 0
    disabled_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Stamped:
    """What is done to an account, by whom and when. `what` is one word, such as `created`; `detail` is JSON-ready and holds no secret."""

    what: str
    author: str
    at_ns: int
    detail: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody's session in a browser. `id` is the digest of the cookie's secret, `person` an account's id, or that of the admin token."""

    id: bytes = field(repr=False)
    person: str
    method: str
    csrf: str = field(repr=False)
    created_ns: int
    expires_ns: int
    last_ns: int
    roles: tuple[str, ...] | None = None  # what the identity provider said at this login, None: the account's own
    teams: tuple[str, ...] | None = None


class People(Protocol):
    """Accounts of people, their logins, and the passwords that were tried."""

    async def add(self, person: Person, stamp: Stamped) -> None:
        """Add an account. Raises `StoreError` where there is one of its id, token or subject."""
        ...

    async def change(
        self, person_id: str, how: Callable[[Person], Person], stamp: Stamped, *, log_out: bool = False,
    ) -> Person | None:
        """Change an account: `how`, which runs inside the transaction, makes what it is to be of what it is. None where there is none.

        What changes nothing is not put on record. With `log_out` its logins end. Raises `StoreError` where its token is another's.
        """
        ...

    async def get(self, person_id: str) -> Person | None:
        """An account."""
        ...

    async def by_token(self, token: bytes) -> Person | None:
        """The account that this API token is of."""
        ...

    async def all(self) -> Sequence[Person]:
        """Every account, by id."""
        ...

    async def history(self, person_id: str, limit: int) -> Sequence[Stamped]:
        """What was done to an account, newest first."""
        ...

    async def attempt(self, counts: Mapping[bytes, int], *, now_ns: int, lock_until_ns: int) -> int | None:
        """Count a password that is about to be looked at, before it is: several at once are no more guesses than one after another.

        It is counted under each of these names, which stand for the name that was given, which need not be anybody's, and for where it came
        from. The last in a row of as many as stand beside a name, without a right one among them, locks that one until then. Gives None
        where it may be looked at, else until when one of them is locked; then it counts nowhere.
        """
        ...

    async def forgive(self, names: Sequence[bytes]) -> None:
        """It was right, or an operator says so: nothing is counted any more under names that begin with one of these."""
        ...

    async def log_in(self, login: Login) -> None:
        """Begin a login. Forgets those that are over, and the oldest of somebody who has very many."""
        ...

    async def login(self, login_id: bytes, *, now_ns: int) -> tuple[Login, Person | None] | None:
        """A login whose time is not over, and whose it is; without an account for the admin token's."""
        ...

    async def seen(self, login_id: bytes, *, now_ns: int) -> None:
        """Note that a login is in use."""
        ...

    async def log_out(self, login_id: bytes) -> bool:
        """End a login; False where there is none."""
        ...
