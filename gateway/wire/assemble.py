"""Puts the chunks of a streamed answer together as the plain answer they amount to, for the journal.

Total over anything a provider may send: what is not of the expected shape is kept as it came last, never an error.
"""

from io import StringIO
from typing import Any, Final, TypeVar

from gateway.call import JsonObject

_TEXT: Final = frozenset({"content", "refusal", "arguments", "text", "reasoning_content", "reasoning"})
_WHOLE: Final = {"chat.completion.chunk": "chat.completion"}
MOST_SLOTS: Final = 128
_REST: Final = -1
MOST_CHARACTERS: Final = 4 * 1024 * 1024
# What a field counts as beside the characters of its name and value; about the memory that it takes.
_FIELD: Final = 64


class _Merged(dict[Any, Any]):
    """An object that is put together from several chunks, and so never one of a chunk's own."""


class _Slots(dict[Any, Any]):
    """Choices or tool calls, by the index that their pieces carry."""


_Kind = TypeVar("_Kind", _Merged, _Slots, StringIO)


class Assembler:
    """Give it each chunk's body; `body()` is the plain answer. Past `MOST_CHARACTERS` in all nothing more is kept, and this is said."""

    __slots__ = ("_choices", "_full", "_head", "_size", "_usage")

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices = _Slots()
        self._usage: dict[str, Any] = {}
        self._size = 0
        self._full = False

    def add(self, chunk: JsonObject) -> None:
        """Take the next chunk."""
        if self._full:
            return
        if not self._head:
            for key, value in chunk.items():
                if key not in ("choices", "usage"):
                    self._put(self._head, key, value)
        if usage := chunk.get("usage"):
            self._put(self._usage, "usage", usage)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        slot = self._slot(self._choices, choice)
        for key, value in choice.items():
            if key in ("delta", "message") and isinstance(value, dict):
                self._merge(self._own(slot, "message", _Merged), value)
            elif key == "text" and isinstance(value, str):
                self._own(slot, key, StringIO).write(self._fitting(value))
            else:
                self._put(slot, key, value)

    def _merge(self, into: dict[str, Any], delta: dict[str, Any]) -> None:
        for key, value in delta.items():
            if key in _TEXT and isinstance(value, str):
                self._own(into, key, StringIO).write(self._fitting(value))
            elif key == "tool_calls" and isinstance(value, list):
                calls = self._own(into, key, _Slots)
                for call in value:
                    if isinstance(call, dict):
                        self._merge(self._slot(calls, call), {name: item for name, item in call.items() if name != "index"})
            elif isinstance(value, dict):
                self._merge(self._own(into, key, _Merged), value)
            else:
                self._put(into, key, value)

    def _slot(self, slots: _Slots, item: dict[str, Any]) -> _Merged:
        """The place of an item's index; past `MOST_SLOTS` of them the rest share one."""
        index = item.get("index")
        place = index if isinstance(index, int) else None
        return self._own(slots, place if place in slots or len(slots) < MOST_SLOTS else _REST, _Merged)

    def _own(self, into: dict[Any, Any], key: Any, kind: type[_Kind]) -> _Kind:
        """What is put together under a key, in place of anything else there; where nothing more fits, it is for nobody."""
        held = into.get(key)
        if isinstance(held, kind):
            return held
        made = kind()
        if self._fits(_FIELD + len(str(key))):
            into[key] = made
        return made

    def _put(self, into: dict[str, Any], key: str, value: Any) -> None:
        """Keep a value as it came, in place of an older one; null erases nothing."""
        if key not in into:
            size = _FIELD + len(key) + _size(value)
        elif value is None or (held := into[key]) is value:
            return
        else:
            size = _size(value) - (0 if isinstance(held, _Merged | _Slots | StringIO) else _size(held))
        if self._fits(size):
            into[key] = value

    def _fitting(self, text: str) -> str:
        return text if self._fits(len(text)) else ""

    def _fits(self, size: int) -> bool:
        if not self._full:
            self._size += size
            self._full = self._size > MOST_CHARACTERS
        return not self._full

    def body(self) -> dict[str, Any]:
        """The plain answer."""
        whole = dict(self._head)
        kind = whole.get("object")
        if isinstance(kind, str):
            whole["object"] = _WHOLE.get(kind, kind)
        whole["choices"] = _plain(self._choices)
        whole.update(self._usage)
        if self._full:
            whole["lockgate_truncated"] = True
        return whole


def _size(value: Any) -> int:
    """The characters of a value as it is kept, roughly; the same value always gives the same."""
    if isinstance(value, str):
        return len(value)
    return len(repr(value)) if isinstance(value, dict | list) else 0


def _plain(value: Any) -> Any:
    if isinstance(value, StringIO):
        return value.getvalue()
    if isinstance(value, _Slots):
        return [_plain(item) for item in value.values()]
    if isinstance(value, _Merged):
        return {key: _plain(item) for key, item in value.items()}
    return value
