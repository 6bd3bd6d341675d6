"""Streamed answers: the provider's chunks in, the client's chunks out."""

from typing import Any, Final

from gateway.wire import AttemptFailed, Call, CallError, Event, ServerSentEvent, SseDecoder, Usage, dumps, loads

from .request import wants_usage
from .response import error_body
from .wire import error_in, malformed, text_of, usage_of

_DONE: Final = b"[DONE]"
_NOTHING: Final = (b"", b"null")  # what servers send to keep a connection alive, or before the first of several prompts
_MOST_CHOICES: Final = 4096  # choices of one answer that are told apart
_FIELDS: Final = (b"data", b"event", b"id", b"retry")


class OpenAIStreamDecoder:
    """Chunks of one answer. Its end is `[DONE]`.

    Some compatible servers leave `[DONE]` out. A stream that closes cleanly between two events, after every choice that
    was asked for has given its `finish_reason`, has lost nothing of its answer and counts as ended; any other was cut.

    Where several choices were asked for, some servers report the usage of each and none of the whole. Such reports look
    like those that grow, so usage is given with the end, and only if there was exactly one report of it.
    """

    __slots__ = ("_closed", "_done", "_finished", "_operation", "_seen", "_sse", "_started", "_usages", "_wanted")

    def __init__(self, call: Call) -> None:
        self._sse = SseDecoder()
        self._operation = call.operation
        self._wanted = _choices_asked_for(call)
        self._started = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._usages: list[Usage] = []  # of several choices: the first two reports
        self._closed = False
        self._done = False

    def __repr__(self) -> str:
        finished = f"{len(self._finished)}/{self._wanted}"
        return f"OpenAIStreamDecoder(finished={finished}, closed={self._closed}, done={self._done})"

    def feed(self, data: bytes) -> None:
        if data:
            self._sse.feed(data)
        else:
            self._closed = True

    def next_event(self) -> Event | None:
        while not self._done:
            event = self._sse.next_event()
            if event is None:
                return self._end() if self._closed else None
            if event.data.startswith(_DONE):
                return self._finish()
            if event.data not in _NOTHING or event.event == "error":
                return self._read(event)
        return None  # whatever follows the end is not part of the answer

    def _read(self, event: ServerSentEvent) -> Event:
        try:
            chunk = loads(event.data)
        except ValueError as error:
            raise malformed(f"A chunk of the stream cannot be read. {error}") from error
        words = error_in(chunk)
        if words is not None or event.event == "error":
            message = words.message if words else "The provider reports an error without a message."
            raise AttemptFailed("stream_error", f"An error in the stream: {message}", retryable=True)
        choices, usage = (chunk.get("choices"), chunk.get("usage")) if isinstance(chunk, dict) else (None, None)
        if choices is None and isinstance(usage, dict):
            choices = []
        if not isinstance(choices, list):
            raise malformed("A chunk of the stream has no list of choices.")
        reason = self._note(choices)
        self._started = True
        return Event(chunk, self._certain(usage_of(usage, self._operation)), reason)

    def _certain(self, usage: Usage | None) -> Usage | None:
        if self._wanted == 1:
            return usage
        if usage is not None and len(self._usages) < 2:
            self._usages.append(usage)
        return None

    def _note(self, choices: list[Any]) -> str | None:
        """Remember which choices were seen and which have ended; why the last of them ended."""
        reason = None
        for choice in choices:
            if not isinstance(choice, dict):
                raise malformed("A choice in a chunk of the stream is not an object.")
            index = choice.get("index")
            place = index if type(index) is int and 0 <= index < _MOST_CHOICES else 0
            self._seen.add(place)
            if ended := text_of(choice.get("finish_reason")):
                self._finished.add(place)
                reason = ended
        return reason

    def _end(self) -> Event:
        rest = self._sse.rest()
        if rest.startswith(b"data:") and rest[5:].strip() == _DONE:
            return self._finish()  # closed without the last blank line: nothing is missing
        if not self._started and not any(rest[: len(field)] == field[: len(rest)] for field in _FIELDS):
            raise malformed("The answer is not an event stream.")
        if rest or len(self._finished) < self._wanted or self._seen - self._finished:
            raise AttemptFailed("cut", "The provider closed the stream before its end.", retryable=True)
        return self._finish()

    def _finish(self) -> Event:
        if not self._started:
            raise malformed("The stream ended without a single chunk.")
        self._done = True
        return Event(usage=self._usages[0] if len(self._usages) == 1 else None, done=True)


class OpenAIStreamEncoder:
    """Chunks as the client asked for them: without usage, unless it asked for that."""

    __slots__ = ("_with_usage",)

    def __init__(self, call: Call) -> None:
        self._with_usage = wants_usage(call)

    def event(self, event: Event) -> bytes:
        chunk = event.body
        if chunk is None:
            return b""
        if not self._with_usage and "usage" in chunk:
            if chunk["usage"] is not None and not chunk.get("choices"):
                return b""
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
        return b"data: " + dumps(chunk) + b"\n\n"

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self, error: CallError, call_id: str) -> bytes:
        return b"data: " + error_body(error, call_id) + b"\n\n"

    def comment(self, text: str) -> bytes:
        return b": " + " ".join(text.splitlines()).encode(errors="replace") + b"\n\n"


def _choices_asked_for(call: Call) -> int:
    """How many choices a complete answer has, as far as the request says; at least 1."""
    n, prompt = call.body.get("n"), call.body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not all(type(part) is int for part in prompt) else 1
    return (n if type(n) is int and n > 0 else 1) * prompts
