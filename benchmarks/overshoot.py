"""Whether money can be overspent: gateway processes on one database, thousands of calls at once, processes killed in the middle.

Calls of a seed (plain and streamed, over routes with fallbacks, some of whose clients leave) go to several `lockgate serve`, whose
simulated providers fail as the seed says, while gateway processes are killed with SIGKILL and started again. Every account is asked for
more than its limit, and small calls use up what is left at the end. Then the providers' own logs times the price table say what was
really spent. Exit code 1 where one of these does not hold:

- on every account, and in every window, what the providers bill is no more than what is booked, and that no more than the limit;
- of every call whose answer was not broken off, what the providers bill is no more than what is booked for it, and nothing was sent
  without money set aside. Of a stream that was broken off what came is booked; what its provider had made by then and nobody has seen
  is printed;
- every reservation is resolved, and `lockgate doctor` is content;
- an account that refuses calls for good has at least 97 % of its limit booked, or less left than the smallest of those calls needs.

With --after-the-fact the same load meets what other gateways do instead: a call is refused once what is booked has reached the limit.
What that overspends is printed, and no promise is checked.

    python benchmarks/overshoot.py [--calls 10000] [--processes 8] [--kills 6] [--seed N] [--after-the-fact] [--json]
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp

from gateway.cli.process import run_loop
from gateway.store.database import open_readonly

LOCKGATE: Final = (sys.executable, "-m", "gateway.cli")
IN_FLIGHT: Final = 1250  # calls at a time to one process
PATIENCE_S: Final = 150.0  # for all calls, those that wait for money included
SETTLING_S: Final = 60.0  # a dead process is found out after some 16 s
LEAST_USED: Final = 0.97
SHORTEST_NAP_S: Final = 1.0  # as `retry-after` says; doubled each time, the more callers the longer
PROMPT_TOKENS: Final = 4 + 2 + 3  # as the simulator counts "words N"
# pico-USD a token, of the input and of the output, by the provider that has the model
PRICES: Final = {"one": (500_000, 8_000_000), "two": (100_000, 2_000_000)}
TEAMS: Final = ("red", "blue")
KEYS: Final = 4
# What of all demand each budget lets through. Demand is larger on each of the accounts named here.
SHARES: Final = {"everything": 0.55, "team": 0.2, "key": 0.07, "user": 0.015}

DEPLOYMENT: Final = """
[server]
max_in_flight = 20000
drain_timeout = "20s"
[store]
busy_timeout = "30s"
[journal]
bodies = "none"
[log]
level = "warning"
[providers.one]
adapter = "openai"
base_url = "{one}"
[providers.two]
adapter = "openai"
base_url = "{two}"
[prices."one/large"]
input = "0.50"
output = "8.00"
[prices."two/small"]
input = "0.10"
output = "2.00"
[models."one/large"]
max_output = 48
[models."two/small"]
max_output = 48
"""
BUDGETS: Final = """
[budgets.everything]
scope = "all"
limit = "{everything}"
least_output = 1
[budgets.team-month]
scope = "team"
of = ["red"]
limit = "{team}"
window = "month"
timezone = "Europe/Berlin"
least_output = 1
[budgets.key-day]
scope = "key"
of = ["{k0}"]
limit = "{key}"
window = "day"
least_output = 1
[budgets.user-rolling]
scope = "user"
of = ["*.u0"]
limit = "{user}"
window = "24h"
least_output = 1
"""
SOFT: Final = """
[budgets.everything]
scope = "all"
soft = "{everything}"
"""
RULE: Final = """
[[rule]]
id = "all-is-spent"
when = '''"all" in budget.spent && budget.spent["all"] >= usd("{everything}")'''
effect = "deny"
message = "The budget is spent."
"""
ROUTES: Final = "".join(
    f'[[route]]\nname = "{name}"\n'
    + "".join(f'[[route.targets]]\nprovider = "{provider}"\nmodel = "{model}"\n' for provider, model in targets)
    + '[route.deadlines]\nheaders = "{wait_s}s"\nfirst_token = "{wait_s}s"\nidle = "{wait_s}s"\ntotal = "{total_s}s"\n'
    + f'[route.retry]\nattempts = {attempts}\nbase = "20ms"\n'
    for name, targets, attempts in (
        ("retried", (("one", "large"),), 2), ("backed-up", (("one", "large"), ("two", "small")), 1), ("cheap", (("two", "small"),), 1)))
# Which faults the providers play, and how many of a thousand requests each befalls.
FAULTS: Final = (
    ("status = 503", 40), ("status = 429\nretry_after = 0.01", 10), ("reset = true", 5), ("cut_after_chunks = 3", 15), ("end_after_chunks = 2", 5),
    ("error_event_after_chunks = 4", 5), ('garbage = "json"\ngarbage_after_chunks = 3', 5), ("empty = true", 5), ("no_usage = true", 40),
    ("drop_done = true", 5), ('delay_headers = "300ms"', 20), ("hang = true", 0.5), ("stall_after_chunks = 2", 0.5))


@dataclass(frozen=True)
class Ask:
    """One call as a client makes it. `most` is its max_tokens, `leaves` after how many chunks its client closes the connection."""

    key: int
    user: str
    route: str
    words: int
    most: int | None
    stream: bool = False
    choices: int = 1
    leaves: int | None = None

    @property
    def worth_pusd(self) -> int:
        """What it costs where all goes well."""
        input_pusd, output_pusd = PRICES["two" if self.route == "cheap" else "one"]
        return PROMPT_TOKENS * input_pusd + self.choices * min(self.words, self.most or self.words) * output_pusd

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.route, "user": f"k{self.key}.{self.user}", "messages": [{"role": "user", "content": f"words {self.words}"}]}
        if self.most is not None:
            body["max_tokens"] = self.most
        if self.choices > 1:
            body["n"] = self.choices
        if self.stream:
            body["stream"] = True
        return body


@dataclass
class Account:
    """What is known of one account in the end, in USD. `spent` is what the providers bill, `booked` what stands on it."""

    name: str
    limit: str
    spent: str
    booked: str
    used: float  # booked / limit
    refused: bool  # it refused a call for good: what was left of it did not pay for that one


@dataclass
class Report:
    seed: int
    calls: int
    processes: int
    kills: int = 0
    seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    requests: int = 0  # that the providers received
    recovered: int = 0  # calls whose process died
    broken_off: int = 0  # streams of which more was made than came and is booked
    unseen: str = "0"  # what that more costs, in USD
    unresolved: int = 0
    doctor: str = ""
    accounts: list[Account] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def draw(dice: random.Random, calls: int) -> list[Ask]:
    """The calls of a seed."""
    users = max(2, min(5, calls // 400))
    asks = []
    for _ in range(calls):
        words = dice.randrange(1, 40)
        stream = dice.random() < 0.5
        asks.append(Ask(
            dice.randrange(KEYS), f"u{dice.randrange(users)}", dice.choice(("retried", "backed-up", "backed-up", "cheap")), words,
            dice.choice((words, words, words + 20, max(1, words // 2), None)), stream, 2 if dice.random() < 0.05 else 1,
            dice.randrange(1, 12) if stream and dice.random() < 0.03 else None))
    return asks


def scenario(dice: random.Random, requests: int) -> str:
    """A provider that fails at requests that the dice choose."""
    text = '[pacing]\ndelay_between_tokens = "10ms"\n'
    for fault, of_thousand in FAULTS:
        nth = [number for number in range(1, requests) if dice.random() < of_thousand / 1000]
        text += f"[[fault]]\nmatch = {{ nth = {nth or [requests]} }}\n{fault}\n"
    return text


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


STARTED: Final = time.monotonic()


class Processes:
    """`lockgate` commands, started and ended for real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[asyncio.subprocess.Process] = []

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run one command to its end: its exit code and what it said."""
        process = await asyncio.create_subprocess_exec(
            *LOCKGATE, *arguments, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        said, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode or 0, said.decode()

    async def start(self, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
        """Start a server; it and its URL once it is ready."""
        with (self.folder / f"{arguments[0]}.err").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*LOCKGATE, *arguments, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=log)
        self._running.append(process)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
        if " ready on " not in line:
            raise SystemExit(f"`lockgate {' '.join(arguments)}` did not start: {(self.folder / f'{arguments[0]}.err').read_text()[-2000:]}")
        return process, line.rsplit(" ready on ", 1)[1].strip()

    async def stop(self, process: asyncio.subprocess.Process) -> bool:
        """Ask a server to end; whether it did in time."""
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), SETTLING_S)
        return process.returncode == 0

    def kill_all(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()


class Town:
    """The gateways, the providers and the keys of one run."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.gateways: list[tuple[asyncio.subprocess.Process, str]] = []
        self.simulators: dict[str, asyncio.subprocess.Process] = {}
        self.keys: list[tuple[str, str]] = []  # id and secret
        self.limits: dict[str, int] = {}  # nano-USD, by the name of the account

    async def build(self, asks: Sequence[Ask], dice: random.Random, *, gateways: int, after_the_fact: bool) -> None:
        """Start everything, with limits that are shares of what these calls are worth."""
        folder = self.processes.folder
        await self.processes.run("init", ".")
        for shipped in (*folder.glob("policies/*.toml"), *folder.glob("routes/*.toml")):
            shipped.unlink()
        urls = {}
        for name, requests in (("one", 3 * len(asks)), ("two", 3 * len(asks))):
            (folder / f"{name}.toml").write_text(scenario(dice, requests))
            self.simulators[name], urls[name] = await self.processes.start(
                "simulate", "--port", "0", "--scenario", f"{name}.toml", "--log", f"{name}.jsonl", "--keep", "0")
        wait_s = 5 + len(asks) // 500  # so many calls at once are slow
        (folder / "routes/routes.toml").write_text(ROUTES.format(wait_s=wait_s, total_s=2 * wait_s))
        (folder / "config.toml").write_text(DEPLOYMENT.format(**urls))
        self.keys = [await self._key(number) for number in range(KEYS)]
        worth = sum(ask.worth_pusd for ask in asks) // 1000
        nusd = {name: round(worth * share) for name, share in SHARES.items()}
        usd = {name: dollars(1000 * amount) for name, amount in nusd.items()}
        if after_the_fact:
            more = SOFT.format(**usd)
            (folder / "policies/rules.toml").write_text(RULE.format(**usd))
        else:
            more = BUDGETS.format(**usd, k0=self.keys[0][0])
            self.limits = {"team-month/red": nusd["team"], f"key-day/{self.keys[0][0]}": nusd["key"]}
            self.limits |= {f"user-rolling/{each}/k{n}.u0": nusd["user"] for n, (each, _secret) in enumerate(self.keys)}
        self.limits["everything/all"] = nusd["everything"]
        (folder / "config.toml").write_text(DEPLOYMENT.format(**urls) + more)
        self.gateways = await asyncio.gather(*(self.processes.start("serve", "--port", "0") for _ in range(gateways)))

    async def _key(self, number: int) -> tuple[str, str]:
        _code, said = await self.processes.run("keys", "create", "--name", f"k{number}", "--team", TEAMS[number % 2], "--json")
        made = json.loads(said)
        return made["id"], made["key"]

    async def kill(self, place: int) -> None:
        """Kill one gateway and start another in its place, on the same port."""
        process, url = self.gateways[place]
        process.send_signal(signal.SIGKILL)
        await process.wait()
        self.gateways[place] = await self.processes.start("serve", "--port", url.rsplit(":", 1)[1])

    def accounts_of(self, user: str) -> list[str]:
        """The accounts with a limit that a request is on, by the `user` that its provider saw: `k0.u3`."""
        number = int(user[1:user.index(".")])
        names = ["everything/all", f"team-month/{TEAMS[number % 2]}", f"key-day/{self.keys[number][0]}", f"user-rolling/{self.keys[number][0]}/{user}"]
        return [name for name in names if name in self.limits]


class Load:
    """The clients. `answers` counts what became of calls; `refusing` are the accounts that refused one for good, each with the
    nano-USD that the smallest of them would have needed.
    """

    def __init__(self, town: Town, session: aiohttp.ClientSession, dice: random.Random) -> None:
        self.answers: Counter[str] = Counter()
        self.ended = 0
        self.refusing: dict[str, int] = {}
        self._town = town
        self._session = session
        self._dice = dice
        self._turn = itertools.count()
        self._one_more = asyncio.Condition()
        self._room = [asyncio.Semaphore(IN_FLIGHT) for _ in town.gateways]

    async def all(self, asks: Sequence[Ask]) -> None:
        """Make all calls at once, each until it is answered or refused for good."""
        longest_nap_s = 2 + len(asks) / 1000
        await asyncio.gather(*(self._until_answered(ask, longest_nap_s) for ask in asks))

    async def _until_answered(self, ask: Ask, longest_nap_s: float) -> None:
        nap_s = SHORTEST_NAP_S
        for _ in range(40):
            answer = await self.once(ask)
            if answer not in ("budget_busy", "disconnected", "store_unavailable", "overloaded"):
                break
            await asyncio.sleep(nap_s * (0.5 + self._dice.random()) if answer != "disconnected" else 0)
            nap_s = min(longest_nap_s, 2 * nap_s)
        async with self._one_more:
            self.ended += 1
            self._one_more.notify_all()

    async def have_ended(self, count: int) -> None:
        """Wait until so many calls are answered, or refused for good."""
        async with self._one_more:
            await self._one_more.wait_for(lambda: self.ended >= count)

    async def once(self, ask: Ask) -> str:
        """Make one call and say what became of it: `served`, `left`, `disconnected`, or the error's code."""
        place = next(self._turn) % len(self._room)
        async with self._room[place]:
            try:
                answer = await self._send(ask, self._town.gateways[place][1])
            except (aiohttp.ClientError, ConnectionError):
                answer = "disconnected"
        self.answers[answer] += 1
        return answer

    async def _send(self, ask: Ask, url: str) -> str:
        headers = {"Authorization": f"Bearer {self._town.keys[ask.key][1]}"}
        async with self._session.post(f"{url}/v1/chat/completions", json=ask.body, headers=headers) as answer:
            if answer.status != 200:
                error = (await answer.json())["error"]
                if error["code"] == "budget_exceeded":
                    account, needed = error["account"], round(Decimal(error["needed_usd"]) * 10**9)
                    self.refusing[account] = min(needed, self.refusing.get(account, needed))
                return str(error["code"] or error["type"])
            if ask.leaves is not None:
                for _ in range(ask.leaves):
                    await answer.content.readline()
                answer.close()
                return "left"
            whole = await answer.read()
            return "cut" if ask.stream and not whole.endswith(b"[DONE]\n\n") else "served"

    async def use_up(self, users: Sequence[tuple[int, str]]) -> None:
        """Small calls of everybody until each is refused for good: what is left then does not pay for the smallest."""
        await asyncio.gather(*(self._use_up(key, user) for key, user in users))

    async def _use_up(self, key: int, user: str) -> None:
        for route in ("retried", "cheap"):
            while (answer := await self.once(Ask(key, user, route, 100, 100))) not in ("budget_exceeded", "forbidden"):
                if answer in ("budget_busy", "store_unavailable"):  # held by a call in flight, or by one whose process died
                    await asyncio.sleep(0.2 + 0.2 * self._dice.random())


async def play(options: argparse.Namespace, folder: Path) -> Report:
    dice = random.Random(options.seed)  # noqa: S311 - a seed that is printed, to have the same run again
    asks = draw(dice, options.calls)
    report = Report(options.seed, options.calls, options.processes)
    processes = Processes(folder)
    town = Town(processes)
    try:
        await town.build(asks, dice, gateways=options.processes, after_the_fact=options.after_the_fact)
        say(f"{options.processes} gateways and 2 providers run; {options.calls} calls begin")
        began = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
            load = Load(town, session, random.Random(dice.random()))  # noqa: S311 - as above
            killing = asyncio.create_task(kill_at_random(town, load, dice, options))
            telling = asyncio.create_task(tell(load))
            async with asyncio.timeout(PATIENCE_S):
                await load.all(asks)
                report.kills = await killing
                say("all calls are answered or refused; what is left is used up")
                await load.use_up(sorted({(ask.key, ask.user) for ask in asks}))
            telling.cancel()
            report.answers = dict(load.answers.most_common())
        report.seconds = round(time.monotonic() - began, 1)
        report.unresolved = await resolved(folder / "lockgate.db")
        ended = [await processes.stop(process) for process in (*(each for each, _url in town.gateways), *town.simulators.values())]
        code, said = await processes.run("doctor")
        report.doctor = "clean" if code == 0 else said
        judge(report, town, load.refusing, after_the_fact=options.after_the_fact)
        report.broken += [] if all(ended) else ["a server did not end when it was asked to"]
    finally:
        processes.kill_all()
    return report


async def tell(load: Load) -> None:
    """Say every few seconds how it goes."""
    while True:
        await asyncio.sleep(5)
        say(f"{load.ended} calls have ended; answers: {dict(load.answers.most_common())}")


async def kill_at_random(town: Town, load: Load, dice: random.Random, options: argparse.Namespace) -> int:
    """Kill gateways while money flows, and start others in their place; how many were."""
    restarts: dict[int, asyncio.Task[None]] = {}
    moments = sorted(dice.uniform(0.1, 0.4) for _ in range(options.kills))
    for number, moment in enumerate(moments, 1):
        await load.have_ended(round(moment * options.calls))
        place = dice.randrange(options.processes)
        if place in restarts:
            await restarts[place]
        say(f"kill -9 of gateway {place + 1} ({number} of {options.kills})")
        restarts[place] = asyncio.create_task(town.kill(place))
    await asyncio.gather(*restarts.values())
    return len(moments)


async def resolved(database: Path) -> int:
    """Wait until no reservation is unresolved, and say how many still are when the wait is over."""
    end = time.monotonic() + SETTLING_S
    while True:
        connection = open_readonly(database)
        try:
            (left,) = connection.execute("SELECT count(*) FROM reservations WHERE seq NOT IN (SELECT seq FROM settlements)").fetchone()
        finally:
            connection.close()
        if not left or time.monotonic() > end:
            return int(left)
        say(f"{left} reservations are unresolved")
        await asyncio.sleep(2)


def judge(report: Report, town: Town, refusing: Mapping[str, int], *, after_the_fact: bool) -> None:
    """Compare what the providers bill with the books and the limits."""
    by_call: Counter[str] = Counter()
    by_account: Counter[str] = Counter()
    for call_id, user, pusd in billed(town.processes.folder):
        report.requests += 1
        by_call[call_id] += pusd
        for name in town.accounts_of(user):
            by_account[name] += pusd
    books = Books(town.processes.folder / "lockgate.db")
    report.recovered = books.recovered
    for name, limit in sorted(town.limits.items()):
        booked = books.accounts[name]
        report.accounts.append(Account(
            name, dollars(1000 * limit), dollars(by_account[name]), dollars(1000 * booked), round(booked / limit, 4), name in refusing))
    if not after_the_fact:
        unseen = [pusd - 1000 * books.calls[call_id] for call_id, pusd in by_call.items()
                  if call_id in books.broken_off and pusd > 1000 * books.calls[call_id]]
        report.broken_off, report.unseen = len(unseen), dollars(sum(unseen))
        report.broken = [*broken_calls(by_call, books), *broken_accounts(by_account, books, town.limits, refusing)]
        report.broken += [f"{report.unresolved} reservations are unresolved"] if report.unresolved else []
        report.broken += [f"doctor: {report.doctor}"] if report.doctor != "clean" else []


def broken_calls(by_call: Counter[str], books: "Books") -> Iterator[str]:
    for call_id, pusd in by_call.items():
        if call_id not in books.calls:
            yield f"call {call_id} was sent without money set aside"
        elif pusd > 1000 * books.calls[call_id] and call_id not in books.broken_off:
            yield f"call {call_id} is billed {dollars(pusd)}, booked are {dollars(1000 * books.calls[call_id])}"


def broken_accounts(by_account: Counter[str], books: "Books", limits: Mapping[str, int], refusing: Mapping[str, int]) -> Iterator[str]:
    for name, limit in sorted(limits.items()):
        booked, spent = books.accounts[name], by_account[name]
        if spent > 1000 * booked:
            yield f"{name}: the providers bill {dollars(spent)}, booked are {dollars(1000 * booked)}"
        if name in refusing and booked < LEAST_USED * limit and limit - booked >= refusing[name]:
            yield (f"{name} refuses a call that needs {dollars(1000 * refusing[name])} with {dollars(1000 * (limit - booked))} "
                   f"of {dollars(1000 * limit)} left")
        if books.pending[name]:
            yield f"{name} still has {dollars(1000 * books.pending[name])} set aside"
    for (name, window), booked in books.windows.items():
        if name in limits and booked > limits[name]:
            yield f"{window} has {dollars(1000 * booked)} booked, its limit is {dollars(1000 * limits[name])}"
    if not refusing:
        yield "no account has refused a call for good"


def billed(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Of each request that a provider billed: the call, its user, and what it costs in pico-USD."""
    for name, (input_pusd, output_pusd) in PRICES.items():
        with (folder / f"{name}.jsonl").open("rb") as lines:
            for line in lines:
                entry = json.loads(line)
                tokens = entry["billed"] or {"prompt_tokens": 0, "completion_tokens": 0}
                cost = tokens["prompt_tokens"] * input_pusd + tokens["completion_tokens"] * output_pusd
                yield entry["client_request_id"].rpartition(".")[0], entry["body"]["user"], cost


class Books:
    """What stands in the database."""

    def __init__(self, database: Path) -> None:
        connection = open_readonly(database)
        try:
            calls = connection.execute(
                "SELECT calls.id, settlements.cost_nusd, how, outcome FROM reservations JOIN calls USING (seq) "
                "LEFT JOIN settlements USING (seq) LEFT JOIN outcomes USING (seq)").fetchall()
            balances = connection.execute("SELECT budget, subject, span, window_ns, posted_nusd, pending_nusd FROM balances").fetchall()
        finally:
            connection.close()
        self.calls: dict[str, int] = {call: cost or 0 for call, cost, _how, _outcome in calls}
        self.broken_off = {call for call, _cost, _how, outcome in calls if outcome in ("cut", "cancelled")}
        self.recovered = sum(how == "recovered" for _call, _cost, how, _outcome in calls)
        self.accounts: defaultdict[str, int] = defaultdict(int)
        self.pending: defaultdict[str, int] = defaultdict(int)
        self.windows: defaultdict[tuple[str, str], int] = defaultdict(int)
        for budget, subject, span, window_ns, posted, pending in balances:
            name = f"{budget}/{subject}"
            self.accounts[name] += posted
            self.pending[name] += pending
            # The steps of a rolling window that is longer than the run all count at once.
            self.windows[name, f"{name} ({span})" if span.startswith("rolling") else f"{name} ({span} {window_ns})"] += posted


def dollars(pusd: int) -> str:
    whole, rest = divmod(pusd, 10**12)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")


def show(report: Report, *, after_the_fact: bool) -> None:
    print(f"seed {report.seed}: {report.calls} calls to {report.processes} processes in {report.seconds} s, {report.kills} of them killed")
    print(f"what clients got: {', '.join(f'{count} {answer}' for answer, count in report.answers.items())}")
    print(f"{report.requests} requests reached the providers; {report.recovered} calls were settled for processes that died\n")
    print(f"{'account':<42}{'limit USD':>14}{'billed':>18}{'booked':>14}{'used':>9}")
    for account in report.accounts:
        note = "" if account.refused or after_the_fact else "  (never refused)"
        print(f"{account.name:<42}{account.limit:>14}{account.spent:>18}{account.booked:>14}{account.used:>9.2%}{note}")
    if after_the_fact:
        (everything,) = report.accounts
        over = float(everything.spent) / float(everything.limit) - 1
        print(f"\nChecked after the fact: the providers bill {everything.spent} USD of a budget of {everything.limit}, which is {over:+.1%}.")
        return
    if report.broken_off:
        print(f"\nof {report.broken_off} streams that were broken off more had been made than came: {report.unseen} USD, part of what is billed")
    print(f"\nunresolved reservations: {report.unresolved}; doctor: {report.doctor}")
    for sentence in report.broken[:20]:
        print(f"BROKEN  {sentence}")
    print("All promises hold." if not report.broken else f"{len(report.broken)} promises are broken.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=8, help="gateway processes on the one database")
    parser.add_argument("--kills", type=int, default=6, help="how often one of them is killed")
    parser.add_argument("--seed", type=int, default=None, help="of the calls, the faults and the kills; a random one without")
    parser.add_argument("--after-the-fact", action="store_true", help="compare what is booked with the limit instead of setting money aside")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    options.seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="lockgate-overshoot-", ignore_cleanup_errors=True) as name, contextlib.suppress(KeyboardInterrupt):
        folder = Path(name) / "deployment"
        folder.mkdir()
        report = run_loop(play(options, folder))
        if options.json:
            print(json.dumps(asdict(report), indent=2))
        else:
            show(report, after_the_fact=options.after_the_fact)
        sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
