"""An application's official OpenAI client works through Lockgate with its base URL changed and nothing else."""

import asyncio
import json

import openai
import pydantic
import pytest

from gateway.simulator import fingerprint

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "clock")]


async def test_a_plain_call_is_answered_and_says_what_was_done(house, messages):
    client = (await house.open()).client()
    raw = await client.chat.completions.with_raw_response.create(model="fast", messages=messages("say hello world"))
    answer = raw.parse()
    assert answer.choices[0].message.content == "hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert raw.headers["x-lockgate-decision"] == "allow"
    assert raw.headers["x-lockgate-target"] == "one/sim-fast"
    assert raw.headers["x-lockgate-attempts"] == "1"
    assert answer._request_id == raw.headers["x-lockgate-call"]
    # 10 prompt tokens at 1 USD a million, 2 completion tokens at 2
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 2)
    assert raw.headers["x-lockgate-cost-usd"] == "0.000014"


async def test_the_provider_gets_its_own_key_and_model_and_never_the_callers_key(house, messages):
    client = (await house.open()).client()
    await client.chat.completions.create(model="fast", messages=messages("say x"))
    (entry,) = await house.one.finished(1)
    assert entry.body["model"] == "sim-fast"
    assert entry.api_key == fingerprint("sk-provider-key-one-0123456789")
    assert house.key not in json.dumps(entry.to_json())


async def test_a_stream_comes_in_pieces_and_its_usage_chunk_only_where_it_was_asked_for(house, messages):
    client = (await house.open()).client()
    seen = [chunk async for chunk in await client.chat.completions.create(model="fast", messages=messages("say a b c"), stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in seen) == "a b c"
    assert all(chunk.usage is None and "usage" not in chunk.model_fields_set for chunk in seen)
    assert seen[-1].choices[0].finish_reason == "stop"
    asked = [chunk async for chunk in await client.chat.completions.create(
        model="fast", messages=messages("say a b c"), stream=True, stream_options={"include_usage": True})]
    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens == 3
    assert all(entry.body["stream_options"] == {"include_usage": True} for entry in await house.one.finished(2))


async def test_the_cost_of_a_stream_comes_as_its_last_comment(house, messages):
    await house.open()
    session = await house.http()
    body = {"model": "fast", "messages": messages("say a b c"), "stream": True}
    async with session.post("/v1/chat/completions", json=body, headers={"x-api-key": house.key}) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["X-Lockgate-Target"] == "one/sim-fast"
        text = await answer.text()
    assert text.endswith(": X-Lockgate-Cost-Usd: 0.000017\n\ndata: [DONE]\n\n")  # 11 prompt tokens and 3 completion tokens


async def test_tools_are_proposed_plain_and_streamed_and_parallel(house, messages):
    client = (await house.open()).client()
    prompt = messages('call weather {"city": "Rome"} call clock {"zone": "CET"}')
    plain = await client.chat.completions.create(model="fast", messages=prompt, tools=TOOLS)
    assert [(c.function.name, json.loads(c.function.arguments)) for c in plain.choices[0].message.tool_calls] == [
        ("weather", {"city": "Rome"}), ("clock", {"zone": "CET"})]
    async with client.chat.completions.stream(model="fast", messages=prompt, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    assert [c.function.name for c in final.choices[0].message.tool_calls] == ["weather", "clock"]
    assert json.loads(final.choices[0].message.tool_calls[1].function.arguments) == {"zone": "CET"}


async def test_structured_output_is_parsed(house, messages):
    class Answer(pydantic.BaseModel):
        city: str
        population: int

    client = (await house.open()).client()
    done = await client.chat.completions.parse(model="fast", messages=messages("Which city?"), response_format=Answer)
    assert isinstance(done.choices[0].message.parsed, Answer)


async def test_images_and_fields_nobody_knows_pass_untouched(house):
    client = (await house.open()).client()
    content = [{"type": "text", "text": "say seen"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}]
    await client.chat.completions.create(
        model="fast", messages=[{"role": "user", "content": content}], seed=7, extra_body={"x_future": {"deep": [1, {"a": None}]}, "top_k": 3})
    (entry,) = await house.one.finished(1)
    assert entry.body["messages"][0]["content"] == content
    assert entry.body["x_future"] == {"deep": [1, {"a": None}]}
    assert (entry.body["top_k"], entry.body["seed"]) == (3, 7)


async def test_embeddings_and_plain_completions_are_served(house):
    client = (await house.open()).client()
    made = await client.embeddings.create(model="vectors", input=["a", "b"], dimensions=8)
    assert [len(item.embedding) for item in made.data] == [8, 8]
    done = await client.completions.create(model="fast", prompt="say one two")
    assert done.choices[0].text == "one two"
    streamed = [chunk.choices[0].text async for chunk in await client.completions.create(model="fast", prompt="say one two", stream=True) if chunk.choices]
    assert "".join(streamed) == "one two"


async def test_the_list_of_models_is_what_the_key_may_use(house):
    await house.open()
    assert [model.id async for model in house.client().models.list()] == ["fast", "backed-up", "vectors"]
    narrow = await house.new_key(name="narrow", routes=("fa*", "vec*"))
    assert [model.id async for model in house.client(narrow).models.list()] == ["fast", "vectors"]


async def test_a_route_the_key_may_not_use_does_not_exist_for_it(house, messages):
    await house.open()
    narrow = house.client(await house.new_key(name="narrow", routes=("fast",)))
    with pytest.raises(openai.NotFoundError) as caught:
        await narrow.chat.completions.create(model="backed-up", messages=messages("hi"))
    assert caught.value.code == "unknown_route"
    assert "fast" in caught.value.body["message"]
    assert "vectors" not in caught.value.body["message"]
    assert house.one.requests == []


async def test_without_a_key_with_a_wrong_one_or_an_expired_one_nobody_gets_in(house, messages):
    await house.open()
    expired = await house.new_key(name="old", expires_ns=1)
    wrong = house.key[:-1] + ("a" if house.key[-1] != "a" else "b")
    for key in ("nonsense", wrong, expired, "lgk_" + "x" * 200, "sk-other"):
        with pytest.raises(openai.AuthenticationError) as caught:
            await house.client(key).chat.completions.create(model="fast", messages=messages("hi"))
        assert caught.value.code == "unauthenticated"
        assert key not in str(caught.value.body)
    session = await house.http()
    async with session.post("/v1/chat/completions", json={"model": "fast"}) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "unauthenticated"
    assert house.one.requests == []
    assert await house.calls() == []  # strangers leave no rows


async def test_a_revoked_key_stops_and_a_rotated_one_changes_within_a_second(house, messages):
    await house.open()
    app = house.gateway.app
    key_id = house.key.split("_")[1]
    client = house.client()
    await client.chat.completions.create(model="fast", messages=messages("hi"))
    await app.store.keys.revoke(key_id, now_ns=app.clock.now_ns())

    async def refused() -> None:
        while True:
            try:
                await client.chat.completions.create(model="fast", messages=messages("hi"))
            except openai.AuthenticationError:
                return

    await asyncio.wait_for(refused(), 5)


async def test_a_rule_denies_and_the_client_learns_which_why_and_what_to_do(house, messages):
    await house.open(policies='''
[[rule]]
id = "no-payroll"
match = { teams = ["blue"] }
when = """messages.exists(m, string(m.content).contains("payroll"))"""
effect = "deny"
message = "Payroll stays inside."
remedy = "Ask finance."

[[rule]]
id = "watch"
effect = "log"
label = "watched"
''')
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await house.client().chat.completions.create(model="fast", messages=messages("the payroll, please"))
    assert caught.value.code == "forbidden"
    assert "Payroll stays inside." in caught.value.body["message"]
    assert caught.value.response.headers["x-lockgate-rule"] == "no-payroll"
    assert caught.value.response.headers["x-lockgate-decision"] == "deny"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert house.one.requests == []
    (row,) = await house.calls()
    assert (row["outcome"], row["decision"], row["rule"]) == ("refused", "deny", "no-payroll")
    other = house.client(await house.new_key(name="green", team="green"))
    await other.chat.completions.create(model="fast", messages=messages("the payroll, please"))
    newest = (await house.calls())[0]
    assert newest["labels"] == ["watched"]


async def test_the_journal_tells_the_whole_story_of_a_call(house, messages):
    await house.open()
    raw = await house.client().chat.completions.with_raw_response.create(
        model="fast", messages=messages("say hello"), extra_headers={"X-Lockgate-Session": "s1", "X-Lockgate-Tags": "env=test"})
    row = await house.call(raw.headers["x-lockgate-call"])
    assert (row["outcome"], row["status"], row["session"], row["tags"]) == ("completed", 200, "s1", {"env": "test"})
    assert row["team"] == "blue"
    assert [(a["n"], a["target"], a["end"]) for a in row["attempts"]] == [(1, "one/sim-fast", "succeeded")]
    assert json.loads(row["request"])["messages"] == messages("say hello")
    assert json.loads(row["response"])["choices"][0]["message"]["content"] == "hello"
    (entry,) = await house.one.finished(1)
    assert entry.client_request_id == f"{row['id']}.1"


async def test_a_stream_is_in_the_journal_as_the_answer_it_amounts_to(house, messages):
    await house.open()
    stream = await house.client().chat.completions.create(model="fast", messages=messages("say a b"), stream=True)
    assert [chunk async for chunk in stream]
    (row,) = await house.calls()
    whole = await house.call(row["id"])
    assert json.loads(whole["response"])["choices"][0]["message"]["content"] == "a b"
    assert whole["cost_usd"] == "0.000014"
    assert whole["finish_reasons"] == ["stop"]


async def test_a_synchronous_client_works_too(house, messages):
    await house.open()

    def talk() -> str:
        with openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.key, max_retries=0) as client:
            text = client.chat.completions.create(model="fast", messages=messages("say sync")).choices[0].message.content
            pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(model="fast", messages=messages("say er"), stream=True)]
            return f"{text}{''.join(pieces)}"

    assert await asyncio.to_thread(talk) == "syncer"


@pytest.mark.parametrize("transport", ["lean", "aiohttp"])
async def test_either_http_client_serves(house, messages, transport):
    client = (await house.open(config=f'[upstream]\ntransport = "{transport}"\n')).client()
    answer = await client.chat.completions.create(model="fast", messages=messages("say plain"))
    assert answer.choices[0].message.content == "plain"
    stream = await client.chat.completions.create(model="fast", messages=messages("say a b"), stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "a b"


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
async def test_either_cel_engine_judges(house, messages, engine):
    client = (await house.open(config=f'[policy]\nengine = "{engine}"\n', policies="""
[[rule]]
id = "no-payroll"
when = '''messages.exists(m, string(m.content).contains("payroll"))'''
effect = "deny"
message = "no"
""")).client()
    await client.chat.completions.create(model="fast", messages=messages("hello"))
    with pytest.raises(openai.PermissionDeniedError):
        await client.chat.completions.create(model="fast", messages=messages("the payroll"))


@pytest.mark.parametrize(("bodies", "seen"), [("full", True), ("redacted", False), ("none", False)])
async def test_the_journal_keeps_of_bodies_what_it_is_told(house, messages, bodies, seen):
    await house.open(config=f'[journal]\nbodies = "{bodies}"\n')
    for stream in (False, True):
        answer = await house.client().chat.completions.create(model="fast", messages=messages("say mother"), stream=stream)
        if stream:
            assert [chunk async for chunk in answer]
        row = await house.call((await house.calls())[0]["id"])
        assert (row["request"] is None, row["response"] is None) == (bodies == "none", bodies == "none")
        assert ("mother" in f"{row['request']}{row['response']}") is seen


async def test_an_erroring_deny_stops_the_call_and_an_erroring_allow_lets_nothing_through(house, messages):
    """`max_tokens` of a type that no rule can compare must not switch a rule off."""
    await house.open(policies="""
[[rule]]
id = "short"
when = "request.max_tokens > 1000"
effect = "deny"
message = "too long"
""")
    await house.client().chat.completions.create(model="fast", messages=messages("hi"), max_tokens=10)
    for sent in ("5", [5], {"a": 1}, 2**63):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await house.client().chat.completions.create(model="fast", messages=messages("hi"), extra_body={"max_tokens": sent})
        assert "policy_error" in caught.value.body["message"]
    assert len(house.one.requests) == 1


async def test_fifty_calls_at_once_are_answered_each_with_its_own_answer(house, messages):
    client = (await house.open()).client()
    answers = await asyncio.gather(*(client.chat.completions.create(model="fast", messages=messages(f"say n{n}")) for n in range(50)))
    assert [answer.choices[0].message.content for answer in answers] == [f"n{n}" for n in range(50)]
    assert len({row["id"] for row in await house.calls(limit=100)}) == 50
