"""Every call has exactly one outcome, whatever the store, the provider, the client or the operator do meanwhile."""

import asyncio
import json

import openai
import pytest
from aiohttp import web

from gateway.app import KEYS_S, Parts
from gateway.errors import StoreUnavailable
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.sqlite import SqliteStore

STALLS = Scenario(rules=(FaultRule(Fault(stall_after_chunks=3)),))


class Flaky:
    """A journal whose verbs fail so many times before they work."""

    def __init__(self, journal, **failures: int) -> None:
        self._journal = journal
        self.failures = failures

    def __getattr__(self, name: str):
        verb = getattr(self._journal, name)

        async def attempt(*args: object, **kwargs: object) -> object:
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise StoreUnavailable("the disk is busy")
            return await verb(*args, **kwargs)

        return attempt


def flaky_store(house, **failures: int) -> SqliteStore:
    store = SqliteStore(house.folder / "lockgate.db", "tests")
    store.journal = Flaky(store.journal, **failures)
    return store


def assert_doctor_is_content(house) -> None:
    connection = open_readonly(house.folder / "lockgate.db")
    try:
        findings = [finding for finding in examine(connection, now_ns=house.gateway.app.clock.now_ns()) if not finding.invariant.note]
    finally:
        connection.close()
    assert findings == []


@pytest.mark.parametrize("failures", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_outcome_that_the_store_could_not_take_is_written_when_it_can_once_and_as_the_client_saw_it(house, messages, stream, failures):
    await house.open(parts=Parts(store=flaky_store(house, finish=failures)))
    with pytest.raises(openai.APIError) as caught:
        answer = await house.client().chat.completions.create(model="fast", messages=messages("say a b"), stream=stream)
        async for _chunk in answer:
            pass
    assert caught.value.code == "store_unavailable"
    async with asyncio.timeout(30):
        while (row := (await house.calls())[0])["outcome"] == "open":
            await asyncio.sleep(0)
    assert (row["outcome"], row["code"]) == ("cut" if stream else "failed", "store_unavailable")
    assert row["cost_usd"] is not None  # the provider did its work, and the books say so
    await house.gateway.app.telemetry.scrape()
    lines = [json.loads(line) for line in b"".join(house.lines).splitlines()]
    assert len([line for line in lines if line["event"] == "call"]) == 1
    assert_doctor_is_content(house)


async def test_an_attempt_whose_intent_could_not_be_written_was_none(house, messages):
    await house.open(parts=Parts(store=flaky_store(house, dispatch=1)))
    house.one.play(Scenario(rules=(FaultRule(Fault(status=500)),)))
    with pytest.raises(openai.InternalServerError):
        await house.client().chat.completions.create(model="backed-up", messages=messages("hi"))
    await house.gateway.app.proxy.settler.drained()
    (row,) = await house.calls()
    assert [attempt["target"] for attempt in (await house.call(row["id"]))["attempts"]] == ["one/sim-large"]
    assert house.two.requests == []
    assert_doctor_is_content(house)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_stop_waits_as_long_as_it_is_told_then_tells_the_client_and_closes_the_books(house, messages, stream):
    await house.open(config='[server]\ndrain_timeout = "100ms"\n')
    house.one.play(STALLS if stream else Scenario(rules=(FaultRule(Fault(hang=True)),)))

    async def call() -> None:
        answer = await house.client().chat.completions.create(model="fast", messages=messages("words 30"), stream=stream)
        async for _chunk in answer:
            pass

    waiting = asyncio.create_task(call())
    async with asyncio.timeout(30):
        while not house.one.requests or (stream and house.one.requests[0].chunks < 3):
            await asyncio.sleep(0)
        await house.gateway.app.stop()
        with pytest.raises(openai.APIError) as caught:
            await waiting
    assert caught.value.code == "overloaded"
    assert_doctor_is_content(house)
    connection = open_readonly(house.folder / "lockgate.db")
    rows = connection.execute("SELECT outcome, code FROM outcomes").fetchall()
    connection.close()
    assert rows == [("cut" if stream else "failed", "overloaded")]
    (entry,) = await house.one.finished(1)
    assert entry.end == "client_gone"


async def test_a_stop_while_nothing_runs_does_not_wait(house):
    await house.open(config='[server]\ndrain_timeout = "24h"\n')
    async with asyncio.timeout(10):
        await house.gateway.app.stop()


@pytest.mark.parametrize(("status", "told"), [(400, 400), (503, 502)])
@pytest.mark.parametrize("body", ["huge", "cut"])
async def test_an_error_page_that_is_huge_or_cut_does_not_change_what_its_status_means(house, messages, aiohttp_server, status, told, body):
    async def fail(request: web.Request) -> web.StreamResponse:
        if body == "huge":
            return web.Response(status=status, text="x" * 200_000)
        answer = web.StreamResponse(status=status, headers={"Content-Length": "1000"})
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", fail)
    provider = await aiohttp_server(app)
    await house.open(
        config=f'[providers.bad]\nadapter = "openai"\nbase_url = "{provider.make_url("/v1")}"\n',
        routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "bad"\nmodel = "m"\n[route.retry]\nattempts = 2\nbase = "1ms"\n')
    with pytest.raises(openai.APIStatusError) as caught:
        await house.client().chat.completions.create(model="r", messages=messages("hi"))
    assert caught.value.status_code == told
    (row,) = await house.calls()
    attempts = (await house.call(row["id"]))["attempts"]
    assert len(attempts) == (1 if status == 400 else 2)


SILENT = """
from gateway.wire import Event, UpstreamRequest

class Decoder:
    def feed(self, data): ...
    def next_event(self): return None

class Silent:
    name = "silent"
    operations = frozenset({"chat"})
    def encode(self, call, target, api_key): return UpstreamRequest("POST", "/chat/completions", {}, b"{}")
    def decode(self, call, body): ...
    def decode_error(self, status, headers, body): ...
    def decoder(self, call): return Decoder()
    def health(self, path, api_key): ...

ADAPTER = Silent()
"""


async def test_an_adapter_that_says_nothing_of_a_streams_end_does_not_freeze_the_gateway(house, messages, aiohttp_server):
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=b"whatever")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    provider = await aiohttp_server(app)
    house.write("adapters/silent.py", SILENT)
    await house.open(
        config=f'[providers.silent]\nadapter = "silent"\nbase_url = "{provider.make_url("/v1")}"\n',
        routes='[[route]]\nname = "r"\noperations = ["chat"]\n[[route.targets]]\nprovider = "silent"\nmodel = "m"\n[route.retry]\nattempts = 1\n')
    with pytest.raises(openai.APIStatusError) as caught:
        await house.client().chat.completions.create(model="r", messages=messages("hi"), stream=True)
    assert caught.value.code == "upstream_failed"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_provider_that_repeats_its_key_in_an_answer_gives_it_to_nobody(house, messages, stream):
    await house.open()
    secret = "sk-provider-key-one-0123456789"
    answer = await house.client().chat.completions.create(model="fast", messages=messages(f"say {secret}"), stream=stream)
    text = "".join([c.choices[0].delta.content or "" async for c in answer if c.choices]) if stream else answer.choices[0].message.content
    assert text == "[secret]"
    (row,) = await house.calls()
    assert secret not in json.dumps(await house.call(row["id"]))


async def test_a_stream_larger_than_its_provider_may_send_is_ended_as_broken(house, messages):
    await house.open(config=f'[providers.small]\nadapter = "openai"\nbase_url = "{house.one.url}"\nmax_answer = "4KiB"\n',
                     routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "small"\nmodel = "m"\n')
    with pytest.raises(openai.APIError) as caught:  # by a status, or within the stream, as its bytes come
        async for _chunk in await house.client().chat.completions.create(model="r", messages=messages("words 2000"), stream=True):
            pass
    assert "too_large" in str(caught.value.message)


async def test_a_start_that_fails_leaves_nothing_in_its_host(house, monkeypatch):
    async def fail(_self: object) -> None:
        raise RuntimeError("no telemetry")

    monkeypatch.setattr("gateway.telemetry.Telemetry.start", fail)
    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="no telemetry"):
        await house.open()
    assert asyncio.all_tasks() <= before
    connection = open_readonly(house.folder / "lockgate.db")
    owners = connection.execute("SELECT count(*) FROM owners").fetchone()
    connection.close()
    assert owners == (0,)


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(house, messages):
    await house.open()
    url = house.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(url[0], int(url[1]))
    body = json.dumps({"model": "fast", "messages": messages("say went on")}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    writer.write(head.encode())
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(body)
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"went on" in answer


async def test_a_changed_key_is_seen_within_a_second(house, messages):
    await house.open()
    app = house.gateway.app
    before = app.keyring._generation
    key_id = house.key.split("_")[1]
    await app.store.keys.revoke(key_id, now_ns=app.clock.now_ns())
    async with asyncio.timeout(5):
        while app.keyring._generation == before:
            await asyncio.sleep(0)
    assert KEYS_S <= 0.5  # how often it looks; the time itself is not for a test to measure
    with pytest.raises(openai.AuthenticationError):
        await house.client().chat.completions.create(model="fast", messages=messages("hi"))
