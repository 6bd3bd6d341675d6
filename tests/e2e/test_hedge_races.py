"""A second attempt beside a slow one, and what goes wrong at that moment: the store fails, the client leaves, the time is up.

The first attempt depends on none of it, no stream that was won is left to nobody, and what providers bill is booked.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.app import Parts
from gateway.errors import StoreUnavailable
from gateway.relay import LiveStream
from gateway.simulator import Entry, Fault, FaultRule, Scenario
from gateway.store.sqlite import SqliteStore

SOON_S = 20
BUDGET = '[budgets.all]\nscope = "all"\nlimit = "1000.00"\n'
PRICES_NUSD = {"sim-small": (100, 200), "sim-large": (10_000, 20_000), "m": (1_000, 2_000)}  # a token of input, of output
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def routes(*targets: tuple[str, str], more: str = '[route.hedge]\nafter = "10ms"\nshare = 1.0\n') -> str:
    listed = "".join(f'[[route.targets]]\nprovider = "{provider}"\nmodel = "{model}"\n' for provider, model in targets)
    return f'[[route]]\nname = "h"\n{listed}{more}[route.retry]\nattempts = 1\nbase = "1ms"\n'


@dataclass
class Gated:
    """A provider that answers each request when it is told to: with an error where `fails`, else with 2 tokens to 10."""

    config: str = ""
    fails: bool = False
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.arrived.release()
        await asyncio.wait_for(self.go.wait(), SOON_S)
        if self.fails:
            return web.json_response({"error": {"message": "down"}}, status=500)
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        head = {"id": "x", "created": 1, "model": "m"}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "first answer"}, "finish_reason": "stop"}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": "first"}, None), ({"content": " answer"}, "stop")]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas]
        for event in [*events, {"choices": [], "usage": usage}]:
            await response.write(b"data: " + json.dumps({**head, "object": "chat.completion.chunk", **event}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def gated(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> AsyncIterator[Gated]:
    made, app = Gated(), web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    server = await aiohttp_server(app)
    made.config = (f'{BUDGET}[providers.gated]\nadapter = "openai"\nbase_url = "{server.make_url("/v1")}"\n'
                   '[prices."gated/m"]\ninput = "1.00"\noutput = "2.00"\n')
    yield made
    made.go.set()


class Reluctant:
    """A journal that makes trouble over the intents of further attempts: of the first `times` of them."""

    def __init__(self, journal: Any, trouble: str, times: int = 1) -> None:
        self._journal = journal
        self._trouble = trouble
        self._left = times
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def dispatch(self, intent: Any) -> Any:
        if not self._left or self._trouble == "none":
            answer = await self._journal.dispatch(intent)
            self.asked.set()
            return answer
        self._left -= 1
        if self._trouble == "does not answer in time":  # but does what it was told to
            await self._journal.dispatch(intent)
        self.asked.set()
        if self._trouble == "is slow to say so":
            answer = await self._journal.dispatch(intent)
            await asyncio.wait_for(self.go.wait(), SOON_S)
            return answer
        if self._trouble == "is slow":
            await asyncio.wait_for(self.go.wait(), SOON_S)
            return await self._journal.dispatch(intent)
        raise StoreUnavailable("the store is busy", retry_after_s=1)


def reluctant(house: Any, trouble: str) -> tuple[SqliteStore, Reluctant]:
    store: Any = SqliteStore(house.folder / "lockgate.db", "tests")
    journal = store.journal = Reluctant(store.journal, trouble)
    return store, journal


async def ask(house: Any, *, stream: bool, **asked: Any) -> str:
    got = await house.client().chat.completions.create(
        model="h", messages=[{"role": "user", "content": "say second answer"}], stream=stream, **asked)
    if not stream:
        return str(got.choices[0].message.content)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in got if chunk.choices])


async def record(house: Any) -> dict[str, Any]:
    app = house.gateway.running
    await app.proxy.idle(SOON_S)
    await app.proxy.settler.drained(SOON_S)
    found: dict[str, Any] = await house.call((await house.calls())[0]["id"])
    return found


def made(call: dict[str, Any]) -> list[tuple[str, str, str | None, str | None]]:
    return [(each["target"], each["end"], each["cause"], each["why"]) for each in call["attempts"]]


def owed(*entries: Entry) -> int:
    bills = [(PRICES_NUSD[entry.body["model"]], entry.billed) for entry in entries if entry.billed is not None]
    return sum(bill.prompt_tokens * read + bill.completion_tokens * written for (read, written), bill in bills)


# The store makes trouble.


TROUBLE = pytest.mark.parametrize("trouble", ["refuses", "does not answer in time"])


@both_ways
@TROUBLE
async def test_a_second_attempt_that_cannot_be_recorded_is_not_made_and_the_first_one_goes_on(house, gated, stream, trouble):
    store, journal = reluctant(house, trouble)
    await house.open(routes=routes(("gated", "m"), ("two", "sim-small")), config=gated.config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await gated.arrived.acquire()
        await journal.asked.wait()
    gated.go.set()
    assert await asyncio.wait_for(asking, SOON_S) == "first answer"
    assert house.two.requests == []
    call = await record(house)
    assert (call["outcome"], made(call)) == ("completed", [("gated/m", "succeeded", None, None)])
    assert await house.spent("all/all") == 10 * 1_000 + 2 * 2_000  # what was billed, and nothing for what was not made


@both_ways
@TROUBLE
async def test_after_a_second_attempt_that_could_not_be_recorded_the_next_target_is_asked_where_the_first_fails(house, gated, stream, trouble):
    """Whether the store has that intent or not: nobody knows, and the next attempt's is another one."""
    gated.fails = True
    store, journal = reluctant(house, trouble)
    await house.open(routes=routes(("gated", "m"), ("two", "sim-small")), config=gated.config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
    gated.go.set()
    assert await asyncio.wait_for(asking, SOON_S) == "second answer"
    call = await record(house)
    assert made(call) == [("gated/m", "failed", "status:500", None), ("two/sim-small", "succeeded", None, "fallback")]
    assert await house.spent("all/all") == call["cost_nusd"] == owed(*house.two.requests)


@both_ways
async def test_a_target_that_there_was_no_money_for_beside_the_first_is_asked_after_it(house, gated, stream):
    """Once the first has failed, and cost nothing, there is enough for another one."""
    gated.fails = True
    store, journal = reluctant(house, "none")
    config = gated.config.replace('limit = "1000.00"', 'limit = "0.00027"\non_short = "deny"')
    await house.open(routes=routes(("gated", "m"), ("two", "sim-small")), config=config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream, max_tokens=80))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
    assert house.two.requests == []
    gated.go.set()
    assert await asyncio.wait_for(asking, SOON_S) == "second answer"
    assert made(await record(house)) == [("gated/m", "failed", "status:500", None), ("two/sim-small", "succeeded", None, "fallback")]


@both_ways
async def test_a_first_attempt_that_fails_while_the_second_one_is_written_down_is_followed_by_the_next_target(house, gated, stream):
    """Whatever becomes of that intent: the target was not asked, and is there to be asked."""
    gated.fails = True
    store, journal = reluctant(house, "is slow")
    await house.open(routes=routes(("gated", "m"), ("two", "sim-small")), config=gated.config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
    gated.go.set()
    await asyncio.wait({asking}, timeout=0.1)  # the first has failed by then
    journal.go.set()
    assert await asyncio.wait_for(asking, SOON_S) == "second answer"
    call = await record(house)
    assert (call["outcome"], [each[:3] for each in made(call)]) == (
        "completed", [("gated/m", "failed", "status:500"), ("two/sim-small", "succeeded", None)])
    assert len(house.two.requests) == 1
    assert await house.spent("all/all") == call["cost_nusd"] == owed(*house.two.requests)


@both_ways
@pytest.mark.parametrize("trouble", ["is slow", "is slow to say so"])
async def test_a_cascade_goes_on_while_an_attempt_beside_the_first_one_is_written_down(house, gated, stream, trouble):
    """The first has answered, and not well enough: two intents are under way at once, each with a number and a permit of its own."""
    store, journal = reluctant(house, trouble)
    cascade = 'strategy = "cascade"\naccept = "response.text.contains(\'second\')"\n'
    listed = routes(("gated", "m"), ("two", "sim-small")).replace('name = "h"\n', f'name = "h"\n{cascade}')
    await house.open(routes=listed, config=gated.config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
    gated.go.set()
    await asyncio.wait({asking}, timeout=0.1)
    journal.go.set()
    assert await asyncio.wait_for(asking, SOON_S) == "second answer"
    call = await record(house)
    assert (call["outcome"], made(call)) == (
        "completed", [("gated/m", "succeeded", "not_accepted", None), ("two/sim-small", "succeeded", None, "cascade")])
    assert await house.spent("all/all") == call["cost_nusd"] == 10 * 1_000 + 2 * 2_000 + owed(*house.two.requests)
    assert {row["target"]: row["calls"] for row in house.gateway.running.breakers.rows()} == {"gated/m": 1, "two/sim-small": 1}


@pytest.mark.parametrize("depth", range(4))
async def test_a_second_attempt_that_may_be_made_just_as_the_first_one_answers_is_let_go(house, monkeypatch, depth):
    """`depth` turns of the loop after the first event has come: nothing of the second is left, and what is on record is the first."""
    store, journal = reluctant(house, "is slow to say so")
    await house.open(routes=routes(("one", "sim-large"), ("two", "sim-small")), config=BUDGET, parts=Parts(store=store))
    house.one.play(Scenario(pacing=Fault(delay_headers_s=0.05)))
    loop, begin = asyncio.get_running_loop(), LiveStream.begin

    def go_after(turns: int) -> None:
        if turns:
            loop.call_soon(go_after, turns - 1)
        else:
            journal.go.set()

    async def begin_and_go(stream: LiveStream, timeout_s: float) -> None:
        await begin(stream, timeout_s)
        go_after(depth)

    monkeypatch.setattr(LiveStream, "begin", begin_and_go)
    raw = await house.client().chat.completions.with_raw_response.create(
        model="h", messages=[{"role": "user", "content": "say an answer"}], stream=True)
    async with asyncio.timeout(SOON_S):
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]) == "an answer"
    assert raw.headers["x-lockgate-target"] == "one/sim-large"
    call = await record(house)
    first, *second = made(call)
    assert first == ("one/sim-large", "succeeded", None, None)
    assert second in ([], [("two/sim-small", "cancelled", "hedged", "hedge")])
    entries = [*house.one.requests, *await house.two.finished(len(house.two.requests))]
    assert await house.spent("all/all") == call["cost_nusd"] >= owed(*entries)
    assert house.gateway.running.breakers.rows()[1]["calls"] == 0  # nothing was heard of the second target


@both_ways
async def test_a_store_that_takes_its_time_over_a_second_attempt_does_not_hold_up_the_first_ones_answer(house, gated, stream):
    store, journal = reluctant(house, "is slow")
    await house.open(routes=routes(("gated", "m"), ("two", "sim-small")), config=gated.config, parts=Parts(store=store))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
    gated.go.set()
    try:
        done, _ = await asyncio.wait({asking}, timeout=2)
        assert done
        assert asking.result() == "first answer"
    finally:
        journal.go.set()
        await asyncio.wait({asking}, timeout=SOON_S)
    assert await house.spent("all/all") >= 10 * 1_000 + 2 * 2_000


@both_ways
async def test_a_call_that_ends_while_a_second_attempt_is_written_down_leaves_no_open_stream(house, stream):
    """The first one has answered by then, to nobody."""
    store, journal = reluctant(house, "is slow")
    await house.open(routes=routes(("one", "sim-large"), ("two", "sim-small")), config=BUDGET, parts=Parts(store=store))
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_headers_s=0.1, stall_after_chunks=3)),)))
    asking = asyncio.create_task(ask(house, stream=stream))
    async with asyncio.timeout(SOON_S):
        await journal.asked.wait()
        while not house.one.requests[0].chunks:
            await asyncio.sleep(0.002)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await house.one.finished(1))[0].end == "client_gone"
    journal.go.set()
    call = await record(house)
    assert (call["outcome"], made(call)) == ("cancelled", [("one/sim-large", "cancelled", None, None)])
    assert house.two.requests == []
    assert await house.spent("all/all") >= owed(*house.one.requests)


class Exhausted:
    """Budgets of a store that is busy whenever a stream needs more."""

    def __init__(self, budgets: Any) -> None:
        self._budgets = budgets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._budgets, name)

    async def extend(self, *_args: Any, **_named: Any) -> Any:
        raise StoreUnavailable("the store is busy", retry_after_s=1)


@pytest.mark.parametrize("held", [True, False], ids=["held", "relayed"])
async def test_what_was_billed_until_the_store_failed_is_booked(house, held):
    store: Any = SqliteStore(house.folder / "lockgate.db", "tests")
    store.budgets = Exhausted(store.budgets)
    checks = "[[route.validators]]\nnon_empty = true\n" if held else ""
    await house.open(routes=routes(("one", "sim-large"), more=checks), config=BUDGET, parts=Parts(store=store))
    house.one.play(Scenario(rules=(FaultRule(Fault(ignore_limits=True, delay_between_tokens_s=0.002)),)))
    with pytest.raises(openai.APIError) as caught:
        got = await house.client().chat.completions.create(
            model="h", messages=[{"role": "user", "content": "words 2000"}], stream=True, max_tokens=20)
        async for _chunk in got:
            pass
    assert caught.value.code == "store_unavailable"
    (entry,) = await house.one.finished(1)
    assert (entry.end, entry.billed.completion_tokens > 20) == ("client_gone", True)  # it ran over, and was stopped
    (attempt,) = (await record(house))["attempts"]
    assert attempt["end"] in ("cut", "cancelled")
    assert await house.spent("all/all") == attempt["cost_nusd"] >= owed(entry)


# The call ends in the moment in which a stream is won.


MODES = {
    "hedged": '[route.hedge]\nafter = "10ms"\nshare = 1.0\n',
    "early": '[route.stream]\nearly = "10ms"\n',
    "plain": "",
}


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_that_is_won_as_its_call_ends_is_closed(house, monkeypatch, mode, depth):
    """The call is ended `depth` turns of the loop after the first event has come: by its client's going, a deadline, a stop alike."""
    await house.open(routes=routes(("one", "sim-large"), ("two", "sim-small"), more=MODES[mode]), config=BUDGET)
    house.one.play(Scenario(pacing=Fault(delay_headers_s=0.05, delay_between_tokens_s=0.05)))
    house.two.play(Scenario(rules=(FaultRule(Fault(hang=True)),)))
    proxy, loop, begin = house.gateway.running.proxy, asyncio.get_running_loop(), LiveStream.begin
    ended = asyncio.Event()

    def end_after(turns: int) -> None:
        if turns:
            loop.call_soon(end_after, turns - 1)
        else:
            ending.append(loop.create_task(proxy.cut(SOON_S)))
            ended.set()

    async def begin_and_end(stream: LiveStream, timeout_s: float) -> None:
        await begin(stream, timeout_s)
        end_after(depth)

    ending: list[asyncio.Task[None]] = []
    monkeypatch.setattr(LiveStream, "begin", begin_and_end)
    asking = asyncio.create_task(ask(house, stream=True))
    async with asyncio.timeout(SOON_S):
        await ended.wait()
        await ending[0]
        with pytest.raises(openai.APIError):
            await asking
        entries = [*await house.one.finished(1), *await house.two.finished(len(house.two.requests))]
        while house.one.open_connections or house.two.open_connections:
            await asyncio.sleep(0.002)
    assert {entry.end for entry in entries} == {"client_gone"}
    call = await record(house)
    assert {each["end"] for each in call["attempts"]} <= {"cancelled", "cut"}
    assert await house.spent("all/all") == sum(each["cost_nusd"] for each in call["attempts"]) >= owed(*entries)


@pytest.mark.parametrize("turns", [0, 4, 8])
async def test_a_client_that_leaves_as_its_stream_is_won_leaves_nothing_open(house, turns):
    await house.open(routes=routes(("one", "sim-large"), ("two", "sim-small")), config=BUDGET + "[breaker]\nenabled = false\n")
    for each in (house.one, house.two):
        each.play(Scenario(pacing=Fault(delay_headers_s=0.02, delay_between_tokens_s=0.02)))
    host, port = house.gateway.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "h", "stream": True, "messages": [{"role": "user", "content": "words 3000"}]}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode()
    writers = []
    for _ in range(4):
        _reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        writers.append(writer)
    async with asyncio.timeout(SOON_S):
        while not any(entry.chunks for entry in house.one.requests + house.two.requests):
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        for writer in writers:
            writer.transport.abort()
        await house.gateway.running.proxy.idle(SOON_S)
        entries = [*await house.one.finished(len(house.one.requests)), *await house.two.finished(len(house.two.requests))]
        while house.one.open_connections or house.two.open_connections:
            await asyncio.sleep(0.002)
    assert {entry.end for entry in entries} == {"client_gone"}
    assert await house.spent("all/all") >= owed(*entries)
