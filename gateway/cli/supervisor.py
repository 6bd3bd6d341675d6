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

from gateway.cli.process import HangUp
from gateway.cli.tie import Tie
from gateway.cli.worker import RELOAD_S
from gateway.config import Deployment
from gateway.errors import InternalError, SetupError
from gateway.reload import Fresh, Report
from gateway.telemetry import forget_worker
from gateway.watch import Watch

_READY_S: Final = 60.0
_GRACE_S: Final = 25.0  # past the drain time, before a worker is killed: it tells clients, writes records and flushes, each bounded
_PAUSE_S: Final = 1.0  # between a worker's death and its successor; doubles up to _LONGEST_PAUSE_S while workers die young
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(slots=True)
class Attached:
    """A worker that is ready, as its supervisor sees it: the tie, and who waits for its report on which round of reloads."""

    pid: int
    tie: Tie
    gone: bool = False
    waiting: dict[int, asyncio.Future[Report]] = field(default_factory=dict)

    async def listen(self, asked: Callable[[int], None]) -> None:
        """Take what the worker says, until it is gone. `asked` gets the number of each question for a reload of all."""
        while (message := await self.tie.receive()) is not None:
            if "ask" in message:
                asked(message["ask"])
            else:
                self._answer(message["done"], message["report"])
        self.gone = True
        for number in list(self.waiting):
            self._answer(number, self._failed("The worker ended."))

    async def reload(self, number: int) -> Report:
        """What came of a reload in this worker; always an answer, and in bounded time."""
        if self.gone:
            return self._failed("The worker ended.")
        self.waiting[number] = waiting = asyncio.get_running_loop().create_future()
        self.tie.send({"reload": number})
        try:
            async with asyncio.timeout(RELOAD_S):
                report: Report = await waiting
        except TimeoutError:
            return self._failed("The worker did not answer in time.")
        finally:
            del self.waiting[number]
        return report

    def _answer(self, number: int, report: Report) -> None:
        waiting = self.waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(report)

    def _failed(self, message: str) -> Report:
        return {"pid": self.pid, "ok": False, "code": InternalError.code, "message": message, "problems": []}


class Supervisor:
    """Starts workers, starts a new one where one dies, has all of them reload, passes a stop on and waits for the drain.

    Workers share the socket itself rather than the port: a connection that waits in its queue is served by whichever is alive.
    """

    def __init__(self, sock: socket.socket, deployment: Deployment, workers: int) -> None:
        self._sock = sock
        self._deployment = deployment
        self._workers = workers
        self._stop = asyncio.Event()
        self._hang_up = HangUp()
        self._watch = Watch(deployment) if deployment.config.policy.watch else None
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
        try:
            async with asyncio.TaskGroup() as starting:  # one that cannot start ends the others' wait
                for _ in range(self._workers):
                    starting.create_task(self._start())
            host, port = self._sock.getsockname()[:2]
            click.echo(f"lockgate ready on http://{f'[{host}]' if ':' in host else host}:{port}")
            for process in list(self._processes):
                self._own(self._keep(process))
            for asked in (self._hang_up.asked(), *([self._watch.changes()] if self._watch else [])):
                self._own(self._reload_on(asked))
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
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes.add(process)
        tie = await Tie.hold(ours)
        told: dict[str, Any] | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                told = await tie.receive()
        if told is None:
            tie.cut()
            if process.returncode is None:
                process.kill()
            await process.wait()
            self._processes.discard(process)
            raise SetupError("A worker did not start; what it said stands above.")
        self._attached[process.pid] = worker = Attached(process.pid, tie)
        self._own(worker.listen(lambda question: self._own(self._tell(worker, question))))
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Replace a worker that dies, for as long as the supervisor runs."""
        loop = asyncio.get_running_loop()
        pause = _PAUSE_S
        while True:
            started = loop.time()
            code = await process.wait()
            self._processes.discard(process)
            self._untie(process)
            forget_worker(process.pid)
            pause = _PAUSE_S if loop.time() - started > _LONGEST_PAUSE_S else min(pause * 2, _LONGEST_PAUSE_S)
            click.echo(f"a worker ended with code {code}; a new one starts in {pause:g} s", err=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._good.wait()
            with contextlib.suppress(SetupError, OSError):  # it said why, or no process can be had; the next round tries again
                process = await self._start()
                self._own(self._reload_together())

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
        return await asyncio.gather(*(worker.reload(self._rounds) for worker in list(self._attached.values())))

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> bool:
        self._sock.close()
        running = [process for process in self._processes if process.returncode is None]
        for process in running:
            process.terminate()
        drain_s = self._deployment.config.server.drain_timeout
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
