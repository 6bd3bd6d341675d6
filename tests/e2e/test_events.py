"""`/-/events`: a page hears that something has changed, and asks; listeners are bounded, and none of them keeps a gateway from stopping."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from gateway.app import Parts
from gateway.clock import SystemClock
from gateway.core.breaker import by_hand
from gateway.errors import Overloaded
from gateway.http import events
from gateway.http.client import HttpClient
from gateway.http.events import ALIVE_S, LONGEST_S, LOOK_S
from gateway.session import SessionKey

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}


class Hastening(SystemClock):
    """A clock whose waits of a listener are over at once, and which counts them: seconds pass with each, hours where it is told so."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_s

    async def sleep(self, seconds: float) -> None:
        if seconds == LOOK_S:
            self.passed_s += LOOK_S
            seconds = 0.01
        await super().sleep(seconds)


@pytest.fixture
def clock() -> Hastening:
    return Hastening()


@asynccontextmanager
async def listening(house, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    session = await house.http()
    async with session.get("/-/events", headers={**ADMIN, **headers}) as answer:
        yield answer


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event; comments are passed over."""
    async with asyncio.timeout(30):
        async for line in answer.content:
            if line.startswith(b"data: "):
                told: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return told
    raise AssertionError("the stream has ended")


async def test_a_listener_hears_how_things_stand_and_whenever_something_changes(house, clock):
    """What has changed it asks for: here are numbers, and nobody's words."""
    await house.open(parts=Parts(clock=clock))
    async with listening(house) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert answer.headers["X-Accel-Buffering"] == "no"
        first = await next_event(answer)
        assert (set(first), first["calls"]) == ({"approvals", "calls", "sessions", "breakers"}, None)
        store, now_ns = house.gateway.running.store, clock.now_ns()
        await store.breakers.apply("one/sim-fast", by_hand("open", now_ns=now_ns, author="a", note=""))
        after = await next_event(answer)
        assert after == {**first, "breakers": after["breakers"]}
        assert after["breakers"] > first["breakers"]
        await store.session_desk.set_state(SessionKey("key", "s"), "frozen", author="a", note="", now_ns=now_ns)
        assert (await next_event(answer))["sessions"] > first["sessions"]
        with pytest.raises(openai.NotFoundError):
            await house.client().chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
        assert str((await next_event(answer))["calls"]).startswith("call_")


async def test_only_who_may_look_may_listen(house):
    """And the query has nothing to say."""
    await house.open()
    session = await house.http()
    async with session.get("/-/events") as answer:
        assert answer.status == 401
    async with session.get("/-/events?since=1", headers=ADMIN) as answer:
        assert answer.status == 400


async def test_a_quiet_stream_says_that_it_lives_and_ends_after_a_while(house, clock):
    """Proxies cut what is idle; and who may listen is asked anew when the page comes back."""
    await house.open(parts=Parts(clock=clock))
    async with listening(house) as answer, asyncio.timeout(60):
        text = (await answer.content.read()).decode()
    comments = text.count(": alive\n\n")
    assert text.count("event: changed\n") == 1
    assert comments == pytest.approx(LONGEST_S / ALIVE_S, rel=0.25)


async def test_a_listener_whose_token_is_taken_back_hears_nothing_more(house, clock, monkeypatch):
    """Looked at with every sign of life."""
    await house.open(parts=Parts(clock=clock))
    control = house.gateway.running.control
    async with listening(house) as answer, asyncio.timeout(30):
        await next_event(answer)
        who = control.authorise

        async def refuse(*_given: Any) -> None:
            raise Overloaded("gone")

        monkeypatch.setattr(type(control), "authorise", lambda self, *given: refuse(*given) if self is control else who(*given))
        rest = await answer.content.read()
    assert b"alive" not in rest


async def test_listeners_are_bounded_and_a_place_is_free_again_when_one_leaves(house, clock, monkeypatch):
    """One page more is told to ask now and then."""
    monkeypatch.setattr(events, "MOST_LISTENERS", 2)
    await house.open(parts=Parts(clock=clock))
    session = await house.http()
    async with listening(house) as one:
        await next_event(one)
        async with listening(house) as two:
            await next_event(two)
            async with session.get("/-/events", headers=ADMIN) as third:
                assert (third.status, third.headers["Retry-After"]) == (503, "30")
        async with asyncio.timeout(30):
            while True:
                async with listening(house) as again:
                    if again.status == 200:
                        break


async def test_a_gateway_that_stops_does_not_wait_for_listeners(house):
    """They end with it, in an orderly way: the page comes back to another process."""
    await house.open()
    async with listening(house) as answer:
        await next_event(answer)
        async with asyncio.timeout(20):
            stopping = asyncio.create_task(house.gateway.running.stop())
            assert await answer.content.read() is not None
            await stopping


async def test_a_reader_that_does_not_read_is_dropped(house, clock, monkeypatch):
    """It must not hold what it does not take."""
    monkeypatch.setattr(events, "_STUCK_S", 0.05)
    await house.open(parts=Parts(clock=clock))
    stuck = asyncio.Event()

    async def write(*_given: Any) -> None:
        stuck.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(HttpClient, "write", write)
    with pytest.raises(aiohttp.ClientError):
        async with listening(house) as answer, asyncio.timeout(30):
            await answer.content.read()
    assert stuck.is_set()
