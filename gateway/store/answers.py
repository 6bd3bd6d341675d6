"""What rules are told of a session, from what is stored of it. Pure; both stores use it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from gateway.session import SessionQuery
from gateway.store.rows import text

MOST_LABELS: Final = 200  # of a session: they come from rules, and rules change
MOST_SPEND_NUSD: Final = 2**63 - 1  # what a column holds
_LONGEST_LABEL: Final = 200
_EVER: Final = -(2**63)


def with_labels(known: Sequence[str], more: Iterable[str]) -> list[str]:
    """The labels of a session with more of them. None is lost by it: once there are `MOST_LABELS`, no new one is taken."""
    return list(dict.fromkeys([*known, *map(_stored, more)]))[:MOST_LABELS]


def taken_off(known: Sequence[str], labels: Iterable[str]) -> list[str]:
    """Those of a session's labels that are among these, in their order."""
    gone = set(map(_stored, labels))
    return [label for label in known if label in gone]


def _stored(label: str) -> str:
    return text(label[:_LONGEST_LABEL])


def since_ns(query: SessionQuery, now_ns: int) -> int:
    """From when on a use counts."""
    return _EVER if query.within_s is None else max(_EVER, now_ns - round(query.within_s * 1_000_000_000))


def total(path: str, every_args: Iterable[str]) -> float | None:
    """The sum of the numbers at a dotted path (`args.amount`); None where one of the uses has no number there."""
    whole = 0.0
    first, *names = path.split(".")
    for stored in every_args:
        value: Any = orjson.loads(stored) if stored else {}
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if first != "args" or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        whole += value
    return whole if math.isfinite(whole) else None


def last_use(args: str, result: Any, at_ns: int) -> dict[str, Any]:
    """The answer to `last`."""
    return {"args": orjson.loads(args) if args else {}, "result": result, "at_ns": at_ns}


def tool_reply(body: str | None) -> Any:
    """What an HTTP tool gave back, from its call's stored answer: its JSON or its text; None where that was not kept."""
    try:
        reply = None if body is None else orjson.loads(body)
    except orjson.JSONDecodeError:  # damaged, and it says so in its place
        return None
    return reply.get("json", reply.get("text")) if isinstance(reply, dict) else None
