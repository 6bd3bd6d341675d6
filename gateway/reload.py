"""Puts changed files in force while calls run: everything is loaded, compiled and proved first, then swapped in one step.

Whatever fails on the way leaves the last good snapshot in force, and is told. Nothing here decides what a call may do.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any, Final, Generic, TypeAlias, TypeVar

from gateway.cases import run_cases
from gateway.clock import Clock
from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.errors import LONGEST_MESSAGE, ConfigError, LockgateError
from gateway.snapshot import Snapshot, compile_snapshot, keep_fixed, needing_restart
from gateway.store.protocol import Bundles
from gateway.telemetry import Telemetry

T = TypeVar("T")
Report: TypeAlias = dict[str, Any]  # what came of a reload in one process: `pid`, `ok`, and a `Reloaded` or `problems`

_MOST_PROBLEMS: Final = 50  # in a report; the log and `lockgate check` have them all


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload put in force. `restart` names the settings that differ in the files and that only a restart changes."""

    bundle: str
    rules: int
    routes: int
    tools: int
    restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A deployment and what was made of it. `environ` is where its `env:` references are looked up."""

    deployment: Deployment
    environ: Mapping[str, str] = field(repr=False)
    snapshot: Snapshot = field(repr=False)


class Fresh(Generic[T]):
    """Does one piece of work at a time, for whoever asks. Who asks while it is being done gets the next run: this one may have looked
    too early. All who wait for the next run share it.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None
        self._tasks: set[asyncio.Task[T]] = set()

    async def __call__(self) -> T:
        """The result of a run that begins after this call. A caller who is cancelled does not end the run."""
        if self._next is None:
            self._next = task = asyncio.get_running_loop().create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(self._next)

    async def _run(self) -> T:
        async with self._lock:
            self._next = None
            return await self._work()

    async def close(self) -> None:
        """End what runs and what waits."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Reloader:
    """Reloads one gateway. `stale` says, in words that anybody may read, why older files than those on disk are in force; "" otherwise."""

    def __init__(
        self, loaded: Loaded, swap: Callable[[Snapshot], None], *, bundles: Bundles, telemetry: Telemetry, clock: Clock,
    ) -> None:
        self.stale = ""
        self.reload: Fresh[Reloaded] = Fresh(self._reload)
        self._loaded = loaded
        self._swap = swap
        self._bundles = bundles
        self._telemetry = telemetry
        self._clock = clock

    async def report(self) -> Report:
        """Reload; what came of it, as JSON."""
        try:
            return {"pid": os.getpid(), "ok": True, **asdict(await self.reload())}
        except LockgateError as error:
            problems = error.problems if isinstance(error, ConfigError) else ()
            return {"pid": os.getpid(), "ok": False, "code": error.code, "message": error.message[:LONGEST_MESSAGE],
                    "problems": [asdict(problem) for problem in problems[:_MOST_PROBLEMS]]}

    async def _reload(self) -> Reloaded:
        """Load, prove, keep, swap.

        Raises:
            ConfigError: the files cannot be used; names every problem.
            StoreError, StoreUnavailable: the rules could not be kept, so that no decision under them could be explained.
        """
        try:
            loaded, restart = await asyncio.to_thread(self._load)  # seconds, with many rules: calls go on meanwhile
            snapshot = loaded.snapshot
            await self._bundles.keep(snapshot.bundle.digest, snapshot.bundle.content, now_ns=self._clock.now_ns())
        except Exception as error:
            self._stay(error)
            raise
        self._swap(snapshot)
        self._loaded = loaded
        self.stale = ""
        self._telemetry.reloaded(ok=True)
        done = Reloaded(snapshot.bundle.digest, len(snapshot.bundle.rules), len(snapshot.models), len(snapshot.tools), restart)
        self._telemetry.event("info", "reloaded", rules=done.bundle, routes=done.routes, tools=done.tools)
        if restart:
            self._telemetry.event("warning", "restart_needed", settings=", ".join(restart))
        return done

    def _load(self) -> tuple[Loaded, tuple[str, ...]]:
        """What is on disk, with what only a restart changes left as it is; and the names of what that is."""
        old = self._loaded
        fixed = old.snapshot.config
        read = read_deployment(old.deployment.folder / old.deployment.file, paths=fixed.paths)
        given = replace(read, config=read.config.model_copy(update={"paths": fixed.paths}))
        new = load(given, old.environ, self._clock)
        snapshot, secrets = keep_fixed(old.snapshot, new.snapshot)
        restart = dict.fromkeys((*needing_restart(fixed, read.config), *secrets))
        return replace(new, snapshot=snapshot), tuple(restart)

    def _stay(self, error: Exception) -> None:
        """The last good files stay in force, and it is said why."""
        self.stale = f"stale: {_place(error)}"
        self._telemetry.reloaded(ok=False)
        told = error.message if isinstance(error, LockgateError) else f"{type(error).__name__}: {error}"
        self._telemetry.event("error", "reload_failed", error=told, in_force=self._loaded.snapshot.bundle.digest)


def load(deployment: Deployment, environ: Mapping[str, str], clock: Clock | None = None) -> Loaded:
    """Compile a deployment and run the cases of its rules: what comes back may be put in force.

    Raises:
        ConfigError: with every problem; a case that fails is one, where it stands.
    """
    snapshot = compile_snapshot(deployment, environ, clock)
    failures = run_cases(deployment, snapshot.bundle).failures
    if failures:
        raise ConfigError(failures)
    return Loaded(deployment, environ, snapshot)


def _place(error: Exception) -> str:
    """Where the fault is and not what it is: anybody may ask, and a message quotes files."""
    if not isinstance(error, ConfigError):
        return "the store could not keep the rules; the log says why" if isinstance(error, LockgateError) else "a defect; see the log"
    first = error.problems[0]
    name = first.file if not PurePath(first.file).is_absolute() else PurePath(first.file).name
    place = ":".join(str(part) for part in (name, first.line, first.key) if part not in (None, ""))
    more = len(error.problems) - 1
    return f"{place}{f' and {more} more' if more else ''}; `lockgate check` says what is wrong"
