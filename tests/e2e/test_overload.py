"""More calls than places, through the front door: who waits, who is turned away and how, and that it costs nobody anything."""

import asyncio
from typing import Any

import openai
import pytest

SOON_S = 20


async def until_waiting(house: Any, calls: int) -> None:
    async with asyncio.timeout(SOON_S):
        while house.gateway.running.proxy.admission.waiting != calls:
            await asyncio.sleep(0)


async def open_house(house: Any, slow: Any, **server: Any) -> None:
    settings = "".join(f"{name} = {value}\n" for name, value in {"max_in_flight": 1, **server}.items())
    await house.open(config=f"{slow.config}\n[server]\n{settings}")


def call(client: openai.AsyncOpenAI, text: str, **extra: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(client.chat.completions.create(model="slow", messages=[{"role": "user", "content": text}], **extra))


async def one_inside(house: Any, slow: Any) -> asyncio.Task[Any]:
    """A call that holds the one place until `slow.go`."""
    inside = call(house.client(), "inside")
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)
    return inside


def texts(slow: Any) -> list[str]:
    """What reached the provider, in its order."""
    return [body["messages"][0]["content"] for body in slow.bodies]


async def shown(house: Any, name: str) -> list[str]:
    session = await house.http()
    async with session.get("/metrics") as answer:
        return [line for line in (await answer.text()).splitlines() if line.startswith(f"lockgate_calls_{name}") and not line.endswith(" 0.0")]


async def test_a_call_waits_for_a_place_and_one_too_many_is_turned_away_for_nothing(house, slow):
    await open_house(house, slow, queue=1)
    inside = await one_inside(house, slow)
    waits = call(house.client(), "waits")
    await until_waiting(house, 1)
    with pytest.raises(openai.InternalServerError) as caught:
        await call(house.client(), "one too many")
    answer = caught.value.response
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert await shown(house, "waiting") == ["lockgate_calls_waiting 1.0"]
    assert await shown(house, "shed") == ['lockgate_calls_shed_total{reason="full"} 1.0']
    slow.go.set()
    for each in (inside, waits):
        assert (await asyncio.wait_for(each, SOON_S)).choices[0].message.content == "done"
    assert texts(slow) == ["inside", "waits"]
    assert await shown(house, "waiting") == []
    (refused,) = await house.calls(code="overloaded")
    assert (refused["outcome"], refused["cost_usd"]) == ("refused", "0")
    house.assert_doctor_is_content()


async def test_the_official_clients_own_retry_gets_the_answer_once_there_is_room(house, slow):
    await open_house(house, slow, queue=0)
    inside = await one_inside(house, slow)
    patient = call(house.client(max_retries=5), "patient")
    async with asyncio.timeout(SOON_S):
        while not await shown(house, "shed"):
            await asyncio.sleep(0.01)
    slow.go.set()
    await inside
    assert (await asyncio.wait_for(patient, SOON_S)).choices[0].message.content == "done"


async def test_a_greedy_key_delays_another_by_a_turn(house, slow):
    await open_house(house, slow)
    modest = await house.new_key(name="modest")
    calls = [await one_inside(house, slow)]
    for n in range(5):
        calls.append(call(house.client(), f"greedy {n}"))
        await until_waiting(house, n + 1)
    calls.append(call(house.client(modest), "modest"))
    await until_waiting(house, 6)
    slow.go.set()
    await asyncio.wait_for(asyncio.gather(*calls), SOON_S)
    assert texts(slow) == ["inside", "greedy 0", "modest", "greedy 1", "greedy 2", "greedy 3", "greedy 4"]


async def test_a_full_queue_makes_room_for_who_has_less_in_it(house, slow):
    await open_house(house, slow, queue=2)
    modest = await house.new_key(name="modest")
    inside = await one_inside(house, slow)
    older = call(house.client(), "older")
    await until_waiting(house, 1)
    newer = call(house.client(), "newer")
    await until_waiting(house, 2)
    other = call(house.client(modest), "modest")
    with pytest.raises(openai.InternalServerError, match="as many calls as it may"):
        await asyncio.wait_for(newer, SOON_S)
    slow.go.set()
    await asyncio.wait_for(asyncio.gather(inside, older, other), SOON_S)
    assert texts(slow) == ["inside", "older", "modest"]


@pytest.mark.parametrize(("settings", "headers"), [
    ({"queue_wait": '"100ms"'}, {}),
    ({}, {"X-Lockgate-Deadline-Ms": "200"}),
    ({}, {"x-stainless-read-timeout": "0.2"}),
], ids=["the house's", "the call's own", "the client's own"])
async def test_nobody_waits_past_a_deadline(house, slow, settings, headers):
    await open_house(house, slow, **settings)
    inside = await one_inside(house, slow)
    with pytest.raises(openai.InternalServerError) as caught:
        await asyncio.wait_for(call(house.client(), "late", extra_headers=headers), SOON_S)
    assert caught.value.code == "overloaded"
    slow.go.set()
    await asyncio.wait_for(inside, SOON_S)
    assert texts(slow) == ["inside"]


async def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(house, slow):
    await open_house(house, slow)
    inside = await one_inside(house, slow)
    leaving = call(house.client(), "leaving")
    await until_waiting(house, 1)
    leaving.cancel()
    await until_waiting(house, 0)
    slow.go.set()
    await asyncio.wait_for(inside, SOON_S)
    assert (await asyncio.wait_for(call(house.client(), "after"), SOON_S)).choices
    assert texts(slow) == ["inside", "after"]
    assert house.gateway.running.proxy.admission.inside == 0
    assert sorted(row["outcome"] for row in await house.calls()) == ["cancelled", "completed", "completed"]
    house.assert_doctor_is_content()


async def test_strangers_do_not_wait(house, slow):
    """Who has no key takes no place in the queue, and learns nothing of how full it is."""
    await open_house(house, slow, queue=0)
    inside = await one_inside(house, slow)
    with pytest.raises(openai.AuthenticationError):
        await call(house.client("lgk_nobody"), "stranger")
    slow.go.set()
    await inside


async def test_calls_that_wait_when_the_gateway_stops_have_their_turn(house, slow):
    await open_house(house, slow)
    inside = await one_inside(house, slow)
    waits = call(house.client(), "waits")
    await until_waiting(house, 1)
    stop = asyncio.create_task(house.gateway.running.stop())
    slow.go.set()
    for each in (inside, waits):
        assert (await asyncio.wait_for(each, SOON_S)).choices[0].message.content == "done"
    await asyncio.wait_for(stop, SOON_S)


async def test_calls_that_wait_when_the_time_of_the_drain_is_up_are_told_so(house, slow):
    await open_house(house, slow, drain_timeout='"200ms"')
    inside = await one_inside(house, slow)
    waits = call(house.client(), "waits")
    await until_waiting(house, 1)
    stop = asyncio.create_task(house.gateway.running.stop())
    for each in (inside, waits):
        with pytest.raises(openai.InternalServerError, match="stop"):
            await asyncio.wait_for(each, SOON_S)
    await asyncio.wait_for(stop, SOON_S)
    assert sorted(house.sql("SELECT outcome, code FROM outcomes")) == [("failed", "overloaded"), ("refused", "overloaded")]
    house.assert_doctor_is_content()
