"""A deployment's own detectors and redacted arguments, through the front door."""

import re
from pathlib import Path

import pytest

from gateway.errors import ConfigError

PLUGIN = re.search(r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs/detectors.md").read_text(), re.DOTALL | re.MULTILINE)
RULE = '[[rule]]\nid = "r"\neffect = "redact"\nredact = { detectors = ["staff_number"] }\n'
OWN = '[policy]\ndetectors = ["staff"]'


async def test_a_detector_of_ones_own_is_named_in_rules_and_conditions(house, messages):
    assert PLUGIN is not None
    house.write("adapters/staff.py", PLUGIN[1])
    await house.open(config=OWN, policies=RULE)
    await house.client().chat.completions.create(model="fast", messages=messages("ask E-123411, not E-123410"))
    assert house.one.requests[0].body["messages"][0]["content"] == "ask [redacted:staff_number], not E-123410"


async def test_a_detector_that_is_not_there_is_a_problem_of_the_setting(house):
    with pytest.raises(ConfigError, match=r"config\.toml:\d+:policy\.detectors"):
        await house.open(config=OWN, policies=RULE)


async def test_arguments_that_no_longer_fit_after_a_rule_of_the_request_are_not_sent(house):
    """The tool is declared to take an address; what is left of one after redaction is none."""
    tool = f"""
[[tool]]
name = "mail"
method = "POST"
url = "{house.one.root}/tools/mail"
private = true
effect = "read"
[tool.arguments.properties]
to = {{ type = "string", pattern = "@" }}
"""
    redact = '[defaults]\ntools = "allow"\n[[rule]]\nid = "r"\neffect = "redact"\nredact = { detectors = ["email"] }\n'
    await house.open(routes=tool, policies=redact)
    session = await house.http()
    async with session.post("/tools/mail", json={"to": "ada@example.org"}, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status == 403
        assert (await answer.json())["rule"] == "arguments"
    assert house.one.requests == []
