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
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from benchmarks.books import BROKEN_OFF, Books, bills, dollars
from benchmarks.overshoot_load import PRICES, Load, Town, draw
from benchmarks.processes import Processes, allow_all_descriptors, resolved, say
from gateway.cli.process import run_loop

PATIENCE_S: Final = 150.0  # for all calls, those that wait for money included
LEAST_USED: Final = 0.97


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


def judge(report: Report, town: Town, refusing: Mapping[str, int], *, after_the_fact: bool) -> None:
    """Compare what the providers bill with the books and the limits."""
    by_call: Counter[str] = Counter()
    by_account: Counter[str] = Counter()
    for bill in bills(town.processes.folder, PRICES):
        report.requests += 1
        by_call[bill.call] += bill.pusd
        for name in town.accounts_of(bill.user):
            by_account[name] += bill.pusd
    books = Books(town.processes.folder / "lockgate.db")
    report.recovered = books.recovered
    for name, limit in sorted(town.limits.items()):
        booked = books.accounts[name]
        report.accounts.append(Account(
            name, dollars(1000 * limit), dollars(by_account[name]), dollars(1000 * booked), round(booked / limit, 4), name in refusing))
    if not after_the_fact:
        unseen = [pusd - 1000 * books.calls[call_id] for call_id, pusd in by_call.items()
                  if books.outcomes.get(call_id) in BROKEN_OFF and pusd > 1000 * books.calls[call_id]]
        report.broken_off, report.unseen = len(unseen), dollars(sum(unseen))
        report.broken = [*broken_calls(by_call, books), *broken_accounts(by_account, books, town.limits, refusing)]
        report.broken += [f"{report.unresolved} reservations are unresolved"] if report.unresolved else []
        report.broken += [f"doctor: {report.doctor}"] if report.doctor != "clean" else []


def broken_calls(by_call: Counter[str], books: Books) -> Iterator[str]:
    for call_id, pusd in by_call.items():
        if call_id not in books.calls:
            yield f"call {call_id} was sent without money set aside"
        elif pusd > 1000 * books.calls[call_id] and books.outcomes[call_id] not in BROKEN_OFF:
            yield f"call {call_id} is billed {dollars(pusd)}, booked are {dollars(1000 * books.calls[call_id])}"


def broken_accounts(by_account: Counter[str], books: Books, limits: Mapping[str, int], refusing: Mapping[str, int]) -> Iterator[str]:
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
    allow_all_descriptors()
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
