"""Budgets and the accounts that come of them: which limits bind a call, from configuration and from what operators set. Pure.

A budget is a statement ("each team: 100 USD a month"); an account is one subject of it (`team-month/search`). Two budgets of one scope are
two accounts, and a call is bound by both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias, get_args

from gateway.core.windows import Window

Scope: TypeAlias = Literal["all", "org", "team", "key", "user", "session", "run", "route", "tool", "tag"]
OnShort: TypeAlias = Literal["clamp", "deny"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
HIGHEST_LIMIT_NUSD: Final = 2**61  # two billion USD, raises included: beside it a balance still fits in 64 bits
# Scopes whose names callers choose. Two keys that say the same name mean two subjects: `KEY_ID/NAME`.
UNDER_KEY: Final[frozenset[Scope]] = frozenset({"user", "session", "run"})
FOR_EVER: Final = Window()
Subjects: TypeAlias = Mapping[Scope, Sequence[str]]  # of one call: its names by scope; a scope that the call has not is not there


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for each subject of a scope. Amounts are nano-USD; None: no limit, or no soft one.

    `of` are globs of subjects; of scopes in `UNDER_KEY` they see the caller's name without the key's id. `limits` are subjects' own limits.
    `least` is the smallest number of output tokens that is worth a call when money is short and `on_short` says clamp.
    """

    name: str
    scope: Scope
    limit_nusd: int | None
    window: Window = FOR_EVER
    of: tuple[str, ...] = ("*",)
    soft_nusd: int | None = None
    on_short: OnShort = "clamp"
    least: int = 16
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """One subject of one budget, with the limits that hold at the moment."""

    budget: str
    subject: str
    scope: Scope
    limit_nusd: int | None
    window: Window = FOR_EVER
    soft_nusd: int | None = None
    on_short: OnShort = "clamp"
    least: int = 16

    @property
    def name(self) -> str:
        """`BUDGET/SUBJECT`."""
        return f"{self.budget}/{self.subject}"


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator did to a budget, as it is kept: never changed, read in order.

    `set` gives a new budget (`budget`), or an account of an existing one its own limit (`subject`, `limit_nusd`, `soft_nusd`; a None
    leaves that as it is); `raise` adds `limit_nusd` to it until `until_ns`; `remove` takes back what was set: of the account, with the
    empty subject of the whole budget, its accounts included. With `raise` an empty subject means every account of the budget.
    """

    id: int
    at_ns: int
    author: str
    kind: Literal["set", "raise", "remove"]
    name: str
    subject: str = ""
    budget: Budget | None = None
    limit_nusd: int | None = None
    soft_nusd: int | None = None
    until_ns: int | None = None
    note: str = ""


class BudgetBook:
    """Budgets, found by a call's subjects without looking at those of others. Immutable."""

    __slots__ = ("_exact", "_globs", "budgets")

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self.budgets: Mapping[str, Budget] = {each.name: each for each in budgets}
        self._exact: dict[tuple[Scope, str], list[Budget]] = {}
        self._globs: dict[Scope, list[Budget]] = {}
        for budget in self.budgets.values():
            if any(_is_glob(name) for name in budget.of):
                self._globs.setdefault(budget.scope, []).append(budget)
                continue
            for name in dict.fromkeys(budget.of):
                self._exact.setdefault((budget.scope, name), []).append(budget)

    def __repr__(self) -> str:
        return f"BudgetBook({', '.join(self.budgets) or 'empty'})"

    def of(self, scope: Scope, name: str) -> Iterator[Budget]:
        """The budgets that bind a subject, by the name that its caller or operator knows it by."""
        yield from self._exact.get((scope, name), ())
        for budget in self._globs.get(scope, ()):
            if any(fnmatchcase(name, glob) for glob in budget.of):
                yield budget


class Settings:
    """What operators have set, folded from their changes. Immutable: `after` gives the next one."""

    __slots__ = ("_own", "book", "last")

    def __init__(self, book: BudgetBook | None = None, own: Mapping[tuple[str, str], "Own"] | None = None, last: int = 0) -> None:
        self.book = book or BudgetBook()
        self.last = last  # the id of the last change that is in here
        self._own = own or {}

    def after(self, changes: Sequence[Change]) -> "Settings":
        """With these changes, which came after those that are in here."""
        budgets, own = dict(self.book.budgets), dict(self._own)
        for change in changes:
            at = change.name, change.subject
            match change.kind:
                case "set" if change.budget is not None:
                    budgets[change.name] = change.budget
                case "set":
                    known = own.get(at, NOTHING)
                    own[at] = replace(known, limit_nusd=known.limit_nusd if change.limit_nusd is None else change.limit_nusd,
                                      soft_nusd=known.soft_nusd if change.soft_nusd is None else change.soft_nusd)
                case "raise":
                    known = own.get(at, NOTHING)
                    standing = [each for each in known.raises if each[1] > change.at_ns]  # else they would pile up for ever
                    own[at] = replace(known, raises=(*standing, (change.limit_nusd or 0, change.until_ns or 0)))
                case _:  # remove
                    own = {each: set_ for each, set_ in own.items() if each != at and (change.subject or each[0] != change.name)}
                    if not change.subject:
                        budgets.pop(change.name, None)
        return Settings(BudgetBook(budgets.values()), own, max((each.id for each in changes), default=self.last))

    def own(self, budget: str, subject: str) -> "Own":
        """What was set for one account."""
        return self._own.get((budget, subject), NOTHING)


@dataclass(frozen=True, slots=True)
class Own:
    """What was set for one account. `raises` are amounts with the times they end at."""

    limit_nusd: int | None = None
    soft_nusd: int | None = None
    raises: tuple[tuple[int, int], ...] = ()


NOTHING: Final = Own()


def accounts_of(book: BudgetBook, settings: Settings, subjects: Subjects, now_ns: int) -> tuple[Account, ...]:
    """The accounts that bind a call. A configured budget hides one of its name that was set."""
    found: dict[tuple[str, str], Account] = {}
    for scope, names in subjects.items():
        for subject in names:
            shown = subject.partition("/")[2] if scope in UNDER_KEY else subject
            for budget in (*book.of(scope, shown), *settings.book.of(scope, shown)):
                hidden = budget.name in book.budgets and book.budgets[budget.name] is not budget
                if not hidden and (budget.name, subject) not in found:
                    found[budget.name, subject] = account_of(budget, subject, settings, now_ns)
    return tuple(found.values())


def account_of(budget: Budget, subject: str, settings: Settings, now_ns: int) -> Account:
    """One account with the limits that hold now: what was set for it, else the budget's own, and every raise that has not ended."""
    own, common = settings.own(budget.name, subject), settings.own(budget.name, "")
    shown = subject.partition("/")[2] if budget.scope in UNDER_KEY else subject
    written = budget.limits.get(subject, budget.limit_nusd)
    if subject not in budget.limits and "/" not in shown:  # else a caller could name itself as another key's user is written
        written = budget.limits.get(shown, written)
    limit = next((each for each in (own.limit_nusd, common.limit_nusd, written) if each is not None), None)
    soft = next((each for each in (own.soft_nusd, common.soft_nusd, budget.soft_nusd) if each is not None), None)
    if limit is not None:
        limit = min(limit + sum(by for by, until_ns in (*own.raises, *common.raises) if now_ns < until_ns), HIGHEST_LIMIT_NUSD)
    return Account(budget.name, subject, budget.scope, limit, budget.window, soft, budget.on_short, budget.least)


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")
