"""Breakers on SQLite: the table of `core/breaker.py`, applied to a row inside the writer's transaction."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.core.breaker import Breaker, Pass, State, Step, after
from gateway.store.database import Connection
from gateway.store.reader import Reader
from gateway.store.rows import json_text, text
from gateway.store.writer import Do, Writer

_COLUMNS: Final = (
    "target, state, changes, since_ns, until_ns, cooling_ns, trips, succeeded, permits, cause, author, note, generation"
)
_ALL: Final = f"SELECT {_COLUMNS} FROM breakers ORDER BY target"  # noqa: S608 - a constant
_ONE: Final = f"SELECT {_COLUMNS} FROM breakers WHERE target = ?"  # noqa: S608 - a constant
_WRITE: Final = f"INSERT OR REPLACE INTO breakers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - a constant
_GENERATION: Final = "SELECT value FROM counters WHERE name = 'breakers_generation'"
_CHANGED: Final = "UPDATE counters SET value = value + 1 WHERE name = 'breakers_generation'"
_PRUNE: Final = "DELETE FROM breakers WHERE since_ns < ? AND target NOT IN (SELECT value FROM json_each(?))"


class SqliteBreakers:
    """`Breakers` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def apply(self, target: str, step: Step) -> tuple[Breaker, Breaker]:
        return await self._writer.write(Do(lambda connection: _apply(connection, target, step)))

    async def all(self) -> tuple[int, Sequence[Breaker]]:
        return await self._reader.read(_all)

    async def generation(self) -> int:
        return await self._reader.read(_generation)

    async def prune(self, keep: Collection[str], *, before_ns: int) -> int:
        return await self._writer.write(Do(lambda connection: _prune(connection, keep, before_ns)))


def _apply(connection: Connection, target: str, step: Step) -> tuple[Breaker, Breaker]:
    target = text(target)
    row = connection.execute(_ONE, (target,)).fetchone()
    before = (None if row is None else _breaker(row)) or Breaker(target)
    now = after(before, replace(step, author=text(step.author), note=text(step.note)))
    if now is before:
        return before, before
    connection.execute(_CHANGED)
    now = replace(now, generation=_generation(connection))
    connection.execute(_WRITE, (
        target, now.state.value, now.changes, now.since_ns, now.until_ns, now.cooling_ns, now.trips, now.succeeded,
        json_text(now.permits), now.cause, now.author, now.note, now.generation))
    return before, now


def _all(connection: Connection) -> tuple[int, Sequence[Breaker]]:
    connection.execute("BEGIN")
    try:
        rows = connection.execute(_ALL).fetchall()
        return _generation(connection), [breaker for breaker in map(_breaker, rows) if breaker is not None]
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _generation(connection: Connection) -> int:
    value: int = connection.execute(_GENERATION).fetchone()[0]
    return value


def _prune(connection: Connection, keep: Collection[str], before_ns: int) -> int:
    gone: int = connection.execute(_PRUNE, (before_ns, json_text([text(each) for each in keep]) or "[]")).rowcount
    if gone:
        connection.execute(_CHANGED)
    return gone


def _breaker(row: Sequence[Any]) -> Breaker | None:
    """None for a row that was written by hand, and wrongly: its target is then no worse off than one that nothing ever happened to."""
    target, state, changes, since_ns, until_ns, cooling_ns, trips, succeeded, permits, cause, author, note, generation = row
    try:
        out = tuple([Pass(str(holder), float(lease_s), int(end_ns)) for holder, lease_s, end_ns in orjson.loads(permits or "[]")])
        known = State(state)
    except (ValueError, TypeError):
        return None
    return Breaker(target, known, changes, since_ns, until_ns, cooling_ns, trips, succeeded, out, cause, author, note, generation)
