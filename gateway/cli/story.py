"""An explanation of a call in lines that people read: what was decided, by which rules, what they saw, what would have to change."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from gateway.call import JsonObject
from gateway.cli.output import printable

_DECIDED: Final[Mapping[str, str]] = {"allow": "allowed", "deny": "denied", "held": "held for approval", "": "not judged"}
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
    for later in told["later"]:
        yield ""
        yield from _decision(later, f"the {later['phase'].replace('_', ' ')} {later['subject']}".strip())


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
