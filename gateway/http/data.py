"""The data endpoints: a handler for every endpoint of every dialect, and for HTTP tools. Thin: the path of a call is `Proxy.handle`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import aiohttp
from aiohttp import web

from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, InvalidRequest
from gateway.http.client import HttpClient
from gateway.proxy import Arrival, Proxy
from gateway.snapshot import is_loopback
from gateway.tools import OPERATION, Tool, ToolDialect
from gateway.wire.problem import PROBLEM_TYPE
from gateway.wire.protocol import Dialect, Endpoint
from gateway.wire.strict_json import dumps

Handler = Callable[[web.BaseRequest, HttpClient], Awaitable[None]]

QUERY_METHODS: Final = ("GET", "DELETE")  # a tool's arguments stand in the query
BODY_METHODS: Final = ("POST", "PUT", "PATCH")  # or in the body
_MOST_PARAMETERS: Final = 1000
_READ: Final[Any] = ()  # in place of the pieces of a body that is at its end
_OURS: Final = (
    "X-Lockgate-Session", "X-Lockgate-Run", "X-Lockgate-Step", "X-Lockgate-Tags", "X-Lockgate-User", "X-Lockgate-Deadline-Ms")
_OWN_SITES: Final = frozenset({"none", "same-origin"})  # typed in by hand, or asked for by what the gateway itself has answered
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def call_handler(proxy: Proxy, dialect: Dialect, endpoint: Endpoint) -> Handler:
    """The handler of one endpoint whose operation is a governed call."""

    def handle(request: web.BaseRequest, client: HttpClient) -> Awaitable[None]:
        return proxy.serve(_arrival(request, client, proxy, dialect, endpoint.operation), client)

    return handle


def tool_handler(proxy: Proxy, name: str) -> Handler:
    """The handler of calls of the HTTP tool of that name, which need not exist: only a caller who is known is told."""

    def handle(request: web.BaseRequest, client: HttpClient) -> Awaitable[None]:
        client.error_type = PROBLEM_TYPE
        tools = proxy.snapshot.tools
        arrival = _arrival(request, client, proxy, ToolDialect(tools, name, safe=request.method == "GET"), OPERATION)
        if request.method in QUERY_METHODS:
            arrival = replace(arrival, body=partial(_read_query, request, proxy, tools.get(name)))
        return proxy.serve(replace(arrival, tool=name), client)

    return handle


def tools_handler(proxy: Proxy) -> Handler:
    """The handler of the list of tools: as the list of models."""

    async def handle(request: web.BaseRequest, client: HttpClient) -> None:
        client.error_type = PROBLEM_TYPE
        arrival = _arrival(request, client, proxy, ToolDialect(proxy.snapshot.tools), "models")
        check_headers(request, proxy)
        await client.answer(200, {"X-Request-Id": client.call_id}, await proxy.models(replace(arrival, tool="")))

    return handle


def models_handler(proxy: Proxy, dialect: Dialect, endpoint: Endpoint) -> Handler:
    """The handler of the list of models: authenticated, but not a call, so neither judged nor recorded."""

    async def handle(request: web.BaseRequest, client: HttpClient) -> None:
        arrival = _arrival(request, client, proxy, dialect, endpoint.operation)
        check_headers(request, proxy)
        await client.answer(200, {"X-Request-Id": client.call_id}, await proxy.models(arrival))

    return handle


def _arrival(request: web.BaseRequest, client: HttpClient, proxy: Proxy, dialect: Dialect, operation: str) -> Arrival:
    here = request.content.is_eof()
    body = partial(_read_json, request, proxy, operation)
    return Arrival(client.call_id, dialect, operation, request.headers, presented_key(request), body, here=here)


async def _read_json(request: web.BaseRequest, proxy: Proxy, operation: str) -> bytes:
    """The body of a call. To be asked for once: aiohttp would keep it for as long as the call waits for people, and here nobody does."""
    check_headers(request, proxy)
    if operation == OPERATION and request.rel_url.raw_query_string:
        raise InvalidRequest(f"With {request.method} the arguments of a tool stand in the body; the URL has a query as well.")
    server = proxy.snapshot.config.server
    body = await read_body(request, limit=server.max_body, timeout_s=server.body_timeout)
    if body:
        request._read_bytes = None  # noqa: SLF001 - there is no other way to have it forget them
        request.content._buffer = _READ  # noqa: SLF001 - so with the deque that they came through
    return body


async def _read_query(request: web.BaseRequest, proxy: Proxy, tool: Tool | None) -> bytes:
    """The arguments of a tool that stand in the query, as JSON."""
    check_headers(request, proxy)
    if request.body_exists:
        raise InvalidRequest(f"With {request.method} the arguments of a tool stand in the query; the request has a body as well.")
    pairs = list(query_pairs(request.rel_url.raw_query_string))
    return b"{}" if tool is None else dumps(tool.read_query(pairs))  # that there is none is told where it is looked up


def query_pairs(query: str) -> Iterator[tuple[str, str]]:
    """The names and values of a query, decoded strictly: two readers of a broken one may see two things."""
    parts = query.split("&") if query else []
    if len(parts) > _MOST_PARAMETERS:
        raise InvalidRequest(f"The query has more than {_MOST_PARAMETERS} parameters.")
    for part in parts:
        name, _, value = part.replace("+", " ").partition("=")
        if not name:
            raise InvalidRequest("The query is not well-formed: name=value, joined by `&`.")
        yield unquoted(name, "query"), unquoted(value, "query")


def unquoted(text: str, where: str) -> str:
    """Percent-encoded text, decoded strictly. `where` says what it is a part of."""
    if _BROKEN.search(text):
        raise InvalidRequest(f"The {where} is not well-formed: after `%` come two hexadecimal digits.")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError as error:  # a bare byte, or an encoded one
        raise InvalidRequest(f"The {where} is not UTF-8.") from error


def presented_key(request: web.BaseRequest) -> str | None:
    """The credential of a request: `Authorization: Bearer` first, then `x-api-key`; None where there is none."""
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return request.headers.get("x-api-key")
    scheme, _, credential = authorization.partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else None


def check_headers(request: web.BaseRequest, proxy: Proxy) -> None:
    """Refuse what two readers would read in two ways, and without authentication a web page in a browser on this machine (DNS rebinding,
    CVE-2025-64443).
    """
    twice = next((name for name in _OURS if len(request.headers.getall(name, ())) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"The header {twice} is there twice: a proxy in between may have put its own beside the caller's.")
    if proxy.snapshot.config.auth.required:
        return
    host = request.headers.get("Host", "")
    if not is_loopback(host if host.endswith("]") else host.rpartition(":")[0] or host):
        raise InvalidRequest("Without authentication the gateway answers only to this machine's own names; the header `Host` has another.")
    if "Origin" in request.headers:
        raise InvalidRequest("Without authentication the gateway does not answer to web pages; the header `Origin` is set.")
    if request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES:  # a picture or a link is asked for without an origin
        raise InvalidRequest("Without authentication the gateway does not answer to web pages; the header `Sec-Fetch-Site` names another.")


async def read_body(request: web.BaseRequest, *, limit: int, timeout_s: float) -> bytes:
    """The body of a request, which is JSON; `limit` is in bytes. It is not parsed here."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidRequest("The body is compressed (`Content-Encoding`). Send it plain.")
    if request.content_type != "application/json":
        raise InvalidRequest("The body must be JSON, sent with `Content-Type: application/json`.")
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"The body is over the limit of {limit} bytes (`server.max_body`).")
    try:
        if request.content.is_eof():  # it came with the headers, as most do: nothing to wait for
            return await request.read()
        async with asyncio.timeout(timeout_s):
            if request.headers.get("Expect", "").lower() == "100-continue":  # sent only now: who is calling is known
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyTooLarge(f"The body is over the limit of {limit} bytes (`server.max_body`).") from error
    except TimeoutError as error:
        raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s (`server.body_timeout`).") from error
    except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError, web.RequestPayloadError) as error:
        raise InvalidRequest("The body's transfer encoding is broken.") from error
    except ConnectionError as error:
        raise ClientGone("The client closed its connection before its body was complete.") from error
