"""HTTP tools through the front door: what the upstream receives is what the arguments say, field for field, and rules decide first."""

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
from yarl import URL

from gateway.embed import Gateway

ALLOW = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n'


def tool(root: str, name: str = "bank.pay", *, more: str = "", **changed: Any) -> str:
    """A declaration; `changed` are its settings in TOML."""
    settings = {
        "method": '"POST"', "url": f'"{root}/tools/accounts/{{account}}/payments"', "query": '["currency", "tags"]', "effect": '"idempotent"',
        "price": '"0.01"', "private": "true", **changed}
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items() if value)
    return f"""
[[tool]]
name = "{name}"
{lines}
[tool.headers]
Authorization = "env:ONE_KEY"
X-Team = "blue"
[tool.retry]
base = "1ms"
cap = "10ms"
{more or '''
[tool.arguments]
required = ["account"]
[tool.arguments.properties]
account = { type = "string" }
currency = { type = "string" }
tags = { type = "array", items = { type = "string" } }
amount = { type = "number" }
note = { type = ["string", "object", "null"] }
'''}
"""


def finder(root: str, **changed: Any) -> str:
    return tool(root, "find", method='"GET"', url=f'"{root}/tools/find/{{place}}"', query="", effect='"read"', price="", more="""
[tool.arguments]
required = ["place"]
[tool.arguments.properties]
place = { type = "string" }
limit = { type = "integer" }
open = { type = "boolean" }
kinds = { type = "array", items = { type = "string" } }
""", **changed)


class Answered:
    """An answer with its parsed body."""

    def __init__(self, status: int, headers: Any, raw: bytes) -> None:
        self.status, self.headers, self.raw = status, headers, raw

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json", self.raw
        assert self.json["call_id"] == self.headers["X-Lockgate-Call"]
        return str(self.json["code"])


async def ask(house, method: str, path: str, body: Any = None, **headers: str) -> Answered:
    session = await house.http()
    sent = {"Authorization": f"Bearer {house.key}", **headers}
    if body is not None:
        sent.setdefault("Content-Type", "application/json")
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    async with session.request(method, path, data=data, headers=sent) as answer:
        return Answered(answer.status, answer.headers, await answer.read())


@pytest.fixture
async def paying(house):
    await house.open(routes=tool(house.one.root) + finder(house.one.root), policies=ALLOW)
    return house


async def test_a_call_of_a_tool_is_a_governed_call(paying):
    arguments = {"account": "DE 1", "currency": "EUR", "tags": ["a", "b&c"], "amount": 1.5, "note": {"deep": [None, "x"]}}
    answer = await ask(paying, "POST", "/tools/bank.pay", arguments)
    assert answer.status == 200, answer.raw
    echo = answer.json
    assert (echo["method"], echo["path"], echo["query"]) == (
        "POST", "/tools/accounts/DE%201/payments", [["currency", "EUR"], ["tags", "a"], ["tags", "b&c"]])
    assert echo["body"] == {"amount": 1.5, "note": {"deep": [None, "x"]}}
    assert (echo["headers"]["x-team"], echo["headers"]["idempotency-key"]) == ("blue", answer.headers["X-Lockgate-Call"])
    (entry,) = await paying.one.finished(1)
    assert entry.headers["authorization"].startswith("sha256:")  # the declaration's own, not the caller's
    assert paying.key not in str(entry.to_json())
    assert (answer.headers["X-Lockgate-Target"], answer.headers["X-Lockgate-Decision"], answer.headers["X-Lockgate-Cost-Usd"]) == (
        "tool:bank.pay/POST", "allow", "0.01")
    row = await paying.call(answer.headers["X-Lockgate-Call"])
    assert (row["operation"], row["dialect"], row["route"], row["outcome"], row["status"], row["cost_usd"]) == (
        "tool", "tools", "bank.pay", "completed", 200, "0.01")
    assert row["attempts"][0]["target"] == "tool:bank.pay/POST"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_arguments_come_as_json_whatever_the_method_of_the_tool(paying, method):
    answer = await ask(paying, method, "/tools/find", {"place": "Paris", "kinds": ["a", "b"], "open": True})
    assert (answer.json["method"], answer.json["path"], answer.json["query"]) == (
        "GET", "/tools/find/Paris", [["kinds", "a"], ["kinds", "b"], ["open", "true"]])
    assert answer.json["body"] is None
    assert "idempotency-key" not in answer.json["headers"]


@pytest.mark.parametrize(("query", "sent"), [
    ("place=Paris", []), ("place=Paris&limit=3&open=false", [["limit", "3"], ["open", "false"]]), ("place=a+b%20c&kinds=x", [["kinds", "x"]]),
    ("kinds=1&place=%C3%A9&kinds=2", [["kinds", "1"], ["kinds", "2"]]),
])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_arguments_of_a_query_are_read_by_their_types(paying, method, query, sent):
    answer = await ask(paying, method, f"/tools/find?{query}")
    assert (answer.status, answer.json["query"]) == (200, sent)


@pytest.mark.parametrize(("query", "pointer"), [
    ("", ""), ("place=a&place=b", "/place"), ("place=a&limit=x", "/limit"), ("place=a&limit=1&limit=2", "/limit"), ("place=a&other=1", "/other"),
    ("place=a&open=1", "/open"), ("place=a&Place=b", "/Place"),
    ("place=%", None), ("place=%zz", None), ("place=%ff", None), ("place=a&&limit=1", None), ("=a", None), ("place=a&" + "&".join("kinds=1" for _ in range(1000)), None),
])
async def test_a_query_that_does_not_fit_is_refused_with_its_place(paying, query, pointer):
    session = await paying.http()
    async with session.get(URL(f"{paying.gateway.url}/tools/find?{query}", encoded=True), headers={"Authorization": f"Bearer {paying.key}"}) as got:
        answer = Answered(got.status, got.headers, await got.read())
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.json.get("pointer") == pointer
    assert paying.one.requests == []


@pytest.mark.parametrize("line", [b"GET /tools/find?place=\xff", b"GET /tools/find?\xff=1", b"GET /tools/\xff?place=a", b"GET /tools/find?place=a&place\xc3=b"])
async def test_bare_bytes_in_a_url_are_refused(paying, line):
    host, port = paying.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(line + f" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {paying.key}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert answer.split(b" ", 2)[1] in (b"400", b"404")
    assert paying.one.requests == []
    assert b"defect" not in b"".join(paying.lines)


@pytest.mark.parametrize("account", [
    "", ".", "..", "../../admin", "..\\..", "a/b", "%2e%2e", "%2e%2e%2fadmin", "%252e%252e", "a\r\nX-Evil: 1", "a\nb", "a\x00b", "\uff0f", "\uff0e\uff0e", "..;/x", "\u2028", "x" * 9000,
], ids=ascii)
async def test_hostile_arguments_never_leave(paying, account):
    answer = await ask(paying, "POST", "/tools/bank.pay", {"account": account})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert paying.one.requests == []
    (row,) = await paying.calls()
    assert row["code"] == "invalid_request"


@pytest.mark.parametrize("text", [
    "{account}", "{amount}", "${jndi:ldap}", "a b", "100%", "?x=1&currency=USD", "#frag", "a;b=c", "@evil.example", "é\u0301", "日本", "🏦", "'; DROP TABLE--", "a+b", "%zz",
    "http:", "\u202ereversed", "...", '"quoted"',
], ids=ascii)
async def test_whatever_else_an_argument_holds_arrives_field_for_field(paying, text):
    """Judged = sent: in the path, in the query, and in the body."""
    answer = await ask(paying, "POST", "/tools/bank.pay", {"account": text, "currency": text, "tags": [text, ""], "note": {text or "k": text}})
    assert answer.status == 200, answer.raw
    assert [unquote(part) for part in answer.json["path"].split("/")] == ["", "tools", "accounts", text, "payments"]
    assert answer.json["query"] == [["currency", text], ["tags", text], ["tags", ""]]
    assert answer.json["body"] == {"note": {text: text}}


@pytest.mark.parametrize("body", [
    b"", b"[]", b"null", b'"x"', b'{"account":', b'{"account": NaN}', b'{"account": "\\ud800"}', b'{"account": "a", "amount": 1e999}', b'{"account": "\xff"}',
    b'{"account": "a", "amount": 123456789012345678901234567890}', b'{"account": "a", "note": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    b'{"account": "a", "Amount": 5}', b'{"account": 5}', b'{"account": "a", "note": [1]}', b'{"account": "a", "amount": "5"}', b'{"account": "a", "amount": true}',
])
async def test_what_the_schema_does_not_take_never_leaves(paying, body):
    answer = await ask(paying, "POST", "/tools/bank.pay", body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert paying.one.requests == []


async def test_of_duplicate_keys_what_is_judged_is_what_is_sent(house):
    rule = '[[rule]]\nid = "small"\nphase = "tool_call"\neffect = "deny"\nmessage = "no"\nwhen = "double(tool.args.amount) > 10.0"\n'
    await house.open(routes=tool(house.one.root), policies=ALLOW + rule)
    answer = await ask(house, "POST", "/tools/bank.pay", b'{"account": "a", "amount": 999, "amount": 1}')
    assert answer.json["body"] == {"amount": 1}
    answer = await ask(house, "POST", "/tools/bank.pay", b'{"account": "a", "amount": 1, "amount": 999}')
    assert (answer.status, answer.code, answer.json["rule"]) == (403, "forbidden", "small")
    assert len(house.one.requests) == 1


async def test_without_a_rule_that_allows_it_no_tool_is_called(house):
    await house.open(routes=tool(house.one.root))
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.code, answer.json["rule"]) == (403, "forbidden", "default")
    assert house.one.requests == []


async def test_a_stranger_and_a_key_without_the_tool_learn_nothing_of_it(paying):
    assert (await ask(paying, "POST", "/tools/bank.pay", {"x": 1}, Authorization="Bearer no")).code == "unauthenticated"
    assert (await ask(paying, "GET", "/tools", Authorization="Bearer no")).code == "unauthenticated"
    paying.key = await paying.new_key(name="other", team="red", org="acme", routes=("find",))
    answers = [await ask(paying, "POST", f"/tools/{name}", {"x": 1}) for name in ("bank.pay", "nothing", "bank%2Epay", "x" * 64)]
    answers += [await ask(paying, "GET", f"/tools/{name}?x=1") for name in ("bank.pay", "nothing")]
    assert {(answer.status, answer.code, answer.json["detail"]) for answer in answers} == {
        (404, "unknown_route", "There is no tool of that name. Yours are: find.")}
    assert [each["name"] for each in (await ask(paying, "GET", "/tools")).json["tools"]] == ["find"]


async def test_tools_are_listed_with_their_schemas_and_are_no_models(paying):
    listed = (await ask(paying, "GET", "/tools")).json["tools"]
    assert [(each["name"], each["effect"], each["parameters"]["additionalProperties"]) for each in listed] == [("bank.pay", "idempotent", False), ("find", "read", False)]
    assert [model.id async for model in paying.client().models.list()] == []
    answer = await ask(paying, "POST", "/v1/chat/completions", {"model": "bank.pay", "messages": [{"role": "user", "content": "x"}]})
    assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_route")


async def test_a_route_is_no_tool(house):
    await house.open(policies=ALLOW)
    assert (await ask(house, "POST", "/tools/fast", {"x": 1})).code == "unknown_route"


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), [
    ("GET", "/tools/bank.pay?account=a", None, 405, "method_not_allowed"), ("HEAD", "/tools/find?place=a", None, 405, ""),
    ("OPTIONS", "/tools/find", None, 405, "method_not_allowed"), ("POST", "/tools/find?place=a", {"place": "a"}, 400, "invalid_request"),
    ("GET", "/tools/find?place=a", {"place": "a"}, 400, "invalid_request"), ("POST", "/tools/", {}, 404, "unknown_url"),
    ("POST", "/tools/a/b", {}, 404, "unknown_url"), ("POST", "/tools/" + "x" * 65, {}, 404, "unknown_url"), ("POST", "/tools", {}, 405, "method_not_allowed"),
])
async def test_a_wrong_way_to_call_is_refused(paying, method, path, body, status, code):
    answer = await ask(paying, method, path, body)
    assert answer.status == status
    assert not code or answer.code == code
    assert paying.one.requests == []


async def test_a_form_is_no_json(paying):
    answer = await ask(paying, "POST", "/tools/bank.pay", b"account=a", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (answer.status, answer.code) == (400, "invalid_request")


# What the upstream does.


async def test_its_refusal_is_passed_on_with_its_status_and_words(house):
    await house.open(routes=tool(house.one.root).replace('X-Team = "blue"', 'x-sim-fault = "status=422"'), policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.code, answer.json["detail"]) == (422, "upstream_rejected", "simulated 422")
    assert len(house.one.requests) == 1


@pytest.mark.parametrize(("effect", "fault", "tries"), [
    ("read", "status=503", 2), ("idempotent", "status=503", 2), ("at_most_once", "status=503", 1),
    ("read", "reset", 2), ("idempotent", "reset", 2), ("at_most_once", "reset", 1), ("at_most_once", "garbage=json", 1), ("read", "garbage=bytes", 2),
    ("idempotent", "status=302", 1), ("read", "status=401", 1), ("read", "huge=2MiB", 1),
])
async def test_its_failure_is_tried_again_only_where_that_does_no_harm(house, effect, fault, tries):
    declared = tool(house.one.root, effect=f'"{effect}"').replace('X-Team = "blue"', f'x-sim-fault = "{fault}"')
    await house.open(routes=declared, policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a", "amount": 5})
    assert (answer.status, answer.code) == (502, "upstream_failed")
    entries = await house.one.finished(tries)
    assert len(entries) == tries
    if effect != "read":
        assert {entry.headers["idempotency-key"] for entry in entries} == {answer.headers["X-Lockgate-Call"]}
    row = await house.call(answer.headers["X-Lockgate-Call"])
    assert (row["outcome"], len(row["attempts"])) == ("failed", tries)


async def test_a_second_try_that_works_is_the_answer(house):
    declared = tool(house.one.root).replace('X-Team = "blue"', 'x-sim-fault = "status=503;times=1"')
    await house.open(routes=declared, policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.headers["X-Lockgate-Attempts"], answer.headers["X-Lockgate-Cost-Usd"]) == (200, "2", "0.01")


async def test_a_text_is_given_as_it_is_with_its_kind(house):
    await house.open(routes=tool(house.one.root).replace('X-Team = "blue"', 'x-sim-fault = "garbage=html"'), policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.raw.startswith(b"<!DOCTYPE html>")


async def test_an_empty_answer_is_empty(house):
    await house.open(routes=tool(house.one.root, method='"HEAD"', query="", more="""
[tool.arguments]
required = ["account"]
properties = { account = { type = "string" } }
"""), policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.raw) == (200, b"")
    (entry,) = house.one.requests
    assert entry.method == "HEAD"


@pytest.mark.parametrize("transport", ["lean", "aiohttp"])
async def test_a_private_address_is_not_reached_unless_the_declaration_says_so(house, transport):
    """The host is no address as it stands; where it leads is known only when it is resolved."""
    root = house.one.root.replace("127.0.0.1", "127.1")
    await house.open(routes=tool(root, private=""), policies=ALLOW, config=f'[upstream]\ntransport = "{transport}"\n')
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.code) == (502, "upstream_failed")
    assert "connect" in answer.json["detail"]
    assert house.one.requests == []


async def test_a_credential_that_the_upstream_repeats_is_not_given_to_the_caller(house):
    declared = tool(house.one.root).replace('X-Team = "blue"', 'X-Echoed = "env:ONE_KEY"')
    await house.open(routes=declared, policies=ALLOW)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert answer.status == 200
    assert answer.json["headers"]["x-echoed"] == "[secret]"


async def test_a_rule_may_change_arguments_and_what_it_makes_of_them_is_checked_and_sent(house):
    rule = '[[rule]]\nid = "cap"\nphase = "tool_call"\neffect = "set"\n[rule.set.clamp.amount]\nmax = 100\n'
    await house.open(routes=tool(house.one.root), policies=ALLOW + rule)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a", "amount": 5000})
    assert answer.status == 200, answer.raw
    assert answer.json["body"] == {"amount": 100}


async def test_a_rule_may_redact_a_result(house):
    rule = '[[rule]]\nid = "no-teams"\nphase = "tool_result"\neffect = "redact"\n[rule.redact]\nfields = ["/headers/x-team"]\n'
    await house.open(routes=tool(house.one.root), policies=ALLOW + rule)
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert answer.status == 200, answer.raw
    assert answer.json["headers"]["x-team"] == "[redacted:field]"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
async def test_without_authentication_no_web_page_reaches_a_tool(house, headers):
    house.write("config.toml", '[auth]\nrequired = false\n[store]\npath = ":memory:"\n')
    house.write("routes/routes.toml", finder(house.one.root))
    house.write("policies/policies.toml", ALLOW)
    async with Gateway(house.folder / "config.toml", port=0, environ=house.environ) as gateway, aiohttp.ClientSession(gateway.url) as session:
        for path in ("/tools/find?place=a", "/tools"):
            async with session.get(path, headers=headers) as answer:
                assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "invalid_request")
            assert house.one.requests == []
            async with session.get(path) as answer:
                assert answer.status == 200
            house.one.reset()


async def test_what_a_tool_says_in_a_refusal_is_judged_as_its_result(house):
    """An error page can hold the same data, and the same instructions to a model, as an answer."""
    faulty = tool(house.one.root).replace('X-Team = "blue"', 'x-sim-fault = "status=422"')
    await house.open(routes=faulty, policies=ALLOW)
    assert (await ask(house, "POST", "/tools/bank.pay", {"account": "a"})).status == 422
    house.write("policies/more.toml", '[[rule]]\nid = "no-results"\nphase = "tool_result"\neffect = "deny"\nmessage = "Kept back."\n')
    await house.gateway.reload()
    answer = await ask(house, "POST", "/tools/bank.pay", {"account": "a"})
    assert (answer.status, answer.code, answer.json["rule"]) == (403, "forbidden", "no-results")
    assert (await house.calls())[0]["outcome"] == "withheld"


async def test_a_call_with_wrong_arguments_is_on_record_with_its_tool(house):
    await house.open(routes=tool(house.one.root), policies=ALLOW)
    assert (await ask(house, "POST", "/tools/bank.pay", {"account": 7})).status == 400
    row = (await house.calls())[0]
    assert (row["route"], row["outcome"], row["code"]) == ("bank.pay", "refused", "invalid_request")
