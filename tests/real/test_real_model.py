"""The official client, the gateway and a real model server: what works with a simulator works with the real thing.

The model is tiny and says what it likes: these tests look at the form of its answers, not at their sense, except where
its server holds it to a form (a schema, a tool's parameters).
"""

import asyncio
import json
from decimal import Decimal
from enum import StrEnum
from typing import Any

import aiohttp
import openai
import pydantic
import pytest

pytestmark = pytest.mark.real

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
CALM: dict[str, Any] = {"temperature": 0, "max_tokens": 12}

WEATHER: list[Any] = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]}}, "required": ["city"]}}}]


class City(StrEnum):
    PARIS = "Paris"
    ROME = "Rome"


class Capital(pydantic.BaseModel):
    """What structured output is asked for: the server lets the model say nothing else."""

    city: City
    is_capital: bool


def asked_for_weather() -> list[dict[str, Any]]:
    """A conversation in which the assistant always calls the tool: a tiny model does as before."""
    conversation: list[dict[str, Any]] = []
    for n, city in enumerate(("Rome", "Oslo")):
        called = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        conversation += [{"role": "user", "content": f"Weather in {city}?"},
                         {"role": "assistant", "content": None, "tool_calls": [{"id": f"call{n}", "type": "function", "function": called}]}]
    return [*conversation, {"role": "user", "content": "Weather in Paris?"}]


def cost_usd(usage: Any) -> Decimal:
    """What the configured prices make of what the server counted: part of a prompt it has seen is cheaper."""
    cached = usage.prompt_tokens_details.cached_tokens
    millionths = (usage.prompt_tokens - cached) * Decimal("1.00") + cached * Decimal("0.10") + usage.completion_tokens * Decimal("2.00")
    return Decimal(millionths) / 1_000_000


# ---- Whole answers -------------------------------------------------------------------------------------------------------------------


async def test_a_plain_call_is_answered_counted_priced_and_on_record(house, client):
    raw = await client.chat.completions.with_raw_response.create(model="small", messages=HELLO, **CALM)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 12
    assert raw.headers["x-lockgate-target"] == "real/smollm2"
    assert Decimal(raw.headers["x-lockgate-cost-usd"]) == cost_usd(answer.usage)
    row = await house.call(raw.headers["x-lockgate-call"])
    assert (row["outcome"], row["status"], row["finish_reasons"]) == ("completed", 200, [answer.choices[0].finish_reason])
    assert json.loads(row["response"]) == json.loads(raw.text)


async def test_what_the_servers_cache_held_of_a_prompt_is_billed_as_that(client):
    prompt = [{"role": "user", "content": "Tell me of the sea and the wind and the stars. " * 5}]
    for _ in range(2):
        raw = await client.chat.completions.with_raw_response.create(model="small", messages=prompt, **CALM)
    usage = raw.parse().usage
    assert usage.prompt_tokens_details.cached_tokens > 0
    assert Decimal(raw.headers["x-lockgate-cost-usd"]) == cost_usd(usage)


async def test_fields_of_the_server_that_no_api_knows_pass_both_ways(client):
    answer = await client.chat.completions.create(
        model="small", messages=HELLO, seed=7, logprobs=True, top_logprobs=2, extra_body={"top_k": 3, "timings_per_token": True}, **CALM)
    assert answer.model_extra["timings"]["predicted_n"] == answer.usage.completion_tokens
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


async def test_several_choices_come_all(house, client):
    raw = await client.chat.completions.with_raw_response.create(model="small", messages=HELLO, n=2, **CALM)
    assert [choice.index for choice in raw.parse().choices] == [0, 1]
    assert len((await house.call(raw.headers["x-lockgate-call"]))["finish_reasons"]) == 2


async def test_plain_completions_are_served(client):
    answer = await client.completions.create(model="small", prompt="Once upon a time", **CALM)
    assert answer.choices[0].text
    assert answer.object == "text_completion"


async def test_structured_output_is_parsed_plain_and_streamed(client):
    prompt = [{"role": "user", "content": "Rome is a capital. Answer as JSON."}]
    asked = {"model": "small", "messages": prompt, "response_format": Capital, "temperature": 0}
    answer = await client.chat.completions.parse(**asked)
    assert isinstance(answer.choices[0].message.parsed, Capital)
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Capital)


async def test_tools_are_called_plain_and_streamed_and_their_results_understood(client):
    asked: dict[str, Any] = {
        "model": "small", "messages": asked_for_weather(), "tools": WEATHER, "tool_choice": "required", "temperature": 0, "max_tokens": 60}
    plain = await client.chat.completions.create(**asked)
    async with client.chat.completions.stream(**asked) as stream:
        streamed = await stream.get_final_completion()
    for answer in (plain, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        (called,) = answer.choices[0].message.tool_calls
        assert called.function.name == "get_weather"
        assert json.loads(called.function.arguments)["city"] in ("Paris", "Rome", "Oslo")
    said = plain.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sunny"}
    after = await client.chat.completions.create(
        model="small", messages=[*asked["messages"], said.model_dump(exclude_none=True), result], tools=WEATHER, tool_choice="none", **CALM)
    assert after.choices[0].message.content


async def test_embeddings_are_the_same_as_numbers_and_as_the_clients_own_base64(house, client):
    raw = await client.embeddings.with_raw_response.create(model="small", input=["a river", "a car"])
    packed = raw.parse()
    plain = await client.embeddings.create(model="small", input=["a river", "a car"], encoding_format="float")
    assert len(packed.data[0].embedding) == 576
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-3)
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens > 0
    assert Decimal(raw.headers["x-lockgate-cost-usd"]) == Decimal(packed.usage.prompt_tokens) / 1_000_000
    assert (await house.call(raw.headers["x-lockgate-call"]))["operation"] == "embeddings"


async def test_a_synchronous_client_works_too(house):
    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(**house.options) as client:
            plain = client.chat.completions.create(model="small", messages=HELLO, **CALM).choices[0].message.content
            stream = client.chat.completions.create(model="small", messages=HELLO, stream=True, **CALM)
            return plain, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    plain, streamed = await asyncio.to_thread(talk)
    assert plain
    assert streamed


async def test_more_calls_than_the_server_works_on_at_a_time_are_all_answered(client):
    """Its connections are used again, and it ends each of them after a hundred requests: no call may feel that."""
    async def ask(n: int) -> str:
        raw = await client.chat.completions.with_raw_response.create(
            model="small", messages=[{"role": "user", "content": f"Count from {n}."}], temperature=0, max_tokens=1)
        assert raw.headers["x-lockgate-attempts"] == "1"
        return str(raw.headers["x-lockgate-call"])

    ids = [await ask(n) for n in range(110)]
    ids += await asyncio.gather(*[ask(n) for n in range(16)])
    assert len(set(ids)) == 126


# ---- Streams -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["chat", "completions"])
async def test_a_stream_comes_in_pieces_and_its_usage_only_where_it_was_asked_for(client, operation):
    """This server says the usage of plain completions unasked, in the last piece itself."""
    create = client.chat.completions.create if operation == "chat" else client.completions.create
    asked = {"messages": HELLO} if operation == "chat" else {"prompt": "Once upon a time"}
    chunks = [chunk async for chunk in await create(model="small", stream=True, **asked, **CALM)]
    assert len(chunks) > 2
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert [reason for chunk in chunks for choice in chunk.choices if (reason := choice.finish_reason)] in (["stop"], ["length"])
    chunks = [chunk async for chunk in await create(model="small", stream=True, stream_options={"include_usage": True}, **asked, **CALM)]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert 0 < usage.completion_tokens <= 12


async def test_a_stream_is_priced_and_on_record_as_what_it_amounts_to(house, client):
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}, **CALM)
    chunks = [chunk async for chunk in stream]
    row = await house.call(stream.response.headers["x-lockgate-call"])
    answer = json.loads(row["response"])
    assert answer["choices"][0]["message"]["content"] == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (row["outcome"], Decimal(row["cost_usd"])) == ("completed", cost_usd(chunks[-1].usage))


async def test_several_choices_are_streamed_to_the_end_of_each(house, client):
    stream = await client.chat.completions.create(model="small", messages=HELLO, n=2, stream=True, **CALM)
    ended = [choice.index async for chunk in stream for choice in chunk.choices if choice.finish_reason]
    assert sorted(ended) == [0, 1]
    assert (await house.call(stream.response.headers["x-lockgate-call"]))["outcome"] == "completed"


async def test_several_prompts_are_streamed_to_the_end_of_each(client):
    """This server begins such a stream with `data: null`, which is no piece of an answer."""
    stream = await client.completions.create(model="small", prompt=["Once upon", "Two by two"], stream=True, **CALM)
    ended = [choice.index async for chunk in stream for choice in chunk.choices if choice.finish_reason]
    assert sorted(ended) == [0, 1]


async def test_what_keeps_a_connection_alive_while_the_model_reads_is_not_part_of_the_answer(house):
    body = {"model": "small", "stream": True, "max_tokens": 2, "cache_prompt": False,
            "messages": [{"role": "user", "content": "word " * 900}]}
    async with (aiohttp.ClientSession(house.gateway.url, headers={"x-api-key": house.key}) as session,
                session.post("/v1/chat/completions", json=body) as answer):
        lines = [line for line in (await answer.text()).split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines if not line.startswith(": X-Lockgate-"))
    assert lines[-1] == "data: [DONE]"


async def test_a_client_that_goes_away_stops_the_model(house, client):
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, stream=True, temperature=0, max_tokens=1900, extra_body={"ignore_eos": True})
    await anext(aiter(stream))
    assert await house.busy()
    await stream.close()
    async with asyncio.timeout(10):
        while await house.busy():
            await asyncio.sleep(0)
        call_id = stream.response.headers["x-lockgate-call"]  # nobody is left to wait for the outcome, so it is written after the model has stopped
        while (row := await house.call(call_id))["outcome"] == "open":
            await asyncio.sleep(0)
    assert row["outcome"] == "cancelled"


# ---- Errors --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_refused_in_the_servers_own_words(client, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "word " * 3000}], stream=stream)
    assert caught.value.type == "exceed_context_size_error"
    assert "exceeds the available context size" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_a_field_of_the_wrong_kind_is_refused_in_the_servers_own_words(house, client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="small", messages=HELLO, extra_body={"temperature": "hot"})
    assert "temperature" in caught.value.message
    row = await house.call(caught.value.response.headers["x-lockgate-call"])
    assert (row["outcome"], row["code"], [attempt["end"] for attempt in row["attempts"]]) == ("failed", "upstream_rejected", ["rejected"])


async def test_a_provider_key_that_is_refused_is_the_gateways_trouble_and_not_the_callers(client):
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="estranged", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")
    assert "sk-wrong" not in str(caught.value.body)


async def test_what_the_server_was_not_started_for_is_said(client):
    with pytest.raises(openai.InternalServerError) as caught:
        await client.embeddings.create(model="mortal", input="a river")
    assert "does not support embeddings" in caught.value.message


async def test_strangers_and_unknown_models_never_reach_the_server(house, client):
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="smollm2", messages=HELLO)
    assert unknown.value.code == "unknown_route"
    async with openai.AsyncOpenAI(**{**house.options, "api_key": "sk-of-the-model-server"}) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model="small", messages=HELLO)


# The last one: nothing can be asked of that server afterwards.
async def test_a_server_killed_in_the_middle_of_a_stream_is_an_error_and_the_next_call_goes_elsewhere(house, client):
    stream = await client.chat.completions.create(
        model="backed-up", messages=HELLO, stream=True, temperature=0, max_tokens=1900, extra_body={"ignore_eos": True})
    assert stream.response.headers["x-lockgate-target"] == "mortal/smollm2"
    with pytest.raises(openai.APIError) as caught:
        async for _chunk in stream:
            house.mortal.process.kill()
    assert caught.value.code == "upstream_failed"
    assert (await house.call(stream.response.headers["x-lockgate-call"]))["outcome"] == "cut"
    raw = await client.chat.completions.with_raw_response.create(model="backed-up", messages=HELLO, **CALM)
    assert (raw.headers["x-lockgate-target"], raw.headers["x-lockgate-attempts"]) == ("real/smollm2", "2")
    assert raw.parse().choices[0].message.content
