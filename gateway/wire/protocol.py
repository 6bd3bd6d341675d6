"""The seam between the engine and a wire format.

A *dialect* speaks to clients: it reads a parsed body into an `Ask` and writes answers, streams and errors as its clients expect
them. An *adapter* speaks to one kind of upstream: it writes the request and reads what comes back. Between the two stands one
canonical form, the bodies of OpenAI's API: an adapter for another format translates to and from it. Both are pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.call import NO_TAGS, Call, JsonObject, Reply, Target, Usage
from gateway.errors import AttemptFailed, CallError, UpstreamRejected
from gateway.secret import Secret


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of a dialect and the operation it stands for (`chat`, `completions`, `embeddings`, `models`)."""

    method: str
    path: str
    operation: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What the engine needs to know of a request's body: the public route name, whether to stream the answer, and who asks.

    `user` is the client's own name for its user, empty where it gives none. `hints` are what it says of where the call belongs, as far as
    it says so: `metadata`, `conversation`, `previous` (the id of the answer that it goes on from), `user`.
    """

    route: str
    stream: bool
    user: str = ""
    hints: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One HTTP request to a provider. `path` is appended to the provider's base URL; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a streamed answer in canonical form. `body` is the chunk, None where the event only carries other fields.

    `usage` is set on the event that carries it; `done` on the one that ends the stream as the format promises.
    `finish_reason` is set when a choice says why it ended.
    """

    body: JsonObject | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    done: bool = False


class StreamDecoder(Protocol):
    """Incremental: give it bytes as they come, take events while there are any. Splitting the bytes anywhere changes nothing."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. `b""` means that the upstream closed the stream."""
        ...

    def next_event(self) -> Event | None:
        """The next event, or None while more bytes are needed.

        Raises:
            AttemptFailed: `malformed` for what is not the format, `stream_error` for an error event, `cut` for a stream that
                was closed before its end.
        """
        ...


class Adapter(Protocol):
    """Speaks one upstream wire format. Stateless."""

    name: str
    operations: frozenset[str]

    def encode(self, call: Call, target: Target, api_key: Secret | None) -> UpstreamRequest:
        """The request to send: the call's body with the target's model name. Usage of a stream is always asked for."""
        ...

    def decode(self, call: Call, body: bytes) -> Reply:
        """A whole 2xx answer. Raises `AttemptFailed("malformed")` for anything that is not one."""
        ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed | UpstreamRejected:
        """What a non-2xx answer means: the provider's fault (retry, fall back) or the request's (pass on)."""
        ...

    def decoder(self, call: Call) -> StreamDecoder:
        """A fresh decoder for one streamed answer."""
        ...

    def health(self, path: str, api_key: Secret | None) -> UpstreamRequest:
        """The request that asks whether the upstream is well: a GET of `path`, with the credential where this upstream reads it."""
        ...


class StreamEncoder(Protocol):
    """Writes one streamed answer in the client's dialect."""

    def event(self, event: Event) -> bytes:
        """The bytes for one event, `b""` where the client did not ask for what it carries (usage, for example)."""
        ...

    def end(self) -> bytes:
        """The normal end of a stream."""
        ...

    def error(self, error: CallError, call_id: str) -> bytes:
        """The dialect's own error event. A stream that broke ends with this and never with `end()`."""
        ...

    def comment(self, text: str) -> bytes:
        """Bytes that every client of this dialect skips."""
        ...


class Dialect(Protocol):
    """Speaks to clients of one API. Stateless."""

    name: str
    endpoints: tuple[Endpoint, ...]
    stream_content_type: str

    def read(self, operation: str, body: JsonObject) -> Ask:
        """Check what the gateway itself acts on; every other field passes.

        Raises:
            InvalidRequest: with the JSON pointer of the first wrong thing.
        """
        ...

    def answer(self, call: Call, reply: Reply) -> bytes:
        """The body of a plain answer."""
        ...

    def error(self, error: CallError, call_id: str) -> bytes:
        """The body of an error, as this API's SDKs read it."""
        ...

    def models(self, routes: Iterable[str]) -> bytes:
        """The list of models that a caller may use."""
        ...

    def encoder(self, call: Call) -> StreamEncoder:
        """A fresh encoder for one streamed answer."""
        ...
