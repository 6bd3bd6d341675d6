"""Virtual keys as operators read them."""

import pytest

from gateway.key_reports import expiry_ns, key_row, key_state, warnings, why_not
from gateway.store.protocol import StoredKey

NOW_NS = 1_800_000_000 * 10**9
LIVE = StoredKey("k1", "app", b"digest", team="blue", roles=("dev",), created_ns=NOW_NS, owner="mara")


def test_a_key_is_told_without_its_hash():
    row = key_row(LIVE, NOW_NS)
    assert row == {
        "id": "k1", "name": "app", "team": "blue", "org": None, "owner": "mara", "roles": ["dev"], "routes": ["*"],
        "created": "2027-01-15T08:00:00Z", "expires": None, "revoked": None, "state": "live"}


@pytest.mark.parametrize(("key", "state"), [
    (LIVE, "live"),
    (StoredKey("k", "n", b"", expires_ns=NOW_NS + 1), "live"),
    (StoredKey("k", "n", b"", expires_ns=NOW_NS), "expired"),
    (StoredKey("k", "n", b"", expires_ns=NOW_NS - 1, revoked_ns=NOW_NS), "revoked"),
])
def test_a_key_is_live_until_it_expires_or_is_revoked(key, state):
    assert key_state(key, NOW_NS) == state


def test_an_expiry_is_a_duration_or_a_date_that_lies_ahead():
    assert expiry_ns("30d", NOW_NS) == NOW_NS + 30 * 86_400 * 10**9
    assert expiry_ns("2030-01-31", NOW_NS) == 1_896_048_000 * 10**9
    for wrong, why in [("2020-01-01", "past"), ("soon", "neither a duration"), ("9999-01-01", "2260")]:
        with pytest.raises(ValueError, match=why):
            expiry_ns(wrong, NOW_NS)


def test_a_name_that_is_taken_and_a_glob_without_a_route_deserve_a_look():
    made = StoredKey("k2", "app", b"", routes=("fast-*", "slow"), created_ns=NOW_NS)
    assert list(warnings(made, [LIVE], ["fast-one"])) == [
        "'app' is also the name of k1; only the id tells them apart", "the glob 'slow' matches no route; there are: fast-one"]
    assert list(warnings(StoredKey("k3", "other", b""), [LIVE], [])) == []


@pytest.mark.parametrize(("given", "why"), [
    ("nobody", "there is no key 'nobody'"),
    ("app", "'app' is a name; its ids: k1 (live)"),
    ("gone", "was revoked on 2027"),
    ("old", "expired on 2027"),
])
def test_it_is_said_why_a_key_cannot_be_changed(given, why):
    found = [LIVE, StoredKey("gone", "g", b"", revoked_ns=NOW_NS), StoredKey("old", "o", b"", expires_ns=NOW_NS)]
    assert why in why_not(found, given, NOW_NS)
