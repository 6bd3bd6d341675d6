"""The journal shows a streamed answer as the plain one it amounts to."""

from typing import Any

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
    monkeypatch.setattr(assemble, "MOST_CHARACTERS", 5)
    body = assembled(chunk({"content": "12345"}), chunk({"content": "6"}))
    assert body["choices"][0]["message"]["content"] == "12345"
    assert body["lockgate_truncated"] is True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "delta", "index", "tool_calls", "function", "content", "text", "usage", "object", "id"]), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=300)
@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "object", "id"]), JSON, max_size=4), max_size=5))
def test_nothing_a_provider_sends_breaks_it(chunks):
    assembled(*chunks)


def test_a_field_that_changes_its_type_keeps_its_last_shape():
    body = assembled(chunk({"content": ["x"], "audio": 1, "tool_calls": "no"}), chunk({"content": "y", "audio": {"id": 2}, "tool_calls": [{"index": 0}]}))
    assert body["choices"][0]["message"] == {"content": "y", "audio": {"id": 2}, "tool_calls": "no"}
    assert assembled({"choices": [1, {"delta": 3, "text": 4}]})["choices"] == [{"delta": 3, "text": 4}]
