"""The rules that are in force and their counts, over HTTP."""

ADMIN = "admin-token-of-the-tests"
POLICIES = """
[[rule]]
id = "no-secrets"
when = 'texts.exists(text, text.contains("secret"))'
effect = "deny"
message = "Take it out."

[[rule]]
id = "no-tuesdays"
mode = "shadow"
match = { teams = ["blue"] }
effect = "deny"
message = "Not on Tuesdays."

[[rule]]
id = "off"
mode = "off"
effect = "deny"
"""


async def rules(house, token=ADMIN):
    session = await house.http()
    async with session.get("/-/rules", headers={"Authorization": f"Bearer {token}"}) as answer:
        return answer.status, await answer.json()


async def say(house, text):
    session = await house.http()
    body = {"model": "fast", "messages": [{"role": "user", "content": text}]}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        return answer.status


async def test_every_rule_is_told_in_its_order_with_where_it_stands(house):
    await house.open(policies=POLICIES)
    status, told = await rules(house)
    assert (status, told["stale"], told["bundle"]) == (200, None, house.gateway.running.snapshot.bundle.digest)
    first, second, third = told["rules"]
    assert (first["rule"], first["source"], first["effect"], first["phase"], first["mode"], first["message"]) == (
        "no-secrets", "policies/policies.toml:2", "deny", "request", "enforce", "Take it out.")
    assert first["when"] == 'texts.exists(text, text.contains("secret"))'
    assert (second["mode"], second["match"], second["when"]) == ("shadow", {"teams": ["blue"]}, None)
    assert (third["mode"], third["matched"], third["shadow_matched"]) == ("off", 0, 0)


async def test_matches_are_counted_apart_from_what_a_shadow_rule_would_have_done(house):
    await house.open(policies=POLICIES)
    assert [await say(house, text) for text in ("hello", "a secret", "hello")] == [200, 403, 200]
    _status, told = await rules(house)
    assert [(row["matched"], row["shadow_matched"]) for row in told["rules"]] == [(1, 0), (0, 3), (0, 0)]
    assert "since this gateway started" in told["counted"]


async def test_a_rule_that_could_not_be_evaluated_is_counted_as_such(house):
    await house.open(policies='[[rule]]\nid = "broken"\nmode = "shadow"\nwhen = "int(route) > 1"\neffect = "deny"\n')
    assert await say(house, "hello") == 200
    _status, told = await rules(house)
    assert (told["rules"][0]["shadow_matched"], told["rules"][0]["shadow_failed"]) == (0, 1)


async def test_files_that_could_not_be_loaded_are_told(house):
    await house.open(policies=POLICIES)
    house.write("policies/policies.toml", "[[rule]]\n")
    await house.gateway.running.reloader.report()
    _status, told = await rules(house)
    assert told["stale"]
    assert len(told["rules"]) == 3


async def test_rules_are_for_those_who_may_look(house):
    await house.open(policies=POLICIES)
    assert (await rules(house, token=house.key))[0] == 401
