"""Whole answers and errors: the provider's are read, the client's are written."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gateway.wire import (
    AttemptFailed,
    BudgetExceeded,
    Call,
    CallError,
    Forbidden,
    JsonObject,
    OfApproval,
    RateLimited,
    Reply,
    UpstreamRejected,
    dumps,
    loads,
)

from .wire import ProviderWords, error_in, malformed, text_of, usage_of, words_in

# Where a whole answer keeps its parts, and what an answer's part must hold. Compatible servers differ in all else, in
# `object` too: it is only looked at to tell one of the API's own kinds from another.
_LIST_OF: Final[Mapping[str, str]] = {"chat": "choices", "completions": "choices", "embeddings": "data"}
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "chat": frozenset({"chat.completion", "text_completion"}),  # the second from older servers, for chat as well
    "completions": frozenset({"text_completion", "chat.completion"}),
    "embeddings": frozenset({"list"}),
}
_ALL_KINDS: Final = frozenset().union(*_KINDS.values(), {"chat.completion.chunk", "model"})

# In a whole answer: 20 log probabilities for each of 20,000 tokens stay below it.
_MOST_MEMBERS: Final = 2_200_000

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
# Not about the request: our key, our account, our base URL or the target's model name. Another try is the same.
_OURS: Final = frozenset({401, 402, 403, 404, 405, 407})
_NOT_IMPLEMENTED: Final = 501  # nor will it be at the next try; another target may have it
_PASSING: Final = frozenset({408, 409, 425, 429})  # 409: a lock at the provider; official clients try again, too


def decode(call: Call, body: bytes) -> Reply:
    """A whole 2xx answer. Raises `AttemptFailed`: `malformed`, or `stream_error` for an error under a 200."""
    try:
        value = loads(body, most_members=_MOST_MEMBERS)
    except ValueError as error:
        raise malformed(f"The answer cannot be read. {error}") from error
    words = error_in(value)
    if words is not None:
        raise AttemptFailed("stream_error", f"A 2xx answer that is an error: {words.message}", retryable=True)
    parts = value.get(_LIST_OF[call.operation]) if isinstance(value, dict) else None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise malformed(f"The answer has no list `{_LIST_OF[call.operation]}` of objects.")
    kind = value.get("object")
    if isinstance(kind, str) and kind in _ALL_KINDS - _KINDS[call.operation]:
        raise malformed(f"The answer is of kind {kind}.")
    if call.operation == "chat" and not all(isinstance(part.get("message"), dict) for part in parts):
        raise malformed("A choice of the answer has no message.")
    reasons = tuple(reason for part in parts if (reason := text_of(part.get("finish_reason"))))
    return Reply(value, usage_of(value.get("usage"), call.operation), reasons)


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed | UpstreamRejected:
    """What a non-2xx answer means: see `docs/adapters.md` for the table."""
    words = words_in(body) or ProviderWords(f"The provider answered {status} without a reason that can be read.")
    if 400 <= status < 500 and status not in _OURS | _PASSING:
        return UpstreamRejected(
            words.message, status=status, upstream_type=words.type, upstream_code=words.code, upstream_param=words.param
        )
    retryable = (
        (status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED))
        and headers.get("x-should-retry") != "false"
        and words.code != "insufficient_quota"  # a 429 that no waiting cures
    )
    return AttemptFailed(
        f"status:{status}", words.message, retryable=retryable, status=status, retry_after_s=_retry_after_s(headers)
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds, fractions included. The other form, an HTTP date, needs a clock, and no model provider sends it."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if _SECONDS.fullmatch(value):
            return float(value) * scale
    return None


def error_object(error: CallError, call_id: str) -> dict[str, JsonObject]:
    """An error as OpenAI's clients read it: `message`, `type`, `param`, `code`; the rest is ours.

    `code` is the gateway's stable code, but the provider's own words stay what they are; `param` is `pointer` in the
    API's manner (`messages[0].role`).
    """
    message, kind, param, code = error.message, _type_of(error.status), _param(error.pointer), error.code
    extra: dict[str, str | None] = {} if error.pointer is None else {"pointer": error.pointer}
    if isinstance(error, UpstreamRejected):
        kind, param = error.upstream_type or kind, error.upstream_param
        code = error.upstream_code or code
    elif isinstance(error, Forbidden):
        message = " ".join(filter(None, (f"Denied by rule {error.rule}: {message}", error.remedy)))
        extra["rule"] = error.rule
        if error.remedy:
            extra["remedy"] = error.remedy
    elif isinstance(error, RateLimited):
        extra["rule"] = error.rule
    elif isinstance(error, OfApproval):
        extra |= {"ticket": error.ticket, "rule": error.rule}
    elif isinstance(error, BudgetExceeded):
        if not error.should_retry:
            kind = "insufficient_quota"  # the word of this API for money that is used up
        extra |= {"account": error.account, **error.figures}
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "call_id": call_id, **extra}}


def error_body(error: CallError, call_id: str) -> bytes:
    """The bytes of `error_object`, whatever is in the error's texts: what is not Unicode becomes a question mark."""
    error_fields = error_object(error, call_id)["error"]
    clean = {name: value and value.encode(errors="replace").decode() for name, value in error_fields.items()}
    return dumps({"error": clean})


def models(routes: Iterable[str]) -> bytes:
    """The list of models. `created` is 0: a route has no age."""
    data = [{"id": route, "object": "model", "created": 0, "owned_by": "lockgate"} for route in routes]
    return dumps({"object": "list", "data": data})


def _type_of(status: int) -> str:
    """From the status alone, so that a code that is added later needs no entry here."""
    if status >= 500:
        return "server_error"
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "invalid_request_error")


def _param(pointer: str | None) -> str | None:
    if not pointer:
        return None
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts).removeprefix(".")
