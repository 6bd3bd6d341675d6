"""Money and rates of the store without a disk: the same steps as on SQLite, on dicts. Every verb is done before it first awaits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from gateway.call import CallRecord
from gateway.core.accounts import NOTHING, UNDER_KEY, Account, Budget, BudgetBook, Change, Settings, Subjects, account_of
from gateway.core.budget import MOST_NUSD, Balance, Granted, Holding, Need, Short, admit, counted, crossed, reserved, settled
from gateway.core.rate import Count, Spent, Take, all_taken, corrected
from gateway.core.windows import Window
from gateway.errors import StoreError
from gateway.store.balances_sql import Seat, seats_of
from gateway.store.ledger_rows import COST_FIELDS, COST_GROUPS, WINDOW_FIELDS
from gateway.store.protocol import AccountFilter, Admitted, Booked, Demand, Standing
from gateway.store.rows import LINE_COLUMNS, Row, bill_of, rate_key, text
from gateway.store.settings_sql import check_change


@dataclass(slots=True)
class _Window:
    """The balance of one account in one window."""

    account: Account
    balance: Balance = field(default_factory=Balance)
    limit_nusd: int | None = None
    over_nusd: int = 0


@dataclass(frozen=True, slots=True)
class _Reservation:
    """What a call holds until it ends: its accounts with the windows that it began in, and its rates."""

    accounts: tuple[Seat, ...]
    takes: tuple[Take, ...]
    granted: Granted


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the ledger. `groups` is what it counts for, by `COST_GROUPS`."""

    call_id: str
    at_ns: int
    cost_nusd: int
    estimated: bool
    groups: Mapping[str, str]


class MemoryRates:
    """How much of each rate is taken."""

    def __init__(self) -> None:
        self._values: dict[Count, int] = {}

    def after(self, takes: Sequence[Take], now_ns: int) -> dict[Count, int] | Spent:
        """What there would be with all of these taken, or the first that there is not enough of."""
        return all_taken(takes, rate_key, lambda at: self._values.get(at, 0), now_ns)

    def keep(self, after: Mapping[Count, int]) -> None:
        """Take them."""
        self._values |= after

    def end(self, takes: Sequence[Take], tokens: int, now_ns: int) -> None:
        """What a call took, now that it has ended: its tokens are known, and it is no longer under way."""
        for take in takes:
            at = rate_key(take)
            value = self._values.get(at)
            if value is not None and take.measure == "concurrent":
                self._values[at] = max(0, value - take.amount)
            elif value is not None and take.measure == "tokens":
                self._values[at] = corrected(take, value, tokens, now_ns)

    def prune(self, now_ns: int) -> None:
        """Forget the counts that are empty again: callers choose whose they are, so there may be many."""
        self._values = {at: value for at, value in self._values.items() if value > (0 if at[2] == "concurrent" else now_ns)}


class MemoryBudgets:
    """`Budgets` in dicts, and what the journal does with money and rates."""

    def __init__(self) -> None:
        self._windows: defaultdict[tuple[str, str, str], dict[int, _Window]] = defaultdict(dict)  # by budget, subject and span
        self._reservations: dict[str, _Reservation] = {}  # of the calls under way
        self.rates = MemoryRates()
        self._changes: list[Change] = []
        self._settings = Settings()
        self._ledger: list[_Line] = []

    def reserve(self, call_id: str, demand: Demand, now_ns: int) -> Admitted | Short | Spent:
        """Set a call's money aside and take its rates, all or none. The rates come first: they say when to come back."""
        counts = self.rates.after(demand.takes, now_ns)
        if isinstance(counts, Spent):
            return counts
        accounts = seats_of(demand.book, self._settings, demand.subjects, now_ns)
        holdings = self._holdings(accounts)
        granted = admit(holdings, demand.need)
        if isinstance(granted, Short):
            return granted
        _expect_room(holdings, granted.amount_nusd)
        self.rates.keep(counts)
        self._reservations[call_id] = _Reservation(accounts, demand.takes, granted)
        self._set_aside(accounts, granted.amount_nusd)
        return Admitted(granted, self._standings(accounts))

    def grow(self, call_id: str, need: Need, spent_nusd: int) -> Granted | Short:
        """Set more aside for a call under way, in the windows of its reservation and under the limits that it began with."""
        held = self._reservations.get(call_id)
        if held is None:
            raise StoreError(f"call {call_id} is not under way, so no money can be set aside for it")
        before = held.granted.amount_nusd
        holdings = self._holdings(held.accounts)
        granted = admit(holdings, need, spent_nusd=spent_nusd, reserved_nusd=before)
        if isinstance(granted, Granted):
            _expect_room(holdings, granted.amount_nusd - before)
            self._set_aside(held.accounts, granted.amount_nusd - before)
            self._reservations[call_id] = replace(held, granted=granted)
        return granted

    def settle(self, record: CallRecord) -> Booked:
        """Resolve a call's reservation by what its attempts cost, and write their lines."""
        bill = bill_of(record)
        self._ledger += [_line(record, dict(zip(LINE_COLUMNS, values, strict=True))) for values in bill.lines]
        held = self._reservations.pop(record.id)
        self.rates.end(held.takes, bill.tokens, bill.at_ns)
        amount, cost = held.granted.amount_nusd, bill.cost_nusd
        over = max(0, cost - amount) if held.accounts else 0
        before = [each.counted for each in self._holdings(held.accounts)]
        for account, window_ns in held.accounts:
            window = self._window(account, window_ns)
            window.balance = settled(window.balance, amount, cost)
            window.over_nusd = min(window.over_nusd + over, MOST_NUSD)
        standings = self._standings(held.accounts)
        reached = [now.account for was, now in zip(before, standings, strict=True) if crossed(now.account, was, now.counted)]
        return Booked(standings, tuple(reached), over)

    async def standing(self, book: BudgetBook, subjects: Subjects, *, now_ns: int) -> Sequence[Standing]:
        return self._standings(seats_of(book, self._settings, subjects, now_ns))

    async def extend(self, call_id: str, need: Need, *, spent_nusd: int) -> Granted | Short:
        return self.grow(call_id, need, spent_nusd)

    async def take(self, takes: Sequence[Take], *, now_ns: int) -> Spent | None:
        counts = self.rates.after(takes, now_ns)
        if isinstance(counts, Spent):
            return counts
        self.rates.keep(counts)
        return None

    async def change(self, change: Change) -> Change:
        check_change(change)
        kept = replace(change, id=len(self._changes) + 1, name=text(change.name), subject=text(change.subject), author=text(change.author),
                       note=text(change.note))
        self._changes.append(kept)
        self._settings = self._settings.after((kept,))
        return kept

    async def changes(self, name: str | None = None) -> Sequence[Change]:
        return [each for each in self._changes if name is None or each.name == name]

    async def accounts(self, book: BudgetBook, wanted: AccountFilter, *, now_ns: int) -> Sequence[Standing]:
        budgets = {**self._settings.book.budgets, **book.budgets}  # a configured one hides one of its name that was set
        found = [
            (account_of(budget, subject, self._settings, now_ns), budget.window.at(now_ns))
            for name, budget in sorted(budgets.items()) if wanted.budget in (None, name) and wanted.scope in (None, budget.scope)
            for subject in sorted(self._subjects(budget, now_ns)) if wanted.subject in (None, subject)
        ]
        return self._standings(tuple(found[:max(wanted.limit, 0)]))

    async def windows(self, budget: str, subject: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        found = [_window_row(window_ns, window) for (name, whose, _span), windows in self._windows.items()
                 if name == budget and subject in (None, whose) for window_ns, window in windows.items()]
        found.sort(key=lambda row: (-row["window_ns"], row["subject"], row["span"]))
        return found[:max(limit, 0)]

    async def suspects(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """None: a process that died took its books with it."""
        _ = limit
        return ()

    async def resolve(self, call_id: str, cost_nusd: int | None, *, author: str, now_ns: int) -> bool:
        """Nothing is suspect here."""
        _ = call_id, cost_nusd, author, now_ns
        return False

    async def costs(self, by: str, since_ns: int, until_ns: int, limit: int) -> Sequence[Mapping[str, Any]]:
        if by not in COST_GROUPS:
            raise StoreError(f"costs are grouped by {', '.join(COST_GROUPS)}, not by {by!r}")
        groups: defaultdict[str, list[_Line]] = defaultdict(list)
        for line in self._ledger:
            if since_ns <= line.at_ns < until_ns:
                groups[line.groups[by]].append(line)
        rows = sorted((_cost_row(name, lines) for name, lines in groups.items()), key=lambda row: (-row["cost_nusd"], row["group"]))
        shown, rest = rows[:max(limit, 0)], rows[max(limit, 0):]
        if rest:
            shown.append(_cost_row(None, [line for row in rest for line in groups[row["group"]]]))
        return shown

    def _subjects(self, budget: Budget, now_ns: int) -> set[str]:
        """Of whom a budget has something to tell: who has a balance in the current window, or a limit of their own."""
        window_ns = budget.window.at(now_ns)
        active = {subject for (name, subject, span), windows in self._windows.items()
                  if (name, span) == (budget.name, budget.window.span) and any(_counts(budget.window, window_ns, each) for each in windows)}
        own = {each.subject for each in self._changes
               if each.name == budget.name and each.subject and self._settings.own(each.name, each.subject) != NOTHING}
        return active | own | {each for each in budget.limits if budget.scope not in UNDER_KEY or "/" in each}

    def _window(self, account: Account, window_ns: int) -> _Window:
        windows = self._windows[account.budget, account.subject, account.window.span]
        return windows.setdefault(window_ns, _Window(account))

    def _counted(self, account: Account, window_ns: int) -> Balance:
        windows = self._windows.get((account.budget, account.subject, account.window.span), {})
        return counted(window.balance for each, window in windows.items() if _counts(account.window, window_ns, each))

    def _holdings(self, accounts: Sequence[Seat]) -> list[Holding]:
        return [Holding(account, window_ns, self._counted(account, window_ns)) for account, window_ns in accounts]

    def _standings(self, accounts: Sequence[Seat]) -> tuple[Standing, ...]:
        return tuple(Standing(account, self._counted(account, window_ns), window_ns, account.window.ends(window_ns))
                     for account, window_ns in accounts)

    def _set_aside(self, accounts: Sequence[Seat], amount_nusd: int) -> None:
        for account, window_ns in accounts:
            window = self._window(account, window_ns)
            window.balance = reserved(window.balance, amount_nusd)
            if amount_nusd > 0:
                window.limit_nusd = account.limit_nusd


def _expect_room(holdings: Sequence[Holding], amount_nusd: int) -> None:
    """Refuse what no column of a database holds: without a limit nothing else would."""
    for each in holdings:
        if each.counted.pending + amount_nusd > MOST_NUSD:
            raise StoreError(f"the account {each.account.name} cannot have more than {MOST_NUSD} nano-USD set aside")


def _counts(window: Window, now_ns: int, other_ns: int) -> bool:
    """Whether money of another window counts in the one of now. A clock that stepped back leaves steps that lie ahead: they do."""
    return other_ns >= window.counts_from(now_ns) if window.kind == "rolling" else other_ns == now_ns


def _line(record: CallRecord, line: Row) -> _Line:
    who, origin, is_tool = record.principal, record.origin, record.operation == "tool"
    groups = {
        "model": f"{line['provider']}/{line['model']}", "team": text(who.team), "org": text(who.org), "key": who.id,
        "session": text(f"{who.id}/{origin.session}") if origin.session else "",
        "run": text(f"{who.id}/{origin.run}") if origin.run else "",
        "route": "" if is_tool else text(record.route), "tool": text(record.route) if is_tool else "",
        "day": f"{datetime.fromtimestamp(line['at_ns'] // 10**9, UTC):%Y-%m-%d}",
    }
    return _Line(record.id, line["at_ns"], line["cost_nusd"], bool(line["estimated"]), groups)


def _window_row(window_ns: int, window: _Window) -> dict[str, Any]:
    account = window.account
    values = (account.budget, account.subject, account.scope, account.window.span, window_ns, account.window.ends(window_ns),
              window.balance.posted, window.balance.pending, window.limit_nusd, window.over_nusd)
    return dict(zip(WINDOW_FIELDS, values, strict=True))


def _cost_row(group: str | None, lines: Sequence[_Line]) -> dict[str, Any]:
    values = (group, sum(line.cost_nusd for line in lines), sum(line.cost_nusd for line in lines if line.estimated),
              len({line.call_id for line in lines}), len(lines))
    return dict(zip(COST_FIELDS, values, strict=True))
