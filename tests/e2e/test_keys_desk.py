"""Virtual keys over HTTP: who may see and change them, shown once, known at once."""

import asyncio
import json
from dataclasses import replace

import pytest

ADMIN = "admin-token-of-the-tests"


async def ask(house, method, path, body=None, token=ADMIN):
    session = await house.http()
    async with session.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
        return answer.status, await answer.json()


async def models(house, key):
    session = await house.http()
    async with session.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) as answer:
        return answer.status


async def test_a_key_is_made_works_at_once_and_its_secret_is_never_shown_again(house):
    await house.open()
    await ask(house, "POST", "/-/people", {"id": "mara", "permission": "approve"})
    status, made = await ask(house, "POST", "/-/keys", {
        "name": "batch", "team": "search", "org": "acme", "roles": ["dev"], "routes": ["fast"], "expires": "30d", "owner": "mara"})
    assert status == 200
    assert (made["name"], made["team"], made["org"], made["roles"], made["routes"], made["owner"], made["state"], made["warnings"]) == (
        "batch", "search", "acme", ["dev"], ["fast"], "mara", "live", [])
    assert await models(house, made["key"]) == 200
    _status, listed = await ask(house, "GET", "/-/keys")
    assert {row["name"] for row in listed["keys"]} == {"tests", "batch"}
    assert made["key"].rpartition("_")[2] not in str(listed)
    assert made["key"].rpartition("_")[2].encode() not in b"".join(house.lines)


async def test_who_made_rotated_or_revoked_a_key_stands_in_the_log(house):
    await house.open()
    _status, made = await ask(house, "POST", "/-/keys", {"name": "batch"})
    for verb in ("rotate", "revoke"):
        await ask(house, "POST", f"/-/keys/{made['id']}/{verb}")
    assert await asyncio.to_thread(house.gateway.running.telemetry.flush)
    told = [json.loads(line) for line in b"".join(house.lines).splitlines() if b'"key_' in line]
    assert [(line["event"], line["key"], line["author"]) for line in told] == [
        (event, made["id"], "admin") for event in ("key_created", "key_rotated", "key_revoked")]


async def test_a_rotated_key_gets_a_new_secret_and_the_old_one_stops_at_once(house):
    await house.open()
    _status, made = await ask(house, "POST", "/-/keys", {"name": "batch"})
    status, rotated = await ask(house, "POST", f"/-/keys/{made['id']}/rotate")
    assert (status, rotated["id"], rotated["key"] == made["key"]) == (200, made["id"], False)
    assert (await models(house, made["key"]), await models(house, rotated["key"])) == (401, 200)


async def test_a_revoked_key_stops_for_good(house):
    await house.open()
    _status, made = await ask(house, "POST", "/-/keys", {"name": "batch"})
    status, row = await ask(house, "POST", f"/-/keys/{made['id']}/revoke")
    assert (status, row["state"], await models(house, made["key"])) == (200, "revoked", 401)
    for verb in ("revoke", "rotate"):
        status, problem = await ask(house, "POST", f"/-/keys/{made['id']}/{verb}")
        assert (status, problem["code"]) == (404, "unknown_url")
        assert "was revoked on" in problem["detail"]


@pytest.mark.parametrize(("body", "said"), [
    ({}, "name"), ({"name": " "}, "is empty"), ({"name": "a\x1b[31m"}, "cannot be shown"), ({"name": "x" * 201}, "200"),
    ({"name": "a", "expires": "soon"}, "neither a duration"), ({"name": "a", "expires": "2020-01-01"}, "past"),
    ({"name": "a", "routes": [""]}, "routes"), ({"name": "a", "permission": "admin"}, "permission"), ({"name": "a", "roles": "admin"}, "roles"),
    ({"name": "a", "roles": ["r"] * 33}, "roles"), ({"name": "a", "owner": "nobody"}, "no account"),
])
async def test_what_makes_no_key_is_refused_with_what_is_wrong(house, body, said):
    await house.open()
    status, problem = await ask(house, "POST", "/-/keys", body)
    assert status == 400
    assert said in problem["detail"]


async def test_a_name_that_is_taken_and_a_glob_that_fits_nothing_are_told(house):
    await house.open()
    _status, made = await ask(house, "POST", "/-/keys", {"name": "tests", "routes": ["slow-*"]})
    assert ["is also the name of" in made["warnings"][0], "matches no route" in made["warnings"][1]] == [True, True]


async def test_an_unknown_key_is_told_as_such(house):
    await house.open()
    status, problem = await ask(house, "POST", "/-/keys/aaaaaaaaaaaa/revoke")
    assert (status, "there is no key 'aaaaaaaaaaaa'" in problem["detail"].lower()) == (404, True)


async def test_people_see_keys_and_only_an_admin_changes_them(house):
    await house.open()
    tokens = {}
    for permission in ("view", "operate"):
        await ask(house, "POST", "/-/people", {"id": permission, "permission": permission})
        tokens[permission] = (await ask(house, "POST", f"/-/people/{permission}/token"))[1]["token"]
    assert (await ask(house, "GET", "/-/keys", token=tokens["view"]))[0] == 200
    assert (await ask(house, "POST", "/-/keys", {"name": "mine"}, token=tokens["operate"]))[0] == 403
    assert (await ask(house, "GET", "/-/keys", token=house.key))[0] == 401


async def test_without_a_pepper_there_is_no_key_to_make(house):
    await house.open()
    proxy = house.gateway.running.proxy
    proxy.swap(replace(proxy.snapshot, pepper=None))
    status, problem = await ask(house, "POST", "/-/keys", {"name": "batch"})
    assert (status, "pepper" in problem["detail"]) == (400, True)
