"""People decide at the page: what waits arrives by itself, is read, approved, denied, edited, granted, decided together."""

import asyncio
import re

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_is_held_arrives_without_reload_is_read_and_approved(desk):
    await desk.open()
    page = await desk.sit_down()
    await expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    first = await desk.hold(amount=12400, payee="Nordwind Logistik GmbH")
    row = page.locator(f"li[data-id='{first}'] a")
    await expect(row).to_contain_text("pay_invoice")
    await expect(row).to_contain_text("payments-agent")
    await expect(page).to_have_title(re.compile(r"^\(1\) Approvals"))

    await row.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("pay_invoice")
    await expect(page.locator(".exact")).to_contain_text("12400")
    digest = (await desk.ticket(first))["digest"]
    await expect(page.locator(".digest")).to_contain_text(digest)
    await expect(page.get_by_text("Payments above 1,000 wait for a person.")).to_be_visible()
    await expect(page.locator(".remaining time")).to_have_text(re.compile(r"^\d+ (h|d|min)"))

    await page.get_by_label("Comment").fill("It matches the order.")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    assert desk.paid == []  # an approval lets it through; its caller makes it
    status, answer = await desk.present(amount=12400, payee="Nordwind Logistik GmbH")
    assert (status, answer, desk.paid) == (200, {"paid": True}, [{"amount": 12400, "payee": "Nordwind Logistik GmbH"}])
    await expect(page.locator(".marks .chip").first).to_have_text("succeeded")
    [vote] = (await desk.ticket(first))["votes"]
    assert (vote["person"], vote["verdict"], vote["comment"], vote["digest"]) == ("admin", "approve", "It matches the order.", digest)


async def test_what_is_denied_is_never_sent_and_its_caller_is_told_why(desk):
    await desk.open()
    ticket = await desk.hold(amount=5000, payee="Unknown Ltd")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_label("Comment").fill("We do not know this payee.")
    await page.get_by_role("button", name="Deny").click()
    await expect(page.locator(".marks .chip").first).to_have_text("denied")
    status, answer = await desk.present(amount=5000, payee="Unknown Ltd")
    assert (status, answer["code"], desk.paid) == (403, "approval_denied", [])
    assert "We do not know this payee." in answer["detail"]


async def test_an_edit_is_a_new_action_that_says_what_was_changed(desk):
    """Numbers that no double can hold stay what they are."""
    await desk.open()
    ticket = await desk.hold(amount=9007199254740993, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await expect(page.locator(".exact .number")).to_have_text("9007199254740993")
    await page.get_by_role("button", name="Edit the arguments").click()
    assert await page.locator(".decision").evaluate("node => node.inert")  # it would decide on what it was before
    assert await page.locator(".decision").evaluate("node => getComputedStyle(node).opacity") == "1"  # nothing shines through
    text = page.get_by_label("Arguments")
    await expect(text).to_have_value(re.compile("9007199254740993"))

    await text.fill('{"amount": 1200')
    await expect(page.locator(".checked")).to_contain_text("This is not JSON")
    await expect(page.get_by_role("button", name="Propose and approve")).to_be_disabled()
    await text.fill('{"amount": 9007199254740995, "payee": "Kontor AG"}')
    await expect(page.locator(".checked")).to_contain_text("9007199254740993 → 9007199254740995")
    await page.get_by_role("button", name="Propose and approve").click()

    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    edited = (await desk.ticket(ticket))["replaced_by"]
    assert page.url.endswith(f"#/approvals/{edited}")
    await expect(page.locator(".exact .number")).to_have_text("9007199254740995")
    await expect(page.locator(".history li").first).to_contain_text("edited by admin")
    status, _answer = await desk.present(amount=9007199254740993, payee="Kontor AG")
    assert (status, desk.paid) == (200, [{"amount": 9007199254740995, "payee": "Kontor AG"}])


async def test_a_grant_made_with_an_approval_lets_more_through_until_it_is_revoked(desk):
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_text("Allow more like it").click()
    await page.get_by_label("How many").fill("2")
    await page.get_by_label("Only where").fill("double(tool.args.amount) < 3000.0")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    assert (await desk.present(amount=2500, payee="Another"))[0] == 200

    await page.goto(f"{desk.gateway.url}/-/admin#/grants")
    row = page.locator("tbody tr")
    await expect(row).to_contain_text("double(tool.args.amount) < 3000.0")
    await expect(row.locator("td.number")).to_have_text("1")
    await page.get_by_role("button", name="Revoke").click()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(row).to_contain_text("revoked")
    ticket = await desk.hold(amount=2600, payee="Another")  # held again

    digest = (await desk.ticket(ticket))["digest"]
    await desk.admin("POST", f"/-/approvals/{ticket}/vote", {"verdict": "approve", "digest": digest, "grant": {"for": "1h", "uses": 1}})
    assert (await desk.present(amount=2700, payee="Another"))[0] == 200
    await expect(page.locator("tbody tr").first).to_contain_text("used up")


MODELS = """
[defaults]
tools = "allow"

[[rule]]
id = "model-calls"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "A person looks at every plan."

[[rule]]
id = "payments"
phase = "tool_call"
match = { tools = ["pay_invoice"] }
effect = "require_approval"
message = "A person looks at every payment."
"""


async def test_calls_of_models_and_what_they_propose_are_told_in_words_of_their_own(desk):
    await desk.open(policies=MODELS)
    tool = {"type": "function", "function": {"name": "pay_invoice", "parameters": {"type": "object"}}}
    asked = []
    for text in ("a plan", 'call pay_invoice {"amount": 2000, "payee": "Kontor AG"}'):
        body = {"model": "fast", "messages": [{"role": "user", "content": text}], "tools": [tool]}
        headers = {"Authorization": f"Bearer {desk.key}", "Prefer": "respond-async"}
        async with desk.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 202, await answer.text()
            asked.append(answer.headers["Location"].rpartition("/")[2])
    model, proposal = asked
    page = await desk.sit_down(at=f"#/approvals/{model}")
    await expect(page.locator(".sentence")).to_contain_text("asks for a model call on route fast, ")
    await page.get_by_text("Allow more like it").click()
    await expect(page.locator(".grant")).to_contain_text("every call of a model that the rule would hold")
    assert "tool" not in await page.get_by_label("Only where").get_attribute("placeholder")
    await page.goto(f"{desk.gateway.url}/-/admin#/approvals/{proposal}")
    await expect(page.locator(".sentence")).to_contain_text("asks for a call, proposed by a model, of the tool pay_invoice on route fast, ")
    await expect(page.locator(".history li").first).to_contain_text("asked by payments-agent")


async def test_what_went_wrong_is_not_told_over_another_view(desk):
    await desk.open()
    desk.broken.set()
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Approve").click()
    await desk.present(amount=2000, payee="Kontor AG")
    await page.get_by_role("button", name="It happened").click()
    await expect(page.locator(".toast.bad")).to_have_count(1)
    await page.get_by_role("link", name="← All approvals").click()
    await expect(page.locator(".toast.bad")).to_have_count(0)


async def test_several_of_one_shape_are_decided_together_and_those_of_another_stay(desk):
    await desk.open()
    alike = [await desk.hold(amount=2000 + n, payee=f"Payee {n}") for n in range(3)]
    other = await desk.hold(tool="drop_table", table="orders")
    page = await desk.sit_down()
    await page.locator(f"li[data-id='{alike[0]}'] input").check()
    assert await page.locator(f"li[data-id='{other}'] input").count() == 0  # what cannot be undone is decided alone
    await page.get_by_role("button", name="All of them").click()
    await page.get_by_role("button", name="Approve…").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator("li")).to_have_count(3)
    await dialog.get_by_label("Comment").fill("The monthly run.")
    await dialog.get_by_role("button", name="Approve 3").click()
    await expect(page.locator(".queue li")).to_have_count(1)
    assert {(await desk.ticket(each))["state"] for each in alike} == {"approved"}
    assert (await desk.ticket(other))["state"] == "pending"


async def test_what_cannot_be_undone_is_asked_about_once_more_and_takes_two_people(desk):
    await desk.open()
    await desk.person("mara", roles=["ops"])
    await desk.person("jonas", roles=["ops"])
    ticket = await desk.hold(tool="drop_table", table="orders_2019")
    first = await desk.sit_down("mara", at=f"#/approvals/{ticket}")
    second = await desk.sit_down("jonas", at=f"#/approvals/{ticket}")
    await first.get_by_role("button", name="Approve").click()
    dialog = first.get_by_role("dialog")
    await expect(dialog).to_contain_text("nobody can undo it")
    await dialog.get_by_role("button", name="Cancel").click()
    assert (await desk.ticket(ticket))["votes"] == []
    await first.get_by_role("button", name="Approve").click()
    await dialog.get_by_role("button", name="Approve, for good").click()

    await expect(second.locator(".stages")).to_contain_text("1 of 2")  # the other one sees it at once
    await expect(second.locator(".votes")).to_contain_text("Mara approved")
    await second.get_by_role("button", name="Approve").click()
    await second.get_by_role("dialog").get_by_role("button", name="Approve, for good").click()
    await expect(first.locator(".marks .chip").first).to_have_text("approved")


async def test_whoever_may_not_vote_is_told_why_and_has_no_buttons(desk):
    await desk.open()
    await desk.person("mara", roles=["finance"])
    await desk.person("vera", permission="view")
    ticket = await desk.hold(tool="drop_table", table="orders")
    page = await desk.sit_down("mara", at=f"#/approvals/{ticket}")
    await expect(page.locator(".why-not")).to_be_visible()
    assert await page.get_by_role("button", name="Approve").count() == 0
    viewer = await desk.sit_down("vera", at=f"#/approvals/{ticket}")
    await expect(viewer.locator(".why-not")).to_contain_text("approve")
    assert await viewer.get_by_role("button", name=re.compile("Approve|Deny|Edit|Withdraw")).count() == 0
    assert await viewer.get_by_role("link", name="People").count() == 0


async def test_two_who_decide_at_the_same_moment_see_one_verdict(desk):
    await desk.open()
    await desk.person("mara")
    ticket = await desk.hold(amount=3000, payee="Kontor AG")
    pages = [await desk.sit_down(name, at=f"#/approvals/{ticket}") for name in ("admin", "mara")]
    await asyncio.gather(pages[0].get_by_role("button", name="Approve").click(), pages[1].get_by_role("button", name="Deny").click())
    for page in pages:
        await expect(page.locator(".marks .chip").first).to_have_text(re.compile("approved|denied"))
    state = (await desk.ticket(ticket))["state"]
    assert [await page.locator(".marks .chip").first.inner_text() for page in pages] == [state, state]


async def test_what_was_begun_to_be_written_survives_what_happens_meanwhile(desk):
    await desk.open()
    ticket = await desk.hold(amount=3000, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_label("Comment").fill("I am still")
    await desk.hold(amount=4000, payee="Kontor AG")
    await expect(page.locator("#nav .count")).to_contain_text("2")
    await expect(page.get_by_label("Comment")).to_have_value("I am still")
    await expect(page.get_by_label("Comment")).to_be_focused()
    await page.get_by_role("link", name="← All approvals").click()
    await page.locator(f"li[data-id='{ticket}'] a").click()
    await expect(page.get_by_label("Comment")).to_have_value("I am still")


async def test_what_differs_from_the_last_one_like_it_is_marked(desk):
    await desk.open()
    first = await desk.hold(amount=2000, payee="Kontor AG", reference="A", cost_center="4711")
    page = await desk.sit_down(at=f"#/approvals/{first}")
    await expect(page.get_by_text("Nothing like it was asked before.")).to_be_visible()
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    second = await desk.hold(amount=2000, payee="Kontor GmbH", reference="A")
    await page.goto(f"{desk.gateway.url}/-/admin#/approvals/{second}")
    await expect(page.locator(".changed")).to_have_count(1)
    await expect(page.locator(".changed")).to_contain_text("Kontor GmbH")
    await expect(page.locator(".changed del")).to_have_text("Kontor AG")
    await expect(page.locator(".removed")).to_contain_text("4711")


async def test_what_was_sent_and_never_answered_is_resolved_by_a_person_who_says_what_they_found(desk):
    await desk.open()
    desk.broken.set()
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".marks .chip").first).to_have_text("approved")
    await desk.present(amount=2000, payee="Kontor AG")
    await expect(page.locator(".marks .chip").first).to_have_text("outcome unknown")
    await page.get_by_role("button", name="It happened").click()
    await expect(page.locator(".toast.bad")).to_contain_text("Say what you found")  # nothing is resolved without a word
    await page.get_by_label("What you found").fill("The bank has booked it.")
    await page.get_by_role("button", name="It happened").click()
    await expect(page.locator(".marks .chip").first).to_have_text("succeeded")
    await expect(page.locator(".history")).to_contain_text("The bank has booked it.")
    assert len(desk.paid) == 1
    await expect(page.locator(".toast.bad")).to_have_count(0)  # it was about a try before


async def test_what_is_withdrawn_is_not_sent(desk):
    await desk.open()
    ticket = await desk.hold(amount=2000, payee="Kontor AG")
    page = await desk.sit_down(at=f"#/approvals/{ticket}")
    await page.get_by_role("button", name="Withdraw").click()
    await page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    await expect(page.locator(".marks .chip").first).to_have_text("withdrawn")
    assert desk.paid == []


async def test_the_list_is_filtered_by_what_stands_in_its_address(desk):
    await desk.open()
    await desk.hold(amount=2000, payee="Kontor AG")
    await desk.hold(tool="drop_table", table="orders")
    page = await desk.sit_down()
    await expect(page.locator(".queue li")).to_have_count(2)
    await page.keyboard.press("/")
    await page.get_by_role("textbox", name="tool").fill("drop_table")
    await page.keyboard.press("Enter")
    await expect(page.locator(".queue li")).to_have_count(1)
    await expect(page.locator(".queue li")).to_contain_text("drop_table")
    await page.reload()
    await expect(page.locator(".queue li")).to_have_count(1)
    await page.get_by_role("link", name="tool: drop_table").click()
    await expect(page.locator(".queue li")).to_have_count(2)
    for name, fitting in (("nobody", 0), ("payments-agent", 2)):  # the name, which is what the list shows
        await page.goto(f"{desk.gateway.url}/-/admin#/approvals?principal={name}")
        await expect(page.get_by_role("link", name=f"principal: {name}")).to_be_visible()
        await expect(page.locator(".queue li")).to_have_count(fitting)


async def test_why_something_waits_is_told_with_the_values_that_the_rule_reads(desk):
    await desk.open()
    page = await desk.sit_down(at=f"#/approvals/{await desk.hold()}")
    why = page.locator(".panel", has=page.get_by_role("heading", name="Why it waits"))
    await expect(why).to_contain_text("double(tool.args.amount) > 1000.0")
    await expect(why.locator(".json > div", has_text="tool.args.amount")).to_contain_text("12400")
    await expect(why).not_to_contain_text("Nordwind")
