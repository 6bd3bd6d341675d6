"""`/-/routes` and `/-/breakers`: where calls would go and why, and which targets get none; what operators see and change of that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import Field

from gateway.asked import NAMES, asked_of, with_principal
from gateway.breakers import NoSuchTargetError
from gateway.budget_changes import LONGEST, check_text, shown
from gateway.budgets import BudgetError
from gateway.core.breaker import Hand
from gateway.core.plan import Route
from gateway.errors import InvalidRequest
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.plan_report import AskedError, describe
from gateway.proxy import Proxy
from gateway.validation import Strict
from gateway.wire.strict_json import dumps

_ROUTES: Final = "/-/routes"
_BREAKERS: Final = "/-/breakers"
_LONGEST_TARGET: Final = 1000


class _Setting(Strict):
    """What an operator sets a breaker to, and why."""

    target: Annotated[str, Field(min_length=1, max_length=_LONGEST_TARGET)]
    state: Hand
    note: Annotated[str, Field(max_length=LONGEST["note"])] = ""


@dataclass(frozen=True, slots=True)
class RoutingDesk:
    """The endpoints. `proxy` knows the routes that are in force, `control` who may ask."""

    proxy: Proxy
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", _ROUTES): self.routes, ("GET", f"{_ROUTES}/{{name}}/plan"): self.plan,
                ("GET", _BREAKERS): self.breakers, ("POST", _BREAKERS): self.set}

    async def routes(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/routes`: every route with its targets, and how they are."""
        await self.control.authorise(request, "view")
        query_of(request)
        routes = self.proxy.snapshot.routes
        told = [self._row(route) for name, route in sorted(routes.items()) if name == route.name]
        await client.answer(200, {}, dumps({"routes": told}))

    async def plan(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/routes/{name}/plan`: the order in which a call would try the route's targets, and why; nothing is sent."""
        control, proxy = self.control, self.proxy
        await control.authorise(request, "view")
        try:
            asked = await with_principal(asked_of(query_of(request, *NAMES)), control.store.keys, control.clock.now_ns())
            told = await describe(proxy.routing, proxy.snapshot, name_in(request, 3), asked)
        except AskedError as error:
            raise InvalidRequest(f"`{error.name}` {error}.") from error
        await client.answer(200, {}, dumps(told))

    async def breakers(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/breakers`: the breaker of every target; what was seen in its window is this process's own."""
        await self.control.authorise(request, "view")
        query_of(request)
        await client.answer(200, {}, dumps({"breakers": self.control.breakers.rows()}))

    async def set(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/breakers`: open or close the breaker of a target by hand, or let it act by itself again.

        The target stands in the body: it holds slashes, which proxies in between decode in paths as they like.
        """
        actor = await self.control.authorise(request, "operate")
        query_of(request)
        given = read_model(_Setting, await body_of(request, self.proxy))
        author = author_of(request, actor)
        try:
            check_text("note", given.note)
        except BudgetError as error:
            raise InvalidRequest(f"note: {error}", pointer="/note") from error
        breakers = self.control.breakers
        try:
            await breakers.set(given.target, given.state, author, given.note)
        except NoSuchTargetError as error:
            names = ", ".join(row["target"] for row in breakers.rows())
            raise InvalidRequest(f"There is no target {shown(given.target)!r}; there are: {names or 'none'}.", pointer="/target") from error
        row = next((each for each in breakers.rows() if each["target"] == given.target), None)
        await client.answer(200, {}, dumps({"breaker": row}))

    def _row(self, route: Route) -> dict[str, Any]:
        """A route as a list shows it; its plan tells the rest."""
        conditions = [(to, self.control.breakers.condition(to)) for to in route.targets]
        return {
            "route": route.name, "aliases": list(route.aliases), "operations": sorted(route.operations), "strategy": route.strategy,
            "targets": [{"target": str(to.target), "weight": to.weight, "canary": to.canary, "breaker": now.state, "admits": now.admits}
                        for to, now in conditions],
            "mirrors": [str(mirror.to.target) for mirror in route.mirrors],
            "classifier": str(route.classifier.to.target) if route.classifier is not None else None,
        }
