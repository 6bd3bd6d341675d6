"""A mirror gets what the caller's target gets. It costs what it costs, stands on record, and neither holds up the caller nor fails its call."""

import asyncio
from typing import Any

import pytest

from gateway.app import Parts
from gateway.clock import SystemClock, SystemIds
from gateway.simulator import Fault, FaultRule, Scenario

SOON_S = 20
MIRROR = '[[route.mirrors]]\nprovider = "two"\nmodel = "sim-small"\n'
ROUTE = f"""
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
{MIRROR}
"""


def always(**fault: Any) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


async def settled(house: Any) -> None:
    """Wait until every call of the gateway's own is over and its books are closed."""
    app = house.gateway.running
    await app.proxy.idle(SOON_S)
    await app.proxy.errands.close(SOON_S, SOON_S)
    await app.proxy.settler.drained(SOON_S)


async def say(house: Any, messages: Any, text: str = "say one two", **asked: Any) -> str:
    """The id of a call whose answer came as it should."""
    answer = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages(text), **asked)
    if asked.get("stream"):
        words = [chunk.choices[0].delta.content or "" async for chunk in answer.parse() if chunk.choices]
        assert "".join(words) == text.removeprefix("say ")
    else:
        assert answer.parse().choices[0].message.content == text.removeprefix("say ")
    return str(answer.headers["x-lockgate-call"])


async def parts(house: Any, whole: str) -> list[dict[str, Any]]:
    """The calls that were made for a call, once all of them are settled."""
    await settled(house)
    return [await house.call(each) for each in (await house.call(whole))["parts"]]


async def not_made(house: Any, reason: str) -> int:
    text = (await house.gateway.running.telemetry.scrape()).decode()
    found = [line for line in text.splitlines() if line.startswith("lockgate_part_calls_not_made_total{") and f'reason="{reason}"' in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_of_what_is_sent_is_sent_to_the_mirror_priced_and_on_record(house, messages, stream):
    await house.open(routes=ROUTE, config='[journal]\nbodies = "full"\n[budgets.all]\nscope = "all"\nlimit = "1.00"\n')
    whole = await say(house, messages, stream=stream, temperature=0.5, extra_headers={"X-Lockgate-Tags": "env=prod"})
    (part,) = await parts(house, whole)
    (sent,), (copied,) = house.one.requests, house.two.requests
    assert copied.body == {**sent.body, "model": "sim-small"}
    assert (part["part_of"], part["labels"], part["outcome"], part["target"]) == (whole, ["mirror"], "completed", "two/sim-small")
    own = await house.call(whole)
    assert (own["part_of"], own["target"], own["labels"]) == (None, "one/sim-fast", [])
    for name in ("key", "team", "org", "operation", "route", "stream", "tags", "dialect"):
        assert part[name] == own[name]
    assert (part["usage"]["input_tokens"], part["usage"]["output_tokens"]) == (copied.usage["prompt_tokens"], copied.usage["completion_tokens"])
    assert part["cost_nusd"] == part["usage"]["input_tokens"] * 100 + part["usage"]["output_tokens"] * 200
    assert await house.spent("all/all") == own["cost_nusd"] + part["cost_nusd"]
    assert '"one two"' in part["response"]
    assert (part["decision"], part["reasons"], part["attempt_count"]) == ("allow", [], 1)


async def test_the_mirror_gets_what_was_judged_and_not_what_was_said(house, messages):
    await house.open(routes=ROUTE, policies="""
[[rule]]
id = "no-numbers"
effect = "redact"
redact = { patterns = ["[0-9]{4}"], replacement = "****" }
""")
    answer = await house.client().chat.completions.create(model="fast", messages=messages("say 1234"))
    assert answer.choices[0].message.content == "****"
    await settled(house)
    assert house.two.requests[0].body["messages"] == house.one.requests[0].body["messages"] == [{"role": "user", "content": "say ****"}]


@pytest.mark.parametrize(("fault", "outcome"), [
    ({"status": 500}, "failed"), ({"status": 400}, "failed"), ({"reset": True}, "failed"), ({"garbage": "bytes"}, "failed"), ({"status": 429}, "failed")])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_becomes_of_the_copy_is_not_the_callers_business_and_it_is_not_sent_again(house, messages, fault, outcome, stream):
    await house.open(routes=ROUTE)
    house.two.play(always(**fault))
    whole = await say(house, messages, stream=stream)
    (part,) = await parts(house, whole)
    assert (part["outcome"], part["attempt_count"], len(house.two.requests)) == (outcome, 1, 1)
    assert (await house.call(whole))["outcome"] == "completed"


async def test_a_copy_whose_stream_breaks_off_is_put_on_record_as_that(house, messages):
    await house.open(routes=ROUTE, config='[budgets.all]\nscope = "all"\nlimit = "1.00"\n')
    house.two.play(always(cut_after_chunks=3))
    whole = await say(house, messages, "say " + "word " * 20 + "end", stream=True)
    (part,) = await parts(house, whole)
    assert (part["outcome"], part["attempts"][0]["end"]) == ("cut", "cut")
    assert part["attempts"][0]["cause"] in ("cut", "reset")
    assert part["cost_nusd"] > 0
    assert await house.spent("all/all") == part["cost_nusd"] + (await house.call(whole))["cost_nusd"]


async def test_a_mirror_that_never_answers_holds_up_nobody_and_ends_with_the_routes_deadline(house, messages):
    """Nor does the time that the client gives its own call count for the copy, or a hurried client would make a mirror look ill."""
    await house.open(routes=ROUTE + '[route.deadlines]\ntotal = "600ms"\n')
    house.two.play(always(hang=True))
    whole = await say(house, messages, extra_headers={"X-Lockgate-Deadline-Ms": "550"})
    (part,) = await parts(house, whole)
    assert (part["outcome"], part["code"], part["attempts"][0]["cause"]) == ("failed", "upstream_timeout", "timeout:total")
    assert part["ended_ns"] - part["received_ns"] >= 0.6e9


async def test_a_copy_goes_on_when_its_caller_is_gone(house, messages):
    await house.open(routes=ROUTE)
    house.one.play(always(hang=True))
    asking = asyncio.create_task(house.client().chat.completions.create(model="fast", messages=messages("say one")))
    await house.two.finished(1, SOON_S)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await settled(house)
    rows = await house.calls()
    assert sorted((row["outcome"], row["part_of"] is None) for row in rows) == [("cancelled", True), ("completed", False)]


async def test_where_there_is_too_little_money_for_both_the_callers_call_is_made_alone(house, messages):
    await house.open(routes=ROUTE.replace('"sim-small"', '"sim-dear"'), config="""
[prices."two/sim-dear"]
input = "900.00"
output = "900.00"
[budgets.all]
scope = "all"
limit = "0.10"
on_short = "deny"
""")
    whole = await say(house, messages, max_tokens=1000)
    assert await parts(house, whole) == []
    assert house.two.requests == []
    assert await not_made(house, "budget") == 1
    assert await house.spent("all/all") == (await house.call(whole))["cost_nusd"]


async def test_under_a_budget_nothing_is_copied_to_where_nobody_knows_the_price(house, messages):
    await house.open(routes=ROUTE.replace('"sim-small"', '"sim-new"'), config='[budgets.all]\nscope = "all"\nlimit = "1.00"\n')
    assert await parts(house, await say(house, messages)) == []
    assert (await not_made(house, "price"), house.two.requests) == (1, [])


async def test_a_mirror_takes_nothing_of_the_rate_that_its_caller_has(house, messages):
    """A rule counts what callers ask for: a mirror that halved it would be felt by every caller."""
    await house.open(routes=ROUTE, policies="""
[[rule]]
id = "two-an-hour"
effect = "limit"
limit = { requests = 2, per = "1h" }
""")
    for _ in range(2):
        assert len(await parts(house, await say(house, messages))) == 1


@pytest.mark.parametrize("route", ['{ only = ["one/*"] }', '{ remove = ["two/*"] }', '{ remove = ["*/sim-small"] }'])
async def test_a_rule_that_keeps_a_call_from_a_provider_keeps_its_copy_from_there(house, messages, route):
    """Data that must not leave a region must not leave it as a copy."""
    await house.open(routes=ROUTE, policies=f"""
[[rule]]
id = "stays-here"
effect = "route"
when = '"private" in tags'
route = {route}
""")
    whole = await say(house, messages, extra_headers={"X-Lockgate-Tags": "private=yes"})
    assert (await parts(house, whole), house.two.requests) == ([], [])
    assert await not_made(house, "rules") == 1
    assert len(await parts(house, await say(house, messages))) == 1


async def test_the_mirrors_are_those_of_the_route_that_a_rule_sends_the_call_to(house, messages):
    plain = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "sim-fast"\n'
    await house.open(routes=plain + ROUTE.replace('"fast"', '"other"'), policies="""
[[rule]]
id = "over-there"
effect = "route"
route = { to = "other" }
""", config='[budgets.each]\nscope = "route"\nlimit = "1.00"\n')
    whole = await say(house, messages)
    (part,) = await parts(house, whole)
    assert part["route"] == "fast"
    assert await house.spent("each/other") == part["cost_nusd"] + (await house.call(whole))["cost_nusd"]


class Lots(SystemIds):
    """Chance that comes out as it is told to."""

    lot = 0.0

    def jitter(self) -> float:
        return self.lot


async def test_a_mirror_gets_its_percentage_of_the_calls(house, messages):
    lots = Lots(SystemClock())
    await house.open(routes=ROUTE + "percent = 30\n", parts=Parts(ids=lots))
    for lot, copies in ((0.0, 1), (0.299, 1), (0.3, 0), (0.999, 0)):
        lots.lot = lot
        assert len(await parts(house, await say(house, messages))) == copies


async def test_no_more_than_a_hundred_copies_are_under_way(house, messages):
    """A mirror that hangs must not fill the gateway, and takes nothing from callers."""
    await house.open(routes=ROUTE)
    house.two.play(always(hang=True))
    client = house.client()
    for _ in range(13):
        await asyncio.gather(*(client.chat.completions.create(model="fast", messages=messages("say x")) for _ in range(8)))
    assert await not_made(house, "full") == 4
    await house.gateway.running.proxy.errands.close(0.001, SOON_S)
    await house.gateway.running.proxy.settler.drained(SOON_S)
    assert await say(house, messages)


async def test_what_is_under_way_when_the_gateway_stops_is_ended_and_settled(house, messages):
    await house.open(routes=ROUTE)
    house.two.play(always(stall_after_chunks=2))
    await say(house, messages, "say one two three", stream=True)
    async with asyncio.timeout(SOON_S):
        while not house.two.requests or not house.two.requests[0].chunks:
            await asyncio.sleep(0)
    await house.gateway.running.proxy.errands.close(0.001, SOON_S)
    await house.gateway.running.proxy.settler.drained(SOON_S)
    (part,) = [row for row in await house.calls() if row["part_of"]]
    assert (part["outcome"], part["code"]) == ("cut", "overloaded")
    assert [(each["end"], each["cause"]) for each in (await house.call(part["id"]))["attempts"]] == [("cancelled", None)]
    house.assert_doctor_is_content()


async def test_a_mirror_that_is_not_well_is_left_alone(house, messages):
    await house.open(routes=ROUTE)
    breakers = house.gateway.running.breakers
    await breakers.set("two/sim-small", "open", "tests", "")
    assert await parts(house, await say(house, messages)) == []
    assert await not_made(house, "breaker") == 1
    await breakers.set("two/sim-small", "auto", "tests", "")
    assert len(await parts(house, await say(house, messages))) == 1


async def test_a_copy_that_fails_tells_the_breaker_of_its_target_and_takes_no_retries_of_the_route(house, messages):
    await house.open(routes=ROUTE, config="[breaker]\nconsecutive = 3\n")
    house.two.play(always(status=500))
    for _ in range(3):
        await parts(house, await say(house, messages))
    state = {row["target"]: row["state"] for row in house.gateway.running.breakers.rows()}
    assert state == {"one/sim-fast": "closed", "two/sim-small": "open"}
    assert await parts(house, await say(house, messages)) == []


async def test_a_session_does_not_count_copies_as_calls_but_what_they_cost(house, messages):
    await house.open(routes=ROUTE, policies="""
[[rule]]
id = "two-calls"
effect = "deny"
when = 'session.id != "" && (session.calls > 2 || "mirror" in session.labels)'
""")
    mine: Any = {"extra_headers": {"X-Lockgate-Session": "s"}}
    costs = 0
    for _ in range(3):
        whole = await say(house, messages, **mine)
        (part,) = await parts(house, whole)
        costs += part["cost_nusd"] + (await house.call(whole))["cost_nusd"]
    assert house.sql("SELECT calls, spend_nusd FROM sessions") == [(3, costs)]
    house.assert_doctor_is_content()


async def test_embeddings_are_copied_too(house):
    await house.open(routes="""
[[route]]
name = "vectors"
[[route.targets]]
provider = "one"
model = "sim-embed"
[[route.mirrors]]
provider = "two"
model = "sim-other"
[[route.mirrors]]
provider = "two"
model = "sim-third"
""")
    await house.client().embeddings.create(model="vectors", input=["a", "b"])
    await settled(house)
    assert sorted(entry.body["model"] for entry in house.two.requests) == ["sim-other", "sim-third"]
    assert {tuple(entry.body["input"]) for entry in house.two.requests} == {("a", "b")}


async def test_a_metric_tells_copies_from_calls(house, messages):
    await house.open(routes=ROUTE)
    house.two.play(always(status=500))
    await parts(house, await say(house, messages))
    text = (await house.gateway.running.telemetry.scrape()).decode()
    assert 'lockgate_part_calls_total{kind="mirror",outcome="failed",route="fast"} 1.0' in text
    assert not [line for line in text.splitlines() if line.startswith("lockgate_calls_total{") and "failed" in line]


async def test_a_mirror_that_goes_on_and_on_is_ended_where_the_money_ends(house, messages):
    """It gets no more of a budget than there is, as no call does, and the caller's own answer is whole."""
    await house.open(routes=ROUTE.replace('"sim-small"', '"sim-dear"'), config="""
[prices."two/sim-dear"]
input = "1.00"
output = "100.00"
[budgets.all]
scope = "all"
limit = "0.02"
""")
    house.two.play(always(ignore_limits=True, stall_after_chunks=600))
    stream = await house.client().chat.completions.with_raw_response.create(
        model="fast", messages=messages("words 2000"), max_tokens=50, stream=True)
    words = [chunk async for chunk in stream.parse() if chunk.choices and chunk.choices[0].delta.content]
    assert len(words) == 50
    (part,) = await parts(house, stream.headers["x-lockgate-call"])
    assert (part["outcome"], part["attempts"][0]["end"]) == ("completed", "succeeded")
    assert house.two.requests[0].end == "client_gone"
    assert await house.spent("all/all") <= 20_000_000
