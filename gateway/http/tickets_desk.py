"""`/-/tickets`: what a caller sees of its own approvals, with its own key. `/-/notices`: what people were told, and whether it arrived."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.approvals.deciding import Deciding
from gateway.approvals.reports import ticket_row
from gateway.clock import time_text
from gateway.core.approval import State, Ticket
from gateway.errors import UnknownUrl
from gateway.http.approval_bodies import WithdrawBody
from gateway.http.approvals_desk import limit_of
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler, check_headers, presented_key
from gateway.http.desk import body_of, name_in, query_of, read_model
from gateway.proxy import Proxy
from gateway.wire.strict_json import dumps

_AT: Final = "/-/tickets"
_NOTICES: Final = "/-/notices"
MOST_NOTICES: Final = 1000
_SOON_S: Final = 10.0  # for what people have let pass to be put together
_MOST_EDITS: Final = 100  # that lead from a ticket to the one in its place
_ROWS: Final = "100"


@dataclass(frozen=True, slots=True)
class TicketsDesk:
    """The endpoints. `proxy` knows callers by their credentials, `control` people."""

    proxy: Proxy
    control: Control
    deciding: Deciding

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", f"{_AT}/{{id}}"): self.ticket, ("POST", f"{_AT}/{{id}}/withdraw"): self.withdraw, ("GET", _NOTICES): self.notices}

    async def ticket(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/tickets/{id}`: what became of an approval that the caller waits for, and the answer once there is one."""
        query_of(request)
        ticket, then = await self._with_next(await self._own(request))
        told = ticket_row(ticket, then)
        if "result" in told and ticket.delivered_ns is None:
            await self.deciding.store.delivered(ticket.id, now_ns=self.control.clock.now_ns())
        await client.answer(200, {}, dumps(told))

    async def withdraw(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/tickets/{id}/withdraw`: the caller does not want it any more."""
        query_of(request)
        ticket = await self._own(request)
        given = read_model(WithdrawBody, await body_of(request, self.proxy))
        changed = await self.deciding.withdraw(ticket, author=ticket.principal, comment=given.comment)
        await client.answer(200, {}, dumps(ticket_row(changed)))

    async def notices(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/notices`: the latest notices, newest first, with what became of them."""
        await self.control.authorise(request, "view")
        limit = limit_of(query_of(request, "limit").get("limit", _ROWS), MOST_NOTICES)
        found = await self.control.store.outbox.list(limit)
        rows = [{name.removesuffix("_ns") + "_at" if name.endswith("_ns") else name: time_text(value) if name.endswith("_ns") else value
                 for name, value in row.items()} for row in found]
        await client.answer(200, {}, dumps({"notices": rows}))

    async def _with_next(self, ticket: Ticket) -> tuple[Ticket, Ticket | None]:
        """A ticket, and the one that its result waits for; none where people have let it pass."""
        then = await self._latest(ticket.next) if ticket.next else None
        if then is None or then.kind != "response" or then.state is not State.APPROVED:
            return ticket, then
        await asyncio.wait({self.proxy.holding.performing.of(ticket)}, timeout=_SOON_S)
        ticket = await self.deciding.store.get(ticket.id) or ticket
        return ticket, await self._latest(ticket.next) if ticket.next else None

    async def _latest(self, wanted: str) -> Ticket | None:
        """A ticket, or the edited one in its place."""
        for _ in range(_MOST_EDITS):
            ticket = await self.deciding.store.get(wanted)
            if ticket is None or not ticket.replaced_by:
                return ticket
            wanted = ticket.replaced_by
        return None

    async def _own(self, request: web.BaseRequest) -> Ticket:
        """The ticket that is asked about, or the edited one in its place. Somebody else's is not there."""
        check_headers(request, self.proxy)
        principal = await self.proxy.principal_of(presented_key(request))
        ticket = await self._latest(name_in(request, 3))
        if ticket is None or ticket.principal != principal.id:
            raise UnknownUrl("You have no approval of that id.")
        return ticket
