"""The seam to durable state: domain verbs, frozen dataclasses in and out. `now_ns` is always an argument.

Memory and SQLite implement it and pass one conformance suite (`conformance.py` and `session_conformance.py` in `tests/store/`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.call import CallRecord, JsonObject, Origin, Outcome, Principal, Target
from gateway.core.accounts import Account, BudgetBook, Change, Subjects
from gateway.core.approval import Result
from gateway.core.breaker import Breaker, Step
from gateway.core.budget import Balance, Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.session import SessionFacts, SessionKey, SessionQuery
from gateway.store.approvals_protocol import Approvals, Claim, Outbox, People, Unclaimed
from gateway.store.session_protocol import SessionDesk

END_OF_TIME: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Intent:
    """What is on disk before the first byte leaves: who, what was decided, and where attempt 1 goes.

    `record` is the call as known before dispatch (its outcome fields are not yet meaningful and are not stored).
    `request` is the body to store, already reduced to what `journal.bodies` allows, or None. `claim` is the approval that the call is made
    under, `grants` are the ids of those that let it go on: they are taken in the same step, as they are at `now_ns`; who does not say when
    that is gets none.
    """

    record: CallRecord
    target: Target
    request: bytes | None
    demand: "Demand | None" = None
    claim: Claim | None = None
    grants: tuple[str, ...] = ()
    now_ns: int = END_OF_TIME


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of budgets and rates before it may begin: one atomic step with its intent, all of it or none.

    `book` are the configured budgets; what operators have set is the store's to add, read in the same step. `need` is that of attempt 1.
    """

    book: BudgetBook
    subjects: Subjects
    need: Need
    takes: tuple[Take, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """An account after a step: what it counts now, of all windows that do, and when its current window ends (None: never)."""

    account: Account
    counted: Balance
    window_ns: int
    ends_ns: int | None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The call has begun, its money is set aside and its rates are taken."""

    granted: Granted
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True)
class Booked:
    """A call's books are closed. `standings` are those of its accounts; `crossed` are those that have just reached their soft limit.

    `overrun_nusd` is what it cost beyond what was set aside: more than its provider was asked for.
    """

    standings: tuple[Standing, ...] = ()
    crossed: tuple[Account, ...] = ()
    overrun_nusd: int = 0


NOTHING_BOOKED = Booked()


@dataclass(frozen=True, slots=True)
class DispatchIntent:
    """A further attempt (n of 2 and above) of a call that has its `Intent`, on disk before it is sent.

    `need` is what it may cost, `spent_nusd` what the attempts before it cost at the most: the reservation grows by what is missing.
    """

    call_id: str
    n: int
    target: Target
    started_ns: int
    waited_s: float
    need: Need | None = None
    spent_nusd: int = 0


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A virtual key without its secret. `digest` is HMAC-SHA256 under the deployment's own key. Times are wall ns; None: never."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    team: str = ""
    org: str = ""
    roles: tuple[str, ...] = ()
    routes: tuple[str, ...] = ("*",)
    created_ns: int = 0
    expires_ns: int | None = None
    revoked_ns: int | None = None
    owner: str = ""  # the account of the person whose key it is


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls to list: newest first, `limit` at most; `before` is a call id to page from; empty fields do not filter.

    `part_of` is the id of a call: those that were made for it; `approval` that of an approval: those that waited for it or were made under
    it. The empty text means, as in the others, those that have none.
    """

    limit: int = 20
    before: str | None = None
    after: str | None = None
    key: str | None = None
    route: str | None = None
    outcome: str | None = None
    session: str | None = None
    rule: str | None = None
    code: str | None = None
    team: str | None = None
    part_of: str | None = None
    approval: str | None = None


@dataclass(frozen=True, slots=True)
class DecidedCall:
    """A call and what was decided on it: all that is on record for deciding it again.

    `request` is the body as it was kept, None where none was. `principal.roles` are those of its key. `outcome` is None while the
    call is open, `cost_nusd` where it is unknown; `labels`, `reasons` and `rule` are those of before anything left.
    """

    id: str
    principal: Principal
    dialect: str
    operation: str
    route: str
    stream: bool
    origin: Origin
    received_ns: int
    request: bytes | None = field(repr=False)
    decision: str
    rule: str
    labels: tuple[str, ...]
    bundle: str
    reasons: tuple[JsonObject, ...]
    verdicts: tuple[JsonObject, ...]
    outcome: Outcome | None
    cost_nusd: int | None


class Journal(Protocol):
    """The durable record of calls, in order. Every verb returns only after the transaction is on disk."""

    async def begin(self, intent: Intent) -> Admitted | Short | Spent | Unclaimed:
        """Record a call and its first attempt's intent, take its approval and its grants, set its money aside, take its rates; where one
        of them cannot be taken or is short, nothing of it.
        """
        ...

    async def dispatch(self, intent: DispatchIntent) -> Granted | Short:
        """Record a further attempt's intent, with its money set aside; where that is short, neither."""
        ...

    async def finish(self, record: CallRecord, *, response: bytes | None, result: Result | None = None) -> Booked:
        """Record the outcome, every attempt's end and cost, and the response body; the reservation is resolved by the attempts' costs.

        `record.approval_end` happens to the approval that the call has claimed, with `result` kept for its caller; where it cannot happen
        any more, because others took this process for dead, it is left out. Once per call: a second finish is refused.
        """
        ...

    async def refuse(self, record: CallRecord, *, request: bytes | None) -> None:
        """Record a call that was never dispatched: intent and outcome in one transaction."""
        ...

    async def calls(self, wanted: CallFilter) -> Sequence[Mapping[str, Any]]:
        """Calls as JSON-ready rows (`JOURNAL_FIELDS` in `store/rows.py`), newest first."""
        ...

    async def call(self, call_id: str) -> Mapping[str, Any] | None:
        """One call with its attempts, reasons, verdicts, tool uses and bodies, JSON-ready; None if there is none."""
        ...

    async def decided(self, since_ns: int, after: str | None, limit: int) -> Sequence[DecidedCall]:
        """Calls that were judged and arrived at `since_ns` or later, in order, `limit` at most; fewer where their bodies are large.

        `after` is the id of the last one of the page before; an empty page is the end.
        """
        ...


class Keys(Protocol):
    """Virtual keys. Each change raises `generation` by one in the same transaction, so that workers notice."""

    async def create(self, key: StoredKey) -> None:
        """Add a key. Raises `StoreError` if the id exists."""
        ...

    async def all(self) -> tuple[int, Sequence[StoredKey]]:
        """The generation and every key, revoked ones too, oldest first."""
        ...

    async def generation(self) -> int:
        """The number of the last change."""
        ...

    async def revoke(self, key_id: str, *, now_ns: int) -> bool:
        """Revoke a key; False if there is none or it is revoked already."""
        ...

    async def replace_digest(self, key_id: str, digest: bytes, *, now_ns: int) -> bool:
        """Give a live key a new secret (`keys rotate`); the old one stops at once. False if there is no live key of that id."""
        ...


class Sessions(Protocol):
    """What is on record of sessions. Each belongs to the principal that opened it."""

    async def facts(
        self, key: SessionKey, queries: frozenset[SessionQuery], *, now_ns: int, with_facts: bool = False,
    ) -> SessionFacts:
        """What is known of a session, and the answers to `queries`; with `with_facts` what was put there. An unknown one has begun now."""
        ...

    async def in_flight(self, key: SessionKey, tools: frozenset[str]) -> bool:
        """Whether a call of one of these HTTP tools, made in this session, has not ended yet."""
        ...

    async def released(self, principal: str, ids: Sequence[str]) -> Mapping[str, bool]:
        """Of these tool call ids those that a model proposed to a principal: whether each was ever let through."""
        ...

    async def enter(self, key: SessionKey, holder: str, *, now_ns: int, until_ns: int) -> bool:
        """Take the session's turn; False while another holds it. A turn that was not left is free again after its `until_ns`."""
        ...

    async def leave(self, key: SessionKey, holder: str) -> None:
        """Give the turn back; nothing where it is not `holder`'s."""
        ...


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts to list: those of a budget, a subject, a scope; empty fields do not filter."""

    budget: str | None = None
    subject: str | None = None
    scope: str | None = None
    limit: int = 1000


class Budgets(Protocol):
    """Balances, what operators set, and what the ledger says. Money is set aside and booked by the journal's verbs."""

    async def standing(self, book: BudgetBook, subjects: Subjects, *, now_ns: int) -> Sequence[Standing]:
        """The accounts that bind these subjects, as they stand: for rules, which decide before money is set aside."""
        ...

    async def extend(self, call_id: str, need: Need, *, spent_nusd: int) -> Granted | Short:
        """Set more aside for a call that is under way, in the windows of its reservation."""
        ...

    async def take(self, takes: Sequence[Take], *, now_ns: int) -> Spent | None:
        """Take rates for something that is no call of its own (a proposed tool call): all, or none and which one is spent."""
        ...

    async def change(self, change: Change) -> Change:
        """Put an operator's change on record, with its id (the given one is not looked at). It counts from the next reservation."""
        ...

    async def changes(self, name: str | None = None) -> Sequence[Change]:
        """Every change, or those of one budget, in order."""
        ...

    async def accounts(self, book: BudgetBook, wanted: AccountFilter, *, now_ns: int) -> Sequence[Standing]:
        """The accounts that have a balance in the current window, and those with a limit of their own; by budget and subject."""
        ...

    async def windows(self, budget: str, subject: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        """Balances of a budget, window by window, newest first: `WINDOW_FIELDS` of `store/ledger_rows.py`."""
        ...

    async def suspects(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Settlements that were booked at the estimate because their process died: `SUSPECT_FIELDS`, oldest first."""
        ...

    async def resolve(self, call_id: str, cost_nusd: int | None, *, author: str, now_ns: int) -> bool:
        """Book what a suspect really cost (None: what was booked is right). False where it is none."""
        ...

    async def costs(self, by: str, since_ns: int, until_ns: int, limit: int) -> Sequence[Mapping[str, Any]]:
        """What the ledger holds in [since, until), grouped: `COST_FIELDS`, the dearest first, and a last row for what `limit` left out."""
        ...


class Breakers(Protocol):
    """The breakers of targets. Each change raises `generation` by one in the same transaction, so that workers notice."""

    async def apply(self, target: str, step: Step) -> tuple[Breaker, Breaker]:
        """Let a step happen to the breaker of a target, as `core/breaker.py` has it, in one transaction: what it was and what it is."""
        ...

    async def all(self) -> tuple[int, Sequence[Breaker]]:
        """The generation and every breaker that anything ever happened to, by target. A row that cannot be read is as good as none."""
        ...

    async def generation(self) -> int:
        """The number of the last change."""
        ...

    async def prune(self, keep: Collection[str], *, before_ns: int) -> int:
        """Forget the breakers of other targets whose state has not changed since `before_ns`: how many there were."""
        ...


class Bundles(Protocol):
    """The rules that calls were decided under, by digest, so that a decision can be explained when the files have changed."""

    async def keep(self, digest: str, content: bytes, *, now_ns: int) -> None:
        """Keep a bundle's content; nothing where it is kept already."""
        ...

    async def content(self, digest: str) -> bytes | None:
        """What `keep` was given; None for an unknown digest."""
        ...


class Store(Protocol):
    """All durable state of one gateway process. `owner` names the process in leases."""

    journal: Journal
    keys: Keys
    sessions: Sessions
    budgets: Budgets
    breakers: Breakers
    bundles: Bundles
    approvals: Approvals
    outbox: Outbox
    people: People
    session_desk: SessionDesk

    async def start(self, *, now_ns: int) -> None:
        """Open, migrate, register this owner. Raises `StoreError` with what to do."""
        ...

    async def heartbeat(self, *, now_ns: int, lease_ns: int) -> int:
        """Extend this owner's lease, and mark as `interrupted` the open calls of owners whose lease is over.

        Returns how many calls were marked.
        """
        ...

    async def check(self) -> None:
        """Raise `StoreUnavailable` if it cannot be read and written now."""
        ...

    async def close(self) -> None:
        """Write what is queued, give up the lease, close."""
        ...
