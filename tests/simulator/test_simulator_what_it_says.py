"""What the model is told to say, how sure it is of it, and how it goes on from what it has said: plain and streamed, by the official client."""

from typing import Any

import openai
import pytest

from gateway.simulator.answer import Billed

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


async def said(client: openai.AsyncOpenAI, body: dict[str, Any], *, stream: bool, fault: str = "") -> tuple[str, str, Any, Any]:
    """Text, finish reason, log-probabilities and usage of one answer, however it comes."""
    headers = {"x-sim-fault": fault} if fault else {}
    if not stream:
        answer = await client.chat.completions.create(**body, extra_headers=headers)
        [choice] = answer.choices
        return choice.message.content, choice.finish_reason, choice.logprobs, answer.usage
    text, reason, usage = "", "", None
    likely: list[Any] = []
    create: Any = client.chat.completions.create
    async for chunk in await create(**body, **STREAM, extra_headers=headers):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            likely += choice.logprobs.content if choice.logprobs else []
    return text, reason, likely, usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "text", "tokens"), [
    ("content=I cannot help", "I cannot help", 3), ("content=", "", 0), ('{"content": "a; b \\n"}', "a; b \n", 2), ('{"content": " \\n"}', " \n", 1)])
async def test_it_says_what_it_is_told_to_and_nothing_where_that_is_nothing(client, ask, stream, fault, text, tokens):
    asked = ask('call pay {"amount": 1}', tools=[{"type": "function", "function": {"name": "pay"}}])
    got, reason, _likely, usage = await said(client, asked, stream=stream, fault=fault)
    assert (got, reason, usage.completion_tokens) == (text, "stop", tokens)


async def test_it_says_so_to_the_models_name_and_in_a_completion_and_keeps_to_the_limit(client, ask):
    got, reason, _likely, _usage = await said(client, {**ask(), "model": "m!content=a b c"} | {"max_tokens": 2}, stream=False)
    assert (got, reason) == ("a b", "length")
    for prompt in ("x", ["x", "y"]):
        answer = await client.completions.create(model="m", prompt=prompt, extra_headers={"x-sim-fault": "content=a b;finish_reason=odd"})
        assert {(choice.text, choice.finish_reason) for choice in answer.choices} == {("a b", "odd")}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["length", "content_filter", "never heard of"])
async def test_it_stops_for_the_reason_it_is_told(client, ask, stream, reason):
    text, got, _likely, _usage = await said(client, ask("say a b"), stream=stream, fault=f"finish_reason={reason}")
    assert (text, got) == ("a b", reason)


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_come_where_they_are_asked_for_and_are_what_it_is_told(client, ask, stream):
    """One for each token, in the shape of the API; alternatives are less likely than what was said."""
    _text, _reason, likely, _usage = await said(client, ask("say a é"), stream=stream)
    assert not likely
    *_, likely, _usage = await said(client, ask("say a é", logprobs=True), stream=stream)
    tokens = likely if stream else likely.content
    assert [(one.token, one.bytes, one.logprob, one.top_logprobs) for one in tokens] == [("a", [97], -0.1, []), (" é", [32, 195, 169], -0.1, [])]
    *_, likely, _usage = await said(client, ask("say a é", logprobs=True, top_logprobs=3), stream=stream, fault="logprob=-0.3")
    for one in likely if stream else likely.content:
        assert one.logprob == one.top_logprobs[0].logprob == -0.3
        assert one.token == one.top_logprobs[0].token
        assert [other.logprob for other in one.top_logprobs] == pytest.approx([-0.3, -1.3, -2.3])
        assert len({other.token for other in one.top_logprobs}) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_what_has_no_text_has_no_log_probabilities(client, ask, stream):
    *_, likely, _usage = await said(client, ask(logprobs=True), stream=stream, fault="content=")
    assert not likely


@pytest.mark.parametrize(("more", "param"), [
    ({"logprobs": 3}, "logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"top_logprobs": 1}, "top_logprobs")])
async def test_log_probabilities_asked_for_in_a_wrong_way_are_refused(client, ask, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**ask(), extra_body=more)
    assert caught.value.param == param


def going_on(ask: Any, text: str, prefix: str, **more: Any) -> dict[str, Any]:
    body = ask(text)
    body["messages"].append({"role": "assistant", "content": prefix})
    return {**body, "extra_body": {"continue_final_message": True, "add_generation_prompt": False}, **more}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", [
    ("one", " two three", 2), ("one tw", "o three", 2), ("one two three", "", 0), ("", "one two three", 3), ("two", "one two three", 3)])
async def test_it_goes_on_from_a_message_that_it_began_and_counts_only_what_is_new(client, sim, ask, stream, case):
    """A prefix that it would never have said changes nothing: it says what it says."""
    prefix, rest, tokens = case
    text, reason, _likely, usage = await said(client, going_on(ask, "say one two three", prefix), stream=stream)
    assert (text, reason, usage.completion_tokens) == (rest, "stop", tokens)
    assert usage.prompt_tokens == 4 + 4 + 4 + len(prefix.split()) + 3
    [entry] = await sim.finished(1)
    assert entry.billed == Billed(usage.prompt_tokens, tokens)


@pytest.mark.parametrize(("text", "fault"), [("tell me more", ""), ("words 30", ""), ("x", "content=what it was told to say")])
async def test_what_was_cut_and_what_it_goes_on_with_are_the_whole(client, ask, text, fault):
    whole, *_ = await said(client, ask(text), stream=True, fault=fault)
    begun = ""
    with pytest.raises(openai.APIError):
        async for chunk in await client.chat.completions.create(
                **ask(text), stream=True, extra_headers={"x-sim-fault": f"{fault};cut_after_chunks=4"}):
            begun += chunk.choices[0].delta.content or ""
    assert begun
    rest, *_ = await said(client, going_on(ask, text, begun), stream=True, fault=fault)
    assert begun + rest == whole


async def test_a_limit_is_on_what_is_new_and_a_message_that_is_not_to_be_gone_on_from_is_history(client, ask):
    body = going_on(ask, "say one two three four", "one two", max_tokens=1)
    assert (await said(client, body, stream=False))[:2] == (" three", "length")
    del body["extra_body"]
    assert (await said(client, body, stream=False))[:2] == ("one", "length")


@pytest.mark.parametrize("wrong", [
    {"continue_final_message": True, "add_generation_prompt": True}, {"continue_final_message": 1},
    {"continue_final_message": True, "messages": [{"role": "user", "content": "x"}]}])
async def test_going_on_from_nothing_is_refused(client, ask, wrong):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{**going_on(ask, "say a", "a"), "extra_body": wrong})
    assert caught.value.param == "continue_final_message"
