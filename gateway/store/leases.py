"""Who is alive: each process holds a lease; the open calls of one whose lease is over are closed as `interrupted`, money and approval too.

Everything runs inside the writer's transactions, so several processes may sweep at once and each call is closed exactly once.
"""

from typing import Final

from gateway.store.answers import MOST_SPEND_NUSD
from gateway.store.bodies import pack
from gateway.store.claims import abandon
from gateway.store.database import Connection
from gateway.store.journal import INSERT_ATTEMPT, INSERT_OUTCOME, OpenCalls
from gateway.store.rates_sql import prune_rates
from gateway.store.reads import pending_attempts
from gateway.store.rows import DISPATCH_COLUMNS, interrupted_attempt, interrupted_outcome
from gateway.store.session_sql import sweep_turns
from gateway.store.writer import Job

SIGHTINGS: Final = 3
_GIVEN_UP: Final = 0  # the lease of a process that left and said so
# Until the first heartbeat, which brings its own figure.
FIRST_LEASE_NS: Final = 60_000_000_000
# A process that slept through its lease (a suspended laptop) may wake and go on: its row stays, and what it begins is swept again.
_FORGET_AFTER_NS: Final = 86_400_000_000_000

_OPEN: Final = """
SELECT seq FROM calls WHERE owner = ? AND seq >= ? AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.seq = calls.seq)
"""
_ADD_COST: Final = """
UPDATE sessions SET spend_nusd = min(spend_nusd + ?, ?) WHERE (principal, id) = (SELECT key, session FROM calls WHERE seq = ?)
"""
_EXTEND: Final = """
INSERT INTO owners (id, name, started_ns, lease_ns, floor) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET lease_ns = excluded.lease_ns, floor = excluded.floor
"""


class Join(Job[int]):
    """Register this process and sweep: how many calls were closed. A former process of the same name is dead."""

    __slots__ = ("_calls", "_name", "_next", "_now_ns", "_owner")

    def __init__(self, calls: OpenCalls, name: str, *, now_ns: int) -> None:
        super().__init__()
        self._calls = calls
        self._name = name
        self._now_ns = now_ns
        self._owner = self._next = 0

    def apply(self, connection: Connection) -> int:
        closed = 0
        self._next = _next_seq(connection)
        former = connection.execute("SELECT id, floor FROM owners WHERE name = ?", (self._name,)).fetchone()
        if former is not None:
            closed = _close_open(connection, self._calls, *former, now_ns=self._now_ns)
            connection.execute("DELETE FROM owners WHERE id = ?", (former[0],))
        self._owner = connection.execute(
            "INSERT INTO owners (name, started_ns, lease_ns, floor) VALUES (?, ?, ?, ?)",
            (self._name, self._now_ns, self._now_ns + FIRST_LEASE_NS, self._next),
        ).lastrowid
        return closed + _sweep(connection, self._calls, self._owner, None, now_ns=self._now_ns)

    def committed(self) -> None:
        self._calls.owner = self._owner
        self._calls.known_below = self._next
        self._calls.beat_ns = self._now_ns


class Extend(Job[int]):
    """Extend this process's lease and sweep: how many calls were closed."""

    __slots__ = ("_calls", "_lease_ns", "_name", "_next", "_now_ns")

    def __init__(self, calls: OpenCalls, name: str, *, now_ns: int, lease_ns: int) -> None:
        super().__init__()
        self._calls = calls
        self._name = name
        self._now_ns = now_ns
        self._lease_ns = lease_ns
        self._next = 0

    def apply(self, connection: Connection) -> int:
        calls = self._calls
        self._next = _next_seq(connection)
        mine = connection.execute("SELECT lease_ns FROM owners WHERE id = ?", (calls.owner,)).fetchone()
        floor = _oldest_open(connection, calls) or self._next
        connection.execute(_EXTEND, (calls.owner, self._name, self._now_ns, self._now_ns + self._lease_ns, floor))
        if mine is None or mine[0] < self._now_ns:  # the time stood still for this process: it did for the others too
            calls.overdue.clear()
            return 0
        sweep_turns(connection, now_ns=self._now_ns)
        prune_rates(connection, self._now_ns)
        return _sweep(connection, calls, calls.owner, calls.overdue, now_ns=self._now_ns)

    def committed(self) -> None:
        self._calls.known_below = self._next
        self._calls.beat_ns = self._now_ns


class Leave(Job[None]):
    """Give up the lease. What is still open is left to the next sweep of any process."""

    __slots__ = ("_calls",)

    def __init__(self, calls: OpenCalls) -> None:
        super().__init__()
        self._calls = calls

    def apply(self, connection: Connection) -> None:
        if _oldest_open(connection, self._calls) is not None:
            connection.execute("UPDATE owners SET lease_ns = ? WHERE id = ?", (_GIVEN_UP, self._calls.owner))
        else:
            connection.execute("DELETE FROM owners WHERE id = ?", (self._calls.owner,))


def _oldest_open(connection: Connection, calls: OpenCalls) -> int | None:
    """The first call of this process that is open. One that this very transaction has begun is on record, and not in `seqs` yet."""
    if calls.seqs:
        return min(calls.seqs.values())
    return min((row[0] for row in connection.execute(_OPEN, (calls.owner, calls.known_below))), default=None)


def _next_seq(connection: Connection) -> int:
    latest: int = connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
    return latest + 1


def _sweep(connection: Connection, calls: OpenCalls, owner: int, overdue: dict[tuple[int, int], int] | None, *, now_ns: int) -> int:
    """Close the open calls of owners whose lease is over: how many there were.

    Leases are wall time, and wall time jumps. So a running process believes that another is dead only when it has found the same
    lease overdue in `SIGHTINGS` heartbeats of its own; `overdue` remembers them. One that starts (None) believes the clock.
    """
    closed = 0
    late = connection.execute("SELECT id, floor, lease_ns FROM owners WHERE lease_ns < ? AND id != ?", (now_ns, owner)).fetchall()
    if overdue is not None:
        seen = {each: overdue.get((each, lease), 0) + 1 for each, _floor, lease in late}
        overdue.clear()
        overdue.update({(each, lease): seen[each] for each, _floor, lease in late})
        late = [row for row in late if seen[row[0]] >= SIGHTINGS or row[2] == _GIVEN_UP]
    for dead_owner, floor, lease in late:
        closed += _close_open(connection, calls, dead_owner, floor, now_ns=now_ns)
        if lease < now_ns - _FORGET_AFTER_NS:
            connection.execute("DELETE FROM owners WHERE id = ?", (dead_owner,))
        else:
            connection.execute("UPDATE owners SET floor = ? WHERE id = ?", (_next_seq(connection), dead_owner))
    return closed


def _close_open(connection: Connection, calls: OpenCalls, owner: int, floor: int, *, now_ns: int) -> int:
    seqs = [row[0] for row in connection.execute(_OPEN, (owner, floor)).fetchall()]
    for seq in seqs:
        _interrupt(connection, calls, seq, now_ns=now_ns)
    return len(seqs)


def _interrupt(connection: Connection, calls: OpenCalls, seq: int, *, now_ns: int) -> None:
    """Close a call. What was set aside for it is booked with the last attempt that may have been sent: nobody knows what it cost.

    The approval that it was made under is returned, has failed or is unknown, as the contract of what was sent has it.
    """
    intents = [tuple(row[name] for name in DISPATCH_COLUMNS) for row in pending_attempts(connection, seq)]
    cost_nusd = calls.till.recover(connection, seq, intents[-1][:3] if intents else None, now_ns)
    connection.execute(INSERT_OUTCOME, (seq, *interrupted_outcome(now_ns=now_ns, cost_nusd=cost_nusd), *pack(None)))
    for intent in intents:
        cost = cost_nusd if intent is intents[-1] else None
        connection.execute(INSERT_ATTEMPT, (seq, *interrupted_attempt(intent, now_ns=now_ns, cost_nusd=cost)))
    if cost_nusd:
        connection.execute(_ADD_COST, (cost_nusd, MOST_SPEND_NUSD, seq))
    abandon(connection, seq, now_ns=now_ns, notify=calls.notify)
