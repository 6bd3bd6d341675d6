"""The outbox on SQLite: notices stay until they are delivered, and of several processes one has each of them at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.store.approval_rows import NOTICE_COLUMNS, NOTICE_FIELDS, notice_of, notice_row
from gateway.store.approvals_protocol import Notice
from gateway.store.approvals_sql import add_notices
from gateway.store.database import Connection
from gateway.store.reader import Reader
from gateway.store.rows import text
from gateway.store.writer import Do, Writer

_DUE: Final = f"""
SELECT {", ".join(NOTICE_COLUMNS)}, attempts FROM outbox WHERE done_ns IS NULL AND dead = 0 AND due_ns <= ? AND until_ns <= ?
ORDER BY due_ns, rowid LIMIT ?
"""  # noqa: S608 - constants
_TAKE: Final = "UPDATE outbox SET holder = ?, until_ns = ?, attempts = attempts + 1 WHERE id = ?"
_DONE: Final = "UPDATE outbox SET done_ns = ?, holder = '', until_ns = 0, error = '' WHERE id = ? AND done_ns IS NULL"
_LATER: Final = "UPDATE outbox SET due_ns = ?, error = ?, dead = ?, holder = '', until_ns = 0 WHERE id = ? AND done_ns IS NULL"
_LIST: Final = f"SELECT {', '.join(NOTICE_FIELDS)} FROM outbox ORDER BY rowid DESC LIMIT ?"  # noqa: S608 - constants


class SqliteOutbox:
    """`Outbox` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def add(self, notices: Sequence[Notice]) -> None:
        await self._writer.write(Do(lambda connection: add_notices(connection, notices)))

    async def take(self, holder: str, *, now_ns: int, until_ns: int, limit: int) -> Sequence[Notice]:
        return await self._writer.write(Do(lambda connection: _take(connection, holder, now_ns, until_ns, limit)))

    async def done(self, notice_id: str, *, now_ns: int) -> None:
        await self._writer.write(Do(lambda connection: connection.execute(_DONE, (now_ns, text(notice_id))).rowcount))

    async def later(self, notice_id: str, *, due_ns: int, error: str, dead: bool) -> None:
        values = due_ns, text(error), int(dead), text(notice_id)
        await self._writer.write(Do(lambda connection: connection.execute(_LATER, values).rowcount))

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        rows = await self._reader.read(lambda connection: connection.execute(_LIST, (max(limit, 0),)).fetchall())
        return [notice_row(row) for row in rows]


def _take(connection: Connection, holder: str, now_ns: int, until_ns: int, limit: int) -> list[Notice]:
    rows = connection.execute(_DUE, (now_ns, now_ns, max(limit, 0))).fetchall()
    for row in rows:
        connection.execute(_TAKE, (text(holder), until_ns, row[0]))
    return [notice_of(row[:-1], row[-1] + 1) for row in rows]
