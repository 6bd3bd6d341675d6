"""Why a call was decided as it was, what would have to change, and how it found its way: made of its record and of the rules of then. Pure.

The record holds the rules that contributed and what they read, shortened; the bundle's content, kept by its digest, what they say.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway.call import Json, JsonObject
from gateway.core.decision import BAD_ARGUMENTS, BY_DEFAULT, Phase
from gateway.core.detectors import Detectors
from gateway.core.explain_path import path_of
from gateway.core.expressions import Engine, ExpressionError, Fault, Library, compile_expression, evaluate, open_engine
from gateway.core.facts import BUDGET_FACTS, facts_of
from gateway.core.matching import MATCH_KEYS
from gateway.core.money import usd

LONGEST_VALUE: Final = 64
MOST_PARTS: Final = 64  # of one expression; a longer one is shown as one part

_OF_CALL: Final = ("id", "received_ns", "key", "name", "team", "operation", "route", "session", "outcome", "status", "code", "message")
_TOKEN: Final = re.compile(
    r'(?:[rR][bB]?|[bB][rR])(?:"""[^"]*(?:"{1,2}[^"]+)*"""|\'\'\'[^\']*(?:\'{1,2}[^\']+)*\'\'\'|"[^"\n]*"|\'[^\'\n]*\')'
    r'|[bB]?(?:"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
    r"|//[^\n]*|&&|\|\||[()\[\]{}?]|[\w.]+|.", re.DOTALL)
_CAUSES: Final[Mapping[str, str]] = {
    "rate_limited": "not so often: wait, or raise the limit",
    "budget_exceeded": "the account {account} has not enough money left: wait for its next window, or raise its limit",
    "budget_busy": "the rest of the account {account} was held by calls in flight: try again",
    "price_unknown": "a budget binds it, and nobody knows what it costs: set the price of its target"}
_IN_USD: Final = BUDGET_FACTS | {"session.spend"}  # whole numbers of nano-USD
_SHORTENED: Final = re.compile(r"(?:… )?\[(?:\d+ characters|list of \d+|object of \d+)\]\Z")


@dataclass(frozen=True, slots=True)
class _Rules:
    """The rules that were in force. `known` is false where nothing is on record of them."""

    known: bool
    by_id: Mapping[str, JsonObject]
    lists: Mapping[str, frozenset[str]]

    def allowing(self, phase: str) -> list[str]:
        """The rules that could have let something pass in a phase."""
        return [name for name, rule in self.by_id.items()
                if rule["effect"] == "allow" and rule.get("phase", "request") == phase and rule.get("mode", "enforce") == "enforce"]


def explain(call: JsonObject, content: bytes | None, engine: str = "auto", parts: Sequence[JsonObject] = ()) -> dict[str, Json]:
    """What `lockgate explain` and the endpoint tell, JSON-ready.

    `call` is a call as the journal gives it, `content` that of the bundle it was decided under, None where it is not known any more;
    `parts` are the calls that were made for it, as the journal lists them.
    """
    rules = _read(content)
    decision = call.get("decision") or ""
    said = "" if decision == "allow" else call.get("message") or ""  # of a call that was let through it says how that ended
    before = {"phase": "tool_call" if call.get("operation") == "tool" else "request",
              "decision": decision, "rule": call.get("rule") or "", "message": said,
              "labels": list(call.get("labels") or ()), "reasons": list(call.get("reasons") or ())}
    return {
        "call": {name: call.get(name) for name in _OF_CALL},
        "bundle": {"digest": call.get("bundle") or "", "known": rules.known},
        **_explained(before, rules, engine, _cause(call)),
        "later": [{"phase": verdict["phase"], "subject": verdict.get("subject", ""),
                   **_explained({"labels": [], **verdict}, rules, engine, "")} for verdict in call.get("verdicts") or ()],
        **path_of(call, parts),
    }


def alternatives(when: str) -> list[list[str]]:
    """An expression split where it stands on top: into alternatives at `||`, each into parts at `&&`.

    Brackets around the whole are taken off. What is not understood, a choice by `?` for one, stays in one part.
    """
    text = when.strip()
    found = [[part.strip() for part in _split(each, "&&")] for each in _split(text, "||")]
    if sum(map(len, found)) > MOST_PARTS:
        return [[text]]
    inner = _unwrapped(text) if found == [[text]] else None
    return alternatives(inner) if inner is not None else found


def _split(text: str, sign: str) -> list[str]:
    depth, start, parts = 0, 0, []
    for token in _TOKEN.finditer(text):
        if token[0] in ("(", "[", "{"):
            depth += 1
        elif token[0] in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and token[0] == "?" and text[:token.start()][-1:] != ".":
            return [text]
        elif depth == 0 and token[0] == sign:
            parts.append(text[start:token.start()])
            start = token.end()
    return [*parts, text[start:]]


def _unwrapped(text: str) -> str | None:
    """What stands between brackets that hold the whole text; None where there are none."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return text[1:-1] if token[0] == ")" and token.end() == len(text) else None
    return None


def _read(content: bytes | None) -> _Rules:
    if content is None:
        return _Rules(False, {}, {})
    told = json.loads(content)
    return _Rules(True, {rule["id"]: rule for rule in told["rules"]}, {name: frozenset(items) for name, items in told["lists"].items()})


def _cause(call: JsonObject) -> str:
    """What ended a call that no rule ended."""
    if not call.get("decision"):
        return "The call ended before the rules were asked."
    said = _CAUSES.get(call.get("code") or "", "")
    return f"The rules allow the call, but {said.format(account=call.get('account') or 'that binds it')}." if said else ""


def _explained(decided: Mapping[str, Any], rules: _Rules, engine: str, cause: str) -> dict[str, Json]:
    told = [_rule(reason, decided, rules, engine) for reason in decided["reasons"]]
    return {
        "decision": decided["decision"], "rule": decided["rule"], "message": decided["message"], "labels": decided["labels"],
        "rules": told, "change": list(dict.fromkeys(([cause] if cause else []) + list(_changes(decided, told, rules)))),
    }


def _rule(reason: JsonObject, decided: Mapping[str, Any], rules: _Rules, engine: str) -> dict[str, Json]:
    """One rule that contributed, with what it says and what it saw."""
    given = rules.by_id.get(reason["rule"], {})
    match = {key: list(given.get("match", {}).get(key, ())) for key in MATCH_KEYS}
    if "team" in given:
        match["teams"] = [given["team"]]
    values = {name: _clipped(value) for name, value in (reason.get("values") or {}).items()}
    when = given.get("when")
    phase = reason.get("phase", "request")
    effects = {"deny": ("deny",), "held": ("require_approval",)}.get(decided["decision"], ())
    return {
        "rule": reason["rule"], "effect": reason["effect"], "verdict": reason["verdict"], "source": reason["source"],
        "message": reason["message"],
        "shadow": bool(reason.get("shadow")), "offered": reason.get("offered", True), "phase": phase, "subject": reason.get("subject", ""),
        "decisive": reason["effect"] in effects and not reason.get("shadow") and reason.get("offered", True),
        "match": {key: globs for key, globs in match.items() if globs}, "when": when, "values": values,
        "alternatives": _alternatives(when, values, reason["verdict"], _Asking(phase, rules.lists, engine)) if when else [],
    }


@dataclass(frozen=True, slots=True)
class _Asking:
    """How parts of an expression are evaluated once more."""

    phase: Phase
    lists: Mapping[str, frozenset[str]]
    engine: str


def _alternatives(when: str, values: Mapping[str, Json], verdict: str, asking: _Asking) -> list[Json]:
    """The parts of an expression with the values that they read. `held` is None where the record does not tell."""
    split = alternatives(when)
    if verdict == "matched" and len(split) == 1:
        held: list[list[bool | None]] = [[True] * len(split[0])]
    else:
        known = dict(_exact(values, asking.phase))
        opened = open_engine(asking.engine, {name: fact.type for name, fact in facts_of(asking.phase).items()},
                             Library(asking.lists, Detectors()))
        held = [[_held(part, known, opened) for part in each] for each in split]
    whole = [_all(each) for each in held]
    if verdict == "matched" and whole.count(None) == 1 and True not in whole:  # one of them held, and it was none of the others
        at = whole.index(None)
        whole[at], held[at] = True, [True] * len(held[at])
    return [{"held": each, "parts": [{"text": text, "held": part, "values": _read_by(text, values)}
                                     for text, part in zip(texts, parts, strict=True)]}
            for each, texts, parts in zip(whole, split, held, strict=True)]


def _all(parts: Sequence[bool | None]) -> bool | None:
    return False if False in parts else None if None in parts else True


def _held(part: str, known: Mapping[str, Any], engine: Engine) -> bool | None:
    try:
        program = compile_expression(engine, part)
    except ExpressionError:
        return None
    if program.queries or not program.names <= known.keys():
        return None
    verdict = evaluate(program, engine.activation({name: known[name] for name in program.names}, {}))
    return None if isinstance(verdict, Fault) else verdict


def _exact(values: Mapping[str, Json], phase: Phase) -> Iterator[tuple[str, Any]]:
    """The values that are on record as they were, in the type that rules read them in."""
    types = {name: fact.type for name, fact in facts_of(phase).items()}
    for name, value in values.items():
        kind = types.get(name)
        if kind == "timestamp":
            yield name, datetime.fromisoformat(value)
        elif kind not in (None, "duration") and not _is_shortened(value):
            yield name, value


def _is_shortened(value: Json) -> bool:
    if isinstance(value, str):
        return _SHORTENED.search(value) is not None
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(map(_is_shortened, held))


def _clipped(value: Json) -> Json:
    """A value as it may be shown: what is on record is short already, unless somebody else wrote it."""
    if isinstance(value, str):
        clip = len(value) > LONGEST_VALUE and not _SHORTENED.search(value)
        return f"{value[:LONGEST_VALUE]}… [{len(value)} characters]" if clip else value
    if isinstance(value, Mapping):
        return {name: _clipped(item) for name, item in value.items()}
    return [_clipped(item) for item in value] if isinstance(value, list) else value


def _read_by(text: str, values: Mapping[str, Json]) -> dict[str, Json]:
    """Of the values those whose names stand in a part, outside its texts."""
    words = [token[0] for token in _TOKEN.finditer(text)]
    return {name: value for name, value in values.items()
            if any(f"{word}.".startswith(f"{name}.") for word in words)}


def _changes(decided: Mapping[str, Any], told: Sequence[Mapping[str, Any]], rules: _Rules) -> Iterator[str]:
    """What would have to change for another decision, a sentence for each thing."""
    if decided["decision"] not in ("deny", "held"):
        return
    yield from (_change(rule) for rule in told if rule["decisive"] and rule["rule"] != BAD_ARGUMENTS)
    if decided["rule"] == BAD_ARGUMENTS:
        yield "The arguments of the tool call would have to be JSON that fits the tool's own schema."
    elif decided["rule"] == BY_DEFAULT:
        phase = decided["phase"]
        allowing = rules.allowing(phase)
        yield (f"One of the `allow` rules of phase {phase} would have to match: {', '.join(allowing)}." if allowing
               else f"There would have to be an `allow` rule of phase {phase}: nothing is let through without one.")
    elif not rules.known:
        yield "The rules that were in force are not on record any more, so it cannot be said what they look at."


def _change(rule: Mapping[str, Any]) -> str:
    """What would have kept one rule from its effect."""
    name = f"Rule {rule['rule']}"
    if rule["verdict"] == "error":
        return f"{name} would have to be evaluated, which failed ({rule['message']}); then it would have to be false."
    keys = ", ".join(f"{key} {' or '.join(globs)}" for key, globs in rule["match"].items())
    outside = f"the call would have to be outside of its match ({keys})" if keys else ""
    held = [each for each in rule["alternatives"] if each["held"] is not False]
    if not held:
        return f"For {name[0].lower()}{name[1:]} not to match, {outside or 'it would have to be changed: it matches everything'}."
    needed = " and ".join(_false(each["parts"]) for each in held)
    return f"For {name[0].lower()}{name[1:]} not to match, {needed}{f', or {outside}' if outside else ''}."


def _false(parts: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"`{part['text']}`" + _saw(part["values"]) for part in parts]
    return f"{shown[0]} would have to be false" if len(shown) == 1 else f"one of these would have to be false: {', '.join(shown)}"


def _saw(values: Mapping[str, Json]) -> str:
    told = ", ".join(f"{name} was {json.dumps(_readable(name, value), ensure_ascii=False)}" for name, value in values.items())
    return f" ({told})" if told else ""


def _readable(name: str, value: Json) -> Json:
    """A value as a person reads it: money in USD."""
    if name not in _IN_USD:
        return value
    if isinstance(value, Mapping):
        return {scope: _readable(name, amount) for scope, amount in value.items()}
    return f"{usd(value)} USD" if isinstance(value, int) else value
