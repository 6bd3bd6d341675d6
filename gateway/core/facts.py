"""What rules may read: one schema for the type checker, the extraction and the documentation.

A body comes from a client and may hold anything anywhere. An extract returns exactly its declared type or raises
`UnreadableFactError`; a rule that reads such a fact counts as not evaluated, which fails closed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from gateway.call import Call, Json, JsonObject
from gateway.core.matching import MatchKeys

Phase: TypeAlias = Literal["request"]
CelType: TypeAlias = Literal[
    "bool", "int", "string", "timestamp", "list(string)", "list(dyn)", "map(string, string)", "map(string, dyn)"]

PHASES: Final[tuple[Phase, ...]] = ("request",)
MAX_TOOLS: Final = 2048
MAX_TOOL_NAME: Final = 1024
_BULK: Final = frozenset({"messages", "input", "prompt", "tools", "functions"})
_NAMED_WITHIN: Final = frozenset({"function", "custom"})  # kinds of tool whose name stands one level down
_NESTED_TOOLS: Final = ("tools", "functions", "function_declarations")  # where a tool may hold more tools
_ARGUMENTS: Final = (("function", "arguments"), ("custom", "input"))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class UnreadableFactError(ValueError):
    """The call does not hold this fact in its declared type. The message quotes nothing of the body."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One variable of the rules.

    `extract` takes the call and wall time in nanoseconds, and raises nothing but `UnreadableFactError`.
    """

    name: str
    type: CelType
    phases: tuple[Phase, ...]
    doc: str
    example: str
    extract: Callable[[Call, int], Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one call: its match keys, the values that candidate rules read, why others are unreadable."""

    keys: MatchKeys
    values: dict[str, Any]
    unreadable: Mapping[str, str]


def _messages(call: Call, _now_ns: int) -> list[Json]:
    messages = call.body.get("messages")
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise UnreadableFactError("`messages` is not a list")
    return messages


def _texts(call: Call, now_ns: int) -> list[str]:
    """Whatever the operation is called: an upstream may read a key that the operation does not have."""
    found: list[str] = []
    for message in _messages(call, now_ns):
        holder = _object(message, "an entry of `messages`")
        found += _content_texts(holder.get("content"))
        found += _argument_texts(holder)
        found += _one_text(holder.get("refusal"), "a `refusal`")
    for key in ("prompt", "suffix", "input"):
        written = call.body.get(key)
        for text in written if isinstance(written, list) else (written,):
            found += _one_text(text, f"`{key}`")
    return found


def _content_texts(content: Json) -> Iterator[str]:
    """The texts of a content: a string, or parts, of which a lax upstream may take one with a content of its own."""
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
            contents.append(part.get("content"))


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


def _max_tokens(call: Call, _now_ns: int) -> int:
    largest = 0
    for key in ("max_tokens", "max_completion_tokens"):
        value = call.body.get(key)
        if value is None:
            continue
        # bool is an int in Python; 64 bits are all that CEL knows.
        if type(value) is not int or not -2**63 <= value < 2**63:
            raise UnreadableFactError(f"`{key}` is not a 64-bit integer")
        largest = max(largest, value)
    return largest


def _params(call: Call, _now_ns: int) -> dict[str, Json]:
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


def match_keys(call: Call, *, with_tools: bool) -> MatchKeys:
    """The call's values for `match`. Tools are looked for only where a rule asks: they are the only key in the body."""
    principal = call.principal
    tools: tuple[str, ...] | None = ()
    if with_tools:
        try:
            tools = tools_offered(call.body)
        except UnreadableFactError:
            tools = None
    return MatchKeys(principals=(principal.id, principal.name), teams=(principal.team,), roles=principal.roles,
                     protocols=(call.dialect,), routes=(call.route,), models=(call.route,), tools=tools)


_REQUEST: Final[tuple[Phase, ...]] = ("request",)

FACTS: Final[tuple[Fact, ...]] = (
    Fact("principal.id", "string", _REQUEST, "The virtual key's public id; `anonymous` where authentication is off.",
         'principal.id == "anonymous"', lambda call, _: call.principal.id),
    Fact("principal.name", "string", _REQUEST, "The virtual key's name.",
         'principal.name.startsWith("ci-")', lambda call, _: call.principal.name),
    Fact("principal.team", "string", _REQUEST, "The key's team, empty if it has none.",
         'principal.team == "search"', lambda call, _: call.principal.team),
    Fact("principal.org", "string", _REQUEST, "The key's organisation, empty if it has none.",
         'principal.org != "acme"', lambda call, _: call.principal.org),
    Fact("principal.roles", "list(string)", _REQUEST, "The key's roles.",
         '!("admin" in principal.roles)', lambda call, _: list(call.principal.roles)),
    Fact("protocol", "string", _REQUEST, "The dialect that the caller speaks.",
         'protocol == "openai"', lambda call, _: call.dialect),
    Fact("route", "string", _REQUEST, "The public name that the caller asked for.",
         'route == "fast"', lambda call, _: call.route),
    Fact("request.operation", "string", _REQUEST, "`chat`, `completions` or `embeddings`.",
         'request.operation == "chat"', lambda call, _: call.operation),
    Fact("request.model", "string", _REQUEST, "The model's name in the body; for model calls the same as `route`.",
         'request.model.endsWith("-preview")', lambda call, _: call.route),
    Fact("request.stream", "bool", _REQUEST, "Whether the answer is to be streamed.",
         "!request.stream", lambda call, _: call.stream),
    Fact("request.size", "int", _REQUEST, "The body's length in bytes, as received.",
         "request.size > 1000000", lambda call, _: call.size),
    Fact("request.max_tokens", "int", _REQUEST,
         "The larger of `max_tokens` and `max_completion_tokens`; 0 if neither is given.",
         "request.max_tokens > 32000", _max_tokens),
    Fact("request.params", "map(string, dyn)", _REQUEST,
         "The body without its bulk (`messages`, `input`, `prompt`, `tools`, `functions`). Guard with `has()`.",
         "has(request.params.temperature) && double(request.params.temperature) > 1.5", _params),
    Fact("request.body", "map(string, dyn)", _REQUEST, "The whole body. Its cost grows with the body's size.",
         'has(request.body.user) && request.body.user == ""', lambda call, _: dict(call.body)),
    Fact("messages", "list(dyn)", _REQUEST,
         "The body's `messages`, empty if there are none. Its cost grows with their size.",
         'messages.exists(m, m.role == "system")', _messages),
    Fact("texts", "list(string)", _REQUEST,
         "Every text of the call, whatever its operation: contents of messages and of their parts, tool results, arguments of "
         "tool calls, `prompt`, `suffix`, `input`. Tokens in place of a text are unreadable.",
         'texts.exists(t, t.contains("payroll"))', _texts),
    Fact("tools_offered", "list(string)", _REQUEST, "The names of the tools that the body offers.",
         'tools_offered.exists(t, t.startsWith("bank."))', lambda call, _: list(tools_offered(call.body))),
    Fact("session.id", "string", _REQUEST, "`X-Lockgate-Session`, empty if not sent.",
         'session.id != ""', lambda call, _: call.origin.session or ""),
    Fact("run", "string", _REQUEST, "`X-Lockgate-Run`, empty if not sent.",
         'run.startsWith("nightly-")', lambda call, _: call.origin.run or ""),
    Fact("step", "string", _REQUEST, "`X-Lockgate-Step`, empty if not sent.",
         'step == "plan"', lambda call, _: call.origin.step or ""),
    Fact("tags", "map(string, string)", _REQUEST, "`X-Lockgate-Tags`. Guard with `in`.",
         '"env" in tags && tags["env"] == "prod"', lambda call, _: dict(call.origin.tags)),
    Fact("now", "timestamp", _REQUEST, "Wall time when the call is judged, UTC, to the microsecond.",
         "now.getHours() < 6", lambda _, now_ns: _EPOCH + timedelta(microseconds=now_ns // 1000)),
)


def facts_of(phase: Phase) -> Mapping[str, Fact]:
    """The facts that rules of this phase may read, by name."""
    return {fact.name: fact for fact in FACTS if phase in fact.phases}


def variables_table() -> str:
    """The schema as the Markdown table of the guide."""
    lines = ["| variable | type | phases | what | example |", "|---|---|---|---|---|"]
    for fact in FACTS:
        example = fact.example.replace("|", "\\|")
        lines.append(f"| `{fact.name}` | `{fact.type}` | {', '.join(fact.phases)} | {fact.doc} | `{example}` |")
    return "\n".join(lines)
