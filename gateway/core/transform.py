"""What `redact` and `set` make of a call. Pure: a new question comes out, and shares with the old one what nothing changed.

Whatever cannot be transformed as its rule says raises: a call must not go on half transformed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from gateway.call import Call, Json, JsonObject, ToolResult
from gateway.core.body import SAID
from gateway.core.decision import Clamp, Redaction, Setting, Transform
from gateway.core.detectors import DetectionError
from gateway.core.question import Question
from gateway.core.redaction import Search, redact_fields, redact_json_text, redact_text, redact_value, steps_of

_LIMITS: Final = ("max_tokens", "max_completion_tokens")  # two names of one thing
_INSTRUCTIONS: Final = frozenset({"system", "developer"})
# What a model call is read and routed by: text written there would make another call of it.
_DRIVING: Final = frozenset({"", "*", "model", "stream", "stream_options"})
_LISTS: Final = frozenset({"messages", "tools", "functions"})


class TransformError(ValueError):
    """A transform cannot be applied to this call. `rule` is its rule; `why` quotes nothing of the call."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule
        self.why = why


class _NotSoError(ValueError):
    """Something of the call has not the shape that it must have; the message says what."""


def transform(question: Question, transforms: Sequence[Transform]) -> Question:
    """The question after the transforms, in declared order; redactions that follow one another are one pass.

    Raises:
        TransformError: one of them cannot be applied.
    """
    for kind, group in groupby(transforms, type):
        alike = list(group)
        for run in [alike] if kind is Redaction else [[each] for each in alike]:
            try:
                question = _applied(question, run)
            except (_NotSoError, DetectionError) as error:
                raise TransformError(run[0].rule, str(error)) from error
    return question


def _applied(question: Question, run: Sequence[Transform]) -> Question:
    if isinstance(run[0], Setting):
        return _set(question, run[0])
    return _redacted(question, [each for each in run if isinstance(each, Redaction)])


def _redacted(question: Question, redactions: Sequence[Redaction]) -> Question:
    if question.phase == "request":
        _check_fields(question.call, redactions)
        body = redact_value(question.call.body, redactions) if question.call.operation == "tool" else _body(question.call, redactions)
        return question if body is question.call.body else replace(question, call=replace(question.call, body=body))
    if question.phase == "tool_call" and question.tool is not None:
        _check_fields(None, redactions)
        args = redact_value(question.tool.args, redactions)
        return question if args is question.tool.args else replace(question, tool=replace(question.tool, args=args))
    if question.phase == "tool_result" and question.result is not None:
        result = _result(question.result, redactions)
        unchanged = result.content is question.result.content and result.text == question.result.text
        return question if unchanged else replace(question, result=result)
    if question.phase == "response" and question.said is not None:
        text = redact_text(question.said.text, redactions)
        return question if text is question.said.text else replace(question, said=replace(question.said, text=text))
    raise _NotSoError(f"there is nothing to redact in the phase `{question.phase}`")


def _check_fields(call: Call | None, redactions: Sequence[Redaction]) -> None:
    """Raise for fields that have to stay what they are: arguments an object, a model call a call of the same model."""
    for redaction in redactions:
        for pointer in redaction.fields:
            steps = [*steps_of(pointer), "", "", ""]
            entry = (steps[0] in _LISTS and not steps[2]) or (steps[0] == "messages" and steps[2] in ("*", "role"))
            if not pointer or (call is not None and call.operation != "tool" and (entry or steps[0] in _DRIVING)):
                raise TransformError(redaction.rule, f"the field {pointer!r} cannot be taken out: what is called would not be the same")


def _body(call: Call, redactions: Sequence[Redaction]) -> Json:
    """A model call's body with its texts redacted: the same texts that rules read (`body.texts`)."""
    cleaner = _Cleaner(redactions)
    changes: dict[str, Json] = {}
    held = call.body.get("messages")
    if held is not None:
        changes["messages"] = [cleaner.message(message) for message in _list(held, "`messages`")]
    for key in ("prompt", "suffix", "input"):
        written = call.body.get(key)
        what = f"`{key}`"
        changes[key] = [cleaner.text(each, what) for each in written] if isinstance(written, list) else cleaner.text(written, what)
    return redact_fields(_with(call.body, changes), redactions)


class _Cleaner:
    """Goes through the messages of a chat as `body.texts` does."""

    def __init__(self, redactions: Sequence[Redaction]) -> None:
        self._redactions = redactions
        self._search = Search(redactions)

    def text(self, value: Json, what: str) -> Json:
        if isinstance(value, str):
            return self._search.redacted(value)
        if value is None:
            return None
        raise _NotSoError(f"{what} is not text")

    def message(self, value: Json) -> Json:
        message = _object(value, "an entry of `messages`")
        changes = {"content": self.content(message.get("content")), **{key: self.text(message.get(key), f"a `{key}`") for key in SAID}}
        if message.get("tool_calls") is not None:
            changes["tool_calls"] = [self.call(each) for each in _list(message["tool_calls"], "a `tool_calls`")]
        if message.get("function_call") is not None:
            changes["function_call"] = self._handed(message["function_call"], "function_call", "arguments")
        return _with(message, changes)

    def content(self, value: Json) -> Json:
        if not isinstance(value, list):
            return self.text(value, "a `content`")
        return [self._part(each) for each in value]

    def _part(self, value: Json) -> Json:
        part = _object(value, "a part of a `content`")
        if "text" in part and part["text"] is None:
            raise _NotSoError("the `text` of a part is not text")
        return _with(part, {"text": self.text(part.get("text"), "the `text` of a part"),
                            "refusal": self.text(part.get("refusal"), "a `refusal`"),
                            "content": self.content(part.get("content")), "thinking": self.content(part.get("thinking"))})

    def call(self, value: Json) -> Json:
        call = _object(value, "an entry of `tool_calls`")
        return _with(call, {kind: self._handed(call[kind], kind, key)
                            for kind, key in (("function", "arguments"), ("custom", "input")) if call.get(kind) is not None})

    def _handed(self, value: Json, kind: str, key: str) -> Json:
        holder = _object(value, f"a `{kind}`")
        written = holder.get(key)
        if written is None:
            return holder
        if not isinstance(written, str):
            raise _NotSoError(f"`{key}` of a tool call is not text")
        return _with(holder, {key: redact_json_text(written, self._redactions)})


def _result(result: ToolResult, redactions: Sequence[Redaction]) -> ToolResult:
    """A result with value and text in step: they are one thing, read in two ways."""
    found = redact_value(result.content, [replace(each, fields=()) for each in redactions])
    content = redact_fields(found, redactions)
    if isinstance(content, str):
        text = content
    elif content is not found:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    else:
        text = redact_json_text(result.text, redactions)
    return replace(result, content=content, text=text)


def _set(question: Question, setting: Setting) -> Question:
    if question.phase == "request":
        call = question.call
        body = _changed(call.body, setting, () if call.operation == "tool" else _LIMITS)
        if setting.system is not None or setting.replace_system:
            if call.operation != "chat":
                raise TransformError(setting.rule, f"a system message belongs into a chat, and this is `{call.operation}`")
            body = {**body, "messages": _instructed(body.get("messages"), setting)}
        return replace(question, call=replace(call, body=body))
    if question.phase == "tool_call" and question.tool is not None and setting.system is None:
        return replace(question, tool=replace(question.tool, args=_changed(question.tool.args, setting, ())))
    raise TransformError(setting.rule, f"it cannot be set in the phase `{question.phase}`")


def _changed(body: JsonObject, setting: Setting, alike: Sequence[str]) -> JsonObject:
    """The body with values written and numbers clamped. `alike` are names of one and the same limit."""
    for pointer, value in setting.values.items():
        body = _written(body, steps_of(pointer), value)
    for clamp in setting.clamps:
        given = [[name] for name in alike if body.get(name) is not None] if clamp.pointer[1:] in alike else []
        for steps in given or [steps_of(clamp.pointer)]:
            before = _read(body, steps)
            after = _clamped(before, clamp)
            body = body if after is before else _written(body, steps, after)
    return body


def _clamped(value: Json, clamp: Clamp) -> Json:
    if value is None:
        return None if clamp.most is None else _number(clamp.most)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NotSoError(f"`{clamp.pointer}` is not a number")
    if clamp.most is not None and value > clamp.most:
        return _number(clamp.most)
    return _number(clamp.least) if clamp.least is not None and value < clamp.least else value


def _number(bound: float) -> float:
    """A bound as JSON should hold it: where providers ask for an integer, 1000.0 is none."""
    return int(bound) if float(bound).is_integer() else bound


def _instructed(messages: Json, setting: Setting) -> list[Json]:
    """The messages with the rule's own system message before them, and the caller's taken out where the rule replaces them."""
    kept = [_object(each, "an entry of `messages`") for each in _list(messages, "`messages`")]
    if setting.replace_system:
        kept = [each for each in kept if str(each.get("role")).strip().lower() not in _INSTRUCTIONS]
    return kept if setting.system is None else [{"role": "system", "content": setting.system}, *kept]


def _read(value: Json, steps: Sequence[str]) -> Json:
    """What stands there; None where nothing does."""
    for step in steps:
        value = _object(value, f"what holds `{step}`").get(step)
        if value is None:
            return None
    return value


def _written(holder: Json, steps: Sequence[str], value: Json) -> dict[str, Json]:
    """A copy with the value at the end of these steps. What is missing on the way becomes an object."""
    if not steps:
        raise _NotSoError("the whole of it cannot be set")
    inner = _object(holder, f"what holds `{steps[0]}`")
    return {**inner, steps[0]: _written(inner.get(steps[0], {}), steps[1:], value) if steps[1:] else value}


def _with(holder: Mapping[str, Json], changes: Mapping[str, Json]) -> Mapping[str, Json]:
    """A copy with other values, of keys that are there; the holder itself where all of them are what they were."""
    other = {key: value for key, value in changes.items() if key in holder and not _same(holder[key], value)}
    return {**holder, **other} if other else holder


def _same(before: Json, after: Json) -> bool:
    if isinstance(before, list) and isinstance(after, list):
        return all(old is new for old, new in zip(before, after, strict=True))
    return before is after


def _object(value: Json, what: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise _NotSoError(f"{what} is not an object")
    return value


def _list(value: Json, what: str) -> list[Json]:
    if not isinstance(value, list):
        raise _NotSoError(f"{what} is not a list")
    return value
