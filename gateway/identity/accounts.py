"""Accounts of people: what one may be called, what may be changed of it, and how it is shown. Pure.

An API token is `lgp_<id>_<secret>`; of it only the HMAC-SHA256 under the deployment's pepper is kept, as of a virtual key.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

from gateway.clock import Ids, time_text
from gateway.errors import InvalidRequest
from gateway.identity.actor import PERMISSIONS, Permission
from gateway.secret import Secret
from gateway.store.approvals_protocol import Person
from gateway.store.scrub import Scrubber

TOKEN_PREFIX: Final = "lgp_"  # noqa: S105 - what every one begins with
TOKEN_LENGTH: Final = 49  # lgp_ + 12 + _ + 32
RESERVED: Final = frozenset({"admin", "anonymous", "gateway", "lockgate", "oidc"})  # what stands for no person where authors are named
MOST_NAMES: Final = 50  # roles of a person, and teams

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}", re.ASCII)
_LONGEST: Final = 200
_LONGEST_ID: Final = 255
SAFE: Final = "._-~@|+=,!"  # what a subject may hold that needs no escaping in an id


def digest(pepper: Secret, text: str) -> bytes:
    """What is kept of a secret that this gateway has made. Texts of a request may be no UTF-8: they are then of nobody."""
    return hmac.digest(pepper.reveal().encode(), text.encode(errors="surrogatepass"), "sha256")


def new_token(ids: Ids, pepper: Secret) -> tuple[str, bytes]:
    """A fresh API token: its text, to be shown once, and its digest."""
    text = f"{TOKEN_PREFIX}{ids.token(12)}_{ids.token(32)}"
    return text, digest(pepper, text)


def person_of(issuer: str, subject: str) -> str:
    """The id of the account of somebody whom an identity provider knows by this subject. No other account can have one like it."""
    host = urlsplit(issuer).netloc.lower() or issuer.lower()
    return f"oidc:{quote(subject, safe=SAFE)}@{quote(host, safe=f'{SAFE}:[]')}"[:_LONGEST_ID]


def checked_id(person_id: str) -> str:
    """An id that somebody may have. Raises `InvalidRequest`."""
    if _ID.fullmatch(person_id) is None:
        raise InvalidRequest("A person's id has up to 64 lower-case letters, digits, `.`, `_`, `@` and `-`, and begins with a letter or a "
                             "digit.", pointer="/id")
    if person_id in RESERVED:
        raise InvalidRequest(f"`{person_id}` cannot be a person's id: it stands for something else. Choose another.", pointer="/id")
    return person_id


def checked_text(key: str, text: str, *, required: bool = False) -> str:
    """A text that can be shown to others. Raises `InvalidRequest`."""
    text = text.strip()
    if len(text) > _LONGEST or not text.isprintable() or (required and not text):
        wrong = "is empty" if not text else f"is longer than {_LONGEST} characters" if len(text) > _LONGEST else "cannot be shown"
        raise InvalidRequest(f"`{key}` {wrong}.", pointer=f"/{key}")
    if Scrubber(()).text(text) != text:
        raise InvalidRequest(f"`{key}` holds a key or a token, which belongs to its owner alone; what stands here is shown to others.",
                             pointer=f"/{key}")
    return text


def checked_names(key: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Roles or teams, each once. Raises `InvalidRequest`."""
    if len(names) > MOST_NAMES:
        raise InvalidRequest(f"`{key}` has {len(names)} names, and may have {MOST_NAMES}.", pointer=f"/{key}")
    return tuple(dict.fromkeys(checked_text(key, name, required=True) for name in names))


@dataclass(frozen=True, slots=True)
class Fields:
    """What is given of an account; None leaves it as it is."""

    name: str | None = None
    permission: Permission | None = None
    roles: tuple[str, ...] | None = None
    teams: tuple[str, ...] | None = None
    email: str | None = None

    @property
    def told(self) -> Mapping[str, Any]:
        """What was given, for the record."""
        given = {name: getattr(self, name) for name in ("name", "permission", "roles", "teams", "email")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None}

    @property
    def stands_at_login(self) -> bool:
        """Whether what an identity provider says at a login stands in place of one of these: an open login would go on without it."""
        return self.roles is not None or self.teams is not None

    def checked(self) -> "Fields":
        """The same, fit to be shown. Raises `InvalidRequest`."""
        return Fields(
            None if self.name is None else checked_text("name", self.name, required=True), self.permission,
            None if self.roles is None else checked_names("roles", self.roles),
            None if self.teams is None else checked_names("teams", self.teams),
            None if self.email is None else checked_text("email", self.email))

    def on(self, person: Person) -> Person:
        """An account with these."""
        given = {name: getattr(self, name) for name in ("name", "permission", "roles", "teams", "email")}
        return replace(person, **{name: value for name, value in given.items() if value is not None})


def permission_of(person: Person) -> Permission | None:
    """What a person may do; None for what somebody wrote into the database and nobody knows."""
    return next((each for each in PERMISSIONS if each == person.permission), None)


def person_row(person: Person) -> dict[str, Any]:
    """An account as it is listed: without anything secret."""
    return {
        "id": person.id, "name": person.name, "permission": person.permission, "roles": list(person.roles), "teams": list(person.teams),
        "email": person.email or None, "state": "active" if person.disabled_ns is None else "disabled",
        "password": bool(person.password), "token": bool(person.token), "oidc": bool(person.subject),
        "created": time_text(person.created_ns), "disabled": time_text(person.disabled_ns),
    }
