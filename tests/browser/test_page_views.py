"""Every view: it shows what it is for, teaches where there is nothing, fits a phone, and axe-core finds nothing serious."""

import asyncio
import re

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

VIEWS = ("approvals", "sessions", "calls", "spend", "budgets", "breakers", "keys", "rules", "people", "grants", "account")
DESKTOP, PHONE = (1280, 860), (360, 740)
BUDGETS = '[budgets.team-day]\nscope = "team"\nlimit = "5.00"\nwindow = "day"\n'


async def settled(page):
    await page.locator("#main:not([aria-busy]) h1").wait_for()


async def lived_in(desk):
    """A gateway with something to show in every view; the ids of what was held."""
    await desk.open(config=BUDGETS)
    await desk.person("mara", roles=["finance"])
    await desk.say("Hello", session="invoice-run-7")
    await desk.say("my secret", session="invoice-run-7")
    first = await desk.hold(session="invoice-run-7", amount=1500, payee="Kontor AG", reference="A-1")
    digest = (await desk.ticket(first))["digest"]
    await desk.admin("POST", f"/-/approvals/{first}/vote", {
        "verdict": "approve", "digest": digest, "comment": "Fine.", "grant": {"for": "1h", "uses": 3, "condition": "double(tool.args.amount) < 1200.0"}})
    second = await desk.hold(session="invoice-run-7", amount=12400, payee="Nordwind Logistik GmbH", reference="INV-2026-1187")
    third = await desk.hold(tool="drop_table", table="orders_2019")
    return first, second, third


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, True)], ids=["desktop-light", "phone-dark"])
async def test_no_view_has_a_serious_fault_of_accessibility_or_runs_over_its_edge(desk, axe, size, dark):
    _first, second, third = await lived_in(desk)
    call = (await desk.admin("GET", "/-/calls?limit=1"))["calls"][0]["id"]
    page = await desk.visit(size, dark=dark)
    await page.get_by_label("Name").wait_for()
    found = {"login": await axe(page)}
    await desk.log_in(page)
    for place in (*VIEWS, f"approvals/{second}", f"approvals/{third}", "sessions/invoice-run-7", f"calls/{call}"):
        await page.evaluate("place => { location.hash = `#/${place}` }", place)
        await settled(page)
        await page.evaluate("document.querySelectorAll('#main details').forEach((each) => { each.open = true })")
        found[place] = await axe(page)
        wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{place} is {wide} px too wide"
    assert {place: faults for place, faults in found.items() if faults} == {}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_dialogs_menus_and_editors_have_no_serious_fault_either(desk, axe, dark):
    _first, second, _third = await lived_in(desk)
    page = await desk.sit_down(at=f"#/approvals/{second}", dark=dark)
    await page.get_by_role("button", name="Edit the arguments").click()
    faults = {"editor": await axe(page)}
    await page.get_by_role("button", name="Leave it as it was").click()
    await page.keyboard.press("a")
    faults["question"] = await axe(page)
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    faults["help"] = await axe(page)
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.get_by_role("button", name="Menu").click()
    faults["menu"] = await axe(page)
    assert {name: found for name, found in faults.items() if found} == {}


async def test_the_call_of_an_approval_that_is_waited_for_is_said_to_wait(desk):
    """It is on record once it has ended; then the same place shows it, and the grant that the next one went by."""
    await desk.open()
    call = asyncio.create_task(desk.present(amount=1500, payee="Kontor AG"))
    page = await desk.sit_down()
    await page.get_by_role("link", name="Kontor AG").first.click()
    await page.get_by_role("link", name="The call", exact=True).click()
    await expect(page.get_by_role("heading", name="This call still waits")).to_be_visible()
    await page.get_by_role("link", name="its approval").click()
    await settled(page)
    (waits,) = (await desk.admin("GET", "/-/approvals"))["approvals"]
    await desk.admin("POST", f"/-/approvals/{waits['id']}/vote", {"verdict": "approve", "digest": waits["digest"], "grant": {"for": "1h"}})
    assert (await call)[0] == 200
    await page.get_by_role("link", name="The call", exact=True).click()
    await expect(page.get_by_role("heading", name="Call on pay_invoice")).to_be_visible()
    assert (await desk.present(amount=1600, payee="Kontor AG"))[0] == 200
    (grant,) = (await desk.admin("GET", "/-/grants"))["grants"]
    await page.evaluate("location.hash = '#/grants'")
    await settled(page)
    await page.locator(f"a[href='#/calls/{grant['calls'][0]['call']}']").click()
    await expect(page.get_by_text(grant["id"])).to_be_visible()


async def test_where_there_is_nothing_the_page_says_how_something_comes_there(desk):
    await desk.open(policies="")
    page = await desk.sit_down()
    taught = {}
    for place in ("approvals", "sessions", "calls", "spend", "budgets", "rules", "people", "grants"):
        await page.evaluate("place => { location.hash = `#/${place}` }", place)
        await settled(page)
        await page.locator(".nothing").wait_for()
        taught[place] = await page.locator(".nothing").inner_text()
    assert all(len(text) > 60 for text in taught.values()), taught
    assert "require_approval" in taught["approvals"]
    assert "lockgate people create alice --permission approve --role finance" in taught["people"]


async def test_a_session_is_a_timeline_that_can_be_frozen_and_thawed(desk):
    await lived_in(desk)
    page = await desk.sit_down(at="#/sessions/invoice-run-7")
    line = page.locator(".timeline")
    await expect(line).to_contain_text("fast")
    await expect(line).to_contain_text("admin approved the approval: Fine.")
    await page.get_by_role("button", name="Freeze").click()
    await page.get_by_role("dialog").get_by_label("Note").fill("Looking at it")
    await page.get_by_role("dialog").get_by_role("button", name="Freeze").click()
    await expect(page.locator(".figures .chip")).to_have_text("frozen")
    await expect(line).to_contain_text("Looking at it")
    await page.get_by_role("button", name="Thaw").click()
    await page.get_by_role("dialog").get_by_role("button", name="Thaw").click()
    await expect(page.locator(".figures .chip")).to_have_text("active")


async def test_a_call_is_explained(desk):
    await desk.open(policies='[[rule]]\nid = "no-secrets"\nwhen = \'texts.exists(text, text.contains("secret"))\'\neffect = "deny"\nmessage = "Take it out."\n')
    async with desk.http.post("/v1/chat/completions", json={"model": "fast", "messages": [{"role": "user", "content": "a secret"}]},
                              headers={"Authorization": f"Bearer {desk.key}"}) as answer:
        assert answer.status == 403
    page = await desk.sit_down(at="#/calls")
    await page.locator("td.main a").first.click()
    await expect(page.locator(".verdictline").first).to_contain_text("deny by rule no-secrets")
    await expect(page.get_by_text("What would have to change")).to_be_visible()
    await expect(page.locator("#main")).to_contain_text("text.contains")


async def test_spend_is_drawn_and_told_and_a_spreadsheet_can_be_had(desk):
    await lived_in(desk)
    page = await desk.sit_down(at="#/spend")
    await expect(page.locator(".chart canvas")).to_be_visible()
    await expect(page.locator(".chart")).to_have_attribute("aria-label", re.compile(r"^Spend by day, \$0\.0"))
    await expect(page.locator("table", has=page.get_by_text("one/sim-fast"))).to_be_visible()
    await page.get_by_label("By", exact=True).select_option("session")
    await expect(page.get_by_role("link", name="invoice-run-7")).to_be_visible()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="As a spreadsheet").click()
    assert (await download.value).suggested_filename == "costs-by-session.csv"


async def test_budgets_are_bars_and_can_be_raised_for_a_while(desk):
    await lived_in(desk)
    page = await desk.sit_down(at="#/budgets")
    await expect(page.locator(".accounts")).to_contain_text("of $5.00")
    await page.get_by_role("button", name="Raise for a while").click()
    await page.get_by_role("dialog").get_by_label("By, in USD").fill("2.50")
    await page.get_by_role("dialog").get_by_role("button", name="Raise").click()
    await expect(page.locator(".accounts")).to_contain_text("of $7.50")


async def test_a_breaker_is_opened_by_hand_and_let_act_by_itself_again(desk):
    await desk.open()
    page = await desk.sit_down(at="#/breakers")
    row = page.locator("tbody tr", has_text="one/sim-fast")
    await row.get_by_role("button", name="Open").click()
    await page.get_by_role("dialog").get_by_label("Note").fill("maintenance")
    await page.get_by_role("dialog").get_by_role("button", name="Open").click()
    await expect(row).to_contain_text("open by hand")
    await expect(row).to_contain_text("maintenance")
    await row.get_by_role("button", name="By itself").click()
    await page.get_by_role("dialog").get_by_role("button", name="By itself").click()
    await expect(row).not_to_contain_text("by hand")


async def test_a_key_is_made_shown_once_rotated_and_revoked(desk):
    await desk.open()
    page = await desk.sit_down(at="#/keys")
    await page.get_by_role("button", name="New key").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("night-batch")
    await dialog.get_by_label("Team").fill("search")
    await dialog.get_by_role("button", name="Make it").click()
    secret = await dialog.get_by_label("The secret").input_value()
    assert secret.startswith("lgk_")
    await dialog.get_by_role("button", name="I have it").click()
    assert secret not in await page.content()
    async with desk.http.get("/v1/models", headers={"Authorization": f"Bearer {secret}"}) as answer:
        assert answer.status == 200
    row = page.locator("tbody tr", has_text="night-batch")
    await row.get_by_role("button", name="Rotate").click()
    await dialog.get_by_role("button", name="Rotate").click()
    assert await dialog.get_by_label("The secret").input_value() != secret
    await dialog.get_by_role("button", name="I have it").click()
    await row.get_by_role("button", name="Revoke").click()
    await dialog.get_by_role("button", name="Revoke").click()
    await expect(row).to_contain_text("revoked")


async def test_rules_show_how_often_they_matched_and_what_shadow_would_have_done(desk):
    await lived_in(desk)
    page = await desk.sit_down(at="#/rules")
    await expect(page.locator(".rules > li", has_text="no-secrets")).to_contain_text("1 would have denied")
    await expect(page.locator(".rules > li", has_text="payments-above-1000")).to_contain_text("policies/policies.toml:5")


async def test_people_are_added_changed_and_disabled(desk):
    await desk.open()
    page = await desk.sit_down(at="#/people")
    await page.get_by_role("button", name="New person").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Id").fill("mara")
    await dialog.get_by_label("Name").fill("Mara Lind")
    await dialog.get_by_label("Roles").fill("finance, ops")
    await dialog.get_by_label("Password").fill("several words are good")
    await dialog.get_by_role("button", name="Add").click()
    row = page.locator("tbody tr", has_text="Mara Lind")
    await expect(row).to_contain_text("finance, ops")
    other = await desk.sit_down("mara")
    await row.get_by_role("button", name="Disable").click()
    await dialog.get_by_role("button", name="Disable").click()
    await expect(row).to_contain_text("disabled")
    await other.evaluate("location.hash = '#/calls'")
    await expect(other.get_by_text("Your login has ended.")).to_be_visible()


async def test_the_theme_follows_the_system_until_somebody_chooses(desk):
    await desk.open()
    page = await desk.sit_down(dark=True)
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark = await page.evaluate(paper)
    await page.get_by_role("button", name="Theme: system").click()
    light = await page.evaluate(paper)
    assert light != dark
    await page.reload()
    await settled(page)
    assert await page.evaluate(paper) == light
    await page.get_by_role("button", name="Theme: light").click()
    assert await page.evaluate(paper) == dark


async def test_on_a_phone_one_decides_without_scrolling_to_the_buttons(desk):
    _first, second, _third = await lived_in(desk)
    page = await desk.sit_down(size=PHONE, at=f"#/approvals/{second}")
    approve = page.get_by_role("button", name="Approve")
    await expect(approve).to_be_in_viewport(ratio=1)
    box = await approve.bounding_box()
    assert box is not None
    assert box["height"] >= 44  # a thumb
    await approve.click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    await page.get_by_role("button", name="Menu").click()
    await page.get_by_role("link", name="Sessions").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sessions")
    await expect(page.locator("#nav")).to_be_hidden()
