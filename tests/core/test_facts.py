"""Facts come out in their declared type or not at all, whatever the body holds."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Origin
from gateway.core.facts import (
    FACTS,
    MAX_TOOL_NAME,
    MAX_TOOLS,
    UnreadableFactError,
    facts_of,
    match_keys,
    tools_offered,
    variables_table,
)

NOW_NS = 1_700_000_000_123_456_789
MakeCall = Callable[..., Call]


def read(name: str, call: Call) -> Any:
    return facts_of("request")[name].extract(call, NOW_NS)


def has_type(value: Any, kind: str) -> bool:
    """Whether a value is what the schema declares: exactly, because a bool is an int in Python."""
    match kind:
        case "list(string)":
            return type(value) is list and all(type(item) is str for item in value)
        case "map(string, string)":
            return type(value) is dict and all(type(item) is str for pair in value.items() for item in pair)
        case "map(string, dyn)":
            return type(value) is dict and all(type(key) is str for key in value)
        case "int":
            return type(value) is int and -2**63 <= value < 2**63
        case _:
            return type(value) is {"bool": bool, "string": str, "timestamp": datetime, "list(dyn)": list}[kind]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**65, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "type", "function", "custom", "content", "text", "tools", "tool_calls", "arguments", "x"]), inner, max_size=4), max_leaves=12)
BODIES = st.dictionaries(st.sampled_from(
    ["messages", "prompt", "input", "max_tokens", "max_completion_tokens", "tools", "functions", "temperature", "model", "x"]), JSON)


@settings(deadline=None)
@given(body=BODIES)
def test_every_fact_has_its_declared_type_or_is_unreadable(body: dict[str, Any], call: MakeCall) -> None:
    """The engines trust the declared types, and nothing else may escape into the path of a call."""
    judged = call(body, origin=Origin("s", "r", "p", {"env": "prod"}), roles=("a", "b"))
    for fact in FACTS:
        try:
            value = fact.extract(judged, NOW_NS)
        except UnreadableFactError:
            continue
        assert has_type(value, fact.type), fact.name


def test_facts_say_what_the_call_says(call: MakeCall) -> None:
    """One value of each, so that no two are mixed up."""
    body = {"model": "fast", "messages": [{"role": "user"}], "max_tokens": 7, "temperature": 1, "input": "x",
            "tools": [{"type": "function", "function": {"name": "f"}}]}
    judged = call(body, name="n", team="t", org="o", roles=("a", "b"), stream=True,
                  origin=Origin("s1", "r1", "p1", {"k": "v"}))
    assert {fact.name: fact.extract(judged, NOW_NS) for fact in FACTS} == {
        "principal.id": "key_1", "principal.name": "n", "principal.team": "t", "principal.org": "o",
        "principal.roles": ["a", "b"], "protocol": "openai", "route": "fast", "request.operation": "chat",
        "request.model": "fast", "request.stream": True, "request.size": 100, "request.max_tokens": 7,
        "request.params": {"model": "fast", "max_tokens": 7, "temperature": 1}, "request.body": body,
        "messages": [{"role": "user"}], "texts": ["x"], "tools_offered": ["f"], "session.id": "s1", "run": "r1", "step": "p1",
        "tags": {"k": "v"}, "now": datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)}


def test_what_was_not_sent_reads_as_empty(call: MakeCall) -> None:
    """So that a rule need not guard the plain facts."""
    names = ("session.id", "run", "step", "tags", "request.max_tokens", "messages", "tools_offered")
    assert [read(name, call()) for name in names] == ["", "", "", {}, 0, [], []]


def test_an_explicit_null_is_the_same_as_leaving_it_out(call: MakeCall) -> None:
    """Clients send null for what they do not set."""
    judged = call({"max_tokens": None, "messages": None, "tools": None, "functions": None})
    assert [read(name, judged) for name in ("request.max_tokens", "messages", "tools_offered")] == [0, [], []]


def test_the_larger_of_the_two_token_limits_counts(call: MakeCall) -> None:
    """Which of them a provider obeys is the provider's choice."""
    assert read("request.max_tokens", call({"max_tokens": 5, "max_completion_tokens": 900})) == 900
    assert read("request.max_tokens", call({"max_tokens": 901, "max_completion_tokens": 5})) == 901


@pytest.mark.parametrize("value", ["900", True, 1.0, [], {}, 2**63, -2**63 - 1, float("nan")])
def test_a_token_limit_that_is_no_64_bit_integer_is_unreadable(value: Any, call: MakeCall) -> None:
    """A guess would be a wrong value that a deny rule compares."""
    with pytest.raises(UnreadableFactError):
        read("request.max_tokens", call({"max_tokens": value}))


def test_messages_that_are_no_list_are_unreadable(call: MakeCall) -> None:
    """A map has a size too: a rule would compare nonsense."""
    with pytest.raises(UnreadableFactError):
        read("messages", call({"messages": {"role": "user"}}))


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(("body", "texts"), [
    ({}, []),
    ({"messages": None, "prompt": None, "input": None}, []),
    (said({"role": "user", "content": "a"}, {"role": "tool", "content": "b"}), ["a", "b"]),
    (said({"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"text": "c"}]}), ["a", "b", "c"]),
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
def test_texts_are_what_the_caller_wrote_whatever_the_operation(body: Any, texts: list[str], call: MakeCall) -> None:
    """A rule against a word holds for chat, completions and embeddings, and for contents in parts."""
    for operation in ("chat", "completions", "embeddings"):
        assert read("texts", call(body, operation=operation)) == texts


@pytest.mark.parametrize("body", [
    {"messages": "a"}, said("a"), said(None), said({"content": 5}), said({"content": {"type": "text", "text": "a"}}),
    said({"content": ["a"]}), said({"content": [None]}), said({"content": [["a"]]}), said({"content": [{"type": "text", "text": 5}]}),
    said({"content": [{"type": "text", "text": None}]}), said({"content": [{"text": {"value": "a"}}]}), said({"content": [{"content": 5}]}),
    said({"content": [{"refusal": ["a"]}]}), said({"refusal": {}}), said({"tool_calls": {"function": {}}}), said({"tool_calls": ["a"]}),
    said({"tool_calls": [{"function": "a"}]}), said({"tool_calls": [{"function": {"arguments": {"a": "b"}}}]}), said({"tool_calls": 0}),
    said({"function_call": "auto"}), {"prompt": 5}, {"prompt": [1, 2]}, {"prompt": [[1, 2]]}, {"prompt": ["a", 1]}, {"prompt": {"a": "b"}},
    {"suffix": 5}, {"input": [1, 2]}, {"input": [[1]]}, {"input": [{"text": "a"}]}, {"input": True}])
def test_texts_that_cannot_be_read_are_unreadable_as_a_whole(body: Any, call: MakeCall) -> None:
    """Tokens and malformed contents are no way round a rule on texts."""
    with pytest.raises(UnreadableFactError):
        read("texts", call(body))


def test_contents_within_contents_have_no_depth_that_breaks_anything(call: MakeCall) -> None:
    """Nothing but the one error may come out, and a body may be nested deeper than Python's stack."""
    content: Any = "deep"
    for _ in range(5000):
        content = [{"content": content}]
    assert read("texts", call(said({"content": content}))) == ["deep"]


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


def test_match_keys_hold_what_match_looks_at(call: MakeCall) -> None:
    """Principals match by id and by name; a model is the name that was asked for."""
    judged = call({"tools": [{"type": "t"}]}, name="n", team="t", roles=("a",))
    keys = match_keys(judged, with_tools=True)
    assert (keys.principals, keys.teams, keys.roles) == (("key_1", "n"), ("t",), ("a",))
    assert (keys.protocols, keys.routes, keys.models, keys.tools) == (("openai",), ("fast",), ("fast",), ("t",))


def test_match_keys_look_for_tools_only_where_asked(call: MakeCall) -> None:
    """No work for what no rule reads; and what cannot be read is said, not guessed."""
    assert match_keys(call({"tools": "junk"}), with_tools=False).tools == ()
    assert match_keys(call({"tools": "junk"}), with_tools=True).tools is None


def test_names_fit_the_byte_search_of_the_first_engine() -> None:
    """It looks for a name after its length in one byte."""
    assert all(fact.name.isascii() and len(fact.name) < 128 for fact in FACTS)
    assert len(facts_of("request")) == len(FACTS)


def test_the_guide_shows_the_schema() -> None:
    """The table in the guide is this schema, not a copy of it from long ago."""
    guide = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    assert f"\n{variables_table()}\n" in guide
