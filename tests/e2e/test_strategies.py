"""Where calls go, seen from the official client: strategies, rules, canaries, aliases, and answers that a route does not take."""

import asyncio
import json
from typing import Any

import openai
import pytest

from gateway.core.approval import State, Vote, Voter
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.approvals_protocol import TicketFilter

LARGE = '[[route.targets]]\nprovider = "one"\nmodel = "sim-large"\n'
SMALL = '[[route.targets]]\nprovider = "two"\nmodel = "sim-small"\n'


def routes(said: str, more: str = "", targets: str = LARGE + SMALL) -> str:
    """One route named `r`: what it says of itself, its targets, and more tables."""
    return f'[[route]]\nname = "r"\n{said}\n{targets}{more}[route.retry]\nattempts = 1\nbase = "1ms"\n'


def answering(**fault: Any) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


async def ask(house: Any, messages: Any, model: str = "r", **asked: Any) -> tuple[str, dict[str, Any]]:
    """What the client got, plain, and the record of the call."""
    got = await house.client().chat.completions.with_raw_response.create(model=model, messages=messages("hi"), **asked)
    text = got.parse().choices[0].message.content or ""
    return text, await settled(house, got.headers["x-lockgate-call"])


async def settled(house: Any, call_id: str) -> dict[str, Any]:
    app = house.gateway.running
    await app.proxy.idle(20)
    await app.proxy.settler.drained(20)
    call: dict[str, Any] = await house.call(call_id)
    return call


def tried(call: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(each["target"], each["cause"] or "", each["why"] or "") for each in call["attempts"]]


# Strategies.


async def test_the_cheapest_target_is_asked_first_and_the_record_says_why(house, messages):
    await house.open(routes=routes('strategy = "cheapest"'))
    _text, call = await ask(house, messages)
    assert tried(call) == [("two/sim-small", "", "")]
    assert call["plan"]["order"][0]["why"].startswith("cheapest: 0.")
    assert call["plan"]["order"][1]["target"] == "one/sim-large"


async def test_a_session_stays_with_its_target_until_that_one_fails(house, messages):
    await house.open(routes=routes('strategy = "sticky"'))
    places = {number: {(await ask(house, messages, extra_headers={"X-Lockgate-Session": f"s{number}"}))[1]["attempts"][0]["target"]
                       for _ in range(2)} for number in range(8)}
    assert all(len(each) == 1 for each in places.values())
    assert set().union(*places.values()) == {"one/sim-large", "two/sim-small"}
    house.one.play(answering(status=503))
    moving = next(number for number, each in places.items() if each == {"one/sim-large"})
    _text, call = await ask(house, messages, extra_headers={"X-Lockgate-Session": f"s{moving}"})
    assert tried(call) == [("one/sim-large", "status:503", ""), ("two/sim-small", "", "fallback")]


async def test_weights_share_calls_out(house, messages):
    await house.open(routes=routes('strategy = "weighted"', targets=LARGE + "weight = 1000000\n" + SMALL))
    for _ in range(5):
        assert (await ask(house, messages))[1]["attempts"][0]["target"] == "one/sim-large"


async def test_the_fastest_is_found_by_trying_each(house, messages):
    house.one.play(answering(delay_first_token_s=0.2))
    await house.open(routes=routes('strategy = "fastest"'))
    for _ in range(2):
        stream = await house.client().chat.completions.create(model="r", messages=messages("hi"), stream=True)
        async for _chunk in stream:
            pass
    assert (len(house.one.requests), len(house.two.requests)) == (1, 1), "each is measured once"
    _text, call = await ask(house, messages)
    assert call["attempts"][0]["target"] == "two/sim-small"
    assert call["plan"]["order"][0]["why"].startswith("fastest: ")


async def test_a_canary_gets_its_calls_and_is_backed_up(house, messages):
    await house.open(routes=routes("", targets=LARGE + SMALL + "canary = 100\n"))
    house.two.play(answering(status=500))
    text, call = await ask(house, messages)
    assert text
    assert tried(call) == [("two/sim-small", "status:500", ""), ("one/sim-large", "", "fallback")]
    assert call["plan"]["order"][0]["why"] == "canary (100 %)"


async def test_an_alias_is_asked_like_its_route_and_the_record_has_the_routes_own_name(house, messages):
    await house.open(routes=routes('aliases = ["gpt-best"]'))
    _text, call = await ask(house, messages, model="gpt-best")
    assert call["route"] == "r"
    assert json.loads(call["request"])["model"] == "gpt-best"
    assert "gpt-best" in {model.id async for model in house.client().models.list()}


@pytest.mark.parametrize(("rule", "asked"), [
    ('match = { routes = ["r"] }', "gpt-best"), ('match = { models = ["r"] }', "gpt-best"), ("""when = 'route == "r"'""", "gpt-best"),
    ("""when = 'model == "r"'""", "gpt-best"), ('match = { models = ["gpt-*"] }', "gpt-best"), ("""when = 'request.model == "gpt-best"'""", "gpt-best"),
    ('match = { routes = ["r"] }', "r"), ("""when = 'route == "r"'""", "r")])
async def test_no_name_of_a_route_gets_round_a_rule_that_is_about_it(house, messages, rule, asked):
    """Whoever adds an alias to a route must not open every rule on it."""
    await house.open(routes=routes('aliases = ["gpt-best"]'), policies=f'[[rule]]\nid = "no"\neffect = "deny"\nmessage = "no"\n{rule}\n')
    with pytest.raises(openai.PermissionDeniedError):
        await ask(house, messages, model=asked)


async def test_a_rule_on_a_routes_budget_sees_what_is_booked_under_whatever_name(house, messages):
    await house.open(routes=routes('aliases = ["gpt-best"]'), config='[budgets.r]\nscope = "route"\nlimit = "1.00"\n', policies="""
[[rule]]
id = "spent"
effect = "deny"
message = "no"
when = 'budget.spent["route"] > 0'
""")
    await ask(house, messages, model="gpt-best")
    with pytest.raises(openai.PermissionDeniedError):
        await ask(house, messages, model="gpt-best")


# Rules.


RULED = """
[[route.rules]]
when = '"tier" in tags && tags["tier"] == "free"'
targets = ["two/*"]
[[route.rules]]
when = 'tags["region"] == "eu"'
targets = ["one/*"]
"""


async def test_rules_choose_by_tags_and_what_could_not_be_evaluated_is_on_record(house, messages):
    await house.open(routes=routes("", RULED))
    _text, free = await ask(house, messages, extra_headers={"X-Lockgate-Tags": "tier=free"})
    assert tried(free) == [("two/sim-small", "", "")]
    assert free["plan"]["rule"] == '"tier" in tags && tags["tier"] == "free"'
    assert [each["target"] for each in free["plan"]["passed"]] == ["one/sim-large"]
    _text, other = await ask(house, messages)
    assert tried(other) == [("one/sim-large", "", "")]
    assert other["plan"]["notes"][0].startswith('tags["region"] == "eu": ')


async def test_what_a_rule_leaves_out_is_no_fallback(house, messages):
    await house.open(routes=routes("", RULED))
    house.two.play(answering(status=500))
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(house, messages, extra_headers={"X-Lockgate-Tags": "tier=free"})
    assert caught.value.status_code == 502
    assert house.one.requests == []


async def test_a_routes_rule_cannot_bring_back_what_policy_takes_out(house, messages):
    policy = '[[rule]]\nid = "home"\neffect = "route"\nroute = { remove = ["two/*"] }\nmatch = { teams = ["blue"] }\n'
    await house.open(routes=routes("", RULED), policies=policy)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await ask(house, messages, extra_headers={"X-Lockgate-Tags": "tier=free"})
    assert "not of rule" in str(caught.value)
    assert house.one.requests == house.two.requests == []
    _text, call = await ask(house, messages)
    assert tried(call) == [("one/sim-large", "", "")]


# What a route asks of answers.


CASCADE = "strategy = \"cascade\"\naccept = 'answer.length > 10 && response.finish_reason == \"stop\"'"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cascade_goes_on_where_the_answer_is_not_good_enough_and_both_are_paid(house, messages, stream):
    house.two.play(answering(content="short"))
    house.one.play(answering(content="a much longer answer"))
    await house.open(routes=routes(CASCADE, targets=SMALL + LARGE))
    if stream:
        got = await house.client().chat.completions.with_raw_response.create(model="r", messages=messages("hi"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in got.parse() if chunk.choices])
        call = await settled(house, got.headers["x-lockgate-call"])
    else:
        text, call = await ask(house, messages)
    assert text == "a much longer answer"
    assert tried(call) == [("two/sim-small", "not_accepted", ""), ("one/sim-large", "", "cascade")]
    costs = [each["cost_usd"] for each in call["attempts"]]
    assert all(float(each) > 0 for each in costs)
    assert float(call["cost_usd"]) == pytest.approx(sum(map(float, costs)))


async def test_a_cascade_stops_at_what_is_good_enough(house, messages):
    house.two.play(answering(content="long enough, this one"))
    await house.open(routes=routes(CASCADE, targets=SMALL + LARGE))
    text, call = await ask(house, messages)
    assert text == "long enough, this one"
    assert tried(call) == [("two/sim-small", "", "")]
    assert house.one.requests == []


async def test_the_last_of_a_cascade_is_given_whatever_it_is(house, messages):
    for each in (house.one, house.two):
        each.play(answering(content="short"))
    await house.open(routes=routes(CASCADE, targets=SMALL + LARGE))
    assert (await ask(house, messages))[0] == "short"


async def test_a_cascade_by_log_probability(house, messages):
    house.two.play(answering(content="unsure", logprob=-2.5))
    house.one.play(answering(content="sure", logprob=-0.01))
    await house.open(routes=routes('strategy = "cascade"\naccept = "answer.logprob < 0.0 && answer.logprob > -1.0"', targets=SMALL + LARGE))
    text, call = await ask(house, messages, logprobs=True)
    assert text == "sure"
    assert tried(call)[0] == ("two/sim-small", "not_accepted", "")


VALIDATORS = {
    "non_empty": ("non_empty = true", "", "something"),
    "json_schema": ('json_schema = { type = "object", required = ["a"] }', "no json", '{"a": 1}'),
    "matches": (r"matches = '\bok\b'", "not at all", "it is ok"),
    "expression": ('expression = "answer.json"', "no json", "[1]"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", VALIDATORS)
async def test_an_answer_that_fails_a_validator_is_an_attempt_that_failed(house, messages, kind, stream):
    said, bad, good = VALIDATORS[kind]
    house.one.play(answering(content=bad))
    house.two.play(answering(content=good))
    await house.open(routes=routes("", f"[[route.validators]]\n{said}\n"))
    if stream:
        got = await house.client().chat.completions.with_raw_response.create(model="r", messages=messages("hi"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in got.parse() if chunk.choices])
        call = await settled(house, got.headers["x-lockgate-call"])
    else:
        text, call = await ask(house, messages)
    assert text == good
    assert tried(call) == [("one/sim-large", f"check:{kind}", ""), ("two/sim-small", "", "fallback")]


async def test_an_answer_that_ended_for_another_reason_goes_on_to_the_next_target(house, messages):
    house.one.play(answering(finish_reason="length"))
    await house.open(routes=routes("", '[[route.validators]]\nfinish_reasons = ["stop"]\n'))
    assert tried((await ask(house, messages))[1]) == [("one/sim-large", "check:finish_reasons", ""), ("two/sim-small", "", "fallback")]


async def test_where_no_answer_passes_the_client_gets_one_clear_error(house, messages):
    for each in (house.one, house.two):
        each.play(answering(content="no json"))
    await house.open(routes=routes("", '[[route.validators]]\nexpression = "answer.json"\n'))
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(house, messages)
    assert caught.value.status_code == 502
    assert "check:expression" in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_person_is_asked_for_where_no_answer_passes_and_the_route_says_so(house, messages, stream):
    for each in (house.one, house.two):
        each.play(answering(content="no json"))
    await house.open(routes=routes('on_exhausted = "approve"', '[[route.validators]]\nexpression = "answer.json"\n'))

    async def said() -> str:
        asked: dict[str, Any] = {"model": "r", "messages": messages("x")}
        if not stream:
            return (await house.client().chat.completions.create(**asked)).choices[0].message.content or ""
        return "".join([chunk.choices[0].delta.content or "" async for chunk in await house.client().chat.completions.create(**asked, stream=True)])

    answer = asyncio.create_task(said())
    approvals = house.gateway.running.store.approvals
    async with asyncio.timeout(20):
        while not (waiting := await approvals.list(TicketFilter(states=(State.PENDING,)))):
            await asyncio.sleep(0)
    assert (waiting[0].kind, waiting[0].rule) == ("response", "validators")
    assert "check:expression" not in waiting[0].message
    assert waiting[0].shown["arguments"]["choices"][0]["message"]["content"] == "no json"
    vote = Vote(Voter("ada"), "approve", waiting[0].digest, waiting[0].created_ns, places=((waiting[0].demands[0].key, 0),))
    await approvals.vote(waiting[0].id, vote)
    assert await asyncio.wait_for(answer, 20) == "no json"
