"""An attempt that is slow to answer gets another one beside it; whichever answers first is taken, and both are paid for and on record."""

import asyncio
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

SILENT = Scenario(rules=(FaultRule(Fault(hang=True)),))
BUDGET = '[budgets.all]\nscope = "all"\nlimit = "10.00"\n'


def routes(*, share: float = 1.0, total: str = "20s") -> str:
    return f"""
[[route]]
name = "hedged"
[[route.targets]]
provider = "one"
model = "sim-large"
[[route.targets]]
provider = "two"
model = "sim-small"
[route.hedge]
after = "30ms"
share = {share}
[route.deadlines]
total = "{total}"
[route.retry]
attempts = 1
base = "1ms"
[[tool]]
name = "look"
method = "GET"
url = "SIM/tools/look"
effect = "read"
private = true
[tool.hedge]
after = "30ms"
share = 1.0
"""


async def ask(house: Any, messages: Any, *, stream: bool, text: str = "say quick") -> str:
    answer = await house.client().chat.completions.create(model="hedged", messages=messages(text), stream=stream)
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])


async def attempts(house: Any) -> list[dict[str, Any]]:
    await house.gateway.running.proxy.idle(20)
    await house.gateway.running.proxy.settler.drained(20)
    found: list[dict[str, Any]] = (await house.call((await house.calls())[0]["id"]))["attempts"]
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_silent_target_is_overtaken_and_let_go_at_once(house, messages, stream):
    await house.open(routes=routes().replace("SIM", house.one.root), config=BUDGET)
    house.one.play(SILENT)
    assert await ask(house, messages, stream=stream) == "quick"
    first, second = await attempts(house)
    assert (first["target"], first["end"], first["cause"]) == ("one/sim-large", "cancelled", "hedged")
    assert (second["target"], second["end"], second["why"]) == ("two/sim-small", "succeeded", "hedge")
    (entry,) = await house.one.finished(1)
    assert entry.end == "client_gone"  # it stops working, and billing
    booked = await house.spent("all/all")
    assert booked == first["cost_nusd"] + second["cost_nusd"]
    assert first["cost_nusd"] > 0  # nobody knows what it made unseen


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_target_that_answers_in_time_has_nothing_beside_it(house, messages, stream):
    await house.open(routes=routes().replace("SIM", house.one.root).replace('after = "30ms"', 'after = "20s"'))
    assert await ask(house, messages, stream=stream) == "quick"
    assert len(await attempts(house)) == 1
    assert house.two.requests == []


async def test_no_more_than_their_share_of_calls_has_a_second_attempt(house, messages):
    """A slow provider must not get twice the load for it."""
    await house.open(routes=routes(share=0.1).replace("SIM", house.one.root))
    house.one.play(Scenario(pacing=Fault(delay_headers_s=0.06)))
    for _ in range(30):
        await ask(house, messages, stream=False)
    assert len(house.two.requests) in (3, 4)


async def test_where_both_fail_the_error_tells_of_both(house, messages):
    await house.open(routes=routes().replace("SIM", house.one.root))
    for simulator in (house.one, house.two):
        simulator.play(Scenario(rules=(FaultRule(Fault(status=500, delay_headers_s=0.1)),)))
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(house, messages, stream=False)
    assert "one/sim-large" in str(caught.value.body)
    assert "two/sim-small" in str(caught.value.body)
    assert len(await attempts(house)) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_goes_away_ends_both(house, messages, stream):
    await house.open(routes=routes().replace("SIM", house.one.root), config=BUDGET)
    for simulator in (house.one, house.two):
        simulator.play(SILENT)
    asking = asyncio.create_task(ask(house, messages, stream=stream))
    async with asyncio.timeout(20):
        while not (house.one.requests and house.two.requests):
            await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for simulator in (house.one, house.two):
        assert (await simulator.finished(1))[0].end == "client_gone"
    assert [each["end"] for each in await attempts(house)] == ["cancelled", "cancelled"]
    assert await house.spent("all/all") > 0


async def test_time_that_is_up_ends_both(house, messages):
    await house.open(routes=routes(total="200ms").replace("SIM", house.one.root), config=BUDGET)
    for simulator in (house.one, house.two):
        simulator.play(SILENT)
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(house, messages, stream=False)
    assert caught.value.status_code == 504
    assert [(each["end"], each["cause"]) for each in await attempts(house)] == [("failed", "timeout:total")] * 2
    assert await house.spent("all/all") > 0


async def test_a_tool_that_only_reads_may_be_asked_twice(house):
    await house.open(routes=routes().replace("SIM", house.one.root), policies='[defaults]\ntools = "allow"\n')
    house.one.play(Scenario(rules=(FaultRule(Fault(hang=True, times=1)),)))
    session = await house.http()
    async with session.get("/tools/look", headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status == 200, await answer.text()
    assert [(each["end"], each["why"]) for each in await attempts(house)] == [("cancelled", None), ("succeeded", "hedge")]
