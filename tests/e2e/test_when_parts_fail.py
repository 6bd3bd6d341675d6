"""A part of the gateway fails: the client gets one clear error, the books are closed, and nothing unrecorded leaves."""

import json

import openai
import pytest

from gateway.app import Parts
from gateway.errors import StoreUnavailable
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.memory import MemoryStore


class Failing:
    """A journal that fails where it is told to."""

    def __init__(self, journal, *verbs: str) -> None:
        self._journal = journal
        self.verbs = set(verbs)

    def __getattr__(self, name: str):
        if name in self.verbs:
            async def fail(*_args: object, **_kwargs: object) -> None:
                raise StoreUnavailable("the disk is full")
            return fail
        return getattr(self._journal, name)


def store_that_fails(*verbs: str) -> MemoryStore:
    store = MemoryStore("tests")
    store.journal = Failing(store.journal, *verbs)
    return store


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_what_cannot_be_recorded_is_not_sent(house, messages, stream):
    await house.open(parts=Parts(store=store_that_fails("begin")))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client().chat.completions.create(model="fast", messages=messages("hi"), stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "store_unavailable")
    assert caught.value.response.headers["x-should-retry"] == "true"
    assert house.one.requests == []


async def test_an_answer_whose_record_cannot_be_written_is_not_given(house, messages):
    await house.open(parts=Parts(store=store_that_fails("finish")))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client().chat.completions.create(model="fast", messages=messages("say secret"))
    assert caught.value.code == "store_unavailable"
    assert "secret" not in caught.value.response.text


async def test_a_stream_whose_record_cannot_be_written_does_not_end_as_complete(house, messages):
    await house.open(parts=Parts(store=store_that_fails("finish")))
    stream = await house.client().chat.completions.create(model="fast", messages=messages("say a b"), stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _chunk in stream:
            pass
    assert caught.value.code == "store_unavailable"


async def test_a_further_attempt_that_cannot_be_recorded_is_not_sent(house, messages):
    await house.open(parts=Parts(store=store_that_fails("dispatch")))
    house.one.play(Scenario(rules=(FaultRule(Fault(status=500)),)))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client().chat.completions.create(model="backed-up", messages=messages("hi"))
    assert caught.value.code == "store_unavailable"
    assert house.two.requests == []


async def test_a_denial_that_cannot_be_recorded_still_denies(house, messages):
    await house.open(parts=Parts(store=store_that_fails("refuse")), policies='[[rule]]\nid = "no"\neffect = "deny"\nmessage = "no"\n')
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client().chat.completions.create(model="fast", messages=messages("hi"))
    assert caught.value.code == "store_unavailable"
    assert house.one.requests == []


async def test_a_store_that_is_down_is_not_ready_and_does_not_turn_keys_away(house, messages, monkeypatch):
    """Valid keys must never become 401 because a database is down."""
    store = MemoryStore("tests")

    async def down(*_args: object) -> None:
        raise StoreUnavailable("the disk is gone")

    await house.open(parts=Parts(store=store))
    monkeypatch.setattr(store, "check", down)
    monkeypatch.setattr(store.keys, "generation", down)
    await house.gateway.app.keyring.refresh()
    session = await house.http()
    async with session.get("/readyz") as answer:
        assert answer.status == 503
        assert "store: unavailable" in json.dumps(await answer.json())
    async with session.get("/healthz") as answer:
        assert answer.status == 200
    assert (await house.client().chat.completions.create(model="fast", messages=messages("say in"))).choices[0].message.content == "in"


BROKEN = """
from gateway.wire import AttemptFailed, Reply, UpstreamRequest

class Broken:
    name = "broken"
    operations = frozenset({"chat"})
    def encode(self, call, target, api_key):
        raise RuntimeError("sk-provider-key-one-0123456789 in an adapter's defect")
    def decode(self, call, body): ...
    def decode_error(self, status, headers, body): ...
    def decoder(self, call): ...
    def health(self, path, api_key): ...

ADAPTER = Broken()
"""


async def test_a_defect_is_one_error_with_an_id_that_is_in_the_log_and_a_closed_record(house, messages):
    house.write("adapters/broken.py", BROKEN)
    await house.open(config='[providers.broken]\nadapter = "broken"\nbase_url = "http://127.0.0.1:1"\n',
                     routes='[[route]]\nname = "r"\noperations = ["chat"]\n[[route.targets]]\nprovider = "broken"\nmodel = "m"\n')
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client().chat.completions.create(model="r", messages=messages("hi"))
    assert (caught.value.status_code, caught.value.code) == (500, "internal_error")
    assert "RuntimeError" not in caught.value.response.text
    await house.gateway.app.proxy.settler.drained()
    (row,) = await house.calls()
    assert (row["outcome"], row["code"]) == ("failed", "internal_error")
    await house.gateway.app.telemetry.scrape()
    log = b"".join(house.lines)
    assert b"RuntimeError" in log
    assert caught.value.body["call_id"] == row["id"]
    assert row["id"].encode() in log
    assert b"sk-provider-key-one" not in log
    assert house.gateway.app.proxy.in_flight == 0


async def test_draining_is_seen_at_readyz_before_the_doors_close(house):
    await house.open()
    house.gateway.app.control.draining = True
    session = await house.http()
    async with session.get("/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["draining"]


async def test_metrics_and_the_log_tell_of_each_call_without_secrets(house, messages):
    await house.open()
    await house.client().chat.completions.create(model="fast", messages=messages("hi"))
    session = await house.http()
    async with session.get("/metrics") as answer:
        text = await answer.text()
    assert "lockgate_calls_total{" in text
    lines = [json.loads(line) for line in b"".join(house.lines).splitlines()]
    (call,) = [line for line in lines if line["event"] == "call"]
    assert call["outcome"] == "completed"
    assert house.key not in b"".join(house.lines).decode()
