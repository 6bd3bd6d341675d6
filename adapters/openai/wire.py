"""The fields of OpenAI's API that the gateway itself acts on, and nothing about the rest, which passes untouched."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gateway.wire import AttemptFailed, Usage, dumps, loads

PATHS: Final[Mapping[str, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
}

_MOST_TOKENS: Final = 1_000_000_000  # of one attempt; above it a number is nonsense, not a bill
_LONGEST_ERROR: Final = 64 * 1024  # bytes; a longer error body is a page, not an error


def text_of(value: Any) -> str | None:
    """A non-empty string, or None."""
    return value if isinstance(value, str) and value else None


def malformed(message: str) -> AttemptFailed:
    """What is raised for an answer that is not the format: another try may be answered properly."""
    return AttemptFailed("malformed", message, retryable=True)


def usage_of(value: Any, operation: str) -> Usage | None:
    """What a `usage` object says, or None where it says nothing that can be trusted.

    A count that is negative, not an integer or beyond reason is not believed. If it is one of the two totals, the usage
    is unknown. A part (cached, audio, reasoning) that is not believed, or larger than the total it is part of, counts
    as 0, so that a wrong discount is never given. What a `total_tokens` has beyond both totals is output.
    """
    if not isinstance(value, dict):
        return None
    prompt = _count(value.get("prompt_tokens"), _MOST_TOKENS)
    completion = 0 if operation == "embeddings" else _count(value.get("completion_tokens"), _MOST_TOKENS)
    if prompt is None or completion is None:
        return None
    if operation != "embeddings":  # some leave reasoning out of the completion, and count it in the whole alone
        completion = max(completion, (_count(value.get("total_tokens"), _MOST_TOKENS) or 0) - prompt)
    audio_in = _part(value, "prompt_tokens_details", "audio_tokens", prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=_part(value, "prompt_tokens_details", "cached_tokens", prompt - audio_in),
        reasoning_tokens=_part(value, "completion_tokens_details", "reasoning_tokens", completion),
        input_audio_tokens=audio_in,
        output_audio_tokens=_part(value, "completion_tokens_details", "audio_tokens", completion),
    )


def _part(usage: dict[str, Any], details: str, name: str, whole: int) -> int:
    parts = usage.get(details)
    return (_count(parts.get(name), whole) or 0) if isinstance(parts, dict) else 0


def _count(value: Any, most: int) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None  # `type`: True is an int, and no count


class ProviderWords(NamedTuple):
    """What a provider says went wrong, whole: what is cut here, a secret for one, the engine would no longer recognise."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None


def words_in(body: bytes) -> ProviderWords | None:
    """The provider's error in a body of any kind; None where it holds nothing that a person should read."""
    if len(body) > _LONGEST_ERROR:
        return None
    try:
        value = loads(body)
    except ValueError:
        plain = body.decode(errors="replace").strip()
        return None if not plain or plain.startswith("<") else ProviderWords(plain)
    if isinstance(value, list) and value:  # one large provider wraps its error in a list
        value = value[0]
    return error_in(value) or _flat_error(value)


def error_in(value: Any) -> ProviderWords | None:
    """The error of `{"error": …}`, an object or a bare string, or of `{"object": "error", …}`, an older habit."""
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if error:
        return _words(error if isinstance(error, dict) else {"message": error})
    return _words(value) if value.get("object") == "error" else None


def _flat_error(value: Any) -> ProviderWords | None:
    """`{"message": …}` and `{"detail": …}`, as compatible servers answer for what their framework refused."""
    if not isinstance(value, dict):
        return None
    words = value.get("message") or value.get("detail")
    if isinstance(words, list):
        words = dumps(words).decode()
    return _words({**value, "message": words}) if text_of(words) else None


def _words(error: dict[str, Any]) -> ProviderWords:
    message = text_of(error.get("message")) or "The provider reports an error without a message."
    labels = (error.get(name) for name in ("type", "code", "param"))
    return ProviderWords(message, *(str(label) if isinstance(label, str | int) else None for label in labels))
