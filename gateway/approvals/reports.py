"""Approvals, grants and notices as people read them, and as their caller does: JSON-ready rows. Pure; what others wrote stays text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from gateway.call import Json, JsonObject
from gateway.clock import time_text
from gateway.core.action import json_patch
from gateway.core.approval import Demand, Grant, State, Ticket, Vote, standing
from gateway.core.body import strings
from gateway.core.decision import Approval
from gateway.core.rules import Bundle, Rule
from gateway.wire.strict_json import dumps, loads

LONGEST_SUMMARY: Final = 200
MOST_USES: Final = 20  # of a grant, that are listed with it
_MOST_COMPARED: Final = 64 * 1024  # bytes of two actions whose difference is told: it takes time by their product
_MOST_TEXTS: Final = 8  # of a message, for one line
_MOST_VALUES: Final = 20  # of a rule
_ARGUMENT: Final = re.compile(  # a path into a tool's arguments, up to what is called on it
    r"""(?<![\w.])tool\.args((?:\.[A-Za-z_]\w*(?!\w|\s*\()|\[(?:\d+|"[^"\\]*"|'[^'\\]*')\])+)""", re.ASCII)
_STEP: Final = re.compile(r"""\.(\w+)|\[(?:(\d+)|"([^"]*)"|'([^']*)')\]""", re.ASCII)


def approval_row(ticket: Ticket, why_not: str | None) -> dict[str, Any]:
    """A ticket as a list shows it. `why_not` says why whoever asks may not vote on it, None where they may."""
    return {
        "id": ticket.id, "state": ticket.state.value, "kind": ticket.kind, "mode": ticket.mode, "effect": ticket.effect,
        "irreversible": ticket.irreversible, "digest": ticket.digest, "shape": ticket.shape, "principal": ticket.principal,
        "principal_name": ticket.principal_name or None, "team": ticket.team or None, "on_behalf_of": ticket.on_behalf_of or None,
        "route": ticket.route or None, "tool": ticket.tool or None, "session": ticket.session or None, "call": ticket.call_id,
        "rule": ticket.rule, "message": ticket.message, "summary": summary(ticket), "created_at": time_text(ticket.created_ns),
        "expires_at": time_text(ticket.expires_ns), "decided_at": time_text(ticket.decided_ns), "ended_at": time_text(ticket.ended_ns),
        "demands": [_demand_row(demand, ticket.votes) for demand in ticket.demands], "votes": len(ticket.votes),
        "may_vote": why_not is None, "why_not": why_not, "edited_from": ticket.edited_from or None,
        "replaced_by": ticket.replaced_by or None, "reason": ticket.reason or None, "executed_by": ticket.executed_by or None,
    }


def approval_details(ticket: Ticket, history: Sequence[Mapping[str, Any]], bundle: Bundle) -> dict[str, Any]:
    """What is shown of one ticket beside its row: the exact action, its votes, what happened, and the rules that ask."""
    result = None if ticket.answer is None else {"status": ticket.answer.status, "content_type": ticket.answer.content_type}
    return {
        "action": dict(ticket.shown), "body_size": len(ticket.body), "votes": [_vote_row(vote) for vote in ticket.votes],
        "history": [{"at": time_text(each["at_ns"]), **{name: each[name] for name in ("event", "state", "author", "reason")}}
                    for each in history],
        "patch": ticket.patch, "rules": list(_rules(ticket, bundle)), "result": result,
    }


def similar_row(ticket: Ticket, other: Ticket) -> dict[str, Any]:
    """An earlier ticket beside this one, with what this one has different; None for that where they are too long to be compared."""
    before, after = other.shown["arguments"], ticket.shown["arguments"]
    small = len(dumps(before)) <= _MOST_COMPARED and len(dumps(after)) <= _MOST_COMPARED
    return {"id": other.id, "state": other.state.value, "decided_at": time_text(other.decided_ns),
            "patch": json_patch(before, after) if small else None}


def ticket_row(ticket: Ticket, then: Ticket | None = None) -> dict[str, Any]:
    """A ticket as its caller sees it: what became of it, and what was changed. `then` is the one that its result waits for."""
    row: dict[str, Any] = {
        "ticket": ticket.id, "state": ticket.state.value, "rule": ticket.rule, "message": ticket.message,
        "created_at": time_text(ticket.created_ns), "expires_at": time_text(ticket.expires_ns), "mode": ticket.mode,
        "votes_needed": missing(ticket) if ticket.state is State.PENDING else 0, "edited": bool(ticket.edited_from),
        "patch": ticket.patch, "comment": comment_of(ticket),
    }
    if then is not None:
        row |= {"next": then.id, "next_state": then.state.value}
    elif ticket.answer is not None:
        kind = ticket.answer.content_type
        row["result"] = {"status": ticket.answer.status, "content_type": kind, "body": _content(ticket.answer.body, kind)}
    return row


def grant_row(grant: Grant, now_ns: int, uses: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A grant, whether it counts, and the calls that used it: of `uses`, the latest first, as many as are shown."""
    return {
        "id": grant.id, "live": grant.live(now_ns), "rule": grant.rule, "principal": grant.principal, "session": grant.session or None,
        "tool": grant.tool or None, "condition": grant.condition or None, "uses": grant.uses, "author": grant.author,
        "ticket": grant.ticket or None, "note": grant.note or None, "created_at": time_text(grant.created_ns),
        "expires_at": time_text(grant.expires_ns), "revoked_at": time_text(grant.revoked_ns), "revoked_by": grant.revoked_by or None,
        "calls": [{"call": call_id, "at": time_text(at_ns)} for call_id, at_ns in uses[:MOST_USES]], "more_calls": len(uses) > MOST_USES,
    }


def missing(ticket: Ticket) -> int:
    """How many people have to approve yet, all stages together: one of them may count for several rules."""
    found = [0]
    for demand in ticket.demands:
        now = standing(demand, ticket.votes)
        if now.stage is not None:
            found.append(sum(stage.quorum for stage in demand.stages[now.stage:]) - now.have)
    return max(found)


def comment_of(ticket: Ticket) -> str | None:
    """What the caller is told by people: of a denial its comment, else the latest there is."""
    said = [vote for vote in ticket.votes if vote.comment and vote.verdict == ("deny" if ticket.state is State.DENIED else "approve")]
    return said[-1].comment if said else None


def summary(ticket: Ticket) -> str:
    """The action on one line: what a list has room for."""
    arguments = ticket.shown.get("arguments", {})
    if ticket.kind in ("tool", "tool_call"):
        return one_line(f"{ticket.tool} {_brief(arguments)}")
    told = " ".join(islice(strings(_latest(arguments)), _MOST_TEXTS))
    return one_line(f"{ticket.tool or ticket.route}: {told}" if told else ticket.tool or ticket.route)


def one_line(text: str, limit: int = LONGEST_SUMMARY) -> str:
    """Somebody's words on one line: what prints nothing, breaks lines or turns them round is a blank."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text[:4 * limit]).split())
    return plain if len(plain) <= limit else f"{plain[:limit - 1]}…"


def approval_rule(bundle: Bundle, name: str) -> tuple[Rule, Approval] | None:
    """The rule of that name that asks for approvals now; None where there is none."""
    for rule in bundle.rules:
        if rule.id == name and isinstance(rule.action, Approval):
            return rule, rule.action
    return None


def _demand_row(demand: Demand, votes: Sequence[Vote]) -> dict[str, Any]:
    now = standing(demand, votes)
    return {
        "rule": demand.rule, "stages": [{"approvers": list(stage.approvers), "quorum": stage.quorum} for stage in demand.stages],
        "stage": now.stage, "have": now.have, "denials": now.denials, "denials_needed": demand.denials, "escalate": list(demand.escalate),
    }


def _vote_row(vote: Vote) -> dict[str, Any]:
    return {
        "person": vote.voter.id, "name": vote.voter.name or None, "method": vote.voter.method, "verdict": vote.verdict,
        "comment": vote.comment or None, "at": time_text(vote.at_ns), "digest": vote.digest,
        "places": [{"rule": key.rpartition("#")[0], "stage": stage} for key, stage in vote.places],
    }


def _rules(ticket: Ticket, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """The rules that ask, as far as they stand in the rules of now."""
    for demand in ticket.demands:
        found = approval_rule(bundle, demand.rule)
        if found is None:
            yield {"rule": demand.rule, "source": None, "message": None, "remedy": None, "when": None, "reads": [], "values": {}}
            continue
        rule, _approval = found
        yield {"rule": rule.id, "source": rule.matched.source, "message": rule.message, "remedy": rule.remedy,
               "when": rule.program.source if rule.program else None, "reads": list(rule.matched.reads),
               "values": dict(islice(_values(ticket, rule), _MOST_VALUES))}


def _values(ticket: Ticket, rule: Rule) -> Iterator[tuple[str, Json]]:
    """What a rule reads of the action, by the names in its condition: out of the action itself, as far as it holds that."""
    known = {"tool.name": ticket.tool, "principal.id": ticket.principal, "principal.team": ticket.team,
             "principal.on_behalf_of": ticket.on_behalf_of}
    yield from ((name, value) for name, value in known.items() if name in rule.reads)
    if "tool.args" in rule.reads and rule.program is not None:
        for path in _ARGUMENT.finditer(rule.program.source):
            value: Json = ticket.shown["arguments"]
            for name, index, *quoted in _STEP.findall(path[1]):
                value = _within(value, int(index) if index else name or "".join(quoted))
            if value is not None:
                yield path[0], _short(value)


def _within(value: Json, step: str | int) -> Json:
    """A member of a value; None where it has none of that name, or is none that could."""
    if isinstance(value, list) and isinstance(step, int):
        return value[step] if step < len(value) else None
    return value.get(step) if isinstance(value, dict) and isinstance(step, str) else None


def _short(value: Json) -> Json:
    """A value of any size for one line: what it is where it is long, for all of it stands in the action."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_SUMMARY else f"{value[:LONGEST_SUMMARY]}…"
    return f"[{'list' if isinstance(value, list) else 'object'} of {len(value)}]" if isinstance(value, list | dict) else value


def _brief(arguments: JsonObject) -> str:
    """Arguments as `name=value`, each value cut short before it is written: it may be megabytes."""
    return " ".join(f"{name}={_value(value)}" for name, value in islice(arguments.items(), _MOST_TEXTS))


def _value(value: Json) -> str:
    if isinstance(value, str):
        return dumps(value[:LONGEST_SUMMARY]).decode()
    if isinstance(value, dict | list):
        return f"{{{len(value)}}}" if isinstance(value, dict) else f"[{len(value)}]"
    return dumps(value).decode()


def _latest(arguments: JsonObject) -> Json:
    """What was said last: of a chat its last message's content, of an answer its choices, else what is asked."""
    messages = arguments.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        return [last.get("content")] if isinstance(last, dict) else last
    choices = arguments.get("choices")
    if isinstance(choices, list):
        found = [each.get("message", {}) for each in choices if isinstance(each, dict)]
        return [each.get("content") for each in found if isinstance(each, dict)]
    return [arguments.get(name) for name in ("prompt", "input", "text", "json")]


def _content(body: bytes, content_type: str) -> Json:
    """A kept answer: a value where it is JSON, else its text."""
    if "json" in content_type or not content_type:
        try:
            return loads(body)
        except ValueError:
            pass  # an upstream's word for it was wrong
    return body.decode(errors="replace")
