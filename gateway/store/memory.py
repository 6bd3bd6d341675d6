"""The store for tests and for `store.path = ":memory:"`: the same promises without the disk. Gone when the process ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from gateway.call import CallRecord, Target
from gateway.core.accounts import BudgetBook
from gateway.core.approval import Result
from gateway.core.budget import Granted, Need, Short
from gateway.core.rate import Spent
from gateway.errors import StoreError
from gateway.store.approvals_protocol import Approvals, Outbox, People, Unclaimed
from gateway.store.bodies import pack
from gateway.store.memory_approvals import MemoryApprovals
from gateway.store.memory_breakers import MemoryBreakers
from gateway.store.memory_budgets import MemoryBudgets
from gateway.store.memory_outbox import MemoryOutbox
from gateway.store.memory_people import MemoryPeople
from gateway.store.memory_session_desk import MemorySessionDesk
from gateway.store.memory_sessions import MemoryBundles, MemorySessions
from gateway.store.protocol import (
    Admitted,
    Booked,
    Breakers,
    Budgets,
    Bundles,
    CallFilter,
    DecidedCall,
    Demand,
    DispatchIntent,
    Intent,
    Journal,
    Keys,
    Sessions,
    StoredKey,
)
from gateway.store.rows import (
    ATTEMPT_COLUMNS,
    CALL_COLUMNS,
    DISPATCH_COLUMNS,
    JUDGED_COLUMNS,
    MOST_PAGE_BYTES,
    OUTCOME_COLUMNS,
    PATH_COLUMNS,
    USE_COLUMNS,
    VERDICT_COLUMNS,
    CallRows,
    Row,
    Values,
    absent_to_none,
    attempt_values,
    call_json,
    call_values,
    decided_call,
    detail_json,
    dispatch_values,
    json_text,
    outcome_values,
    paths_of,
)
from gateway.store.session_protocol import SessionDesk
from gateway.store.traces import USE_VALUES, Trace, begin_trace, finish_trace, refusal_trace

_FREE: Final = Need(0)
_NO_DEMAND: Final = Demand(BudgetBook(), {}, _FREE)


class MemoryJournal:
    """`Journal` in a dict, in order of arrival. Every verb is done before it first awaits, so none is seen half done."""

    def __init__(self, keys: "MemoryKeys", sessions: MemorySessions, budgets: MemoryBudgets, approvals: MemoryApprovals) -> None:
        self._entries: dict[str, CallRows] = {}
        self._keys = keys
        self._sessions = sessions
        self._budgets = budgets
        self._approvals = approvals

    async def begin(self, intent: Intent) -> Admitted | Short | Spent | Unclaimed:
        record = intent.record
        self._expect_new(record.id)
        if not self._approvals.can_take(intent):
            return Unclaimed(intent.claim.ticket if intent.claim is not None else "")
        answer = self._budgets.reserve(record.id, intent.demand or _NO_DEMAND, record.received_ns)
        if isinstance(answer, Admitted):
            self._approvals.take(intent)
            entry = self._add(record, intent.target, intent.request)
            self._leave(entry, begin_trace(record))
        return answer

    async def dispatch(self, intent: DispatchIntent) -> Granted | Short:
        entry = self._open(intent.call_id)
        if any(pending["n"] == intent.n for pending in entry.pending):
            raise StoreError(f"attempt {intent.n} of call {intent.call_id} was already recorded")
        answer = self._budgets.grow(intent.call_id, intent.need or _FREE, intent.spent_nusd)
        if isinstance(answer, Granted):
            entry.pending = [*entry.pending, _row(DISPATCH_COLUMNS, dispatch_values(intent))]
        return answer

    async def finish(self, record: CallRecord, *, response: bytes | None, result: Result | None = None) -> Booked:
        entry = self._open(record.id)
        self._end(entry, record, response)
        self._approvals.end(record, result)
        self._leave(entry, finish_trace(record))
        return self._budgets.settle(record)

    async def refuse(self, record: CallRecord, *, request: bytes | None) -> None:
        self._expect_new(record.id)
        entry = self._add(record, None, request)
        self._end(entry, record, None)
        self._leave(entry, refusal_trace(record))

    def _end(self, entry: CallRows, record: CallRecord, response: bytes | None) -> None:
        self._approvals.note(record)
        encoding, data = pack(response)
        entry.attempts = [_row(ATTEMPT_COLUMNS, attempt_values(attempt)) for attempt in record.attempts]
        entry.paths = [_row(PATH_COLUMNS, values) for values in paths_of(record)]
        entry.plan = json_text(record.plan)
        entry.outcome = {
            **_row(OUTCOME_COLUMNS, outcome_values(record)), "response_encoding": encoding, "response": bytes(data),
        }

    def _leave(self, entry: CallRows, trace: Trace | None) -> None:
        if trace is None:
            return
        if trace.verdicts is not None:
            entry.verdicts = _row(VERDICT_COLUMNS, trace.verdicts)
        entry.uses = [*entry.uses, *({name: row[name] for name in USE_COLUMNS} for row in map(_use, trace.uses))]
        self._sessions.add(entry, trace)

    async def calls(self, wanted: CallFilter) -> Sequence[Mapping[str, Any]]:
        rows = []
        for call_id in self._page(wanted):
            row = _listed(self._linked(self._entries[call_id]))
            if self._of(call_id, wanted.approval) and all(  # '' is absence, as in SQLite
                    want is None or (row[name] or "") == want for name, want in _conditions(wanted)):
                rows.append(row)
        return rows[:max(wanted.limit, 0)]

    async def call(self, call_id: str) -> Mapping[str, Any] | None:
        entry = self._entries.get(call_id)
        if entry is None:
            return None
        parts = [each.call["id"] for each in self._entries.values() if each.part_of == call_id]
        return detail_json(replace(self._linked(entry), parts=parts, grants=self._approvals.grants_of(call_id)))

    async def decided(self, since_ns: int, after: str | None, limit: int) -> Sequence[DecidedCall]:
        page: list[DecidedCall] = []
        size = 0
        for call_id in self._page(CallFilter(after=after))[::-1]:
            entry = self._entries[call_id]
            if len(page) >= limit or size > MOST_PAGE_BYTES:
                break
            if entry.call["decision"] and not entry.part_of and entry.call["received_ns"] >= since_ns:
                page.append(decided_call(await self._decided(entry)))
                size += len(page[-1].request or b"")
        return page

    async def _decided(self, entry: CallRows) -> Row:
        _generation, keys = await self._keys.all()
        key = next((key for key in keys if key.id == entry.call["key"]), None)
        return {
            **{name: entry.call[name] for name in (*JUDGED_COLUMNS, "request_encoding", "request")},
            **{name: entry.outcome[name] if entry.outcome else None for name in ("outcome", "cost_nusd")},
            "verdicts": entry.verdicts["verdicts"] if entry.verdicts else "",
            "roles": json_text(key.roles) if key else None, "routes": json_text(key.routes) if key else None,
        }

    def _linked(self, entry: CallRows) -> CallRows:
        """With the approvals that the call was made under, or waited for."""
        links = self._approvals.links.get(entry.call["id"], {})
        return replace(entry, approvals=sorted(links, key=lambda each: (links[each], each), reverse=True))

    def _of(self, call_id: str, approval: str | None) -> bool:
        links = self._approvals.links.get(call_id, {})
        return approval is None or (approval in links if approval else not links)

    def _page(self, wanted: CallFilter) -> Sequence[str]:
        """Ids newest first, between `after` and `before`; none where either is unknown."""
        ids = list(self._entries)
        if any(edge is not None and edge not in self._entries for edge in (wanted.before, wanted.after)):
            return []
        start = 0 if wanted.after is None else ids.index(wanted.after) + 1
        end = len(ids) if wanted.before is None else ids.index(wanted.before)
        return ids[start:end][::-1]

    def _add(self, record: CallRecord, target: Target | None, request: bytes | None) -> CallRows:
        encoding, data = pack(request)
        call = {**_row(CALL_COLUMNS, call_values(record, target)), "request_encoding": encoding, "request": bytes(data)}
        entry = self._entries[record.id] = CallRows(call, part_of=record.part_of)
        if target is not None:
            first: Values = (1, target.provider, target.model, record.received_ns, 0.0)
            entry.pending = [_row(DISPATCH_COLUMNS, first)]
        return entry

    def _expect_new(self, call_id: str) -> None:
        if call_id in self._entries:
            raise StoreError(f"call {call_id} was already recorded")

    def _open(self, call_id: str) -> CallRows:
        entry = self._entries.get(call_id)
        if entry is None:
            raise StoreError(f"call {call_id} is not on record; it must begin before it goes on")
        if entry.outcome is not None:
            raise StoreError(f"call {call_id} already has its outcome; a call ends once")
        return entry


class MemoryKeys:
    """`Keys` in a dict."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}
        self._generation = 0

    async def create(self, key: StoredKey) -> None:
        if key.id in self._keys:
            raise StoreError(f"there is a key {key.id} already")
        self._put(key)

    async def all(self) -> tuple[int, Sequence[StoredKey]]:
        return self._generation, sorted(self._keys.values(), key=lambda key: key.created_ns)

    async def generation(self) -> int:
        return self._generation

    async def revoke(self, key_id: str, *, now_ns: int) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_ns is not None:
            return False
        self._put(replace(key, revoked_ns=now_ns))
        return True

    async def replace_digest(self, key_id: str, digest: bytes, *, now_ns: int) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_ns is not None or (key.expires_ns is not None and key.expires_ns <= now_ns):
            return False
        self._put(replace(key, digest=digest))
        return True

    def _put(self, key: StoredKey) -> None:
        self._keys[key.id] = key
        self._generation += 1


class MemoryStore:
    """`Store` without a disk. There is no other process, so there is nobody to recover from."""

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

    def __init__(self, owner: str) -> None:
        self._owner = owner
        keys, sessions, budgets = MemoryKeys(), MemorySessions(), MemoryBudgets()
        outbox = MemoryOutbox()
        approvals = MemoryApprovals(outbox)
        self.journal = MemoryJournal(keys, sessions, budgets, approvals)
        self.approvals = approvals
        self.outbox = outbox
        self.keys = keys
        self.sessions = sessions
        self.budgets = budgets
        self._rates = budgets.rates
        self.breakers = MemoryBreakers()
        self.bundles = MemoryBundles()
        self.people = MemoryPeople()
        self.session_desk = MemorySessionDesk(sessions, keys, approvals)

    def __repr__(self) -> str:
        return f"MemoryStore(owner={self._owner!r})"

    async def start(self, *, now_ns: int) -> None:
        """Nothing to open."""

    async def heartbeat(self, *, now_ns: int, lease_ns: int) -> int:
        """Nobody else's calls to close; what says nothing any more is forgotten."""
        _ = lease_ns
        self._rates.prune(now_ns)
        return 0

    async def check(self) -> None:
        """Always usable."""

    async def close(self) -> None:
        """Nothing to close."""


def _conditions(wanted: CallFilter) -> tuple[tuple[str, str | None], ...]:
    names = ("key", "route", "session", "outcome", "rule", "code", "team", "part_of")
    return tuple((name, getattr(wanted, name)) for name in names)


def _listed(entry: CallRows) -> dict[str, Any]:
    tries = entry.attempts if entry.outcome is not None else entry.pending
    target = f"{tries[-1]['provider']}/{tries[-1]['model']}" if tries else ""
    return call_json(entry, target, len(tries))


def _use(values: Values) -> Row:
    return dict(zip(USE_VALUES, values, strict=True))


def _row(columns: Sequence[str], values: Values) -> Row:
    return dict(zip(columns, absent_to_none(values), strict=True))
