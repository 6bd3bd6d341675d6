"""What people are told of an approval: a few short lines that nobody's words can break out of. Pure.

Whoever reads a notice learns which call waits, and where to look. The exact action, its arguments or messages, is on the page alone.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from gateway.call import JsonObject
from gateway.clock import time_text
from gateway.core.approval import State, Ticket
from gateway.notify.channels import Channel
from gateway.store.approvals_protocol import Notice

LONGEST_NAME: Final = 100
LONGEST_MESSAGE: Final = 300
_DIGEST: Final = len("sha256:") + 12  # enough to tell two apart by eye
_SPACE: Final = re.compile(r" {2,}")
_NUL: Final = "\0"  # in no id, no kind and no name of a channel
_HEADLINES: Final[Mapping[str, str]] = {
    "opened": "Approval wanted", "reminder": "Approval still wanted", "escalated": "Approval wanted, as nobody decided in time",
    "decided": "Decided", "expired": "Approval expired", "unknown": "Nobody knows what came of it"}
_DECIDED: Final[Mapping[State, str]] = {
    State.APPROVED: "Approved", State.DENIED: "Denied", State.WITHDRAWN: "Withdrawn"}
# What is shown of a ticket, and what it is called.
LABELS: Final[Mapping[str, str]] = {
    "tool": "Tool", "route": "Route", "rule": "Rule", "message": "Message", "principal": "Asked by", "team": "Team",
    "on_behalf_of": "On behalf of", "state": "State", "expires_at": "Decide until", "digest": "Action"}


def notice_of(ticket: Ticket, kind: str, channel: Channel, due_ns: int) -> Notice:
    """The notice of one event for one channel. It has the same id whoever makes it, so that it is told once."""
    return Notice(_id_of(ticket, kind, channel.name), channel.name, kind, ticket.id, body_of(ticket, kind, due_ns, channel.page), due_ns)


def body_of(ticket: Ticket, kind: str, at_ns: int, page: str) -> JsonObject:
    """What is told, whatever the channel: `headline` is ours, `about` and `fields` hold what others wrote. `at_ns` is when it is due."""
    headline = _DECIDED.get(ticket.state) if kind == "decided" else None
    fields: dict[str, Any] = {
        "approval": ticket.id, "state": str(ticket.state), "kind": ticket.kind, "tool": shown(ticket.tool), "route": shown(ticket.route),
        "rule": shown(ticket.rule), "message": shown(ticket.message, LONGEST_MESSAGE),
        "principal": shown(ticket.principal_name or ticket.principal), "team": shown(ticket.team),
        "on_behalf_of": shown(ticket.on_behalf_of), "expires_at": time_text(ticket.expires_ns), "digest": ticket.digest[:_DIGEST]}
    return {
        "type": f"approval.{kind}", "timestamp": time_text(at_ns), "at_ns": at_ns, "headline": headline or _HEADLINES[kind],
        "about": f"{fields['tool'] or fields['route']} for {fields['principal']}", "fields": fields,
        "link": f"{page}/-/admin#/approvals/{quote(ticket.id, safe='')}"}


def lines(body: JsonObject) -> list[tuple[str, str]]:
    """The fields that people are shown, each with its name, in order; those that say nothing are left out."""
    return [(label, body["fields"][name]) for name, label in LABELS.items() if body["fields"].get(name)]


def shown(text: str, limit: int = LONGEST_NAME) -> str:
    """Somebody's words on one line, of `limit` characters at most: what prints nothing, breaks lines or turns them round is a blank."""
    plain = "".join([each if each.isprintable() else " " for each in text[:limit + 1]])
    plain = _SPACE.sub(" ", plain).strip()
    return plain if len(text) <= limit else f"{plain[:limit - 1]}…"


def _id_of(ticket: Ticket, kind: str, channel: str) -> str:
    """Made of what is told. A ticket that is asked about again has other votes, another claim or another end."""
    told = (ticket.id, kind, channel, str(ticket.state), str(len(ticket.votes)), str(ticket.fence), str(ticket.expires_ns))
    return f"ntc_{sha256(_NUL.join(told).encode()).hexdigest()[:32]}"
