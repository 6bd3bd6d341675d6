"""Who may come in when the house is full: a bounded queue that is fair between principals. Knows nothing of what a call is.

A place that becomes free goes round the principals that wait, one each, and to the oldest call of the one whose turn it is. Every
step takes the same time however many wait.
"""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from gateway.clock import Clock, Ids
from gateway.errors import Overloaded

_Waiter: TypeAlias = asyncio.Future[str]  # what it is told: nothing where it has its place, else why it gets none

_MEMORY_S: Final = 5.0  # how far back the pace is remembered
_ENOUGH: Final = 16  # places that became free, before a pace is believed
_LONGEST_RETRY_S: Final = 30
_CROWDED: Final = "The gateway is handling as many calls as it may. Try again in a moment."
_STOPPING: Final = "This gateway is stopping. Try again: another one answers, or this one when it is back."


@dataclass(frozen=True, slots=True)
class House:
    """How many calls may be inside, how many may wait for a place, and for how long."""

    most_inside: int
    most_waiting: int
    longest_wait_s: float


class Witness(Protocol):
    """Who is told how it goes."""

    def waiting(self, calls: int) -> None:
        """So many calls wait now."""
        ...

    def shed(self, reason: str) -> None:
        """A call was turned away: `full`, `displaced`, `early`, `waited` or `stopping`."""
        ...


class Admission:
    """The door. `enter` takes a place or raises `Overloaded`; `leave` gives it back, exactly once for each `enter` that returned."""

    def __init__(self, clock: Clock, ids: Ids, witness: Witness) -> None:
        self.inside = 0
        self._clock = clock
        self._ids = ids
        self._witness = witness
        self._queue = _Queue()
        self._pace = _Pace()
        self._limits = House(0, 0, 0.0)
        self._closed = False

    def __repr__(self) -> str:
        return f"Admission(inside={self.inside}, waiting={self.waiting}{', closed' if self._closed else ''})"

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return self._queue.size

    async def enter(self, principal: str, limits: House, *, deadline_s: float | None) -> None:
        """Take a place, at once where one is free and nobody waits. `limits` hold from now on, for those who wait, too.

        Raises:
            Overloaded: there is none, or none in time: within `limits.longest_wait_s`, or `deadline_s` where the caller has less.
        """
        self._limits = limits
        if self._queue.size:
            self._hand_out()  # there may be more room than there was
        if self.inside < limits.most_inside and not self._queue.size and not self._closed:
            self.inside += 1
            return
        wait_s = limits.longest_wait_s if deadline_s is None else min(limits.longest_wait_s, deadline_s)
        reason = self._reason_against(principal, wait_s) or await self._wait(principal, wait_s)
        if reason:
            self._witness.shed(reason)
            raise Overloaded(_STOPPING if reason == "stopping" else _CROWDED, retry_after_s=self._retry_after_s())

    def leave(self) -> None:
        """Give a place back: it goes to the next who waits."""
        self.inside -= 1
        if self._queue.size:
            self._pace.freed(self._clock.monotonic())
            self._hand_out()

    def close(self) -> None:
        """Turn away whoever waits, and whoever comes."""
        self._closed = True
        while self._queue.size:
            _tell(self._queue.next(), "stopping")

    def _reason_against(self, principal: str, wait_s: float) -> str:
        """Why this call may not even wait; empty where it may. Makes room for it where that is fair."""
        limits = self._limits
        if self._closed:
            return "stopping"
        if limits.most_waiting == 0:
            return "full"
        if wait_s <= 0 or self._expected_s(self._queue.ahead_of(principal), limits.longest_wait_s) > wait_s:
            return "early"
        if self._queue.size >= limits.most_waiting:
            newest = self._queue.displace(principal)
            if newest is None:
                return "full"
            _tell(newest, "displaced")
        return ""

    async def _wait(self, principal: str, wait_s: float) -> str:
        """Wait for a place. Empty when it is taken, else why it is not to be had."""
        if not self._queue.size:
            self._pace.begin(self._clock.monotonic())
        loop = asyncio.get_running_loop()
        place: _Waiter = loop.create_future()
        self._queue.add(principal, place)
        self._witness.waiting(self._queue.size)
        timer = loop.call_later(wait_s, _tell, place, "waited")
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and not place.result():  # it was handed over in this very moment
                self.leave()
            raise
        finally:
            timer.cancel()
            self._queue.remove(principal, place)
            self._witness.waiting(self._queue.size)

    def _hand_out(self) -> None:
        """Give every free place to whose turn it is."""
        while self._queue.size and self.inside < self._limits.most_inside:
            if _tell(self._queue.next(), ""):
                self.inside += 1  # now, and not when it wakes up: nobody may come in between

    def _expected_s(self, ahead: int, longest_s: float) -> float:
        """How long a call waits that has so many before it; 0 where too little is known to send anybody away."""
        return self._pace.needed_s(ahead + 1, self._clock.monotonic(), longest_s) if self._queue.size else 0.0

    def _retry_after_s(self) -> int:
        """Whole seconds, each caller's another: up to the time that those who wait now will take."""
        limits = self._limits
        known_s = self._expected_s(self._queue.size, limits.longest_wait_s)
        guessed_s = limits.longest_wait_s * self._queue.size / max(1, limits.most_waiting)
        span = min(_LONGEST_RETRY_S, 1 + math.ceil(known_s or guessed_s))
        return 1 + int(self._ids.jitter() * span)


def _tell(place: _Waiter, reason: str) -> bool:
    """Whether this was news: a caller that is gone, or was told already, hears nothing."""
    if place.done():
        return False
    place.set_result(reason)
    return True


class _Queue:
    """Who waits: a line for each principal, the lines in the order of their turns, and which of them is longest.

    Ordered dictionaries rather than deques: a caller that goes away leaves the middle of its line at once.
    """

    def __init__(self) -> None:
        self.size = 0
        self._lines: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()
        self._of_length: dict[int, OrderedDict[str, None]] = {}
        self._longest = 0

    def add(self, principal: str, place: _Waiter) -> None:
        """To the end of its principal's line; a new line has its turn after all others."""
        line = self._lines.setdefault(principal, OrderedDict())
        line[place] = None
        self._changed(principal, len(line) - 1, len(line))

    def remove(self, principal: str, place: _Waiter) -> None:
        """Take one out, wherever it stands; nothing where it is not there any more."""
        line = self._lines.get(principal)
        if line is None or place not in line:
            return
        del line[place]
        self._changed(principal, len(line) + 1, len(line))
        if not line:
            del self._lines[principal]

    def next(self) -> _Waiter:
        """Take out the one whose turn it is; its principal's next turn comes after all others'."""
        principal, line = next(iter(self._lines.items()))
        place = next(iter(line))
        self._lines.move_to_end(principal)
        self.remove(principal, place)
        return place

    def displace(self, principal: str) -> _Waiter | None:
        """Take out the newest of the longest line, in favour of this principal; None where its own would be no shorter then.

        Between equals nobody is displaced: that would send away one who has waited for one who has not.
        """
        if self._longest < len(self._lines.get(principal, ())) + 2:
            return None
        longest = next(iter(self._of_length[self._longest]))
        place = next(reversed(self._lines[longest]))
        self.remove(longest, place)
        return place

    def ahead_of(self, principal: str) -> int:
        """How many turns others have before a newcomer of this principal; never fewer, and exact for one that has nobody waiting."""
        own = len(self._lines.get(principal, ()))
        others = len(self._lines) - (own > 0)
        return min(self.size, own + (own + 1) * others)

    def _changed(self, principal: str, before: int, now: int) -> None:
        """A line has become one longer or one shorter."""
        self.size += now - before
        if before:
            del self._of_length[before][principal]
            if not self._of_length[before]:
                del self._of_length[before]
        if now:
            self._of_length.setdefault(now, OrderedDict())[principal] = None
        if now > self._longest or self._longest not in self._of_length:
            self._longest = now


class _Pace:
    """How fast places become free, while calls wait for them. At other times it says how many calls come, not how many go."""

    def __init__(self) -> None:
        self._began = self._seen = 0.0
        self._freed = 0.0
        self._watched_s = 0.0

    def begin(self, now: float) -> None:
        """Calls begin to wait. What was before is no guide: a provider that hung may answer again."""
        self._began = self._seen = now
        self._freed = self._watched_s = 0.0

    def freed(self, now: float) -> None:
        """A place has become free."""
        self._fade(now)
        self._freed += 1

    def needed_s(self, places: int, now: float, longest_s: float) -> float:
        """How long it takes until so many become free; 0 before enough were seen, or calls have waited for as long as they may."""
        self._fade(now)
        if self._freed < _ENOUGH and now - self._began < longest_s:
            return 0.0
        return places * self._watched_s / (self._freed + 1)  # as if one became free now: a pace of 0 would let nobody find out

    def _fade(self, now: float) -> None:
        kept = math.exp((self._seen - now) / _MEMORY_S)
        self._freed *= kept
        self._watched_s = self._watched_s * kept + _MEMORY_S * (1 - kept)
        self._seen = now
