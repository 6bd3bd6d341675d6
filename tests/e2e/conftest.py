"""A gateway in front of simulated providers, all in one process, on real sockets."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from gateway.app import Parts
from gateway.clock import SystemClock, SystemIds
from gateway.core.budget import Balance
from gateway.embed import Gateway
from gateway.identity.accounts import new_token
from gateway.keyring import new_key
from gateway.secret import Secret
from gateway.simulator import Simulator
from gateway.store.approvals_protocol import Person, Stamped
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.protocol import AccountFilter

PEPPER = "pepper-of-the-tests-0123456789abcdef"
ADMIN = "admin-token-of-the-tests"
SOON_S = 20

PAYING = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[[tool]]
name = "pay"
method = "{method}"
url = "{url}"
private = true
{more}
[tool.arguments]
required = ["amount"]
[tool.arguments.properties]
amount = {{ type = "number" }}
to = {{ type = "string" }}
note = {{ type = "string" }}
"""
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[route.retry]
attempts = 2
base = "1ms"
cap = "10ms"

[[route]]
name = "backed-up"
[[route.targets]]
provider = "one"
model = "sim-large"
[[route.targets]]
provider = "two"
model = "sim-small"
[route.retry]
attempts = 1
base = "1ms"
cap = "10ms"

[[route]]
name = "vectors"
operations = ["embeddings"]
[[route.targets]]
provider = "one"
model = "sim-embed"
"""


@dataclass
class House:
    """What an end-to-end test lives in."""

    folder: Path
    one: Simulator
    two: Simulator
    stack: AsyncExitStack
    lines: list[bytes] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=lambda: {
        "PEPPER": PEPPER, "ADMIN": ADMIN, "ONE_KEY": "sk-provider-key-one-0123456789"})
    tokens: dict[str, str] = field(default_factory=lambda: {"admin": ADMIN})  # of people, by their ids
    gateway: Gateway = field(init=False)
    key: str = ""
    session: aiohttp.ClientSession | None = None
    is_running: bool = False
    is_sound: bool = True  # the doctor looks at what a test leaves, unless that has broken it on purpose
    _parts: Parts | None = None

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    async def open(
        self, *, config: str = "", routes: str = ROUTES, policies: str = "", parts: Parts | None = None, watch: bool = False,
    ) -> "House":
        """Start the gateway; `config` is added to the end of config.toml."""
        self.write("config.toml", f"""
[providers.one]
adapter = "openai"
base_url = "{self.one.url}"
api_key = "env:ONE_KEY"
[providers.two]
adapter = "openai"
base_url = "{self.two.url}"
[prices."one/sim-fast"]
input = "1.00"
output = "2.00"
[prices."one/sim-large"]
input = "10.00"
output = "20.00"
[prices."two/sim-small"]
input = "0.10"
output = "0.20"
[auth]
pepper = "env:PEPPER"
[admin]
token = "env:ADMIN"
{config}
""")
        self.write("routes/routes.toml", routes)
        self.write("policies/policies.toml", policies)
        self.gateway = Gateway(self.folder / "config.toml", port=0, environ=self.environ, write=self.lines.append, parts=parts, watch=watch)
        self._parts = parts
        await self.gateway.__aenter__()
        self.is_running = True
        self.stack.push_async_callback(self.stop)
        self.key = await self.new_key(name="tests", team="blue", org="acme", roles=("dev",))
        return self

    async def stop(self) -> None:
        """End the gateway that runs, if one does."""
        if self.is_running:
            self.is_running = False
            await self.gateway.__aexit__(None, None, None)

    async def start(self, port: int) -> None:
        """Start another gateway on the same folder, once the one before has ended."""
        self.gateway = Gateway(self.folder / "config.toml", port=port, environ=self.environ, write=self.lines.append, parts=self._parts)
        await self.gateway.__aenter__()
        self.is_running = True

    async def restart(self) -> None:
        """End the gateway, and start another one on the same folder and address."""
        port = URL(self.gateway.url).port
        assert port is not None
        await self.stop()
        await self.start(port)

    async def new_key(self, **fields: Any) -> str:
        """Create a key in the store and wait until the gateway knows it."""
        assert self.gateway.app is not None
        clock = SystemClock()
        text, stored = new_key(SystemIds(clock), Secret(PEPPER), now_ns=clock.now_ns(), **fields)
        await self.gateway.app.store.keys.create(stored)
        assert self.gateway.app.keyring is not None
        await self.gateway.app.keyring.refresh()
        return text

    def client(self, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """An unmodified official client; without retries of its own unless the test asks."""
        made = openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=key or self.key, **{"max_retries": 0, **options})
        self.stack.push_async_callback(made.close)
        return made

    async def http(self) -> aiohttp.ClientSession:
        """A bare HTTP client for what no SDK would send."""
        if self.session is None:
            self.session = await self.stack.enter_async_context(aiohttp.ClientSession(self.gateway.url, auto_decompress=False))
        return self.session

    async def present(self, path: str, body: Any, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of one answer to the caller."""
        session, own = await self.http(), {"Authorization": f"Bearer {self.key}", **headers}
        async with asyncio.timeout(SOON_S), session.post(path, json=body, headers=own) as answer:
            return answer.status, answer.headers, await answer.read()

    def paying(self, more: str = "", *, method: str = "POST", path: str = "pay") -> str:
        """The route `fast` and the HTTP tool `pay`, of which the provider `one` keeps account."""
        return PAYING.format(method=method, url=f"{self.one.root}/tools/{path}", more=more)

    async def calls(self, **wanted: Any) -> list[dict[str, Any]]:
        """What the journal says, through the control endpoint."""
        session = await self.http()
        async with session.get("/-/calls", params=wanted, headers={"Authorization": f"Bearer {ADMIN}"}) as answer:
            assert answer.status == 200, await answer.text()
            rows: list[dict[str, Any]] = (await answer.json())["calls"]
            return rows

    async def call(self, call_id: str) -> dict[str, Any]:
        session = await self.http()
        async with session.get(f"/-/calls/{call_id}", headers={"Authorization": f"Bearer {ADMIN}"}) as answer:
            assert answer.status == 200, await answer.text()
            row: dict[str, Any] = await answer.json()
            return row

    async def people(self, **roles: Sequence[str]) -> None:
        """Make people who may approve, each with these roles."""
        app, clock = self.gateway.running, SystemClock()
        for name, held in roles.items():
            text, kept = new_token(SystemIds(clock), Secret(PEPPER))
            person = Person(name, name.capitalize(), "approve", tuple(held), token=kept, created_ns=clock.now_ns())
            await app.store.people.add(person, Stamped("created", "tests", clock.now_ns()))
            self.tokens[name] = text

    async def ask(self, method: str, path: str, body: Any = None, *, by: str = "admin", status: int = 200, **query: Any) -> Any:
        """Ask a control endpoint as one of the people; the answer's JSON."""
        session = await self.http()
        headers = {"Authorization": f"Bearer {self.tokens[by]}"}
        async with asyncio.timeout(SOON_S), session.request(method, path, json=body, params=query, headers=headers) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json(content_type=None)

    async def until(self, look: Callable[[], Awaitable[Any]]) -> Any:
        """The first answer of `look` that is one: what happens beside the test is seen by looking."""
        async with asyncio.timeout(SOON_S):
            while not (found := await look()):
                await asyncio.sleep(0.005)
            return found

    async def tickets(self, state: str = "pending", **wanted: Any) -> list[dict[str, Any]]:
        """The approvals in a state, oldest first."""
        rows: list[dict[str, Any]] = (await self.ask("GET", "/-/approvals", state=state, **wanted))["approvals"]
        return rows

    async def ticket(self, state: str = "pending", **wanted: Any) -> dict[str, Any]:
        """The approval in that state, once there is one; with the exact action."""
        rows = await self.until(lambda: self.tickets(state, **wanted))
        assert len(rows) == 1, rows
        shown: dict[str, Any] = (await self.ask("GET", f"/-/approvals/{rows[0]['id']}"))["approval"]
        return shown

    async def vote(self, ticket: dict[str, Any], by: str = "admin", verdict: str = "approve", **more: Any) -> dict[str, Any]:
        """One of the people votes on what they were shown; `status` is what the endpoint is to say."""
        status = more.pop("status", 200)
        body = {"verdict": verdict, "digest": ticket["digest"], **more}
        told = await self.ask("POST", f"/-/approvals/{ticket['id']}/vote", body, by=by, status=status)
        row: dict[str, Any] = told["approval"] if status == 200 else told
        return row

    async def accounts(self) -> dict[str, Balance]:
        """What stands on each account in the window that is now."""
        app = self.gateway.running
        standings = await app.store.budgets.accounts(app.snapshot.budgets, AccountFilter(), now_ns=app.clock.now_ns())
        return {each.account.name: each.counted for each in standings}

    async def spent(self, account: str) -> int:
        """What is booked on an account once nothing is under way, in nano-USD: by then nothing is set aside, on none of them."""
        app = self.gateway.running
        await app.proxy.idle(20)
        await app.proxy.settler.drained(20)
        accounts = await self.accounts()
        assert {name: balance for name, balance in accounts.items() if balance.pending} == {}
        self.assert_doctor_is_content()
        return accounts.get(account, Balance()).posted

    def assert_doctor_is_content(self) -> None:
        """Every invariant holds, and every reservation is resolved; a store in memory has no doctor."""
        database = self.folder / "lockgate.db"
        if database.exists():
            assert self.sql("SELECT seq FROM reservations LEFT JOIN settlements USING (seq) WHERE settlements.seq IS NULL") == []
            connection = open_readonly(database)
            try:
                assert [each for each in examine(connection, now_ns=SystemClock().now_ns()) if not each.invariant.note] == []
            finally:
                connection.close()

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What stands in the database."""
        connection = open_readonly(self.folder / "lockgate.db")
        try:
            rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
            return rows
        finally:
            connection.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Two simulated providers and an unopened gateway in an empty folder; what is left there is sound."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Simulator(port=0))
        two = await stack.enter_async_context(Simulator(port=0))
        made = House(tmp_path, one, two, stack)
        yield made
    if made.is_sound:
        made.assert_doctor_is_content()


class Leaping(SystemClock):
    """The real time, and as much more as the test says: a day passes at once."""

    __slots__ = ("ahead_s",)

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def leap(self, seconds: float) -> None:
        self.ahead_s += seconds

    def now_ns(self) -> int:
        return super().now_ns() + int(self.ahead_s * 1e9)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@pytest.fixture
def leaping() -> Leaping:
    return Leaping()


@dataclass
class Slow:
    """A provider that answers when it is told to: what 10 tokens ask, in 20, after each `go`."""

    config: str = ""
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    go: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.arrived.release()
        await asyncio.wait_for(self.go.wait(), 60)
        choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
        return web.json_response({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


@pytest.fixture
async def slow(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]], house: House) -> AsyncIterator[Slow]:
    """A route `slow` to such a provider, at 1 and 2 USD a million tokens; `config` is for `house.open`."""
    made, app = Slow(), web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    server = await aiohttp_server(app)
    made.config = f"""
[providers.slow]
adapter = "openai"
base_url = "{server.make_url("/v1")}"
[prices."slow/m"]
input = "1.00"
output = "2.00"
"""
    house.write("routes/slow.toml", '[[route]]\nname = "slow"\n[[route.targets]]\nprovider = "slow"\nmodel = "m"\n[route.retry]\nattempts = 1\n')
    yield made
    made.go.set()


@pytest.fixture
def messages() -> Callable[[str], list[dict[str, Any]]]:
    return lambda text: [{"role": "user", "content": text}]


@dataclass
class Town:
    """Real processes in a folder: `lockgate` commands, started and ended for real."""

    folder: Path
    running: list[asyncio.subprocess.Process] = field(default_factory=list)
    drains: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, *arguments: str, code: int = 0) -> str:
        """Run one command to its end; its standard output, or standard error where it was to fail."""
        process = await self._spawn(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, (arguments, process.returncode, out, err)
        return (err if code else out).decode()

    async def start(self, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
        """Start a server and wait for its ready line; the process and its URL."""
        process = await self._spawn(*arguments)
        self.running.append(process)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        if " ready on " not in line:
            _out, err = await asyncio.wait_for(process.communicate(), 60)
            raise AssertionError((arguments, line, err.decode()))
        self.drains.append(asyncio.create_task(_drain(process)))
        return process, line.rsplit(" ready on ", 1)[1].strip()

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", *arguments, cwd=self.folder,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)

    async def lay(self, upstream: str, *, routes: str = ROUTES, config: str = "") -> None:
        """A deployment whose providers `one` and `two` are one simulator."""
        await self.run("init", "deployment")
        self.folder = self.folder / "deployment"
        for shipped in (*self.folder.glob("routes/*.toml"), *self.folder.glob("policies/*.toml")):
            shipped.unlink()
        (self.folder / "routes/routes.toml").write_text(routes)
        (self.folder / "config.toml").write_text("".join(
            f'[providers.{name}]\nadapter = "openai"\nbase_url = "{upstream}"\n' for name in ("one", "two"))
            + f'[admin]\ntoken = "file:secrets/admin-token"\n{config}')

    async def key(self) -> str:
        text: str = json.loads(await self.run("keys", "create", "--name", "tests", "--json"))["key"]
        return text

    async def stop_all(self) -> None:
        for process in self.running:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.gather(*self.drains)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read what a server says, so that it never waits for its reader."""
    await process.communicate()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    """An empty folder for real processes; all of them are gone afterwards."""
    made = Town(tmp_path)
    yield made
    await made.stop_all()
