"""A streamed answer's way to its client: the gate that judges it, the meter of its money, and what becomes of it when it breaks off."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Self

from gateway.answer import answer_headers
from gateway.call import AttemptEnd, Call
from gateway.clock import Clock
from gateway.continuation import Heard, Onward
from gateway.dispatch import Dispatcher, Errand
from gateway.errors import AttemptFailed, CallError, InternalError, StoreUnavailable, UpstreamFailed, UpstreamTimeout
from gateway.keep_alive import KeepAlive, Line
from gateway.meter import meter_of
from gateway.progress import Progress, Tally, Trying
from gateway.race import Answered, let_go
from gateway.relay import Client, Outlet, Source, relay
from gateway.rulings import Rulings
from gateway.store.protocol import Budgets
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Dialect, StreamEncoder

_WAITING: Final = "waiting"


class Way:
    """A client's side of a stream: `open` begins the answer, and from then on it is never silent for long. To be closed, as a context.

    `contiguous`: the client's own helper counts tool calls by their place, and fails where an index is left out. Where nothing was said for
    `every_s` seconds a comment is.
    """

    __slots__ = ("_begun", "_case", "_client", "_content_type", "_every_s", "_hushed", "_keep_alive", "_line", "contiguous", "encoder")

    def __init__(  # noqa: PLR0913 - what a call, its client and its gateway each say of it
        self, case: Progress, call: Call, dialect: Dialect, client: Client, keep_alive: KeepAlive, *, every_s: float, contiguous: bool,
    ) -> None:
        self._keep_alive = keep_alive
        self.encoder: StreamEncoder = dialect.encoder(call)
        self.contiguous = contiguous
        self._content_type = dialect.stream_content_type
        self._every_s = every_s
        self._case = case
        self._client = client
        self._line: Line | None = None
        self._begun = False
        self._hushed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    async def open(self) -> None:
        """Begin the answer, where it has not begun."""
        if not self._begun:
            self._begun = True
            self._case.encoder = self.encoder
            await self._client.open(200, answer_headers(self._case), self._content_type)
            if not self._hushed:
                self._line = self._keep_alive.add(self._client.write, self.encoder.comment(_WAITING), self._every_s)

    async def write(self, data: bytes) -> None:
        """Send bytes of the answer; waits while the client is slow."""
        if self._line is None:
            raise InternalError("A stream is written to before it was opened.")
        await self._line.write(data)

    def close(self) -> None:
        """The end of the answer is written by who has closed its books."""
        self._hushed = True
        if self._line is not None:
            self._keep_alive.drop(self._line)


@dataclass(frozen=True, slots=True)
class Streaming:
    """Relays streams up to their end, which is held back until the books are closed. One per gateway."""

    dispatcher: Dispatcher
    rulings: Rulings
    budgets: Budgets
    clock: Clock
    scrub: Callable[[str], str]
    scrub_bytes: Callable[[bytes], bytes] = field(repr=False)

    async def early(self, errand: Errand, way: Way, answer: Awaitable[Answered], begun: Callable[[], None]) -> Answered:
        """Wait for an answer; where it takes too long for whoever listens in between, the stream begins with a comment, and `begun` hears
        of it.
        """
        waiting = asyncio.ensure_future(answer)
        given = False
        try:
            done, _ = await asyncio.wait({waiting}, timeout=errand.route.early_s)
            if not done:
                await way.open()
                begun()
                await way.write(way.encoder.comment(_WAITING))
            await asyncio.wait({waiting})
            given = True
            return waiting.result()
        finally:
            if not given:
                let_go(waiting)

    async def relay(self, errand: Errand, source: Source, way: Way) -> tuple[Source, bytes]:
        """Relay a stream; returns the one that ended it, and the bytes that go out with the end.

        Raises:
            UpstreamFailed: the stream broke off, and nobody went on with it.
            CallError: a rule ends the answer.
            ClientGone: the client closed its connection.
        """
        case = errand.case
        case.tally = tally = Tally(Assembler() if case.bodies != "none" or case.claim is not None else None)
        ended = False
        try:
            gate = await self.rulings.gate(case, errand.snapshot, errand.call, contiguous=way.contiguous)
            await way.open()
            heard = Heard() if errand.route.continues and Heard.can(errand.call) else None
            outlet = Outlet(gate, tally, lambda event: self.scrub_bytes(way.encoder.event(event)), heard=heard.add if heard else None)
            while True:
                trying = case.trying  # none where a cascade gives an answer that it went on from: that one is paid for
                outlet.meter = meter_of(case, trying, self.budgets) if trying is not None else None
                try:
                    rest = await relay(source, outlet, way)
                    break
                except AttemptFailed as failure:
                    source = await self._onward(errand, trying, source, heard, failure)
            if trying is not None and outlet.cut_short:
                rest += await self._cut_short(case, trying, source, outlet)
            ended = True
        except StoreUnavailable:  # more money could not be asked for
            case.end_attempts(AttemptEnd.CUT, ended_ns=self.clock.now_ns(), status=source.status)
            raise
        except CallError:  # a rule's: the provider has done its work
            case.withheld = case.withheld or bool(case.open)
            case.end_attempts(AttemptEnd.SUCCEEDED, ended_ns=self.clock.now_ns(), status=source.status)
            raise
        finally:
            case.finish_reasons = tuple(map(self.scrub, tally.finish_reasons))
            if not ended:
                source.abort()  # the provider stops working, and billing, at once
        return source, rest

    async def _onward(self, errand: Errand, broken: Trying | None, source: Source, heard: Heard | None, failure: AttemptFailed) -> Source:
        """Another stream that goes on where this one broke off. Raises `UpstreamFailed` where there is none."""
        failure.scrub(self.scrub)
        source.abort()
        if broken is not None:
            errand.case.end_attempt(broken, AttemptEnd.CUT, ended_ns=self.clock.now_ns(), failure=failure)
        if broken is not None and heard is not None and heard.resumable(errand.call):
            further = await self.dispatcher.resume(heard.onward(errand), broken, failure)
            if further is not None:
                return Onward(further, heard.head)
        broke = UpstreamTimeout if failure.cause.startswith("timeout:") else UpstreamFailed
        raise broke(f"The answer broke off: {failure.told}.") from failure

    async def _cut_short(self, case: Progress, trying: Trying, source: Source, outlet: Outlet) -> bytes:
        case.cut_short = True
        case.account = case.account or ((case.spending and case.spending.tightest) or ("",))[0]
        source.abort()
        meter = outlet.meter
        return b"" if meter is None else await outlet.end(meter.last(trying.receipt.stated or case.estimated_so_far(trying)))
