"""What lies between a dialect and the wire: the seam a dialect implements, and the honest answer it gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it came: the path as it stands in the request line, the query decoded, headers without secrets, JSON or None."""

    method: str = ""
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Manner:
    """How the model is told to answer, other than it would: what it says, why it stops, what it tells of its tokens."""

    content: str | None = None
    finish_reason: str | None = None
    logprob: float | None = None
    huge: int = 0
    no_usage: bool = False
    ignore_limits: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as a dialect sees it. `number` counts requests and makes ids unique; `created_s` is Unix time."""

    operation: str
    body: JsonObject
    number: int
    created_s: int
    models: tuple[str, ...]
    item: str = ""
    manner: Manner = Manner()
    sent: Sent = Sent()


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole event of a stream, and how many tokens were made for it."""

    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Billed:
    """The tokens that a provider charges for, told or not: those of the prompt and those it has made."""

    prompt_tokens: int
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an honest provider sends: a body, or a stream of frames made as they are sent.

    The frame that carries the usage and the one that ends the stream stand apart from `frames`, because faults leave them
    out. `usage` is what the body or `usage_frame` tells, `billed` what all of the answer is charged as.
    """

    status: int = 200
    body: bytes = b""
    frames: Iterable[Frame] | None = None
    usage_frame: bytes = b""
    done_frame: bytes = b""
    usage: JsonObject | None = None
    billed: Billed | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A dialect refuses a request, as a provider would; `answer` is what the client gets."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Dialect(Protocol):
    """One provider's API. Stateless and pure: the same ask gives the same answer."""

    endpoints: Mapping[tuple[str, str], str]  # (method, path as aiohttp writes it): operation

    def answer(self, ask: Ask) -> Answer:
        """The honest answer. Raises `Refused` for a request that the provider would refuse."""
        ...

    def error(self, status: int, message: str | None = None, *, code: str | None = None) -> Answer:
        """An error answer in the API's own shape; without a message what the provider says at that status."""
        ...

    def error_frame(self) -> bytes:
        """An error inside a stream that began with 200."""
        ...
