"""Server-sent events, cut out of bytes as they come. Owns the framing alone: what the data means is the adapter's.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from typing import Final, NamedTuple

from gateway.errors import AttemptFailed

_BOM: Final = b"\xef\xbb\xbf"
_MAX_EVENT: Final = 8 * 1024 * 1024  # a base64 image in one event is a few MiB


class ServerSentEvent(NamedTuple):
    """One event. `data` is left as bytes; `id` is the last one the stream gave; `retry` is in milliseconds."""

    data: bytes
    event: str = "message"
    id: str = ""
    retry: int | None = None


class SseDecoder:
    """Give it bytes as they come, take events while there are any. Where the bytes were split changes nothing.

    Comments and blocks without `data` make no event. An event is whole with the first byte that ends its closing blank
    line: a lone CR counts, and an LF that follows it later is skipped.
    """

    __slots__ = ("_after_cr", "_begun", "_buffer", "_id", "_max_event", "_searched")

    def __init__(self, *, max_event: int = _MAX_EVENT) -> None:
        self._max_event = max_event
        self._buffer = bytearray()  # what is not yet an event, every line end made LF
        self._searched = 0  # no blank line ends before this, so that a long event is searched once
        self._after_cr = False
        self._begun = False
        self._id = ""

    def __repr__(self) -> str:
        return f"SseDecoder(buffered={len(self._buffer)}, id={self._id!r})"

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._after_cr or b"\r" in data:
            if self._after_cr and data[:1] == b"\n":
                data = data[1:]
                self._after_cr = False
            if data:
                self._after_cr = data[-1] == ord("\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._buffer += data

    def next_event(self) -> ServerSentEvent | None:
        """The next event, or None while more bytes are needed.

        Raises:
            AttemptFailed: `malformed` for an event that is longer than the limit.
        """
        buffer = self._buffer
        while True:
            end = buffer.find(b"\n\n", self._searched)
            if (len(buffer) if end < 0 else end) > self._max_event:
                message = f"An event of the stream is longer than {self._max_event} bytes."
                raise AttemptFailed("malformed", message, retryable=True)
            if end < 0:
                self._searched = max(len(buffer) - 1, 0)
                return None
            block = bytes(buffer[:end])
            del buffer[: end + 2]
            self._searched = 0
            if not self._begun:
                self._begun = True
                block = block.removeprefix(_BOM)
            event = self._read(block)
            if event is not None:
                return event

    def rest(self) -> bytes:
        """The fields of an event that is not complete: empty where the stream stands between two events."""
        rest = bytes(self._buffer) if self._begun else bytes(self._buffer).removeprefix(_BOM)
        return b"\n".join(line for line in rest.split(b"\n") if line and not line.startswith(b":"))

    def _read(self, block: bytes) -> ServerSentEvent | None:
        if block.startswith(b"data: ") and b"\n" not in block:  # nearly every event of a model's answer
            return ServerSentEvent(block[6:], "message", self._id)
        data: list[bytes] = []
        name = ""
        retry = None
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value.decode(errors="replace")
            elif field == b"id" and b"\0" not in value:
                self._id = value.decode(errors="replace")
            elif field == b"retry" and value.isdigit() and len(value) < 16:
                retry = int(value)
        return ServerSentEvent(b"\n".join(data), name or "message", self._id, retry) if data else None
