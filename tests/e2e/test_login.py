"""Logins through the front door, and attacks on them: foreign pages, foreign names, cookies without their token, guesses."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.app import Parts
from gateway.clock import SystemClock, SystemIds
from gateway.identity.accounts import new_token
from gateway.identity.actor import PERMISSIONS
from gateway.secret import Secret
from gateway.store.approvals_protocol import Stamped

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
PEPPER = Secret("pepper-of-the-tests-0123456789abcdef")
GOOD = "correct horse battery"
MEMORY = '[store]\npath = ":memory:"\n'


class Browser:
    """What a browser sends, byte by byte, over a real socket; it keeps one cookie."""

    def __init__(self, house: Any) -> None:
        self.house = house
        self.host = house.gateway.url.removeprefix("http://")
        self.cookie = ""
        self.device = ""
        self.csrf = ""

    async def send(self, method: str, path: str, body: Any = None, headers: list[tuple[str, str]] | None = None) -> tuple[int, dict[str, list[str]], Any]:
        """One request with exactly these headers, beside those that frame it."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *([f"Content-Length: {len(data)}"] if data or method == "POST" else []),
                 *(f"{name}: {value}" for name, value in headers or [])]
        address, port = self.host.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(address, int(port))
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            head, _, rest = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        status, *found = head.decode().split("\r\n")
        told: dict[str, list[str]] = {}
        for line in found:
            name, _, value = line.partition(": ")
            told.setdefault(name.lower(), []).append(value)
        return int(status.split()[1]), told, json.loads(rest) if "json" in told.get("content-type", [""])[0] and rest else rest

    def own(self, *, cookie: bool = True, csrf: bool = True, origin: bool = True, **more: str) -> list[tuple[str, str]]:
        """The headers of the gateway's own page."""
        sent = [("Host", self.host), ("Content-Type", "application/json"), ("Sec-Fetch-Site", "same-origin")]
        sent += [("Origin", f"http://{self.host}")] if origin else []
        kept = [each for each in (self.cookie if cookie else "", self.device) if each]
        sent += [("Cookie", "; ".join(kept))] if kept else []
        sent += [("X-Lockgate-Csrf", self.csrf)] if csrf and self.csrf else []
        return [*((name, value) for name, value in sent if name not in {key.replace("_", "-") for key in more}),
                *((key.replace("_", "-"), value) for key, value in more.items() if value)]

    async def log_in(self, **credentials: str) -> dict[str, Any]:
        status, headers, told = await self.send("POST", "/-/login", credentials, self.own())
        assert status == 200, told
        self.keep(headers, told)
        return dict(told)

    def keep(self, headers: dict[str, list[str]], told: dict[str, Any]) -> None:
        """Keep what a login has given, but for what says that the browser is known."""
        self.cookie = headers["set-cookie"][0].partition(";")[0]
        self.csrf = told["csrf"]

    async def me(self, **changed: Any) -> tuple[int, Any]:
        status, _headers, told = await self.send("GET", "/-/me", None, self.own(**changed))
        return status, told


@pytest.fixture
async def browser(house):
    await house.open(config=MEMORY)
    return Browser(house)


async def person(house: Any, person_id: str = "ada", permission: str = "operate", **more: Any) -> dict[str, Any]:
    """Make an account through the front door."""
    session = await house.http()
    body = {"id": person_id, "permission": permission, "name": person_id.title(), "password": GOOD, **more}
    async with session.post("/-/people", json={name: value for name, value in body.items() if value is not None}, headers=ADMIN) as answer:
        told = await answer.json(content_type=None)
        assert answer.status == 200, told
        return dict(told["person"])


async def token_of(house: Any, person_id: str) -> str:
    app = house.gateway.running
    text, kept = new_token(SystemIds(SystemClock()), PEPPER)
    await app.store.people.change(person_id, lambda each: replace(each, token=kept), Stamped("token", "tests", 1))
    return text


async def test_a_person_logs_in_is_known_and_logs_out(browser, house):
    await person(house, roles=["finance"], teams=["blue"])
    status, headers, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, browser.own())
    assert status == 200
    assert {name: told[name] for name in ("id", "name", "permission", "roles", "teams", "via", "method", "password")} == {
        "id": "ada", "name": "Ada", "permission": "operate", "roles": ["finance"], "teams": ["blue"], "via": "cookie", "method": "password",
        "password": True}
    cookie, device = headers["set-cookie"]
    parts = cookie.split("; ")
    assert parts[0].startswith("lockgate_login=lgs_")
    assert parts[1:] == ["Path=/-/", "HttpOnly", "SameSite=Strict", "Max-Age=43200"]
    assert device.startswith("lockgate_device=")
    assert device.split("; ")[1:] == ["Path=/-/", "HttpOnly", "SameSite=Strict", f"Max-Age={400 * 86400}"]
    assert headers["cache-control"] == ["no-store"]
    browser.cookie, browser.csrf = parts[0], told["csrf"]
    status, me = await browser.me()
    assert (status, me) == (200, told)
    status, headers, _ = await browser.send("POST", "/-/logout", {}, browser.own())
    assert (status, "Max-Age=0" in headers["set-cookie"][0]) == (200, True)
    assert (await browser.me())[0] == 401


async def test_the_admin_token_and_a_person_s_token_log_in_too_and_a_bearer_needs_no_cookie(browser, house):
    await person(house)
    token = await token_of(house, "ada")
    assert (await browser.log_in(token="admin-token-of-the-tests"))["id"] == "admin"
    assert (await browser.log_in(token=token))["method"] == "token"
    session = await house.http()
    async with session.get("/-/me", headers={"Authorization": f"Bearer {token}"}) as answer:
        told = await answer.json()
    assert (told["id"], told["via"], "csrf" in told) == ("ada", "token", False)
    async with session.get("/-/me", headers=ADMIN) as answer:
        assert ((await answer.json())["id"], answer.status) == ("admin", 200)


async def test_each_login_has_a_new_cookie_and_the_old_one_is_over(browser, house):
    """So that nobody can have somebody log in on a cookie that they know (session fixation)."""
    await person(house)
    browser.cookie = "lockgate_login=lgs_" + "x" * 48
    await browser.log_in(name="ada", password=GOOD)
    first = browser.cookie
    assert first != "lockgate_login=lgs_" + "x" * 48
    await browser.log_in(name="ada", password=GOOD)
    assert browser.cookie != first
    assert (await browser.me(Cookie=first))[0] == 401
    assert (await browser.me())[0] == 200


class Movable(SystemClock):
    """A clock that goes on by itself, and further where it is told to."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.ahead_s * 1e9)


@pytest.mark.parametrize(("path", "more"), [("/-/events", {}), ("/-/me", {"X_Lockgate_Background": "1"}), ("/-/approvals", {"X_Lockgate_Background": ""})])
async def test_a_page_that_stands_open_keeps_nobody_logged_in(house, path, more):
    """An idle login is one that nobody uses: a page that listens, and asks for what has changed, is not somebody."""
    clock = Movable()
    await house.open(config=MEMORY, parts=Parts(clock=clock))
    browser = Browser(house)
    await person(house)
    await browser.log_in(name="ada", password=GOOD)
    session = await house.http()

    async def ask(where: str, headers: list[tuple[str, str]]) -> int:
        async with session.get(where, headers=dict(headers)) as answer:
            await answer.content.readline()
            return int(answer.status)

    background = [*browser.own(), *((name.replace("_", "-"), value) for name, value in more.items())]
    for _ in range(4):
        clock.ahead_s += 1500
        assert await ask(path, background) == 200
        assert await ask("/-/me", browser.own()) == 200  # this is somebody
    for asked in (200, 200, 401):
        clock.ahead_s += 1500
        assert await ask(path, background) == asked


@pytest.mark.parametrize("body", [
    {}, {"name": "ada"}, {"token": ""}, {"name": "ada", "password": GOOD, "token": "x"}, {"name": 7, "password": GOOD}, {"user": "ada"}, [], "x",
    {"name": "ada", "password": "x" * 5000}, {"token": "x" * 5000}])
async def test_a_login_that_says_nonsense_is_refused_and_nothing_of_it_repeated(browser, body):
    status, headers, told = await browser.send("POST", "/-/login", body, browser.own())
    assert status in {400, 401}
    assert "set-cookie" not in headers
    assert "xxxx" not in json.dumps(told)
    assert GOOD not in json.dumps(told)


async def test_wrong_passwords_lock_a_name_and_the_answers_do_not_say_whose_it_is(browser, house):
    await person(house)
    answers: dict[str, list[Any]] = {name: [] for name in ("ada", "nobody")}
    for name, found in answers.items():
        for _ in range(7):
            status, headers, told = await browser.send("POST", "/-/login", {"name": name, "password": "wrong"}, browser.own())
            found.append((status, told["code"], told["detail"], "retry-after" in headers, "set-cookie" in headers))
    assert answers["ada"] == answers["nobody"]
    assert [each[0] for each in answers["ada"]] == [401] * 5 + [429] * 2
    status, _, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, browser.own())
    assert (status, told["code"]) == (429, "too_many_logins")
    session = await house.http()
    async with session.post("/-/people/ada/enable", json={}, headers=ADMIN) as answer:
        assert answer.status == 200
    assert (await browser.log_in(name="ada", password=GOOD))["id"] == "ada"
    house.gateway.running.telemetry.flush()
    assert b"login_refused" in b"".join(house.lines)
    assert GOOD.encode() not in b"".join(house.lines)


async def guessed(browser: Browser, *forwarded: str, name: str = "ada", times: int = 5) -> list[int]:
    """What a stranger's wrong passwords are answered with."""
    sent = [*browser.own(cookie=False), *(("X-Forwarded-For", each) for each in forwarded)]
    return [(await browser.send("POST", "/-/login", {"name": name, "password": "wrong password x"}, sent))[0] for _ in range(times)]


async def test_no_stranger_keeps_somebody_out_of_a_browser_that_they_have_logged_in_with(browser, house):
    """Known names are no weapon: wrong passwords every quarter of an hour, from the same address at that, do not keep approvers away."""
    await person(house)
    status, headers, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, browser.own())
    stranger, device = Browser(house), headers["set-cookie"][1].partition(";")[0]
    await browser.send("POST", "/-/logout", {}, browser.own(Cookie=headers["set-cookie"][0].partition(";")[0], X_Lockgate_Csrf=told["csrf"]))
    assert set(await guessed(stranger, times=40)) == {401, 429}  # the whole address is slowed down as well
    status, headers, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, browser.own())
    assert (status, told["code"], "set-cookie" in headers) == (429, "too_many_logins", False)
    browser.device = device
    assert (await browser.log_in(name="ada", password=GOOD))["id"] == "ada"
    bob = await guessed(browser, name="bob")  # it is known for Ada, and for nobody else
    assert set(bob) == {429}


async def test_behind_a_proxy_that_is_ours_strangers_lock_a_name_for_their_own_address(house):
    """And cannot say that they come from elsewhere: what they write into the header themselves stands before what the proxy adds."""
    await house.open(config=MEMORY + '[login]\nproxies = ["127.0.0.0/8"]\n')
    await person(house)
    browser = Browser(house)
    assert await guessed(browser, "203.0.113.9", times=7) == [401] * 5 + [429] * 2
    assert await guessed(browser, "198.51.100.7, 203.0.113.9", "10.0.0.1, 203.0.113.9", times=1) == [429]
    sent = [*browser.own(), ("X-Forwarded-For", "203.0.113.9, 198.51.100.7")]
    status, _, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, sent)
    assert (status, told["id"]) == (200, "ada")
    house.gateway.running.telemetry.flush()
    assert b"198.51.100.7" in b"".join(house.lines)


async def test_where_no_proxy_is_set_nobody_says_where_they_come_from(browser, house):
    await person(house)
    answers = [(await guessed(browser, f"203.0.113.{n}", times=1))[0] for n in range(7)]
    assert answers == [401] * 5 + [429] * 2


OTHER = "another good password"


async def changed_password(browser: Browser, current: str = GOOD, new: str = OTHER, **headers: Any) -> tuple[int, dict[str, list[str]], Any]:
    return await browser.send("POST", "/-/me/password", {"current": current, "new": new}, browser.own(**headers))


async def test_somebody_changes_their_own_password_and_their_other_logins_end(browser, house):
    await person(house, permission="view")
    await person(house, "bob")
    elsewhere, bob = Browser(house), Browser(house)
    await elsewhere.log_in(name="ada", password=GOOD)
    await bob.log_in(name="bob", password=GOOD)
    await browser.log_in(name="ada", password=GOOD)
    before = browser.cookie
    status, headers, told = await changed_password(browser)
    assert (status, told["id"], headers["cache-control"]) == (200, "ada", ["no-store"])
    browser.keep(headers, told)
    assert (await browser.me())[0] == 200
    assert (await elsewhere.me())[0] == 401
    assert (await browser.me(Cookie=before))[0] == 401  # whoever has copied the cookie is out too
    assert (await bob.me())[0] == 200
    assert (await browser.send("POST", "/-/logout", {}, browser.own()))[0] == 200  # with the token of the new login
    status, _, told = await browser.send("POST", "/-/login", {"name": "ada", "password": GOOD}, browser.own())
    assert (status, told["code"]) == (401, "unauthenticated")
    browser.device = headers["set-cookie"][1].partition(";")[0]
    await guessed(Browser(house), times=6)
    assert (await browser.log_in(name="ada", password=OTHER))["id"] == "ada"  # this browser is known with the new one as well
    session = await house.http()
    async with session.get("/-/people/ada", headers=ADMIN) as answer:
        history = (await answer.json())["history"]
    assert [(each["what"], each["author"], each["detail"]) for each in history][:1] == [("changed", "ada", {"password": True})]
    house.gateway.running.telemetry.flush()
    everything = json.dumps(history) + b"".join(house.lines).decode()
    assert "password_changed" in everything
    assert [secret for secret in (GOOD, OTHER, "argon2") if secret in everything] == []


async def test_a_program_changes_its_person_s_password_with_their_token(browser, house):
    await person(house)
    sent = {"Authorization": f"Bearer {await token_of(house, 'ada')}"}
    await browser.log_in(name="ada", password=GOOD)
    session = await house.http()
    async with session.post("/-/me/password", json={"current": GOOD, "new": OTHER}, headers=sent) as answer:
        told = await answer.json()
        assert (answer.status, told["via"], "csrf" in told, "Set-Cookie" in answer.headers) == (200, "token", False, False)
    assert (await browser.me())[0] == 401
    async with session.get("/-/me", headers=sent) as answer:
        assert answer.status == 200
    assert (await browser.log_in(name="ada", password=OTHER))["id"] == "ada"


async def test_a_wrong_current_password_counts_as_a_failed_login(browser, house):
    """A browser that somebody has left is no place to guess at its person's password."""
    await person(house)
    await browser.log_in(name="ada", password=GOOD)
    answers = [await changed_password(browser, current="wrong password x") for _ in range(6)]
    assert [status for status, _, _ in answers] == [400] * 5 + [429]
    assert (answers[0][2]["code"], answers[0][2]["pointer"], "retry-after" in answers[5][1]) == ("invalid_request", "/current", True)
    assert (await changed_password(browser))[0] == 429
    assert (await guessed(browser, times=1)) == [429]
    assert (await browser.me())[0] == 200  # whoever was logged in stays so
    assert len(await house.gateway.running.store.people.history("ada", 9)) == 1


@pytest.mark.parametrize(("body", "pointer"), [
    ({"current": GOOD, "new": "short"}, "/new"), ({"current": GOOD, "new": "x" * 257}, "/new"), ({"current": GOOD, "new": GOOD}, "/new"),
    ({"current": GOOD}, "/new"), ({"new": OTHER}, "/current"), ({"current": GOOD, "new": OTHER, "id": "bob"}, "/id"),
    ({"current": GOOD, "new": 7}, "/new"), ({"current": "x" * 1025, "new": OTHER}, "/current"), ({"current": "", "new": OTHER}, "/current")])
async def test_a_password_that_cannot_be_is_refused_and_not_repeated(browser, house, body, pointer):
    await person(house)
    await browser.log_in(name="ada", password=GOOD)
    status, _, told = await browser.send("POST", "/-/me/password", body, browser.own())
    assert (status, told["code"], told["pointer"]) == (400, "invalid_request", pointer)
    assert [word for word in (GOOD, OTHER, "short", "xxxx") if word in json.dumps(told)] == []
    assert (await browser.me())[0] == 200


@pytest.mark.parametrize("changed", [{"csrf": False}, {"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"cookie": False}], ids=str)
async def test_nobody_else_s_page_changes_a_password(browser, house, changed):
    await person(house)
    await browser.log_in(name="ada", password=GOOD)
    assert (await changed_password(browser, **changed))[0] in {401, 403}
    assert (await browser.log_in(name="ada", password=GOOD))["id"] == "ada"


async def test_where_there_is_no_password_none_is_changed(browser, house):
    """The admin token's is in the configuration, an identity provider's is its own; a first one is given by an admin."""
    await person(house, password=None)
    session = await house.http()
    for sent in (ADMIN, {"Authorization": f"Bearer {await token_of(house, 'ada')}"}):
        async with session.get("/-/me", headers=sent) as answer:
            assert (await answer.json())["password"] is False
        async with session.post("/-/me/password", json={"current": GOOD, "new": OTHER}, headers=sent) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "invalid_request")
    await browser.log_in(token="admin-token-of-the-tests")
    assert (await changed_password(browser))[0] == 400


async def test_of_two_changes_at_once_one_holds(browser, house):
    await person(house)
    await browser.log_in(name="ada", password=GOOD)
    both = [f"{OTHER} {n}" for n in range(2)]
    answers = await asyncio.gather(*(changed_password(browser, new=each) for each in both))
    assert sorted(status for status, _, _ in answers) in ([200, 400], [200, 401], [200, 409])
    right = [each for each, (status, _, _) in zip(both, answers, strict=True) if status == 200]
    assert (await browser.log_in(name="ada", password=right[0]))["id"] == "ada"


AGE = """
[[rule]]
id = "looked-at"
effect = "require_approval"
approvers = ['approver.login_age < duration("15m")']
"""


async def test_a_rule_may_want_somebody_who_has_just_logged_in(house, leaping):
    """An API token is no login, however new it is."""
    await house.open(config=MEMORY, policies=AGE, parts=Parts(clock=leaping))
    await person(house, permission="approve")
    house.tokens["ada"] = await token_of(house, "ada")
    session = await house.http()
    asked = {"model": "fast", "messages": [{"role": "user", "content": "say hello"}]}
    headers = {"Authorization": f"Bearer {house.key}", "Prefer": "respond-async"}
    async with session.post("/v1/chat/completions", json=asked, headers=headers) as answer:
        assert answer.status == 202
    ticket, browser = await house.ticket(), Browser(house)
    vote = {"verdict": "approve", "digest": ticket["digest"]}

    async def voted() -> int:
        return (await browser.send("POST", f"/-/approvals/{ticket['id']}/vote", vote, browser.own()))[0]

    await browser.log_in(name="ada", password=GOOD)
    leaping.leap(15 * 60)
    assert await voted() == 403
    await house.vote(ticket, "ada", status=403)
    await browser.log_in(name="ada", password=GOOD)
    assert await voted() == 200


CHANGE: tuple[str, str, Any] = ("POST", "/-/people/ada/disable", {})


@pytest.mark.parametrize("changed", [
    {"csrf": False}, {"X_Lockgate_Csrf": "wrong"}, {"X_Lockgate_Csrf": "\u00e4"}, {"origin": False}, {"Origin": "null"},
    {"Origin": "http://evil.example"}, {"Origin": "https://evil.example:8080"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "ftp://{host}"},
    {"Origin": "http://{host}.evil.example"}, {"Origin": "http://evil.example/{host}"}, {"Origin": "http://user@{host}"}, {"Origin": "{host}"},
    {"Host": "evil.example"}, {"Host": "evil.example:{port}"}, {"Host": "127.0.0.1.evil.example:{port}"}, {"Host": "localhost.evil.example"},
    {"Host": "127.0.0.1:1@evil.example"}, {"Host": "{host}@evil.example", "Origin": "http://{host}@evil.example"},
    {"Host": ":{port}"}, {"Host": "[::ffff:10.0.0.1]:{port}"}, {"Host": "rebound.example:{port}", "Origin": "http://rebound.example:{port}"},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
], ids=str)
async def test_a_change_with_a_cookie_is_refused_unless_the_gateway_s_own_page_sends_it(browser, house, changed):
    """Cross-site request forgery, and DNS rebinding."""
    await person(house)
    await browser.log_in(token="admin-token-of-the-tests")
    port = browser.host.rpartition(":")[2]
    given = {name: value.format(host=browser.host, port=port) if isinstance(value, str) else value for name, value in changed.items()}
    status, _, told = await browser.send(*CHANGE, browser.own(**given))
    assert (status, told["code"]) == (403, "browser_refused")
    session = await house.http()
    async with session.get("/-/people/ada", headers=ADMIN) as answer:
        assert (await answer.json())["person"]["state"] == "active"
    assert (await browser.send(*CHANGE, browser.own()))[0] == 200


@pytest.mark.parametrize("extra", [
    [("Origin", "http://evil.example")], [("X-Lockgate-Csrf", "guess")], [("Cookie", "lockgate_login=lgs_" + "x" * 48)]])
async def test_what_is_said_twice_counts_for_nothing(browser, house, extra):
    await person(house)
    await browser.log_in(token="admin-token-of-the-tests")
    for headers in ([*browser.own(), *extra], [*extra, *browser.own()]):
        assert (await browser.send(*CHANGE, headers))[0] in {400, 401, 403}


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "127.0.0.2", "gate.example", "gate.example:8443", "other.example"])
async def test_the_gateway_s_own_names_are_its_own(house, host):
    await house.open(config=MEMORY + '[login]\npublic_url = "https://Gate.example"\nhosts = ["other.example"]\n')
    browser = Browser(house)
    status, headers, told = await browser.send("POST", "/-/login", {"token": "admin-token-of-the-tests"}, browser.own())
    assert status == 200
    assert headers["set-cookie"][0].endswith("; Secure")  # where people come through https
    browser.cookie, browser.csrf = headers["set-cookie"][0].partition(";")[0], told["csrf"]
    host = host.format(port=browser.host.rpartition(":")[2])
    for origin in (f"http://{host}", "https://gate.example"):  # a proxy in front speaks TLS, and may pass the name on or not
        assert (await browser.send("POST", "/-/logout", {}, browser.own(Host=host, Origin=origin, csrf=False)))[2]["code"] == "browser_refused"
        assert (await browser.me(Host=host, Origin=origin))[0] == 200


@pytest.mark.parametrize("path", ["/-/me", "/-/calls", "/-/people", "/-/events"])
async def test_what_a_rebound_page_reads_is_nothing(browser, path):
    await browser.log_in(token="admin-token-of-the-tests")
    status, _, told = await browser.send("GET", path, None, browser.own(Host="rebound.example", Origin=""))
    assert (status, told["code"]) == (403, "browser_refused")


async def test_the_page_is_not_shown_by_a_name_that_is_not_ours_and_opens_from_a_link(browser):
    assert (await browser.send("GET", "/-/admin", None, [("Host", "rebound.example")]))[0] == 403
    status, headers, _ = await browser.send("GET", "/-/admin", None, [("Host", browser.host), ("Sec-Fetch-Site", "cross-site")])
    assert (status, "set-cookie" in headers) == (200, False)


@pytest.mark.parametrize("headers", [
    [("X-HTTP-Method-Override", "POST")], [("X-Method-Override", "POST"), ("X-HTTP-Method", "POST")]])
@pytest.mark.parametrize("path", ["/-/people/ada/disable", "/-/people/ada/disable?_method=POST", "/-/logout"])
async def test_a_get_changes_nothing_whatever_it_says_it_is(browser, house, path, headers):
    await person(house)
    await browser.log_in(token="admin-token-of-the-tests")
    assert (await browser.send("GET", path, None, [*browser.own(), *headers]))[0] == 405
    assert (await browser.send("HEAD", path, None, [*browser.own(), *headers]))[0] == 405
    assert (await browser.me())[0] == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_form_of_a_foreign_page_logs_nobody_in(browser, content_type):
    """A page may send forms anywhere, but no JSON: else it could log its visitors in as somebody of its choice."""
    sent = browser.own(Content_Type=content_type, Origin="http://evil.example", Sec_Fetch_Site="cross-site")
    status, headers, _ = await browser.send("POST", "/-/login", {"token": "admin-token-of-the-tests"}, sent)
    assert (status, "set-cookie" in headers) == (403, False)
    sent = [("Host", browser.host), ("Content-Type", content_type)]
    assert (await browser.send("POST", "/-/login", {"token": "admin-token-of-the-tests"}, sent))[0] == 400


async def test_no_answer_lets_a_foreign_page_read_it(browser):
    sent = [("Host", browser.host), ("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")]
    for method, path in (("OPTIONS", "/-/login"), ("OPTIONS", "/-/people"), ("GET", "/-/login/methods")):
        _, headers, _ = await browser.send(method, path, None, sent)
        assert [name for name in headers if name.startswith("access-control")] == []


async def test_a_wrong_bearer_is_not_helped_out_by_a_cookie(browser):
    await browser.log_in(token="admin-token-of-the-tests")
    status, told = await browser.me(Authorization="Bearer wrong")
    assert (status, told["code"]) == (401, "unauthenticated")


GETS = ["/-/calls", "/-/budgets", "/-/costs", "/-/routes", "/-/breakers", "/-/approvals", "/-/sessions", "/-/keys"]
CHANGES: list[tuple[str, str, Any]] = [("POST", "/-/reload", {}), ("POST", "/-/breakers", {}), ("PUT", "/-/budgets/x", {}), ("DELETE", "/-/budgets/x", {})]
ADMINISTRATION: list[tuple[str, str, Any]] = [("GET", "/-/people", None), ("POST", "/-/people", {}), ("POST", "/-/people/x", {}), ("POST", "/-/people/x/token", {}),
                  ("POST", "/-/people/x/enable", {}), ("POST", "/-/people/x/disable", {}), ("POST", "/-/keys", {}), ("GET", "/-/people/x", None)]


@pytest.mark.parametrize("permission", PERMISSIONS)
@pytest.mark.usefixtures("browser")
async def test_a_permission_lets_people_do_what_it_is_for_and_no_more(house, permission):
    await person(house, permission=permission)
    sent = {"Authorization": f"Bearer {await token_of(house, 'ada')}"}
    session = await house.http()

    async def permitted(method: str, path: str, body: Any) -> bool:
        async with session.request(method, path, json=body, headers=sent) as answer:
            told = await answer.json(content_type=None)
            assert answer.status not in {401, 500}
            return bool(answer.status != 403 or told["code"] != "not_permitted")

    assert [await permitted("GET", path, None) for path in GETS] == [True] * len(GETS)
    assert [await permitted(*change) for change in CHANGES] == [permission in {"operate", "admin"}] * len(CHANGES)
    assert [await permitted(*change) for change in ADMINISTRATION] == [permission == "admin"] * len(ADMINISTRATION)


@pytest.mark.parametrize("permission", PERMISSIONS)
@pytest.mark.usefixtures("browser")
async def test_nobody_gives_more_than_they_have(house, permission):
    """Whatever somebody asks for, of themselves or of others: no account may do more afterwards than they may."""
    await person(house, permission=permission)
    await person(house, "bob", "view")
    sent = {"Authorization": f"Bearer {await token_of(house, 'ada')}"}
    session = await house.http()
    for wanted in PERMISSIONS:
        for path, body in (("/-/people/ada", {"permission": wanted}), ("/-/people/bob", {"permission": wanted}),
                           ("/-/people", {"id": f"new-{wanted}", "permission": wanted})):
            async with session.post(path, json=body, headers=sent) as answer:
                assert answer.status in {200, 403}
        found = await house.gateway.running.store.people.all()
        assert max(PERMISSIONS.index(each.permission) for each in found) <= PERMISSIONS.index(permission)
        if permission == "admin":  # who gave it away takes it back from outside
            await house.gateway.running.store.people.change("ada", lambda each: replace(each, permission="admin"), Stamped("x", "tests", 1))


async def test_the_author_of_a_change_is_who_made_it_whatever_a_header_says(browser, house):
    await person(house)
    sent = {"Authorization": f"Bearer {await token_of(house, 'ada')}", "X-Lockgate-Author": "somebody else"}
    session = await house.http()
    async with session.put("/-/budgets/fresh", json={"scope": "all", "limit": "1"}, headers=sent) as answer:
        assert ((await answer.json())["change"]["author"], answer.status) == ("ada", 200)
    await browser.log_in(token="admin-token-of-the-tests")
    _, _, told = await browser.send("PUT", "/-/budgets/fresh", {"scope": "all", "limit": "2"}, browser.own(X_Lockgate_Author="grace"))
    assert told["change"]["author"] == "admin"


async def test_people_are_made_changed_disabled_and_enabled_and_all_of_it_is_on_record(browser, house):
    made = await person(house, roles=["finance", "finance"], teams=["blue"], email="ada@example.org")
    assert made == {"id": "ada", "name": "Ada", "permission": "operate", "roles": ["finance"], "teams": ["blue"], "email": "ada@example.org",
                    "state": "active", "password": True, "token": False, "oidc": False, "created": made["created"], "disabled": None}
    session = await house.http()

    async def do(path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with session.post(path, json=body, headers={**ADMIN, **headers}) as answer:
            return answer.status, await answer.json(content_type=None)

    assert (await do("/-/people", {"id": "ada", "permission": "view"}))[0] == 409
    status, told = await do("/-/people/ada/token", {})
    assert (status, told["token"][:4], told["person"]["token"]) == (200, "lgp_", True)
    await browser.log_in(name="ada", password=GOOD)
    assert (await do("/-/people/ada", {"permission": "view", "name": "Ada L."}, **{"X-Lockgate-Author": "grace"}))[0] == 200
    assert (await browser.me())[1]["permission"] == "view"
    assert (await do("/-/people/ada", {"password": "another good password"}))[0] == 200
    assert (await browser.me())[0] == 401  # with another password the logins are over
    await browser.log_in(name="ada", password="another good password")
    assert (await do("/-/people/ada/disable", {}))[1]["person"]["state"] == "disabled"
    assert (await browser.me())[0] == 401
    async with session.get("/-/me", headers={"Authorization": f"Bearer {told['token']}"}) as answer:
        assert answer.status == 401
    assert (await do("/-/people/ada/enable", {}))[1]["person"]["state"] == "active"
    assert (await browser.me())[0] == 401  # what was ended does not come back
    async with session.get("/-/people/ada", headers=ADMIN) as answer:
        history = (await answer.json())["history"]
    assert [(each["what"], each["author"]) for each in history] == [
        ("enabled", "admin"), ("disabled", "admin"), ("changed", "admin"), ("changed", "admin (grace)"), ("token", "admin"), ("created", "admin")]
    assert [each["detail"] for each in history[2:4]] == [{"password": True}, {"name": "Ada L.", "permission": "view"}]
    house.gateway.running.telemetry.flush()
    everything = json.dumps(history) + b"".join(house.lines).decode()
    assert "person_created" in everything
    assert [secret for secret in (GOOD, "another good password", told["token"], "argon2") if secret in everything] == []


@pytest.mark.parametrize("body", [
    {"id": "Ada", "permission": "view"}, {"id": "", "permission": "view"}, {"id": "admin", "permission": "view"}, {"id": "a:b", "permission": "view"},
    {"id": "a" * 65, "permission": "view"}, {"id": "oidc:x@y", "permission": "view"}, {"id": "ada"}, {"id": "ada", "permission": "root"},
    {"id": "ada", "permission": "view", "password": "short"}, {"id": "ada", "permission": "view", "name": "a\u202eb"},
    {"id": "ada", "permission": "view", "roles": [""]}, {"id": "ada", "permission": "view", "roles": ["x"] * 51},
    {"id": "ada", "permission": "view", "teams": "blue"}, {"id": "ada", "permission": "view", "email": "x" * 201},
    {"id": "ada", "permission": "view", "name": "lgp_" + "a" * 12 + "_" + "b" * 32}, {"id": "ada", "permission": "view", "subject": "x"}, {"id": "ada", "permission": "view", "password": "x" * 257},
])
@pytest.mark.usefixtures("browser")
async def test_an_account_that_cannot_be_is_not_made(house, body):
    session = await house.http()
    async with session.post("/-/people", json=body, headers=ADMIN) as answer:
        told = await answer.json(content_type=None)
    assert (answer.status, told["code"]) == (400, "invalid_request")
    assert "short" not in told["detail"]
    assert await house.gateway.running.store.people.all() == []


@pytest.mark.parametrize("path", ["/-/people/nobody", "/-/people/nobody/token", "/-/people/nobody/disable", "/-/people/nobody/enable", "/-/people/%00"])
@pytest.mark.usefixtures("browser")
async def test_of_nobody_there_is_no_account(house, path):
    session = await house.http()
    async with session.post(path, json={"name": "x"}, headers=ADMIN) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "unknown_url")


async def test_whoever_asks_may_know_how_one_logs_in(browser):
    assert (await browser.send("GET", "/-/login/methods", None, browser.own(cookie=False)))[2] == {"password": True, "oidc": None}
