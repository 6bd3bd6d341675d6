"""One line a call, one line an event: JSON for machines, `key=value` for people. Pure: bytes out, none are written.

A line cannot be forged: every control character in a value leaves as an escape, so one record is one line anywhere.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from gateway.call import Attempt, CallRecord, JsonObject, Outcome, Usage
from gateway.core.money import usd
from gateway.telemetry.clean import LONG, REPORT, Cleaner

LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

CALL_FIELDS: Final[Mapping[str, str]] = {
    "time": "When the call ended, UTC, ISO 8601 with microseconds.",
    "level": "`error` for a defect of the gateway, `warning` for a call that failed or was cut, else `info`.",
    "event": "`call`.",
    "call": "The call id, the same as in `X-Lockgate-Call`, the journal and the span.",
    "key": "The public id of the virtual key; never the key.",
    "team": "The key's team.",
    "operation": "`chat`, `completions`, `embeddings` or `tool`.",
    "route": "The model's or the tool's name as the caller gave it.",
    "target": "`provider/model` of the last attempt; null where nothing was dispatched.",
    "stream": "Whether the caller asked for a stream.",
    "outcome": "`completed`, `refused`, `failed`, `withheld`, `cut`, `cancelled` or `interrupted`.",
    "status": "The HTTP status given to the caller.",
    "code": "The error code given to the caller; empty on success.",
    "decision": "`allow`, `held` or `deny`, before anything was sent; empty where the call ended before it was judged.",
    "rule": "The id of the rule that decided.",
    "labels": "What rules said of the call and of what came back.",
    "verdicts": "What was decided on what came back, each as `phase:subject:decision:rule`, such as "
                "`tool_call:mail.send:deny:no-mail`; eight at most, the journal has all.",
    "attempts": "How many attempts were made.",
    "tries": "Where it was more than one, each as `target why end cause`, such as `one/small fallback succeeded`; eight at most, the "
             "journal has all.",
    "part_of": "The call that this one was made for by the gateway itself, as a mirror's copy, a classifier's question or a read that "
               "verifies what came of it; empty for a caller's own.",
    "ms": "Milliseconds from the call's arrival to its end.",
    "first_byte_ms": "Milliseconds from the call's arrival to the provider's first byte; null where there was none.",
    "tokens": "`input`, `output` and, where there are any, `cache_read`, `cache_write`, `reasoning`, `input_audio`, "
              "`output_audio`, which `input` and `output` count too. `estimated` is true where the numbers are ours, "
              "because the provider did not say. Null where unknown.",
    "cost_usd": "What the call cost in USD, an exact decimal string; null where it is unknown.",
    "estimated_usd": "Of `cost_usd` what is an upper bound of ours, because a provider did not say what it used; null where there is none.",
    "reserved_usd": "What was set aside for the call in USD; null where no budget bound it.",
    "account": "The account (`BUDGET/SUBJECT`) whose budget refused the call or the rest of its answer; empty where none did.",
    "session": "`X-Lockgate-Session`, else what it is derived from (`[sessions] derive`).",
    "run": "`X-Lockgate-Run`.",
    "step": "`X-Lockgate-Step`.",
    "message": "What the caller was told, without secrets; cut off after 1,000 characters.",
}

_MOST_VERDICTS: Final = 8  # of a line, which is to stay under PIPE_BUF
_MOST_TRIES: Final = 8
_SHORT_NAME: Final = 64
_EXTRA_TOKENS: Final = ("cache_read", "cache_write", "reasoning", "input_audio", "output_audio")

# What orjson leaves as it is and a terminal or a log viewer acts on: DEL, C1 controls (CSI among them), line and
# paragraph separators, bidirectional overrides.
_ACTIVE: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_PLAIN: Final = re.compile(r"[\w.:/+,@$*%-]+", re.ASCII)


def call_level(record: CallRecord) -> str:
    """How much a call's end should worry somebody."""
    if record.code == "internal_error":
        return "error"
    return "warning" if record.outcome in (Outcome.FAILED, Outcome.CUT, Outcome.INTERRUPTED) else "info"


def call_fields(record: CallRecord, level: str, clean: Cleaner) -> dict[str, Any]:
    """The fields of a call's line, in the order of `CALL_FIELDS`."""
    origin = record.origin
    first = record.first_byte_ns
    return {
        "time": log_time(record.ended_ns), "level": level, "event": "call", "call": record.id,
        "key": clean(record.principal.id), "team": clean(record.principal.team),
        "operation": record.operation, "route": clean(record.route),
        "target": str(record.attempts[-1].target) if record.attempts else None,
        "stream": record.stream, "outcome": record.outcome.value, "status": record.status, "code": record.code,
        "decision": record.decision, "rule": record.rule,
        "labels": [clean(label) for label in dict.fromkeys((*record.labels, *record.answer_labels))],
        "verdicts": [_verdict(verdict, clean) for verdict in record.verdicts[:_MOST_VERDICTS]],
        "attempts": len(record.attempts),
        "tries": [_tried(attempt) for attempt in record.attempts[:_MOST_TRIES]] if len(record.attempts) > 1 else [],
        "part_of": record.part_of,
        "ms": _ms(record.ended_ns - record.received_ns),
        "first_byte_ms": None if first is None else _ms(first - record.received_ns),
        "tokens": None if record.usage is None else _tokens(record.usage),
        "cost_usd": None if record.cost_nusd is None else usd(record.cost_nusd),
        "estimated_usd": usd(estimated_nusd) if (estimated_nusd := record.estimated_nusd) else None,
        "reserved_usd": None if record.reserved_nusd is None else usd(record.reserved_nusd),
        "account": clean(record.account),
        "session": clean.optional(origin.session), "run": clean.optional(origin.run),
        "step": clean.optional(origin.step),
        "message": clean(record.message, LONG),
    }


def event_fields(level: str, name: str, now_ns: int, fields: Mapping[str, object], clean: Cleaner) -> dict[str, Any]:
    """The fields of an event's line; a field cannot take the place of `time`, `level` or `event`."""
    head = {"time": log_time(now_ns), "level": level, "event": name}
    return head | {clean(key): _value(value, clean) for key, value in fields.items()} | head


def json_line(fields: Mapping[str, Any]) -> bytes:
    """The fields as one line of JSON. Raises `TypeError` where a number does not fit 64 bits."""
    line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    if line.isascii() and b"\x7f" not in line:
        return line
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", line.decode()).encode()


def text_line(fields: Mapping[str, Any]) -> bytes:
    """The fields as one line for people; what is empty is left out."""
    parts = [fields["time"], f"{fields['level']:<7}", fields["event"]]
    for key, value in fields.items():
        if key in ("time", "level", "event") or value is None or value is False or value in ("", []):
            continue
        parts.append(f"{_readable(key)}={_readable(value)}")
    return (" ".join(parts) + "\n").encode()


LINES: Final[Mapping[str, Callable[[Mapping[str, Any]], bytes]]] = {"json": json_line, "text": text_line}


def _verdict(verdict: JsonObject, clean: Cleaner) -> str:
    return ":".join(clean(str(verdict.get(name, "")), _SHORT_NAME) for name in ("phase", "subject", "decision", "rule"))


def _tried(attempt: Attempt) -> str:
    return " ".join(word for word in (str(attempt.target), attempt.why, attempt.end.value, attempt.cause) if word)


def log_time(ns: int) -> str:
    """A wall time as every time in the log is written: UTC, ISO 8601 with microseconds."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest // 1_000:06d}Z"  # strftime takes three times as long


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)


def _tokens(usage: Usage) -> dict[str, int | bool]:
    tokens: dict[str, int | bool] = {"input": usage.input_tokens, "output": usage.output_tokens}
    for kind in _EXTRA_TOKENS:
        if count := getattr(usage, f"{kind}_tokens"):
            tokens[kind] = count
    if usage.estimated:
        tokens["estimated"] = True
    return tokens


def _value(value: object, clean: Cleaner) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_value(item, clean) for item in value]
    return clean(str(value), REPORT)


def _readable(value: object) -> str:
    if isinstance(value, Mapping):
        value = ",".join(f"{key}:{item}" for key, item in value.items())
    elif isinstance(value, list):
        value = ",".join(str(item) for item in value)
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    if not text.isprintable():  # other alphabets are: people read them
        text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return f'"{text}"'
