"""The journal shows a streamed answer as the plain one it amounts to."""

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import assemble
from gateway.wire.assemble import Assembler


def assembled(*chunks: dict[str, Any]) -> dict[str, Any]:
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.body()


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def test_text_deltas_become_one_message_with_its_finish_reason_and_usage():
    body = assembled(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"),
        {"id": "c1", "choices": [], "usage": {"prompt_tokens": 3}},
    )
    assert body == {
        "id": "c1", "object": "chat.completion", "model": "m", "usage": {"prompt_tokens": 3},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    }


def test_parallel_tool_calls_keep_their_order_and_their_own_arguments():
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **fields}]}

    body = assembled(
        chunk(call(0, id="a", type="function", function={"name": "f", "arguments": ""})),
        chunk(call(1, id="b", type="function", function={"name": "g", "arguments": "{"})),
        chunk(call(0, function={"arguments": "{}"})), chunk(call(1, function={"arguments": "}"})), chunk({}, "tool_calls"),
    )
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_several_choices_and_plain_completions_stay_apart():
    body = assembled(
        {"object": "text_completion", "choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "x"}]},
        {"object": "text_completion", "choices": [{"index": 1, "text": "y", "finish_reason": "stop"}, {"index": 0, "text": "b"}]},
    )
    assert body == {"object": "text_completion", "choices": [{"index": 0, "text": "ab"}, {"index": 1, "text": "xy", "finish_reason": "stop"}]}


def test_a_repeated_id_or_name_is_not_glued_together_and_null_erases_nothing():
    function = {"name": "f", "arguments": "1"}
    delta = {"tool_calls": [{"index": 0, "id": "a", "function": function}], "role": "assistant", "function_call": None}
    body = assembled(chunk(delta), chunk({**delta, "role": None}))
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["function_call"] is None
    assert message["tool_calls"] == [{"id": "a", "function": {"name": "f", "arguments": "11"}}]


def test_text_beyond_the_bound_is_dropped_and_the_record_says_so(monkeypatch):
    """A provider that never stops must not fill the memory."""
    monkeypatch.setattr(assemble, "MOST_CHARACTERS", 1000)
    body = assembled(chunk({"content": "12345"}), chunk({"content": "6" * 900}), chunk({"content": "7"}, "stop"))
    assert body["choices"][0]["message"]["content"] == "12345"
    assert body["choices"][0]["finish_reason"] is None
    assert body["lockgate_truncated"] is True


@pytest.mark.parametrize("hostile", [
    lambda n: {f"field{n}": n},
    lambda n: {"choices": [{f"field{n}": None}]},
    lambda n: chunk({f"field{n}": n}),
    lambda n: chunk({"audio": {f"field{n}": {}}}),
    lambda n: chunk({"x": [n] * n}),
    lambda n: chunk({f"a{n}": {"tool_calls": [{"index": n} for n in range(9)]}}),
    lambda n: {"choices": [{"index": n, "delta": {"tool_calls": [{"index": m} for m in range(n)]}} for n in range(min(n, 20))]},
    lambda n: {"id": 1, "usage": {"prompt_tokens": "9" * n}},
])
def test_whatever_a_provider_never_stops_sending_is_bounded(monkeypatch, hostile):
    monkeypatch.setattr(assemble, "MOST_CHARACTERS", 4000)
    one_large = assembled({f"field{n}": "x" * n for n in range(1000)}, *map(hostile, range(9)))
    many = assembled(chunk({"content": "1"}), *map(hostile, range(1, 1500)), {"usage": {"prompt_tokens": "9" * 5000}})
    for body in (one_large, many):
        assert body["lockgate_truncated"] is True
        assert len(repr(body)) < 8000


def test_a_field_that_comes_with_every_chunk_counts_once(monkeypatch):
    """Log probabilities and usage are replaced by the next chunk's: a long answer with them is not cut short."""
    monkeypatch.setattr(assemble, "MOST_CHARACTERS", 3000)
    chunks = [
        {"id": f"c{n}", "choices": [{"index": 0, "delta": {"content": "a", "role": "assistant"}, "finish_reason": None,
            "logprobs": {"content": [{"token": "a", "logprob": -n}]}}], "usage": {"completion_tokens": n}}
        for n in range(1, 500)
    ]
    body = assembled(*chunks)
    assert "lockgate_truncated" not in body
    assert body["choices"][0]["message"] == {"content": "a" * 499, "role": "assistant"}
    assert body["choices"][0]["logprobs"] == {"content": [{"token": "a", "logprob": -499}]}
    assert body["usage"] == {"completion_tokens": 499}


def test_choices_past_the_most_that_are_told_apart_share_one_place():
    body = assembled(*(chunk({"content": "x"}, index=n) for n in range(assemble.MOST_SLOTS + 5)), chunk({"content": "y"}, index=3))
    assert len(body["choices"]) == assemble.MOST_SLOTS + 1
    assert body["choices"][-1]["message"]["content"] == "x" * 5
    assert body["choices"][3]["message"]["content"] == "xy"


@pytest.mark.parametrize("held", [5, None, "x", [1], {"content": "older "}])
def test_a_message_beside_a_delta_is_no_error(held):
    body = assembled({"choices": [{"index": 0, "message": held, "delta": {"content": "a"}}]}, chunk({"content": "b"}))
    assert body["choices"][0]["message"]["content"] == ("older ab" if isinstance(held, dict) else "ab")
    after = assembled({"choices": [{"index": 0, "delta": {"content": "a"}, "message": held}]}, chunk({"content": "b"}))
    assert after["choices"][0]["message"]["content"].endswith("b")


def test_the_chunks_themselves_are_not_changed():
    """They are still to be sent to the client."""
    first = {"choices": [{"message": {"content": "a", "audio": {"id": 1}}, "logprobs": {"x": 1}}]}
    assembled(first, chunk({"content": "b", "audio": {"id": 2}}), {"choices": [{"logprobs": {"x": 2}}]})
    assert first == {"choices": [{"message": {"content": "a", "audio": {"id": 1}}, "logprobs": {"x": 1}}]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "delta", "index", "tool_calls", "function", "content", "text", "usage", "object", "id", "message"]), inner, max_size=4),
    max_leaves=25,
)


DELTAS = st.dictionaries(st.sampled_from(["content", "tool_calls", "function", "message"]), JSON, max_size=3)
CHOICE = st.dictionaries(st.sampled_from(["delta", "message", "text", "index"]), DELTAS | JSON, max_size=4)
CHUNK = st.fixed_dictionaries({}, optional={"choices": st.lists(CHOICE | JSON, max_size=3) | JSON, "usage": JSON, "object": JSON, "id": JSON})


@settings(max_examples=300)
@given(st.lists(CHUNK, max_size=5))
def test_nothing_a_provider_sends_breaks_it(chunks):
    sent = deepcopy(chunks)
    json.dumps(assembled(*chunks))
    assert chunks == sent


def test_a_field_that_changes_its_type_keeps_its_last_shape():
    body = assembled(chunk({"content": ["x"], "audio": 1, "tool_calls": "no"}), chunk({"content": "y", "audio": {"id": 2}, "tool_calls": [1, {"index": 0}]}))
    assert body["choices"][0]["message"] == {"content": "y", "audio": {"id": 2}, "tool_calls": [{}]}
    assert assembled({"choices": [1, {"delta": 3, "text": 4}]})["choices"] == [{"delta": 3, "text": 4}]
