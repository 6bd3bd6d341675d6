"""JSON Web Tokens (RFC 7519): what one says, whether its signature is right, and whether it says enough. Pure.

The algorithm is one of those that we name, never one that the token chooses (RFC 8725, 3.1). Keys that a token brings along are not
looked at.
"""

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError

from gateway.errors import LockgateError
from gateway.identity.key_sets import ALGORITHMS, Key
from gateway.wire.strict_json import InvalidJson, loads

LONGEST: Final = 16 * 1024  # characters
_DEEPEST: Final = 16
_LONGEST_TEXT: Final = 200
_MOST_NAMES: Final = 100
_PARTS: Final = 3
_LATEST_S: Final = 10**11  # in the year 5138


class TokenError(LockgateError):
    """A token that is not taken. The message says why, to whoever has sent it."""

    code = "unauthenticated"


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token as it stands: nobody knows yet whether it is right."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any]


class _Registry(jws.JWSRegistry):
    """What the library may do with one token: check a signature of the kind that we have looked at."""

    max_header_length = LONGEST  # the whole has been measured
    max_payload_length = LONGEST

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithms=[algorithm], strict_check_header=False)
        self._algorithm = algorithm

    def get_alg(self, name: str) -> Any:
        """The kind that was asked for, and no other. The library's own warns at each use of `EdDSA`, which RFC 9864 calls `Ed25519`."""
        if name != self._algorithm:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


def looks_like_token(text: str) -> bool:
    """Whether a credential can only be a token: three parts, of which the first begins a JSON object."""
    return text.startswith("eyJ") and text.count(".") == _PARTS - 1


def read_token(text: str, algorithms: Collection[str]) -> Unverified:
    """What a token says. Raises `TokenError`, also for a signature of a kind that is none of these."""
    if len(text) > LONGEST or not text.isascii() or text.count(".") != _PARTS - 1:
        raise TokenError("this is no signed token")
    head, payload, _signature = text.split(".")
    header, claims = _part(head), _part(payload)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms or algorithm not in ALGORITHMS:
        raise TokenError("this token is signed in a way that is not taken (`alg`)")
    if "crit" in header or "b64" in header or not isinstance(kid, str | None):
        raise TokenError("this token's header asks for what is not known here (`crit`, `b64`, or a `kid` that is no text)")
    return Unverified(algorithm, kid, claims)


def verified(text: str, key: Key, algorithm: str) -> Mapping[str, Any]:
    """The claims of a token that was signed with this key. Raises `TokenError`."""
    try:
        read = jws.deserialize_compact(text, key, algorithms=[algorithm], registry=_Registry(algorithm))
    except (JoseError, ValueError) as error:
        raise TokenError("this token's signature is wrong") from error
    return _object(read.payload)


def check_times(claims: Mapping[str, Any], *, now_s: float, leeway_s: float) -> None:
    """Raise `TokenError` for a token that is not valid yet, or no more."""
    for name in ("exp", "nbf", "iat"):
        at = claims.get(name)
        if at is None:
            continue
        if isinstance(at, bool) or not isinstance(at, int | float) or not abs(at) < _LATEST_S:
            raise TokenError(f"this token's `{name}` is no time")
        if name == "exp" and now_s >= at + leeway_s:
            raise TokenError("this token has expired")
        if name != "exp" and now_s < at - leeway_s:
            raise TokenError(f"this token is not valid yet (`{name}`)")


def check_audience(claims: Mapping[str, Any], wanted: Collection[str]) -> tuple[str, ...]:
    """Whom a token is for. Raises `TokenError` where none of them is wanted."""
    said = claims.get("aud")
    audience = (said,) if isinstance(said, str) else tuple(said) if isinstance(said, list) else ()
    if not any(each in wanted for each in audience if isinstance(each, str)):
        raise TokenError("this token is meant for somebody else (`aud`)")
    return audience


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name; one that is not there as it stands is looked for inside others, as `realm_access.roles` is."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def text_claim(claims: Mapping[str, Any], name: str) -> str:
    """A claim that is a text, empty where it is not there. Raises `TokenError` for anything else, and for what cannot be shown."""
    value = claim(claims, name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise TokenError(f"this token's `{name}` is no text of up to {_LONGEST_TEXT} characters that can be shown")
    return value


def names_claim(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A claim that lists names, or has them in one text with blanks between. Raises `TokenError`."""
    value = claim(claims, name)
    names = value.split() if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or len(names) > _MOST_NAMES or not all(
            isinstance(each, str) and 0 < len(each) <= _LONGEST_TEXT and each.isprintable() for each in names):
        raise TokenError(f"this token's `{name}` is no list of up to {_MOST_NAMES} names")
    return tuple(dict.fromkeys(names))


def _part(text: str) -> Mapping[str, Any]:
    try:
        return _object(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except binascii.Error as error:
        raise TokenError("this is no signed token") from error


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = loads(data, max_depth=_DEEPEST)
    except InvalidJson as error:
        raise TokenError("this token holds other than JSON") from error
    if not isinstance(value, dict):
        raise TokenError("this token holds no JSON object")
    return value
