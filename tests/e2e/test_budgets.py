"""Budgets as applications and operators meet them: with the official client, on every scope, and changed while calls run."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest

from gateway.core.accounts import Budget, Change
from gateway.core.money import usd
from gateway.simulator import Fault, FaultRule, Scenario, Simulator

STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])
ALLOW = '[[rule]]\nid = "yes"\nphase = "tool_call"\neffect = "allow"\n'


def budgets(*tables: str, store: str = ":memory:") -> str:
    """`name scope limit key=value…` as tables of config.toml."""
    text = f'[store]\npath = "{store}"\n'
    for table in tables:
        name, scope, limit, *more = table.split()
        text += f'[budgets.{name}]\nscope = "{scope}"\n' + (f'limit = "{limit}"\n' if limit != "-" else "")
        text += "".join(f"{key} = {value}\n" for key, _, value in (each.partition("=") for each in more))
    return text


async def raw(client, messages, text="say one", route="fast", **asked: Any):
    return await client.chat.completions.with_raw_response.create(model=route, messages=messages(text), **asked)


async def refused(client, messages, text="say one", route="fast", **asked: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await raw(client, messages, text, route, **asked)
    return caught.value


# What a client is told.


@STORES
async def test_an_exceeded_budget_raises_once_and_says_which_how_much_and_until_when(house, messages, store):
    """The SDK would try a 429 again, were it not told that this one does not get better by waiting."""
    await house.open(config=budgets('day all 0.0001 window="day" timezone="Europe/Berlin"', store=store))
    error = await refused(house.client(max_retries=3), messages, "words 100", max_tokens=100)
    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type) == ("budget_exceeded", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    body = error.body
    assert (body["account"], body["limit_usd"], body["used_usd"], body["reserved_usd"]) == ("day/all", "0.0001", "0", "0")
    assert float(body["needed_usd"]) > 0.0001
    assert body["resets_at"].endswith(":00:00Z")
    assert "day/all" in body["message"]
    assert body["resets_at"] in body["message"]
    (row,) = await house.calls()  # one call, not four
    assert (row["outcome"], row["code"]) == ("refused", "budget_exceeded")
    assert house.one.requests == []


async def test_a_busy_budget_is_tried_again_by_the_client_and_then_there_is_room(house, messages, slow, monkeypatch):
    await house.open(config=slow.config + budgets("b all 0.001"))
    client = house.client(max_retries=2)
    first = asyncio.create_task(raw(client, messages, route="slow", max_tokens=450))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    slept: list[float] = []

    async def instead(seconds: float) -> None:
        """The time that the client would wait is what the first call needs to end."""
        slept.append(seconds)
        slow.go.set()
        await asyncio.wait_for(first, 30)

    monkeypatch.setattr("openai._base_client.anyio.sleep", instead)
    answer = await raw(client, messages, "say two", max_tokens=450)
    assert answer.parse().choices[0].message.content == "two"
    assert slept == [1.0]
    rows = await house.calls()
    assert sorted((row["outcome"], row["code"] or "") for row in rows) == [("completed", ""), ("completed", ""), ("refused", "budget_busy")]


async def test_a_busy_budget_says_that_it_is_worth_a_second_try(house, messages, slow):
    await house.open(config=slow.config + budgets("b all 0.001"))
    first = asyncio.create_task(raw(house.client(), messages, route="slow", max_tokens=450))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    error = await refused(house.client(), messages, max_tokens=450)
    assert (error.status_code, error.code, error.type) == (429, "budget_busy", "rate_limit_error")
    assert (error.response.headers["x-should-retry"], error.response.headers["retry-after"]) == ("true", "1")
    assert float(error.body["reserved_usd"]) > 0.0009
    assert (error.body["used_usd"], error.body["account"]) == ("0", "b/all")
    slow.go.set()
    await first


@STORES
async def test_what_is_left_is_in_the_header_of_the_tightest_account(house, messages, store):
    await house.open(config=budgets("much all 5", "little team 0.001", 'soft key - soft="1"', store=store))
    answer = await raw(house.client(), messages, "say hello world", max_tokens=10)
    assert answer.headers["x-lockgate-cost-usd"] == "0.000014"
    assert answer.headers["x-lockgate-budget-remaining-usd"] == "0.000986"
    assert "x-lockgate-budget-warning" not in answer.headers


async def test_what_is_left_after_a_stream_stands_in_its_last_comment(house, messages):
    await house.open(config=budgets("b all 0.001"))
    session = await house.http()
    body = {"model": "fast", "messages": messages("say a b c"), "stream": True, "max_tokens": 10}
    async with session.post("/v1/chat/completions", json=body, headers={"x-api-key": house.key}) as answer:
        left = answer.headers["X-Lockgate-Budget-Remaining-Usd"]
        text = await answer.text()
    assert text.endswith(": X-Lockgate-Cost-Usd: 0.000017, X-Lockgate-Budget-Remaining-Usd: 0.000983\n\ndata: [DONE]\n\n")
    assert left == "0.001"  # when it began: what is set aside for itself is not gone yet


async def test_without_a_budget_nothing_is_said_of_one_and_nothing_is_changed(house, messages):
    await house.open()
    answer = await raw(house.client(), messages)
    assert not [name for name in answer.headers if name.startswith(("x-lockgate-budget", "x-lockgate-max"))]
    (entry,) = await house.one.finished(1)
    assert "max_tokens" not in entry.body


@STORES
async def test_past_the_soft_limit_answers_warn_and_the_log_says_so_once(house, messages, store):
    await house.open(config=budgets('b team 0.001 soft="0.00002"', store=store))
    client = house.client()
    first = await raw(client, messages, "say a b", max_tokens=5)  # 14 of 20 thousandths of a cent
    assert "x-lockgate-budget-warning" not in first.headers
    second = await raw(client, messages, "say a b", max_tokens=5)
    third = await raw(client, messages, "say a b", max_tokens=5)
    assert (second.headers["x-lockgate-budget-warning"], third.headers["x-lockgate-budget-warning"]) == ("b/blue", "b/blue")
    await house.gateway.app.telemetry.scrape()
    events = [line for line in map(json.loads, b"".join(house.lines).splitlines()) if line["event"] == "budget_soft_limit"]
    assert [(event["account"], event["soft_usd"], event["call"]) for event in events] == [("b/blue", "0.00002", second.headers["x-lockgate-call"])]


# Money that does not reach for all that is asked.


@pytest.mark.parametrize(("asked", "sent"), [
    ({}, ["max_tokens"]), ({"max_tokens": 5000}, ["max_tokens"]),
    ({"max_completion_tokens": 5000}, ["max_tokens"]),  # a provider that does not know this name would set itself no limit
    ({"max_tokens": 5000, "max_completion_tokens": 900}, ["max_completion_tokens", "max_tokens"]),
])
async def test_the_provider_is_asked_for_as_many_tokens_as_there_is_money_for(house, messages, asked, sent):
    await house.open(config=budgets("b all 0.001"))
    answer = await raw(house.client(), messages, "words 5000", **asked)
    (entry,) = await house.one.finished(1)
    granted = int(answer.headers["x-lockgate-max-tokens"])
    assert 400 < granted < 500
    assert {name: entry.body[name] for name in sorted(entry.body) if name.startswith("max_")} == dict.fromkeys(sent, granted)
    told = answer.parse()
    assert (told.choices[0].finish_reason, told.usage.completion_tokens) == ("length", granted)
    assert await house.spent("b/all") == entry.usage["prompt_tokens"] * 1_000 + granted * 2_000 <= 1_000_000


async def test_money_is_for_all_choices_together(house, messages):
    await house.open(config=budgets("b all 0.001"))
    answer = await raw(house.client(), messages, "words 5000", n=4)
    (entry,) = await house.one.finished(1)
    assert 90 < entry.body["max_tokens"] < 125
    assert {choice.finish_reason for choice in answer.parse().choices} == {"length"}
    assert await house.spent("b/all") <= 1_000_000


async def test_a_call_that_asks_for_less_than_there_is_goes_out_as_it_came(house, messages):
    await house.open(config=budgets("b all 1"))
    answer = await raw(house.client(), messages, max_tokens=7)
    (entry,) = await house.one.finished(1)
    assert entry.body["max_tokens"] == 7
    assert "x-lockgate-max-tokens" not in answer.headers


async def test_a_provider_that_wants_another_field_gets_it(house, messages):
    await house.open(config='[providers.new]\nadapter = "openai"\noutput_limit = "max_completion_tokens"\n'
                     f'base_url = "{house.one.url}"\n[prices."new/m"]\ninput = "1"\noutput = "2"\n[models."new/m"]\ndefault_output = 123\n' + budgets("b all 1"),
                     routes='[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "new"\nmodel = "m"\n')
    await raw(house.client(), messages)
    (entry,) = await house.one.finished(1)
    assert entry.body["max_completion_tokens"] == 123
    assert "max_tokens" not in entry.body


async def test_where_short_money_means_no_the_call_is_refused_and_one_that_fits_is_not(house, messages):
    await house.open(config=budgets('b all 0.001 on_short="deny"'))
    client = house.client()
    assert (await refused(client, messages, max_tokens=5000)).code == "budget_exceeded"
    assert (await raw(client, messages, max_tokens=300)).status_code == 200


async def test_an_answer_too_short_to_be_of_use_is_not_bought(house, messages):
    await house.open(config=budgets("b all 0.001 least_output=1000"))
    client = house.client()
    assert (await refused(client, messages, max_tokens=5000)).code == "budget_exceeded"
    assert (await raw(client, messages, max_tokens=20)).status_code == 200  # a short one was wanted


@pytest.mark.parametrize("asked", [{"max_tokens": "many"}, {"max_tokens": 1.5}, {"max_tokens": True}, {"n": 10**9}, {"n": "2"}, {"max_completion_tokens": [1]}])
async def test_a_limit_that_nobody_can_read_is_refused_and_not_guessed(house, messages, asked):
    await house.open(config=budgets("b all 1"))
    error = await refused(house.client(), messages, extra_body=asked)
    assert (error.status_code, error.code, error.body["pointer"]) == (400, "invalid_request", f"/{next(iter(asked))}")
    assert house.one.requests == []


@pytest.mark.parametrize("name", ["max_output_tokens", "max_new_tokens", "n_predict", "num_predict"])
async def test_a_limit_under_another_servers_name_is_shortened_too_and_not_taken_in_another_case(house, messages, name):
    await house.open(config=budgets("b all 0.001"))
    answer = await raw(house.client(), messages, extra_body={name: 50_000})
    (entry,) = await house.one.finished(1)
    assert entry.body[name] == int(answer.headers["x-lockgate-max-tokens"]) < 500
    error = await refused(house.client(), messages, extra_body={name.upper(): 50_000})
    assert (error.code, error.body["pointer"]) == ("invalid_request", f"/{name.upper()}")


async def test_a_smallest_answer_above_what_there_is_money_for_is_shortened_too(house, messages):
    await house.open(config=budgets("b all 0.001"))
    await raw(house.client(), messages, extra_body={"min_tokens": 4000, "max_tokens": -1})
    (entry,) = await house.one.finished(1)
    assert entry.body["min_tokens"] == entry.body["max_tokens"] < 500


# Prices that nobody knows.


NAMELESS = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "nameless"\n'


@STORES
async def test_a_call_of_unknown_price_is_refused_where_a_budget_binds_it(house, messages, store):
    await house.open(config=budgets("b all 1", store=store), routes=NAMELESS)
    error = await refused(house.client(max_retries=2), messages)
    assert (error.status_code, error.code) == (403, "price_unknown")
    assert "b/all" in error.body["message"]
    assert "one/nameless" in error.body["message"]
    assert house.one.requests == []
    assert await house.spent("b/all") == 0


@pytest.mark.parametrize(("tier", "status"), [("priority", 403), ("scale", 403), (7, 403), ("default", 200), ("flex", 200), (None, 200)])
async def test_a_dearer_tier_of_service_has_no_published_price(house, messages, tier, status):
    published = f'[providers.listed]\nadapter = "openai"\nbase_url = "{house.one.url}"\nprice_provider = "openai"\n'
    await house.open(config=published + budgets("b all 1"),
                     routes='[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "listed"\nmodel = "gpt-4o-mini"\n')
    if status == 200:
        answer = await raw(house.client(), messages, extra_body={"service_tier": tier})
        assert float(answer.headers["x-lockgate-cost-usd"]) > 0
    else:
        assert (await refused(house.client(), messages, extra_body={"service_tier": tier})).code == "price_unknown"


async def test_a_budget_of_others_does_not_ask_for_a_price(house, messages):
    await house.open(config=budgets('b team 1 of=["green"]'), routes=NAMELESS)
    assert (await raw(house.client(), messages)).headers["x-lockgate-cost-usd"] == "unknown"


async def test_an_assumed_price_is_charged_and_the_ledger_says_that_it_was_assumed(house, messages):
    assumed = '[pricing]\nunknown = "assume"\nassumed_input = "10"\nassumed_output = "30"\n'
    await house.open(config=assumed + budgets("b all 1", store="lockgate.db"), routes=NAMELESS)
    answer = await raw(house.client(), messages, "say a b")
    assert answer.headers["x-lockgate-cost-usd"] == "0.00016"  # 10 tokens of input, 2 of output
    assert await house.spent("b/all") == 160_000
    assert house.sql("SELECT cost_nusd, prices FROM ledger") == [(160_000, "assumed")]


# Scopes.


@STORES
async def test_a_users_money_is_that_users_under_that_key(house, messages, store):
    """The field and the header name the same user; another key's user of that name is somebody else."""
    await house.open(config=budgets("each user 0.0003", store=store))
    mine, key_id = house.client(), house.key.split("_")[1]
    other_key = await house.new_key(name="other", team="red")
    other = house.client(other_key)
    assert (await raw(mine, messages, "words 100", max_tokens=100, user="ada")).status_code == 200
    for asked in ({"user": "ada"}, {"extra_headers": {"X-Lockgate-User": "ada"}}, {"user": "bob", "extra_headers": {"X-Lockgate-User": "ada"}}):
        error = await refused(mine, messages, "words 100", max_tokens=100, **asked)
        assert (error.code, error.body["account"]) == ("budget_exceeded", f"each/{key_id}/ada")
    assert (await raw(mine, messages, "words 100", max_tokens=100, user="bob")).status_code == 200
    assert (await raw(other, messages, "words 100", max_tokens=100, user="ada")).status_code == 200
    assert (await raw(mine, messages, "words 100", max_tokens=100)).status_code == 200  # nobody: no such account
    assert sorted(await house.accounts()) == sorted([f"each/{key_id}/ada", f"each/{key_id}/bob", f"each/{other_key.split('_')[1]}/ada"])


@pytest.mark.parametrize("user", ["Zoë, Köln\u2019s", "a/b", "*", "..", "x" * 200, '"; DROP TABLE balances; --', "=1+1", "all"])
async def test_whatever_a_user_is_called_has_an_account_of_its_own(house, messages, user):
    await house.open(config=budgets('each user 1 soft="0.000001"', store="lockgate.db"))
    first = await raw(house.client(), messages, "say a b", user=user)
    assert first.headers["x-lockgate-budget-warning"].startswith("each/")
    assert await house.spent(f"each/{house.key.split('_')[1]}/{user}") == 14_000
    assert (await operate(house, "GET", "/-/budgets"))["accounts"][0]["subject"].endswith(f"/{user}")


async def test_a_users_name_that_is_a_secret_is_kept_nowhere(house, messages):
    await house.open(config=budgets("each user 0.00001", store="lockgate.db"))
    error = await refused(house.client(), messages, user=house.key)
    assert house.key not in str(error.body)
    assert house.key not in str(house.sql("SELECT * FROM balances") + house.sql("SELECT * FROM calls"))
    house.assert_doctor_is_content()


@pytest.mark.parametrize("asked", [{"user": "x" * 201}, {"user": "a\nb"}, {"user": 5}, {"safety_identifier": ["a"]}])
async def test_a_user_that_cannot_be_one_is_refused_before_any_money_is_looked_at(house, messages, asked):
    await house.open(config=budgets("each user 1"))
    error = await refused(house.client(), messages, extra_body=asked)
    assert (error.code, error.body["pointer"]) == ("invalid_request", f"/{next(iter(asked))}")


@pytest.mark.parametrize("scope", ["all", "org", "team", "key", "user", "session", "run", "route", "tag"])
async def test_every_scope_has_its_account(house, messages, scope):
    await house.open(config=budgets(f"b {scope} 1"))
    headers = {"X-Lockgate-Session": "s", "X-Lockgate-Run": "r", "X-Lockgate-Tags": "job=nightly", "X-Lockgate-User": "u"}
    await raw(house.client(), messages, "say a b", extra_headers=headers)
    key_id = house.key.split("_")[1]
    subject = {"all": "all", "org": "acme", "team": "blue", "key": key_id, "user": f"{key_id}/u", "session": f"{key_id}/s", "run": f"{key_id}/r",
               "route": "fast", "tag": "job=nightly"}[scope]
    assert {name: balance.posted for name, balance in (await house.accounts()).items()} == {f"b/{subject}": 14_000}


async def test_several_budgets_bind_one_call_and_the_one_that_is_short_is_named(house, messages):
    await house.open(config=budgets("all all 1", 'teams team 0.0002 on_short="deny"', "keys key 1", 'job tag 1 of=["job=*"]'))
    error = await refused(house.client(), messages, max_tokens=100, extra_headers={"X-Lockgate-Tags": "job=a,env=b"})
    assert error.body["account"] == "teams/blue"
    assert await house.accounts() == {}  # all or nothing
    await raw(house.client(), messages, "say a b", max_tokens=20, extra_headers={"X-Lockgate-Tags": "job=a,env=b"})
    key_id = house.key.split("_")[1]
    assert {name: balance.posted for name, balance in (await house.accounts()).items()} == {
        "all/all": 14_000, "teams/blue": 14_000, f"keys/{key_id}": 14_000, "job/job=a": 14_000}


async def test_a_subject_may_have_a_limit_of_its_own_in_the_configuration(house, messages):
    await house.open(config=budgets('b team 0.000001 limits={blue="1"}'))
    assert (await raw(house.client(), messages)).status_code == 200
    poor = house.client(await house.new_key(name="p", team="red"))
    assert (await refused(poor, messages)).body["account"] == "b/red"


async def test_budgets_know_users_by_the_name_that_callers_give_them(house, messages):
    """Whoever writes a limit for a user does not know the ids of keys; who must, may say it whole."""
    await house.open(config=budgets('few user 0.000001 of=["ada","ops-*"]', 'own user 1 limits={"bob"="0.000001"}'))
    client, key_id = house.client(), house.key.split("_")[1]
    for user, account in (("ada", "few"), ("ops-1", "few"), ("bob", "own")):
        assert (await refused(client, messages, user=user)).body["account"] == f"{account}/{key_id}/{user}"
    assert (await raw(client, messages, user="eve")).status_code == 200
    change = Change(0, house.gateway.app.clock.now_ns(), "op", "set", "own", f"{key_id}/bob", limit_nusd=10**9)
    await house.gateway.app.store.budgets.change(change)
    assert (await raw(client, messages, user="bob")).status_code == 200


@STORES
async def test_a_tool_is_paid_from_the_same_account_as_the_models(house, messages, store):
    tool = f"""
[[tool]]
name = "find"
method = "GET"
url = "{house.one.root}/tools/find"
private = true
effect = "read"
price = "0.0004"
[tool.arguments]
properties = {{ place = {{ type = "string" }} }}
"""
    house.write("routes/tool.toml", tool)
    await house.open(config=budgets("b team 0.001", "t tool 5", store=store), policies=ALLOW)
    await raw(house.client(), messages, "say a b", max_tokens=20)
    session = await house.http()

    async def find() -> Any:
        async with session.get("/tools/find?place=x", headers={"x-api-key": house.key}) as answer:
            return answer.status, answer.headers, await answer.json()

    status, headers, _ = await find()
    assert (status, headers["X-Lockgate-Cost-Usd"], headers["X-Lockgate-Budget-Remaining-Usd"]) == (200, "0.0004", "0.000586")
    assert (await find())[0] == 200
    status, headers, problem = await find()
    assert (status, problem["code"], problem["account"], problem["needed_usd"]) == (429, "budget_exceeded", "b/blue", "0.0004")
    assert headers["X-Should-Retry"] == "false"
    assert await house.spent("b/blue") == 814_000
    assert (await house.accounts())["t/find"].posted == 800_000


async def test_a_call_that_costs_nothing_goes_through_where_nothing_is_left(house, messages):
    await house.open(config='[prices."one/free"]\ninput = "0"\noutput = "0"\n' + budgets("b all 0"),
                     routes='[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "free"\n')
    answer = await raw(house.client(), messages, "words 30")
    assert answer.headers["x-lockgate-budget-remaining-usd"] == "0"
    assert answer.parse().choices[0].finish_reason == "stop"


# Limits that change.


@STORES
async def test_a_budget_is_set_and_removed_while_calls_run(house, messages, store):
    await house.open(config=budgets("wide all 5", store=store))
    app, client = house.gateway.app, house.client()
    now_ns = app.clock.now_ns()
    assert (await raw(client, messages, max_tokens=20)).status_code == 200
    await app.store.budgets.change(Change(0, now_ns, "ada", "set", "new", budget=Budget("new", "team", 1_000)))
    assert (await refused(client, messages, max_tokens=20)).body["account"] == "new/blue"
    await app.store.budgets.change(Change(0, now_ns, "ada", "set", "new", "blue", limit_nusd=1_000_000))
    assert (await raw(client, messages, max_tokens=20)).status_code == 200
    await app.store.budgets.change(Change(0, now_ns, "ada", "remove", "new"))
    assert (await raw(client, messages, max_tokens=20)).headers["x-lockgate-budget-remaining-usd"].startswith("4.99")
    assert [change.kind for change in await app.store.budgets.changes("new")] == ["set", "set", "remove"]


async def operate(house, method: str, path: str, **sent: Any) -> Any:
    """What an operator does over HTTP, and is told."""
    session = await house.http()
    headers = {"Authorization": "Bearer admin-token-of-the-tests", "X-Lockgate-Author": "ada"}
    async with session.request(method, path, headers=headers, **sent) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return json.loads(text) if answer.content_type == "application/json" else text


@STORES
async def test_an_operator_sets_raises_reads_and_removes_limits_over_http_and_each_counts_from_the_next_call(house, messages, store):
    await house.open(config=budgets("wide all 5", store=store))
    client = house.client()
    await operate(house, "PUT", "/-/budgets/day", json={"scope": "team", "limit": "0.00001", "window": "day", "note": "new"})
    assert (await refused(client, messages, max_tokens=20)).body["account"] == "day/blue"
    await operate(house, "PUT", "/-/budgets/day", json={"subject": "blue", "limit": "0.001"})
    assert (await raw(client, messages, "say a b", max_tokens=20)).headers["x-lockgate-budget-remaining-usd"] == "0.000986"
    await operate(house, "POST", "/-/budgets/day/raise", json={"subject": "blue", "by": "0.5", "for": "24h", "note": "Friday"})
    assert (await raw(client, messages, "say a b", max_tokens=20)).headers["x-lockgate-budget-remaining-usd"] == "0.500972"
    shown = await operate(house, "GET", "/-/budgets/day")
    (account,) = shown["accounts"]
    assert (account["account"], account["limit_usd"], account["used_usd"], account["reserved_usd"]) == ("day/blue", "0.501", "0.000028", "0")
    assert [(change["kind"], change["author"], change["note"]) for change in shown["changes"]] == [
        ("raise", "admin (ada)", "Friday"), ("set", "admin (ada)", ""), ("set", "admin (ada)", "new")]
    await operate(house, "DELETE", "/-/budgets/day?subject=blue")
    assert (await refused(client, messages, max_tokens=20)).body["limit_usd"] == "0.00001"
    await operate(house, "DELETE", "/-/budgets/day")
    assert (await raw(client, messages, "say a b", max_tokens=20)).headers["x-lockgate-budget-remaining-usd"].startswith("4.9")


@STORES
async def test_the_report_of_costs_adds_up_to_what_the_provider_was_asked_to_do(house, messages, store):
    """Also what no budget binds, and what failed, is in it."""
    await house.open(config=budgets("b all 1", store=store))
    client = house.client()
    for user in ("ada", "bob", "bob"):
        await raw(client, messages, "say a b", max_tokens=20, user=user)
    await raw(client, messages, "say a b", "backed-up", max_tokens=20)
    for by, groups in (("model", {"one/sim-fast": "0.000042", "one/sim-large": "0.00014"}), ("team", {"blue": "0.000182"}),
                       ("route", {"fast": "0.000042", "backed-up": "0.00014"})):
        report = await operate(house, "GET", f"/-/costs?by={by}")
        assert {row["group"]: row["cost_usd"] for row in report["groups"] if row["calls"]} == groups
        assert report["total_usd"] == "0.000182"
    lines = (await operate(house, "GET", "/-/costs?by=model&format=csv")).splitlines()
    assert len(lines) >= 3
    assert await house.spent("b/all") == 182_000


@STORES
async def test_a_lowered_limit_counts_from_the_next_call_and_takes_back_nothing(house, messages, store):
    await house.open(config=budgets("b all 1", store=store))
    app, client = house.gateway.app, house.client()
    await raw(client, messages, "words 100", max_tokens=100)
    await app.store.budgets.change(Change(0, app.clock.now_ns(), "ada", "set", "b", "all", limit_nusd=100_000))
    error = await refused(client, messages, max_tokens=20)
    assert (error.body["limit_usd"], error.body["used_usd"]) == ("0.0001", "0.000209")


@STORES
async def test_budgets_of_the_configuration_are_reloaded_and_what_was_spent_stays_spent(house, messages, store):
    await house.open(config=budgets('b all 0.0002 on_short="deny"', store=store))
    client = house.client()
    await raw(client, messages, "say a b", max_tokens=20)
    assert (await refused(client, messages, "words 60", max_tokens=60)).code == "budget_exceeded"
    config = house.folder / "config.toml"
    config.write_text(config.read_text().replace('limit = "0.0002"', 'limit = "0.01"'))
    await house.gateway.reload()
    answer = await raw(client, messages, "say a b", max_tokens=60)
    assert answer.headers["x-lockgate-budget-remaining-usd"] == "0.009972"
    config.write_text(config.read_text().partition("[budgets.b]")[0])
    await house.gateway.reload()
    assert "x-lockgate-budget-remaining-usd" not in (await raw(client, messages)).headers


async def test_a_budget_that_cannot_be_is_refused_at_a_reload_and_the_old_one_holds(house, messages):
    await house.open(config=budgets("b all 0.00001"))
    config = house.folder / "config.toml"
    good = config.read_text()
    for wrong in ('window = "fortnight"', 'timezone = "Mars/Olympus"', 'soft = "5"', 'window = "10s"'):
        config.write_text(good + wrong + "\n")
        session = await house.http()
        async with session.post("/-/reload", headers={"Authorization": "Bearer admin-token-of-the-tests"}) as answer:
            assert answer.status == 400, wrong
            assert "budgets.b" in await answer.text()
        assert (await refused(house.client(), messages, max_tokens=20)).code == "budget_exceeded"


async def test_a_limit_set_at_a_terminal_binds_every_worker_from_its_next_call(town):
    async with Simulator(port=0) as provider:
        await town.lay(provider.url, config='[prices."one/sim-fast"]\ninput = "1.00"\noutput = "2.00"\n')
        key = await town.key()
        _gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
        body = {"model": "fast", "messages": [{"role": "user", "content": "say a b"}], "max_tokens": 20}

        async def ask() -> tuple[int, str]:
            """On a connection of its own, so that any worker may answer."""
            async with aiohttp.ClientSession(url) as session, session.post(
                    "/v1/chat/completions", json=body, headers={"x-api-key": key}) as answer:
                return answer.status, answer.headers.get("X-Lockgate-Budget-Remaining-Usd", "")

        assert await ask() == (200, "")
        await town.run("budgets", "set", "everything", "--scope", "all", "--limit", "0.01", "--note", "a test")
        left = [await ask() for _ in range(8)]
        assert left == [(200, usd(10_000_000 - n * 14_000)) for n in range(1, 9)]  # one account, whichever worker
        await town.run("budgets", "set", "everything", "all", "--limit", "0.0001")
        assert [await ask() for _ in range(8)] == [(429, "")] * 8
        await town.run("budgets", "raise", "everything", "--by", "0.01", "--for", "1h")
        assert (await ask())[0] == 200
        shown = json.loads(await town.run("budgets", "show", "--json"))
        assert "0.000126" in json.dumps(shown)
        await town.run("doctor")


# Rules.


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
async def test_a_rule_routes_to_a_cheaper_model_when_money_is_short(house, messages, engine):
    rule = """
[[rule]]
id = "thrift"
match = { routes = ["fast"] }
when = '"team" in budget.remaining && budget.remaining["team"] < usd("0.00099")'
effect = "route"
route = { to = "cheap" }
"""
    house.write("routes/cheap.toml", '[[route]]\nname = "cheap"\n[[route.targets]]\nprovider = "two"\nmodel = "sim-small"\n')
    await house.open(config=f'[policy]\nengine = "{engine}"\n' + budgets("b team 0.001"), policies=rule)
    targets = [(await raw(house.client(), messages, "say a b", max_tokens=20)).headers["x-lockgate-target"] for _ in range(3)]
    assert targets == ["one/sim-fast", "two/sim-small", "two/sim-small"]


async def test_a_rule_on_what_is_spent_is_how_a_cap_after_the_fact_is_written(house, messages):
    rule = """
[[rule]]
id = "cap"
when = '"all" in budget.spent && budget.spent["all"] >= usd("0.00002")'
effect = "deny"
message = "Enough."
"""
    await house.open(config=budgets('b all - soft="0.00002"'), policies=rule)
    client = house.client()
    for _ in range(2):
        await raw(client, messages, "say a b")
    assert (await refused(client, messages, "say a b")).code == "forbidden"


async def test_a_rate_in_tokens_counts_what_was_used_and_not_what_was_feared(house, messages):
    rate = '[[rule]]\nid = "tpm"\neffect = "limit"\nlimit = { tokens = 2000, per = "24h", by = ["user"] }\n'
    await house.open(policies=rate)
    client = house.client()
    answered = 0
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(100):
            await raw(client, messages, "words 100", max_tokens=1000, user="ada")
            answered += 1
    assert caught.value.code == "rate_limited"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert 8 <= answered <= 18  # each uses 109 and is taken for 1,000 while it runs
    await raw(client, messages, "words 100", max_tokens=1000, user="bob")


async def test_so_many_at_a_time_are_counted_back_however_they_end(house, messages):
    rate = '[[rule]]\nid = "two"\neffect = "limit"\nlimit = { concurrent = 2, by = ["team"] }\n'
    await house.open(policies=rate)
    client = house.client()
    house.one.play(Scenario(rules=(FaultRule(Fault(hang=True, times=2)),)))
    waiting = [asyncio.create_task(raw(client, messages)) for _ in range(2)]
    async with asyncio.timeout(30):
        while len(house.one.requests) < 2:
            await asyncio.sleep(0)
    assert (await refused(client, messages)).code == "rate_limited"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await house.one.finished(2)
    await house.gateway.app.proxy.idle(20)
    await house.gateway.app.proxy.settler.drained(20)
    house.one.play(Scenario(rules=(FaultRule(Fault(status=400, times=3)),)))
    for _ in range(3):
        assert (await refused(client, messages)).code != "rate_limited"
    assert (await raw(client, messages)).status_code == 200
