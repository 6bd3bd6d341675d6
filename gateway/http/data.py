"""The data endpoints: one handler for every endpoint of every dialect. Thin: the path of a call is `Proxy.handle`."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, InvalidRequest
from gateway.http.client import HttpClient
from gateway.proxy import Arrival, Proxy
from gateway.snapshot import is_loopback
from gateway.wire.protocol import Dialect, Endpoint

Handler = Callable[[web.BaseRequest, HttpClient], Awaitable[None]]


def call_handler(proxy: Proxy, dialect: Dialect, endpoint: Endpoint) -> Handler:
    """The handler of one endpoint whose operation is a governed call."""

    async def handle(request: web.BaseRequest, client: HttpClient) -> None:
        await proxy.serve(_arrival(request, client, proxy, dialect, endpoint), client)

    return handle


def models_handler(proxy: Proxy, dialect: Dialect, endpoint: Endpoint) -> Handler:
    """The handler of the list of models: authenticated, but not a call, so neither judged nor recorded."""

    async def handle(request: web.BaseRequest, client: HttpClient) -> None:
        arrival = _arrival(request, client, proxy, dialect, endpoint)
        _check_origin(request, proxy)
        await client.answer(200, {"X-Request-Id": client.call_id}, proxy.models(arrival))

    return handle


def _arrival(request: web.BaseRequest, client: HttpClient, proxy: Proxy, dialect: Dialect, endpoint: Endpoint) -> Arrival:
    async def body() -> bytes:
        _check_origin(request, proxy)
        server = proxy.snapshot.config.server
        return await _read_body(request, limit=server.max_body, timeout_s=server.body_timeout)

    return Arrival(client.call_id, dialect, endpoint.operation, request.headers, presented_key(request), body)


def presented_key(request: web.BaseRequest) -> str | None:
    """The credential of a request: `Authorization: Bearer` first, then `x-api-key`; None where there is none."""
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return request.headers.get("x-api-key")
    scheme, _, credential = authorization.partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else None


def _check_origin(request: web.BaseRequest, proxy: Proxy) -> None:
    """Without authentication, a web page in a browser on this machine must not reach the gateway (DNS rebinding, CVE-2025-64443)."""
    if proxy.snapshot.config.auth.required:
        return
    host = request.headers.get("Host", "")
    if not is_loopback(host if host.endswith("]") else host.rpartition(":")[0] or host):
        raise InvalidRequest("Without authentication the gateway answers only to this machine's own names; the header `Host` has another.")
    if "Origin" in request.headers:
        raise InvalidRequest("Without authentication the gateway does not answer to web pages; the header `Origin` is set.")


async def _read_body(request: web.BaseRequest, *, limit: int, timeout_s: float) -> bytes:
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
