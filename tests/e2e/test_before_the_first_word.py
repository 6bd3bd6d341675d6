"""What says nothing holds nobody: neither before the first word, where another target may still answer unseen, nor after it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

SOON_S = 20
EVERY_S = 0.02  # between two pieces of a drip; far less than any deadline here
DEADLINE = "300ms"


def chunk(**delta: Any) -> bytes:
    """An event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def routes(*, on_failure: str = "error") -> str:
    return f"""
[[route]]
name = "s"
[[route.targets]]
provider = "raw"
model = "m"
[[route.targets]]
provider = "two"
model = "sim-small"
continues = true
[route.retry]
attempts = 1
base = "1ms"
[route.stream]
on_failure = "{on_failure}"
[route.deadlines]
idle = "{DEADLINE}"
first_token = "{DEADLINE}"
headers = "10s"
total = "15s"
"""


@dataclass
class Raw:
    """A provider that writes `first` at once, then a piece of `drip` now and then, until its client goes; with `then` it ends well."""

    config: str = ""
    first: bytes = b""
    drip: Iterator[bytes] = field(default_factory=lambda: iter(()))
    then: bytes = b""
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await response.write(self.first)
            for piece in self.drip:
                await response.write(piece)
                await asyncio.sleep(EVERY_S)
            if not self.then:
                await asyncio.sleep(3600)
            await response.write(self.then)
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise
        return response


@pytest.fixture
async def raw(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> Raw:
    made, app = Raw(), web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    server = await aiohttp_server(app)
    made.config = f'[providers.raw]\nadapter = "openai"\nbase_url = "{server.make_url("/v1")}"\n'
    return made


async def ask(house: Any, text: str = "say from the other one") -> tuple[str, list[Any], str | None]:
    """What the client heard, its chunks, and the code of the error at the end."""
    chunks: list[Any] = []
    code = None
    try:
        async with asyncio.timeout(SOON_S):
            got = await house.client().chat.completions.create(model="s", messages=[{"role": "user", "content": text}], stream=True)
            async for each in got:
                chunks.append(each)  # noqa: PERF401 - what came before an error counts
    except openai.APIError as error:
        code = error.code
    return "".join(each.choices[0].delta.content or "" for each in chunks if each.choices), chunks, code


async def attempts(house: Any) -> list[tuple[str, str, str | None, str | None]]:
    app = house.gateway.running
    await app.proxy.idle(SOON_S)
    await app.proxy.settler.drained(SOON_S)
    call = await house.call((await house.calls())[0]["id"])
    return [(each["target"], each["end"], each["cause"], each["why"]) for each in call["attempts"]]


def for_ever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def byte_by_byte(text: bytes) -> Iterator[bytes]:
    """Bytes of an event that has no end."""
    yield from (text[at:at + 1] for at in range(len(text)))
    yield from for_ever(b" ")


ROLE = chunk(role="assistant", content="")
UNFINISHED = b'data: {"id": "x", "choices": ['
SILENCE: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "many beginnings at once, then nothing": (ROLE * 500, lambda: iter(())),
    "beginnings for ever": (b"", lambda: for_ever(ROLE)),
    "no choices for ever": (b"", lambda: for_ever(event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}))),
    "comments for ever": (b"", lambda: for_ever(b": ping\n\n")),
    "an event without an end": (b"", lambda: byte_by_byte(UNFINISHED)),
}


@pytest.mark.parametrize("said", SILENCE)
async def test_whatever_says_nothing_is_passed_over_when_the_time_for_the_first_word_is_up(house, raw, said):
    raw.first, drip = SILENCE[said]
    raw.drip = drip()
    await house.open(routes=routes(), config=raw.config)
    text, chunks, code = await ask(house)
    assert (text, code) == ("from the other one", None)
    assert "x" not in {each.id for each in chunks}  # nothing of the first one's was shown
    assert await attempts(house) == [("raw/m", "failed", "timeout:first_token", None), ("two/sim-small", "succeeded", None, "fallback")]
    await asyncio.wait_for(raw.left.wait(), SOON_S)


async def test_who_begins_many_times_and_speaks_in_time_is_heard(house, raw):
    raw.first = ROLE * 200
    raw.then = chunk(content="at ") + chunk(content="last") + event({"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) \
        + b"data: [DONE]\n\n"
    await house.open(routes=routes(), config=raw.config)
    text, chunks, code = await ask(house)
    assert (text, code) == ("at last", None)
    assert len([each for each in chunks if each.choices and each.choices[0].delta.role]) <= 64
    assert await attempts(house) == [("raw/m", "succeeded", None, None)]


BETWEEN: dict[str, Callable[[], Iterator[bytes]]] = {
    "nothing": lambda: iter(()),
    "comments": lambda: for_ever(b": ping\n\n"),
    "blank lines": lambda: for_ever(b"\n"),
    "an event without an end": lambda: byte_by_byte(UNFINISHED),
}


@pytest.mark.parametrize("said", BETWEEN)
async def test_bytes_that_make_no_event_do_not_keep_a_stalled_stream_alive(house, raw, said):
    """A proxy before a model that has stalled sends just that."""
    raw.first, raw.drip = chunk(role="assistant", content="so far "), BETWEEN[said]()
    await house.open(routes=routes(), config=raw.config)
    text, _chunks, code = await ask(house)
    assert (text, code) == ("so far ", "upstream_timeout")
    assert await attempts(house) == [("raw/m", "cut", "timeout:idle", None)]
    assert house.two.requests == []
    await asyncio.wait_for(raw.left.wait(), SOON_S)


@pytest.mark.parametrize("said", ["comments", "an event without an end"])
async def test_a_stream_that_stalls_behind_such_bytes_is_gone_on_with(house, raw, said):
    raw.first, raw.drip = chunk(role="assistant", content="so far "), BETWEEN[said]()
    await house.open(routes=routes(on_failure="continue"), config=raw.config)
    text, chunks, code = await ask(house, "say and the rest")
    assert code is None
    assert text.startswith("so far ")
    assert text != "so far "
    assert len({each.id for each in chunks}) == 1
    assert chunks[-1].choices == [] or chunks[-1].choices[0].finish_reason == "stop"
    assert await attempts(house) == [("raw/m", "cut", "timeout:idle", None), ("two/sim-small", "succeeded", None, "continuation")]
    assert house.two.requests[0].body["messages"][-1] == {"role": "assistant", "content": "so far "}
    await asyncio.wait_for(raw.left.wait(), SOON_S)


async def test_a_stream_that_speaks_now_and_then_with_comments_between_is_none_that_stalls(house, raw):
    """Longer in all than the silence that it may keep: each event is a new beginning."""
    def speaking() -> Iterator[bytes]:
        for number in range(6):
            yield chunk(content=f"{number} ")
            for _ in range(3):
                yield b": ping\n\n"

    raw.drip = speaking()
    raw.then = event({"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n"
    await house.open(routes=routes(), config=raw.config)
    text, _chunks, code = await ask(house)
    assert (text, code) == ("0 1 2 3 4 5 ", None)
    assert await attempts(house) == [("raw/m", "succeeded", None, None)]


ODD = {"a delta that is a text": {"index": 0, "delta": "b"}, "words that are a list": {"index": 0, "delta": {"content": ["b"]}}}


@pytest.mark.parametrize("odd", ODD)
async def test_an_odd_event_before_a_stall_ends_in_an_error_event_and_no_defect(house, raw, odd):
    """Nobody can go on with what cannot be read."""
    raw.first = chunk(content="so far ") + event({"id": "x", "choices": [ODD[odd]]})
    await house.open(routes=routes(on_failure="continue"), config=raw.config)
    session = await house.http()
    body = {"model": "s", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        got = await asyncio.wait_for(answer.read(), SOON_S)
    assert b"so far " in got
    last = [block for block in got.split(b"\n\n") if block.startswith(b"data: {")][-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"
    assert await attempts(house) == [("raw/m", "cut", "timeout:idle", None)]
    assert house.two.requests == []
    assert b'"defect"' not in b"".join(house.lines)


async def test_an_answer_that_is_as_long_as_it_may_be_is_not_gone_on_with(house, raw):
    """Another target would have to be asked, and paid, for a token more than the client wants."""
    raw.first = b"".join(chunk(content=f"w{number} ") for number in range(5))
    await house.open(routes=routes(on_failure="continue"), config=raw.config)
    client = house.client()
    said = ""
    with pytest.raises(openai.APIError) as caught:
        got = await client.chat.completions.create(model="s", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=5)
        async for each in got:
            said += each.choices[0].delta.content or ""
    assert (said, caught.value.code) == ("w0 w1 w2 w3 w4 ", "upstream_timeout")
    assert await attempts(house) == [("raw/m", "cut", "timeout:idle", None)]
    assert house.two.requests == []
