"""The table of endpoints: each answers its errors in its own shape, with the call's id, and says no more than it should to strangers."""

import json

import pytest
from yarl import URL

from gateway.app import Parts
from gateway.errors import StoreUnavailable
from gateway.store.memory import MemoryStore

PUBLIC = {"/healthz", "/readyz", "/metrics"}
LOGGING_IN = {"/-/login", "/-/login/methods", "/-/oidc/begin", "/-/oidc/callback"}  # and the page itself, which holds nothing: for strangers
ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}


async def ask(house, method: str, path: str | URL, **options):
    session = await house.http()
    async with session.request(method, path, **options) as answer:
        return answer.status, answer.headers, await answer.read()


def check_shape(path: str, headers, body: bytes) -> str:
    """The code of an error, once its shape is its endpoint's own and it has one call id."""
    told = json.loads(body)
    if path.startswith("/v1/"):
        assert headers["Content-Type"] == "application/json"
        told = told["error"]
        assert {"message", "type", "param", "code", "call_id"} <= set(told)
    else:
        assert headers["Content-Type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code", "call_id"} <= set(told)
    assert headers["X-Lockgate-Call"] == headers["X-Request-Id"] == told["call_id"]
    assert headers["X-Should-Retry"] == "false"
    assert headers["Server"] == "lockgate"
    return str(told["code"])


async def test_every_endpoint_answers_its_errors_in_its_own_shape(house):
    await house.open()
    endpoints = house.gateway.app.surface.endpoints
    assert {path for _, path in endpoints} >= PUBLIC | {"/v1/chat/completions", "/v1/models", "/-/calls", "/-/calls/{id}", "/-/budgets", "/-/budgets/{name}", "/-/costs"}
    for method, path in endpoints:
        if path not in PUBLIC | LOGGING_IN and not path.startswith("/-/admin"):
            for credential in ({}, {"Authorization": "Bearer \udcff"}, {"Authorization": "Bearer lk_no_such"}, {"x-api-key": "\udcff"}):
                status, headers, body = await ask(house, method, path, headers=credential)
                assert (method, path, status, check_shape(path, headers, body)) == (method, path, 401, "unauthenticated")
        if "{" not in path:
            status, headers, body = await ask(house, "PATCH", path)
            assert (status, check_shape(path, headers, body)) == (405, "method_not_allowed")
            assert method.encode() in body  # says what is allowed
        if method == "POST" and path.startswith("/v1/"):
            sent = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
            status, headers, body = await ask(house, method, path, data=b"{", headers=sent)
            assert (status, check_shape(path, headers, body)) == (400, "invalid_request")
    assert house.one.requests == []
    assert b"defect" not in b"".join(house.lines)


@pytest.mark.parametrize(("path", "there", "not_there"), [
    ("/v1/responses", b"POST /v1/chat/completions", b"/-/calls"), ("/-/nothing", b"GET /-/calls", b"/v1/chat"),
])
async def test_an_unknown_path_is_told_what_there_is(house, path, there, not_there):
    await house.open()
    status, headers, body = await ask(house, "POST", path)
    assert (status, check_shape(path, headers, body)) == (404, "unknown_url")
    assert f"no POST {path}".encode() in body
    assert there in body
    assert not_there not in body


@pytest.mark.parametrize(("method", "path", "allowed"), [
    ("POST", "/-/calls/call_x", ["GET"]), ("DELETE", "/-/calls/call_x/explain", ["GET"]),
    ("POST", "/-/budgets/team-month", ["GET", "PUT", "DELETE"]), ("GET", "/-/budgets/team-month/raise", ["POST"]),
    ("PUT", "/-/budgets/suspects", ["GET"]), ("DELETE", "/-/budgets/suspects", ["GET"]), ("GET", "/-/budgets/suspects/call_x", ["POST"]),
    ("PUT", "/-/budgets", ["GET"]), ("POST", "/-/costs", ["GET"]),
])
async def test_a_path_that_names_something_says_which_methods_it_has(house, method, path, allowed):
    await house.open()
    status, headers, body = await ask(house, method, path, headers=ADMIN)
    assert (status, check_shape(path, headers, body)) == (405, "method_not_allowed")
    assert f"; {' and '.join(allowed)} is." in json.loads(body)["detail"]


@pytest.mark.parametrize("path", [
    "/-/calls/", "/-/calls//explain", "/-/calls/a/b", "/-/calls/a/explain/b", "/-/budgets/", "/-/budgets//raise", "/-/budgets/a/b", "/-/budgets/a/raise/b",
    "/-//budgets", "/-/budgets/suspects/", "/-/%62udgets", "/-/budgets/a%2Fraise/b", "/-/budgets/%2e%2e/costs",
])
async def test_a_path_that_nearly_names_something_is_none(house, path):
    """What is authorised is the endpoint that answers: a path has one spelling."""
    await house.open()
    for method in ("GET", "POST", "PUT", "DELETE"):
        status, _, _ = await ask(house, method, URL(path, encoded=True), headers=ADMIN)
        assert status == 404, (method, path)


async def test_an_unknown_path_is_repeated_in_part_only_and_as_plain_text(house):
    await house.open()
    status, _, body = await ask(house, "GET", "/v1/%1b" + "x" * 5000)
    assert status == 404
    assert len(body) < 1000
    message = json.loads(body)["error"]["message"]
    assert message.isascii()
    assert message.isprintable()


@pytest.mark.parametrize("query", [
    "limit=0", "limit=501", "limit=0000000019999", "limit=" + "9" * 5000, "limit=-1", "limit=x", "limit=", "outcome=nonsense", "before=call_none",
    "after=call_none", "nothing=1", "key=%00", "before=%FF",
])
async def test_a_wrong_filter_is_refused_with_what_is_allowed(house, query):
    await house.open()
    status, headers, body = await ask(house, "GET", f"/-/calls?{query}", headers=ADMIN)
    assert (status, check_shape("/-/calls", headers, body)) == (400, "invalid_request")
    if query.startswith("outcome"):
        assert b"completed, refused" in body


async def test_calls_are_listed_by_every_filter_there_is(house, messages):
    await house.open()
    for _ in range(3):
        await house.client().chat.completions.create(model="fast", messages=messages("hi"))
    newest, middle, oldest = [row["id"] for row in await house.calls()]
    assert [row["id"] for row in await house.calls(before=newest)] == [middle, oldest]
    assert [row["id"] for row in await house.calls(after=oldest, limit=500)] == [newest, middle]
    assert len(await house.calls(outcome="completed", route="fast", limit=2)) == 2
    assert await house.calls(outcome="open") == []
    assert await house.calls(key="é") == []


async def test_readiness_tells_strangers_nothing_about_the_machine(house, monkeypatch):
    store = MemoryStore("tests")

    async def down(*_args: object) -> None:
        raise StoreUnavailable("the database /srv/private/lockgate.db is gone")

    await house.open(parts=Parts(store=store))
    monkeypatch.setattr(store, "check", down)
    status, _, body = await ask(house, "GET", "/readyz")
    assert status == 503
    assert b"store: unavailable" in body
    assert b"private" not in body
    await house.gateway.app.telemetry.scrape()
    assert b"/srv/private/lockgate.db is gone" in b"".join(house.lines)
