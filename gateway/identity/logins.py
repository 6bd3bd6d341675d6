"""Who somebody is: by a password, an API token, the admin token or a browser's cookie. Says nothing of HTTP.

A login's cookie is a random text, of which the digest is kept. Those of the admin token are hashed with that token: with another one they
are over.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias

from gateway.clock import Clock, Ids
from gateway.core.approval import Voter
from gateway.errors import TooManyLogins, Unauthenticated
from gateway.identity.accounts import TOKEN_LENGTH, TOKEN_PREFIX, digest, permission_of
from gateway.identity.actor import ADMIN, Actor
from gateway.identity.addresses import Addresses
from gateway.identity.passwords import Passwords
from gateway.people_config import LoginConfig
from gateway.secret import Secret
from gateway.store.approvals_protocol import Login, People, Person

Method: TypeAlias = Literal["password", "token", "oidc"]

_OF_PERSON: Final = "lgs_"  # how a cookie begins
_OF_ADMIN: Final = "lga_"
_COOKIE: Final = 48  # characters behind that
_CSRF: Final = 32
_NOTED_S: Final = 60.0  # how exactly the last use of a login is known
_NS: Final = 1_000_000_000
_WRONG: Final = "The name or the password is wrong."  # which of them, or that there is no such account, is nobody's business
_WRONG_TOKEN: Final = "This token is not known. It is the admin token (`[admin] token`), or an API token of a person (`lgp_…`)."  # noqa: S105


class Events(Protocol):
    """Where it is told who logs in."""

    def event(self, level: str, name: str, **fields: object) -> None:
        """One line of the log."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A login that has begun: what its browser keeps, and who it is."""

    cookie: str = field(repr=False)
    login: Login
    actor: Actor


@dataclass(slots=True)
class Logins:
    """Begins, finds and ends logins, and knows the bearers of tokens."""

    people: People
    settings: LoginConfig
    pepper: Secret
    admin_token: Secret | None
    clock: Clock
    ids: Ids
    events: Events
    passwords: Passwords = field(default_factory=Passwords)
    addresses: Addresses = field(init=False)

    def __post_init__(self) -> None:
        self.addresses = Addresses(self.clock)

    async def with_password(self, name: str, password: str, address: str) -> Opened:
        """Log in with a password.

        Every name is treated alike, whether somebody has it or not: what is answered, and how much work that takes.

        Raises:
            Unauthenticated: the name or the password is wrong.
            TooManyLogins: too many were tried from this address, or for this name.
        """
        self.addresses.take(address)
        name = name.strip().lower()
        counted, now_ns = self.name_digest(name), self.clock.now_ns()
        locked_ns = await self.people.attempt(
            counted, now_ns=now_ns, most=self.settings.attempts, lock_until_ns=now_ns + int(self.settings.locked * _NS))
        if locked_ns is not None:
            self.events.event("warning", "login_refused", reason="locked", address=address)
            raise TooManyLogins("Too many wrong passwords were given for this name. Wait, or ask somebody with the permission `admin`.",
                                retry_after_s=max((locked_ns - now_ns) // _NS, 0) + 1)
        person = await self.people.get(name)
        kept = person.password if person is not None and person.disabled_ns is None else ""
        if not await self.passwords.matches(kept, password) or person is None:
            known = None if person is None else person.id  # what else was typed there may be a password
            self.events.event("warning", "login_refused", reason="password", address=address, person=known)
            raise Unauthenticated(_WRONG)
        await self.people.forgive(counted)
        return await self.open(person, "password", address)

    async def with_token(self, token: str, address: str) -> Opened:
        """Log in with the admin token, or a person's API token. Raises `Unauthenticated` or `TooManyLogins`."""
        self.addresses.take(address)
        if self._is_admin(token):
            return await self.open(None, "token", address)
        person = await self._bearer(token)
        if person is None:
            self.events.event("warning", "login_refused", reason="token", address=address)
            raise Unauthenticated(_WRONG_TOKEN)
        return await self.open(person, "token", address)

    async def open(
        self, person: Person | None, method: Method, address: str, *, said: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    ) -> Opened:
        """Begin a login of a person who has proved who they are, or of the admin token. `said` are the roles and teams that an identity
        provider tells at this login. Raises `Unauthenticated` where the account may not be used.
        """
        cookie = f"{_OF_ADMIN if person is None else _OF_PERSON}{self.ids.token(_COOKIE)}"
        now_ns = self.clock.now_ns()
        login = Login(
            self._cookie_digest(cookie), ADMIN.id if person is None else person.id, method, self.ids.token(_CSRF), now_ns,
            now_ns + int(self.settings.longest * _NS), now_ns, *(said or (None, None)))
        actor = ADMIN if person is None else _actor(person, login)
        if actor is None:
            raise Unauthenticated("This account is disabled. Ask somebody with the permission `admin`.")
        await self.people.log_in(login)
        self.events.event("info", "login", person=login.person, method=method, address=address)
        return Opened(cookie, login, _by_cookie(actor))

    async def by_cookie(self, cookie: str) -> tuple[Actor, Login] | None:
        """Whose browser this is; None where the login is over."""
        if len(cookie) != len(_OF_PERSON) + _COOKIE or not cookie.startswith((_OF_PERSON, _OF_ADMIN)):
            return None
        now_ns = self.clock.now_ns()
        found = await self.people.login(self._cookie_digest(cookie), now_ns=now_ns)
        if found is None:
            return None
        login, person = found
        if now_ns - login.last_ns >= int(self.settings.idle * _NS):
            await self.people.log_out(login.id)
            return None
        actor = _actor(person, login) if person is not None else ADMIN if cookie.startswith(_OF_ADMIN) else None
        if actor is None:
            return None
        if now_ns - login.last_ns >= int(min(_NOTED_S, self.settings.idle / 10) * _NS):
            await self.people.seen(login.id, now_ns=now_ns)
        return _by_cookie(actor), login

    async def by_token(self, token: str) -> Actor | None:
        """Whose token this is: the admin token, or a person's."""
        if self._is_admin(token):
            return ADMIN
        person = await self._bearer(token)
        return None if person is None else _actor(person, None)

    async def close(self, cookie: str) -> None:
        """End the login of a cookie, if there is one."""
        if await self.people.log_out(self._cookie_digest(cookie)):
            self.events.event("info", "logout")

    def ends_ns(self, login: Login) -> int:
        """When a login ends if nothing is asked any more."""
        return min(login.expires_ns, login.last_ns + int(self.settings.idle * _NS))

    def name_digest(self, name: str) -> bytes:
        """What the wrong passwords for a name are counted under."""
        return digest(self.pepper, f"name:{name}")

    def _is_admin(self, token: str) -> bool:
        return self.admin_token is not None and Secret(token) == self.admin_token

    async def _bearer(self, token: str) -> Person | None:
        if len(token) != TOKEN_LENGTH or not token.isascii() or not token.startswith(TOKEN_PREFIX):
            return None
        person = await self.people.by_token(digest(self.pepper, token))
        return None if person is None or person.disabled_ns is not None or permission_of(person) is None else person

    def _cookie_digest(self, cookie: str) -> bytes:
        key = self.admin_token if cookie.startswith(_OF_ADMIN) and self.admin_token is not None else self.pepper
        return digest(key, cookie)


def _actor(person: Person, login: Login | None) -> Actor | None:
    """Somebody with an account; None where it is disabled."""
    permission = permission_of(person)
    if person.disabled_ns is not None or permission is None:
        return None
    if login is None:
        return Actor(Voter(person.id, person.name, person.roles, person.teams, "token"), permission, "token")
    roles = person.roles if login.roles is None else login.roles
    teams = person.teams if login.teams is None else login.teams
    return Actor(Voter(person.id, person.name, roles, teams, login.method, login.created_ns), permission, "cookie")


def _by_cookie(actor: Actor) -> Actor:
    return actor if actor.via == "cookie" else replace(actor, via="cookie")
