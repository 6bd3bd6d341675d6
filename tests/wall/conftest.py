"""The wall: a gateway before two simulated providers, `one` that misbehaves and `two` that is well, with a budget on everything.

`--wall-table` prints what each scenario came to: what the client saw, how long it took, the attempts, and the cost booked beside the truth.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import openai
import pytest

from gateway.clock import SystemClock, SystemIds
from gateway.embed import Gateway
from gateway.keyring import new_key
from gateway.secret import Secret
from gateway.simulator import Entry, Simulator
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.protocol import AccountFilter

PEPPER: Final = "pepper-of-the-tests-0123456789abcdef"
ADMIN: Final = "admin-token-of-the-tests"
PRICES_NUSD: Final = {"one": (1000, 2000), "two": (3000, 4000)}  # a token of input, of output; as in CONFIG
SLACK_S: Final = 5.0  # what a busy machine may add to a deadline
MOST_S: Final = 30.0  # no wait of the wall is longer

CONFIG: Final = """
[prices."one/m"]
input = "1.00"
output = "2.00"
[prices."two/m"]
input = "3.00"
output = "4.00"
[budgets.everything]
scope = "all"
limit = "5000.00"
[budgets.each-key]
scope = "key"
limit = "4000.00"
[budgets.each-route]
scope = "route"
limit = "4000.00"
[auth]
pepper = "env:PEPPER"
[admin]
token = "env:ADMIN"
"""


@dataclass
class Row:
    """A line of the table."""

    number: int = 0
    name: str = ""
    mode: str = ""
    saw: str = ""
    seconds: float = 0.0
    attempts: int = 0
    booked_nusd: int = 0
    truth_nusd: int = 0

    def cells(self) -> list[str]:
        """The line, but for its verdict."""
        return [str(self.number), self.name, self.mode, self.saw, f"{self.seconds:.2f} s", str(self.attempts),
                f"{self.booked_nusd / 1e9:.7f}", f"{self.truth_nusd / 1e9:.7f}"]


HEAD: Final = ("#", "scenario", "mode", "the client saw", "time", "attempts", "booked USD", "truth USD", "")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wall-table", action="store_true", help="print what each scenario of tests/wall came to")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, one line a test, in the order of the scenarios; a row travels from another process with its report."""
    if not config.getoption("--wall-table", default=False):
        return
    lines: list[tuple[int, list[str]]] = []
    for outcome, verdict in (("passed", "pass"), ("failed", "FAIL"), ("error", "FAIL"), ("skipped", "skipped")):
        for report in terminalreporter.stats.get(outcome, ()):
            cells = dict(getattr(report, "user_properties", ())).get("wall")
            if cells is not None:
                lines.append((int(cells[0]), [*cells, verdict]))
    lines.sort(key=lambda line: line[0])
    table = [list(HEAD), *(cells for _number, cells in lines)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    terminalreporter.section("the wall")
    for row in table:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    passed = sum(cells[-1] == "pass" for _number, cells in lines)
    terminalreporter.write_line(f"{passed} of {len(lines)} pass, {len({number for number, _cells in lines})} scenarios")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Give the row to the report of the test, as it stood when the test ended."""
    row = item.stash.get(ROW, None)
    if row is not None:
        item.user_properties[:] = [each for each in item.user_properties if each[0] != "wall"] + [("wall", row.cells())]
    return (yield)


ROW: Final = pytest.StashKey[Row]()


@dataclass
class Seen:
    """What a client saw of one call: its text so far, and the error that ended it."""

    text: str = ""
    error: Exception | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        words = len(self.text.split())
        said = f"{words} word{'s' * (words != 1)}" if len(self.text) < 10_000 else f"{len(self.text) / 2**20:.1f} MiB"
        match self.error:
            case None:
                return f"{said}, whole"
            case openai.APIStatusError():
                return f"{self.error.status_code} {self.error.code}"
            case openai.APIError():
                return f"{said}, then an error event {self.error.code}"
            case _:
                return type(self.error).__name__

    @property
    def code(self) -> str | None:
        """The code of the error that it ended with."""
        return self.error.code if isinstance(self.error, openai.APIError) else None

    @property
    def status(self) -> int | None:
        """The status of that error; None where it stood in a stream that had begun."""
        return self.error.status_code if isinstance(self.error, openai.APIStatusError) else None


@dataclass
class Books:
    """What was booked on each account, beside what the providers charge."""

    booked_nusd: int
    truth_nusd: int
    calls: Sequence[Mapping[str, Any]]

    @property
    def call(self) -> Mapping[str, Any]:
        """The one call there was."""
        (call,) = self.calls
        return call

    @property
    def attempts(self) -> list[tuple[str, str]]:
        """Where each attempt of the one call went, and its cause where it failed, else how it ended."""
        return [(each["target"], each["cause"] or each["end"]) for each in self.call["attempts"]]


@dataclass
class Wall:
    """What a scenario plays in."""

    folder: Path
    one: Simulator
    two: Simulator
    stack: AsyncExitStack
    stream: bool
    row: Row
    lines: list[bytes] = field(default_factory=list)
    gateway: Gateway = field(init=False)
    key: str = ""

    def scene(self, number: int, name: str) -> None:
        """Say which scenario of the wall this is."""
        self.row.number, self.row.name = number, name

    async def open(self, *, deadlines: Mapping[str, str] | None = None, attempts: int = 1, extra: str = "", target: str = "",
                   config: str = "", cap: str = "200ms", one: str = "") -> "Wall":
        """Start the gateway. Routes: `pair` goes to one, then two; `lone` to one alone; `extra` is said in both, `target` of each target.

        `one` is another address for that provider.
        """
        providers = "".join(f'[providers.{name}]\nadapter = "openai"\nbase_url = "{url}"\nmax_answer = "64MiB"\n'
                            for name, url in (("one", one or self.one.url), ("two", self.two.url)))
        (self.folder / "config.toml").write_text(providers + CONFIG + config)
        waits = {"connect": "10s", "headers": "10s", "first_token": "10s", "idle": "10s", "total": "20s", **(deadlines or {})}
        text = ""
        for name, targets in (("pair", ("one", "two")), ("lone", ("one",))):
            text += f'[[route]]\nname = "{name}"\n'
            text += "".join(f'[[route.targets]]\nprovider = "{each}"\nmodel = "m"\n{target}' for each in targets)
            text += "[route.deadlines]\n" + "".join(f'{key} = "{value}"\n' for key, value in waits.items())
            text += f'[route.retry]\nattempts = {attempts}\nbase = "1ms"\ncap = "{cap}"\n{extra}\n'
        (self.folder / "routes").mkdir()
        (self.folder / "routes/routes.toml").write_text(text)
        (self.folder / "policies").mkdir()
        self.gateway = Gateway(self.folder / "config.toml", port=0, environ={"PEPPER": PEPPER, "ADMIN": ADMIN}, write=self.lines.append)
        await self.stack.enter_async_context(self.gateway)
        clock = SystemClock()
        self.key, stored = new_key(SystemIds(clock), Secret(PEPPER), now_ns=clock.now_ns(), name="wall")
        await self.gateway.running.store.keys.create(stored)
        assert self.gateway.running.keyring is not None
        await self.gateway.running.keyring.refresh()
        return self

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, retries of its own included unless the test says otherwise."""
        made = openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.key, **options)
        self.stack.push_async_callback(made.close)
        return made

    async def ask(self, route: str, text: str, *, client: openai.AsyncOpenAI | None = None, **asked: Any) -> Seen:
        """One call to its end, whatever that is."""
        seen, began = Seen(), time.monotonic()
        try:
            async with asyncio.timeout(MOST_S):
                await _converse(client or self.client(), seen, model=route, stream=self.stream,
                                messages=[{"role": "user", "content": text}], **asked)
        except openai.OpenAIError as error:
            seen.error = error
        seen.seconds = time.monotonic() - began
        self.row.saw, self.row.seconds = str(seen), seen.seconds
        return seen

    async def ask_in_thread(self, route: str, text: str) -> Seen:
        """The same with the official client that blocks."""
        async with asyncio.timeout(MOST_S):
            seen = await asyncio.to_thread(_ask_blocking, self.gateway.url, self.key, route, text, self.stream)
        self.row.saw, self.row.seconds = str(seen), seen.seconds
        return seen

    async def books(self, *, exact: bool) -> Books:
        """Close the day: everything has ended, nothing is set aside, every account holds the same, and no less than the truth.

        `exact`: every provider said what it used, so not a nano-dollar more either.
        """
        app = self.gateway.running
        await app.proxy.idle(MOST_S)
        await app.proxy.settler.drained(MOST_S)
        entries = await self.entries()
        standings = await app.store.budgets.accounts(app.snapshot.budgets, AccountFilter(), now_ns=app.clock.now_ns())
        assert [each.account.name for each in standings if each.counted.pending] == []
        by_scope = {each.account.scope: each.counted.posted for each in standings}
        ((booked, attempts),) = self.sql("SELECT coalesce(sum(cost_nusd), 0), count(*) FROM attempts")
        assert by_scope == dict.fromkeys(("all", "key", "route") if attempts else (), booked)
        truth = sum(_owed(name, entry) for name, each in entries.items() for entry in each)
        self.row.booked_nusd, self.row.truth_nusd = booked, truth
        self.row.attempts = attempts
        assert booked >= truth
        assert not exact or booked == truth
        self._ask_the_doctor()
        return Books(booked, truth, await self._calls())

    async def entries(self) -> dict[str, list[Entry]]:
        """What each provider was sent, once all of it has ended there."""
        return {name: await each.finished(len(each.requests), MOST_S) for name, each in (("one", self.one), ("two", self.two))}

    async def _calls(self) -> list[Mapping[str, Any]]:
        """The last calls on record with all that is known of them, oldest first."""
        async with aiohttp.ClientSession(self.gateway.url, headers={"Authorization": f"Bearer {ADMIN}"}) as session:
            async with session.get("/-/calls", params={"limit": 10}) as answer:
                ids = [row["id"] for row in (await answer.json())["calls"]]
            found = []
            for each in reversed(ids):
                async with session.get(f"/-/calls/{each}") as answer:
                    found.append(await answer.json())
        return found

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What stands in the database."""
        connection = open_readonly(self.folder / "lockgate.db")
        try:
            rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
            return rows
        finally:
            connection.close()

    def _ask_the_doctor(self) -> None:
        assert self.sql("SELECT seq FROM reservations LEFT JOIN settlements USING (seq) WHERE settlements.seq IS NULL") == []
        connection = open_readonly(self.folder / "lockgate.db")
        try:
            assert [each for each in examine(connection, now_ns=SystemClock().now_ns()) if not each.invariant.note] == []
        finally:
            connection.close()


async def _converse(client: openai.AsyncOpenAI, seen: Seen, **asked: Any) -> None:
    """What an application does: create, then read. What has come before an error is kept."""
    answer = await client.chat.completions.create(**asked)
    if not asked["stream"]:
        seen.text = answer.choices[0].message.content or ""
        return
    reasons = []
    async for chunk in answer:
        for choice in chunk.choices:
            seen.text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert reasons == ["stop"]  # a stream that ends without one has no normal end, and must raise


def _ask_blocking(url: str, key: str, route: str, text: str, stream: bool) -> Seen:  # noqa: FBT001 - passed on by a thread
    seen, began = Seen(), time.monotonic()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=MOST_S) as client:
        try:
            answer: Any = client.chat.completions.create(model=route, stream=stream, messages=[{"role": "user", "content": text}])
            if stream:
                for chunk in answer:
                    seen.text += "".join(choice.delta.content or "" for choice in chunk.choices)
            else:
                seen.text = answer.choices[0].message.content or ""
        except openai.OpenAIError as error:
            seen.error = error
    seen.seconds = time.monotonic() - began
    return seen


def _owed(provider: str, entry: Entry) -> int:
    if entry.billed is None:
        return 0
    read, written = PRICES_NUSD[provider]
    return entry.billed.prompt_tokens * read + entry.billed.completion_tokens * written


@pytest.fixture(params=[False, True], ids=["plain", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    """Every scenario is seen twice: as a whole answer and as a stream."""
    streamed: bool = request.param
    return streamed


@pytest.fixture
async def wall(request: pytest.FixtureRequest, tmp_path: Path, stream: bool) -> AsyncIterator[Wall]:  # noqa: FBT001 - a fixture
    """Two simulated providers and an unopened gateway; at the end nothing has failed that nobody was told of."""
    row = request.node.stash[ROW] = Row(name=request.node.name, mode="stream" if stream else "plain")
    stray: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: stray.append(f"{context['message']}: {context.get('exception')!r}"))
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Simulator(port=0))
        two = await stack.enter_async_context(Simulator(port=0))
        yield Wall(tmp_path, one, two, stack, stream, row)
    assert stray == []  # no task failed without anybody to hear of it


@pytest.fixture
def slack_s() -> float:
    """What a busy machine may add to a deadline before a test says that it was not kept."""
    return SLACK_S
