"""Whether clients that go away at any point leave anything behind: money, reservations, connections, tasks, memory.

Calls of a seed, plain and streamed, to one `lockgate serve`; each client leaves at a random point: while it connects, in the middle of the
head, after it, in the middle of the body, while it waits, after the first token, in the middle of the stream, before the last chunk, right at the
end, or never. Every account that a call is on has a budget, and every key a rate. The providers fail now and then. Exit code 1 where one
of these does not hold in the end:

- no call is billed at more than is booked for it, and where its provider said what was used the two are equal;
- every reservation is resolved, no account has money set aside, no rate counts a call as running, and `lockgate doctor` is content;
- every client that stayed has its whole answer;
- the gateway has as many sockets open as before the first call, and its memory has not grown over the second half of the calls.

With --in-process the gateway runs on this program's own loop, and must leave no task behind either.

    python benchmarks/disconnects.py [--calls 2000] [--clients 64] [--seed N] [--in-process] [--json]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.books import Bill, Books, bills, dollars
from benchmarks.leaving import POINTS, Leaver, draw, leave
from benchmarks.processes import SETTLING_S, Processes, allow_all_descriptors, percentile, resolved, rss_mib, say, slope, sockets
from gateway.cli.process import run_loop
from gateway.embed import Gateway

GROWTH: Final = 0.04  # of its memory that a gateway may grow by over the second half of the calls: more is no noise of the allocator
SAMPLES: Final = 60  # of its memory
CALM_S: Final = 45.0  # for idle connections to be closed: they are kept for 30 s
PRICES: Final = {"one": (500_000, 8_000_000), "two": (100_000, 2_000_000)}  # pico-USD a token, of the input and of the output
ROUTES: Final = ("retried", "backed-up")

CONFIG: Final = """
[server]
max_in_flight = 5000
[journal]
bodies = "none"
[log]
level = "error"
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
[budgets.everything]
scope = "all"
limit = "1000000"
[budgets.key-day]
scope = "key"
limit = "1000000"
window = "day"
[budgets.user-rolling]
scope = "user"
limit = "1000"
window = "24h"
"""
ROUTE_FILE: Final = """
[[route]]
name = "retried"
[[route.targets]]
provider = "one"
model = "large"
[route.retry]
attempts = 3
base = "5ms"
[[route]]
name = "backed-up"
[[route.targets]]
provider = "one"
model = "large"
[[route.targets]]
provider = "two"
model = "small"
[route.retry]
attempts = 1
"""
RULES: Final = """
[[rule]]
id = "at-a-time"
effect = "limit"
limit = { concurrent = 100000, by = ["key"] }
"""
PACE: Final = '[pacing]\ndelay_first_token = "15ms"\ndelay_between_tokens = "4ms"\n'
FAULTS: Final = (("status = 503", 20), ('delay_headers = "100ms"', 30), ("no_usage = true", 50), ("cut_after_chunks = 3", 10))  # of a thousand


@dataclass
class At:
    """What came of the calls whose clients left at one point. `gone_ms` is how long after them their providers knew."""

    calls: int = 0
    reached: int = 0  # requests that a provider received
    seen: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    billed: str = "0"
    booked: str = "0"
    gone_p50_ms: float | None = None
    gone_p99_ms: float | None = None
    gone_max_ms: float | None = None


@dataclass
class Report:
    seed: int
    calls: int
    in_process: bool
    seconds: float = 0.0
    points: dict[str, At] = field(default_factory=dict)
    equal: int = 0  # calls whose provider said what it used, and whose booking is that to the last digit
    more: int = 0  # calls that are booked at more than is billed
    sockets: tuple[int, int] = (0, 0)  # before and after
    tasks: tuple[int, int] = (0, 0)
    memory_mib: list[float] = field(default_factory=list)
    growth: float = 0.0  # over the second half of the calls, as a share
    unresolved: int = 0
    doctor: str = ""
    broken: list[str] = field(default_factory=list)


@dataclass
class Ended:
    leaver: Leaver
    seen: str
    left_ns: int


class House:
    """The gateway under test: a process of its own, or a part of this one."""

    def __init__(self, processes: Processes, *, in_process: bool) -> None:
        self.processes = processes
        self.key = self.host = ""
        self.pid = self.port = 0
        self.complaints: list[str] = []
        self._in_process = in_process

    async def lay(self, dice: random.Random, calls: int) -> None:
        await self.processes.lay()
        folder, urls = self.processes.folder, {}
        for name in PRICES:
            (folder / f"{name}.toml").write_text(scenario(dice, 2 * calls))
            _process, urls[name] = await self.processes.start("simulate", "--port", "0", "--scenario", f"{name}.toml", "--log", f"{name}.jsonl", "--keep", "0")
        (folder / "config.toml").write_text(CONFIG.format(**urls))
        (folder / "routes/routes.toml").write_text(ROUTE_FILE)
        (folder / "policies/rules.toml").write_text(RULES)
        _id, self.key = await self.processes.key("leavers")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Where it does not end when it is asked to, that is said in `complaints`."""
        if self._in_process:
            stack = AsyncExitStack()
            gateway = await stack.enter_async_context(Gateway(self.processes.folder / "config.toml", port=0))
            self._is_at(gateway.url, os.getpid())
            yield
            try:
                async with asyncio.timeout(SETTLING_S):
                    await stack.aclose()
            except TimeoutError:
                self.complaints.append("the gateway did not end when it was asked to")
        else:
            process, url = await self.processes.start("serve", "--port", "0")
            self._is_at(url, process.pid)
            yield
            if not await self.processes.stop(process):
                self.complaints.append(f"the gateway did not end as it should when it was asked to: {process.returncode}")

    def _is_at(self, url: str, pid: int) -> None:
        self.host, self.port, self.pid = urlsplit(url).hostname or "", urlsplit(url).port or 0, pid


def scenario(dice: random.Random, requests: int) -> str:
    """A provider that fails at requests that the dice choose."""
    text = PACE
    for fault, of_thousand in FAULTS:
        nth = [number for number in range(1, requests) if dice.random() < of_thousand / 1000]
        text += f"[[fault]]\nmatch = {{ nth = {nth or [requests]} }}\n{fault}\n"
    return text


async def play(options: argparse.Namespace, folder: Path) -> Report:
    dice = random.Random(options.seed)  # noqa: S311 - a seed that is printed, to have the same run again
    report = Report(options.seed, options.calls, options.in_process)
    house = House(Processes(folder), in_process=options.in_process)
    try:
        await house.lay(dice, options.calls)
        async with house.open():
            before = sockets(house.pid), len(asyncio.all_tasks())
            began = time.monotonic()
            ended = await under_load(house, [draw(dice, number, ROUTES) for number in range(options.calls)], options.clients, report)
            report.seconds = round(time.monotonic() - began, 1)
            say("all clients have left; what they left behind is waited for")
            report.unresolved = await resolved(folder / "lockgate.db")
            after = await calm(house.pid, before)
            report.sockets, report.tasks = (before[0], after[0]), (before[1], after[1])
        code, said = await house.processes.run("doctor")
        report.doctor = "clean" if code == 0 else said
        report.broken += house.complaints
    finally:
        house.processes.kill_all()
    judge(report, ended, list(bills(folder, PRICES)), Books(folder / "lockgate.db"))
    return report


async def under_load(house: House, leavers: Sequence[Leaver], clients: int, report: Report) -> list[Ended]:
    """Make all calls, so many at a time, and look at the memory of the gateway in between."""
    ended: list[Ended] = []
    every, left = max(1, len(leavers) // SAMPLES), iter(leavers)

    async def client() -> None:
        for leaver in left:
            ended.append(Ended(leaver, *await leave(leaver, house.host, house.port, house.key)))
            if len(ended) % every == 0:
                report.memory_mib.append(round(rss_mib(house.pid), 2))
            if len(ended) % (10 * every) == 0:
                say(f"{len(ended)} clients have left")

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return ended


async def calm(pid: int, before: tuple[int, int]) -> tuple[int, int]:
    """Wait until as few sockets are open and as few tasks run as before; how many are when the wait is over."""
    end = time.monotonic() + CALM_S
    while True:
        now = sockets(pid), len(asyncio.all_tasks())
        if (now[0] <= before[0] and now[1] <= before[1]) or time.monotonic() > end:
            return now
        await asyncio.sleep(1)


def judge(report: Report, ended: Sequence[Ended], sent: Sequence[Bill], books: Books) -> None:
    report.points = dict(by_point(ended, sent, books))
    half = report.memory_mib[len(report.memory_mib) // 2:]
    report.growth = round(slope(list(enumerate(half))) * len(half) / half[0], 4) if half else 0.0
    billed: Counter[str] = Counter()
    for bill in sent:
        billed[bill.call] += bill.pusd
    report.equal = sum(1000 * books.calls.get(call, -1) == pusd and call not in books.estimated for call, pusd in billed.items())
    report.more = sum(1000 * books.calls.get(call, -1) > pusd for call, pusd in billed.items())
    report.broken += [*broken_calls(billed, sent, books), *broken_accounts(books), *broken_answers(ended, sent)]
    report.broken += [f"{report.unresolved} reservations are unresolved"] if report.unresolved else []
    report.broken += [f"doctor: {report.doctor}"] if report.doctor != "clean" else []
    report.broken += [f"{what}: {before} before the first call, {after} after the last" for what, (before, after) in
                      (("open sockets", report.sockets), ("tasks", report.tasks)) if after > before]
    report.broken += [f"memory grew by {report.growth:.1%} over the second half of the calls"] if report.growth > GROWTH else []


def by_point(ended: Sequence[Ended], sent: Sequence[Bill], books: Books) -> Iterator[tuple[str, At]]:
    of_call: defaultdict[str, list[Bill]] = defaultdict(list)
    for bill in sent:
        of_call[bill.asked].append(bill)
    for point in POINTS:
        calls = [each for each in ended if each.leaver.point == point]
        made = [bill for each in calls for bill in of_call[each.leaver.text]]
        ids = {bill.call for bill in made}
        gone_ms = sorted((bill.client_gone_ns - each.left_ns) / 1e6 for each in calls for bill in of_call[each.leaver.text] if bill.client_gone_ns)
        told = (round(percentile(gone_ms, share), 1) for share in (0.5, 0.99, 1)) if gone_ms else (None, None, None)
        yield point, At(
            len(calls), len(made), dict(Counter(each.seen for each in calls)), dict(Counter(books.outcomes.get(call, "none") for call in ids)),
            dollars(sum(bill.pusd for bill in made)), dollars(1000 * sum(books.calls.get(call, 0) for call in ids)), *told)


def broken_calls(billed: Counter[str], sent: Sequence[Bill], books: Books) -> Iterator[str]:
    silent = {bill.call for bill in sent if bill.pusd and not bill.told}  # a provider did not say, or not all of its answer went out
    for call, pusd in billed.items():
        if call not in books.calls:
            yield f"call {call} was sent without money set aside"
            continue
        booked = 1000 * books.calls[call]
        if pusd > booked:
            yield f"call {call} is billed {dollars(pusd)}, booked are {dollars(booked)}, it is {books.outcomes[call]}"
        elif pusd != booked and call not in books.estimated:
            yield f"call {call} is billed {dollars(pusd)}, booked are {dollars(booked)}, and that is no estimate"
        elif call in books.estimated and call not in silent and books.outcomes[call] == "completed":
            yield f"call {call} is booked at an estimate, though its provider said what it used"


def broken_accounts(books: Books) -> Iterator[str]:
    booked = sum(books.calls.values())
    for budget in ("everything", "key-day", "user-rolling"):
        posted = sum(amount for name, amount in books.accounts.items() if name.startswith(f"{budget}/"))
        if posted != booked:
            yield f"the accounts of {budget} have {dollars(1000 * posted)} booked, the calls {dollars(1000 * booked)}"
    yield from (f"{name} still has {dollars(1000 * pending)} set aside" for name, pending in books.pending.items() if pending)
    yield from (f"{count} calls of {whose} still count as running" for whose, count in books.taken.items())


def broken_answers(ended: Sequence[Ended], sent: Sequence[Bill]) -> Iterator[str]:
    """A client that stays has its answer, unless its provider broke it off: then it is told so, which is not the matter here."""
    cut = {bill.asked for bill in sent if bill.end == "cut" or bill.status != 200}
    for each in ended:
        if each.leaver.point == "never" and each.seen != "whole" and each.leaver.text not in cut:
            yield f"the client of call {each.leaver.number} stayed and saw: {each.seen}"


def show(report: Report) -> None:
    print(f"seed {report.seed}: {report.calls} calls in {report.seconds} s{', in process' if report.in_process else ''}\n")
    print(f"{'left':<12}{'calls':>7}{'sent':>7}{'billed USD':>14}{'booked USD':>14}   provider knew after ms p50/p99/max   outcomes")
    for point, at in report.points.items():
        gone = "-" if at.gone_p50_ms is None else f"{at.gone_p50_ms}/{at.gone_p99_ms}/{at.gone_max_ms}"
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(at.outcomes.items()))
        print(f"{point:<12}{at.calls:>7}{at.reached:>7}{at.billed:>14}{at.booked:>14}   {gone:<33}  {outcomes}")
    print(f"\n{report.equal} calls are booked at exactly what they are billed, as their providers said; {report.more} at more, by an estimate")
    print(f"sockets: {report.sockets[0]} before, {report.sockets[1]} after; tasks: {report.tasks[0]}, {report.tasks[1]}; "
          f"memory: {report.memory_mib[0]} MiB at first, {report.memory_mib[-1]} at last, {report.growth:+.1%} over the second half")
    print(f"unresolved reservations: {report.unresolved}; doctor: {report.doctor}")
    for sentence in report.broken[:20]:
        print(f"BROKEN  {sentence}")
    print("All promises hold." if not report.broken else f"{len(report.broken)} promises are broken.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64, help="calls at a time")
    parser.add_argument("--seed", type=int, default=None, help="of the calls, the faults and the points; a random one without")
    parser.add_argument("--in-process", action="store_true", help="run the gateway on this program's loop, and look for tasks that it leaves behind")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    options.seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    allow_all_descriptors()
    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="lockgate-disconnects-", ignore_cleanup_errors=True) as name, contextlib.suppress(KeyboardInterrupt):
        folder = Path(name) / "deployment"
        folder.mkdir()
        report = run_loop(play(options, folder))
        if options.json:
            print(json.dumps(asdict(report), indent=2))
        else:
            show(report)
        sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
