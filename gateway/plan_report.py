"""What a call of a route would try, in which order and why: for people, of a call that nobody made. Sends nothing, asks no classifier.

What policy would make of such a call is not looked at: its rules may take targets out, or send it over another route.
"""

from collections.abc import Iterable, Mapping
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
_DEADLINES: Final = ("connect_s", "headers_s", "first_token_s", "idle_s", "total_s")


@dataclass(frozen=True, slots=True)
class Asked:
    """The call that is supposed. `size` is the bytes of its body, where they are other than those of `body`; an empty `task` is found
    as a real call's is, but for the classifier's word: its default stands for it.
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


async def describe(routing: Routing, snapshot: Snapshot, name: str, asked: Asked) -> JsonObject:
    """The plan of such a call, JSON-ready. Costs are the most that one attempt may cost, None where nobody knows the price.

    Raises:
        UnknownRoute: there is no route of this name.
        InvalidRequest: the body's limits cannot be read.
        StoreUnavailable: as in `Routing.plan`.
    """
    route = snapshot.routes.get(name)
    if route is None:
        hint = nearest(name, snapshot.routes)
        raise UnknownRoute(f"There is no route {name!r}{f': {hint}' if hint else ''}.")
    call = _call(routing, route, name, asked)
    spending = spending_of(call, route, call.body, str)
    notes: tuple[str, ...] = ()
    task = asked.task or task_of(call, route)
    if task is None and route.classifier is not None:
        task = route.classifier.default
        notes = (f"the classifier {route.classifier.to.target} is not asked here: its default is taken",)
    plan = await routing.ordered(snapshot, call, route, spending, Known(task or ""))
    costs = dict(zip([to.target for to in route.targets], costs_nusd(route, spending), strict=True))

    def shown(targets: Iterable[Placed | Passed]) -> list[Json]:
        return [_target(each, costs[each.to.target]) for each in targets]

    return {
        "route": route.name, "aliases": list(route.aliases), "strategy": plan.strategy, "task": plan.task, "rule": plan.rule,
        "order": shown(plan.order), "passed": shown(plan.passed), "last_resort": plan.last_resort, "wait_s": plan.wait_s,
        "notes": [*notes, *plan.notes], **_settings(route)}


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
            "first_token_ms": None if first_token_s is None else round(first_token_s * 1000)}


def _settings(route: Route) -> JsonObject:
    """What else is settled for calls of the route."""
    checks, classifier = route.checks, route.classifier
    return {
        "deadlines": {name: getattr(route.deadlines, name) for name in _DEADLINES}, "retry": asdict(route.retry),
        "hedge": asdict(route.hedge) if route.hedge.after_s else None,
        "classifier": None if classifier is None else {"target": str(classifier.to.target), "tasks": list(classifier.tasks)},
        "mirrors": [{"target": str(mirror.to.target), "percent": mirror.percent} for mirror in route.mirrors],
        "validators": [check.name.removeprefix("check:") for check in checks.validators] if checks is not None else [],
        "on_exhausted": "approve" if route.approve else "error", "on_stream_failure": "continue" if route.continues else "error"}
