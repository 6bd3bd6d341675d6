"""What the rules say, as data: a closed family of frozen values, each with its reasons and what it obliges to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, TypeAlias

from gateway.call import Json, JsonObject
from gateway.core.accounts import Scope
from gateway.core.approval import Demand, Mode
from gateway.core.detectors import Detector

Phase: TypeAlias = Literal["request", "tool_call", "response", "tool_result"]
Effect: TypeAlias = Literal["deny", "require_approval", "redact", "set", "route", "limit", "allow", "log"]
Verdict: TypeAlias = Literal["matched", "not_matched", "error"]

PHASES: Final[tuple[Phase, ...]] = ("request", "tool_call", "response", "tool_result")
POLICY_ERROR: Final = "policy_error"
# The names under which the gateway itself refuses, where a rule's id would stand.
BY_DEFAULT: Final = "default"  # no rule allows it, and `[defaults]` says deny
BYPASS: Final = "bypass"  # the label of a call that brings the result of a tool call which was never let through
VALIDATORS: Final = "validators"  # people look at an answer that no validator lets pass (`on_exhausted`)
BAD_ARGUMENTS: Final = "arguments"  # a tool call's arguments cannot be read, or do not fit the tool's schema
_STRICTNESS: Final = {"allow": 0, "held": 1, "deny": 2}
_LONGEST_SHOWN: Final = 64  # characters of a text, and items of a list, that are kept of what a rule read
_FEW: Final = 8
_OF_TOOLS: Final = ("result", "session.sum(")  # facts that may be a bare number out of arguments and results


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that was asked and what it answered. `source` is `file:line`; `reads` are the facts that it reads.

    `message` is the rule's own, or `policy_error: …` where it could not be evaluated. A `shadow` rule changes nothing.
    """

    rule: str
    effect: Effect
    verdict: Verdict
    source: str
    message: str
    shadow: bool = False
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Redaction:
    """Take values out: whole `fields` (JSON pointers, `*` is any key or index), and what `detectors` find in texts."""

    rule: str
    detectors: tuple[Detector, ...] = ()
    fields: tuple[str, ...] = ()
    replacement: str = "[redacted:{what}]"


@dataclass(frozen=True, slots=True)
class Clamp:
    """Bounds of the number at a JSON pointer; a missing one becomes `most`, where there is one."""

    pointer: str
    least: float | None
    most: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """Write values at JSON pointers, clamp numbers, add a system message or replace the caller's own."""

    rule: str
    values: Mapping[str, Json] = field(default_factory=dict)
    clamps: tuple[Clamp, ...] = ()
    system: str | None = None
    replace_system: bool = False


Transform: TypeAlias = Redaction | Setting


@dataclass(frozen=True, slots=True)
class Rerouting:
    """Go to another route, and to some of its targets only. `only` and `remove` are globs of `provider/model`."""

    rule: str
    to: str | None = None
    only: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `requests`, and at most `tokens`, in `per_s` seconds, and at most `concurrent` at a time, for each combination of `by`."""

    rule: str
    per_s: float
    by: tuple[Scope, ...]
    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """What a rule asks of people, and how its call waits for them.

    `expires_s` is how long a group of approvers has; `hold_s` how long a connection is held at the most (None: as its route says).
    `identity` are expressions whose values stand for the action's arguments in its digest; `by_session`: the session is a part of it.
    `remind_s` is when people are reminded, None for never; `notify` the channels, None for every one there is.
    """

    rule: str
    demand: Demand
    mode: Mode = "release"
    expires_s: float = 86_400.0
    hold_s: float | None = None
    identity: tuple[str, ...] = ()
    by_session: bool = False
    on_disconnect: Literal["leave", "withdraw"] = "leave"
    notify: tuple[str, ...] | None = None
    remind_s: float | None = None
    grants: bool = True


Action: TypeAlias = Redaction | Setting | Rerouting | Limit | Approval


@dataclass(frozen=True, slots=True)
class _Decided:
    """What every decision holds.

    `rule` is the rule that decided, None where none did and the default allows; `message` and `remedy` are for the caller. `reasons`
    are those of every rule that was asked, in declared order; `labels` what matching `log` rules say, `unlabels` what they take off the
    session; `bundle` the digest of the rules. `values` are the facts that were read. `subject` is the tool, where a tool call or a
    result was judged.
    """

    rule: str | None
    message: str | None
    remedy: str | None
    reasons: tuple[Reason, ...]
    labels: tuple[str, ...]
    bundle: str
    phase: Phase = "request"
    subject: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unlabels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowed(_Decided):
    """It may go on, under these obligations: each in declared order."""

    name: ClassVar[Literal["allow"]] = "allow"

    transforms: tuple[Transform, ...] = ()
    reroutings: tuple[Rerouting, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Held(_Decided):
    """It waits for a person. `approvals` are those of every rule that asks for one; the obligations hold once it goes on."""

    name: ClassVar[Literal["held"]] = "held"

    approvals: tuple[Approval, ...] = ()
    transforms: tuple[Transform, ...] = ()
    reroutings: tuple[Rerouting, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied(_Decided):
    """It ends here. `rule` is the first `deny` rule in declared order that matched or could not be evaluated, or `BY_DEFAULT`."""

    name: ClassVar[Literal["deny"]] = "deny"


Decision: TypeAlias = Allowed | Held | Denied


def strictest(decisions: Sequence[Decision]) -> Decision | None:
    """The most restrictive one, the first among equals; None where there is none."""
    if len(decisions) == 1:
        return decisions[0]
    return max(decisions, key=lambda decision: _STRICTNESS[decision.name], default=None)



def reason_json(reason: Reason, decision: Decision, bodies: str) -> JsonObject:
    """A reason as the journal, the log and `explain` hold it: with the values that the rule read, as far as `bodies` lets them be kept."""
    told: dict[str, Json] = {"rule": reason.rule, "effect": reason.effect, "verdict": reason.verdict, "source": reason.source,
                             "message": reason.message}
    if decision.phase != "request":
        told["phase"] = decision.phase
    if decision.subject:
        told["subject"] = decision.subject
    if reason.shadow:
        told["shadow"] = True
    values = {name: _kept(name, decision.values[name], bodies) for name in reason.reads if name in decision.values}
    if values:
        told["values"] = values
    return told


def reasons_json(decision: Decision, bodies: str) -> list[JsonObject]:
    """The reasons of the rules that contributed: matched, or could not be evaluated."""
    return [reason_json(reason, decision, bodies) for reason in decision.reasons if reason.verdict != "not_matched"]


def verdict_json(decision: Decision, bodies: str) -> JsonObject:
    """A decision on what came back, for the record."""
    return {"phase": decision.phase, "subject": decision.subject, "decision": decision.name, "rule": decision.rule or "",
            "message": decision.message or "", "bundle": decision.bundle, "reasons": reasons_json(decision, bodies)}


def _kept(name: str, value: Any, bodies: str) -> Json:
    """A value that a rule read, as the record has it. Amounts by scope are few and nobody's words."""
    return dict(value) if name.startswith("budget.") else _shown(_spelt(name, value, bodies), bodies)


def _spelt(name: str, value: Any, bodies: str) -> Any:
    """A number that a tool was given or has given back as a text, where nothing of that may be kept: then its length is all that is."""
    return str(value) if bodies == "none" and name.startswith(_OF_TOOLS) and isinstance(value, int | float) else value


def _shown(value: Any, bodies: str) -> Json:
    """A value short enough to keep with every call; of what a person wrote no more than the journal may keep."""
    if isinstance(value, str):
        if bodies != "full":
            return f"[{len(value)} characters]"
        return value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}… [{len(value)} characters]"
    if isinstance(value, list | tuple):
        small = _is_small(value) and (bodies != "none" or all(isinstance(item, str) for item in value))
        return [_shown(item, bodies) for item in value] if small else f"[list of {len(value)}]"
    if isinstance(value, Mapping):
        small = bodies != "none" and _is_small(value.values()) and all(_is_name(name, bodies) for name in value)
        return {name: _shown(item, bodies) for name, item in value.items()} if small else f"[object of {len(value)}]"
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _is_small(items: Collection[Any]) -> bool:
    return len(items) <= _FEW and all(isinstance(item, str | int | float | None) for item in items)


def _is_name(key: str, bodies: str) -> bool:
    """Whether a key may be shown: it is the caller's word as much as a text is, and may be as long."""
    return len(key) <= _LONGEST_SHOWN and (bodies == "full" or key.isidentifier())
