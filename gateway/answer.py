"""What every governed answer says about itself: the contract's `X-Lockgate-…` headers and a stream's closing comment. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from gateway.core.approval import Ticket
from gateway.core.money import usd
from gateway.errors import ApprovalAccepted, CallError, OfApproval, RateLimited
from gateway.progress import Progress
from gateway.spending import Spending
from gateway.wire.strict_json import dumps

_LONGEST_PATCH: Final = 4096  # bytes of a header


def call_headers(call_id: str, error: CallError | None = None) -> dict[str, str]:
    """What any answer says: which call it was, and after an error whether and when to try again."""
    headers = {"X-Lockgate-Call": call_id, "X-Request-Id": call_id}
    if error is not None:
        headers["X-Should-Retry"] = "true" if error.should_retry else "false"
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
    return headers


def answer_headers(case: Progress, error: CallError | None = None) -> dict[str, str]:
    """What every governed answer says about itself (the contract's `X-Lockgate-…` headers)."""
    headers = call_headers(case.id, error)
    decision = case.strictest
    if decision is not None:
        headers["X-Lockgate-Decision"] = decision.name
        if decision.rule is not None:
            headers["X-Lockgate-Rule"] = decision.rule
    if isinstance(error, RateLimited):  # no decision says it: the rules let the call go on, but not so often
        headers["X-Lockgate-Rule"] = error.rule
    if case.approval is not None:
        headers |= _approval(case.approval, error)
    headers |= _grants(case)
    if case.begun:
        target = case.trying.to.target if case.trying else case.delivering.target if case.delivering else None
        headers["X-Lockgate-Attempts"] = str(case.begun_attempts)
        if target is not None:
            headers["X-Lockgate-Target"] = str(target)
    spending = case.spending
    if spending is not None:
        headers |= _money(spending)
    if case.trying is None:  # of a stream that begins nothing is known yet
        headers["X-Lockgate-Cost-Usd"] = _cost(case)
    return headers


def figures(case: Progress) -> dict[str, str]:
    """What an answer says of where it came from and what it cost: kept with it for whoever waits for it."""
    named = ("X-Lockgate-Target", "X-Lockgate-Attempts", "X-Lockgate-Cost-Usd")
    return {name: value for name, value in answer_headers(case).items() if name in named}


def _approval(ticket: Ticket, error: CallError | None) -> dict[str, str]:
    """Which approval it goes on under, or waits for, and what people have changed."""
    headers = {"X-Lockgate-Approval": error.ticket if isinstance(error, OfApproval) else ticket.id}
    if isinstance(error, ApprovalAccepted):
        headers |= {"Location": f"/-/tickets/{ticket.id}", "Preference-Applied": "respond-async"}
    if ticket.patch is not None:
        headers["X-Lockgate-Approval-Patch"] = _patch(ticket)
    return headers


def _grants(case: Progress) -> dict[str, str]:
    """Which grants let it go on."""
    return {"X-Lockgate-Grant": ", ".join(dict.fromkeys(case.granted))} if case.granted else {}


def accepted(error: ApprovalAccepted) -> bytes:
    """The body for a caller that asked not to be kept waiting."""
    return dumps({"ticket": error.ticket, "state": "pending", "message": error.message, "location": f"/-/tickets/{error.ticket}"})


def _patch(ticket: Ticket) -> str:
    """How people have changed the action (RFC 6902); where that is long, where it stands."""
    written = dumps(ticket.patch).decode()
    fits = len(written) <= _LONGEST_PATCH and written.isascii() and written.isprintable()
    return written if fits else f"/-/tickets/{ticket.id}"


def closing_figures(case: Progress, made: Mapping[str, str] = MappingProxyType({})) -> str:
    """What is known only at a stream's end, for its last comment. `made` is what was kept of an answer that was made elsewhere."""
    told = {"X-Lockgate-Cost-Usd": _cost(case), **made}
    tightest = case.spending.tightest if case.spending is not None else None
    if tightest is not None:
        told["X-Lockgate-Budget-Remaining-Usd"] = usd(tightest[1])
    refused = next((verdict.rule for verdict in case.verdicts if verdict.name != "allow" and verdict.rule), None)
    if refused is not None:
        told |= {"X-Lockgate-Decision": "deny", "X-Lockgate-Rule": refused}
    if case.approval is not None and case.approval.patch is not None:  # the head was sent before anybody had changed anything
        told |= _approval(case.approval, None)
    told |= _grants(case)
    return ", ".join(f"{name}: {value}" for name, value in told.items())


def _money(spending: Spending) -> dict[str, str]:
    """What the accounts that bind a call have to say: what is left, how short that made the answer, which are past their soft limit."""
    told: dict[str, str] = {}
    if spending.tightest is not None:
        told["X-Lockgate-Budget-Remaining-Usd"] = usd(spending.tightest[1])
    if spending.shortened is not None:
        told["X-Lockgate-Max-Tokens"] = str(spending.shortened)
    if spending.warnings:
        told["X-Lockgate-Budget-Warning"] = ", ".join(quote(name, safe="/=:@ ") for name in spending.warnings)
    return told


def _cost(case: Progress) -> str:
    cost = case.cost_nusd()
    return "unknown" if cost is None else usd(cost)
