"""What operators change of budgets: makes a `Change` of what they give, or refuses it and says why. Writes nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from gateway.budgets import BudgetError, budget_of
from gateway.config import BudgetConfig
from gateway.core.accounts import NOTHING, UNDER_KEY, Account, Budget, BudgetBook, Change, Settings, account_of
from gateway.core.money import usd
from gateway.spending import EVERYTHING
from gateway.store.scrub import Scrubber
from gateway.validation import nearest

LONGEST: Final = {"author": 100, "note": 500, "subject": 1000}  # characters
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MOST_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every budget that there is: those of config.toml, and those that were set."""

    configured: BudgetBook
    changes: Sequence[Change]
    settings: Settings

    @classmethod
    def of(cls, configured: BudgetBook, changes: Sequence[Change]) -> "Catalogue":
        """With what these changes come to: all of them, in order."""
        return cls(configured, changes, Settings().after(changes))

    @property
    def budgets(self) -> Mapping[str, Budget]:
        """By name; a configured one hides one that was set."""
        return {**self.settings.book.budgets, **self.configured.budgets}

    def budget(self, name: str) -> Budget:
        """The budget of a name. Raises `BudgetError` with the nearest one."""
        known = self.budgets
        if name not in known:
            hint = nearest(name, known) or "none is configured, and none was set"
            raise BudgetError("name", f"there is no budget {shown(name)!r} ({hint})")
        return known[name]

    def configures(self, name: str) -> bool:
        """Whether a budget stands in config.toml."""
        return name in self.configured.budgets

    def account(self, name: str, subject: str, now_ns: int) -> Account:
        """An account with the limits that hold now; with the empty subject what holds where an account has none of its own."""
        return account_of(self.budget(name), subject, self.settings, now_ns)

    def has_set(self, name: str, subject: str) -> bool:
        """Whether anything holds that was set: of an account, or with the empty subject of the whole budget."""
        if subject:
            return self.settings.own(name, subject) != NOTHING
        return name in self.settings.book.budgets or any(self.settings.own(name, each) != NOTHING for each in self._changed(name))

    def has_limit(self, name: str, subject: str, now_ns: int) -> bool:
        """Whether an account has a limit; with the empty subject whether any account of the budget has."""
        subjects = [subject] if subject else ["", *self.budget(name).limits, *self._changed(name)]
        return any(self.account(name, each, now_ns).limit_nusd is not None for each in subjects)

    def with_own_limits(self, name: str) -> list[str]:
        """The subjects of a budget that a limit for all of them does not reach."""
        set_ = {each for each in self._changed(name) if each and self.settings.own(name, each).limit_nusd is not None}
        return sorted(set_.union(() if self.configures(name) else self.budget(name).limits))

    def raises(self, name: str, now_ns: int) -> list[tuple[str, int, int]]:
        """The raises of a budget that hold: subject, nano-USD, end."""
        return [(subject, by, until_ns) for subject in sorted(self._changed(name))
                for by, until_ns in self.settings.own(name, subject).raises if now_ns < until_ns]

    def _changed(self, name: str) -> set[str]:
        return {each.subject for each in self.changes if each.name == name}


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who changes something, when, and why."""

    author: str
    now_ns: int
    note: str = ""


def set_budget(known: Catalogue, name: str, given: BudgetConfig, stamp: Stamp) -> Change:
    """A new budget, or other settings for one that was set. Raises `BudgetError`."""
    if _NAME.fullmatch(name) is None:
        raise BudgetError("name", "a budget's name has up to 64 letters, digits, `.`, `_` and `-`, and begins with a letter or a digit")
    if known.configures(name):
        raise BudgetError("name", f"{name} stands in config.toml, which hides what is set here: change it there; single limits can be set")
    if _has_common_limits(known, name):  # of the time when it stood in config.toml: it would hide the new one
        raise BudgetError("name", f"a limit is set for every account of {name}, whatever the budget says: remove {name} first")
    return _change(name, "set", stamp, budget=budget_of(name, given))


def set_limits(known: Catalogue, name: str, subject: str, limits: tuple[int | None, int | None], stamp: Stamp) -> Change:
    """The limit and the soft limit of one account; with the empty subject those of the budget. None leaves one as it is.

    Raises:
        BudgetError: there is no such budget, no such account of it, or the limits make no sense.
    """
    limit, soft = limits
    budget = known.budget(name)
    check_subject(budget, subject)
    if limit is None and soft is None:
        raise BudgetError("limit", "give `limit` or `soft`")
    holding = known.account(name, subject, stamp.now_ns).limit_nusd if limit is None else limit
    if soft is not None and holding is not None and soft > holding:
        raise BudgetError("soft", f"the soft limit is above the limit, {usd(holding)}, so that it would never warn")
    if subject or known.configures(name) or _has_common_limits(known, name):
        return _change(name, "set", stamp, subject=subject, limit_nusd=limit, soft_nusd=soft)
    most = budget.limit_nusd if limit is None else limit
    warned_at = budget.soft_nusd if soft is None else soft
    if most is not None and warned_at is not None:  # a limit that is lowered takes the soft one along, or nothing else could be changed
        warned_at = min(warned_at, most)
    changed = replace(budget, limit_nusd=most, soft_nusd=warned_at)
    return _change(name, "set", stamp, budget=changed)


def raise_limit(known: Catalogue, name: str, subject: str, raised: tuple[int, int], stamp: Stamp) -> Change:
    """So much more for one account until a time; with the empty subject for every account of the budget. Raises `BudgetError`."""
    by, until_ns = raised
    budget = known.budget(name)
    check_subject(budget, subject)
    if not known.has_limit(name, subject, stamp.now_ns):
        raise BudgetError("name", f"{name}{'/' if subject else ''}{shown(subject)} has no limit that could be raised")
    if by <= 0:
        raise BudgetError("by", "a limit is raised by more than nothing")
    if until_ns <= stamp.now_ns:
        raise BudgetError("until", "lies in the past")
    return _change(name, "raise", stamp, subject=subject, limit_nusd=by, until_ns=until_ns)


def remove(known: Catalogue, name: str, subject: str, stamp: Stamp) -> Change:
    """Take back what was set. Raises `BudgetError` where nothing was."""
    if not known.has_set(name, subject):
        if not known.configures(name):
            known.budget(name)  # says that there is none
        where = "; what stands in config.toml is removed there" if known.configures(name) else ""
        raise BudgetError("name", f"nothing is set for {name}{'/' if subject else ''}{shown(subject)}{where}")
    return _change(name, "remove", stamp, subject=subject)


def check_subject(budget: Budget, subject: str) -> None:
    """Raise `BudgetError` for what can have no account of the budget; the empty subject stands for all of them."""
    if not subject:
        return
    scope = budget.scope
    own = subject.partition("/")[2] if scope in UNDER_KEY else subject
    if scope in UNDER_KEY and (not own or subject.startswith("/")):
        raise BudgetError("subject", f"a {scope} counts under its key: KEY_ID/NAME; `lockgate keys list` shows the ids")
    if scope == "tag" and "=" not in subject:
        raise BudgetError("subject", "a tag is NAME=VALUE")
    if scope == "all" and subject != EVERYTHING:
        raise BudgetError("subject", f"a budget of the scope `all` has the one subject {EVERYTHING!r}")
    if not any(fnmatchcase(own, glob) for glob in budget.of):
        raise BudgetError("subject", f"{budget.name} does not bind {shown(own)!r}: it is for {', '.join(map(shown, budget.of))}")


def check_author(author: str) -> None:
    """Raise `BudgetError` for what is no name of somebody."""
    if not author.strip():
        raise BudgetError("author", "is empty: say who you are")
    check_text("author", author)


def shown(text: str) -> str:
    """A name as a message repeats it: not at any length, and without a key that somebody took for it."""
    text = Scrubber(()).text(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _has_common_limits(known: Catalogue, name: str) -> bool:
    """Whether limits are set for every account of a budget, beside the budget itself."""
    own = known.settings.own(name, "")
    return own.limit_nusd is not None or own.soft_nusd is not None


def _change(name: str, kind: Literal["set", "raise", "remove"], stamp: Stamp, *, subject: str = "", **more: Any) -> Change:
    check_author(stamp.author)
    check_text("note", stamp.note)
    check_text("subject", subject)
    return Change(0, stamp.now_ns, stamp.author, kind, name, subject, note=stamp.note, **more)


def check_text(key: str, text: str) -> None:
    """Raise `BudgetError` for what cannot be shown to others as it is; `key` is one of `LONGEST`."""
    if len(text) > LONGEST[key]:
        raise BudgetError(key, f"has {len(text)} characters, and may have {LONGEST[key]}")
    if not text.isprintable():
        raise BudgetError(key, "holds characters that cannot be shown")
    if Scrubber(()).text(text) != text:
        raise BudgetError(key, "holds a virtual key, which belongs to its owner alone; what stands here is shown to others")
