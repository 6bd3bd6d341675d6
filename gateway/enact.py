"""A decision becomes what happens: one match over the closed family."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import product
from typing import Final, assert_never
from urllib.parse import quote

from gateway.call import Call
from gateway.core.accounts import UNDER_KEY, Scope, Subjects
from gateway.core.decision import Allowed, Decision, Denied, Held, Limit
from gateway.core.plan import NowhereError, Route, reroute
from gateway.core.rate import Measure, Spent, Take
from gateway.errors import Forbidden, RateLimited
from gateway.units import show_duration

_LONGEST_WAIT_S: Final = 60  # what SDKs honour
_LONGEST_WHOSE: Final = 256


def enact(decision: Decision) -> tuple[Held, ...]:
    """Let the call go on, or end it; what comes back is what people have to decide first.

    Raises:
        Forbidden: the decision is a denial; names the rule, its message and its remedy.
    """
    match decision:
        case Allowed():
            return ()
        case Held():
            return (decision,)
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


def takes_of(limits: Sequence[tuple[Limit, str]], subjects: Subjects, tokens: int) -> tuple[Take, ...]:
    """What a call takes of the rates of these limits, each with the tool that it is about. `tokens` is what the call is likely to use."""
    takes: list[Take] = []
    for limit, tool in limits:
        measures: tuple[tuple[Measure, int | None, int], ...] = (
            ("requests", limit.requests, 1), ("tokens", limit.tokens, tokens), ("concurrent", limit.concurrent, 1))
        period_ns = round(limit.per_s * 1e9)
        takes += [Take(limit.rule, whose, measure, most, period_ns, amount)
                  for whose in _whose(limit.by, subjects, tool) for measure, most, amount in measures if most is not None]
    return tuple(takes)


def rate_spent(spent: Spent) -> RateLimited:
    """The error for a rate that is used up, with the whole seconds to wait."""
    take = spent.take
    wait_s = max(1, -(-spent.wait_ns // 1_000_000_000))
    if take.measure == "concurrent":
        message = f"At most {take.most} at a time are let through (rule {take.rule}), and as many are under way. Try again in a moment."
    else:
        noun = take.measure if take.most != 1 else take.measure[:-1]
        needed = f"; this call is taken for {take.amount}" if take.measure == "tokens" else ""
        rate = f"{take.most} {noun} in {show_duration(take.period_ns / 1e9)}"
        message = f"The rate of {rate} is used up for now (rule {take.rule}){needed}. Try again in {wait_s} s."
    return RateLimited(message, rule=take.rule, retry_after_s=min(wait_s, _LONGEST_WAIT_S))


def _whose(by: Sequence[Scope], subjects: Subjects, tool: str) -> Iterator[str]:
    """Whose counts a call is on: one, but of a call with several tags one for each of them, so that one tag more gets round none.

    A name is what callers make it, so what parts one from the next is quoted in it, and a long text is counted by its digest.
    """
    for names in product(*(_names(scope, subjects, tool) for scope in by)):
        # A lone surrogate is no text of any encoding, and still another name.
        pairs = (f"{scope}={quote(name, safe='/:@', errors='surrogatepass')}" for scope, name in zip(by, names, strict=True))
        whose = " ".join(pairs)
        yield whose if len(whose) <= _LONGEST_WHOSE else f"sha256:{sha256(whose.encode()).hexdigest()}"


def _names(scope: Scope, subjects: Subjects, tool: str) -> Sequence[str]:
    """A call's names in a scope. Where it has none it counts with the others that have none: leaving one out gets round nothing."""
    if scope == "tool" and tool:
        return (tool,)
    known = subjects.get(scope) or (subjects.get("tool") if scope == "route" else None)  # `route` is the tool's name, as rules read it
    if known:
        return known
    return (f"{subjects['key'][0]}/",) if scope in UNDER_KEY else ("",)
