"""A cascade goes on from an answer that it would rather not give: where nobody has a better one, that one is given after all.

It was paid for. An error in its place would have the client pay, and ask, again.
"""

from typing import Any

import openai
import pytest

from gateway.simulator import Entry, Fault, FaultRule, Match, Scenario

PRICES_NUSD = {"sim-small": (100, 200), "sim-large": (10_000, 20_000)}  # a token of input, of output; as the house's
BUDGET = '[budgets.all]\nscope = "all"\nlimit = "10.00"\n'
CHEAP = ("two/sim-small", "succeeded", "not_accepted", None)
SAID = "the cheap answer"


def routes(retry: str = "attempts = 1", more: str = "", accept: str = 'response.text.contains("good")') -> str:
    return f"""
[[route]]
name = "c"
strategy = "cascade"
accept = '{accept}'
[[route.targets]]
provider = "two"
model = "sim-small"
[[route.targets]]
provider = "one"
model = "sim-large"
{more}
[route.retry]
base = "1ms"
{retry}
"""


def always(**fault: Any) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


async def ask(house: Any, *, stream: bool, text: str = f"say {SAID}", **asked: Any) -> tuple[str, Any]:
    """What the client got, and the headers that it came with."""
    raw = await house.client().chat.completions.with_raw_response.create(
        model="c", messages=[{"role": "user", "content": text}], stream=stream, **asked)
    got = raw.parse()
    if not stream:
        return got.choices[0].message.content, raw.headers
    return "".join([chunk.choices[0].delta.content or "" async for chunk in got if chunk.choices]), raw.headers


async def record(house: Any) -> dict[str, Any]:
    """The last call, once it is settled."""
    app = house.gateway.running
    await app.proxy.idle(20)
    await app.proxy.settler.drained(20)
    found: dict[str, Any] = await house.call((await house.calls())[0]["id"])
    return found


def made(call: dict[str, Any]) -> list[tuple[str, str, str | None, str | None]]:
    return [(each["target"], each["end"], each["cause"], each["why"]) for each in call["attempts"]]


def owed(*entries: Entry) -> int:
    """What providers charge for answers that they have given."""
    bills = [(PRICES_NUSD[entry.body["model"]], entry.billed) for entry in entries if entry.billed is not None]
    return sum(bill.prompt_tokens * read + bill.completion_tokens * written for (read, written), bill in bills)


both_ways = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


@both_ways
@pytest.mark.parametrize(("fault", "end", "cause"), [
    (Fault(status=500), "failed", "status:500"),
    (Fault(reset=True), "failed", "reset"),
    (Fault(garbage="json"), "failed", "malformed"),
    (Fault(status=401), "failed", "status:401"),
    (Fault(status=400), "rejected", None),
    (Fault(status=429, retry_after_s=30), "failed", "status:429"),
], ids=["fails", "is reset", "answers nonsense", "does not know us", "refuses", "is busy"])
async def test_an_answer_that_a_cascade_went_on_from_is_given_where_the_next_target_has_none(house, stream, fault, end, cause):
    await house.open(routes=routes(), config=BUDGET)
    house.one.play(Scenario(rules=(FaultRule(fault),)))
    text, headers = await ask(house, stream=stream)
    assert text == SAID
    call = await record(house)
    assert made(call) == [CHEAP, ("one/sim-large", end, cause, "cascade")]
    assert (call["outcome"], call["status"], call["code"], call["finish_reasons"]) == ("completed", 200, None, ["stop"])
    assert call["attempts"][0]["cost_nusd"] == owed(*house.two.requests)
    assert await house.spent("all/all") == call["cost_nusd"] == sum(each["cost_nusd"] for each in call["attempts"])
    assert headers["x-lockgate-attempts"] == "2"


@both_ways
@pytest.mark.parametrize("status", [400, 500])
async def test_the_target_that_is_named_is_the_one_whose_answer_is_given(house, stream, status):
    """And its usage and its first byte are those on record, not those of the target that refused."""
    await house.open(routes=routes(), config=BUDGET)
    house.one.play(always(status=status))
    _text, headers = await ask(house, stream=stream)
    call = await record(house)
    assert headers["x-lockgate-target"] == "two/sim-small"
    assert call["usage"]["output_tokens"] == len(SAID.split())
    assert call["first_byte_ns"] == call["attempts"][0]["first_byte_ns"]
    assert headers["x-lockgate-cost-usd"] == call["cost_usd"]


@both_ways
@pytest.mark.parametrize("budget", ['limit = "0.0005"\non_short = "deny"', 'limit = "0.00003"'], ids=["denied", "used up"])
async def test_an_answer_is_given_where_there_is_no_money_for_a_better_one(house, stream, budget):
    await house.open(routes=routes(), config=f'[budgets.all]\nscope = "all"\n{budget}\n')
    text, headers = await ask(house, stream=stream, max_tokens=50)
    assert text == SAID
    assert house.one.requests == []
    call = await record(house)
    assert made(call) == [CHEAP]
    assert (call["outcome"], call["finish_reasons"], headers["x-lockgate-target"]) == ("completed", ["stop"], "two/sim-small")
    assert await house.spent("all/all") == call["cost_nusd"] == owed(*house.two.requests)


@both_ways
async def test_going_on_to_a_better_answer_takes_nothing_from_the_retry_budget(house, stream):
    """It makes up for no failure: a route whose retries are all used up is a cascade all the same, for ever."""
    await house.open(routes=routes("attempts = 2\nbudget = { share = 0.0, per_second = 0.0 }"), config=BUDGET)
    house.one.play(always(content="a good answer"))
    for _ in range(3):
        assert (await ask(house, stream=stream))[0] == "a good answer"
        call = await record(house)
        assert made(call) == [CHEAP, ("one/sim-large", "succeeded", None, "cascade")]
        assert call["attempts"][1]["retries_left"] is None
    assert await house.spent("all/all") == owed(*house.one.requests, *house.two.requests)


@both_ways
async def test_an_answer_is_given_where_the_retry_budget_has_no_second_try_of_the_next_target(house, stream):
    await house.open(routes=routes("attempts = 3\nbudget = { share = 0.0, per_second = 0.0 }"), config=BUDGET)
    house.one.play(always(status=500))
    assert (await ask(house, stream=stream))[0] == SAID
    assert made(await record(house)) == [CHEAP, ("one/sim-large", "failed", "status:500", "cascade")]


@both_ways
async def test_an_answer_is_given_where_every_try_of_the_next_target_fails(house, stream):
    await house.open(routes=routes("attempts = 2"), config=BUDGET)
    house.one.play(always(status=500))
    assert (await ask(house, stream=stream))[0] == SAID
    assert made(await record(house)) == [
        CHEAP, ("one/sim-large", "failed", "status:500", "cascade"), ("one/sim-large", "failed", "status:500", "retry")]


@both_ways
async def test_an_answer_is_given_where_the_breaker_of_the_next_target_is_open(house, stream):
    await house.open(routes=routes(), config=BUDGET + '[breaker]\nconsecutive = 1\nopen = "1h"\nopen_cap = "1h"\n')
    house.one.play(always(status=500))
    for _ in range(2):
        assert (await ask(house, stream=stream))[0] == SAID
    assert len(house.one.requests) == 1
    assert made(await record(house)) == [("two/sim-small", "succeeded", None, None)]  # the only one that may be asked is the last


@both_ways
async def test_of_several_answers_that_were_not_accepted_the_last_one_is_given(house, stream):
    """Each is from a better target than the one before."""
    middle = '[[route.targets]]\nprovider = "two"\nmodel = "sim-large"\n'
    await house.open(routes=routes(more=middle), config=BUDGET + '[prices."two/sim-large"]\ninput = "1.00"\noutput = "2.00"\n')
    house.one.play(always(content="a fair answer", finish_reason="length"))
    house.two.play(Scenario(rules=(FaultRule(Fault(status=500), Match(model="sim-large")),)))
    text, headers = await ask(house, stream=stream)
    assert text == "a fair answer"
    call = await record(house)
    assert made(call) == [CHEAP, ("one/sim-large", "succeeded", "not_accepted", "cascade"), ("two/sim-large", "failed", "status:500", "cascade")]
    assert (call["finish_reasons"], headers["x-lockgate-target"]) == (["length"], "one/sim-large")


@both_ways
async def test_an_answer_that_is_not_what_the_route_asks_for_is_never_given(house, stream):
    """`accept` is a wish, a validator is none."""
    await house.open(routes=routes(accept="answer.valid", more='[[route.validators]]\nmatches = "good"\n'), config=BUDGET)
    house.one.play(always(status=500))
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(house, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")
    call = await record(house)
    assert (call["outcome"], call["response"]) == ("failed", None)
    assert await house.spent("all/all") >= owed(*house.two.requests)


@both_ways
async def test_one_that_is_not_accepted_and_passes_the_validators_is_given(house, stream):
    await house.open(routes=routes(more="[[route.validators]]\nnon_empty = true\n"), config=BUDGET)
    house.one.play(always(content=""))
    text, _headers = await ask(house, stream=stream)
    assert text == SAID
    assert made(await record(house)) == [CHEAP, ("one/sim-large", "failed", "check:non_empty", "cascade")]


@both_ways
async def test_an_answer_that_may_be_given_is_not_forgotten_for_one_that_may_not(house, stream):
    """The second fails a validator, the third fails as a whole: the first one is given, under its own name."""
    third = '[[route.targets]]\nprovider = "two"\nmodel = "sim-large"\n[[route.validators]]\nmatches = "answer"\n'
    await house.open(routes=routes(accept='answer.valid && response.text.contains("good")', more=third),
                     config=BUDGET + '[prices."two/sim-large"]\ninput = "1.00"\noutput = "2.00"\n')
    house.one.play(always(content="not what was asked for", finish_reason="length"))
    house.two.play(Scenario(rules=(FaultRule(Fault(status=500), Match(model="sim-large")),)))
    text, headers = await ask(house, stream=stream)
    assert text == SAID
    call = await record(house)
    assert (headers["x-lockgate-target"], call["finish_reasons"]) == ("two/sim-small", ["stop"])
    assert call["usage"]["output_tokens"] == len(SAID.split())


DENY = """
[[rule]]
id = "no-cheap"
phase = "response"
effect = "deny"
when = 'response.text.contains("cheap")'
"""


@both_ways
async def test_rules_judge_an_answer_that_is_given_after_all_as_any_other(house, stream):
    await house.open(routes=routes(), config=BUDGET, policies=DENY)
    house.one.play(always(status=500))
    with pytest.raises(openai.APIError) as caught:
        await ask(house, stream=stream)
    assert caught.value.code == "forbidden"
    assert SAID not in str(caught.value)
    call = await record(house)
    assert (call["outcome"], made(call)[0]) == ("withheld", CHEAP)
    assert await house.spent("all/all") >= owed(*house.two.requests)


# With a second attempt beside a slow one.


HEDGE = '[route.hedge]\nafter = "10ms"\nshare = 1.0\n'
SLOW = Fault(delay_headers_s=0.1)


@both_ways
async def test_a_slow_answer_does_not_get_round_what_a_cascade_accepts(house, stream):
    """What stands beside it is asked of the same target: the next one is for another answer, not for the same one sooner."""
    await house.open(routes=routes(more=HEDGE), config=BUDGET)
    house.two.play(Scenario(pacing=SLOW))
    house.one.play(always(content="a good answer"))
    assert (await ask(house, stream=stream))[0] == "a good answer"
    *cheap, last = made(await record(house))
    assert {each[0] for each in cheap} == {"two/sim-small"}
    assert last == ("one/sim-large", "succeeded", None, "cascade")
    assert len(house.one.requests) == 1
    assert await house.spent("all/all") >= owed(*house.one.requests, *house.two.requests)


@both_ways
async def test_where_the_first_of_two_attempts_fails_the_answer_of_the_other_is_there_to_be_given(house, stream):
    await house.open(routes=routes(more=HEDGE), config=BUDGET)
    house.two.play(Scenario(rules=(FaultRule(Fault(status=500, delay_headers_s=0.05, times=1)), FaultRule(Fault(delay_headers_s=0.3)))))
    house.one.play(always(status=500))
    assert (await ask(house, stream=stream))[0] == SAID
    assert sorted(made(await record(house))[:2]) == [
        ("two/sim-small", "failed", "status:500", None), ("two/sim-small", "succeeded", "not_accepted", "hedge")]


@both_ways
async def test_an_answer_that_is_not_accepted_is_not_made_to_wait_for_a_slower_one_of_the_same_target(house, stream):
    """It would be judged alike. The next target is asked at once."""
    await house.open(routes=routes(more=HEDGE), config=BUDGET)
    house.two.play(Scenario(rules=(FaultRule(Fault(hang=True, times=1)),)))
    house.one.play(always(content="a good answer"))
    assert (await ask(house, stream=stream))[0] == "a good answer"
    assert made(await record(house)) == [
        ("two/sim-small", "cancelled", "hedged", None), ("two/sim-small", "succeeded", "not_accepted", "hedge"),
        ("one/sim-large", "succeeded", None, "cascade")]
    assert (await house.two.finished(2))[0].end == "client_gone"


@both_ways
async def test_nothing_stays_open_of_an_answer_that_is_given_after_all(house, stream):
    await house.open(routes=routes(more=HEDGE.replace("10ms", "20s")), config=BUDGET)
    house.one.play(always(status=500))
    for _ in range(3):
        assert (await ask(house, stream=stream))[0] == SAID
    await record(house)
    for each in (house.one, house.two):
        assert {entry.end for entry in await each.finished(3)} == {"completed"}
