"""Upper bounds of what a call may cost before it is sent, and what it cost where the provider does not say. Pure; total over any body.

A token is at least one byte of a text (`Bounds.bytes_per_token` may know better), so a call's input is bounded by its size. What the body
only refers to (a file by its id), and what a provider looks up for it, is bounded by the model's context. What no limit of a model bounds,
a provider that goes on to call itself for one, is not known here: a price a call (`[prices] request`) stands for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.call import Call, Json, JsonObject, Usage
from gateway.core.budget import Need
from gateway.core.money import LINES, Price, dearest
from gateway.errors import InvalidRequest

# Every name under which servers of the canonical form are known to take the longest answer. The first two are its own.
OUTPUT_LIMITS: Final = (
    "max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "n_predict", "num_predict")
_CANONICAL: Final = OUTPUT_LIMITS[:2]
_SMALLEST_OUTPUT: Final = ("min_tokens", "min_length")  # above the longest it would be refused, or win
_CHOICES: Final = ("n", "best_of")
_MOST_CHOICES: Final = 4096
_MOST_ANSWERS: Final = 65_536  # choices of all prompts together
_UNKNOWN_CONTEXT: Final = 2_097_152  # the longest that is on offer
_UNKNOWN_OUTPUT: Final = 262_144  # the same; a client that asks for a billion tokens must not hold an account's whole rest
_TOOLS_PREAMBLE: Final = 1024  # tokens that a provider puts before the first tool; 804 are the most that one documents
_IMAGES: Final = frozenset({"image_url", "input_image", "image"})
_SOUNDS: Final = frozenset({"input_audio", "audio"})
_FILES: Final = frozenset({"file", "file_id", "input_file", "document", "video", "video_url", "audio_url", "image_embeds"})
_TEXTS: Final = frozenset({
    "text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning", "summary_text", "tool_use",
    "tool_result"})
_KNOWN: Final = _IMAGES | _SOUNDS | _TEXTS
# What has a provider read what is not in the body.
_LOOKS_UP: Final = ("web_search_options", "search_parameters", "plugins", "web_search", "enable_search", "data_sources", "file_ids",
                    "previous_response_id", "conversation", "extra_body")
_THINKING: Final = ("reasoning_effort", "reasoning", "thinking", "enable_thinking", "thinking_budget", "chat_template_kwargs")
_NOT_THINKING: Final = ("none", False, 0)
BYTES_OF_A_TOKEN: Final = 8  # more than a token has on average in any common text: an answer must not be taken for longer than it is
_OWN_TOOLS: Final = frozenset({"function", "custom"})  # any other tool is one that the provider runs
# Service tiers that cost what published prices say, or less. Others cost up to twice as much.
_USUAL_TIERS: Final = frozenset({"auto", "default", "standard", "standard_only", "on_demand", "flex", "batch"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of a model. `context` and `max_output` are tokens, None where nobody knows; `image_tokens` is the most that one picture
    counts. `default_output` is the longest answer where the client gives none: where money is limited, that one is asked for.

    `output_limit` is the field that the longest answer is given in; empty: such a limit cannot be given. `bills_unanswered`: an attempt
    that was sent and brought no answer may have cost as much as a whole one. `any_tier`: the price holds for every service tier.
    """

    context: int | None = None
    max_output: int | None = None
    default_output: int = 4096
    image_tokens: int = 50_000
    bytes_per_token: int = 1
    output_limit: str = "max_tokens"
    bills_unanswered: bool = True
    any_tier: bool = True
    hidden_reasoning: bool | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """What of a call its cost depends on. `size` is bytes of text; `asked` is the tokens that it asks for at the most, None where it does
    not say.

    `texts` are the prompts or inputs, each of which has a context of its own. `files`: it refers to what is not in the body. `predicted` is
    bytes of a predicted answer, which is billed as output where it is rejected. `dear`: it asks for a service tier that may cost more.
    `thinks`: it asks for reasoning, which nobody sees. `ids` are tokens that are given as such.
    """

    size: int
    choices: int = 1
    asked: int | None = None
    images: int = 0
    files: bool = False
    audio: bool = False
    produces: bool = True  # an answer that is made of tokens; embeddings and tools have none
    texts: int = 1
    predicted: int = 0
    tools: bool = False
    dear: bool = False
    thinks: bool = False
    ids: int = 0


def measure(call: Call, size: int) -> Measure:
    """Look at a call once. `size` is that of the body as it is sent.

    Raises:
        InvalidRequest: a limit or a number of choices is not a whole number, so that nobody can say what it means.
    """
    if call.operation == "tool":
        return Measure(0, produces=False)
    body = call.body
    parts = _parts(body)
    size = max(1, size - parts.inline)
    texts = _several(body.get("input" if call.operation == "embeddings" else "prompt")) if call.operation != "chat" else 1
    if call.operation == "embeddings":
        return Measure(size, images=parts.images, files=parts.files, produces=False, texts=texts, dear=_dear(body),
                       ids=_ids(body.get("input")))
    offered = [tool for name in ("tools", "functions") for tool in _list(body.get(name))]
    return Measure(
        size, _choices(body, texts), _asked(body), parts.images, parts.files or _looks_up(body, offered),
        parts.audio or body.get("audio") is not None or "audio" in _list(body.get("modalities")),
        texts=texts, predicted=size if body.get("prediction") is not None else 0, tools=bool(offered), dear=_dear(body),
        thinks=_thinks(body), ids=_ids(body.get("prompt")))


def input_bound(measured: Measure, bounds: Bounds) -> int:
    """The most tokens that the call can be taken for."""
    if not measured.size:
        return 0
    told = max(measured.size // bounds.bytes_per_token, measured.ids) + 1
    told += measured.images * bounds.image_tokens + measured.tools * _TOOLS_PREAMBLE
    if bounds.context is None:
        return max(told, _UNKNOWN_CONTEXT * measured.texts) if measured.files else told
    context = bounds.context * measured.texts
    return context if measured.files else min(told, context)


def output_bound(measured: Measure, bounds: Bounds) -> int:
    """The most tokens of one choice of the answer. Where the model takes no limit, what the client asks for says nothing."""
    if not measured.produces:
        return 0
    longest = bounds.max_output or max(_UNKNOWN_OUTPUT, bounds.default_output)
    if not bounds.output_limit:
        return longest
    return min(bounds.default_output if measured.asked is None else measured.asked, longest)


def need(measured: Measure, price: Price | None, bounds: Bounds) -> Need:
    """What one attempt may cost at the most."""
    most = output_bound(measured, bounds)
    if price is None or (measured.dear and not bounds.any_tier):
        return Need(0, unpriced=True, most=most)
    tokens = input_bound(measured, bounds)
    worst = dearest(price, tokens, audio=measured.audio)
    fixed = tokens * worst.input + measured.predicted * worst.output + worst.request + measured.images * worst.image
    rounding = LINES - 1 if worst.input or worst.output else 0  # the whole is rounded up below, each line of a cost by itself
    return Need(-(-fixed // 1000) + rounding, worst.output * measured.choices, most, rigid=most > 0 and not bounds.output_limit)


def estimated_usage(measured: Measure, bounds: Bounds, delivered: int | None, units: int | None, least: int = 0) -> Usage:
    """What an attempt used at the most whose provider did not say: its whole input, and of the output what came.

    `delivered` is the bytes of text that came; None where the whole answer may have been made unseen: then all that was granted counts.
    `units` is what was granted for each choice; more than that counts as far as it certainly came, as `least` tokens: from a provider that
    does not keep to its limit.
    """
    granted = output_bound(measured, bounds) if units is None else units
    if units is None and delivered is not None and measured.produces:
        granted = bounds.max_output or _UNKNOWN_OUTPUT  # nothing was asked for in its place
    most = granted * measured.choices
    came = max(most if delivered is None else min(most, delivered), least)
    tokens, output = input_bound(measured, bounds), came + measured.predicted if came else 0
    return Usage(tokens, output, input_audio_tokens=tokens * measured.audio, output_audio_tokens=output * measured.audio, estimated=True,
                 images=measured.images)


def limited(body: JsonObject, units: int, field: str) -> JsonObject:
    """The body asking for `units` tokens at the most, in the field that its target reads; the body itself where it does already.

    Every other name that some server may read is lowered too. But of the two names of the canonical form only the target's is sent: a
    server that knows the other does not read this one, and one that knows both refuses both together.
    """
    changes: dict[str, Json] = {name: units for name in OUTPUT_LIMITS if body.get(name) is not None and not _within(body[name], units)}
    changes |= {name: units for name in _SMALLEST_OUTPUT if _over(body.get(name), units)}
    dropped = ""
    if field and body.get(field) is None:
        dropped = next((name for name in _CANONICAL if body.get(name) is not None), "")
        changes[field] = changes.pop(dropped, body[dropped]) if dropped else units
    if not changes:
        return body
    return {name: value for name, value in {**body, **changes}.items() if name != dropped}


def _within(value: Json, units: int) -> bool:
    return type(value) is int and 0 < value <= units


def _over(value: Json, units: int) -> bool:
    return value is not None and not (type(value) is int and value <= units)


def _asked(body: JsonObject) -> int | None:
    """The largest limit that the body gives, under any name. To some who take it a negative one means none, and so may 0."""
    given: list[int] = []
    for name in OUTPUT_LIMITS:
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int:
            raise InvalidRequest(f"`{name}` must be a whole number.", pointer=f"/{name}")
        given.append(value)
    return max(given) if given and min(given) > 0 else None


def _choices(body: JsonObject, prompts: int) -> int:
    """How many answers are made, those that are thrown away (`best_of`) included."""
    most = 1
    for name in _CHOICES:
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int or value > _MOST_CHOICES:
            raise InvalidRequest(f"`{name}` must be a whole number, {_MOST_CHOICES} at most.", pointer=f"/{name}")
        most = max(most, value)
    if most * prompts > _MOST_ANSWERS:
        raise InvalidRequest(f"The prompts ask for {most * prompts} answers together; {_MOST_ANSWERS} are the most.", pointer="/prompt")
    return most * prompts


def _several(value: Json) -> int:
    """How many texts a prompt or an input is: a list of integers is one of them, in tokens."""
    return max(1, len(value)) if isinstance(value, list) and not all(type(part) is int for part in value) else 1


def _dear(body: JsonObject) -> bool:
    tier, speed = body.get("service_tier"), body.get("speed")
    return not ((tier is None or _in(tier, _USUAL_TIERS)) and (speed is None or _in(speed, _USUAL_TIERS)))


def _looks_up(body: JsonObject, offered: list[Json]) -> bool:
    """Whether the provider is asked to read what is not in the body."""
    own = all(_in(tool.get("type"), _OWN_TOOLS) or (tool.get("type") is None and ("function" in tool or "name" in tool))
              for tool in offered if isinstance(tool, dict))
    return not own or any(body.get(name) is not None for name in _LOOKS_UP)


def _thinks(body: JsonObject) -> bool:
    return any(body.get(name) is not None and body[name] not in _NOT_THINKING for name in _THINKING)


def _ids(value: Json) -> int:
    """The tokens of a prompt, or of several, that are given as numbers."""
    held = [value] if isinstance(value, list) and all(type(part) is int for part in value) else _list(value)
    return sum(len(each) for each in held if isinstance(each, list) and all(type(part) is int for part in each))


def _in(value: Json, names: frozenset[str]) -> bool:
    return isinstance(value, str) and value in names


@dataclass(slots=True)
class _Parts:
    """What the content of messages is made of beside text. `inline` is the bytes of pictures that stand in the body."""

    images: int = 0
    inline: int = 0
    files: bool = False
    audio: bool = False


def _parts(body: JsonObject) -> _Parts:
    found = _Parts()
    for part in _content_parts(body):
        kind, fields = part.get("type"), part.keys()  # some servers go by the field alone
        if _in(kind, _IMAGES) or fields & _IMAGES:
            found.images += 1
            found.inline += sum(_inline(part.get(name)) for name in _IMAGES)
        found.audio = found.audio or _in(kind, _SOUNDS) or bool(fields & _SOUNDS)
        if fields & _FILES or not (kind is None or _in(kind, _KNOWN)):
            found.files = found.audio = True  # nobody knows what is in it
    return found


def _inline(value: Json) -> int:
    """The bytes of a picture that is written out: it counts as a picture, not as the text that it is written as."""
    address = value.get("url") if isinstance(value, dict) else value
    return len(address) if isinstance(address, str) and address.isascii() and address.startswith("data:image/") else 0


def _content_parts(body: JsonObject) -> Iterator[JsonObject]:
    """The parts of every message, and the parts of those (of the result of a tool)."""
    for message in _list(body.get("messages")):
        if not isinstance(message, dict):
            continue
        if message.get("audio") is not None:  # sound that was answered before, by its id
            yield {"type": "input_audio"}
        below = [message.get("content")]
        while below:
            held = below.pop()
            for part in held if isinstance(held, list) else [held]:
                if isinstance(part, dict):
                    yield part
                    below.append(part.get("content"))


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
