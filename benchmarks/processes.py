"""`lockgate` commands as real processes in a folder, and what the kernel says of a process: its memory, its CPU, its sockets."""

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.store.database import open_readonly

LOCKGATE: Final = (sys.executable, "-m", "gateway.cli")
SETTLING_S: Final = 60.0  # a dead process is found out after some 16 s
STARTED: Final = time.monotonic()


def say(text: str) -> None:
    """How it goes, on standard error: standard output is the report's."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


def allow_all_descriptors() -> int:
    """Raise the limit of open files as far as it goes, for the processes started from here too; what it is now."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Processes:
    """Commands that are started and ended for real, all in one deployment's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[asyncio.subprocess.Process] = []

    async def lay(self) -> None:
        """A deployment without rules and routes."""
        await self.run("init", ".")
        for shipped in (*self.folder.glob("policies/*.toml"), *self.folder.glob("routes/*.toml")):
            shipped.unlink()

    async def key(self, name: str, team: str = "") -> tuple[str, str]:
        """A virtual key: its id and itself."""
        code, said = await self.run("keys", "create", "--name", name, *(("--team", team) if team else ()), "--json")
        if code:
            raise SystemExit(said)
        made = json.loads(said)
        return made["id"], made["key"]

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


# What the kernel says of a process (proc(5)).

def children(pid: int) -> list[int]:
    """The processes that it started, oldest first: the workers of a `lockgate serve --workers`."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def rss_mib(pid: int) -> float:
    """Its resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float:
    """The CPU time that it has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sockets(pid: int) -> int:
    """How many sockets it has open."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """The rise of the second number by one of the first, as least squares have it; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    x_mean = sum(x for x, _ in samples) / len(samples)
    y_mean = sum(y for _, y in samples) / len(samples)
    spread = sum((x - x_mean) ** 2 for x, _ in samples)
    return sum((x - x_mean) * (y - y_mean) for x, y in samples) / spread if spread else 0.0


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of numbers in order; not a number where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
