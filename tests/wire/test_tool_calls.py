"""Tool calls in canonical bodies, whatever a model or a client makes of the format."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.tool_calls import (
    LEGACY,
    Proposed,
    UnreadableArgumentsError,
    misplaced,
    parsed_result,
    proposed,
    returned,
    rewritten,
    texts_within,
    with_contents,
)

FUNCTION: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": '{"amount": 1, "amount": 2}'}, "extra": True}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls -l"}}


def test_a_repeated_key_in_arguments_has_one_reading_and_no_other_leaves():
    """A reader that keeps the first of two keys would see an amount that no rule has judged."""
    call = proposed(FUNCTION)
    assert call == Proposed("c1", "pay", '{"amount": 1, "amount": 2}', "function")
    assert call.arguments() == {"amount": 2}
    assert rewritten(FUNCTION, call, call.arguments()) == {**FUNCTION, "function": {"name": "pay", "arguments": '{"amount":2}'}}


def test_free_text_of_a_custom_tool_is_judged_as_its_input():
    call = proposed(CUSTOM)
    assert call.arguments() == {"input": "ls -l"}
    assert rewritten(CUSTOM, call, {"input": "ls"})["custom"] == {"name": "run", "input": "ls"}


def test_the_older_form_goes_by_its_name_because_it_has_no_id():
    """One id for all of them would let the result of a refused call pass for that of another tool's."""
    held = {"name": "pay", "arguments": "{}"}
    call = proposed(held, LEGACY)
    assert (call.id, call.name, call.kind) == ("function_call:pay", "pay", LEGACY)
    assert rewritten(held, call, {"a": 1}) == {"name": "pay", "arguments": '{"a":1}'}


@pytest.mark.parametrize("entry", [
    {**FUNCTION, "type": "custom", "custom": {"name": "steal", "input": "all"}},
    {**FUNCTION, "Function": {"name": "steal", "arguments": "all"}},
    {**FUNCTION, "name": "steal", "ARGUMENTS": "all"},
    {**FUNCTION, "function": {**FUNCTION["function"], "Name": "steal", "INPUT": "all", "Arguments": "all"}}])
def test_whatever_else_a_reader_could_take_for_the_call_is_left_out(entry):
    """A reader that looks at the type first, or not at the case of names, has to see what was judged."""
    call = proposed(entry)
    made = rewritten(entry, call, call.arguments())
    assert "steal" not in str(made)
    assert (made["id"], made["type"], made["extra"]) == ("c1", "function", True)
    assert (made["function"]["name"], made["function"]["arguments"]) == ("pay", '{"amount":2}')


@pytest.mark.parametrize(("written", "read"), [({"amount": 1}, {"amount": 1}), (None, {})])
def test_arguments_that_are_an_object_already_are_taken_as_they_are(written, read):
    assert proposed({"function": {"name": "pay", "arguments": written}}).arguments() == read


@pytest.mark.parametrize("written", [[1], 1, True])
def test_arguments_of_another_kind_are_unreadable_and_not_none_at_all(written):
    with pytest.raises(UnreadableArgumentsError):
        proposed({"function": {"name": "pay", "arguments": written}}).arguments()


@pytest.mark.parametrize("choice", [
    {"message": {"content": "a"}, "tool_calls": [FUNCTION]},
    {"message": {"content": "a"}, "function_call": {"name": "pay"}},
    {"message": {"Tool_Calls": [FUNCTION]}},
    {"message": {"audio": {"tool_calls": [FUNCTION]}}},
    {"delta": {"tool_calls": [FUNCTION]}, "message": {}},
    {"Message": {"tool_calls": [FUNCTION]}, "message": {}}])
def test_a_call_in_a_place_where_no_rule_looks_is_seen(choice):
    assert misplaced(choice, "message")


@pytest.mark.parametrize("choice", [
    {"message": {"tool_calls": [FUNCTION], "function_call": {"name": "pay"}}},
    {"message": {"content": "tool_calls"}, "tool_calls": None, "function_call": {}},
    {"message": "tool_calls", "logprobs": {"content": []}}, {}])
def test_calls_in_their_own_place_are_in_no_other(choice):
    assert not misplaced(choice, "message")


def test_every_text_is_found_whatever_its_field_is_called():
    value = {"type": "text", "a": ["b", {"c": "d", "type": "x"}], "e": 1, "f": None}
    assert list(texts_within(value)) == ["b", "d"]


@pytest.mark.parametrize("written", ["", "  ", "{}"])
def test_no_arguments_are_an_empty_object(written):
    assert Proposed("", "t", written, "function").arguments() == {}


@pytest.mark.parametrize("written", ["{", "[1]", "1", '"x"', "nul", '{"a": NaN}', '{"a": 123456789012345678901234567890}', '{"a": "\ud800"}'])
def test_arguments_that_can_be_read_in_more_ways_or_none_are_unreadable(written):
    with pytest.raises(UnreadableArgumentsError) as caught:
        Proposed("", "t", written, "function").arguments()
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("entry", [None, 3, "x", [], {}, {"function": 3}, {"id": 7, "function": {"name": None, "arguments": {"a": 1}}}])
def test_what_has_no_shape_of_a_call_has_an_empty_name(entry):
    call = proposed(entry)
    assert call.name == ""
    assert isinstance(rewritten(entry if isinstance(entry, dict) else {}, call, {})["function"], dict)


def test_results_are_told_with_the_call_that_the_conversation_names():
    messages = [
        "not a message",
        {"role": "assistant", "tool_calls": [FUNCTION, CUSTOM]},
        {"role": "assistant", "tool_calls": "none"},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "tool", "tool_call_id": "c9", "content": [{"type": "text", "text": "a"}, "x", {"thinking": "b"}]},
        {"role": "function", "name": "old", "content": None},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": "1"},
        {"role": " Tool", "content": {"text": "c"}},
        {"role": "user", "tool_call_id": "c1", "content": "again"},
    ]
    found = list(returned(messages))
    assert [(each.place, each.id, each.name, each.text) for each in found] == [
        (3, "c1", "pay", "done"), (4, "c9", "", "a\nx\nb"), (5, "function_call:old", "old", ""), (7, "function_call:old", "old", "1"),
        (8, "", "", "c"), (9, "c1", "pay", "again")]
    assert [each.written for each in found] == [FUNCTION["function"]["arguments"], "", "", "{}", "", FUNCTION["function"]["arguments"]]


def test_other_contents_leave_the_rest_of_a_body_alone():
    body = {"model": "m", "messages": [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]}
    changed = with_contents(body, {1: "c"})
    assert [message["content"] for message in changed["messages"]] == ["a", "c"]
    assert [message["content"] for message in body["messages"]] == ["a", "b"]


@pytest.mark.parametrize(("text", "value"), [('{"a": 1}', {"a": 1}), (" [1]", [1]), ("plain", "plain"), ("{broken", "{broken"), ('"x"', '"x"')])
def test_a_result_is_parsed_where_it_is_an_object_or_an_array(text, value):
    assert parsed_result(text) == value


ANY = st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.text(max_size=5),
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                       ["id", "type", "function", "custom", "name", "arguments", "input", "role", "tool_calls", "tool_call_id", "content", "text"]),
                       inner, max_size=4), max_leaves=12)


@settings(derandomize=True, max_examples=300)
@given(st.lists(ANY, max_size=4))
def test_nothing_in_a_conversation_breaks_the_reading_of_results(messages):
    for each in returned(messages):
        assert isinstance(each.text, str)
    for message in messages:
        call = proposed(message)
        assert isinstance(rewritten(message if isinstance(message, dict) else {}, call, {}), dict)
