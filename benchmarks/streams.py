"""What many open streams cost: memory, CPU, and the time that the gateway adds between two tokens.

Simulated providers speak at a steady pace. One lean client process reads all streams, first straight from the providers, then through
`lockgate serve --workers 2` (a key, a budget and the journal of every call included); the difference between the two is what the gateway
adds. All of them share one machine, so its cores are the limit: the report says what each process used of them.

A rate that the machine does not carry shows as longer gaps and as tokens that are missing. With --search the largest number of streams
is looked for that it does carry at a rate: those whose 99th percentile of gaps grows by less than 50 ms.

Exit code 1 where a stream was not whole, or where memory grew while nothing but tokens went through.

    python benchmarks/streams.py [--streams 5000] [--rate 1] [--seconds 20] [--search 20] [--leave] [--workers 2] [--json]
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from benchmarks.processes import Processes, allow_all_descriptors, children, cpu_s, rss_mib, say, slope
from gateway.cli.process import run_loop

ADDED_MS: Final = 50.0  # to the 99th percentile of gaps, at the largest number of streams that counts as carried
CARRIED: Final = 0.98  # of the tokens that should have come in the seconds that count
GROWTH_MIB: Final = 8.0  # of a worker over the seconds that count: more is no noise of the allocator
LEAD_S: Final = 3.0  # by which every stream outlasts the seconds that count
PATIENCE_S: Final = 120.0  # beyond what it should take, on a machine that does not keep up
REST_S: Final = 3.0  # after the last stream, before memory is looked at again
READER: Final = Path(__file__).with_name("stream_reader.py")

CONFIG: Final = """
[server]
max_in_flight = {most}
[journal]
bodies = "none"
[log]
level = "warning"
[budgets.everything]
scope = "all"
limit = "1000000"
"""
PROVIDER: Final = """
[providers.{name}]
adapter = "openai"
base_url = "{url}"
[prices."{name}/sim"]
input = "0.50"
output = "8.00"
"""
ROUTE: Final = """
[[route]]
name = "streams"
{strategy}
{targets}
[route.deadlines]
total = "3600s"
"""


@dataclass
class Run:
    """One load and what was seen of it. Gaps are milliseconds, `cpu_us` microseconds a token by the kind of process, memory MiB."""

    through: str
    streams: int
    rate: float
    opened_s: float = 0.0
    tokens_a_second: float = 0.0  # that came, of streams * rate
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    cpu_us: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)
    before_mib: list[float] = field(default_factory=list)
    full_mib: list[float] = field(default_factory=list)
    after_mib: list[float] = field(default_factory=list)
    slope_kib_s: list[float] = field(default_factory=list)  # of each worker, while nothing but tokens goes through
    whole: int = 0
    said: list[str] = field(default_factory=list)
    left: bool = False  # the clients hung up before the end

    @property
    def steady(self) -> bool:
        """As many tokens came as went out: no fewer, and none that had been held up before."""
        wanted = self.streams * self.rate
        return CARRIED * wanted <= self.tokens_a_second <= wanted / CARRIED and (self.left or self.whole == self.streams)


@dataclass
class Pair:
    """The same load without the gateway and with it."""

    straight: Run
    governed: Run
    added_ms: float = field(init=False)  # to the 99th percentile of gaps
    carried: bool = field(init=False)

    def __post_init__(self) -> None:
        self.added_ms = round(self.governed.p99_ms - self.straight.p99_ms, 1)
        self.carried = self.straight.steady and self.governed.steady and self.added_ms < ADDED_MS


class Stage:
    """The processes of a whole series of runs."""

    def __init__(self, processes: Processes, options: argparse.Namespace) -> None:
        self.processes = processes
        self.options = options
        self.providers: list[tuple[int, str]] = []  # process and URL
        self.gateway = ""
        self.workers: list[int] = []
        self.key = ""

    async def build(self) -> None:
        await self.processes.lay()
        folder, options = self.processes.folder, self.options
        for _ in range(options.simulators):
            process, url = await self.processes.start("simulate", "--port", "0", "--keep", "0")
            self.providers.append((process.pid, url))
        names = [f"p{number}" for number in range(options.simulators)]
        providers = "".join(PROVIDER.format(name=name, url=url) for name, (_pid, url) in zip(names, self.providers, strict=True))
        (folder / "config.toml").write_text(CONFIG.format(most=4 * options.streams + 100) + providers)
        targets = "".join(f'[[route.targets]]\nprovider = "{name}"\nmodel = "sim"\n' for name in names)
        (folder / "routes/routes.toml").write_text(ROUTE.format(targets=targets, strategy="" if len(names) == 1 else 'strategy = "weighted"'))
        _id, self.key = await self.processes.key("streams")
        process, self.gateway = await self.processes.start("serve", "--port", "0", "--workers", str(options.workers))
        self.workers = children(process.pid)

    async def pair(self, streams: int, rate: float) -> Pair:
        return Pair(await self.run(streams, rate, governed=False), await self.run(streams, rate, governed=True))

    async def run(self, streams: int, rate: float, *, governed: bool) -> Run:
        """One load: open all streams, watch `seconds` of steady flow, let all of them end."""
        run = Run("the gateway" if governed else "nothing", streams, rate, left=self.options.leave)
        say(f"{streams} streams at {rate:g} tokens a second through {run.through}")
        seconds = self.options.seconds
        lasting_s = 1.5 * streams / self.options.opens + seconds + LEAD_S
        await self._pace(1 / rate)
        run.before_mib = self._memory()
        reader = await self._reader(streams, rate, lasting_s, [self.gateway] if governed else [url for _pid, url in self.providers])
        run.opened_s = (await told(reader, lasting_s + PATIENCE_S))["seconds"]
        run.full_mib = self._memory()
        used = self._cpu()
        watching = asyncio.create_task(self._watch(run))
        window = await told(reader, seconds + PATIENCE_S)
        watching.cancel()
        spent = {name: now_s - used[name] for name, now_s in self._cpu().items()} | {"client": window["cpu_s"]}
        run.cpu_us = {name: round(1e6 * each / max(1, window["events"]), 1) for name, each in spent.items()}
        run.cores = {name: round(each / window["seconds"], 2) for name, each in spent.items()}
        run.tokens_a_second = round(window["events"] / window["seconds"])
        run.p50_ms, run.p99_ms, run.max_ms = window["p50_ms"], window["p99_ms"], window["max_ms"]
        ended = await told(reader, 2 * lasting_s + PATIENCE_S)
        run.whole, run.said = ended["whole"], ended["said"]
        await reader.wait()
        await asyncio.sleep(REST_S)
        run.after_mib = self._memory()
        return run

    async def _pace(self, between_s: float) -> None:
        scenario = {"pacing": {"delay_between_tokens": f"{between_s:g}s"}}
        async with aiohttp.ClientSession() as session:
            for _pid, url in self.providers:
                async with session.put(url.removesuffix("/v1") + "/sim/scenario", json=scenario) as answer:
                    answer.raise_for_status()

    async def _reader(self, streams: int, rate: float, lasting_s: float, urls: Sequence[str]) -> asyncio.subprocess.Process:
        options = self.options
        return await asyncio.create_subprocess_exec(
            sys.executable, str(READER), "--to", *(urlsplit(url).netloc for url in urls), "--key", self.key, "--streams", str(streams),
            "--tokens", str(math.ceil(lasting_s * rate)), "--opens", str(options.opens), "--seconds", str(options.seconds),
            "--patience", str(lasting_s + PATIENCE_S), *(("--leave",) if options.leave else ()), stdout=asyncio.subprocess.PIPE)

    async def _watch(self, run: Run) -> None:
        """Look at the workers' memory every second; `slope_kib_s` is as of what was seen until now."""
        seen: list[list[tuple[float, float]]] = [[] for _ in self.workers]
        for second in itertools.count():
            for samples, mib in zip(seen, self._memory(), strict=True):
                samples.append((second, 1024 * mib))
            run.slope_kib_s = [round(slope(samples), 1) for samples in seen]
            await asyncio.sleep(1)

    def _memory(self) -> list[float]:
        return [round(rss_mib(pid), 1) for pid in self.workers]

    def _cpu(self) -> dict[str, float]:
        return {"workers": sum(map(cpu_s, self.workers)), "providers": sum(cpu_s(pid) for pid, _url in self.providers)}


async def told(reader: asyncio.subprocess.Process, timeout_s: float) -> dict[str, Any]:
    """The next thing that the client process says."""
    assert reader.stdout is not None
    line = await asyncio.wait_for(reader.stdout.readline(), timeout_s)
    if not line:
        raise SystemExit("the client process ended; what it said stands above")
    said: dict[str, Any] = json.loads(line)
    return said


async def largest(stage: Stage, rate: float, most: int) -> list[Pair]:
    """Look for the largest number of streams that is carried: doubled until one is not, then halved in between, three times."""
    tried: list[Pair] = []
    good, bad = 0, 0
    streams = 100
    while streams <= most:
        tried.append(await stage.pair(streams, rate))
        if not tried[-1].carried:
            bad = streams
            break
        good, streams = streams, 2 * streams
    for _ in range(3):
        if not bad:
            break
        streams = (good + bad) // 2
        tried.append(await stage.pair(streams, rate))
        good, bad = (streams, bad) if tried[-1].carried else (good, streams)
    return tried


@dataclass
class Report:
    cores: int
    workers: int
    pairs: list[Pair] = field(default_factory=list)
    searched: list[Pair] = field(default_factory=list)
    largest: int | None = None  # streams that were carried, of those tried
    broken: list[str] = field(default_factory=list)


async def play(options: argparse.Namespace, folder: Path) -> Report:
    report = Report(os.cpu_count() or 1, options.workers)
    processes = Processes(folder)
    try:
        stage = Stage(processes, options)
        await stage.build()
        for rate in options.rate:
            report.pairs.append(await stage.pair(options.streams, rate))
        if options.search:
            report.searched = await largest(stage, options.search, options.streams)
            report.largest = max((pair.governed.streams for pair in report.searched if pair.carried), default=0)
    finally:
        processes.kill_all()
    for pair in (*report.pairs, *report.searched):
        report.broken += judged(pair, options.seconds)
    return report


def judged(pair: Pair, seconds: float) -> Iterator[str]:
    run = pair.governed
    if run.whole < run.streams and not run.left:
        yield f"{run.streams} streams at {run.rate:g}/s: {run.streams - run.whole} were not whole: {run.said}"
    for rise in run.slope_kib_s if run.steady else ():  # what a machine does not carry waits in buffers, as far as those go
        if rise * seconds > 1024 * GROWTH_MIB:
            yield f"{run.streams} streams at {run.rate:g}/s: the memory of a worker grew by {rise} KiB a second"


def show(report: Report) -> None:
    for pair in report.pairs:
        describe(pair)
    if report.searched:
        print(f"\n{'streams':>8}{'p99 without':>14}{'p99 with':>11}{'added':>9}{'tokens/s':>10}{'of':>8}   (ms between two tokens)")
        for pair in sorted(report.searched, key=lambda each: each.governed.streams):
            run = pair.governed
            print(f"{run.streams:>8}{pair.straight.p99_ms:>14}{run.p99_ms:>11}{pair.added_ms:>9}{run.tokens_a_second:>10.0f}{run.streams * run.rate:>8.0f}"
                  f"{'' if pair.carried else '   not carried'}")
        print(f"carried, with less than {ADDED_MS:g} ms added at p99: {report.largest} streams")
    for sentence in report.broken:
        print(f"BROKEN  {sentence}")
    print("All promises hold." if not report.broken else f"{len(report.broken)} promises are broken.")


def describe(pair: Pair) -> None:
    run = pair.governed
    print(f"\n{run.streams} streams at {run.rate:g} tokens a second: {run.streams * run.rate:.0f} wanted"
          f"{'' if pair.carried else ', which this machine does not carry with less than {ADDED_MS:g} ms added at p99'}")
    print(f"{'through':<14}{'tokens/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'opened in':>11}{'whole':>8}   CPU a token in us (cores)")
    for each in (pair.straight, run):
        cpu = ", ".join(f"{name} {each.cpu_us[name]:g} ({each.cores[name]:g})" for name in each.cpu_us)
        print(f"{each.through:<14}{each.tokens_a_second:>10.0f}{each.p50_ms:>9}{each.p99_ms:>9}{each.max_ms:>9}{each.opened_s:>9} s{each.whole:>8}   {cpu}")
    print(f"added to the gaps: p50 {run.p50_ms - pair.straight.p50_ms:.1f} ms, p99 {pair.added_ms} ms")
    for number, (before, full, after, rise) in enumerate(zip(run.before_mib, run.full_mib, run.after_mib, run.slope_kib_s, strict=True), 1):
        print(f"worker {number}: {before} MiB before, {full} with all streams open, {after} after; {rise:+} KiB a second in between")
    each_kib = 1024 * (sum(run.full_mib) - sum(run.before_mib)) / run.streams
    print(f"a stream: {each_kib:.1f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--rate", type=float, nargs="*", default=[1.0], help="tokens a second of each stream; one load for each rate")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which gaps count, once all streams are open")
    parser.add_argument("--search", type=float, metavar="RATE", help="look for the largest number of streams that is carried at this rate")
    parser.add_argument("--leave", action="store_true", help="have clients hang up after that: with a rate that is not carried the end may be far")
    parser.add_argument("--opens", type=float, default=200.0, help="streams that are opened a second")
    parser.add_argument("--workers", type=int, default=2, help="of the gateway")
    parser.add_argument("--simulators", type=int, default=1, help="processes that play the providers")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    if not options.rate and options.search is None:
        parser.error("there is nothing to do: give a --rate or --search")
    descriptors = allow_all_descriptors()
    if descriptors < 2 * options.streams + 200:
        raise SystemExit(f"{options.streams} streams need {2 * options.streams + 200} open files a process; {descriptors} are allowed: raise `ulimit -Hn`")
    with tempfile.TemporaryDirectory(prefix="lockgate-streams-", ignore_cleanup_errors=True) as name, contextlib.suppress(KeyboardInterrupt):
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
