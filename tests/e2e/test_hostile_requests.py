"""Requests that try to get past the rules: results in other forms, tools that cannot be read, texts in other places, too much of anything."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

SECRET = "ada@example.org"
TOOLS = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[route.retry]
attempts = 1

[[tool]]
name = "lookup"
method = "POST"
url = "{root}/tools/lookup"
private = true
effect = "read"
[tool.retry]
attempts = 1
[tool.arguments]
type = "object"
properties = {{ who = {{ type = "string" }} }}
"""
OPEN = '[defaults]\ntools = "allow"\n'


def tools(house: Any) -> str:
    return TOOLS.format(root=house.one.root)


async def post(house: Any, path: str, body: Any, **headers: str) -> tuple[int, str]:
    session = await house.http()
    async with session.post(path, json=body, headers={"Authorization": f"Bearer {house.key}", **headers}) as answer:
        return answer.status, await answer.text()


async def chat(house: Any, messages: list[Any], **more: Any) -> tuple[int, str]:
    return await post(house, "/v1/chat/completions", {"model": "fast", "messages": messages, **more})


def offered(*names: str) -> list[Any]:
    return [{"type": "function", "function": {"name": name}} for name in names]


RESULT_RULE = """
[[rule]]
id = "no-addresses"
phase = "tool_result"
effect = "{effect}"
{what}
"""
REDACT_RESULTS = RESULT_RULE.format(effect="redact", what='redact = { detectors = ["email"] }')
DENY_RESULTS = RESULT_RULE.format(effect="deny", what="""when = 'result_text.contains("ada@")'""")
CALLED = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "see", "arguments": "{}"}}]}
RESULTS: dict[str, list[Any]] = {
    "a tool's": [{"role": "tool", "tool_call_id": "c1", "content": SECRET}],
    "a function's": [{"role": "function", "name": "see", "content": SECRET}],
    "of a role in other letters": [{"role": " TOOL ", "tool_call_id": "c1", "content": SECRET}],
    "of a role that is none": [{"role": "user", "tool_call_id": "c1", "content": SECRET}],
    "of no call": [{"role": "tool", "content": SECRET}],
    "of a call whose id is a number": [{"role": "tool", "tool_call_id": 7, "content": SECRET}],
    "in parts": [{"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": SECRET}]}],
    "in a part of another kind": [{"role": "tool", "tool_call_id": "c1", "content": [{"type": "thinking", "thinking": SECRET}]}],
    "in a part within a part": [{"role": "tool", "tool_call_id": "c1", "content": [{"type": "x", "content": [{"type": "text", "text": SECRET}]}]}],
    "in an object": [{"role": "tool", "tool_call_id": "c1", "content": {"text": SECRET}}],
    "as JSON": [{"role": "tool", "tool_call_id": "c1", "content": json.dumps({"a": SECRET})}],
    "as JSON with escapes": [{"role": "tool", "tool_call_id": "c1", "content": '{"a": "ada\\u0040example.org"}'}],
    "the second of one id": [{"role": "tool", "tool_call_id": "c1", "content": "a"}, {"role": "tool", "tool_call_id": "c1", "content": SECRET}],
}


@pytest.mark.parametrize("results", RESULTS.values(), ids=RESULTS)
async def test_a_result_is_judged_in_whatever_form_it_comes_back(house, results):
    await house.open(policies=REDACT_RESULTS)
    await chat(house, [{"role": "user", "content": "x"}, CALLED, *results])
    sent = house.one.requests[0].raw
    assert SECRET.encode() not in sent
    assert b"u0040" not in sent
    assert sent.count(b"[redacted:email]") == 1


@pytest.mark.parametrize("results", [results for name, results in RESULTS.items() if "escapes" not in name],
                         ids=[name for name in RESULTS if "escapes" not in name])
async def test_a_result_that_a_rule_refuses_is_not_sent_in_any_form(house, results):
    await house.open(policies=DENY_RESULTS)
    status, text = await chat(house, [{"role": "user", "content": "x"}, CALLED, *results])
    assert (status, json.loads(text)["error"]["rule"]) == (403, "no-addresses")
    assert house.one.requests == []


PAYING = """
[[rule]]
id = "no-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = "has(tool.args.to)"
effect = "deny"
"""


@pytest.mark.parametrize("result", [
    {"role": "tool", "tool_call_id": "{id}"}, {"role": "function", "name": "pay"}, {"role": "tool", "name": "pay"}, {"role": "tool"},
    {"role": "user", "tool_call_id": "{id}"}, {"role": "TOOL", "tool_call_id": "{id}"}, {"role": "tool", "tool_call_id": ["{id}"]}])
async def test_the_result_of_a_refused_call_is_a_bypass_in_whatever_form_it_comes_back(house, result):
    await house.open(policies=PAYING)
    await chat(house, [{"role": "user", "content": 'call pay {"to": "x"} call see {}'}], tools=offered("pay", "see"))
    (refused, _) = (await house.call((await house.calls())[0]["id"]))["tool_uses"]
    assert not refused["released"]
    given = json.loads(json.dumps({**result, "content": "paid"}).replace("{id}", refused["id"]))
    await chat(house, [{"role": "user", "content": "x"}, given])
    assert (await house.calls())[0]["labels"] == ["bypass"]


async def test_a_call_that_was_released_to_another_key_is_a_bypass(house):
    await house.open(policies=PAYING)
    await chat(house, [{"role": "user", "content": "call see {}"}], tools=offered("see"))
    (use,) = (await house.call((await house.calls())[0]["id"]))["tool_uses"]
    given = [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": use["id"], "content": "seen"}]
    assert (await chat(house, given))[0] == 200
    assert (await house.calls())[0]["labels"] == []
    house.key = await house.new_key(name="other")
    assert (await chat(house, given))[0] == 200
    assert (await house.calls())[0]["labels"] == ["bypass"]


async def test_more_results_than_any_conversation_has_are_refused(house):
    await house.open(policies=DENY_RESULTS)
    many = [{"role": "tool", "tool_call_id": f"c{n}", "content": "a"} for n in range(2049)]
    status, text = await chat(house, [{"role": "user", "content": "x"}, *many])
    assert (status, json.loads(text)["error"]["code"]) == (400, "invalid_request")
    assert "2048" in text
    assert (await chat(house, [{"role": "user", "content": "x"}, *many[:-1]]))[0] == 200


NO_SEARCH = """
[[rule]]
id = "no-search"
phase = "tool_call"
match = { tools = ["web_search*"] }
effect = "deny"
"""


@pytest.mark.parametrize("hidden", [
    {"type": "function"}, {"type": "function", "function": {"name": 5}}, {"type": "custom", "custom": {}}, "web_search",
    {"type": "function", "function": {"name": "x" * 1025}}])
async def test_a_tool_that_cannot_be_read_hides_no_tool_that_the_provider_would_run_itself(house, hidden):
    """Such a tool is never proposed: taking it out of the request is all that keeps it from being run."""
    await house.open(policies=NO_SEARCH)
    status, text = await chat(house, [{"role": "user", "content": "x"}], tools=[{"type": "web_search"}, hidden])
    assert (status, json.loads(text)["error"]["code"]) == (400, "invalid_request")
    assert house.one.requests == []


async def test_a_tool_that_is_asked_for_among_others_is_asked_for(house):
    await house.open(policies=NO_SEARCH)
    (see,) = offered("see")
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [see, {"type": "web_search"}]}}
    status, text = await chat(house, [{"role": "user", "content": "x"}], tools=[see, {"type": "web_search"}], tool_choice=choice)
    assert (status, json.loads(text)["error"]["rule"]) == (403, "no-search")


async def test_the_default_for_http_tools_holds_for_those_that_a_model_proposes_without_any_rule(house):
    await house.open(routes=tools(house), policies="")
    status, text = await chat(house, [{"role": "user", "content": "call lookup {} call see {}"}], tools=offered("lookup", "see"))
    message = json.loads(text)["choices"][0]["message"]
    assert (status, [call["function"]["name"] for call in message["tool_calls"]]) == (200, ["see"])
    assert [tool["function"]["name"] for tool in house.one.requests[0].body["tools"]] == ["see"]


@pytest.mark.parametrize("status", [404, 422, 500, 503])
async def test_what_a_tool_says_of_its_failure_is_judged_as_its_result(house, status):
    async def fail(_request: web.Request) -> web.Response:
        return web.json_response({"detail": f"no such person {SECRET}"}, status=status)

    app = web.Application()
    app.router.add_post("/tools/lookup", fail)
    runner = web.AppRunner(app)
    await runner.setup()
    house.stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await house.open(routes=TOOLS.format(root=f"http://127.0.0.1:{site.port}"), policies=OPEN + REDACT_RESULTS)
    answered, text = await post(house, "/tools/lookup", {"who": "x"})
    assert answered == (status if status < 500 else 502)
    assert SECRET not in text
    assert "no such person [redacted:email]" in text


async def test_a_rule_about_the_uses_of_a_tool_does_not_wait_for_the_call_whose_result_it_judges(house):
    await house.open(routes=tools(house), config='[policy]\nwait = "60s"', policies=OPEN + """
[[rule]]
id = "often"
phase = "tool_result"
when = 'session.count("lookup") > 1'
effect = "deny"
""")
    for wanted in (200, 200, 403):
        status, _ = await asyncio.wait_for(post(house, "/tools/lookup", {"who": "x"}, **{"X-Lockgate-Session": "s1"}), 10)
        assert status == wanted


async def test_a_rule_that_cannot_be_evaluated_stops_every_kind_of_thing(house):
    """A missing field in each phase; nothing of it passes."""
    await house.open(routes=tools(house), policies=OPEN + "".join(f"""
[[rule]]
id = "broken-{phase}"
phase = "{phase}"
when = '{expression}'
effect = "deny"
""" for phase, expression in (("tool_call", "double(tool.args.amount) > 1.0"), ("tool_result", "result.score > 1"))))
    status, text = await chat(house, [{"role": "user", "content": 'call see {"amount": "x"} call see {}'}], tools=offered("see"))
    assert (status, "tool_calls" in json.loads(text)["choices"][0]["message"]) == (200, False)
    status, text = await chat(house, [{"role": "user", "content": "x"}, CALLED, *RESULTS["a tool's"]])
    assert (status, json.loads(text)["error"]["rule"]) == (403, "broken-tool_result")


TEXTS: dict[str, Any] = {
    "a content": {"role": "user", "content": SECRET},
    "a part": {"role": "user", "content": [{"type": "text", "text": SECRET}, {"type": "image_url", "image_url": {"url": "data:,"}}]},
    "a part of another kind": {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": SECRET}]}]},
    "a part within a part": {"role": "user", "content": [{"type": "x", "content": [{"type": "text", "text": SECRET}]}]},
    "a refusal": {"role": "assistant", "content": None, "refusal": SECRET},
    "a refusal in a part": {"role": "assistant", "content": [{"type": "refusal", "refusal": SECRET}]},
    "reasoning": {"role": "assistant", "content": "a", "reasoning_content": SECRET},
    "reasoning elsewhere": {"role": "assistant", "content": "a", "reasoning": SECRET},
    "arguments": {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "see", "arguments": json.dumps({"a": SECRET})}}]},
    "arguments with escapes": {"role": "assistant", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "see", "arguments": '{"a": "ada\\u0040example.org"}'}}]},
    "the input of a custom tool": {"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "see", "input": SECRET}}]},
    "arguments in the older form": {"role": "assistant", "function_call": {"name": "see", "arguments": json.dumps({"a": SECRET})}},
    "a result": {"role": "tool", "tool_call_id": "c1", "content": SECRET},
    "an instruction": {"role": "developer", "content": SECRET},
}


@pytest.mark.parametrize("message", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_text_of_a_request_is_redacted_wherever_a_conversation_holds_texts(house, message, stream):
    await house.open(policies='[[rule]]\nid = "no-mail"\neffect = "redact"\nredact = { detectors = ["email"] }')
    await chat(house, [{"role": "user", "content": "x"}, message], stream=stream)
    (sent,) = house.one.requests
    assert SECRET.encode() not in sent.raw
    assert b"u0040" not in sent.raw
    assert sent.raw.count(b"[redacted:email]") == 1


@pytest.mark.parametrize("message", [message for name, message in TEXTS.items() if "escapes" not in name],
                         ids=[name for name in TEXTS if "escapes" not in name])
async def test_a_text_of_a_request_is_seen_wherever_a_conversation_holds_texts(house, message):
    await house.open(policies="""[[rule]]\nid = "no-ada"\neffect = "deny"\nwhen = 'texts.exists(t, t.contains("ada@"))'""")
    assert (await chat(house, [{"role": "user", "content": "x"}, message]))[0] == 403
    assert house.one.requests == []


async def test_no_text_of_a_caller_or_a_rule_makes_a_header_of_its_own(house):
    await house.open(policies="""
[[rule]]
id = "no"
phase = "request"
effect = "deny"
message = "a\\r\\nX-Evil: 1"
remedy = "b\\r\\nX-Evil: 1"
""")
    session = await house.http()
    body = {"model": "fast", "messages": [{"role": "user", "content": "x\r\nX-Evil: 1"}]}
    async with session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        assert answer.status == 403
        assert "X-Evil" not in answer.headers
        assert answer.headers["X-Lockgate-Rule"] == "no"
