"""Who is let in, what happens when a login ends, and what foreign pages can do: nothing."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def logged_out(page):
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_label("Name").wait_for()


async def test_a_wrong_password_is_told_and_nothing_is_shown(desk):
    await desk.open()
    await desk.person("mara")
    page = await desk.visit()
    await page.get_by_label("Name").fill("mara")
    await page.get_by_label("Password").fill("not the right one")
    await page.get_by_role("button", name="Log in", exact=True).click()
    await expect(page.get_by_role("alert")).not_to_be_empty()
    await expect(page.locator("#frame")).to_be_hidden()
    await desk.log_in(page, "mara")
    await expect(page.get_by_text("Mara")).to_be_visible()
    cookies = await page.context.cookies()
    assert sorted((each["name"], each["httpOnly"], each["sameSite"], each["path"]) for each in cookies) == [
        ("lockgate_device", True, "Strict", "/-/"), ("lockgate_login", True, "Strict", "/-/")]


async def test_whoever_is_logged_in_stays_so_and_logs_out(desk):
    await desk.open()
    page = await desk.sit_down()
    await page.reload()
    await expect(page.get_by_role("heading", name="Approvals", exact=True)).to_be_visible()
    await logged_out(page)
    assert await page.context.cookies() == []


async def test_strangers_who_guess_at_a_name_do_not_keep_its_person_out_of_their_own_browser(desk):
    await desk.open()
    await desk.person("mara")
    page = await desk.sit_down("mara")
    await logged_out(page)
    assert [each["name"] for each in await page.context.cookies()] == ["lockgate_device"]
    for _ in range(40):
        async with desk.http.post("/-/login", json={"name": "mara", "password": "a guess of a stranger"}) as answer:
            assert answer.status in (401, 429)
    await desk.log_in(page, "mara")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Approvals")


async def requests_of(page, path):
    """The headers of what the page asks for at a path from now on."""
    seen = []
    page.on("request", lambda request: seen.append(request) if path in request.url else None)
    return seen


async def test_what_the_page_asks_by_itself_says_so_and_whoever_reads_or_writes_is_not_taken_for_gone(desk):
    """A login ends for who is not there any more, also where the page stands open and shows what is new."""
    await desk.open()
    page = await desk.visit()
    await page.clock.install()
    await page.reload()
    await desk.log_in(page)
    asked = await requests_of(page, "/-/approvals?")
    ticket = await desk.hold(amount=2000, payee="First")
    await page.locator(f"li[data-id='{ticket}']").wait_for()
    assert {"x-lockgate-background" in each.headers for each in asked} == {False}  # somebody has just logged in
    await page.clock.fast_forward(61_000)
    asked.clear()
    ticket = await desk.hold(amount=3000, payee="Second")
    await page.clock.fast_forward(2_000)
    await page.locator(f"li[data-id='{ticket}']").wait_for()
    assert {"x-lockgate-background" in each.headers for each in asked} == {True}
    async with page.expect_request("**/-/me") as told:  # nothing is asked for here, but somebody is there
        await page.keyboard.press("Shift")
        await page.clock.fast_forward(2_000)
    assert "x-lockgate-background" not in (await told.value).headers


async def test_when_a_login_ends_one_logs_in_again_and_is_where_one_was(desk):
    await desk.open()
    await desk.person("mara")
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down("mara", at=f"#/approvals/{ticket}")
    await page.get_by_label("Comment").fill("Half a sentence")
    await page.context.clear_cookies()
    await page.get_by_role("button", name="Approve").click()
    await expect(page.get_by_text("Your login has ended.")).to_be_visible()
    await desk.log_in(page, "mara")
    assert (await desk.ticket(ticket))["state"] == "pending"  # what was refused is not done behind anybody's back
    await expect(page.get_by_label("Comment")).to_have_value("Half a sentence")
    assert page.url.endswith(f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")


async def test_a_login_that_is_taken_away_is_noticed_without_a_click(desk):
    """The stream of changes ends with the login; the page asks why."""
    await desk.open()
    await desk.person("mara")
    page = await desk.sit_down("mara")
    await expect(page.locator(".live")).to_have_text("Live")
    await desk.admin("POST", "/-/people/mara/disable", {})
    await page.evaluate("location.hash = '#/calls'")
    await expect(page.get_by_text("Your login has ended.")).to_be_visible()


async def test_the_page_is_reached_by_names_of_the_gateway_alone(desk):
    """DNS rebinding: a foreign name that means this address gets no page."""
    await desk.open()
    page = await (await desk.chromium.new_context()).new_page()
    port = desk.gateway.url.rpartition(":")[2]
    answer = await page.goto(f"http://rebound.test:{port}/-/admin")
    assert answer is not None
    assert answer.status == 403
    assert "Host" in await answer.text()
    await page.context.close()


async def test_a_foreign_page_can_neither_frame_the_page_nor_act_through_its_cookie(desk):
    """From another port of this very machine, which is the same site: the cookie is sent along, and does not help."""
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down()
    digest = (await desk.ticket(ticket))["digest"]

    async def foreign(request: web.Request) -> web.Response:
        _ = request
        return web.Response(text=f'<!doctype html><iframe src="{desk.gateway.url}/-/admin"></iframe>', content_type="text/html")

    app = web.Application()
    app.router.add_get("/", foreign)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    desk.stack.push_async_callback(server.close)
    attacker = await page.context.new_page()
    await attacker.goto(str(server.make_url("/")))
    tried = await attacker.evaluate(_ATTACK, [desk.gateway.url, ticket, digest])
    assert tried == {"read": "TypeError", "vote": "opaque", "json": "TypeError"}
    assert (await desk.ticket(ticket))["votes"] == []
    assert await attacker.frames[1].evaluate("document.querySelector('#frame')") is None
    await attacker.close()
    desk.watched.wrong.clear()  # what the foreign page was refused


_ATTACK = """
async ([url, ticket, digest]) => {
  const vote = { method: "POST", credentials: "include", body: JSON.stringify({ verdict: "approve", digest }) };
  const tell = (work) => work.then((answer) => answer.type, (error) => error.name);
  return {
    read: await tell(fetch(`${url}/-/approvals`, { credentials: "include" })),
    vote: await tell(fetch(`${url}/-/approvals/${ticket}/vote`, { ...vote, mode: "no-cors" })),
    json: await tell(fetch(`${url}/-/approvals/${ticket}/vote`, { ...vote, headers: { "Content-Type": "application/json" } })),
  };
}
"""


async def test_the_button_of_the_identity_provider_leads_there_and_back_to_where_one_was(desk, unserved_provider):
    provider = unserved_provider

    async def authorize(request):
        raise web.HTTPFound(f"{request.query['redirect_uri']}?{provider.authorize(str(request.url))}")

    provider.answers["/authorize"] = authorize
    provider.public = True
    server = TestServer(provider.app())
    await server.start_server()
    desk.stack.push_async_callback(server.close)
    provider.url = str(server.make_url("")).rstrip("/")
    await desk.open(config=f"""
[oidc]
issuer = "{provider.url}"
client_id = "lockgate"
private = true
label = "Log in with Acme"
permissions = {{ approver = "approve" }}
""")
    provider.now_s = lambda: desk.gateway.running.clock.now_ns() / 1e9
    ticket = await desk.hold(amount=2000, payee="Nordwind")
    page = await desk.visit(at=f"#/approvals/{ticket}")
    await page.get_by_role("link", name="Log in with Acme").click()
    await page.locator(".exact", has_text="Nordwind").wait_for()
    await expect(page.get_by_text("Ada", exact=True)).to_be_visible()
    (cookie,) = [each for each in await page.context.cookies() if each["name"] == "lockgate_login"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/-/")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    (vote,) = (await desk.ticket(ticket))["votes"]
    assert (vote["name"], vote["method"]) == ("Ada", "oidc")
    (asked,) = desk.watched.wrong  # somebody went there
    assert asked.startswith(f"asked {provider.url}/authorize?")
    desk.watched.wrong.clear()
