"""One's own account: another password, with a mouse, with keys alone and on a phone."""

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

PASSWORD, OTHER = "several words are good", "other words are good too"
PHONE = (360, 740)


async def fill(page, current=PASSWORD, fresh=OTHER, again=None):
    await page.get_by_label("Current password").fill(current)
    await page.get_by_label("New password").fill(fresh)
    await page.get_by_label("The new one once more").fill(fresh if again is None else again)


async def test_somebody_changes_their_password_and_goes_on_where_they_are(desk):
    await desk.open()
    await desk.person("mara", roles=["finance"])
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page, elsewhere = await desk.sit_down("mara"), await desk.sit_down("mara")
    await page.get_by_role("link", name="Mara: your account").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Your account")
    await expect(page.locator(".figures")).to_contain_text("finance")
    await fill(page)
    await page.get_by_role("button", name="Change it").click()
    await expect(page.locator("#notes")).to_contain_text("Your password is changed.")
    await expect(page.get_by_label("Current password")).to_have_value("")
    await elsewhere.evaluate("location.hash = '#/calls'")
    await expect(elsewhere.get_by_text("Your login has ended.")).to_be_visible()
    await expect(page.locator(".live")).to_have_text("Live")
    await page.evaluate("place => { location.hash = place }", f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Approve").click()  # the token of the new login is in force
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    async with desk.http.post("/-/login", json={"name": "mara", "password": OTHER}) as answer:
        assert answer.status == 200
    async with desk.http.post("/-/login", json={"name": "mara", "password": PASSWORD}) as answer:
        assert answer.status == 401


async def test_what_is_wrong_is_told_beside_it_and_nobody_is_logged_out(desk):
    await desk.open()
    await desk.person("mara")
    page = await desk.sit_down("mara", at="#/account")
    alert, change = page.get_by_role("alert"), page.get_by_role("button", name="Change it")
    await fill(page, again="another one of these")
    await change.click()
    await expect(alert).to_have_text("The new password is not the same twice.")
    await expect(page.get_by_label("The new one once more")).to_be_focused()
    await fill(page, current="not the right one")
    await change.click()
    await expect(alert).to_have_text("This is not your current password.")
    await expect(page.get_by_label("Current password")).to_be_focused()
    await fill(page, fresh=PASSWORD)
    await change.click()
    await expect(alert).to_contain_text("the one that you have")
    await expect(page.locator("#door")).to_be_empty()


async def test_keys_alone_do_it_on_a_phone_too_and_axe_finds_nothing(desk, axe):
    await desk.open()
    await desk.person("mara")
    page = await desk.sit_down("mara", size=PHONE, dark=True)
    menu = page.get_by_role("button", name="Menu")
    await menu.focus()
    await page.keyboard.press("Enter")
    link = page.get_by_role("link", name="Mara: your account")
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await link.evaluate("node => node === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await expect(link).to_be_hidden()
    assert await axe(page) == []
    assert await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    for text in (PASSWORD, OTHER, OTHER):
        await page.keyboard.press("Tab")
        await page.keyboard.type(text)
    await page.keyboard.press("Enter")
    await expect(page.locator("#notes")).to_contain_text("Your password is changed.")
    assert await axe(page) == []


async def test_whoever_has_no_password_is_told_where_one_comes_from(desk):
    await desk.open()
    page = await desk.sit_down(at="#/account")
    await expect(page.locator("#main")).to_contain_text("The admin token is nobody's own")
    assert await page.get_by_label("Current password").count() == 0


async def test_a_login_that_ends_meanwhile_changes_no_password(desk):
    await desk.open()
    await desk.person("mara")
    page = await desk.sit_down("mara", at="#/account")
    await fill(page)
    await page.context.clear_cookies()
    await page.get_by_role("button", name="Change it").click()
    await desk.log_in(page, "mara")
    await expect(page.get_by_role("alert")).to_contain_text("nothing was changed")
