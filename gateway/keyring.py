"""Virtual keys in memory: who is calling, answered without the store. Changes in the store are seen by polling its generation.

A key is `lgk_<id>_<secret>`. Its id is public; of the whole key only the HMAC-SHA256 under the deployment's pepper is kept.
"""

import hmac
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Final

from gateway.call import Principal
from gateway.clock import Clock, Ids, SystemClock
from gateway.errors import StoreError, StoreUnavailable, Unauthenticated
from gateway.identity.jwt import CallerTokens
from gateway.identity.tokens import looks_like_token
from gateway.secret import Secret
from gateway.store.protocol import Keys, StoredKey

_PREFIX: Final = "lgk_"
_ID_END: Final = 16
_LENGTH: Final = 49  # lgk_ + 12 + _ + 32

ANONYMOUS: Final = Principal(id="anonymous", name="anonymous")  # whoever calls where `auth.required` is false

_MISSING: Final = "no key was sent; send one as `Authorization: Bearer lgk_…` or `x-api-key: lgk_…`"
_WRONG: Final = "this key is not known; check it, or ask for one (`lgk_…`) from whoever runs this gateway"


def digest(pepper: Secret, key: str) -> bytes:
    """What is stored of a key. Under another pepper every key is unknown."""
    return hmac.digest(pepper.reveal().encode(), key.encode(), "sha256")


def new_key(  # noqa: PLR0913 - the fields of a key, by name
    ids: Ids, pepper: Secret, *, now_ns: int, name: str, team: str = "", org: str = "", roles: tuple[str, ...] = (),
    routes: tuple[str, ...] = ("*",), expires_ns: int | None = None, owner: str = "",
) -> tuple[str, StoredKey]:
    """A fresh key: its text, to be shown once, and what to store of it. `owner` is the account of the person whose it is."""
    key_id = ids.token(12)
    text, stored = new_secret(ids, pepper, key_id)
    return text, StoredKey(key_id, name, stored, team, org, roles, routes, created_ns=now_ns, expires_ns=expires_ns, owner=owner)


def new_secret(ids: Ids, pepper: Secret, key_id: str) -> tuple[str, bytes]:
    """A fresh secret under a key's id: the key's whole text and its digest."""
    text = f"{_PREFIX}{key_id}_{ids.token(32)}"
    return text, digest(pepper, text)


def principal_of(key: StoredKey) -> Principal:
    """Who calls with a key."""
    return Principal(key.id, key.name, key.team, key.org, key.roles, key.routes, owner=key.owner)


class KeyRing:
    """Every key of the store, for lookups that take no time. `stale_since_ns`: since when the store could not be asked.

    `tokens` knows whose a JSON Web Token is, where issuers are configured.
    """

    def __init__(self, pepper: Secret, clock: Clock | None = None, tokens: CallerTokens | None = None) -> None:
        self._keys: Keys | None = None
        self._pepper = pepper
        self._tokens = tokens
        self._clock = clock or SystemClock()
        self._generation = -1
        self._known: Mapping[str, tuple[StoredKey, Principal]] = {}
        self._nobody = StoredKey(id="", name="", digest=digest(pepper, ""))  # of no key: no text has an empty key's length
        self.stale_since_ns: int | None = None

    def __repr__(self) -> str:
        return f"KeyRing({len(self._known)} keys, generation={self._generation}, stale_since_ns={self.stale_since_ns})"

    async def load(self, keys: Keys) -> None:
        """Learn the store's keys, and where to look for changes. Raises `StoreUnavailable` if it cannot be read."""
        self._keys = keys
        await self._read(keys)

    def identify(self, presented: str | None, now_ns: int) -> Principal | Awaitable[Principal]:
        """Who holds this key or this token; something to wait for where a token's issuer has to be asked first.

        Raises:
            Unauthenticated: as `authenticate`.
            IdentityUnavailable: the issuer of a token does not answer.
        """
        if self._tokens is not None and presented is not None and looks_like_token(presented):
            return self._tokens.authenticate(presented, now_ns)
        return self.authenticate(presented, now_ns)

    def authenticate(self, presented: str | None, now_ns: int) -> Principal:
        """Who holds this key.

        Raises:
            Unauthenticated: there is none, or it is unknown, expired or revoked. The two last are told to the holder only.
        """
        if not presented:
            raise Unauthenticated(_MISSING)
        if len(presented) != _LENGTH or not presented.isascii():  # before any work that grows with what was sent
            raise Unauthenticated(_WRONG)
        known = self._known.get(presented[len(_PREFIX):_ID_END])
        key = self._nobody if known is None else known[0]
        if not hmac.compare_digest(key.digest, digest(self._pepper, presented)) or known is None:
            raise Unauthenticated(_WRONG)
        _check(key, now_ns)
        return known[1]

    def still(self, principal: Principal, now_ns: int) -> Principal:
        """The same principal as it is now. Raises `Unauthenticated` where its key was revoked, or has expired.

        Whose call came with a token is as it was: the token is not kept, so its issuer cannot be asked about it again.
        """
        if self._tokens is not None and self._tokens.knows(principal):
            return principal
        known = self._known.get(principal.id)
        if known is None:
            raise Unauthenticated("the key that this was asked with is not known any more")
        _check(known[0], now_ns)
        return known[1]

    async def refresh(self) -> bool:
        """Look for changes: whether there were any. To be called every half second or so.

        While the store fails the last good keys stay in force and `stale_since_ns` is set.
        """
        if self._keys is None:
            return False
        try:
            changed = await self._keys.generation() != self._generation
            if changed:
                await self._read(self._keys)
        except (StoreError, StoreUnavailable):
            if self.stale_since_ns is None:
                self.stale_since_ns = self._clock.now_ns()
            return False
        self.stale_since_ns = None
        return changed

    async def _read(self, keys: Keys) -> None:
        generation, stored = await keys.all()
        self._known = {
            key.id: (key, principal_of(key)) for key in stored
        }
        self._generation = generation


def _check(key: StoredKey, now_ns: int) -> None:
    if key.revoked_ns is not None:
        raise Unauthenticated("this key was revoked; ask for a new one")
    if key.expires_ns is not None and key.expires_ns <= now_ns:
        when = datetime.fromtimestamp(key.expires_ns // 1_000_000_000, UTC)
        raise Unauthenticated(f"this key expired on {when:%Y-%m-%d %H:%M} UTC; ask for a new one")
