"""Decides recorded traffic again under other rules, and counts what would come out differently. Pure.

A decision that hangs on something that is not on record is counted by its reason and never guessed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.call import Json, JsonObject
from gateway.core.decision import BY_DEFAULT
from gateway.core.rules import Bundle
from gateway.recorded import CHANGING, Judgement, Unsure, decide_again, effect_of, effects_of, judgements
from gateway.store.protocol import DecidedCall
from gateway.supposed import World

MOST_NAMED: Final = 20  # call ids of each kind of flip


class Change(NamedTuple):
    """One kind of flip: what was decided, what would be, and the rule that makes the difference."""

    rule: str
    phase: str
    before: str
    after: str


@dataclass(slots=True)
class Flip:
    """How often a change comes, what those calls cost then (`unpriced` of them an unknown amount), and the first of them."""

    count: int = 0
    cost_nusd: int = 0
    unpriced: int = 0
    calls: list[str] = field(default_factory=list)
    _latest: str = ""

    def add(self, call: DecidedCall) -> None:
        """Count one. What a call costs is counted once, however many of its decisions change."""
        self.count += 1
        if call.id == self._latest:
            return
        self._latest = call.id
        if call.cost_nusd is None:
            self.unpriced += 1
        else:
            self.cost_nusd += call.cost_nusd
        if len(self.calls) < MOST_NAMED:
            self.calls.append(call.id)


@dataclass(slots=True)
class Replayed:
    """What a replay found. `decided` counts decisions, of which a call has one or more; `undecided` those that cannot be taken again."""

    calls: int = 0
    decided: int = 0
    flips: dict[Change, Flip] = field(default_factory=dict)
    undecided: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Json]:
        """Flips by how often they come, JSON-ready."""
        flips = [{**change._asdict(), "count": flip.count, "cost_nusd": flip.cost_nusd, "unpriced": flip.unpriced, "calls": flip.calls}
                 for change, flip in sorted(self.flips.items(), key=lambda pair: (-pair[1].count, pair[0]))]
        return {"calls": self.calls, "decided": self.decided, "flipped": sum(flip.count for flip in self.flips.values()),
                "flips": flips, "undecided": dict(self.undecided.most_common())}


def replay(bundle: Bundle, calls: Iterable[tuple[DecidedCall, JsonObject]], world: World) -> Replayed:
    """Decide every call again under `bundle`. Each comes with its detail, as `Journal.call` gives it."""
    found = Replayed()
    for call, detail in calls:
        found.calls += 1
        for judgement in judgements(call, detail, world):
            after = _again(bundle, judgement)
            if isinstance(after, Unsure):
                found.undecided[after.why] += 1
                continue
            found.decided += 1
            effect, rule = after
            if effect != judgement.effect:
                change = Change(_cause(judgement, effect, rule), judgement.phase, judgement.effect, effect)
                found.flips.setdefault(change, Flip()).add(call)
    return found


def _again(bundle: Bundle, judgement: Judgement) -> tuple[str, str] | Unsure:
    """The effect that the rules have now on all of it, and the rule that has it: a call that one question stops is stopped."""
    found: dict[str, tuple[str, ...]] = {}
    unsure: Unsure | None = None
    for asked in judgement.asked:
        again = decide_again(bundle, asked)
        if isinstance(again, Unsure):
            unsure = unsure or again
        else:
            found = {**effects_of(again.decision), **found}
    if "deny" in found:
        return "deny", found["deny"][0]
    if unsure is not None:
        return unsure
    if "require_approval" in found:
        return "require_approval", found["require_approval"][0]
    effect = effect_of(found)
    return effect, next((found[name][0] for name in CHANGING if name in found), BY_DEFAULT)


def _cause(judgement: Judgement, effect: str, rule: str) -> str:
    """The rule that makes the difference: the one that does more now, or the one that did more then."""
    return judgement.rule if _strictness(judgement.effect) > _strictness(effect) else rule


def _strictness(effect: str) -> int:
    return {"allow": 0, "require_approval": 2, "deny": 3}.get(effect, 1)
