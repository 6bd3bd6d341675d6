"""Bad input gets a clear error with the right code; nothing is lost, nothing leaks, nothing reaches a provider."""

import asyncio
import io
import json
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
GOOD = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}


async def post(house, body: bytes, path: str = CHAT, **headers: str) -> tuple[int, Any]:
    session = await house.http()
    sent = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json", **headers}
    async with session.post(path, data=body, headers=sent) as answer:
        return answer.status, await answer.json()


NOT_A_CALL = {
    "empty": b"", "not JSON": b"hello", "a list": b"[]", "a string": b'"x"', "null": b"null", "half": b'{"model": "fast"',
    "NaN": b'{"model":"fast","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "infinity": b'{"model":"fast","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "a huge integer": b'{"model":"fast","messages":[{"role":"user","content":"x"}],"seed":123456789012345678901234567890}',
    "bad UTF-8": b'{"model":"fast","messages":[{"role":"user","content":"\xff"}]}', "a BOM": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "a lone surrogate": b'{"model":"fast","messages":[{"role":"user","content":"\\ud800"}]}',
    "too deep": b'{"model":"fast","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "two documents": json.dumps(GOOD).encode() * 2,
}


@pytest.mark.parametrize("body", NOT_A_CALL.values(), ids=NOT_A_CALL.keys())
async def test_what_is_not_a_json_object_is_refused_and_recorded(house, body):
    await house.open()
    status, error = await post(house, body)
    assert (status, error["error"]["code"]) == (400, "invalid_request")
    assert error["error"]["message"]
    (row,) = await house.calls()
    assert (row["outcome"], row["code"], row["id"]) == ("refused", "invalid_request", error["error"]["call_id"])
    assert house.one.requests == []


@pytest.mark.parametrize(("change", "param"), [
    ({"model": None}, "model"), ({"model": 3}, "model"), ({"model": ""}, "model"), ({"messages": None}, "messages"), ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"), ({"messages": ["hi"]}, "messages"), ({"stream": "yes"}, "stream"), ({"stream_options": 1}, "stream_options"),
    ({"Model": "backed-up"}, "Model"), ({"STREAM": True}, "STREAM"),
])
async def test_a_wrong_field_is_named(house, change, param):
    await house.open()
    status, error = await post(house, json.dumps({**GOOD, **change}).encode())
    assert (status, error["error"]["code"]) == (400, "invalid_request")
    assert param in error["error"]["param"]
    assert house.one.requests == []


async def test_an_unknown_model_is_told_which_there_are(house):
    await house.open()
    status, error = await post(house, json.dumps({**GOOD, "model": "gpt-99"}).encode())
    assert (status, error["error"]["code"]) == (404, "unknown_route")
    assert "fast, backed-up" in error["error"]["message"]
    assert "vectors" not in error["error"]["message"]  # it does not chat


async def test_of_duplicate_keys_what_is_judged_is_what_is_sent(house):
    await house.open(policies='[[rule]]\nid = "only-fast"\nwhen = """request.body.secret_plan == "bad" """\neffect = "deny"\nmessage = "no"\n')
    smuggled = b'{"model":"fast","messages":[{"role":"user","content":"x"}],"secret_plan":"bad","secret_plan":"fine"}'
    status, _ = await post(house, smuggled)
    assert status == 200
    (entry,) = await house.one.finished(1)
    assert entry.raw.count(b"secret_plan") == 1
    assert entry.body["secret_plan"] == "fine"
    status, error = await post(house, smuggled.replace(b'"bad","secret_plan":"fine"', b'"fine","secret_plan":"bad"'))
    assert (status, error["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_a_body_over_the_limit_is_refused_whole(house, chunked):
    await house.open()

    async def pieces():
        for _ in range(11):
            yield b"x" * 1024 * 1024

    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
    async with session.post(CHAT, data=pieces() if chunked else io.BytesIO(b"x" * 11 * 1024 * 1024), headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "body_too_large"
    assert house.one.requests == []


async def raw(house, request: bytes) -> bytes:
    url = house.gateway.url.removeprefix("http://")
    host, port = url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head(house, *lines: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", f"Authorization: Bearer {house.key}", "Content-Type: application/json", *lines, "", ""]).encode()


async def test_a_body_that_never_ends_is_given_up_after_its_deadline(house):
    await house.open(config='[server]\nbody_timeout = "50ms"\n')
    answer = await raw(house, head(house, "Content-Length: 100", "Connection: close") + b'{"model"')
    assert status_of(answer) == 408
    assert b"body_timeout" in answer


async def test_chunked_nonsense_is_refused(house):
    await house.open()
    answer = await raw(house, head(house, "Transfer-Encoding: chunked", "Connection: close") + b"zz\r\nnonsense\r\n")
    assert status_of(answer) == 400
    assert b"invalid_request" in answer
    assert house.one.requests == []


async def test_a_header_of_100_kb_is_refused(house):
    await house.open()
    answer = await raw(house, head(house, "X-Big: " + "x" * 100_000))
    assert status_of(answer) == 431
    assert b"headers_too_large" in answer


@pytest.mark.parametrize("request_", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_not_http_gets_an_answer_that_repeats_nothing(house, request_):
    await house.open()
    answer = await raw(house, request_)
    assert status_of(answer) == 400
    assert b"GARBAGE" not in answer


@pytest.mark.parametrize("framing", [("Content-Length: 5", "Transfer-Encoding: chunked"), ("Content-Length: 5", "Content-Length: 6"), ("Transfer-Encoding: xchunked",)])
async def test_a_request_framed_in_two_ways_is_refused(house, framing):
    """Request smuggling: two servers that disagree where a request ends."""
    await house.open()
    answer = await raw(house, head(house, *framing) + b"0\r\n\r\n")
    assert status_of(answer) == 400
    assert house.one.requests == []


async def test_a_compressed_body_is_refused_not_guessed_at(house):
    await house.open()
    status, error = await post(house, b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert (status, error["error"]["code"]) == (400, "invalid_request")


async def test_a_body_that_is_not_called_json_is_refused(house):
    """A browser may send a form or plain text anywhere without asking; JSON it may not."""
    await house.open()
    status, error = await post(house, json.dumps(GOOD).encode(), **{"Content-Type": "text/plain"})
    assert (status, error["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/v1/nothing", 404, "unknown_url"), ("GET", CHAT, 405, "method_not_allowed"), ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ("POST", "/v1/chat/completions/", 404, "unknown_url"), ("POST", "/v1/chat%2fcompletions", 404, "unknown_url"),
    ("POST", "//v1/chat/completions", 404, "unknown_url"), ("GET", "/", 404, "unknown_url"),
])
async def test_a_wrong_path_or_method_gets_the_dialects_own_error(house, method, path, status, code):
    await house.open()
    answer = await raw(house, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == status
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == code


@pytest.mark.parametrize("path", ["/-/calls", "/-/calls/call_x", "/-/nothing"])
async def test_control_endpoints_are_closed_without_the_admin_token_and_speak_rfc_9457(house, path):
    await house.open()
    session = await house.http()
    for headers in ({}, {"Authorization": f"Bearer {house.key}"}, {"Authorization": "Basic YWRtaW4="}):
        async with session.get(path, headers=headers) as answer:
            assert answer.status == (404 if path == "/-/nothing" else 401)
            assert answer.content_type == "application/problem+json"
            assert set(await answer.json()) >= {"type", "title", "status", "detail", "code"}


async def test_a_wrong_header_of_ours_is_refused_by_name(house):
    await house.open()
    status, error = await post(house, json.dumps(GOOD).encode(), **{"X-Lockgate-Session": "a b"})
    assert status == 400
    assert "X-Lockgate-Session" in error["error"]["message"]
