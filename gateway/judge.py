"""Asking the rules, with what they change: decide, transform, decide again on the result. Pure.

A transform cannot launder a call: what was refused before it stays refused, and what comes out of it is judged like everything else.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from gateway.core.decide import decide
from gateway.core.decision import POLICY_ERROR, Allowed, Decision, Denied, Held, Reason
from gateway.core.question import Question
from gateway.core.rules import Bundle
from gateway.core.transform import TransformError, transform
from gateway.gather import gather

Obligation = TypeVar("Obligation")


@dataclass(frozen=True, slots=True)
class Judged:
    """What was decided, and what of the question is left after the transforms: this is what goes on."""

    question: Question
    decision: Decision


def judge(bundle: Bundle, question: Question) -> Judged:
    """Decide; where rules transform, do so and decide once more. The stricter of the two decisions stands."""
    first = decide(bundle, question.phase, gather(bundle, question))
    if isinstance(first, Denied) or not first.transforms:
        return Judged(question, first)
    try:
        changed = transform(question, first.transforms)
    except TransformError as error:
        return Judged(question, _refused(first, error.rule, str(error)))
    second = decide(bundle, question.phase, gather(bundle, changed))
    if not isinstance(second, Denied):
        known = {each.rule for each in first.transforms}
        late = next((each.rule for each in second.transforms if each.rule not in known), None)
        if late is not None:  # applied now it would be judged no more
            return Judged(question, _refused(second, late, "it applies only to what another rule has changed"))
    return Judged(changed, _stricter(first, second))


def _stricter(first: Allowed | Held, second: Decision) -> Decision:
    """The stricter one, with the obligations of both. The transforms are the first one's: they are done."""
    labels = tuple(dict.fromkeys((*first.labels, *second.labels)))
    if isinstance(second, Denied):
        return replace(second, labels=labels)
    stricter = first if isinstance(first, Held) or isinstance(second, Allowed) else second
    merged = replace(stricter, labels=labels, transforms=first.transforms, limits=_both(first.limits, second.limits),
                     reroutings=_both(first.reroutings, second.reroutings))
    if isinstance(first, Held) and isinstance(second, Held) and isinstance(merged, Held):
        return replace(merged, approvals=_both(first.approvals, second.approvals))
    return merged


def _both(first: tuple[Obligation, ...], second: tuple[Obligation, ...]) -> tuple[Obligation, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _refused(decision: Decision, rule: str, why: str) -> Denied:
    reasons = tuple(_failed(reason, why) if reason.rule == rule else reason for reason in decision.reasons)
    message = f"The rule could not be applied to this call, so the call is refused ({POLICY_ERROR})."
    return Denied(rule, message, None, reasons, decision.labels, decision.bundle, decision.phase, decision.subject, decision.values)


def _failed(reason: Reason, why: str) -> Reason:
    return replace(reason, verdict="error", message=f"{POLICY_ERROR}: {why}")
