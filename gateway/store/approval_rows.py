"""The shapes of approvals' rows: tickets, votes, results, grants and notices as columns and back. Pure; both stores use it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import orjson

from gateway.call import Json, JsonObject
from gateway.core.approval import Demand, Grant, Result, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_steps import Entry
from gateway.errors import StoreError
from gateway.store.approvals_protocol import KeptAnswer, Notice
from gateway.store.bodies import pack, unpack
from gateway.store.rows import json_text, text

# What a ticket is opened with and keeps, and what its steps change. `shown`, `origin` and the body stand last: they may be large.
_FACTS: Final = (
    "id", "kind", "mode", "digest", "presented", "shape", "principal", "principal_name", "team", "on_behalf_of", "owner", "route", "tool",
    "session", "call_id", "rule", "message", "effect", "on_disconnect", "edited_from",
)
STEP_COLUMNS: Final = (
    "state", "demands", "expires_ns", "decided_ns", "ended_ns", "delivered_ns", "fence", "executed_by", "reason", "replaced_by", "changed",
)
TICKET_COLUMNS: Final = (
    *_FACTS, "irreversible", "notify", "patience_ns", "unexpired_ns", "created_ns", "patch", *STEP_COLUMNS, "shown", "origin", "encoding",
    "body",
)
VOTE_COLUMNS: Final = ("n", "person", "at_ns", "verdict", "digest", "comment", "voter", "places")
ENTRY_COLUMNS: Final = ("at_ns", "event", "state", "author", "reason", "call_id", "fence")
HISTORY_FIELDS: Final = ENTRY_COLUMNS
RESULT_COLUMNS: Final = ("status", "content_type", "headers", "encoding", "body")
GRANT_COLUMNS: Final = (
    "id", "rule", "demand", "principal", "session", "tool", "condition", "author", "ticket", "note",
    "created_ns", "expires_ns", "uses", "revoked_ns",
    "revoked_by",
)
NOTICE_COLUMNS: Final = ("id", "channel", "kind", "ticket", "body", "due_ns")
NOTICE_FIELDS: Final = ("id", "channel", "kind", "ticket", "due_ns", "attempts", "done_ns", "dead", "error")
_S: Final = 1_000_000_000


def ticket_values(ticket: Ticket) -> tuple[Any, ...]:
    """`TICKET_COLUMNS` of a ticket."""
    patch = "" if ticket.patch is None else _dumps(ticket.patch)
    return (
        *(text(getattr(ticket, name)) for name in _FACTS), int(ticket.irreversible), json_text(ticket.notify),
        round(ticket.patience_s * _S), round(ticket.unexpired_s * _S), ticket.created_ns, patch, *step_values(ticket),
        _dumps(ticket.shown), _dumps(ticket.origin), *pack(ticket.body),
    )


def size_of(values: Sequence[Any]) -> int:
    """The bytes of what a ticket (`TICKET_COLUMNS`) is about, as they stand in its row."""
    *_, shown, origin, _encoding, body = values
    return len(shown.encode()) + len(origin.encode()) + len(body)


def step_values(ticket: Ticket) -> tuple[Any, ...]:
    """`STEP_COLUMNS` of a ticket."""
    return (
        ticket.state.value, json_text([asdict(demand) for demand in ticket.demands]), ticket.expires_ns, ticket.decided_ns, ticket.ended_ns,
        ticket.delivered_ns, ticket.fence, text(ticket.executed_by), text(ticket.reason), text(ticket.replaced_by), ticket.changed,
    )


def ticket_of(values: Sequence[Any], votes: Iterable[Vote] = (), result: Result | None = None) -> Ticket:
    """A ticket from `TICKET_COLUMNS`. Raises `StoreError` where its row cannot be read: what it allows is not guessed."""
    row = dict(zip(TICKET_COLUMNS, values, strict=True))
    try:
        return Ticket(
            **{name: row[name] for name in _FACTS}, state=State(row["state"]), demands=demands_of(row["demands"]),
            irreversible=bool(row["irreversible"]), notify=tuple(_loads(row["notify"], [])), patience_s=row["patience_ns"] / _S,
            unexpired_s=row["unexpired_ns"] / _S, created_ns=row["created_ns"], patch=_loads(row["patch"], None),
            **{name: row[name] for name in STEP_COLUMNS[2:]}, shown=_loads(row["shown"], {}), origin=_loads(row["origin"], {}),
            body=unpack(row["encoding"], row["body"]) or b"", votes=tuple(votes), result=result)
    except (TypeError, ValueError, KeyError) as error:
        raise StoreError(f"the approval {row['id']} cannot be read ({error}); repair its row of `approvals`") from error


def demands_of(stored: str) -> tuple[Demand, ...]:
    """The demands of a ticket, from their column."""
    return tuple(
        Demand(each["rule"], tuple(Stage(tuple(stage["approvers"]), stage["quorum"]) for stage in each["stages"]), each["denials"],
               tuple(each["escalate"]))
        for each in _loads(stored, []))


def vote_values(vote: Vote, n: int) -> tuple[Any, ...]:
    """`VOTE_COLUMNS` of the ticket's nth vote."""
    return (n, text(vote.voter.id), vote.at_ns, vote.verdict, vote.digest, text(vote.comment), json_text(asdict(vote.voter)),
            json_text(vote.places))


def vote_of(values: Sequence[Any]) -> Vote:
    """A vote from `VOTE_COLUMNS`."""
    row = dict(zip(VOTE_COLUMNS, values, strict=True))
    voter = _loads(row["voter"], {})
    who = Voter(row["person"], voter["name"], tuple(voter["roles"]), tuple(voter["teams"]), voter["method"], voter["login_ns"])
    return Vote(who, row["verdict"], row["digest"], row["at_ns"], row["comment"], places_of(row["places"]))


def places_of(stored: str) -> tuple[tuple[str, int], ...]:
    """What a vote counts for, from its column."""
    return tuple((key, stage) for key, stage in _loads(stored, []))


def entry_values(entry: Entry) -> tuple[Any, ...]:
    """`ENTRY_COLUMNS` of a line of the history."""
    return entry.at_ns, entry.event, entry.state.value, text(entry.author), text(entry.reason), text(entry.call_id), entry.fence


def result_values(result: Result) -> tuple[Any, ...]:
    """`RESULT_COLUMNS` of a result."""
    return result.status, text(result.content_type), json_text(dict(result.headers)), *pack(result.body)


def result_of(values: Sequence[Any]) -> Result | None:
    """A result from `RESULT_COLUMNS`; None where it is damaged, as if it were not kept any more."""
    status, content_type, headers, encoding, body = values
    try:
        return Result(status, content_type, unpack(encoding, body) or b"", _loads(headers, {}))
    except ValueError:
        return None


def kept_values(kept: KeptAnswer) -> tuple[Any, ...]:
    """The encoding and the bytes of an answer that is kept."""
    return pack(_dumps(kept.reply).encode())


def reply_of(encoding: str, data: bytes) -> JsonObject | None:
    """What was kept; None where it is damaged, as if it were not kept any more."""
    try:
        reply: JsonObject = json.loads(unpack(encoding, data) or b"")
    except ValueError:
        return None
    return reply


def grant_values(grant: Grant) -> tuple[Any, ...]:
    """`GRANT_COLUMNS` of a grant."""
    values = asdict(grant)
    return tuple(text(values[name]) if isinstance(values[name], str) else values[name] for name in GRANT_COLUMNS)


def grant_of(values: Sequence[Any]) -> Grant:
    """A grant from `GRANT_COLUMNS`."""
    return Grant(**dict(zip(GRANT_COLUMNS, values, strict=True)))


def notice_values(notice: Notice) -> tuple[Any, ...]:
    """`NOTICE_COLUMNS` of a notice."""
    return text(notice.id), text(notice.channel), text(notice.kind), text(notice.ticket), _dumps(notice.body), notice.due_ns


def notice_of(values: Sequence[Any], attempts: int) -> Notice:
    """A notice from `NOTICE_COLUMNS`."""
    row = dict(zip(NOTICE_COLUMNS, values, strict=True))
    return Notice(**{**row, "body": _loads(row["body"], {}), "attempts": attempts})


def notice_row(values: Sequence[Any]) -> Mapping[str, Any]:
    """`NOTICE_FIELDS`, JSON-ready."""
    row = dict(zip(NOTICE_FIELDS, values, strict=True))
    return {**row, "dead": bool(row["dead"]), "error": row["error"] or None}


def stored(ticket: Ticket) -> Ticket:
    """A ticket as it is to be kept: its words, and those of its votes, as they come back from their rows."""
    words: dict[str, Any] = {name: text(getattr(ticket, name)) for name in (*_FACTS, "executed_by", "reason", "replaced_by")}
    votes = tuple(vote_of(vote_values(vote, n)) for n, vote in enumerate(ticket.votes, 1))
    now: Ticket = replace(ticket, **words, votes=votes)
    return now


def _dumps(value: Json) -> str:
    """JSON text, of empty values as well."""
    return json_text(value) or orjson.dumps(value, default=dict).decode()


def _loads(stored: str, empty: Any) -> Any:
    """What was stored, with whole numbers of any size: `orjson` makes floats of those beyond 64 bits."""
    return json.loads(stored) if stored else empty
