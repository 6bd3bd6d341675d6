"""What a breaker holds against a target and what it does not: nobody may close a target to all others by being slow, hasty or gone."""

import asyncio
import json
import socket
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Match, Scenario

MIB = 1024 * 1024
TOUCHY = '[breaker]\nconsecutive = 2\nopen = "50ms"\nopen_cap = "50ms"\n'
SILENT = Fault(hang=True)
ONE = "one/sim-large"
SOON_S = 20


def routes(*, total: str = "20s", idle: str = "10s", second: bool = False) -> str:
    other = '[[route.targets]]\nprovider = "two"\nmodel = "sim-small"\n' if second else ""
    return f"""
[[route]]
name = "r"
[[route.targets]]
provider = "one"
model = "sim-large"
{other}
[route.deadlines]
first_token = "15s"
idle = "{idle}"
total = "{total}"
[route.retry]
attempts = 1
base = "1ms"
"""


def always(fault: Fault) -> Scenario:
    return Scenario(rules=(FaultRule(fault),))


async def ask(house: Any, *, stream: bool = False, text: str = "say one two three", model: str = "r", **asked: Any) -> str:
    """What the client got; of an error its code."""
    client = house.client()
    try:
        async with asyncio.timeout(SOON_S):
            got = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], stream=stream, **asked)
            if not stream:
                return str(got.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in got if chunk.choices])
    except openai.APIError as error:
        return str(error.code)


async def breaker(house: Any, target: str = ONE) -> dict[str, Any]:
    """A target's breaker as operators see it, once nothing is under way."""
    await idle(house)
    return await seen(house, target)


async def seen(house: Any, target: str = ONE) -> dict[str, Any]:
    session = await house.http()
    async with session.get("/-/breakers", headers={"Authorization": "Bearer admin-token-of-the-tests"}) as answer:
        assert answer.status == 200, await answer.text()
        rows = (await answer.json())["breakers"]
    found: dict[str, Any] = next(row for row in rows if row["target"] == target)
    return found


async def idle(house: Any) -> None:
    app = house.gateway.running
    await app.proxy.idle(SOON_S)
    await app.proxy.settler.drained(SOON_S)


async def attempts(house: Any) -> list[tuple[str, str, str | None]]:
    """Every attempt of every call, the newest call's last."""
    await idle(house)
    found = []
    for row in reversed(await house.calls()):
        found += [(each["target"], each["end"], each["cause"]) for each in (await house.call(row["id"]))["attempts"]]
    return found


async def until_probed(house: Any) -> None:
    """Until the breaker would let a call through to see."""
    async with asyncio.timeout(SOON_S):
        while not (await seen(house))["admits"]:
            await asyncio.sleep(0.005)


both_ways = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


# What is the target's own fault, so that what follows can be told from it.


@both_ways
async def test_a_target_that_does_not_begin_within_the_routes_time_is_late(house, stream):
    await house.open(routes=routes(total="100ms"), config=TOUCHY)
    house.one.play(always(SILENT))
    for _ in range(2):
        assert await ask(house, stream=stream) == "upstream_timeout"
    row = await breaker(house)
    assert (row["state"], row["cause"]) == ("open", "2 calls in a row failed, the last one with timeout:total")


async def test_a_target_that_falls_silent_in_the_middle_of_its_answer_is_at_fault(house):
    await house.open(routes=routes(idle="50ms"), config=TOUCHY)
    house.one.play(always(Fault(stall_after_chunks=3)))
    for _ in range(2):
        assert await ask(house, stream=True) == "upstream_timeout"
    row = await breaker(house)
    assert (row["state"], row["cause"]) == ("open", "2 calls in a row failed, the last one with timeout:idle")


# What clients do.


CALLS_OWN = {"X-Lockgate-Deadline-Ms": "80"}
SDKS = {"X-Stainless-Read-Timeout": "0.08"}
HALF = Fault(stall_after_chunks=2)


@pytest.mark.parametrize(("haste", "stream", "fault"), [
    (CALLS_OWN, False, SILENT), (CALLS_OWN, True, SILENT), (CALLS_OWN, False, HALF), (CALLS_OWN, True, HALF),
    (SDKS, False, SILENT), (SDKS, True, SILENT), (SDKS, False, HALF),  # of a stream that has begun an SDK hears comments in time
], ids=["call, plain, silent", "call, stream, silent", "call, plain, half", "call, stream, half", "sdk, plain, silent", "sdk, stream, silent",
        "sdk, plain, half"])
async def test_a_client_in_a_hurry_opens_no_target(house, haste, stream, fault):
    await house.open(routes=routes(), config=TOUCHY)
    house.one.play(always(fault))
    for _ in range(2):
        assert await ask(house, stream=stream, extra_headers=haste) == "upstream_timeout"
    assert {cause for _target, _end, cause in await attempts(house)} == {"timeout:total"}
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)


@both_ways
@pytest.mark.parametrize("fault", [SILENT, Fault(stall_after_chunks=2)], ids=["silent", "in mid-answer"])
async def test_clients_that_go_away_open_no_target(house, stream, fault):
    await house.open(routes=routes(), config=TOUCHY)
    house.one.play(always(fault))
    for number in range(2):
        asking = asyncio.create_task(ask(house, stream=stream))
        async with asyncio.timeout(SOON_S):
            while len(house.one.requests) <= number or house.one.requests[number].chunks < (fault.stall_after_chunks or 0):
                await asyncio.sleep(0.002)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await house.one.finished(number + 1))[number].end == "client_gone"
    assert {end for _target, end, _cause in await attempts(house)} == {"cancelled"}
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)


async def test_clients_that_read_nothing_open_no_target(house):
    """The provider is quick: the call's time was spent on waiting for the client's socket."""
    await house.open(routes=routes(total="1s"), config=TOUCHY)
    house.one.play(always(Fault(huge=MIB // 2)))
    body = json.dumps({"model": "r", "stream": True, "n": 20, "messages": [{"role": "user", "content": "words 1"}]}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode()
    host, port = house.gateway.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    readers = [socket.socket() for _ in range(2)]
    try:
        for each in readers:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            each.setblocking(False)
            await loop.sock_connect(each, (host, int(port)))
            await loop.sock_sendall(each, head + body)
        async with asyncio.timeout(SOON_S):
            for each in readers:  # the answer has begun; whoever takes no more of it holds it up
                assert (await loop.sock_recv(each, 1024)).startswith(b"HTTP/1.1 200")
            while len(await house.calls(outcome="cut")) < 2:
                await asyncio.sleep(0.02)
    finally:
        for each in readers:
            each.close()
    assert await attempts(house) == [(ONE, "cut", "timeout:total")] * 2
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)


@both_ways
async def test_an_answer_that_is_longer_than_the_routes_time_opens_no_target(house, stream):
    """It speaks all the while: how long an answer is as a whole says nothing of a target."""
    await house.open(routes=routes(total="300ms"), config=TOUCHY)
    house.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.04)))
    for _ in range(2):
        assert await ask(house, stream=stream, text="words 1000") == "upstream_timeout"
    assert {cause for _target, _end, cause in await attempts(house)} == {"timeout:total"}
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)


# What the gateway does by itself.


CLASSIFIED = """
[[route]]
name = "sorted"
[[route.targets]]
provider = "two"
model = "sim-small"
[[route.rules]]
when = 'task == "code"'
targets = ["two/*"]
[route.classifier]
provider = "one"
model = "sim-large"
tasks = ["chat", "code"]
default = "chat"
deadline = "50ms"
"""


async def test_a_classifier_that_is_late_opens_no_target_that_routes_use(house):
    """Its haste is the gateway's own, and whoever writes the texts would choose when it is asked."""
    await house.open(routes=routes() + CLASSIFIED, config=TOUCHY)
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_headers_s=0.2)),)))
    for number in range(3):
        assert await ask(house, model="sorted", text=f"say {number}") == str(number)
    await house.gateway.running.proxy.errands.close(SOON_S, SOON_S)
    made = [each for each in await attempts(house) if each[0] == ONE]
    assert made == [(ONE, "failed", "timeout:total")] * 3
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)
    assert await ask(house) == "one two three"


# A probe.


async def opened(house: Any) -> None:
    """A house in which `one` has failed so often that it is open, and is well by now."""
    await house.open(routes=routes(second=True), config=TOUCHY)
    house.one.play(always(Fault(status=500)))
    for _ in range(2):
        assert await ask(house) == "one two three"
    assert (await breaker(house))["state"] == "open"


async def test_a_streamed_probe_gives_its_permit_back_with_its_first_token(house):
    """Else a target that is well stays shut to all others for as long as one client's answer lasts."""
    await opened(house)
    house.one.play(Scenario(rules=(FaultRule(Fault(stall_after_chunks=3, times=1)),)))
    await until_probed(house)
    lasting = await house.client().chat.completions.create(model="r", messages=[{"role": "user", "content": "words 50"}], stream=True)
    first = await anext(lasting.__aiter__())
    assert first.choices[0].delta.role == "assistant"
    row = await seen(house)
    assert (row["state"], row["probes"], house.one.requests[-1].end) == ("closed", 0, "open")
    assert await ask(house) == "one two three"
    assert (house.one.requests[-1].end, len(house.two.requests)) == ("completed", 2)
    await lasting.close()
    assert {entry.end for entry in (await house.one.finished(4))[2:]} == {"client_gone", "completed"}
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 0)


async def test_what_becomes_of_a_probes_stream_after_its_first_token_counts_as_any_other_calls_does(house):
    await opened(house)
    house.one.play(always(Fault(error_event_after_chunks=3)))
    await until_probed(house)
    assert await ask(house, stream=True) == "upstream_failed"
    row = await breaker(house)
    assert (row["state"], row["failures"]) == ("closed", 1)  # the probe has shown that it answers; this is its first failure since
    assert await ask(house, stream=True) == "upstream_failed"
    row = await breaker(house)
    assert (row["state"], row["trips"], row["cause"]) == ("open", 2, "2 calls in a row failed, the last one with stream_error")


@pytest.mark.parametrize("leaves", ["at once", "in mid-answer"])
async def test_a_probe_whose_client_goes_away_keeps_nobody_out(house, leaves):
    await opened(house)
    fault = SILENT if leaves == "at once" else Fault(stall_after_chunks=2)
    house.one.play(Scenario(rules=(FaultRule(fault, Match(nth=frozenset({1}))),)))
    await until_probed(house)
    asking = asyncio.create_task(ask(house, stream=True))
    async with asyncio.timeout(SOON_S):
        while len(house.one.requests) < 3 or house.one.requests[2].chunks < (fault.stall_after_chunks or 0):
            await asyncio.sleep(0.002)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await house.one.finished(3))[2].end == "client_gone"
    assert (await breaker(house))["probes"] == 0
    assert await ask(house) == "one two three"
    assert len(house.one.requests) == 4
    assert (await breaker(house))["state"] == "closed"


# Slowness.


GAPS = '[breaker]\ncalls = 3\nslow = 0.8\nslow_gap = "{gap}"\nopen = "1h"\nopen_cap = "1h"\n'


async def test_streams_with_long_gaps_open_their_target(house):
    await house.open(routes=routes(second=True), config=GAPS.format(gap="20ms"))
    house.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.05)))
    for _ in range(3):
        assert await ask(house, stream=True, text="say one two") == "one two"
    row = await breaker(house)
    assert (row["state"], row["slow"], row["failures"]) == ("open", 3, 0)
    assert row["cause"].startswith("3 of 3 answers were slow, the last one with a gap of ")
    assert await ask(house, stream=True, text="say one two") == "one two"
    assert (len(house.one.requests), len(house.two.requests)) == (3, 1)


async def test_the_same_streams_open_nothing_where_gaps_may_be_as_long(house):
    """Nor does a plain answer that takes as long: nobody sees how it comes about."""
    await house.open(routes=routes(), config=GAPS.format(gap="15s"))
    house.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.02)))
    for stream in (True, True, True, False):
        assert await ask(house, stream=stream, text="say one two") == "one two"
    row = await breaker(house)
    assert (row["state"], row["slow"], row["calls"]) == ("closed", 0, 4)


async def test_how_long_a_gap_was_is_on_record(house):
    """Of attempts after the first: that is where somebody will look."""
    await house.open(routes=routes(second=True), config=GAPS.format(gap="15s"))
    house.one.play(always(Fault(status=500)))
    house.two.play(Scenario(pacing=Fault(delay_between_tokens_s=0.06)))
    assert await ask(house, stream=True, text="say one two three") == "one two three"
    await idle(house)
    first, second = (await house.call((await house.calls())[0]["id"]))["attempts"]
    assert (first["largest_gap_s"], second["why"]) == (None, "fallback")
    assert second["largest_gap_s"] >= 0.05
