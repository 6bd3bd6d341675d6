"""A provider that fails is met with a retry, the next target, or one clear error; nothing half-done reaches the client."""

import asyncio
import json
import socket
from typing import Any

import aiohttp
import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario


def always(**fault):
    return Scenario(rules=(FaultRule(Fault(**fault)),))


BEFORE_THE_FIRST_BYTE = {
    "a 500": {"status": 500}, "a 503 that asks for a long wait": {"status": 503, "retry_after_s": 30.0},
    "a 429": {"status": 429, "retry_after_s": 30.0}, "a wrong provider key": {"status": 401}, "a reset": {"reset": True},
    "an empty answer": {"empty": True}, "an HTML page": {"garbage": "html"}, "broken JSON": {"garbage": "json"},
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_BYTE.values(), ids=BEFORE_THE_FIRST_BYTE.keys())
async def test_what_fails_before_the_first_byte_falls_back_unseen(house, messages, fault, stream):
    await house.open()
    house.one.play(always(**fault))
    answer = await house.client().chat.completions.create(model="backed-up", messages=messages("say ok"), stream=stream)
    text = "".join([c.choices[0].delta.content or "" async for c in answer if c.choices]) if stream else answer.choices[0].message.content
    assert text == "ok"
    (row,) = await house.calls()
    attempts = (await house.call(row["id"]))["attempts"]
    assert [(a["n"], a["target"], a["end"]) for a in attempts] == [(1, "one/sim-large", "failed"), (2, "two/sim-small", "succeeded")]
    assert attempts[0]["cause"]


async def test_a_target_is_tried_again_before_the_next_one_where_the_route_says_so(house, messages):
    await house.open()
    house.one.play(Scenario(rules=(FaultRule(Fault(status=500, times=1)),)))
    raw = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages("say again"))
    assert raw.headers["x-lockgate-attempts"] == "2"
    assert [entry.client_request_id for entry in await house.one.finished(2)] == [f"{raw.headers['x-lockgate-call']}.{n}" for n in (1, 2)]


async def test_a_dead_port_falls_back(house, messages):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
        await house.open(config=f'[providers.dead]\nadapter = "openai"\nbase_url = "http://127.0.0.1:{dead}/v1"\n', routes="""
[[route]]
name = "r"
[[route.targets]]
provider = "dead"
model = "m"
[[route.targets]]
provider = "two"
model = "sim-small"
[route.retry]
attempts = 1
""")
        raw = await house.client().chat.completions.with_raw_response.create(model="r", messages=messages("say alive"))
    assert raw.headers["x-lockgate-target"] == "two/sim-small"
    (row,) = await house.calls()
    assert (await house.call(row["id"]))["attempts"][0]["cause"] == "connect"


async def test_when_every_target_fails_the_client_gets_one_error_that_lists_them_and_does_not_retry(house, messages):
    await house.open()
    house.one.play(always(status=500))
    house.two.play(always(status=503))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client(max_retries=2).chat.completions.create(model="backed-up", messages=messages("hi"))
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")
    assert "one/sim-large" in caught.value.body["message"]
    assert "two/sim-small" in caught.value.body["message"]
    assert len(await house.one.finished(1)) == 1  # the SDK was told not to try again
    (row,) = await house.calls()
    assert (row["outcome"], row["code"]) == ("failed", "upstream_failed")


async def test_a_silent_provider_costs_its_deadline_and_no_more(house, messages):
    quick = 'name = "r"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n[route.deadlines]\nheaders = "50ms"\n[route.retry]\nattempts = 1\n'
    await house.open(routes=f"[[route]]\n{quick}")
    house.one.play(always(hang=True))
    with pytest.raises(openai.APIStatusError) as caught:
        await house.client().chat.completions.create(model="r", messages=messages("hi"))
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    assert "timeout:headers" in caught.value.body["message"]
    (entry,) = await house.one.finished(1)
    assert entry.end == "client_gone"


async def test_a_first_token_that_never_comes_falls_back_although_headers_came(house, messages):
    await house.open(routes="""
[[route]]
name = "r"
[[route.targets]]
provider = "one"
model = "m"
[[route.targets]]
provider = "two"
model = "m"
[route.deadlines]
first_token = "50ms"
[route.retry]
attempts = 1
""")
    house.one.play(always(delay_first_token_s=60.0))
    stream = await house.client().chat.completions.create(model="r", messages=messages("say here"), stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices]) == "here"
    (row,) = await house.calls()
    assert (await house.call(row["id"]))["attempts"][0]["cause"] == "timeout:first_token"


MIDWAY = {"cut": {"cut_after_chunks": 3}, "end without its end": {"end_after_chunks": 3}, "error event": {"error_event_after_chunks": 3},
          "garbage": {"garbage": "json", "garbage_after_chunks": 3}}


@pytest.mark.parametrize("fault", MIDWAY.values(), ids=MIDWAY.keys())
async def test_a_stream_that_breaks_ends_with_an_error_and_never_as_complete(house, messages, fault):
    await house.open()
    house.one.play(always(**fault))
    stream = await house.client(max_retries=2).chat.completions.create(model="backed-up", messages=messages("words 30"), stream=True)
    seen = []
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            seen.append(chunk)  # noqa: PERF401 - what came before the error must not be lost with it
    assert seen
    assert caught.value.code == "upstream_failed"
    (row,) = await house.calls()
    assert (row["outcome"], row["code"]) == ("cut", "upstream_failed")
    assert float(row["cost_usd"]) > 0  # the provider did not say what it cost: an upper bound of what came
    assert row["usage"]["estimated"] is True
    assert house.two.requests == []  # nothing is tried again once the client has seen something


async def test_a_stream_that_stalls_ends_after_the_idle_deadline(house, messages):
    await house.open(routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n[route.deadlines]\nidle = "50ms"\n')
    house.one.play(always(stall_after_chunks=3))
    stream = await house.client().chat.completions.create(model="r", messages=messages("words 30"), stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _chunk in stream:
            pass
    assert caught.value.code == "upstream_timeout"
    (row,) = await house.calls()
    assert (await house.call(row["id"]))["attempts"][0]["cause"] == "timeout:idle"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_the_total_deadline_ends_a_slow_drip(house, messages, stream):
    await house.open(routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n[route.deadlines]\ntotal = "200ms"\n')
    house.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.02)) if stream else always(delay_headers_s=60.0))
    with pytest.raises(openai.APIError) as caught:
        answer = await house.client().chat.completions.create(model="r", messages=messages("words 500"), stream=stream)
        async for _chunk in answer:
            pass
    assert caught.value.code == "upstream_timeout"
    (row,) = await house.calls()
    assert row["outcome"] == ("cut" if stream else "failed")


async def test_the_callers_own_mistake_is_passed_on_in_the_providers_words_and_not_retried(house, messages):
    await house.open()
    house.one.play(always(status=422))
    with pytest.raises(openai.UnprocessableEntityError):
        await house.client().chat.completions.create(model="backed-up", messages=messages("hi"))
    assert house.two.requests == []
    (row,) = await house.calls()
    assert (row["outcome"], row["status"], row["code"]) == ("failed", 422, "upstream_rejected")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_goes_away_stops_the_provider_at_once(house, messages, stream):
    await house.open()
    house.one.play(Scenario(pacing=Fault(delay_first_token_s=60.0)) if not stream else always(stall_after_chunks=3))
    session = await house.http()
    body = {"model": "fast", "messages": messages("words 30"), "stream": stream}
    request = asyncio.create_task(_read(session, body, house.key))
    while not house.one.requests or (stream and house.one.requests[0].chunks < 3):
        await asyncio.sleep(0)
    gone_ns = house.gateway.app.clock.now_ns()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    (entry,) = await house.one.finished(1)
    assert entry.end == "client_gone"
    assert entry.client_gone_ns - gone_ns < 1_000_000_000  # the promise is 0.1 s; a busy machine gets some slack
    await house.gateway.app.proxy.settler.drained()
    (row,) = await house.calls()
    assert row["outcome"] == "cancelled"


async def _read(session: aiohttp.ClientSession, body: dict[str, Any], key: str) -> None:
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        await answer.read()


@pytest.mark.parametrize("place", ["message", "type", "code", "param"])
async def test_a_provider_that_repeats_its_key_in_an_error_does_not_leak_it(house, messages, aiohttp_server, place):
    """OpenAI's own 401 quotes the key. Ours to the client, the journal and the log do not."""

    async def echo(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"error": {place: f"bad: {request.headers['Authorization']}"}}, status=400)

    app = aiohttp.web.Application()
    app.router.add_post("/v1/chat/completions", echo)
    provider = await aiohttp_server(app)
    await house.open(
        config=f'[providers.echo]\nadapter = "openai"\nbase_url = "{provider.make_url("/v1")}"\napi_key = "env:ONE_KEY"\n',
        routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "echo"\nmodel = "m"\n')
    with pytest.raises(openai.BadRequestError) as caught:
        await house.client().chat.completions.create(model="r", messages=messages("hi"))
    assert "sk-provider-key" not in caught.value.response.text
    (row,) = await house.calls()
    assert "sk-provider-key" not in json.dumps(await house.call(row["id"]))
    await house.gateway.app.telemetry.scrape()
    assert b"sk-provider-key" not in b"".join(house.lines)


async def test_an_answer_without_usage_costs_an_estimate_that_says_so_and_never_nothing(house, messages):
    await house.open()
    house.one.play(always(no_usage=True))
    raw = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages("say x"))
    assert float(raw.headers["x-lockgate-cost-usd"]) > 0
    (row,) = await house.calls()
    assert row["cost_usd"] == raw.headers["x-lockgate-cost-usd"]
    assert row["usage"]["estimated"] is True
    assert row["usage"]["output_tokens"] >= 1


async def test_a_model_without_a_price_has_an_unknown_cost_never_zero(house):
    await house.open()
    raw = await house.client().embeddings.with_raw_response.create(model="vectors", input="a")
    assert raw.headers["x-lockgate-cost-usd"] == "unknown"
    (row,) = await house.calls()
    assert (row["outcome"], row["cost_usd"]) == ("completed", None)


BOTH = """
[[route]]
name = "both"
[[route.targets]]
provider = "one"
model = "m"
continues = true
[[route.targets]]
provider = "two"
model = "m"
continues = true
[route.deadlines]
headers = "300ms"
idle = "300ms"
[route.retry]
attempts = 1
[route.stream]
on_failure = "continue"
"""
WHOLE = {**{name: fault for name, fault in BEFORE_THE_FIRST_BYTE.items() if name != "a wrong provider key"},
         "silence": {"hang": True}, "a stall": {"stall_after_chunks": 1}, "a cut": {"cut_after_chunks": 1}}


@pytest.mark.parametrize("operation", ["embeddings", "completions"])
@pytest.mark.parametrize("fault", WHOLE.values(), ids=WHOLE.keys())
async def test_what_is_true_of_chat_is_true_of_embeddings_and_completions(house, operation, fault):
    await house.open(routes=BOTH)
    house.one.play(always(**fault))
    client = house.client(max_retries=2)
    if operation == "embeddings":
        answer = await client.embeddings.create(model="both", input=["a", "b"])
        assert [len(each.embedding) for each in answer.data] == [1536, 1536]
    else:
        assert (await client.completions.create(model="both", prompt="say all is well")).choices[0].text == "all is well"
    assert (len(house.one.requests), len(house.two.requests)) == (1, 1)
    (row,) = await house.calls()
    ends = [(each["target"], each["end"]) for each in (await house.call(row["id"]))["attempts"]]
    assert ends == [("one/m", "failed"), ("two/m", "succeeded")]


@pytest.mark.parametrize("fault", MIDWAY.values(), ids=MIDWAY.keys())
async def test_a_completion_that_breaks_off_is_gone_on_with_from_its_prompt_and_what_it_said(house, fault):
    """A prompt is what a model goes on with anyway: its own words are the rest of it."""
    await house.open(routes=BOTH)
    house.one.play(always(**fault))
    stream = await house.client().completions.create(model="both", prompt="words 6", stream=True)
    said = [chunk.choices[0].text async for chunk in stream if chunk.choices]
    prompts = [each.requests[0].body["prompt"] for each in (house.one, house.two)]
    assert prompts == ["words 6", "words 6" + "".join(said[:3])]
    (row,) = await house.calls()
    assert row["outcome"] == "completed"
    whys = [(each["target"], each["why"]) for each in (await house.call(row["id"]))["attempts"]]
    assert whys == [("one/m", None), ("two/m", "continuation")]
