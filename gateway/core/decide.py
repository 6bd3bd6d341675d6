"""Rules in, a decision out. `decide` is pure, total, and holds the precedence.

Errors fail closed: a rule that denies, asks for approval, transforms, reroutes or limits counts as matched where it cannot be
evaluated, an `allow` or `log` rule as not matched; every one of them is on record as an error.
"""

from collections.abc import Sequence
from typing import Any, Final

from gateway.core.decision import (
    BY_DEFAULT,
    POLICY_ERROR,
    Action,
    Allowed,
    Approval,
    Decision,
    Denied,
    Effect,
    Held,
    Limit,
    Phase,
    Reason,
    Redaction,
    Rerouting,
    Setting,
)
from gateway.core.expressions import Fault, attempt, evaluate
from gateway.core.facts import BUDGET_FACTS, SESSION_FACTS, Facts
from gateway.core.rules import Bundle, Rule, Selection

# What lets something pass must be certain to: an error of such a rule counts as not matched, of any other as matched.
_OPEN: Final[frozenset[Effect]] = frozenset({"allow", "log"})
_GUARD: Final = 'guard it with `in`: "team" in budget.remaining && …'


def decide(bundle: Bundle, phase: Phase, facts: Facts) -> Decision:
    """Ask every rule that could apply, and merge what they say. Pure and total: what goes wrong is in the reasons."""
    rules = bundle.phases[phase]
    selection = rules.index.select(facts.keys)
    activation = attempt(lambda values: rules.engine.activation(values, facts.answers), facts.values) if selection.rules else None
    reasons = _ask_together(selection, facts, activation) or [_ask(rule, facts, activation) for rule in selection.rules]
    return merge(selection.rules, reasons, bundle.digest, phase, facts)


# What is looked at when a tool call is made: what is not known before, and what would be read again for each of a thousand offered tools.
LATER: Final = SESSION_FACTS | BUDGET_FACTS | {
    "tool.args", "texts", "now", "request.body", "request.params", "messages", "tools_offered"}


def at_best(bundle: Bundle, facts: Facts) -> Decision:
    """The most that could come of a tool call whose arguments nobody knows yet: rules that read them, or any of `LATER`, are taken to let
    it pass.
    """
    rules = bundle.phases["tool_call"]
    selection = rules.index.select(facts.keys)
    activation = attempt(lambda values: rules.engine.activation(values, {}), facts.values)
    reasons = []
    for rule in selection.rules:
        if rule.reads & LATER or (rule.program is not None and rule.program.queries):
            reasons.append(rule.matched if rule.effect == "allow" else rule.not_matched)
        else:
            reasons.append(_ask(rule, facts, activation))
    return merge(selection.rules, reasons, bundle.digest, "tool_call", facts)


def merge(rules: Sequence[Rule], reasons: Sequence[Reason], digest: str, phase: Phase, facts: Facts) -> Decision:
    """The precedence, in one place: `deny` over `require_approval` over everything that lets the call go on.

    Among equals the first in declared order decides. `reasons` holds one for each rule. A shadow rule has a reason and no effect.
    """
    found: dict[Effect, list[tuple[Rule, Reason]]] = {}
    for rule, reason in zip(rules, reasons, strict=True):
        if reason is rule.not_matched or rule.shadow:  # the usual case, cheap
            continue
        if reason.verdict == "matched" or (reason.verdict == "error" and rule.effect not in _OPEN):
            found.setdefault(rule.effect, []).append((rule, reason))
    labels = tuple(dict.fromkeys(rule.label for rule, _ in found.get("log", ())))
    unlabels = tuple(dict.fromkeys(label for rule, _ in found.get("log", ()) for label in rule.unlabel))
    values = {**facts.values, **{asked.shown: said for asked, said in facts.answers.items()}} if facts.answers else facts.values
    rest: dict[str, Any] = {"reasons": tuple(reasons), "labels": labels, "bundle": digest, "phase": phase, "subject": facts.subject,
                            "values": values, "unlabels": unlabels}
    if "deny" in found:
        return _denied(*found["deny"][0], rest)
    allowing = found["allow"][0][0] if "allow" in found else None
    if allowing is None and not facts.allowed:
        return Denied(BY_DEFAULT, "No rule allows this.", "Ask whoever writes the rules for an `allow` rule.", **rest)
    actions = [rule.action for rule, _ in _in_order(rules, found)]
    obliged = _obliged(actions) if actions else {}
    if "require_approval" in found:
        rule, reason = found["require_approval"][0]
        approvals = tuple(action for action in actions if isinstance(action, Approval))
        return Held(rule.id, _worded(rule, reason), rule.remedy, approvals=approvals, **obliged, **rest)
    if allowing is None:
        return Allowed(rule=None, message=None, remedy=None, **obliged, **rest)
    return Allowed(rule=allowing.id, message=allowing.message, remedy=allowing.remedy, **obliged, **rest)


def _obliged(actions: Sequence[Action | None]) -> dict[str, Any]:
    return {"transforms": tuple(action for action in actions if isinstance(action, Redaction | Setting)),
            "reroutings": tuple(action for action in actions if isinstance(action, Rerouting)),
            "limits": tuple(action for action in actions if isinstance(action, Limit))}


def _in_order(rules: Sequence[Rule], found: dict[Effect, list[tuple[Rule, Reason]]]) -> list[tuple[Rule, Reason]]:
    if not found.keys() - _OPEN:
        return []
    places = {rule.id: number for number, rule in enumerate(rules)}
    return sorted((pair for pairs in found.values() for pair in pairs), key=lambda pair: places[pair[0].id])


def _denied(rule: Rule, reason: Reason, rest: dict[str, Any]) -> Denied:
    return Denied(rule.id, _worded(rule, reason), rule.remedy, **rest)


def _worded(rule: Rule, reason: Reason) -> str:
    # The rule's id is not repeated: whoever shows a denial names the rule before its message.
    said = "This call needs approval." if rule.effect == "require_approval" else "This call is not allowed."
    if reason.verdict == "error":  # said first, or the rule's own words would accuse the caller of what nobody could find out
        unclear = f"The rule could not be evaluated on this call, so the call is refused ({POLICY_ERROR})."
        return f"{unclear} The rule says: {rule.message}" if rule.message else unclear
    return rule.message or said


def _ask_together(selection: Selection, facts: Facts, activation: Any) -> list[Reason] | None:
    """The answers of all rules in one evaluation; None where it could take long, or where there is trouble with any of them."""
    if selection.together is None or facts.large or facts.unreadable or isinstance(activation, Fault):
        return None
    together = selection.together

    def ask(activation: Any) -> list[Reason]:
        said = iter(together(activation))
        return [rule.matched if rule.program is None else rule.answered(next(said)) for rule in selection.rules]

    reasons = attempt(ask, activation)
    return None if isinstance(reasons, Fault) else reasons


def _ask(rule: Rule, facts: Facts, activation: Any) -> Reason:
    missing = {name: why for name, why in facts.unreadable.items() if name in rule.reads}
    unclear = "; ".join(f"{name}: {why}" for name, why in missing.items())
    if missing.keys() - SESSION_FACTS:
        return rule.failed(unclear)
    if rule.program is None:
        return rule.matched
    if isinstance(activation, Fault):
        return rule.failed(activation.text)
    # What a call without a session lacks is missed only where the verdict hangs on it: `session.id != "" && session.calls > 9`.
    verdict = evaluate(rule.program, activation)
    if isinstance(verdict, Fault):
        return rule.failed(unclear or _told(rule, verdict))
    return rule.answered(verdict)


def _told(rule: Rule, fault: Fault) -> str:
    """Why there is no verdict. A scope that no budget binds is the usual reason with rules on money, and easy to guard against."""
    return f"{fault.text}; {_GUARD}" if fault.lacks_key and rule.reads & BUDGET_FACTS else fault.text
