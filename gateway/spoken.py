"""A model's plain answer: what it says, and the same with texts taken out. Pure."""

from collections.abc import Mapping
from typing import Final

from gateway.call import Json, Reply, Said
from gateway.core.decision import Redaction
from gateway.core.redaction import redact_value
from gateway.core.rules import Rule
from gateway.gate import TEXT_FIELDS
from gateway.wire.tool_calls import CALLS, LEGACY, proposed, texts_within

_ELSEWHERE: Final = frozenset({"role", *CALLS})  # fields of a message that are judged elsewhere, or are a word of the protocol
_OF_CHOICE: Final = frozenset({"index", "message", "finish_reason", "logprobs"})
_OF_ANSWER: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "usage", "choices"})


def said(reply: Reply) -> Said:
    """What an answer says, all its choices together: every text of their messages, whatever the field is called."""
    texts: list[str] = []
    calls: list[str] = []
    choices = reply.body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        texts += [choice[name] for name in TEXT_FIELDS if isinstance(choice.get(name), str)]
        message = choice.get("message")
        if not isinstance(message, dict):
            texts += texts_within(message)
            continue
        texts += texts_within({name: value for name, value in message.items() if name not in _ELSEWHERE})
        entries = message.get("tool_calls")
        calls += [proposed(entry).name for entry in (entries if isinstance(entries, list) else ())]
        if message.get(LEGACY):
            calls.append(proposed(message[LEGACY], LEGACY).name)
    return Said("\n".join(texts), tuple(calls), reply.finish_reasons[0] if reply.finish_reasons else "", reply.usage)


def redacted(body: Mapping[str, Json], redactions: list[Redaction]) -> dict[str, Json]:
    """A plain answer with its texts redacted. What spells them out token by token goes. Raises `DetectionError`."""
    choices = []
    for choice in body["choices"]:
        held = _cleaned(choice, _OF_CHOICE, redactions)
        if "message" in held:
            message = held["message"]
            held["message"] = _cleaned(message, _ELSEWHERE, redactions) if isinstance(message, dict) else redact_value(message, redactions)
        if "logprobs" in held:
            held["logprobs"] = None
        choices.append(held)
    return {**_cleaned(body, _OF_ANSWER, redactions), "choices": choices}


def _cleaned(holder: Mapping[str, Json], kept: frozenset[str], redactions: list[Redaction]) -> dict[str, Json]:
    return {name: value if name in kept else redact_value(value, redactions) for name, value in holder.items()}


def finish_reasons(choices: list[Json]) -> tuple[str, ...]:
    """Why each choice ended, where it says so."""
    found = (choice.get("finish_reason") for choice in choices if isinstance(choice, dict))
    return tuple(reason for reason in found if isinstance(reason, str))


def flows(rule: Rule) -> bool:
    """Whether a rule can be asked before the answer is there, and done to it while it passes."""
    if any(name == "texts" or name.startswith("response.") for name in rule.reads) or (rule.program and rule.program.queries):
        return False
    action = rule.action
    return isinstance(action, Redaction) and all(each.longest is not None for each in action.detectors)
