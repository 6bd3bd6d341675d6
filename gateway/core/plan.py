"""Routes: where calls may go, and how rules change that. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import inf
from typing import Literal, TypeAlias

from gateway.call import JsonObject, Target
from gateway.core.answer_checks import AnswerChecks
from gateway.core.breaker import BreakerRules
from gateway.core.decision import Rerouting
from gateway.core.estimate import Bounds
from gateway.core.money import Price
from gateway.core.route_rules import RouteRules

Strategy: TypeAlias = Literal["priority", "weighted", "cheapest", "fastest", "sticky", "cascade"]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The five deadlines of a route, in seconds. `total_s` spans all attempts together; the others are for one attempt.

    `silence_s` is how long the client of a stream waits from one byte to the next, as far as it says. `hurried`: the client waits for much
    less than the route would.
    """

    connect_s: float
    headers_s: float
    first_token_s: float
    idle_s: float
    total_s: float
    silence_s: float = inf
    hurried: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one target is tried (`attempts` of 1: no retry) and how the wait between two tries grows, in seconds.

    `share` and `per_second` are the retry budget: how many further attempts a route may make for each call, and a second on top.
    """

    attempts: int
    base_s: float
    cap_s: float
    share: float = 0.2
    per_second: float = 3.0


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second attempt beside one that has not answered after `after_s` seconds (0: none ever), for `share` of the calls at the most."""

    after_s: float = 0.0
    share: float = 0.05


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A target of a route with its price, None where nobody knows it, and what bounds a call's cost. `prices` says whose price it is.

    `canary` is the percentage of sessions that go here first, while the others never do; None where it is no canary. `canary_from` is where
    its share begins, of 100: the shares of a route's canaries lie side by side. `continues` are the fields of a body that have it go on
    with a half answer; None where it cannot.
    """

    target: Target
    price: Price | None
    bounds: Bounds = field(default_factory=Bounds)
    prices: str = ""
    weight: int = 1
    canary: float | None = None
    canary_from: float = 0.0
    continues: JsonObject | None = None
    breaker: BreakerRules = field(default_factory=BreakerRules)


@dataclass(frozen=True, slots=True)
class Mirror:
    """A target that gets a copy of a percentage of the calls."""

    to: RouteTarget
    percent: float


@dataclass(frozen=True, slots=True)
class Classifier:
    """A small model that says which of `tasks` a call is; `default` where it does not. Its word on a text holds for `cache_s` seconds."""

    to: RouteTarget
    tasks: tuple[str, ...]
    default: str
    instructions: str
    deadline_s: float
    cache_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """A public name and the targets behind it. `aliases` are its other names.

    `checks` say what an answer must be, None where it may be anything; `approve`: a person is asked where no target's answer is that.
    `continues`: a stream that breaks off may go on at another target. `early_s`: after so many seconds without an event a stream begins
    with a comment; 0: never.
    """

    name: str
    operations: frozenset[str]
    targets: tuple[RouteTarget, ...]
    deadlines: Deadlines
    retry: Retry
    strategy: Strategy = "priority"
    aliases: tuple[str, ...] = ()
    rules: RouteRules | None = None
    classifier: Classifier | None = None
    mirrors: tuple[Mirror, ...] = ()
    checks: AnswerChecks | None = None
    approve: bool = False
    hedge: Hedge = field(default_factory=Hedge)
    continues: bool = False
    early_s: float = 0.0

    @property
    def reached(self) -> tuple[RouteTarget, ...]:
        """Every target that a call may have something sent to: mirrors and the classifier, too."""
        return (*self.targets, *(mirror.to for mirror in self.mirrors), *((self.classifier.to,) if self.classifier else ()))


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


def permitted(to: RouteTarget, reroutings: Sequence[Rerouting]) -> bool:
    """Whether rules let a call, or a part of it, go to a target that is none of its route's: a mirror's or a classifier's."""
    return all(_stays(str(to.target), each) for each in reroutings)


def _stays(target: str, change: Rerouting) -> bool:
    if change.only and not any(fnmatchcase(target, glob) for glob in change.only):
        return False
    return not any(fnmatchcase(target, glob) for glob in change.remove)
