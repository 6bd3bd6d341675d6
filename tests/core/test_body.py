"""Reading a body: every text, every tool, every limit that is in it, or the plain statement that it cannot be read."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Principal
from gateway.core.body import (
    MAX_TOOL_NAME,
    MAX_TOOLS,
    MAX_VALUES,
    UnreadableFactError,
    bounded,
    max_tokens,
    messages,
    params,
    strings,
    texts,
    tools_offered,
    weight,
)


def call(body: Any, operation: str = "chat") -> Call:
    return Call("call_1", Principal("key_1"), "openai", operation, "fast", body, stream=False, size=9, received_ns=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**65, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "type", "function", "custom", "content", "text", "tools", "tool_calls", "arguments", "x"]), inner, max_size=4),
    max_leaves=12)
BODIES = st.dictionaries(st.sampled_from(
    ["messages", "prompt", "input", "suffix", "max_tokens", "max_completion_tokens", "tools", "functions", "temperature", "x"]), JSON)


@settings(deadline=None)
@given(body=BODIES, operation=st.sampled_from(["chat", "completions", "embeddings", "tool"]))
def test_a_body_is_read_or_it_is_said_that_it_cannot_be(body: dict[str, Any], operation: str) -> None:
    """Nothing but the one error may come out: anything else would end a call as a defect of the gateway."""
    for read in (messages, texts, max_tokens, params, lambda asked: tools_offered(asked.body)):
        try:
            read(call(body, operation))
        except UnreadableFactError:
            continue


@given(JSON)
def test_the_texts_of_a_value_are_all_of_them_in_the_order_they_stand(value: Any) -> None:
    """Compared with the definition, by recursion: keys count, as a tool reads them too."""

    def every(of: Any) -> list[str]:
        match of:
            case str():
                return [of]
            case list():
                return [text for item in of for text in every(item)]
            case dict():
                return [*of, *(text for item in of.values() for text in every(item))]
            case _:
                return []

    assert list(strings(value)) == every(value)


def test_values_nested_deeper_than_pythons_stack_are_read() -> None:
    """What cannot be walked could not be judged."""
    value: Any = "deep"
    for _ in range(5000):
        value = [{"k": value}]
    assert list(strings(value)) == ["k"] * 5000 + ["deep"]


@pytest.mark.parametrize("value", ["900", True, 1.0, [], {}, 2**63, -2**63 - 1, float("nan")])
def test_a_token_limit_that_is_no_64_bit_integer_is_unreadable(value: Any) -> None:
    """A guess would be a wrong value that a deny rule compares."""
    for key in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(UnreadableFactError):
            max_tokens(call({key: value}))


def test_the_larger_of_the_two_token_limits_counts() -> None:
    """Which of them a provider obeys is the provider's choice."""
    assert max_tokens(call({"max_tokens": 5, "max_completion_tokens": 900})) == 900
    assert max_tokens(call({"max_tokens": 901, "max_completion_tokens": 5})) == 901
    assert max_tokens(call({"max_tokens": None})) == 0


def test_messages_that_are_no_list_are_unreadable() -> None:
    """A map has a size too: a rule would compare nonsense."""
    with pytest.raises(UnreadableFactError):
        messages(call({"messages": {"role": "user"}}))


def test_the_arguments_of_a_tool_are_not_mistaken_for_a_chat() -> None:
    """A tool may well have an argument called `messages` or `max_tokens`, of any type; all its texts are there all the same."""
    judged = call({"messages": "all of them", "max_tokens": "many", "to": ["a", {"b": "c"}]}, "tool")
    assert messages(judged) == []
    assert max_tokens(judged) == 0
    assert texts(judged) == ["messages", "max_tokens", "to", "all of them", "many", "a", "b", "c"]


def test_an_object_with_more_values_than_an_engine_should_take_at_once_is_unreadable() -> None:
    """Converting it is one step that nothing can interrupt. Counted are values at every depth, and no further than needed."""
    assert bounded({"a": [1] * (MAX_VALUES - 1)}) == {"a": [1] * (MAX_VALUES - 1)}
    many: list[Any] = [
        [0] * (MAX_VALUES + 1), [[0]] * (MAX_VALUES // 2 + 1), {"a": {"b": [0] * MAX_VALUES}}, {str(n): {} for n in range(MAX_VALUES + 1)}]
    for value in many:
        with pytest.raises(UnreadableFactError, match="more than 100000 values"):
            bounded(value)


@pytest.mark.parametrize(("value", "least", "most"), [
    ("x" * 100, 100, 100), ({"key" * 10: "x" * 10}, 40, 60), ([1] * 10, 40, 60), (None, 1, 8), ({"a": [{"b": "x" * 50}] * 3}, 150, 200)])
def test_the_weight_of_a_value_is_about_its_bytes(value: Any, least: int, most: int) -> None:
    """It decides whether judging is done beside the event loop."""
    assert least <= weight(value, 10**9) <= most


def test_a_heavy_value_is_not_weighed_to_its_end() -> None:
    """The answer is known long before."""
    assert 1000 < weight(["x" * 100] * 10**6, 1000) < 2000


def test_params_are_the_body_without_its_bulk() -> None:
    """They stay small whatever the conversation weighs."""
    assert params(call({"temperature": 1, "messages": [], "input": "", "prompt": "", "tools": [], "functions": []})) == {"temperature": 1}


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(("body", "found"), [
    ({}, []),
    ({"messages": None, "prompt": None, "input": None}, []),
    (said({"role": "user", "content": "a"}, {"role": "tool", "content": "b"}), ["a", "b"]),
    (said({"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"text": "c"}]}), ["a", "b", "c"]),
    (said({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}, {"type": "thinking", "thinking": "b"}]}), ["a", "b"]),
    (said({"content": "a", "reasoning_content": "b", "reasoning": "c", "refusal": None}), ["a", "b", "c"]),
    (said({"content": None, "refusal": None, "tool_calls": None, "function_call": None}, {}), []),
    (said({"content": [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "input_audio", "input_audio": {}}, {}]}), []),
    (said({"content": [{"type": "tool_result", "content": [{"type": "text", "text": "a"}]}, {"content": "b"}]}), ["a", "b"]),
    (said({"refusal": "a", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "b"}}]}), ["b", "a"]),
    (said({"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "a"}}, {"function": None}, {"function": {}}]}), ["a"]),
    (said({"function_call": {"name": "f", "arguments": "a"}}), ["a"]),
    ({"prompt": "a"}, ["a"]),
    ({"prompt": ["a", "b"], "suffix": "c"}, ["a", "b", "c"]),
    ({"input": "a"}, ["a"]),
    ({"input": ["a", "b"]}, ["a", "b"]),
    ({**said({"content": "a"}), "prompt": "b", "input": ["c"]}, ["a", "b", "c"]),
])
def test_texts_are_what_the_caller_wrote_whatever_the_operation(body: Any, found: list[str]) -> None:
    """A rule against a word holds for chat, completions and embeddings, and for contents in parts."""
    for operation in ("chat", "completions", "embeddings"):
        assert texts(call(body, operation)) == found


@pytest.mark.parametrize("body", [
    {"messages": "a"}, said("a"), said(None), said({"content": 5}), said({"content": {"type": "text", "text": "a"}}),
    said({"content": ["a"]}), said({"content": [None]}), said({"content": [["a"]]}), said({"content": [{"type": "text", "text": 5}]}),
    said({"content": [{"type": "text", "text": None}]}), said({"content": [{"text": {"value": "a"}}]}), said({"content": [{"content": 5}]}),
    said({"content": [{"refusal": ["a"]}]}), said({"content": [{"thinking": {}}]}), said({"refusal": {}}), said({"reasoning": ["a"]}), said({"tool_calls": {"function": {}}}), said({"tool_calls": ["a"]}),
    said({"tool_calls": [{"function": "a"}]}), said({"tool_calls": [{"function": {"arguments": {"a": "b"}}}]}), said({"tool_calls": 0}),
    said({"function_call": "auto"}), {"prompt": 5}, {"prompt": [1, 2]}, {"prompt": [[1, 2]]}, {"prompt": ["a", 1]}, {"prompt": {"a": "b"}},
    {"suffix": 5}, {"input": [1, 2]}, {"input": [[1]]}, {"input": [{"text": "a"}]}, {"input": True}])
def test_texts_that_cannot_be_read_are_unreadable_as_a_whole(body: Any) -> None:
    """Tokens and malformed contents are no way round a rule on texts."""
    with pytest.raises(UnreadableFactError):
        texts(call(body))


def test_contents_within_contents_have_no_depth_that_breaks_anything() -> None:
    """Nothing but the one error may come out, and a body may be nested deeper than Python's stack."""
    content: Any = "deep"
    for _ in range(5000):
        content = [{"content": content}]
    assert texts(call(said({"content": content}))) == ["deep"]


@pytest.mark.parametrize(("tools", "names"), [
    ([{"type": "function", "function": {"name": "bank.pay"}}], ("bank.pay",)),
    ([{"type": "custom", "custom": {"name": "shell"}}], ("shell",)),
    ([{"type": "function", "name": "flat", "parameters": {"type": "object"}}], ("flat",)),
    ([{"type": "web_search"}], ("web_search",)),
    ([{"type": "x", "function": {"name": "hidden"}}], ("hidden",)),
    ([{"type": "function", "function": {"name": "bank.pay"}, "name": "harmless"}], ("harmless", "bank.pay")),
    ([{"type": "function", "function": {"name": "f"}}] * 3, ("f",)),
    ([{"type": "namespace", "tools": [{"name": "bank.pay"}]}], ("namespace", "bank.pay")),
    ([{"name": "a", "tools": None, "function": {"functions": [{"name": "b", "tools": [{"name": "c"}]}]}}, {"name": "d"}], ("a", "d", "b", "c")),
    ([{"name": "a", "function_declarations": [{"name": "b"}]}], ("a", "b")),
])
def test_every_name_that_an_upstream_could_read_is_offered(tools: Any, names: tuple[str, ...]) -> None:
    """A tool must not hide from a rule behind a second name or an unusual shape."""
    assert tools_offered({"tools": tools}) == names


def test_the_older_functions_are_tools_too() -> None:
    """Providers still obey them, so leaving `tools` out is no way round a rule."""
    assert tools_offered({"functions": [{"name": "bank.pay", "parameters": {}}], "tools": []}) == ("bank.pay",)


@pytest.mark.parametrize("tools", [
    {"name": "x"}, "x", 5, [5], [None], [{}], [{"type": []}], [{"type": "function"}], [{"type": "function", "name": 5}],
    [{"type": "function", "Function": {"Name": "bank.pay"}}], [{"type": "function", "function": {"name": None}}],
    [{"name": "x" * (MAX_TOOL_NAME + 1)}], [{"name": "x"}] * (MAX_TOOLS + 1),
    [{"name": "x", "tools": {"name": "bank.pay"}}], [{"name": "x", "tools": ["bank.pay"]}], [{"name": "x", "tools": [{}]}],
    [{"name": "x", "tools": [{"name": "x"}] * 2}] * (MAX_TOOLS // 2)])
def test_tools_without_readable_names_are_unreadable_as_a_whole(tools: Any) -> None:
    """Skipping the odd one would be a way round every rule on tools."""
    with pytest.raises(UnreadableFactError):
        tools_offered({"tools": tools})
