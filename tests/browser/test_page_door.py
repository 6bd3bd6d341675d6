"""Who is let in, what happens when a login ends, and what foreign pages can do: nothing."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    assert [(each["name"], each["httpOnly"], each["sameSite"], each["path"]) for each in cookies] == [("lockgate_login", True, "Strict", "/-/")]


async def test_whoever_is_logged_in_stays_so_and_logs_out(desk):
    await desk.open()
    page = await desk.sit_down()
    await page.reload()
    await expect(page.get_by_role("heading", name="Approvals", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("Name")).to_be_visible()
    assert await page.context.cookies() == []


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
