"""`CallRecord` to rows and back to JSON. Pure; both stores keep these tuples and answer with these objects.

Two conventions make an insert cheap: absent text is '' and an absent number is -1 (`NULLIF` in the statement makes it NULL), since
`sqlite3` takes about 2 µs for each None, bool or bytes that it binds and a tenth of that for text and numbers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import orjson

from gateway.call import Attempt, CallRecord, Target, Usage
from gateway.core.money import usd
from gateway.store.bodies import unpack
from gateway.store.protocol import DispatchIntent

Value: TypeAlias = int | float | str | bytearray
Values: TypeAlias = tuple[Value, ...]
Row: TypeAlias = Mapping[str, Any]

USAGE_COLUMNS: Final = (
    "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
    "input_audio_tokens", "output_audio_tokens", "estimated",
)
CALL_COLUMNS: Final = (
    "id", "received_ns", "key", "name", "team", "org", "dialect", "operation", "route", "stream",
    "session", "run", "step", "tags", "traceparent", "decision", "rule", "labels", "bundle", "reasons", "provider", "model",
)
DISPATCH_COLUMNS: Final = ("n", "provider", "model", "started_ns", "waited_s")
ATTEMPT_COLUMNS: Final = (
    "n", "provider", "model", "started_ns", "ended_ns", "end", "cause", "message", "status", "first_byte_ns", "waited_s",
    *USAGE_COLUMNS, "cost_nusd",
)
OUTCOME_COLUMNS: Final = (
    "ended_ns", "outcome", "status", "code", "message", "first_byte_ns", "finish_reasons", *USAGE_COLUMNS, "cost_nusd",
)

# The fields of a call in `calls()`; `call()` adds `reasons`, `attempts`, `request` and `response`.
JOURNAL_FIELDS: Final = (
    "id", "received_ns", "ended_ns", "key", "name", "team", "org", "dialect", "operation", "route", "stream",
    "session", "run", "step", "tags", "traceparent", "decision", "rule", "labels", "bundle",
    "outcome", "status", "code", "message", "target", "attempt_count", "first_byte_ns", "finish_reasons",
    "usage", "cost_nusd", "cost_usd",
)
OPEN: Final = "open"  # what `outcome` says while there is none

INTERRUPTED_CAUSE: Final = "interrupted"
INTERRUPTED_MESSAGE: Final = "the gateway process that handled this call stopped before the call ended"

_NO_USAGE: Final = (-1,) * len(USAGE_COLUMNS)
_NONE: Final = -1


def call_values(record: CallRecord, target: Target | None) -> Values:
    """`CALL_COLUMNS` of a call. `target` is where attempt 1 goes, None for a call that goes nowhere."""
    who = record.principal
    origin = record.origin
    return (
        record.id, record.received_ns, who.id, text(who.name), text(who.team), text(who.org),
        record.dialect, record.operation, text(record.route), 1 if record.stream else 0,
        text(origin.session or ""), text(origin.run or ""), text(origin.step or ""), _json(origin.tags),
        text(origin.traceparent or ""),
        record.decision, record.rule, _json(record.labels), record.bundle, _json(record.reasons),
        target.provider if target else "", target.model if target else "",
    )


def dispatch_values(intent: DispatchIntent) -> Values:
    """`DISPATCH_COLUMNS` of an attempt that is about to be sent."""
    return intent.n, intent.target.provider, intent.target.model, intent.started_ns, intent.waited_s


def attempt_values(attempt: Attempt) -> Values:
    """`ATTEMPT_COLUMNS` of an attempt that ended."""
    return (
        attempt.n, attempt.target.provider, attempt.target.model, attempt.started_ns, attempt.ended_ns,
        attempt.end.value, attempt.cause, text(attempt.message), _number(attempt.status), _number(attempt.first_byte_ns),
        float(attempt.waited_s), *_usage_values(attempt.usage), _number(attempt.cost_nusd),
    )


def outcome_values(record: CallRecord) -> Values:
    """`OUTCOME_COLUMNS` of a call that ended."""
    return (
        record.ended_ns, record.outcome.value, record.status, record.code, text(record.message),
        _number(record.first_byte_ns), _json(record.finish_reasons), *_usage_values(record.usage), _number(record.cost_nusd),
    )


def interrupted_attempt(intent: Values, *, now_ns: int) -> Values:
    """`ATTEMPT_COLUMNS` of an attempt whose process died, from its `DISPATCH_COLUMNS`. What it cost is not known."""
    n, provider, model, started_ns, waited_s = intent
    return (
        n, provider, model, started_ns, now_ns, "cancelled", INTERRUPTED_CAUSE, INTERRUPTED_MESSAGE, _NONE, _NONE, waited_s,
        *_NO_USAGE, _NONE,
    )


def interrupted_outcome(*, now_ns: int) -> Values:
    """`OUTCOME_COLUMNS` of a call whose process died: nobody knows what the client got, so there is no status."""
    return now_ns, "interrupted", 0, "", INTERRUPTED_MESSAGE, _NONE, "", *_NO_USAGE, _NONE


def absent_to_none(values: Values) -> tuple[Any, ...]:
    """What a read of these values gives: -1 was stored as NULL."""
    return tuple(None if value == _NONE else value for value in values)


def call_json(call: Row, outcome: Row | None, target: str, attempt_count: int) -> dict[str, Any]:
    """`JOURNAL_FIELDS` of a call."""
    ended = outcome or {}
    cost = ended.get("cost_nusd")
    facts: dict[str, Any] = {
        **{name: call[name] or None for name in CALL_COLUMNS},
        **{name: ended.get(name) or None for name in ("ended_ns", "code", "message", "first_byte_ns")},
        "stream": bool(call["stream"]), "tags": _loads(call["tags"], {}), "labels": _loads(call["labels"], []),
        "outcome": ended.get("outcome", OPEN), "status": ended.get("status") or None,
        "finish_reasons": _loads(ended.get("finish_reasons", ""), []), "usage": _usage_json(ended),
        "target": target or None, "attempt_count": attempt_count,
        "cost_nusd": cost, "cost_usd": None if cost is None else usd(cost),
    }
    return {name: facts[name] for name in JOURNAL_FIELDS}


def detail_json(call: Row, outcome: Row | None, attempts: Sequence[Row], pending: Sequence[Row]) -> dict[str, Any]:
    """A call with its attempts, reasons and bodies. `pending` are the intents of an open call."""
    tries = [_attempt_json(row) for row in attempts]
    if outcome is None:
        tries += [{**dict.fromkeys(_ATTEMPT_FIELDS), **_pending_json(row)} for row in pending]
    last = tries[-1] if tries else None
    detail = call_json(call, outcome, last["target"] if last else "", len(tries))
    detail["reasons"] = _loads(call["reasons"], [])
    detail["attempts"] = tries
    detail["request"] = body_text(call["request_encoding"], call["request"])
    detail["response"] = body_text(outcome["response_encoding"], outcome["response"]) if outcome else None
    return detail


def body_text(encoding: str, data: bytes) -> str | None:
    """A stored body as text; what is damaged says so in its place."""
    try:
        body = unpack(encoding, data)
    except ValueError as error:
        return f"[{error}]"
    return None if body is None else body.decode(errors="replace")


def text(value: str) -> str:
    """The same text, storable: a lone surrogate (a header that was no UTF-8) becomes a question mark."""
    return value if value.isascii() else value.encode(errors="replace").decode()


_ATTEMPT_FIELDS: Final = (
    "n", "target", "started_ns", "ended_ns", "end", "cause", "message", "status", "first_byte_ns", "waited_s", "usage",
    "cost_nusd", "cost_usd",
)


def _attempt_json(row: Row) -> dict[str, Any]:
    cost = row["cost_nusd"]
    facts = {
        **{name: row[name] for name in ("n", "started_ns", "ended_ns", "end", "status", "first_byte_ns", "waited_s", "cost_nusd")},
        "target": f"{row['provider']}/{row['model']}", "cause": row["cause"] or None, "message": row["message"] or None,
        "usage": _usage_json(row), "cost_usd": None if cost is None else usd(cost),
    }
    return {name: facts[name] for name in _ATTEMPT_FIELDS}


def _pending_json(row: Row) -> dict[str, Any]:
    return {
        "n": row["n"], "target": f"{row['provider']}/{row['model']}", "started_ns": row["started_ns"], "waited_s": row["waited_s"],
    }


def _usage_values(usage: Usage | None) -> Values:
    if usage is None:
        return _NO_USAGE
    return (
        usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens,
        usage.input_audio_tokens, usage.output_audio_tokens, 1 if usage.estimated else 0,
    )


def _usage_json(row: Row) -> dict[str, Any] | None:
    if row.get("input_tokens") is None:
        return None
    return {**{name: row[name] for name in USAGE_COLUMNS}, "estimated": bool(row["estimated"])}


def _number(value: int | None) -> int:
    return _NONE if value is None else value


def _json(value: Any) -> str:
    """JSON of a list or object, '' for an empty one."""
    if not value:
        return ""
    try:
        return orjson.dumps(value, default=dict).decode()
    except TypeError:  # what orjson refuses and a caller can bring about: a lone surrogate in a tag, an integer beyond 64 bits
        return text(json.dumps(value, ensure_ascii=False, default=dict))


def _loads(stored: str, empty: Any) -> Any:
    return orjson.loads(stored) if stored else empty
