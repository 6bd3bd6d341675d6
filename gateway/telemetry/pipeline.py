"""What becomes of a record after its call: a log line, metrics, spans, made by a thread of its own.

A thread and not a task, because the place where log lines go may block for ever and no call may wait for it. It works
in short slices with pauses, so that the event loop never waits long for the interpreter, and gathers a batch before it
wakes. Nothing here may hold up or fail a call: `publish` appends to a bounded queue; what does not fit is dropped and
counted.
"""

import asyncio
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from gateway import __version__
from gateway.call import CallRecord
from gateway.clock import Clock
from gateway.core.approval import State, Ticket
from gateway.core.money import usd
from gateway.telemetry.clean import Cleaner
from gateway.telemetry.log_lines import LEVELS, LINES, call_fields, call_level, event_fields
from gateway.telemetry.metrics import Metrics, RuleCounts
from gateway.telemetry.settings import OtlpSettings

if TYPE_CHECKING:
    from gateway.telemetry.spans import Spans

_SLICE: Final = 16  # entries at a stretch: about half a millisecond
_PAUSE_S: Final = 0.000_5  # between two slices, for the event loop
_GATHER_S: Final = 0.05  # how long an entry may wait for company: a wake-up costs more than a record
_WRITE_BYTES: Final = select.PIPE_BUF  # such a write to a pipe is atomic: the lines of several workers do not mix

# What an absurd value in a record can raise, and a log file or a pipe that is gone.
_VIEW_ERRORS: Final = (TypeError, ValueError, ArithmeticError, OSError)


@dataclass(frozen=True, slots=True)
class _Event:
    level: str
    name: str
    now_ns: int
    fields: Mapping[str, object]


_Entry: TypeAlias = CallRecord | _Event | threading.Event  # the last is a mark: set when everything before it is done


class Telemetry:
    """Log lines, metrics and spans of one gateway. `publish`, `event` and the gauges never wait and never raise.

    `write` gets whole lines, several at a time, in telemetry's own thread; `scrub` takes secrets out of a text;
    `log_format` and `log_level` are names in `LINES` and `LEVELS`; `resource` describes this gateway on its spans;
    `queue` bounds what waits.
    """

    def __init__(  # noqa: PLR0913 - the composition root names every part it puts in
        self, *, log_format: str, log_level: str, write: Callable[[bytes], None], scrub: Callable[[str], str],
        clock: Clock, otlp: OtlpSettings | None = None, resource: Mapping[str, str] | None = None, queue: int = 10_000,
    ) -> None:
        self._clock = clock
        self._write = write
        self._clean = Cleaner(scrub)
        self._level = LEVELS[log_level]
        self._line = LINES[log_format]
        self._otlp = otlp
        self._resource = {"service.name": "lockgate", "service.version": __version__, **(resource or {})}
        self._metrics = Metrics(__version__)
        self._views: list[tuple[str, Callable[[CallRecord], None]]] = [("metrics", self._metrics.count)]
        self._spans: Spans | None = None
        self._bound = queue
        self._queue: deque[_Entry] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lockgate-telemetry", daemon=True)

    def publish(self, record: CallRecord) -> None:
        """Hand over the record of a call that ended."""
        self._put(record)

    def event(self, level: str, name: str, **fields: object) -> None:
        """Log something that is not a call. `level` is a name in `LEVELS`, `name` a fixed word such as `draining`."""
        if LEVELS[level] >= self._level:
            self._put(_Event(level, name, self._clock.now_ns(), fields))

    def serving(self, *, bundle: str, routes: Mapping[str, str]) -> None:
        """These rules and routes are in force from now on, at start and after a reload: what a route is called, and its own name."""
        self._metrics.serving(bundle, routes)

    def reloaded(self, *, ok: bool) -> None:
        """The deployment's files were loaded again, or could not be: then the last good ones stay in force."""
        self._metrics.reloaded(ok=ok)

    def soft_limit(self, account: str, soft_nusd: int, *, call: str) -> None:
        """An account has just reached its soft limit, by a call of this id."""
        self._metrics.soft_limit(account)
        self.event("warning", "budget_soft_limit", account=account, call=call, soft_usd=usd(soft_nusd))

    def overrun(self, accounts: Sequence[str], beyond_nusd: int, *, call: str) -> None:
        """A call cost more than was set aside for it on these accounts."""
        self._metrics.overrun(accounts, beyond_nusd)
        self.event("warning", "budget_overrun", accounts=list(accounts), call=call, beyond_usd=usd(beyond_nusd))

    def retries_spent(self, route: str) -> None:
        """A further attempt of this route was not made: its retry budget is used up."""
        self._metrics.retries_spent(route)

    def part_not_made(self, kind: str, reason: str) -> None:
        """A call of the gateway's own was not made: a `mirror`, a `classifier` or a `verify`, for a reason that `METRICS` names."""
        self._metrics.part_not_made(kind, reason)

    def breaker(self, target: str, state: str) -> None:
        """The breaker of a target is in this state now (`core/breaker.py`)."""
        self._metrics.breaker(target, state)

    def breaker_tripped(self, target: str) -> None:
        """The breaker of a target has opened, by what this process has seen."""
        self._metrics.breaker_tripped(target)

    def in_flight(self, calls: int) -> None:
        """So many calls are being handled."""
        self._metrics.in_flight(calls)

    def waiting(self, calls: int) -> None:
        """So many calls wait for a place."""
        self._metrics.waiting(calls)

    def shed(self, reason: str) -> None:
        """A call was turned away because the house was full."""
        self._metrics.shed(reason)

    def notice(self, channel: str, outcome: str) -> None:
        """A notice to people was `delivered`, `failed` (it is tried again), is `dead`, or was `dropped` because nobody had to know."""
        self._metrics.notice(channel, outcome)

    def approval(self, what: str, ticket: Ticket, **fields: object) -> None:
        """Something has happened to an approval. Its line names it, and holds no word of what is asked for."""
        self.event("info", f"approval_{what}", ticket=ticket.id, rule=ticket.rule, kind=ticket.kind, key=ticket.principal,
                   route=ticket.route, tool=ticket.tool, **fields)

    def approval_now(self, ticket: Ticket, author: str = "") -> None:
        """An approval was decided, has expired, or others are asked from now on. `author`: who did so beside those who vote."""
        if ticket.state is State.PENDING:
            self.approval("asked_again", ticket)
            return
        outcome, seconds = outcome_of(ticket), None
        if ticket.decided_ns is not None and ticket.votes and ticket.votes[-1].at_ns == ticket.decided_ns:  # not what came after it
            seconds = (ticket.decided_ns - ticket.created_ns) / 1e9
        self._metrics.decided(ticket.rule, outcome, seconds if outcome in ("approved", "denied") else None)
        what = "expired" if ticket.state is State.EXPIRED else "decided"
        self.approval(what, ticket, outcome=outcome, **({"by": author} if author else {}))

    def pending(self, approvals: int) -> None:
        """So many approvals wait for people, of all processes."""
        self._metrics.pending(approvals)

    def metrics(self) -> bytes:
        """Every metric in Prometheus' text format, as counted so far: the last records may still wait."""
        return self._metrics.render()

    async def scrape(self) -> bytes:
        """Every metric, all records published before counted in; for `/metrics`. Rendered off the event loop."""
        return await asyncio.to_thread(self._scrape)

    async def rule_counts(self) -> RuleCounts:
        """How often each rule has contributed, all records published before counted in. Gathered off the event loop."""
        return await asyncio.to_thread(self._count_rules)

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait, not on an event loop's thread, until all that was handed over has become lines, counts and spans.

        False where telemetry does not run or the time was up.
        """
        if not self._thread.is_alive():
            return False
        mark = threading.Event()
        self._queue.append(mark)
        self._hurry.set()
        self._wake.set()
        return mark.wait(timeout_s)

    async def start(self) -> None:
        """Begin to work. Raises `SetupError` where spans are wanted and the exporter is not installed."""
        if self._otlp is not None:
            self._spans = spans = self._open_spans(self._otlp)
            self._views.append(("spans", lambda record: spans.add(record, self._metrics.route(record))))
        self._thread.start()

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Write, count and send what waits, then stop; what comes later is dropped. False if the time was up first."""
        self._bound = 0
        if self._thread.ident is None:
            return True
        self._closing.set()
        self._hurry.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _put(self, entry: _Entry) -> None:
        if len(self._queue) >= self._bound:
            self._metrics.dropped("queue")
            return
        self._queue.append(entry)
        if not self._wake.is_set():
            self._wake.set()

    def _open_spans(self, otlp: OtlpSettings) -> "Spans":
        from gateway.telemetry.spans import Spans, otlp_exporter  # noqa: PLC0415 - 100 ms to import, and few want it

        dropped = partial(self._metrics.dropped, "spans")
        return Spans(otlp_exporter(otlp), self._resource, self._clean, dropped)

    def _scrape(self) -> bytes:
        self.flush()
        return self.metrics()

    def _count_rules(self) -> RuleCounts:
        self.flush()
        return self._metrics.rule_counts()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()  # for ever: an idle gateway uses no CPU, and `close` wakes it
            self._hurry.wait(_GATHER_S)
            self._hurry.clear()
            self._wake.clear()  # before the queue is emptied: what comes while it is being emptied wakes again
            while self._queue:
                self._work()
                self._closing.wait(_PAUSE_S)
        while self._queue:  # what came between the last look and the end
            self._work()
        if self._spans is not None:
            self._spans.close()

    def _work(self) -> None:
        lines: list[bytes] = []
        marks: list[threading.Event] = []
        for _ in range(min(_SLICE, len(self._queue))):
            entry = self._queue.popleft()
            if isinstance(entry, threading.Event):
                marks.append(entry)
            else:
                self._log(entry, lines)
                if isinstance(entry, CallRecord):
                    self._show(entry)
        self._write_out(lines)
        for mark in marks:
            mark.set()

    def _log(self, entry: CallRecord | _Event, lines: list[bytes]) -> None:
        try:
            if isinstance(entry, _Event):
                lines.append(self._line(event_fields(entry.level, entry.name, entry.now_ns, entry.fields, self._clean)))
            elif LEVELS[level := call_level(entry)] >= self._level:
                lines.append(self._line(call_fields(entry, level, self._clean)))
        except _VIEW_ERRORS:
            self._metrics.dropped("log")

    def _show(self, record: CallRecord) -> None:
        for view, make in self._views:
            try:
                make(record)
            except _VIEW_ERRORS:
                self._metrics.dropped(view)

    def _write_out(self, lines: list[bytes]) -> None:
        batch: list[bytes] = []
        size = 0
        for line in [*lines, b""]:
            if batch and (not line or size + len(line) > _WRITE_BYTES):
                try:
                    self._write(b"".join(batch))
                except _VIEW_ERRORS:
                    self._metrics.dropped("log", len(batch))
                batch, size = [], 0
            batch.append(line)
            size += len(line)


def outcome_of(ticket: Ticket) -> str:
    """What became of an approval's question: `approved`, `denied`, `withdrawn`, `edited` (another stands in its place), `expired`, or
    `unused`: nobody came in time for what was approved.
    """
    if ticket.state is State.EXPIRED and ticket.decided_ns is not None:
        return "unused"
    return "edited" if ticket.state is State.WITHDRAWN and ticket.replaced_by else ticket.state.value


def fd_writer(fd: int, *, patience_s: float = 1.0) -> Callable[[bytes], None]:
    """A `write` for `Telemetry` that goes to a file descriptor, such as standard output's.

    Raises `BlockingIOError` where the descriptor does not block and its reader has stalled for `patience_s`.
    """

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest):]
            except BlockingIOError:  # whoever made the pipe made it so; it is shared, and not ours to change
                if not select.select([], [fd], [], patience_s)[1]:
                    raise

    return write
