"""The HTTP surface: an exact table of endpoints on aiohttp's low-level server, and the boundary where every failure becomes an answer.

The table is looked up by method and raw path: what is authorised is the endpoint that answers, never a path somebody else parsed.
"""

import asyncio
import traceback
from collections.abc import Mapping
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from gateway.answer import call_headers
from gateway.clock import Ids
from gateway.errors import CallError, ClientGone, InternalError, MethodNotAllowed, UnknownUrl
from gateway.http.approval_endpoints import approval_endpoints
from gateway.http.client import HttpClient
from gateway.http.connection import SERVER, Connection, Doors, Limits
from gateway.http.control import Control
from gateway.http.data import BODY_METHODS, QUERY_METHODS, Handler, call_handler, models_handler, tool_handler, tools_handler
from gateway.http.events import Events
from gateway.http.keys_desk import KeysDesk
from gateway.http.login_desk import LoginDesk
from gateway.http.money import MoneyDesk
from gateway.http.openapi import OpenApi
from gateway.http.page import Page
from gateway.http.people_desk import PeopleDesk
from gateway.http.routing_desk import RoutingDesk
from gateway.http.rules_desk import RulesDesk
from gateway.http.sessions_desk import SessionsDesk
from gateway.proxy import Proxy
from gateway.telemetry import Telemetry
from gateway.wire.problem import PROBLEM_TYPE, problem
from gateway.wire.protocol import Dialect

_TOOLS: Final = "/tools/"
_LONGEST_TOOL: Final = 64
_MOST_SHOWN: Final = 100  # characters of a path in an error


class Surface:
    """Routes a request to its handler and turns whatever goes wrong into the dialect's own error. A broad boundary."""

    def __init__(self, proxy: Proxy, control: Control, telemetry: Telemetry, ids: Ids) -> None:
        self._telemetry = telemetry
        self._ids = ids
        self._dialects: Final = proxy.snapshot.dialects
        self._table: dict[tuple[str, str], tuple[Handler, Dialect | None]] = {}
        for dialect in proxy.snapshot.dialects:
            for endpoint in dialect.endpoints:
                make = models_handler if endpoint.operation == "models" else call_handler
                self._table[endpoint.method, endpoint.path] = (make(proxy, dialect, endpoint), dialect)
        own: dict[str, Handler] = {
            "/healthz": control.healthz, "/readyz": control.readyz, "/metrics": control.metrics, "/-/calls": control.calls,
        }
        self._table.update({("GET", path): (handler, None) for path, handler in own.items()})
        self._table["POST", "/-/reload"] = (control.reload, None)
        self._table["GET", "/tools"] = (tools_handler(proxy), None)
        named: dict[tuple[str, str], Handler] = {("GET", "/-/calls/{id}"): control.call, ("GET", "/-/calls/{id}/explain"): control.explain}
        named |= {**MoneyDesk(proxy, control).endpoints, **RoutingDesk(proxy, control).endpoints, **SessionsDesk(proxy, control).endpoints}
        named |= {**approval_endpoints(proxy, control, ids), **Events(control).endpoints, **OpenApi(control).endpoints}
        named |= {**KeysDesk(proxy, control, ids).endpoints, **RulesDesk(proxy, control).endpoints, **Page(control).endpoints}
        named |= {**LoginDesk(proxy, control).endpoints, **PeopleDesk(proxy, control, ids).endpoints}
        self._table.update({at: (handler, None) for at, handler in named.items() if "{" not in at[1]})
        self._named = {at: handler for at, handler in named.items() if "{" in at[1]}
        self._proxy = proxy
        self._control = control
        server, held = proxy.snapshot.config.server, proxy.snapshot.config.approvals.max_held
        self.limits: Final = Limits(most_open=2 * server.max_in_flight + server.queue + held + 64)  # inside, waiting, held, and idle ones
        self._paths: Mapping[str, Dialect | None] = {path: dialect for (_method, path), (_handler, dialect) in self._table.items()}

    @property
    def endpoints(self) -> list[tuple[str, str]]:
        """Every method and path that answers."""
        tools = [(method, f"{_TOOLS}{{name}}") for method in (*QUERY_METHODS, *BODY_METHODS)]
        return [*self._table, *tools, *self._named]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        handler, dialect = self._table.get((request.method, path)) or self._find(request.method, path)
        client = HttpClient(request, self._ids.call_id(), is_last=self._is_draining)
        try:
            await handler(request, client)
        except CallError as error:
            await self._refuse(client, dialect, error)
        except ClientGone:
            client.abort()
        except Exception as error:  # noqa: BLE001 - the HTTP boundary
            await self._defect(client, dialect, error)
        return client.response or web.Response(status=499)

    def _is_draining(self) -> bool:
        return self._control.draining

    def _find(self, method: str, path: str) -> tuple[Handler, Dialect | None]:
        named = self._named_at(path)
        if method in named:
            return named[method], None
        tool = path.removeprefix(_TOOLS) if path.startswith(_TOOLS) else ""
        if not 0 < len(tool) <= _LONGEST_TOOL or "/" in tool:
            tool = ""
        elif method in (*QUERY_METHODS, *BODY_METHODS):
            return tool_handler(self._proxy, tool), None
        dialect = self._paths.get(path) if path in self._paths else None if path.startswith(("/-/", _TOOLS)) else self._dialects[0]
        allowed = list(named) or [known for known, where in self.endpoints if where == (f"{_TOOLS}{{name}}" if tool else path)]

        async def nothing(request: web.BaseRequest, client: HttpClient) -> None:
            _ = client
            if allowed:
                raise MethodNotAllowed(f"{request.method} is not allowed here; {' and '.join(allowed)} is.")
            raise UnknownUrl(self._nothing_at(method, path))

        return nothing, dialect

    def _named_at(self, path: str) -> dict[str, Handler]:
        """The handlers of a path that names something, by method. What stands in the table is no name."""
        if not path.startswith("/-/") or path in self._paths:
            return {}
        parts = path.split("/")
        return {method: handler for (method, template), handler in self._named.items() if _fits(template.split("/"), parts)}

    def _nothing_at(self, method: str, path: str) -> str:
        shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in path[:_MOST_SHOWN])
        control = path.startswith("/-/")
        there = [f"{known} {where}" for known, where in self.endpoints if where.startswith("/-/") == control]
        hint = "" if control else " A client's base URL is this gateway's address with /v1 behind it."
        return f"This gateway has no {method} {shown}. It has: {', '.join(there)}.{hint}"

    def refusal(self, error: CallError) -> web.Response:
        """The answer to what is not HTTP, in the first dialect: nobody can say what its sender speaks. Closes the connection."""
        call_id = self._ids.call_id()
        headers = {**call_headers(call_id, error), "Content-Type": "application/json", "Server": SERVER}
        response = web.Response(status=error.status, body=self._dialects[0].error(error, call_id), headers=headers)
        response.force_close()
        return response

    async def _refuse(self, client: HttpClient, dialect: Dialect | None, error: CallError) -> None:
        call_id = client.call_id
        headers = call_headers(call_id, error)
        try:
            if dialect is None:
                await client.answer(error.status, headers, problem(error, call_id), PROBLEM_TYPE)
            else:
                await client.answer(error.status, headers, dialect.error(error, call_id))
        except ClientGone:
            client.abort()

    async def _defect(self, client: HttpClient, dialect: Dialect | None, error: Exception) -> None:
        told = "".join(traceback.format_exception(error))
        self._telemetry.event("error", "defect", call=client.call_id, error=f"{type(error).__name__}: {error}", traceback=told)
        if client.response is not None:
            client.abort()  # part of an answer is out: a cut connection is the only thing left that cannot be taken for its end
            return
        await self._refuse(client, dialect, InternalError(f"The gateway failed inside. Its log has the details under {client.call_id}."))


def _fits(template: list[str], parts: list[str]) -> bool:
    """Whether a path is one of those that a template means: a part in braces stands for anything but nothing."""
    return len(template) == len(parts) and all(
        given != "" if part.startswith("{") else part == given for part, given in zip(template, parts, strict=True))


class Listener(web.Server):
    """aiohttp's low-level server with our limits. `limits` are made from those of `[server]` unless they are given."""

    def __init__(self, surface: Surface, *, max_body: int, limits: Limits | None = None) -> None:
        self._doors = Doors(limits or surface.limits, surface.refusal)
        self._max_body = max_body
        super().__init__(surface, request_factory=self._request, handler_cancellation=True)

    async def retire(self, grace_s: float) -> None:
        """Wait until every connection is closed: after its next answer, or once nothing was asked on it for `grace_s`.

        Whoever calls this has seen to it that no new ones come, and that answers say `Connection: close`.
        """
        for _ in range(3):  # what the event loop has accepted becomes a connection some rounds later
            await asyncio.sleep(0)
        self._doors.grace_s = grace_s
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.retire()
        if self._doors.open:
            await self._doors.deserted.wait()

    def _request(
        self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler,
        writer: AbstractStreamWriter, task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        if isinstance(protocol, Connection):
            protocol.hang_up_if_deaf()  # what waits behind this request may have come before its turn did
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._max_body)  # noqa: SLF001 - aiohttp's own factory passes the same

    def __call__(self) -> Connection:
        return Connection(self._doors, self, loop=asyncio.get_running_loop(), access_log=None)
