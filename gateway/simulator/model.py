"""The pretend model: what it says to a prompt, in tokens, as a pure function of the request. It knows no wire format.

A token is a word with the white space before it. Three conventions in the last user message steer the answer:
`say TEXT` at its start, `words N`, and `call NAME {json}` for every tool to be called.
"""

import hashlib
import json
import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_WORDS: Final = (
    "amber", "anchor", "apple", "autumn", "basin", "birch", "bridge", "brook", "candle", "canal", "cedar", "cloud",
    "copper", "coral", "delta", "dune", "east", "ember", "fern", "field", "flint", "forest", "garden", "gate",
    "glass", "granite", "harbour", "hazel", "heron", "hill", "island", "ivory", "juniper", "lake", "lantern",
    "leaf", "level", "linen", "lock", "maple", "marble", "meadow", "mill", "moss", "north", "oak", "ocean",
    "orchard", "pebble", "pine", "quay", "river", "sand", "silver", "slate", "south", "spring", "stone", "tide",
    "valley", "water", "willow", "winter",
)
_TOKEN = re.compile(r"\s*\S+")
_COUNT = re.compile(r"\bwords (\d{1,6})\b")
_CALL = re.compile(r"\bcall ([A-Za-z0-9_.-]{1,64}) (?=\{)")
_ANSWER_WORDS = 12
_ARGUMENT_PIECE = 8
_MOST_CALLS = 128


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A proposed call: the tool's name and its arguments, cut as they are streamed."""

    name: str
    arguments: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """What the call costs: its name and each piece of its arguments."""
        return 1 + len(self.arguments)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One answer: its text in tokens or its tool calls, the hidden reasoning before it, and whether a limit cut it."""

    text: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    reasoning: int = 0
    cut: bool = False

    @property
    def tokens(self) -> int:
        """Completion tokens, reasoning included."""
        return len(self.text) + sum(call.tokens for call in self.calls) + self.reasoning


def count_tokens(text: str) -> int:
    """How many tokens a text has: its words."""
    return len(text.split())


def tokens(text: str) -> tuple[str, ...]:
    """A text cut into tokens that join to it again; white space at its end belongs to the last of them."""
    words = text.rstrip()  # a long blank end would make the expression try every place in it
    found, blank = _TOKEN.findall(words), text[len(words):]
    return (*found[:-1], "".join(found[-1:]) + blank) if blank else tuple(found)


def answer_text(prompt: str, salt: str) -> str:
    """What the model says to a prompt. The same prompt and salt (seed, number of the choice) give the same words."""
    if prompt.startswith("say "):
        return prompt[4:]
    wanted = _COUNT.search(prompt)
    digest = hashlib.sha256(f"{salt}\n{prompt}".encode()).digest()
    number = int(wanted[1]) if wanted else _ANSWER_WORDS
    words = " ".join([_WORDS[(digest[i & 31] + i) % len(_WORDS)] for i in range(number)])
    return words if wanted else f"This is a simulated answer: {words}."


def utter(text: str, *, limit: int | None, reasoning: int = 0) -> Utterance:
    """A text as an utterance of at most `limit` tokens; reasoning counts towards the limit and comes first."""
    said = tokens(text)
    if limit is None or reasoning + len(said) <= limit:
        return Utterance(said, reasoning=reasoning)
    reasoning = min(reasoning, limit)
    return Utterance(said[:limit - reasoning], reasoning=reasoning, cut=True)


def utter_calls(calls: Sequence[ToolCall], *, limit: int | None, reasoning: int = 0) -> Utterance:
    """Tool calls as an utterance of at most `limit` tokens; the limit may fall into the arguments of a call."""
    whole = Utterance(calls=tuple(calls), reasoning=reasoning)
    if limit is None or whole.tokens <= limit:
        return whole
    reasoning = min(reasoning, limit)
    left, kept = limit - reasoning, list[ToolCall]()
    for call in calls:
        if left:
            kept.append(ToolCall(call.name, call.arguments[:left - 1]))
            left -= kept[-1].tokens
    return Utterance(calls=tuple(kept), reasoning=reasoning, cut=True)


def asked_calls(prompt: str) -> list[ToolCall]:
    """Every `call NAME {json}` of a prompt, in order, 128 at most. What is not JSON after a name is only text."""
    calls: list[ToolCall] = []
    decoder = json.JSONDecoder()
    for found in _CALL.finditer(prompt):
        try:
            arguments, _end = decoder.raw_decode(prompt, found.end())
        except (ValueError, RecursionError):
            continue
        calls.append(tool_call(found[1], arguments))
        if len(calls) == _MOST_CALLS:
            break
    return calls


def tool_call(name: str, arguments: Any) -> ToolCall:
    """A call with its arguments as compact JSON, cut into pieces of a few characters as models stream them."""
    text = json.dumps(arguments, separators=(",", ":"))
    return ToolCall(name, tuple(text[i:i + _ARGUMENT_PIECE] for i in range(0, len(text), _ARGUMENT_PIECE)))


def vector(text: str, dimensions: int) -> "array[float]":
    """A unit vector in 32-bit floats, always the same for the same text and number of dimensions."""
    raw = array("h", hashlib.shake_256(text.encode(errors="surrogatepass")).digest(2 * dimensions))
    length = math.sqrt(sum(component * component for component in raw)) or 1.0
    return array("f", [component / length for component in raw])
