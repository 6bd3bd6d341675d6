"""What identity providers are asked for: small JSON documents, each with a deadline and a size, kept for as long as they may be."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

from gateway.clock import Clock
from gateway.errors import AttemptFailed, LockgateError
from gateway.upstream.protocol import HttpRequest, Transport
from gateway.wire.strict_json import InvalidJson, loads

T = TypeVar("T")

LARGEST: Final = 512 * 1024  # bytes of an answer
_CONNECT_S: Final = 5.0
_TOTAL_S: Final = 10.0
_DEEPEST: Final = 16
_FRESH_S: Final = 3600.0  # after that it is fetched again
_LONGEST_S: Final = 86_400.0  # and after that, where it cannot be fetched, it counts no more
_AGAIN_S: Final = 5.0  # between two fetches, whoever asks
_MISSED_S: Final = 30.0  # before something that was not in it is looked for again


class FetchError(LockgateError):
    """An identity provider did not answer, or with something else than what was asked for."""

    code = "identity_unavailable"


class Events(Protocol):
    """Where it is told that something cannot be fetched."""

    def event(self, level: str, name: str, **fields: object) -> None:
        """One line of the log."""
        ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Asks one provider. `private`: it may have an address that is not public, and need not have TLS. Redirects are not followed."""

    transport: Transport
    private: bool

    async def get(self, url: str) -> Any:
        """The JSON at a URL. Raises `FetchError`."""
        status, value = await self._send("GET", url, {}, b"")
        if status != 200:
            raise FetchError(f"{_shown(url)} answered {status}")
        return value

    async def post(self, url: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, Any]:
        """What is answered to a form: status and JSON. Raises `FetchError`."""
        form = {"content-type": "application/x-www-form-urlencoded", **headers}
        return await self._send("POST", url, form, urlencode(fields).encode())

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        if not self.private and not url.startswith("https://"):
            raise FetchError(f"{_shown(url)} is not https, which only a provider with `private = true` may do without")
        request = HttpRequest(method, url, {"accept": "application/json", **headers}, body, private=self.private)
        try:
            async with asyncio.timeout(_TOTAL_S):
                answer = await self.transport.send(request, connect_s=_CONNECT_S, headers_s=_TOTAL_S)
                try:
                    data = await answer.read(limit=LARGEST, idle_s=_TOTAL_S)
                except BaseException:
                    answer.abort()
                    raise
                answer.release()
            return answer.status, loads(data, max_depth=_DEEPEST)
        except AttemptFailed as error:
            raise FetchError(f"{_shown(url)}: {error.cause}") from error
        except TimeoutError as error:
            raise FetchError(f"{_shown(url)} did not answer in {_TOTAL_S:g} s") from error
        except InvalidJson as error:
            raise FetchError(f"{_shown(url)} answered with other than JSON") from error


class Kept(Generic[T]):
    """Something that is fetched when it is needed, and kept: the last good one also while its provider is down, for a day.

    However many ask, one fetch is under way at a time, and the next begins no sooner than 5 s later. For one and the same thing that was
    not in it no sooner than 30 s later: who looks for things that are not there delays nobody else by more than 5 s. `what` names it in
    the log.
    """

    def __init__(self, load: Callable[[], Awaitable[T]], clock: Clock, events: Events, what: str) -> None:
        self._load = load
        self._clock = clock
        self._events = events
        self._what = what
        self._value: T | None = None
        self._at_s = 0.0
        self._tried_s: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._missed: dict[Hashable, float] = {}  # what was looked for and was not there, and when: as few as fetches in 30 s
        self.failed = False  # the latest fetch
        self.generation = 0

    @property
    def value(self) -> T | None:
        """What is kept; None where there is none, or one that is too old."""
        return self._value if self._clock.monotonic() - self._at_s < _LONGEST_S else None

    @property
    def is_fresh(self) -> bool:
        """Whether it need not be fetched again."""
        return self._value is not None and self._clock.monotonic() - self._at_s < _FRESH_S

    @property
    def is_due(self) -> bool:
        """Whether it may be fetched now, or is being fetched."""
        return self._fetching is not None or self.due_in_s <= 0

    @property
    def due_in_s(self) -> float:
        """How long nobody may fetch it."""
        return 0.0 if self._tried_s is None else max(self._tried_s + _AGAIN_S - self._clock.monotonic(), 0.0)

    def has_missed(self, what: Hashable) -> bool:
        """Whether somebody has looked for this a moment ago, and it was not there."""
        return self._clock.monotonic() - self._missed.get(what, -_MISSED_S) < _MISSED_S

    def note_missed(self, what: Hashable) -> None:
        """Something was looked for, by a fetch that began after it was asked for, and was not there."""
        now_s = self._clock.monotonic()
        self._missed = {each: at_s for each, at_s in self._missed.items() if now_s - at_s < _MISSED_S} | {what: now_s}

    async def refresh(self) -> bool:
        """Fetch it, if that may be done now. Where it fails, `failed` says so, and what was kept stays.

        Whether it has begun only now: what was under way already may be older than whatever is looked for.
        """
        is_new, fetching = self._fetching is None, self.begin()
        if fetching is None:
            return False
        await asyncio.shield(fetching)  # others wait for it as well
        return is_new and not self.failed

    def begin(self) -> "asyncio.Task[None] | None":
        """Begin to fetch it, if that may be done now; what is under way."""
        if self._fetching is None and self.is_due:
            self._tried_s = self._clock.monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    async def _fetch(self) -> None:
        try:
            self._value = await self._load()
        except FetchError as error:
            self.failed = True
            self._events.event("warning", "identity_unavailable", what=self._what, error=error.message)
        else:
            self.failed = False
            self._at_s = self._clock.monotonic()
            self.generation += 1
        finally:
            self._fetching = None


def _shown(url: str) -> str:
    """Where something was asked for: what stands in a query may be nobody else's business."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
