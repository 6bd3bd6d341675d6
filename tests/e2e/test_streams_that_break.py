"""A stream that is late or breaks off: who goes on with it, what the rules say of the whole, what it costs, what the client hears meanwhile."""

import asyncio
import json
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

BUDGET = '[budgets.all]\nscope = "all"\nlimit = "10.00"\n'
ROUTES = """
[[route]]
name = "steady"
[[route.targets]]
provider = "one"
model = "sim-large"
continues = true
continue_with = { continue_final_message = true }
[[route.targets]]
provider = "two"
model = "sim-small"
continues = true
continue_with = { continue_final_message = true }
[route.retry]
attempts = 1
base = "1ms"
[route.stream]
on_failure = "continue"
"""
CUT = Scenario(rules=(FaultRule(Fault(cut_after_chunks=4)),))


async def stream(house: Any, messages: Any, text: str, **asked: Any) -> tuple[str, list[Any], Exception | None]:
    chunks: list[Any] = []
    error = None
    try:
        answer = await house.client().chat.completions.create(model="steady", messages=messages(text), stream=True, **asked)
        async for chunk in answer:
            chunks.append(chunk)  # noqa: PERF401 - what came before an error counts
    except openai.APIError as caught:
        error = caught
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks, error


async def record(house: Any) -> dict[str, Any]:
    await house.gateway.running.proxy.idle(20)
    await house.gateway.running.proxy.settler.drained(20)
    found: dict[str, Any] = await house.call((await house.calls())[0]["id"])
    return found


WORDS = "say " + " ".join(f"word{number}" for number in range(20))


async def test_the_rest_comes_from_another_target_as_part_of_one_answer(house, messages):
    await house.open(routes=ROUTES, config=BUDGET)
    house.one.play(CUT)
    text, chunks, error = await stream(house, messages, WORDS)
    assert error is None
    assert text == WORDS.removeprefix("say ")
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices and chunk.choices[0].delta.role] == ["assistant"]
    kept = await record(house)
    assert [(each["target"], each["end"], each["why"]) for each in kept["attempts"]] == [
        ("one/sim-large", "cut", None), ("two/sim-small", "succeeded", "continuation")]
    assert json.loads(kept["response"])["choices"][0]["message"]["content"] == text
    billed = [simulator.requests[0].billed for simulator in (house.one, house.two)]
    assert all(billed)
    assert await house.spent("all/all") == sum(each["cost_nusd"] for each in kept["attempts"])
    (asked,) = house.two.requests
    assert asked.body["messages"][-1]["role"] == "assistant"
    assert asked.body["continue_final_message"] is True


async def test_a_rule_reads_the_answer_over_the_place_where_it_broke(house, messages):
    """What is to be taken out may stand half before it and half behind."""
    await house.open(routes=ROUTES, policies="""
[[rule]]
id = "no-mail"
phase = "response"
effect = "redact"
redact = { detectors = ["email"] }
""")
    house.one.play(Scenario(rules=(FaultRule(Fault(cut_after_chunks=3)),)))
    text, _, error = await stream(house, messages, "say write to somebody.with.a.long.name@example.com today")
    assert error is None
    assert "example.com" not in text
    assert "somebody" not in text
    assert text.endswith("today")


async def test_an_answer_with_validators_is_held_and_never_half_given(house, messages):
    await house.open(routes=ROUTES.replace('on_failure = "continue"', "") + "[[route.validators]]\nnon_empty = true\n")
    house.one.play(CUT)
    text, chunks, error = await stream(house, messages, WORDS)
    assert error is None
    assert text == WORDS.removeprefix("say ")
    assert [(each["end"], each["why"]) for each in (await record(house))["attempts"]] == [("failed", None), ("succeeded", "fallback")]
    assert len(chunks) > 5


async def test_a_held_stream_that_runs_over_its_money_is_not_given(house, messages):
    await house.open(routes=ROUTES.replace('on_failure = "continue"', "") + "[[route.validators]]\nnon_empty = true\n",
                     config='[budgets.all]\nscope = "all"\nlimit = "0.0022"\n')
    house.one.play(Scenario(rules=(FaultRule(Fault(ignore_limits=True)),)))
    house.two.play(Scenario(rules=(FaultRule(Fault(status=500)),)))
    text, _, error = await stream(house, messages, "words 2000", max_tokens=20)
    assert text == ""
    assert error is not None
    assert (await record(house))["attempts"][0]["cause"] == "too_long"


async def test_a_stream_may_begin_with_a_comment_while_nobody_has_answered(house, messages):
    """For proxies that cut what is silent. From then on a failure is an event in the stream."""
    await house.open(routes=ROUTES.replace('on_failure = "continue"', 'early = "30ms"'))
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_headers_s=0.3)),)))
    session = await house.http()
    body = {"model": "steady", "stream": True, "messages": messages("say late")}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status == 200
        first = await answer.content.readline()
        rest = await answer.content.read()
    assert first.startswith(b": ")
    assert b"late" in rest
    assert rest.rstrip().endswith(b"data: [DONE]")

    for simulator in (house.one, house.two):
        simulator.play(Scenario(rules=(FaultRule(Fault(status=500, delay_headers_s=0.1)),)))
    text, _, error = await stream(house, messages, "say never")
    assert text == ""
    assert isinstance(error, openai.APIError)
    assert not isinstance(error, openai.APIStatusError)
    assert (await record(house))["outcome"] == "failed"


async def test_an_answer_that_comes_in_time_begins_with_itself(house, messages):
    await house.open(routes=ROUTES.replace('on_failure = "continue"', 'early = "20s"'))
    text, _, error = await stream(house, messages, "say prompt")
    assert (text, error) == ("prompt", None)


async def test_a_stream_that_pauses_is_not_silent(house, messages):
    await house.open(routes=ROUTES, config='[server]\nkeep_alive = "40ms"\n')
    house.one.play(Scenario(rules=(FaultRule(Fault(delay_between_tokens_s=0.4)),)))
    session = await house.http()
    body = {"model": "steady", "stream": True, "messages": messages("say one two")}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        got = await answer.content.read()
    blocks = got.split(b"\n\n")
    assert blocks.count(b": waiting") >= 2
    assert all(block.startswith((b"data: ", b": ")) for block in blocks if block)  # whole events, with comments between them
    text, _, error = await stream(house, messages, "say one two")
    assert (text, error) == ("one two", None)


async def test_a_client_that_goes_away_while_another_target_goes_on_stops_that_one(house, messages):
    await house.open(routes=ROUTES, config=BUDGET)
    house.one.play(CUT)
    house.two.play(Scenario(rules=(FaultRule(Fault(stall_after_chunks=2)),)))
    asking = asyncio.create_task(stream(house, messages, WORDS))
    async with asyncio.timeout(20):
        while not (house.two.requests and house.two.requests[0].chunks == 2):
            await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await house.two.finished(1))[0].end == "client_gone"
    kept = await record(house)
    assert [each["end"] for each in kept["attempts"]] == ["cut", "cancelled"]
    assert await house.spent("all/all") == sum(each["cost_nusd"] for each in kept["attempts"])
