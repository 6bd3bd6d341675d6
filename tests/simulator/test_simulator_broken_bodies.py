"""Bodies that are not what their headers say: of another type, of another length, or no error object under an error's status."""

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest

from gateway.simulator import Simulator
from gateway.simulator.answer import Billed


async def raw(bare: aiohttp.ClientSession, sim: Simulator, body: dict[str, Any], fault: str) -> tuple[int, Any, bytes, bool]:
    """Status, headers, the body as far as it came, and whether the client believed that it had come to its end."""
    received = b""
    async with bare.post(f"{sim.url}/chat/completions", json=body, headers={"x-sim-fault": fault}) as answer:
        try:
            async for piece in answer.content.iter_any():
                received += piece
        except aiohttp.ClientPayloadError:
            return answer.status, answer.headers, received, False
        return answer.status, answer.headers, received, True


@pytest.mark.parametrize("stream", [False, True])
async def test_an_honest_body_may_come_under_a_wrong_type(bare, sim, ask, stream):
    _status, honest, body, _whole = await raw(bare, sim, ask("say hi", stream=stream), "no_usage")
    status, headers, wrong, whole = await raw(bare, sim, ask("say hi", stream=stream), "no_usage;content_type=text/html")
    assert (status, headers["content-type"], whole) == (200, "text/html", True)
    assert (len(wrong), honest["content-type"].partition(";")[0]) == (len(body), "text/event-stream" if stream else "application/json")
    assert [entry.end for entry in await sim.finished(2)] == ["completed", "completed"]


async def test_errors_pages_and_lists_of_models_may_have_a_wrong_type_too(bare, sim, ask):
    for fault in ("status=500", "garbage=html", "empty", "cut_after_chunks=1"):
        _status, headers, _body, _whole = await raw(bare, sim, ask(), f"{fault};content_type=text/plain")
        assert headers["content-type"] == "text/plain"
    async with bare.get(f"{sim.url}/models", headers={"x-sim-fault": "content_type=text/html"}) as answer:
        assert answer.headers["content-type"] == "text/html"


@pytest.mark.parametrize("kind", [
    ("html", "text/html; charset=utf-8", b"<!DOCTYPE html>"), ("json", "application/json", b'{"id"'), ("bytes", "application/json", b"\xff")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_may_come_as_a_page_or_as_nonsense(bare, sim, ask, stream, kind):
    kind, content_type, start = kind
    status, headers, body, whole = await raw(bare, sim, ask(stream=stream), f"status=502;retry_after=3;garbage={kind}")
    assert (status, headers["content-type"], headers["retry-after"], whole) == (502, content_type, "3", True)
    assert body.startswith(start)
    [entry] = await sim.finished(1)
    assert (entry.status, entry.billed) == (502, None)


@pytest.mark.parametrize("more", ["", ";chunk_bytes=100"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_length_that_is_too_long_ends_in_a_closed_connection(bare, sim, ask, stream, more):
    _status, headers, body, whole = await raw(bare, sim, ask("say a b c", stream=stream), f"length_off=10{more}")
    assert (int(headers["content-length"]), whole) == (len(body) + 10, False)
    assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)
    [entry] = await sim.finished(1)
    assert (entry.end, entry.sent_bytes, entry.billed) == ("cut", len(body), Billed(11, 3))


@pytest.mark.parametrize(("off", "hidden"), [(-10, 10), (-1_000_000, None)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_length_that_is_too_short_hides_the_end_of_what_is_sent(sim, ask, stream, off, hidden):
    """HTTP sees nothing wrong before the bytes behind the end: who believes the length has half a document, or a stream without its end."""
    body = json.dumps(ask("say a b c", stream=stream)).encode()
    reader, writer = await asyncio.open_connection(*sim.root.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-sim-fault: length_off=%d\r\ncontent-length: %d\r\n\r\n%b"
                 % (off, len(body), body))
    async with asyncio.timeout(10):
        head, _, sent = (await reader.read()).partition(b"\r\n\r\n")  # to the end: the connection is of no use afterwards
    writer.close()
    [length] = re.findall(rb"(?i)content-length: (\d+)", head)
    assert b"chunked" not in head.lower()
    assert len(sent) - int(length) == (hidden or len(sent))
    assert sent.endswith(b"data: [DONE]\n\n") if stream else json.loads(sent)
    [entry] = await sim.finished(1)
    assert (entry.end, entry.sent_bytes) == ("cut", len(sent))


async def test_a_plain_answer_drips_through_to_its_end(bare, ask, moved_clock):
    """Never silent for long, and never done in time: what only a deadline on the whole catches."""
    async with Simulator(clock=moved_clock) as sim:
        async with bare.post(f"{sim.url}/chat/completions", json=ask("say a b c"),
                             headers={"x-sim-fault": "delay_between_tokens=1"}) as answer:
            received = await answer.content.readany()
            while len(received) < answer.content_length:
                assert len(received) % 64 == 0
                await moved_clock.asleep(1)
                await moved_clock.move(1.005)
                received += await answer.content.readany()
        [entry] = await sim.finished(1)
        assert (entry.end, json.loads(received)["usage"]) == ("completed", entry.usage)
        assert (entry.last_byte_ns or 0) - (entry.first_byte_ns or 0) >= 1e9 * (len(received) // 64)


async def test_active_checks_fail_alone_where_only_their_path_does(bare, ask):
    from_path = {"fault": [{"match": {"path": "/v1/models"}, "status": 503}]}
    async with Simulator() as sim:
        async with bare.put(f"{sim.root}/sim/scenario", json=from_path) as answer:
            assert answer.status == 200
        async with bare.get(f"{sim.url}/models") as answer:
            assert answer.status == 503
        assert (await raw(bare, sim, ask(), "times=1"))[0] == 200
        async with bare.post(f"{sim.url}/chat/completions", json=ask()) as answer:
            assert answer.status == 200
