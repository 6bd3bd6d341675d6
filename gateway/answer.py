"""What every governed answer says about itself: the contract's `X-Lockgate-…` headers and a stream's closing comment. Pure."""

from gateway.core.money import usd
from gateway.errors import CallError
from gateway.progress import Progress


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
    if case.begun:
        target = case.trying.tried.to.target if case.trying else case.attempts[-1].target if case.attempts else None
        headers["X-Lockgate-Attempts"] = str(len(case.attempts) + (case.trying is not None))
        if target is not None:
            headers["X-Lockgate-Target"] = str(target)
    if case.trying is None:  # of a stream that begins nothing is known yet
        headers["X-Lockgate-Cost-Usd"] = _cost(case)
    return headers


def closing_figures(case: Progress) -> str:
    """What is known only at a stream's end, for its last comment."""
    refused = dict.fromkeys(verdict.rule for verdict in case.verdicts if verdict.name != "allow" and verdict.rule)
    said = f", X-Lockgate-Decision: deny, X-Lockgate-Rule: {next(iter(refused))}" if refused else ""
    return f"X-Lockgate-Cost-Usd: {_cost(case)}{said}"


def _cost(case: Progress) -> str:
    cost = case.cost_nusd()
    return "unknown" if cost is None else usd(cost)
