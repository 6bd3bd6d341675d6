"""`GET /-/calls/{id}/explain` says why, to whoever holds the admin token, also when the rules have changed since."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
RULES = """
[[rule]]
id = "no-payroll"
when = 'route == "fast" && texts.exists(t, t.contains("payroll")) || request.max_tokens > 5000'
effect = "deny"
message = "Payroll data does not leave the company."
[[rule]]
id = "seen"
effect = "log"
when = "!request.stream"
"""


async def refused(house: Any, messages: Callable[[str], Any], **options: Any) -> str:
    """The id of a call that a rule refuses."""
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await house.client().chat.completions.create(model="fast", messages=messages("the payroll"), **options)
    return str(caught.value.response.headers["x-lockgate-call"])


async def explained(house: Any, call_id: str) -> dict[str, Any]:
    session = await house.http()
    async with session.get(f"/-/calls/{call_id}/explain", headers=ADMIN) as answer:
        assert answer.status == 200, await answer.text()
        told: dict[str, Any] = await answer.json()
        return told


async def test_a_refused_call_is_explained_with_what_would_have_to_change(house: Any, messages: Callable[[str], Any]) -> None:
    """Rules, values, digest: all from the record."""
    await house.open(policies=RULES)
    call_id = await refused(house, messages)
    told = await explained(house, call_id)
    assert (told["call"]["id"], told["decision"], told["rule"], told["labels"]) == (call_id, "deny", "no-payroll", ["seen"])
    assert told["bundle"] == {"digest": house.gateway.app.snapshot.bundle.digest, "known": True}
    rule, seen = told["rules"]
    assert (rule["rule"], rule["verdict"], rule["decisive"]) == ("no-payroll", "matched", True)
    assert rule["source"] == "policies/policies.toml:2"
    assert rule["values"]["route"] == "fast"
    assert [each["held"] for each in rule["alternatives"]] == [True, False]
    assert (seen["rule"], seen["decisive"]) == ("seen", False)
    assert len(told["change"]) == 1
    assert told["change"][0].startswith('For rule no-payroll not to match, one of these would have to be false: `route == "fast"`')


async def test_a_call_that_passed_is_explained_too(house: Any, messages: Callable[[str], Any]) -> None:
    """Nothing would have to change, and nothing of another call is told."""
    await house.open(policies=RULES)
    raw = await house.client().chat.completions.with_raw_response.create(model="fast", messages=messages("hi"))
    told = await explained(house, raw.headers["x-lockgate-call"])
    assert (told["decision"], told["change"], [rule["rule"] for rule in told["rules"]]) == ("allow", [], ["seen"])


@pytest.mark.parametrize("bodies", ["redacted", "none"])
async def test_no_text_is_told_that_the_journal_may_not_keep(house: Any, messages: Callable[[str], Any], bodies: str) -> None:
    """An explanation is made of the record."""
    await house.open(policies=RULES, config=f'[journal]\nbodies = "{bodies}"')
    told = await explained(house, await refused(house, messages, max_tokens=7))
    assert "the payroll" not in json.dumps(told)
    assert told["rules"][0]["values"]["request.max_tokens"] == 7


async def test_only_the_admin_token_opens_it_and_an_unknown_call_is_none(house: Any, messages: Callable[[str], Any]) -> None:
    """Values of calls are nobody else's business."""
    await house.open(policies=RULES)
    call_id = await refused(house, messages)
    session = await house.http()
    for headers, path, status in (({}, call_id, 401), ({"Authorization": f"Bearer {house.key}"}, call_id, 401), (ADMIN, "call_none", 404)):
        async with session.get(f"/-/calls/{path}/explain", headers=headers) as answer:
            assert (answer.status, answer.content_type) == (status, "application/problem+json")
