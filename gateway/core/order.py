"""Which of a route's targets a call tries, in which order, and why. Pure: conditions of targets, chance and time come in as arguments.

`order` is a ladder; each rung works on what the one before has left:

1. a rule of the route chooses among the targets, in the order of its globs: what policy has taken out never comes back;
2. canaries: those that the call's lot falls on go first, the others are not tried at all, not even where all else fails;
3. the route's strategy ranks the rest;
4. a target whose context is surely too small goes last, but stays: a rejection tells the caller more than silence;
5. breakers: what does not admit calls is passed over;
6. where nothing is left that admits, the wait for those that only rest, or else the least bad one, alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from math import log
from typing import Any, Final

from gateway.call import Json, JsonObject, Target
from gateway.core.breaker import Condition
from gateway.core.money import usd
from gateway.core.plan import Route, RouteTarget, Strategy

_STALE_S: Final = 60.0
_LOOK_AGAIN: Final = 0.05  # of the calls go to a target whose speed was measured long ago
_LONGEST_RULE: Final = 80
_LONGEST_SHOWN: Final = 200
_MOST_NOTES: Final = 8
_WELL: Final = Condition()
_FORCED_OPEN: Final = "forced_open"


@dataclass(frozen=True, slots=True)
class Placed:
    """A target's place in a call's order. `why` says in a few words why it stands there; `condition` is that of its breaker then."""

    to: RouteTarget
    why: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class Passed:
    """A target that is not tried, and why."""

    to: RouteTarget
    why: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call may try. `rule` is the `when` of the route's rule that chose among the targets, `task` what the call was taken for.

    `last_resort`: no target is well, and the first of `order` is the least bad one, which is tried once.
    `wait_s`: every target rests because it asked for that, and the first of them is ready again after so many seconds.
    `notes` say which rules of the route could not be evaluated, and why.
    """

    strategy: str
    order: tuple[Placed, ...]
    passed: tuple[Passed, ...] = ()
    task: str = ""
    rule: str = ""
    last_resort: bool = False
    wait_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a call its order depends on.

    `cost_nusd` is what each target would cost at the most, in the order of the targets, None where nobody knows; only the strategy
    `cheapest` looks at it. `streamed`: how quick a target is, is told by its first token, else by its whole answer. `stick` is what stays
    where it was: the session, else the user, else the key; `lot` what a canary is drawn by: the session, else the call. `draws` are numbers
    in [0, 1), one for each target, for `weighted` and `fastest`. `tokens` is what the call's input has at the least. `chosen` are the globs
    of the route's rule that holds, None where none does; `notes` as in `Plan`.
    """

    stick: str = ""
    lot: str = ""
    streamed: bool = True
    cost_nusd: Sequence[int | None] = ()
    draws: Sequence[float] = ()
    tokens: int = 0
    chosen: Sequence[str] | None = None
    rule: str = ""
    task: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A target with what is known of it for this call."""

    to: RouteTarget
    condition: Condition
    cost_nusd: int | None
    draw: float

    def placed(self, why: str) -> Placed:
        return Placed(self.to, why, self.condition)

    def passed(self, why: str) -> Passed:
        return Passed(self.to, why, self.condition)


def order(route: Route, wanted: Wanted, conditions: Mapping[Target, Condition]) -> Plan:
    """The targets that a call may try, best first. A target without a condition is well. `order` is empty where nothing may be tried."""
    many = len(route.targets)
    candidates = [_Candidate(to, conditions.get(to.target, _WELL), cost, draw) for to, cost, draw in zip(
        route.targets, wanted.cost_nusd or (None,) * many, wanted.draws or (0.0,) * many, strict=True)]
    candidates, passed = _chosen(candidates, wanted)
    drawn, candidates, undrawn = _canaries(candidates, f"{route.name}\0{wanted.lot}")
    ranked = [*drawn, *_RANKS[route.strategy](candidates, wanted)]
    if wanted.chosen is not None:
        ranked = [replace(each, why=f"rule: {_cut(wanted.rule, _LONGEST_RULE)}; {each.why}") for each in ranked]
    ranked = _by_context(ranked, wanted.tokens)
    ready = tuple(each for each in ranked if each.condition.admits)
    resting = [each for each in ranked if not each.condition.admits]
    passed = [Passed(each.to, unavailable(each.condition), each.condition) for each in resting] + undrawn + passed
    plan = Plan(route.strategy, ready, tuple(passed), wanted.task, wanted.rule, notes=wanted.notes)
    return plan if ready else _otherwise(plan, resting)


def unavailable(condition: Condition) -> str:
    """Why a target does not admit calls, for people."""
    if condition.state == _FORCED_OPEN:
        return f"opened by hand{_told(condition.cause)}"
    if condition.state == "half_open":
        return f"half-open: the call that is to show whether it is well is under way{_told(condition.cause)}"
    if condition.state == "open":
        return f"open{_for(condition.until_s)}{_told(condition.cause)}"
    return f"rests{_for(condition.cooling_s)}: it asked for that with a 429"


def plan_json(plan: Plan) -> JsonObject | None:
    """The plan as it is put on record, bounded; None where it says no more than the route: the targets in their order, and all are well."""
    if _as_the_route_says(plan):
        return None
    said: dict[str, Json] = {
        "strategy": plan.strategy, "order": [_shown(each) for each in plan.order], "passed": [_shown(each) for each in plan.passed],
        "task": _cut(plan.task, _LONGEST_RULE), "rule": _cut(plan.rule, _LONGEST_SHOWN), "last_resort": plan.last_resort,
        "wait_s": round(plan.wait_s, 3), "notes": [_cut(note, _LONGEST_SHOWN) for note in plan.notes[:_MOST_NOTES]]}
    return {name: value for name, value in said.items() if value or name in ("strategy", "order")}


def _as_the_route_says(plan: Plan) -> bool:
    """Whether there is nothing to tell: most calls of a route with a fallback would else have a row that says what the route says."""
    if plan.passed or plan.rule or plan.task or plan.notes or plan.last_resort:
        return False
    plain = len(plan.order) == 1 or all(each.why == _in_its_place(number) for number, each in enumerate(plan.order, 1))
    return plain and all(each.condition.state == "closed" and each.condition.admits for each in plan.order)


# The first rung: what a rule of the route leaves.


def _chosen(candidates: list[_Candidate], wanted: Wanted) -> tuple[list[_Candidate], list[Passed]]:
    if wanted.chosen is None:
        return candidates, []
    left: list[_Candidate] = []
    for glob in wanted.chosen:
        left += [each for each in candidates if each not in left and fnmatchcase(str(each.to.target), glob)]
    why = f"not of rule: {_cut(wanted.rule, _LONGEST_RULE)}"
    return left, [each.passed(why) for each in candidates if each not in left]


# The second: canaries.


def _canaries(candidates: list[_Candidate], lot: str) -> tuple[list[Placed], list[_Candidate], list[Passed]]:
    """The canaries that the lot falls on, what is no canary, and the other canaries. Bands lie side by side, so the lot falls on one."""
    if all(each.to.canary is None for each in candidates):
        return [], candidates, []
    percent = 100.0 * _fraction(lot)
    drawn: list[Placed] = []
    rest: list[_Candidate] = []
    undrawn: list[Passed] = []
    for each in candidates:
        if each.to.canary is None:
            rest.append(each)
        elif each.to.canary_from <= percent < each.to.canary_from + each.to.canary:
            drawn.append(each.placed(f"canary ({each.to.canary:g} %)"))
        else:
            undrawn.append(each.passed(f"canary ({each.to.canary:g} %): the lot did not fall on it"))
    return drawn, rest, undrawn


# The third: strategies.


def _in_order(candidates: list[_Candidate], _: Wanted) -> list[Placed]:
    return [each.placed(_in_its_place(number)) for number, each in enumerate(candidates, 1)]


def _weighted(candidates: list[_Candidate], _: Wanted) -> list[Placed]:
    """In random order by weight. Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, by exponentials."""
    return _by_weight(candidates, lambda each: 1.0 - each.draw)


def _sticky(candidates: list[_Candidate], wanted: Wanted) -> list[Placed]:
    """Weighted rendezvous hashing: where a target is lost its share alone moves, in proportion to the others' weights."""
    return _by_weight(candidates, lambda each: _fraction(f"{each.to.target}\0{wanted.stick}"))


def _by_weight(candidates: list[_Candidate], chance: Callable[[_Candidate], float]) -> list[Placed]:
    whole = sum(each.to.weight for each in candidates)
    ranked = sorted(candidates, key=lambda each: -log(chance(each)) / each.to.weight)
    return [each.placed(f"weight {each.to.weight} of {whole}") for each in ranked]


def _cheapest(candidates: list[_Candidate], _: Wanted) -> list[Placed]:
    ranked = sorted(candidates, key=lambda each: (each.cost_nusd is None, each.cost_nusd or 0))
    placed = []
    for number, each in enumerate(ranked, 1):
        rank = "cheapest" if number == 1 else f"{_ordinal(number)} cheapest"
        placed.append(each.placed("nobody knows its price" if each.cost_nusd is None else f"{rank}: {usd(each.cost_nusd)} USD at the most"))
    return placed


def _fastest(candidates: list[_Candidate], wanted: Wanted) -> list[Placed]:
    """By how quick targets were with calls of this kind. What was never measured goes first, and now and then what was not for long."""
    heard = any(each.condition.answered_s is not None for each in candidates)
    streamed = wanted.streamed or not heard  # better another kind's figures than none

    def taken_s(each: _Candidate) -> float | None:
        return each.condition.first_token_s if streamed else each.condition.answered_s

    what = "to the first token" if streamed else "for a whole answer"
    placed = [each.placed("not measured yet") for each in candidates if taken_s(each) is None]
    known = sorted((each for each in candidates if taken_s(each) is not None), key=lambda each: taken_s(each) or 0.0)
    stale = max(known[1:], key=_measured_s, default=None)
    if stale is not None and _measured_s(stale) > _STALE_S and candidates[0].draw < _LOOK_AGAIN:
        placed.append(stale.placed(f"measured {_measured_s(stale):.0f} s ago, so it is tried again"))
        known.remove(stale)
    return placed + [each.placed(f"{'' if number else 'fastest: '}{(taken_s(each) or 0.0) * 1000:.0f} ms {what}")
                     for number, each in enumerate(known)]


def _measured_s(each: _Candidate) -> float:
    return each.condition.measured_s or 0.0


_RANKS: Final[Mapping[Strategy, Callable[[list[_Candidate], Wanted], list[Placed]]]] = {
    "priority": _in_order, "cascade": _in_order, "weighted": _weighted, "sticky": _sticky, "cheapest": _cheapest, "fastest": _fastest}


# The fourth, and the last two.


def _by_context(ranked: list[Placed], tokens: int) -> list[Placed]:
    if all(each.to.bounds.context is None or each.to.bounds.context >= tokens for each in ranked):
        return ranked
    fits: list[Placed] = []
    small: list[Placed] = []
    for each in ranked:
        context = each.to.bounds.context
        if context is None or context >= tokens:
            fits.append(each)
        else:
            small.append(replace(each, why=f"last: its context of {context} tokens is too small for {tokens} and more"))
    return fits + small


def _otherwise(plan: Plan, resting: list[Placed]) -> Plan:
    """A plan for where nothing admits calls: wait for what only rests, else take the least bad. What was opened by hand is never tried."""
    able = [each for each in resting if each.condition.state != _FORCED_OPEN]
    if not able:
        return plan
    if all(_only_rests(each.condition) for each in able):
        waiting = sorted(able, key=lambda each: each.condition.cooling_s)
        return _instead(plan, waiting, wait_s=waiting[0].condition.cooling_s)
    least = min(able, key=lambda each: each.condition.badness)
    return _instead(plan, [replace(least, why=f"last resort, the least bad: {unavailable(least.condition)}")], last_resort=True)


def _instead(plan: Plan, placed: list[Placed], **what: Any) -> Plan:
    there = [each.to for each in placed]
    return replace(plan, order=tuple(placed), passed=tuple(each for each in plan.passed if each.to not in there), **what)


def _only_rests(condition: Condition) -> bool:
    return condition.cooling_s > 0 and condition.state not in ("open", "half_open")


# Words.


def _shown(each: Placed | Passed) -> JsonObject:
    breaker = {} if each.condition.state == "closed" else {"breaker": each.condition.state}
    return {"target": str(each.to.target), "why": _cut(each.why, _LONGEST_SHOWN), **breaker}


def _fraction(text: str) -> float:
    """A number in (0, 1) that is the same for the same text, in every process."""
    bits = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 12
    return (bits + 0.5) / 2**52


def _in_its_place(number: int) -> str:
    return f"{_ordinal(number)} in order"


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _for(seconds: float) -> str:
    return f" for {seconds:.1f} s" if seconds > 0 else ""


def _told(cause: str) -> str:
    return f": {_cut(cause, _LONGEST_RULE)}" if cause else ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most - 1]}…"
