"""An explanation of a call in lines that people read: what was decided, by which rules, what they saw, what would have to change; where the
call went and why. Also the plan of a call that nobody made.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

from gateway.call import JsonObject
from gateway.cli.output import printable

_DECIDED: Final[Mapping[str, str]] = {"allow": "allowed", "deny": "denied", "held": "held for approval", "": "not judged"}
_PROBED: Final = ("open", "half_open")  # what lets a call through only to see how its target is
_MS_UP_TO: Final = 10_000
_HELD: Final[Mapping[bool | None, str]] = {True: "true", False: "false", None: "not on record"}


def story(told: JsonObject) -> Iterator[str]:
    """The lines, none of which can steer a terminal."""
    return map(printable, _story(told))


def _story(told: JsonObject) -> Iterator[str]:
    call = told["call"]
    when = datetime.fromtimestamp(call["received_ns"] // 1_000_000_000, UTC)
    who = call["key"] + (f" of team {call['team']}" if call["team"] else "")
    yield f"{call['id']}: {call['operation']} of {call['route'] or '-'} by {who}, {when:%Y-%m-%d %H:%M:%S} UTC"
    yield f"outcome: {call['outcome']}{_coded(call)}"
    digest = told["bundle"]["digest"]
    known = "" if told["bundle"]["known"] else " (its content is not on record)"
    yield f"rules: {digest}{known}" if digest else "rules: none were asked"
    yield ""
    yield from _decision(told, "the call")
    yield from _path(told)
    for later in told["later"]:
        yield ""
        yield from _decision(later, f"the {later['phase'].replace('_', ' ')} {later['subject']}".strip())
    if told["attempts"] or told["plan"] or told["decision"] == "allow":
        yield ""
        yield f"{_moment(told['answer']['at_ms'])}{told['answer']['said']}"


def _path(told: JsonObject) -> Iterator[str]:
    """The plan and what was tried of it, in the order in which it happened."""
    if told["part_of"]:
        yield ""
        yield f"this call was made by the gateway itself, for {told['part_of']}"
    if told["approval"]:
        yield ""
        yield f"people were asked: approval {told['approval']}"
    if told["grants"]:
        yield ""
        yield f"what people had allowed before let it go on: grant {', '.join(told['grants'])}"
    if told["plan"]:
        yield ""
        yield from plan_lines(told["plan"], told["task"])
    steps = sorted([*told["attempts"], *told["parts"]], key=itemgetter("at_ms"))
    if steps:
        yield ""
    for step in steps:
        yield from _attempt(step) if "n" in step else _part(step)


def plan_lines(plan: JsonObject, task: JsonObject | None = None) -> Iterator[str]:
    """Which targets are tried and why, and which are not."""
    if task:
        asked = task["classifier"]
        took = f", {_duration(asked['ms'])}" if asked and asked["ms"] is not None else ""
        by = f" (classifier {asked['target'] or '-'}{took}{_cost(asked)})" if asked else ""
        yield f"task {task['name']}{by}"
    rule = f", by the rule {plan['rule']}" if plan.get("rule") else ""
    yield f"plan: {plan['strategy']}{rule}"
    yield from (f"  {note}" for note in plan.get("notes") or ())
    if plan.get("wait_s"):
        yield f"  every target rests; the first is ready in {plan['wait_s']:g} s"
    for number, placed in enumerate(plan.get("order") or (), 1):
        probe = ", so this is a probe" if placed.get("breaker") in _PROBED and not plan.get("last_resort") else ""
        yield f"  {number}. {_planned(placed, probe)}"
    yield from (f"  not {_planned(passed)}" for passed in plan.get("passed") or ())


def _planned(target: JsonObject, probe: str = "") -> str:
    breaker = f" [breaker {target['breaker']}{probe}]" if target.get("breaker") not in (None, "closed") else ""
    cost = f"{target['cost_usd']} USD at the most" if target.get("cost_usd") else ""
    return f"{target['target']}: {target['why']}{f', {cost}' if cost not in target['why'] else ''}{breaker}"


def _attempt(tried: JsonObject) -> Iterator[str]:
    why = f": {tried['cause']}" if tried["cause"] else ""
    said = f" ({tried['message']})" if tried["message"] else ""
    ended = "under way" if tried["end"] is None else f"{tried['end']} after {_duration(tried['ms'])}{why}{said}"
    yield f"{_moment(tried['at_ms'])}attempt {tried['n']}, {tried['said']}: {tried['target']}, {ended}{_cost(tried)}"
    met = [f"breaker {tried['breaker']}"] if tried["breaker"] not in (None, "closed") else []
    if tried["retries_left"] is not None:
        met.append(f"the route's retry budget held {tried['retries_left']:.1f} after it")
    if met:
        yield f"    {', '.join(met)}"


def _part(part: JsonObject) -> Iterator[str]:
    took = "" if part["ms"] is None else f" after {_duration(part['ms'])}"
    yield f"{_moment(part['at_ms'])}{part['kind']} {part['call']}: {part['target'] or '-'}, {part['outcome']}{took}{_cost(part)}"


def _cost(row: JsonObject) -> str:
    if row["cost_usd"] is None:
        return "" if row.get("end", row.get("outcome")) in (None, "open") else ", at an unknown cost"
    return f", {row['cost_usd']} USD{' (estimated)' if row.get('estimated') else ''}"


def _moment(at_ms: float | None) -> str:
    return "" if at_ms is None else f"{round(at_ms):+} ms  "


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < _MS_UP_TO else f"{ms / 1000:.1f} s"


def _coded(call: JsonObject) -> str:
    return f", {call['code']}" if call["code"] else ""


def _decision(told: JsonObject, what: str) -> Iterator[str]:
    by = f" by {told['rule']}" if told["rule"] else ""
    said = f": {told['message']}" if told["message"] else ""
    yield f"{what} was {_DECIDED[told['decision']]}{by}{said}"
    for rule in told["rules"]:
        yield from _rule(rule)
    if told["labels"]:
        yield f"  labels: {', '.join(told['labels'])}"
    if told["change"]:
        yield "  what would have to change:"
        yield from (f"    - {sentence}" for sentence in told["change"])


def _rule(rule: Mapping[str, Any]) -> Iterator[str]:
    shadow = " in shadow mode, without effect" if rule["shadow"] else "" if rule["offered"] else " for a tool that was not offered"
    verdict = "could not be evaluated" if rule["verdict"] == "error" else "matched"
    about = f" on {rule['subject']}" if rule["subject"] else ""
    place = f" ({rule['source']})" if rule["source"] else ""  # what the gateway itself refuses stands in no file
    yield f"  {rule['effect']} {rule['rule']}{place} {verdict}{about}{shadow}"
    if rule["verdict"] == "error":
        yield f"    {rule['message']}"
    if rule["match"]:
        keys = (f"{key} {' or '.join(globs)}" for key, globs in rule["match"].items())
        yield f"    match: {', '.join(keys)}"
    for number, alternative in enumerate(rule["alternatives"]):
        for part in alternative["parts"]:
            joint = "or" if number and part is alternative["parts"][0] else "when" if part is rule["alternatives"][0]["parts"][0] else "and"
            yield f"    {joint:4} {' '.join(part['text'].split())}   [{_HELD[part['held']]}]"
    for name, value in rule["values"].items():
        yield f"    {name} was {json.dumps(value, ensure_ascii=False)}"
