"""Virtual keys on SQLite. Each change raises `keys_generation` in its own transaction, so that every process notices."""

import json
from collections.abc import Sequence
from typing import Any, Final

from gateway.errors import StoreError
from gateway.store.database import Connection
from gateway.store.library import sqlite3
from gateway.store.protocol import StoredKey
from gateway.store.reader import Reader
from gateway.store.writer import Do, Writer

_COLUMNS: Final = "id, name, digest, team, org, roles, routes, created_ns, expires_ns, revoked_ns"
_OWN: Final = "INSERT INTO key_owners (key, owner) VALUES (?, ?)"
_INSERT: Final = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - a constant
_ALL: Final = (
    f"SELECT {_COLUMNS}, owner FROM keys LEFT JOIN key_owners ON key_owners.key = keys.id "  # noqa: S608 - a constant
    "ORDER BY created_ns, keys.rowid")
_REVOKE: Final = "UPDATE keys SET revoked_ns = ? WHERE id = ? AND revoked_ns IS NULL"
_REPLACE: Final = """
UPDATE keys SET digest = ? WHERE id = ? AND revoked_ns IS NULL AND (expires_ns IS NULL OR expires_ns > ?)
"""
_GENERATION: Final = "SELECT value FROM counters WHERE name = 'keys_generation'"
_CHANGED: Final = "UPDATE counters SET value = value + 1 WHERE name = 'keys_generation'"


class SqliteKeys:
    """`Keys` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def create(self, key: StoredKey) -> None:
        await self._writer.write(Do(lambda connection: _create(connection, key)))

    async def all(self) -> tuple[int, Sequence[StoredKey]]:
        return await self._reader.read(all_keys)

    async def generation(self) -> int:
        return await self._reader.read(_generation)

    async def revoke(self, key_id: str, *, now_ns: int) -> bool:
        return await self._writer.write(Do(lambda connection: _change(connection, _REVOKE, (now_ns, key_id))))

    async def replace_digest(self, key_id: str, digest: bytes, *, now_ns: int) -> bool:
        return await self._writer.write(Do(lambda connection: _change(connection, _REPLACE, (digest, key_id, now_ns))))


def all_keys(connection: Connection) -> tuple[int, Sequence[StoredKey]]:
    """The generation and every key of one moment, oldest first."""
    connection.execute("BEGIN")
    try:
        rows = connection.execute(_ALL).fetchall()
        return _generation(connection), [_key(row) for row in rows]
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _key(row: Sequence[Any]) -> StoredKey:
    key_id, name, digest, team, org, roles, routes, created_ns, expires_ns, revoked_ns, owner = row
    return StoredKey(
        key_id, name, digest, team, org, tuple(json.loads(roles)), tuple(json.loads(routes)),
        created_ns=created_ns, expires_ns=expires_ns, revoked_ns=revoked_ns, owner=owner or "",
    )


def _generation(connection: Connection) -> int:
    value: int = connection.execute(_GENERATION).fetchone()[0]
    return value


def _create(connection: Connection, key: StoredKey) -> None:
    values = (
        key.id, key.name, key.digest, key.team, key.org, json.dumps(key.roles), json.dumps(key.routes),
        key.created_ns, key.expires_ns, key.revoked_ns,
    )
    try:
        connection.execute(_INSERT, values)
    except sqlite3.IntegrityError as error:
        raise StoreError(f"there is a key {key.id} already") from error
    if key.owner:
        connection.execute(_OWN, (key.id, key.owner))
    connection.execute(_CHANGED)


def _change(connection: Connection, statement: str, values: tuple[object, ...]) -> bool:
    if connection.execute(statement, values).rowcount == 0:
        return False
    connection.execute(_CHANGED)
    return True
