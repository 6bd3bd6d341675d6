"""A second opinion on money and rates: what the stores must do, written from the design page in the plainest way, with none of their code.

Answers are tuples. Nothing is divided to find what is affordable: every number of tokens is tried.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from zoneinfo import ZoneInfo

from gateway.core.accounts import Budget, Change
from gateway.core.budget import Need
from gateway.core.rate import Take
from gateway.core.windows import Window

SECOND_NS = 10**9
STEPS = 60
HOUR_NS = 3600 * SECOND_NS
Answer = tuple[Any, ...]
Key = tuple[str, str, str, int]  # budget, subject, span and where the window begins


@dataclass
class Purse:
    """One account in one window. `limit` is that of the last grant, `over` what calls cost beyond their reservations."""

    posted: int = 0
    pending: int = 0
    limit: int | None = None
    over: int = 0


@dataclass
class Account:
    name: str
    limit: int | None
    soft: int | None
    patient: bool  # its money may shorten an answer
    least: int
    key: Key
    ends_ns: int | None
    counts: Callable[[int], bool]  # whether another window's money counts here


@dataclass
class Held:
    accounts: list[Account]
    takes: Sequence[Take]
    amount: int
    tries: int = 1


@dataclass
class Model:
    configured: Sequence[Budget]
    given: dict[str, Budget] = field(default_factory=dict)  # by operators
    own: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    raises: list[tuple[str, str, int, int]] = field(default_factory=list)
    purses: dict[Key, Purse] = field(default_factory=dict)
    calls: dict[int, Held] = field(default_factory=dict)  # under way
    settled: dict[int, tuple[Held, int]] = field(default_factory=dict)  # with what they cost
    suspects: dict[int, int] = field(default_factory=dict)  # with what they are booked at
    rates: dict[tuple[str, str, str], int] = field(default_factory=dict)
    ledger: list[tuple[str, int]] = field(default_factory=list)  # team and cost of each line

    def begin(self, n: int, subjects: Mapping[str, Sequence[str]], need: Need, takes: Sequence[Take], now_ns: int) -> Answer:
        spent, rates = self._rates(takes, now_ns)
        if spent:
            return spent
        accounts = self._accounts(subjects, now_ns)
        answer = self._afford(accounts, need, 0, 0)
        if answer[0] == "short":
            return answer
        self.rates |= rates
        self.calls[n] = Held(accounts, takes, answer[1])
        for account in accounts:
            self._set_aside(account, answer[1])
        return (*answer, self.standings(accounts))

    def grow(self, n: int, need: Need, spent: int, *, attempt: bool) -> Answer:
        held = self.calls[n]
        answer = self._afford(held.accounts, need, spent, held.amount)
        if answer[0] == "granted":
            for account in held.accounts:
                self._set_aside(account, answer[1] - held.amount)
            held.amount = answer[1]
            held.tries += attempt
        return answer

    def finish(self, n: int, team: str, costs: Sequence[int], tokens: int | None, now_ns: int = 0) -> Answer:
        held = self.calls.pop(n)
        cost = sum(costs)
        before = self.standings(held.accounts)
        for account in held.accounts:
            purse = self.purses[account.key]
            purse.posted += cost
            purse.pending -= held.amount
            purse.over += max(0, cost - held.amount)
        for take in held.takes:
            at = take.rule, take.whose, take.measure
            if at in self.rates and take.measure == "concurrent":
                self.rates[at] = max(0, self.rates[at] - take.amount)
            elif at in self.rates and take.measure == "tokens" and tokens is not None:
                owed = self.rates[at] + take.period_ns * (tokens - min(take.amount, take.most)) // take.most
                self.rates[at] = min(owed, now_ns + 10 * take.period_ns)
        self.settled[n] = held, cost
        self.ledger += [(team, each) for each in costs if each]
        after = self.standings(held.accounts)
        reached = [account.name for account, was, now in zip(held.accounts, before, after, strict=True)
                   if account.soft is not None and was[1] < account.soft <= now[1]]
        return "booked", after, reached, max(0, cost - held.amount) if held.accounts else 0

    def recover(self, n: int, team: str) -> None:
        """The call's process has died after it sent something."""
        held = self.calls[n]
        cost = held.amount if held.accounts else 0
        self.finish(n, team, [cost], None)
        if cost:
            self.suspects[n] = cost

    def resolve(self, n: int, team: str, cost: int | None) -> bool:
        if n not in self.suspects:
            return False
        booked = self.suspects.pop(n)
        difference = 0 if cost is None else cost - booked
        held, _booked = self.settled[n]
        for account in held.accounts:
            self.purses[account.key].posted += difference
            self.purses[account.key].over += max(0, difference)
        self.settled[n] = held, booked + difference
        self.ledger += [(team, difference)] if difference else []
        return True

    def take(self, takes: Sequence[Take], now_ns: int) -> Answer | None:
        spent, rates = self._rates(takes, now_ns)
        if not spent:
            self.rates |= rates
        return spent

    def prune(self, now_ns: int) -> None:
        self.rates = {at: value for at, value in self.rates.items() if value > (0 if at[2] == "concurrent" else now_ns)}

    def change(self, change: Change) -> None:
        at = change.name, change.subject
        if change.kind == "raise":
            self.raises = [each for each in self.raises if each[:2] != at or each[3] > change.at_ns]  # what is over goes
            self.raises.append((*at, change.limit_nusd or 0, change.until_ns or 0))
        elif change.kind == "remove":
            gone = [each for each in (*self.own, *(each[:2] for each in self.raises))
                    if each == at or (not change.subject and each[0] == change.name)]
            self.own = {each: limits for each, limits in self.own.items() if each not in gone}
            self.raises = [each for each in self.raises if each[:2] not in gone]
            if not change.subject:
                self.given.pop(change.name, None)
        elif change.budget is not None:
            self.given[change.name] = change.budget
        else:
            limits = self.own.setdefault(at, {})
            limits |= {"limit": change.limit_nusd} if change.limit_nusd is not None else {}
            limits |= {"soft": change.soft_nusd} if change.soft_nusd is not None else {}

    def standing(self, subjects: Mapping[str, Sequence[str]], now_ns: int) -> list[Answer]:
        return self.standings(self._accounts(subjects, now_ns))

    def standings(self, accounts: Sequence[Account]) -> list[Answer]:
        return [(each.name, *self._counted(each), each.key[3], each.ends_ns, each.limit) for each in accounts]

    def check(self) -> None:
        """What must hold after every step."""
        sums = {key: [0, 0] for key in self.purses}
        for held in self.calls.values():
            for account in held.accounts:
                sums[account.key][1] += held.amount
        for held, cost in self.settled.values():
            for account in held.accounts:
                sums[account.key][0] += cost
        assert {key: [purse.posted, purse.pending] for key, purse in self.purses.items()} == sums
        for *whose, span, at_ns in self.purses:
            first_ns = at_ns - int(span.split()[1][:-1]) * SECOND_NS if span.startswith("rolling") else at_ns
            counting = [purse for key, purse in self.purses.items() if key[:3] == (*whose, span) and first_ns <= key[3] <= at_ns]
            limits = [purse.limit for purse in counting if purse.posted or purse.pending]
            if limits and None not in limits:
                used = sum(purse.posted + purse.pending - purse.over for purse in counting)
                assert used <= max(limit or 0 for limit in limits), (whose, span, at_ns, counting)

    def _accounts(self, subjects: Mapping[str, Sequence[str]], now_ns: int) -> list[Account]:
        hidden = {each.name for each in self.configured}
        found: dict[str, Account] = {}
        for scope, names in subjects.items():
            for subject in names:
                shown = subject.split("/", 1)[1] if scope in ("user", "session", "run") else subject
                for budgets in (list(self.configured), [each for each in self.given.values() if each.name not in hidden]):
                    binding = [each for each in budgets if each.scope == scope and any(fnmatchcase(shown, glob) for glob in each.of)]
                    for budget in sorted(binding, key=lambda each: any("*" in glob for glob in each.of)):
                        found.setdefault(f"{budget.name}/{subject}", self._account(budget, subject, shown, now_ns))
        return list(found.values())

    def _account(self, budget: Budget, subject: str, shown: str, now_ns: int) -> Account:
        own, common = self.own.get((budget.name, subject), {}), self.own.get((budget.name, ""), {})
        limit = budget.limits.get(subject, budget.limits.get(shown, budget.limit_nusd))
        limit = own.get("limit", common.get("limit", limit))
        soft = own.get("soft", common.get("soft", budget.soft_nusd))
        if limit is not None:
            limit += sum(by for name, whose, by, until in self.raises
                         if name == budget.name and whose in (subject, "") and now_ns < until)
        starts, ends, counts = window_of(budget.window, now_ns)
        key = budget.name, subject, span_of(budget.window), starts
        return Account(f"{budget.name}/{subject}", limit, soft, budget.on_short == "clamp", budget.least, key, ends, counts)

    def _counted(self, account: Account) -> tuple[int, int]:
        found = [purse for key, purse in self.purses.items() if key[:3] == account.key[:3] and account.counts(key[3])]
        return sum(purse.posted for purse in found), sum(purse.pending for purse in found)

    def _afford(self, accounts: Sequence[Account], need: Need, spent: int, reserved: int) -> Answer:
        bills = [need.fixed_nusd + -(-units * need.unit_pusd // 1000) for units in range(need.most + 1)]
        units, limited = need.most, False
        waiting: Answer | None = None  # an account on which the money is only held by others: one that is spent goes before it
        for account in accounts:
            if account.limit is None:
                continue
            posted, pending = self._counted(account)
            if need.unpriced:
                return "short", account.name, 0, account.limit, posted, pending, account.key[3], "unpriced"
            limited = True
            least = min(account.least, need.most) if account.patient and not need.rigid else need.most

            def longest(left: int) -> int:
                return max((each for each, bill in enumerate(bills) if bill <= left or not bills[-1]), default=-1)

            here = longest(account.limit - posted - pending + reserved - spent)
            short = "short", account.name, bills[least], account.limit, posted, pending, account.key[3]
            if here >= least:
                units = min(units, here)
            elif longest(account.limit - posted - spent) < least:
                return (*short, "exceeded")
            else:
                waiting = waiting or (*short, "busy")
        if waiting:
            return waiting
        return "granted", max(reserved, spent + bills[units]) if bills[units] else reserved, units if limited else None

    def _set_aside(self, account: Account, amount: int) -> None:
        purse = self.purses.setdefault(account.key, Purse())
        if amount:
            purse.pending += amount
            purse.limit = account.limit

    def _rates(self, takes: Sequence[Take], now_ns: int) -> tuple[Answer | None, dict[tuple[str, str, str], int]]:
        after: dict[tuple[str, str, str], int] = {}
        for take in takes:
            at = take.rule, take.whose, take.measure
            value = after.get(at, self.rates.get(at, 0))
            if take.measure == "concurrent":
                if value + take.amount > take.most:
                    return ("spent", take.rule, 0), {}
                after[at] = value + take.amount
                continue
            owed = 0 if value - now_ns > 10 * take.period_ns else max(value - now_ns, 0)
            full = owed + take.period_ns * min(take.amount, take.most) // take.most
            if full > take.period_ns:
                return ("spent", take.rule, full - take.period_ns), {}
            after[at] = now_ns + full
        return None, after


def span_of(window: Window) -> str:
    if window.kind == "rolling":
        return f"rolling {window.length_ns // SECOND_NS}s"
    return "none" if window.kind == "none" else f"{window.kind} {window.zone}"


def window_of(window: Window, now_ns: int) -> tuple[int, int | None, Callable[[int], bool]]:
    """When a window begins and ends, and which others count in it."""
    now_s = now_ns // SECOND_NS
    if window.kind == "none":
        return 0, None, lambda other: other == 0
    if window.kind == "rolling":
        step = window.length_ns // STEPS
        begins = now_ns - now_ns % step
        return begins, begins + window.length_ns + step, lambda other: other >= begins - window.length_ns
    zone = ZoneInfo(window.zone)
    day = datetime.fromtimestamp(now_s, zone).date()
    first = {"week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}.get(window.kind, day)
    last = {"week": first + timedelta(days=7), "month": (first + timedelta(days=40)).replace(day=1)}.get(window.kind, first + timedelta(days=1))
    begins, ends = (int(datetime(each.year, each.month, each.day, tzinfo=zone).timestamp()) * SECOND_NS for each in (first, last))
    if window.kind == "hour":  # counted from the day's beginning, whatever the clocks do meanwhile
        begins += (now_ns - begins) // HOUR_NS * HOUR_NS
        ends = min(ends, begins + HOUR_NS)
    return begins, ends, lambda other: other == begins
