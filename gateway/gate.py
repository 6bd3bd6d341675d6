"""What stands between a streamed answer and its client: tool calls are held until they are judged, text flows unless rules need all of it.

Works on canonical chunks. What it lets out, put together, is what the same rules make of the same answer given plain.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

from gateway.call import Json, JsonObject, Reply, Usage
from gateway.core.decision import POLICY_ERROR, Redaction
from gateway.core.detectors import DetectionError
from gateway.core.redaction import redact_text
from gateway.core.redaction_stream import StreamRedactor
from gateway.errors import AttemptFailed, Forbidden
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event
from gateway.wire.tool_calls import CALLS, LEGACY, Proposed, misplaced, proposed, rewritten

MOST_CHOICES: Final = 128
MOST_CALLS: Final = 128
# Fields of a delta, or of a choice, that hold what a model writes.
TEXT_FIELDS: Final = ("content", "refusal", "reasoning_content", "reasoning", "text")
_NO_TEXT: Final = frozenset({"role", *CALLS})  # fields of a delta that are judged elsewhere, or are a word of the protocol
# What else is let through where texts are redacted: nobody knows what other fields hold, nor how a reader puts them together.
_HEAD: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier"})
_CHOICE: Final = frozenset({"index", "delta", "text", "finish_reason", "logprobs"})


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of a proposed tool call: the arguments that it goes on with, or None and what is said in its place."""

    arguments: JsonObject | None
    text: str = ""


Judge = Callable[[Sequence[Proposed]], Awaitable[list[Ruling]]]  # of all the tool calls of a choice


class Gate(Protocol):
    """Takes a stream's events in order and gives those that may go on."""

    async def take(self, event: Event) -> list[Event]:
        """What may go out after this event. Raises `CallError` where a rule ends the answer."""
        ...

    async def end(self) -> list[Event]:
        """What is left at the end that the stream promised."""
        ...


@dataclass(slots=True)
class _Choice:
    """One choice of a streamed answer: its tool calls so far, and the texts whose ends are held back."""

    calls: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, StreamRedactor] = field(default_factory=dict)
    judged: set[int | str] = field(default_factory=set)  # the places of calls that are no longer held
    said: bool = False  # some text has gone out
    ended: bool = False
    released: int = 0


class StreamGate:
    """Lets text through as it comes, redacted on the way where rules ask for it, and holds tool calls until their choice has ended.

    Pieces of several calls may come interleaved, so a call is known to be whole only then. Calls keep their index beside one that is
    refused; `contiguous` closes the gap for clients that would stumble over it.
    """

    def __init__(
        self, judge: Judge | None, redactions: Sequence[Redaction], withheld: str, *, contiguous: bool = False,
    ) -> None:
        self._contiguous = contiguous
        self._judge = judge
        self._redactions = redactions
        self._withheld = withheld
        self._choices: dict[int, _Choice] = {}
        self._head: JsonObject = {}

    async def take(self, event: Event) -> list[Event]:
        if event.body is None:
            return [event]
        choices = event.body.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise AttemptFailed("malformed", "the choices of the stream are not a list of objects", retryable=False)
        self._head = {name: value for name, value in event.body.items()
                      if name not in ("choices", "usage") and (name in _HEAD or not self._redactions)}
        if self._judge is not None and any(misplaced(*each) for each in ((self._head, ""), *((choice, "delta") for choice in choices))):
            raise AttemptFailed("malformed", "the stream holds what may be a tool call in a place where none belongs", retryable=False)
        passed = [each for choice in choices for each in await self._passed(choice)]
        if not passed and choices and event.usage is None:
            return []
        bodies: list[dict[str, Any]] = [{**self._head, "choices": [choice]} for choice in passed] or [{**self._head, "choices": []}]
        if "usage" in event.body:
            bodies[-1]["usage"] = event.body["usage"]
        finish = next((choice["finish_reason"] for choice in passed if choice.get("finish_reason")), event.finish_reason)
        return [*(Event(body) for body in bodies[:-1]), replace(event, body=bodies[-1], finish_reason=finish)]

    async def end(self) -> list[Event]:
        left = [each for index, state in self._choices.items() for each in await self._rest(index, state)]
        return [Event({**self._head, "choices": [choice]}) for choice in left]

    async def _passed(self, choice: JsonObject) -> list[dict[str, Any]]:
        """What of one choice of a chunk may go out, as choices of chunks of their own."""
        _check_choice(choice)
        index = choice.get("index") or 0
        state = self._state(index)
        delta = dict(choice["delta"]) if isinstance(choice.get("delta"), dict) else {}
        took = self._hold(state, delta)
        texts = self._texts(state, {**({"text": choice["text"]} if "text" in choice else {}), **delta})
        out = {name: value for name, value in choice.items() if name in _CHOICE or not self._redactions}
        out["index"] = index
        if "logprobs" in out and (self._redactions or took or state.calls):
            out["logprobs"] = None  # it spells out, token by token, what is taken out or held
        if "text" in out and "text" in texts:
            out["text"] = texts.pop("text")
        delta.update(texts)
        if "delta" in choice:
            out["delta"] = delta
        state.said = state.said or bool(delta.get("content"))
        if not choice.get("finish_reason"):  # some servers write an empty one into every chunk
            return [out] if delta or "text" in out or not took else []
        state.ended = True
        if not state.calls and not state.texts:
            return [out]
        return await self._finished(index, state, out)

    async def _finished(self, index: int, state: _Choice, last: dict[str, Any]) -> list[dict[str, Any]]:
        """The last chunk of a choice, taken apart: what it says, then what was held, then why the choice ended."""
        reason = last["finish_reason"]
        called = bool(state.calls)
        rest = await self._rest(index, state)
        if called and reason in CALLS and not any(_holds_call(each) for each in rest):
            reason = "stop"  # nothing is left to be called
        end = {name: value for name, value in last.items() if name not in ("delta", "text", "logprobs")}
        says = [{**last, "finish_reason": None}] if last.get("delta") or last.get("text") else []
        return [*says, *rest, {**end, **({"delta": {}} if "delta" in last else {"text": ""}), "finish_reason": reason}]

    def _state(self, index: int) -> _Choice:
        if index not in self._choices and len(self._choices) >= MOST_CHOICES:
            raise AttemptFailed("malformed", f"the stream has more than {MOST_CHOICES} choices", retryable=False)
        return self._choices.setdefault(index, _Choice())

    def _hold(self, state: _Choice, delta: dict[str, Any]) -> bool:
        """Take the pieces of tool calls out of a delta and put them to what is there."""
        if self._judge is None:
            return False
        entries, legacy = delta.pop("tool_calls", None), delta.pop(LEGACY, None)
        pieces = [] if entries is None else entries
        if not isinstance(pieces, list) or not all(isinstance(entry, dict) for entry in pieces) or not isinstance(legacy, dict | None):
            raise AttemptFailed("malformed", "a tool call of the stream is not an object", retryable=False)
        for entry in pieces:
            key = entry.get("index", 0)
            if type(key) is not int:
                raise AttemptFailed("malformed", "a tool call of the stream has no number", retryable=False)
            _merge(self._call(state, key), {name: item for name, item in entry.items() if name != "index"})
        if legacy is not None:
            _merge(self._call(state, LEGACY), legacy)
        return bool(pieces) or legacy is not None

    def _call(self, state: _Choice, key: int | str) -> dict[str, Any]:
        if key in state.judged:  # a reader would put it to the one that it has, and nobody has judged the two together
            raise AttemptFailed("malformed", "a tool call of the stream goes on after the end of its choice", retryable=False)
        if key not in state.calls and len(state.calls) + len(state.judged) >= MOST_CALLS:
            raise AttemptFailed("malformed", f"a choice calls more than {MOST_CALLS} tools", retryable=False)
        return state.calls.setdefault(key, {})

    def _texts(self, state: _Choice, fields: dict[str, Json]) -> dict[str, str]:
        """The texts among these fields as far as they may go out. What may hold text in no way that is known is emptied."""
        if not self._redactions:
            return {}
        out = {}
        for name, value in fields.items():
            if name in _NO_TEXT or value is None:
                continue
            text = ""
            if isinstance(value, str) and name in TEXT_FIELDS:
                if value and state.ended:  # a reader would put it to what has gone out, and nobody has searched the two together
                    raise AttemptFailed("malformed", "a choice of the stream goes on after its end", retryable=False)
                if name not in state.texts:
                    state.texts[name] = StreamRedactor(self._redactions)
                text = self._searched(state.texts[name].feed, value)
            out[name] = text
        return out

    def _searched(self, search: Callable[..., str], *text: str) -> str:
        try:
            return search(*text)
        except DetectionError as error:
            raise unsearched(self._redactions) from error

    async def _rest(self, index: int, state: _Choice) -> list[dict[str, Any]]:
        """What a choice still holds: the ends of its texts, then its tool calls as they were judged."""
        out = []
        for name, redactor in state.texts.items():
            if tail := self._searched(redactor.end):
                state.said = state.said or name == "content"
                out.append(_chunk(index, {name: tail}) if name != "text" else {"index": index, "text": tail, "finish_reason": None})
        state.texts.clear()
        held = sorted(state.calls.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        state.judged.update(state.calls)
        state.calls.clear()
        if self._judge is not None and held:
            calls = [proposed(entry, LEGACY if key == LEGACY else "") for key, entry in held]
            for (key, entry), call, ruling in zip(held, calls, await self._judge(calls), strict=True):
                out += self._judged(index, state, (key, entry, call), ruling)
        return out

    def _judged(
        self, index: int, state: _Choice, held: tuple[int | str, dict[str, Any], Proposed], ruling: Ruling,
    ) -> list[dict[str, Any]]:
        key, entry, call = held
        if ruling.arguments is not None:
            whole = rewritten(entry, call, ruling.arguments)
            place = state.released if self._contiguous else key
            state.released += 1
            return [_chunk(index, {LEGACY: whole} if key == LEGACY else {"tool_calls": [{"index": place, **whole}]})]
        text = self._searched(partial(redact_text, redactions=self._redactions), ruling.text)
        said = refusal(text, self._withheld, after=state.said)
        state.said = True
        return [_chunk(index, said)] if said else []


class WholeGate:
    """Holds a whole answer until its end, because a rule needs all of it; what then goes out was judged as a plain answer is."""

    def __init__(self, judge: Callable[[Reply], Awaitable[Reply]]) -> None:
        self._judge = judge
        self._answer = Assembler()
        self._usage: Usage | None = None
        self._reasons: list[str] = []

    async def take(self, event: Event) -> list[Event]:
        self._usage = event.usage or self._usage
        if event.finish_reason is not None and len(self._reasons) < MOST_CHOICES:
            self._reasons.append(event.finish_reason)
        if event.body is not None:
            self._answer.add(event.body)
        return []

    async def end(self) -> list[Event]:
        whole = self._answer.body()
        if whole.get("lockgate_truncated") or len(whole["choices"]) > MOST_CHOICES:
            raise AttemptFailed("too_large", "the answer is too long to be held and judged as a whole", retryable=False)
        reply = await self._judge(Reply(whole, self._usage, tuple(self._reasons)))
        return as_events(replace(reply, usage=self._usage))


class Listening:
    """Hears a whole answer while another gate lets it pass, for rules that only say something about it."""

    def __init__(self, inner: Gate, heard: Callable[[Reply], Awaitable[None]]) -> None:
        self._inner = inner
        self._heard = heard
        self._answer = Assembler()
        self._usage: Usage | None = None

    async def take(self, event: Event) -> list[Event]:
        self._usage = event.usage or self._usage
        if event.body is not None:
            self._answer.add(event.body)
        return await self._inner.take(event)

    async def end(self) -> list[Event]:
        rest = await self._inner.end()
        body = self._answer.body()
        reasons = [choice.get("finish_reason") for choice in body["choices"]]
        await self._heard(Reply(body, self._usage, tuple(reason for reason in reasons if isinstance(reason, str))))
        return rest


def as_events(reply: Reply) -> list[Event]:
    """A plain answer as the events of a stream: each choice in one, then what was used."""
    head = {name: value for name, value in reply.body.items() if name not in ("choices", "usage")}
    if head.get("object") == "chat.completion":
        head["object"] = "chat.completion.chunk"
    events = [Event({**head, "choices": [_as_delta(choice)]}, finish_reason=choice.get("finish_reason"))
              for choice in reply.body["choices"]]
    if "usage" in reply.body:
        events.append(Event({**head, "choices": [], "usage": reply.body["usage"]}, usage=reply.usage))
    return events


def _check_choice(choice: JsonObject) -> None:
    """Raise for what would pass by all that looks at a chunk: a whole message, two texts of one name, a choice that is counted oddly."""
    if "message" in choice or type(choice.get("index") or 0) is not int:
        raise AttemptFailed("malformed", "a choice of the stream is not one of a chunk", retryable=False)
    if "text" in choice and isinstance(choice.get("delta"), dict) and "text" in choice["delta"]:
        raise AttemptFailed("malformed", "a choice of the stream has two texts", retryable=False)


def unsearched(redactions: Sequence[Redaction]) -> Forbidden:
    """The end of an answer that a rule was to redact, and nobody can say that it did."""
    return Forbidden(f"A rule could not be applied to the answer, so it is withheld ({POLICY_ERROR}).", rule=redactions[0].rule)


def refusal(text: str, withheld: str, *, after: bool) -> dict[str, Json]:
    """What is put into a message in place of a tool call; `after`: it already says something."""
    if withheld == "drop":
        return {}
    return {"refusal": text} if withheld == "refusal" else {"content": f"\n\n{text}" if after else text}


def _as_delta(choice: JsonObject) -> dict[str, Any]:
    """A choice of a plain answer as the one chunk that brings all of it."""
    out = {name: value for name, value in choice.items() if name not in ("message", "logprobs")}  # those of a stream come in pieces
    message = choice.get("message")
    if isinstance(message, dict):
        calls = message.get("tool_calls")
        numbered = [{"index": n, **call} for n, call in enumerate(calls)] if isinstance(calls, list) else calls
        out["delta"] = {**message, **({"tool_calls": numbered} if calls else {})}
    return out


def _chunk(index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "finish_reason": None}


def _holds_call(choice: JsonObject) -> bool:
    return any(name in choice.get("delta", ()) for name in CALLS)


def _merge(into: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Put a piece of a tool call to what is there: texts of arguments grow, everything else is kept as it came last."""
    for name, value in piece.items():
        held = into.get(name)
        if isinstance(value, dict):
            if not isinstance(held, dict):
                into[name] = held = {}
            _merge(held, value)
        elif name in ("arguments", "input") and isinstance(value, str) and isinstance(held, str):
            into[name] = held + value
        elif value is not None:
            into[name] = value
