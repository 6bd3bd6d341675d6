"""How often an address may try to log in."""

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network, ip_address

from gateway.clock import Clock
from gateway.errors import TooManyLogins


class Addresses:
    """How often an address may try: `burst` times at once, and once more every `every_s`. Remembers the latest `most` addresses."""

    def __init__(self, clock: Clock, *, burst: int = 30, every_s: float = 2.0, most: int = 10_000) -> None:
        self._clock = clock
        self._burst = burst
        self._every_s = every_s
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when it may try `burst` times again

    def take(self, address: str) -> None:
        """One try of this address. Raises `TooManyLogins`."""
        now = self._clock.monotonic()
        where = _network(address)
        full_at = max(self._full_at.get(where, now), now) + self._every_s
        wait_s = full_at - now - self._burst * self._every_s
        if wait_s > 0:
            raise TooManyLogins("Too many logins were tried from this address. Wait a moment.", retry_after_s=int(wait_s) + 1)
        self._full_at[where] = full_at
        self._full_at.move_to_end(where)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)


def _network(address: str) -> str:
    """What one person may be taken to have: an IPv4 address, or a network of IPv6 ones."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    return str(IPv6Network((int(known), 64), strict=False)) if isinstance(known, IPv6Address) and known.ipv4_mapped is None else address
