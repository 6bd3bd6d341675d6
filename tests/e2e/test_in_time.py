"""How soon: that a client has gone is known to its provider at once, and a client's deadline counts from when its call came."""

import asyncio
import json
import statistics
import time
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

SOON_S = 20
GONE_S = 0.1  # the promise
CALLS = 20


def head(house: Any, length: int, **headers: str) -> bytes:
    lines = {"Host": "x", "Authorization": f"Bearer {house.key}", "Content-Type": "application/json", "Content-Length": str(length), **headers}
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


async def connect(house: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = house.gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def asked(text: str, *, stream: bool = False, model: str = "fast") -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


@pytest.mark.parametrize(("fault", "stream", "chunks"), [
    (Fault(hang=True), False, 0), (Fault(hang=True), True, 0), (Fault(stall_after_chunks=3), False, 3), (Fault(stall_after_chunks=3), True, 3),
], ids=["waits for an answer", "waits for a stream", "in mid-answer", "in mid-stream"])
async def test_a_provider_hears_within_a_tenth_of_a_second_that_its_client_has_gone(house, fault, stream, chunks):
    """By its own log. Half of the calls may be held up by a busy machine; a gateway that looks only now and then holds up more."""
    await house.open()
    house.one.play(Scenario(rules=(FaultRule(fault),)))
    body = asked("words 50", stream=stream)
    took_s = []
    for number in range(CALLS):
        _reader, writer = await connect(house)
        writer.write(head(house, len(body)) + body)
        async with asyncio.timeout(SOON_S):
            while len(house.one.requests) <= number or house.one.requests[number].chunks < chunks:
                await asyncio.sleep(0.001)
        left_ns = time.time_ns()
        writer.transport.abort()
        entry = (await house.one.finished(number + 1))[number]
        assert entry.end == "client_gone"
        took_s.append((entry.client_gone_ns - left_ns) / 1e9)
    assert statistics.median(took_s) < GONE_S, took_s


async def test_the_time_that_a_call_waits_for_its_place_is_taken_off_its_clients_deadline(house, slow):
    """Its client hears of it in time, and nobody works for it after that."""
    await house.open(config=f"{slow.config}\n[server]\nmax_in_flight = 1\n")
    inside = asyncio.create_task(house.client().chat.completions.create(model="slow", messages=[{"role": "user", "content": "inside"}]))
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    began = time.monotonic()
    late = asyncio.create_task(house.client().chat.completions.create(
        model="slow", messages=[{"role": "user", "content": "late"}], extra_headers={"X-Lockgate-Deadline-Ms": "1600"}))
    async with asyncio.timeout(SOON_S):
        while house.gateway.running.proxy.admission.waiting != 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))
        slow.go.set()
        await inside
        slow.go.clear()  # who comes now is not answered
        await slow.arrived.acquire()
        with pytest.raises(openai.InternalServerError) as caught:
            await late
    assert time.monotonic() - began < 2.1  # with its whole deadline from when it was let in it would be 2.5
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    assert [each["messages"][0]["content"] for each in slow.bodies] == ["inside", "late"]  # and it was not sent twice


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("header", "answered"), [({"X-Lockgate-Deadline-Ms": "200"}, False), ({"X-Stainless-Read-Timeout": "0.2"}, True)],
                         ids=["the call's", "an SDK's"])
async def test_the_time_that_a_body_takes_is_the_calls_own_and_not_its_sdks(house, header, answered, stream):
    """An SDK waits for an answer once it has sent its request. What is over before anything was sent is not sent."""
    await house.open(config='[budgets.all]\nscope = "all"\nlimit = "1.00"\n')
    body = asked("say made it", stream=stream)
    reader, writer = await connect(house)
    writer.write(head(house, len(body), **header, Connection="close") + body[:10])
    await asyncio.sleep(0.3)
    writer.write(body[10:])
    got = await asyncio.wait_for(reader.read(), SOON_S)
    writer.close()
    await writer.wait_closed()
    assert got.startswith(b"HTTP/1.1 200" if answered else b"HTTP/1.1 504")
    assert (b"made" in got) is answered
    assert len(house.one.requests) == (1 if answered else 0)
    spent = await house.spent("all/all")
    assert (spent > 0) is answered
