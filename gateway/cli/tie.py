"""What ties a worker to its supervisor: a socket pair with JSON messages, each with its length before it."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final, Self

import orjson

_LENGTH: Final = 4  # bytes that say how long a message is


class Tie:
    """One end. It is cut when either process is gone, which the other learns at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def hold(cls, sock: socket.socket) -> Self:
        """Take one end of a socket pair."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send without waiting; nothing where the other end is gone."""
        data = orjson.dumps(message)
        self._writer.write(len(data).to_bytes(_LENGTH, "big") + data)

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
            message: dict[str, Any] = orjson.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    def cut(self) -> None:
        """Let go of this end."""
        self._writer.close()
