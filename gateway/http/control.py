"""Health, metrics and the control endpoints under `/-/`: JSON, errors as RFC 9457 problem+json, opened by the admin token."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import orjson
from aiohttp import web

from gateway.call import Outcome
from gateway.clock import Clock
from gateway.errors import CallError, InvalidRequest, StoreUnavailable, Unauthenticated, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.data import presented_key
from gateway.keyring import KeyRing
from gateway.secret import Secret
from gateway.store.protocol import CallFilter, Store
from gateway.store.rows import OPEN
from gateway.telemetry import METRICS_CONTENT_TYPE, Telemetry

_FILTERS = frozenset(field.name for field in fields(CallFilter))
_OUTCOMES = (*Outcome, OPEN)
_MOST_ROWS = 500
_CHECK_S = 1.0


@dataclass(slots=True)
class Control:
    """What operators and their tools ask. `draining`: no new connections are taken, and those that are kept open are told so."""

    store: Store
    telemetry: Telemetry
    keyring: KeyRing | None
    admin_token: Secret | None
    clock: Clock
    in_flight: Callable[[], int]
    draining: bool = False
    _checked: tuple[float, bool] | None = None  # when the store was asked last, and whether it was well

    async def healthz(self, request: web.BaseRequest, client: HttpClient) -> None:
        """Liveness: the process answers."""
        _ = request
        await client.answer(200, {}, b'{"status":"ok"}')

    async def readyz(self, request: web.BaseRequest, client: HttpClient) -> None:
        """Readiness: false while the store is unusable or the gateway is draining."""
        _ = request
        reasons = ["draining"] if self.draining else []
        if not await self._store_is_well():
            reasons.append("store: unavailable; the log says why")  # its words name paths, and anyone may ask
        if self.keyring is not None and self.keyring.stale_since_ns is not None:
            reasons.append("keys: the store could not be read; the last known keys are in force")
        body = orjson.dumps({"status": "unavailable" if reasons else "ok", "reasons": reasons})
        await client.answer(503 if reasons else 200, {}, body)

    async def _store_is_well(self) -> bool:
        """Asked once a second at most: anyone may ask, and each answer costs the store a write."""
        now = self.clock.monotonic()
        if self._checked is None or now - self._checked[0] > _CHECK_S:
            try:
                await self.store.check()
            except StoreUnavailable as error:
                self._checked = now, False
                self.telemetry.event("warning", "store_unavailable", error=error.message)
            else:
                self._checked = now, True
        return self._checked[1]

    async def metrics(self, request: web.BaseRequest, client: HttpClient) -> None:
        """Prometheus' text format."""
        _ = request
        self.telemetry.in_flight(self.in_flight())
        await client.answer(200, {}, await self.telemetry.scrape(), METRICS_CONTENT_TYPE)

    async def calls(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/calls`: the latest calls, newest first."""
        self._authorise(request)
        wanted = _filter(dict(request.query))
        for name, call_id in (("before", wanted.before), ("after", wanted.after)):
            if call_id is not None and await self.store.journal.call(call_id) is None:
                raise InvalidRequest(f"`{name}` must be the id of a call. `GET /-/calls` lists the latest.")
        rows = await self.store.journal.calls(wanted)
        await client.answer(200, {}, orjson.dumps({"calls": list(rows)}))

    async def call(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/calls/{id}`: one call with its decision, attempts, cost and bodies."""
        self._authorise(request)
        row = await self.store.journal.call(request.rel_url.raw_path.rpartition("/")[2])
        if row is None:
            raise UnknownUrl("There is no call of that id. `GET /-/calls` lists the latest.")
        await client.answer(200, {}, orjson.dumps(row))

    def _authorise(self, request: web.BaseRequest) -> None:
        presented = presented_key(request)
        if self.admin_token is None or presented is None or Secret(presented) != self.admin_token:
            raise Unauthenticated("The control endpoints take the admin token: `Authorization: Bearer TOKEN` (`[admin] token`).")


def problem(error: CallError, call_id: str | None) -> bytes:
    """An error as RFC 9457 problem+json."""
    told: dict[str, Any] = {
        "type": "about:blank", "title": error.code, "status": error.status, "detail": error.message, "code": error.code,
    }
    if call_id is not None:
        told["call_id"] = call_id
    return orjson.dumps(told)


def _filter(query: dict[str, str]) -> CallFilter:
    unknown = sorted(set(query) - _FILTERS)
    if unknown:
        raise InvalidRequest(f"Unknown query parameter `{unknown[0]}`. There are: {', '.join(sorted(_FILTERS))}.")
    unreadable = [name for name, value in query.items() if not value.isprintable()]
    if unreadable:
        raise InvalidRequest(f"`{unreadable[0]}` holds what cannot be printed.")
    limit = query.pop("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(_MOST_ROWS)) and 1 <= int(limit) <= _MOST_ROWS):
        raise InvalidRequest(f"`limit` must be a whole number from 1 to {_MOST_ROWS}.")
    if query.get("outcome", OPEN) not in _OUTCOMES:
        raise InvalidRequest(f"`outcome` must be one of {', '.join(_OUTCOMES)}.")
    return CallFilter(limit=int(limit), **query)
