"""What the rules saw is what the provider received, field for field, whatever a body holds; the same after they have changed it."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import asking
from gateway.core.facts import FACTS
from gateway.judge import Judged, judge

SEEN = """
[[rule]]
id = "seen"
when = 'request.body.size() >= 0 && "texts" in tags && sha256(texts.join("|")) == tags["texts"]'
effect = "log"
label = "the-same-texts"
"""
CHANGING = SEEN + """
[[rule]]
id = "house-style"
when = 'request.operation == "chat"'
effect = "set"
set = { values = { temperature = 0.2, "/metadata/note" = "set" }, clamp = { max_tokens = { max = 100 } }, system = "Be brief." }

[[rule]]
id = "no-mail"
effect = "redact"
redact = { detectors = ["email"], fields = ["/user"] }
"""
NUL_TO_RULES = "\ufffd"  # one engine ends a text at its first NUL, so rules are given another letter for it
FACT = {fact.name: fact for fact in FACTS}


class Recorder:
    """Keeps what was judged last: what is left of the call, as the facts of the rules tell it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.body: Any = None
        self.texts: list[str] = []
        monkeypatch.setattr(asking, "judge", self.judge)

    def judge(self, bundle: Any, question: Any) -> Judged:
        judged = judge(bundle, question)
        if question.phase == "request":
            self.body = FACT["request.body"].read(judged.question)
        return judged


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


async def send(house: Any, raw: bytes, path: str = "chat/completions", tags: str = "") -> tuple[int, str]:
    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json", **({"X-Lockgate-Tags": tags} if tags else {})}
    async with session.post(f"/v1/{path}", data=raw, headers=headers) as answer:
        return answer.status, await answer.text()


def strictly(raw: bytes) -> Any:
    """The value of a JSON text in which every key stands once; numbers are kept as they are written."""
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), raw
        return dict(pairs)

    return json.loads(raw, object_pairs_hook=once)


def exactly(value: Any) -> Any:
    """The value with its types: 1, 1.0 and true are three things."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    return [exactly(item) for item in value] if isinstance(value, list) else (type(value).__name__, repr(value))


def same(received: Any, judged: Any) -> None:
    """The provider got what was judged, but for the name that the model has there and the usage of a stream that is always asked for."""
    if judged.get("stream"):
        judged = {**judged, "stream_options": {**(judged.get("stream_options") or {}), "include_usage": True}}
    assert exactly(strictly(received.raw)) == exactly({**judged, "model": "sim-fast"})


async def check(house: Any, recorder: Recorder, raw: bytes, path: str = "chat/completions") -> bool:
    """Send a body; whether it was let through. What is refused has not left."""
    before = len(house.one.requests)
    status, text = await send(house, raw, path)
    received = house.one.requests[before:]
    if not received:
        assert status in (400, 403), (status, text, raw)
        return False
    same(received[0], recorder.body)
    return True


# Keys that a reader could take for one that is judged, and that one itself twice; `raw` text goes into the body as it is.
HOSTILE = {
    "a key twice": b'{"model": "fast", "user": "a", "user": "b", "messages": [{"role": "user", "content": "x"}]}',
    "a key twice, once escaped": b'{"model": "fast", "user": "a", "\\u0075ser": "b", "messages": [{"role": "user", "content": "x"}]}',
    "messages twice": b'{"model": "fast", "messages": [{"role": "user", "content": "a"}], "messages": [{"role": "user", "content": "x"}]}',
    "content twice": b'{"model": "fast", "messages": [{"role": "user", "content": "a", "content": "x"}]}',
    "an argument twice": b'{"model": "fast", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"id": "c", "function": '
                         b'{"name": "a", "name": "b", "arguments": "{\\"a\\": 1, \\"a\\": 2}"}}]}]}',
    "a key in another case": b'{"model": "fast", "Messages": [{"role": "user", "content": "a"}], "messages": [{"role": "user", "content": "x"}]}',
    "a key with a long s": '{"model": "fast", "me\u017fsages": [{"role": "user", "content": "a"}], "messages": [{"role": "user", "content": "x"}]}'.encode(),
    "a key that looks alike": '{"model": "fast", "mes\u0455ages": [1], "us\u0435r": "a", "messages": [{"role": "user", "content": "x"}]}'.encode(),
    "a key with nothing in it": '{"model": "fast", "user\\u0000": "a", "us\u200ber": "b", "": "c", "messages": [{"role": "user", "content": "x"}]}'.encode(),
    "letters beyond the plane": '{"model": "fast", "messages": [{"role": "user", "content": "\\ud83d\\ude00 \U0001f600 \u202e e\u0301 \u00e9"}]}'.encode(),
    "half a letter": b'{"model": "fast", "messages": [{"role": "user", "content": "\\ud83d"}]}',
    "escapes of all kinds": b'{"model": "fast", "messages": [{"role": "user", "content": "\\u0041\\/\\b\\f\\n\\r\\t\\"\\\\\\u0000\\u007f"}]}',
    "numbers at the edges": b'{"model": "fast", "a": [9223372036854775807, -9223372036854775808, 18446744073709551615, 1e308, 5e-324, -0, -0.0, 0.1, 1.0, 1e2,'
                            b' 123456789.123456789, 0.30000000000000004, 1e-7, 9007199254740993], "messages": [{"role": "user", "content": "x"}]}',
    "a number too large": b'{"model": "fast", "a": 18446744073709551616, "messages": [{"role": "user", "content": "x"}]}',
    "a number beyond all": b'{"model": "fast", "a": 1e400, "messages": [{"role": "user", "content": "x"}]}',
    "no number": b'{"model": "fast", "a": NaN, "messages": [{"role": "user", "content": "x"}]}',
    "a limit as a fraction": b'{"model": "fast", "max_tokens": 10.0, "messages": [{"role": "user", "content": "x"}]}',
    "a limit that is true": b'{"model": "fast", "max_tokens": true, "messages": [{"role": "user", "content": "x"}]}',
    "two limits": b'{"model": "fast", "max_tokens": 5000, "max_completion_tokens": 7000, "messages": [{"role": "user", "content": "x"}]}',
    "deep": b'{"model": "fast", "a": ' + b"[" * 60 + b"1" + b"]" * 60 + b', "messages": [{"role": "user", "content": "x"}]}',
    "too deep": b'{"model": "fast", "a": ' + b"[" * 5000 + b"]" * 5000 + b', "messages": [{"role": "user", "content": "x"}]}',
    "huge": b'{"model": "fast", "messages": [{"role": "user", "content": "' + b"ada@example.org " * 60_000 + b'"}]}',
    "many messages": b'{"model": "fast", "messages": [' + b'{"role": "user", "content": "a@example.org"},' * 3000 + b'{"role": "user", "content": "x"}]}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "fast", "messages": [{"role": "user", "content": "x"}]}',
    "two bodies": b'{"model": "fast", "messages": [{"role": "user", "content": "x"}]}{"model": "fast"}',
    "bytes that are no text": b'{"model": "fast", "messages": [{"role": "user", "content": "\xff"}]}',
    "no fields but the message's": b'{"model": "fast", "user": "ada", "messages": [{"role": "user", "content": "x", "name": "ada@example.org"}]}',
    "parts": b'{"model": "fast", "messages": [{"role": "user", "content": [{"type": "text", "text": "ada@example.org"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}]}',
    "a stream": b'{"model": "fast", "stream": true, "stream_options": {"include_usage": false, "other": 1}, "messages": [{"role": "user", "content": "x"}]}',
}


@pytest.mark.parametrize("policies", [SEEN, CHANGING], ids=["unchanged", "changed"])
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_body_is_received_as_it_was_judged_or_not_at_all(house, recorder, raw, policies):
    await house.open(policies=policies)
    await check(house, recorder, raw)
    if house.one.requests and policies == CHANGING:
        received = house.one.requests[0].body
        assert (received["temperature"], received["metadata"], received["messages"][0]["content"]) == (0.2, {"note": "set"}, "Be brief.")
        assert received["max_tokens"] <= 100
        assert "@example.org" not in str([message.get("content") for message in received["messages"]])


@pytest.mark.parametrize("raw", [
    b'{"model": "fast", "prompt": ["a", "b"], "prompt": "ada@example.org", "Suffix2": 1}', b'{"model": "fast", "prompt": "x", "suffix": "ada@example.org"}'])
async def test_a_completion_is_received_as_it_was_judged(house, recorder, raw):
    await house.open(policies=CHANGING)
    assert await check(house, recorder, raw, "completions")
    assert b"example.org" not in house.one.requests[0].raw


async def test_an_embedding_is_received_as_it_was_judged(house, recorder):
    await house.open(policies=CHANGING)
    assert await check(house, recorder, b'{"model": "fast", "input": ["ada@example.org", "b"], "input": ["c", "ada@example.org"]}', "embeddings")
    assert house.one.requests[0].body["input"] == ["c", "[redacted:email]"]


class Pairs(list[Any]):
    """An object as it is written: its keys may stand in it more than once."""


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["ada@example.org", "\x00", "\u202e", "\ufeff", "'\"\\", "😀", "{}"])
KEYS = st.sampled_from(["user", "User", "us\u0435r", "metadata", "note", "a", "", "max_tokens", "max_completion_tokens", "temperature", "n0", "__proto__", "a.b", "a/b", "~"])
NUMBERS = st.integers(-2**63, 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0, -0.0, 1.0, 100, 101, 2**53 + 1])
VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | TEXT,
                      lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(KEYS | TEXT, inner), max_size=4).map(Pairs), max_leaves=12)


MESSAGE = st.tuples(st.sampled_from(["user", "system", "assistant", "developer"]), TEXT | st.lists(TEXT, min_size=1, max_size=3))


def written(value: Any, *, escaped: bool) -> str:
    """JSON as somebody may write it: with keys twice, and with escapes for any letter."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{written(key, escaped=not escaped)}: {written(item, escaped=escaped)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, escaped=escaped) for item in value) + "]"
    if isinstance(value, str) and escaped:
        units = value.encode("utf-16-be")
        return '"' + "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2)) + '"'
    return json.dumps(value, ensure_ascii=False)


def body(messages: list[tuple[str, Any]], more: list[tuple[str, Any]], *, escaped: bool) -> bytes:
    told = [Pairs([("content", text if isinstance(text, str) else [Pairs([("type", "text"), ("text", each)]) for each in text]), ("role", role)])
            for role, text in messages]
    return written(Pairs([*more, ("model", "fast"), ("messages", told)]), escaped=escaped).encode()


def texts_of(received: Any) -> list[str]:
    """The texts of a body that holds messages alone, read without the gateway's help."""
    contents = [message["content"] for message in received["messages"]]
    return [text for content in contents for text in ([content] if isinstance(content, str) else [part["text"] for part in content])]


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the house, where an example fails
@settings(derandomize=True, max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), more=st.lists(st.tuples(KEYS, VALUES), max_size=5), escaped=st.booleans())
async def test_whatever_a_body_holds_the_rules_see_what_is_sent(house, recorder, messages, more, escaped):
    """The second time the caller says what the provider received the first time, and a rule compares that with what it reads."""
    if house.session is None:
        await house.open(policies=SEEN)
    raw = body(messages, more, escaped=escaped)
    if not await check(house, recorder, raw):
        return
    text = "|".join(texts_of(house.one.requests[-1].body)).replace("\0", NUL_TO_RULES)
    digest = hashlib.sha256(text.encode()).hexdigest()
    await send(house, raw, tags=f"texts={digest}")
    assert (await house.calls(limit=1))[0]["labels"] == ["the-same-texts"]


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the house, where an example fails
@settings(derandomize=True, max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), more=st.lists(st.tuples(KEYS, VALUES), max_size=5), escaped=st.booleans())
async def test_whatever_a_body_holds_what_rules_make_of_it_is_what_is_sent(house, recorder, messages, more, escaped):
    if house.session is None:
        await house.open(policies=CHANGING)
    if await check(house, recorder, body(messages, more, escaped=escaped)):
        received = house.one.requests[-1].body
        assert received["temperature"] == 0.2
        assert received["metadata"]["note"] == "set"
        assert received.get("user", "[redacted:field]") == "[redacted:field]"
        assert "ada@example.org" not in texts_of(received)
