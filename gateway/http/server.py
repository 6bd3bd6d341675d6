"""The HTTP surface: an exact table of endpoints on aiohttp's low-level server, and the boundary where every failure becomes an answer.

The table is looked up by method and raw path: what is authorised is the endpoint that answers, never a path somebody else parsed.
"""

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from gateway.answer import call_headers
from gateway.clock import Ids
from gateway.errors import CallError, ClientGone, HeadersTooLarge, InternalError, InvalidRequest, MethodNotAllowed, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control, problem
from gateway.http.data import Handler, call_handler, models_handler
from gateway.proxy import Proxy
from gateway.telemetry import Telemetry
from gateway.wire.protocol import Dialect

_FIRST_REQUEST_S: Final = 30.0  # a connection that sends no whole request head in this time is closed
_STUCK_S: Final = 60.0  # a client that takes nothing of what waits for it in this time is cut off


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
        self._control = control
        self._paths: Mapping[str, Dialect | None] = {path: dialect for (_method, path), (_handler, dialect) in self._table.items()}

    @property
    def endpoints(self) -> list[tuple[str, str]]:
        """Every method and path that answers."""
        return [*self._table, ("GET", "/-/calls/{id}")]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        handler, dialect = self._table.get((request.method, path)) or self._find(request.method, path)
        client = HttpClient(request, self._ids.call_id(), last=self._control.draining)
        try:
            await handler(request, client)
        except CallError as error:
            await self._refuse(client, dialect, error)
        except ClientGone:
            client.abort()
        except Exception as error:  # noqa: BLE001 - the HTTP boundary
            await self._defect(client, dialect, error)
        return client.response or web.Response(status=499)

    def _find(self, method: str, path: str) -> tuple[Handler, Dialect | None]:
        if method == "GET" and path.startswith("/-/calls/"):
            return self._control.call, None
        dialect = self._paths.get(path) if path in self._paths else None if path.startswith("/-/") else self._dialects[0]
        known = path in self._paths

        async def nothing(request: web.BaseRequest, client: HttpClient) -> None:
            _ = client
            if known:
                raise MethodNotAllowed(f"{request.method} is not allowed here.")
            raise UnknownUrl("Nothing answers at this path. A client's base URL is this gateway's address with /v1 behind it.")

        return nothing, dialect

    def refusal(self, error: CallError) -> web.Response:
        """The answer to what is not HTTP, in the first dialect: nobody can say what its sender speaks. Closes the connection."""
        call_id = self._ids.call_id()
        headers = {**call_headers(call_id, error), "Content-Type": "application/json"}
        response = web.Response(status=error.status, body=self._dialects[0].error(error, call_id), headers=headers)
        response.force_close()
        return response

    async def _refuse(self, client: HttpClient, dialect: Dialect | None, error: CallError) -> None:
        call_id = client.call_id
        headers = call_headers(call_id, error)
        try:
            if dialect is None:
                await client.answer(error.status, headers, problem(error, call_id), "application/problem+json")
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


class Listener(web.Server):
    """aiohttp's low-level server with our limits and our error bodies for what is not HTTP at all."""

    def __init__(self, surface: Surface, *, max_body: int) -> None:
        self.surface = surface
        self._max_body = max_body
        super().__init__(surface, request_factory=self._request, handler_cancellation=True)

    def _request(
        self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler,
        writer: AbstractStreamWriter, task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._max_body)  # noqa: SLF001

    def __call__(self) -> "_Connection":
        return _Connection(self.surface, self, loop=asyncio.get_running_loop(), auto_decompress=False, access_log=None)


class _Connection(web.RequestHandler):
    """One client connection."""

    __slots__ = ("_first_request", "_stuck", "_surface")

    def __init__(self, surface: Surface, manager: web.Server, **settings: Any) -> None:
        self._surface = surface
        self._stuck: asyncio.TimerHandle | None = None
        super().__init__(manager, **settings)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._first_request = asyncio.get_running_loop().call_later(_FIRST_REQUEST_S, self._close_if_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._first_request.cancel()
        self._moves()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is slower than its answer. Costs nothing while clients are fast, unlike a deadline around every write."""
        super().pause_writing()
        if self.transport is not None:
            self._stuck = asyncio.get_running_loop().call_later(_STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._moves()

    def _moves(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _close_if_silent(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed as HTTP; the connection is closed after it. Never echoes what was sent."""
        _ = (request, message)
        error: CallError
        if type(exc).__name__ == "LineTooLong":
            error = HeadersTooLarge("The request line or a header is too long (8 KiB at most).")
        elif status == 400:
            error = InvalidRequest("This is not a well-formed HTTP/1.1 request.")
        else:
            error = InternalError("The gateway failed inside.")
        return self._surface.refusal(error)
