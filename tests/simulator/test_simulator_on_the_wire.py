"""Every fault as a client sees it, plain and streamed, and what the log says of it. The log is what other tests believe."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest

from gateway.simulator import Fault, FaultRule, Simulator
from gateway.simulator.answer import Billed
from gateway.simulator.scenario import Scenario

SLOT_S = 0.005  # what a piece of a paced stream may be late
EVENTS = "text/event-stream; charset=utf-8"


async def call(bare: aiohttp.ClientSession, sim: Simulator, body: object,
               fault: str | None = None) -> tuple[int | None, str | None, bytes, str | None]:
    """Status, content type, the bytes that came, and the name of the error that ended them."""
    headers = {} if fault is None else {"x-sim-fault": fault}
    received = b""
    try:
        async with bare.post(f"{sim.url}/chat/completions", json=body, headers=headers) as answer:
            status, kind = answer.status, answer.headers.get("content-type")
            try:
                async for piece in answer.content.iter_any():
                    received += piece
            except aiohttp.ClientError as error:
                return status, kind, received, type(error).__name__
            return status, kind, received, None
    except aiohttp.ClientError as error:
        return None, None, received, type(error).__name__


def events(received: bytes) -> list[bytes]:
    return [part.removeprefix(b"data: ") for part in received.split(b"\n\n") if part]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 502, 503, 529])
async def test_a_status_comes_with_an_openai_error_and_retry_after(bare, sim, ask, status, stream):
    async with bare.post(f"{sim.url}/chat/completions", json=ask(stream=stream),
                         headers={"x-sim-fault": f"status={status};retry_after=2"}) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (status, "2")
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
    [entry] = await sim.finished(1)
    assert (entry.status, entry.end, entry.usage) == (status, "completed", None)
    assert entry.fault == {"status": status, "retry_after_s": 2.0}


async def test_the_official_client_sees_its_error_classes(client, ask):
    for fault, error in (("status=429", openai.RateLimitError), ("status=500", openai.InternalServerError),
                         ("status=403", openai.PermissionDeniedError), ("status=422", openai.UnprocessableEntityError),
                         ("reset", openai.APIConnectionError), ("cut_after_chunks=2", openai.APIConnectionError)):
        with pytest.raises(error):
            await client.chat.completions.create(**ask(), extra_headers={"x-sim-fault": fault})


async def test_the_models_name_carries_a_fault_too_and_is_shown_without_it(client, sim):
    """A gateway forwards a model's name, not a client's headers."""
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await client.embeddings.create(model="sim-embedding!status=503;times=2", input="x")
    answer = await client.embeddings.create(model="sim-embedding!status=503;times=2", input="x")
    assert answer.model == "sim-embedding"
    assert [entry.status for entry in await sim.finished(3)] == [503, 503, 200]
    assert sim.requests[0].body["model"] == "sim-embedding!status=503;times=2"


@pytest.mark.parametrize("fault", ["statis=1", "{", "status=503;hang"])
async def test_a_fault_that_cannot_be_read_is_a_400(client, ask, fault):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**ask(), extra_headers={"x-sim-fault": fault})
    assert caught.value.code == "invalid_fault"


@pytest.mark.parametrize("stream", [False, True])
async def test_reset_closes_before_any_answer(bare, sim, ask, stream):
    status, _kind, _received, error = await call(bare, sim, ask(stream=stream), "reset")
    assert status is None
    assert error in ("ClientOSError", "ServerDisconnectedError")
    [entry] = await sim.finished(1)
    assert (entry.end, entry.status, entry.sent_bytes) == ("cut", 0, 0)


async def test_a_cut_stream_is_reset_after_its_chunks(bare, sim, ask):
    status, kind, received, error = await call(bare, sim, ask("say a b c d", stream=True), "cut_after_chunks=3")
    assert (status, kind, len(events(received))) == (200, EVENTS, 3)
    assert error in ("ClientOSError", "ClientPayloadError")
    [entry] = await sim.finished(1)
    assert (entry.end, entry.chunks, entry.sent_bytes, entry.usage) == ("cut", 3, len(received), None)


async def test_a_cut_waits_until_a_large_chunk_has_left_the_process(bare, sim, ask):
    """What is then still in the kernels is lost with the connection, as it is when a real one breaks."""
    _status, _kind, received, error = await call(bare, sim, ask(stream=True), "huge=8MiB;cut_after_chunks=2")
    assert error in ("ClientOSError", "ClientPayloadError")
    [entry] = await sim.finished(1)
    assert (entry.end, entry.chunks) == ("cut", 2)
    assert 1024 * 1024 < len(received) <= entry.sent_bytes


@pytest.mark.parametrize("more", ["", ";cut_after_chunks=2"])
async def test_a_client_that_leaves_while_it_is_being_written_to_is_noticed(bare, sim, ask, more):
    async with bare.post(f"{sim.url}/chat/completions", json=ask(stream=True),
                         headers={"x-sim-fault": f"huge=64MiB{more}"}) as answer:
        await answer.content.readany()
        answer.connection.transport.abort()
    [entry] = await sim.finished(1)
    assert (entry.end, entry.usage) == ("client_gone", None)


@pytest.mark.parametrize(("chunks", "sent"), [(0, 0), (2, 128), (1000, None)])
async def test_a_cut_plain_answer_stops_short_of_its_length(bare, sim, ask, chunks, sent):
    _status, _kind, received, error = await call(bare, sim, ask(), f"cut_after_chunks={chunks}")
    assert error == "ClientPayloadError"
    [entry] = await sim.finished(1)
    assert entry.end == "cut"
    assert len(received) == entry.sent_bytes
    assert sent is None or len(received) == sent


async def test_an_ended_stream_stops_cleanly_without_reason_or_done(bare, sim, ask):
    _status, _kind, received, error = await call(bare, sim, ask("say a b c d", stream=True), "end_after_chunks=2")
    assert (error, len(events(received))) == (None, 2)
    assert b"DONE" not in received
    [entry] = await sim.finished(1)
    assert (entry.end, entry.chunks) == ("cut", 2)


async def test_an_ended_plain_answer_is_half_a_document_of_the_right_length(bare, sim, ask):
    status, _kind, received, error = await call(bare, sim, ask(), "end_after_chunks=1")
    assert (status, error, len(received)) == (200, None, 64)
    assert (await sim.finished(1))[0].end == "cut"


@pytest.mark.parametrize(("fault", "stream", "size"), [
    ("hang", False, 0), ("hang", True, 0), ("stall_after_chunks=2", False, 128), ("stall_after_chunks=1", True, 1)])
async def test_a_hang_or_stall_ends_when_the_client_leaves(bare, sim, ask, fault, stream, size):
    async def read() -> None:
        async with bare.post(f"{sim.url}/chat/completions", json=ask(stream=stream),
                             headers={"x-sim-fault": fault}) as answer:
            await answer.content.readexactly(size)
            arrived.set()
            await answer.content.read()
    arrived = asyncio.Event()
    task = asyncio.create_task(read())
    async with asyncio.timeout(10):
        if size:
            await arrived.wait()
        else:  # no byte will come; the request itself has to be there before the client leaves
            while not (sim.requests and sim.requests[0].fault):
                await asyncio.sleep(0)
    task.cancel()
    [entry] = await sim.finished(1)
    assert (entry.end, entry.client_gone_ns) == ("client_gone", entry.finished_ns)
    assert entry.client_gone_ns >= entry.received_ns


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_ends_with_the_simulator(ask, bare, stream):
    async with Simulator() as sim:
        task = asyncio.create_task(call(bare, sim, ask(stream=stream), "stall_after_chunks=0"))
        async with asyncio.timeout(10):
            while not (sim.requests and sim.requests[0].status):
                await asyncio.sleep(0)
    assert (await task)[3] == "ClientPayloadError"
    assert [entry.end for entry in sim.requests] == ["cut"]
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not any("gateway/simulator" in repr(one) for one in others)


@pytest.mark.parametrize(("kind", "start"), [("json", b'{"id"'), ("bytes", b"\xff\xfe"), ("shape", b'{"unexpected"')])
async def test_garbage_replaces_a_plain_answer_and_interrupts_a_stream(bare, sim, ask, kind, start):
    status, _type, received, error = await call(bare, sim, ask(), f"garbage={kind}")
    assert (status, error) == (200, None)
    assert received.startswith(start)
    _status, _type, received, _error = await call(
        bare, sim, ask("say a b", stream=True), f"garbage={kind};garbage_after_chunks=2")
    parts = events(received)
    assert parts[2].startswith(start)
    assert json.loads(parts[1])["choices"][0]["delta"] == {"content": "a"}
    assert json.loads(parts[3])["choices"][0]["delta"] == {"content": " b"}
    assert parts[-1] == b"[DONE]"


@pytest.mark.parametrize("stream", [False, True])
async def test_html_comes_with_200_and_its_own_type(bare, sim, ask, stream):
    status, kind, received, _error = await call(bare, sim, ask(stream=stream), "garbage=html")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"502 Bad Gateway" in received


@pytest.mark.parametrize(("stream", "kind"), [(False, "application/json"), (True, EVENTS)])
async def test_empty_is_200_and_nothing(bare, sim, ask, stream, kind):
    assert await call(bare, sim, ask(stream=stream), "empty") == (200, kind, b"", None)


async def test_an_error_event_ends_a_200_stream(client, bare, sim, ask):
    _status, _kind, received, error = await call(
        bare, sim, ask("say a b c", stream=True), "error_event_after_chunks=2")
    parts = events(received)
    assert (error, len(parts)) == (None, 3)
    assert json.loads(parts[2])["error"]["type"] == "server_error"
    with pytest.raises(openai.APIError):
        async for _chunk in await client.chat.completions.create(
                **ask(stream=True), extra_headers={"x-sim-fault": "error_event_after_chunks=2"}):
            pass
    status, _kind, received, _error = await call(bare, sim, ask(), "error_event_after_chunks=2")
    assert (status, list(json.loads(received))) == (200, ["error"])


async def test_usage_is_left_out_on_request(bare, sim, ask):
    _status, _kind, received, _error = await call(bare, sim, ask(), "no_usage")
    assert "usage" not in json.loads(received)
    body = ask(stream=True, stream_options={"include_usage": True})
    _status, _kind, received, _error = await call(bare, sim, body, "no_usage")
    assert b"usage" not in received
    assert [entry.usage for entry in await sim.finished(2)] == [None, None]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_ignores_limits_says_all_it_has_to_say(bare, sim, ask, stream):
    limits = {"max_tokens": 2, "max_completion_tokens": 3}
    await call(bare, sim, ask("words 40", stream=stream, **limits), "ignore_limits")
    await call(bare, sim, ask("words 40", stream=stream, **limits))
    completion = {"model": "sim-model", "prompt": "words 40", "max_tokens": 2, "stream": stream}
    async with bare.post(f"{sim.url}/completions", json=completion, headers={"x-sim-fault": "ignore_limits"}) as answer:
        await answer.read()
    assert [entry.billed.completion_tokens for entry in await sim.finished(3)] == [40, 3, 40]


@pytest.mark.parametrize("usage", [True, False])
async def test_what_is_billed_is_what_a_whole_answer_tells(bare, sim, ask, usage):
    """However it is sent, and with several choices, tool calls and hidden reasoning in it."""
    tools = [{"type": "function", "function": {"name": "pay"}}]
    asked = ask('call pay {"amount": 100000}', tools=tools, n=2, reasoning_effort="low")
    fault = "" if usage else "no_usage"
    await call(bare, sim, asked, fault)
    await call(bare, sim, {**asked, "stream": True, "stream_options": {"include_usage": True}}, fault)
    await call(bare, sim, {**asked, "stream": True}, fault)
    await call(bare, sim, {**asked, "stream": True}, f"{fault};chunk_bytes=7")
    entries = await sim.finished(4)
    assert {entry.billed for entry in entries} == {Billed(4 + 4 + 10 + 3, 2 * (16 + 1 + 3))}
    assert [entry.usage is None for entry in entries] == [not usage, not usage, True, True]
    told = entries[0].to_json()
    if usage:
        assert told["billed"] == {name: told["usage"][name] for name in ("prompt_tokens", "completion_tokens")}


async def test_embeddings_bill_their_input_and_lists_of_models_nothing(bare, sim):
    async with bare.post(f"{sim.url}/embeddings", json={"model": "sim-embedding", "input": ["a b", "c"]}) as answer:
        assert (await answer.json())["usage"]["prompt_tokens"] == 3
    async with bare.get(f"{sim.url}/models") as answer:
        await answer.read()
    assert [entry.billed for entry in await sim.finished(2)] == [Billed(3), None]


@pytest.mark.parametrize(("fault", "stream", "completion_tokens"), [
    ("cut_after_chunks=3", True, 2), ("end_after_chunks=1", True, 0), ("error_event_after_chunks=4", True, 3),
    ("garbage=json;garbage_after_chunks=2", True, 5), ("drop_done", True, 5),
    ("reset", True, 5), ("empty", True, 5), ("garbage=html", True, 5),
    ("cut_after_chunks=1", False, 5), ("end_after_chunks=1", False, 5), ("empty", False, 5), ("reset", False, 5), ("garbage=json", False, 5),
])
async def test_what_was_made_is_billed_whatever_becomes_of_it(bare, sim, ask, fault, stream, completion_tokens):
    await call(bare, sim, ask("say a b c d e", stream=stream), fault)
    [entry] = await sim.finished(1)
    assert entry.billed == Billed(4 + 6 + 3, completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_and_refused_requests_bill_nothing(bare, sim, ask, stream):
    await call(bare, sim, ask(stream=stream), "status=503")
    await call(bare, sim, {**ask(stream=stream), "model": "missing"})
    await call(bare, sim, ask(stream=stream), "statis=1")
    assert [entry.billed for entry in await sim.finished(3)] == [None, None, None]


async def test_a_stream_bills_no_more_than_it_had_made_when_its_client_left(bare, sim, ask):
    async with bare.post(f"{sim.url}/chat/completions", json=ask("words 1000", stream=True),
                         headers={"x-sim-fault": "stall_after_chunks=8"}) as answer:
        for _ in range(8):
            await answer.content.readuntil(b"\n\n")
    [entry] = await sim.finished(1)
    assert (entry.end, entry.billed.completion_tokens) == ("client_gone", 7)


@pytest.mark.parametrize("stream", [False, True])
async def test_huge_is_one_text_of_that_size(bare, sim, ask, stream):
    _status, _kind, received, _error = await call(bare, sim, ask(stream=stream), "huge=3MiB")
    biggest = max(events(received), key=len) if stream else received
    choice = json.loads(biggest)["choices"][0]
    assert len(choice["delta" if stream else "message"]["content"]) == 3 * 1024 * 1024


async def test_done_is_dropped_and_the_rest_is_there(bare, sim, ask):
    body = ask(stream=True, stream_options={"include_usage": True})
    _status, _kind, whole, _error = await call(bare, sim, body)
    _status, _kind, received, error = await call(bare, sim, body, "drop_done")
    assert (error, len(events(received))) == (None, len(events(whole)) - 1)
    assert b"DONE" not in received
    one, two = await sim.finished(2)
    assert one.usage == two.usage is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_odd_pieces_are_the_same_bytes(bare, sim, ask, stream, size):
    async with bare.post(f"{sim.url}/chat/completions", json=ask(stream=stream),
                         headers={"x-sim-fault": f"chunk_bytes={size}"}) as answer:
        received = await answer.read()
    _status, _kind, whole, _error = await call(bare, sim, ask(stream=stream))

    def without_id(text: bytes) -> bytes:
        return text.replace(f"{1:024d}".encode(), b"").replace(f"{2:024d}".encode(), b"")
    one, two = await sim.finished(2)
    assert len(without_id(received)) == len(without_id(whole))  # but for `created`, which may have passed a second
    assert one.sent_bytes == two.sent_bytes == len(whole)
    assert not stream or one.chunks == two.chunks == len(events(whole)) - 1


async def test_delays_come_where_they_are_asked_for(bare, ask, hand_clock):
    delays = "delay_headers=1;delay_first_token=2;delay_between_tokens=3"
    async with Simulator(clock=hand_clock) as sim:
        hand_clock.released.clear()
        answer = asyncio.create_task(call(bare, sim, ask("say a b", stream=True), delays))
        places: list[tuple[int, int]] = []
        for delay, place in ((1, (0, 0)), (2, (200, 0)), (3, (200, 1)), (3, (200, 2)), (3, (200, 3))):
            async with asyncio.timeout(10):
                while len(hand_clock.waited) <= len(places):
                    await asyncio.sleep(0)
            places.append((sim.requests[0].status, sim.requests[0].chunks))
            assert places[-1] == place
            assert delay - SLOT_S < hand_clock.waited[-1] < delay + SLOT_S
            hand_clock.released.set()
            hand_clock.released = asyncio.Event()
        assert (await answer)[3] is None
        hand_clock.released.set()
        hand_clock.waited.clear()
        await call(bare, sim, ask("say a b"), delays)
        assert hand_clock.waited[:2] == [1, 2]
        assert all(3 - SLOT_S < waited < 3 + SLOT_S for waited in hand_clock.waited[3:])
        plain = (await sim.finished(2))[1]
        assert plain.end == "completed"
        assert plain.usage is not None


async def test_a_pace_slows_every_answer_and_a_fault_may_set_its_own(bare, ask, hand_clock):
    scenario = Scenario(pacing=Fault(delay_between_tokens_s=0.02), rules=(FaultRule(Fault(delay_headers_s=9.0, times=1)),))
    async with Simulator(scenario, clock=hand_clock) as sim:
        await call(bare, sim, ask("say a", stream=True))
        await call(bare, sim, ask("say a", stream=True))
        await call(bare, sim, ask("say a", stream=True), "delay_between_tokens=5")
    assert hand_clock.waited == pytest.approx([9.0, 0.02, 0.02, 0.02, 0.02, 5, 5], abs=SLOT_S)


async def test_an_error_status_does_not_read_more_than_it_must(bare, sim, ask):
    """A body over 64 MiB is refused in OpenAI's shape and the simulator lives on."""
    async def endless() -> AsyncIterator[bytes]:
        piece = b"x" * (1024 * 1024)
        for _ in range(70):
            yield piece
    try:
        async with bare.post(f"{sim.url}/chat/completions", data=endless()) as answer:
            assert answer.status == 413
            assert (await answer.json())["error"]["type"] == "invalid_request_error"
    except aiohttp.ClientConnectionError:
        pass  # the answer may be overtaken by the closing of the connection under the client's own writes
    assert (await sim.finished(1))[0].status == 413
    assert (await call(bare, sim, ask()))[0] == 200


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_noticed(sim):
    host, port = sim.root.removeprefix("http://").split(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    async with asyncio.timeout(10):
        while not sim.requests:
            await asyncio.sleep(0)
    writer.close()
    await writer.wait_closed()
    [entry] = await sim.finished(1)
    assert (entry.end, entry.status) == ("client_gone", 0)


async def test_a_body_that_breaks_its_own_chunking_leaves_the_simulator_up(bare, sim, ask):
    host, port = sim.root.removeprefix("http://").split(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()
    async with asyncio.timeout(10):
        while not sim.requests:
            await asyncio.sleep(0)
    writer.write(b"zz\r\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    [entry] = await sim.finished(1)
    assert (entry.end, entry.status) == ("client_gone", 0)
    assert (await call(bare, sim, ask()))[0] == 200
