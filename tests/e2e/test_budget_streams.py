"""A stream and its money: one that runs on is topped up, and one that is used up ends as an answer that was cut to length."""

import json
from typing import Any

import openai
import pytest
from aiohttp import web

from gateway.app import Parts
from gateway.errors import StoreUnavailable
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.memory import MemoryStore
from gateway.store.sqlite import SqliteStore

DEAF = Scenario(rules=(FaultRule(Fault(ignore_limits=True)),))  # a provider that does not keep to the longest answer it was given
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])


def budget(limit: str, store: str = "lockgate.db", more: str = "") -> str:
    return f'[store]\npath = "{store}"\n[budgets.b]\nscope = "all"\nlimit = "{limit}"\n{more}'


async def seen(stream) -> list[Any]:
    return [chunk async for chunk in stream]


def words(chunks: list[Any], choice: int = 0) -> str:
    return "".join(each.delta.content or "" for chunk in chunks for each in chunk.choices if each.index == choice)


def reasons(chunks: list[Any]) -> list[tuple[int, str]]:
    return [(each.index, each.finish_reason) for chunk in chunks for each in chunk.choices if each.finish_reason]


@STORES
@pytest.mark.parametrize("provider", ["keeps to it", "does not"])
async def test_a_budget_that_ends_in_the_middle_is_a_normal_end_for_the_client(house, messages, store, provider):
    await house.open(config=budget("0.001", store))
    if provider == "does not":  # it would wait for ever, if nobody told it to stop
        house.one.play(Scenario(rules=(FaultRule(Fault(ignore_limits=True, stall_after_chunks=600)),)))
    stream = await house.client().chat.completions.create(model="fast", messages=messages("words 3000"), stream=True)
    chunks = await seen(stream)
    assert reasons(chunks) == [(0, "length")]
    assert 400 <= len(words(chunks).split()) < 500
    assert 900_000 < await house.spent("b/all") <= 1_000_000
    (row,) = await house.calls()
    assert (row["outcome"], row["code"], row["finish_reasons"]) == ("completed", None, ["length"])
    if provider == "does not":
        (entry,) = await house.one.finished(1)
        assert entry.end == "client_gone"


@pytest.mark.parametrize("provider", ["keeps to it", "does not"])
async def test_the_clients_own_helper_takes_a_stream_that_was_ended_as_it_takes_one_that_a_model_has_cut_to_length(house, messages, provider):
    await house.open(config=budget("0.001"))
    if provider == "does not":
        house.one.play(DEAF)
    with pytest.raises(openai.LengthFinishReasonError) as caught:
        async with house.client().chat.completions.stream(model="fast", messages=messages("words 3000")) as stream:
            await stream.get_final_completion()
    completion = caught.value.completion
    assert completion.choices[0].finish_reason == "length"
    assert len((completion.choices[0].message.content or "").split()) > 400


@pytest.mark.parametrize("asked", [False, True], ids=["not asked for", "asked for"])
async def test_who_asked_for_usage_gets_its_chunk_at_an_end_of_ours_too(house, messages, asked):
    await house.open(config=budget("0.001"))
    house.one.play(DEAF)
    options = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = await seen(await house.client().chat.completions.create(model="fast", messages=messages("words 3000"), stream=True, **options))
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    if not asked:
        assert usages == []
        return
    assert chunks[-1].choices == []
    (usage,) = usages
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert await house.spent("b/all") == usage.prompt_tokens * 1_000 + usage.completion_tokens * 2_000


async def test_plain_completions_end_the_same_way(house):
    await house.open(config=budget("0.001"))
    house.one.play(DEAF)
    chunks = await seen(await house.client().completions.create(model="fast", prompt="words 3000", stream=True))
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert [(choice.index, choice.text, choice.finish_reason) for choice in ends] == [(0, "", "length")]
    assert len("".join(choice.text for chunk in chunks for choice in chunk.choices).split()) > 400
    assert await house.spent("b/all") <= 1_000_000


@pytest.mark.parametrize("provider", ["keeps to it", "does not"])
async def test_every_choice_of_several_is_ended(house, messages, provider):
    await house.open(config=budget("0.001"))
    if provider == "does not":
        house.one.play(DEAF)
    chunks = await seen(await house.client().chat.completions.create(model="fast", messages=messages("words 3000"), n=2, stream=True))
    assert sorted(reasons(chunks)) == [(0, "length"), (1, "length")]
    assert await house.spent("b/all") <= 1_000_000


@pytest.mark.parametrize("judged", [False, True], ids=["tool calls pass", "tool calls are judged"])
async def test_a_tool_call_whose_arguments_run_over_is_ended_and_never_half_judged(house, messages, judged):
    """What was held back because its arguments are not whole is not let out as if they were."""
    rule = '[[rule]]\nid = "no-rome"\nphase = "tool_call"\nwhen = \'tool.args.city == "Rome"\'\neffect = "deny"\nmessage = "No."\n' if judged else ""
    await house.open(config=budget("0.0102"), policies=rule)  # the question alone may cost 0.0092
    house.one.play(DEAF)
    prompt = messages("call weather " + json.dumps({"city": "x" * 8000}))
    chunks = await seen(await house.client().chat.completions.create(model="fast", messages=prompt, tools=TOOLS, stream=True))
    calls = [call for chunk in chunks for each in chunk.choices for call in each.delta.tool_calls or []]
    assert (calls == []) is judged
    assert reasons(chunks) == [(0, "length")]
    assert await house.spent("b/all") <= 10_200_000


async def test_a_rule_that_needs_the_whole_answer_judges_what_there_is_of_it(house, messages):
    rule = '[[rule]]\nid = "no"\nphase = "response"\nwhen = \'response.text.contains("forbidden")\'\neffect = "deny"\nmessage = "No."\n'
    await house.open(config=budget("0.001"), policies=rule)
    house.one.play(DEAF)
    chunks = await seen(await house.client().chat.completions.create(model="fast", messages=messages("words 3000"), stream=True))
    assert reasons(chunks) == [(0, "length")]
    assert len(words(chunks).split()) > 400


@STORES
async def test_a_stream_that_runs_on_is_topped_up_as_long_as_there_is_money(house, messages, store):
    """It was asked for 10 tokens and brings 1,000: what the provider will bill is set aside before it comes, and then booked."""
    await house.open(config=budget("0.01", store))
    house.one.play(DEAF)
    stream = await house.client().chat.completions.create(model="fast", messages=messages("words 1000"), max_tokens=10, stream=True)
    chunks = await seen(stream)
    assert reasons(chunks) == [(0, "stop")]
    assert len(words(chunks).split()) == 1000
    (entry,) = await house.one.finished(1)
    assert await house.spent("b/all") == entry.usage["prompt_tokens"] * 1_000 + 1000 * 2_000
    if store != ":memory:":
        assert house.sql("SELECT amount_nusd >= 2000000 FROM reservations") == [(1,)]
        assert house.sql("SELECT over_nusd FROM balances") == [(0,)]


async def test_a_stream_that_nothing_limits_is_left_alone(house, messages):
    await house.open(config='[budgets.soft]\nscope = "all"\nsoft = "0.000001"\n')
    house.one.play(DEAF)
    chunks = await seen(await house.client().chat.completions.create(model="fast", messages=messages("words 700"), max_tokens=10, stream=True))
    assert (reasons(chunks), len(words(chunks).split())) == ([(0, "stop")], 700)


async def test_a_plain_answer_that_is_longer_than_was_paid_for_is_booked_whole_and_told(house, messages):
    """It is there when it is seen: the provider will bill it. What is over stands in the books and in the log."""
    await house.open(config=budget("0.001"))
    house.one.play(DEAF)
    answer = await house.client().chat.completions.create(model="fast", messages=messages("words 700"))
    assert answer.usage.completion_tokens == 700
    spent = await house.spent("b/all")
    assert spent == 9 * 1_000 + 700 * 2_000
    await house.gateway.app.telemetry.scrape()
    events = [line for line in map(json.loads, b"".join(house.lines).splitlines()) if line["event"] == "budget_overrun"]
    assert len(events) == 1
    ((over,),) = house.sql("SELECT over_nusd FROM balances")
    assert over > 0
    assert spent <= 1_000_000 + over


@pytest.mark.parametrize("rest", ["enough", "nothing"])
async def test_what_a_stream_takes_in_the_middle_is_not_there_for_others(house, messages, rest):
    await house.open(config=budget("0.01" if rest == "enough" else "0.0002", more="least_output = 10\n"))
    house.one.play(Scenario(rules=(FaultRule(Fault(ignore_limits=True, stall_after_chunks=200)),)))
    client = house.client()
    stream = await client.chat.completions.create(model="fast", messages=messages("words 1000"), max_tokens=10, stream=True)
    got = 0
    async for chunk in stream:
        got += 1
        if got == 150 or chunk.choices[0].finish_reason:
            break
    pending = (await house.accounts())["b/all"].pending
    if rest == "enough":
        assert pending >= 150 * 2_000
    else:
        assert (got < 150, pending) == (True, 0)
    await stream.close()
    await house.one.finished(1)
    assert await house.spent("b/all") <= (10_000_000 if rest == "enough" else 200_000)


class Deaf:
    """A provider that says everything in one piece, with the reason why it ended, whatever it was asked for."""

    def __init__(self, **choice: Any) -> None:
        self._choice = choice

    async def answer(self, _request: web.Request) -> web.Response:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", **self._choice}]}
        return web.Response(body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), content_type="text/event-stream")


async def test_an_end_that_comes_with_what_is_not_paid_for_is_replaced_by_one_of_ours(house, messages, aiohttp_server):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", Deaf(delta={"role": "assistant", "content": "x" * 20_000}).answer)
    provider = await aiohttp_server(app)
    await house.open(
        config=f'[providers.deaf]\nadapter = "openai"\nbase_url = "{provider.make_url("/v1")}"\n[prices."deaf/m"]\ninput = "1"\noutput = "2"\n' + budget("0.001"),
        routes='[[route]]\nname = "r"\n[[route.targets]]\nprovider = "deaf"\nmodel = "m"\n')
    chunks = await seen(await house.client().chat.completions.create(model="r", messages=messages("hi"), stream=True))
    assert (words(chunks), reasons(chunks)) == ("", [(0, "length")])
    assert chunks[0].model == "m"
    assert 900_000 < await house.spent("b/all") <= 1_000_000  # it was made, and will be billed


class Shut:
    """A store's budgets that cannot set more aside."""

    def __init__(self, budgets: Any) -> None:
        self._budgets = budgets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._budgets, name)

    async def extend(self, *_args: object, **_kwargs: object) -> None:
        raise StoreUnavailable("the disk is full")


@STORES
async def test_a_store_that_fails_while_a_stream_asks_for_more_ends_it_with_an_error_and_nothing_leaks(house, messages, store):
    made = MemoryStore("tests") if store == ":memory:" else SqliteStore(house.folder / "lockgate.db", "tests")
    shut: Any = Shut(made.budgets)
    made.budgets = shut
    await house.open(config=budget("0.01", store), parts=Parts(store=made))
    house.one.play(DEAF)
    stream = await house.client().chat.completions.create(model="fast", messages=messages("words 300"), max_tokens=10, stream=True)
    with pytest.raises(openai.APIError) as caught:
        await seen(stream)
    assert caught.value.code == "store_unavailable"
    assert 10 * 2_000 <= await house.spent("b/all") <= 10_000_000
    assert (await house.calls())[0]["outcome"] == "cut"
