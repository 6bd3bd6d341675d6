"""What the simulator received and what it sent: the ground truth of a test. Bounded in entries and in bytes."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import orjson
from aiohttp import web

from gateway.clock import Clock
from gateway.errors import SetupError
from gateway.simulator.answer import Billed, JsonObject

End = Literal["open", "completed", "cut", "client_gone"]

_MOST_BODY_BYTES = 256 * 1024 * 1024
_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "proxy-authorization", "cookie"})


def fingerprint(secret: str) -> str:
    """What the log shows of a credential: enough to tell two apart, nothing to use."""
    return "sha256:" + hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()[:16]


class Entry:
    """One request and what became of it. Times are wall-clock nanoseconds; `end` is `open` until it is answered.

    `first_byte_ns` is when the status line, `last_byte_ns` when the newest byte went to the kernel, None while none has. `owed`
    is what is charged before anything goes out, `tokens` have been made since.
    """

    __slots__ = ("api_key", "chunks", "client_gone_ns", "end", "epoch", "fault", "finished_ns", "first_byte_ns", "headers", "kept",
                 "last_byte_ns", "method", "number", "owed", "path", "query", "raw", "received_ns", "sent_bytes", "status", "tokens",
                 "usage")

    def __init__(self, number: int, epoch: int, received_ns: int) -> None:
        self.number = number
        self.epoch = epoch
        self.received_ns = received_ns
        self.kept = False  # whether the log holds it, so that its body counts
        self.method = self.path = self.query = ""
        self.headers: Mapping[str, str] = {}
        self.api_key: str | None = None
        self.raw = b""
        self.status = 0
        self.fault: JsonObject = {}
        self.chunks = 0
        self.sent_bytes = 0
        self.usage: JsonObject | None = None
        self.owed: Billed | None = None
        self.tokens = 0
        self.end: End = "open"
        self.first_byte_ns: int | None = None
        self.last_byte_ns: int | None = None
        self.finished_ns: int | None = None
        self.client_gone_ns: int | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.number} {self.method} {self.path} {self.status} {self.end}>"

    @property
    def body(self) -> Any:
        """The parsed body, None where it is not JSON."""
        try:
            return orjson.loads(self.raw)
        except orjson.JSONDecodeError:
            return None

    @property
    def request_id(self) -> str:
        """The provider's own name for this request, sent as `x-request-id`."""
        return f"req_sim{self.number:024d}"

    @property
    def client_request_id(self) -> str | None:
        """The client's own name for this request (`x-client-request-id`)."""
        return self.headers.get("x-client-request-id")

    def received(self, request: web.Request, api_key: str | None) -> None:
        """Note the request line and the headers; of credentials only the fingerprints stay."""
        self.method, self.path, self.query = request.method, request.path, request.query_string
        self.api_key = None if api_key is None else fingerprint(api_key)
        lowered = {name.lower(): value for name, value in request.headers.items()}
        for name in _SECRET_HEADERS & lowered.keys():
            known = api_key is not None and lowered[name].endswith(api_key)
            lowered[name] = str(self.api_key) if known else fingerprint(lowered[name])
        self.headers = lowered

    @property
    def billed(self) -> Billed | None:
        """What the provider charges for so far."""
        owed = self.owed
        return None if owed is None else replace(owed, completion_tokens=owed.completion_tokens + self.tokens)

    def begun(self, status: int, now_ns: int) -> None:
        """Note that the status line has gone out."""
        self.status = status
        self.first_byte_ns = self.last_byte_ns = now_ns

    def sent(self, size: int, chunks: int, tokens: int, now_ns: int) -> None:
        """Note what has gone out, and the tokens that were made for it."""
        self.sent_bytes += size
        self.chunks += chunks
        self.tokens += tokens
        self.last_byte_ns = now_ns

    def told(self, usage: JsonObject | None) -> None:
        """Note the usage that the client was told, if it was."""
        self.usage = usage or self.usage

    def to_json(self) -> JsonObject:
        """The entry as the log file and `/sim/log` show it."""
        return {
            "seq": self.number, "request_id": self.request_id, "client_request_id": self.client_request_id,
            "received_ns": self.received_ns, "first_byte_ns": self.first_byte_ns, "last_byte_ns": self.last_byte_ns,
            "finished_ns": self.finished_ns, "client_gone_ns": self.client_gone_ns,
            "method": self.method, "path": self.path, "query": self.query, "headers": self.headers,
            "api_key": self.api_key,
            "body_sha256": hashlib.sha256(self.raw).hexdigest(), "body_bytes": len(self.raw), "body": self.body,
            "status": self.status, "fault": self.fault, "chunks": self.chunks, "bytes": self.sent_bytes,
            "usage": self.usage, "billed": None if self.billed is None else asdict(self.billed), "end": self.end,
        }


class RequestLog:
    """Entries in the order of arrival, the newest `keep` of them, and a line in `path` for each as it finishes.

    `connections` were accepted, `received` requests came on them, `finished` of these have been answered or broken off.
    Bodies count too: beyond 256 MiB of them the oldest entries go first. `keep=0` remembers nothing and still counts.
    """

    def __init__(self, clock: Clock, *, keep: int = 100_000, path: Path | None = None) -> None:
        self._clock = clock
        self._keep = keep
        self._path = path
        self._file = None if path is None else _open(path)
        self._epoch = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything and count from 1 again. What is being answered still reaches the file and counts no more."""
        self._epoch += 1
        self._entries: deque[Entry] = deque()
        self._body_bytes = 0
        self.connections = 0
        self.received = 0
        self.finished = 0

    def open(self) -> Entry:
        """A new entry, for a request that has just arrived."""
        self.received += 1
        entry = Entry(self.received, self._epoch, self._clock.now_ns())
        if self._keep:
            entry.kept = True
            self._entries.append(entry)
            self._trim()
        return entry

    def body(self, entry: Entry, raw: bytes) -> None:
        """Note the body of a request and let go of what is too much to keep."""
        entry.raw = raw
        if entry.kept and entry.epoch == self._epoch:
            self._body_bytes += len(raw)
            self._trim()

    def _trim(self) -> None:
        while len(self._entries) > self._keep or (self._body_bytes > _MOST_BODY_BYTES and len(self._entries) > 1):
            oldest = self._entries.popleft()
            oldest.kept = False
            self._body_bytes -= len(oldest.raw)

    def close(self, entry: Entry) -> None:
        """The request has been answered, or will not be."""
        entry.finished_ns = self._clock.now_ns()
        if entry.end == "open":  # a defect of the simulator itself; aiohttp logs it and answers 500
            entry.end = "cut"
        if entry.end == "client_gone":
            entry.client_gone_ns = entry.finished_ns
        if self._file is not None:
            self._file.write(orjson.dumps(entry.to_json(), option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        if entry.epoch == self._epoch:
            self.finished += 1
            if self._waiters:
                self._wake()

    def entries(self, since: int = 0, limit: int | None = None) -> list[Entry]:
        """The entries kept with a number above `since`, oldest first, at most `limit`."""
        newer = [entry for entry in self._entries if entry.number > since]
        return newer if limit is None else newer[:limit]

    async def wait_finished(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` requests have finished since the last `clear`; False if that takes over `timeout_s`."""
        if self.finished >= count:
            return True
        waiter = (count, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            return False
        finally:
            self._waiters.remove(waiter)
        return True

    def _wake(self) -> None:
        for count, future in self._waiters:
            if self.finished >= count and not future.done():
                future.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _open(path: Path) -> Any:
    try:
        return path.open("ab")
    except OSError as error:
        raise SetupError(f"cannot write the log {path}: {error.strerror}; choose another with --log") from error
