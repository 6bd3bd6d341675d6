"""Every way in, in every phase, with every effect: over real HTTP, with the official client where there is one. Nothing gets round a rule.

The matrix is generated: from the endpoints that the gateway has, the phases and effects that a rule can have. What is missing fails.
"""

import json
from dataclasses import dataclass
from typing import Any, get_args

import openai
import pytest

from gateway.core.decision import PHASES, Effect
from gateway.rule_config import PHASES_OF

EFFECTS = get_args(Effect)
# What answers and is no governed call: nothing is judged there, because nothing leaves.
# Nothing leaves the gateway for whoever asks these, or anything under /-/.
NOT_CALLS = {("GET", "/v1/models"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/tools")}
SECRET = "ada@example.org"
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[[route.targets]]
provider = "two"
model = "sim-small"
[route.retry]
attempts = 1

[[tool]]
name = "lookup"
method = "POST"
url = "{root}/tools/lookup"
private = true
effect = "read"
[tool.arguments]
type = "object"
properties = {{ who = {{ type = "string" }}, limit = {{ type = "integer" }}, note = {{ type = "string" }} }}
"""
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"who": {"type": "string"}}}}} for name in ("lookup_user", "other")]


@dataclass(frozen=True)
class Way:
    """One way in. `phases` are those in which something of it is judged."""

    name: str
    endpoint: tuple[str, str]
    phases: tuple[str, ...]
    stream: bool = False


WAYS = (
    Way("chat", ("POST", "/v1/chat/completions"), PHASES),
    Way("chat streamed", ("POST", "/v1/chat/completions"), PHASES, stream=True),
    Way("completions", ("POST", "/v1/completions"), ("request", "response")),
    Way("completions streamed", ("POST", "/v1/completions"), ("request", "response"), stream=True),
    Way("embeddings", ("POST", "/v1/embeddings"), ("request",)),
    Way("tool", ("POST", "/tools/{name}"), ("request", "tool_call", "tool_result")),
    Way("tool by query", ("GET", "/tools/{name}"), ("request", "tool_call", "tool_result")),
)
# What is set in a request, or sent elsewhere, is a model call's: of a tool's arguments `tool_call` speaks.
CASES = [(way, phase, effect) for way in WAYS for phase in way.phases for effect in EFFECTS if phase in PHASES_OF.get(effect, PHASES)
         and not (way.name.startswith("tool") and phase == "request" and effect in ("set", "route"))]


def rule(phase: str, effect: str) -> str:
    """The one rule of a case. Tools are allowed besides, or the default would refuse them before the rule is seen to act."""
    match = 'match = { tools = ["lookup*"] }' if phase in ("tool_call", "tool_result") else ""
    extra = {
        "redact": 'redact = { detectors = ["email"] }',
        "set": 'set = { values = { note = "set" } }' if phase == "tool_call" else 'set = { values = { user = "set" } }',
        "route": 'route = { only = ["two/*"] }',
        "limit": 'limit = { requests = 1, per = "1h" }',
        "log": 'label = "seen"',
    }.get(effect, "")
    if phase == "tool_call" and effect == "deny":  # a tool that could never be called would not even be offered
        extra = 'when = "has(tool.args.who)"'
    default = '[defaults]\ntools = "allow"\n' if (phase, effect) != ("tool_call", "allow") else ""
    return f'{default}\n[[rule]]\nid = "the-rule"\nphase = "{phase}"\n{match}\neffect = "{effect}"\nmessage = "Not so."\n{extra}\n'


@dataclass
class Answer:
    """What a caller sees: the status and code, the text, the tools called with their arguments, the headers."""

    status: int
    code: str
    text: str
    calls: list[tuple[str, str]]
    headers: Any


async def ask(house: Any, way: Way, phase: str) -> Answer:
    """One call that holds the address in the place that the phase judges."""
    if way.name.startswith("tool"):
        return await ask_tool(house, way)
    client = house.client()
    try:
        if way.name == "embeddings":
            raw = await client.embeddings.with_raw_response.create(model="fast", input=f"about {SECRET}")
            return Answer(200, "", "", [], raw.headers)
        if way.name.startswith("completions"):
            raw = await client.completions.with_raw_response.create(model="fast", prompt=f"say write to {SECRET} now", stream=way.stream)
        else:
            raw = await client.chat.completions.with_raw_response.create(
                model="fast", messages=conversation(phase), tools=TOOLS, stream=way.stream)
        return await read(raw, way)
    except openai.APIStatusError as error:
        return Answer(error.status_code, error.code or "", "", [], error.response.headers)
    except openai.APIError as error:  # inside a stream
        return Answer(200, error.code or "", "", [], {})


def conversation(phase: str) -> list[Any]:
    if phase == "tool_call":
        return [{"role": "user", "content": f'call other {{"who": "x"}} call lookup_user {{"who": "{SECRET}"}} call other {{"who": "y"}}'}]
    if phase == "tool_result":
        call = {"id": "c1", "type": "function", "function": {"name": "lookup_user", "arguments": "{}"}}
        return [{"role": "user", "content": "look up"}, {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": f"it is {SECRET}"}, {"role": "user", "content": "say thanks"}]
    return [{"role": "user", "content": f"say write to {SECRET} now"}]


async def read(raw: Any, way: Way) -> Answer:
    parsed = raw.parse()
    if not way.stream:
        choice = parsed.choices[0]
        if way.name == "completions":
            return Answer(200, "", choice.text, [], raw.headers)
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        return Answer(200, "", choice.message.content or "", calls, raw.headers)
    text, order = "", []
    found: dict[int, tuple[str, str]] = {}
    async for chunk in parsed:
        for choice in chunk.choices:
            if way.name.startswith("completions"):
                text += choice.text
                continue
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                if call.index not in found:
                    order.append(call.index)
                name, arguments = found.get(call.index, ("", ""))
                found[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
    assert order == sorted(order)
    return Answer(200, "", text, [found[index] for index in order], raw.headers)


async def ask_tool(house: Any, way: Way) -> Answer:
    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}"}
    sent = session.get("/tools/lookup", params={"who": SECRET}, headers=headers) if "query" in way.name else session.post(
        "/tools/lookup", json={"who": SECRET}, headers=headers)
    async with sent as answer:
        text = await answer.text()
        code = json.loads(text).get("code", "") if answer.status >= 400 else ""
        return Answer(answer.status, code, text, [], answer.headers)


async def test_every_endpoint_of_the_gateway_is_in_the_matrix(house):
    """One that is added without a row here is one where nobody has shown that rules hold."""
    await house.open(routes=ROUTES.format(root=house.one.root))
    assert house.gateway.app is not None
    known = {way.endpoint[1] for way in WAYS} | {path for _method, path in NOT_CALLS}
    assert {path for _method, path in house.gateway.app.surface.endpoints if not path.startswith("/-/")} == known


def sent(house: Any) -> list[Any]:
    return [*house.one.requests, *house.two.requests]


@pytest.mark.parametrize(("way", "phase", "effect"), CASES, ids=[f"{way.name}-{phase}-{effect}" for way, phase, effect in CASES])
async def test_the_effect_happens(house, way, phase, effect):
    await house.open(routes=ROUTES.format(root=house.one.root), policies=rule(phase, effect), config='[approvals]\nhold = "10ms"\n')
    before = await ask(house, way, phase)
    answer = await ask(house, way, phase) if effect == "limit" else before
    proposed = phase == "tool_call" and way.name.startswith("chat")
    if effect in ("deny", "require_approval", "limit"):
        code = {"deny": "forbidden", "require_approval": "approval_pending", "limit": "rate_limited"}[effect]
        if proposed and effect != "require_approval":  # that call is refused, the others keep their order, and the answer says so
            assert [name for name, _ in answer.calls] == ["other", "other"]
            assert "lookup_user" in answer.text
            assert SECRET not in str(answer.calls)
        else:
            assert answer.code == code
            begun = way.stream and (phase == "response" or effect == "require_approval")  # a stream is begun before people are asked
            assert answer.status == (200 if begun else {"limit": 429, "require_approval": 409}.get(effect, 403))
            assert SECRET not in answer.text
            late = phase == "response" or proposed or (phase == "tool_result" and way.name.startswith("tool"))
            assert len(sent(house)) == ((effect == "limit") + late)
    elif effect == "redact":
        assert SECRET not in answer.text
        assert SECRET not in str(answer.calls)
        if phase in ("request", "tool_call", "tool_result") and not (phase == "tool_result" and way.name.startswith("tool")) and not proposed:
            assert all(SECRET.encode() not in entry.raw and SECRET not in entry.query for entry in sent(house))
        assert sent(house)
    elif effect == "set":
        if proposed:
            assert [json.loads(arguments).get("note") for name, arguments in answer.calls if name == "lookup_user"] == ["set"]
        else:
            assert sent(house)[0].body["note" if way.name.startswith("tool") else "user"] == "set"
    elif effect == "route":
        assert house.two.requests
        assert not house.one.requests
    else:
        assert answer.status == 200
        assert not answer.code
    await on_record(house, phase, effect)


async def on_record(house: Any, phase: str, effect: str) -> None:
    """The journal says which rule it was, and in which phase."""
    rows = await house.calls()
    row = await house.call(rows[0]["id"])
    told = [*row["reasons"], *(reason for verdict in row["verdicts"] for reason in verdict["reasons"])]
    assert ("the-rule", effect) in {(reason["rule"], reason["effect"]) for reason in told}
    assert {reason.get("phase", "request") for reason in told if reason["rule"] == "the-rule"} <= {phase}
    if effect == "log":
        assert "seen" in row["labels"]


@pytest.mark.parametrize("rest", ['effect = "set"\nset = { values = { temperature = 0.1 } }', 'effect = "route"\nroute = { only = ["two/*"] }'])
async def test_rules_about_model_calls_leave_tools_alone(house, rest):
    """Else a deployment that sets a temperature would write it into the arguments of its bank."""
    await house.open(routes=ROUTES.format(root=house.one.root), policies=f'[defaults]\ntools = "allow"\n[[rule]]\nid = "r"\n{rest}\n')
    assert (await ask_tool(house, WAYS[5])).status == 200
    assert house.one.requests[0].body == {"who": SECRET}
