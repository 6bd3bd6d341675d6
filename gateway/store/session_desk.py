"""What operators see and change of sessions, on SQLite: states and facts, each change with its event in one transaction."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import orjson

from gateway.call import Json
from gateway.core.approval import NotPossibleError
from gateway.session import SessionKey
from gateway.store.database import Connection
from gateway.store.reader import Reader
from gateway.store.rows import text
from gateway.store.session_protocol import OutdatedError, SessionFilter, SessionState
from gateway.store.session_reads import facts_of, list_sessions, one_session, owners_of, timeline
from gateway.store.session_rows import CHANGED, FACT, KILLED, MOST_FACTS, Place, fact_put
from gateway.store.session_sql import add_event
from gateway.store.writer import Do, Writer

Done = TypeVar("Done")

_GENERATION: Final = "SELECT value FROM counters WHERE name = 'sessions_generation'"
_CHANGED: Final = "UPDATE counters SET value = value + 1 WHERE name = 'sessions_generation'"
_STATES: Final = """
SELECT principal, id, state, author, note, at_ns, generation FROM session_states WHERE generation > ? ORDER BY generation
"""
_STATE: Final = "SELECT state, author, note, at_ns, generation FROM session_states WHERE principal = ? AND id = ?"
_SET_STATE: Final = """
INSERT OR REPLACE INTO session_states (principal, id, state, author, note, at_ns, generation) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_VERSION: Final = "SELECT version FROM session_facts WHERE principal = ? AND id = ? AND name = ?"
_FACTS_THERE: Final = "SELECT count(*) FROM session_facts WHERE principal = ? AND id = ?"
_SET_FACT: Final = """
INSERT OR REPLACE INTO session_facts (principal, id, name, value, version, author, at_ns) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_LINKED: Final = "SELECT session FROM session_links WHERE principal = ? AND answer_id = ?"


class SqliteSessionDesk:
    """`SessionDesk` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def states(self, since: int) -> tuple[int, Sequence[SessionState]]:
        return await self._reader.read(lambda connection: _states(connection, since))

    async def generation(self) -> int:
        return await self._reader.read(_generation)

    async def set_state(self, key: SessionKey, state: str, *, author: str, note: str, now_ns: int) -> SessionState:
        wanted = SessionState(_stored(key), state, text(author), text(note), now_ns)
        return await self._change(lambda connection: _set_state(connection, wanted))

    async def facts(self, key: SessionKey) -> Mapping[str, Mapping[str, Any]]:
        return await self._reader.read(lambda connection: facts_of(connection, key))

    async def put_fact(self, key: SessionKey, name: str, value: Json, *, version: int | None, author: str, now_ns: int) -> int:
        return await self._change(
            lambda connection: _put_fact(connection, _stored(key), (name, value), version, author=author, now_ns=now_ns))

    async def list(self, wanted: SessionFilter) -> Sequence[Mapping[str, Any]]:
        return await self._reader.read(lambda connection: list_sessions(connection, wanted))

    async def get(self, key: SessionKey) -> Mapping[str, Any] | None:
        return await self._reader.read(lambda connection: one_session(connection, key))

    async def owners(self, session_id: str) -> Sequence[str]:
        return await self._reader.read(lambda connection: owners_of(connection, session_id))

    async def timeline(self, key: SessionKey, *, after: Place | None, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._reader.read(lambda connection: timeline(connection, key, after=after, limit=limit))

    async def linked(self, principal: str, answer_id: str) -> str | None:
        return await self._reader.read(lambda connection: _linked(connection, principal, text(answer_id)))

    async def _change(self, change: Callable[[Connection], Done]) -> Done:
        """Do it in the writing thread, which knows of no refusal but its own."""

        def attempt(connection: Connection) -> Done | NotPossibleError:
            try:
                return change(connection)
            except NotPossibleError as refusal:
                return refusal

        done = await self._writer.write(Do(attempt))
        if isinstance(done, NotPossibleError):
            raise done
        return done


def _states(connection: Connection, since: int) -> tuple[int, Sequence[SessionState]]:
    connection.execute("BEGIN")
    try:
        rows = connection.execute(_STATES, (since,)).fetchall()
        return _generation(connection), [SessionState(SessionKey(principal, name), *said) for principal, name, *said in rows]
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _generation(connection: Connection) -> int:
    value: int = connection.execute(_GENERATION).fetchone()[0]
    return value


def _next_generation(connection: Connection) -> int:
    connection.execute(_CHANGED)
    return _generation(connection)


def _set_state(connection: Connection, wanted: SessionState) -> SessionState:
    row = connection.execute(_STATE, wanted.key).fetchone()
    now = SessionState(wanted.key, *row) if row is not None else SessionState(wanted.key)
    if now.state == wanted.state:
        return now
    check_change(now.state)
    generation = _next_generation(connection)
    connection.execute(_SET_STATE, (*wanted.key, wanted.state, wanted.author, wanted.note, wanted.at_ns, generation))
    add_event(connection, wanted.key, at_ns=wanted.at_ns, kind=CHANGED[wanted.state], author=wanted.author,
              detail={"note": wanted.note or None})
    return SessionState(wanted.key, wanted.state, wanted.author, wanted.note, wanted.at_ns, generation)


def _put_fact(
    connection: Connection, key: SessionKey, fact: tuple[str, Json], version: int | None, *, author: str, now_ns: int,
) -> int:
    name, value = fact
    row = connection.execute(_VERSION, (*key, name)).fetchone()
    there: int = row[0] if row is not None else 0
    check_fact(there, version, connection.execute(_FACTS_THERE, key).fetchone()[0])
    _next_generation(connection)
    connection.execute(_SET_FACT, (*key, name, orjson.dumps(value).decode(), there + 1, text(author), now_ns))
    add_event(connection, key, at_ns=now_ns, kind=FACT, author=author, detail=fact_put(name, value, there + 1))
    return there + 1


def check_change(state: str) -> None:
    """Raise `NotPossibleError` where a session's state is its last one."""
    if state == KILLED:
        raise NotPossibleError("The session was killed, and stays so.")


def check_fact(there: int, version: int | None, facts: int) -> None:
    """Raise `OutdatedError` or `NotPossibleError` where a fact of version `there`, one of so many, may not be set."""
    if version is not None and version != there:
        raise OutdatedError(there)
    if not there and facts >= MOST_FACTS:
        raise NotPossibleError(f"The session has {facts} facts, and may have {MOST_FACTS}.")


def _linked(connection: Connection, principal: str, answer_id: str) -> str | None:
    row = connection.execute(_LINKED, (principal, answer_id)).fetchone()
    return None if row is None else row[0]


def _stored(key: SessionKey) -> SessionKey:
    return key._replace(id=text(key.id))
