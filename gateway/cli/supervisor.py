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

from gateway.errors import SetupError
from gateway.telemetry import forget_worker

_READY_S: Final = 60.0
_GRACE_S: Final = 10.0  # past the drain time, before a worker is killed
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
        self._metrics = tempfile.mkdtemp(prefix="lockgate-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._metrics  # where the workers' counters meet: prometheus_client's multiprocess mode

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code is 0 if every worker ended in time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            await asyncio.gather(*(self._start() for _ in range(self._workers)))
            host, port = self._sock.getsockname()[:2]
            click.echo(f"lockgate ready on http://{f'[{host}]' if ':' in host else host}:{port}")
            keepers = [asyncio.create_task(self._keep(process)) for process in list(self._processes)]
            await self._stop.wait()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        finally:
            on_time = await self._end()
            shutil.rmtree(self._metrics, ignore_errors=True)
        return 0 if on_time else 1

    async def _start(self) -> asyncio.subprocess.Process:
        """Start one worker and wait until it accepts connections."""
        readable, writable = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", "serve", "--config", str(self._config),
                "--listen-fd", str(self._sock.fileno()), "--ready-fd", str(writable),
                pass_fds=(self._sock.fileno(), writable),
                start_new_session=True,  # a Ctrl-C in the terminal goes to the supervisor alone, which passes it on in order
            )
        finally:
            os.close(writable)
        self._processes.add(process)
        try:
            async with asyncio.timeout(_READY_S):
                told = await _read_line(readable)
        except TimeoutError:
            told = b""
        if not told:
            if process.returncode is None:
                process.kill()
            await process.wait()
            self._processes.discard(process)
            raise SetupError("A worker did not start; what it said stands above.")
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Replace a worker that dies, for as long as the supervisor runs."""
        loop = asyncio.get_running_loop()
        pause = _PAUSE_S
        while True:
            started = loop.time()
            code = await process.wait()
            self._processes.discard(process)
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
        return not late


async def _read_line(readable: int) -> bytes:
    """The first line a worker writes, `b""` if it ends without one."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(readable, "rb"))
    try:
        return await reader.readline()
    finally:
        transport.close()
