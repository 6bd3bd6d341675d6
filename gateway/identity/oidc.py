"""Logins at an identity provider: OpenID Connect, authorization code with PKCE. The provider is found by its issuer.

What a login has begun with (state, nonce, PKCE's verifier) is kept by the browser alone, in a cookie that is signed and soon over: any
worker can end what another has begun, and nothing is kept of logins that nobody ends.
"""

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote, urlencode

from gateway.clock import Clock, Ids
from gateway.errors import IdentityUnavailable, InvalidRequest, NotPermitted, StoreError, Unauthenticated
from gateway.identity.accounts import checked_text, person_of
from gateway.identity.actor import PERMISSIONS, Permission
from gateway.identity.addresses import network_of
from gateway.identity.fetch import Events, Fetcher, FetchError, Kept
from gateway.identity.key_sets import ALGORITHMS, KeySet, read_key_set
from gateway.identity.logins import Logins, Opened
from gateway.identity.provider import Provider
from gateway.identity.tokens import (
    TokenError,
    check_audience,
    check_times,
    names_claim,
    read_token,
    text_claim,
    verified,
)
from gateway.people_config import OidcConfig
from gateway.secret import Secret
from gateway.store.approvals_protocol import People, Person, Stamped
from gateway.upstream.protocol import Transport
from gateway.wire.strict_json import InvalidJson, dumps, loads

CALLBACK: Final = "/-/oidc/callback"
LONGEST_S: Final = 600  # how long somebody may take at the provider
_LEEWAY_S: Final = 30.0
_NS: Final = 1_000_000_000
_LONGEST_CODE: Final = 4096
_SYSTEM: Final = "oidc"  # the author of what a login says of an account


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that has begun: where the browser goes, and what it keeps meanwhile."""

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OidcParts:
    """What a login at a provider needs of the gateway. `key` signs what the browser keeps."""

    people: People
    logins: Logins
    transport: Transport
    clock: Clock
    ids: Ids
    events: Events
    key: Secret


class Oidc:
    """Logs people in at the provider of `config`."""

    def __init__(self, config: OidcConfig, client_secret: Secret | None, parts: OidcParts) -> None:
        self.config = config
        self._secret = client_secret
        self._parts = parts
        self._fetcher = Fetcher(parts.transport, config.private)
        self._provider = Kept(self._discover, parts.clock, parts.events, "oidc")
        self._keys: Kept[KeySet] = Kept(self._load_keys, parts.clock, parts.events, "oidc keys")

    async def begin(self, own_url: str) -> Begun:
        """Send a browser to the provider; it comes back to `own_url`. Raises `IdentityUnavailable`."""
        provider = await self._known()
        ids = self._parts.ids
        state, nonce, verifier = ids.token(32), ids.token(32), ids.token(64)
        challenge = base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {"response_type": "code", "client_id": self.config.client_id, "redirect_uri": own_url + CALLBACK,
                 "scope": " ".join(self.config.scopes), "state": state, "nonce": nonce, "code_challenge": challenge,
                 "code_challenge_method": "S256"}
        until_ns = self._parts.clock.now_ns() + LONGEST_S * _NS
        cookie = self._sealed({"state": state, "nonce": nonce, "verifier": verifier, "until_ns": until_ns})
        return Begun(f"{provider.authorize}{'&' if '?' in provider.authorize else '?'}{urlencode(asked, quote_via=quote)}", cookie)

    async def complete(self, cookie: str, told: Mapping[str, str], own_url: str, address: str) -> Opened:
        """Log in who comes back from the provider with this cookie, to whom `told` was said in the query.

        Raises:
            Unauthenticated: the browser had not begun this, the provider says no, or what it says is not right.
            NotPermitted: none of their roles has a permission here.
            IdentityUnavailable: the provider does not answer.
        """
        begun = self._opened(cookie)
        if not hmac.compare_digest(told.get("state", "").encode(), begun["state"].encode()):
            raise Unauthenticated("This is not the login that this browser has begun. Begin at the page again.")
        self._parts.logins.addresses.take(network_of(address))  # from here on the provider is asked
        provider = await self._known()
        if told.get("iss", provider.issuer if not provider.names_itself else "") != provider.issuer:  # a mix-up of providers (RFC 9207)
            raise Unauthenticated("The answer is of another identity provider than the one that was asked.")
        if "error" in told or not 0 < len(told.get("code", "")) <= _LONGEST_CODE:
            raise Unauthenticated("The identity provider did not let you in.")
        token = await self._redeem(provider, told["code"], begun["verifier"], own_url)
        claims = await self._claims(provider, token, begun["nonce"])
        try:
            return await self._log_in(provider, claims, address)
        except (TokenError, InvalidRequest) as error:
            raise Unauthenticated(f"The identity provider says of you what cannot be kept: {error.message}") from error

    async def close(self) -> None:
        """Fetch no more."""
        await self._provider.close()
        await self._keys.close()

    async def _known(self) -> Provider:
        if not self._provider.is_fresh:
            await self._provider.refresh()
        if self._provider.value is None:
            raise _unavailable()
        return self._provider.value

    async def _discover(self) -> Provider:
        return Provider.read(self.config.issuer, await self._fetcher.get(f"{self.config.issuer}/.well-known/openid-configuration"))

    async def _load_keys(self) -> KeySet:
        provider = self._provider.value
        if provider is None:
            raise FetchError("the provider's settings are not known")
        return read_key_set(await self._fetcher.get(provider.jwks))

    async def _redeem(self, provider: Provider, code: str, verifier: str, own_url: str) -> str:
        """The ID token that a code is good for."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": own_url + CALLBACK, "code_verifier": verifier}
        headers: dict[str, str] = {}
        if self._secret is None or provider.by_post:
            form["client_id"] = self.config.client_id
        if self._secret is not None and provider.by_post:
            form["client_secret"] = self._secret.reveal()
        elif self._secret is not None:  # RFC 6749, 2.3.1: both are encoded as in a form before they are joined
            pair = f"{quote(self.config.client_id, safe='')}:{quote(self._secret.reveal(), safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            status, value = await self._fetcher.post(provider.token, form, headers)
        except FetchError as error:
            self._parts.events.event("warning", "identity_unavailable", what="oidc token", error=error.message)
            raise _unavailable() from error
        if status >= 500:
            raise _unavailable()
        token = value.get("id_token") if status == 200 and isinstance(value, dict) else None
        if not isinstance(token, str):
            raise self._refused(f"the token endpoint answered {status} without an ID token")
        return token

    async def _claims(self, provider: Provider, token: str, nonce: str) -> Mapping[str, Any]:
        """What an ID token says of somebody, once all of it is right (OpenID Connect Core 1.0, 3.1.3.7)."""
        try:
            read = read_token(token, ALGORITHMS)
            key = None if self._keys.value is None else self._keys.value.find(read.kid, read.algorithm)
            if key is None or not self._keys.is_fresh:
                await self._keys.refresh()
                key = None if self._keys.value is None else self._keys.value.find(read.kid, read.algorithm)
            if key is None and (self._keys.failed or self._keys.value is None):
                raise _unavailable()
            if key is None:
                raise TokenError("it is signed with a key that its issuer does not have (`kid`)")
            claims = verified(token, key, read.algorithm)
            if claims.get("iss") != provider.issuer:
                raise TokenError("it is of another issuer (`iss`)")
            audience = check_audience(claims, (self.config.client_id,))
            if claims.get("azp", self.config.client_id if len(audience) == 1 else None) != self.config.client_id:
                raise TokenError("it was made for somebody else (`azp`)")
            if "exp" not in claims or "iat" not in claims:
                raise TokenError("it does not say how long it is valid (`exp`, `iat`)")
            check_times(claims, now_s=self._parts.clock.now_ns() / _NS, leeway_s=_LEEWAY_S)
            said = claims.get("nonce")
            if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
                raise TokenError("it was not made for this login (`nonce`)")
        except TokenError as error:
            raise self._refused(error.message) from error
        return claims

    async def _log_in(self, provider: Provider, claims: Mapping[str, Any], address: str) -> Opened:
        """Make or change the account of whom these claims are of, and begin a login."""
        config, people = self.config, self._parts.people
        subject, roles, teams = text_claim(claims, "sub"), names_claim(claims, config.roles_claim), names_claim(claims, config.teams_claim)
        if not subject:
            raise TokenError("it does not say who you are (`sub`)")
        permission = self._permission(roles)
        if permission is None:
            who = person_of(provider.issuer, subject)
            self._parts.events.event("warning", "login_refused", reason="roles", address=address, person=who)
            raise NotPermitted("The identity provider knows you, but none of your roles may do anything here (`[oidc] permissions`).")
        name = text_claim(claims, config.name_claim) or subject
        email = text_claim(claims, "email") if claims.get("email_verified", True) is True else ""
        now_ns = self._parts.clock.now_ns()
        fresh = Person(person_of(provider.issuer, subject), checked_text("name", name), permission, roles, teams, email,
                       subject=f"{provider.issuer} {subject}", created_ns=now_ns)
        detail = {"permission": permission, "roles": list(roles), "teams": list(teams)}
        person = await people.change(fresh.id, partial(_updated, fresh), Stamped("changed", _SYSTEM, now_ns, detail))
        if person is None:
            person = await self._add(fresh, Stamped("created", _SYSTEM, now_ns, detail))
        if person is None or person.subject != fresh.subject:
            raise TokenError("there is another account of this name, of another provider")
        return await self._parts.logins.open(person, "oidc", address, said=(roles, teams))

    async def _add(self, person: Person, stamp: Stamped) -> Person | None:
        try:
            await self._parts.people.add(person, stamp)
        except StoreError:  # somebody logs in twice at once for the first time
            return await self._parts.people.get(person.id)
        return person

    def _permission(self, roles: tuple[str, ...]) -> Permission | None:
        """The highest that a role of theirs has."""
        given = [self.config.permissions[role] for role in roles if role in self.config.permissions]
        return max(given, key=PERMISSIONS.index, default=None)

    def _refused(self, why: str) -> Unauthenticated:
        self._parts.events.event("warning", "login_refused", reason="oidc", error=why)
        return Unauthenticated(f"What the identity provider says is not right: {why}. Begin at the page again.")

    def _sealed(self, value: Mapping[str, Any]) -> str:
        body = base64.urlsafe_b64encode(dumps(dict(value))).decode().rstrip("=")
        return f"{body}.{self._seal(body)}"

    def _opened(self, cookie: str) -> Mapping[str, Any]:
        """What a login has begun with. Raises `Unauthenticated` for what we have not sealed, and for what is over."""
        body, _, seal = cookie.rpartition(".")
        if not hmac.compare_digest(seal.encode(errors="surrogatepass"), self._seal(body).encode()):
            raise Unauthenticated("This browser has not begun to log in here. Begin at the page again.")
        try:
            value: Mapping[str, Any] = loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (InvalidJson, ValueError) as error:
            raise Unauthenticated("This browser has not begun to log in here. Begin at the page again.") from error
        if self._parts.clock.now_ns() >= value["until_ns"]:
            raise Unauthenticated("This login took too long. Begin at the page again.")
        return value

    def _seal(self, body: str) -> str:
        return hmac.new(self._parts.key.reveal().encode(), f"oidc:{body}".encode(errors="surrogatepass"), sha256).hexdigest()


def _updated(fresh: Person, known: Person) -> Person:
    """An account with what its provider says of it now; another's stays as it is."""
    if known.subject != fresh.subject:
        return known
    return replace(known, name=fresh.name, permission=fresh.permission, roles=fresh.roles, teams=fresh.teams, email=fresh.email)


def _unavailable() -> IdentityUnavailable:
    return IdentityUnavailable("The identity provider does not answer at the moment: nobody knows who you are. Try again.", retry_after_s=5)
