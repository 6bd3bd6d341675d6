"""What operators have set, on SQLite: changes as rows, and the settings that they add up to."""

from dataclasses import asdict, replace
from typing import Any, Final

import orjson

from gateway.core.accounts import Budget, Change, Settings
from gateway.core.budget import MOST_NUSD
from gateway.core.windows import Window
from gateway.errors import StoreError
from gateway.store.database import Connection
from gateway.store.rows import json_text, text

_COLUMNS: Final = "id, at_ns, author, kind, name, subject, budget, limit_nusd, soft_nusd, until_ns, note"
_NEWER: Final = f"SELECT {_COLUMNS} FROM budget_changes WHERE id > ? ORDER BY id"  # noqa: S608 - a constant
_LISTED: Final = f"SELECT {_COLUMNS} FROM budget_changes WHERE ? IS NULL OR name = ? ORDER BY id"  # noqa: S608 - a constant
_INSERT: Final = """
INSERT INTO budget_changes (at_ns, author, kind, name, subject, budget, limit_nusd, soft_nusd, until_ns, note)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SUBJECTS: Final = "SELECT DISTINCT subject FROM budget_changes WHERE name = ? AND subject != ''"
_LONGEST: Final = {"name": 64, "subject": 1024, "author": 256, "note": 4096}
_LARGEST_BUDGET: Final = 262_144  # characters of JSON
_LATEST_NS: Final = 2**63 - 1


class KnownSettings:
    """What operators have set, as one connection last saw it: changes are only ever added, so only the newer ones are read."""

    def __init__(self) -> None:
        self._committed = Settings()
        self._now: Settings | None = None

    def begin(self) -> None:
        """Another transaction: others may have changed something since, and what this process changed may be rolled back."""
        self._now = None

    def of(self, connection: Connection) -> Settings:
        """What holds in this transaction. Raises `StoreError` where a change cannot be read: no limit is guessed."""
        if self._now is None:
            newer = [_change(row) for row in connection.execute(_NEWER, (self._committed.last,)).fetchall()]
            if newer:
                self._committed = self._committed.after(newer)
            self._now = self._committed
        return self._now

    def add(self, connection: Connection, change: Change) -> Change:
        """Write a change; from here on the transaction knows of it."""
        before = self.of(connection)
        change = replace(change, name=text(change.name), subject=text(change.subject), author=text(change.author), note=text(change.note))
        row_id = connection.execute(_INSERT, (
            change.at_ns, change.author, change.kind, change.name, change.subject, _budget_text(change.budget),
            change.limit_nusd, change.soft_nusd, change.until_ns, change.note)).lastrowid
        kept = replace(change, id=row_id)
        self._now = before.after((kept,))
        return kept


def check_change(change: Change) -> None:
    """Raise `StoreError` for a change that no budget could be made of, or that no column holds."""
    for field, longest in _LONGEST.items():
        if len(getattr(change, field)) > longest:
            raise StoreError(f"the {field} of a change has {longest} characters at most")
    if not change.name:
        raise StoreError("a change names the budget that it is about")
    amounts = [change.limit_nusd, change.soft_nusd]
    if change.budget is not None:
        _check_budget(change, change.budget)
        amounts += [change.budget.limit_nusd, change.budget.soft_nusd, *change.budget.limits.values()]
    if any(amount is not None and not 0 <= amount <= MOST_NUSD for amount in amounts):
        raise StoreError(f"an amount of the budget {change.name} is below 0 or above {MOST_NUSD} nano-USD")
    if change.kind == "raise" and (not change.limit_nusd or change.until_ns is None):
        raise StoreError("a raise says by how much and until when")
    if change.until_ns is not None and not 0 <= change.until_ns <= _LATEST_NS:
        raise StoreError("the end of a raise is no time that can be kept")


def _check_budget(change: Change, budget: Budget) -> None:
    if change.kind != "set" or change.subject or budget.name != change.name:
        raise StoreError(f"the change of {change.name} gives another budget, or gives one where it may not")
    if len(_budget_text(budget)) > _LARGEST_BUDGET:
        raise StoreError(f"the budget {change.name} is too large: it may have {_LARGEST_BUDGET} characters")
    try:
        budget.window.at(0)
    except (KeyError, ValueError, OSError) as error:
        raise StoreError(f"the budget {change.name} is in a time zone that is not known here: {error}") from error


def read_changes(connection: Connection, name: str | None) -> list[Change]:
    """Every change, or those of one budget, in order."""
    known = None if name is None else text(name)
    return [_change(row) for row in connection.execute(_LISTED, (known, known)).fetchall()]


def changed_subjects(connection: Connection, name: str) -> list[str]:
    """The subjects of a budget for which something was ever set."""
    return [row[0] for row in connection.execute(_SUBJECTS, (name,)).fetchall()]


def _budget_text(budget: Budget | None) -> str:
    return "" if budget is None else json_text(asdict(budget))


def _change(row: Any) -> Change:
    change_id, at_ns, author, kind, name, subject, budget, limit_nusd, soft_nusd, until_ns, note = row
    try:
        given = _budget(orjson.loads(budget)) if budget else None
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise StoreError(f"change {change_id} of the budgets cannot be read ({error}); repair its row of `budget_changes`") from error
    return Change(change_id, at_ns, author, kind, name, subject, given, limit_nusd, soft_nusd, until_ns, note)


def _budget(given: dict[str, Any]) -> Budget:
    budget = Budget(**{**given, "window": Window(**given["window"]), "of": tuple(given["of"]), "limits": dict(given["limits"])})
    budget.window.at(0)  # another machine may have known its time zone
    return budget
