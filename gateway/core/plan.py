"""Route in, ordered attempts out. Pure: time, chance and what went wrong come in as arguments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from gateway.call import Target
from gateway.core.decision import Rerouting
from gateway.core.estimate import Bounds
from gateway.core.money import Price


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The five deadlines of a route, in seconds. `total_s` spans all attempts together; the others are for one attempt."""

    connect_s: float
    headers_s: float
    first_token_s: float
    idle_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one target is tried (`attempts` of 1: no retry) and how the wait between two tries grows, in seconds."""

    attempts: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A target of a route with its price, None where that is not known, and what bounds a call's cost. `prices` says whose price it is."""

    target: Target
    price: Price | None
    bounds: Bounds = field(default_factory=Bounds)
    prices: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name and the ordered targets behind it."""

    name: str
    operations: frozenset[str]
    targets: tuple[RouteTarget, ...]
    deadlines: Deadlines
    retry: Retry


class NowhereError(ValueError):
    """What rules say about where a call goes leaves nowhere to go. `rule` is the one that left nothing."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def reroute(route: Route, operation: str, reroutings: Sequence[Rerouting], routes: Mapping[str, Route]) -> Route:
    """The route as rules change it: the first that names another one decides where to, and all of them take targets out.

    Raises:
        NowhereError: there is no such route, it cannot do this operation, or no target is left.
    """
    forced = next((each for each in reroutings if each.to is not None), None)
    if forced is not None and forced.to is not None:
        if operation == "tool":  # its arguments were judged as those of this tool
            raise NowhereError(forced.rule, "a call of a tool goes to that tool")
        there = routes.get(forced.to)
        if there is None or operation not in there.operations:
            raise NowhereError(forced.rule, f"there is no route {forced.to} for {operation}")
        route = there
    for each in reroutings:
        left = tuple(to for to in route.targets if _stays(str(to.target), each))
        if not left:
            raise NowhereError(each.rule, "no target is left that the rules allow")
        route = replace(route, targets=left)
    return route


def _stays(target: str, change: Rerouting) -> bool:
    if change.only and not any(fnmatchcase(target, glob) for glob in change.only):
        return False
    return not any(fnmatchcase(target, glob) for glob in change.remove)


@dataclass(frozen=True, slots=True)
class Try:
    """One planned attempt. `earlier` is how many tries this target already had in this call: the wait grows with it."""

    to: RouteTarget
    earlier: int


def plan(route: Route) -> Iterator[Try]:
    """Every attempt a call may make, in order: each target up to `retry.attempts` times, then the next target."""
    for to in route.targets:
        for earlier in range(route.retry.attempts):
            yield Try(to, earlier)


def backoff_s(retry: Retry, earlier: int, jitter: float, retry_after_s: float | None) -> float | None:
    """Seconds to wait before a target is tried again after `earlier` tries: full jitter, never less than the provider asked.

    None where the provider asked for more than `retry.cap_s`: then the next target serves the caller better. `jitter` is in [0, 1).
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, the *full jitter* variant.
    """
    if retry_after_s is not None and retry_after_s > retry.cap_s:
        return None
    wait = min(retry.cap_s, retry.base_s * 2.0 ** min(earlier - 1, 30)) * jitter
    return max(wait, retry_after_s or 0.0)
