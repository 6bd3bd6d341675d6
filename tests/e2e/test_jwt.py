"""Tokens in place of virtual keys, through the front door: an unmodified client calls with one, and the journal says who it was."""

import json
from typing import Any

import openai
import pytest
from aiohttp import web

MEMORY = '[store]\npath = ":memory:"\n'
CONFIG = """
[auth.jwt.corp]
issuer = "{issuer}"
audience = ["gateway"]
jwks_url = "{issuer}/keys"
private = true
roles = {{ dev = "developer" }}
routes = ["fast"]
"""
RULE = """
[[rule]]
id = "not-for-robots"
phase = "request"
effect = "deny"
when = 'principal.on_behalf_of == "robot"'
message = "Robots are not served."
[[rule]]
id = "developers"
phase = "request"
effect = "deny"
when = '!("developer" in principal.roles) && principal.id.startsWith("jwt:")'
message = "Developers only."
"""


def claims(house: Any, provider: Any, **changed: Any) -> dict[str, Any]:
    now = int(house.gateway.running.clock.now_ns() / 1e9)
    told = {"iss": provider.url, "aud": "gateway", "sub": "agent-1", "name": "Agent", "team": "blue", "iat": now, "exp": now + 300, "roles": ["dev"]}
    return {name: value for name, value in {**told, **changed}.items() if value is not None}


async def status_of(house: Any, token: str, path: str = "/v1/models") -> tuple[int, str]:
    session = await house.http()
    async with session.get(path, headers={"Authorization": f"Bearer {token}"}) as answer:
        told = await answer.json(content_type=None)
        return answer.status, told.get("error", {}).get("code", "")


@pytest.fixture
async def corp(house, provider):
    await house.open(config=MEMORY + CONFIG.format(issuer=provider.url), policies=RULE)
    return provider


async def test_a_client_calls_with_a_token_as_with_a_key_and_is_on_record_as_who_it_is(house, corp, messages):
    token = corp.sign(claims(house, corp, on_behalf_of="ada@example.org"))
    client = house.client(token)
    answer = await client.chat.completions.create(model="fast", messages=messages("say hello"))
    assert answer.choices[0].message.content
    stream = await client.chat.completions.create(model="fast", messages=messages("say hello"), stream=True)
    assert [chunk async for chunk in stream]
    assert [each.id for each in (await client.models.list()).data] == ["fast"]
    await house.gateway.running.proxy.idle(20)
    for call in await house.calls(key="jwt:corp:agent-1"):
        assert (call["name"], call["team"], call["outcome"]) == ("Agent", "blue", "completed")
    assert len(await house.calls(key="jwt:corp:agent-1")) == 2
    house.gateway.running.telemetry.flush()
    everything = json.dumps([await house.call(call["id"]) for call in await house.calls()]) + b"".join(house.lines).decode()
    assert token.rpartition(".")[2] not in everything
    assert token.split(".")[1] not in everything
    assert corp.asked == ["/keys"]


async def test_virtual_keys_go_on_beside_tokens(house, corp, messages):
    assert await house.client().chat.completions.create(model="fast", messages=messages("say hello"))
    assert (await status_of(house, "lgk_no_such"))[0] == 401
    assert corp.asked == []


async def test_rules_read_whom_a_token_acts_for_and_its_roles(house, corp, messages):
    for changed, why in (({"on_behalf_of": "robot"}, "Robots"), ({"sub": "robot", "act": {"sub": "agent-2"}}, "Robots"), ({"roles": ["x"]}, "Developers")):
        with pytest.raises(openai.PermissionDeniedError, match=why):
            await house.client(corp.sign(claims(house, corp, **changed))).chat.completions.create(model="fast", messages=messages("say hello"))


async def test_a_token_is_entitled_to_the_routes_of_its_issuer(house, corp, messages):
    with pytest.raises(openai.NotFoundError, match="fast"):
        await house.client(corp.sign(claims(house, corp))).chat.completions.create(model="backed-up", messages=messages("say hello"))


async def test_a_forged_token_is_nobody_s(house, corp, hostile):
    assert await status_of(house, corp.hostile(hostile, claims(house, corp))) == (401, "unauthenticated")
    assert house.one.requests == []


@pytest.mark.parametrize("changed", [{"exp": 1}, {"aud": "another"}, {"iss": "https://elsewhere.example"}, {"sub": None}], ids=str)
async def test_a_token_that_is_not_right_is_401_and_says_why(house, corp, changed):
    session = await house.http()
    async with session.get("/v1/models", headers={"x-api-key": corp.sign(claims(house, corp, **changed))}) as answer:
        told = await answer.json()
    assert (answer.status, told["error"]["code"]) == (401, "unauthenticated")
    assert told["error"]["message"].startswith("this token")


async def test_what_cannot_be_known_is_503_which_clients_try_again(house, corp, messages):
    async def down(_request):
        return web.Response(status=500)

    corp.answers["/keys"] = down
    with pytest.raises(openai.InternalServerError) as caught:
        await house.client(corp.sign(claims(house, corp))).chat.completions.create(model="fast", messages=messages("say hello"))
    assert (caught.value.status_code, caught.value.code) == (503, "identity_unavailable")
    assert caught.value.response.headers["x-should-retry"] == "true"
    house.gateway.running.telemetry.flush()
    assert b"identity_unavailable" in b"".join(house.lines)


async def test_keys_may_stand_in_a_file(house, provider):
    house.write("keys.json", json.dumps(provider.key_set()))
    config = CONFIG.format(issuer=provider.url).replace(f'jwks_url = "{provider.url}/keys"', 'jwks_file = "keys.json"')
    await house.open(config=MEMORY + config)
    assert (await status_of(house, provider.sign(claims(house, provider))))[0] == 200
    assert provider.asked == []


@pytest.mark.parametrize("token", ["eyJ.eyJ.eyJ", "eyJhbGciOiJub25lIn0.e30.", "eyJ" + "a" * 4000 + ".e30.x", "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"])
async def test_rubbish_is_401_and_costs_nobody_anything(house, corp, token):
    assert await status_of(house, token) == (401, "unauthenticated")
    assert corp.asked == []
    house.gateway.running.telemetry.flush()
    assert b"defect" not in b"".join(house.lines)


WAITS = """
[[rule]]
id = "payroll"
phase = "request"
effect = "require_approval"
when = "texts.exists(t, t.contains('payroll'))"
message = "Payroll is looked at first."
approvers = ["role:approver"]
"""
OIDC = """
[oidc]
issuer = "{issuer}"
client_id = "lockgate"
client_secret = "env:OIDC_SECRET"
private = true
permissions = {{ approver = "approve" }}
"""


@pytest.mark.parametrize("changed", [{}, {"act": {"sub": "agent-1"}}], ids=["themselves", "their-agent"])
async def test_nobody_approves_what_they_have_asked_for_whichever_way_they_come(house, provider, messages, changed):
    """With a token, by an agent on their behalf, or at the page: the issuer knows them by one subject, so do we."""
    house.environ["OIDC_SECRET"] = "client secret: 7%/+"
    await house.open(config=MEMORY + CONFIG.format(issuer=provider.url) + OIDC.format(issuer=provider.url) + '[approvals]\nhold = "0s"\n',
                     policies=WAITS)
    provider.now_s = lambda: house.gateway.running.clock.now_ns() / 1e9
    session = await house.http()

    async def logged_in(subject: str) -> dict[str, str]:
        provider.person |= {"sub": subject, "roles": ["approver"]}
        async with session.get("/-/oidc/begin", allow_redirects=False) as begun:
            state, url = begun.headers["Set-Cookie"].partition(";")[0], begun.headers["Location"]
        async with session.get(f"/-/oidc/callback?{provider.authorize(url)}", headers={"Cookie": state}, allow_redirects=False) as back:
            assert back.status == 302, await back.text()
            cookie = back.headers["Set-Cookie"].partition(";")[0]
        async with session.get("/-/me", headers={"Cookie": cookie}) as answer:
            told = await answer.json()
        return {"Cookie": cookie, "X-Lockgate-Csrf": told["csrf"], "Origin": house.gateway.url}

    with pytest.raises(openai.ConflictError):
        await house.client(provider.sign(claims(house, provider, sub="ada-1", **changed))).chat.completions.create(model="fast", messages=messages("the payroll"))
    ada, bob = await logged_in("ada-1"), await logged_in("bob-2")
    async with session.get("/-/approvals", headers=ada) as answer:
        (row,) = (await answer.json())["approvals"]
    vote = {"verdict": "approve", "digest": row["digest"]}
    async with session.post(f"/-/approvals/{row['id']}/vote", json=vote, headers=ada) as answer:
        assert answer.status == 403, await answer.text()
    async with session.post(f"/-/approvals/{row['id']}/vote", json=vote, headers=bob) as answer:
        assert (await answer.json())["approval"]["state"] == "approved"
    asked_by = ("jwt:corp:agent-1", "ada-1") if changed else ("jwt:corp:ada-1", None)
    assert (row["principal"], row["on_behalf_of"], row["may_vote"]) == (*asked_by, False)
