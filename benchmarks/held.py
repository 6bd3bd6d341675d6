"""What calls cost that wait for people: memory, CPU, the time from a vote to the answer, a restart, the list of what waits.

Ten thousand callers, every second one of a stream, ask one `lockgate serve` for something that a rule holds, each for an approval of its own.
Then, while all of them wait: the gateway's memory and CPU; a hundred votes one after another, and when each caller has its answer;
how long the lists of `/-/approvals` take. Then the gateway is killed and started again: when it is ready, and when every caller that came
back is held again. At the end the rest is approved a hundred at a time. Exit code 1 where one of these does not hold:

- a held call takes at most 20 KB of the gateway's memory (10,000 of them 200 MB);
- every caller gets the answer to its own call, once;
- nobody who comes back after the restart needs another approval.

All processes share one machine; the callers' process works as much as the gateway while they come and go.

    python benchmarks/held.py [--calls 10000] [--votes 100] [--seconds 20] [--letters 200] [--rate 250] [--json]
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.processes import Processes, allow_all_descriptors, cpu_s, percentile, rss_mib, say, sockets
from gateway.cli.process import run_loop
from gateway.store.database import open_readonly

PROMISED_KB: Final = 20.0  # of memory a held call
PATIENCE_S: Final = 300.0
LOOK_S: Final = 0.05
BATCH: Final = 100
LOAD: Final = Path(__file__).with_name("held_load.py")
CONFIG: Final = """
[providers.one]
adapter = "openai"
base_url = "{url}"
[prices."one/sim"]
input = "0.50"
output = "8.00"
[admin]
token = "file:admin-token"
[approvals]
hold = "3600s"
max_pending = 100000
max_pending_each = 100000
max_opened_each = 1000000
max_pending_bytes = "4GiB"
max_pending_bytes_each = "4GiB"
max_held = 20000
[server]
drain_timeout = "1s"
[journal]
bodies = "none"
[log]
level = "warning"
[budgets.everything]
scope = "all"
limit = "1000000"
"""
ROUTE: Final = '[[route]]\nname = "held"\n[[route.targets]]\nprovider = "one"\nmodel = "sim"\n'
RULE: Final = '[[rule]]\nid = "held"\neffect = "require_approval"\nmessage = "A person looks at this."\n'
ADMIN: Final = "admin-token-of-the-benchmark"


@dataclass
class Report:
    """What was seen. Memory is MiB, times are ms where they do not say seconds; `cores` is CPU time a second."""

    calls: int
    opened_s: float = 0.0
    before_mib: float = 0.0
    held_mib: float = 0.0
    a_call_kb: float = 0.0
    waiting_cores: float = 0.0
    vote_p50_ms: float = 0.0
    vote_p99_ms: float = 0.0
    list_ms: dict[str, float] = field(default_factory=dict)
    ready_s: float = 0.0
    back_s: float = 0.0
    again_mib: float = 0.0
    rest_s: float = 0.0
    after_mib: float = 0.0
    answered: int = 0
    broken: list[str] = field(default_factory=list)


class Callers:
    """The callers' process, and what it has told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.answers: dict[int, float] = {}
        self.wrong: list[str] = []
        self.sent = asyncio.Event()
        self.news = asyncio.Event()
        self.over: dict[str, Any] = {}

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            told = json.loads(line)
            match told["when"]:
                case "sent":
                    self.sent.set()
                case "over":
                    self.over = told
                case _:
                    number = told["number"]
                    if number in self.answers or not told["right"]:
                        self.wrong.append(str(told))
                    self.answers[number] = told["at_s"]
            self.news.set()

    async def until(self, count: int) -> None:
        """So many have their answers."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.answers) < count:
                self.news.clear()
                await self.news.wait()


class Desk:
    """The people's side of the gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, self.url + path, json=body, headers={"Authorization": f"Bearer {ADMIN}"}) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def pending(self) -> int:
        found: int = (await self.ask("GET", "/-/approvals?limit=1"))["counts"].get("pending", 0)
        return found

    async def until_pending(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.pending() < count:  # noqa: ASYNC110 - it is another process that counts
                await asyncio.sleep(LOOK_S)


async def play(options: argparse.Namespace, processes: Processes) -> Report:
    report = Report(options.calls)
    await processes.lay()
    _simulator, upstream = await processes.start("simulate", "--port", "0")
    (processes.folder / "config.toml").write_text(CONFIG.format(url=upstream))
    (processes.folder / "admin-token").write_text(ADMIN)
    (processes.folder / "admin-token").chmod(0o600)
    (processes.folder / "routes/held.toml").write_text(ROUTE)
    (processes.folder / "policies/held.toml").write_text(RULE)
    _id, key = await processes.key("callers")
    gateway, url = await processes.start("serve", "--port", "0")
    port = url.rpartition(":")[2]
    async with aiohttp.ClientSession() as session:
        desk = Desk(session, url)
        load = await asyncio.create_subprocess_exec(
            sys.executable, str(LOAD), "--to", url.removeprefix("http://"), "--key", key, "--calls", str(options.calls), "--letters",
            str(options.letters), "--rate", str(options.rate), stdout=asyncio.subprocess.PIPE)
        callers = Callers(load)
        listening = asyncio.create_task(callers.listen())
        try:
            await gather(options, report, desk, gateway.pid)
            await decide_some(options, report, desk, callers)
            gateway.kill()
            await gateway.wait()
            gateway = await come_back(report, processes, desk, port, len(callers.answers))
            await decide_the_rest(report, desk, callers)
            report.after_mib = round(rss_mib(gateway.pid), 1)
            await asyncio.wait_for(load.wait(), PATIENCE_S)
        finally:
            if load.returncode is None:
                load.kill()
            await load.wait()
            await listening
        await processes.stop(gateway)
    report.broken += judged(report, callers, processes.folder / "lockgate.db")
    return report


async def gather(options: argparse.Namespace, report: Report, desk: Desk, pid: int) -> None:
    """All callers come; then what they cost while nothing happens."""
    await desk.pending()
    report.before_mib = round(rss_mib(pid), 1)
    began_s = time.monotonic()
    await desk.until_pending(options.calls)
    report.opened_s = round(time.monotonic() - began_s, 1)
    say(f"{options.calls} calls are held")
    await asyncio.sleep(2)  # what opening them took is given back
    report.held_mib = round(rss_mib(pid), 1)
    report.a_call_kb = round((report.held_mib - report.before_mib) * 2**20 / 1000 / options.calls, 1)
    used_s, from_s = cpu_s(pid), time.monotonic()
    await asyncio.sleep(options.seconds)
    report.waiting_cores = round((cpu_s(pid) - used_s) / (time.monotonic() - from_s), 3)
    for name, path in {"oldest 50": "/-/approvals", "oldest 200": "/-/approvals?limit=200", "newest 50": "/-/approvals?order=newest",
                       "one rule's 50": "/-/approvals?rule=held", "of all states": "/-/approvals?state=all"}.items():
        times = []
        for _ in range(20):
            asked_s = time.monotonic()
            await desk.ask("GET", path)
            times.append(1000 * (time.monotonic() - asked_s))
        report.list_ms[name] = round(percentile(sorted(times), 0.5), 1)
    say("the lists were read")


async def decide_some(options: argparse.Namespace, report: Report, desk: Desk, callers: Callers) -> None:
    """Votes one after another, each once the caller before has its answer."""
    times = []
    for row in (await desk.ask("GET", f"/-/approvals?limit={min(200, options.votes)}"))["approvals"][:options.votes]:
        before = set(callers.answers)
        voted_s = time.monotonic()
        await desk.ask("POST", f"/-/approvals/{row['id']}/vote", {"verdict": "approve", "digest": row["digest"]})
        await callers.until(len(before) + 1)
        times += [1000 * (callers.answers[number] - voted_s) for number in callers.answers.keys() - before]
    times.sort()
    report.vote_p50_ms, report.vote_p99_ms = round(percentile(times, 0.5), 1), round(percentile(times, 0.99), 1)
    say(f"{len(times)} votes were taken")


async def come_back(report: Report, processes: Processes, desk: Desk, port: str, answered: int) -> asyncio.subprocess.Process:
    """The gateway dies and is started again; its callers come back by themselves."""
    began_s = time.monotonic()
    gateway, _url = await processes.start("serve", "--port", port)
    report.ready_s = round(time.monotonic() - began_s, 2)
    async with asyncio.timeout(PATIENCE_S):
        while sockets(gateway.pid) < report.calls - answered:  # noqa: ASYNC110 - each has a connection, and nobody tells of them
            await asyncio.sleep(LOOK_S)
    report.back_s = round(time.monotonic() - began_s, 1)
    say("all callers are back")
    await asyncio.sleep(2)
    report.again_mib = round(rss_mib(gateway.pid), 1)
    if await desk.pending() != report.calls - answered:
        report.broken.append(f"{await desk.pending()} approvals are pending after the restart, of {report.calls - answered} callers")
    return gateway


async def decide_the_rest(report: Report, desk: Desk, callers: Callers) -> None:
    """Approve everything that waits, as many at a time as one request may hold."""
    began_s = time.monotonic()
    while rows := (await desk.ask("GET", f"/-/approvals?limit={BATCH}"))["approvals"]:
        shown = [{"id": row["id"], "digest": row["digest"]} for row in rows]
        await desk.ask("POST", "/-/approvals/votes", {"verdict": "approve", "approvals": shown})
    with contextlib.suppress(TimeoutError):
        await callers.until(report.calls)
    report.rest_s = round(time.monotonic() - began_s, 1)
    report.answered = len(callers.answers)


def judged(report: Report, callers: Callers, database: Path) -> list[str]:
    connection = open_readonly(database)
    try:
        states = dict(connection.execute("SELECT state, count(*) FROM approvals GROUP BY state").fetchall())
    finally:
        connection.close()
    said = [f"a held call takes {report.a_call_kb} KB"] if report.a_call_kb > PROMISED_KB else []
    said += [f"{report.calls - report.answered} callers have no answer"] if report.answered < report.calls else []
    said += [f"an answer was wrong, or came twice: {each}" for each in callers.wrong[:5]]
    return said + ([f"there are approvals beside one for each call: {states}"] if states != {"succeeded": report.calls} else [])


def show(report: Report) -> None:
    print(f"{report.calls} calls were held within {report.opened_s} s")
    print(f"memory: {report.before_mib} MiB before, {report.held_mib} MiB with all of them: {report.a_call_kb} KB a call; "
          f"{report.again_mib} MiB once they came back to a new process, {report.after_mib} MiB after the last answer")
    print(f"CPU while they wait: {report.waiting_cores} of a core")
    print(f"from the vote to the answer: p50 {report.vote_p50_ms} ms, p99 {report.vote_p99_ms} ms")
    print(f"lists, ms: {', '.join(f'{name} {ms}' for name, ms in report.list_ms.items())}")
    print(f"killed and started again: ready after {report.ready_s} s, all callers back after {report.back_s} s")
    print(f"the rest approved and answered in {report.rest_s} s")
    for sentence in report.broken:
        print(f"BROKEN  {sentence}")
    print("All promises hold." if not report.broken else f"{len(report.broken)} promises are broken.")


async def run(options: argparse.Namespace, folder: Path) -> Report:
    processes = Processes(folder)
    try:
        return await play(options, processes)
    finally:
        processes.kill_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--votes", type=int, default=100, help="that are taken one after another, 200 at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which CPU is looked at while all wait")
    parser.add_argument("--letters", type=int, default=200, help="of each call's message")
    parser.add_argument("--rate", type=float, default=250.0, help="callers that come a second")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    descriptors = allow_all_descriptors()
    if descriptors < options.calls + 1000:
        raise SystemExit(f"{options.calls} calls need {options.calls + 1000} open files a process; {descriptors} are allowed: raise `ulimit -Hn`")
    with tempfile.TemporaryDirectory(prefix="lockgate-held-", ignore_cleanup_errors=True) as name, contextlib.suppress(KeyboardInterrupt):
        folder = Path(name) / "deployment"
        folder.mkdir()
        report = run_loop(run(options, folder))
        print(json.dumps(asdict(report), indent=2)) if options.json else show(report)
        sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
