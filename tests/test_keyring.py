"""Who may come in, and that nothing of a wrong key comes out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Principal
from gateway.clock import SystemClock, SystemIds
from gateway.errors import StoreUnavailable, Unauthenticated
from gateway.keyring import ANONYMOUS, KeyRing, digest, new_key, new_secret
from gateway.secret import Secret
from gateway.store.memory import MemoryKeys
from gateway.store.protocol import StoredKey

PEPPER = Secret("pepper-pepper-pepper")
NOW_NS = 1_790_000_000_000_000_000
IDS = SystemIds(SystemClock())


class StoppedClock:
    """A clock that stands."""

    def now_ns(self) -> int:
        return NOW_NS

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        _ = seconds


class FlakyKeys(MemoryKeys):
    """Keys in a store that can be made to fail, and that counts how often it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.reads = 0

    async def generation(self) -> int:
        if self.down:
            raise StoreUnavailable("down")
        return await super().generation()

    async def all(self) -> tuple[int, Sequence[StoredKey]]:
        self.reads += 1
        return await super().all()


@pytest.fixture
def keys() -> FlakyKeys:
    return FlakyKeys()


@pytest.fixture
async def ring(keys: FlakyKeys) -> KeyRing:
    made = KeyRing(PEPPER, StoppedClock())
    await made.load(keys)
    return made


def _refusal(ring: KeyRing, presented: str | None) -> str:
    with pytest.raises(Unauthenticated) as refused:
        ring.authenticate(presented, NOW_NS)
    return refused.value.message


async def test_a_key_lets_its_holder_in_with_what_it_was_made_with(ring: KeyRing, keys: FlakyKeys) -> None:
    text, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci", team="blue", org="acme", roles=("dev",), routes=("fast", "x-*"))
    await keys.create(stored)
    assert await ring.refresh()
    assert ring.authenticate(text, NOW_NS) == Principal(stored.id, "ci", "blue", "acme", ("dev",), ("fast", "x-*"))


def test_a_key_has_its_documented_form_and_only_its_hash_is_kept() -> None:
    text, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci")
    prefix, key_id, secret = text.split("_")
    assert (prefix, key_id, len(key_id), len(secret)) == ("lgk", stored.id, 12, 32)
    assert (key_id + secret).isalnum()
    assert stored.digest == digest(PEPPER, text)
    assert len(stored.digest) == 32
    assert secret not in repr(stored)
    assert digest(Secret("another pepper"), text) != stored.digest


async def test_an_unknown_key_and_a_wrong_secret_get_the_same_answer(ring: KeyRing, keys: FlakyKeys) -> None:
    text, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci", expires_ns=1)
    await keys.create(stored)
    await ring.refresh()
    wrong_secret = text[:17] + "0" * 32
    unknown_id = "lgk_" + "0" * 12 + text[16:]
    assert _refusal(ring, wrong_secret) == _refusal(ring, unknown_id) == _refusal(ring, "junk")
    assert _refusal(ring, text) == "this key expired on 1970-01-01 00:00 UTC; ask for a new one"


@pytest.mark.parametrize("junk", [
    "x" * 100_000, "lgk_" + "a" * 45, "lgk_" + "\0" * 45, "lgk_' OR 1=1 --" + " " * 34, "é" * 49, "\udcff" * 49, "Bearer x", " ",
    "lgk_aaaaaaaaaaaa_" + "ß" * 32, "LGK_aaaaaaaaaaaa_" + "b" * 32,
])
async def test_junk_is_refused_and_never_echoed(ring: KeyRing, junk: str) -> None:
    message = _refusal(ring, junk)
    assert junk not in message or junk == " "
    assert len(message) < 200


@given(st.text() | st.text(alphabet="lgk_abc019", min_size=49, max_size=49))
def test_nothing_but_a_key_opens(presented: str) -> None:
    with pytest.raises(Unauthenticated):
        KeyRing(PEPPER).authenticate(presented, NOW_NS)


async def test_no_key_at_all_says_how_to_send_one(ring: KeyRing) -> None:
    assert "Authorization: Bearer" in _refusal(ring, None)
    assert _refusal(ring, "") == _refusal(ring, None)


async def test_the_empty_digest_of_nobody_opens_nothing(ring: KeyRing) -> None:
    """An unknown id is compared with the digest of nobody's key; nothing that hashes to it may be let in."""
    assert _refusal(ring, "lgk_" + "a" * 12 + "_" + "b" * 32)


async def test_expiry_and_revocation_are_seen(ring: KeyRing, keys: FlakyKeys) -> None:
    text, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci", expires_ns=NOW_NS + 1)
    await keys.create(stored)
    await ring.refresh()
    assert ring.authenticate(text, NOW_NS).id == stored.id
    with pytest.raises(Unauthenticated, match="expired"):
        ring.authenticate(text, NOW_NS + 1)
    await keys.revoke(stored.id, now_ns=NOW_NS)
    await ring.refresh()
    assert "was revoked" in _refusal(ring, text)


async def test_a_rotated_key_stops_its_old_secret_at_once(ring: KeyRing, keys: FlakyKeys) -> None:
    old, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci")
    await keys.create(stored)
    new, new_digest = new_secret(IDS, PEPPER, stored.id)
    await keys.replace_digest(stored.id, new_digest, now_ns=NOW_NS)
    await ring.refresh()
    assert ring.authenticate(new, NOW_NS).id == stored.id
    assert "not known" in _refusal(ring, old)


async def test_keys_are_read_again_only_when_they_changed(ring: KeyRing, keys: FlakyKeys) -> None:
    for _ in range(3):
        assert not await ring.refresh()
    assert keys.reads == 1
    await keys.create(replace(new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci")[1]))
    assert await ring.refresh()
    assert keys.reads == 2


async def test_a_store_that_fails_leaves_the_last_good_keys_in_force_and_says_since_when(ring: KeyRing, keys: FlakyKeys) -> None:
    """An outage must never turn a valid key into an unknown one."""
    text, stored = new_key(IDS, PEPPER, now_ns=NOW_NS, name="ci")
    await keys.create(stored)
    await ring.refresh()
    keys.down = True
    assert not await ring.refresh()
    assert not await ring.refresh()
    assert ring.stale_since_ns == NOW_NS
    assert ring.authenticate(text, NOW_NS).id == stored.id
    keys.down = False
    await ring.refresh()
    assert ring.stale_since_ns is None


async def test_a_ring_that_was_never_loaded_lets_nobody_in() -> None:
    ring = KeyRing(PEPPER)
    assert not await ring.refresh()
    assert _refusal(ring, "lgk_" + "a" * 12 + "_" + "b" * 32)


async def test_a_ring_shows_no_secrets(ring: KeyRing) -> None:
    shown: Any = repr(ring)
    assert shown == "KeyRing(0 keys, generation=0, stale_since_ns=None)"
    assert (ANONYMOUS.id, ANONYMOUS.routes) == ("anonymous", ("*",))
