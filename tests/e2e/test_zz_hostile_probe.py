import json, asyncio
from typing import Any
import pytest
from aiohttp import web

EVIL = "evil-account"
MAIL = "ada@example.org"
ARGS = json.dumps({"to": EVIL, "amount": 5000})
PAY = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": ARGS}}
SEE = {"id": "c0", "type": "function", "function": {"name": "see", "arguments": "{}"}}

class Provider:
    url = ""
    body: Any = None
    chunks: Any = None
    raw: Any = None
    async def handle(self, request):
        await request.read()
        if self.raw is not None or self.chunks is not None:
            r = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await r.prepare(request)
            if self.raw is not None:
                await r.write(self.raw)
            else:
                for c in self.chunks:
                    await r.write(b"data: " + json.dumps(c).encode() + b"\n\n")
                await r.write(b"data: [DONE]\n\n")
            await r.write_eof()
            return r
        return web.json_response(self.body)

@pytest.fixture
async def provider():
    p = Provider()
    app = web.Application(); app.router.add_route("*", "/{x:.*}", p.handle)
    runner = web.AppRunner(app); await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0); await site.start()
    p.url = f"http://127.0.0.1:{site.port}/v1"
    yield p
    await runner.cleanup()

ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "evil"
model = "m"
[route.retry]
attempts = 1
"""
DENY = """
[[rule]]
id = "no-pay"
phase = "tool_call"
match = { tools = ["pay"] }
when = "has(tool.args.to) || has(tool.args.input)"
effect = "deny"
message = "No."
"""
REDACT = """
[[rule]]
id = "r"
phase = "response"
effect = "redact"
redact = { detectors = ["email"] }
"""
DENYTEXT = """
[[rule]]
id = "d"
phase = "response"
when = 'response.text.contains("ada@")'
effect = "deny"
"""

async def ask(house, provider, stream, policies, path="chat/completions", **extra):
    await house.open(routes=ROUTES, policies=policies, config=f'[providers.evil]\nadapter="openai"\nbase_url="{provider.url}"')
    http = await house.http()
    body = {"model": "fast", "messages": [{"role": "user", "content": "x"}], "stream": stream, **extra}
    if path == "completions": body = {"model": "fast", "prompt": "x", "stream": stream}
    async with http.post(f"/v1/{path}", json=body, headers={"Authorization": f"Bearer {house.key}"}) as a:
        t = await a.text()
        print(a.status, t[:1500], file=__import__("sys").stderr)
        return a.status, t

def set_answer(provider, stream, choices, **top):
    if stream:
        chs = []
        for n, c in enumerate(choices):
            c = dict(c)
            m = c.pop("message", None)
            if isinstance(m, dict):
                m = dict(m)
                if isinstance(m.get("tool_calls"), list):
                    m["tool_calls"] = [{"index": i, **e} if isinstance(e, dict) else e for i, e in enumerate(m["tool_calls"])]
                c["delta"] = m
            fr = c.pop("finish_reason", "stop")
            chs.append({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{**c, "index": n, "finish_reason": None}], **top})
            chs.append({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": n, "delta": {}, "finish_reason": fr}], **top})
        provider.chunks = chs
    else:
        provider.body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": n, "finish_reason": "stop", **c} for n, c in enumerate(choices)], **top}

M = lambda **k: {"message": {"role": "assistant", "content": None, **k}}
CALLS = {
 "normal": [M(tool_calls=[SEE, PAY])],
 "legacy": [M(function_call=PAY["function"])],
 "both": [M(tool_calls=[SEE], function_call=PAY["function"])],
 "both kinds": [M(tool_calls=[{"id": "c1", "type": "custom", "function": {"name": "see", "arguments": "{}"}, "custom": {"name": "pay", "input": ARGS}}])],
 "object args": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": json.loads(ARGS)}}])],
 "dict": [M(tool_calls={"0": PAY})],
 "one": [M(tool_calls=PAY)],
 "choice level": [{**M(content="a"), "tool_calls": [PAY]}],
 "choice level legacy": [{**M(content="a"), "function_call": PAY["function"]}],
 "case": [M(Tool_Calls=[PAY])],
 "case function": [M(tool_calls=[{"id": "c1", "type": "function", "function": {"name": "see", "Name": "pay", "arguments": "{}", "Arguments": ARGS}}])],
 "case entry": [M(tool_calls=[{"id": "c1", "type": "function", "function": SEE["function"], "Function": PAY["function"]}])],
 "flat": [M(tool_calls=[{"id": "c1", "type": "function", "name": "pay", "arguments": ARGS}])],
 "mcp": [M(tool_calls=[{"id": "c1", "type": "mcp", "mcp": {"name": "pay", "arguments": ARGS}}])],
 "second": [M(content="a"), M(tool_calls=[PAY])],
 "logprobs": [{**M(tool_calls=[PAY]), "logprobs": {"content": [{"token": EVIL, "logprob": 0}]}}],
 "custom": [M(tool_calls=[{"id": "c1", "type": "custom", "custom": {"name": "pay", "input": ARGS}}])],
 "nested list": [M(tool_calls=[[PAY]])],
 "string": [M(tool_calls=json.dumps([PAY]))],
 "name list": [M(tool_calls=[{**PAY, "function": {"name": ["pay"], "arguments": ARGS}}])],
 "dup": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": '{"to": "evil-account", "to": "x"}'}}])],
 "nan": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": '{"to": "evil-account", "a": NaN}'}}])],
 "big": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": '{"to": "evil-account", "a": 1e400}'}}])],
 "deep": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": '{"to": "evil-account", "a":' + "["*300 + "]"*300 + "}"}}])],
 "surrogate": [M(tool_calls=[{**PAY, "function": {"name": "pay", "arguments": '{"to": "evil-account", "a":"\\ud800"}'}}])],
 "audio": [M(audio={"tool_calls": [PAY]})],
}

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CALLS)
async def test_calls(house, provider, stream, name):
    set_answer(provider, stream, CALLS[name])
    status, text = await ask(house, provider, stream, DENY)
    assert EVIL not in text
    assert status != 500

TEXTS = {
 "content": [M(content=f"a {MAIL}")],
 "parts": [M(content=[{"type": "text", "text": f"a {MAIL}"}])],
 "refusal": [M(refusal=f"a {MAIL}")],
 "reasoning": [M(reasoning_content=f"a {MAIL}")],
 "reasoning2": [M(reasoning=f"a {MAIL}")],
 "thinking": [M(thinking=f"a {MAIL}")],
 "details": [M(reasoning_details=[{"type": "reasoning.text", "text": f"a {MAIL}"}])],
 "audio": [M(audio={"id": "a", "data": "", "transcript": f"a {MAIL}"})],
 "annotations": [M(content="a", annotations=[{"type": "url_citation", "url_citation": {"title": MAIL}}])],
 "text too": [{**M(content="a"), "text": f"a {MAIL}"}],
 "choice": [{**M(content="a"), "reasoning": f"a {MAIL}"}],
 "second": [M(content="a"), M(content=MAIL)],
 "logprobs": [{**M(content=f"a {MAIL}"), "logprobs": {"content": [{"token": MAIL, "logprob": 0}]}}],
 "Content": [M(Content=f"a {MAIL}")],
}
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", ["redact", "deny"])
@pytest.mark.parametrize("name", TEXTS)
async def test_texts(house, provider, stream, name, rule):
    set_answer(provider, stream, TEXTS[name])
    status, text = await ask(house, provider, stream, REDACT if rule == "redact" else DENYTEXT)
    assert MAIL not in text
    assert status != 500

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", ["redact", "deny"])
async def test_top(house, provider, stream, rule):
    set_answer(provider, stream, [M(content="a")], citations=[f"x {MAIL}"])
    status, text = await ask(house, provider, stream, REDACT if rule == "redact" else DENYTEXT)
    assert MAIL not in text

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", ["redact", "deny"])
@pytest.mark.parametrize("message", [{}, None, "x"])
async def test_completions(house, provider, stream, rule, message):
    c = {"text": f"a {MAIL}", "index": 0, "finish_reason": "stop"}
    if message is not None: c["message"] = message
    if stream:
        c.pop("message", None); c["delta"] = message
        provider.chunks = [{"id": "x", "object": "text_completion", "choices": [c]}]
    else:
        provider.body = {"id": "x", "object": "text_completion", "choices": [c]}
    status, text = await ask(house, provider, stream, REDACT if rule == "redact" else DENYTEXT, path="completions")
    assert MAIL not in text

def ch(delta, fr=None, index=0, **more):
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": fr, **more}]}

import re
def joined(text):
    out = {}
    for line in text.splitlines():
        if line.startswith("data: {"):
            d = json.loads(line[6:])
            for c in d.get("choices", []):
                for k, v in (c.get("delta") or {}).items():
                    if isinstance(v, str): out[int(c["index"]), k] = out.get((int(c["index"]), k), "") + v
                if isinstance(c.get("text"), str): out[c["index"], "text"] = out.get((c["index"], "text"), "") + c["text"]
    return " | ".join(out.values())

STREAMS = {
 "after finish": [ch({"content": "ada@exam"}), ch({}, "stop"), ch({"content": "ple.org x"})],
 "empty finish": [ch({"content": "ada@exam"}, ""), ch({"content": "ple.org x"}, ""), ch({}, "stop")],
 "finish each": [ch({"content": "ada@exam"}, "stop"), ch({"content": "ple.org x"}, "stop"), ch({}, "stop")],
 "index str": [ch({"content": "ada@exam"}, index="1"), ch({"content": "zzz "}, index="2"), ch({"content": "ple.org x"}, index="1"), ch({}, "stop", index="1")],
 "index float": [ch({"content": "ada@exam"}, index=1), ch({"content": "ple.org x"}, index=1.0), ch({}, "stop", index=1)],
 "index bool": [ch({"content": "ada@exam"}, index=1), ch({"content": "ple.org x"}, index=True), ch({}, "stop", index=1)],
 "text and delta text": [ch({"text": MAIL}, text="a"), ch({}, "stop")],
 "no finish": [ch({"content": "ada@exam"}), ch({"content": "ple.org"})],
}
@pytest.mark.parametrize("rule", ["redact", "deny"])
@pytest.mark.parametrize("name", STREAMS)
async def test_streams(house, provider, name, rule):
    provider.chunks = STREAMS[name]
    status, text = await ask(house, provider, True, REDACT if rule == "redact" else DENYTEXT)
    assert MAIL not in text and MAIL not in joined(text)

def tc(n, name=None, args=None, id=None, **more):
    f = {}
    if name is not None: f["name"] = name
    if args is not None: f["arguments"] = args
    return {"tool_calls": [{"index": n, **({"id": id, "type": "function"} if id else {}), "function": f, **more}]}

CSTREAMS = {
 "after finish": [ch(tc(0, "see", "{}", "c0")), ch({}, "tool_calls"), ch(tc(0, "pay", ARGS, "c1")), ch({}, "tool_calls")],
 "name pieces": [ch(tc(0, "pa", "", "c0")), ch(tc(0, "y", ARGS)), ch({}, "tool_calls")],
 "name pieces finish": [ch(tc(0, "pa", "", "c0")), ch({}, "tool_calls"), ch(tc(0, "y", ARGS)), ch({}, "tool_calls")],
 "dup index": [ch(tc(0, "see", "", "c0")), ch(tc(0, "pay", ARGS, "c1")), ch({}, "tool_calls")],
 "no index": [ch({"tool_calls": [SEE]}), ch({"tool_calls": [PAY]}), ch({}, "tool_calls")],
 "dict choices": [{"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": {"0": {"index": 0, "delta": tc(0, "pay", ARGS, "c1")}}}, ch({}, "tool_calls")],
 "message": [{"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "message": {"tool_calls": [PAY]}}]}, ch({}, "stop")],
 "delta list": [{"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": [{"tool_calls": [PAY]}]}]}, ch({}, "stop")],
 "logprobs": [ch(tc(0, "pay", ARGS, "c1"), logprobs={"content": [{"token": EVIL}]}), ch({"content": "a"}, logprobs={"content": [{"token": EVIL}]}), ch({}, "tool_calls", logprobs={"content": [{"token": EVIL}]})],
 "finish empty": [ch(tc(0, "pay", ARGS[:10], "c1"), ""), ch(tc(0, None, ARGS[10:]), ""), ch({}, "tool_calls")],
}
@pytest.mark.parametrize("name", CSTREAMS)
async def test_cstreams(house, provider, name):
    provider.chunks = CSTREAMS[name]
    status, text = await ask(house, provider, True, DENY)
    assert EVIL not in text
