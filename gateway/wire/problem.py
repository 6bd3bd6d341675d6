"""Errors as RFC 9457 problem+json: what the control endpoints and the HTTP tools answer."""

from typing import Any, Final

from gateway.errors import BudgetExceeded, CallError, Forbidden, OfApproval, RateLimited
from gateway.wire.strict_json import dumps

PROBLEM_TYPE: Final = "application/problem+json"


def problem(error: CallError, call_id: str | None) -> bytes:
    """The body of an error, whatever is in its texts: what is not Unicode becomes a question mark."""
    fields = problem_fields(error, call_id)
    return dumps({name: value.encode(errors="replace").decode() if isinstance(value, str) else value for name, value in fields.items()})


def problem_fields(error: CallError, call_id: str | None) -> dict[str, Any]:
    """The same before it is written, for what has more to say."""
    told: dict[str, Any] = {
        "type": "about:blank", "title": error.code, "status": error.status, "detail": error.message, "code": error.code}
    if error.pointer is not None:
        told["pointer"] = error.pointer
    if isinstance(error, Forbidden | OfApproval | RateLimited):
        told["rule"] = error.rule
    if isinstance(error, OfApproval):
        told["ticket"] = error.ticket
    if isinstance(error, BudgetExceeded):
        told |= {"account": error.account, **error.figures}
    if isinstance(error, Forbidden) and error.remedy:
        told["remedy"] = error.remedy
    return told if call_id is None else {**told, "call_id": call_id}
