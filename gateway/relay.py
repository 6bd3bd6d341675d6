"""A streamed answer on its way to the client: back-pressure from the client's socket, the end held back until the books are closed."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.errors import AttemptFailed
from gateway.gate import Gate
from gateway.meter import Meter
from gateway.progress import Tally
from gateway.upstream.protocol import HttpAnswer
from gateway.wire.protocol import Event, StreamDecoder

_REST_S: Final = 1.0


class Writer(Protocol):
    """Where relayed bytes go."""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client is slow. Raises `ClientGone` when there is nobody to send to."""
        ...


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A streamed answer whose first valid event has arrived, so that it may be shown to the client."""

    answer: HttpAnswer
    decoder: StreamDecoder
    first: Event


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stream may do: `idle_s` seconds of silence between two pieces, `most_bytes` in all."""

    idle_s: float
    most_bytes: int


async def first_event(answer: HttpAnswer, decoder: StreamDecoder, first_token_s: float) -> Event:
    """The first valid event. Raises `AttemptFailed`, `timeout:first_token` where there is none in time."""
    try:
        async with asyncio.timeout(first_token_s):
            event = None
            while event is None:
                event, _size = await _read_on(answer, decoder, 2 * first_token_s)  # the deadline above is the one that counts
    except TimeoutError as error:
        raise AttemptFailed("timeout:first_token", f"no event within {first_token_s:g} s", retryable=True) from error
    return event


@dataclass(slots=True)
class Outlet:
    """What a relayed event goes through: the meter of its money, the gate that judges it, where there are any, the record, its bytes."""

    gate: Gate | None
    tally: Tally
    encode: Callable[[Event], bytes]
    meter: Meter | None = None
    cut_short: bool = False  # the money is used up: nothing more of the provider's is passed on

    async def pass_on(self, event: Event) -> list[bytes]:
        """The bytes that may go out after this event."""
        self.tally.meter(event)
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


async def relay(stream: OpenStream, outlet: Outlet, writer: Writer, limits: Limits) -> bytes:
    """Pass events on until the upstream ends the stream; returns the bytes not yet sent, which go out with the end.

    Raises:
        AttemptFailed: the stream was cut, stalled, malformed, too large, or carried an error.
        ClientGone: the client closed its connection.
        CallError: a rule ends the answer.
    """
    event: Event | None = stream.first
    decoder, answer = stream.decoder, stream.answer
    size = 0
    while True:
        ready: list[bytes] = []
        try:
            while event is not None:
                if event.done:
                    outlet.tally.meter(event)
                    return b"".join(ready + await outlet.rest())
                ready += await outlet.pass_on(event)
                if outlet.cut_short:
                    return b"".join(ready)
                event = decoder.next_event()
        except AttemptFailed:  # what came whole before it broke is the client's
            if data := b"".join(ready):
                await writer.write(data)
            raise
        if data := b"".join(ready):
            await writer.write(data)
        event, more = await _read_on(answer, decoder, limits.idle_s)
        size += more
        if size > limits.most_bytes:
            raise AttemptFailed("too_large", f"the stream is over {limits.most_bytes} bytes", retryable=False)


async def _read_on(answer: HttpAnswer, decoder: StreamDecoder, timeout_s: float) -> tuple[Event | None, int]:
    """The next event, if the next bytes complete one, and how many bytes those were."""
    data = await answer.chunk(timeout_s=timeout_s)
    decoder.feed(data)
    event = decoder.next_event()
    if event is None and not data:  # an adapter of one's own that says nothing of the end must not be asked for ever
        raise AttemptFailed("cut", "the stream ended before its end", retryable=True)
    return event, len(data)


async def read_to_end(answer: HttpAnswer) -> None:
    """Take what is left of an answer whose last event has come, so that its connection can be used again. Gives up after a second."""
    try:
        async with asyncio.timeout(_REST_S):
            while await answer.chunk(timeout_s=2 * _REST_S):
                pass
    except (AttemptFailed, TimeoutError):
        answer.abort()
    finally:
        answer.release()
