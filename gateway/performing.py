"""What the gateway needs to make a call by itself that people have approved: whose it was, where it belongs, and who takes its answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.call import Origin, Principal
from gateway.core.approval import Ticket
from gateway.errors import InternalError


@dataclass(slots=True)
class Collected:
    """A client that keeps the answer. It is asked for plain answers only."""

    status: int = 500
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes, content_type: str | None = None) -> None:
        _ = headers  # what of them is kept stands in the result
        self.status, self.body, self.content_type = status, body, content_type or ""

    async def open(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        raise InternalError(f"A stored call is answered as a stream ({status}, {content_type}, {len(headers)} headers).")

    async def write(self, data: bytes) -> None:
        raise InternalError(f"A stored call is answered as a stream ({len(data)} bytes).")

    async def end(self, data: bytes) -> None:
        await self.write(data)


def principal_in(ticket: Ticket) -> Principal:
    """Whose call it was, as it was then."""
    told = ticket.origin["principal"]
    return Principal(**{**told, "roles": tuple(told["roles"]), "routes": tuple(told["routes"])})


def origin_in(ticket: Ticket) -> Origin:
    """Where the call belongs."""
    return Origin(**ticket.origin["origin"])
