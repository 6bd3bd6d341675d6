"""Health, metrics and the control endpoints under `/-/`: JSON, errors as RFC 9457 problem+json, for those who have the permission."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.answer import call_headers
from gateway.breakers import Breakers
from gateway.call import Outcome
from gateway.clock import Clock
from gateway.core.explain import explain
from gateway.errors import CallError, InternalError, InvalidRequest, StoreUnavailable, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.doors import Doorkeeper
from gateway.identity.actor import Actor, Permission, permitted
from gateway.identity.oidc import Oidc
from gateway.keyring import KeyRing
from gateway.reload import Reloader, Report
from gateway.store.approvals_protocol import waits_of
from gateway.store.protocol import CallFilter, Store
from gateway.store.rows import OPEN
from gateway.telemetry import METRICS_CONTENT_TYPE, Telemetry
from gateway.wire.problem import PROBLEM_TYPE, problem_fields

_FILTERS = frozenset(field.name for field in fields(CallFilter))
_OUTCOMES = (*Outcome, OPEN)
_MOST_ROWS = 500
_CHECK_S = 1.0
_NOT: Final = "The files were not put in force; what was in force stays so."
_PARTLY: Final = "Not every worker has put the files in force."
# Whose fault it is that files were not put in force, by the code of a report; else it is that of the files.
_NOT_RELOADED: Final[Mapping[str, type[CallError]]] = {kind.code: kind for kind in (StoreUnavailable, InternalError)}


@dataclass(slots=True)
class Control:
    """What operators and their tools ask. `draining`: no new connections are taken, and those that are kept open are told so."""

    store: Store
    telemetry: Telemetry
    keyring: KeyRing | None
    doorkeeper: Doorkeeper
    oidc: Oidc | None
    clock: Clock
    in_flight: Callable[[], int]
    reloader: Reloader
    breakers: Breakers
    everywhere: Callable[[], Awaitable[Sequence[Report]]] | None = None  # reloads every process, where there are several
    draining: bool = False
    _checked: tuple[float, bool] | None = None  # when the store was asked last, and whether it was well

    async def healthz(self, request: web.BaseRequest, client: HttpClient) -> None:
        """Liveness: the process answers."""
        _ = request
        await client.answer(200, {}, b'{"status":"ok"}')

    async def readyz(self, request: web.BaseRequest, client: HttpClient) -> None:
        """Readiness: false while the store is unusable or the gateway is draining. `config` says when older files are in force."""
        _ = request
        reasons = ["draining"] if self.draining else []
        if not await self._store_is_well():
            reasons.append("store: unavailable; the log says why")  # its words name paths, and anyone may ask
        if self.keyring is not None and self.keyring.stale_since_ns is not None:
            reasons.append("keys: the store could not be read; the last known keys are in force")
        stale = {"config": self.reloader.stale} if self.reloader.stale else {}
        body = orjson.dumps({"status": "unavailable" if reasons else "ok", "reasons": reasons, **stale})
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
        await self.authorise(request, "view")
        wanted = _filter(dict(request.query))
        for name, call_id in (("before", wanted.before), ("after", wanted.after)):
            if call_id is not None and await self.store.journal.call(call_id) is None:
                raise InvalidRequest(f"`{name}` must be the id of a call. `GET /-/calls` lists the latest.")
        rows = await self.store.journal.calls(wanted)
        await client.answer(200, {}, orjson.dumps({"calls": list(rows)}))

    async def call(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/calls/{id}`: one call with its decision, attempts, cost and bodies."""
        await self.authorise(request, "view")
        await client.answer(200, {}, orjson.dumps(await self._call(request.rel_url.raw_path.rpartition("/")[2])))

    async def explain(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/calls/{id}/explain`: why it was decided as it was, and what would have to change."""
        await self.authorise(request, "view")
        call = await self._call(request.rel_url.raw_path.split("/")[-2])
        content = await self.store.bundles.content(call["bundle"]) if call["bundle"] else None
        parts = await self.store.journal.calls(CallFilter(_MOST_ROWS, part_of=call["id"]))
        told = await asyncio.to_thread(explain, call, content, parts=parts[::-1])  # it compiles expressions: others do not wait for that
        await client.answer(200, {}, orjson.dumps(told))

    async def _call(self, call_id: str) -> Mapping[str, Any]:
        row = await self.store.journal.call(call_id)
        if row is None:
            for ticket in await self.store.approvals.list(waits_of(call_id)):
                raise UnknownUrl(f"The call is waiting for the approval {ticket.id}; it is on record once it has ended.")
            raise UnknownUrl("There is no call of that id. `GET /-/calls` lists the latest.")
        return row

    async def reload(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/reload`: put changed files in force; the answer comes when every process has tried."""
        await self.authorise(request, "operate")
        reports = await (self.everywhere() if self.everywhere is not None else self._here())
        first = next((each for each in reports if not each["ok"]), reports[0])
        told = {key: value for key, value in first.items() if key not in ("pid", "ok", "code", "message")}
        told |= {"workers": list(reports)} if self.everywhere is not None else {}
        if first["ok"]:
            await client.answer(200, {}, orjson.dumps(told))
            return
        what = _PARTLY if any(each["ok"] for each in reports) else _NOT
        error = _NOT_RELOADED.get(first["code"], InvalidRequest)(f"{what} {first['message']}")
        body = orjson.dumps({**problem_fields(error, client.call_id), **told})
        await client.answer(error.status, call_headers(client.call_id, error), body, PROBLEM_TYPE)

    async def _here(self) -> list[Report]:
        return [await self.reloader.report()]

    async def authorise(self, request: web.BaseRequest, need: Permission = "admin", *, used: bool = True) -> Actor:
        """Who asks, where they may. `used`: somebody does something, which keeps their login going.

        Raises:
            Unauthenticated: nobody knows who it is.
            BrowserRefused: its cookie says nothing: it may not be from the gateway's own page.
            NotPermitted: they may not do what needs this permission.
        """
        actor, _login = await self.doorkeeper.who(request, used=used)
        return permitted(actor, need)


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
