"""Keys and tokens at one door: each is looked at as what it is, and a key takes no waiting."""

import pytest

from gateway.call import Principal
from gateway.clock import SystemClock, SystemIds
from gateway.errors import Unauthenticated
from gateway.identity.fetch import Kept
from gateway.identity.jwt import CallerTokens, Issuer
from gateway.identity.key_sets import KeySet
from gateway.keyring import KeyRing, new_key
from gateway.people_config import JwtConfig
from gateway.secret import Secret
from gateway.store.memory import MemoryKeys

PEPPER = Secret("pepper")
CONFIG = JwtConfig.model_validate({"issuer": "https://id.example", "audience": ["x"], "jwks_url": "https://id.example/keys"})


@pytest.fixture
async def ring(clock, log):
    async def nothing() -> KeySet:
        raise AssertionError("nobody is asked")

    keys = MemoryKeys()
    text, stored = new_key(SystemIds(SystemClock()), PEPPER, now_ns=clock.now_ns(), name="ci", owner="ada")
    await keys.create(stored)
    made = KeyRing(PEPPER, clock, CallerTokens([Issuer("corp", CONFIG, Kept(nothing, clock, log, "keys"))]))
    await made.load(keys)
    return made, text


async def test_a_key_is_known_without_waiting_and_with_whose_it_is(ring, clock):
    keyring, text = ring
    found = keyring.identify(text, clock.now_ns())
    assert isinstance(found, Principal)
    assert (found.name, found.owner, found.on_behalf_of) == ("ci", "ada", "")


@pytest.mark.parametrize("presented", ["eyJhbGciOiJub25lIn0.e30.", "eyJ.e.x", "lgk_a.b.c", "", None, "a.b.c"])
async def test_what_is_neither_is_refused_as_what_it_looks_like(ring, clock, presented):
    keyring, _ = ring
    with pytest.raises(Unauthenticated) as caught:
        keyring.identify(presented, clock.now_ns())
    assert ("token" in caught.value.message) is (presented or "").startswith("eyJ")


async def test_without_issuers_a_token_is_an_unknown_key(clock):
    with pytest.raises(Unauthenticated, match="this key is not known"):
        KeyRing(PEPPER, clock).identify("eyJhbGciOiJub25lIn0.e30.", clock.now_ns())


async def test_who_called_with_a_token_is_still_who_they_are_as_long_as_the_issuer_is_configured(ring, clock):
    """The token itself is not kept, so nobody can be asked about it again."""
    keyring, _ = ring
    caller = Principal("jwt:corp:agent-1")
    assert keyring.still(caller, clock.now_ns()) is caller
    for other in ("jwt:corporate:agent-1", "jwt:other:agent-1", "corp:agent-1"):
        with pytest.raises(Unauthenticated):
            keyring.still(Principal(other), clock.now_ns())
