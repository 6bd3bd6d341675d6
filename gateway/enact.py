"""A decision becomes what happens: one match over the closed family."""

from collections.abc import Mapping
from typing import assert_never

from gateway.call import Call
from gateway.core.decision import Allowed, Decision, Denied, Held, Limit
from gateway.core.plan import NowhereError, Route, reroute
from gateway.core.rate import Rates
from gateway.errors import ApprovalUnavailable, Forbidden, RateLimited

_LONGEST_WAIT_S = 60  # what SDKs honour


def enact(decision: Decision) -> None:
    """Let the call go on, or end it.

    Raises:
        Forbidden: the decision is a denial; names the rule, its message and its remedy.
        ApprovalUnavailable: it asks for a person, and nobody can be asked.
    """
    match decision:
        case Allowed():
            return
        case Held():
            who = ", ".join(dict.fromkeys(name for approval in decision.approvals for name in approval.approvers))
            quorum = max((approval.quorum for approval in decision.approvals), default=1)
            needed = f" It needs {quorum} of {who}." if who else ""
            message = f"{decision.message or ''}{needed} Nobody can be asked here, so it is refused.".strip()
            raise ApprovalUnavailable(message, rule=decision.rule or "", remedy=decision.remedy)
        case Denied():
            raise Forbidden(decision.message or "", rule=decision.rule or "", remedy=decision.remedy)
        case _:
            assert_never(decision)


def rerouted(route: Route, call: Call, decision: Decision, routes: Mapping[str, Route]) -> Route:
    """Where the call goes. Raises `Forbidden` where the rules leave nowhere."""
    if isinstance(decision, Denied) or not decision.reroutings:
        return route
    try:
        return reroute(route, call.operation, decision.reroutings, routes)
    except NowhereError as error:
        raise Forbidden(f"The rules leave nowhere for this call to go: {error}.", rule=error.rule) from error


def count(rates: Rates, call: Call, decision: Decision, now_ns: int) -> None:
    """Count the call against every limit. Raises `RateLimited` with the seconds to wait, where one is used up."""
    if isinstance(decision, Denied) or not decision.limits:
        return
    refused = rates.take([(limit, _whose(limit, call, decision)) for limit in decision.limits], now_ns)
    if refused is not None:
        limit, wait_ns = refused
        wait_s = max(1, -(-wait_ns // 1_000_000_000))
        message = f"The rate of {limit.requests} in {limit.per_s:g} s is used up for now (rule {limit.rule}). Try again in {wait_s} s."
        raise RateLimited(message, rule=limit.rule, retry_after_s=min(wait_s, _LONGEST_WAIT_S))


def _whose(limit: Limit, call: Call, decision: Decision) -> tuple[str, ...]:
    who = call.principal
    values = {"key": who.id, "team": who.team, "org": who.org, "session": f"{who.id} {call.origin.session or ''}", "route": call.route,
              "tool": decision.subject}
    return tuple(f"{name}={values[name]}" for name in limit.by)
