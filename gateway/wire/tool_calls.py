"""Tool calls in canonical bodies: those that an answer proposes, and the results that a request brings back.

Total over anything a model or a client may send: what has no shape of a tool call is none, and a name that is no text is an empty one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.call import Json, JsonObject
from gateway.wire.strict_json import dumps, loads

_KINDS: Final = (("function", "arguments"), ("custom", "input"))
LEGACY: Final = "function_call"  # the older form: one call, without an id, beside `content`
_RESULT_ROLES: Final = ("tool", "function")


class UnreadableArgumentsError(ValueError):
    """The arguments of a tool call are no JSON object that can be read in one way. The message quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A tool call as an answer proposes it. `kind` is `function`, `custom` (its input is free text) or `function_call`."""

    id: str
    name: str
    written: str
    kind: str

    def arguments(self) -> dict[str, Json]:
        """The parsed arguments; a custom tool's text under `input`. Raises `UnreadableArgumentsError`."""
        if self.kind == "custom":
            return {"input": self.written}
        try:
            value = loads(self.written.encode()) if self.written.strip() else {}  # models write nothing where there are none
        except (ValueError, UnicodeError) as error:
            raise UnreadableArgumentsError("the arguments are not JSON that can be read in one way") from error
        if not isinstance(value, dict):
            raise UnreadableArgumentsError("the arguments are not a JSON object")
        return value


def proposed(entry: Json, kind: str = "") -> Proposed:
    """An entry of `tool_calls`, or with `kind` the value of `function_call`."""
    holder = entry if isinstance(entry, dict) else {}
    if kind == LEGACY:
        return Proposed("", _text(holder.get("name")), _text(holder.get("arguments")), LEGACY)
    for name, key in _KINDS:
        inner = holder.get(name)
        if isinstance(inner, dict):
            return Proposed(_text(holder.get("id")), _text(inner.get("name")), _text(inner.get(key)), name)
    return Proposed(_text(holder.get("id")), "", "", "function")


def rewritten(entry: JsonObject, call: Proposed, arguments: JsonObject) -> dict[str, Json]:
    """The entry with these arguments: what was judged is what is given on, written once and for every reader alike."""
    if call.kind == LEGACY:
        return {**entry, "arguments": dumps(arguments).decode()}
    if call.kind == "custom":
        return {**entry, "custom": {**entry["custom"], "input": arguments.get("input")}}
    inner = entry.get("function")
    return {**entry, "function": {**(inner if isinstance(inner, dict) else {}), "arguments": dumps(arguments).decode()}}


@dataclass(frozen=True, slots=True)
class Returned:
    """A result that a request brings: in message `place`, of the call `id`, which the conversation says was of `name` with `written`."""

    place: int
    id: str
    name: str
    written: str
    content: Json

    @property
    def text(self) -> str:
        """The content as text: its parts' texts where it has parts."""
        if isinstance(self.content, list):
            return "\n".join(_text(part.get("text")) for part in self.content if isinstance(part, dict))
        return _text(self.content)


def returned(messages: Sequence[Json]) -> Iterator[Returned]:
    """Every tool result in a conversation, in order, with what the assistant's message before it says of the call."""
    asked: dict[str, Proposed] = {}
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        entries = message.get("tool_calls")
        for entry in entries if isinstance(entries, list) else ():
            call = proposed(entry)
            asked[call.id] = call
        if message.get("role") in _RESULT_ROLES:
            call_id = _text(message.get("tool_call_id"))
            call = asked.get(call_id) or Proposed(call_id, _text(message.get("name")), "", "function")
            yield Returned(place, call_id, call.name, call.written, message.get("content"))


def with_contents(body: JsonObject, contents: Mapping[int, Json]) -> dict[str, Json]:
    """The body with other contents in some of its messages."""
    messages = [{**message, "content": contents[place]} if place in contents else message
                for place, message in enumerate(body["messages"])]
    return {**body, "messages": messages}


def parsed_result(text: str) -> Json:
    """A result's value: parsed where it is a JSON object or array, else the text."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return loads(text.encode())
    except (ValueError, UnicodeError):
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
