"""The pictures of the documentation, made of the page itself: `LOCKGATE_SCREENSHOTS=1 pytest tests/browser/test_page_pictures.py`."""

import os
import random
from pathlib import Path

import pytest

from gateway.app import Parts
from gateway.clock import SystemClock

pytestmark = [pytest.mark.asyncio(loop_scope="session"),
              pytest.mark.skipif("LOCKGATE_SCREENSHOTS" not in os.environ, reason="pictures are made on demand: LOCKGATE_SCREENSHOTS=1")]

FOLDER = Path(__file__).parents[2] / "docs/images"
LARGEST = 150_000
DESKTOP, PHONE = (1120, 730), (390, 844)
DAY_S, MINUTE_S = 86_400, 60
SEED = 7
MODELS = {"atlas-large": ("250.00", "1000.00", 3), "atlas-small": ("60.00", "240.00", 6), "harbour-code": ("120.00", "600.00", 2)}
CONFIG = '[providers.north]\nadapter = "openai"\nbase_url = "UPSTREAM"\napi_key = "env:ONE_KEY"\n' + "".join(
    f'[prices."north/{name}"]\ninput = "{cost}"\noutput = "{more}"\n' for name, (cost, more, _often) in MODELS.items())
ROUTES = "".join(f'[[route]]\nname = "{name}"\n[[route.targets]]\nprovider = "north"\nmodel = "{name}"\n' for name in MODELS)
POLICIES = """
[defaults]
tools = "allow"

[[rule]]
id = "payments-above-1000"
phase = "tool_call"
match = { tools = ["pay_invoice"] }
when = "double(tool.args.amount) > 1000.0"
effect = "require_approval"
message = "Payments above 1,000 wait for two people."
[rule.approval]
expires = "4h"
on_expiry = "escalate"
escalate_to = ["role:cfo"]
[[rule.approval.stages]]
approvers = ["role:finance"]
quorum = 2
[[rule.approval.stages]]
approvers = ["team:treasury"]

[[rule]]
id = "no-drop-without-a-person"
phase = "tool_call"
match = { tools = ["drop_table"] }
effect = "require_approval"
message = "Nobody drops a table alone."
approvers = ["role:ops", "role:finance"]
approval = { expires = "1h" }
"""


class Moved(SystemClock):
    """The time of some while ago, so that there is a past to show."""

    __slots__ = ("ago_s",)

    def __init__(self) -> None:
        self.ago_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() - int(self.ago_s * 1e9)


async def a_month(desk, clock):
    """Calls of four weeks, by several teams; none of them is a real one's."""
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    keys = {team: await desk.new_key(f"{team}-app", team=team) for team in ("search", "support", "legal")}
    models = [name for name, (_cost, _more, often) in MODELS.items() for _ in range(often)]
    for day in range(27, -1, -1):
        clock.ago_s = day * DAY_S + 3 * MINUTE_S
        weekend = day % 7 in (1, 2)
        for _ in range(dice.randint(1, 3) if weekend else dice.randint(4, 9)):
            await desk.say("word " * dice.randint(5, 60), key=dice.choice([*keys.values(), keys["search"]]), model=dice.choice(models))


async def vote(desk, ticket, person, comment):
    told = await desk.admin("POST", f"/-/people/{person}/token", {})
    digest = (await desk.ticket(ticket))["digest"]
    async with desk.http.post(f"/-/approvals/{ticket}/vote", json={"verdict": "approve", "digest": digest, "comment": comment},
                              headers={"Authorization": f"Bearer {told['token']}"}) as answer:
        assert answer.status == 200, await answer.text()


async def take(page, name):
    await page.locator("#main:not([aria-busy]) h1").wait_for()
    await page.evaluate("document.activeElement.blur()")
    await page.evaluate("document.fonts.ready")
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / name
    await page.screenshot(path=path)
    assert path.stat().st_size < LARGEST


async def test_pictures(desk):
    clock = Moved()
    clock.ago_s = 29 * DAY_S
    await desk.open(config=CONFIG, routes=ROUTES, policies=POLICIES, parts=Parts(clock=clock))
    await a_month(desk, clock)
    for person, fields in {"mara": {"roles": ["finance"]}, "jonas": {"roles": ["finance"]}, "dana": {"roles": ["finance", "cfo"]},
                           "kim": {"teams": ["treasury"]}}.items():
        await desk.person(person, permission="operate" if person == "dana" else "approve", **fields)
    agent, run = {"currency": "EUR"}, "invoice-run-118"
    lines = [{"text": "Pallets, 40 pieces", "amount": 2880}, {"text": "Freight, express", "amount": 9520.5}]
    clock.ago_s = DAY_S
    before = await desk.hold(session="invoice-run-117", amount=1980, payee="Nordwind Logistik GmbH", reference="INV-1102", iban="DE02 1203 0000 0000 2020 51", **agent)
    for person in ("mara", "jonas", "kim"):
        await vote(desk, before, person, "")
    assert (await desk.present(session="invoice-run-117", amount=1980, payee="Nordwind Logistik GmbH", reference="INV-1102",
                               iban="DE02 1203 0000 0000 2020 51", **agent))[0] == 200
    clock.ago_s = 50 * MINUTE_S
    dropped = await desk.hold(tool="drop_table", key=await desk.new_key("migration-agent", team="platform"), table="orders_2019", cascade=True)
    clock.ago_s = 38 * MINUTE_S
    await desk.say("Which invoices are due this week?", session=run, model="atlas-large")
    clock.ago_s = 36 * MINUTE_S
    await desk.present(amount=310.4, payee="Kontor Süd AG", session=run)
    for minutes, payee, amount in ((34, "Kontor Süd AG", 1240), (33, "Feldmann & Söhne", 2350), (33, "Hafenbau eG", 1875.9)):
        clock.ago_s = minutes * MINUTE_S
        await desk.hold(session=run, amount=amount, payee=payee, reference=f"INV-11{minutes}", **agent)
    clock.ago_s = 31 * MINUTE_S
    main = await desk.hold(session=run, amount=12400.5, payee="Nordwind Logistik GmbH", reference="INV-1187", iban="DE44 5001 0517 5407 3249 31",
                           note="Second reminder.\nThe supplier stops deliveries on Friday.", lines=lines, **agent)
    clock.ago_s = 12 * MINUTE_S
    await vote(desk, main, "mara", "Matches the order. I called them about the new account.")
    clock.ago_s = 9 * MINUTE_S
    await desk.say("Has anybody answered yet?", session=run, model="atlas-small")
    clock.ago_s = 0

    page = await desk.sit_down("dana", DESKTOP)
    await page.locator(f"li[data-id='{dropped}']").wait_for()
    await take(page, "approvals.png")
    for place, name in ((f"approvals/{main}", "approval.png"), (f"sessions/{run}", "session.png"), ("spend", "spend.png")):
        await page.evaluate("place => { location.hash = `#/${place}` }", place)
        await take(page, name)
    phone = await desk.sit_down("dana", PHONE, at=f"#/approvals/{main}", dark=True)
    await take(phone, "approval-phone-dark.png")
