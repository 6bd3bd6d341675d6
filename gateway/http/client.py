"""The way back to the client over aiohttp. The server side's foreign exceptions are mapped here and nowhere else."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Final

from aiohttp import web

from gateway.errors import ClientGone

_LAST_BYTES_S: Final = 60.0  # how long a client may take to receive what is left; a running stream is bounded by its route's deadlines
_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies between must not collect a stream


class HttpClient:
    """One request's way back. `response` is what was begun, None until then."""

    __slots__ = ("_request", "response")

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str = "application/json") -> None:
        """Send a whole answer."""
        response = web.Response(status=status, headers={**headers, "Content-Type": content_type}, body=body)
        self.response = response
        await self._last(self._send(response))

    async def _send(self, response: web.Response) -> None:
        await response.prepare(self._request)
        await response.write_eof()

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a streamed answer."""
        self.response = response = web.StreamResponse(status=status, headers={**headers, **_STREAM_HEADERS, "Content-Type": content_type})
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise _gone() from error

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer; waits while the client is slow."""
        try:
            await self._opened().write(data)
        except ConnectionError as error:
            raise _gone() from error

    async def end(self, data: bytes) -> None:
        """Send the last part of a streamed answer and close it."""
        await self._last(self._opened().write_eof(data))

    def abort(self) -> None:
        """Drop the connection: an answer that broke inside the gateway must not look like a whole one."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _opened(self) -> web.StreamResponse:
        if self.response is None:
            raise RuntimeError("a stream is written to before it was opened")
        return self.response

    async def _last(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(_LAST_BYTES_S):
                await sending
        except TimeoutError as error:
            self.abort()
            raise ClientGone("The client did not take its answer.") from error
        except ConnectionError as error:
            raise _gone() from error


def _gone() -> ClientGone:
    return ClientGone("The client closed its connection.")
