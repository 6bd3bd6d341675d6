"""The simulator's HTTP application: a request in, its fault chosen, its honest answer made, both sent as one script."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.clock import Clock
from gateway.simulator.answer import Answer, Ask, Dialect, Manner, Refused, Sent
from gateway.simulator.control import add_control
from gateway.simulator.delivery import deliver
from gateway.simulator.faults import NO_FAULT, Fault
from gateway.simulator.log import Entry, RequestLog
from gateway.simulator.openai_api import OpenAI
from gateway.simulator.pace import Pacer
from gateway.simulator.port import Port
from gateway.simulator.scenario import Director, Scenario, bare_model
from gateway.simulator.script import owed, steps
from gateway.simulator.tools import Tools

DIALECTS: Final[tuple[Callable[[], Dialect], ...]] = (OpenAI, Tools)
_MAX_BODY = 64 * 1024 * 1024
_NOT_JSON = ("We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
             "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)")


class Provider:
    """One simulated provider: its scenario, its log, its port and what it is doing now."""

    def __init__(self, scenario: Scenario, log: RequestLog, port: Port, *, api_key: str | None, clock: Clock) -> None:
        self.log = log
        self.port = port
        self._start = scenario
        self._director = Director(scenario, clock)
        self._pacer = Pacer(clock)
        self._api_key = api_key
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def serve(self, dialect: Dialect, operation: str, request: web.Request) -> web.StreamResponse:
        """Answer one request and close its entry whatever happens."""
        entry = self.log.open()
        refusals = self.port.refusals
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - aiohttp runs handlers in tasks; tells mypy so
        self._tasks.add(task)
        try:
            answer, fault = await self._consider(dialect, operation, request, entry)
            entry.fault = fault.to_json() if fault is not NO_FAULT else {}
            entry.owed = owed(answer, fault)
            return await deliver(request, entry, steps(answer, fault, dialect), self._pacer)
        except asyncio.CancelledError:
            entry.end = "cut" if self._closing or self._reset_since(refusals) else "client_gone"
            raise
        except ConnectionError:
            entry.end = "cut" if self._reset_since(refusals) else "client_gone"
            return web.Response()  # the connection is closed: aiohttp takes note and sends nothing
        finally:
            self._tasks.discard(task)
            self.log.close(entry)

    def _reset_since(self, refusals: int) -> bool:
        """Whether the port broke the connection off: since that count, or while the request was on its way from the connection here."""
        return self.port.refusing or self.port.refusals != refusals

    async def _consider(self, dialect: Dialect, operation: str, request: web.Request,
                        entry: Entry) -> tuple[Answer, Fault]:
        """Read the request; what an honest provider would answer, and what happens to that answer."""
        key = _api_key(request.headers)
        entry.received(request, key)
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return dialect.error(413), NO_FAULT
        self.log.body(entry, raw)
        body = _parse(raw)
        model = body.get("model") if body is not None else request.match_info.get("item")
        try:
            fault = self._director.choose(header=request.headers.get("x-sim-fault"), path=request.path,
                                          model=model if isinstance(model, str) else "", api_key=key or "")
        except ValueError as error:
            return dialect.error(400, f"The simulated fault cannot be read: {error}", code="invalid_fault"), NO_FAULT
        if self._api_key is not None and key != self._api_key:
            return dialect.error(401), fault
        if operation == "unknown":
            return dialect.error(404, f"Invalid URL ({request.method} {request.path})"), fault
        if request.method == "POST" and body is None:
            return dialect.error(400, _NOT_JSON), fault
        ask = Ask(operation, body or {}, entry.number, entry.received_ns // 1_000_000_000,
                  self._director.scenario.models, bare_model(request.match_info.get("item", "")), _manner(fault),
                  sent=Sent(request.method, request.rel_url.raw_path, tuple(request.query.items()), entry.headers, body))
        return _honest(dialect, ask), fault

    def begin(self) -> None:
        """The port is open: the scenario of the start, or the one that was chosen since, begins now."""
        self.play(self._director.scenario)

    def play(self, scenario: Scenario) -> None:
        """Start another scenario."""
        self._director.play(scenario)
        self.port.follow(self._director.refusal)

    def reset(self) -> None:
        """Forget every request, every count and every scenario but the first."""
        self.log.clear()
        self.play(self._start)

    async def close(self, _app: web.Application) -> None:
        """Break off what is being answered, so that nothing that hangs outlives the server."""
        self._closing = True
        self._pacer.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def build_simulator(scenario: Scenario, log: RequestLog, port: Port, clock: Clock, *,
                    api_key: str | None = None) -> tuple[web.Application, Provider]:
    """The application, and the provider in it that tests look into. Only `api_key` is accepted; None accepts any.

    Once the port is open, `begin` starts the scenario's time line. Run it with `handler_cancellation=True`, or a client that
    leaves is not noticed before the next write.
    """
    provider = Provider(scenario, log, port, api_key=api_key, clock=clock)
    app = web.Application(client_max_size=_MAX_BODY)
    add_control(app, log, port, play=provider.play, reset=provider.reset)
    dialects: Sequence[Dialect] = [dialect() for dialect in DIALECTS]
    for dialect in dialects:
        for (method, path), operation in dialect.endpoints.items():
            app.router.add_route(method, path, partial(provider.serve, dialect, operation))
    app.router.add_route("*", "/{rest:.*}", partial(provider.serve, dialects[0], "unknown"))
    app.on_shutdown.append(provider.close)
    return app, provider


def _manner(fault: Fault) -> Manner:
    return Manner(fault.content, fault.finish_reason, fault.logprob, fault.huge, fault.no_usage, fault.ignore_limits)


def _honest(dialect: Dialect, ask: Ask) -> Answer:
    try:
        return dialect.answer(ask)
    except Refused as refused:
        return refused.answer


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _api_key(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key")
    scheme, _, value = authorization.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else authorization
