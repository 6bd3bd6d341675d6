"""Rates at the front door: calls, tokens and calls at a time, by every scope, exact to the second, and given back however a call ends."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.app import Parts
from gateway.clock import SystemClock
from gateway.embed import Gateway
from gateway.simulator import Fault, FaultRule, Scenario

STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])
SECOND_NS = 1_000_000_000
TWO_ROUTES = "".join(f'[[route]]\nname = "{name}"\n[[route.targets]]\nprovider = "one"\nmodel = "sim-fast"\n[route.retry]\nattempts = 1\n'
                     for name in ("fast", "other"))


def stored(store: str) -> str:
    return f'[store]\npath = "{store}"\n'


def limit(rule: Any = "often", *, more: Any = "", **settings: Any) -> str:
    told = ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    return f'[[rule]]\nid = "{rule}"\neffect = "limit"\nlimit = {{ {told} }}\n{more}\n'


def always(**fault: Any) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


class Turned(SystemClock):
    """The real clock, but for the time of day, which the test turns."""

    def __init__(self) -> None:
        self.at_ns = 1_800_000_000 * SECOND_NS

    def now_ns(self) -> int:
        return self.at_ns


async def said(client: openai.AsyncOpenAI, messages: Any, text: Any = "say one", **asked: Any) -> str:
    """`ok`, or the code of the error."""
    try:
        await client.chat.completions.create(**{"model": "fast", "messages": messages(text), **asked})
    except openai.APIStatusError as error:
        return str(error.code)
    return "ok"


async def refused(client: openai.AsyncOpenAI, messages: Any, text: str = "say one", **asked: Any) -> openai.APIStatusError:
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**{"model": "fast", "messages": messages(text), **asked})
    return caught.value


async def until(simulator: Any, count: int) -> None:
    """Wait until so many requests have come."""
    async with asyncio.timeout(30):
        while len(simulator.requests) < count:
            await asyncio.sleep(0)


# What a client is told.


@STORES
async def test_over_a_rate_the_client_is_told_by_which_rule_and_for_exactly_how_long(house, messages, store):
    """A client that waits as it is told gets through, and one that comes a nanosecond before does not."""
    clock = Turned()
    await house.open(config=stored(store), policies=limit("two-a-minute", requests=2, per="1m"), parts=Parts(clock=clock))
    client = house.client()
    assert [await said(client, messages) for _ in range(2)] == ["ok", "ok"]
    clock.at_ns += SECOND_NS // 2
    error = await refused(client, messages)
    assert (error.status_code, error.code, error.body["rule"]) == (429, "rate_limited", "two-a-minute")
    assert error.body["message"] == "The rate of 2 requests in 1m is used up for now (rule two-a-minute). Try again in 30 s."
    headers = error.response.headers
    assert (headers["retry-after"], headers["x-should-retry"], headers["x-lockgate-rule"]) == ("30", "true", "two-a-minute")
    assert headers["x-lockgate-decision"] == "allow"
    clock.at_ns += 59 * SECOND_NS // 2 - 1
    assert (await refused(client, messages)).response.headers["retry-after"] == "1"
    clock.at_ns += 1
    assert await said(client, messages) == "ok"
    rows = await house.calls()
    assert [row["outcome"] for row in rows] == ["completed", "refused", "refused", "completed", "completed"]


async def test_no_client_is_told_to_wait_for_more_than_a_minute(house, messages):
    await house.open(policies=limit(requests=1, per="24h"))
    client = house.client()
    assert await said(client, messages) == "ok"
    error = await refused(client, messages)
    assert error.response.headers["retry-after"] == "60"
    assert "1 request in 1d" in error.body["message"]


async def test_an_http_tools_refusal_names_the_rule_too(house):
    house.write("routes/tool.toml", f"""
[[tool]]
name = "find"
method = "GET"
url = "{house.one.url.removesuffix("/v1")}/tools/find"
effect = "read"
private = true
""")
    rules = limit("tools-at-a-time", concurrent=1, by=["tool"], more='match = { protocols = ["tools"] }')
    await house.open(policies=f'[defaults]\ntools = "allow"\n{rules}')
    house.one.play(always(hang=True))
    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}"}
    waiting = asyncio.create_task(session.get("/tools/find", headers=headers))
    await until(house.one, 1)
    async with session.get("/tools/find", headers=headers) as answer:
        body = await answer.json()
        assert (answer.status, body["code"], body["rule"]) == (429, "rate_limited", "tools-at-a-time")
        assert (answer.headers["X-Lockgate-Rule"], answer.headers["Retry-After"]) == ("tools-at-a-time", "1")
    waiting.cancel()
    await asyncio.wait([waiting])
    await house.one.finished(1)
    await house.gateway.running.proxy.idle(20)
    house.one.play(Scenario())
    async with session.get("/tools/find", headers=headers) as answer:
        assert answer.status == 200


# Whose.

OTHERS: dict[str, dict[str, Any]] = {
    "user": {"extra_headers": {"X-Lockgate-User": "bob"}}, "session": {"extra_headers": {"X-Lockgate-Session": "s2"}},
    "run": {"extra_headers": {"X-Lockgate-Run": "r2"}}, "tag": {"extra_headers": {"X-Lockgate-Tags": "env=test"}}, "route": {"model": "other"}}


@STORES
@pytest.mark.parametrize("measure", ["requests", "tokens"])
@pytest.mark.parametrize("scope", ["all", "org", "team", "key", "user", "session", "run", "route", "tag"])
async def test_every_scope_has_counts_of_its_own(house, messages, store, scope, measure):
    await house.open(config=stored(store), routes=TWO_ROUTES, policies=limit(per="24h", by=[scope], **{measure: 1}))
    mine = {"extra_headers": {"X-Lockgate-User": "ada", "X-Lockgate-Session": "s1", "X-Lockgate-Run": "r1", "X-Lockgate-Tags": "env=prod"}}
    client = house.client()
    assert [await said(client, messages, **mine) for _ in range(2)] == ["ok", "rate_limited"]
    stranger = house.client(await house.new_key(name="other", team="red", org="other"))
    assert await said(stranger, messages, **mine) == ("ok" if scope in ("org", "team", "key", "user", "session", "run") else "rate_limited")
    if scope in OTHERS:
        headers = {**mine["extra_headers"], **OTHERS[scope].get("extra_headers", {})}
        assert await said(client, messages, **{**OTHERS[scope], "extra_headers": headers}) == "ok"
    assert await said(client, messages, **mine) == "rate_limited"


async def test_a_user_in_the_body_is_the_one_in_the_header(house, messages):
    await house.open(policies=limit(requests=1, per="24h", by=["user"]))
    client = house.client()
    assert await said(client, messages, user="ada") == "ok"
    assert await said(client, messages, extra_headers={"X-Lockgate-User": "ada"}) == "rate_limited"
    assert await said(client, messages, user="eve", extra_headers={"X-Lockgate-User": "ada"}) == "rate_limited"


@pytest.mark.parametrize("scope", ["user", "session", "run", "tag"])
async def test_leaving_a_name_out_gets_round_no_limit(house, messages, scope):
    await house.open(policies=limit(requests=1, per="24h", by=[scope]))
    assert [await said(house.client(), messages) for _ in range(2)] == ["ok", "rate_limited"]


async def test_a_tag_that_nobody_has_seen_gets_round_the_limit_of_no_other(house, messages):
    await house.open(policies=limit(requests=2, per="24h", by=["tag"]))
    client = house.client()
    told = [await said(client, messages, extra_headers={"X-Lockgate-Tags": f"env=prod,nonce={number}"}) for number in range(4)]
    assert told == ["ok", "ok", "rate_limited", "rate_limited"]


@STORES
async def test_names_that_are_written_to_be_taken_for_others_are_others(house, messages, store):
    await house.open(config=stored(store), policies=limit(requests=1, per="24h", by=["user", "tag"]))
    client = house.client()
    names = [("ada", "a=b"), ("ada tag=a", "b=c"), ("ada", "a=b tag=c"), ("a,b", "a="), ("a=b", "a=b"), ("%61da", "a=b"), ("A" * 200, "a=b"),
             ("A" * 199 + "B", "a=b"), ("\N{SNOWMAN}", "a=b")]
    first = [await said(client, messages, user=user, extra_headers={"X-Lockgate-Tags": tag}) for user, tag in names]
    again = [await said(client, messages, user=user, extra_headers={"X-Lockgate-Tags": tag}) for user, tag in names]
    assert first == ["ok"] * len(names)
    assert again == ["rate_limited"] * len(names)
    if store != ":memory:":
        kept = [whose for (whose,) in house.sql("SELECT whose FROM rates")]
        assert len(kept) == len(names)
        assert max(map(len, kept)) <= 256


async def test_what_looks_like_a_secret_in_a_name_is_not_kept(house, messages):
    await house.open(config=stored("lockgate.db"), policies=limit(requests=1, per="24h", by=["user"]))
    secret = "sk-provider-key-one-0123456789"
    assert await said(house.client(), messages, user=f"ada:{secret}") == "ok"
    assert secret not in str(house.sql("SELECT rule, whose FROM rates"))


async def test_a_limit_in_a_teams_file_counts_the_calls_of_that_team_alone(house, messages):
    house.write("policies/blue.toml", '[bundle]\nteam = "blue"\n' + limit("blue-slowly", requests=1, per="24h", by=["all"]))
    await house.open()
    red = house.client(await house.new_key(name="other", team="red"))
    assert [await said(red, messages) for _ in range(2)] == ["ok", "ok"]
    assert [await said(house.client(), messages) for _ in range(2)] == ["ok", "rate_limited"]


async def test_a_limit_in_shadow_is_shown_and_counts_nothing(house, messages):
    await house.open(policies=limit("would-be", requests=1, per="24h", more='mode = "shadow"'))
    assert [await said(house.client(), messages) for _ in range(3)] == ["ok"] * 3
    (reason,) = (await house.call((await house.calls())[0]["id"]))["reasons"]
    assert (reason["rule"], reason["verdict"], reason["shadow"]) == ("would-be", "matched", True)


async def test_a_limit_that_cannot_be_evaluated_counts_all_the_same(house, messages):
    await house.open(policies=limit("vague", requests=1, per="24h", more="when = 'budget.remaining[\"team\"] < usd(\"1\")'"))
    assert [await said(house.client(), messages) for _ in range(2)] == ["ok", "rate_limited"]
    call = await house.call((await house.calls())[-1]["id"])
    (reason,) = call["reasons"]
    assert reason["verdict"] == "error"
    assert reason["message"].endswith('guard it with `in`: "team" in budget.remaining && …')


# All or nothing.


@STORES
async def test_what_one_limit_or_a_budget_refuses_uses_up_no_other_rate(house, messages, store):
    money = '[budgets.b]\nscope = "user"\nlimit = "0.000001"\n'
    rules = limit("wide", requests=2, per="24h") + limit("narrow", requests=1, per="24h", by=["session"])
    await house.open(config=stored(store) + money, policies=rules)
    client = house.client()
    s1, s2 = ({"extra_headers": {"X-Lockgate-Session": name}} for name in ("s1", "s2"))
    assert await said(client, messages, **s1) == "ok"
    assert [await said(client, messages, **s1) for _ in range(3)] == ["rate_limited"] * 3
    assert [await said(client, messages, user="poor", **s2) for _ in range(3)] == ["budget_exceeded"] * 3
    assert await said(client, messages, **s2) == "ok"
    assert (await refused(client, messages, extra_headers={"X-Lockgate-Session": "s3"})).body["rule"] == "wide"


@STORES
async def test_a_changed_rate_counts_from_the_next_call_with_what_was_taken_already(house, messages, store):
    clock = Turned()
    await house.open(config=stored(store), policies=limit(requests=2, per="1h"), parts=Parts(clock=clock))
    client = house.client()
    assert [await said(client, messages) for _ in range(3)] == ["ok", "ok", "rate_limited"]
    house.write("policies/policies.toml", limit(requests=4, per="2h"))
    await house.gateway.reload()
    assert [await said(client, messages) for _ in range(3)] == ["ok", "ok", "rate_limited"]


# Tokens.


@STORES
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_tokens_that_an_answer_did_not_use_are_there_for_the_next_call(house, messages, store, stream):
    """A call is taken for the thousand that it may use; the clock stands still, so nothing comes back but what is corrected."""
    await house.open(config=stored(store), policies=limit(tokens=1100, per="24h"), parts=Parts(clock=Turned()))
    client = house.client()
    for _ in range(3):
        answer = await client.chat.completions.create(model="fast", messages=messages("say one"), max_tokens=1000, stream=stream)
        if stream:
            async for _chunk in answer:
                pass
            await house.gateway.running.proxy.idle(20)
    used = sum(entry.usage["total_tokens"] for entry in house.one.requests)
    if store != ":memory:":
        (left_ns,) = house.sql("SELECT value FROM rates")[0]
        taken = (left_ns - 1_800_000_000 * SECOND_NS) * 1100 / (24 * 3600 * SECOND_NS)
        assert abs(taken - used) < 1


@STORES
async def test_while_a_call_runs_its_estimate_counts(house, messages, slow, store):
    await house.open(config=slow.config + stored(store), policies=limit("tpm", tokens=1100, per="24h"))
    client = house.client()
    waiting = asyncio.create_task(said(client, messages, model="slow", max_tokens=1000))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    error = await refused(client, messages, max_tokens=1000)
    assert error.body["rule"] == "tpm"
    assert "this call is taken for 10" in error.body["message"]  # a thousand and some
    assert await said(client, messages, max_tokens=20) == "ok"
    slow.go.set()
    assert await waiting == "ok"
    assert await said(client, messages, max_tokens=900) == "ok"


@STORES
async def test_a_call_that_the_provider_refuses_has_used_no_tokens(house, messages, store):
    await house.open(config=stored(store), policies=limit(tokens=1100, per="24h"), parts=Parts(clock=Turned()))
    house.one.play(always(status=400))
    client = house.client()
    assert await said(client, messages, max_tokens=1000) != "rate_limited"
    house.one.play(Scenario())
    assert await said(client, messages, max_tokens=1000) == "ok"


async def test_a_call_that_is_taken_for_more_than_the_whole_rate_goes_when_nothing_else_does(house, messages):
    """It could else never."""
    await house.open(policies=limit(tokens=50, per="24h"), parts=Parts(clock=Turned()))
    client = house.client()
    assert await said(client, messages, max_tokens=1000) == "ok"
    assert await said(client, messages, max_tokens=1000) == "rate_limited"


# At a time.

HASTY = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[route.deadlines]
total = "200ms"
[route.retry]
attempts = 1
"""
KEPT_BACK = '[[rule]]\nid = "no-ember"\nphase = "response"\nwhen = \'response.text.contains("ember")\'\neffect = "deny"\nmessage = "No."\n'
# How a call may end: what the provider does, how the gateway is set up.
EXITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an answer": ({}, {}),
    "a refusal by the provider": ({"status": 400}, {}),
    "errors of the provider, at every try": ({"status": 500}, {}),
    "a lost connection, at every try": ({"reset": True}, {}),
    "a deadline": ({"hang": True}, {"routes": HASTY}),
    "a cut answer": ({"cut_after_chunks": 3}, {}),
    "a rule that keeps the answer": ({}, {"policies": KEPT_BACK}),
    "a budget that is used up": ({}, {"config": '[budgets.b]\nscope = "user"\nlimit = "0"\n'}),
    "a price that nobody knows": ({}, {"config": '[budgets.b]\nscope = "user"\nlimit = "1"\n', "routes": TWO_ROUTES.replace("sim-fast", "sim-none")}),
}


@STORES
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("exit_by", EXITS)
async def test_however_a_call_ends_its_place_is_free_again(house, messages, store, stream, exit_by):
    fault, setup = EXITS[exit_by]
    settings = {**setup, "config": stored(store) + setup.get("config", ""), "policies": limit(concurrent=1) + setup.get("policies", "")}
    await house.open(**settings)
    client = house.client()
    house.one.play(always(**fault))
    for _ in range(2):
        with suppress(openai.APIError):
            answer = await client.chat.completions.create(model="fast", messages=messages("say ember"), stream=stream, user="ada")
            if stream:
                async for _chunk in answer:
                    pass
        await house.gateway.running.proxy.idle(20)
        await house.gateway.running.proxy.settler.drained(20)
    rows = await house.calls()
    assert len(rows) == 2
    assert "rate_limited" not in {row["code"] for row in rows}
    house.one.play(Scenario())
    assert await said(client, messages) != "rate_limited"
    if store != ":memory:":
        assert house.sql("SELECT value FROM rates WHERE value <> 0") == []


@STORES
@pytest.mark.parametrize("gone", ["before the answer", "in the middle of it"])
async def test_a_client_that_leaves_leaves_its_place(house, messages, store, gone):
    await house.open(config=stored(store), policies=limit("one", concurrent=1, by=["user"]))
    early = gone == "before the answer"
    house.one.play(always(hang=True) if early else always(stall_after_chunks=3))
    client = house.client()
    if early:
        waiting = asyncio.create_task(said(client, messages))
        await until(house.one, 1)
        assert await said(client, messages) == "rate_limited"
        waiting.cancel()
        await asyncio.wait([waiting])
    else:
        stream = await client.chat.completions.create(model="fast", messages=messages("words 50"), stream=True)
        async for _chunk in stream:
            break
        error = await refused(client, messages)
        assert (error.body["rule"], error.response.headers["retry-after"]) == ("one", "1")
        assert "At most 1 at a time" in error.body["message"]
        await stream.close()
    await house.one.finished(1)
    await house.gateway.running.proxy.idle(20)
    await house.gateway.running.proxy.settler.drained(20)
    house.one.play(Scenario())
    assert await said(client, messages) == "ok"


@STORES
async def test_never_more_are_under_way_than_a_rule_lets(house, messages, slow, store):
    await house.open(config=slow.config + stored(store), policies=limit(concurrent=3, by=["team"]))
    client = house.client()
    waiting = [asyncio.create_task(said(client, messages, model="slow")) for _ in range(20)]
    for _ in range(3):
        await asyncio.wait_for(slow.arrived.acquire(), 30)
    while sum(task.done() for task in waiting) < 17:
        await asyncio.wait([task for task in waiting if not task.done()], return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert len(slow.bodies) == 3
    slow.go.set()
    told = await asyncio.gather(*waiting)
    assert sorted(told) == ["ok"] * 3 + ["rate_limited"] * 17


# Several workers.


async def test_two_workers_on_one_file_share_the_counts(house, messages):
    """Three a day are three a day, whoever is asked."""
    await house.open(config=stored("lockgate.db"), policies=limit("three", requests=3, per="24h"))
    async with Gateway(house.folder / "config.toml", port=0, environ=house.environ) as second:
        first, other = house.client(), house.client().with_options(base_url=f"{second.url}/v1")
        told = [await said(each, messages) for _ in range(3) for each in (first, other)]
    assert told == ["ok"] * 3 + ["rate_limited"] * 3


async def test_two_workers_on_one_file_share_the_places(house, messages, slow):
    await house.open(config=stored("lockgate.db") + slow.config, policies=limit("one", concurrent=1))
    async with Gateway(house.folder / "config.toml", port=0, environ=house.environ) as second:
        first, other = house.client(), house.client().with_options(base_url=f"{second.url}/v1")
        waiting = asyncio.create_task(said(first, messages, model="slow"))
        await asyncio.wait_for(slow.arrived.acquire(), 30)
        assert (await refused(other, messages)).body["rule"] == "one"
        slow.go.set()
        assert await waiting == "ok"
        assert await said(other, messages) == "ok"


# The library.


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
async def test_the_librarys_rules_on_spend_hold_at_the_front_door(house, messages, engine):
    """The cheaper model as soon as less than a fifth is left, and nobody without a name."""
    library = Path(__file__).parents[2] / "policies/library"
    for name in ("spend.toml", "spend.cases.toml"):
        house.write(f"policies/{name}", (library / name).read_text())
    routes = "".join(f'[[route]]\nname = "{name}"\n[[route.targets]]\nprovider = "{provider}"\nmodel = "{model}"\n'
                     for name, provider, model in (("large", "one", "sim-large"), ("small", "two", "sim-small")))
    money = f'[policy]\nengine = "{engine}"\n[budgets.b]\nscope = "team"\nlimit = "0.006"\n'
    await house.open(config=stored(":memory:") + money, routes=routes)
    client = house.client()
    targets = []
    for _ in range(3):
        raw = await client.chat.completions.with_raw_response.create(model="large", messages=messages("words 240"), max_tokens=240)
        targets.append(raw.headers["x-lockgate-target"])
    assert targets == ["one/sim-large", "two/sim-small", "two/sim-small"]
    support = house.client(await house.new_key(name="desk", team="support"))
    assert await said(support, messages, model="small") == "forbidden"
    assert await said(support, messages, model="small", user="ada") == "ok"


async def test_an_explanation_shows_what_was_left_in_dollars(house, messages):
    """Who reads it wants to know how short it was."""
    rule = '[[rule]]\nid = "dry"\neffect = "deny"\nwhen = \'"team" in budget.remaining && budget.remaining["team"] < usd("5")\'\nmessage = "Dry."\n'
    await house.open(config='[budgets.b]\nscope = "team"\nlimit = "4.50"\n[journal]\nbodies = "none"\n', policies=rule)
    assert await said(house.client(), messages) == "forbidden"
    session = await house.http()
    call_id = (await house.calls())[0]["id"]
    async with session.get(f"/-/calls/{call_id}/explain", headers={"Authorization": "Bearer admin-token-of-the-tests"}) as answer:
        told = await answer.json()
    assert told["rules"][0]["values"] == {"budget.remaining": {"team": 4_500_000_000, "any": 4_500_000_000}}
    assert 'budget.remaining was {"team": "4.5 USD", "any": "4.5 USD"}' in told["change"][0]
