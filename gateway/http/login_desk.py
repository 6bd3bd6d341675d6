"""`/-/login`, `/-/logout`, `/-/me`: how people prove in a browser who they are, and learn what the gateway takes them for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import Field

from gateway.clock import time_text
from gateway.errors import InvalidRequest, Unauthenticated, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler, query_pairs
from gateway.http.desk import body_of, query_of, read_model
from gateway.http.doors import COOKIE, DEVICE, OwnNames, cookie_of
from gateway.identity.actor import Actor
from gateway.identity.logins import Opened
from gateway.identity.oidc import CALLBACK, LONGEST_S, Oidc
from gateway.proxy import Proxy
from gateway.store.approvals_protocol import Login
from gateway.validation import Strict
from gateway.wire.strict_json import dumps

_STATE: Final = "lockgate_oidc"
_PAGE: Final = "/-/admin"
_PRIVATE: Final = {"Cache-Control": "no-store"}
_DEVICE_S: Final = 400 * 86_400  # as long as browsers keep any cookie
_Secret = Annotated[str, Field(max_length=1024)]


class _Credentials(Strict):
    """A name with its password, or a token."""

    name: Annotated[str, Field(max_length=300)] = ""
    password: _Secret = ""
    token: _Secret = ""


class _NewPassword(Strict):
    """Another password, by whoever knows the one of now."""

    current: _Secret
    new: _Secret


@dataclass(frozen=True, slots=True)
class LoginDesk:
    """The endpoints. `control` knows who asks, and the identity provider where there is one; `proxy` how large a body may be."""

    proxy: Proxy
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {
            ("POST", "/-/login"): self.log_in, ("POST", "/-/logout"): self.log_out, ("GET", "/-/me"): self.me,
            ("POST", "/-/me/password"): self.change_password,
            ("GET", "/-/login/methods"): self.methods, ("GET", "/-/oidc/begin"): self.begin, ("GET", CALLBACK): self.callback,
        }

    async def methods(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/login/methods`: how one may log in; for whoever asks."""
        query_of(request)
        oidc = self.control.oidc
        told = None if oidc is None else {"label": oidc.config.label}
        await client.answer(200, _PRIVATE, dumps({"password": True, "oidc": told}))

    async def log_in(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/login`: with a password or a token. The login that the browser had is over."""
        self._names.check(request, must_say=False)
        query_of(request)
        given = read_model(_Credentials, await body_of(request, self.proxy))
        if bool(given.token) == bool(given.name or given.password):
            raise InvalidRequest("Give `name` and `password`, or `token`.")
        logins, came = self.control.doorkeeper.logins, self.control.doorkeeper.came(request)
        if given.token:
            opened = await logins.with_token(given.token, came.address)
        else:
            opened = await logins.with_password(given.name, given.password, came)
        await self._close_old(request)
        await client.answer(200, _PRIVATE, dumps(await self._me(opened.actor, opened.login)), cookies=self._cookies(opened))

    async def log_out(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/logout`: end the login of this browser."""
        query_of(request)
        _actor, login = await self.control.doorkeeper.who(request)
        if login is None:
            raise InvalidRequest("There is nothing to log out of: this request has a token, and no cookie.")
        await self._close_old(request)
        await client.answer(200, _PRIVATE, dumps({"logged_out": True}), cookies=[self._set(COOKIE, "", "/-/", "Strict", 0)])

    async def me(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/me`: who asks, and what they may do."""
        query_of(request)
        actor, login = await self.control.doorkeeper.who(request)
        await client.answer(200, _PRIVATE, dumps(await self._me(actor, login)))

    async def change_password(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/me/password`: another password of one's own. All logins end; a browser gets a new one with the answer."""
        query_of(request)
        doorkeeper, came = self.control.doorkeeper, self.control.doorkeeper.came(request)
        actor, login = await doorkeeper.who(request)
        given = read_model(_NewPassword, await body_of(request, self.proxy))
        person = await doorkeeper.logins.change_password(actor, given.current, given.new, came)
        if login is None:
            await client.answer(200, _PRIVATE, dumps(await self._me(actor, None)))
            return
        opened = await doorkeeper.logins.open_known(person, came)
        await client.answer(200, _PRIVATE, dumps(await self._me(opened.actor, opened.login)), cookies=self._cookies(opened))

    async def begin(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/oidc/begin`: off to the identity provider."""
        oidc = self._oidc()
        self._names.check_host(request)
        query_of(request)
        begun = await oidc.begin(self._own_url(request))
        cookie = self._set(_STATE, begun.cookie, "/-/oidc/", "Lax", LONGEST_S)  # the provider sends the browser back: not from our page
        await client.answer(302, {**_PRIVATE, "Location": begun.url}, b"", cookies=[cookie])

    async def callback(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/oidc/callback`: back from the identity provider."""
        oidc = self._oidc()
        self._names.check_host(request)
        kept = cookie_of(request, _STATE)
        if kept is None:
            raise Unauthenticated("This browser has not begun to log in here, or took too long. Begin at the page again.")
        told: dict[str, str] = {}
        for name, value in query_pairs(request.rel_url.raw_query_string):
            if name in told:
                raise InvalidRequest("The query says something twice.")
            told[name] = value
        opened = await oidc.complete(kept, told, self._own_url(request), self.control.doorkeeper.came(request).address)
        await self._close_old(request)
        await client.answer(302, {**_PRIVATE, "Location": _PAGE}, b"", cookies=self._cookies(opened))

    @property
    def _names(self) -> OwnNames:
        return self.control.doorkeeper.names

    def _oidc(self) -> Oidc:
        if self.control.oidc is None:
            raise UnknownUrl("No identity provider is set (`[oidc]`).")
        return self.control.oidc

    def _own_url(self, request: web.BaseRequest) -> str:
        """Where the browser reaches this gateway."""
        return self._names.origin or f"http://{request.headers['Host']}"

    async def _close_old(self, request: web.BaseRequest) -> None:
        old = cookie_of(request)
        if old is not None:
            await self.control.doorkeeper.logins.close(old)

    async def _me(self, actor: Actor, login: Login | None) -> dict[str, Any]:
        person = await self.control.store.people.get(actor.id)
        told = {"id": actor.id, "name": actor.voter.name, "permission": actor.permission, "roles": list(actor.voter.roles),
                "teams": list(actor.voter.teams), "via": actor.via, "method": actor.voter.method,
                "password": person is not None and person.password != ""}
        if login is None:
            return told
        return {**told, "csrf": login.csrf, "expires_at": time_text(self.control.doorkeeper.logins.ends_ns(login))}

    def _cookies(self, opened: Opened) -> list[str]:
        login = self._set(COOKIE, opened.cookie, "/-/", "Strict", int(self.control.doorkeeper.logins.settings.longest))
        return [login, self._set(DEVICE, opened.device, "/-/", "Strict", _DEVICE_S)] if opened.device else [login]

    def _set(self, name: str, value: str, path: str, site: str, age_s: int) -> str:
        secure = "; Secure" if self._names.origin.startswith("https:") else ""
        return f"{name}={value}; Path={path}; HttpOnly; SameSite={site}; Max-Age={age_s}{secure}"
