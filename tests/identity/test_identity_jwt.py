"""Tokens as callers' credentials: whose they are, which are not taken, and what happens to keys that change or cannot be had."""

import asyncio
import base64
import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from gateway.call import Principal
from gateway.errors import IdentityUnavailable, Unauthenticated
from gateway.identity import jwt as jwt_module
from gateway.identity.accounts import person_of
from gateway.identity.fetch import Fetcher, Kept
from gateway.identity.jwt import CallerTokens, Issuer
from gateway.identity.key_sets import read_key_set
from gateway.people_config import JwtConfig
from gateway.upstream.lean_transport import LeanTransport


class Desk:
    """One issuer, and what its tokens are taken for."""

    def __init__(self, provider, clock, log, transport, **config: Any) -> None:
        provider.now_s = lambda: clock.now_ns() / 1e9
        given = {"issuer": provider.url, "audience": ["gateway"], "jwks_url": f"{provider.url}/keys", "private": True,
                 "algorithms": ["RS256", "ES256", "EdDSA", "Ed25519"], **config}
        self.config = JwtConfig.model_validate(given)
        fetcher = Fetcher(transport, private=True)
        self.provider, self.clock = provider, clock

        async def load():
            return read_key_set(await fetcher.get(f"{provider.url}/keys"))

        self.keys = Kept(load, clock, log, "keys")
        self.tokens = CallerTokens([Issuer("corp", self.config, self.keys)])

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(self.clock.now_ns() / 1e9)
        claims = {"iss": self.provider.url, "aud": "gateway", "sub": "agent-1", "iat": now, "exp": now + 300, "roles": ["dev"], **changed}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, header: dict[str, Any] | None = None, **changed: Any) -> str:
        text: str = self.provider.sign(self.claims(**changed), **(header or {}))
        return text

    def unsigned(self, kid: str) -> str:
        """What anybody can write down who knows the issuer and the audience."""
        parts = ({"alg": "RS256", "kid": kid}, self.claims())
        return ".".join((*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "AAAA"))

    async def who(self, token: str) -> Principal:
        found = self.tokens.authenticate(token, self.clock.now_ns())
        return await found if inspect.isawaitable(found) else found

    async def refused(self, token: str) -> str:
        with pytest.raises(Unauthenticated) as caught:
            await self.who(token)
        return caught.value.message

    def fetches(self) -> int:
        count: int = self.provider.asked.count("/keys")
        return count


@pytest.fixture
async def desk(provider, clock, log):
    transport = LeanTransport()
    made: list[Desk] = []

    def make(**config: Any) -> Desk:
        made.append(Desk(provider, clock, log, transport, **config))
        return made[-1]

    yield make
    for each in made:
        await each.tokens.close()
    await transport.close()


async def test_a_token_is_whose_its_claims_say(desk, provider):
    one = desk(roles={"dev": "developer", "ops": "operator"}, routes=["fast*"])
    found = await one.who(one.token(name="Agent", team="blue", org="acme", roles=["dev", "unknown", "ops"], on_behalf_of="ada@example.org"))
    assert found == Principal("jwt:corp:agent-1", "Agent", "blue", "acme", ("developer", "operator"), ("fast*",), "ada@example.org",
                              person_of(provider.url, "agent-1"))


async def test_who_acts_for_somebody_is_the_principal_and_the_other_is_acted_for(desk, provider):
    """RFC 8693, 4.1: the token is of its `sub`, and who uses it is the `sub` of `act`."""
    one = desk()
    found = await one.who(one.token(sub="ada", name="Ada", act={"sub": "agent-7", "name": "Agent", "act": {"sub": "agent-6"}}))
    assert (found.id, found.name, found.on_behalf_of) == ("jwt:corp:agent-7", "Agent", "ada")
    assert found.owner == person_of(provider.url, "agent-7")
    found = await one.who(one.token(sub="agent-8", on_behalf_of="bob", act={"sub": "ignored"}))
    assert (found.id, found.on_behalf_of) == ("jwt:corp:agent-8", "bob")
    for act in ("agent", {}, {"sub": 7}, ["agent"], {"sub": ""}):
        await one.refused(one.token(act=act))


async def test_claims_are_found_by_their_names_and_inside_others(desk):
    one = desk(id_claim="client_id", roles_claim="realm_access.roles", team_claim="https://example.org/team")
    found = await one.who(one.token(**{"client_id": "svc", "realm_access": {"roles": ["a", "b"]}, "https://example.org/team": "blue"}))
    assert (found.id, found.roles, found.team) == ("jwt:corp:svc", ("a", "b"), "blue")
    assert (await one.who(one.token(client_id="svc", realm_access={"roles": "a b a"}))).roles == ("a", "b")


@pytest.mark.parametrize(("subject", "principal_id"), [
    ("a/b", "jwt:corp:a%2Fb"), ("a%2Fb", "jwt:corp:a%252Fb"), ("ada@example.org", "jwt:corp:ada@example.org"), ("auth0|7", "jwt:corp:auth0|7"),
    ("\u00e4 b", "jwt:corp:%C3%A4%20b"), ("a:b", "jwt:corp:a%3Ab")])
async def test_no_two_subjects_are_one_principal_and_none_steers_what_reads_it(desk, subject, principal_id):
    one = desk()
    assert (await one.who(one.token(sub=subject))).id == principal_id


@pytest.mark.parametrize("changed", [
    {"aud": "another"}, {"aud": None}, {"aud": []}, {"aud": ["a", "b"]}, {"aud": [7]}, {"aud": {"gateway": 1}}, {"aud": "GATEWAY"},
    {"iss": "https://elsewhere.example"}, {"iss": None}, {"iss": ["x"]}, {"iss": 7},
    {"sub": None}, {"sub": ""}, {"sub": 7}, {"sub": ["a"]}, {"sub": "a\nb"}, {"sub": "x" * 201}, {"sub": "\u00e4" * 200}, {"sub": "\u202eada"},
    {"exp": None}, {"exp": "soon"}, {"exp": True}, {"exp": 10**300}, {"exp": -1}, {"nbf": 10**10}, {"nbf": "x"}, {"iat": 10**10}, {"nbf": 1e300},
    {"roles": {"dev": 1}}, {"roles": ["dev", 7]}, {"roles": [""]}, {"roles": ["x"] * 101}, {"roles": ["a\x00b"]}, {"roles": 7},
    {"team": ["blue"]}, {"team": "b\x1b[31mlue"}, {"org": 7}, {"name": {"a": 1}}, {"on_behalf_of": ["ada"]}, {"on_behalf_of": "x" * 201},
    {"tid": "other"}, {"tid": None}, {"tid": ["tenant"]},
], ids=str)
async def test_a_token_that_is_not_for_us_or_says_nonsense_is_refused(desk, changed):
    """Also where it is signed as it should be: a claim that cannot be read is not a claim that is not there."""
    one = desk(claims={"tid": "tenant"})
    message = await one.refused(one.token(**{"tid": "tenant", **changed}))
    assert message.endswith("; ask for another one where you have this one from")
    assert len(message) < 200
    assert await one.who(one.token(tid="tenant"))


async def test_every_required_claim_is_required(desk):
    one = desk(required=["sub", "exp", "jti", "realm.name"])
    assert "`jti`" in await one.refused(one.token(realm={"name": "x"}))
    assert "`realm.name`" in await one.refused(one.token(jti="1", realm={}))
    assert (await one.who(one.token(jti="1", realm={"name": "x"}))).id == "jwt:corp:agent-1"


async def test_a_forged_token_is_refused(desk, provider, hostile):
    one = desk()
    assert await one.who(one.token())
    await one.refused(provider.hostile(hostile, one.claims(sub="victim")))


@pytest.mark.parametrize("text", [
    "", "eyJ", "eyJ.eyJ.x", "eyJhbGciOiJSUzI1NiJ9.e30.", "eyJhbGciOiJSUzI1NiJ9.!!!.x", "eyJ\u00e4.e30.x", "eyJ" + "A" * 20_000 + ".e30.x",
    "eyJhbGciOlsiUlMyNTYiXX0.e30.x", "e30.e30.x", "W10.e30.x", "eyJhbGciOiJSUzI1NiIsImtpZCI6N30.e30.x", "eyJhbGciOiJSUzI1NiJ9.W10.x",
    "eyJhbGciOiJSUzI1NiJ9." + "W1tb" * 2000 + ".x", "\udcff.\udcff.\udcff", "eyJhbGciOiJSUzI1NiIsImI2NCI6ZmFsc2V9.e30.x"])
async def test_what_is_no_token_is_refused_before_anybody_is_asked(desk, text):
    one = desk()
    await one.refused(text)
    assert one.fetches() == 0


async def test_strangers_make_us_fetch_nothing(desk):
    """What is already wrong with a token's claims needs no key."""
    one = desk()
    for changed in ({"exp": 1}, {"aud": "x"}, {"iss": "x"}, {"sub": None}):
        await one.refused(one.token(**changed))
    assert one.fetches() == 0


@pytest.mark.parametrize("header", [{"alg": "ES256", "kid": "ec"}, {"alg": "EdDSA", "kid": "ed"}, {"alg": "Ed25519", "kid": "ed"}, {"kid": None}, {"typ": "at+jwt", "x5t": "x"}])
async def test_every_kind_of_signature_that_is_configured_is_taken(desk, provider, header):
    if header.get("kid", "") is None:
        provider.published = ["rsa", "ec"]  # of all keys one fits
    one = desk()
    token = provider.sign(one.claims(), **header) if header.get("kid", "") is not None else provider.sign(one.claims(), kid=None)
    assert (await one.who(token)).id == "jwt:corp:agent-1"


async def test_a_kind_of_signature_that_is_not_configured_is_not_taken(desk):
    one = desk(algorithms=["RS256"])
    assert "`alg`" in await one.refused(one.token({"alg": "ES256", "kid": "ec"}))


async def test_a_token_without_a_kid_is_not_guessed_at_where_two_keys_fit(desk, provider):
    provider.published = ["rsa", "next"]
    one = desk()
    assert "`kid`" in await one.refused(one.token({"kid": None}))


async def test_the_first_token_waits_for_the_keys_and_no_other_does(desk):
    one = desk()
    first = one.tokens.authenticate(one.token(), one.clock.now_ns())
    assert inspect.isawaitable(first)
    await first
    for sub in ("a", "b", "b"):
        assert isinstance(one.tokens.authenticate(one.token(sub=sub), one.clock.now_ns()), Principal)
    assert one.fetches() == 1


async def test_many_at_once_fetch_the_keys_once(desk):
    one = desk()
    found = await asyncio.gather(*(one.who(one.token(sub=f"a{n}")) for n in range(50)))
    assert len({each.id for each in found}) == 50
    assert one.fetches() == 1


async def test_whoever_goes_away_leaves_the_keys_to_others(desk, provider):
    one = desk()
    go = asyncio.Event()

    async def slow(_request):
        await asyncio.wait_for(go.wait(), 30)
        return web.json_response(provider.key_set())

    provider.answers["/keys"] = slow
    waiting = [asyncio.create_task(one.who(one.token(sub=f"a{n}"))) for n in range(3)]
    await asyncio.wait_for(provider.arrived.wait(), 30)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    go.set()
    assert [each.id for each in await asyncio.gather(*waiting[1:])] == ["jwt:corp:a1", "jwt:corp:a2"]
    assert one.fetches() == 1


async def test_a_token_is_verified_once_and_then_known_until_it_ends(desk, monkeypatch):
    one = desk()
    token = one.token()
    await one.who(token)
    monkeypatch.setattr(jwt_module, "verified", None)  # from here on it would fail
    assert (await one.who(token)).id == "jwt:corp:agent-1"
    one.clock.move(329)
    assert (await one.who(token)).id == "jwt:corp:agent-1"
    one.clock.move(2)
    assert "expired" in await one.refused(token)


async def test_clocks_may_differ_a_little(desk):
    one = desk()
    now = int(one.clock.now_ns() / 1e9)
    for changed in ({"exp": now - 29}, {"nbf": now + 29}, {"iat": now + 29}):
        assert await one.who(one.token(**changed))
    for changed in ({"exp": now - 31}, {"nbf": now + 31}, {"iat": now + 31}):
        await one.refused(one.token(**changed))


async def test_known_tokens_do_not_heap_up(desk, monkeypatch):
    monkeypatch.setattr(jwt_module, "MOST_KNOWN", 5)
    one = desk()
    for n in range(20):
        await one.who(one.token(sub=f"a{n}"))
    assert repr(one.tokens) == "CallerTokens(1 issuers, 5 known)"


async def test_a_new_key_is_found_when_a_token_names_it_and_the_same_is_asked_for_every_30_seconds_at_most(desk, provider):
    one = desk()
    await one.who(one.token())
    with pytest.raises(IdentityUnavailable) as caught:  # the keys are a moment old: nobody knows yet that it is wrong
        await one.who(one.token({"kid": "next"}))
    assert (one.fetches(), caught.value.retry_after_s, caught.value.should_retry) == (1, 6, True)
    one.clock.move(5)
    assert "`kid`" in await one.refused(one.token({"kid": "next"}))
    assert one.fetches() == 2
    provider.published = ["next"]
    one.clock.move(29)
    assert "`kid`" in await one.refused(one.token({"kid": "next"}, sub="b"))
    assert one.fetches() == 2
    one.clock.move(2)
    assert await one.who(one.token({"kid": "next"}))
    assert one.fetches() == 3


async def test_tokens_that_nobody_has_signed_delay_a_new_key_by_five_seconds_at_most_and_fetch_no_more_often(desk, provider):
    """Whoever knows an issuer and an audience can name a key that is not there; those who have the new one wait for nobody's 30 s."""
    one = desk()
    await one.who(one.token())
    for n in range(60):  # a minute of it, ten each second
        one.clock.move(1)
        if n == 30:
            provider.published = ["next"]
            honest = one.token({"kid": "next"})
        for guess in range(10):
            with pytest.raises((IdentityUnavailable, Unauthenticated)):
                await one.who(one.unsigned(f"none-{n}-{guess}"))
        if n >= 36:
            assert (await one.who(honest)).id == "jwt:corp:agent-1"
    assert one.fetches() <= 1 + 60 / 5 + 1
    assert len(one.keys._missed) <= 7


async def test_a_token_that_came_while_keys_were_fetched_already_is_not_called_wrong_by_them(desk, provider):
    """They may be those of a moment before: what was begun for another says nothing of this one."""
    one = desk()
    await one.who(one.token())
    one.clock.move(6)
    go, old = asyncio.Event(), provider.key_set()

    async def slow(_request):
        await asyncio.wait_for(go.wait(), 30)
        return web.json_response(old)

    provider.answers["/keys"] = slow
    provider.arrived.clear()
    stranger = asyncio.create_task(one.refused(one.unsigned("none")))
    await asyncio.wait_for(provider.arrived.wait(), 30)
    provider.published = ["next"]
    honest = asyncio.create_task(one.who(one.token({"kid": "next"})))
    await asyncio.sleep(0)
    go.set()
    assert "`kid`" in await stranger
    with pytest.raises(IdentityUnavailable):
        await honest
    del provider.answers["/keys"]
    one.clock.move(6)
    assert await one.who(one.token({"kid": "next"}))


async def test_a_key_that_is_withdrawn_takes_its_tokens_along_once_the_keys_are_fetched_again(desk, provider):
    one = desk()
    token = one.token(exp=int(one.clock.now_ns() / 1e9) + 100_000)
    assert await one.who(token)
    provider.published = ["next"]
    one.clock.move(31)
    assert await one.who(one.token({"kid": "next"}))
    one.clock.move(31)
    assert "`kid`" in await one.refused(token)


async def test_keys_are_fetched_again_after_an_hour_and_nobody_waits_for_it(desk, provider):
    one = desk()
    await one.who(one.token())
    one.clock.move(3601)
    provider.arrived.clear()
    assert isinstance(one.tokens.authenticate(one.token(sub="b"), one.clock.now_ns()), Principal)
    await asyncio.wait_for(provider.arrived.wait(), 30)
    await one.keys.refresh()
    assert one.fetches() == 2
    assert one.keys.is_fresh


async def down(_request):
    return web.Response(status=503)


async def test_while_the_issuer_is_down_its_last_keys_hold_for_a_day(desk, provider, log):
    one = desk()
    await one.who(one.token())
    provider.answers["/keys"] = down
    for _ in range(5):
        one.clock.move(4 * 3600)
        assert await one.who(one.token())
        await one.keys.refresh()
    one.clock.move(4 * 3600 + 1)
    with pytest.raises(IdentityUnavailable):
        await one.who(one.token())
    assert {each["what"] for each in log.of("identity_unavailable")} == {"keys"}
    del provider.answers["/keys"]
    one.clock.move(6)
    assert await one.who(one.token())


@pytest.mark.parametrize("answer", [
    lambda: web.Response(status=500), lambda: web.Response(text="<html>"), lambda: web.json_response({"keys": []}), lambda: web.json_response([]),
    lambda: web.json_response({"keys": {"kid": "rsa"}}), lambda: web.Response(status=302, headers={"Location": "/elsewhere"}),
    lambda: web.Response(body=b"[" * 1000), lambda: web.Response(body=b" " * 600_000), lambda: web.json_response({"keys": [{}] * 101}),
    lambda: web.json_response({"keys": [7, None, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, {"kty": "EC", "crv": ["P-256"], "x": 1, "y": 2}]})])
async def test_what_cannot_be_known_is_503_and_never_401(desk, provider, answer):
    one = desk()

    async def answering(_request):
        return answer()

    provider.answers["/keys"] = answering
    with pytest.raises(IdentityUnavailable) as caught:
        await one.who(one.token())
    assert (caught.value.status, caught.value.should_retry) == (503, True)
    assert "/elsewhere" not in provider.asked  # redirects are not followed
    with pytest.raises(IdentityUnavailable):
        await one.who(one.token())
    assert one.fetches() == 1  # nor is it asked by everybody
    one.clock.move(6)
    del provider.answers["/keys"]
    assert await one.who(one.token())


async def test_a_new_key_while_the_issuer_is_down_is_not_called_wrong(desk, provider):
    one = desk()
    await one.who(one.token())
    provider.answers["/keys"] = down
    one.clock.move(31)
    with pytest.raises(IdentityUnavailable):
        await one.who(one.token({"kid": "next"}))
    assert await one.who(one.token())


@pytest.mark.parametrize("weak", [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"key_ops": "verify"}, {"alg": "RS512"}, {"alg": 7}, {"kid": 7}, {"n": "AQAB"}])
async def test_a_key_that_is_not_for_this_is_not_used(provider, weak):
    listed = provider.key_set()["keys"]
    found = read_key_set({"keys": [{**listed[0], **weak}, listed[1]]})
    assert found.find("rsa", "RS256") is None
    assert found.find("ec", "ES256") is not None
    assert found.find("ec", "ES384") is None


async def test_private_parts_that_somebody_has_published_are_left_alone(provider):
    private = {**provider.keys["rsa"].as_dict(private=True), "kid": "rsa"}
    key = read_key_set({"keys": [private]}).find("rsa", "RS256")
    assert key is not None
    assert key.is_private is False


async def test_one_issuer_may_have_two_audiences_each_with_its_own_settings(desk):
    one = desk()
    other = replace(Issuer("corp", one.config, one.keys), name="staging", config=one.config.model_copy(update={"audience": ("staging",)}))
    one.tokens = CallerTokens([Issuer("corp", one.config, one.keys), other])
    assert (await one.who(one.token())).id == "jwt:corp:agent-1"
    assert (await one.who(one.token(aud=["x", "staging"]))).id == "jwt:staging:agent-1"
    assert "`aud`" in await one.refused(one.token(aud="neither"))
