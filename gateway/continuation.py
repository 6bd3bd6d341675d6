"""Going on with a stream that broke off: what was said so far, the call that asks for the rest, and one answer made of both."""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.call import Call, Json, JsonObject
from gateway.core.estimate import OUTPUT_LIMITS
from gateway.dispatch import Errand
from gateway.relay import Source
from gateway.wire.protocol import Event

_HEAD: Final = ("id", "created", "model", "system_fingerprint")
_PLAIN: Final = frozenset({"role", "content"})  # of a delta: with anything else in it nobody can go on
_LONGEST: Final = 1024 * 1024  # characters that are remembered


@dataclass(slots=True)
class Heard:
    """What a provider has said of an answer that has one choice, and only text.

    What comes in several choices, as tool calls, reasoning or with log-probabilities cannot be gone on with: the rest would not fit to it.
    """

    head: JsonObject = field(default_factory=dict)
    pieces: int = 0
    _text: list[str] = field(default_factory=list)
    _size: int = 0
    _counted: int = 0  # bytes that the call's money has heard of
    _fit: bool = True

    @staticmethod
    def can(call: Call) -> bool:
        """Whether an answer to this call may be gone on with at all: one choice, of a conversation or of a prompt that is one text."""
        if call.body.get("n") not in (None, 1):
            return False
        if call.operation == "chat":
            last = call.body["messages"][-1]
            return last.get("role") != "assistant" or isinstance(last.get("content"), str)
        return call.operation == "completions" and isinstance(call.body.get("prompt"), str)

    def add(self, event: Event) -> None:
        """Hear the next event."""
        body = event.body
        if body is None or not self._fit:
            return
        self.head = self.head or {name: body[name] for name in _HEAD if name in body}
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            self._hear(choice)

    def _hear(self, choice: Json) -> None:
        if not isinstance(choice, dict) or choice.get("index") or choice.get("finish_reason") or choice.get("logprobs"):
            self._fit = False  # one that has ended is not gone on with
            return
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            self._fit = False
            return
        text = choice.get("text") if "text" in choice else delta.get("content")
        if any(value for name, value in delta.items() if name not in _PLAIN) or not isinstance(text, str | None):
            self._fit = False
        elif text:
            self.pieces += 1
            self._size += len(text)
            self._text.append(text)
            self._fit = self._size <= _LONGEST

    def resumable(self, call: Call) -> bool:
        """Whether somebody can go on from here: there is something to go on with, and the client's limit leaves room for more."""
        limits = [call.body[name] for name in OUTPUT_LIMITS if type(call.body.get(name)) is int]
        return self._fit and bool(self._text) and all(self.pieces < limit for limit in limits)

    def onward(self, errand: Errand) -> Errand:
        """The same call, asking for the rest of its answer. What a target needs beside that is added where it is sent (`going_on`)."""
        call, said, spending = errand.call, "".join(self._text), errand.case.spending
        self._text = [said]
        if spending is not None:  # it is read once more, and counts beside what was sent at first
            size = len(said.encode(errors="replace"))
            spending.measured = replace(spending.measured, size=spending.measured.size + size - self._counted)
            self._counted = size
        body: dict[str, Any] = dict(call.body)
        if call.operation == "chat":
            *before, last = call.body["messages"]
            begun = last.get("role") == "assistant"  # the client's own beginning: two messages of an assistant's would be two answers
            whole = {**last, "content": last["content"] + said} if begun else {"role": "assistant", "content": said}
            body["messages"] = [*before, whole] if begun else [*before, last, whole]
        else:
            body["prompt"] = call.body["prompt"] + said
        for name in OUTPUT_LIMITS:
            if type(body.get(name)) is int:
                body[name] -= self.pieces  # each of which is a token at least
        return replace(errand, call=replace(call, body=body), going_on=True)


@dataclass(slots=True)
class Onward:
    """The rest of an answer, told as part of it: with its id, and without another beginning."""

    source: Source
    head: JsonObject

    @property
    def status(self) -> int:
        return self.source.status

    def take(self) -> Event | None:
        event = self.source.take()
        if event is None or event.body is None:
            return event
        return replace(event, body={**event.body, **self.head, **self._choices(event.body)})

    async def more(self) -> None:
        await self.source.more()

    def abort(self) -> None:
        self.source.abort()

    async def to_end(self) -> None:
        await self.source.to_end()

    def _choices(self, body: JsonObject) -> dict[str, Json]:
        choices = body.get("choices")
        if not isinstance(choices, list):
            return {}
        return {"choices": [{**each, "delta": {name: value for name, value in each["delta"].items() if name != "role"}}
                            if isinstance(each, dict) and isinstance(each.get("delta"), dict) else each for each in choices]}
