"""The money of one call: what it may cost where it goes, what was set aside for it, and what is left on the accounts that bind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.call import Call, JsonObject
from gateway.core.accounts import Scope, Subjects
from gateway.core.budget import Granted, Need, Short
from gateway.core.estimate import Measure, limited, measure, need, output_bound
from gateway.core.money import usd
from gateway.core.plan import Route, RouteTarget
from gateway.core.question import BudgetFacts
from gateway.errors import BudgetBusy, BudgetExceeded, CallError, PriceUnknown
from gateway.store.protocol import Standing
from gateway.wire.strict_json import dumps

EVERYTHING: Final = "all"  # the one subject of the scope `all`
_BYTES_PER_TOKEN: Final = 4  # for estimates that are corrected later, not for bounds
_LIKELY_OUTPUT: Final = 1024
# What chat templates write again as they like, some with each number on a line of its own, indented: up to three times as much.
_SCHEMAS: Final = ("tools", "functions", "response_format")
_SPREAD: Final = 2
_BUSY_S: Final = 1


@dataclass(slots=True)
class Spending:
    """What is known of a call's money so far. `subjects` are whose accounts it is on; `granted` what was set aside, once it was.

    `open`: it is not yet booked, so that `standings` hold what is set aside for it. `shortened` is the tokens that the answer was asked
    to have at the most, where that is fewer than the client wanted.
    """

    subjects: Subjects
    measured: Measure
    granted: Granted | None = None
    standings: Sequence[Standing] = ()
    shortened: int | None = None
    open: bool = True

    def need(self, to: RouteTarget) -> Need:
        """What an attempt at this target may cost at the most."""
        return need(self.measured, to.price, to.bounds)

    def body(self, call: Call, to: RouteTarget) -> JsonObject:
        """The body as this target gets it: asking for no more than there is money for."""
        units = self.granted.units if self.granted is not None else None
        if units is None or not self.measured.produces:
            return call.body
        wanted = self.measured.asked
        self.shortened = units if units < (output_bound(self.measured, to.bounds) if wanted is None else wanted) else None
        return limited(call.body, units, to.bounds.output_limit)

    @property
    def tightest(self) -> tuple[str, int] | None:
        """The account that has the least left, with what that is, never below 0: what is set aside for others is taken off, what is set
        aside for this call is not. None where no account has a limit.
        """
        own = self.granted.amount_nusd if self.open and self.granted is not None else 0
        left = [(each.account.limit_nusd - each.counted.posted - each.counted.pending + own, each.account.name)
                for each in self.standings if each.account.limit_nusd is not None]
        if not left:
            return None
        rest, name = min(left)
        return name, max(0, rest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The accounts on which the soft limit is reached."""
        return tuple(each.account.name for each in self.standings
                     if each.account.soft_nusd is not None and each.counted.posted >= each.account.soft_nusd)


def spending_of(call: Call, route: Route, before: JsonObject, scrub: Callable[[str], str]) -> Spending:
    """The money of a call that goes over this route. `before` is the body as it was received: where it is the same, its size is known.

    Raises:
        InvalidRequest: the body's limits cannot be read.
    """
    size = call.size if call.body is before else len(dumps(call.body))
    spread = [call.body[name] for name in _SCHEMAS if name in call.body]
    if spread:
        size += _SPREAD * len(dumps(spread))
    return Spending(subjects_of(call, route.name, scrub), measure(call, size))


def subjects_of(call: Call, route: str, scrub: Callable[[str], str]) -> Subjects:
    """Whose accounts a call is on. What a caller chose counts under its key, and is kept without what looks like a secret."""
    who, origin = call.principal, call.origin
    own: tuple[tuple[Scope, str | None], ...] = (("user", call.user), ("session", origin.session), ("run", origin.run))
    found: dict[Scope, Sequence[str]] = {"all": (EVERYTHING,), "key": (who.id,)}
    if who.org:
        found["org"] = (who.org,)
    if who.team:
        found["team"] = (who.team,)
    for scope, name in own:
        if name:
            found[scope] = (f"{who.id}/{scrub(name)}",)
    found["tool" if call.operation == "tool" else "route"] = (route,)
    if origin.tags:
        found["tag"] = tuple(scrub(f"{name}={value}") for name, value in origin.tags.items())
    return found


def likely_tokens(measured: Measure) -> int:
    """What a call is likely to use, for rates in tokens: corrected when it is known."""
    asked = min(measured.asked or _LIKELY_OUTPUT, _LIKELY_OUTPUT) if measured.produces else 0
    return measured.size // _BYTES_PER_TOKEN + 1 + asked * measured.choices


def budget_facts(standings: Sequence[Standing]) -> BudgetFacts:
    """What rules read of the accounts: of each scope the tightest, and of all of them under `any`."""
    remaining: dict[str, int] = {}
    limit: dict[str, int] = {}
    spent: dict[str, int] = {}
    for each in standings:
        counted, most = each.counted, each.account.limit_nusd
        for level in (each.account.scope, "any"):
            if most is None:
                spent.setdefault(level, counted.posted)
            elif level not in remaining or most - counted.posted - counted.pending < remaining[level]:
                remaining[level] = most - counted.posted - counted.pending
                limit[level] = most
                spent[level] = counted.posted
    return BudgetFacts(remaining, limit, spent)


def refusal(short: Short, target: str) -> CallError:
    """The error for a call that the money does not reach for: which account binds it, as it stands, and when that changes."""
    holding = short.holding
    account, counted = holding.account, holding.counted
    if short.why == "unpriced":
        return PriceUnknown(f"The budget {account.name} binds this call, and nobody knows what {target} costs, "
                            "or what it costs in the service tier that is asked for.")
    ends_ns = None if account.window.kind == "rolling" else account.window.ends(holding.window_ns)
    resets = None if ends_ns is None else f"{datetime.fromtimestamp(ends_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"
    figures = {
        "limit_usd": usd(account.limit_nusd or 0), "used_usd": usd(counted.posted), "reserved_usd": usd(counted.pending),
        "needed_usd": usd(short.needed_nusd), "resets_at": resets,
    }
    least = "for the answer that it asks for: a shorter one needs less" if account.on_short == "deny" else "at the least"
    told = (f"{figures['used_usd']} USD of {figures['limit_usd']} are used and {figures['reserved_usd']} are reserved for calls in flight; "
            f"this call needs {figures['needed_usd']} {least}.")
    if short.why == "busy":
        message = f"The rest of the budget {account.name} is held by calls in flight: {told} Try again in a moment."
        return BudgetBusy(message, account=account.name, figures=figures, retry_after_s=_BUSY_S)
    after = f" It resets at {resets}." if resets else " It does not reset by itself."
    if account.window.kind == "rolling":
        hours = f"{account.window.length_ns / 3.6e12:g}"
        after = f" What is spent comes back bit by bit, each amount {hours} hours after it was spent."
    message = f"The budget {account.name} has too little left for this call: {told}{after}"
    return BudgetExceeded(message, account=account.name, figures=figures)
