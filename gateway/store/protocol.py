"""The seam to durable state: domain verbs, frozen dataclasses in and out. `now_ns` is always an argument.

Memory and SQLite implement it and pass one conformance suite (`conformance.py` and `session_conformance.py` in `tests/store/`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.call import CallRecord, JsonObject, Origin, Outcome, Principal, Target
from gateway.session import SessionFacts, SessionKey, SessionQuery


@dataclass(frozen=True, slots=True)
class Intent:
    """What is on disk before the first byte leaves: who, what was decided, and where attempt 1 goes.

    `record` is the call as known before dispatch (its outcome fields are not yet meaningful and are not stored).
    `request` is the body to store, already reduced to what `journal.bodies` allows, or None.
    """

    record: CallRecord
    target: Target
    request: bytes | None


@dataclass(frozen=True, slots=True)
class DispatchIntent:
    """A further attempt (n of 2 and above) of a call that has its `Intent`, on disk before it is sent."""

    call_id: str
    n: int
    target: Target
    started_ns: int
    waited_s: float


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


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls to list: newest first, `limit` at most; `before` is a call id to page from; empty fields do not filter."""

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

    async def begin(self, intent: Intent) -> None:
        """Record a call and its first attempt's intent."""
        ...

    async def dispatch(self, intent: DispatchIntent) -> None:
        """Record a further attempt's intent."""
        ...

    async def finish(self, record: CallRecord, *, response: bytes | None) -> None:
        """Record the outcome, every attempt's end and the response body. Once per call: a second finish is refused."""
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

    async def facts(self, key: SessionKey, queries: frozenset[SessionQuery], *, now_ns: int) -> SessionFacts:
        """What is known of a session, and the answers to `queries`. An unknown session has begun now."""
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
    bundles: Bundles

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
