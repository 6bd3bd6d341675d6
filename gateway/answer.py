"""What every governed answer says about itself: the contract's `X-Lockgate-…` headers and a stream's closing comment. Pure."""

from urllib.parse import quote

from gateway.core.money import usd
from gateway.errors import CallError, RateLimited
from gateway.progress import Progress
from gateway.spending import Spending


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


def closing_figures(case: Progress) -> str:
    """What is known only at a stream's end, for its last comment."""
    refused = dict.fromkeys(verdict.rule for verdict in case.verdicts if verdict.name != "allow" and verdict.rule)
    said = f", X-Lockgate-Decision: deny, X-Lockgate-Rule: {next(iter(refused))}" if refused else ""
    tightest = case.spending.tightest if case.spending is not None else None
    rest = "" if tightest is None else f", X-Lockgate-Budget-Remaining-Usd: {usd(tightest[1])}"
    return f"X-Lockgate-Cost-Usd: {_cost(case)}{rest}{said}"


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
