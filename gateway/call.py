"""The nouns of one call: frozen and independent of any wire format. Everything else passes these around."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, TypeAlias

Json: TypeAlias = Any  # a JSON value: None, bool, int, float, str, list or dict with string keys
JsonObject: TypeAlias = Mapping[str, Any]

NO_TAGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. `id` is the virtual key's public id, or `anonymous` where authentication is off.

    `routes` holds globs of the route names it may use. `on_behalf_of` is whom it acts for, as its token says; `owner` the person whose key
    it is, who may not approve what it asks for.
    """

    id: str
    name: str = ""
    team: str = ""
    org: str = ""
    roles: tuple[str, ...] = ()
    routes: tuple[str, ...] = ("*",)
    on_behalf_of: str = ""
    owner: str = ""

    def may_use(self, route: str) -> bool:
        """Whether a route of this name is there for it."""
        return any(glob == "*" or fnmatchcase(route, glob) for glob in self.routes)


@dataclass(frozen=True, slots=True)
class Origin:
    """What the caller says about where the call belongs (`X-Lockgate-Session`, `-Run`, `-Step`, `-Tags`, `-User`, `traceparent`)."""

    session: str | None = None
    run: str | None = None
    step: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)
    traceparent: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One governed operation, as it was parsed once from the wire. `body` is what is judged and what is sent.

    `operation` is `chat`, `completions` or `embeddings`; `route` is the route's own name, `asked` the one that the caller gave (`model`),
    which may be an alias of it; `size` is the body's length in bytes as received; `received_ns` is wall time. `user` is the caller's own
    name for who asks, from `X-Lockgate-User` or the body; empty where neither says. `key` is the idempotency key that its action has
    beyond this one call; empty where it is the call's own id.
    """

    id: str
    principal: Principal
    dialect: str
    operation: str
    route: str
    body: JsonObject
    stream: bool
    size: int
    received_ns: int
    origin: Origin = field(default_factory=Origin)
    user: str = ""
    asked: str = ""
    key: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its route that rules are looked up by: an alias must not get round what is said of the route, nor the other way."""
        return (self.route,) if self.asked in ("", self.route) else (self.route, self.asked)


@dataclass(frozen=True, slots=True)
class Target:
    """A provider's name plus the model's name there."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt. `input_tokens` counts cached and audio tokens too, `output_tokens` reasoning and audio tokens.

    `estimated` is true where the provider did not say and the numbers are ours. `images` are the pictures that the request held.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    estimated: bool = False
    images: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A provider's whole answer in the canonical form: `body` is what is judged and what is sent on."""

    body: JsonObject
    usage: Usage | None
    finish_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call to be judged, whoever makes it. `args` are its parsed arguments.

    `id` is the model's id of it, or the call's own where a client calls an HTTP tool; `via` is `model` or `http`. `server` is empty
    for a tool that the application runs, else where the gateway calls it (`http`). `annotations` are its declaration's.
    """

    id: str
    name: str
    args: JsonObject
    via: str = "model"
    server: str = ""
    annotations: JsonObject = field(default_factory=lambda: NO_TAGS)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back. `content` is its value; `text` the same as text; `released`: the gateway had let the call through."""

    content: Json
    text: str
    released: bool = True


@dataclass(frozen=True, slots=True)
class Said:
    """What a model's answer says: its text, the names of the tools it calls, why it ended, and what it used."""

    text: str
    tool_calls: tuple[str, ...] = ()
    finish_reason: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call as the journal keeps it, for what rules ask of a session. `released`: the application got it, or it was made.

    `call_id` is the governed call that it belongs to.
    """

    call_id: str
    id: str
    name: str
    via: str
    args: JsonObject
    released: bool
    at_ns: int


class AttemptEnd(StrEnum):
    """How one try of one target ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"  # the provider refused the request itself: not its fault
    CUT = "cut"  # the stream broke after its first event
    CANCELLED = "cancelled"  # the client went away, or the gateway is stopping


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one target, after it ended. `cause` is `AttemptFailed.cause`, empty on success; times are wall nanoseconds.

    `waited_s` is the backoff before it. `cost_nusd` is None where the price is unknown; `prices` says where the price comes from. `why` is
    empty for the first one, else `retry`, `fallback`, `hedge`, `cascade` (the answer before was not good enough), `continuation` (of a
    stream that broke off). `breaker` is the state that the target's breaker was in, `last_resort` where it was tried although it did not
    admit calls; `retries_left` what the route's retry budget held once this attempt was taken from it, None for one that it does not count.
    """

    n: int
    target: Target
    started_ns: int
    ended_ns: int
    end: AttemptEnd
    cause: str = ""
    message: str = ""
    status: int | None = None
    first_byte_ns: int | None = None
    waited_s: float = 0.0
    usage: Usage | None = None
    cost_nusd: int | None = None
    prices: str = ""
    why: str = ""
    breaker: str = "closed"
    retries_left: float | None = None
    largest_gap_s: float | None = None  # between two pieces of its stream


class Outcome(StrEnum):
    """How a call ended."""

    COMPLETED = "completed"  # the whole answer was given to the client
    REFUSED = "refused"  # never dispatched: wrong, not entitled, denied, shed
    FAILED = "failed"  # dispatched, and no target answered
    WITHHELD = "withheld"  # answered, and a rule kept the answer from the client
    CUT = "cut"  # the answer broke in the middle, and the client was told
    CANCELLED = "cancelled"  # the client went away before the end
    INTERRUPTED = "interrupted"  # the gateway died in the middle; written at recovery


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Everything one call leaves behind. The journal row, the log line, metrics and spans are all made from this.

    `code` is the error code given to the client, empty on success. `decision` is `allow` or `deny`, or empty where the call
    ended before it was judged; `rule` the id of the rule that decided; `labels` what `log` rules said; `bundle` the digest of
    the compiled rules. `reasons` is JSON-ready. `response` is the answer as sent (a stream: what was relayed), `None` where there
    was none. `cost_nusd` is None where it is unknown, never 0 for that. `decision`, `rule`, `labels` and `reasons` are what was decided
    before anything left; `verdicts` and `answer_labels` are of what came back (JSON-ready, one for each decision that did more than
    let it pass); `tool_uses` are the tool calls that the call made or proposed, `tool_results` the results that it brought, by the id of
    their tool call. `account` is the one whose budget refused the call or ended its answer, empty where none did; `reserved_nusd` what was
    set aside for the call, None where no budget bound it. `plan` says which targets were to be tried and why, JSON-ready; None where it
    says no more than the route. `part_of` is the call that this one was made for by the gateway itself: a mirror's, a classifier's, one
    that verifies what came of it.
    `unlabels` and `answer_unlabels` are the labels that rules take off the session; `answer_id` is the answer's own id, where its session
    is to be found by it again. `approval` is the id of the approval that the call waits for, or was made under; `approval_end` what happens
    to that when the call ends (an event of `core/approval.py`), empty for nothing.
    """

    id: str
    principal: Principal
    dialect: str
    operation: str
    route: str
    stream: bool
    origin: Origin
    received_ns: int
    ended_ns: int
    outcome: Outcome
    status: int
    code: str = ""
    message: str = ""
    decision: str = ""
    rule: str = ""
    labels: tuple[str, ...] = ()
    bundle: str = ""
    reasons: tuple[JsonObject, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = None
    cost_nusd: int | None = None
    first_byte_ns: int | None = None
    finish_reasons: tuple[str, ...] = ()
    verdicts: tuple[JsonObject, ...] = ()
    answer_labels: tuple[str, ...] = ()
    tool_uses: tuple[ToolUse, ...] = ()
    tool_results: tuple[tuple[str, str], ...] = ()
    account: str = ""
    reserved_nusd: int | None = None
    plan: JsonObject | None = None
    part_of: str = ""
    unlabels: tuple[str, ...] = ()
    answer_unlabels: tuple[str, ...] = ()
    answer_id: str = ""
    approval: str = ""
    approval_end: str = ""

    @property
    def estimated_nusd(self) -> int:
        """What of the cost is an upper bound of ours, because a provider did not say what it used."""
        return sum(attempt.cost_nusd or 0 for attempt in self.attempts if attempt.usage is not None and attempt.usage.estimated)
