"""Who stands behind a request to the control endpoints: a bearer of a token, or a browser with a login.

A browser sends its cookie wherever a page tells it to. So a request that has one must have reached the gateway by a name of its own
(against DNS rebinding), come from its own page, and carry, where it changes something, the token that only that page was told.
"""

import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from gateway.config import Config
from gateway.errors import BrowserRefused, Unauthenticated
from gateway.http.data import presented_key
from gateway.identity.actor import Actor
from gateway.identity.addresses import client_address
from gateway.identity.guesses import Came
from gateway.identity.logins import Logins
from gateway.snapshot import is_loopback
from gateway.store.approvals_protocol import Login

COOKIE: Final = "lockgate_login"
DEVICE: Final = "lockgate_device"  # outlives the login: whose browser it is
CSRF: Final = "X-Lockgate-Csrf"
BACKGROUND: Final = "X-Lockgate-Background"  # says that a page asks by itself
SAFE: Final = frozenset({"GET", "HEAD"})
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.%]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
_OWN_SITES: Final = frozenset({"none", "same-origin"})
_SCHEMES: Final = ("http", "https")
_NOBODY: Final = ("The control endpoints take the admin token or a person's API token, `Authorization: Bearer TOKEN`, or a browser's login "
                  "(`POST /-/login`).")


@dataclass(frozen=True, slots=True)
class OwnNames:
    """The names that this gateway goes by: this machine's own, and `hosts`. `origin` is that of `login.public_url`, empty without it."""

    hosts: Collection[str]
    origin: str

    @classmethod
    def of(cls, config: Config) -> "OwnNames":
        """Those of a configuration."""
        public = urlsplit(config.login.public_url or "")
        hosts = {config.server.host, public.hostname or "", *config.login.hosts}
        origin = f"{public.scheme}://{public.netloc}".lower() if public.netloc else ""
        return cls(frozenset(host.lower().strip("[]") for host in hosts if host), origin)

    def check_host(self, request: web.BaseRequest) -> str:
        """The header `Host`, where it is a name of this gateway. For what a browser may be led to from anywhere, such as the page.

        Raises:
            BrowserRefused: it is another's: a foreign page may have given its own name this address.
        """
        said = request.headers.getall("Host", ())
        host = said[0].lower() if len(said) == 1 else ""
        found = _HOST.fullmatch(host)
        name = "" if found is None else (found[1] or found[2])
        own = "" if request.transport is None else request.transport.get_extra_info("sockname")[0]  # an address is no name that could lie
        if not name or not (is_loopback(name) or name in self.hosts or name == own):
            raise BrowserRefused("The header `Host` has a name that is not this gateway's. Its own are this machine's, `server.host`, that "
                                 "of `login.public_url`, and `login.hosts`.")
        return host

    def check(self, request: web.BaseRequest, *, must_say: bool) -> None:
        """Raise `BrowserRefused` for what comes from another page than the gateway's own. `must_say`: `Origin` may not be missing."""
        host = self.check_host(request)
        said = request.headers.getall("Origin", ())
        origin = said[0].lower() if len(said) == 1 else ""
        if said or must_say:
            scheme, _, place = origin.partition("://")
            if not origin or not (origin == self.origin or (scheme in _SCHEMES and place == host)):
                raise BrowserRefused("This was not sent by the gateway's own page: the header `Origin` is missing, or names another.")
        if request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES:
            raise BrowserRefused("This was not sent by the gateway's own page: the header `Sec-Fetch-Site` names another.")


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Knows who asks."""

    logins: Logins
    names: OwnNames

    async def who(self, request: web.BaseRequest, *, used: bool = True) -> tuple[Actor, Login | None]:
        """Who has sent a request, and the login if it came with a cookie. It goes on if it is `used` by somebody, and not by a page alone.

        Raises:
            Unauthenticated: nobody knows.
            BrowserRefused: its cookie says nothing, for the gateway's own page may not have sent it.
        """
        presented = presented_key(request)
        if presented is not None:
            actor = await self.logins.by_token(presented)
            if actor is None:
                raise Unauthenticated(_NOBODY)
            return actor, None
        cookie = cookie_of(request)
        if cookie is None:
            raise Unauthenticated(_NOBODY)
        changes = request.method not in SAFE
        self.names.check(request, must_say=changes)
        found = await self.logins.by_cookie(cookie, used=used and BACKGROUND not in request.headers)
        if found is None:
            raise Unauthenticated("Your login is over. Log in again.")
        actor, login = found
        if changes and not _has_token(request, login.csrf):
            raise BrowserRefused(f"A change that is made with a cookie carries its token in the header {CSRF}; `GET /-/me` tells it.")
        return actor, login


    def came(self, request: web.BaseRequest) -> Came:
        """Where a request comes from."""
        proxies = tuple(map(ip_network, self.logins.settings.proxies))
        address = client_address(request.remote or "", request.headers.getall("X-Forwarded-For", ()), proxies)
        return Came(address, cookie_of(request, DEVICE) or "")


def cookie_of(request: web.BaseRequest, name: str = COOKIE) -> str | None:
    """A cookie's value; None where there is none, or several: another page of the same host may have put its own beside ours."""
    pairs = [part.strip().partition("=") for line in request.headers.getall("Cookie", ()) for part in line.split(";")]
    found = [value for key, _, value in pairs if key == name]
    return found[0] if len(found) == 1 else None


def _has_token(request: web.BaseRequest, token: str) -> bool:
    said = request.headers.getall(CSRF, ())
    return len(said) == 1 and hmac.compare_digest(said[0].encode(errors="surrogatepass"), token.encode())
