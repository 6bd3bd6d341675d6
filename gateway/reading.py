"""A request's body as a call, read once: what is judged is what is sent. Who may not use a route is not told that it is there."""

import asyncio
from typing import Final

from gateway.call import Call, Principal
from gateway.core.plan import Route
from gateway.core.question import LARGE
from gateway.errors import InvalidRequest, UnknownRoute
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.tools import OPERATION
from gateway.wire.protocol import Dialect
from gateway.wire.strict_json import loads

_MOST_NAMES: Final = 20


async def read_call(case: Progress, dialect: Dialect, tool: str | None, body: bytes, snapshot: Snapshot) -> Call:
    """The call that a body stands for; parsed once, beside the event loop where it is large. `tool` is the HTTP tool that is called."""
    if len(body) < LARGE:
        return _parsed(case, dialect, tool, body, snapshot)
    return await asyncio.to_thread(_parsed, case, dialect, tool, body, snapshot)  # other calls do not wait for it


def _parsed(case: Progress, dialect: Dialect, tool: str | None, body: bytes, snapshot: Snapshot) -> Call:
    parsed = loads(body, max_depth=snapshot.config.server.max_depth)
    if not isinstance(parsed, dict):
        raise InvalidRequest("The body must be a JSON object.", pointer="")
    if tool is not None:  # before its schema has a word to say: to others it does not exist
        entitled(snapshot, case.principal, tool, case.operation)
    ask = dialect.read(case.operation, parsed)
    case.hints = ask.hints
    known = snapshot.routes.get(ask.route)
    return Call(
        id=case.id, principal=case.principal, dialect=dialect.name, operation=case.operation,
        route=known.name if known is not None else ask.route, asked=ask.route,
        body=parsed, stream=ask.stream, size=len(body), received_ns=case.received_ns, origin=case.origin,
        user=case.origin.user or ask.user, key=case.presence.performing,
    )


def names_for(snapshot: Snapshot, principal: Principal) -> list[str]:
    """The routes and tools that are there for a principal."""
    return [name for name in snapshot.routes if principal.may_use(name)]


def entitled(snapshot: Snapshot, principal: Principal, name: str, operation: str) -> Route:
    """The route of a name, where it is there for a principal. Raises `UnknownRoute` with those that are."""
    route = snapshot.routes.get(name)
    if route is None or operation not in route.operations or not principal.may_use(name):
        there = [each for each in names_for(snapshot, principal) if operation in snapshot.routes[each].operations]
        listed = (", ".join(there[:_MOST_NAMES]) + (", …" if len(there) > _MOST_NAMES else "")) or "none"
        if operation == OPERATION:
            raise UnknownRoute(f"There is no tool of that name. Yours are: {listed}.")
        raise UnknownRoute(f"There is no model of that name for {operation}. Yours are: {listed}.", pointer="/model")
    return route
