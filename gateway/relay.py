"""Streamed answers on their way to the client: where events come from, what they pass through, back-pressure from the client's socket."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import orjson

from gateway.call import Reply, Usage
from gateway.clock import Clock
from gateway.errors import AttemptFailed
from gateway.gate import Gate
from gateway.meter import Meter
from gateway.progress import Receipt, Tally
from gateway.upstream.protocol import HttpAnswer
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event, StreamDecoder

_REST_S: Final = 1.0
_MOST_HELD: Final = 200_000  # events of a stream that is looked at as a whole
_LARGEST_HELD: Final = 16 * 1024 * 1024  # bytes of it
_MOST_UNSAID: Final = 64  # events before the first that says something


class Writer(Protocol):
    """Where relayed bytes go."""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client is slow. Raises `ClientGone` when there is nobody to send to."""
        ...


class Client(Protocol):
    """The way back. Each verb raises `ClientGone` when there is nobody to send to."""

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str | None = None) -> None:
        """Send a whole answer; without a content type JSON, or an error of this client's kind."""
        ...

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a streamed answer."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer; waits while the client is slow."""
        ...

    async def end(self, data: bytes) -> None:
        """Send the last part of a streamed answer and close it."""
        ...


class Source(Protocol):
    """A streamed answer that may be shown to the client. Its last event is `done`."""

    @property
    def status(self) -> int:
        """The status that its provider answered with."""
        ...

    def take(self) -> Event | None:
        """The next event that is there, None while more has to be waited for. Raises `AttemptFailed` where the stream broke."""
        ...

    async def more(self) -> None:
        """Wait until there is more. Raises `AttemptFailed`."""
        ...

    def abort(self) -> None:
        """Have the provider stop working, and billing, at once."""
        ...

    async def to_end(self) -> None:
        """Take what comes after the last event, so that the connection can be used again."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stream may do: `idle_s` seconds of silence between two pieces, `most_bytes` in all."""

    idle_s: float
    most_bytes: int


class LiveStream:
    """A streamed answer as it comes. What it brings is noted in the receipt of its attempt."""

    __slots__ = ("_ahead", "_answer", "_clock", "_decoder", "_limits", "_quiet_s", "_receipt", "size", "status")

    def __init__(self, answer: HttpAnswer, decoder: StreamDecoder, receipt: Receipt, limits: Limits, clock: Clock) -> None:
        self._answer = answer
        self._decoder = decoder
        self._receipt = receipt
        self._limits = limits
        self._clock = clock
        self.size = 0
        self._ahead: deque[Event] = deque()
        self._quiet_s: float | None = None  # since when no event has come; bytes that make none do not count
        self.status = answer.status

    async def begin(self, timeout_s: float) -> None:
        """Wait for the first event that says something: until then another target may still answer unseen. Raises `AttemptFailed`."""
        said = False
        while not said:
            event = self._next() or await self._read(timeout_s)
            if event is None:
                continue
            said = bool(self._receipt.pieces or event.finish_reason or event.done or event.usage)
            if said or len(self._ahead) < _MOST_UNSAID:  # a server's heartbeat has no end
                self._ahead.append(event)
        self._receipt.answered = True

    def take(self) -> Event | None:
        return self._ahead.popleft() if self._ahead else self._next()

    async def more(self) -> None:
        now_s, idle_s = self._clock.monotonic(), self._limits.idle_s
        quiet_s = self._quiet_s = now_s if self._quiet_s is None else self._quiet_s
        left_s = quiet_s + idle_s - now_s
        if left_s <= 0:
            raise AttemptFailed("timeout:idle", f"bytes came, and nothing was said within {idle_s:g} s", retryable=True)
        try:
            last = await self._read(left_s)
        except AttemptFailed as failure:
            if failure.cause != "timeout:idle":
                raise
            raise AttemptFailed(failure.cause, f"nothing was said within {idle_s:g} s", retryable=True) from failure
        if last is not None:
            self._ahead.append(last)
        gap_s = self._clock.monotonic() - quiet_s
        if self._receipt.largest_gap_s is None or gap_s > self._receipt.largest_gap_s:
            self._receipt.largest_gap_s = gap_s

    def abort(self) -> None:
        self._answer.abort()

    async def to_end(self) -> None:
        try:
            while await self._answer.chunk(timeout_s=self._limits.idle_s):
                pass
        except AttemptFailed:
            self._answer.abort()
        finally:
            self._answer.release()

    def _next(self) -> Event | None:
        event = self._decoder.next_event()
        if event is not None:
            self._quiet_s = None
            self._receipt.meter(event)
        return event

    async def _read(self, timeout_s: float) -> Event | None:
        """Wait for bytes; the last event, where they are the end."""
        data = await self._answer.chunk(timeout_s=timeout_s)
        self._decoder.feed(data)
        self.size += len(data)
        if self.size > self._limits.most_bytes:
            raise AttemptFailed("too_large", f"the stream is over {self._limits.most_bytes} bytes", retryable=False)
        if data:
            return None
        event = self._next()
        if event is None:  # an adapter of one's own that says nothing of the end must not be asked for ever
            raise AttemptFailed("cut", "the stream ended before its end", retryable=True)
        return event


@dataclass(slots=True)
class HeldStream:
    """A streamed answer that was read to its end before any of it is shown; `live` is what it came from."""

    live: LiveStream
    events: deque["_Kept"]

    @property
    def status(self) -> int:
        return self.live.status

    def take(self) -> Event | None:
        return self.events.popleft().event() if self.events else None

    async def more(self) -> None:
        raise AttemptFailed("cut", "the stream ended before its end", retryable=False)

    def abort(self) -> None:
        self.live.abort()

    async def to_end(self) -> None:
        await self.live.to_end()


@dataclass(frozen=True, slots=True)
class _Kept:
    """An event that is held, as bytes: as an object it takes twenty times as much."""

    body: bytes | None
    usage: Usage | None
    finish_reason: str | None
    done: bool

    def event(self) -> Event:
        return Event(None if self.body is None else orjson.loads(self.body), self.usage, self.finish_reason, self.done)


def kept(event: Event) -> _Kept:
    """An event as it is held. The bytes are copied: those that come from the serializer stand in a buffer of some kilobytes each."""
    body = None if event.body is None else bytes(memoryview(orjson.dumps(event.body)))
    return _Kept(body, event.usage, event.finish_reason, event.done)


async def hold(stream: LiveStream, meter: Meter | None) -> tuple[HeldStream, Reply]:
    """Read a stream to its end: the same stream, to be shown if it will do, and the plain answer that it amounts to.

    Raises:
        AttemptFailed: it broke, is too large to be held, or is longer than there is money for.
    """
    events: deque[_Kept] = deque()
    whole = Assembler()
    usage, reasons = None, []
    while not (events and events[-1].done):
        event = stream.take()
        if event is None:
            await stream.more()
            continue
        events.append(kept(event))
        if len(events) > _MOST_HELD or stream.size > _LARGEST_HELD:
            raise AttemptFailed("too_large", "the answer is too long to be held and looked at as a whole", retryable=False)
        if event.body is not None:
            whole.add(event.body)
        if event.finish_reason:
            reasons.append(event.finish_reason)
        usage = event.usage or usage
        if meter is not None and not await meter.covers(event):
            raise AttemptFailed("too_long", "the answer is longer than there is money for", retryable=False)
    body = whole.body()
    if body.get("lockgate_truncated"):
        raise AttemptFailed("too_large", "the answer is too long to be held and looked at as a whole", retryable=False)
    return HeldStream(stream, events), Reply(body, usage, tuple(reasons))


@dataclass(slots=True)
class Outlet:
    """What a relayed event goes through: the meter of its money, the gate that judges it, where there are any, the record, its bytes."""

    gate: Gate | None
    tally: Tally
    encode: Callable[[Event], bytes]
    meter: Meter | None = None
    cut_short: bool = False  # the money is used up: nothing more of the provider's is passed on
    heard: Callable[[Event], None] | None = field(default=None, repr=False)  # hears what the provider says, before the gate does

    async def pass_on(self, event: Event) -> list[bytes]:
        """The bytes that may go out after this event."""
        if self.heard is not None:
            self.heard(event)
        if self.meter is not None and not await self.meter.covers(event):
            self.cut_short = True
            return []
        return await self._passed(event)

    async def end(self, events: Sequence[Event]) -> bytes:
        """The bytes of events of our own, and of what was held until the stream's end, in place of the provider's."""
        return b"".join([data for event in events for data in await self._passed(event)] + await self.rest())

    async def _passed(self, event: Event) -> list[bytes]:
        passed = [event] if self.gate is None else await self.gate.take(event)
        return [self._out(each) for each in passed]

    async def rest(self) -> list[bytes]:
        """The bytes that were held until the stream's end."""
        return [] if self.gate is None else [self._out(each) for each in await self.gate.end()]

    def _out(self, event: Event) -> bytes:
        self.tally.add(event)
        return self.encode(event)


async def relay(source: Source, outlet: Outlet, writer: Writer) -> bytes:
    """Pass events on until the upstream ends the stream; returns the bytes not yet sent, which go out with the end.

    Raises:
        AttemptFailed: the stream was cut, stalled, malformed, too large, or carried an error.
        ClientGone: the client closed its connection.
        CallError: a rule ends the answer.
    """
    while True:
        ready: list[bytes] = []
        try:
            while (event := source.take()) is not None:
                if event.done:
                    return b"".join(ready + await outlet.rest())
                ready += await outlet.pass_on(event)
                if outlet.cut_short:
                    return b"".join(ready)
        except AttemptFailed:  # what came whole before it broke is the client's
            if data := b"".join(ready):
                await writer.write(data)
            raise
        if data := b"".join(ready):
            await writer.write(data)
        await source.more()


async def let_rest(source: Source) -> None:
    """Take what is left of an answer whose last event has come, so that its connection can be used again. Gives up after a second."""
    try:
        async with asyncio.timeout(_REST_S):
            await source.to_end()
    except TimeoutError:
        source.abort()
