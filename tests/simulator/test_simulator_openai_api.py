"""The official client finds in the simulator the API that it was written for."""

import asyncio
import base64
import json
import math
import struct
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from gateway.simulator import Simulator, fingerprint

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


async def test_the_same_question_gets_the_same_answer_and_usage(client):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is a lock gate?"}]
    one = await client.chat.completions.create(model="sim-model", messages=messages)
    two = await client.chat.completions.create(model="sim-model", messages=messages)
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.id != two.id
    assert (one.object, one.model, one.choices[0].finish_reason) == ("chat.completion", "sim-model", "stop")
    # Two messages of 4 and their 2 + 5 words, 3 for the reply.
    assert one.usage.prompt_tokens == 2 * 4 + 7 + 3
    assert one.usage.completion_tokens == len(one.choices[0].message.content.split())
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
    assert one.usage.prompt_tokens_details.cached_tokens == 0


async def test_another_question_or_seed_or_choice_gets_another_answer(client):
    async def answers(text: str, **more: object) -> list[str]:
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)
        return [choice.message.content for choice in answer.choices]
    all_answers = await answers("one") + await answers("two", n=2) + await answers("one", seed=7)
    assert len(set(all_answers)) == 4


async def test_say_and_words_steer_the_answer(client):
    async def content(text: str) -> Any:
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
        return answer.choices[0].message.content
    assert await content("say  <b>this</b> exactly") == " <b>this</b> exactly"
    assert len((await content("give me words 200 please")).split()) == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_cuts_the_answer_and_says_so(client, name):
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "say a b c d e"}], **{name: 3})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("a b c", "length")
    assert answer.usage.completion_tokens == 3


async def test_reasoning_tokens_are_counted_and_stay_under_the_limit(client):
    """Whoever reserves money for max_completion_tokens relies on it."""
    messages = [{"role": "user", "content": "say a b c"}]
    free = await client.chat.completions.create(model="m", messages=messages, reasoning_effort="low")
    assert (free.usage.completion_tokens_details.reasoning_tokens, free.usage.completion_tokens) == (16, 19)
    cut = await client.chat.completions.create(model="m", messages=messages, reasoning_effort="low",
                                               max_completion_tokens=10)
    assert (cut.usage.completion_tokens, cut.choices[0].message.content, cut.choices[0].finish_reason) == (10, "", "length")


async def test_a_prompt_cache_key_marks_all_but_the_last_message_as_cached(client):
    messages = [{"role": "system", "content": "a b c"}, {"role": "user", "content": "d"}]
    answer = await client.chat.completions.create(model="m", messages=messages, prompt_cache_key="k")
    assert answer.usage.prompt_tokens_details.cached_tokens == 4 + 3


async def test_images_are_accepted_and_counted(client):
    content = [{"type": "text", "text": "what is this"},
               {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
    assert answer.usage.prompt_tokens == 4 + 3 + 85 + 3


async def test_a_stream_has_the_role_first_the_reason_last_and_no_usage_unless_asked(bare, sim, ask):
    async with bare.post(f"{sim.url}/chat/completions", json=ask("say one two", stream=True)) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = await answer.text()
    *events, done, rest = text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert (done, rest) == ("data: [DONE]", "")
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None}, {"content": "one"}, {"content": " two"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_that_asked_for_usage_ends_with_it_and_says_null_before(bare, sim, ask):
    body = ask("say one two", stream=True, stream_options={"include_usage": True})
    async with bare.post(f"{sim.url}/chat/completions", json=body) as answer:
        events = (await answer.text()).split("\n\n")[:-2]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_a_stream_says_what_the_plain_answer_says(client):
    messages = [{"role": "user", "content": "tell me"}]
    plain = await client.chat.completions.create(model="m", messages=messages, n=2, max_tokens=9)
    said, reasons = ["", ""], [None, None]
    stream = await client.chat.completions.create(model="m", messages=messages, n=2, max_tokens=9, stream=True,
                                                  stream_options={"include_usage": True})
    async for chunk in stream:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage
    assert said == [choice.message.content for choice in plain.choices]
    assert reasons == [choice.finish_reason for choice in plain.choices] == ["length", "length"]
    assert usage == plain.usage


async def test_a_tool_is_called_when_the_message_asks_for_it_and_not_once_it_has_answered(client):
    messages = [{"role": "user", "content": 'please call weather {"city": "Ulm"}'}]
    answer = await client.chat.completions.create(model="m", messages=messages, tools=[WEATHER, CLOCK])
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm"})
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = await client.chat.completions.create(model="m", messages=messages, tools=[WEATHER, CLOCK])
    assert after.choices[0].finish_reason == "stop"
    assert after.choices[0].message.tool_calls is None


async def test_tools_that_are_not_offered_or_not_wanted_are_not_called(client):
    async def calls(**more: object) -> list[str]:
        messages = [{"role": "user", "content": 'call weather {"a": 1} and call clock {} and call weather {bad'}]
        answer = await client.chat.completions.create(model="m", messages=messages, **more)
        return [call.function.name for call in answer.choices[0].message.tool_calls or []]
    assert await calls() == []
    assert await calls(tools=[CLOCK]) == ["clock"]
    assert await calls(tools=[WEATHER, CLOCK]) == ["weather", "clock"]
    assert await calls(tools=[WEATHER, CLOCK], parallel_tool_calls=False) == ["weather"]
    assert await calls(tools=[WEATHER, CLOCK], tool_choice="none") == []


async def test_tool_choice_forces_a_call_with_arguments_that_fit_the_schema(client):
    async def forced(choice: object) -> tuple[str, Any, str]:
        answer = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], tools=[WEATHER, CLOCK], tool_choice=choice)
        [call] = answer.choices[0].message.tool_calls
        return call.function.name, json.loads(call.function.arguments), answer.choices[0].finish_reason
    assert await forced("required") == ("weather", {"city": "simulated", "days": 2}, "tool_calls")
    assert await forced({"type": "function", "function": {"name": "clock"}}) == ("clock", {}, "stop")


async def test_parallel_calls_are_streamed_with_their_arguments_in_pieces(client):
    text = 'call weather {"city": "Friedrichshafen"} then call clock {}'
    pieces: dict[int, list[str]] = {}
    names = {}
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], tools=[WEATHER, CLOCK], stream=True)
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                names[call.index] = (call.function.name, call.id)
            pieces.setdefault(call.index, []).append(call.function.arguments)
        reason = chunk.choices[0].finish_reason
    assert [name for name, _id in names.values()] == ["weather", "clock"]
    assert len({call_id for _name, call_id in names.values()}) == 2
    assert json.loads("".join(pieces[0])) == {"city": "Friedrichshafen"}
    assert len(pieces[0]) > 3
    assert json.loads("".join(pieces[1])) == {}
    assert reason == "tool_calls"


async def test_a_token_limit_falls_into_the_arguments_of_a_call(client):
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": 'call weather {"city": "Friedrichshafen"} call clock {}'}],
        tools=[WEATHER, CLOCK], max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city":"Friedri'
    assert answer.usage.completion_tokens == 3


class Step(BaseModel):
    name: str
    minutes: int
    note: str | None


class Recipe(BaseModel):
    title: str
    steps: list[Step]


async def test_structured_output_parses_plain_and_streamed(client):
    messages = [{"role": "user", "content": "a recipe"}]
    plain = await client.chat.completions.parse(model="m", messages=messages, response_format=Recipe)
    assert isinstance(plain.choices[0].message.parsed, Recipe)
    async with client.chat.completions.stream(model="m", messages=messages, response_format=Recipe) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == plain.choices[0].message.parsed
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(model="m", messages=messages, response_format=Recipe, max_tokens=2)


async def test_json_object_answers_with_an_object(client):
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "say hi"}], response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"answer": "hi"}


async def test_completions_answer_every_prompt_plain_and_streamed(client):
    plain = await client.completions.create(model="m", prompt=["say a b", "say c d e"], max_tokens=2, n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in plain.choices] == [
        (0, "a b", "stop"), (1, "a b", "stop"), (2, "c d", "length"), (3, "c d", "length")]
    assert (plain.object, plain.usage.prompt_tokens, plain.usage.completion_tokens) == ("text_completion", 7, 8)
    texts = {0: "", 1: ""}
    stream = await client.completions.create(model="m", prompt=["say a b", [1, 2, 3]], stream=True)
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts[0] == "a b"
    assert texts[1]
    huge = await client.completions.create(model="m!huge=100KiB", prompt="x")
    assert len(huge.choices[0].text) == 100 * 1024


async def test_embeddings_are_unit_vectors_the_same_in_both_encodings(client, bare, sim):
    answer = await client.embeddings.create(model="sim-embedding", input=["one", "two two", "one"], dimensions=8)
    one, two, again = [item.embedding for item in answer.data]  # the client asks for base64 of its own accord
    assert one == again != two
    assert math.isclose(math.hypot(*one), 1.0, rel_tol=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
    body = {"model": "m", "input": "one", "dimensions": 8}
    async with bare.post(f"{sim.url}/embeddings", json=body) as floats:
        assert (await floats.json())["data"][0]["embedding"] == one
    async with bare.post(f"{sim.url}/embeddings", json={**body, "encoding_format": "base64"}) as encoded:
        raw = base64.b64decode((await encoded.json())["data"][0]["embedding"])
    assert list(struct.unpack("<8f", raw)) == one
    full = await client.embeddings.create(model="m", input=[1, 2, 3])
    assert (len(full.data[0].embedding), full.usage.prompt_tokens) == (1536, 3)


async def test_models_are_listed_and_shown(client):
    assert [model.id async for model in client.models.list()] == ["sim-model", "sim-small", "sim-embedding"]
    assert (await client.models.retrieve("org/any")).id == "org/any"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("missing-model")


async def test_the_sync_client_works_too(sim):
    def talk() -> tuple[str | None, str]:
        with OpenAI(base_url=sim.url, api_key="sk-test", max_retries=0) as client:
            plain = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "say a b"}])
            streamed = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "say a b"}],
                                                      stream=True)
            return plain.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert await asyncio.to_thread(talk) == ("a b", "a b")


async def test_a_wrong_or_missing_key_is_refused_as_openai_refuses_it():
    async with Simulator(api_key="sk-right") as sim:
        for key, error in (("sk-right", None), ("sk-wrong", openai.AuthenticationError)):
            async with AsyncOpenAI(base_url=sim.url, api_key=key, max_retries=0) as client:
                if error is None:
                    await client.embeddings.create(model="m", input="x")
                    continue
                with pytest.raises(error) as caught:
                    await client.embeddings.create(model="m", input="x")
                assert caught.value.code == "invalid_api_key"
        async with aiohttp.ClientSession() as bare:
            async with bare.get(f"{sim.url}/models") as answer:
                assert answer.status == 401
            async with bare.get(f"{sim.url}/models", headers={"x-api-key": "sk-right"}) as answer:
                assert answer.status == 200
        entries = await sim.finished(4)
    assert [entry.api_key for entry in entries] == [
        fingerprint("sk-right"), fingerprint("sk-wrong"), None, fingerprint("sk-right")]
    assert "sk-" not in json.dumps([entry.to_json() for entry in entries])


async def test_a_model_that_is_missing_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="missing-1", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


BAD = [
    (b"", None), (b"{", None), (b"[]", None), (b'"text"', None), (b"{}", None), (b"\xff", None), (b"NaN", None),
    ({"model": 1}, "model"), ({"model": ""}, None), ({"messages": None}, "messages"), ({"messages": "x"}, "messages"),
    ({"messages": []}, "messages"), ({"messages": [1]}, "messages[0]"), ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"), ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"n": 0}, "n"), ({"n": 1.5}, "n"),
    ({"n": True}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"seed": "x"}, "seed"), ({"tools": {}}, "tools"), ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function.name"), ({"response_format": "json"}, "response_format"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/no"}}}}, "response_format"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
async def test_bad_chat_bodies_get_an_openai_error_that_names_the_parameter(bare, sim, ask, body, param):
    raw = body if isinstance(body, bytes) else json.dumps({**ask(), **body}).encode()
    async with bare.post(f"{sim.url}/chat/completions", data=raw) as answer:
        error = (await answer.json())["error"]
    assert answer.status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": []}, {"input": [""]}, {"input": [[]]}, {"input": {"a": 1}},
                                  {"input": [[[1]]]}, {"input": "x", "encoding_format": "hex"},
                                  {"input": "x", "dimensions": 0}, {"input": "x", "dimensions": 10**6}])
async def test_bad_embedding_bodies_are_refused(bare, sim, body):
    async with bare.post(f"{sim.url}/embeddings", json={"model": "m", **body}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_unknown_fields_are_accepted_and_recorded(client, sim):
    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x", "mood": "good"}],
                                         extra_body={"future": {"deep": [1, None]}})
    [entry] = await sim.finished(1)
    assert entry.body["future"] == {"deep": [1, None]}
    assert entry.body["messages"][0]["mood"] == "good"


async def test_an_unknown_url_is_a_404_in_the_same_shape(bare, sim):
    async with bare.post(f"{sim.url}/teapots", json={}) as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["message"] == "Invalid URL (POST /v1/teapots)"
