"""Where somebody is who logs in, and how often one place may try."""

from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from gateway.clock import Clock
from gateway.errors import TooManyLogins

Network: TypeAlias = IPv4Network | IPv6Network


class Addresses:
    """How often a place may try: `burst` times at once, and once more every `every_s`. Remembers the latest `most` places."""

    def __init__(self, clock: Clock, *, burst: int = 30, every_s: float = 2.0, most: int = 10_000) -> None:
        self._clock = clock
        self._burst = burst
        self._every_s = every_s
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when it may try `burst` times again

    def take(self, where: str) -> None:
        """One try from this place. Raises `TooManyLogins`."""
        now = self._clock.monotonic()
        full_at = max(self._full_at.get(where, now), now) + self._every_s
        wait_s = full_at - now - self._burst * self._every_s
        if wait_s > 0:
            raise TooManyLogins("Too many logins were tried from this address. Wait a moment.", retry_after_s=int(wait_s) + 1)
        self._full_at[where] = full_at
        self._full_at.move_to_end(where)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)


def network_of(address: str) -> str:
    """What one person may be taken to have: an IPv4 address, or a network of IPv6 ones."""
    known = _known(address)
    return str(IPv6Network((int(known), 64), strict=False)) if isinstance(known, IPv6Address) else str(known or address)


def client_address(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """Who has sent a request, as far as nobody can make it up: the peer of the connection.

    Where that is a proxy of ours it is whom this one has written last into `X-Forwarded-For` (`forwarded` holds its lines), and so on
    through any number of ours. What stands before was sent by nobody knows whom.
    """
    said = [part.strip() for line in forwarded for part in line.split(",")]
    address = peer
    while said and any(_is_in(address, each) for each in proxies):
        address = said.pop()
    return address


def _known(address: str) -> IPv4Address | IPv6Address | None:
    try:
        known = ip_address(address)
    except ValueError:
        return None
    return (known.ipv4_mapped or known) if isinstance(known, IPv6Address) else known


def _is_in(address: str, network: Network) -> bool:
    known = _known(address)
    return known is not None and known in network
