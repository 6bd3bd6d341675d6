"""HTTP tools that fail: the same breakers, rests and retry budget as of models, and what may be done once only is done once only."""

import asyncio
from typing import Any

import pytest

from gateway.simulator import Fault, FaultRule, Scenario

ALLOW = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n'
ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
SOON_S = 20
EFFECTS = ("read", "idempotent", "at_most_once")


def tool(house: Any, name: str, effect: str, more: str = "", *, retry: str = "", cap: str = "200ms") -> str:
    return f"""
[[tool]]
name = "{name}"
method = "POST"
url = "{house.one.root}/tools/{name}"
effect = "{effect}"
price = "0.01"
private = true
[tool.retry]
base = "1ms"
cap = "{cap}"
{retry}
{more}
"""


def always(**fault: Any) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


async def call(house: Any, name: str) -> tuple[int, str | None, Any]:
    """Status, code and headers of a tool's answer."""
    session = await house.http()
    async with asyncio.timeout(SOON_S):
        async with session.post(f"/tools/{name}", json={}, headers={"Authorization": f"Bearer {house.key}"}) as answer:
            body = await answer.json()
            return answer.status, body.get("code"), answer.headers


async def breaker(house: Any, target: str) -> dict[str, Any]:
    session = await house.http()
    async with session.get("/-/breakers", headers=ADMIN) as answer:
        assert answer.status == 200, await answer.text()
        rows = (await answer.json())["breakers"]
    found: dict[str, Any] = next(row for row in rows if row["target"] == target)
    return found


async def set_breaker(house: Any, target: str, state: str) -> None:
    session = await house.http()
    body = {"target": target, "state": state, "note": "a test"}
    async with session.post("/-/breakers", json=body, headers={**ADMIN, "X-Lockgate-Author": "tests"}) as answer:
        assert answer.status == 200, await answer.text()


async def attempts(house: Any) -> list[dict[str, Any]]:
    """Those of the last call, once it is settled."""
    app = house.gateway.running
    await app.proxy.idle(SOON_S)
    await app.proxy.settler.drained(SOON_S)
    found: list[dict[str, Any]] = (await house.call((await house.calls())[0]["id"]))["attempts"]
    return found


def sent(house: Any, name: str) -> int:
    return sum(entry.path == f"/tools/{name}" for entry in house.one.requests)


# Breakers.


LOOK = "tool:look/POST"
TOUCHY = '[breaker]\nconsecutive = 3\nopen = "1h"\nopen_cap = "1h"\n'


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_tool_that_fails_is_open_for_all_to_see_and_each_call_of_it_is_sent_once(house, effect):
    """It is its own only target, and so its own last resort: nobody is turned away, and nobody's call is sent a second time."""
    await house.open(routes=tool(house, "look", effect, retry="" if effect == "at_most_once" else "attempts = 3"), policies=ALLOW, config=TOUCHY)
    house.one.play(always(status=503))
    while (await breaker(house, LOOK))["state"] == "closed":
        assert (await call(house, "look"))[:2] == (502, "upstream_failed")
        assert sent(house, "look") <= 3
    row = await breaker(house, LOOK)
    assert (row["state"], row["admits"], row["cause"]) == ("open", False, "3 calls in a row failed, the last one with status:503")
    before = sent(house, "look")
    for number in range(1, 4):
        assert (await call(house, "look"))[:2] == (502, "upstream_failed")
        assert sent(house, "look") == before + number
    (attempt,) = await attempts(house)
    assert (attempt["target"], attempt["breaker"]) == (LOOK, "last_resort")


async def test_an_open_tool_that_answers_all_the_same_is_let_through_and_closes(house):
    await house.open(routes=tool(house, "look", "read", retry="attempts = 1"), policies=ALLOW, config=TOUCHY)
    house.one.play(always(status=503))
    for _ in range(3):
        await call(house, "look")
    assert (await breaker(house, LOOK))["state"] == "open"
    house.one.play(Scenario())
    assert (await call(house, "look"))[0] == 200  # the last resort; it makes a probe due
    assert (await breaker(house, LOOK))["admits"]
    assert (await call(house, "look"))[0] == 200  # the probe
    assert (await breaker(house, LOOK))["state"] == "closed"
    assert [each["breaker"] for each in await attempts(house)] == ["half_open"]


async def test_a_tool_that_an_operator_has_opened_is_not_called(house):
    await house.open(routes=tool(house, "look", "read") + tool(house, "other", "read"), policies=ALLOW)
    await set_breaker(house, LOOK, "open")
    status, code, _headers = await call(house, "look")
    assert (status, code, sent(house, "look")) == (502, "upstream_failed", 0)
    assert (await breaker(house, LOOK))["author"] == "admin (tests)"
    assert (await call(house, "other"))[0] == 200  # a tool is a target of its own, whoever serves it
    await set_breaker(house, LOOK, "auto")
    assert (await call(house, "look"))[0] == 200


async def test_what_a_call_is_refused_for_opens_no_tool(house):
    await house.open(routes=tool(house, "look", "read"), policies=ALLOW, config=TOUCHY)
    house.one.play(always(status=404))
    for _ in range(4):
        assert (await call(house, "look"))[0] == 404
    row = await breaker(house, LOOK)
    assert (row["state"], row["failures"]) == ("closed", 0)


async def test_a_tools_own_settings_count_for_its_breaker(house):
    more = '[tool.breaker]\nconsecutive = 1\nopen = "1h"\nopen_cap = "1h"\n'
    await house.open(routes=tool(house, "look", "at_most_once", more) + tool(house, "other", "at_most_once"), policies=ALLOW)
    house.one.play(always(status=503))
    for name in ("look", "other"):
        await call(house, name)
    assert (await breaker(house, LOOK))["state"] == "open"
    assert (await breaker(house, "tool:other/POST"))["state"] == "closed"


# A tool that is busy.


async def test_a_short_rest_that_a_tool_asks_for_is_waited_for(house):
    """With the one key of the call: whoever serves it can tell that it is the same one."""
    await house.open(routes=tool(house, "look", "idempotent", retry="attempts = 2", cap="2s"), policies=ALLOW)
    house.one.play(always(status=429, retry_after_s=1, times=1))
    assert (await call(house, "look"))[0] == 200
    first, second = await attempts(house)
    assert (first["cause"], second["why"], sent(house, "look")) == ("status:429", "retry", 2)
    assert second["waited_s"] >= 1
    (key,) = {entry.headers["idempotency-key"] for entry in house.one.requests}
    assert key.startswith("call_")
    assert (await breaker(house, LOOK))["failures"] == 0


async def test_a_long_rest_is_told_to_the_caller_and_each_call_of_the_tool_is_sent_once(house):
    """That it had enough of one call need not be true of the next, which is another one."""
    await house.open(routes=tool(house, "look", "read", retry="attempts = 3"), policies=ALLOW)
    house.one.play(always(status=429, retry_after_s=30))
    for number in range(1, 4):
        status, code, headers = await call(house, "look")
        assert (status, code, headers["x-should-retry"]) == (429, "upstream_busy", "true")
        assert 29 <= int(headers["retry-after"]) <= 33
        assert sent(house, "look") == number
    row = await breaker(house, LOOK)
    assert (row["state"], row["failures"]) == ("closed", 0)
    assert 25 < row["rests_s"] <= 30


async def test_a_429_of_what_is_done_at_most_once_is_passed_on_and_not_sent_again(house):
    """It may have been worked on, whatever its server says."""
    await house.open(routes=tool(house, "look", "at_most_once"), policies=ALLOW)
    house.one.play(always(status=429, retry_after_s=1))
    status, code, headers = await call(house, "look")
    assert (status, code, headers["x-should-retry"]) == (429, "upstream_rejected", "false")
    assert sent(house, "look") == 1
    assert [each["end"] for each in await attempts(house)] == ["rejected"]


# How often.


async def test_a_tools_retries_are_limited_by_its_budget_and_by_no_others(house):
    """Ten in stock, and none comes after: so an outage is not made twice as large."""
    retry = "attempts = 2\nbudget = { share = 0.05, per_second = 0.0 }"
    breakers = "[breaker]\nenabled = false\n"
    await house.open(routes=tool(house, "look", "read", retry=retry) + tool(house, "other", "read", retry=retry), policies=ALLOW, config=breakers)
    house.one.play(always(status=503))
    for _ in range(15):
        assert (await call(house, "look"))[:2] == (502, "upstream_failed")
    assert sent(house, "look") == 15 + 10
    (last,) = await attempts(house)
    assert last["why"] is None
    await call(house, "other")
    assert sent(house, "other") == 2
    _first, second = await attempts(house)
    assert (second["why"], second["retries_left"]) == ("retry", pytest.approx(9.0))
    session = await house.http()
    async with session.get("/metrics") as answer:
        assert 'lockgate_retry_budget_exhausted_total{route="look"} 5.0' in await answer.text()


WHATEVER: dict[str, dict[str, Any]] = {
    "an error": {"status": 500}, "a busy server": {"status": 503}, "too many": {"status": 429}, "a timeout of its own": {"status": 408},
    "too early": {"status": 425}, "a reset": {"reset": True}, "half an answer": {"cut_after_chunks": 1},
    "nonsense": {"garbage": "json"}, "no text": {"garbage": "bytes"}, "silence": {"hang": True}, "an endless middle": {"stall_after_chunks": 1},
    "a redirect": {"status": 302}, "more than is read": {"huge": 100_000}, "our own credentials": {"status": 401},
}


@pytest.mark.parametrize("wrong", WHATEVER)
async def test_what_is_done_at_most_once_is_sent_exactly_once_whatever_becomes_of_it(house, wrong):
    more = '[tool.deadlines]\nheaders = "200ms"\ntotal = "400ms"\n'
    declared = tool(house, "pay", "at_most_once", more).replace("private = true", 'private = true\nmax_answer = "10KiB"')
    await house.open(routes=declared, policies=ALLOW, config='[budgets.all]\nscope = "all"\nlimit = "10.00"\n')
    house.one.play(always(**WHATEVER[wrong]))
    status, _code, _headers = await call(house, "pay")
    assert status >= 400
    (attempt,) = await attempts(house)
    assert attempt["end"] in ("failed", "rejected")
    assert sent(house, "pay") == 1
    assert await house.spent("all/all") == (attempt["cost_nusd"] or 0)


async def test_what_is_done_at_most_once_and_was_never_sent_costs_nothing(house):
    await house.open(routes=tool(house, "pay", "at_most_once"), policies=ALLOW)
    await house.one.refuse()
    assert (await call(house, "pay"))[:2] == (502, "upstream_failed")
    (attempt,) = await attempts(house)
    assert (attempt["cause"], attempt["cost_nusd"]) == ("connect", 0)
