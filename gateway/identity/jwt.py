"""JSON Web Tokens in place of virtual keys: whose a token is, by what its issuer has signed. No token is kept, only the digests of some.

Where the issuer's keys are at hand the answer takes no waiting; else they are fetched first, at most every 5 s whoever asks. Nobody has
signed what makes us look for a key: a token that names one is called wrong only by keys that were fetched after it had come.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from gateway.call import Principal
from gateway.errors import IdentityUnavailable, Unauthenticated
from gateway.identity.accounts import SAFE, person_of
from gateway.identity.fetch import Kept
from gateway.identity.key_sets import Key, KeySet
from gateway.identity.tokens import (
    TokenError,
    Unverified,
    check_audience,
    check_times,
    claim,
    names_claim,
    read_token,
    text_claim,
    verified,
)
from gateway.people_config import JwtConfig

MOST_KNOWN: Final = 10_000  # tokens whose owners are remembered
_LONGEST_ID: Final = 255
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Issuer:
    """Somebody whose tokens are taken. `name` is ours for it."""

    name: str
    config: JwtConfig
    keys: Kept[KeySet]

    def checked(self, claims: Mapping[str, Any], now_ns: int) -> Mapping[str, Any]:
        """The claims, where they are enough. Raises `TokenError`."""
        config = self.config
        if claims.get("iss") != config.issuer:
            raise TokenError("this token's issuer is not known here (`iss`)")
        check_audience(claims, config.audience)
        check_times(claims, now_s=now_ns / _NS, leeway_s=config.leeway)
        missing = next((name for name in config.required if claim(claims, name) in (None, "")), None)
        if missing is not None:
            raise TokenError(f"this token has no `{missing}`")
        other = next((name for name, value in config.claims.items() if claim(claims, name) != value), None)
        if other is not None:
            raise TokenError(f"this token's `{other}` is another than the one that is asked for")
        return claims

    def principal(self, claims: Mapping[str, Any]) -> Principal:
        """Who calls with these claims.

        A token with `act` (RFC 8693) is of somebody who acts for its `sub`: the principal is who acts.
        """
        config = self.config
        acting = claims.get("act")
        if acting is not None and not isinstance(acting, Mapping):
            raise TokenError("this token's `act` is no object")
        delegated = acting is not None and claim(claims, config.on_behalf_claim) is None
        who = acting if delegated and acting is not None else claims
        subject = text_claim(who, "sub" if delegated else config.id_claim)
        if not subject:
            raise TokenError("this token does not say whose it is")
        principal_id = f"jwt:{self.name}:{quote(subject, safe=SAFE)}"
        if len(principal_id) > _LONGEST_ID:
            raise TokenError("what this token says of whose it is, is too long")
        person, roles = text_claim(who, "sub"), names_claim(claims, config.roles_claim)
        return Principal(
            principal_id, text_claim(who, config.name_claim), text_claim(claims, config.team_claim), text_claim(claims, config.org_claim),
            tuple(config.roles[role] for role in roles if role in config.roles) if config.roles else roles, config.routes,
            on_behalf_of=text_claim(claims, "sub" if delegated else config.on_behalf_claim),
            owner=person_of(config.issuer, person) if person else "")


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that was checked: good until its time is over, or its issuer's keys are others."""

    principal: Principal
    issuer: Issuer
    generation: int
    ends_ns: int | None


class CallerTokens:
    """The tokens of all issuers that are configured."""

    def __init__(self, issuers: Sequence[Issuer]) -> None:
        self._issuers = issuers
        self._algorithms = frozenset(name for issuer in issuers for name in issuer.config.algorithms)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def __repr__(self) -> str:
        return f"CallerTokens({len(self._issuers)} issuers, {len(self._known)} known)"

    def authenticate(self, token: str, now_ns: int) -> Principal | Awaitable[Principal]:
        """Whose token this is; something to wait for where its issuer's keys have to be fetched first.

        Raises:
            Unauthenticated: it is not right, or no more; it says why.
            IdentityUnavailable: nobody can know, for its issuer does not answer.
        """
        name = sha256(token.encode(errors="surrogatepass")).digest()
        known = self._known.get(name)
        if known is not None and self._holds(known, now_ns):
            self._known.move_to_end(name)
            return known.principal
        try:
            read = read_token(token, self._algorithms)
            issuer = self._issuer_of(read)
            issuer.checked(read.claims, now_ns)  # before anything is fetched for it
            key = _key(issuer, read)
            if key is None and issuer.keys.is_due and not issuer.keys.has_missed(_wanted(read)):
                return self._after_refresh(name, token, read, issuer, now_ns)
            if not issuer.keys.is_fresh:
                issuer.keys.begin()  # nobody waits for that: the keys that there are hold for a day
            return self._accepted(name, token, read, issuer, now_ns)
        except TokenError as error:
            raise _refused(error) from error

    def knows(self, principal: Principal) -> bool:
        """Whether a principal was made of a token of an issuer that is still configured."""
        return any(principal.id.startswith(f"jwt:{issuer.name}:") for issuer in self._issuers)

    async def close(self) -> None:
        """Fetch no more."""
        for issuer in self._issuers:
            await issuer.keys.close()

    async def _after_refresh(self, name: bytes, token: str, read: Unverified, issuer: Issuer, now_ns: int) -> Principal:
        if await issuer.keys.refresh() and _key(issuer, read) is None:
            issuer.keys.note_missed(_wanted(read))
        try:
            return self._accepted(name, token, read, issuer, now_ns)
        except TokenError as error:
            raise _refused(error) from error

    def _accepted(self, name: bytes, token: str, read: Unverified, issuer: Issuer, now_ns: int) -> Principal:
        """Check a token's signature with the keys that there are, and remember whose it is."""
        key = _known_key(issuer, read)
        claims = issuer.checked(verified(token, key, read.algorithm), now_ns)
        principal = issuer.principal(claims)
        ends = claims.get("exp")
        ends_ns = None if ends is None else int((ends + issuer.config.leeway) * _NS)
        self._known[name] = _Known(principal, issuer, issuer.keys.generation, ends_ns)
        self._known.move_to_end(name)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return principal

    def _holds(self, known: _Known, now_ns: int) -> bool:
        keys = known.issuer.keys
        return known.generation == keys.generation and keys.is_fresh and (known.ends_ns is None or now_ns < known.ends_ns)

    def _issuer_of(self, read: Unverified) -> Issuer:
        """Whose token it says it is: of two entries with one issuer that for whose audience it is."""
        found = [each for each in self._issuers
                 if each.config.issuer == read.claims.get("iss") and read.algorithm in each.config.algorithms]
        if not found:
            raise TokenError("this token's issuer is not known here (`iss`)")
        said = read.claims.get("aud")
        audience = said if isinstance(said, list) else [said]
        return next((each for each in found if any(name in audience for name in each.config.audience)), found[0])


def _key(issuer: Issuer, read: Unverified) -> Key | None:
    keys = issuer.keys.value
    return None if keys is None else keys.find(read.kid, read.algorithm)


def _known_key(issuer: Issuer, read: Unverified) -> Key:
    """The key that a token names. Raises `TokenError`, and `IdentityUnavailable` where nobody can say that there is none."""
    key, keys = _key(issuer, read), issuer.keys
    if key is not None:
        return key
    if keys.failed or keys.value is None:
        raise IdentityUnavailable("The issuer of this token does not tell its keys at the moment, so nobody knows whether it is right. "
                                  "Try again.", retry_after_s=5)
    if not keys.value.has(read.kid) and not keys.has_missed(_wanted(read)):
        raise IdentityUnavailable("The key that this token names was not there when the issuer's were fetched a moment ago. They are "
                                  "fetched again soon. Try again.", retry_after_s=int(keys.due_in_s) + 1)
    raise TokenError("this token is signed with a key that its issuer does not have (`kid`)")


def _wanted(read: Unverified) -> tuple[str | None, str]:
    return read.kid, read.algorithm


def _refused(error: TokenError) -> Unauthenticated:
    return Unauthenticated(f"{error.message}; ask for another one where you have this one from")
