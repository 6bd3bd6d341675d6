"""The outbox of the store without a disk. Every verb is done before it first awaits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gateway.store.approval_rows import notice_of, notice_row, notice_values
from gateway.store.approvals_protocol import Notice
from gateway.store.rows import text


@dataclass(slots=True)
class _Entry:
    values: tuple[Any, ...]
    due_ns: int
    until_ns: int = 0
    attempts: int = 0
    done_ns: int | None = None
    dead: bool = False
    error: str = ""


class MemoryOutbox:
    """`Outbox` in a dict, in the order in which notices came."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def put(self, notices: Iterable[Notice]) -> None:
        """Add notices, but for those that are there."""
        for notice in notices:
            values = notice_values(notice)
            self._entries.setdefault(values[0], _Entry(values, notice.due_ns))

    def forget(self, before_ns: int, limit: int) -> None:
        """Remove what was delivered before then, the oldest first, so many at the most; as `Approvals.sweep` says."""
        old = sorted([(entry.done_ns, notice_id) for notice_id, entry in self._entries.items()
                      if entry.done_ns is not None and entry.done_ns < before_ns and entry.values[2] != "unknown"])
        for _done_ns, notice_id in old[:max(limit, 0)]:
            del self._entries[notice_id]

    async def add(self, notices: Sequence[Notice]) -> None:
        self.put(notices)

    async def take(self, holder: str, *, now_ns: int, until_ns: int, limit: int) -> Sequence[Notice]:
        _ = holder  # the only one
        free = [entry for entry in self._entries.values()
                if entry.done_ns is None and not entry.dead and entry.due_ns <= now_ns and entry.until_ns <= now_ns]
        taken = sorted(free, key=lambda entry: entry.due_ns)[:max(limit, 0)]
        for entry in taken:
            entry.until_ns = until_ns
            entry.attempts += 1
        return [notice_of((*entry.values[:-1], entry.due_ns), entry.attempts) for entry in taken]

    async def done(self, notice_id: str, *, now_ns: int) -> None:
        entry = self._entries.get(text(notice_id))
        if entry is not None and entry.done_ns is None:
            entry.done_ns, entry.until_ns, entry.error = now_ns, 0, ""

    async def later(self, notice_id: str, *, due_ns: int, error: str, dead: bool) -> None:
        entry = self._entries.get(text(notice_id))
        if entry is not None and entry.done_ns is None:
            entry.due_ns, entry.error, entry.dead, entry.until_ns = due_ns, text(error), dead, 0

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        return [
            notice_row((*entry.values[:4], entry.due_ns, entry.attempts, entry.done_ns, entry.dead, entry.error))
            for entry in islice(reversed(self._entries.values()), max(limit, 0))]
