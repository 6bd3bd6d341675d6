"""No secret and, where asked, no person's words reach a row."""

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import ToolUse
from gateway.secret import Secret
from gateway.store.scrub import Scrubber, reduce_body

KEY = "lgk_AbC123dEf456_" + "x9" * 16
PROVIDER = 'sk-"quoted\\/ä-0123456789'

_values = st.text(min_size=8, max_size=40).filter(lambda value: value not in "[secret]" and value.isprintable())


@given(st.lists(_values, min_size=1, max_size=4), st.text(max_size=30), st.text(max_size=30))
def test_no_known_secret_survives_in_text_bytes_or_json(values: list[str], before: str, after: str) -> None:
    scrubber = Scrubber([Secret(value) for value in values])
    for value in values:
        if value in before + after or any(value in "[secret]" + other for other in (before, after)):
            continue
        plain = f"{before} {value} {after}"
        assert value not in scrubber.text(plain)
        for ascii_only in (True, False):
            body = json.dumps({"k": plain}, ensure_ascii=ascii_only)
            assert json.dumps(value, ensure_ascii=ascii_only)[1:-1] not in scrubber.text(body)
        encoded = orjson.dumps(plain)
        assert orjson.dumps(value)[1:-1] not in scrubber.bytes(encoded)


def test_secrets_are_replaced_where_they_stand() -> None:
    scrubber = Scrubber([Secret(PROVIDER), Secret("short"), Secret(PROVIDER + "-longer")])
    assert scrubber.text(f"a {PROVIDER}-longer b {PROVIDER} c short") == "a [secret] b [secret] c short"
    slashed = json.dumps(PROVIDER).replace("/", "\\/")
    assert scrubber.text(slashed) == '"[secret]"'
    assert scrubber.bytes(f"x{PROVIDER}x".encode()) == b"x[secret]x"


LONG = "sk-" + "".join(map(str, range(10, 27)))


@pytest.mark.parametrize("length", range(len(LONG) // 2 + 1, len(LONG)))
def test_a_secret_that_the_texts_end_cuts_off_is_replaced(length: int) -> None:
    scrubber = Scrubber([Secret(LONG[:14] + "another"), Secret(LONG), Secret("other" * 9)])
    for before in ("", "the key ", f"{LONG} and {LONG[:12]}"):
        assert scrubber.text(before + LONG[:length]) == before.replace(LONG, "[secret]") + "[secret]"
        assert scrubber.bytes((before + LONG[:length]).encode()) == before.replace(LONG, "[secret]").encode() + b"[secret]"


@pytest.mark.parametrize("length", range(12, len(LONG) // 2 + 1))
def test_whoever_guesses_at_a_secret_is_not_told_that_a_beginning_is_right(length: int) -> None:
    """Where something repeats what a caller writes, every letter more could be tried until the whole secret is known."""
    scrubber = Scrubber([Secret(LONG)])
    assert scrubber.text(LONG[:length]) == LONG[:length]
    assert scrubber.bytes(LONG[:length].encode()) == LONG[:length].encode()


def test_a_beginning_that_is_short_or_not_at_the_end_is_text() -> None:
    scrubber = Scrubber([Secret(LONG), Secret("password")])
    for text in (LONG[:11], f"{LONG[:14]} is how it begins", "passwor"):
        assert scrubber.text(text) == text
        assert scrubber.bytes(text.encode()) == text.encode()
    assert scrubber.text("the password") == "the [secret]"


def test_a_virtual_key_that_the_texts_end_cuts_off_is_replaced() -> None:
    assert Scrubber([]).text(f"{KEY[:20]} {KEY[:-1]}") == f"{KEY[:20]} [secret]"
    assert Scrubber([]).bytes(KEY[:18].encode()) == b"[secret]"
    assert Scrubber([]).text(KEY[:17]) == KEY[:17]


def test_a_field_of_a_record_that_ends_within_a_secret_is_scrubbed(samples: ModuleType) -> None:
    record = replace(samples.completed(1), route=LONG[:20])
    assert Scrubber([Secret(LONG)]).record(record).route == "[secret]"


def test_every_virtual_key_is_replaced_also_one_that_nobody_knows() -> None:
    scrubber = Scrubber([])
    assert scrubber.text(f"Bearer {KEY}, {KEY}") == "Bearer [secret], [secret]"
    assert scrubber.bytes(f'{{"k":"{KEY}"}}'.encode()) == b'{"k":"[secret]"}'
    innocent = "lgk_ is what keys begin with, lgk_short_key is none"
    assert scrubber.text(innocent) == innocent


def test_text_without_secrets_is_the_same_object() -> None:
    scrubber = Scrubber([Secret(PROVIDER)])
    text, data = "nothing here", b"nothing here"
    assert scrubber.text(text) is text
    assert scrubber.bytes(data) is data
    assert PROVIDER not in repr(scrubber)


@pytest.mark.parametrize("hide", [
    lambda record: replace(record, route=KEY),
    lambda record: replace(record, message=f"unknown model {KEY}"),
    lambda record: replace(record, labels=("a", KEY)),
    lambda record: replace(record, finish_reasons=(KEY,)),
    lambda record: replace(record, reasons=({"rule": "r", "message": f"saw {KEY}"},)),
    lambda record: replace(record, origin=replace(record.origin, session=KEY)),
    lambda record: replace(record, origin=replace(record.origin, run=KEY, step=KEY, traceparent=KEY)),
    lambda record: replace(record, origin=replace(record.origin, tags={KEY: "v", "k": KEY})),
    lambda record: replace(record, attempts=(replace(record.attempts[0], message=KEY),)),
    lambda record: replace(record, verdicts=({"rule": "r", "reasons": [{"values": {"tool.args": {"to": KEY}}}]},)),
    lambda record: replace(record, answer_labels=(KEY,)),
    lambda record: replace(record, tool_uses=(ToolUse(record.id, KEY, "t", "model", {}, released=True, at_ns=1),)),
    lambda record: replace(record, tool_uses=(ToolUse(record.id, "i", KEY, "model", {}, released=True, at_ns=1),)),
    lambda record: replace(record, tool_uses=(ToolUse(record.id, "i", "t", "model", {"a": [{KEY: KEY}]}, released=True, at_ns=1),)),
    lambda record: replace(record, tool_results=(("i", f"it is {KEY}"),)),
])
def test_a_record_is_scrubbed_wherever_others_can_write(hide: Any, samples: ModuleType) -> None:
    scrubbed = Scrubber([]).record(hide(samples.completed(1)))
    assert KEY not in repr(scrubbed)
    assert "[secret]" in repr(scrubbed)
    assert type(scrubbed.labels) is tuple


@pytest.mark.parametrize("name", ["reasons", "verdicts", "tool_uses"])
def test_a_secret_with_marks_that_are_escaped_is_found_in_nested_values(samples: ModuleType, name: str) -> None:
    held: Any = {"values": [PROVIDER]}
    value = ToolUse("c", "i", "t", "model", held, released=True, at_ns=1) if name == "tool_uses" else held
    scrubbed = Scrubber([Secret(PROVIDER)]).record(replace(samples.completed(1), **{name: (value,)}))
    found = getattr(scrubbed, name)[0]
    assert (found.args if name == "tool_uses" else found) == {"values": ["[secret]"]}


def test_a_record_without_secrets_is_the_same_object(samples: ModuleType) -> None:
    record = samples.completed(1)
    assert Scrubber([Secret(PROVIDER)]).record(record) is record


BODY = {
    "model": "gpt-4o", "temperature": 0.5, "stream": True, "user": "bob@example.com",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "name": "Bob", "content": [{"type": "text", "text": "My secret plan"}, {"type": "image_url", "image_url": {
            "url": "data:image/png;base64,AAAA", "detail": "low"}}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "send_mail", "arguments": '{"to":"bob"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sent"},
    ],
    "tools": [{"type": "function", "function": {"name": "send_mail", "description": "Sends.", "parameters": {
        "type": "object", "properties": {"to": {"type": "string"}}}}}],
    "metadata": {"type": "private", "id": "bob", "role": "boss"},
    "input": [[1, 2, 3], [4.5]], "logit_bias": {"50256": -100},
}


def test_redacted_bodies_keep_their_shape_and_lose_what_people_wrote() -> None:
    reduced = reduce_body(BODY, "redacted")
    assert reduced is not None
    body = orjson.loads(reduced)
    assert (body["model"], body["temperature"], body["stream"], body["user"]) == ("gpt-4o", 0.5, True, "[redacted: 15 characters]")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert body["messages"][0]["content"] == "[redacted: 8 characters]"
    assert body["messages"][1]["name"] == "[redacted: 3 characters]"
    assert body["messages"][1]["content"][1] == {"type": "image_url", "image_url": {"url": "[redacted: 26 characters]", "detail": "low"}}
    assert body["messages"][2]["content"] is None
    assert body["messages"][2]["tool_calls"][0] == {
        "id": "call_1", "type": "function", "function": {"name": "send_mail", "arguments": "[redacted: 12 characters]"}}
    assert body["tools"][0]["function"]["name"] == "send_mail"
    assert body["metadata"] == {
        "type": "[redacted: 7 characters]", "id": "[redacted: 3 characters]", "role": "[redacted: 4 characters]"}
    assert body["input"] == ["[redacted: 3 numbers]", "[redacted: 1 numbers]"]
    assert body["logit_bias"] == {"50256": -100}
    for word in (b"kind", b"plan", b"Bob", b"bob", b"AAAA", b"Sends", b"private"):
        assert word not in reduced


def test_a_sentence_where_a_word_of_the_protocol_belongs_is_redacted() -> None:
    assert reduce_body({"type": "my deepest fear", "role": "x" * 500}, "redacted") == (
        b'{"type":"[redacted: 15 characters]","role":"[redacted: 500 characters]"}')


_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text(alphabet="äöü ", min_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["role", "type", "content", "name", "function", "x"]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(alphabet="abc", max_size=3), _json))
def test_no_sentence_survives_redaction(body: dict[str, Any]) -> None:
    reduced = reduce_body(body, "redacted")
    assert reduced is not None
    assert not set(reduced.decode()) & set("äöü")


def test_no_text_under_keys_that_are_no_protocols_survives_redaction() -> None:
    """A tool's arguments have keys of their own: an `id` is a customer's there."""
    body = {"id": "123-45-6789", "type": "passport", "amount": 5, "json": {"name": "Bob"}}
    assert reduce_body(body, "redacted", invented=True) == (
        b'{"id":"[redacted: 11 characters]","type":"[redacted: 8 characters]","amount":5,"json":{"name":"[redacted: 3 characters]"}}')


def test_the_other_modes_keep_all_or_nothing() -> None:
    full = reduce_body(BODY, "full")
    assert full is not None
    assert orjson.loads(full) == BODY
    assert reduce_body(BODY, "none") is None


def test_a_body_deeper_than_any_that_is_let_in_is_not_walked_to_its_end() -> None:
    deep: Any = "word"
    for _ in range(600):
        deep = [deep]
    reduced = reduce_body({"content": deep}, "redacted")
    assert reduced is not None
    assert b"[redacted: too deep]" in reduced


def test_of_a_huge_body_not_even_the_shape_is_kept() -> None:
    """Every call would wait for it to be made."""
    many: list[dict[str, Any]] = [{} for _ in range(10_001)]
    for body in ({"a": many}, {"a": [[], many]}, {f"k{n}": "x" for n in range(10_001)}):
        kept = reduce_body(body, "redacted", invented=True)
        assert kept is not None
        assert b"[redacted: 10001 values]" in kept
        assert len(kept) < 100


def test_a_person_s_token_is_scrubbed_as_a_key_is():
    token = "lgp_AbC123dEf456_" + "x9" * 16
    scrubber = Scrubber(())
    assert scrubber.text(f"a {token} b") == "a [secret] b"
    assert scrubber.bytes(f"a {token} b".encode()) == b"a [secret] b"
    assert scrubber.text(f"cut {token[:-5]}") == "cut [secret]"
    assert scrubber.text("lgp_ is what tokens begin with") == "lgp_ is what tokens begin with"
