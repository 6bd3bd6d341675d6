"""The journal on SQLite: what each verb writes. Reading stands in `reads.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.call import CallRecord
from gateway.core.accounts import BudgetBook
from gateway.core.approval import Result
from gateway.core.budget import Granted, Need, Short
from gateway.core.rate import Spent
from gateway.errors import StoreError
from gateway.store.approvals_protocol import Notify, Unclaimed, tell_nobody
from gateway.store.bodies import pack
from gateway.store.claims import can_take, end, link, take
from gateway.store.database import Connection
from gateway.store.library import sqlite3
from gateway.store.protocol import NOTHING_BOOKED, Admitted, Booked, CallFilter, DecidedCall, Demand, DispatchIntent, Intent
from gateway.store.reader import Reader
from gateway.store.reads import decided_calls, list_calls, one_call
from gateway.store.rows import NO_BILL, Values, attempt_values, bill_of, call_values, dispatch_values, json_text, outcome_values, paths_of
from gateway.store.session_sql import write_trace
from gateway.store.till import Till
from gateway.store.traces import Trace, begin_trace, finish_trace, refusal_trace
from gateway.store.writer import Job, Writer

# Static statements, in the order of the columns in `rows.py`. NULLIF: -1 is an absent number.
_INSERT_CALL: Final = """
INSERT INTO calls (
    owner, id, received_ns, key, name, team, org, dialect, operation, route, stream,
    session, run, step, tags, traceparent, decision, rule, labels, bundle, reasons, provider, model,
    request_encoding, request
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_DISPATCH: Final = "INSERT INTO dispatches (seq, n, provider, model, started_ns, waited_s) VALUES (?, ?, ?, ?, ?, ?)"
_DISPATCHED: Final = "SELECT 1 FROM dispatches WHERE seq = ? AND n = ?"
INSERT_ATTEMPT: Final = """
INSERT INTO attempts (
    seq, n, provider, model, started_ns, ended_ns, "end", cause, message, status, first_byte_ns, waited_s,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
    input_audio_tokens, output_audio_tokens, estimated, cost_nusd
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, NULLIF(?, -1), NULLIF(?, -1), ?,
    NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1),
    NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1)
)
"""
INSERT_OUTCOME: Final = """
INSERT INTO outcomes (
    seq, ended_ns, outcome, status, code, message, first_byte_ns, finish_reasons,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
    input_audio_tokens, output_audio_tokens, estimated, cost_nusd, response_encoding, response
) VALUES (
    ?, ?, ?, ?, ?, ?, NULLIF(?, -1), ?,
    NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1),
    NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1), ?, ?
)
"""

_INSERT_PATH: Final = """
INSERT INTO paths (seq, n, why, breaker, retries_left, largest_gap_s) VALUES (?, ?, ?, ?, NULLIF(?, -1), NULLIF(?, -1))
"""
# Of a call that was made for another one that stands there from its beginning, so that a process which dies leaves no call of nobody's.
_INSERT_PLAN: Final = "INSERT INTO plans (seq, plan, part_of) VALUES (?, ?, ?) ON CONFLICT (seq) DO UPDATE SET plan = excluded.plan"


class OpenCalls:
    """The calls that this process began and has not ended, by id, and the money they hold. Touched by the writing thread only."""

    def __init__(self) -> None:
        self.owner = 0
        self.till = Till()
        self.notify: Notify = tell_nobody  # what is told of approvals, of steps that nobody asked for
        self.beat_ns = 0  # when this process last looked at the leases
        self.seqs: dict[str, int] = {}
        self.known_below = 0  # an open call of this process that has a smaller seq is in `seqs`
        self.overdue: dict[tuple[int, int], int] = {}  # another process and its lease that is over: how often that was seen

    def __repr__(self) -> str:
        return f"OpenCalls(owner={self.owner}, open={len(self.seqs)})"

    def seq(self, connection: Connection, call_id: str) -> int | None:
        """Where a call stands; None for a call that is not on record."""
        seq = self.seqs.get(call_id)
        if seq is None:
            row = connection.execute("SELECT seq FROM calls WHERE id = ?", (call_id,)).fetchone()
            seq = None if row is None else row[0]
        return seq

    def open_seq(self, connection: Connection, call_id: str) -> int:
        """Where a call stands that can go on. Raises `StoreError` where it never began, or where somebody has ended it."""
        seq = self.seq(connection, call_id)
        if seq is None:
            raise _unknown(call_id)
        if connection.execute("SELECT 1 FROM outcomes WHERE seq = ?", (seq,)).fetchone() is not None:
            raise _ended_before(call_id)
        return seq


_FREE: Final = Need(0)
_NO_DEMAND: Final = Demand(BudgetBook(), {}, _FREE)


class Begin(Job[Admitted | Short | Spent | Unclaimed]):
    """The intent of a call and of its first attempt, with its approval claimed and its money set aside."""

    __slots__ = ("_calls", "_intent", "_seq", "_trace", "_values")

    def __init__(self, calls: OpenCalls, intent: Intent) -> None:
        super().__init__()
        self._calls = calls
        self._intent = intent
        self._values: Values = ()
        self._trace: Trace | None = None
        self._seq = 0

    def prepare(self) -> None:
        intent = self._intent
        self._values = (*call_values(intent.record, intent.target), *pack(intent.request))
        self._trace = begin_trace(intent.record)

    def apply(self, connection: Connection) -> Admitted | Short | Spent | Unclaimed:
        self._seq = 0  # a transaction before this one may have failed
        intent, till = self._intent, self._calls.till
        record, claim = intent.record, intent.claim
        unclaimed = Unclaimed(claim.ticket if claim is not None else "")
        claims = claim is not None or bool(intent.grants)
        if claims and not can_take(connection, intent):
            return unclaimed
        asked = till.ask(connection, intent.demand or _NO_DEMAND, record.received_ns)
        if isinstance(asked, Short | Spent):
            return asked
        if claims:
            if self._calls.seq(connection, record.id) is not None:  # before the first change, and not where it is written
                raise _recorded(record.id)
            if not take(connection, intent):
                return unclaimed
        self._seq = _insert_call(connection, self._calls.owner, self._values)
        link(connection, self._seq, record, claim)
        if self._trace is not None:
            write_trace(connection, self._seq, self._trace)
        if record.part_of:
            connection.execute(_INSERT_PLAN, (self._seq, "", record.part_of))
        return till.hold(connection, self._seq, record.id, asked)

    def committed(self) -> None:
        if self._seq:
            self._calls.seqs[self._intent.record.id] = self._seq


class Dispatch(Job[Granted | Short]):
    """The intent of a further attempt, with its money set aside."""

    __slots__ = ("_calls", "_intent")

    def __init__(self, calls: OpenCalls, intent: DispatchIntent) -> None:
        super().__init__()
        self._calls = calls
        self._intent = intent

    def apply(self, connection: Connection) -> Granted | Short:
        intent = self._intent
        seq = self._calls.open_seq(connection, intent.call_id)
        if connection.execute(_DISPATCHED, (seq, intent.n)).fetchone() is not None:
            raise StoreError(f"attempt {intent.n} of call {intent.call_id} was already recorded")
        granted = self._calls.till.grow(connection, seq, intent.call_id, intent.need or _FREE, intent.spent_nusd)
        if isinstance(granted, Granted):
            connection.execute(_INSERT_DISPATCH, (seq, *dispatch_values(intent)))
        return granted


class Enlarge(Job[Granted | Short]):
    """More money for a call under way, see `Budgets.extend`."""

    __slots__ = ("_call_id", "_calls", "_need", "_spent_nusd")

    def __init__(self, calls: OpenCalls, call_id: str, need: Need, spent_nusd: int) -> None:
        super().__init__()
        self._calls = calls
        self._call_id = call_id
        self._need = need
        self._spent_nusd = spent_nusd

    def apply(self, connection: Connection) -> Granted | Short:
        seq = self._calls.open_seq(connection, self._call_id)
        return self._calls.till.grow(connection, seq, self._call_id, self._need, self._spent_nusd)


class Finish(Job[Booked]):
    """The end of a call: its outcome, its attempts, its answer, its bill, and what came of its approval."""

    __slots__ = ("_attempts", "_bill", "_calls", "_paths", "_plan", "_record", "_response", "_result", "_trace", "_values")

    def __init__(self, calls: OpenCalls, record: CallRecord, response: bytes | None, result: Result | None = None) -> None:
        super().__init__()
        self._calls = calls
        self._record = record
        self._response = response
        self._result = result
        self._values: Values = ()
        self._attempts: list[Values] = []
        self._paths: list[Values] = []
        self._plan: Values = ()
        self._trace: Trace | None = None
        self._bill = NO_BILL

    def prepare(self) -> None:
        self._bill = bill_of(self._record)
        self._values = (*outcome_values(self._record), *pack(self._response))
        self._attempts = [attempt_values(attempt) for attempt in self._record.attempts]
        self._paths = paths_of(self._record)
        if self._record.plan:
            self._plan = json_text(self._record.plan), self._record.part_of
        self._trace = finish_trace(self._record)

    def apply(self, connection: Connection) -> Booked:
        seq = self._calls.seq(connection, self._record.id)
        if seq is None:
            raise _unknown(self._record.id)
        self._end(connection, seq)
        return self._calls.till.settle(connection, seq, self._record.id, self._bill)

    def committed(self) -> None:
        self._calls.seqs.pop(self._record.id, None)

    def _end(self, connection: Connection, seq: int) -> None:
        try:
            connection.execute(INSERT_OUTCOME, (seq, *self._values))
        except sqlite3.IntegrityError as error:
            self._calls.seqs.pop(self._record.id, None)  # another process took this one for dead and closed the call
            self._calls.till.forget(self._record.id)
            self._tell(connection, seq)  # what is known of an approved action counts, however late it is known
            raise _ended_before(self._record.id) from error
        for values in self._attempts:
            connection.execute(INSERT_ATTEMPT, (seq, *values))
        for values in self._paths:
            connection.execute(_INSERT_PATH, (seq, *values))
        if self._plan:
            connection.execute(_INSERT_PLAN, (seq, *self._plan))
        if self._trace is not None:
            write_trace(connection, seq, self._trace)
        link(connection, seq, self._record)
        self._tell(connection, seq)

    def _tell(self, connection: Connection, seq: int) -> None:
        if self._record.approval_end:
            end(connection, seq, self._record, result=self._result, notify=self._calls.notify)


class Refuse(Finish):
    """A call that was never sent: intent and outcome at once."""

    __slots__ = ("_call_values", "_request")

    def __init__(self, calls: OpenCalls, record: CallRecord, request: bytes | None) -> None:
        super().__init__(calls, record, None)
        self._request = request
        self._call_values: Values = ()

    def prepare(self) -> None:
        super().prepare()
        self._call_values = (*call_values(self._record, None), *pack(self._request))
        self._trace = refusal_trace(self._record)
        if self._record.plan or self._record.part_of:
            self._plan = json_text(self._record.plan), self._record.part_of

    def apply(self, connection: Connection) -> Booked:
        self._end(connection, _insert_call(connection, self._calls.owner, self._call_values))
        return NOTHING_BOOKED


class SqliteJournal:
    """`Journal` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader, calls: OpenCalls) -> None:
        self._writer = writer
        self._reader = reader
        self._calls = calls

    async def begin(self, intent: Intent) -> Admitted | Short | Spent | Unclaimed:
        return await self._writer.write(Begin(self._calls, intent))

    async def dispatch(self, intent: DispatchIntent) -> Granted | Short:
        return await self._writer.write(Dispatch(self._calls, intent))

    async def finish(self, record: CallRecord, *, response: bytes | None, result: Result | None = None) -> Booked:
        return await self._writer.write(Finish(self._calls, record, response, result))

    async def refuse(self, record: CallRecord, *, request: bytes | None) -> None:
        await self._writer.write(Refuse(self._calls, record, request))

    async def calls(self, wanted: CallFilter) -> Sequence[Mapping[str, Any]]:
        return await self._reader.read(lambda connection: list_calls(connection, wanted))

    async def call(self, call_id: str) -> Mapping[str, Any] | None:
        return await self._reader.read(lambda connection: one_call(connection, call_id))

    async def decided(self, since_ns: int, after: str | None, limit: int) -> Sequence[DecidedCall]:
        return await self._reader.read(lambda connection: decided_calls(connection, since_ns, after, limit))


def _insert_call(connection: Connection, owner: int, values: Values) -> int:
    try:
        seq: int = connection.execute(_INSERT_CALL, (owner, *values)).lastrowid
    except sqlite3.IntegrityError as error:
        raise _recorded(str(values[0])) from error
    return seq


def _recorded(call_id: str) -> StoreError:
    return StoreError(f"call {call_id} was already recorded")


def _unknown(call_id: str) -> StoreError:
    return StoreError(f"call {call_id} is not on record; it must begin before it goes on")


def _ended_before(call_id: str) -> StoreError:
    return StoreError(f"call {call_id} already has its outcome; a call ends once")
