"""The seam to the network: one request out, one answer back, every wait with a deadline, foreign exceptions mapped behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request to an upstream from the configuration. `url` is absolute; header names are lower case.

    `private`: it may go to any address; else only to public ones, checked after the name is resolved, and connected to as checked.
    `on_sending` is called once there is a connection, before the first byte leaves: what was not sent was not billed.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    private: bool = True
    on_sending: Callable[[], None] | None = None


class HttpAnswer(Protocol):
    """An answer whose headers have arrived. Exactly one of `release` and `abort` ends it; both are idempotent and never wait."""

    status: int
    headers: Mapping[str, str]  # lower-case names; of a repeated one the first

    async def read(self, *, limit: int, idle_s: float) -> bytes:
        """The whole body. Raises `AttemptFailed`: `too_large` over `limit` bytes, `cut` if it ends early, `reset`, or `timeout:idle` after
        `idle_s` seconds without a byte.
        """
        ...

    async def chunk(self, *, timeout_s: float) -> bytes:
        """The next bytes as they arrive, `b""` at the end the protocol promises.

        Raises:
            AttemptFailed: `cut` where the connection closed before that end, `reset`, or `timeout:idle` after `timeout_s`.
        """
        ...

    def release(self) -> None:
        """Done with it: the connection goes back to the pool if the body was read to its end, else it is closed."""
        ...

    def abort(self) -> None:
        """Close the connection now, so that the provider stops working (and billing)."""
        ...


class Transport(Protocol):
    """A pool of connections to upstreams. Redirects are never followed; cookies are never kept; no proxy from the environment."""

    async def send(self, request: HttpRequest, *, connect_s: float, headers_s: float) -> HttpAnswer:
        """Send a request and wait for the answer's headers.

        Raises:
            AttemptFailed: `connect`, `tls`, `reset`, `malformed` (not HTTP), `timeout:connect`, `timeout:headers`.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
