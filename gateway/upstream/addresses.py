"""Which addresses anybody's machine may be reached at: the public ones. Pure.

The table is our own, after IANA's registries of special-purpose addresses (RFC 6890): Python's differs from version to version.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

# As `getaddrinfo` tells them: family, kind, protocol, canonical name, socket address.
AddressInfo: TypeAlias = tuple[Any, Any, int, str, Any]
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[AddressInfo]]]

_NOT_PUBLIC: Final = tuple(ipaddress.IPv4Network(network) for network in (
    "0.0.0.0/8",  # this network, and "unspecified", which connects to this machine
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # private
    "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local; most clouds' metadata
    "168.63.129.16/32",  # a cloud's platform service, although the address is a public one
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",  # documentation
    "192.88.99.0/24",  # relays from IPv6, abolished
    "198.18.0.0/15",  # benchmarks
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
))
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")  # all that is given out; loopback, local and multicast addresses lie outside
_NOT_PUBLIC_6: Final = tuple(ipaddress.IPv6Network(network) for network in (
    "2001::/23",  # protocol assignments, Teredo among them: a tunnel to wherever its client is
    "2001:db8::/32", "3fff::/20",  # documentation
))
# IPv6 forms of IPv4 addresses: the network, and how many bits stand behind the embedded address.
_EMBEDDING: Final = tuple((ipaddress.IPv6Network(network), behind) for network, behind in (
    ("::/96", 0),  # IPv4-compatible; `::` and `::1` with it
    ("::ffff:0:0/96", 0),  # IPv4-mapped
    ("::ffff:0:0:0/96", 0),  # IPv4-translated (RFC 2765)
    ("64:ff9b::/96", 0),  # NAT64 (RFC 6052)
    ("2002::/16", 80),  # 6to4 (RFC 3056)
))


def is_public(address: str) -> bool:
    """Whether an address is global unicast; of an IPv6 form of an IPv4 address, whether that one is. False for what is no address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(known, ipaddress.IPv6Address):
        if known.scope_id is not None:
            return False  # it is a neighbour's
        embedded = next((int(known) >> behind & 0xFFFFFFFF for network, behind in _EMBEDDING if known in network), None)
        if embedded is None:
            return known in _UNICAST and not any(known in network for network in _NOT_PUBLIC_6)
        known = ipaddress.IPv4Address(embedded)
    return not any(known in network for network in _NOT_PUBLIC)


def is_local_host(host: str) -> bool:
    """Whether a host in a URL is, as it stands, not public: an address that is not, or a name for this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False  # a name: only its resolution tells
    return not is_public(name)


def public(found: list[AddressInfo]) -> list[AddressInfo]:
    """Those of the resolved addresses that are public. The scope of an IPv6 socket address counts, too."""
    return [each for each in found if is_public(str(each[4][0])) and not any(each[4][3:])]
