"""Who somebody is: by a password, an API token, the admin token or a browser's cookie. Says nothing of HTTP.

A login's cookie is a random text, of which the digest is kept. Those of the admin token are hashed with that token: with another one they
are over.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias

from gateway.clock import Clock, Ids
from gateway.core.approval import Voter
from gateway.errors import ApprovalConflict, InvalidRequest, TooManyLogins, Unauthenticated
from gateway.identity.accounts import TOKEN_LENGTH, TOKEN_PREFIX, digest, permission_of
from gateway.identity.actor import ADMIN, Actor
from gateway.identity.addresses import Addresses, network_of
from gateway.identity.guesses import Came, Guesses
from gateway.identity.passwords import Passwords, checked
from gateway.people_config import LoginConfig
from gateway.secret import Secret
from gateway.store.approvals_protocol import Login, People, Person, Stamped

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
    """A login that has begun: what its browser keeps, and who it is. `device` it keeps longer: that this person has logged in there."""

    cookie: str = field(repr=False)
    login: Login
    actor: Actor
    device: str = field(default="", repr=False)


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
    guesses: Guesses = field(init=False)

    def __post_init__(self) -> None:
        self.addresses = Addresses(self.clock)
        self.guesses = Guesses(self.pepper, self.settings.attempts)

    async def with_password(self, name: str, password: str, came: Came) -> Opened:
        """Log in with a password.

        Every name is treated alike, whether somebody has it or not: what is answered, and how much work that takes.

        Raises:
            Unauthenticated: the name or the password is wrong.
            TooManyLogins: too many were tried from where they are, or for this name.
        """
        person = await self._proved(name.strip().lower(), password, came)
        if person is None:
            raise Unauthenticated(_WRONG)
        return await self.open_known(person, came)

    async def open_known(self, person: Person, came: Came) -> Opened:
        """Begin a login of somebody whose password was right, in a browser that is known from now on."""
        is_known = self.guesses.knows(person.id, person.password, came.device)
        device = came.device if is_known else self.guesses.new_device(person.id, person.password, self.ids)
        return replace(await self.open(person, "password", came.address), device=device)

    async def change_password(self, actor: Actor, current: str, new: str, came: Came) -> Person:
        """Give somebody who has logged in another password, which they choose. All their logins end.

        Raises:
            InvalidRequest: the current one is wrong, the new one none that somebody may have, or the account has no password.
            TooManyLogins: too many wrong ones were given; they count as they do at a login.
            ApprovalConflict: it was changed at the same moment.
        """
        known = await self.people.get(actor.id)
        if known is None or not known.password:
            raise InvalidRequest("There is no password here that you could change. Somebody with the permission `admin` gives an account "
                                 "its first one; an identity provider looks after its own.")
        if checked(new, "/new") == current:
            raise InvalidRequest("The new password is the one that you have.", pointer="/new")
        person = await self._proved(known.id, current, came)
        if person is None:
            raise InvalidRequest("This is not your current password.", pointer="/current")
        password = await self.passwords.hash(new)

        def how(before: Person) -> Person:
            return replace(before, password=password) if before.password == person.password else before

        stamp = Stamped("changed", person.id, self.clock.now_ns(), {"password": True})
        changed = await self.people.change(person.id, how, stamp, log_out=True)
        if changed is None or changed.password != password:
            raise ApprovalConflict("Your password was changed at the same moment, and not by this.")
        self.events.event("info", "password_changed", person=person.id, address=came.address)
        return changed

    async def with_token(self, token: str, address: str) -> Opened:
        """Log in with the admin token, or a person's API token. Raises `Unauthenticated` or `TooManyLogins`."""
        self.addresses.take(network_of(address))
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

    async def by_cookie(self, cookie: str, *, used: bool = True) -> tuple[Actor, Login] | None:
        """Whose browser this is; None where the login is over. `used`: somebody does something there."""
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
        if used and now_ns - login.last_ns >= int(min(_NOTED_S, self.settings.idle / 10) * _NS):
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

    async def _proved(self, name: str, password: str, came: Came) -> Person | None:
        """Whose password this is: that of somebody of this name. None where it is wrong. Raises `TooManyLogins`."""
        person = await self.people.get(name)
        kept = person.password if person is not None and person.disabled_ns is None else ""
        guesser, now_ns = self.guesses.of(name, kept, came), self.clock.now_ns()
        self.addresses.take(guesser.place)
        locked_ns = await self.people.attempt(guesser.counts, now_ns=now_ns, lock_until_ns=now_ns + int(self.settings.locked * _NS))
        if locked_ns is not None:
            self.events.event("warning", "login_refused", reason="locked", address=came.address)
            raise TooManyLogins("Too many wrong passwords were given for this name. Wait, or ask somebody with the permission `admin`.",
                                retry_after_s=max((locked_ns - now_ns) // _NS, 0) + 1)
        if not await self.passwords.matches(kept, password) or person is None:
            known = None if person is None else person.id  # what else was typed there may be a password
            self.events.event("warning", "login_refused", reason="password", address=came.address, person=known)
            return None
        await self.people.forgive(tuple(guesser.counts))
        return person

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
