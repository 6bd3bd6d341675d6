"""Budgets on the store's threads: questions go to the reader, money and changes through the writer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from gateway.core.accounts import BudgetBook, Change, Settings, Subjects
from gateway.core.budget import MOST_NUSD, Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.errors import StoreError
from gateway.store.budget_reads import balance_windows, ledger_costs, listed_accounts, standings_of, suspect_calls
from gateway.store.database import Connection
from gateway.store.journal import Enlarge, OpenCalls
from gateway.store.protocol import AccountFilter, Standing
from gateway.store.reader import Reader
from gateway.store.settings_sql import KnownSettings, check_change, read_changes
from gateway.store.writer import Do, Writer

T = TypeVar("T")

_LONGEST_AUTHOR: Final = 256


class SqliteBudgets:
    """`Budgets` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader, calls: OpenCalls) -> None:
        self._writer = writer
        self._reader = reader
        self._calls = calls
        self._till = calls.till
        self._settings = KnownSettings()  # the reader's

    async def standing(self, book: BudgetBook, subjects: Subjects, *, now_ns: int) -> Sequence[Standing]:
        return await self._read(lambda connection, settings: standings_of(connection, book, settings, subjects, now_ns))

    async def extend(self, call_id: str, need: Need, *, spent_nusd: int) -> Granted | Short:
        return await self._writer.write(Enlarge(self._calls, call_id, need, spent_nusd))

    async def take(self, takes: Sequence[Take], *, now_ns: int) -> Spent | None:
        return await self._writer.write(Do(lambda connection: self._till.take(connection, takes, now_ns)))

    async def change(self, change: Change) -> Change:
        check_change(change)
        return await self._writer.write(Do(lambda connection: self._till.settings.add(connection, change)))

    async def changes(self, name: str | None = None) -> Sequence[Change]:
        return await self._reader.read(lambda connection: read_changes(connection, name))

    async def accounts(self, book: BudgetBook, wanted: AccountFilter, *, now_ns: int) -> Sequence[Standing]:
        return await self._read(lambda connection, settings: listed_accounts(connection, book, settings, wanted, now_ns))

    async def windows(self, budget: str, subject: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._reader.read(lambda connection: balance_windows(connection, budget, subject, limit))

    async def suspects(self, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._read(lambda connection, _settings: suspect_calls(connection, limit))

    async def resolve(self, call_id: str, cost_nusd: int | None, *, author: str, now_ns: int) -> bool:
        if cost_nusd is not None and not 0 <= cost_nusd <= MOST_NUSD:
            raise StoreError(f"a call costs between 0 and {MOST_NUSD} nano-USD")
        if len(author) > _LONGEST_AUTHOR:
            raise StoreError(f"the author of a change has {_LONGEST_AUTHOR} characters at most")
        return await self._writer.write(Do(lambda connection: self._till.resolve(connection, call_id, cost_nusd, author, now_ns)))

    async def costs(self, by: str, since_ns: int, until_ns: int, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._read(lambda connection, _settings: ledger_costs(connection, by, (since_ns, until_ns), limit))

    async def _read(self, query: Callable[[Connection, Settings], T]) -> T:
        return await self._reader.read(lambda connection: self._of_one_moment(connection, query))

    def _of_one_moment(self, connection: Connection, query: Callable[[Connection, Settings], T]) -> T:
        """Settings and balances of the same moment: one transaction. Runs in the reading thread."""
        connection.execute("BEGIN")
        try:
            self._settings.begin()
            return query(connection, self._settings.of(connection))
        except ValueError as error:  # a row that somebody has written by hand
            raise StoreError(f"the books cannot be read: {error}; `lockgate doctor` says which row is wrong") from error
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
