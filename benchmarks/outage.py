"""What an outage of providers does to calls, under a constant load: first one of a route's two targets dies and comes back, then both.

Providers die in three ways: `refused`, the port is closed and what is open is reset; `errors`, every request gets a 503; `silent`, requests
are taken and never answered. Clients behave as the official SDKs do, their retries included. Exit code 1 where one of these does not hold:

with one target dead
- at least 99.9 % of the calls that begin meanwhile are answered, whole;
- at most 1.2 attempts are made for each of them;
- the dead target gets one probe at the most for each time that its breaker is half open;
- once it is well again it has traffic as soon as the next probe is due;

with both dead
- every caller gets one error, in its deadline, that says what happened and that sending it again is of no use; no SDK sends it again;
- attempts stay within the route's retry budget;
- once they are well again calls are answered as soon as the next probe is due;

and in the end no call is billed at more than is booked, no reservation is unresolved, and `lockgate doctor` is content.

    python benchmarks/outage.py [--seconds 20] [--rate 60] [--ways refused errors silent] [--dead one both] [--workers 1] [--seed N] [--json]
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.books import Books, bills, dollars
from benchmarks.processes import Processes, allow_all_descriptors, percentile, resolved, say
from benchmarks.sdk_load import Load, Made
from gateway.cli.process import run_loop
from gateway.store.database import open_readonly

SUCCESS: Final = 0.999
ATTEMPTS: Final = 1.2  # for each call
SHARE, PER_SECOND, BURST = 0.2, 3.0, 30.0  # the retry budget of the route: its defaults
DEADLINE_S: Final = 10.0  # of a client; the route's own is longer
WARM_S: Final = 4.0
LEAD_S: Final = 0.5  # between the order to die and the death
AFTER_S: Final = 3.0  # of load, once all is well again
LONGEST_OPEN_S: Final = 30.0  # on top of what an outage of no length takes a breaker to open for
LATE_S: Final = 2.0  # by which a recovery may be later than the next probe is due
IN_FLIGHT_S: Final = 0.25  # what was sent before a breaker opened may arrive as late
PRICES: Final = {"one": (500_000, 8_000_000), "two": (100_000, 2_000_000)}  # pico-USD a token, of the input and of the output
TARGETS: Final = {"one": "one/large", "two": "two/small"}
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {"refused": {"refuse": True}, "errors": {"status": 503}, "silent": {"hang": True}}
PACING: Final = {"delay_first_token": "10ms", "delay_between_tokens": "2ms"}

CONFIG: Final = """
[server]
max_in_flight = 5000
[journal]
bodies = "none"
[log]
level = "error"
[admin]
token = "file:secrets/admin-token"
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
"""
ROUTE: Final = """
[[route]]
name = "backed-up"
[[route.targets]]
provider = "one"
model = "large"
[[route.targets]]
provider = "two"
model = "small"
[route.deadlines]
connect = "1s"
headers = "2s"
first_token = "2s"
idle = "5s"
total = "20s"
[route.retry]
attempts = 2
base = "50ms"
"""


@dataclass
class Outage:
    """One outage and what was seen of it. Only calls that began while a target was dead count, and what was sent for them."""

    way: str
    dead: str  # "one" or "both"
    seconds: float
    calls: int = 0
    answered: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cut_at_death: int = 0  # calls that had begun before, and broke
    p50_s: float = 0.0
    p99_s: float = 0.0
    longest_s: float = 0.0
    requests: int = 0  # that clients sent for these calls
    attempts: int = 0  # that the gateway made for them
    allowed: int = 0  # attempts, by the retry budget
    openings: int = 0  # of the breaker of `one`
    half_open: int = 0  # times that it was, from its first opening to the end of the outage
    probes: int = 0  # that reached `one` meanwhile
    due_s: float = 0.0  # from when all was well again until the probe that could tell was due
    recovered_s: float | None = None  # from then until a call was answered by what had been dead
    unresolved: int = 0
    doctor: str = ""
    broken: list[str] = field(default_factory=list)


@dataclass
class Span:
    """A time in which targets were dead for sure, in wall-clock ns."""

    from_ns: int
    to_ns: int

    def __contains__(self, at_ns: object) -> bool:
        return isinstance(at_ns, int) and self.from_ns <= at_ns < self.to_ns


class Stage:
    """A gateway, its two providers, and what their breakers have done."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.roots: dict[str, str] = {}  # of the simulators' control endpoints
        self.url = self.key = ""
        self.opened: dict[str, dict[Any, tuple[int, int]]] = {target: {} for target in TARGETS.values()}  # each opening: when, and when a probe was due
        self.now: dict[str, dict[str, Any]] = {}
        self._servers: list[asyncio.subprocess.Process] = []

    async def build(self, workers: int) -> None:
        await self.processes.lay()
        folder, urls = self.processes.folder, {}
        for name in PRICES:
            process, urls[name] = await self.processes.start("simulate", "--port", "0", "--log", f"{name}.jsonl", "--keep", "0")
            self._servers.append(process)
            self.roots[name] = urls[name].removesuffix("/v1")
        (folder / "config.toml").write_text(CONFIG.format(**urls))
        (folder / "routes/routes.toml").write_text(ROUTE)
        _id, self.key = await self.processes.key("callers")
        process, self.url = await self.processes.start("serve", "--port", "0", "--workers", str(workers))
        self._servers.insert(0, process)

    async def play(self, name: str, scenario: Mapping[str, Any]) -> None:
        async with aiohttp.ClientSession() as session, session.put(f"{self.roots[name]}/sim/scenario", json={"pacing": PACING, **scenario}) as answer:
            if answer.status >= 400:
                raise SystemExit(f"the simulator does not take this scenario: {await answer.text()}")

    async def watch(self) -> None:
        """Look at the breakers all the time, and remember when they opened."""
        token = (self.processes.folder / "secrets/admin-token").read_text().strip()
        async with aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {token}"}) as session:
            while True:
                async with session.get("/-/breakers") as answer:
                    if answer.status != 200:
                        raise SystemExit(f"/-/breakers answers {answer.status}: {await answer.text()}")
                    rows = (await answer.json())["breakers"]
                self.now = {row["target"]: row for row in rows}
                now_ns = time.time_ns()
                for target, row in self.now.items():
                    if row["state"] == "open":
                        times = now_ns - int(row["since_s"] * 1e9), now_ns + int(row["until_s"] * 1e9)
                        self.opened[target].setdefault((row["since"], row["trips"]), times)
                await asyncio.sleep(0.05)

    async def stop(self) -> list[bool]:
        return [await self.processes.stop(process) for process in self._servers]


async def go_through(options: argparse.Namespace, folder: Path, way: str, dead: str) -> Outage:
    """One outage, from a gateway that starts to one that has ended."""
    outage = Outage(way, dead, options.seconds)
    stage = Stage(Processes(folder))
    try:
        await stage.build(options.workers)
        say(f"{way}, {dead} dead for {options.seconds:g} s")
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(stage.url, connector=connector) as session:
            dice = random.Random(options.seed)  # noqa: S311 - a seed that is printed, to have the same run again
            load = Load(session, dice, headers={"Authorization": f"Bearer {stage.key}"}, rate=options.rate, deadline_s=DEADLINE_S)
            watching = asyncio.create_task(stage.watch())
            running = asyncio.create_task(load.run())
            span = await die(outage, stage, load)
            load.stop()
            await running
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching  # where it has failed there is nothing to judge by
        outage.unresolved = await resolved(folder / "lockgate.db")
        ended = await stage.stop()
        code, said = await stage.processes.run("doctor")
        outage.doctor = "clean" if code == 0 else said
        outage.broken += [] if all(ended) else ["a server did not end when it was asked to"]
    finally:
        stage.processes.kill_all()
    count(outage, load.made, stage, span)
    outage.broken += [*(broken_one if dead == "one" else broken_both)(outage, load.made, span), *broken_books(outage, folder)]
    return outage


async def die(outage: Outage, stage: Stage, load: Load) -> Span:
    """The outage itself and the recovery, while the load goes on; when targets were dead for sure."""
    await asyncio.sleep(WARM_S)
    dying = ["one", "two"] if outage.dead == "both" else ["one"]
    steps = [{"for": f"{LEAD_S}s"}, {"for": f"{outage.seconds}s", **WAYS[outage.way]}, {}]
    asked_ns = time.time_ns()
    for name in dying:
        await stage.play(name, {"timeline": steps})
    span = Span(time.time_ns() + int(LEAD_S * 1e9), asked_ns + int((LEAD_S + outage.seconds) * 1e9))
    await asyncio.sleep((span.to_ns - time.time_ns()) / 1e9)
    well_ns = time.time_ns()
    say("all is well again")
    back = [TARGETS[name] for name in dying]
    found = await load.seen(lambda made: made.said.whole and made.said.target in back and made.began_ns > well_ns, 2 * outage.seconds + LONGEST_OPEN_S)
    if found is not None:
        outage.recovered_s = round((found.ended_ns - well_ns) / 1e9, 2)
    # A probe that was on its way when the outage ended has met the dead all the same: then the one after it counts.
    due_ns = min(max((due_ns for _at_ns, due_ns in stage.opened[target].values()), default=0) for target in back)
    outage.due_s = max(0.0, round((due_ns - well_ns) / 1e9, 2))
    await asyncio.sleep(AFTER_S)
    return span


def count(outage: Outage, made: Sequence[Made], stage: Stage, span: Span) -> None:
    folder = stage.processes.folder
    during = [each for each in made if each.began_ns in span]
    lengths = sorted(each.seconds for each in during)
    outage.calls, outage.answered = len(during), sum(each.said.whole for each in during)
    outage.errors = dict(Counter(each.said.code for each in during if not each.said.whole).most_common())
    outage.cut_at_death = sum(not each.said.whole for each in made if each.began_ns < span.from_ns)
    outage.p50_s, outage.p99_s, outage.longest_s = (round(percentile(lengths, share), 3) for share in (0.5, 0.99, 1))
    outage.requests = sum(each.requests for each in during)
    received, attempts, at_one = attempts_in(folder / "lockgate.db", span)
    outage.attempts = attempts
    outage.allowed = int(received * (1 + SHARE) + PER_SECOND * outage.seconds + BURST)
    openings = sorted(at_ns for at_ns, _due_ns in stage.opened[TARGETS["one"]].values())
    outage.openings = len(openings)
    if openings and outage.dead == "one":  # with both dead the least bad is asked all the time: it is the last resort
        first_ns = openings[0] + int(IN_FLIGHT_S * 1e9)
        # The last one may have been half open when the outage ended: its probe counts, and so does the time.
        outage.half_open = sum(first_ns < at_ns < span.to_ns + int(DEADLINE_S * 1e9) for at_ns in openings)
        logged = [bill.received_ns for bill in bills(folder, {"one": PRICES["one"]})]  # a closed port has no log
        outage.probes = sum(first_ns < at_ns < span.to_ns for at_ns in (at_one if outage.way == "refused" else logged))


def attempts_in(database: Path, span: Span) -> tuple[int, int, list[int]]:
    """Of the calls that a gateway received in a time: how many, how many attempts were made for them, and when those at `one` began."""
    connection = open_readonly(database)
    try:
        between = (span.from_ns, span.to_ns)
        (calls,) = connection.execute("SELECT count(*) FROM calls WHERE received_ns >= ? AND received_ns < ?", between).fetchone()
        rows = connection.execute(
            "SELECT attempts.provider, attempts.started_ns FROM attempts JOIN calls USING (seq) WHERE received_ns >= ? AND received_ns < ?",
            between).fetchall()
    finally:
        connection.close()
    return calls, len(rows), [started_ns for provider, started_ns in rows if provider == "one"]


def broken_one(outage: Outage, made: Sequence[Made], span: Span) -> Iterator[str]:
    if outage.answered < SUCCESS * outage.calls:
        said = next(each.said for each in made if each.began_ns in span and not each.said.whole)
        yield f"{outage.calls - outage.answered} of {outage.calls} calls were not answered: {outage.errors}, one of them: {said}"
    if outage.attempts > ATTEMPTS * outage.calls:
        yield f"{outage.attempts} attempts were made for {outage.calls} calls"
    if not outage.openings:
        yield "the breaker of the dead target never opened"
    if outage.probes > outage.half_open:
        yield f"the dead target had {outage.probes} probes, and its breaker was half open {outage.half_open} times"
    yield from broken_recovery(outage)


def broken_both(outage: Outage, made: Sequence[Made], span: Span) -> Iterator[str]:
    during = [each for each in made if each.began_ns in span]
    if answered := sum(each.said.whole and each.ended_ns < span.to_ns for each in during):
        yield f"{answered} calls were answered by the dead"
    unclear = [each for each in during if not each.said.whole and (each.said.status < 500 or not each.said.message or each.said.should_retry != "false")]
    if unclear:
        yield f"{len(unclear)} callers had no clear error, one of them: {unclear[0]}"
    if again := [each for each in during if each.requests > 1]:
        yield f"{len(again)} calls were sent again by their SDK, one of them: {again[0]}"
    if late := [each for each in during if each.seconds > DEADLINE_S]:
        yield f"{len(late)} callers had no answer in their {DEADLINE_S:g} s"
    if outage.attempts > outage.allowed:
        yield f"{outage.attempts} attempts were made for {outage.calls} calls; the retry budget allows {outage.allowed}"
    yield from broken_recovery(outage)


def broken_recovery(outage: Outage) -> Iterator[str]:
    if outage.recovered_s is None or outage.recovered_s > outage.due_s + LATE_S:
        yield f"traffic came back after {outage.recovered_s} s; a probe was due after {outage.due_s:.1f} s"


def broken_books(outage: Outage, folder: Path) -> Iterator[str]:
    books, billed = Books(folder / "lockgate.db"), Counter[str]()
    for bill in bills(folder, PRICES):
        billed[bill.call] += bill.pusd
    yield from (f"call {call} is billed {dollars(pusd)}, booked are {dollars(1000 * books.calls.get(call, 0))}"
                for call, pusd in billed.items() if pusd > 1000 * books.calls.get(call, 0))
    if outage.unresolved:
        yield f"{outage.unresolved} reservations are unresolved"
    if outage.doctor != "clean":
        yield f"doctor: {outage.doctor}"


def show(outages: Sequence[Outage]) -> None:
    print(f"\n{'way':<9}{'dead':<6}{'calls':>6}{'answered':>10}{'p50 s':>8}{'p99 s':>8}{'max s':>8}{'sent':>7}{'attempts':>10}{'a call':>8}"
          f"{'openings':>10}{'half open':>11}{'probes':>8}{'due in':>8}{'back in':>9}   errors")
    for each in outages:
        back = "never" if each.recovered_s is None else f"{each.recovered_s:g}"
        print(f"{each.way:<9}{each.dead:<6}{each.calls:>6}{each.answered / max(1, each.calls):>10.2%}{each.p50_s:>8}{each.p99_s:>8}{each.longest_s:>8}"
              f"{each.requests:>7}{each.attempts:>10}{each.attempts / max(1, each.calls):>8.3f}{each.openings:>10}"
              f"{each.half_open if each.dead == 'one' else '-':>11}{each.probes if each.dead == 'one' else '-':>8}"
              f"{each.due_s:>8.1f}{back:>9}   {', '.join(f'{count} {code}' for code, count in each.errors.items()) or '-'}")
    for each in outages:
        if each.cut_at_death:
            print(f"{each.way}, {each.dead} dead: {each.cut_at_death} calls under way broke when it died")
        for sentence in each.broken[:10]:
            print(f"BROKEN  {each.way}, {each.dead} dead: {sentence}")
    broken = sum(len(each.broken) for each in outages)
    print("All promises hold." if not broken else f"{broken} promises are broken.")


async def play(options: argparse.Namespace, folder: Path) -> list[Outage]:
    outages = []
    for way in options.ways:
        for dead in options.dead:
            place = folder / f"{way}-{dead}"
            place.mkdir()
            outages.append(await go_through(options, place, way, dead))
    return outages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each outage")
    parser.add_argument("--rate", type=float, default=60.0, help="calls a second")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="in which providers die")
    parser.add_argument("--dead", nargs="+", choices=("one", "both"), default=("one", "both"), help="how many of the two")
    parser.add_argument("--workers", type=int, default=1, help="of the gateway")
    parser.add_argument("--seed", type=int, default=None, help="of the calls; a random one without")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    options.seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    allow_all_descriptors()
    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="lockgate-outage-", ignore_cleanup_errors=True) as name, contextlib.suppress(KeyboardInterrupt):
        outages = run_loop(play(options, Path(name)))
        if options.json:
            print(json.dumps([asdict(each) for each in outages], indent=2))
        else:
            show(outages)
        sys.exit(1 if any(each.broken for each in outages) else 0)


if __name__ == "__main__":
    main()
