"""Questions that the rules were asked about a recorded call, to be asked again. What is not on record is said, never guessed. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from gateway.call import Call, Json, JsonObject, Reply, ToolCall, ToolResult, Usage
from gateway.core.body import UnreadableFactError, messages
from gateway.core.decision import BAD_ARGUMENTS, BY_DEFAULT, Decision, Denied, Effect, Phase, Redaction, Setting
from gateway.core.facts import BUDGET_FACTS, SESSION_FACTS
from gateway.core.question import Question
from gateway.core.rules import Bundle, Rule
from gateway.gather import selected
from gateway.judge import Judged, judge
from gateway.spoken import said
from gateway.store.protocol import DecidedCall
from gateway.supposed import World
from gateway.tool_offers import called
from gateway.wire.tool_calls import LEGACY, Proposed, UnreadableArgumentsError, parsed_result, proposed, returned

_NOT_KEPT: Final = "it was not kept"
_SHORTENED: Final = "what people wrote was not kept"
_SCRUBBED: Final = "a secret was taken out of it"
_CHANGED: Final = "a rule changed it before it was kept"
_WITHHELD: Final = "a rule kept it back, and the journal does not have it either"
_SESSION: Final = "what the session had done by then is not on record"
_BUDGETS: Final = "how the budgets stood by then is not on record"
_BODY: Final = ("request.body", "request.max_tokens", "request.params", "messages", "texts", "tools_offered")
_WHOLE: Final[Mapping[Phase, str]] = {  # what a transform of a phase works on
    "request": "request.body", "tool_call": "tool.args", "tool_result": "result", "response": "response.text"}
_ANSWERED: Final = ("completed", "withheld")
_UNREADABLE: Final[JsonObject] = {"tools": 0, "messages": 0}  # in place of a body: whoever reads it finds nothing to read
CHANGING: Final[tuple[Effect, ...]] = ("redact", "set", "route", "limit")  # in the order in which the strongest of them is named


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, and why some of its facts are not what was judged then, by their names."""

    question: Question
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided on one thing then: a call before it left, a tool call that a model proposed, an answer.

    `effect` is how `effect_of` names it, `rule` the first that did it, `default` where none did anything.
    """

    phase: Phase
    subject: str
    asked: tuple[Asked, ...]
    effect: str
    rule: str


@dataclass(frozen=True, slots=True)
class Unsure:
    """It cannot be decided again, and why."""

    why: str


def judgements(call: DecidedCall, detail: JsonObject, world: World) -> Iterator[Judgement]:
    """Everything that was decided on a call, in order. `detail` is the call as `Journal.call` gives it."""
    before = [reason for reason in call.reasons if reason.get("offered", True)]
    made, unknown = _call(call)
    session = dict.fromkeys((*SESSION_FACTS, "session"), _SESSION) if made.origin.session else {}
    unknown = {**unknown, **session, **dict.fromkeys(BUDGET_FACTS, _BUDGETS), "user": _NOT_KEPT}
    effect, rule = _done(call.decision, call.rule, before)
    yield Judgement("request", "", tuple(_before(made, unknown, before, world)), effect, rule)
    yield from _proposed(made, unknown, detail, world)
    if detail.get("outcome") in _ANSWERED:
        phase: Phase = "tool_result" if call.operation == "tool" else "response"
        verdicts = [verdict for verdict in call.verdicts if verdict["phase"] == phase]
        ask = _answered_by_tool if phase == "tool_result" else _answered
        yield _later(phase, made.route if phase == "tool_result" else "", ask(made, unknown, detail, verdicts, world), verdicts)


def decide_again(bundle: Bundle, asked: Asked) -> Judged | Unsure:
    """What these rules make of the question; `Unsure` where that hangs on something that is not on record."""
    if "tool.name" in asked.unknown and bundle.judges_tools:
        return Unsure(f"a model called tools: {asked.unknown['tool.name']}")
    doubts = {rule.id: why for rule in selected(bundle, asked.question).rules
              if not rule.shadow and rule.effect != "log" and (why := _doubt(rule, asked))}
    judged = judge(bundle, asked.question)
    if not doubts:
        return judged
    sure = [reason for reason in judged.decision.reasons
            if reason.effect == "deny" and reason.verdict == "matched" and not reason.shadow and reason.rule not in doubts]
    return judged if isinstance(judged.decision, Denied) and sure else Unsure(next(iter(doubts.values())))


def effects_of(decision: Decision) -> dict[str, tuple[str, ...]]:
    """What a decision does, strongest first, each with the rules that do it. A `limit` lets a call pass, so `allow` stands beside it."""
    if decision.name == "deny":
        return {"deny": (decision.rule or BY_DEFAULT,)}
    if decision.name == "held":
        return {"require_approval": tuple(dict.fromkeys((decision.rule or BY_DEFAULT, *(each.rule for each in decision.approvals))))}
    found: dict[str, tuple[str, ...]] = {
        "redact": tuple(each.rule for each in decision.transforms if isinstance(each, Redaction)),
        "set": tuple(each.rule for each in decision.transforms if isinstance(each, Setting)),
        "route": tuple(each.rule for each in decision.reroutings),
    }
    if not any(found.values()):
        found["allow"] = (decision.rule or BY_DEFAULT,)
    found["limit"] = tuple(each.rule for each in decision.limits)
    return {effect: rules for effect, rules in found.items() if rules}


def effect_of(effects: Iterable[str]) -> str:
    """Several effects as one name: `deny`, `redact+limit`, `allow`."""
    found = [effect for effect in effects if effect != "allow"]
    return "+".join(sorted(set(found), key=("deny", "require_approval", *CHANGING).index)) or "allow"


def _done(decision: str, rule: str, reasons: Iterable[JsonObject]) -> tuple[str, str]:
    """What came of a decision then, and the rule that did it."""
    stopped = {"deny": "deny", "held": "require_approval"}.get(decision)
    if stopped is not None:
        return stopped, rule or BY_DEFAULT
    changing = [reason for reason in reasons if reason["effect"] in CHANGING and not reason.get("shadow")]
    return effect_of(reason["effect"] for reason in changing), changing[0]["rule"] if changing else rule or BY_DEFAULT


def _doubt(rule: Rule, asked: Asked) -> str | None:
    reads = set(rule.reads)
    if rule.program is not None and rule.program.queries:
        reads.add("session")
    if isinstance(rule.action, Redaction | Setting):
        reads.add(_WHOLE[asked.question.phase])
    missing = sorted(reads & asked.unknown.keys())
    return f"a rule reads `{missing[0]}`: {asked.unknown[missing[0]]}" if missing else None


def _call(call: DecidedCall) -> tuple[Call, dict[str, str]]:
    """The call as far as it is on record, and the facts of it that are not."""
    seen: dict[str, Json] = {}
    for reason in call.reasons:
        seen.update(reason.get("values") or {})
    unknown = {} if isinstance(seen.get("request.size"), int) else {"request.size": _NOT_KEPT}
    body, why = _kept(call.request)
    if any(reason["effect"] in ("redact", "set") or not reason.get("offered", True) for reason in call.reasons):
        why = _CHANGED
    if why:
        unknown.update(dict.fromkeys(_BODY, why))
    return Call(
        id=call.id, principal=call.principal, dialect=call.dialect, operation=call.operation, route=call.route,
        body=_UNREADABLE if why else body, stream=call.stream, size=seen.get("request.size", 0), received_ns=call.received_ns,
        origin=call.origin, asked=named if isinstance(named := body.get("model"), str) else "",
    ), unknown


def _kept(body: bytes | None) -> tuple[JsonObject, str]:
    """A body from the journal; why it is not what was judged, where that is so."""
    if body is None:
        return {}, _NOT_KEPT
    if b"[redacted: " in body:
        return {}, _SHORTENED
    if b"[secret]" in body:
        return {}, _SCRUBBED
    try:
        value = json.loads(body)
    except ValueError:
        return {}, _NOT_KEPT
    return (value, "") if isinstance(value, dict) else ({}, _NOT_KEPT)


def _before(made: Call, unknown: Mapping[str, str], reasons: Iterable[JsonObject], world: World) -> Iterator[Asked]:
    """The questions before a call leaves: the request, the HTTP tool that it calls, the results that it brings."""
    def ask(phase: Phase, missing: Mapping[str, str], **what: Json) -> Asked:
        return Asked(Question(phase, made, made.received_ns, env=world.env, **what), missing)

    yield ask("request", unknown)
    if made.operation == "tool":
        args = {"tool.args": unknown["request.body"], "texts": unknown["request.body"]} if "request.body" in unknown else {}
        tool = ToolCall(made.id, made.route, made.body, "http", "http", world.tools.get(made.route, {}))
        yield ask("tool_call", {**unknown, **args}, tool=tool, known_tool=True)
        return
    if "messages" in unknown:
        brought = list(dict.fromkeys(reason["subject"] for reason in reasons if reason.get("phase") == "tool_result"))
        missing = {**unknown, **dict.fromkeys(("result", "result_text", "texts", "tool.args", "tool.released"), unknown["messages"])}
        for name in brought:
            yield ask("tool_result", missing, tool=ToolCall("", name, {}), result=ToolResult("", ""), known_tool=name in world.tools)
        return
    try:
        found = list(returned(messages(made)))
    except UnreadableFactError:
        return
    for each in found:
        yield ask("tool_result", {**unknown, "tool.released": _NOT_KEPT}, tool=called(each.id, each.name, each.written),
                  result=ToolResult(parsed_result(each.text), each.text), known_tool=each.name in world.tools)


def _proposed(made: Call, unknown: Mapping[str, str], detail: JsonObject, world: World) -> Iterator[Judgement]:
    """The tool calls that the model proposed, and what became of them."""
    for use in _uses(made, detail):
        name = use["name"]
        verdicts = [each for each in detail.get("verdicts") or () if each["phase"] == "tool_call" and each["subject"] == name]
        stopped = [each for each in verdicts if each["decision"] != "allow"]
        if not use["released"] and stopped and stopped[0]["rule"] == BAD_ARGUMENTS:
            continue  # no rule was asked
        args, why = _kept(json.dumps(use["args"]).encode())
        if any(reason["effect"] in ("redact", "set") for each in verdicts for reason in each["reasons"]):
            why = _CHANGED
        known = name in world.tools
        missing = dict.fromkeys(("tool.args", "texts"), why) if why else {}
        noted = {} if known else {"tool.annotations": _NOT_KEPT}
        tool = ToolCall(use["id"], name, {} if why else args, "model", "http" if known else "", world.tools.get(name, {}))
        question = Question("tool_call", made, use["at_ns"], tool=tool, env=world.env, known_tool=known)
        # What a rule says of one call of a tool stands beside what it says of another: one that was let through was not stopped.
        yield _later("tool_call", name, Asked(question, {**unknown, **noted, **missing, **use.get("unknown", {})}),
                     [each for each in verdicts if (each["decision"] == "allow") is use["released"]])


def _uses(made: Call, detail: JsonObject) -> Iterator[JsonObject]:
    """The tool calls of the answer: as they were judged, or where none was, as they stand in the answer, all of them let through."""
    if detail.get("tool_uses"):
        yield from (use for use in detail["tool_uses"] if use["via"] == "model")
        return
    withheld = [each for each in detail.get("verdicts") or () if each["phase"] == "response" and each["decision"] != "allow"]
    body, why = _kept_answer(detail, withheld)
    ended = {"tool_calls", LEGACY} & set(detail.get("finish_reasons") or ())
    if why and ended:
        yield {"id": "", "name": "", "args": {}, "released": True, "at_ns": made.received_ns, "unknown": {"tool.name": why}}
    for call in _proposed_in({} if why else body):
        with suppress(UnreadableArgumentsError):  # those that are judged are refused for it, and by no rule
            yield {"id": call.id, "name": call.name, "args": call.arguments(), "released": True, "at_ns": made.received_ns}


def _proposed_in(body: JsonObject) -> Iterator[Proposed]:
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        holder = message if isinstance(message, dict) else {}
        entries = holder.get("tool_calls")
        yield from map(proposed, entries if isinstance(entries, list) else ())
        if holder.get(LEGACY) is not None:
            yield proposed(holder[LEGACY], LEGACY)


def _later(phase: Phase, subject: str, asked: Asked, verdicts: list[JsonObject]) -> Judgement:
    first = next((each for each in verdicts if each["decision"] != "allow"), None)
    reasons = [reason for each in verdicts for reason in each["reasons"]]
    rule = next((each["rule"] for each in ([first] if first else verdicts) if each["rule"]), "")
    return Judgement(phase, subject, (asked,), *_done(first["decision"] if first else "allow", rule, reasons))


def _answered(made: Call, unknown: Mapping[str, str], detail: JsonObject, verdicts: list[JsonObject], world: World) -> Asked:
    """What the model answered."""
    body, why = _kept_answer(detail, verdicts)
    missing = dict.fromkeys(("response.text", "texts", "response.tool_calls"), why) if why else {}
    if any(not use["released"] for use in detail.get("tool_uses") or ()):  # the refusal stands in the text
        missing |= dict.fromkeys(("response.text", "texts", "response.tool_calls", "response.finish_reason"), _CHANGED)
    used = detail.get("usage")
    usage = Usage(used["input_tokens"], used["output_tokens"]) if used else None
    answer = said(Reply({} if why else body, usage, tuple(detail.get("finish_reasons") or ())))
    return Asked(Question("response", made, made.received_ns, said=answer, env=world.env), {**unknown, **missing})


def _answered_by_tool(made: Call, unknown: Mapping[str, str], detail: JsonObject, verdicts: list[JsonObject], world: World) -> Asked:
    """What an HTTP tool gave back."""
    body, why = _kept_answer(detail, verdicts)
    if "request.body" in unknown:
        unknown = {**unknown, "tool.args": unknown["request.body"]}
    missing = dict.fromkeys(("result", "result_text", "texts"), why) if why else {}
    content = body.get("json", body.get("text"))
    result = ToolResult(content, content if isinstance(content, str) else json.dumps(content, separators=(",", ":"), ensure_ascii=False))
    tool = ToolCall(made.id, made.route, made.body, "http", "http", world.tools.get(made.route, {}))
    return Asked(Question("tool_result", made, made.received_ns, tool=tool, result=result, env=world.env, known_tool=True),
                 {**unknown, **missing})


def _kept_answer(detail: JsonObject, verdicts: list[JsonObject]) -> tuple[JsonObject, str]:
    stored = detail.get("response")
    body, why = _kept(stored.encode() if isinstance(stored, str) else None)
    if any(verdict["decision"] != "allow" for verdict in verdicts):
        return body, _WITHHELD
    changed = any(reason["effect"] == "redact" for verdict in verdicts for reason in verdict["reasons"])
    return body, _CHANGED if changed else why
