"""Where a stream's events come from: when silence is too long, what is held, what becomes of the rest. Time passes where somebody waits."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytest

from gateway import relay
from gateway.call import Usage
from gateway.errors import AttemptFailed
from gateway.progress import Receipt
from gateway.relay import HeldStream, Limits, LiveStream, hold, let_rest
from gateway.wire.protocol import Event

IDLE_S = 10.0


class HandClock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        self.s += seconds


class Answer:
    """An upstream's answer that comes in pieces: each a wait in seconds, and bytes or a failure."""

    status = 200

    def __init__(self, clock: HandClock, *pieces: tuple[float, bytes | AttemptFailed]) -> None:
        self.clock = clock
        self.pieces = deque(pieces)
        self.headers: Mapping[str, str] = {}
        self.told: list[str] = []

    async def chunk(self, *, timeout_s: float) -> bytes:
        wait_s, piece = self.pieces[0]
        if wait_s > timeout_s:
            self.clock.s += timeout_s
            self.pieces[0] = (wait_s - timeout_s, piece)
            raise AttemptFailed("timeout:idle", "no byte", retryable=True)
        self.clock.s += wait_s
        self.pieces.popleft()
        if isinstance(piece, AttemptFailed):
            raise piece
        return piece

    async def read(self, *, limit: int, idle_s: float) -> bytes:
        raise NotImplementedError

    def release(self) -> None:
        self.told.append("release")

    def abort(self) -> None:
        self.told.append("abort")


class Letters:
    """A format of one byte an event: a letter is a word, `.` is the end, `?` is no event. `mute`: it says nothing of the end."""

    def __init__(self, *, mute: bool = False) -> None:
        self.mute = mute
        self.events: deque[Event] = deque()

    def feed(self, data: bytes) -> None:
        for letter in data.decode():
            if letter == ".":
                self.events.append(Event(done=True))
            elif letter != "?":
                self.events.append(word(letter))
        if not data and not self.mute:
            self.events.append(Event(done=True))

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None


def word(text: str, **more: Any) -> Event:
    return Event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}, **more)


class Scene:
    def __init__(self, *pieces: tuple[float, bytes | AttemptFailed], mute: bool = False, most_bytes: int = 1000) -> None:
        self.clock, self.receipt = HandClock(), Receipt()
        self.answer = Answer(self.clock, *pieces)
        self.stream = LiveStream(self.answer, Letters(mute=mute), self.receipt, Limits(IDLE_S, most_bytes), self.clock)

    async def said(self) -> str:
        """All words, to the end."""
        words = ""
        while True:
            event = self.stream.take()
            if event is None:
                await self.stream.more()
            elif event.done:
                return words
            elif event.body is not None:
                choices: Any = event.body["choices"]
                words += choices[0]["delta"]["content"]


async def test_silence_is_what_lies_between_two_events_whatever_bytes_come_in_it():
    scene = Scene((1, b"a"), (4, b"?"), (4, b"?"), (4, b"b."))
    with pytest.raises(AttemptFailed) as caught:
        await scene.said()
    assert caught.value.cause == "timeout:idle"
    assert scene.clock.s == 1000 + 1 + IDLE_S  # to the moment, and not from the last byte on


async def test_bytes_that_come_at_the_last_moment_leave_no_time_for_more():
    scene = Scene((1, b"a"), (IDLE_S, b"?"), (0, b"b."))
    with pytest.raises(AttemptFailed) as caught:
        await scene.said()
    assert (caught.value.cause, caught.value.message) == ("timeout:idle", "bytes came, and nothing was said within 10 s")


async def test_each_event_is_a_new_beginning():
    scene = Scene((9, b"a"), (5, b"?"), (4, b"b"), (9, b"c"), (9, b"."))
    assert await scene.said() == "abc"


async def test_what_a_stream_fails_with_otherwise_is_told_as_it_is():
    scene = Scene((1, b"a"), (1, AttemptFailed("reset", "the connection was reset", retryable=True)))
    with pytest.raises(AttemptFailed) as caught:
        await scene.said()
    assert caught.value.cause == "reset"


async def test_the_largest_gap_is_the_longest_wait_for_an_event_and_no_later_one_makes_it_smaller():
    scene = Scene((1, b"a"), (3, b"?"), (4, b"b"), (2, b"c."))
    await scene.said()
    assert scene.receipt.largest_gap_s == 7


async def test_the_time_that_a_reader_takes_is_no_gap():
    scene = Scene((1, b"a"), (2, b"b."))
    await scene.stream.more()
    assert scene.stream.take() is not None
    assert scene.stream.take() is None
    scene.clock.s += 100  # what was said is passed on to somebody who is slow
    await scene.stream.more()
    assert scene.receipt.largest_gap_s == 2


async def test_a_stream_that_closes_has_ended_where_its_format_says_so():
    assert await Scene((1, b"ab"), (1, b"")).said() == "ab"


async def test_a_stream_of_whose_end_nobody_says_anything_is_cut():
    """An adapter of one's own must not be asked for ever."""
    scene = Scene((1, b"ab"), (1, b""), mute=True)
    with pytest.raises(AttemptFailed) as caught:
        await scene.said()
    assert caught.value.cause == "cut"


async def test_a_stream_may_be_only_so_large():
    scene = Scene((1, b"ab"), (1, b"c" * 9), most_bytes=10)
    with pytest.raises(AttemptFailed) as caught:
        await scene.said()
    assert caught.value.cause == "too_large"


async def test_before_the_first_word_no_more_is_kept_than_a_few_beginnings(monkeypatch):
    scene = Scene((1, b"a"))
    decoder = Letters()
    decoder.events.extend(Event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}) for _ in range(500))
    monkeypatch.setattr(scene.stream, "_decoder", decoder)
    await scene.stream.begin(5)
    assert scene.receipt.answered
    events = []
    while (event := scene.stream.take()) is not None:
        events.append(event)
    assert len(events) == 64 + 1
    assert events[-1] == word("a")


@pytest.mark.parametrize("first", [Event(done=True), Event({"choices": []}, usage=Usage(1, 1)), Event({"choices": []}, finish_reason="stop")])
async def test_an_end_a_reason_for_it_and_what_was_used_say_something(first):
    """An answer without words is one."""
    scene = Scene()
    scene.stream._decoder.events.append(first)  # type: ignore[attr-defined]
    await scene.stream.begin(5)
    assert scene.stream.take() == first


async def test_what_is_left_of_a_stream_is_taken_so_that_its_connection_can_be_used_again():
    scene = Scene((1, b"a."), (1, b"more"), (1, b""))
    await scene.said()
    await let_rest(scene.stream)
    assert scene.answer.told == ["release"]


async def test_one_that_breaks_after_its_last_word_is_closed():
    scene = Scene((1, b"a."), (1, AttemptFailed("reset", "m", retryable=True)))
    await scene.said()
    await let_rest(scene.stream)
    assert scene.answer.told == ["abort", "release"]


async def test_one_that_does_not_end_after_its_last_word_is_closed_soon(monkeypatch):
    monkeypatch.setattr(relay, "_REST_S", 0.01)

    class Endless(Answer):
        async def chunk(self, *, timeout_s: float) -> bytes:
            await asyncio.sleep(timeout_s)
            return b"?"

    clock = HandClock()
    answer = Endless(clock)
    await asyncio.wait_for(let_rest(LiveStream(answer, Letters(), Receipt(), Limits(IDLE_S, 1000), clock)), 5)
    assert answer.told[-1] == "abort"


# Held.


async def test_a_held_stream_is_shown_as_it_came():
    scene = Scene((1, b"ab"), (1, b"c."))
    await scene.stream.begin(5)
    held, reply = await hold(scene.stream, None)
    choices: Any = reply.body["choices"]
    assert choices[0]["message"]["content"] == "abc"
    assert [held.take() for _ in range(4)] == [word("a"), word("b"), word("c"), Event(done=True)]
    assert held.take() is None
    assert held.status == 200
    held.abort()
    assert scene.answer.told == ["abort"]


async def test_what_is_held_says_why_it_ended_and_what_it_used():
    scene = Scene()
    usage = Usage(3, 2)
    scene.stream._decoder.events.extend([  # type: ignore[attr-defined]
        word("a", finish_reason="stop"), Event({"choices": []}, usage=usage), Event(), Event(done=True)])
    await scene.stream.begin(5)
    held, reply = await hold(scene.stream, None)
    assert (reply.usage, reply.finish_reasons) == (usage, ("stop",))
    assert [held.take() for _ in range(2)] == [word("a", finish_reason="stop"), Event({"choices": []}, usage=usage)]


@pytest.mark.parametrize("bound", ["_MOST_HELD", "_LARGEST_HELD"])
async def test_a_stream_that_is_too_long_to_be_held_is_too_large(monkeypatch, bound):
    monkeypatch.setattr(relay, bound, 2)
    scene = Scene((1, b"a"), (1, b"b"), (1, b"c."))
    await scene.stream.begin(5)
    with pytest.raises(AttemptFailed) as caught:
        await hold(scene.stream, None)
    assert (caught.value.cause, caught.value.retryable) == ("too_large", False)


async def test_more_than_was_held_never_comes():
    scene = Scene()
    held = HeldStream(scene.stream, deque())
    with pytest.raises(AttemptFailed) as caught:
        await held.more()
    assert caught.value.cause == "cut"
