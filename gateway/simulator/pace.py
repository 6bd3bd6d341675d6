"""The pace of long streams: thousands of them at a few tokens a second share their waits, so that each costs little more than its bytes."""

import asyncio
import math
from typing import Final, Protocol

from gateway.clock import Clock
from gateway.simulator.answer import Frame
from gateway.simulator.script import Steady

_SLOT_S: Final = 0.005  # chunks that are due within the same one go out together, at its end
_ROUNDING: Final = 1e-6  # of a slot: what a sum of floats may be above a whole one


class Wire(Protocol):
    """What a stream is written to."""

    def put(self, frame: Frame) -> bool:
        """Send a chunk; False where `drained` is to be awaited. Raises ConnectionResetError where the client has gone."""
        ...

    async def drained(self) -> None:
        """Wait until more may be put."""
        ...


class Pacer:
    """Sends the steady parts of all streams of a simulator. A chunk is up to 5 ms late, the pace of a stream is exact."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._slots: dict[int, list[_Stream]] = {}
        self._waits: set[asyncio.Task[None]] = set()

    async def send(self, wire: Wire, step: Steady) -> None:
        """Send all of a step. Raises what the wire raises."""
        stream = _Stream(wire, step)
        stream.due_s = self.clock.monotonic() + step.every_s
        while stream.frame is not None:  # once, and again whenever the client has kept it waiting
            stream.turn = asyncio.get_running_loop().create_future()
            self._queue(stream)
            await stream.turn
            await wire.drained()
            stream.due_s = max(stream.due_s, self.clock.monotonic())

    def _queue(self, stream: "_Stream") -> None:
        slot = math.ceil(stream.due_s / _SLOT_S - _ROUNDING)
        waiting = self._slots.get(slot)
        if waiting is None:
            waiting = self._slots[slot] = []
            wait = asyncio.create_task(self._wait(slot))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)
        waiting.append(stream)

    async def _wait(self, slot: int) -> None:
        await self.clock.sleep(max(0.0, slot * _SLOT_S - self.clock.monotonic()))
        for stream in self._slots.pop(slot):
            if stream.goes_on():
                self._queue(stream)

    def close(self) -> None:
        """Wait no more. Whoever awaits `send` is ended by its owner."""
        for wait in self._waits:
            wait.cancel()


class _Stream:
    """One steady part: its next frame, when that is due, and the future that its task waits on."""

    __slots__ = ("_frames", "_wire", "due_s", "every_s", "frame", "turn")

    def __init__(self, wire: Wire, step: Steady) -> None:
        self._wire = wire
        self._frames = step.frames
        self.every_s = step.every_s
        self.due_s = 0.0
        self.frame = next(self._frames, None)
        self.turn: asyncio.Future[None]

    def goes_on(self) -> bool:
        """Send the frame that is due. False where there is nothing more to queue: at the end, behind a slow client, without one."""
        if self.turn.done() or self.frame is None:  # its task was cancelled
            return False
        try:
            flows = self._wire.put(self.frame)
        except ConnectionResetError as error:
            self.turn.set_exception(error)
            return False
        self.frame = next(self._frames, None)
        self.due_s += self.every_s
        if flows and self.frame is not None:
            return True
        self.turn.set_result(None)
        return False
