"""Reading a call's body in its canonical form: texts, tools, limits. Total over anything that a client may send.

A body may hold anything anywhere. What is not of the expected shape raises `UnreadableFactError`, and rules that read it fail closed.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from gateway.call import Call, Json, JsonObject

MAX_TOOLS: Final = 2048
MAX_TOOL_NAME: Final = 1024
MAX_VALUES: Final = 100_000  # of an object or a list that an engine converts in one step: some 30 ms
Held = TypeVar("Held", bound=Mapping[str, Json] | list[Json])
_BULK: Final = frozenset({"messages", "input", "prompt", "tools", "functions"})
_NAMED_WITHIN: Final = frozenset({"function", "custom"})  # kinds of tool whose name stands one level down
_NESTED_TOOLS: Final = ("tools", "functions", "function_declarations")  # where a tool may hold more tools
SAID: Final = ("refusal", "reasoning_content", "reasoning")  # texts of a message beside its content
_MORE_TEXTS: Final = frozenset({"tool_calls", "function_call", *SAID})
_ARGUMENTS: Final = (("function", "arguments"), ("custom", "input"))


class UnreadableFactError(ValueError):
    """The call does not hold this fact in its declared type. The message quotes nothing of the body."""


def messages(call: Call) -> list[Json]:
    """The messages of a chat; none where the body has none."""
    if call.operation == "tool":
        return []
    held = call.body.get("messages")
    if held is None:
        return []
    if not isinstance(held, list):
        raise UnreadableFactError("`messages` is not a list")
    return held


def strings(value: Json) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from value
            todo += reversed(list(value.values()))
        elif isinstance(value, list):
            todo += reversed(value)


def weight(value: Json, most: int) -> int:
    """About how many bytes a JSON value has; the count ends above `most`."""
    found, todo = 0, [value]
    while todo and found <= most:
        value = todo.pop()
        if isinstance(value, Mapping):
            found += sum(map(len, value))
            todo += value.values()
        elif isinstance(value, list):
            todo += value
        found += len(value) if isinstance(value, str) else 4
    return found


def bounded(value: Held) -> Held:
    """The value itself, if it does not hold more values than `MAX_VALUES`."""
    found = 0
    todo: list[Mapping[str, Json] | list[Json]] = [value]
    while todo:
        holder = todo.pop()
        found += len(holder)
        if found > MAX_VALUES:
            raise UnreadableFactError(f"it holds more than {MAX_VALUES} values")
        todo += [item for item in (holder.values() if isinstance(holder, Mapping) else holder) if isinstance(item, Mapping | list)]
    return value


def texts(call: Call) -> list[str]:
    """Every text of a call, whatever the operation is called: an upstream may read a key that the operation does not have."""
    if call.operation == "tool":
        return list(strings(call.body))
    found: list[str] = []
    for message in messages(call):
        holder = _object(message, "an entry of `messages`")
        content = holder.get("content")
        if isinstance(content, str) and _MORE_TEXTS.isdisjoint(holder):  # nearly every message is this, and a long chat has many
            found.append(content)
            continue
        found += _content_texts(content)
        found += _argument_texts(holder)
        for key in SAID:
            found += _one_text(holder.get(key), f"a `{key}`")
    for key in ("prompt", "suffix", "input"):
        written = call.body.get(key)
        for text in written if isinstance(written, list) else (written,):
            found += _one_text(text, f"`{key}`")
    return found


def _content_texts(content: Json) -> Iterator[str]:
    """The texts of a content: a string, or parts, of which one may hold more of them."""
    contents = [content]
    for each in contents:  # grows on the way, by the contents within parts
        if not isinstance(each, list):
            yield from _one_text(each, "a `content`")
            continue
        for entry in each:
            part = _object(entry, "a part of a `content`")
            if "text" in part:
                yield _string(part["text"], "the `text` of a part")
            yield from _one_text(part.get("refusal"), "a `refusal`")
            contents += (part.get("content"), part.get("thinking"))


def _argument_texts(message: dict[str, Json]) -> Iterator[str]:
    """What an assistant's message hands to tools, in today's form and in the older `function_call`."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise UnreadableFactError("a `tool_calls` is not a list")
    for call in (*(calls or ()), {"function": message.get("function_call")}):
        holder = _object(call, "an entry of `tool_calls`")
        for kind, key in _ARGUMENTS:
            if holder.get(kind) is not None:
                yield from _one_text(_object(holder[kind], f"a `{kind}`").get(key), f"`{key}` of a tool call")


def _object(value: Json, what: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise UnreadableFactError(f"{what} is not an object")
    return value


def _string(value: Json, what: str) -> str:
    if not isinstance(value, str):
        raise UnreadableFactError(f"{what} is not text")
    return value


def _one_text(value: Json, what: str) -> tuple[str, ...]:
    """The text, or nothing where there is null or nothing."""
    return () if value is None else (_string(value, what),)


def max_tokens(call: Call) -> int:
    """The larger of the two limits that a body may have; 0 if it has none. A tool's argument of that name is none."""
    largest = 0
    if call.operation == "tool":
        return largest
    for key in ("max_tokens", "max_completion_tokens"):
        value = call.body.get(key)
        if value is None:
            continue
        # bool is an int in Python; 64 bits are all that CEL knows.
        if type(value) is not int or not -2**63 <= value < 2**63:
            raise UnreadableFactError(f"`{key}` is not a 64-bit integer")
        largest = max(largest, value)
    return largest


def params(call: Call) -> dict[str, Json]:
    """The body without its bulk."""
    return {key: value for key, value in call.body.items() if key not in _BULK}


def _holders(tool: dict[str, Json]) -> list[dict[str, Json]]:
    """Where an upstream could look: a lax one may not look where the specification says."""
    return [tool, *(value for value in tool.values() if isinstance(value, dict))]


def _tool_names(tool: dict[str, Json], holders: list[dict[str, Json]]) -> list[str]:
    """Every name that an upstream could read from one entry. A built-in tool has no name but its `type`."""
    kind = tool.get("type")
    names = [holder["name"] for holder in holders if "name" in holder]
    if not names and isinstance(kind, str) and kind not in _NAMED_WITHIN:
        names = [kind]
    if not names or not all(isinstance(name, str) and len(name) <= MAX_TOOL_NAME for name in names):
        raise UnreadableFactError(f"an entry of `tools` has no name of at most {MAX_TOOL_NAME} characters")
    return names


def tools_offered(body: JsonObject) -> tuple[str, ...]:
    """The names of all tools that a body offers, each once: `tools`, the older `functions`, and those within a tool.

    Raises:
        UnreadableFactError: for what is not a list of tools with names, and for more than `MAX_TOOLS` of them.
    """
    names: dict[str, None] = {}
    tools: list[Json] = []
    _add_tools(body, ("tools", "functions"), tools)
    for entry in tools:  # grows on the way, by the tools within tools
        tool = _object(entry, "an entry of `tools`")
        holders = _holders(tool)
        names.update(dict.fromkeys(_tool_names(tool, holders)))
        for holder in holders:
            _add_tools(holder, _NESTED_TOOLS, tools)
    return tuple(names)


def _add_tools(holder: JsonObject, keys: tuple[str, ...], tools: list[Json]) -> None:
    for key in keys:
        offered = holder.get(key)
        if offered is None:
            continue
        if not isinstance(offered, list) or len(tools) + len(offered) > MAX_TOOLS:
            raise UnreadableFactError(f"`{key}` is not a list of at most {MAX_TOOLS} tools")
        tools += offered
