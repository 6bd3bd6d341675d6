"""How much a chunk of a streamed answer says: what is counted where a provider does not say what it used. Pure, total."""

from typing import Final

from gateway.call import Json, JsonObject

_WORDS: Final = frozenset({"role", "type", "id", "index", "object", "finish_reason"})  # of the protocol, not of the model
_DEEPEST: Final = 8


def text_size(chunk: JsonObject) -> int:
    """The bytes of text in a chunk's choices, in UTF-8: content, reasoning, refusals, names and arguments of tool calls."""
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return 0
    size = 0
    for choice in choices:
        if isinstance(choice, dict):
            for name in ("delta", "message", "text"):
                size += _size(choice.get(name), _DEEPEST)
    return size


def _size(value: Json, deeper: int) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if isinstance(value, dict) and deeper:
        return sum(_size(item, deeper - 1) for name, item in value.items() if name not in _WORDS)
    if isinstance(value, list) and deeper:
        return sum(_size(item, deeper - 1) for item in value)
    return 0
