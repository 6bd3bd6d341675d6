"""Sessions out of what an unmodified client sends: rules, budgets and the journal see them as if a header had named them."""

import asyncio
import hashlib

import openai
import pytest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
EVERY_KIND = '[sessions]\nderive = ["metadata", "conversation", "previous", "user", "trace"]\n'


async def said(client, text="hello", **options):
    return await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": text}], **options)


async def sessions(house):
    """The sessions of all calls on record, the first call's first."""
    return [row["session"] for row in reversed(await house.calls(limit="500"))]


async def test_an_unmodified_clients_own_fields_put_its_calls_into_sessions(house):
    await house.open(config=EVERY_KIND)
    client = house.client()
    await said(client, metadata={"session_id": "m1", "other": "x"}, user="ada")
    await said(client, metadata={"conversation_id": "m2"})
    await said(client, metadata={"user_id": "m3"})
    await said(client, extra_body={"conversation": "c1"}, user="ada")
    await said(client, extra_body={"conversation": {"id": "c2"}})
    await said(client, extra_body={"previous_response_id": "r1"})
    await said(client, user="ada")
    await said(client, extra_headers={"traceparent": TRACEPARENT})
    await said(client)
    assert await sessions(house) == ["meta:m1", "meta:m2", "meta:m3", "conv:c1", "conv:c2", "resp:r1", "user:ada", f"trace:{TRACE}", None]


async def test_by_default_neither_who_asks_nor_a_trace_makes_a_session(house):
    """Each of them may last for ever, or for one call."""
    await house.open()
    client = house.client()
    await said(client, user="ada", extra_headers={"traceparent": TRACEPARENT})
    await said(client, user="ada", extra_body={"conversation": "c1"})
    await said(client, metadata={"session_id": "m1"}, extra_body={"conversation": "c1"})
    assert await sessions(house) == [None, "conv:c1", "meta:m1"]


async def test_nothing_is_derived_where_that_is_switched_off(house):
    await house.open(config="[sessions]\nderive = []\n")
    await said(house.client(), metadata={"session_id": "m1"}, extra_body={"conversation": "c1", "previous_response_id": "r1"})
    assert await sessions(house) == [None]
    assert house.sql("SELECT count(*) FROM session_links") == [(0,)]


async def test_a_header_wins_and_the_fields_reach_the_provider_as_they_were(house):
    await house.open(config=EVERY_KIND)
    body = {"conversation": {"id": "c1"}, "previous_response_id": "r1"}
    await said(house.client(), metadata={"session_id": "m1"}, user="ada", extra_body=body, extra_headers={"X-Lockgate-Session": "s-1"})
    assert await sessions(house) == ["s-1"]
    received = house.one.requests[-1].body
    assert {name: received[name] for name in ("metadata", "conversation", "previous_response_id", "user")} == {
        "metadata": {"session_id": "m1"}, "user": "ada", **body}


async def test_the_same_name_is_another_session_for_another_key(house):
    rule = '[[rule]]\nid = "once"\neffect = "deny"\nwhen = "session.id != \'\' && session.calls > 0"\n'
    await house.open(policies=rule)
    other = house.client(await house.new_key(name="other"))
    for client in (house.client(), other):
        await said(client, metadata={"session_id": "same"})
    for client in (house.client(), other):
        with pytest.raises(openai.PermissionDeniedError):
            await said(client, metadata={"session_id": "same"})
    await said(house.client(), metadata={"session_id": "another"})


@pytest.mark.parametrize("value", ["a b", "naïve", "x" * 200, "tab\tbed", "\x00", "\u202eevil", "\x1b[2J", f"lgk_abcdefghijkl_{'s' * 32}", "'; DROP TABLE calls; --"])
async def test_whatever_stands_in_a_clients_field_is_a_session_of_its_own_and_nothing_more(house, value):
    """A call that went through before there were sessions goes through now; what it says is kept as a digest where it is no name."""
    await house.open()
    for _ in range(2):
        await said(house.client(), metadata={"session_id": value})
    wanted = f"meta:{value}" if value.isascii() and value.isprintable() and " " not in value and len(value) < 196 else (
        f"meta:sha256:{hashlib.sha256(value.encode()).hexdigest()}")
    if value.startswith("lgk_"):
        wanted = f"meta:sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    assert await sessions(house) == [wanted] * 2
    assert house.sql("SELECT id, calls FROM sessions") == [(wanted, 2)]
    house.assert_doctor_is_content()


@pytest.mark.parametrize("value", [5, ["m1"], {"id": {"id": "c"}}, "", "x" * 1001, None, True])
async def test_what_is_no_hint_is_the_providers_to_judge(house, value):
    await house.open()
    http = await house.http()
    body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}], "metadata": {"session_id": value}, "conversation": value,
            "previous_response_id": value}
    async with http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status in (200, 400), await answer.text()
    assert await sessions(house) == [None]
    assert house.one.requests[-1].body["conversation"] == value


@pytest.mark.parametrize("session", ["meta:m1", "conv:c1", "resp:r1"])
async def test_no_header_names_a_session_that_is_derived(house, session):
    await house.open()
    with pytest.raises(openai.BadRequestError, match="must not begin with"):
        await said(house.client(), extra_headers={"X-Lockgate-Session": session})
    await said(house.client(), extra_headers={"X-Lockgate-Session": "user:ada"})
    assert (await sessions(house))[-1] == "user:ada"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_goes_on_from_an_answer_is_in_its_session(house, stream):
    """By the id that the client was given, plain or streamed; known before the client has its whole answer."""
    await house.open()
    client = house.client()

    async def answer_id(**options):
        answer = await said(client, stream=stream, **options)
        ids = {chunk.id async for chunk in answer} if stream else {answer.id}
        assert len(ids) == 1
        return ids.pop()

    first = await answer_id(extra_headers={"X-Lockgate-Session": "s-1"})
    second = await answer_id(extra_body={"previous_response_id": first})
    await answer_id(extra_body={"previous_response_id": second})
    assert await sessions(house) == ["s-1"] * 3


async def test_a_chain_begins_at_the_first_answer_that_somebody_goes_on_from(house):
    await house.open()
    client = house.client()
    first = (await said(client)).id
    second = (await said(client, extra_body={"previous_response_id": first})).id
    for previous in (second, first):
        await said(client, extra_body={"previous_response_id": previous})
    assert await sessions(house) == [None, *[f"resp:{first}"] * 3]


async def test_nobody_goes_on_from_anothers_answer(house):
    """Whoever learns the id of an answer is not let into its session."""
    await house.open()
    mine = (await said(house.client(), extra_headers={"X-Lockgate-Session": "s-1"})).id
    other = house.client(await house.new_key(name="other"))
    await said(other, extra_body={"previous_response_id": mine})
    assert (await sessions(house))[-1] == f"resp:{mine}"
    assert len({tuple(row) for row in house.sql("SELECT principal, id FROM sessions")}) == 2


async def test_many_that_go_on_from_one_answer_at_once_are_in_one_session(house):
    await house.open()
    first = (await said(house.client(), metadata={"session_id": "m1"})).id
    await asyncio.gather(*(said(house.client(), extra_body={"previous_response_id": first}) for _ in range(16)))
    assert house.sql("SELECT id, calls FROM sessions") == [("meta:m1", 17)]


async def test_a_budget_of_a_session_counts_one_that_is_derived(house):
    await house.open(config='[budgets.each]\nscope = "session"\nlimit = "0.0002"\n')
    client = house.client()
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(500):
            await said(client, metadata={"session_id": "m1"}, max_tokens=20)
    assert refused.value.code == "budget_exceeded"
    key = house.sql("SELECT DISTINCT principal FROM sessions")[0][0]
    accounts = await house.accounts()
    assert list(accounts) == [f"each/{key}/meta:m1"]
    await said(client, metadata={"session_id": "m2"}, max_tokens=20)
    assert await house.spent(f"each/{key}/meta:m1") <= 200_000


async def test_rules_read_a_derived_session_as_any_other(house):
    rules = """
[[rule]]
id = "marks"
effect = "log"
label = "seen"
when = 'session.id == "conv:c1"'
[[rule]]
id = "stops"
effect = "deny"
when = 'session.id != "" && "seen" in session.labels && request.max_tokens == 7'
"""
    await house.open(policies=rules)
    await said(house.client(), extra_body={"conversation": "c1"})
    with pytest.raises(openai.PermissionDeniedError):
        await said(house.client(), extra_body={"conversation": {"id": "c1"}}, max_tokens=7)
    await said(house.client(), extra_body={"conversation": "c2"}, max_tokens=7)
    assert await sessions(house) == ["conv:c1", "conv:c1", "conv:c2"]


async def test_what_is_derived_changes_with_a_reload(house):
    await house.open()
    await said(house.client(), user="ada")
    config = (house.folder / "config.toml").read_text()
    house.write("config.toml", f'{config}\n[sessions]\nderive = ["user"]\n')
    http = await house.http()
    async with http.post("/-/reload", headers={"Authorization": "Bearer admin-token-of-the-tests"}) as answer:
        assert answer.status == 200, await answer.text()
    await said(house.client(), user="ada", metadata={"session_id": "m1"})
    assert await sessions(house) == [None, "user:ada"]
