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
CALLS: Final = ("tool_calls", LEGACY)  # where a message holds what it calls
_RESULT_ROLES: Final = ("tool", "function")
_JUDGED: Final = frozenset({"function", "custom", "name", "arguments", "input"})  # what a call is made of, whatever its kind


class UnreadableArgumentsError(ValueError):
    """The arguments of a tool call are no JSON object that can be read in one way. The message quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A tool call as an answer proposes it. `kind` is `function`, `custom` (its input is free text) or `function_call`.

    The older form has no id: calls and results of one name go by that name.
    """

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
        name = _text(holder.get("name"))
        return Proposed(_nameless(name), name, _written(holder.get("arguments")), LEGACY)
    for each, key in _KINDS:
        inner = holder.get(each)
        if isinstance(inner, dict):
            return Proposed(_text(holder.get("id")), _text(inner.get("name")), _written(inner.get(key)), each)
    return Proposed(_text(holder.get("id")), "", "", "function")


def rewritten(entry: JsonObject, call: Proposed, arguments: JsonObject) -> dict[str, Json]:
    """The entry with these arguments: what was judged is what is given on, written once and for every reader alike.

    Whatever else a reader could take for the call (another kind beside this one, a name in other letters) is left out.
    """
    key = "input" if call.kind == "custom" else "arguments"
    made = {"name": call.name, key: arguments.get("input") if call.kind == "custom" else dumps(arguments).decode()}
    if call.kind == LEGACY:
        return {**_rest(entry), **made}
    inner = entry.get(call.kind)
    return {**_rest(entry), "type": call.kind, call.kind: {**_rest(inner if isinstance(inner, dict) else {}), **made}}


def _rest(holder: JsonObject) -> dict[str, Json]:
    return {name: value for name, value in holder.items() if name.casefold() not in _JUDGED}


def misplaced(choice: JsonObject, place: str) -> bool:
    """Whether a choice holds a tool call beside those of its message (at `place`), where no rule but some reader might look for it."""
    message = choice.get(place)
    todo = [choice]
    for holder in todo:  # grows on the way, by the objects within
        for name, value in holder.items():
            if holder is message and name in CALLS:
                continue
            if value and name.casefold() in CALLS:
                return True
            if isinstance(value, dict):
                todo.append(value)
    return False


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
        """The content as text: where it has parts every text within them, however they are called."""
        return "\n".join(texts_within(self.content))


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
        older = message.get(LEGACY)
        if isinstance(older, dict):
            call = proposed(older, LEGACY)
            asked[call.id] = call
        if _text(message.get("role")).strip().lower() in _RESULT_ROLES or message.get("tool_call_id"):
            name = _text(message.get("name"))
            call_id = _text(message.get("tool_call_id")) or (_nameless(name) if name else "")
            call = asked.get(call_id) or Proposed(call_id, name, "", "function")
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


def texts_within(value: Json) -> Iterator[str]:
    """Every text in a JSON value; names of fields, and what names a kind, are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_within(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "type":
                yield from texts_within(item)


def _nameless(name: str) -> str:
    """What stands for the id of a call in the older form."""
    return f"{LEGACY}:{name}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _written(value: Json) -> str:
    """Arguments as text. Some servers give the object itself."""
    if value is None:
        return ""
    return value if isinstance(value, str) else dumps(value).decode()
