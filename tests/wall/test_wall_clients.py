"""Scenarios 18 to 21 and the deadlines that clients set: slow readers, clients that go away, large bodies, many open streams."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

TEXT = " ".join(f"word{n}" for n in range(30))
MIB = 1024 * 1024
CONTINUE = '[route.stream]\non_failure = "continue"\n'
CONTINUES = "continues = true\ncontinue_with = { continue_final_message = true }\n"
GONE_S = 1.0  # the promise is 0.1 s; a busy machine gets some slack
STREAMED = pytest.mark.parametrize("stream", [True], ids=["stream"], indirect=True)
PLAIN = pytest.mark.parametrize("stream", [False], ids=["plain"], indirect=True)


def always(fault: Fault) -> Scenario:
    return Scenario(rules=(FaultRule(fault),))


async def until(true: Callable[[], bool]) -> None:
    """Wait until something has happened that tells nobody."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.001)


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def narrow(wall) -> Any:
    """A client whose machine takes little that it has not read."""
    transport = httpx2.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)])
    return wall.client(http_client=openai.DefaultAsyncHttpxClient(transport=transport), timeout=30)


# 18. A client that reads slowly.


@STREAMED
async def test_a_slow_reader_holds_the_provider_back_and_gets_everything(wall):
    """What nobody reads is not fetched: the provider gets rid of what fits into the sockets on the way, and of no more.

    And the silence that the client makes is not taken for the provider's.
    """
    wall.scene(18, "slow reader of 48 MiB")
    await wall.open(deadlines={"idle": "1s"})
    wall.one.play(always(Fault(huge=MIB // 2)))
    began = time.monotonic()
    stream = await narrow(wall).chat.completions.create(model="lone", stream=True, n=96, **ask("words 1"))
    read = stream.__aiter__()
    got = [await anext(read)]
    (entry,) = wall.one.requests
    sent, quiet = -1, 0
    while quiet < 60:  # until nothing has moved for longer than the provider may be silent
        quiet = quiet + 1 if entry.sent_bytes == sent else 0
        sent = entry.sent_bytes
        await asyncio.sleep(0.02)
    assert sent < 32 * MIB
    assert entry.end == "open"
    async with asyncio.timeout(30):
        got += [chunk async for chunk in read]
    texts = dict.fromkeys(range(96), 0)
    for chunk in got:
        for choice in chunk.choices:
            texts[choice.index] += len(choice.delta.content or "")
    assert set(texts.values()) == {MIB // 2}
    wall.row.saw, wall.row.seconds = f"48 MiB, {sent / MIB:.0f} before it read", time.monotonic() - began
    await wall.books(exact=True)


@PLAIN
async def test_a_slow_reader_of_a_whole_answer_keeps_no_provider_busy(wall):
    wall.scene(18, "slow reader of 24 MiB")
    await wall.open()
    wall.one.play(always(Fault(huge=24 * MIB)))
    began = time.monotonic()
    async with narrow(wall).chat.completions.with_streaming_response.create(model="lone", **ask("words 1")) as answer:
        pieces = answer.iter_bytes(MIB)
        body = [await anext(pieces)]
        (entry,) = await wall.one.finished(1)
        assert entry.end == "completed"  # although its answer is not read yet
        async with asyncio.timeout(30):
            body += [piece async for piece in pieces]
    assert len(json.loads(b"".join(body))["choices"][0]["message"]["content"]) == 24 * MIB
    wall.row.saw, wall.row.seconds = "24 MiB", time.monotonic() - began
    assert (await wall.books(exact=True)).call["outcome"] == "completed"


# 19. A client that goes away, at every possible point.


async def raw(wall, data: bytes) -> None:
    """Send a part of a request, and leave."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(wall.gateway.url.rpartition(":")[2]))
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(0)
    writer.transport.abort()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n"


@PLAIN
@pytest.mark.parametrize("sent", ["nothing", "half a head", "a head", "half a body"])
async def test_a_client_that_goes_before_its_request_is_whole_costs_nothing(wall, sent):
    wall.scene(19, f"client gone after {sent}")
    await wall.open()
    head = HEAD + f"Authorization: Bearer {wall.key}\r\n\r\n".encode()
    await raw(wall, {"nothing": b"", "half a head": head[:40], "a head": head, "half a body": head + b'{"model": "pair", "mess'}[sent])
    seen = await wall.ask("pair", f"say {TEXT}")  # and the next one is none the worse
    assert (seen.text, seen.error) == (TEXT, None)
    wall.row.saw = "the next call: " + str(seen)
    await wall.books(exact=True)
    assert len(wall.one.requests) == 1
    assert wall.gateway.running.proxy.in_flight == 0


POINTS: dict[str, tuple[Fault, int]] = {  # what the provider does, and the chunks that it sends before the client goes
    "while the provider is silent": (Fault(hang=True), 0),
    "after the provider's headers": (Fault(delay_first_token_s=60), 0),
    "after the first token": (Fault(stall_after_chunks=2), 2),
    "in the middle": (Fault(stall_after_chunks=15), 15),
    "before the end": (Fault(stall_after_chunks=32), 32),
}
PLAIN_POINTS: dict[str, tuple[Fault, int]] = {
    "while the provider is silent": (Fault(hang=True), 0),
    "after the provider's headers": (Fault(delay_first_token_s=60), 0),
    "in the middle of the provider's answer": (Fault(stall_after_chunks=4), 4),
}
WHEN = [pytest.param(stream, point, *found, id=f"{point}-{'stream' if stream else 'plain'}")
        for stream, points in ((False, PLAIN_POINTS), (True, POINTS)) for point, found in points.items()]


@pytest.mark.parametrize(("stream", "point", "fault", "chunks"), WHEN, indirect=["stream"])
async def test_a_client_that_goes_away_stops_the_provider_at_once(wall, stream, point, fault, chunks):
    """And what the provider has done by then is paid."""
    wall.scene(19, f"client gone {point}")
    await wall.open()
    wall.one.play(always(fault))
    words: list[str] = []

    async def read() -> None:
        answer = await wall.client().chat.completions.create(model="pair", stream=stream, **ask(f"say {TEXT}"))
        async for chunk in answer:
            words.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    reading = asyncio.create_task(read())
    await until(lambda: bool(wall.one.requests) and wall.one.requests[0].chunks >= chunks and (fault.hang or wall.one.requests[0].status == 200))
    await until(lambda: not stream or len(words) >= min(chunks - 1, 30))
    gone_ns = wall.gateway.running.clock.now_ns()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    (entry,) = await wall.one.finished(1)
    assert (entry.end, wall.two.requests) == ("client_gone", [])
    after_s = (entry.client_gone_ns - gone_ns) / 1e9
    wall.row.saw, wall.row.seconds = f"{len(words)} words; provider closed after {after_s * 1000:.0f} ms", after_s
    assert after_s < GONE_S
    books = await wall.books(exact=False)
    assert (books.call["outcome"], books.attempts) == ("cancelled", [("one/m", "cancelled")])


async def test_a_client_that_goes_while_the_next_target_is_asked_stops_that_one(wall, stream):
    """The first one has failed and is on record as such; a permit or a turn of the second one is not lost: it answers the next call."""
    wall.scene(19, "client gone while the second target is silent")
    await wall.open()
    wall.one.play(always(Fault(status=503)))
    wall.two.play(always(Fault(hang=True, times=1)))
    asking = asyncio.create_task(wall.client().chat.completions.create(model="pair", stream=stream, **ask(f"say {TEXT}")))
    await until(lambda: bool(wall.two.requests))
    gone_ns = wall.gateway.running.clock.now_ns()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (entry,) = await wall.two.finished(1)
    assert (entry.end, (entry.client_gone_ns - gone_ns) / 1e9 < GONE_S) == ("client_gone", True)
    assert (await wall.ask("pair", f"say {TEXT}")).text == TEXT
    wall.row.saw = "gone; the next call: " + wall.row.saw
    books = await wall.books(exact=False)
    attempts = [[(each["target"], each["cause"] or each["end"]) for each in call["attempts"]] for call in books.calls]
    assert attempts == [[("one/m", "status:503"), ("two/m", "cancelled")], [("one/m", "status:503"), ("two/m", "succeeded")]]


async def test_a_client_that_goes_while_the_gateway_waits_to_try_again_is_not_tried_for(wall, stream):
    wall.scene(19, "client gone between two tries")
    await wall.open(attempts=2, cap="20s")
    wall.one.play(always(Fault(status=503, retry_after_s=15)))
    asking = asyncio.create_task(wall.client().chat.completions.create(model="lone", stream=stream, **ask(f"say {TEXT}")))
    await wall.one.finished(1)
    await until(lambda: wall.gateway.running.proxy.in_flight == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    wall.row.saw = "gone"
    books = await wall.books(exact=True)
    assert (books.call["outcome"], books.attempts, len(wall.one.requests)) == ("cancelled", [("one/m", "status:503")], 1)


@STREAMED
async def test_a_client_that_goes_while_another_target_goes_on_stops_that_one(wall):
    wall.scene(19, "client gone in a continuation")
    await wall.open(extra=CONTINUE, target=CONTINUES)
    wall.one.play(always(Fault(cut_after_chunks=5)))
    wall.two.play(always(Fault(stall_after_chunks=5)))
    words: list[str] = []

    async def read() -> None:
        async for chunk in await wall.client().chat.completions.create(model="pair", stream=True, **ask(f"say {TEXT}")):
            words.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    reading = asyncio.create_task(read())
    await until(lambda: len(words) == 8)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    (entry,) = await wall.two.finished(1)
    assert (entry.end, "".join(words).split()) == ("client_gone", TEXT.split()[:8])
    wall.row.saw = "8 words, then gone"
    books = await wall.books(exact=False)
    assert (books.call["outcome"], books.attempts) == ("cancelled", [("one/m", "reset"), ("two/m", "cancelled")])


async def test_a_client_that_goes_while_its_answer_is_written_has_been_served(wall, stream):
    """The provider is done, the books are closed: only the rest of the answer is for nobody. A stream's provider is stopped."""
    wall.scene(19, "client gone while 24 MiB are written")
    await wall.open()
    wall.one.play(always(Fault(huge=MIB // 2 if stream else 24 * MIB)))
    created = narrow(wall).chat.completions.with_streaming_response.create
    async with created(model="lone", stream=stream, n=96 if stream else 1, **ask("words 1")) as answer:
        await anext(answer.iter_bytes(1000))
    (entry,) = await wall.one.finished(1)
    assert entry.end == "client_gone" if stream else "completed"
    books = await wall.books(exact=not stream)
    wall.row.saw = "1000 bytes"
    assert books.call["outcome"] == "cancelled" if stream else "completed"


# 20. Large bodies.


async def sized(wall, size: int) -> tuple[int, str]:
    """A prompt of words of a MiB whose call has a body of that many bytes, as the client sends it."""
    sent: list[int] = []

    async def note(request: httpx2.Request) -> None:
        sent.append(len(request.content))
        raise NotSentError

    async def length(text: str) -> int:
        client = wall.client(http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]}), max_retries=0)
        with pytest.raises(NotSentError):
            await client.chat.completions.create(model="pair", stream=wall.stream, **ask(text))
        return sent[-1]

    words = " ".join(["x" * (MIB - 1)] * (size // MIB))
    over = await length(f"say {words}") - size
    text = words[:-over] if over > 0 else words + "y" * -over
    assert await length(f"say {text}") == size
    return size, text


class NotSentError(Exception):
    """The request is measured and goes nowhere."""


async def test_a_body_of_10_mib_goes_there_and_back(wall):
    """As large as `server.max_body` lets it be, past a target that fails."""
    wall.scene(20, "10 MiB there and back, past a 503")
    await wall.open()
    wall.one.play(always(Fault(status=503)))
    size, text = await sized(wall, 10 * MIB)
    seen = await wall.ask("pair", f"say {text}")
    assert (len(seen.text), seen.text == text, seen.error) == (len(text), True, None)
    assert [entry.body["messages"][0]["content"][4:] == text for entry in (wall.one.requests[0], wall.two.requests[0])] == [True, True]
    books = await wall.books(exact=True)
    assert (books.attempts[-1], size) == (("two/m", "succeeded"), 10 * MIB)


async def test_a_body_that_is_a_byte_larger_is_refused_and_never_sent(wall):
    wall.scene(20, "a byte over `server.max_body`")
    await wall.open()
    _size, text = await sized(wall, 10 * MIB + 1)
    seen = await wall.ask("pair", f"say {text}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code) == (413, "body_too_large")
    books = await wall.books(exact=True)
    assert (wall.one.requests, books.booked_nusd) == ([], 0)


# 21. Many at once.


async def test_200_calls_are_open_at_once_and_each_gets_its_own_answer(wall, stream):
    """The 5,000 are a benchmark; what must hold for each of them is shown here."""
    wall.scene(21, "200 at once")
    await wall.open()
    wall.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.1) if stream else Fault(delay_headers_s=2.0)))
    client = wall.client(max_retries=0)
    calls = [asyncio.create_task(wall.ask("pair", f"say call {n} {'and on ' * 5}to the end", client=client)) for n in range(200)]
    await until(lambda: len(wall.one.requests) == 200)
    assert wall.gateway.running.proxy.in_flight == 200
    seen = await asyncio.gather(*calls)
    assert [(each.text, each.error) for each in seen] == [(f"call {n} {'and on ' * 5}to the end", None) for n in range(200)]
    wall.row.saw, wall.row.seconds = "200 whole answers", max(each.seconds for each in seen)
    await wall.books(exact=True)
    assert (len(wall.one.requests), wall.two.requests, wall.gateway.running.proxy.in_flight) == (200, [], 0)


# The client's own deadlines.


async def test_a_client_that_says_how_long_it_waits_hears_before_that(wall, slack_s):
    """`X-Lockgate-Deadline-Ms` is for the whole call, past all targets."""
    wall.scene(6, "silence, X-Lockgate-Deadline-Ms: 600")
    await wall.open()
    for each in (wall.one, wall.two):
        each.play(always(Fault(hang=True)))
    seen = await wall.ask("pair", f"say {TEXT}", extra_headers={"X-Lockgate-Deadline-Ms": "600"})
    assert (seen.status, seen.code) == (504, "upstream_timeout")
    assert 0.3 <= seen.seconds < slack_s
    books = await wall.books(exact=False)
    assert books.attempts == [("one/m", "timeout:total")]


@STREAMED
async def test_a_client_that_gives_a_deadline_gets_what_came_until_then(wall, slack_s):
    wall.scene(17, "slow drip, X-Lockgate-Deadline-Ms: 600")
    await wall.open()
    wall.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.1)))
    seen = await wall.ask("pair", f"say {TEXT}", extra_headers={"X-Lockgate-Deadline-Ms": "600"})
    assert (seen.status, seen.code) == (None, "upstream_timeout")
    assert seen.text
    assert TEXT.startswith(seen.text)
    assert seen.seconds < 0.6 + slack_s
    await wall.books(exact=False)


async def test_an_sdk_hears_of_a_silent_provider_just_before_it_would_have_given_up(wall):
    """It says so itself (`x-stainless-read-timeout`); else it would know nothing but that nobody answered, and ask again."""
    wall.scene(6, "silence, the SDK's own read timeout of 2 s")
    await wall.open()
    for each in (wall.one, wall.two):
        each.play(always(Fault(hang=True)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(timeout=2.0, max_retries=2))
    assert (seen.status, seen.code) == (504, "upstream_timeout")
    assert seen.seconds >= 1.0
    await wall.books(exact=False)
    assert len(wall.one.requests) == 1


@STREAMED
async def test_an_sdk_that_waits_less_than_a_stall_lasts_is_kept_waiting(wall):
    """Its deadline is for silence, and a stream that is open is never silent for so long: it sees what becomes of the stall."""
    wall.scene(9, "stall longer than the SDK's read timeout, gone on with")
    await wall.open(deadlines={"idle": "2s"}, extra=CONTINUE, target=CONTINUES)
    wall.one.play(always(Fault(stall_after_chunks=5)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(timeout=1.0, max_retries=0))
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds >= 2.0
    assert (await wall.books(exact=False)).attempts == [("one/m", "timeout:idle"), ("two/m", "succeeded")]


@STREAMED
async def test_an_sdk_that_waits_less_than_the_provider_thinks_is_kept_waiting_where_the_route_begins_early(wall):
    """What it hears are comments: enough for it to stay until the first token."""
    wall.scene(7, "first token later than the SDK's read timeout, early")
    await wall.open(extra='[route.stream]\nearly = "200ms"\n')
    wall.one.play(always(Fault(delay_first_token_s=2.5)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(timeout=1.0, max_retries=0))
    assert (seen.text, seen.error) == (TEXT, None)
    assert (await wall.books(exact=True)).attempts == [("one/m", "succeeded")]


@STREAMED
async def test_a_stream_that_begins_early_and_finds_nobody_ends_with_an_error_event(wall):
    wall.scene(16, "all dead, the stream has begun early")
    await wall.open(deadlines={"headers": "400ms"}, extra='[route.stream]\nearly = "50ms"\n')
    for each in (wall.one, wall.two):
        each.play(always(Fault(hang=True)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code, seen.text) == (None, "upstream_timeout", "")
    books = await wall.books(exact=False)
    assert (len(wall.one.requests), books.attempts) == (1, [("one/m", "timeout:headers"), ("two/m", "timeout:headers")])


@PLAIN
async def test_a_deadline_of_the_clients_that_cannot_be_read_is_refused(wall):
    wall.scene(6, "X-Lockgate-Deadline-Ms: soon")
    await wall.open()
    seen = await wall.ask("pair", f"say {TEXT}", extra_headers={"X-Lockgate-Deadline-Ms": "soon"})
    assert (seen.status, seen.code) == (400, "invalid_request")
    await wall.books(exact=True)
    assert wall.one.requests == []
