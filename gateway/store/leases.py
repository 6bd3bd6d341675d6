"""Who is alive: each process holds a lease, and the open calls of one whose lease is over are closed as `interrupted`.

Everything runs inside the writer's transactions, so several processes may sweep at once and each call is closed exactly once.
"""

from typing import Final

from gateway.store.bodies import pack
from gateway.store.database import Connection
from gateway.store.journal import INSERT_ATTEMPT, INSERT_OUTCOME, OpenCalls
from gateway.store.reads import pending_attempts
from gateway.store.rows import DISPATCH_COLUMNS, interrupted_attempt, interrupted_outcome
from gateway.store.writer import Job

# Until the first heartbeat, which brings its own figure.
FIRST_LEASE_NS: Final = 60_000_000_000
# A process that slept through its lease (a suspended laptop) may wake and go on: its row stays, and what it begins is swept again.
_FORGET_AFTER_NS: Final = 86_400_000_000_000

_OPEN: Final = """
SELECT seq FROM calls WHERE owner = ? AND seq >= ? AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.seq = calls.seq)
"""
_EXTEND: Final = """
INSERT INTO owners (id, name, started_ns, lease_ns, floor) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET lease_ns = excluded.lease_ns, floor = excluded.floor
"""


class Join(Job[int]):
    """Register this process and sweep: how many calls were closed. A former process of the same name is dead."""

    __slots__ = ("_calls", "_name", "_now_ns", "_owner")

    def __init__(self, calls: OpenCalls, name: str, *, now_ns: int) -> None:
        super().__init__()
        self._calls = calls
        self._name = name
        self._now_ns = now_ns
        self._owner = 0

    def apply(self, connection: Connection) -> int:
        closed = 0
        former = connection.execute("SELECT id, floor FROM owners WHERE name = ?", (self._name,)).fetchone()
        if former is not None:
            closed = _close_open(connection, *former, now_ns=self._now_ns)
            connection.execute("DELETE FROM owners WHERE id = ?", (former[0],))
        self._owner = connection.execute(
            "INSERT INTO owners (name, started_ns, lease_ns, floor) VALUES (?, ?, ?, ?)",
            (self._name, self._now_ns, self._now_ns + FIRST_LEASE_NS, _next_seq(connection)),
        ).lastrowid
        return closed + _sweep(connection, self._owner, now_ns=self._now_ns)

    def committed(self) -> None:
        self._calls.owner = self._owner


class Extend(Job[int]):
    """Extend this process's lease and sweep: how many calls were closed."""

    __slots__ = ("_calls", "_lease_ns", "_name", "_now_ns")

    def __init__(self, calls: OpenCalls, name: str, *, now_ns: int, lease_ns: int) -> None:
        super().__init__()
        self._calls = calls
        self._name = name
        self._now_ns = now_ns
        self._lease_ns = lease_ns

    def apply(self, connection: Connection) -> int:
        calls = self._calls
        floor = min(calls.seqs.values()) if calls.seqs else _next_seq(connection)
        connection.execute(_EXTEND, (calls.owner, self._name, self._now_ns, self._now_ns + self._lease_ns, floor))
        return _sweep(connection, calls.owner, now_ns=self._now_ns)


class Leave(Job[None]):
    """Give up the lease. What is still open is left to the next sweep of any process."""

    __slots__ = ("_calls",)

    def __init__(self, calls: OpenCalls) -> None:
        super().__init__()
        self._calls = calls

    def apply(self, connection: Connection) -> None:
        if self._calls.seqs:
            connection.execute("UPDATE owners SET lease_ns = 0 WHERE id = ?", (self._calls.owner,))
        else:
            connection.execute("DELETE FROM owners WHERE id = ?", (self._calls.owner,))


def _next_seq(connection: Connection) -> int:
    latest: int = connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
    return latest + 1


def _sweep(connection: Connection, owner: int, *, now_ns: int) -> int:
    closed = 0
    dead = connection.execute("SELECT id, floor FROM owners WHERE lease_ns < ? AND id != ?", (now_ns, owner)).fetchall()
    for dead_owner, floor in dead:
        closed += _close_open(connection, dead_owner, floor, now_ns=now_ns)
        connection.execute("UPDATE owners SET floor = ? WHERE id = ?", (_next_seq(connection), dead_owner))
    connection.execute("DELETE FROM owners WHERE lease_ns < ? AND id != ?", (now_ns - _FORGET_AFTER_NS, owner))
    return closed


def _close_open(connection: Connection, owner: int, floor: int, *, now_ns: int) -> int:
    seqs = [row[0] for row in connection.execute(_OPEN, (owner, floor)).fetchall()]
    for seq in seqs:
        _interrupt(connection, seq, now_ns=now_ns)
    return len(seqs)


def _interrupt(connection: Connection, seq: int, *, now_ns: int) -> None:
    connection.execute(INSERT_OUTCOME, (seq, *interrupted_outcome(now_ns=now_ns), *pack(None)))
    for row in pending_attempts(connection, seq):
        intent = tuple(row[name] for name in DISPATCH_COLUMNS)
        connection.execute(INSERT_ATTEMPT, (seq, *interrupted_attempt(intent, now_ns=now_ns)))
