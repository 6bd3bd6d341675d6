"""The money of calls, inside the writer's transactions: set aside with an intent, resolved with an outcome, exactly once.

Several calls of a batch share one view of the balances, so a budget costs a read and a write a batch, not a call. What is kept beyond a
transaction, what this process's own calls hold, is known only once it is on disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.accounts import BudgetBook, Subjects
from gateway.core.budget import MOST_NUSD, Granted, Holding, Need, Short, admit, crossed, reserved
from gateway.core.rate import Spent, Take
from gateway.errors import StoreError
from gateway.store.balances_sql import Balances, Place, Sheet, place_of, seats_of, standings
from gateway.store.database import Connection
from gateway.store.protocol import NOTHING_BOOKED, Admitted, Booked, Demand, Standing
from gateway.store.rates_sql import Rates
from gateway.store.rows import Bill, json_text, text
from gateway.store.settings_sql import KnownSettings
from gateway.store.writer import Shared

_Counts: TypeAlias = dict[tuple[str, str, str], int]

_RESERVE: Final = "INSERT INTO reservations (seq, amount_nusd, units, balances, takes) VALUES (?, ?, NULLIF(?, -1), ?, ?)"
_GROW: Final = "UPDATE reservations SET amount_nusd = ?, units = NULLIF(?, -1) WHERE seq = ?"
_RESERVED: Final = "SELECT amount_nusd, balances, takes FROM reservations WHERE seq = ?"
_SETTLE: Final = "INSERT INTO settlements (seq, at_ns, cost_nusd, how, suspect, author) VALUES (?, ?, ?, ?, ?, '')"
_LINE: Final = """
INSERT INTO ledger (seq, n, at_ns, provider, model, cost_nusd, estimated, images, prices) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SUSPECT: Final = """
SELECT settlements.seq, cost_nusd, balances FROM settlements JOIN calls USING (seq) JOIN reservations USING (seq)
WHERE calls.id = ? AND suspect = 1
"""
_RESOLVE: Final = "UPDATE settlements SET cost_nusd = ?, how = 'resolved', suspect = 0, author = ? WHERE seq = ?"
_CORRECT: Final = """
INSERT INTO ledger (seq, n, at_ns, provider, model, cost_nusd, estimated, images, prices)
SELECT seq, 0, ?, provider, model, ?, 0, 0, ? FROM ledger WHERE seq = ? ORDER BY n DESC LIMIT 1
"""
# What the ledger says of where a price comes from, of lines that no price list made.
_BY_RESERVATION: Final = "reservation"
_BY_OPERATOR: Final = "operator"
_NOT_LIMITED: Final = -1


@dataclass(frozen=True, slots=True)
class Held:
    """What a call of this process holds until it ends. `takes` are those that are corrected or given back then."""

    amount_nusd: int
    places: tuple[Place, ...] = ()
    takes: tuple[Take, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A demand that can be met: what is to be written once the call is on record."""

    places: tuple[Place, ...]
    holdings: Sequence[Holding]
    granted: Granted
    counts: _Counts
    takes: tuple[Take, ...]


class Till(Shared):
    """What the writer's jobs know of money and rates."""

    def __init__(self) -> None:
        self.settings = KnownSettings()
        self._balances = Balances()
        self._rates = Rates()
        self._held: dict[str, Held] = {}
        self._changed: dict[str, Held | None] = {}  # None: it ended in this transaction

    def __repr__(self) -> str:
        return f"Till(held={len(self._held)})"

    def begin(self) -> None:
        self.settings.begin()
        self._balances = Balances()
        self._rates = Rates()
        self._changed = {}

    def flush(self, connection: Connection) -> None:
        self._balances.flush(connection)
        self._rates.flush(connection)

    def committed(self) -> None:
        for call_id, held in self._changed.items():
            if held is None:
                self._held.pop(call_id, None)
            else:
                self._held[call_id] = held

    def ask(self, connection: Connection, demand: Demand, now_ns: int) -> Asked | Short | Spent:
        """Whether a demand can be met. Changes nothing. The rates come first: they say when to come back."""
        counts = self._rates.after(connection, demand.takes, now_ns) if demand.takes else {}
        if isinstance(counts, Spent):
            return counts
        places = self._places(connection, demand.book, demand.subjects, now_ns)
        holdings = self._holdings(connection, places)
        granted = admit(holdings, demand.need)
        if isinstance(granted, Short):
            return granted
        _expect_room(holdings, granted.amount_nusd)
        return Asked(places, holdings, granted, counts, tuple([take for take in demand.takes if take.measure != "requests"]))

    def hold(self, connection: Connection, seq: int, call_id: str, asked: Asked) -> Admitted:
        """Take what was asked for, for the call that is on record at `seq`."""
        self._rates.keep(asked.counts)
        amount = asked.granted.amount_nusd
        self._changed[call_id] = Held(amount, asked.places, asked.takes)
        if not asked.places and not asked.takes:
            return Admitted(asked.granted)
        sheets = [self._balances.sheet(connection, place) for place in asked.places]
        for sheet, place in zip(sheets, asked.places, strict=True):
            sheet.set_aside(amount, place.account.limit_nusd)
        connection.execute(_RESERVE, (
            seq, amount if asked.places else 0, _units(asked.granted), json_text([sheet.id for sheet in sheets]), _takes_text(asked.takes)))
        return Admitted(asked.granted, tuple([
            Standing(place.account, reserved(each.counted, amount), place.window_ns, place.ends_ns)
            for place, each in zip(asked.places, asked.holdings, strict=True)]))

    def grow(self, connection: Connection, seq: int, call_id: str, need: Need, spent_nusd: int) -> Granted | Short:
        """Set more aside for a call under way, in its own windows and under the limits that it began with."""
        held = self._of(call_id)
        if held is None:
            raise StoreError(f"call {call_id} is not under way, so no money can be set aside for it")
        holdings = self._holdings(connection, held.places)
        granted = admit(holdings, need, spent_nusd=spent_nusd, reserved_nusd=held.amount_nusd)
        if isinstance(granted, Short):
            return granted
        amount = granted.amount_nusd
        more = amount - held.amount_nusd
        _expect_room(holdings, more)
        self._changed[call_id] = replace(held, amount_nusd=amount)
        for place in held.places:
            self._balances.sheet(connection, place).set_aside(more, place.account.limit_nusd)
        if held.places:
            connection.execute(_GROW, (amount, _units(granted), seq))
        return granted

    def settle(self, connection: Connection, seq: int, call_id: str, bill: Bill) -> Booked:
        """Book a call's lines and resolve what it held, in the windows that it began in."""
        for line in bill.lines:
            connection.execute(_LINE, (seq, *line))
        held = self._of(call_id)
        self.forget(call_id)
        if held is None:  # begun by another process, and ended by this one
            stored = self._stored(connection, seq)
            if stored is not None:
                self._resolve(connection, seq, stored, bill)
            return NOTHING_BOOKED
        if not held.places and not held.takes:
            return NOTHING_BOOKED
        before = [self._balances.counted(connection, place) for place in held.places]
        sheets = [self._balances.sheet(connection, place) for place in held.places]
        self._resolve(connection, seq, _Stored(held.amount_nusd, sheets, held.takes), bill)
        after = standings(connection, self._balances, held.places)
        reached = tuple([now.account for was, now in zip(before, after, strict=True) if crossed(now.account, was, now.counted)])
        return Booked(after, reached, max(0, bill.cost_nusd - held.amount_nusd) if sheets else 0)

    def forget(self, call_id: str) -> None:
        """A call of this process has ended, by whoever's hand."""
        self._changed[call_id] = None

    def recover(self, connection: Connection, seq: int, last: Sequence[Any] | None, now_ns: int) -> int | None:
        """Resolve what a call of a dead process held, by what was set aside for it; that amount, None where nothing was.

        `last` is the number, provider and model of the last attempt that may have been sent.
        """
        stored = self._stored(connection, seq)
        if stored is None:
            return None
        cost = stored.amount_nusd if last is not None else 0
        for sheet in stored.sheets:
            sheet.settle(stored.amount_nusd, cost)
        self._rates.end(connection, stored.takes, None, now_ns)
        connection.execute(_SETTLE, (seq, now_ns, cost, "recovered", 1 if cost else 0))
        if last is None or not cost:
            return None
        n, provider, model = last
        connection.execute(_LINE, (seq, n, now_ns, provider, model, cost, 1, 0, _BY_RESERVATION))
        return cost

    def resolve(self, connection: Connection, call_id: str, cost_nusd: int | None, author: str, now_ns: int) -> bool:
        """See `Budgets.resolve`."""
        found = connection.execute(_SUSPECT, (text(call_id),)).fetchone()
        if found is None:
            return False
        seq, booked, ids = found
        difference = 0 if cost_nusd is None else cost_nusd - booked
        connection.execute(_RESOLVE, (booked + difference, text(author), seq))
        if difference:
            connection.execute(_CORRECT, (now_ns, difference, _BY_OPERATOR, seq))
            for sheet in self._sheets(connection, ids):
                sheet.settle(0, difference)
        return True

    def take(self, connection: Connection, takes: Sequence[Take], now_ns: int) -> Spent | None:
        """See `Budgets.take`."""
        counts = self._rates.after(connection, takes, now_ns)
        if isinstance(counts, Spent):
            return counts
        self._rates.keep(counts)
        return None

    def _of(self, call_id: str) -> Held | None:
        """What a call under way holds; None where it has ended, or is another process's."""
        return self._changed[call_id] if call_id in self._changed else self._held.get(call_id)

    def _places(self, connection: Connection, book: BudgetBook, subjects: Subjects, now_ns: int) -> tuple[Place, ...]:
        settings = self.settings.of(connection)
        if not book.budgets and not settings.book.budgets:
            return ()
        return tuple([place_of(*seat) for seat in seats_of(book, settings, subjects, now_ns)])

    def _holdings(self, connection: Connection, places: Sequence[Place]) -> list[Holding]:
        return [Holding(place.account, place.window_ns, self._balances.counted(connection, place)) for place in places]

    def _stored(self, connection: Connection, seq: int) -> "_Stored | None":
        """A reservation from its row."""
        row = connection.execute(_RESERVED, (seq,)).fetchone()
        if row is None:
            return None
        amount, ids, takes = row
        return _Stored(amount, self._sheets(connection, ids), tuple([Take(*each) for each in orjson.loads(takes or "[]")]))

    def _sheets(self, connection: Connection, ids: str) -> list[Sheet]:
        found = [self._balances.by_id(connection, balance_id) for balance_id in orjson.loads(ids or "[]")]
        return [sheet for sheet in found if sheet is not None]

    def _resolve(self, connection: Connection, seq: int, held: "_Stored", bill: Bill) -> None:
        for sheet in held.sheets:
            sheet.settle(held.amount_nusd, bill.cost_nusd)
        if held.takes:
            self._rates.end(connection, held.takes, bill.tokens, bill.at_ns)
        connection.execute(_SETTLE, (seq, bill.at_ns, bill.cost_nusd, "settled" if bill.sent else "released", 0))


@dataclass(frozen=True, slots=True)
class _Stored:
    """A reservation with its balances."""

    amount_nusd: int
    sheets: Sequence[Sheet]
    takes: tuple[Take, ...]


def _expect_room(holdings: Sequence[Holding], amount_nusd: int) -> None:
    """Refuse what no column holds: without a limit nothing else would."""
    for each in holdings:
        if each.counted.pending + amount_nusd > MOST_NUSD:
            raise StoreError(f"the account {each.account.name} cannot have more than {MOST_NUSD} nano-USD set aside")


def _units(granted: Granted) -> int:
    return _NOT_LIMITED if granted.units is None else granted.units


def _takes_text(takes: Sequence[Take]) -> str:
    return json_text([[take.rule, take.whose, take.measure, take.most, take.period_ns, take.amount] for take in takes])
