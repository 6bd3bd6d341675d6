"""`/-/events`: a page hears that something has changed, and asks; listeners are bounded, and none of them keeps a gateway from stopping."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
from gateway.http.events import LONGEST_S, LOOK_S
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
    assert comments == pytest.approx(LONGEST_S / 10, rel=0.25)  # proxies cut after a minute or so


async def test_a_listener_whose_token_is_taken_back_hears_nothing_more(house, clock, monkeypatch):
    """Looked at with every sign of life."""
    await house.open(parts=Parts(clock=clock))
    control = house.gateway.running.control
    async with listening(house) as answer, asyncio.timeout(30):
        await next_event(answer)
        who = control.authorise

        async def refuse(*_given: Any) -> None:
            raise Overloaded("gone")

        monkeypatch.setattr(type(control), "authorise", lambda self, *given, **more: refuse(*given) if self is control else who(*given, **more))
        rest = await answer.content.read()
    assert b"alive" not in rest


async def people_with_tokens(house, *names: str) -> list[dict[str, str]]:
    """Accounts, and the header of each."""
    session = await house.http()
    made = []
    for name in names:
        async with session.post("/-/people", json={"id": name, "permission": "view"}, headers=ADMIN) as answer:
            assert answer.status == 200
        async with session.post(f"/-/people/{name}/token", json={}, headers=ADMIN) as answer:
            made.append({"Authorization": f"Bearer {(await answer.json())['token']}"})
    return made


async def test_listeners_are_bounded_and_a_place_is_free_again_when_one_leaves(house, clock, monkeypatch):
    """One page more is told to ask now and then."""
    monkeypatch.setattr(events, "MOST_LISTENERS", 2)
    await house.open(parts=Parts(clock=clock))
    ada, bob = await people_with_tokens(house, "ada", "bob")
    session = await house.http()
    async with listening(house, **ada) as one:
        await next_event(one)
        async with listening(house, **bob) as two:
            await next_event(two)
            async with session.get("/-/events", headers=ADMIN) as third:
                assert (third.status, third.headers["Retry-After"]) == (503, "30")
        async with asyncio.timeout(30):
            while True:
                async with listening(house) as again:
                    if again.status == 200:
                        break


async def test_one_person_never_takes_the_places_of_the_others_and_their_newest_page_listens(house, clock, monkeypatch):
    """Their oldest makes room, and is told to come back later than at once: else two of them would chase each other."""
    monkeypatch.setattr(events, "MOST_LISTENERS", 4)
    monkeypatch.setattr(events, "MOST_EACH", 3)
    await house.open(parts=Parts(clock=clock))
    ada, bob = await people_with_tokens(house, "ada", "bob")
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(listening(house, **ada)) for _ in range(6)]
        assert [each.status for each in opened] == [200] * 6
        for each in opened[:3]:
            async with asyncio.timeout(30):
                assert (await each.content.read()).endswith(b"retry: 30000\n\n")
        for each in opened[3:]:
            await next_event(each)
        last = await stack.enter_async_context(listening(house, **bob))
        assert last.status == 200
        async with listening(house) as nobody:  # the house is full, of two people's pages
            assert nobody.status == 503
        again = await stack.enter_async_context(listening(house, **bob))  # a page that is opened anew works even then
        assert again.status == 200
        async with asyncio.timeout(30):
            await last.content.read()


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
