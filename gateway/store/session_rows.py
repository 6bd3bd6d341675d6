"""Sessions and their timelines as JSON-ready rows. Pure; both stores answer with these.

An entry of a timeline has a `place`: its time, the rank of its kind and a name among its kind, by which pages follow each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.money import usd
from gateway.store.rows import OPEN, Row
from gateway.store.traces import HTTP

Place: TypeAlias = tuple[int, int, str]

MOST_FACTS: Final = 100  # of a session
MOST_OWNERS: Final = 20  # that are listed of one id
ACTIVE: Final = "active"
FROZEN: Final = "frozen"
KILLED: Final = "killed"
STATES: Final = (ACTIVE, FROZEN, KILLED)

# Kinds of `session_events`, as the timeline has them.
FACT: Final = "fact"
UNLABELLED: Final = "unlabelled"
CHANGED: Final[Mapping[str, str]] = {ACTIVE: "thawed", FROZEN: "frozen", KILLED: "killed"}

# Of what happened at the same moment, what comes first.
CALLS, USES, APPROVALS, VOTES, EVENTS = range(5)

SESSION_FIELDS: Final = (
    "principal", "id", "principal_name", "team", "state", "author", "note", "changed_ns", "created_ns", "last_ns", "calls", "spend_nusd",
    "spend_usd", "labels",
)


def session_row(values: Sequence[Any]) -> dict[str, Any]:
    """A row from the values of `SESSION_FIELDS` without `spend_usd`; labels are JSON or ''. `created_ns` is None of one without a call."""
    named = dict(zip([name for name in SESSION_FIELDS if name != "spend_usd"], values, strict=True))
    row = {**named, "labels": _loads(named["labels"], []), "spend_usd": usd(named["spend_nusd"])}
    return {name: row[name] for name in SESSION_FIELDS}


def call_entry(call: Row, outcome: Row, verdicts: Row, part_of: str) -> dict[str, Any]:
    """A call in the timeline; `outcome` and `verdicts` are empty where there are none."""
    ended_ns, cost = outcome.get("ended_ns"), outcome.get("cost_nusd")
    return {
        "kind": "call", "call": call["id"], "operation": call["operation"], "route": call["route"], "decision": call["decision"] or None,
        "rule": call["rule"] or None, "labels": list(dict.fromkeys(_loads(call["labels"], []) + _loads(verdicts.get("labels", ""), []))),
        "withheld": bool(verdicts.get("withheld")), "outcome": outcome.get("outcome", OPEN), "status": outcome.get("status") or None,
        "code": outcome.get("code") or None, "message": outcome.get("message") or None, "cost_nusd": cost,
        "cost_usd": None if cost is None else usd(cost), "seconds": None if ended_ns is None else (ended_ns - call["received_ns"]) / 1e9,
        "part_of": part_of or None,
    }


def use_entry(use: Row, call_id: str) -> dict[str, Any]:
    """A tool call, proposed by a model or made by the caller. Its arguments are the call's to show."""
    return {"kind": "tool", "call": call_id, "tool": use["name"], "tool_call": use["tool_call_id"], "via": use["via"],
            "released": bool(use["released"])}


def waited(use: Row, outcome: Row) -> bool:
    """Whether a tool call is one that waited for people: it was not kept back, but is another call's to make."""
    return use["via"] == HTTP and not use["released"] and outcome.get("code") in ("", "approval_pending")


def approval_entry(ticket: Row, event: str, state: str, author: str, reason: str) -> dict[str, Any]:
    """What happened to an approval. `ticket` has `id`, `rule`, `tool`, `route` and `call_id`."""
    return {"kind": "approval", "approval": ticket["id"], "call": ticket["call_id"] or None, "rule": ticket["rule"],
            "tool": ticket["tool"] or None, "route": ticket["route"] or None, "event": event, "state": state, "author": author or None,
            "reason": reason or None}


def vote_entry(ticket_id: str, person: str, voter: Row, verdict: str, comment: str) -> dict[str, Any]:
    """A person's vote. `voter` has `name` and `method`."""
    return {"kind": "vote", "approval": ticket_id, "person": person, "name": voter.get("name") or None,
            "method": voter.get("method") or None, "verdict": verdict, "comment": comment or None}


def event_entry(kind: str, author: str, detail: Row) -> dict[str, Any]:
    """A change of the session itself: `fact`, `unlabelled`, `frozen`, `thawed`, `killed`."""
    return {"kind": kind, "author": author or None, **detail}


def unlabelled(labels: Sequence[str], call_id: str) -> dict[str, Any]:
    """The detail of labels that a call took off."""
    return {"labels": list(labels), "call": call_id}


def fact_put(name: str, value: Any, version: int) -> dict[str, Any]:
    """The detail of a fact that was set."""
    return {"name": name, "value": value, "version": version}


def placed(entry: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """An entry with when and where it stands."""
    return {"at_ns": place[0], **entry, "place": list(place)}


def _loads(stored: str, empty: Any) -> Any:
    return orjson.loads(stored) if stored else empty
