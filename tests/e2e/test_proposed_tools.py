"""Tool calls that a model proposes, with the official client: judged before anybody can act on them."""

import json
from typing import Any

import openai
import pytest

RULE = """
[[rule]]
id = "no-large-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'double(tool.args.amount) > 100.0'
effect = "deny"
message = "Payments above 100 are not made here."
remedy = "Ask finance."
"""
SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"], "additionalProperties": False}


def tool(name: str, schema: Any = SCHEMA) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


async def propose(house: Any, text: str, *, stream: bool, tools: list[Any] | None = None, **more: Any) -> Any:
    client = house.client()
    given = {"model": "fast", "messages": [{"role": "user", "content": text}], "tools": tools or [tool("pay"), tool("see", {})], **more}
    if not stream:
        return (await client.chat.completions.create(**given)).choices[0]
    async with client.chat.completions.stream(**given) as answer:
        return (await answer.get_final_completion()).choices[0]


def names(choice: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_refused_call_is_replaced_by_words_and_the_others_stay(house, stream):
    await house.open(policies=RULE)
    choice = await propose(house, 'call see {"a": 1} call pay {"amount": 5000} call pay {"amount": 5}', stream=stream)
    assert names(choice) == [("see", {"a": 1}), ("pay", {"amount": 5})]
    assert choice.message.content == ("The call of the tool pay was refused (rule no-large-payments): "
                                      "Payments above 100 are not made here. Ask finance.")
    assert choice.finish_reason == "tool_calls"
    row = await house.call((await house.calls())[0]["id"])
    assert [(verdict["subject"], verdict["decision"]) for verdict in row["verdicts"]] == [("pay", "deny")]
    assert [(use["name"], use["released"]) for use in row["tool_uses"]] == [("see", True), ("pay", False), ("pay", True)]
    assert "5000" not in row["response"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("withheld", ["text", "refusal", "drop"])
async def test_an_answer_whose_only_call_is_refused_ends_as_one_without_tools(house, stream, withheld):
    await house.open(policies=RULE, config=f'[policy]\nwithheld = "{withheld}"')
    choice = await propose(house, 'call pay {"amount": 5000}', stream=stream)
    assert names(choice) == []
    assert choice.finish_reason == "stop"
    assert ("refused" in (choice.message.content or "")) == (withheld == "text")
    assert ("refused" in (choice.message.refusal or "")) == (withheld == "refusal")


async def test_the_answer_says_that_something_was_refused(house):
    await house.open(policies=RULE, config='[policy]\nwithheld = "drop"')
    given = {"model": "fast", "messages": [{"role": "user", "content": 'call pay {"amount": 5000}'}], "tools": [tool("pay")]}
    raw = await house.client().chat.completions.with_raw_response.create(**given)
    assert (raw.headers["x-lockgate-decision"], raw.headers["x-lockgate-rule"]) == ("deny", "no-large-payments")
    session = await house.http()
    async with session.post("/v1/chat/completions", json={**given, "stream": True}, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        text = await answer.text()
    assert ": X-Lockgate-Cost-Usd: " in text
    assert "X-Lockgate-Decision: deny, X-Lockgate-Rule: no-large-payments" in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("arguments", "says"), [
    ('{"amount": "much"}', "amount"), ("{}", "amount"), ('{"amount": 1, "to": "x"}', "to")], ids=["type", "missing", "extra"])
async def test_arguments_that_do_not_fit_the_tools_own_schema_are_refused(house, stream, arguments, says):
    await house.open(policies=RULE)
    choice = await propose(house, f"call pay {arguments}", stream=stream)
    assert names(choice) == []
    assert "rule arguments" in choice.message.content
    assert says in choice.message.content


@pytest.mark.parametrize("reference", ["http://127.0.0.1:9/schema.json", "file:///etc/hostname"])
async def test_a_schema_that_points_elsewhere_is_never_fetched(house, reference):
    await house.open(policies=RULE)
    choice = await propose(house, 'call pay {"amount": 1}', stream=False, tools=[tool("pay", {"$ref": reference})])
    assert names(choice) == []
    assert "schema" in choice.message.content


async def test_a_tool_that_could_never_be_called_is_not_offered(house):
    await house.open(policies="""
[[rule]]
id = "no-shell"
phase = "tool_call"
match = { tools = ["shell*"] }
effect = "deny"
""")
    await propose(house, "say a", stream=False, tools=[tool("pay"), tool("shell_exec")])
    await propose(house, "say a", stream=False, tools=[tool("shell_exec")], tool_choice="auto")
    first, second = house.one.requests
    assert [each["function"]["name"] for each in first.body["tools"]] == ["pay"]
    assert not {"tools", "tool_choice"} & set(second.body)
    row = await house.call((await house.calls())[0]["id"])
    assert [(reason["rule"], reason["subject"], reason["offered"]) for reason in row["reasons"]] == [("no-shell", "shell_exec", False)]
    for choice in ({"type": "function", "function": {"name": "shell_exec"}}, "required"):
        with pytest.raises(openai.PermissionDeniedError, match="no-shell"):
            await propose(house, "say a", stream=False, tools=[tool("shell_exec")], tool_choice=choice)


async def test_a_tool_that_no_rule_allows_is_not_offered_where_the_default_denies(house):
    await house.open(policies="""
[defaults]
application_tools = "deny"
[[rule]]
id = "small-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'double(tool.args.amount) < 10.0'
effect = "allow"
""")
    choice = await propose(house, 'call pay {"amount": 5} call pay {"amount": 50} call see {}', stream=True)
    assert names(choice) == [("pay", {"amount": 5})]
    assert "(rule default)" in choice.message.content
    assert [each["function"]["name"] for each in house.one.requests[0].body["tools"]] == ["pay"]


async def test_the_result_of_a_call_that_was_refused_is_a_bypass(house):
    """The application ran it all the same; nobody can stop that here, but it is seen, and rules can act on it."""
    await house.open(policies=RULE)
    headers = {"X-Lockgate-Session": "s1"}
    client = house.client()
    given: dict[str, Any] = {"model": "fast", "tools": [tool("pay")], "extra_headers": headers}
    ask = [{"role": "user", "content": 'call pay {"amount": 5000} call pay {"amount": 5}'}]
    await client.chat.completions.create(messages=ask, **given)
    uses = (await house.call((await house.calls())[0]["id"]))["tool_uses"]

    def brings(use: Any) -> list[Any]:
        call = {"id": use["id"], "type": "function", "function": {"name": "pay", "arguments": "{}"}}
        return [*ask, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": use["id"], "content": "paid"}]

    refused, released = uses
    await client.chat.completions.create(messages=brings(released), **given)
    assert "bypass" not in (await house.calls())[0]["labels"]
    await client.chat.completions.create(messages=brings(refused), **given)
    assert "bypass" in (await house.calls())[0]["labels"]
    await client.chat.completions.create(messages=brings({"id": "made-up"}), **given)
    assert "bypass" in (await house.calls())[0]["labels"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_one_key_twice_in_arguments_leaves_once(house, stream):
    """The application's reader may keep the first of two keys where the rule has judged the second."""
    await house.open(policies=RULE)
    choice = await propose(house, 'call pay {"amount": 5000, "amount": 5}', stream=stream)
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"amount":5}']


async def test_a_stream_that_breaks_gives_no_call_that_was_not_judged(house):
    await house.open(policies=RULE, routes="""
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast!cut_after_chunks=3"
[route.retry]
attempts = 1
""")
    seen = []
    with pytest.raises(openai.APIError):
        answer = await house.client().chat.completions.create(
            model="fast", messages=[{"role": "user", "content": 'call pay {"amount": 5000}'}], tools=[tool("pay")], stream=True)
        async for chunk in answer:
            seen += [call for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert seen == []
