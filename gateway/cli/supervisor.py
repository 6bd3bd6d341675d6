"""Several worker processes behind one listening socket. The supervisor owns the socket and the processes and handles no calls."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import click

from gateway.cli.process import Signalled
from gateway.cli.tie import Tie
from gateway.cli.worker import RELOAD_S
from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.errors import ConfigError, InternalError, SetupError
from gateway.reload import Fresh, Report
from gateway.telemetry import forget_worker
from gateway.watch import Watch

_READY_S: Final = 60.0
_GRACE_S: Final = 40.0  # past the drain time, before a worker is killed: it tells clients, writes records and flushes, each bounded
_PAUSE_S: Final = 1.0  # between a worker's death and its successor; doubles up to _LONGEST_PAUSE_S while workers die young
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(slots=True)
class Attached:
    """A worker that is ready, as its supervisor sees it: the tie, and who waits for its report on which round of reloads.

    `dismissed`: it was told to stop, so that no new call is handled under its files, and none of its reports counts any more.
    """

    pid: int
    tie: Tie
    drain_s: float
    gone: bool = False
    dismissed: bool = False
    waiting: dict[int, asyncio.Future[Report | None]] = field(default_factory=dict)

    async def listen(self, asked: Callable[[int], object]) -> None:
        """Take what the worker says, until it is gone. `asked` gets the number of each question for a reload of all."""
        while (message := await self.tie.receive()) is not None:
            if "ask" in message:
                asked(message["ask"])
            else:
                self._answer(message["done"], message["report"])
        self.gone = True
        for number in list(self.waiting):
            self._answer(number, self._ended())

    async def reload(self, number: int) -> Report | None:
        """What came of a reload in this worker, None where it was dismissed; always an answer, and in bounded time."""
        if self.gone:
            return self._ended()
        self.waiting[number] = waiting = asyncio.get_running_loop().create_future()
        self.tie.send({"reload": number})
        try:
            async with asyncio.timeout(RELOAD_S):
                report: Report | None = await waiting
        except TimeoutError:
            return self._failed("The worker did not answer in time.")
        finally:
            del self.waiting[number]
        return report

    def _answer(self, number: int, report: Report | None) -> None:
        waiting = self.waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(report)

    def _ended(self) -> Report | None:
        return None if self.dismissed else self._failed("The worker ended.")

    def _failed(self, message: str) -> Report:
        return {"pid": self.pid, "ok": False, "code": InternalError.code, "message": message, "problems": []}


@dataclass(eq=False, slots=True)
class Post:
    """One of the places that a worker always stands at. Whoever puts another there holds `changing`."""

    process: asyncio.subprocess.Process | None = None
    since: float = 0.0  # on the loop's clock
    pause_s: float = _PAUSE_S
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Supervisor:
    """Starts workers, starts a new one where one dies, has all of them reload, replaces them one after another when a restart is asked for,
    passes a stop on and waits for the drain.

    Workers share the socket itself rather than the port: a connection that waits in its queue is served by whichever is alive.
    """

    def __init__(self, sock: socket.socket, deployment: Deployment, workers: int) -> None:
        self._sock = sock
        self._deployment = deployment
        self._posts = [Post() for _ in range(workers)]
        self._stop = asyncio.Event()
        self._hang_up = Signalled(signal.SIGHUP)
        self._restart = Signalled(signal.SIGUSR2)
        self._watch = Watch(deployment) if deployment.config.policy.watch else None  # now: what changes while workers start is a change
        self._watching: asyncio.Task[None] | None = None
        self._reload: Fresh[list[Report]] = Fresh(self._reload_all)
        self._rounds = 0
        self._good = asyncio.Event()  # set when the files were found good; then another takes its place
        self._processes: set[asyncio.subprocess.Process] = set()
        self._attached: dict[int, Attached] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics = tempfile.mkdtemp(prefix="lockgate-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._metrics  # where the workers' counters meet: prometheus_client's multiprocess mode

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code is 0 if every worker ended in time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._hang_up.listen()
        self._restart.listen()
        try:
            async with asyncio.TaskGroup() as starting:  # one that cannot start ends the others' wait
                for post in self._posts:
                    starting.create_task(self._man(post))
            host, port = self._sock.getsockname()[:2]
            click.echo(f"lockgate ready on http://{f'[{host}]' if ':' in host else host}:{port}")
            self._own(self._reload_on(self._hang_up.asked()))
            self._own(self._restart_on(self._restart.asked()))
            self._follow(self._watch)
            await self._stop.wait()
        except* SetupError as failed:
            raise failed.exceptions[0] from None
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._reload.close()
            on_time = await self._end()
            shutil.rmtree(self._metrics, ignore_errors=True)
        return 0 if on_time else 1

    async def _start(self) -> asyncio.subprocess.Process:
        """Start one worker and wait until it accepts connections.

        A socket pair ties the two: the worker says on its end that it is ready, and stops when the supervisor's end is gone, so that a
        supervisor that is killed leaves no worker behind on the port.
        """
        ours, theirs = socket.socketpair()
        config = self._deployment.folder / self._deployment.file
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", "serve", "--config", str(config),
                "--listen-fd", str(self._sock.fileno()), "--supervisor-fd", str(theirs.fileno()),
                pass_fds=(self._sock.fileno(), theirs.fileno()),
                start_new_session=True,  # a Ctrl-C in the terminal goes to the supervisor alone, which passes it on in order
            )
        except (OSError, asyncio.CancelledError):
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes.add(process)
        tie = await Tie.hold(ours)
        told: dict[str, Any] | None = None
        late = False
        try:
            async with asyncio.timeout(_READY_S):
                told = await tie.receive()
        except TimeoutError:
            late = True
        finally:
            if told is None:
                tie.cut()
        if told is None:
            if process.returncode is None:
                process.kill()  # where it is ending by itself, this changes nothing, its code included
            code = await process.wait()
            self._processes.discard(process)
            raise SetupError(f"A worker was not ready within {_READY_S:g} s and was killed." if late else _why_not_started(code))
        self._attached[process.pid] = worker = Attached(process.pid, tie, told["drain_s"])
        self._own(worker.listen(lambda question: self._own(self._tell(worker, question))))
        return process

    async def _man(self, post: Post) -> None:
        """Put a new worker at a post. Whoever stood there goes on until it is dismissed."""
        process = await self._start()
        post.process, post.since = process, asyncio.get_running_loop().time()
        self._own(self._keep(post, process))

    async def _keep(self, post: Post, process: asyncio.subprocess.Process) -> None:
        """Wait until a worker ends, and put another at its post if none stands there by then."""
        loop = asyncio.get_running_loop()
        code = await process.wait()
        self._processes.discard(process)
        self._untie(process)
        forget_worker(process.pid)
        while post.process is process:
            young = loop.time() - post.since <= _LONGEST_PAUSE_S
            post.pause_s = min(post.pause_s * 2, _LONGEST_PAUSE_S) if young else _PAUSE_S
            post.since = loop.time()  # one that cannot start has died young
            click.echo(f"a worker ended with code {code}; a new one starts in {post.pause_s:g} s", err=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(post.pause_s):
                    await self._good.wait()
            async with post.changing:
                if post.process is process:
                    try:
                        await self._man(post)
                    except (SetupError, OSError) as error:  # the next round tries again
                        click.echo(f"no new worker: {error}", err=True)
                    else:
                        self._own(self._reload_together())

    async def _restart_on(self, asked: AsyncIterator[None]) -> None:
        """A restart for each; one for all that are asked for while another is under way."""
        async for _ in asked:
            try:
                deployment = read_deployment(self._deployment.folder / self._deployment.file)
            except ConfigError as error:
                click.echo(f"restart: not begun: {error.message}", err=True)
                continue
            watch = Watch(deployment) if deployment.config.policy.watch else None  # now: what changes while workers start is a change
            if await self._restart_all():
                self._follow(watch)

    async def _restart_all(self) -> bool:
        """Replace every worker, one after another: a new one is ready before the old one is told to stop, and that ends before the next.

        Whether all are new; a new one that does not start ends the round, and the old ones stay.
        """
        count = len(self._posts)
        click.echo(f"restart: replacing {count} workers, one after another", err=True)
        for number, post in enumerate(self._posts, 1):
            async with post.changing:
                old = post.process
                try:
                    await self._man(post)
                except (SetupError, OSError) as error:
                    click.echo(f"restart: given up at worker {number} of {count}, those not yet replaced stay: {error}", err=True)
                    return False
            self._own(self._reload_together())
            if old is not None:
                await self._dismiss(old)
        click.echo(f"restart: done, {count} workers replaced", err=True)
        return True

    async def _dismiss(self, process: asyncio.subprocess.Process) -> None:
        """Have a worker finish what it has begun; it is killed where that takes longer than it may."""
        worker = self._attached.pop(process.pid, None)
        if worker is None:  # it has died already
            return
        worker.dismissed = True
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(worker.drain_s + _GRACE_S):
                await process.wait()
        except TimeoutError:
            click.echo("restart: a worker did not end in time and is killed", err=True)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        finally:
            worker.tie.cut()

    def _follow(self, watch: Watch | None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._own(self._reload_on(watch.changes())) if watch is not None else None

    async def _tell(self, worker: Attached, question: int) -> None:
        worker.tie.send({"told": question, "reports": await self._reload_asked()})

    async def _reload_on(self, asked: AsyncIterator[None]) -> None:
        async for _ in asked:
            await self._reload_asked()

    async def _reload_asked(self) -> list[Report]:
        """A reload because somebody says that the files are others now."""
        reports = await self._reload()
        if all(report["ok"] for report in reports):
            self._good.set()  # a worker that could not start under the files as they were need not wait any longer
            self._good = asyncio.Event()
        return reports

    async def _reload_together(self) -> None:
        """A reload because a worker has started with what is on disk, so that none serves under other files than the rest."""
        await self._reload()

    async def _reload_all(self) -> list[Report]:
        """Have every worker reload; each says in its own log what came of it."""
        self._rounds += 1
        reports = await asyncio.gather(*(worker.reload(self._rounds) for worker in list(self._attached.values())))
        return [report for report in reports if report is not None]

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self) -> bool:
        self._sock.close()
        running = [process for process in self._processes if process.returncode is None]
        for process in running:
            process.terminate()
        drain_s = max((worker.drain_s for worker in self._attached.values()), default=self._deployment.config.server.drain_timeout)
        waits = [asyncio.create_task(process.wait()) for process in running]
        _done, late = await asyncio.wait(waits, timeout=drain_s + _GRACE_S) if waits else (set(), set())
        for process in running:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*waits)
        for process in running:
            self._untie(process)
        return not late

    def _untie(self, process: asyncio.subprocess.Process) -> None:
        if (worker := self._attached.pop(process.pid, None)) is not None:
            worker.tie.cut()


def _why_not_started(code: int) -> str:
    """What to tell of a worker that ended before it was ready. One that was killed had no time to say anything itself."""
    if code >= 0:
        return "A worker did not start; what it said stands above."
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"A worker was ended by {name} while it started."
