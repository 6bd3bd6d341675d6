"""Comments into streams that are silent: proxies between cut what they hear nothing of. One task looks after all streams of a gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from gateway.clock import Clock
from gateway.errors import ClientGone

_LOOKS: Final = 8  # how often a stream is looked at while it may be silent
_SHORTEST_S: Final = 0.02
_LONGEST_S: Final = 0.25  # a stream that is added meanwhile may have less patience than those before it


@dataclass(slots=True, eq=False)
class Line:
    """A client's stream. `comment` is sent when nothing else was for `every_s` seconds."""

    send: Callable[[bytes], Awaitable[None]]
    comment: bytes
    every_s: float
    clock: Clock
    last_s: float = 0.0
    speaking: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Send bytes of the answer; waits while the client is slow, or takes a comment."""
        if self.speaking is not None:
            await asyncio.wait({self.speaking})  # its own errors come back with this write
        self.last_s = self.clock.monotonic()
        await self.send(data)
        self.last_s = self.clock.monotonic()

    def look(self, now_s: float) -> None:
        """Send a comment if it is time, and nobody is writing."""
        if self.speaking is None and now_s - self.last_s >= self.every_s:
            self.last_s = now_s
            self.speaking = asyncio.get_running_loop().create_task(self._speak())

    async def _speak(self) -> None:
        try:
            await self.send(self.comment)
        except ClientGone:
            pass  # whoever writes next is told
        finally:
            self.speaking = None


class KeepAlive:
    """Owns the lines of all open streams."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: set[Line] = set()
        self._looking: asyncio.Task[None] | None = None

    def add(self, send: Callable[[bytes], Awaitable[None]], comment: bytes, every_s: float) -> Line:
        """A line for a stream that is open now; `drop` it when it is not any more."""
        line = Line(send, comment, every_s, self._clock, self._clock.monotonic())
        self._lines.add(line)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return line

    def drop(self, line: Line) -> None:
        """The stream is over, or its end is written elsewhere."""
        self._lines.discard(line)
        if line.speaking is not None:
            line.speaking.cancel()

    async def close(self) -> None:
        """End the task."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        """Look after the lines while there are any."""
        try:
            while self._lines:
                await self._clock.sleep(min(max(min(line.every_s for line in self._lines) / _LOOKS, _SHORTEST_S), _LONGEST_S))
                now_s = self._clock.monotonic()
                for line in self._lines:
                    line.look(now_s)
        finally:
            self._looking = None
