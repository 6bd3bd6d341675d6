"""What an effect has to do, made from a rule's tables: pointers checked, patterns and detectors known. Done at load."""

import math
from typing import Final

from gateway.call import Json
from gateway.core.approval import Demand, Stage
from gateway.core.decision import Action, Approval, Clamp, Limit, Redaction, Rerouting, Setting
from gateway.core.detectors import Detectors, pattern_detector
from gateway.rule_config import RuleConfig

# What the gateway itself is driven by, and what has an effect of its own: `route` for the model, a tool call's own rules for tools.
_DRIVING: Final = frozenset({"model", "stream", "stream_options"})
_NOT_SET: Final = _DRIVING | {"messages", "tools", "functions", "input", "prompt"}


def action_of(rule: RuleConfig, detectors: Detectors) -> Action | None:
    """A rule's action; None for an effect that its name says all of.

    Raises:
        ValueError: a pattern that RE2 does not take, an unknown detector, a field that cannot be set or taken out.
    """
    if rule.redact is not None:
        found = [detector for name in rule.redact.detectors for detector in detectors.named(name)]
        found += [pattern_detector(pattern) for pattern in rule.redact.patterns]
        return Redaction(rule.id, tuple(found), tuple(_redactable(name, rule) for name in rule.redact.fields), rule.redact.replacement)
    if rule.set is not None:
        values = {_settable(name, rule): _json(name, value) for name, value in rule.set.values.items()}
        clamps = tuple(Clamp(_settable(name, rule), each.min, each.max) for name, each in rule.set.clamp.items())
        if rule.set.system is not None and rule.phase != "request":
            raise ValueError("a system message belongs to the phase `request`")
        return Setting(rule.id, values, clamps, rule.set.system, rule.set.system_mode == "replace")
    if rule.route is not None:
        return Rerouting(rule.id, rule.route.to, rule.route.only, rule.route.remove)
    if rule.limit is not None:
        given = rule.limit
        return Limit(rule.id, given.per or 0.0, given.by, given.requests, given.tokens, given.concurrent)
    return _approval(rule) if rule.effect == "require_approval" else None


def _approval(rule: RuleConfig) -> Approval:
    given = rule.approval
    stages = tuple(Stage(each.approvers, each.quorum) for each in given.stages) or (Stage(rule.approvers, rule.quorum),)
    demand = Demand(rule.id, stages, given.denials, given.escalate_to if given.on_expiry == "escalate" else ())
    return Approval(
        rule.id, demand, given.mode, given.expires, given.hold, given.identity, given.by_session, given.on_disconnect, given.notify,
        given.remind, given.grants)


def _pointer(name: str) -> str:
    """A JSON pointer as it is, and a plain name as the pointer to it at the top."""
    if not name.startswith("/") and ("/" in name or "~" in name or not name):
        raise ValueError(f"{name!r} is neither a name at the top nor a JSON pointer, which begins with `/`")
    if "~" in name.replace("~0", "").replace("~1", ""):
        raise ValueError(f"{name!r} is no JSON pointer: `~` is written `~0`, and `/` within a name `~1`")
    return name if name.startswith("/") else f"/{name}"


def _settable(name: str, rule: RuleConfig) -> str:
    pointer = _pointer(name)
    if rule.phase == "request" and pointer.split("/")[1] in _NOT_SET:
        raise ValueError(f"{name!r} cannot be set: the gateway itself is driven by it")
    return pointer


def _redactable(name: str, rule: RuleConfig) -> str:
    pointer = _pointer(name)
    if rule.phase == "response":
        raise ValueError(f"{name!r} cannot be taken out: an answer is judged as text; give `detectors` or `patterns`")
    if rule.phase == "request" and pointer.split("/")[1] in _DRIVING | {"*"}:
        raise ValueError(f"{name!r} cannot be taken out: the gateway itself is driven by it")
    return pointer


def _json(name: str, value: Json) -> Json:
    if not _is_json(value):
        raise ValueError(f"the value for {name!r} is no JSON: a date, not a finite number, or beyond 64 bits")
    return value


def _is_json(value: Json) -> bool:
    match value:
        case None | bool() | str():
            return True
        case int():
            return -2**63 <= value < 2**64
        case float():
            return math.isfinite(value)
        case list():
            return all(_is_json(item) for item in value)
        case dict():
            return all(_is_json(item) for item in value.values())
        case _:
            return False
