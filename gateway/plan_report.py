"""What a call of a route would try, in which order and why: for people, of a call that nobody made. Sends nothing, asks no classifier.

What policy would make of such a call is not looked at: its rules may take targets out, or send it over another route.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from gateway.call import NO_TAGS, Call, Json, JsonObject, Origin, Principal
from gateway.core.money import usd
from gateway.core.order import Passed, Placed
from gateway.core.plan import Route
from gateway.errors import UnknownRoute
from gateway.keyring import ANONYMOUS
from gateway.routing import Known, Routing, costs_nusd, task_of
from gateway.snapshot import Snapshot
from gateway.spending import spending_of
from gateway.validation import nearest
from gateway.wire.strict_json import dumps

OPERATIONS: Final = ("chat", "completions", "embeddings", "tool")  # what a call is taken for that does not say, the first that can be
_PROBED: Final = ("open", "half_open")
_DEADLINES: Final = ("connect_s", "headers_s", "first_token_s", "idle_s", "total_s")


class AskedError(ValueError):
    """What is given describes no call; `name` is the part of it that is at fault."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Asked:
    """The call that is supposed. `key` is the id of the key that it is made with, `principal` whose that is; an empty one is nobody's.
    `size` is the bytes of its body, where they are other than those of `body`; an empty `task` is found as a real call's is, but for the
    classifier's word: its default stands for it.
    """

    principal: Principal = ANONYMOUS
    operation: str = ""
    session: str | None = None
    user: str = ""
    tags: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)
    task: str = ""
    stream: bool = False
    size: int | None = None
    body: JsonObject = field(default_factory=lambda: NO_TAGS)
    key: str = ""


async def describe(routing: Routing, snapshot: Snapshot, name: str, asked: Asked) -> JsonObject:
    """The plan of such a call, JSON-ready. Costs are the most that one attempt may cost, None where nobody knows the price.

    Raises:
        UnknownRoute: there is no route of this name, it cannot do the operation, or the key may not use it.
        AskedError: such a call cannot be made of the route, or of this deployment.
        InvalidRequest: the body's limits cannot be read.
        StoreUnavailable: as in `Routing.plan`.
    """
    route = _route(snapshot, name, asked)
    if asked.task and route.classifier is not None and asked.task not in route.classifier.tasks:
        raise AskedError("task", f"must be one of {', '.join(route.classifier.tasks)}: the route's classifier knows no other")
    if asked.key and not snapshot.config.auth.required:
        raise AskedError("key", "is nobody's here: keys are not asked for (`auth.required` is false), so that all callers are one")
    call = _call(routing, route, name, asked)
    spending = spending_of(call, route, call.body, str)
    notes = tuple(_by_lot(route, asked, owned=bool(asked.key) or not snapshot.config.auth.required))
    task = asked.task or task_of(call, route)
    if task is None and route.classifier is not None:
        task = route.classifier.default
        notes = (f"the classifier {route.classifier.to.target} is not asked here: its default is taken", *notes)
    plan = await routing.ordered(snapshot, call, route, spending, Known(task or ""))
    costs = dict(zip([to.target for to in route.targets], costs_nusd(route, spending), strict=True))

    def shown(targets: Iterable[Placed | Passed]) -> list[Json]:
        return [_target(each, costs[each.to.target]) for each in targets]

    return {
        "route": route.name, "aliases": list(route.aliases), "operation": call.operation, "strategy": plan.strategy,
        "task": plan.task, "rule": plan.rule,
        "order": shown(plan.order), "passed": shown(plan.passed), "last_resort": plan.last_resort, "wait_s": plan.wait_s,
        "notes": [*notes, *plan.notes], **_settings(route)}


def _route(snapshot: Snapshot, name: str, asked: Asked) -> Route:
    """The route, if such a call may be made of it: what a call would be told is there, is there."""
    route = snapshot.routes.get(name)
    if route is None:
        hint = nearest(name, snapshot.routes)
        raise UnknownRoute(f"There is no route {name!r}{f': {hint}' if hint else ''}.")
    if asked.operation and asked.operation not in route.operations:
        raise UnknownRoute(f"The route {name} is not for {asked.operation}: it is for {', '.join(sorted(route.operations))}.")
    if not asked.principal.may_use(name):
        raise UnknownRoute(f"The key may not use the route {name}: it may use {', '.join(asked.principal.routes) or 'none'}.")
    return route


def _by_lot(route: Route, asked: Asked, *, owned: bool) -> Iterator[str]:
    """What of an order is one of several that such a call may have. `owned`: it is known whose the session is."""
    many = len(route.targets) > 1
    canaries = any(to.canary is not None for to in route.targets)
    if many and route.strategy == "weighted":
        yield "weighted: drawn by lot, each call anew; this is one of the orders that there may be"
    if canaries and asked.session is None:
        yield "canaries: a call that belongs to no session is drawn by lot, each call anew"
    of_a_key = (many and route.strategy == "sticky") or (canaries and asked.session is not None)
    if of_a_key and not owned:
        yield "sessions and users are a key's own: say which `key`, else this is only one of the orders that there may be"


def _call(routing: Routing, route: Route, name: str, asked: Asked) -> Call:
    operation = asked.operation or next((each for each in OPERATIONS if each in route.operations), "")
    size = len(dumps(dict(asked.body))) if asked.size is None else asked.size
    origin = Origin(session=asked.session, tags=asked.tags, user=asked.user or None)
    return Call(routing.ids.call_id(), asked.principal, "", operation, route.name, asked.body, asked.stream, size, routing.clock.now_ns(),
                origin, asked.user, name)


def _target(each: Placed | Passed, cost_nusd: int | None) -> JsonObject:
    to, condition = each.to, each.condition
    first_token_s = condition.first_token_s
    return {"target": str(to.target), "why": each.why, "breaker": condition.state,
            "cost_usd": None if cost_nusd is None else usd(cost_nusd), "weight": to.weight, "canary": to.canary,
            "first_token_ms": None if first_token_s is None else round(first_token_s * 1000),
            "answered_ms": None if condition.answered_s is None else round(condition.answered_s * 1000),
            "probe": isinstance(each, Placed) and condition.admits and condition.state in _PROBED}


def _settings(route: Route) -> JsonObject:
    """What else is settled for calls of the route."""
    checks, classifier = route.checks, route.classifier
    return {
        "deadlines": {name: getattr(route.deadlines, name) for name in _DEADLINES}, "retry": asdict(route.retry),
        "hedge": asdict(route.hedge) if route.hedge.after_s else None,
        "classifier": None if classifier is None else {"target": str(classifier.to.target), "tasks": list(classifier.tasks)},
        "mirrors": [{"target": str(mirror.to.target), "percent": mirror.percent} for mirror in route.mirrors],
        "accept": checks.accept.source if checks is not None and checks.accept is not None else None,
        "validators": [check.name.removeprefix("check:") for check in checks.validators] if checks is not None else [],
        "on_exhausted": "approve" if route.approve else "error", "on_stream_failure": "continue" if route.continues else "error"}
