"""What the page lets people do it lets them do on a phone and from the keyboard; and what somebody slips into it does not run."""

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHONE = (360, 740)


async def shows(page, ticket):
    await page.evaluate("id => { location.hash = `#/approvals/${id}` }", ticket)
    await page.locator(".ticket .gist, .exact").first.wait_for()


async def test_on_a_phone_one_edits_grants_and_denies(desk):
    await desk.open()
    page = await desk.sit_down(size=PHONE)
    first, second, third = [await desk.hold(amount=amount, payee=f"P{amount}") for amount in (3000, 2000, 4000)]
    await page.locator(f"li[data-id='{first}'] a").click()
    await page.get_by_role("button", name="More ways to decide").click()
    await page.get_by_role("button", name="Edit the arguments").click()
    await page.get_by_label("Arguments").fill('{"amount": 2500, "payee": "P3000"}')
    await page.get_by_role("button", name="Propose and approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    await shows(page, second)
    await page.locator(".exact", has_text="P2000").wait_for()
    await page.get_by_role("button", name="More ways to decide").click()
    await page.get_by_text("Allow more like it").click()
    await page.get_by_label("How many").fill("2")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    assert [each["uses"] for each in (await desk.admin("GET", "/-/grants"))["grants"]] == [2]
    await shows(page, third)
    await page.locator(".exact", has_text="P4000").wait_for()
    await page.get_by_label("Comment").fill("Not this one.")
    await page.get_by_role("button", name="Deny").click()
    await expect(page.locator(".marks .chip").first).to_have_text("denied")


async def tab_to(page, start):
    for _ in range(60):
        await page.keyboard.press("Tab")
        shown = await page.evaluate("(document.activeElement.labels?.[0]?.innerText || document.activeElement.innerText || '').trim()")
        if shown.startswith(start):
            return
    raise AssertionError(f"no Tab leads to {start}")


async def test_with_keys_alone_one_edits_and_makes_a_grant(desk):
    await desk.open()
    first = await desk.hold(amount=2000, payee="A")
    page = await desk.sit_down(at=f"#/approvals/{first}")
    await page.locator(".exact").wait_for()
    await page.keyboard.press("e")
    await expect(page.get_by_label("Arguments")).to_be_focused()
    await page.keyboard.press("Control+A")
    await page.keyboard.type('{"amount": 2500, "payee": "A"}')
    await expect(page.get_by_role("button", name="Propose and approve")).to_be_enabled()
    await tab_to(page, "Propose and approve")
    await page.keyboard.press("Enter")
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    second = await desk.hold(amount=3000, payee="B")
    await shows(page, second)
    await page.locator(".exact", has_text="B").wait_for()
    await page.get_by_text("Allow more like it").wait_for()
    await tab_to(page, "Allow more like it")
    await page.keyboard.press("Enter")
    await tab_to(page, "How many")
    await page.keyboard.type("3")
    await tab_to(page, "Approve")
    await page.keyboard.press("Enter")
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    assert [each["uses"] for each in (await desk.admin("GET", "/-/grants"))["grants"]] == [3]


async def test_what_somebody_slips_into_the_page_does_not_run_and_leads_nowhere(desk):
    """As if a text had become markup after all: the content security policy is the second wall."""
    await desk.open()
    page = await desk.sit_down()
    tried = await page.evaluate(_SLIPPED)
    await page.wait_for_function("window.reported.some((each) => each.startsWith('img-src'))")
    assert tried == dict.fromkeys(("script", "markup", "handler", "elsewhere"), "TypeError") | {"style": False}
    assert await page.evaluate("window.hacked") is None
    broken = {each.split(" ")[0] for each in await page.evaluate("window.reported")}
    assert {"require-trusted-types-for", "style-src-attr", "img-src", "form-action"} <= broken
    await page.evaluate("window.reported = []")
    desk.watched.wrong.clear()  # what the policy has just refused


_SLIPPED = """
() => {
  const tell = (work) => { try { return work(); } catch (error) { return error.name; } };
  const added = (name, fields) => document.body.appendChild(Object.assign(document.createElement(name), fields));
  tell(() => added("img", { src: "http://127.0.0.1:9/x.png" }));
  tell(() => added("form", { action: "http://127.0.0.1:9/", method: "post" }).submit());
  return {
    script: tell(() => added("script", { text: "window.hacked = 1" })),
    markup: tell(() => { document.querySelector("#main").innerHTML = "<img src=x onerror='window.hacked=1'>"; }),
    handler: tell(() => document.createElement("div").setAttribute("onclick", "window.hacked=1")),
    elsewhere: tell(() => added("script", { src: "http://127.0.0.1:9/x.js" })),
    style: tell(() => { const node = added("div", {}); node.setAttribute("style", "color: rgb(1, 2, 3)"); return getComputedStyle(node).color === "rgb(1, 2, 3)"; }),
  };
}
"""
