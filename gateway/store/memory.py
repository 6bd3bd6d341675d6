"""The store for tests and for `store.path = ":memory:"`: the same promises without the disk. Gone when the process ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.call import CallRecord, Target
from gateway.errors import StoreError
from gateway.store.bodies import pack
from gateway.store.protocol import CallFilter, DispatchIntent, Intent, Journal, Keys, StoredKey
from gateway.store.rows import (
    ATTEMPT_COLUMNS,
    CALL_COLUMNS,
    DISPATCH_COLUMNS,
    OUTCOME_COLUMNS,
    Row,
    Values,
    absent_to_none,
    attempt_values,
    call_json,
    call_values,
    detail_json,
    dispatch_values,
    outcome_values,
)


@dataclass(slots=True)
class _Entry:
    """One call: the rows that SQLite would hold."""

    call: Row
    pending: dict[int, Row] = field(default_factory=dict)
    attempts: list[Row] = field(default_factory=list)
    outcome: Row | None = None


class MemoryJournal:
    """`Journal` in a dict, in order of arrival. Every verb is done before it first awaits, so none is seen half done."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    async def begin(self, intent: Intent) -> None:
        self._add(intent.record, intent.target, intent.request)

    async def dispatch(self, intent: DispatchIntent) -> None:
        entry = self._open(intent.call_id)
        if intent.n in entry.pending:
            raise StoreError(f"attempt {intent.n} of call {intent.call_id} was already recorded")
        entry.pending[intent.n] = _row(DISPATCH_COLUMNS, dispatch_values(intent))

    async def finish(self, record: CallRecord, *, response: bytes | None) -> None:
        entry = self._open(record.id)
        encoding, data = pack(response)
        entry.attempts = [_row(ATTEMPT_COLUMNS, attempt_values(attempt)) for attempt in record.attempts]
        entry.outcome = {
            **_row(OUTCOME_COLUMNS, outcome_values(record)), "response_encoding": encoding, "response": bytes(data),
        }

    async def refuse(self, record: CallRecord, *, request: bytes | None) -> None:
        self._add(record, None, request)
        await self.finish(record, response=None)

    async def calls(self, wanted: CallFilter) -> Sequence[Mapping[str, Any]]:
        rows = []
        for call_id in self._page(wanted):
            row = _listed(self._entries[call_id])
            if all(want is None or (row[name] or "") == want for name, want in _conditions(wanted)):  # '' is absence, as in SQLite
                rows.append(row)
        return rows[:max(wanted.limit, 0)]

    async def call(self, call_id: str) -> Mapping[str, Any] | None:
        entry = self._entries.get(call_id)
        if entry is None:
            return None
        return detail_json(entry.call, entry.outcome, entry.attempts, list(entry.pending.values()))

    def _page(self, wanted: CallFilter) -> Sequence[str]:
        """Ids newest first, between `after` and `before`; none where either is unknown."""
        ids = list(self._entries)
        if any(edge is not None and edge not in self._entries for edge in (wanted.before, wanted.after)):
            return []
        start = 0 if wanted.after is None else ids.index(wanted.after) + 1
        end = len(ids) if wanted.before is None else ids.index(wanted.before)
        return ids[start:end][::-1]

    def _add(self, record: CallRecord, target: Target | None, request: bytes | None) -> None:
        if record.id in self._entries:
            raise StoreError(f"call {record.id} was already recorded")
        encoding, data = pack(request)
        call = {**_row(CALL_COLUMNS, call_values(record, target)), "request_encoding": encoding, "request": bytes(data)}
        entry = self._entries[record.id] = _Entry(call)
        if target is not None:
            first: Values = (1, target.provider, target.model, record.received_ns, 0.0)
            entry.pending[1] = _row(DISPATCH_COLUMNS, first)

    def _open(self, call_id: str) -> _Entry:
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

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.journal = MemoryJournal()
        self.keys = MemoryKeys()

    def __repr__(self) -> str:
        return f"MemoryStore(owner={self._owner!r})"

    async def start(self, *, now_ns: int) -> None:
        """Nothing to open."""

    async def heartbeat(self, *, now_ns: int, lease_ns: int) -> int:
        """Nobody else's calls to close."""
        _ = now_ns, lease_ns
        return 0

    async def check(self) -> None:
        """Always usable."""

    async def close(self) -> None:
        """Nothing to close."""


def _conditions(wanted: CallFilter) -> tuple[tuple[str, str | None], ...]:
    names = ("key", "route", "session", "outcome", "rule", "code", "team")
    return tuple((name, getattr(wanted, name)) for name in names)


def _listed(entry: _Entry) -> dict[str, Any]:
    tries: Sequence[Row] = entry.attempts if entry.outcome is not None else list(entry.pending.values())
    target = f"{tries[-1]['provider']}/{tries[-1]['model']}" if tries else ""
    return call_json(entry.call, entry.outcome, target, len(tries))


def _row(columns: Sequence[str], values: Values) -> Row:
    return dict(zip(columns, absent_to_none(values), strict=True))
