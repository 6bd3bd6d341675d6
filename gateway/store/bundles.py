"""Bundles on SQLite: the rules that calls were decided under, each kept once."""

from typing import Final

from gateway.errors import StoreError
from gateway.store.bodies import pack, unpack
from gateway.store.database import Connection
from gateway.store.reader import Reader
from gateway.store.writer import Do, Writer

_KEEP: Final = "INSERT INTO bundles (digest, first_ns, encoding, content) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_CONTENT: Final = "SELECT encoding, content FROM bundles WHERE digest = ?"


class SqliteBundles:
    """`Bundles` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def keep(self, digest: str, content: bytes, *, now_ns: int) -> None:
        await self._writer.write(Do(lambda connection: _keep(connection, (digest, now_ns, *pack(content)))))

    async def content(self, digest: str) -> bytes | None:
        return await self._reader.read(lambda connection: bundle_content(connection, digest))


def bundle_content(connection: Connection, digest: str) -> bytes | None:
    """The content of a bundle; None for an unknown digest. Raises `StoreError` where it is damaged."""
    row = connection.execute(_CONTENT, (digest,)).fetchone()
    try:
        return None if row is None else unpack(*row)
    except ValueError as error:
        raise StoreError(f"the bundle {digest} cannot be read: {error}; restore a backup of the database") from error


def _keep(connection: Connection, values: tuple[object, ...]) -> None:
    connection.execute(_KEEP, values)
