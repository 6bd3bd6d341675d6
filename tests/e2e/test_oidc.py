"""Logins at an identity provider, through the front door, at a provider that signs with real keys; and providers that lie."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from gateway.store.approvals_protocol import Stamped

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
CONFIG = """
[store]
path = ":memory:"
[oidc]
issuer = "{issuer}"
client_id = "lockgate"
client_secret = "env:OIDC_SECRET"
private = true
label = "Log in with Acme"
permissions = {{ approver = "approve", cfo = "operate", boss = "admin" }}
"""


class Visitor:
    """A browser that goes to the provider and comes back."""

    def __init__(self, house: Any, provider: Any) -> None:
        self.house, self.provider = house, provider
        self.state = ""
        self.url = ""
        self.cookies: list[str] = []

    async def get(self, path: str, cookie: str = "", **headers: str) -> tuple[int, dict[str, Any], Any]:
        session = await self.house.http()
        sent = {**({"Cookie": cookie} if cookie else {}), **headers}
        async with session.get(path, headers=sent, allow_redirects=False) as answer:
            body = await answer.read()
            return answer.status, dict(answer.headers), json.loads(body) if body else None

    async def begin(self) -> None:
        status, headers, _ = await self.get("/-/oidc/begin")
        assert status == 302
        assert headers["Set-Cookie"].split("; ")[1:] == ["Path=/-/oidc/", "HttpOnly", "SameSite=Lax", "Max-Age=600"]
        self.state, self.url = headers["Set-Cookie"].partition(";")[0], headers["Location"]

    async def back(self, **changed: str) -> tuple[int, dict[str, Any], Any]:
        return await self.get(f"/-/oidc/callback?{self.provider.authorize(self.url, **changed)}", self.state, **{"Sec-Fetch-Site": "cross-site"})

    async def log_in(self) -> tuple[int, Any]:
        """The whole way; who somebody is then, or why they are nobody."""
        await self.begin()
        status, headers, told = await self.back()
        if status != 302:
            assert "Set-Cookie" not in headers
            return status, told
        assert headers["Location"] == "/-/admin"
        self.cookies.append(headers["Set-Cookie"].partition(";")[0])
        assert headers["Set-Cookie"].split("; ")[1:] == ["Path=/-/", "HttpOnly", "SameSite=Strict", "Max-Age=43200"]
        status, _, me = await self.get("/-/me", self.cookies[-1])
        return status, me


@pytest.fixture
async def visitor(house, provider):
    house.environ["OIDC_SECRET"] = "client secret: 7%/+"
    await house.open(config=CONFIG.format(issuer=provider.url))
    provider.now_s = lambda: house.gateway.running.clock.now_ns() / 1e9
    return Visitor(house, provider)


async def account(house: Any) -> Any:
    found = await house.gateway.running.store.people.all()
    return found[0] if found else None


async def test_somebody_logs_in_and_gets_an_account_with_what_their_roles_may(visitor, house, provider):
    status, me = await visitor.log_in()
    assert (status, me["name"], me["permission"], me["roles"], me["teams"], me["method"]) == (
        200, "Ada", "operate", ["approver", "cfo"], ["blue"], "oidc")
    host = provider.url.removeprefix("http://")
    assert me["id"] == f"oidc:ada-1@{host}"
    made = await account(house)
    assert (made.id, made.subject, made.email, made.password, made.token) == (me["id"], f"{provider.url} ada-1", "ada@example.org", "", b"")
    assert provider.asked == ["/.well-known/openid-configuration", "/token", "/keys"]
    house.gateway.running.telemetry.flush()
    told = b"".join(house.lines).decode()
    assert "oidc:ada-1" in told
    assert [secret for secret in (visitor.state, visitor.cookies[0], "client secret", "code-0") if secret in told] == []


async def test_the_same_person_has_one_account_which_follows_what_the_provider_says(visitor, house, provider):
    await visitor.log_in()
    provider.person |= {"name": "Ada L.", "roles": ["approver"], "groups": []}
    _, me = await visitor.log_in()
    assert (me["name"], me["permission"], me["teams"]) == ("Ada L.", "approve", [])
    assert len(await house.gateway.running.store.people.all()) == 1
    _, _, earlier = await visitor.get("/-/me", visitor.cookies[0])
    assert (earlier["permission"], earlier["roles"]) == ("approve", ["approver", "cfo"])  # the roles are those of the login


async def test_what_is_taken_from_an_account_here_counts_at_once_for_who_is_logged_in(visitor, house):
    """Else the roles of the login would go on to count, until that ends."""
    _, me = await visitor.log_in()
    session = await house.http()
    async with session.post(f"/-/people/{me['id']}", json={"roles": []}, headers=ADMIN) as answer:
        assert answer.status == 200
    assert (await visitor.get("/-/me", visitor.cookies[0]))[0] == 401


async def test_the_button_has_its_words(visitor):
    assert (await visitor.get("/-/login/methods"))[2] == {"password": True, "oidc": {"label": "Log in with Acme"}}


@pytest.mark.parametrize("roles", [[], None, ["janitor"], "nothing of it", ["APPROVER"]])
async def test_who_has_no_role_that_may_anything_is_not_let_in(visitor, house, provider, roles):
    provider.person["roles"] = roles
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (403, "not_permitted")
    assert await account(house) is None


async def test_who_is_disabled_here_is_not_let_in(visitor, house):
    _, me = await visitor.log_in()
    session = await house.http()
    async with session.post(f"/-/people/{me['id']}/disable", json={}, headers=ADMIN) as answer:
        assert answer.status == 200
    assert (await visitor.get("/-/me", visitor.cookies[0]))[0] == 401
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (401, "unauthenticated")
    async with session.post(f"/-/people/{me['id']}", json={"password": "correct horse battery"}, headers=ADMIN) as answer:
        assert answer.status == 400  # who is let in is the provider's to say


async def test_a_forged_id_token_lets_nobody_in(visitor, house, provider, hostile):
    provider.make = lambda claims: provider.hostile(hostile, claims)
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (401, "unauthenticated")
    assert await account(house) is None


@pytest.mark.parametrize("claims", [
    {"aud": "somebody-else"}, {"aud": ["lockgate", "somebody-else"]}, {"aud": ["lockgate", "x"], "azp": "x"}, {"azp": "x"}, {"aud": None},
    {"iss": "https://elsewhere.example"}, {"iss": None}, {"exp": 1}, {"exp": None}, {"iat": None}, {"iat": 10**10}, {"nbf": 10**10},
    {"nonce": "another"}, {"nonce": None}, {"nonce": ["x"]}, {"nonce": "\u00e4"}, {"sub": None}, {"sub": ""}, {"sub": 7}, {"sub": "a\nb"},
    {"roles": {"boss": True}}, {"roles": [["boss"]]}, {"groups": [7]}, {"name": ["x"]}, {"name": "a\u202eb"}, {"email": 7},
], ids=str)
async def test_an_id_token_that_is_not_for_this_login_lets_nobody_in(visitor, house, provider, claims):
    provider.claims = claims
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (401, "unauthenticated")
    assert await account(house) is None


async def test_an_id_token_for_several_is_taken_where_it_was_made_for_us(visitor, provider):
    provider.claims = {"aud": ["lockgate", "another"], "azp": "lockgate"}
    assert (await visitor.log_in())[0] == 200


async def test_an_email_that_is_not_verified_is_nobody_s(visitor, house, provider):
    provider.claims = {"email_verified": False}
    assert (await visitor.log_in())[0] == 200
    assert (await account(house)).email == ""


@pytest.mark.parametrize("changed", [{"state": "another"}, {"state": ""}, {"iss": "https://elsewhere.example"}, {"iss": ""}, {"code": ""},
                                     {"code": "guessed"}, {"code": "x" * 5000}, {"error": "access_denied"}], ids=str)
async def test_an_answer_that_is_not_the_provider_s_to_this_browser_lets_nobody_in(visitor, house, changed):
    await visitor.begin()
    status, headers, told = await visitor.back(**changed)
    assert (status, told["code"], "Set-Cookie" in headers) == (401, "unauthenticated", False)
    assert await account(house) is None


@pytest.mark.parametrize("cookie", [
    "", "lockgate_oidc=", "lockgate_oidc=x.y", "lockgate_oidc={state}x", "lockgate_oidc=x{state}", "lockgate_oidc={state}; lockgate_oidc={state}"])
async def test_an_answer_in_a_browser_that_has_not_asked_lets_nobody_in(visitor, house, provider, cookie):
    """Else somebody could have others log in as them."""
    await visitor.begin()
    visitor.state = cookie.format(state=visitor.state.partition("=")[2])
    assert (await visitor.back())[0] == 401
    assert "/token" not in provider.asked
    assert await account(house) is None


async def test_two_browsers_that_have_begun_cannot_end_each_other_s_login(visitor, house, provider):
    other = Visitor(house, provider)
    await visitor.begin()
    await other.begin()
    visitor.state, other.state = other.state, visitor.state
    assert ((await visitor.back())[0], (await other.back())[0]) == (401, 401)


async def test_an_answer_counts_once(visitor):
    await visitor.begin()
    query = visitor.provider.authorize(visitor.url)
    assert (await visitor.get(f"/-/oidc/callback?{query}", visitor.state))[0] == 302
    assert (await visitor.get(f"/-/oidc/callback?{query}", visitor.state))[0] == 401


async def test_what_is_said_twice_in_an_answer_counts_for_nothing(visitor):
    await visitor.begin()
    query = visitor.provider.authorize(visitor.url)
    assert (await visitor.get(f"/-/oidc/callback?{query}&code=another", visitor.state))[0] == 400


@pytest.mark.parametrize("path", ["/-/oidc/begin", "/-/oidc/callback?code=x&state=y"])
async def test_a_name_that_is_not_ours_is_not_where_anybody_comes_back_to(visitor, path):
    assert (await visitor.get(path, Host="rebound.example"))[2]["code"] == "browser_refused"


@pytest.mark.parametrize("metadata", [
    {"issuer": "https://elsewhere.example"}, {"issuer": None}, {"token_endpoint": None}, {"jwks_uri": "file:///etc/passwd"},
    {"authorization_endpoint": "javascript:alert(1)"}, {"token_endpoint": ["x"]}, {"jwks_uri": "http://a b"}], ids=str)
async def test_a_provider_that_does_not_speak_for_itself_is_not_believed(visitor, provider, metadata):
    provider.metadata = metadata
    status, _, told = await visitor.get("/-/oidc/begin")
    assert (status, told["code"]) == (503, "identity_unavailable")


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token"])
@pytest.mark.parametrize("answer", [
    lambda: web.Response(status=500), lambda: web.Response(status=302, headers={"Location": "/elsewhere"}), lambda: web.Response(text="<html>"),
    lambda: web.Response(body=b" " * 600_000), lambda: web.Response(body=b"[" * 5000), lambda: web.json_response([])],
    ids=["fails", "redirects", "no JSON", "oversized", "deep", "a list"])
async def test_a_provider_that_answers_nonsense_lets_nobody_in(visitor, house, provider, path, answer):
    async def answering(_request):
        return answer()

    provider.answers[path] = answering
    status, headers, told = await visitor.get("/-/oidc/begin")
    if status == 302:
        visitor.state, visitor.url = headers["Set-Cookie"].partition(";")[0], headers["Location"]
        status, _, told = await visitor.back()
    assert (status, told["code"]) in [(503, "identity_unavailable"), (401, "unauthenticated")]
    assert "/elsewhere" not in provider.asked
    assert await account(house) is None
    house.gateway.running.telemetry.flush()
    assert b"defect" not in b"".join(house.lines)


async def test_a_slow_provider_holds_nobody_else_up(visitor, house, provider, messages):
    go = asyncio.Event()

    async def slow(_request):
        await asyncio.wait_for(go.wait(), 30)
        return web.Response(status=503)

    provider.answers["/.well-known/openid-configuration"] = slow
    waiting = [asyncio.create_task(visitor.get("/-/oidc/begin")) for _ in range(5)]
    await asyncio.wait_for(provider.arrived.wait(), 30)
    await house.client().chat.completions.create(model="fast", messages=messages("hello"))
    go.set()
    assert {status for status, _, _ in await asyncio.gather(*waiting)} == {503}
    assert provider.asked == ["/.well-known/openid-configuration"]


async def test_keys_that_change_are_found_at_the_next_login(visitor, provider):
    assert (await visitor.log_in())[0] == 200
    provider.header, provider.published = {"alg": "ES256", "kid": "ec"}, ["ec"]
    assert (await visitor.log_in())[0] == 200  # it was among those that are known
    provider.header, provider.published = {"alg": "RS256", "kid": "next"}, ["next"]
    status, told = await visitor.log_in()
    assert (status, "`kid`" in told["detail"]) == (401, True)  # not half a minute later


@pytest.mark.parametrize(("secret", "methods"), [
    (True, ["client_secret_post"]), (True, ["private_key_jwt"]), (True, "client_secret_post"), (False, None), (False, ["client_secret_post"])])
async def test_a_client_says_its_secret_where_the_provider_takes_it_and_a_public_one_says_none(house, provider, secret, methods):
    provider.metadata = {"token_endpoint_auth_methods_supported": methods}
    provider.public = not secret
    house.environ["OIDC_SECRET"] = "client secret: 7%/+"
    config = CONFIG.format(issuer=provider.url)
    await house.open(config=config if secret else config.replace('client_secret = "env:OIDC_SECRET"\n', ""))
    provider.now_s = lambda: house.gateway.running.clock.now_ns() / 1e9
    assert (await Visitor(house, provider).log_in())[0] == 200


async def test_a_token_endpoint_that_fails_in_json_is_not_a_refusal(visitor, provider):
    async def failing(_request):
        return web.json_response({"error": "temporarily_unavailable"}, status=503)

    provider.answers["/token"] = failing
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (503, "identity_unavailable")


async def test_what_was_sealed_long_ago_is_over(house, provider, visitor):
    await visitor.begin()
    oidc = house.gateway.running.identities.oidc
    begun = oidc._opened(visitor.state.partition("=")[2])
    visitor.state = f"lockgate_oidc={oidc._sealed({**begun, 'until_ns': 1})}"
    status, _, told = await visitor.back()
    assert (status, "too long" in told["detail"]) == (401, True)
    assert "/token" not in provider.asked


async def test_an_account_of_another_provider_is_not_taken_over(visitor, house):
    _, me = await visitor.log_in()
    people = house.gateway.running.store.people

    def stolen(person):
        return type(person)(**{**{name: getattr(person, name) for name in person.__slots__}, "subject": "https://another.example ada-1", "name": "X"})

    await people.change(me["id"], stolen, Stamped("x", "tests", 1))
    status, told = await visitor.log_in()
    assert (status, told["code"]) == (401, "unauthenticated")
    assert (await account(house)).name == "X"


@pytest.mark.usefixtures("visitor")
async def test_two_first_logins_at_once_make_one_account(house, provider):
    visitors = [Visitor(house, provider) for _ in range(4)]
    found = await asyncio.gather(*(each.log_in() for each in visitors))
    assert [status for status, _ in found] == [200] * 4
    assert len(await house.gateway.running.store.people.all()) == 1


async def test_without_a_provider_there_is_nowhere_to_go(house):
    await house.open()
    session = await house.http()
    for path in ("/-/oidc/begin", "/-/oidc/callback"):
        async with session.get(path) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "unknown_url")
