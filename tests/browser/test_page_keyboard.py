"""Everything can be done without a mouse, and without looking."""

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_approval_is_found_read_and_approved_with_keys_alone(desk):
    await desk.open()
    first = await desk.hold(amount=2000, payee="First")
    second = await desk.hold(amount=3000, payee="Second")
    page = await desk.visit()
    await page.get_by_label("Name").wait_for()
    await page.keyboard.press("Tab")  # name, password, log in, the token's fold
    for _ in range(4):
        if await page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
        await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.type("admin-token-of-the-tests")
    await page.keyboard.press("Enter")
    await page.locator(f"li[data-id='{second}']").wait_for()

    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("k")
    await expect(page.locator(f"li[data-id='{first}'] a")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await page.keyboard.press("a")
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Approve")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert (await desk.ticket(first))["state"] == "pending"
    await page.keyboard.press("a")
    await page.keyboard.press("Enter")
    await expect(page.locator(".marks .chip").first).to_have_text("approved")

    await page.keyboard.press("u")
    await page.locator(f"li[data-id='{second}'] a").focus()
    await page.keyboard.press("Enter")
    await page.locator(".ticket .gist", has_text="Second").wait_for()
    await page.keyboard.press("d")
    await page.keyboard.press("Enter")
    await expect(page.locator(".marks .chip").first).to_have_text("denied")


async def test_a_key_never_decides_what_is_only_listed(desk):
    """Nothing is approved that was not shown: on a row of the list the key opens it."""
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="First")
    page = await desk.sit_down()
    await page.keyboard.press("j")
    await page.keyboard.press("a")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("pay_invoice")
    assert (await desk.ticket(ticket))["state"] == "pending"


async def test_keys_are_explained_and_can_be_switched_off_for_good(desk):
    await desk.open()
    page = await desk.sit_down()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_contain_text("approve")
    await page.get_by_label("Single keys do this").uncheck()
    await page.keyboard.press("Escape")
    await page.keyboard.press("2")
    await page.reload()
    await page.locator("#main h1").wait_for()
    await page.keyboard.press("2")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Approvals")
    await page.keyboard.press("?")  # help is always there
    await page.get_by_label("Single keys do this").check()
    await page.keyboard.press("Escape")
    await page.keyboard.press("2")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sessions")


async def test_keys_typed_into_a_field_are_text(desk):
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="First")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_label("Comment").press_sequentially("a d u?")
    await expect(page.get_by_label("Comment")).to_have_value("a d u?")
    assert await page.get_by_role("dialog").count() == 0


async def test_the_content_is_one_key_away_and_what_has_the_focus_is_seen(desk):
    await desk.open()
    page = await desk.sit_down()
    skip = page.get_by_role("link", name="Skip to the content")
    await skip.focus()
    await expect(skip).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.keyboard.press("Tab")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "solid2px"


async def test_what_arrives_is_said_to_whoever_does_not_look(desk):
    await desk.open()
    page = await desk.sit_down()
    await page.get_by_role("heading", name="Nothing waits for you").wait_for()
    await desk.hold(amount=2000, payee="First")
    await expect(page.locator("#spoken")).to_have_text("1 more to decide, 1 in all.")
    assert await page.locator("#spoken").get_attribute("aria-live") == "polite"
