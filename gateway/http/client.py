"""The way back to the client over aiohttp. The server side's foreign exceptions are mapped here and nowhere else.

No wait here has a deadline of its own: a client that takes nothing is cut off by its connection (`connection.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from gateway.errors import ClientGone
from gateway.http.connection import SERVER

_OWN: Final = {"Server": SERVER}
_JSON: Final = "application/json"
# What a tool answers may be a page: a browser must not run it in the gateway's name, nor guess that something else is one.
_FOREIGN: Final = {"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"}
_STREAM_HEADERS: Final = {**_OWN, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies between must not collect a stream


class HttpClient:
    """One request's way back. `call_id` names it in the answer and the log; `response` is what was begun, None until then.

    `is_last`, asked when the answer begins: the connection is closed after it. `error_type` is the content type of errors.
    """

    __slots__ = ("_is_last", "_request", "call_id", "error_type", "response")

    def __init__(self, request: web.BaseRequest, call_id: str, *, is_last: Callable[[], bool]) -> None:
        self._request = request
        self._is_last = is_last
        self.call_id = call_id
        self.error_type = _JSON
        self.response: web.StreamResponse | None = None

    async def answer(
        self, status: int, headers: Mapping[str, str], body: bytes, content_type: str | None = None, *, cookies: Sequence[str] = (),
    ) -> None:
        """Send a whole answer; without a content type JSON, or an error of this client's kind. `cookies` are lines of `Set-Cookie`."""
        content_type = content_type or (self.error_type if status >= 400 else _JSON)
        await self._send(status, {**headers, **(_FOREIGN if content_type != _JSON else {})}, body, content_type, cookies)

    async def show(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str) -> None:
        """Send a file of the gateway's own page: its headers say what a browser may do with it."""
        await self._send(status, headers, body, content_type)

    async def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, content_type: str, cookies: Sequence[str] = (),
    ) -> None:
        told = {**headers, **_OWN, "Content-Type": content_type}
        self.response = response = web.Response(status=status, headers=told, body=body)
        for cookie in cookies:
            response.headers.add("Set-Cookie", cookie)
        if self._is_last():
            response.force_close()
        try:
            await response.prepare(self._request)
            await response.write_eof()
        except ConnectionError as error:
            raise _gone() from error

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a streamed answer."""
        self.response = response = web.StreamResponse(status=status, headers={**headers, **_STREAM_HEADERS, "Content-Type": content_type})
        if self._is_last():
            response.force_close()
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise _gone() from error
        response.headers.clear()  # they are out, and take 2.5 KB: a stream may be open for hours

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer; waits while the client is slow."""
        try:
            await self._opened().write(data)
        except ConnectionError as error:
            raise _gone() from error

    async def end(self, data: bytes) -> None:
        """Send the last part of a streamed answer and close it."""
        try:
            await self._opened().write_eof(data)
        except ConnectionError as error:
            raise _gone() from error

    def abort(self) -> None:
        """Drop the connection: an answer that broke inside the gateway must not look like a whole one."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _opened(self) -> web.StreamResponse:
        if self.response is None:
            raise RuntimeError("a stream is written to before it was opened")
        return self.response


def _gone() -> ClientGone:
    return ClientGone("The client closed its connection.")
