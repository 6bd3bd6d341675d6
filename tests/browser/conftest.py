"""The page in a real browser: Chromium in front of a gateway on real sockets, with a tool that people have to approve.

One browser for all tests of a worker, a context (cookies, storage, size) for each test. Every page is watched: what breaks the content
security policy, fails in its scripts or asks another origin for something fails the test, whatever else it is about.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, BrowserContext, Page, Request, async_playwright, expect

from gateway.app import Parts
from gateway.clock import SystemClock, SystemIds
from gateway.embed import Gateway
from gateway.keyring import new_key
from gateway.secret import Secret
from gateway.simulator import Simulator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The flags of a browser that talks to nobody but us; the name is for the test of DNS rebinding.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--host-resolver-rules=MAP rebound.test 127.0.0.1"]
PEPPER = "pepper-of-the-tests-0123456789abcdef"
ADMIN = "admin-token-of-the-tests"
PASSWORD = "several words are good"
DESKTOP, PHONE = (1280, 860), (360, 740)
PATIENCE_MS = 10_000

ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"

[[tool]]
name = "pay_invoice"
description = "Pays an invoice."
method = "POST"
url = "{erp}/pay"
private = true
effect = "at_most_once"
[tool.arguments]
required = ["amount", "payee"]
additionalProperties = true
[tool.arguments.properties]
amount = {{ type = "number" }}
payee = {{ type = "string" }}

[[tool]]
name = "drop_table"
description = "Drops a table."
method = "POST"
url = "{erp}/drop"
private = true
irreversible = true
[tool.arguments]
additionalProperties = true
"""

POLICIES = """
[defaults]
tools = "allow"

[[rule]]
id = "payments-above-1000"
phase = "tool_call"
match = { tools = ["pay_invoice"] }
when = "double(tool.args.amount) > 1000.0"
effect = "require_approval"
message = "Payments above 1,000 wait for a person."

[[rule]]
id = "two-for-a-drop"
phase = "tool_call"
match = { tools = ["drop_table"] }
effect = "require_approval"
message = "Two people of operations look at every drop."
approvers = ["role:ops"]
quorum = 2

[[rule]]
id = "no-secrets"
mode = "shadow"
when = 'texts.exists(text, text.contains("secret"))'
effect = "deny"
message = "Take the secret out."
"""

BUDGETS = """
[budgets.team-day]
scope = "team"
limit = "5.00"
window = "day"
"""

WATCH = """
window.reported = [];
document.addEventListener("securitypolicyviolation", (event) => window.reported.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """A browser for all tests of this worker."""
    if CHROMIUM is None:
        pytest.skip("the page is tested in a browser, and there is no Chromium here: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@dataclass
class Watched:
    """What pages did that they must not."""

    origin: str
    wrong: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", self._see)

    def _hear(self, kind: str, text: str) -> None:
        # What a browser says of an answer that is an error is no error of the page's; the test looks at what the page makes of it.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.wrong.append(f"{kind}: {text}")

    def _see(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:", "about:")):
            self.wrong.append(f"asked {request.url}")


@dataclass
class Desk:
    """A gateway, the system behind its tool, and people at browsers. `paid` is what that system was told."""

    folder: Path
    chromium: Browser
    stack: AsyncExitStack
    paid: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    gateway: Gateway = field(init=False)
    watched: Watched = field(default_factory=lambda: Watched("http://nowhere"))
    http: aiohttp.ClientSession = field(init=False)
    key: str = ""

    async def open(self, *, config: str = "", policies: str = POLICIES, routes: str = "", parts: Parts | None = None) -> "Desk":
        """Start the gateway; `config` and `routes` are added to what is there anyway, with UPSTREAM as the simulated provider's URL."""
        erp = await self._erp()
        one = await self.stack.enter_async_context(Simulator(port=0))
        for name, text in {"config.toml": self._config(one.url) + config.replace("UPSTREAM", one.url), "policies/policies.toml": policies,
                           "routes/routes.toml": ROUTES.format(erp=erp), "routes/more.toml": routes}.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        environ = {"PEPPER": PEPPER, "ADMIN": ADMIN, "ONE_KEY": "sk-provider-key-one-0123456789"}
        self.gateway = Gateway(self.folder / "config.toml", port=0, environ=environ, write=lambda _line: None, parts=parts)
        await self.stack.enter_async_context(self.gateway)
        self.watched = Watched(self.gateway.url)
        self.http = await self.stack.enter_async_context(aiohttp.ClientSession(self.gateway.url))
        self.key = await self.new_key("payments-agent", team="finance")
        return self

    async def new_key(self, name: str, **fields: Any) -> str:
        clock = SystemClock()
        text, stored = new_key(SystemIds(clock), Secret(PEPPER), now_ns=clock.now_ns(), name=name, **fields)
        await self.gateway.running.store.keys.create(stored)
        assert self.gateway.running.keyring is not None
        await self.gateway.running.keyring.refresh()
        return text

    async def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask a control endpoint with the admin token."""
        async with self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {ADMIN}"}) as answer:
            told: dict[str, Any] = await answer.json()
            assert answer.status < 300, told
            return told

    async def person(self, name: str, permission: str = "approve", **fields: Any) -> None:
        await self.admin("POST", "/-/people", {"id": name, "name": name.title(), "permission": permission, "password": PASSWORD, **fields})

    async def hold(self, tool: str = "pay_invoice", key: str = "", session: str = "", **arguments: Any) -> str:
        """Make a call that has to be approved; the id of its ticket. Nobody waits at a connection."""
        given = arguments or {"amount": 12400, "payee": "Nordwind Logistik GmbH"}
        headers = {"Authorization": f"Bearer {key or self.key}", "Prefer": "respond-async", **({"X-Lockgate-Session": session} if session else {})}
        async with self.http.post(f"/tools/{tool}", json=given, headers=headers) as answer:
            assert answer.status == 202, await answer.text()
            return answer.headers["Location"].rpartition("/")[2]

    async def present(self, tool: str = "pay_invoice", session: str = "", **arguments: Any) -> tuple[int, dict[str, Any]]:
        """Make the call and wait for its answer."""
        headers = {"Authorization": f"Bearer {self.key}", **({"X-Lockgate-Session": session} if session else {})}
        async with self.http.post(f"/tools/{tool}", json=arguments, headers=headers) as answer:
            return answer.status, await answer.json()

    async def say(self, text: str, session: str = "", key: str = "", model: str = "fast") -> None:
        """A call of a model."""
        headers = {"Authorization": f"Bearer {key or self.key}", **({"X-Lockgate-Session": session} if session else {})}
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        async with self.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    async def ticket(self, ticket_id: str) -> dict[str, Any]:
        told: dict[str, Any] = (await self.admin("GET", f"/-/approvals/{ticket_id}"))["approval"]
        return told

    async def context(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False, locale: str = "en-GB") -> BrowserContext:
        made = await self.chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", locale=locale,
            timezone_id="Europe/Berlin", reduced_motion="reduce")
        self.stack.push_async_callback(made.close)
        made.set_default_timeout(PATIENCE_MS)
        await made.add_init_script(WATCH)
        made.on("page", self.watched.follow)
        return made

    async def visit(self, size: tuple[int, int] = DESKTOP, *, at: str = "", dark: bool = False) -> Page:
        """A browser in front of the door."""
        page = await (await self.context(size, dark=dark)).new_page()
        await page.goto(f"{self.gateway.url}/-/admin{at}")
        return page

    async def sit_down(self, person: str = "admin", size: tuple[int, int] = DESKTOP, *, at: str = "", dark: bool = False) -> Page:
        """A person who is logged in, at a place of the page."""
        page = await self.visit(size, at=at, dark=dark)
        await self.log_in(page, person)
        return page

    async def log_in(self, page: Page, person: str = "admin") -> None:
        door = page.locator("#door")
        if person == "admin":
            await door.get_by_text("Log in with a token").first.click()
            await door.get_by_label("Token").fill(ADMIN)
            await door.get_by_role("button", name="Log in with the token").click()
        else:
            await door.get_by_label("Name").fill(person)
            await door.get_by_label("Password").fill(PASSWORD)
            await door.get_by_role("button", name="Log in", exact=True).click()
        await page.locator("#main h1").wait_for()

    async def assert_well_behaved(self) -> None:
        """No page broke the policy, failed in a script, or asked another origin for anything."""
        for context in self.chromium.contexts:
            for page in context.pages:
                if page.url.startswith(self.watched.origin):
                    self.watched.wrong += await page.evaluate("window.reported")
        assert self.watched.wrong == []

    async def _erp(self) -> str:
        """The system behind the tools."""

        async def pay(request: web.Request) -> web.Response:
            self.paid.append(await request.json())
            if self.broken.is_set():
                request.transport.abort()  # type: ignore[union-attr] # a request that is being answered has one
            return web.json_response({"paid": True})

        async def drop(request: web.Request) -> web.Response:
            self.dropped.append(await request.json())
            return web.json_response({"dropped": True})

        app = web.Application()
        app.router.add_post("/pay", pay)
        app.router.add_post("/drop", drop)
        server = TestServer(app)
        await server.start_server()
        self.stack.push_async_callback(server.close)
        return str(server.make_url("/")).rstrip("/")

    @staticmethod
    def _config(upstream: str) -> str:
        return f"""
[providers.one]
adapter = "openai"
base_url = "{upstream}"
api_key = "env:ONE_KEY"
[prices."one/sim-fast"]
input = "1.00"
output = "2.00"
[auth]
pepper = "env:PEPPER"
[admin]
token = "env:ADMIN"
"""


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tmp_path: Path, chromium: Browser) -> AsyncIterator[Desk]:
    """An unopened gateway; afterwards every page is looked at."""
    async with AsyncExitStack() as stack:
        made = Desk(tmp_path, chromium, stack)
        yield made
        await made.assert_well_behaved()


@pytest.fixture
def axe() -> Callable[[Page], Awaitable[list[str]]]:
    """What axe-core finds on a page that is serious or critical, one line each."""
    source = (Path(__file__).parent / "vendor/axe.min.js").read_text()

    async def look(page: Page) -> list[str]:
        if await page.evaluate("typeof axe") == "undefined":  # it stays, as long as the document does
            await page.evaluate(source)
        found = await page.evaluate("axe.run(document, {resultTypes: ['violations'], elementRef: false})")
        assert len(found["passes"]) > 10, "axe has hardly looked"
        return [f"{each['impact']} {each['id']}: {node['html']} {node.get('failureSummary', '')}" for each in found["violations"]
                if each["impact"] in ("serious", "critical") for node in each["nodes"]]

    return look
