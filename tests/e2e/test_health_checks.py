"""A provider that is dead is known before a call meets it, and one that is back gets its calls again: as seen from outside."""

import asyncio
from hashlib import sha256
from typing import Any

from gateway.simulator import Fault, FaultRule, Match, Scenario

SOON_S = 20
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[[route.targets]]
provider = "two"
model = "sim-small"
[route.retry]
attempts = 1
"""
CHECKED = """
[providers.checked]
adapter = "openai"
base_url = "{url}"
api_key = "env:ONE_KEY"
headers = {{ x-org = "acme" }}
[providers.checked.health]
interval = "{interval}"
failures = 2
timeout = "5s"
[breaker]
open = "60s"
"""


def ill() -> Scenario:
    """Its models cannot be listed; calls are answered."""
    return Scenario(rules=(FaultRule(Fault(status=503), Match(path="/v1/models")),))


def states(house: Any) -> dict[str, str]:
    return {row["target"]: row["state"] for row in house.gateway.running.breakers.rows()}


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


async def opened(house: Any, interval: str = "20ms") -> Any:
    return await house.open(config=CHECKED.format(url=house.one.url, interval=interval), routes=ROUTES.replace('"one"', '"checked"'))


async def test_no_call_meets_a_provider_that_is_known_to_be_dead(house, messages):
    house.one.play(ill())
    await opened(house)
    await until(lambda: states(house)["checked/sim-fast"] == "open")
    answer = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages("say x"))
    call = await house.call(answer.headers["x-lockgate-call"])
    assert (call["target"], call["attempt_count"]) == ("two/sim-small", 1)
    assert "health" in str(call["plan"])
    assert {entry.path for entry in house.one.requests} == {"/v1/models"}
    house.gateway.running.telemetry.flush()
    assert any(b"provider_unwell" in line and b"status:503" in line for line in house.lines)


async def test_one_that_is_back_is_tried_at_once_although_its_breaker_would_be_open_for_a_minute(house, messages):
    house.one.play(ill())
    await opened(house)
    await until(lambda: states(house)["checked/sim-fast"] == "open")
    house.one.play(Scenario())
    breakers = house.gateway.running.breakers
    await until(lambda: next(row["admits"] for row in breakers.rows() if row["target"] == "checked/sim-fast"))
    answer = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages("say x"))
    call = await house.call(answer.headers["x-lockgate-call"])
    assert (call["target"], call["attempts"][0]["breaker"]) == ("checked/sim-fast", "half_open")
    await until(lambda: states(house)["checked/sim-fast"] == "closed")


async def test_it_is_asked_as_its_calls_are_sent_and_leaves_no_record(house):
    await opened(house)
    await until(lambda: len(house.one.requests) > 2)
    asked = house.one.requests[0]
    assert (asked.method, asked.path, asked.raw) == ("GET", "/v1/models", b"")
    assert (asked.api_key, asked.headers["x-org"]) == (f"sha256:{sha256(house.environ['ONE_KEY'].encode()).hexdigest()[:16]}", "acme")
    assert await house.calls() == []
    assert house.one.connections == 1  # the answer is read, so that the connection is used again
    assert house.two.requests == []


async def test_a_reload_begins_changes_and_ends_the_checks(house):
    await opened(house, "60s")
    await until(lambda: house.one.requests)
    config = house.folder / "config.toml"
    text = config.read_text()

    async def reload(changed: str) -> int:
        config.write_text(changed)
        seen = len(house.one.requests)
        report = await house.gateway.running.reloader.report()
        assert report["ok"], report
        return seen

    seen = await reload(text.replace('"60s"\nfailures', '"10ms"\nfailures'))
    await until(lambda: len(house.one.requests) > seen + 3)
    await reload(text[:text.index("[providers.checked.health]")])
    names = [task.get_name() for task in asyncio.all_tasks()]
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("health of ")], names
    seen = await reload(text)
    await until(lambda: len(house.one.requests) > seen)


async def test_nothing_is_left_once_the_gateway_stops(house):
    await opened(house)
    await until(lambda: house.one.requests)
    await house.gateway.running.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("health of ")]
