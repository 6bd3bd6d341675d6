"""Balances as one transaction sees them: each is read once and written once, however many calls of the batch are on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from gateway.core.accounts import Account, BudgetBook, Settings, Subjects, accounts_of
from gateway.core.budget import MOST_NUSD, Balance, counted, reserved, settled
from gateway.errors import StoreError
from gateway.store.database import Connection
from gateway.store.protocol import Standing
from gateway.store.rows import text

_COLUMNS: Final = "window_ns, id, posted_nusd, pending_nusd, limit_nusd, over_nusd"
_RANGE: Final = f"SELECT {_COLUMNS} FROM balances WHERE budget = ? AND subject = ? AND span = ? AND window_ns BETWEEN ? AND ?"  # noqa: S608
_BY_ID: Final = f"SELECT budget, subject, span, {_COLUMNS} FROM balances WHERE id = ?"  # noqa: S608 - a constant
_INSERT: Final = """
INSERT INTO balances (budget, subject, span, window_ns, scope, ends_ns, posted_nusd, pending_nusd, limit_nusd, over_nusd)
VALUES (?, ?, ?, ?, ?, ?, 0, 0, NULL, 0)
"""
_UPDATE: Final = "UPDATE balances SET posted_nusd = ?, pending_nusd = ?, limit_nusd = ?, over_nusd = ? WHERE id = ?"
_LONGEST_SUBJECT: Final = 1024
_NOTHING: Final = Balance()
_END_OF_TIME: Final = 2**63 - 1


Seat: TypeAlias = tuple[Account, int]  # an account, and the window of it that a call is in


class Place(NamedTuple):
    """A seat with all that its balance is found and made by. `key` is what its balances are found by: budget, subject, span."""

    account: Account
    window_ns: int
    ends_ns: int | None
    key: tuple[str, str, str]


@dataclass(slots=True)
class Sheet:
    """One row of `balances`."""

    id: int
    balance: Balance = _NOTHING
    limit_nusd: int | None = None
    over_nusd: int = 0
    changed: bool = False

    def set_aside(self, amount_nusd: int, limit_nusd: int | None) -> None:
        """Put so much aside under this limit; nothing leaves the limit of the last time that there was something."""
        if amount_nusd > 0:
            self.balance = reserved(self.balance, amount_nusd)
            self.limit_nusd = limit_nusd
            self.changed = True

    def settle(self, amount_nusd: int, cost_nusd: int) -> None:
        """Give back what was set aside and book the cost; what it is more than that was over."""
        if amount_nusd or cost_nusd:
            self.balance = settled(self.balance, amount_nusd, cost_nusd)
            self.over_nusd = min(self.over_nusd + max(0, cost_nusd - amount_nusd), MOST_NUSD)
            self.changed = True


@dataclass(slots=True)
class _Series:
    """The windows of one account, as far as they were looked at."""

    sheets: dict[int, Sheet] = field(default_factory=dict)
    read: set[tuple[int, int]] = field(default_factory=set)  # stretches of time that were read whole


class Balances:
    """The rows of `balances` that a transaction has looked at. Thrown away at its end."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._by_id: dict[int, Sheet] = {}

    def counted(self, connection: Connection, place: Place) -> Balance:
        """What counts against an account's limit: of a rolling window all of its steps.

        Steps that lie ahead count too: where the clock stepped back, money does not come back with it.
        """
        window = place.account.window
        if window.kind != "rolling":
            sheet = self._find(connection, place)
            return _NOTHING if sheet is None else sheet.balance
        first_ns = window.counts_from(place.window_ns)
        sheets = self._read(connection, place.key, first_ns, _END_OF_TIME).sheets
        return counted([sheet.balance for at_ns, sheet in sheets.items() if at_ns >= first_ns])

    def sheet(self, connection: Connection, place: Place) -> Sheet:
        """The balance of one window; where there is none yet, there is from here on."""
        found = self._find(connection, place)
        if found is None:
            row_id = connection.execute(_INSERT, (*place.key, place.window_ns, place.account.scope, place.ends_ns)).lastrowid
            found = self._series[place.key].sheets[place.window_ns] = self._by_id[row_id] = Sheet(row_id)
        return found

    def by_id(self, connection: Connection, balance_id: int) -> Sheet | None:
        """The balance of this id; None where somebody has removed it."""
        known = self._by_id.get(balance_id)
        row = connection.execute(_BY_ID, (balance_id,)).fetchone() if known is None else None
        if row is None:
            return known
        budget, subject, span, *columns = row
        return self._note(self._series.setdefault((budget, subject, span), _Series()), columns)

    def flush(self, connection: Connection) -> None:
        """Write what has changed."""
        changed = [sheet for sheet in self._by_id.values() if sheet.changed]
        if changed:
            connection.executemany(_UPDATE, [
                (sheet.balance.posted, sheet.balance.pending, sheet.limit_nusd, sheet.over_nusd, sheet.id) for sheet in changed])

    def _find(self, connection: Connection, place: Place) -> Sheet | None:
        series = self._series.get(place.key)
        found = None if series is None else series.sheets.get(place.window_ns)
        return found or self._read(connection, place.key, place.window_ns, place.window_ns).sheets.get(place.window_ns)

    def _read(self, connection: Connection, key: tuple[str, str, str], first_ns: int, last_ns: int) -> _Series:
        """An account with all of its windows of a stretch of time."""
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        if (first_ns, last_ns) not in series.read:
            for row in connection.execute(_RANGE, (*key, first_ns, last_ns)).fetchall():
                self._note(series, row)
            series.read.add((first_ns, last_ns))
        return series

    def _note(self, series: _Series, row: Any) -> Sheet:
        """The sheet of a row; one that is known already knows better than the row."""
        window_ns, balance_id, posted, pending, limit_nusd, over_nusd = row
        known = series.sheets.get(window_ns)
        if known is None:
            known = series.sheets[window_ns] = self._by_id[balance_id] = Sheet(balance_id, Balance(posted, pending), limit_nusd, over_nusd)
        return known


def seats_of(book: BudgetBook, settings: Settings, subjects: Subjects, now_ns: int) -> tuple[Seat, ...]:
    """The accounts that bind these subjects, by names that can be stored, each with its current window."""
    storable = {scope: tuple(map(text, names)) for scope, names in subjects.items()}
    if any(len(name) > _LONGEST_SUBJECT for names in storable.values() for name in names):
        raise StoreError(f"the name of an account's subject has {_LONGEST_SUBJECT} characters at most")
    return tuple([(each, each.window.at(now_ns)) for each in accounts_of(book, settings, storable, now_ns)])


def place_of(account: Account, window_ns: int) -> Place:
    """Where the balance of an account in a window stands."""
    window = account.window
    return Place(account, window_ns, window.ends(window_ns), (account.budget, account.subject, window.span))


def standings(connection: Connection, balances: Balances, places: Sequence[Place]) -> tuple[Standing, ...]:
    """Accounts as they stand."""
    return tuple([Standing(place.account, balances.counted(connection, place), place.window_ns, place.ends_ns) for place in places])
