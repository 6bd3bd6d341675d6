"""Answers that try to carry a tool call or a text past the rules: whatever a provider makes of the format, no byte of it gets through."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

EVIL = "evil-account"
MAIL = "ada@example.org"
ARGUMENTS = json.dumps({"to": EVIL, "amount": 5000})
FUNCTION = {"name": "pay", "arguments": ARGUMENTS}
PAY = {"id": "c1", "type": "function", "function": FUNCTION}
SEE: dict[str, Any] = {"id": "c0", "type": "function", "function": {"name": "see", "arguments": "{}"}}
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "evil"
model = "m"
[route.retry]
attempts = 1
"""
NO_PAYMENTS = """
[[rule]]
id = "no-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = "has(tool.args.to) || has(tool.args.input)"
effect = "deny"
message = "No."
"""
TEXT_RULES = {"redact": """
[[rule]]
id = "no-mail"
phase = "response"
effect = "redact"
redact = { detectors = ["email"] }
""", "deny": """
[[rule]]
id = "no-ada"
phase = "response"
when = 'response.text.contains("ada@")'
effect = "deny"
"""}


@dataclass
class Provider:
    """Answers with what it is told: `body` plain, `chunks` as a stream."""

    url: str = ""
    body: Any = None
    chunks: Any = None
    breaks: bool = False  # before the end of the stream

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if self.chunks is None:
            return web.json_response(self.body)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for chunk in self.chunks:
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await answer.write(b"" if self.breaks else b"data: [DONE]\n\n")
        await answer.write_eof()
        return answer

    def says(self, choices: list[Any], *, stream: bool, **more: Any) -> None:
        """Set these choices of a plain answer as the answer, or as the chunks that amount to it."""
        head = {"id": "x", "object": "chat.completion.chunk" if stream else "chat.completion", "created": 1, "model": "m", **more}
        if not stream:
            self.body = {**head, "choices": [{"index": n, "finish_reason": "stop", **choice} for n, choice in enumerate(choices)]}
            return
        self.chunks = []
        for n, choice in enumerate(choices):
            said = {"delta" if name == "message" else name: _numbered(value) for name, value in choice.items()}
            self.chunks.append({**head, "choices": [{**said, "index": n, "finish_reason": None}]})
            self.chunks.append({**head, "choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]})


def _numbered(message: Any) -> Any:
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [{"index": n, **call} if isinstance(call, dict) else call for n, call in enumerate(calls)]}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{site.port}/v1"
    yield made
    await runner.cleanup()


async def ask(house: Any, provider: Provider, policies: str, *, stream: bool, path: str = "chat/completions", config: str = "", **more: Any) -> str:
    """The whole answer as it came over the wire; never a defect of the gateway's own."""
    await house.open(routes=ROUTES, policies=policies, config=f'{config}\n[providers.evil]\nadapter = "openai"\nbase_url = "{provider.url}"')
    session = await house.http()
    given = {"prompt": "x"} if path == "completions" else {"messages": [{"role": "user", "content": "x"}]}
    headers = {"Authorization": f"Bearer {house.key}"}
    async with session.post(f"/v1/{path}", json={"model": "fast", "stream": stream, **given, **more}, headers=headers) as answer:
        text: str = await answer.text()
        assert answer.status in (200, 403, 502), (answer.status, text)
        return text


def message(**fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None, **fields}}


def proposing(*calls: Any) -> list[Any]:
    return [message(tool_calls=list(calls))]


def pay(arguments: Any) -> dict[str, Any]:
    return {**PAY, "function": {"name": "pay", "arguments": arguments}}


CALLS = {
    "beside another": proposing(SEE, PAY),
    "the older form": [message(function_call=FUNCTION)],
    "both forms": [message(tool_calls=[SEE], function_call=FUNCTION)],
    "both kinds": proposing({"id": "c1", "type": "custom", "function": SEE["function"], "custom": {"name": "pay", "input": ARGUMENTS}}),
    "a custom tool": proposing({"id": "c1", "type": "custom", "custom": {"name": "pay", "input": ARGUMENTS}}),
    "another kind": proposing({"id": "c1", "type": "mcp", "mcp": FUNCTION}),
    "without a holder": proposing({"id": "c1", "type": "function", **FUNCTION}),
    "arguments that are an object": proposing(pay(json.loads(ARGUMENTS))),
    "arguments with a key twice": proposing(pay('{"to": "evil-account", "to": "x"}')),
    "arguments that are no number": proposing(pay('{"to": "evil-account", "a": NaN}')),
    "arguments too large": proposing(pay('{"to": "evil-account", "a": 1e400}')),
    "arguments too deep": proposing(pay('{"to": "evil-account", "a": ' + "[" * 300 + "]" * 300 + "}")),
    "arguments with half a letter": proposing(pay('{"to": "evil-account", "a": "\\ud800"}')),
    "arguments in two values": proposing(pay('{} {"to": "evil-account"}')),
    "a name that is a list": proposing({**PAY, "function": {"name": ["pay"], "arguments": ARGUMENTS}}),
    "a name with a blank": proposing({**PAY, "function": {"name": "pay ", "arguments": ARGUMENTS}}),
    "a name with a mark": proposing({**PAY, "function": {"name": "pa\u200by", "arguments": ARGUMENTS}}),
    "no name": proposing({**PAY, "function": {"arguments": ARGUMENTS}}),
    "names in other cases": proposing({"id": "c1", "type": "function", "function": {**SEE["function"], "Name": "pay", "Arguments": ARGUMENTS}}),
    "an entry in other cases": proposing({**SEE, "Function": FUNCTION}),
    "a list in other cases": [message(Tool_Calls=[PAY])],
    "an object for a list": [message(tool_calls={"0": PAY})],
    "one for a list": [message(tool_calls=PAY)],
    "a list of lists": proposing([PAY]),
    "a text": [message(tool_calls=json.dumps([PAY]))],
    "beside the message": [{**message(content="a"), "tool_calls": [PAY]}],
    "the older form beside the message": [{**message(content="a"), "function_call": FUNCTION}],
    "within another field": [message(content="a", audio={"tool_calls": [PAY]})],
    "in the second choice": [message(content="a"), *proposing(PAY)],
    "token by token": [{**proposing(PAY)[0], "logprobs": {"content": [{"token": EVIL, "logprob": 0}]}}],
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("choices", CALLS.values(), ids=CALLS)
async def test_no_part_of_a_call_that_is_refused_reaches_the_client(house, provider, choices, stream):
    provider.says(choices, stream=stream)
    assert EVIL not in await ask(house, provider, NO_PAYMENTS, stream=stream)


def chunk(delta: Any, finish: str | None = None, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}


def piece(name: str | None, arguments: str | None, number: Any = 0, call_id: str | None = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": number, **({"id": call_id, "type": "function"} if call_id else {}), "function": function}]}


END = chunk({}, "tool_calls")
CALLS_IN_PIECES = {
    "after the end": [chunk(piece("see", "{}", 0, "c0")), END, chunk(piece("pay", ARGUMENTS, 1, "c1")), END],
    "after the end, in the same place": [chunk(piece("see", "{}", 0, "c0")), END, chunk(piece("pay", ARGUMENTS, 0, "c1")), END],
    "a name over two ends": [chunk(piece("pa", "", 0, "c0")), END, chunk(piece("y", ARGUMENTS)), END],
    "two in one place": [chunk(piece("see", "", 0, "c0")), chunk(piece("pay", ARGUMENTS, 0, "c1")), END],
    "a place that is a text": [chunk(piece("see", "{}", 0, "c0")), chunk(piece("pay", ARGUMENTS, "0", "c1")), END],
    "without places": [chunk({"tool_calls": [SEE]}), chunk({"tool_calls": [PAY]}), END],
    "a whole message": [{**chunk({}), "choices": [{"index": 0, "message": {"tool_calls": [PAY]}}]}, END],
    "a delta that is a list": [chunk([{"tool_calls": [PAY]}]), END],
    "ends that are empty": [chunk(piece("pay", ARGUMENTS[:9], 0, "c1"), ""), chunk(piece(None, ARGUMENTS[9:]), ""), END],
    "token by token": [chunk(piece("pay", ARGUMENTS), logprobs={"content": [{"token": EVIL}]}),
                       chunk({"content": "a"}, logprobs={"content": [{"token": EVIL}]}),
                       chunk({}, "tool_calls", logprobs={"content": [{"token": EVIL}]})],
}


@pytest.mark.parametrize("chunks", CALLS_IN_PIECES.values(), ids=CALLS_IN_PIECES)
async def test_no_piece_of_a_call_that_is_refused_reaches_the_client(house, provider, chunks):
    provider.chunks = chunks
    assert EVIL not in await ask(house, provider, NO_PAYMENTS, stream=True)


TEXTS = {
    "the content": [message(content=f"a {MAIL}")],
    "parts of a content": [message(content=[{"type": "text", "text": f"a {MAIL}"}])],
    "a part of another kind": [message(content=[{"type": "thinking", "thinking": [{"type": "text", "text": MAIL}]}])],
    "a refusal": [message(refusal=f"a {MAIL}")],
    "the reasoning": [message(content="a", reasoning_content=f"a {MAIL}")],
    "the reasoning elsewhere": [message(content="a", reasoning=f"a {MAIL}")],
    "the reasoning in parts": [message(content="a", reasoning_details=[{"type": "reasoning.text", "text": f"a {MAIL}"}])],
    "a field that is not known": [message(content="a", thoughts=f"a {MAIL}")],
    "a field in other cases": [message(content="a", Content=f"a {MAIL}")],
    "what was said aloud": [message(audio={"id": "a", "data": "", "transcript": f"a {MAIL}"})],
    "a note": [message(content="a", annotations=[{"type": "url_citation", "url_citation": {"title": MAIL}}])],
    "a text beside the message": [{**message(content="a"), "text": f"a {MAIL}"}],
    "the reasoning beside the message": [{**message(content="a"), "reasoning": f"a {MAIL}"}],
    "the second choice": [message(content="a"), message(content=f"a {MAIL}")],
    "token by token": [{**message(content=f"a {MAIL}"), "logprobs": {"content": [{"token": MAIL, "logprob": 0}]}}],
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize("choices", TEXTS.values(), ids=TEXTS)
async def test_a_text_is_judged_whatever_field_it_stands_in(house, provider, choices, rule, stream):
    provider.says(choices, stream=stream)
    assert MAIL not in await ask(house, provider, TEXT_RULES[rule], stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_what_stands_beside_the_choices_is_redacted_too(house, provider, stream):
    provider.says([{**message(content="a"), "filters": {"a": [MAIL]}}], stream=stream, citations=[f"see {MAIL}"])
    assert MAIL not in await ask(house, provider, TEXT_RULES["redact"], stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize("beside", [{}, {"content": "b"}, None, "b", [MAIL]], ids=["nothing", "a message", "null", "text", "list"])
async def test_a_completion_is_judged_whatever_stands_beside_its_text(house, provider, rule, beside, stream):
    choice = {"text": f"a {MAIL}", "index": 0, "finish_reason": "stop", "delta" if stream else "message": beside}
    answer = {"id": "x", "object": "text_completion", "choices": [choice]}
    provider.body, provider.chunks = answer, [answer] if stream else None
    assert MAIL not in await ask(house, provider, TEXT_RULES[rule], stream=stream, path="completions")


SPLIT = [chunk({"content": "ada@exam"}), chunk({"content": "ple.org x"})]
TEXTS_IN_PIECES = {
    "over the end": [SPLIT[0], chunk({}, "stop"), SPLIT[1]],
    "over ends that are empty": [chunk({"content": "ada@exam"}, ""), chunk({"content": "ple.org x"}, ""), chunk({}, "stop")],
    "over several ends": [chunk({"content": "ada@exam"}, "stop"), chunk({"content": "ple.org x"}, "stop")],
    "in choices whose numbers are texts": [chunk({"content": "ada@exam"}, index="1"), chunk({"content": "- "}, index="2"),
                                           chunk({"content": "ple.org"}, index="1"), chunk({}, "stop", "1")],
    "in one choice with two numbers": [chunk({"content": "ada@exam"}, index=1), chunk({"content": "ple.org"}, index=1.0), chunk({}, "stop", 1)],
    "in one choice with and without a number": [chunk({"content": "ada@exam"}, index=None), chunk({"content": "ple.org"}), chunk({}, "stop")],
    "two of one name": [chunk({"text": MAIL}, text="a"), chunk({}, "stop")],
    "without an end": SPLIT,
}


def joined(answer: str) -> str:
    """What a reader makes of the pieces, by choice and field."""
    texts: dict[Any, str] = {}
    for line in answer.splitlines():
        for choice in json.loads(line[6:]).get("choices", []) if line.startswith("data: {") else []:
            for name, value in [*(choice.get("delta") or {}).items(), ("text", choice.get("text"))]:
                key = int(choice.get("index") or 0), name
                texts[key] = texts.get(key, "") + (value if isinstance(value, str) else "")
    return " | ".join(texts.values())


@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize("chunks", TEXTS_IN_PIECES.values(), ids=TEXTS_IN_PIECES)
async def test_a_text_is_found_however_its_pieces_come(house, provider, chunks, rule):
    provider.chunks = chunks
    answer = await ask(house, provider, TEXT_RULES[rule], stream=True)
    assert MAIL not in answer
    assert MAIL not in joined(answer)


@pytest.mark.parametrize("rule", TEXT_RULES)
async def test_an_address_is_found_wherever_the_stream_is_cut(house, provider, rule):
    """Every place for one cut, each in a choice of its own."""
    text = f"a {MAIL}, b"
    provider.chunks = [chunk({"content": part}, index=n) for n in range(len(text)) for part in (text[:n], text[n:])]
    provider.chunks += [chunk({}, "stop", n) for n in range(len(text))]
    answer = await ask(house, provider, TEXT_RULES[rule], stream=True, n=len(text))
    assert "ada@" not in joined(answer)
    assert rule == "deny" or joined(answer).count("a [redacted:email], b") == len(text)


@pytest.mark.parametrize("rule", TEXT_RULES)
async def test_a_stream_that_breaks_gives_no_half_of_what_it_must_not_say(house, provider, rule):
    provider.breaks = True
    provider.chunks = [chunk({"content": "write to "}), chunk({"content": "ada@examp"}), chunk({"reasoning": "ada@examp"})]
    answer = await ask(house, provider, TEXT_RULES[rule], stream=True)
    assert "ada@" not in answer
    assert '"code":"upstream_failed"' in answer
    assert joined(answer).startswith("write to" if rule == "redact" else "")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_call_beside_the_choices_is_in_a_place_where_none_belongs(house, provider, stream):
    provider.says([message(content="a")], stream=stream, message={"role": "assistant", "tool_calls": [PAY]})
    assert EVIL not in await ask(house, provider, NO_PAYMENTS, stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_rule_on_the_tools_that_an_answer_calls_sees_both_forms(house, provider, stream):
    """Which tools an answer calls is not known when a stream begins: such a rule waits for its end."""
    provider.says([message(content=EVIL, tool_calls=[SEE], function_call={"name": "pay", "arguments": "{}"})], stream=stream)
    answer = await ask(house, provider, """
[[rule]]
id = "no-answer-that-pays"
phase = "response"
match = { tools = ["pay"] }
effect = "deny"
""", stream=stream)
    assert EVIL not in answer
    assert "no-answer-that-pays" in answer


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answer_with_more_calls_than_anybody_can_mean_is_refused(house, provider, stream):
    """Each is judged: thousands of them would keep other calls waiting."""
    many = [message(tool_calls=[{**SEE, "id": f"c{n}"} for n in range(100)]) for _ in range(11)]
    provider.says(many, stream=stream)
    answer = await ask(house, provider, NO_PAYMENTS, stream=stream)
    assert "The answer calls more than 1024 tools." in answer


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("values", "tool", "says"), [
    ("{ to = 5 }", {"type": "function", "function": {"name": "pay", "parameters": {"properties": {"to": {"type": "string"}}}}}, "/to"),
    ('{ note = "x" }', None, "it takes one text"), ("{ input = 5 }", None, "it takes one text")], ids=["a wrong type", "a second value", "no text"])
async def test_what_a_rule_writes_has_to_fit_the_tool_as_well(house, provider, values, tool, says, stream):
    """Else an application would run what its own schema forbids, or not what the record says."""
    provider.says(proposing(PAY if tool else {"id": "c1", "type": "custom", "custom": {"name": "pay", "input": EVIL}}), stream=stream)
    answer = await ask(house, provider, f"""
[[rule]]
id = "written"
phase = "tool_call"
effect = "set"
set = {{ values = {values} }}
""", stream=stream, tools=[tool] if tool else None)
    assert EVIL not in answer
    assert f"(rule arguments): What a rule makes of the arguments does not fit the tool: {says}" in answer
    row = await house.call((await house.calls())[0]["id"])
    assert [(verdict["subject"], verdict["decision"]) for verdict in row["verdicts"]][-1] == ("pay", "deny")


async def test_a_rule_on_the_session_says_the_same_of_a_stream_as_of_a_plain_answer(house, provider):
    """Where a session is not marked, its answers are not redacted."""
    provider.says([message(content=f"a {MAIL}")], stream=True)
    answer = await ask(house, provider, TEXT_RULES["redact"] + """when = 'session.id != "" && "marked" in session.labels'\n""", stream=True)
    assert MAIL in joined(answer)
    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}", "X-Lockgate-Session": "s1"}
    given = {"model": "fast", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with session.post("/v1/chat/completions", json=given, headers=headers) as answered:
        assert MAIL in joined(await answered.text())
