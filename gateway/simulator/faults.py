"""What a provider can do wrong, as data: the fault family and its two spellings, `key=value;key=value` and a table.

Nothing here sends anything: `script.py` turns a fault and an honest answer into steps.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import orjson

Garbage = Literal["json", "bytes", "shape", "html"]
_GARBAGE: Final[tuple[Garbage, ...]] = ("json", "bytes", "shape", "html")
_MAX_HUGE = 256 * 1024 * 1024
_MAX_DELAY_S = 3600.0
_MAX_OFF = 1024 * 1024 * 1024
_MAX_TEXT = 64 * 1024
_LEAST_LOGPROB = -9999.0  # what OpenAI says of a token that is very unlikely

# What an answer can end in. One answer ends once, so a fault names at most one of them.
_ENDINGS: Final = ("status", "reset", "hang", "empty", "garbage", "length_off", "cut_after_chunks", "end_after_chunks",
                   "stall_after_chunks", "error_event_after_chunks")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave. At most one field decides how the answer ends; delays and the rest combine with it.

    The one pair is `status` with `garbage`: an error whose body is no error object. Counts of chunks are server-sent events of a
    stream, and pieces of 64 bytes of a plain answer. Durations are seconds. `times` is how often it happens before the provider
    behaves again; None is always.

    Raises:
        ValueError: two endings in one fault, or a part that needs another one.
    """

    status: int | None = None
    retry_after_s: float | None = None
    reset: bool = False
    hang: bool = False
    empty: bool = False
    garbage: Garbage | None = None
    garbage_after_chunks: int = 0
    length_off: int | None = None
    cut_after_chunks: int | None = None
    end_after_chunks: int | None = None
    stall_after_chunks: int | None = None
    error_event_after_chunks: int | None = None
    delay_headers_s: float | None = None
    delay_first_token_s: float | None = None
    delay_between_tokens_s: float | None = None
    chunk_bytes: int = 0
    huge: int = 0
    content_type: str | None = None
    content: str | None = None
    finish_reason: str | None = None
    logprob: float | None = None
    no_usage: bool = False
    ignore_limits: bool = False
    drop_done: bool = False
    times: int | None = None

    def __post_init__(self) -> None:
        endings = [name for name in _ENDINGS if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(endings) > 1 and endings != ["status", "garbage"]:
            raise ValueError(f"{' and '.join(endings)} cannot be combined: an answer ends in one way")
        if self.retry_after_s is not None and self.status is None:
            raise ValueError("retry_after needs status: it is a header of an error answer")
        if self.garbage_after_chunks and (self.garbage is None or self.status is not None):
            raise ValueError("garbage_after_chunks needs garbage, which says of what kind, and an answer without status")

    def paced(self, pace: "Fault") -> "Fault":
        """This fault with the delays of `pace` wherever it names none of its own."""
        delays = {name: getattr(pace, name) for name in _DELAYS if getattr(self, name) is None}
        return replace(self, **delays) if any(delay is not None for delay in delays.values()) else self

    def to_json(self) -> dict[str, Any]:
        """What this fault sets, for the log: its fields that are not at their default."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {part.name: values[part.name] for part in fields(self) if values[part.name] != part.default}


NO_FAULT: Final = Fault()
_DELAYS: Final = ("delay_headers_s", "delay_first_token_s", "delay_between_tokens_s")
_UNITS_S: Final[Mapping[str, float]] = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_BYTES: Final[Mapping[str, int]] = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


def _whole(value: Any, most: int = 2**31) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"expected a whole number from 0 to {most}")
    return value


def _positive(value: Any) -> int:
    number = _whole(value)
    if number == 0:
        raise ValueError("expected a whole number of at least 1")
    return number


def _status(value: Any) -> int:
    status = _whole(value)
    if not 200 <= status <= 599:
        raise ValueError("expected an HTTP status from 200 to 599")
    return status


def _flag(value: Any) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in known:
        raise ValueError("expected true or false")
    return known[value]


def _unit(value: Any, expected: str) -> tuple[float, str]:
    parts = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|KiB|MiB)?", str(value))
    if isinstance(value, bool) or parts is None:
        raise ValueError(expected)
    return float(parts[1]), parts[2] or ""


def duration_s(value: Any) -> float:
    """Seconds from a number of seconds or a string such as `250ms`, `30s` or `1m`; at most an hour."""
    expected = "expected a duration of at most an hour, such as 250ms, 30s or 0.5"
    number, unit = _unit(value, expected)
    if unit not in _UNITS_S or number * _UNITS_S[unit] > _MAX_DELAY_S:
        raise ValueError(expected)
    return number * _UNITS_S[unit]


def _size(value: Any) -> int:
    expected = "expected a size of 1 byte to 256MiB, such as 5000, 64KiB or 10MiB"
    number, unit = _unit(value, expected)
    if unit not in _UNITS_BYTES or not 1 <= number * _UNITS_BYTES[unit] <= _MAX_HUGE:
        raise ValueError(expected)
    return int(number * _UNITS_BYTES[unit])


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"expected text of at most {_MAX_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected text in UTF-8") from error
    return value


def _content_type(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~](?:[ -~]{0,98}[!-~])?", value):
        raise ValueError("expected a content type, such as text/html")
    return value


def _signed(value: Any) -> float:
    """A number as it stands in a table, or in text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,12}(?:\.\d{1,12})?", value, re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")  # noqa: TRY004 - one kind of error for everything a specification can say wrong
    return float(value)


def _off(value: Any) -> int:
    number = _signed(value)
    if not number.is_integer() or not 0 < abs(number) <= _MAX_OFF:
        raise ValueError(f"expected a whole number of bytes other than 0, up to {_MAX_OFF} either way")
    return int(number)


def _logprob(value: Any) -> float:
    number = _signed(value)
    if not _LEAST_LOGPROB <= number <= 0:
        raise ValueError(f"expected the logarithm of a probability, from {_LEAST_LOGPROB:g} to 0")
    return number


def _garbage(value: Any) -> Garbage:
    for kind in _GARBAGE:
        if value == kind or (kind == "json" and value in (True, "true")):
            return kind
    raise ValueError(f"expected one of {', '.join(_GARBAGE)}")


# The name in a specification: the field it sets, and what reads its value.
_KEYS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "status": ("status", _status),
    "retry_after": ("retry_after_s", duration_s),
    "reset": ("reset", _flag),
    "hang": ("hang", _flag),
    "empty": ("empty", _flag),
    "garbage": ("garbage", _garbage),
    "garbage_after_chunks": ("garbage_after_chunks", _whole),
    "length_off": ("length_off", _off),
    "cut_after_chunks": ("cut_after_chunks", _whole),
    "end_after_chunks": ("end_after_chunks", _whole),
    "stall_after_chunks": ("stall_after_chunks", _whole),
    "error_event_after_chunks": ("error_event_after_chunks", _whole),
    "delay_headers": ("delay_headers_s", duration_s),
    "delay_first_token": ("delay_first_token_s", duration_s),
    "delay_between_tokens": ("delay_between_tokens_s", duration_s),
    "chunk_bytes": ("chunk_bytes", _positive),
    "huge": ("huge", _size),
    "content_type": ("content_type", _content_type),
    "content": ("content", _text),
    "finish_reason": ("finish_reason", _text),
    "logprob": ("logprob", _logprob),
    "no_usage": ("no_usage", _flag),
    "ignore_limits": ("ignore_limits", _flag),
    "drop_done": ("drop_done", _flag),
    "times": ("times", _positive),
}
FAULT_KEYS: Final = frozenset(_KEYS)


def fault_from(table: Mapping[str, Any]) -> Fault:
    """A fault from a table of a scenario file or a JSON object.

    Raises:
        ValueError: an unknown key (with the nearest known one), a wrong value, or parts that exclude each other.
    """
    parts: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise ValueError(unknown_key(key, FAULT_KEYS))
        field, read = _KEYS[key]
        try:
            parts[field] = read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return Fault(**parts)


def parse_fault(text: str) -> Fault:
    """A fault from `key=value;key=value` (a key alone means true) or a JSON object. Raises as `fault_from` does."""
    if not text.lstrip().startswith("{"):
        pairs = [part.partition("=") for part in text.split(";") if part.strip()]
        return fault_from({key.strip(): value.strip() if equals else True for key, equals, value in pairs})
    try:
        table = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    return fault_from(table)


def unknown_key(key: str, known: frozenset[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown key {key!r} ({hint})"
