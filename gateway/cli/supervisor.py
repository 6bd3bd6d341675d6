"""Several worker processes behind one listening socket. The supervisor owns the socket and the processes and handles no calls."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from gateway.cli.process import say_no_reload
from gateway.errors import SetupError
from gateway.telemetry import forget_worker

_READY_S: Final = 60.0
_GRACE_S: Final = 25.0  # past the drain time, before a worker is killed: it tells clients, writes records and flushes, each bounded
_PAUSE_S: Final = 1.0  # between a worker's death and its successor; doubles up to _LONGEST_PAUSE_S while workers die young
_LONGEST_PAUSE_S: Final = 30.0


class Supervisor:
    """Starts workers, starts a new one where one dies, passes a stop on and waits for the drain.

    Workers share the socket itself rather than the port: a connection that waits in its queue is served by whichever is alive.
    """

    def __init__(self, sock: socket.socket, config: Path, workers: int, *, drain_s: float) -> None:
        self._sock = sock
        self._config = config
        self._workers = workers
        self._drain_s = drain_s
        self._stop = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._ties: dict[int, socket.socket] = {}
        self._metrics = tempfile.mkdtemp(prefix="lockgate-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._metrics  # where the workers' counters meet: prometheus_client's multiprocess mode

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code is 0 if every worker ended in time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, say_no_reload)
        try:
            async with asyncio.TaskGroup() as starting:  # one that cannot start ends the others' wait
                for _ in range(self._workers):
                    starting.create_task(self._start())
            host, port = self._sock.getsockname()[:2]
            click.echo(f"lockgate ready on http://{f'[{host}]' if ':' in host else host}:{port}")
            keepers = [asyncio.create_task(self._keep(process)) for process in list(self._processes)]
            await self._stop.wait()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        except* SetupError as failed:
            raise failed.exceptions[0] from None
        finally:
            on_time = await self._end()
            shutil.rmtree(self._metrics, ignore_errors=True)
        return 0 if on_time else 1

    async def _start(self) -> asyncio.subprocess.Process:
        """Start one worker and wait until it accepts connections.

        A socket pair ties the two: the worker says on its end that it is ready, and stops when the supervisor's end is gone, so that a
        supervisor that is killed leaves no worker behind on the port.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", "serve", "--config", str(self._config),
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
        ours.setblocking(False)
        told = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_READY_S):
                told = await asyncio.get_running_loop().sock_recv(ours, 16)
        if not told:
            ours.close()
            if process.returncode is None:
                process.kill()
            await process.wait()
            self._processes.discard(process)
            raise SetupError("A worker did not start; what it said stands above.")
        self._ties[process.pid] = ours
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
            await asyncio.sleep(pause)
            with contextlib.suppress(SetupError):  # it said why; the next round tries again
                process = await self._start()

    async def _end(self) -> bool:
        self._sock.close()
        running = [process for process in self._processes if process.returncode is None]
        for process in running:
            process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in running]
        _done, late = await asyncio.wait(waits, timeout=self._drain_s + _GRACE_S) if waits else (set(), set())
        for process in running:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*waits)
        for process in running:
            self._untie(process)
        return not late

    def _untie(self, process: asyncio.subprocess.Process) -> None:
        if (tie := self._ties.pop(process.pid, None)) is not None:
            tie.close()
