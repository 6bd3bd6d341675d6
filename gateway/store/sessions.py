"""Sessions on the store's threads: questions go to the reader, turns through the writer."""

from collections.abc import Mapping, Sequence

from gateway.session import SessionFacts, SessionKey, SessionQuery
from gateway.store.journal import OpenCalls
from gateway.store.reader import Reader
from gateway.store.session_sql import any_in_flight, enter, leave, released_ids, session_facts
from gateway.store.writer import Do, Writer


class SqliteSessions:
    """`Sessions` on the store's writer and reader."""

    def __init__(self, writer: Writer, reader: Reader, calls: OpenCalls) -> None:
        self._writer = writer
        self._reader = reader
        self._calls = calls

    async def facts(
        self, key: SessionKey, queries: frozenset[SessionQuery], *, now_ns: int, with_facts: bool = False,
    ) -> SessionFacts:
        return await self._reader.read(
            lambda connection: session_facts(connection, key, queries, now_ns=now_ns, with_facts=with_facts))

    async def in_flight(self, key: SessionKey, tools: frozenset[str]) -> bool:
        return await self._reader.read(lambda connection: any_in_flight(connection, key, tools, beat_ns=self._calls.beat_ns))

    async def released(self, principal: str, ids: Sequence[str]) -> Mapping[str, bool]:
        return await self._reader.read(lambda connection: released_ids(connection, principal, ids))

    async def enter(self, key: SessionKey, holder: str, *, now_ns: int, until_ns: int) -> bool:
        return await self._writer.write(Do(lambda connection: enter(connection, key, holder, now_ns=now_ns, until_ns=until_ns)))

    async def leave(self, key: SessionKey, holder: str) -> None:
        await self._writer.write(Do(lambda connection: leave(connection, key, holder)))
