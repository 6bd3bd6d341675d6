"""Breakers: a target that fails or dawdles gets no more calls for a while. A table says what comes of what; time is an argument. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from gateway.call import Attempt, AttemptEnd

COOL_S: Final = 1.0  # the rest of a target that answers 429 and does not say how long
MOST_LEASE_S: Final = 3600.0
_LEAST_SHARE: Final = 0.1  # of the open time: full jitter alone would now and then let the next call through at once
_MOST_DOUBLINGS: Final = 30
# Times are wall time. Processes read the clock and write a little later, so that each sees the others' times a little ahead; by more than
# this a time can be too late only where the clock was set back, and then it counts as over.
_SLACK_S: Final = 60.0
_HOPELESS: Final = 1e6  # the badness of a target that is not to be tried
_OWN_FAULT: Final = frozenset({"connect", "tls", "reset", "malformed", "cut", "stream_error"})


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When the breaker of a target opens and for how long: `[breaker]`, as `resilience_config.py` explains it. Durations are seconds."""

    enabled: bool = True
    window_s: float = 30.0
    calls: int = 10
    failures: float = 0.5
    consecutive: int = 5
    slow: float = 0.8
    slow_first_token_s: float | None = None
    slow_gap_s: float | None = None
    open_s: float = 5.0
    open_cap_s: float = 300.0
    probes: int = 1
    cool_cap_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Condition:
    """What a target's breaker says now. `state` is `closed`, `open`, `half_open`, `forced_open` or `forced_closed`.

    `admits`: a call may be sent: it is closed, or a probe is due and a permit for it may be had. `until_s` is how long it stays as it is
    (0: nobody knows). `cooling_s`: it rests for so many seconds because it asked for that with a 429. `answering`: it is closed, and calls
    have succeeded in the window. `badness` tells the least bad of several that do not admit: the lower the better. `first_token_s` is the
    moving average of the time to the first token, `answered_s` that of the time for a whole answer, None where none was measured;
    `measured_s` how long ago the last one was.
    """

    state: str = "closed"
    admits: bool = True
    until_s: float = 0.0
    cooling_s: float = 0.0
    answering: bool = False
    badness: float = 0.0
    first_token_s: float | None = None
    answered_s: float | None = None
    measured_s: float | None = None
    calls: int = 0
    failures: int = 0
    slow: int = 0
    cause: str = ""


class State(StrEnum):
    """What a breaker does with calls."""

    CLOSED = "closed"  # lets them through, and counts
    OPEN = "open"  # keeps them away until a probe is due
    HALF_OPEN = "half_open"  # lets as many through as there are permits, to see
    FORCED_OPEN = "forced_open"  # keeps them away until an operator says otherwise
    FORCED_CLOSED = "forced_closed"  # lets them through until an operator says otherwise


class Event(StrEnum):
    """What happens to a breaker."""

    TRIPPED = "tripped"  # too many calls failed or were slow
    CLAIMED = "claimed"  # a call asks to be a probe
    PROBE_SUCCEEDED = "probe succeeded"  # and more are wanted
    PROVED = "last probe succeeded"  # as many as are wanted
    PROBE_FAILED = "probe failed"
    PROBE_RETURNED = "probe returned"  # it came to nothing that says how the target is
    ANSWERED = "answered all the same"  # a call that was sent as the last resort has succeeded: the next probe is due
    RECOVERED = "recovered"  # so many calls in a row have succeeded that the next trip is a first one
    COOLED = "cooled"  # the target asked for a rest
    FORCED_OPEN = "opened by hand"
    FORCED_CLOSED = "closed by hand"
    RELEASED = "released by hand"


# What is not here changes nothing: a second trip is no trip, and a probe that ends after its breaker has moved on is too late.
TABLE: Final[Mapping[tuple[State, Event], State]] = MappingProxyType({
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.CLOSED, Event.RECOVERED): State.CLOSED,
    (State.OPEN, Event.CLAIMED): State.HALF_OPEN,
    (State.OPEN, Event.ANSWERED): State.OPEN,
    (State.HALF_OPEN, Event.CLAIMED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBE_SUCCEEDED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROVED): State.CLOSED,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, Event.PROBE_RETURNED): State.HALF_OPEN,
    **{(state, Event.COOLED): state for state in State},
    **{(state, Event.FORCED_OPEN): State.FORCED_OPEN for state in State},
    **{(state, Event.FORCED_CLOSED): State.FORCED_CLOSED for state in State},
    (State.FORCED_OPEN, Event.RELEASED): State.CLOSED,
    (State.FORCED_CLOSED, Event.RELEASED): State.CLOSED,
})

_OF_A_PROBE: Final = frozenset({Event.PROBE_SUCCEEDED, Event.PROBE_FAILED, Event.PROBE_RETURNED})
_SEEN_ONCE: Final = frozenset({Event.TRIPPED, Event.RECOVERED, Event.ANSWERED})
Hand: TypeAlias = Literal["open", "close", "auto"]
BY_HAND: Final[Mapping[Hand, Event]] = MappingProxyType({
    "open": Event.FORCED_OPEN, "close": Event.FORCED_CLOSED, "auto": Event.RELEASED})
_LONGEST: Final = {"author": 256, "note": 4096}


class Pass(NamedTuple):
    """A permit for a probe: whose it is, and how long and until when it counts where nobody gives it back."""

    holder: str
    lease_s: float
    until_ns: int


@dataclass(frozen=True, slots=True)
class Breaker:
    """The breaker of a target, as all processes share it. Times are wall time in ns.

    `changes` counts how often its state has changed. `until_ns` is when a probe is due, `cooling_ns` when it has rested. `trips` is how
    often in a row it has opened, `succeeded` how many probes have succeeded since it is half open. `generation` is the store's as of its
    last write.
    """

    target: str
    state: State = State.CLOSED
    changes: int = 0
    since_ns: int = 0
    until_ns: int | None = None
    cooling_ns: int | None = None
    trips: int = 0
    succeeded: int = 0
    permits: tuple[Pass, ...] = ()
    cause: str = ""
    author: str = ""
    note: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """An event with all that it needs. `seen` is how often the state had changed when the event was seen: news that is older is none.

    `holder` and `lease_s` are of a probe, `draw` in [0, 1) says how much of the longest open time is taken, `cool_s` is the rest asked for.
    """

    event: Event
    now_ns: int
    rules: BreakerRules = field(default_factory=BreakerRules)
    seen: int = 0
    cause: str = ""
    holder: str = ""
    lease_s: float = 0.0
    draw: float = 0.0
    cool_s: float = 0.0
    author: str = ""
    note: str = ""


def by_hand(what: Hand, *, now_ns: int, author: str, note: str) -> Step:
    """The step of an operator who opens or closes a breaker or lets it act by itself again. Raises `ValueError` for what cannot be kept."""
    if what not in BY_HAND:
        raise ValueError(f"a breaker is set to {', '.join(BY_HAND)}; not to {what!r}")
    for name, value in (("author", author), ("note", note)):
        if len(value) > _LONGEST[name]:
            raise ValueError(f"the {name} has {_LONGEST[name]} characters at most")
    return Step(BY_HAND[what], now_ns, author=author, note=note)


def after(breaker: Breaker, step: Step) -> Breaker:
    """The breaker once the step has happened; the very same where it changes nothing."""
    event = step.event
    if event is Event.PROBE_SUCCEEDED and breaker.succeeded + 1 >= step.rules.probes:
        event = Event.PROVED
    state = TABLE.get((breaker.state, event))
    if state is None or not _applies(breaker, step):
        return breaker
    moved = breaker if state is breaker.state else _entered(breaker, state, step)
    note = _NOTED.get(event)
    return moved if note is None else replace(moved, **note(moved, step))


def _applies(breaker: Breaker, step: Step) -> bool:
    """Whether what the table allows is so: there is a permit to be had or to be given back, and the news is new."""
    if step.event in _OF_A_PROBE:
        return any(each.holder == step.holder for each in breaker.permits)
    if step.event in _SEEN_ONCE:
        return step.seen == breaker.changes
    if step.event is Event.CLAIMED:
        return probe_due(breaker, step.rules, step.now_ns)
    if step.event is Event.COOLED:
        return _rest_s(step) > cooling_s(breaker, step.rules, step.now_ns)
    return True


def _entered(breaker: Breaker, state: State, step: Step) -> Breaker:
    """The breaker as it enters another state."""
    moved = replace(breaker, state=state, changes=breaker.changes + 1, since_ns=step.now_ns, until_ns=None, succeeded=0, permits=(),
                    author="", note="")
    match state:
        case State.OPEN:
            return replace(moved, trips=breaker.trips + 1, cause=step.cause,
                           until_ns=step.now_ns + _ns(open_time_s(step.rules, breaker.trips + 1, step.draw)))
        case State.HALF_OPEN:
            return moved  # its cause is why it had opened
        case _:
            return replace(moved, cause="", trips=breaker.trips if step.event is Event.PROBE_SUCCEEDED else 0)


def open_time_s(rules: BreakerRules, trips: int, draw: float) -> float:
    """How long a breaker stays open that has opened for the `trips`th time in a row: full jitter over a small least."""
    longest_s: float = min(rules.open_cap_s, rules.open_s * 2.0 ** min(trips - 1, _MOST_DOUBLINGS))
    return longest_s * (_LEAST_SHARE + (1 - _LEAST_SHARE) * draw)


def passes(breaker: Breaker, rules: BreakerRules, now_ns: int) -> bool:
    """Whether calls go through without a permit."""
    if breaker.state in (State.FORCED_OPEN, State.FORCED_CLOSED):
        return breaker.state is State.FORCED_CLOSED
    closed = breaker.state is State.CLOSED or not rules.enabled  # one that opened before breakers were switched off
    return closed and not cooling_s(breaker, rules, now_ns)


def probe_due(breaker: Breaker, rules: BreakerRules, now_ns: int) -> bool:
    """Whether a permit for a probe may be had. As many are out at once as there have yet to be successes, so that all of them count."""
    if cooling_s(breaker, rules, now_ns):
        return False
    if breaker.state is State.OPEN:
        return not _left_s(breaker.until_ns, now_ns, rules.open_cap_s)
    return breaker.state is State.HALF_OPEN and len(_live(breaker, now_ns)) < max(1, rules.probes - breaker.succeeded)


def cooling_s(breaker: Breaker, rules: BreakerRules, now_ns: int) -> float:
    """How long the target still rests, whatever the state."""
    return _left_s(breaker.cooling_ns, now_ns, rules.cool_cap_s)


def open_for_s(breaker: Breaker, rules: BreakerRules, now_ns: int) -> float:
    """How long until a probe is due."""
    return _left_s(breaker.until_ns, now_ns, rules.open_cap_s)


def badness(breaker: Breaker, share: float, until_s: float) -> float:
    """How little is to be hoped of the target: how often in a row it has opened, then the share of failures, then the wait.

    `share` is in [0, 1].
    """
    if breaker.state is State.FORCED_OPEN:
        return _HOPELESS
    return breaker.trips + share * 0.9 + until_s / (until_s + 60.0) * 0.09


def _rest_s(step: Step) -> float:
    return min(step.cool_s, step.rules.cool_cap_s)


def _left_s(until_ns: int | None, now_ns: int, most_s: float) -> float:
    """Seconds until a time; 0 where it is over, or farther away than it can be."""
    left_s = 0.0 if until_ns is None else (until_ns - now_ns) / 1e9
    return left_s if 0.0 < left_s <= most_s + _SLACK_S else 0.0


def _live(breaker: Breaker, now_ns: int) -> tuple[Pass, ...]:
    """The permits whose holders may be alive."""
    return tuple([each for each in breaker.permits if _left_s(each.until_ns, now_ns, each.lease_s)])


def _others(breaker: Breaker, step: Step) -> tuple[Pass, ...]:
    return tuple([each for each in breaker.permits if each.holder != step.holder])


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _claimed(breaker: Breaker, step: Step) -> dict[str, Any]:
    mine = Pass(step.holder, step.lease_s, step.now_ns + _ns(step.lease_s))
    return {"permits": (*_live(breaker, step.now_ns), mine)}


def _signed(_breaker: Breaker, step: Step) -> dict[str, Any]:
    return {"author": step.author, "note": step.note}


# What an event writes down beside the state.
_NOTED: Final[Mapping[Event, Callable[[Breaker, Step], dict[str, Any]]]] = MappingProxyType({
    Event.CLAIMED: _claimed,
    Event.PROBE_SUCCEEDED: lambda breaker, step: {"permits": _others(breaker, step), "succeeded": breaker.succeeded + 1},
    Event.PROBE_RETURNED: lambda breaker, step: {"permits": _others(breaker, step)},
    Event.ANSWERED: lambda _breaker, step: {"until_ns": step.now_ns},
    Event.RECOVERED: lambda _breaker, _step: {"trips": 0},
    Event.COOLED: lambda _breaker, step: {"cooling_ns": step.now_ns + _ns(_rest_s(step))},
    Event.FORCED_OPEN: _signed, Event.FORCED_CLOSED: _signed, Event.RELEASED: _signed,
})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended, as far as it tells how its target is. `cool_s` is the rest that the target asked for, None where it did not.

    `neutral` says nothing of the target: it answered, and not with what was wanted; or nobody waited for its answer.
    """

    kind: Literal["success", "failure", "neutral"]
    cause: str = ""
    first_token_s: float | None = None
    largest_gap_s: float | None = None
    cool_s: float | None = None
    answered_s: float | None = None  # of an answer that comes as a whole: how long it took, which is a matter of its length, too


def ended_of(attempt: Attempt, retry_after_s: float | None = None, *, streamed: bool = False, hurried: bool = False) -> Ended:
    """What an attempt tells of its target.

    `streamed`: its answer begins before it is whole (a stream, a tool's), so that the time to its first byte says how quick the target is;
    of other answers it says how long they are. `hurried`: the client gave it less time than its route does, so that a deadline says
    nothing; else one client could close a target to all others.
    """
    cause = attempt.cause
    if attempt.end is AttemptEnd.SUCCEEDED:
        first_s = answered_s = None
        if (streamed or attempt.largest_gap_s is not None) and attempt.first_byte_ns is not None:
            first_s = max(0, attempt.first_byte_ns - attempt.started_ns) / 1e9
        elif attempt.first_byte_ns is not None:
            answered_s = max(0, attempt.first_byte_ns - attempt.started_ns) / 1e9
        return Ended("success", "", first_s, attempt.largest_gap_s, answered_s=answered_s)
    if attempt.status == 429:
        return Ended("neutral", cause, cool_s=COOL_S if retry_after_s is None else retry_after_s)
    if attempt.end in (AttemptEnd.CANCELLED, AttemptEnd.REJECTED):
        return Ended("neutral", cause)
    late = cause.startswith("timeout:") and not hurried
    failing = cause.startswith("status:") and not cause.startswith("status:4")
    return Ended("failure" if late or failing or cause in _OWN_FAULT else "neutral", cause)


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.CLOSED}"]
    for state in State:
        moves: dict[State, list[str]] = {}
        for event in Event:
            target = TABLE.get((state, event))
            if target is not None:
                moves.setdefault(target, []).append(event.value)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in moves.items()]
    return "\n".join(lines)
