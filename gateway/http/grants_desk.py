"""`/-/grants`: what people have let go on for a while. A grant is made with a vote; here it is seen and taken back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.approvals.reports import MOST_USES, grant_row
from gateway.errors import InvalidRequest, UnknownUrl
from gateway.http.approvals_desk import limit_of
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, name_in, query_of
from gateway.store.approvals_protocol import Approvals
from gateway.wire.strict_json import dumps

AT: Final = "/-/grants"
MOST_ROWS: Final = 1000
LIVE: Final = ("true", "false")
_ROWS: Final = "100"


@dataclass(frozen=True, slots=True)
class GrantsDesk:
    """The endpoints. `control` knows who may ask."""

    store: Approvals
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", AT): self.grants, ("POST", f"{AT}/{{id}}/revoke"): self.revoke}

    async def grants(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/grants`: grants, newest first; with `live=true` those that count now."""
        await self.control.authorise(request, "view")
        query = query_of(request, "rule", "principal", "live", "limit")
        if query.get("live", LIVE[0]) not in LIVE:
            raise InvalidRequest("`live` must be true or false.")
        limit, now_ns = limit_of(query.get("limit", _ROWS), MOST_ROWS), self.control.clock.now_ns()
        found = await self.store.grants(rule=query.get("rule"), principal=query.get("principal"),
                                        live_at_ns=now_ns if query.get("live") == "true" else None, limit=limit + 1)
        uses = await self.store.uses([each.id for each in found[:limit]], MOST_USES + 1)
        rows = [grant_row(each, now_ns, uses[each.id]) for each in found[:limit]]
        await client.answer(200, {}, dumps({"grants": rows, "more": len(found) > limit}))

    async def revoke(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/grants/{id}/revoke`: from now on calls are held again. Who did so stands with the grant."""
        actor = await self.control.authorise(request, "approve")
        query_of(request)
        grant_id, author = name_in(request, 3), author_of(request, actor)
        if not await self.store.revoke(grant_id, author=author, now_ns=self.control.clock.now_ns()):
            raise UnknownUrl("There is no live grant of that id. `GET /-/grants?live=true` lists them.")
        self.control.telemetry.event("info", "grant_revoked", grant=grant_id, person=author)
        await client.answer(200, {}, dumps({"grant": grant_id, "revoked": True}))
