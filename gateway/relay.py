"""A streamed answer on its way to the client: back-pressure from the client's socket, the end held back until the books are closed."""

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.errors import AttemptFailed
from gateway.progress import Tally
from gateway.upstream.protocol import HttpAnswer
from gateway.wire.protocol import Event, StreamDecoder, StreamEncoder

_REST_S: Final = 1.0


class Writer(Protocol):
    """Where relayed bytes go."""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client is slow. Raises `ClientGone` when there is nobody to send to."""
        ...


@dataclass(slots=True)
class OpenStream:
    """A streamed answer whose first valid event has arrived, so that it may be shown to the client."""

    answer: HttpAnswer
    decoder: StreamDecoder
    first: Event


async def relay(stream: OpenStream, encoder: StreamEncoder, writer: Writer, tally: Tally, *, idle_s: float) -> bytes:
    """Pass events on until the upstream ends the stream; returns the bytes not yet sent, which go out with the end.

    Raises:
        AttemptFailed: the stream was cut, stalled longer than `idle_s`, malformed, or carried an error.
        ClientGone: the client closed its connection.
    """
    event: Event | None = stream.first
    decoder, answer = stream.decoder, stream.answer
    while True:
        ready: list[bytes] = []
        try:
            while event is not None:
                tally.add(event)
                if event.done:
                    return b"".join(ready)
                ready.append(encoder.event(event))
                event = decoder.next_event()
        except AttemptFailed:  # what came whole before it broke is the client's
            if data := b"".join(ready):
                await writer.write(data)
            raise
        if data := b"".join(ready):
            await writer.write(data)
        decoder.feed(await answer.chunk(timeout_s=idle_s))
        event = decoder.next_event()


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
