"""The page's files through the front door: what is served, with which headers, and what is not."""

import pytest

from gateway.http.page import FILES, POLICY

ADMIN = "admin-token-of-the-tests"


async def get(house, path, **headers):
    session = await house.http()
    async with session.get(path, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_the_page_is_there_for_whoever_asks_and_holds_nothing_to_hide(house):
    await house.open()
    status, headers, body = await get(house, "/-/admin")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<main" in body
    assert headers["Content-Security-Policy"] == POLICY
    assert {name: headers[name] for name in ("X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy", "Cache-Control")} == {
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache"}
    assert "camera=()" in headers["Permissions-Policy"]
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize(("name", "kind"), [
    ("main.js", "text/javascript; charset=utf-8"), ("app.css", "text/css; charset=utf-8"), ("icon.svg", "image/svg+xml"),
    ("vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"), ("vendor/uPlot.LICENSE", "text/plain; charset=utf-8")])
async def test_a_file_has_its_type_and_the_policy(house, name, kind):
    await house.open()
    status, headers, _body = await get(house, f"/-/admin/{name}")
    assert (status, headers["Content-Type"], headers["Content-Security-Policy"]) == (200, kind, POLICY)


async def test_every_file_is_served(house):
    await house.open()
    assert {name: status for name in FILES if (status := (await get(house, f"/-/admin/{name}"))[0]) != 200} == {}


async def test_what_a_browser_has_is_not_sent_again(house):
    await house.open()
    _status, headers, body = await get(house, "/-/admin/main.js")
    status, again, nothing = await get(house, "/-/admin/main.js", **{"If-None-Match": f'W/"x", {headers["ETag"]}'})
    assert (status, again["ETag"], nothing) == (304, headers["ETag"], b"")
    assert (await get(house, "/-/admin/main.js", **{"If-None-Match": '"another"'}))[2] == body


@pytest.mark.parametrize("path", [
    "/-/admin/nothing.js", "/-/admin/", "/-/admin/..%2fapp.py", "/-/admin/%2e%2e/app.py", "/-/admin/vendor/..%2fmain.js", "/-/admin/vendor",
    "/-/admin/main.js/", "/-/admin//main.js", "/-/admin/%6dain.js", "/-/admin/__init__.py"])
async def test_nothing_else_is(house, path):
    await house.open()
    session = await house.http()
    url = session._base_url.with_path(path, encoded=True)
    async with session.get(url) as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_a_foreign_name_of_this_address_gets_no_page(house):
    """DNS rebinding, CVE-2025-64443."""
    await house.open()
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.1:1@evil.example", "localhost:80:80"):
        assert (await get(house, "/-/admin", Host=name))[0] == 403
    assert (await get(house, "/-/admin", Host="localhost:1234"))[0] == 200


async def test_a_name_that_is_configured_gets_the_page(house):
    await house.open(config='[login]\npublic_url = "https://gate.example.com"\nhosts = ["gate.internal"]')
    for name in ("gate.example.com", "gate.internal:8080"):
        assert (await get(house, "/-/admin", Host=name))[0] == 200


async def test_a_query_that_nobody_reads_is_refused(house):
    await house.open()
    assert (await get(house, "/-/admin?next=https://evil.example"))[0] == 400


async def test_what_is_not_of_the_page_keeps_its_sandbox(house):
    """Metrics and problems are no pages: a browser must not run them in the gateway's name."""
    await house.open()
    for path in ("/metrics", "/-/approvals"):
        _status, headers, _body = await get(house, path)
        assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
