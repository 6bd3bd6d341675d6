"""What a chunk says is counted in bytes, whatever a provider puts where."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.text_size import text_size


def chunk(*choices):
    return {"id": "an id", "object": "chat.completion.chunk", "choices": list(choices)}


@pytest.mark.parametrize(("body", "size"), [
    (chunk({"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}), 5),
    (chunk({"delta": {"content": "hé€😀"}}), 1 + 2 + 3 + 4),
    (chunk({"delta": {"content": "ab", "reasoning_content": "cde", "refusal": "f"}}), 6),
    (chunk({"delta": {"content": "ab"}}, {"index": 1, "delta": {"content": "c"}}), 3),
    (chunk({"delta": {"tool_calls": [{"index": 0, "id": "call_abc", "type": "function", "function": {"name": "run", "arguments": '{"a":1}'}}]}}), 10),
    (chunk({"text": "abc", "index": 0}), 3),
    (chunk({"message": {"role": "assistant", "content": "whole"}}), 5),
    (chunk({"delta": {"content": [{"type": "text", "text": "ab"}, {"type": "thinking", "thinking": "cd"}]}}), 4),
    (chunk({"delta": {"content": None}}), 0), (chunk({"delta": {"role": "assistant", "content": ""}}), 0), (chunk(), 0),
    (chunk({"delta": {"content": "a\ud800"}}), 2), (chunk({"delta": {"content": 5, "x": True, "y": 1.5}}), 0),
    ({"choices": []}, 0), ({"choices": None}, 0), ({"choices": {"delta": {"content": "a"}}}, 0), ({}, 0), (chunk(None, "a", ["b"]), 0),
    (chunk({"delta": "abc"}), 3), (chunk({"logprobs": {"content": "abc"}}), 0), ({"usage": {"note": "abc"}, "choices": []}, 0),
])
def test_the_models_own_words_are_counted_and_those_of_the_protocol_are_not(body, size):
    assert text_size(body) == size


@pytest.mark.parametrize("wrap", [lambda inner: {"x": inner}, lambda inner: [inner]])
def test_a_deep_chunk_is_looked_at_as_far_as_any_provider_writes(wrap):
    value = "abc"
    for _ in range(8):
        value = wrap(value)
    assert text_size(chunk({"delta": value})) == 3
    for _ in range(5000):
        value = wrap(value)
    assert text_size(chunk({"delta": value})) == 0


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["delta", "message", "text", "content", "choices", "index", "x"]), inner, max_size=3), max_leaves=15)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["choices", "x"]), JSON, max_size=2))
def test_any_chunk_has_a_size_and_not_more_than_it_is_written_with(body):
    assert 0 <= text_size(body) <= len(json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass"))
