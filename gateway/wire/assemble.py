"""Puts the chunks of a streamed answer together as the plain answer they amount to, for the journal.

Total over anything a provider may send: what is not of the expected shape is kept as it came last, never an error.
"""

from typing import Any, Final

from gateway.call import JsonObject

_TEXT: Final = frozenset({"content", "refusal", "arguments", "text", "reasoning_content", "reasoning"})
_WHOLE: Final = {"chat.completion.chunk": "chat.completion"}
MOST_SLOTS: Final = 128
_REST: Final = -1
MOST_CHARACTERS: Final = 4 * 1024 * 1024


class _Parts(list[str]):
    """The pieces of one text, joined once at the end: appending to a string would copy it for every chunk."""


class Assembler:
    """Give it each chunk's body; `body()` is the plain answer. Text past `MOST_CHARACTERS` in all is dropped and said so."""

    __slots__ = ("_characters", "_choices", "_head", "_usage")

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[Any, dict[str, Any]] = {}
        self._usage: Any = None
        self._characters = 0

    def add(self, chunk: JsonObject) -> None:
        """Take the next chunk."""
        if not self._head:
            self._head = {key: value for key, value in chunk.items() if key not in ("choices", "usage")}
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        slot = _slot(self._choices, _index(choice))
        for key, value in choice.items():
            if key == "delta" and isinstance(value, dict):
                self._merge(slot.setdefault("message", {}), value)
            elif key == "text" and isinstance(value, str):
                self._append(slot, key, value)
            elif value is not None or key not in slot:
                slot[key] = value

    def _merge(self, into: dict[str, Any], delta: dict[str, Any]) -> None:
        for key, value in delta.items():
            if key in _TEXT and isinstance(value, str):
                self._append(into, key, value)
            elif key == "tool_calls" and isinstance(value, list):
                self._merge_calls(into, value)
            elif isinstance(value, dict):
                held = into.get(key)
                into[key] = held = held if isinstance(held, dict) else {}
                self._merge(held, value)
            elif value is not None or key not in into:
                into[key] = value

    def _merge_calls(self, into: dict[str, Any], deltas: list[Any]) -> None:
        calls = into.setdefault("tool_calls", _Calls())
        for delta in deltas:
            if isinstance(delta, dict) and isinstance(calls, _Calls):
                self._merge(_slot(calls, _index(delta)), {key: value for key, value in delta.items() if key != "index"})

    def _append(self, into: dict[str, Any], key: str, text: str) -> None:
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            return
        held = into.get(key)
        if not isinstance(held, _Parts):
            into[key] = held = _Parts()
        held.append(text)

    def body(self) -> dict[str, Any]:
        """The plain answer."""
        whole = dict(self._head)
        kind = whole.get("object")
        if isinstance(kind, str):
            whole["object"] = _WHOLE.get(kind, kind)
        whole["choices"] = [_plain(choice) for choice in self._choices.values()]
        if self._usage is not None:
            whole["usage"] = self._usage
        if self._characters > MOST_CHARACTERS:
            whole["lockgate_truncated"] = True
        return whole


class _Calls(dict[Any, dict[str, Any]]):
    """Tool calls by the index their deltas carry."""


def _slot(slots: dict[Any, dict[str, Any]], index: int | None) -> dict[str, Any]:
    """The place of an index; past `MOST_SLOTS` of them the rest share one, so that a hostile provider cannot fill the memory."""
    return slots.setdefault(index if index in slots or len(slots) < MOST_SLOTS else _REST, {})


def _index(item: dict[str, Any]) -> int | None:
    index = item.get("index")
    return index if isinstance(index, int) else None


def _plain(value: Any) -> Any:
    if isinstance(value, _Parts):
        return "".join(value)
    if isinstance(value, _Calls):
        return [_plain(call) for call in value.values()]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
