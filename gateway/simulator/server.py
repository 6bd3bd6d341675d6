"""A simulator that listens: as an async context manager in tests, and as a process until a signal ends it."""

import asyncio
import errno
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from gateway.clock import Clock, SystemClock
from gateway.errors import SetupError
from gateway.simulator.app import build_simulator
from gateway.simulator.log import Entry, RequestLog
from gateway.simulator.port import Port
from gateway.simulator.scenario import Scenario

_SHUTDOWN_S = 1.0
_ROUNDS_OF_A_RESET = 5  # of the loop, until both ends know: it is closed, read, closed there, told; and one to spare
_NO_FAULTS: Final = Scenario()


class Simulator:
    """A simulated provider on a port of its own (0: any free one). Several live side by side in one process.

    Raises:
        SetupError: on entering, when it cannot listen there.
    """

    def __init__(self, scenario: Scenario = _NO_FAULTS, *, host: str = "127.0.0.1", port: int = 0,
                 api_key: str | None = None, log: RequestLog | None = None, clock: Clock | None = None) -> None:
        clock = SystemClock() if clock is None else clock
        self._log = RequestLog(clock) if log is None else log
        self._port = Port(host, port, self._log, clock)
        app, self._provider = build_simulator(scenario, self._log, self._port, clock, api_key=api_key)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)

    def __repr__(self) -> str:
        return f"<Simulator {self.url} received={self._log.received} finished={self._log.finished}>"

    @property
    def url(self) -> str:
        """The base URL for clients, `/v1` included."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        """Where the server itself answers: `/sim/…` stands below it."""
        host = f"[{self._port.host}]" if ":" in self._port.host else self._port.host
        return f"http://{host}:{self._port.number}"

    @property
    def requests(self) -> list[Entry]:
        """Every request received, in order of arrival, those being answered included."""
        return self._log.entries()

    @property
    def connections(self) -> int:
        """How many connections were accepted, since the last `reset`."""
        return self._log.connections

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return self._port.connections

    async def finished(self, count: int, timeout_s: float = 10.0) -> list[Entry]:
        """Wait until `count` requests have finished, then `requests`. Raises TimeoutError after `timeout_s`."""
        if not await self._log.wait_finished(count, timeout_s):
            raise TimeoutError(f"{self._log.finished} of {count} requests have finished after {timeout_s:g} s")
        return self.requests

    def play(self, scenario: Scenario) -> None:
        """Behave differently from now on. A scenario whose time line begins with `refuse` refuses at once."""
        self._provider.play(scenario)

    async def refuse(self) -> None:
        """Refuse connections and reset those that are open, until `accept`, `play` or `reset`, whatever the time line says.

        Clients on this loop have seen their connections break when it returns, so what they send then is refused, not reset.
        """
        self._port.stay()
        self._port.refuse()
        for _ in range(_ROUNDS_OF_A_RESET):
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Accept connections, until `refuse`, `play` or `reset`, whatever the time line says."""
        self._port.stay()
        self._port.accept()
        await self._port.accepting()

    def reset(self) -> None:
        """Forget every request and count and return to the scenario of the start."""
        self._provider.reset()

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        accepts = self._runner.server
        assert accepts is not None  # noqa: S101 - `setup` has made it; tells mypy so
        try:
            await self._port.open(accepts)
        except OSError as error:
            await self._runner.cleanup()
            raise _cannot_listen(self._port.host, self._port.number, error) from error
        self._provider.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._port.close()
        await self._runner.cleanup()


async def run(simulator: Simulator, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` gets the URL once connections are accepted."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with simulator:
        announce(simulator.url)
        await stop.wait()


def _cannot_listen(host: str, port: int, error: OSError) -> SetupError:
    if error.errno == errno.EADDRINUSE:
        return SetupError(f"port {port} on {host} is in use: stop what listens there or choose another with --port")
    return SetupError(f"cannot listen on {host}:{port}: {error.strerror}")
