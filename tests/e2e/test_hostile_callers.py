"""Callers and upstreams that mean harm: what they can learn, what of theirs is kept, what they can reach by a browser."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.embed import Gateway

ALLOW = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n'
NO_RESULTS = '[[rule]]\nid = "no-results"\nphase = "tool_result"\neffect = "deny"\nmessage = "Kept back."\n'
NAMES = '[[rule]]\nid = "no-names"\nphase = "tool_result"\neffect = "redact"\n[rule.redact]\npatterns = ["Ada [A-Z][a-z]+"]\n'
TOKEN = "Bearer sk-shop-0123456789abcdefghijklmnopqrstuvwxyz"


class Shop:
    """An upstream that says what a test wants it to say."""

    def __init__(self) -> None:
        self.status = 200
        self.says: Any = {}
        self.asked: list[Any] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        self.asked.append(json.loads(body) if body else dict(request.query))
        said = self.says(self.asked[-1]) if callable(self.says) else self.says
        if isinstance(said, str):
            return web.Response(text=said, status=self.status, content_type="text/html")
        return web.json_response(said, status=self.status)


@pytest.fixture
async def shop(house):
    made = Shop()
    runner = web.ServerRunner(web.Server(made.answer))
    await runner.setup()
    house.stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    house.environ["SHOP"] = TOKEN
    return made


def declared(shop: Shop, *, method: str = "POST", effect: str = "at_most_once") -> str:
    return f"""
[[tool]]
name = "shop"
method = "{method}"
url = "{shop.url}/things"
effect = "{effect}"
private = true
headers = {{ authorization = "env:SHOP" }}
[tool.arguments.properties]
name = {{ type = "string" }}
amount = {{ type = "number" }}
"""


async def ask(house, body: Any, **headers: str) -> tuple[int, Any, Any]:
    session = await house.http()
    async with session.post("/tools/shop", json=body, headers={"Authorization": f"Bearer {house.key}", **headers}) as answer:
        return answer.status, answer.headers, await answer.text()


async def kept(house, headers: Any) -> str:
    """All that is on record of a call, and in the log."""
    row = await house.call(headers["X-Lockgate-Call"])
    return json.dumps(row) + b"".join(house.lines).decode()


# What is kept.


@pytest.mark.parametrize("bodies", ["redacted", "none"])
@pytest.mark.parametrize("status", [404, 500])
async def test_what_a_tool_says_in_an_error_is_kept_no_longer_than_what_it_answers(house, shop, bodies, status):
    shop.status, shop.says = status, {"detail": "Ada Lovelace has no account."}
    await house.open(routes=declared(shop), policies=ALLOW, config=f'[journal]\nbodies = "{bodies}"\n')
    answered, headers, said = await ask(house, {"name": "a"})
    assert answered == (404 if status == 404 else 502)
    assert "Ada Lovelace" in said
    assert "Lovelace" not in await kept(house, headers)


@pytest.mark.parametrize(("rule", "told"), [(NO_RESULTS, 403), (NAMES, 404)])
async def test_what_a_rule_takes_out_of_a_tools_error_is_not_kept_as_the_error_of_an_attempt(house, shop, rule, told):
    shop.status, shop.says = 404, {"detail": "Ada Lovelace has no account."}
    await house.open(routes=declared(shop), policies=ALLOW + rule)
    status, headers, said = await ask(house, {"name": "a"})
    assert status == told
    assert "Lovelace" not in said
    assert "Lovelace" not in await kept(house, headers)


async def test_names_of_arguments_are_not_kept_where_no_bodies_are(house, shop):
    await house.open(routes=declared(shop), policies=ALLOW, config='[journal]\nbodies = "none"\n')
    status, headers, said = await ask(house, {"Ada Lovelace": 1})
    assert status == 400
    assert "/Ada Lovelace" in said
    assert "Lovelace" not in await kept(house, headers)


@pytest.mark.parametrize("says", [4111111111111111, [4111111111111111]])
async def test_the_numbers_of_a_result_are_not_kept_where_no_bodies_are(house, shop, says):
    shop.says = says
    rule = '[[rule]]\nid = "seen"\nphase = "tool_result"\neffect = "log"\nlabel = "seen"\nwhen = \'result != null\'\n'
    await house.open(routes=declared(shop), policies=ALLOW + rule, config='[journal]\nbodies = "none"\n')
    _status, headers, said = await ask(house, {"name": "a"})
    assert "4111111111111111" in said
    on_record = await kept(house, headers)
    assert '"seen"' in on_record
    assert "4111111111111111" not in on_record


# What can be learnt.


async def test_an_upstream_that_repeats_guesses_does_not_tell_how_much_of_a_secret_is_right(house, shop):
    """Else a caller finds a credential letter by letter, from the part that all credentials of its kind begin with."""
    shop.status, shop.says = 404, lambda asked: {"detail": f"There is no thing {asked['name']}"}
    await house.open(routes=declared(shop), policies=ALLOW)
    right, wrong = TOKEN[:18], TOKEN[:17] + "~"
    said = [json.loads((await ask(house, {"name": guess}))[2])["detail"] for guess in (right, wrong)]
    assert said == [f"There is no thing {right}", f"There is no thing {wrong}"]


# Sessions.


async def test_a_session_cannot_be_named_so_that_nothing_is_remembered_of_it(house, shop):
    """The journal takes out of a name what looks like a key: the session would be kept under one name and looked for under another."""
    rule = ('[[rule]]\nid = "once"\nphase = "tool_call"\neffect = "deny"\nmatch = { tools = ["shop"] }\n'
            'when = \'session.count("shop") >= 1\'\n')
    await house.open(routes=declared(shop), policies=ALLOW + rule)
    assert (await ask(house, {}, **{"X-Lockgate-Session": "s1"}))[0] == 200
    assert (await ask(house, {}, **{"X-Lockgate-Session": "s1"}))[0] == 403
    for name in ("lgk_AbC123dEf456_" + "x9" * 16, "sk-provider-key-one-0123456789"):
        for _ in range(2):
            status, _headers, said = await ask(house, {}, **{"X-Lockgate-Session": name})
            assert (status, json.loads(said)["code"]) == (400, "invalid_request")
            assert name not in said
    assert len(shop.asked) == 1


# Browsers.


async def test_a_page_that_a_tool_answers_cannot_act_in_the_gateways_name(house, shop):
    shop.says = "<script>steal()</script>"
    await house.open(routes=declared(shop), policies=ALLOW)
    status, headers, said = await ask(house, {"name": "a"})
    assert (status, said) == (200, shop.says)
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_without_authentication_a_picture_in_a_web_page_calls_no_tool(house, shop, site):
    """It is asked for without `Origin`, and with the right `Host`."""
    house.write("config.toml", '[auth]\nrequired = false\n[store]\npath = ":memory:"\n')
    house.write("routes/routes.toml", declared(shop, method="GET", effect="read"))
    house.write("policies/policies.toml", ALLOW)
    async with Gateway(house.folder / "config.toml", port=0, environ=house.environ) as gateway, aiohttp.ClientSession(gateway.url) as session:
        for path in ("/tools/shop?name=a", "/tools", "/v1/models"):
            async with session.get(path, headers={"Sec-Fetch-Site": site}) as answer:
                assert answer.status == 400
        for typed in ("none", "same-origin"):
            async with session.get("/tools/shop?name=a", headers={"Sec-Fetch-Site": typed}) as answer:
                assert answer.status == 200
    assert len(shop.asked) == 2


# Reload.


async def test_a_token_is_asked_for_before_anything_is_read_again(house, shop):
    await house.open(routes=declared(shop), policies=ALLOW)
    house.write("policies/more.toml", NO_RESULTS)
    session = await house.http()
    before = house.gateway.running.snapshot.bundle.digest
    for headers in ({}, {"Authorization": f"Bearer {house.key}"}, {"Authorization": "Bearer "}, {"x-api-key": "admin"}):
        async with session.post("/-/reload", headers=headers) as answer:
            assert answer.status == 401
    assert house.gateway.running.snapshot.bundle.digest == before


async def test_fifty_reloads_at_once_are_a_few(house, shop):
    await house.open(routes=declared(shop), policies=ALLOW)
    house.write("policies/more.toml", NO_RESULTS)
    session = await house.http()

    async def reload() -> int:
        async with session.post("/-/reload", headers={"Authorization": "Bearer admin-token-of-the-tests"}) as answer:
            status: int = answer.status
            return status

    assert set(await asyncio.gather(*(reload() for _ in range(50)))) == {200}
    assert sum(b'"event":"reloaded"' in line for line in b"".join(house.lines).splitlines()) <= 10


@pytest.mark.parametrize("name", ["Session", "Run", "Step", "Tags", "User"])
async def test_what_a_call_belongs_to_is_named_once(house, shop, name):
    """A proxy that appends the caller's real session, or user, would be overruled by the caller's own header."""
    await house.open(routes=declared(shop), policies=ALLOW)
    session = await house.http()
    headers = [("Authorization", f"Bearer {house.key}"), (f"X-Lockgate-{name}", "a=mine"), (f"X-Lockgate-{name}", "a=theirs")]
    async with session.post("/tools/shop", json={}, headers=headers) as answer:
        assert answer.status == 400
        assert f"X-Lockgate-{name}" in await answer.text()
    assert shop.asked == []
