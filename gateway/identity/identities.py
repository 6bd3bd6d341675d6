"""Everything that knows who somebody is, put together from the configuration: people's logins, and callers' tokens."""

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.clock import Clock, Ids
from gateway.config import Config
from gateway.identity.fetch import LARGEST, Events, Fetcher, FetchError, Kept
from gateway.identity.jwt import CallerTokens, Issuer
from gateway.identity.key_sets import KeySet, read_key_set
from gateway.identity.logins import Logins
from gateway.identity.oidc import Oidc, OidcParts
from gateway.people_config import JwtConfig
from gateway.secret import Secret
from gateway.smallfile import read_small
from gateway.store.approvals_protocol import People
from gateway.upstream.protocol import Transport
from gateway.wire.strict_json import InvalidJson, loads


@dataclass(frozen=True, slots=True)
class Given:
    """What identities are made of: settings with their secrets, and parts of the gateway. `pepper` is None where no keys are asked for."""

    config: Config
    folder: Path
    pepper: Secret | None
    admin_token: Secret | None
    oidc_secret: Secret | None
    people: People
    transport: Transport
    clock: Clock
    ids: Ids
    events: Events


@dataclass(frozen=True, slots=True)
class Identities:
    """One gateway's. `oidc` and `tokens` are None where nothing is configured."""

    logins: Logins
    oidc: Oidc | None
    tokens: CallerTokens | None

    @classmethod
    def of(cls, given: Given) -> "Identities":
        """Those of a configuration; nothing is asked of anybody yet."""
        config, pepper = given.config, pepper_of_people(given.pepper)
        logins = Logins(given.people, config.login, pepper, given.admin_token, given.clock, given.ids, given.events)
        parts = OidcParts(given.people, logins, given.transport, given.clock, given.ids, given.events, pepper)
        issuers = [Issuer(name, each, _keys(name, each, given)) for name, each in config.auth.jwt.items()]
        return cls(logins, None if config.oidc is None else Oidc(config.oidc, given.oidc_secret, parts),
                   CallerTokens(issuers) if issuers else None)

    async def close(self) -> None:
        """Ask nobody any more."""
        self.logins.passwords.close()
        for part in (self.oidc, self.tokens):
            if part is not None:
                await part.close()


def pepper_of_people(pepper: Secret | None) -> Secret:
    """What secrets of people are hashed with. They are long and random: where no pepper is set they are safe without one."""
    return pepper or Secret("")


def read_keys(path: Path) -> KeySet:
    """The public keys in a file. Raises `FetchError`."""
    try:
        return read_key_set(loads(read_small(path, limit=LARGEST)))
    except (ValueError, InvalidJson) as error:
        raise FetchError(str(error)) from error


def _keys(name: str, config: JwtConfig, given: Given) -> Kept[KeySet]:
    """The keys of an issuer: of its URL, or of a file."""
    fetcher = Fetcher(given.transport, config.private)

    async def of_url(url: str) -> KeySet:
        return read_key_set(await fetcher.get(url))

    async def of_file(path: Path) -> KeySet:
        return await asyncio.to_thread(read_keys, path)

    if config.jwks_url is not None:
        return Kept(partial(of_url, config.jwks_url), given.clock, given.events, f"auth.jwt.{name}")
    return Kept(partial(of_file, given.folder / (config.jwks_file or "")), given.clock, given.events, f"auth.jwt.{name}")
