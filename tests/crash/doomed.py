"""Gateways that die: for each line on standard input one is forked, ready in a few milliseconds, that kills itself where the line says.

The process that reads the lines has everything imported and runs no thread, so that a fork of it is a new gateway process like any other. A
gateway says where it is on the socket that is the first argument: `ready`, and the place just before it dies there. It is asked to
end by the end of what it reads from that socket.
"""

import asyncio
import gc
import inspect
import json
import os
import random
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any, cast

from gateway.app import Parts
from gateway.cli.process import run_loop
from gateway.clock import SystemIds
from gateway.embed import Gateway
from gateway.store.protocol import Store
from gateway.store.sqlite import SqliteStore
from gateway.upstream.lean_transport import LeanTransport
from gateway.upstream.protocol import Transport

LONGEST_AMID_S = 0.01


class Hurried:
    """A clock that runs `speed` times as fast as the real one, `ahead_s` ahead of it: leases and deadlines are over soon."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._speed: int = plan["speed"]
        self._epoch_ns: int = plan["epoch_ns"]
        self._ahead_ns = int(plan["ahead_s"] * 1e9)

    def now_ns(self) -> int:
        return self._epoch_ns + self._ahead_ns + self._speed * (time.time_ns() - self._epoch_ns)

    def monotonic(self) -> float:
        return self._speed * time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


class Doom:
    """Where this process dies: at a place, the `nth` time that it comes by; `amid`: within some milliseconds after that."""

    def __init__(self, plan: dict[str, Any], line: socket.socket) -> None:
        self._place, self._left, self._line = plan["place"], plan["nth"], line
        self._dice = random.Random(plan["seed"])

    def at(self, place: str, when: str) -> None:
        if self._place != f"{place} {when}" and (when == "after" or self._place != f"{place} amid"):
            return
        self._left -= 1
        if self._left:
            return
        self._line.sendall(f"{self._place}\n".encode())
        if self._place.endswith("amid"):
            signal.setitimer(signal.ITIMER_REAL, self._dice.uniform(1e-5, LONGEST_AMID_S))  # SIGALRM, which nobody handles, kills as well
        else:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A part of the gateway whose every verb is two places: before it, and after it is done."""

    def __init__(self, inner: Any, name: str, doom: Doom) -> None:
        self._inner, self._name, self._doom = inner, name, doom

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._inner, verb)
        if not inspect.iscoroutinefunction(found) and verb not in ("read", "chunk"):
            return found
        place = f"{self._name}.{verb}"

        async def call(*args: Any, **options: Any) -> Any:
            self._doom.at(place, "before")
            got = await found(*args, **options)
            self._doom.at(place, "after")
            return Watched(got, "answer", self._doom) if verb == "send" else got

        return call


class WatchedStore:
    """The store with its journal and its approvals watched."""

    def __init__(self, inner: SqliteStore, doom: Doom) -> None:
        self._inner = inner
        self.journal = Watched(inner.journal, "journal", doom)
        self.approvals = Watched(inner.approvals, "approvals", doom)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def live(plan: dict[str, Any], line: socket.socket) -> None:
    """Run one gateway until it dies or is asked to end."""
    folder, doom, clock = Path(plan["folder"]), Doom(plan, line), Hurried(plan)
    owner = f"doomed:{os.getpid()}:{SystemIds(clock).token(8)}"
    store = WatchedStore(SqliteStore(folder / "lockgate.db", owner, synchronous="normal"), doom)
    with (folder / "gateways.log").open("ab", buffering=0) as log:
        transport = LeanTransport(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # empty: reading the system's takes longer than all the rest
        parts = Parts(store=cast("Store", store), transport=cast("Transport", Watched(transport, "transport", doom)), clock=clock)
        async with Gateway(folder / "config.toml", port=plan["port"], environ=plan["environ"], parts=parts, write=lambda lines: say(log, lines)):
            line.sendall(b"ready\n")
            asked = asyncio.Event()
            asyncio.get_running_loop().add_reader(line, asked.set)
            await asked.wait()


def say(log: Any, lines: bytes) -> None:
    log.write(lines)


def main() -> None:
    address = sys.argv[1]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: their end of the socket says that they are gone
    gc.collect()
    gc.freeze()
    for text in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            plan = json.loads(text)
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(address)
                line.sendall(f"{plan['id']} {os.getpid()}\n".encode())
                run_loop(live(plan, line))
            os._exit(0)


if __name__ == "__main__":
    main()
