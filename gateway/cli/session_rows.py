"""Sessions as `lockgate sessions` shows them: rows of tables, from what the store gives."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from gateway.clock import time_text

COLUMNS: Final = ("id", "principal", "name", "state", "calls", "cost_usd", "labels", "last")
TIMELINE_COLUMNS: Final = ("time", "what", "which", "decision", "rule", "outcome", "seconds", "cost_usd", "by", "more")
FACT_COLUMNS: Final = ("name", "value", "version", "author", "time")


def listed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A session as one line of many."""
    return {**row, "name": row["principal_name"] or None, "cost_usd": row["spend_usd"], "last": time_text(row["last_ns"])}


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a session above its timeline; nothing that is not there."""
    said = {
        "session": row["id"], "principal": row["principal"], "name": row["principal_name"], "team": row["team"], "state": row["state"],
        "by": row["author"], "note": row["note"], "changed": time_text(row["changed_ns"]), "began": time_text(row["created_ns"]),
        "last": time_text(row["last_ns"]), "calls": row["calls"], "cost_usd": row["spend_usd"], "labels": row["labels"]}
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def fact_rows(facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Facts as lines of a table."""
    return [{**fact, "name": name, "value": orjson.dumps(fact["value"]).decode(), "time": time_text(fact["at_ns"])}
            for name, fact in facts.items()]


def entry_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as one line: each kind says its own in the columns that all share."""
    return {"time": _time(entry["at_ns"]), "what": entry["kind"], **_TELL.get(entry["kind"], _of_event)(entry)}


def _of_call(entry: Mapping[str, Any]) -> dict[str, Any]:
    unknown = "unknown" if entry["outcome"] != "open" else None
    made_for = f"for {entry['part_of']}" if entry["part_of"] else None
    return {
        "which": f"{entry['call']} {entry['route']}", "decision": entry["decision"], "rule": entry["rule"],
        "outcome": entry["code"] or entry["outcome"], "seconds": None if entry["seconds"] is None else f"{entry['seconds']:.3f}",
        "cost_usd": entry["cost_usd"] or unknown, "more": ", ".join(filter(None, [made_for, *entry["labels"]])) or None}


def _of_tool(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"which": entry["tool"], "outcome": "let through" if entry["released"] else "kept back",
            "more": f"via {entry['via']}, in {entry['call']}"}


def _of_approval(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"which": entry["approval"], "decision": entry["state"], "rule": entry["rule"], "outcome": entry["event"], "by": entry["author"],
            "more": entry["reason"] or entry["tool"] or entry["route"]}


def _of_vote(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"which": entry["approval"], "decision": entry["verdict"], "by": entry["person"], "more": entry["comment"]}


def _of_event(entry: Mapping[str, Any]) -> dict[str, Any]:
    if entry["kind"] == "fact":
        said = {"which": entry["name"], "more": f"{orjson.dumps(entry['value']).decode()} (version {entry['version']})"}
    elif entry["kind"] == "unlabelled":
        said = {"which": ", ".join(entry["labels"]), "more": f"in {entry['call']}"}
    else:
        said = {"more": entry["note"]}
    return {**said, "by": entry["author"]}


def _time(at_ns: int) -> str:
    """To the millisecond: much of a session happens within a second."""
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{at_ns // 10**6 % 1000:03}Z"


_TELL: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "call": _of_call, "tool": _of_tool, "approval": _of_approval, "vote": _of_vote}
