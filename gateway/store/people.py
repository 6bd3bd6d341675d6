"""Accounts of people and their logins on SQLite. Every change of an account leaves a row that says who made it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.errors import StoreError
from gateway.store.approvals_protocol import Login, Person, Stamped
from gateway.store.database import Connection
from gateway.store.library import sqlite3
from gateway.store.reader import Reader
from gateway.store.rows import json_text, text
from gateway.store.writer import Do, Writer

MOST_LOGINS: Final = 20  # of one person; the oldest end
MOST_NAMES: Final = 40_000  # that passwords were tried for; the oldest are forgotten

_COLUMNS: Final = "id, name, permission, roles, teams, email, password, token, subject, created_ns, disabled_ns"
_INSERT: Final = f"INSERT INTO people ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - a constant
_ALL: Final = f"SELECT {_COLUMNS} FROM people ORDER BY id"  # noqa: S608 - a constant
_BY_ID: Final = f"SELECT {_COLUMNS} FROM people WHERE id = ?"  # noqa: S608 - a constant
_BY_TOKEN: Final = f"SELECT {_COLUMNS} FROM people WHERE token = ? AND token != x''"  # noqa: S608 - a constant
_UPDATE: Final = """
UPDATE people SET name = ?, permission = ?, roles = ?, teams = ?, email = ?, password = ?, token = ?, subject = ?, created_ns = ?,
disabled_ns = ? WHERE id = ?
"""
_EVENT: Final = "INSERT INTO people_events (person, at_ns, what, author, detail) VALUES (?, ?, ?, ?, ?)"
_HISTORY: Final = "SELECT what, author, at_ns, detail FROM people_events WHERE person = ? ORDER BY n DESC LIMIT ?"

_LOCKED: Final = "SELECT locked_ns FROM login_attempts WHERE name = ? AND locked_ns > ?"
_TRY: Final = """
INSERT INTO login_attempts (name, tries, at_ns) VALUES (?, 1, ?)
ON CONFLICT DO UPDATE SET tries = tries + 1, at_ns = excluded.at_ns, locked_ns = NULL RETURNING tries
"""
_LOCK: Final = "UPDATE login_attempts SET tries = 0, locked_ns = ? WHERE name = ?"
_FORGET_NAMES: Final = """
DELETE FROM login_attempts WHERE name IN (
    SELECT name FROM login_attempts ORDER BY at_ns LIMIT max(0, (SELECT count(*) FROM login_attempts) - ?))
"""
_FORGIVE: Final = "DELETE FROM login_attempts WHERE name BETWEEN ? AND ?"
_END: Final = b"\xff" * 64  # behind whatever may follow the beginning of a name

_LOGIN_COLUMNS: Final = "id, person, method, csrf, created_ns, expires_ns, last_ns, roles, teams"
_LOG_IN: Final = f"INSERT INTO logins ({_LOGIN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - a constant
_OVER: Final = "DELETE FROM logins WHERE expires_ns <= ?"
_TOO_MANY: Final = """
DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE person = ? ORDER BY created_ns DESC, rowid DESC LIMIT -1 OFFSET ?)
"""
_LOGIN: Final = f"SELECT {_LOGIN_COLUMNS} FROM logins WHERE id = ? AND expires_ns > ?"  # noqa: S608 - a constant
_SEEN: Final = "UPDATE logins SET last_ns = max(last_ns, ?) WHERE id = ?"
_LOG_OUT: Final = "DELETE FROM logins WHERE id = ?"
_LOG_OUT_ALL: Final = "DELETE FROM logins WHERE person = ?"


class SqlitePeople:
    """`People` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def add(self, person: Person, stamp: Stamped) -> None:
        await self._writer.write(Do(lambda connection: _add(connection, person, stamp)))

    async def change(
        self, person_id: str, how: Callable[[Person], Person], stamp: Stamped, *, log_out: bool = False,
    ) -> Person | None:
        return await self._writer.write(Do(lambda connection: _change(connection, person_id, how, stamp, log_out=log_out)))

    async def get(self, person_id: str) -> Person | None:
        return await self._reader.read(lambda connection: _one(connection, _BY_ID, text(person_id)))

    async def by_token(self, token: bytes) -> Person | None:
        return await self._reader.read(lambda connection: _one(connection, _BY_TOKEN, token))

    async def all(self) -> Sequence[Person]:
        return await self._reader.read(lambda connection: [_person(row) for row in connection.execute(_ALL)])

    async def history(self, person_id: str, limit: int) -> Sequence[Stamped]:
        return await self._reader.read(lambda connection: [
            Stamped(what, author, at_ns, json.loads(detail or "{}"))
            for what, author, at_ns, detail in connection.execute(_HISTORY, (text(person_id), limit))])

    async def attempt(self, counts: Mapping[bytes, int], *, now_ns: int, lock_until_ns: int) -> int | None:
        return await self._writer.write(Do(lambda connection: _attempt(connection, counts, now_ns, lock_until_ns)))

    async def forgive(self, names: Sequence[bytes]) -> None:
        await self._writer.write(Do(lambda connection: connection.executemany(_FORGIVE, [(name, name + _END) for name in names])))

    async def log_in(self, login: Login) -> None:
        await self._writer.write(Do(lambda connection: _log_in(connection, login)))

    async def login(self, login_id: bytes, *, now_ns: int) -> tuple[Login, Person | None] | None:
        return await self._reader.read(lambda connection: _login(connection, login_id, now_ns))

    async def seen(self, login_id: bytes, *, now_ns: int) -> None:
        await self._writer.write(Do(lambda connection: _count(connection, _SEEN, (now_ns, login_id))))

    async def log_out(self, login_id: bytes) -> bool:
        return await self._writer.write(Do(lambda connection: _count(connection, _LOG_OUT, (login_id,)))) > 0


def _add(connection: Connection, person: Person, stamp: Stamped) -> None:
    try:
        connection.execute(_INSERT, (text(person.id), *_values(person)))
    except sqlite3.IntegrityError as error:
        raise StoreError(f"there is an account {person.id} already, or one with its token or subject") from error
    _note(connection, person.id, stamp)


def _change(
    connection: Connection, person_id: str, how: Callable[[Person], Person], stamp: Stamped, *, log_out: bool,
) -> Person | None:
    before = _one(connection, _BY_ID, text(person_id))
    if before is None:
        return None
    now = how(before)
    if now != before:
        try:
            connection.execute(_UPDATE, (*_values(now), before.id))
        except sqlite3.IntegrityError as error:
            raise StoreError("there is an account with this token or subject already") from error
        _note(connection, before.id, stamp)
    if log_out:
        connection.execute(_LOG_OUT_ALL, (before.id,))
    return now


def _values(person: Person) -> tuple[object, ...]:
    return (
        text(person.name), person.permission, json.dumps(person.roles), json.dumps(person.teams), text(person.email), person.password,
        person.token, text(person.subject), person.created_ns, person.disabled_ns)


def _note(connection: Connection, person_id: str, stamp: Stamped) -> None:
    connection.execute(_EVENT, (text(person_id), stamp.at_ns, stamp.what, text(stamp.author), json_text(stamp.detail)))


def _one(connection: Connection, statement: str, value: object) -> Person | None:
    row = connection.execute(statement, (value,)).fetchone()
    return None if row is None else _person(row)


def _person(row: Sequence[Any]) -> Person:
    person_id, name, permission, roles, teams, *rest = row
    return Person(person_id, name, permission, tuple(json.loads(roles)), tuple(json.loads(teams)), *rest)


def _attempt(connection: Connection, counts: Mapping[bytes, int], now_ns: int, until_ns: int) -> int | None:
    """Does the same work for a name that is somebody's as for one that is nobody's: how long it takes tells nothing."""
    locked: list[int] = [row[0] for name in counts for row in connection.execute(_LOCKED, (name, now_ns))]
    if locked:
        return max(locked)
    for name, most in counts.items():
        ((tries,),) = connection.execute(_TRY, (name, now_ns)).fetchall()
        if tries >= most:
            connection.execute(_LOCK, (until_ns, name))
    connection.execute(_FORGET_NAMES, (MOST_NAMES,))
    return None


def _log_in(connection: Connection, login: Login) -> None:
    connection.execute(_OVER, (login.created_ns,))
    connection.execute(_LOG_IN, (
        login.id, text(login.person), login.method, login.csrf, login.created_ns, login.expires_ns, login.last_ns,
        _listed(login.roles), _listed(login.teams)))
    connection.execute(_TOO_MANY, (text(login.person), MOST_LOGINS))


def _login(connection: Connection, login_id: bytes, now_ns: int) -> tuple[Login, Person | None] | None:
    row = connection.execute(_LOGIN, (login_id, now_ns)).fetchone()
    if row is None:
        return None
    found, person, method, csrf, created_ns, expires_ns, last_ns, roles, teams = row
    login = Login(found, person, method, csrf, created_ns, expires_ns, last_ns, _read(roles), _read(teams))
    return login, _one(connection, _BY_ID, person)


def _listed(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else json.dumps(names)


def _read(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(json.loads(names))


def _count(connection: Connection, statement: str, values: tuple[object, ...]) -> int:
    changed: int = connection.execute(statement, values).rowcount
    return changed
