"""The time line of a scenario: what is wrong when, counted from the scenario's start. Pure: elapsed time comes in as an argument."""

from dataclasses import dataclass
from typing import Final

from gateway.simulator.faults import NO_FAULT, Fault
from gateway.simulator.match import EVERYTHING, Match


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One stretch of time: `for_s` seconds (None: for ever) of a fault, of a port that refuses connections, or of neither.

    Raises:
        ValueError: a duration of nothing, or a closed port that would also answer.
    """

    fault: Fault = NO_FAULT
    match: Match = EVERYTHING
    for_s: float | None = None
    refuse: bool = False

    def __post_init__(self) -> None:
        if self.for_s is not None and not self.for_s > 0:
            raise ValueError("for: expected a duration above 0")
        if self.refuse and (self.fault != NO_FAULT or self.match != EVERYTHING):
            raise ValueError("refuse stands alone in its step: a closed port sees no request and answers none")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a time line is: the step in force (None after the last), counted over all rounds, and when it ends (None: never)."""

    step: TimelineStep | None
    number: int
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps, one after the other; `repeat` starts them again after the last, without it the provider then behaves.

    Raises:
        ValueError: a step that is never reached, or a round without an end or a beginning.
    """

    steps: tuple[TimelineStep, ...] = ()
    repeat: bool = False

    def __post_init__(self) -> None:
        endless = [number for number, step in enumerate(self.steps, 1) if step.for_s is None]
        if endless and endless[0] < len(self.steps):
            raise ValueError(f"step {endless[0]} has no `for`: only the last may last for ever")
        if self.repeat and (endless or not self.steps):
            raise ValueError("repeat needs steps that all have a `for`: nothing else comes around again")

    @property
    def refuses(self) -> bool:
        """Whether any step closes the port."""
        return any(step.refuse for step in self.steps)

    def at(self, elapsed_s: float) -> Moment:
        """The moment that long after the start. A step begins on its first instant and has ended on its last."""
        number = 0
        if self.repeat:
            round_s = sum(step.for_s or 0.0 for step in self.steps)
            number = int(elapsed_s // round_s) * len(self.steps)
            elapsed_s %= round_s
        for step in self.steps:
            if step.for_s is None:
                return Moment(step, number, None)
            if elapsed_s < step.for_s:
                return Moment(step, number, step.for_s - elapsed_s)
            elapsed_s -= step.for_s
            number += 1
        if self.repeat:  # floats: a remainder just below the sum of the steps may outlast them one by one
            return Moment(self.steps[0], number, self.steps[0].for_s)
        return Moment(None, number, None)


NO_TIMELINE: Final = Timeline()
