"""The public keys of an issuer (JWKS, RFC 7517): which of them may check a token. Pure."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from joserfc import jwk
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from gateway.identity.fetch import FetchError

Key: TypeAlias = RSAKey | ECKey | OKPKey

# What a signature needs of its key: its type, and its curve where it has one. Shared secrets are none of them.
ALGORITHMS: Final = {
    "RS256": ("RSA", ""), "RS384": ("RSA", ""), "RS512": ("RSA", ""), "PS256": ("RSA", ""), "PS384": ("RSA", ""), "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),  # as RFC 9864 calls it
}
_MOST_KEYS: Final = 100
_SHORTEST_RSA: Final = 2048  # bits
_PUBLIC: Final = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One key and what its issuer says of it."""

    kid: str | None
    kind: tuple[str, str]
    algorithm: str | None
    key: Key = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of an issuer that signatures may be checked with."""

    entries: tuple[_Entry, ...]

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key that a token means: the one of its `kid`, or the only one that fits where it names none."""
        fitting = [each.key for each in self.entries if each.kind == ALGORITHMS[algorithm] and each.algorithm in (None, algorithm)
                   and kid in (None, each.kid)]
        return fitting[0] if len(fitting) == 1 else None

    def has(self, kid: str | None) -> bool:
        """Whether there is a key of this name, of whatever kind."""
        return kid is None or any(each.kid == kid for each in self.entries)


def read_key_set(value: Any) -> KeySet:
    """The keys of a JWKS. What is no public key for signatures is left out. Raises `FetchError` where none is left."""
    listed = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise FetchError("this is no set of keys (`keys`), or has very many")
    entries = tuple(entry for entry in map(_entry, listed) if entry is not None)
    if not entries:
        raise FetchError("the set of keys has none that a signature could be checked with")
    return KeySet(entries)


def _entry(given: Any) -> _Entry | None:
    if not isinstance(given, dict) or not isinstance(kty := given.get("kty"), str) or kty not in _PUBLIC:
        return None
    kind = (kty, given.get("crv", "") if kty != "RSA" else "")
    operations = given.get("key_ops", ["verify"])
    is_for_signatures = given.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    if not is_for_signatures or kind not in ALGORITHMS.values():
        return None
    try:  # of its public parts alone, whatever else stands there
        key = jwk.import_key({name: given[name] for name in _PUBLIC[kty]})
    except (JoseError, KeyError, ValueError, TypeError):
        return None
    if isinstance(key, RSAKey) and key.public_key.key_size < _SHORTEST_RSA:
        return None
    kid, algorithm = given.get("kid"), given.get("alg")
    if not isinstance(key, Key) or not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
        return None
    return _Entry(kid, kind, algorithm, key)
