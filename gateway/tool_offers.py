"""The tools that a request offers to a model, and what is made of a call of one: its schema, its declaration, its refusal. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.call import Call, Json, ToolCall
from gateway.core.body import MAX_TOOL_NAME, strings, tools_offered
from gateway.core.decision import Denied
from gateway.errors import Forbidden
from gateway.gate import refusal
from gateway.schemas import SchemaCache
from gateway.tools import Tool
from gateway.wire.tool_calls import LEGACY, Proposed, UnreadableArgumentsError


def without_tools(body: Mapping[str, Json], removed: Mapping[str, Denied]) -> dict[str, Json]:
    """The body without these tools. Raises `Forbidden` where it asks for one of them by name, or for any where none is left."""
    out = dict(body)
    for key, choice_key, extra in (("tools", "tool_choice", "parallel_tool_calls"), ("functions", LEGACY, "")):
        offered = out.get(key)
        if not isinstance(offered, list):
            continue
        left = [tool for tool in offered if not set(tools_offered({"tools": [tool]})) & removed.keys()]
        chosen = out.get(choice_key)
        wanted = next((name for name in removed if _names(chosen, name)), None)
        if wanted is None and not left and chosen == "required":
            wanted = next(iter(removed))
        if wanted is not None:
            denied = removed[wanted]
            raise Forbidden(f"The tool {wanted} is asked for and may not be called. {denied.message or ''}".strip(),
                            rule=denied.rule or "", remedy=denied.remedy)
        out[key] = left
        if not left:
            for gone in (key, choice_key, extra):
                out.pop(gone, None)
    return out


def _names(choice: Json, name: str) -> bool:
    """Whether a `tool_choice` asks for this tool, alone or among others; one without a name is asked for by its type."""
    return isinstance(choice, dict) and name in strings(choice)


def unfitting(name: str, arguments: Json, call: Call, known: list[str], schemas: SchemaCache) -> str:
    """Why the arguments do not fit the tool's own schema; empty where they do, or it has none. `known` is what its declaration says."""
    if known:
        return known[0]
    for tool in definitions(call).get(name, ()):
        parameters = tool.get("parameters")
        if parameters is None:
            continue
        try:
            problems = schemas.get(parameters).problems(arguments)
        except ValueError as error:
            return f"the tool's own schema cannot be used ({error})"
        if problems:
            return problems[0]
    return ""


def definitions(call: Call) -> dict[str, list[dict[str, Any]]]:
    """What the request says of each tool that it offers: a name may stand there more than once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key in ("tools", "functions"):
        entries = call.body.get(key)
        for entry in entries if isinstance(entries, list) else ():
            inner = entry.get("function", entry) if isinstance(entry, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                found.setdefault(inner["name"], []).append(inner)
    return found


def described(name: str, offered: Sequence[Mapping[str, Any]], known: Tool | None) -> ToolCall:
    """A call of a tool by a model, as far as its definitions tell of it. `known` is its declaration, where the gateway calls it."""
    if known is not None:
        return ToolCall("", name, {}, "model", "http", known.annotations)
    return ToolCall("", name, {}, "model", "", {"strict": offered[0]["strict"]} if offered and "strict" in offered[0] else {})


def read(asked: Proposed, call: Call, known: Tool | None, schemas: SchemaCache) -> tuple[ToolCall, str]:
    """The tool call that a model proposes, and why nobody can judge it; that is empty where it can be judged."""
    tool = replace(described(asked.name, definitions(call).get(asked.name, ()), known), id=asked.id)
    # What no rule can be written for is none that an application should look up: it may be less exact than a glob.
    if not asked.name.strip() or asked.name != asked.name.strip() or not asked.name.isprintable() or len(asked.name) > MAX_TOOL_NAME:
        return tool, "the tool's name cannot be read"
    try:
        tool = replace(tool, args=asked.arguments())
    except UnreadableArgumentsError as error:
        return tool, str(error)
    return tool, unfit(tool, call, known, schemas)


def unfit(tool: ToolCall, call: Call, known: Tool | None, schemas: SchemaCache) -> str:
    """Why the arguments of a call do not fit the tool's declaration, or what the request says of it; empty where they do."""
    return unfitting(tool.name, tool.args, call, known.schema.problems(tool.args) if known else [], schemas)


def called(call_id: str, name: str, written: str) -> ToolCall:
    """The tool call that a result is of, as the conversation tells it."""
    try:
        arguments = Proposed(call_id, name, written, "function").arguments()
    except UnreadableArgumentsError:
        arguments = {}
    return ToolCall(call_id, name, arguments)


def refused(name: str, message: str, rule: str, remedy: str | None) -> str:
    """What a model and its application read in place of a tool call."""
    named = f" (rule {rule})" if rule else ""
    return " ".join(filter(None, (f"The call of the tool {name} was refused{named}: {message}", remedy)))


def say(message: dict[str, Json], text: str, withheld: str) -> None:
    """Put a refusal into a message."""
    content = message.get("content")
    said = refusal(text, withheld, after=bool(content) and isinstance(content, str))
    if "content" in said and isinstance(content, str):
        said = {"content": content + said["content"]}
    elif "content" in said and isinstance(content, list):
        said = {"content": [*content, {"type": "text", "text": text}]}
    message.update(said)
