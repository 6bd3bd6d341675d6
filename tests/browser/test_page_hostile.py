"""What a model or a caller wrote is text: it runs nothing, turns nothing round, hides nothing, and does not make the page slow."""

import time

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><svg/onload=window.hacked=1>"><a href="javascript:window.hacked=1">x</a>{{7*7}}${window.hacked=1}"""
TURNED = "\u202egnp.exe\u202c pay \u2066x\u2069 zero\u200bwidth \U000e0041\U000e0042tags"
SHORT_MS = 200


async def test_markup_and_scripts_are_shown_as_they_were_written(desk):
    await desk.open(policies='[defaults]\ntools = "allow"\n[[rule]]\nid = "all"\nphase = "tool_call"\neffect = "require_approval"\nmessage = "<b onclick=hacked>look</b>"\n')
    key = await desk.new_key(MARKUP[:60], team="<i>team</i>")
    ticket = await desk.hold(key=key, session="<u>session</u>", amount=1, payee=MARKUP, **{MARKUP: {"</textarea><script>": [MARKUP]}})
    page = await desk.sit_down()
    await page.locator(".queue li").wait_for()
    await page.locator(f"li[data-id='{ticket}'] a").click()
    await expect(page.locator(".exact dd").filter(has_text="<script>window.hacked=1</script>").first).to_be_visible()
    await page.get_by_role("button", name="As JSON").click()
    await expect(page.locator(".exact pre")).to_contain_text("<svg/onload=window.hacked=1>")
    await page.get_by_role("button", name="Edit the arguments").click()
    await expect(page.get_by_label("Arguments")).to_be_visible()
    for place in ("sessions", "calls", "keys", "rules"):
        await page.goto(f"{desk.gateway.url}/-/admin#/{place}")
        await page.locator("#main:not([aria-busy]) h1").wait_for()
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#main img, #main script, #main b, #main u").count() == 0


async def test_what_cannot_be_seen_is_made_visible_and_turns_nothing_round(desk):
    await desk.open()
    ticket = await desk.hold(amount=2000, payee=TURNED, note="bell\x07 red\x1b[31m nul\x00 nbsp\xa0")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    exact = page.locator(".exact")
    for name in ("RLO", "PDF", "LRI", "PDI", "ZWSP", "U+E0041", "BEL", "ESC", "NUL", "NBSP"):
        await expect(exact.locator(".unseen", has_text=name).first).to_be_visible()
    await page.get_by_role("button", name="Edit the arguments").click()
    text = await page.get_by_label("Arguments").input_value()  # a field shows a text as it is: there it is escaped, and means the same
    assert "\\u202egnp.exe\\u202c" in text
    assert "\\udb40\\udc41" in text
    await expect(page.locator(".checked")).to_contain_text("Nothing is changed yet.")
    await page.get_by_role("button", name="Leave it as it was").click()
    shown = f"{await exact.inner_text()}{text}"
    assert not set("\u202e\u202c\u2066\u2069\u200b\x07\x1b\x00\U000e0041") & set(shown)
    assert await exact.locator("bdi").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"


async def test_a_megabyte_of_text_is_folded_unfolds_and_the_page_stays_usable(desk):
    await desk.open()
    line = "Lorem ipsum dolor sit amet, consectetur adipiscing elit. "
    ticket = await desk.hold(amount=2000, payee="x", note=line * (1_000_000 // len(line)))
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    unfold = page.get_by_role("button", name="Show all 1.0 MB")
    await unfold.wait_for()
    assert len(await page.locator(".exact").inner_text()) < 10_000
    await page.evaluate(_LONGEST_TASK)
    await unfold.click()
    await expect(page.locator("[data-unfolded]")).to_have_count(1)
    assert await page.locator("[data-unfolded]").evaluate("node => node.textContent.length") > 999_000
    began = time.perf_counter()
    await page.get_by_label("Comment").fill("still here")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    assert time.perf_counter() - began < 5
    print(f"longest task: {await page.evaluate('window.longest')} ms")  # shown where it fails: what the limit means depends on the machine
    assert await page.evaluate("window.longest") < 10 * SHORT_MS


async def test_a_text_of_nothing_but_hidden_letters_is_no_flood_of_elements(desk):
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="x", note="a\u202e" * 100_000)
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Show all 400 kB").click()
    await expect(page.locator("[data-unfolded]")).to_have_count(1)
    assert await page.locator("*").count() < 5_000
    assert "\u202e" not in await page.locator("[data-unfolded]").inner_text()


async def test_deep_and_wide_values_open_on_demand(desk):
    await desk.open()
    deep: dict[str, object] = {}
    for _ in range(30):
        deep = {"in": deep}
    ticket = await desk.hold(amount=2000, payee="x", deep=deep, wide=list(range(2_000)))
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Show 100 of 1900 more").click()
    await expect(page.get_by_role("button", name="Show 100 of 1800 more")).to_be_visible()
    await page.locator(".exact details.deep summary").first.click()
    assert await page.locator("*").count() < 4_000


async def test_a_place_in_the_address_is_text_as_well(desk):
    await desk.open()
    page = await desk.sit_down(at="#/approvals/%3Cimg%20src=x%20onerror=window.hacked=1%3E")
    await expect(page.get_by_role("heading", name="This cannot be shown")).to_be_visible()
    for place in ("#/calls?route=%3Cscript%3Ewindow.hacked=1%3C/script%3E", "#/nowhere/%E0%A4%A", "#/__proto__/x", "#/constructor"):
        await page.goto(f"{desk.gateway.url}/-/admin{place}")
        await page.locator("#main:not([aria-busy]) h1").wait_for()
    assert await page.evaluate("window.hacked") is None


_LONGEST_TASK = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) window.longest = Math.max(window.longest, each.duration);
}).observe({ type: "longtask" });
"""
