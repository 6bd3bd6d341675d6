"""`CallRecord` to rows and back to JSON. Pure; both stores keep these tuples and answer with these objects.

Two conventions make an insert cheap: absent text is '' and an absent number is -1 (`NULLIF` in the statement makes it NULL), since
`sqlite3` takes about 2 µs for each None, bool or bytes that it binds and a tenth of that for text and numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from gateway.call import Attempt, CallRecord, Origin, Outcome, Principal, Target, Usage
from gateway.core.money import usd
from gateway.core.rate import Count, Take
from gateway.store.bodies import unpack
from gateway.store.protocol import DecidedCall, DispatchIntent

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
LINE_COLUMNS: Final = ("n", "at_ns", "provider", "model", "cost_nusd", "estimated", "images", "prices")
OUTCOME_COLUMNS: Final = (
    "ended_ns", "outcome", "status", "code", "message", "first_byte_ns", "finish_reasons", *USAGE_COLUMNS, "cost_nusd",
)

PATH_COLUMNS: Final = ("n", "why", "breaker", "retries_left", "largest_gap_s")
JUDGED_COLUMNS: Final = CALL_COLUMNS[:-2]
DECIDED_COLUMNS: Final = (*JUDGED_COLUMNS, "request_encoding", "request", "outcome", "cost_nusd", "verdicts", "roles", "routes")
VERDICT_COLUMNS: Final = ("withheld", "verdicts", "labels")
USE_COLUMNS: Final = ("at_ns", "via", "released", "tool_call_id", "name", "args")

# The fields of a call in `calls()`; `call()` adds `DETAIL_FIELDS`.
# `labels` are those of all its decisions; `withheld`: one of the later ones kept something from the client.
JOURNAL_FIELDS: Final = (
    "id", "received_ns", "ended_ns", "key", "name", "team", "org", "dialect", "operation", "route", "stream",
    "session", "run", "step", "tags", "traceparent", "decision", "rule", "labels", "bundle",
    "outcome", "status", "code", "message", "withheld", "target", "attempt_count", "first_byte_ns", "finish_reasons",
    "usage", "cost_nusd", "cost_usd", "part_of", "approval",
)
DETAIL_FIELDS: Final = ("reasons", "verdicts", "tool_uses", "plan", "parts", "approvals", "grants", "attempts", "request", "response")
MOST_PAGE_BYTES: Final = 32 * 1024 * 1024  # of bodies in a page of `decided()`
OPEN: Final = "open"  # what `outcome` says while there is none

CLOSED: Final = "closed"  # what an attempt's breaker was where nothing is on record of it
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
        text(origin.session or ""), text(origin.run or ""), text(origin.step or ""), json_text(origin.tags),
        text(origin.traceparent or ""),
        record.decision, record.rule, json_text(record.labels), record.bundle, json_text(record.reasons),
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


def paths_of(record: CallRecord) -> list[Values]:
    """`PATH_COLUMNS` of the attempts that have more to tell than that they were the first ones, at targets that were well."""
    return [
        (each.n, each.why, each.breaker, _number(each.retries_left), _number(each.largest_gap_s))
        for each in record.attempts if each.why or each.breaker != CLOSED or each.retries_left is not None
    ]


def outcome_values(record: CallRecord) -> Values:
    """`OUTCOME_COLUMNS` of a call that ended."""
    return (
        record.ended_ns, record.outcome.value, record.status, record.code, text(record.message),
        _number(record.first_byte_ns), json_text(record.finish_reasons), *_usage_values(record.usage), _number(record.cost_nusd),
    )


def verdict_values(record: CallRecord) -> Values | None:
    """`VERDICT_COLUMNS` of a call that ended; None where there is nothing to say, as of most."""
    withheld = any(verdict.get("decision") != "allow" for verdict in record.verdicts) or any(
        use.via == "model" and not use.released for use in record.tool_uses)
    if not (withheld or record.verdicts or record.answer_labels):
        return None
    return 1 if withheld else 0, json_text(record.verdicts), json_text(record.answer_labels)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call's books need of its record. `lines` are the ledger's of its attempts, by `LINE_COLUMNS`; `sent`: something left."""

    at_ns: int
    cost_nusd: int
    tokens: int
    sent: bool
    lines: Sequence[Values]


NO_BILL: Final = Bill(0, 0, 0, sent=False, lines=())


def bill_of(record: CallRecord) -> Bill:
    """The bill of a call that ended: every attempt that cost something is a line."""
    attempts = record.attempts
    lines = [
        (each.n, each.ended_ns, each.target.provider, each.target.model, each.cost_nusd,
         1 if each.usage is not None and each.usage.estimated else 0, each.usage.images if each.usage is not None else 0, text(each.prices))
        for each in attempts if each.cost_nusd
    ]
    tokens = sum([each.usage.input_tokens + each.usage.output_tokens for each in attempts if each.usage is not None])
    return Bill(record.ended_ns, sum([each.cost_nusd or 0 for each in attempts]), tokens, sent=bool(attempts), lines=lines)


def interrupted_attempt(intent: Values, *, now_ns: int, cost_nusd: int | None = None) -> Values:
    """`ATTEMPT_COLUMNS` of an attempt whose process died, from its `DISPATCH_COLUMNS`; with the cost that it is booked at, if any."""
    n, provider, model, started_ns, waited_s = intent
    return (
        n, provider, model, started_ns, now_ns, "cancelled", INTERRUPTED_CAUSE, INTERRUPTED_MESSAGE, _NONE, _NONE, waited_s,
        *_NO_USAGE, _number(cost_nusd),
    )


def interrupted_outcome(*, now_ns: int, cost_nusd: int | None = None) -> Values:
    """`OUTCOME_COLUMNS` of a call whose process died: nobody knows what the client got, so there is no status."""
    return now_ns, "interrupted", 0, "", INTERRUPTED_MESSAGE, _NONE, "", *_NO_USAGE, _number(cost_nusd)


def absent_to_none(values: Values) -> tuple[Any, ...]:
    """What a read of these values gives: -1 was stored as NULL."""
    return tuple(None if value == _NONE else value for value in values)


def call_json(rows: "CallRows", target: str, attempt_count: int) -> dict[str, Any]:
    """`JOURNAL_FIELDS` of a call, of whose rows `call`, `outcome`, `verdicts`, `part_of` and `approvals` are looked at."""
    call, ended = rows.call, rows.outcome or {}
    later = rows.verdicts or {"withheld": 0, "labels": ""}
    cost = ended.get("cost_nusd")
    facts: dict[str, Any] = {
        **{name: call[name] or None for name in CALL_COLUMNS},
        **{name: ended.get(name) or None for name in ("ended_ns", "code", "message", "first_byte_ns")},
        "stream": bool(call["stream"]), "tags": _loads(call["tags"], {}), "withheld": bool(later["withheld"]),
        "labels": list(dict.fromkeys(_loads(call["labels"], []) + _loads(later["labels"], []))),
        "outcome": ended.get("outcome", OPEN), "status": ended.get("status") or None,
        "finish_reasons": _loads(ended.get("finish_reasons", ""), []), "usage": _usage_json(ended),
        "target": target or None, "attempt_count": attempt_count,
        "cost_nusd": cost, "cost_usd": None if cost is None else usd(cost), "part_of": rows.part_of or None,
        "approval": rows.approvals[0] if rows.approvals else None,
    }
    return {name: facts[name] for name in JOURNAL_FIELDS}


@dataclass(slots=True)
class CallRows:
    """All rows of one call. `pending` are the intents of its attempts, `parts` the ids of the calls that were made for it, `approvals`
    those of the approvals that it waited for, the one first that it was made under; `grants` those of the grants that it has used.
    """

    call: Row
    outcome: Row | None = None
    verdicts: Row | None = None
    attempts: Sequence[Row] = ()
    pending: Sequence[Row] = ()
    uses: Sequence[Row] = ()
    paths: Sequence[Row] = ()
    plan: str = ""
    part_of: str = ""
    parts: Sequence[str] = ()
    approvals: Sequence[str] = ()
    grants: Sequence[str] = ()


def detail_json(rows: CallRows) -> dict[str, Any]:
    """`JOURNAL_FIELDS` and `DETAIL_FIELDS` of a call."""
    call, outcome = rows.call, rows.outcome
    paths = {path["n"]: path for path in rows.paths}
    tries = [_attempt_json(row, paths.get(row["n"], _PLAIN_PATH)) for row in rows.attempts]
    if outcome is None:
        tries += [{**dict.fromkeys(_ATTEMPT_FIELDS), **_pending_json(row)} for row in rows.pending]
    last = tries[-1] if tries else None
    detail = call_json(rows, last["target"] if last else "", len(tries))
    detail["reasons"] = _loads(call["reasons"], [])
    detail["verdicts"] = _loads(rows.verdicts["verdicts"], []) if rows.verdicts else []
    detail["tool_uses"] = [
        {
            "id": use["tool_call_id"], "name": use["name"], "via": use["via"], "released": bool(use["released"]), "at_ns": use["at_ns"],
            "args": _loads(use["args"], {}),
        } for use in rows.uses
    ]
    detail["plan"] = _loads(rows.plan, None)
    detail["parts"] = list(rows.parts)
    detail["approvals"] = list(rows.approvals)
    detail["grants"] = list(rows.grants)
    detail["attempts"] = tries
    detail["request"] = body_text(call["request_encoding"], call["request"])
    detail["response"] = body_text(outcome["response_encoding"], outcome["response"]) if outcome else None
    return detail


def decided_call(row: Row) -> DecidedCall:
    """A call that was judged, from `DECIDED_COLUMNS`."""
    try:
        request = unpack(row["request_encoding"], row["request"])
    except ValueError:
        request = None
    return DecidedCall(
        id=row["id"], received_ns=row["received_ns"], dialect=row["dialect"], operation=row["operation"], route=row["route"],
        stream=bool(row["stream"]), request=request, decision=row["decision"], rule=row["rule"], bundle=row["bundle"],
        principal=Principal(
            row["key"], row["name"], row["team"], row["org"], tuple(_loads(row["roles"], ())), tuple(_loads(row["routes"], ("*",)))),
        origin=Origin(
            row["session"] or None, row["run"] or None, row["step"] or None, _loads(row["tags"], {}), row["traceparent"] or None),
        labels=tuple(_loads(row["labels"], ())), reasons=tuple(_loads(row["reasons"], ())), verdicts=tuple(_loads(row["verdicts"], ())),
        outcome=Outcome(row["outcome"]) if row["outcome"] else None, cost_nusd=row["cost_nusd"],
    )


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


def rate_key(take: Take) -> Count:
    """Where a rate's count is kept."""
    return text(take.rule), text(take.whose), take.measure


_ATTEMPT_FIELDS: Final = (
    "n", "target", "why", "started_ns", "ended_ns", "end", "cause", "message", "status", "first_byte_ns", "waited_s", "largest_gap_s",
    "breaker", "retries_left", "usage", "cost_nusd", "cost_usd",
)
_PLAIN_PATH: Final[Row] = {"why": "", "breaker": CLOSED, "retries_left": None, "largest_gap_s": None}


def _attempt_json(row: Row, path: Row) -> dict[str, Any]:
    cost = row["cost_nusd"]
    facts = {
        **{name: row[name] for name in ("n", "started_ns", "ended_ns", "end", "status", "first_byte_ns", "waited_s", "cost_nusd")},
        "target": f"{row['provider']}/{row['model']}", "cause": row["cause"] or None, "message": row["message"] or None,
        **{name: path[name] for name in ("breaker", "retries_left", "largest_gap_s")}, "why": path["why"] or None,
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


def _number(value: float | None) -> int | float:
    return _NONE if value is None else value


def json_text(value: Any) -> str:
    """JSON of a list or object, '' for an empty one."""
    if not value:
        return ""
    try:
        return orjson.dumps(value, default=dict).decode()
    except TypeError:  # what orjson refuses and a caller can bring about: a lone surrogate in a tag, an integer beyond 64 bits
        return text(json.dumps(value, ensure_ascii=False, default=dict))


def _loads(stored: str, empty: Any) -> Any:
    return orjson.loads(stored) if stored else empty
