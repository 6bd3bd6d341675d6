"""The simulator's own endpoints under `/sim`: read the log, wait for it, start over, change the scenario."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from gateway.errors import ConfigError
from gateway.simulator.log import RequestLog
from gateway.simulator.port import Port
from gateway.simulator.scenario import Scenario, scenario_from

_MOST_ENTRIES = 1000
_LONGEST_WAIT_S = 300.0
_Handler = Callable[[web.Request], Awaitable[web.Response]]


def add_control(app: web.Application, log: RequestLog, port: Port, *,
                play: Callable[[Scenario], None], reset: Callable[[], None]) -> None:
    """Add the endpoints to an application. None of them is logged."""
    control = _Control(log, port, play, reset)
    app.router.add_get("/sim/log", control.spared(control.entries))
    app.router.add_get("/sim/log/wait", control.spared(control.wait))
    app.router.add_post("/sim/reset", control.spared(control.reset))
    app.router.add_put("/sim/scenario", control.spared(control.scenario))
    app.on_shutdown.append(control.close)


class _Control:
    def __init__(self, log: RequestLog, port: Port, play: Callable[[Scenario], None], reset: Callable[[], None]) -> None:
        self._log = log
        self._port = port
        self._play = play
        self._reset = reset
        self._waiting: set[asyncio.Task[Any]] = set()

    def spared(self, handler: _Handler) -> _Handler:
        """A handler that still answers where the port closes meanwhile, and on whose connection nothing else is asked."""
        async def handle(request: web.Request) -> web.Response:
            self._port.spared.add(request.protocol)
            try:
                response = await handler(request)
            finally:
                self._port.spared.discard(request.protocol)
            response.force_close()
            return response
        return handle

    async def entries(self, request: web.Request) -> web.Response:
        """`GET /sim/log?since=N&limit=M`: the entries above N, oldest first, 1000 at most, and how many there were."""
        try:
            since, limit = _number(request, "since", 0), min(_number(request, "limit", _MOST_ENTRIES), _MOST_ENTRIES)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        requests = [entry.to_json() for entry in self._log.entries(int(since), int(limit))]
        return _json({"connections": self._log.connections, "open_connections": self._port.connections,
                      "received": self._log.received, "finished": self._log.finished, "requests": requests})

    async def wait(self, request: web.Request) -> web.Response:
        """`GET /sim/log/wait?count=N&timeout=S`: answers when N requests have finished, or after S seconds."""
        try:
            count, timeout_s = _number(request, "count", 1), min(_number(request, "timeout", 10.0), _LONGEST_WAIT_S)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - aiohttp runs handlers in tasks; tells mypy so
        self._waiting.add(task)
        try:
            reached = await self._log.wait_finished(int(count), timeout_s)
        finally:
            self._waiting.discard(task)
        return _json({"reached": reached, "received": self._log.received, "finished": self._log.finished})

    async def reset(self, _request: web.Request) -> web.Response:
        """`POST /sim/reset`: forget every request and every count, go back to the scenario of the start."""
        self._reset()
        return _json({"received": 0, "finished": 0})

    async def scenario(self, request: web.Request) -> web.Response:
        """`PUT /sim/scenario`: play another scenario, in JSON with the same keys as the file."""
        try:
            scenario = scenario_from(orjson.loads(await request.read()), "scenario")
        except orjson.JSONDecodeError as error:
            return _json({"error": f"not JSON: {error}"}, 400)
        except ConfigError as error:
            return _json({"error": error.message}, 400)
        self._play(scenario)
        return _json({"rules": len(scenario.rules), "models": scenario.models})

    async def close(self, _app: web.Application) -> None:
        """End every wait: the server stops."""
        for task in list(self._waiting):
            task.cancel()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a number") from error
    if not 0 <= number < 1e15:  # also refuses nan, which no comparison holds for
        raise ValueError(f"{name}: expected a number of at least 0")
    return number
