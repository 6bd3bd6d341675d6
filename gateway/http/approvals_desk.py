"""`/-/approvals`: what waits for people, what exactly it is, and what they decide. What may be decided is `deciding.py`'s."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from aiohttp import web

from gateway.approvals.deciding import Ballot, Deciding
from gateway.approvals.reports import approval_details, approval_row, similar_row
from gateway.core.approval import OPEN, Event, State, Ticket
from gateway.errors import CallError, InvalidRequest
from gateway.http.approval_bodies import BatchBody, EditBody, ResolveBody, VoteBody, WithdrawBody
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.identity.actor import Actor
from gateway.proxy import Proxy
from gateway.session import SessionKey
from gateway.store.approvals_protocol import TicketFilter
from gateway.wire.strict_json import DEEPEST, dumps

AT: Final = "/-/approvals"
MOST_ROWS: Final = 200
STATES: Final[Mapping[str, tuple[State, ...]]] = {"open": tuple(OPEN), "all": (), **{each.value: (each,) for each in State}}
ORDERS: Final = ("oldest", "newest")
KINDS: Final = ("request", "tool", "tool_call", "response")
FILTERS: Final = ("rule", "tool", "route", "kind", "principal", "session", "team", "shape", "after")
_ROWS: Final = "50"
_LONGEST: Final = 1000  # characters of a filter
# What has been decided, by people or by time.
_DECIDED: Final = (State.APPROVED, State.EXECUTING, State.SUCCEEDED, State.FAILED, State.UNKNOWN, State.DENIED)


@dataclass(frozen=True, slots=True)
class ApprovalsDesk:
    """The endpoints. `proxy` knows the rules that are in force, `control` who may ask."""

    proxy: Proxy
    control: Control
    deciding: Deciding

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        one = f"{AT}/{{id}}"
        return {("GET", AT): self.approvals, ("POST", f"{AT}/votes"): self.batch, ("GET", one): self.approval,
                ("POST", f"{one}/vote"): self.vote, ("POST", f"{one}/edit"): self.edit, ("POST", f"{one}/resolve"): self.resolve,
                ("POST", f"{one}/withdraw"): self.withdraw}

    async def approvals(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/approvals`: those that wait, oldest first; or any others that the query asks for."""
        actor = await self.control.authorise(request, "view")
        query = query_of(request, "state", "order", "limit", *FILTERS)
        wanted, limit = _filter(query)
        if wanted.after is not None and await self.deciding.store.get(wanted.after) is None:
            raise InvalidRequest("`after` must be the id of an approval: `next` of the page before.")
        found = await self.deciding.store.list(wanted)
        # A page is cut short where what stands on it is large.
        more = len(found) > limit or (found and await self.deciding.store.list(replace(wanted, after=found[-1].id, limit=1)))
        told = {"approvals": [self._row(ticket, actor) for ticket in found[:limit]],
                "next": found[:limit][-1].id if more else None, "counts": dict(await self.deciding.store.counts())}
        await client.answer(200, {}, dumps(told))

    async def approval(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/approvals/{id}`: one of them, with the exact action and everything that happened."""
        actor = await self.control.authorise(request, "view")
        query_of(request)
        deciding = self.deciding
        ticket = await deciding.ticket(name_in(request, 3))
        why_not = deciding.why_not_grantable(ticket)
        told = {
            **self._row(ticket, actor),
            **approval_details(ticket, await deciding.store.history(ticket.id), self.proxy.snapshot.bundle),
            "similar": await self._similar(ticket), "session_so_far": await self._session(ticket),
            "grantable": not why_not, "why_not_grantable": why_not or None,
        }
        await client.answer(200, {}, dumps({"approval": told}))

    async def vote(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/approvals/{id}/vote`: approve or deny what was shown."""
        actor = await self.control.authorise(request, "approve")
        query_of(request)
        given = read_model(VoteBody, await body_of(request, self.proxy))
        offer = given.grant.offer if given.grant is not None else None
        ballot = Ballot(actor.voter, given.verdict, given.digest, given.comment, offer)
        await self._tell(client, actor, await self.deciding.vote(name_in(request, 3), ballot))

    async def batch(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/approvals/votes`: one verdict on several actions that look alike; each vote stands by itself."""
        actor = await self.control.authorise(request, "approve")
        query_of(request)
        given = read_model(BatchBody, await body_of(request, self.proxy))
        if len({each.id for each in given.approvals}) < len(given.approvals):
            raise InvalidRequest("An approval is there twice.", pointer="/approvals")
        tickets = [await self.deciding.ticket(each.id) for each in given.approvals]
        if len({(ticket.shape, ticket.rule) for ticket in tickets}) > 1:
            raise InvalidRequest("These are not alike: actions of one batch have the same shape and the same rule.", pointer="/approvals")
        rows = []
        for each in given.approvals:
            try:
                voted = await self.deciding.vote(each.id, Ballot(actor.voter, given.verdict, each.digest, given.comment))
            except CallError as error:
                rows.append({"id": each.id, "ok": False, "error": error.message, "code": error.code})
            else:
                rows.append({"id": each.id, "ok": True, "state": voted.state.value})
        await client.answer(200, {}, dumps({"approvals": rows}))

    async def edit(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/approvals/{id}/edit`: put another action in its place, which is judged like one that has just come."""
        actor = await self.control.authorise(request, "approve")
        query_of(request)
        # As large as the call itself may be, and as deep, for it may have to be written out in full.
        body = await body_of(request, self.proxy, largest=self.proxy.snapshot.config.server.max_body, deepest=DEEPEST)
        given = read_model(EditBody, body)
        ballot = Ballot(actor.voter, "approve", given.digest, given.comment)
        edited = await self.deciding.edit(name_in(request, 3), ballot, given.arguments, approve=given.approve)
        await self._tell(client, actor, edited)

    async def resolve(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/approvals/{id}/resolve`: say what came of an action that nobody knows it of."""
        actor = await self.control.authorise(request, "operate")
        query_of(request)
        given = read_model(ResolveBody, await body_of(request, self.proxy))
        event = Event.SUCCEED if given.outcome == "succeeded" else Event.FAIL
        author = author_of(request, actor)
        await self._tell(client, actor, await self.deciding.resolve(name_in(request, 3), event, author=author, comment=given.comment))

    async def withdraw(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/approvals/{id}/withdraw`: take an action back that has not been done."""
        actor = await self.control.authorise(request, "operate")
        query_of(request)
        given = read_model(WithdrawBody, await body_of(request, self.proxy))
        ticket = await self.deciding.ticket(name_in(request, 3))
        changed = await self.deciding.withdraw(ticket, author=author_of(request, actor), comment=given.comment)
        await self._tell(client, actor, changed)

    async def _tell(self, client: HttpClient, actor: Actor, ticket: Ticket) -> None:
        await client.answer(200, {}, dumps({"approval": self._row(ticket, actor)}))

    def _row(self, ticket: Ticket, actor: Actor) -> dict[str, Any]:
        if not actor.may("approve"):
            return approval_row(ticket, "This needs the permission `approve`.")
        may = self.deciding.eligible(ticket, actor.voter)
        return approval_row(ticket, None if may else may.why_not)

    async def _similar(self, ticket: Ticket) -> dict[str, Any] | None:
        """The last one of the same principal and rule, for the same tool or route, that was decided."""
        found: Sequence[Ticket] = await self.deciding.store.list(TicketFilter(
            states=_DECIDED, rule=ticket.rule, tool=ticket.tool or None, route=ticket.route or None, kind=ticket.kind,
            principal=ticket.principal, after=ticket.id, newest=True, limit=1))
        return await asyncio.to_thread(similar_row, ticket, found[0]) if found else None  # a difference takes its time

    async def _session(self, ticket: Ticket) -> dict[str, Any] | None:
        """What the session did so far."""
        if not ticket.session:
            return None
        row = await self.control.store.session_desk.get(SessionKey(ticket.principal, ticket.session))
        return None if row is None else {name: row[name] for name in ("calls", "spend_usd", "labels", "state")}


def _filter(query: Mapping[str, str]) -> tuple[TicketFilter, int]:
    """The filter, which asks for one row more than the page has, and the length of the page."""
    for name, value in query.items():
        if len(value) > _LONGEST or not value.isprintable():
            raise InvalidRequest(f"`{name}` is too long, or holds what cannot be printed.")
    state, order, limit = query.get("state", State.PENDING.value), query.get("order", ORDERS[0]), query.get("limit", _ROWS)
    for name, value, known in (("state", state, tuple(STATES)), ("order", order, ORDERS), ("kind", query.get("kind", KINDS[0]), KINDS)):
        if value not in known:
            raise InvalidRequest(f"`{name}` must be one of {', '.join(known)}.")
    rows = limit_of(limit, MOST_ROWS)
    given = {"asker" if name == "principal" else name: query[name] for name in FILTERS if name in query}
    return TicketFilter(states=STATES[state], newest=order == ORDERS[1], limit=rows + 1, **given), rows


def limit_of(text: str, most: int) -> int:
    """A number of rows. Raises `InvalidRequest`."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise InvalidRequest(f"`limit` must be a whole number from 1 to {most}.")
    return int(text)
