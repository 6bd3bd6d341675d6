"""A model's plain answer: what it says, and the same with texts taken out. Pure."""

from collections.abc import Mapping

from gateway.call import Json, Reply, Said
from gateway.core.decision import Redaction
from gateway.core.redaction import redact_text, redact_value
from gateway.core.rules import Rule
from gateway.gate import TEXT_FIELDS
from gateway.wire.tool_calls import LEGACY, proposed


def said(reply: Reply) -> Said:
    """What an answer says, all its choices together."""
    texts, calls = [], []
    choices = reply.body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        holder = message if isinstance(message, dict) else choice if isinstance(choice, dict) else {}
        texts += [holder[name] for name in TEXT_FIELDS if isinstance(holder.get(name), str)]
        entries = holder.get("tool_calls")
        calls += [proposed(entry).name for entry in (entries if isinstance(entries, list) else ())]
    return Said("\n".join(texts), tuple(calls), reply.finish_reasons[0] if reply.finish_reasons else "", reply.usage)


def redacted(body: Mapping[str, Json], redactions: list[Redaction]) -> dict[str, Json]:
    """A plain answer with its texts redacted. What spells them out token by token goes. Raises `DetectionError`."""
    choices = []
    for choice in body["choices"]:
        held = dict(choice)
        if isinstance(held.get("message"), dict):
            message = dict(held["message"])
            judged_elsewhere = ("role", "tool_calls", LEGACY)
            message.update({name: _cleaned(value, redactions) for name, value in message.items() if name not in judged_elsewhere})
            held["message"] = message
        if isinstance(held.get("text"), str):
            held["text"] = redact_text(held["text"], redactions)
        if "logprobs" in held:
            held["logprobs"] = None
        choices.append(held)
    return {**body, "choices": choices}


def _cleaned(value: Json, redactions: list[Redaction]) -> Json:
    return redact_text(value, redactions) if isinstance(value, str) else redact_value(value, redactions)


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
