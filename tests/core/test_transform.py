"""What rules take out and set is what goes on: in every place where text stands, and never in what was given."""

import copy
import json
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Said, ToolCall, ToolResult
from gateway.core import detectors as module
from gateway.core.body import UnreadableFactError, strings, texts
from gateway.core.decision import Clamp, Redaction, Setting
from gateway.core.detectors import Detectors, pattern_detector
from gateway.core.question import Question
from gateway.core.redaction import redact_text
from gateway.core.transform import TransformError, transform

MAIL = Redaction("mail", Detectors().named("email"))
GONE = "[redacted:email]"


@pytest.fixture
def asked(call):
    """A question of the phase `request`; `of` gives its body back."""
    def make(body, operation="chat"):
        return Question("request", call(body, operation=operation), 0)

    return make


def of(question):
    return question.call.body


def taking_out(*fields):
    return Redaction("fields", (), fields)


def setting(values=None, **clamps):
    return Setting("set", values or {}, tuple(Clamp(f"/{name}", *bounds) for name, bounds in clamps.items()))


CHAT = {
    "model": "fast", "stream": False, "user": "a@b.co", "temperature": 1,
    "messages": [
        {"role": "system", "content": "Mail a@b.co"},
        {"role": "user", "name": "a@b.co", "content": [
            {"type": "text", "text": "I am a@b.co"}, {"type": "image_url", "image_url": {"url": "https://x/a@b.co"}},
            {"type": "refusal", "refusal": "not a@b.co"}, {"type": "odd", "content": [{"type": "text", "text": "a@b.co"}]}, {"type": "odd", "content": "a@b.co"}]},
        {"role": "assistant", "content": None, "refusal": "a@b.co?", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "mail", "arguments": '{"to": "a\\u0040b.co", "n": 1.0}'}},
            {"id": "2", "type": "custom", "custom": {"name": "raw", "input": "to a@b.co"}}, {"id": "3", "type": "function", "function": {"name": "none"}}]},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{a@b.co"}},
        {"role": "tool", "tool_call_id": "1", "content": "sent to a@b.co"},
    ],
    "tools": [{"type": "function", "function": {"name": "mail", "description": "as a@b.co"}}],
}


def test_every_text_of_a_chat_is_redacted_and_nothing_else(asked):
    before = copy.deepcopy(CHAT)
    after = of(transform(asked(CHAT), [MAIL]))
    assert before == CHAT, "what was given is as it was"
    assert after["messages"] == [
        {"role": "system", "content": f"Mail {GONE}"},
        {"role": "user", "name": "a@b.co", "content": [
            {"type": "text", "text": f"I am {GONE}"}, {"type": "image_url", "image_url": {"url": "https://x/a@b.co"}},
            {"type": "refusal", "refusal": f"not {GONE}"}, {"type": "odd", "content": [{"type": "text", "text": GONE}]}, {"type": "odd", "content": GONE}]},
        {"role": "assistant", "content": None, "refusal": f"{GONE}?", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "mail", "arguments": f'{{"to": "{GONE}", "n": 1.0}}'}},
            {"id": "2", "type": "custom", "custom": {"name": "raw", "input": f"to {GONE}"}}, {"id": "3", "type": "function", "function": {"name": "none"}}]},
        {"role": "assistant", "function_call": {"name": "old", "arguments": f"{{{GONE}"}},
        {"role": "tool", "tool_call_id": "1", "content": f"sent to {GONE}"},
    ]
    assert {key: value for key, value in after.items() if key != "messages"} == {key: value for key, value in CHAT.items() if key != "messages"}


@pytest.mark.parametrize(("operation", "body", "expected"), [
    ("completions", {"prompt": "a@b.co", "suffix": "a@b.co", "model": "m"}, {"prompt": GONE, "suffix": GONE, "model": "m"}),
    ("completions", {"prompt": ["x", "a@b.co"]}, {"prompt": ["x", GONE]}),
    ("embeddings", {"input": ["a@b.co", "x"], "user": "a@b.co"}, {"input": [GONE, "x"], "user": "a@b.co"}),
    ("embeddings", {"input": None}, {"input": None}),
    ("tool", {"to": "a@b.co", "deep": [{"cc": "x a@b.co"}], "messages": "a@b.co", "n": 1}, {"to": GONE, "deep": [{"cc": f"x {GONE}"}], "messages": GONE, "n": 1}),
])
def test_texts_of_other_operations_are_redacted(asked, operation, body, expected):
    assert of(transform(asked(body, operation), [MAIL])) == expected


PART = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["a@b.co", "x a@b.co."]))
CONTENTS = st.recursive(PART, lambda inner: st.lists(st.fixed_dictionaries({"type": st.just("text")}, optional={"text": PART, "refusal": PART, "content": inner, "thinking": inner, "x": st.just(1)}), max_size=2), max_leaves=4)
ARGUMENTS = st.one_of(PART, st.sampled_from(['{"a":"a@b.co"}', "[1]"]))
CALLS = st.one_of(st.none(), st.lists(st.fixed_dictionaries({}, optional={"function": st.fixed_dictionaries({}, optional={"arguments": ARGUMENTS}), "custom": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"input": ARGUMENTS})), "id": st.just("1")}), max_size=2))
MESSAGES = st.fixed_dictionaries({}, optional={"role": st.just("user"), "content": CONTENTS, "refusal": PART, "reasoning_content": PART, "reasoning": PART, "tool_calls": CALLS, "function_call": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"arguments": ARGUMENTS})), "n": st.just(1)})
ODD = st.sampled_from([5, "x", [], {}, [5], {"a": 1}, None, True])
BODIES = st.fixed_dictionaries({}, optional={"messages": st.one_of(st.lists(st.one_of(MESSAGES, MESSAGES, ODD), max_size=3), ODD), "prompt": st.one_of(PART, st.lists(PART, max_size=2), ODD), "input": st.one_of(PART, ODD), "suffix": PART, "model": st.just("m")})


@given(body=BODIES)
@settings(max_examples=400, deadline=None)
def test_what_rules_read_as_texts_is_what_is_redacted(call, body):
    """Text that a rule can read is redacted; a call whose texts cannot be read is not taken for redacted."""
    given_call = call(body)
    before = copy.deepcopy(body)
    try:
        read = texts(given_call)
    except UnreadableFactError:
        with pytest.raises(TransformError):
            transform(Question("request", given_call, 0), [MAIL])
        return
    after = transform(Question("request", given_call, 0), [MAIL])
    assert texts(after.call) == [redact_text(text, [MAIL]) for text in read]
    assert body == before
    assert (after.call is given_call) == (of(after) == body), "what nothing changed is the same"


@pytest.mark.parametrize(("body", "message"), [
    ({"messages": 5}, "`messages` is not a list"), ({"messages": [5]}, "an entry of `messages` is not an object"), ({"messages": [{"content": 5}]}, "a `content` is not text"),
    ({"messages": [{"content": [5]}]}, "a part of a `content` is not an object"), ({"messages": [{"content": [{"text": None}]}]}, "the `text` of a part is not text"),
    ({"messages": [{"tool_calls": {}}]}, "a `tool_calls` is not a list"), ({"messages": [{"function_call": 5}]}, "a `function_call` is not an object"),
    ({"messages": [{"tool_calls": [{"function": {"arguments": {}}}]}]}, "`arguments` of a tool call is not text"), ({"input": [[1, 2]]}, "`input` is not text"),
    ({"messages": [{"function_call": {"arguments": "[" * 100_000}}]}, "nested too deep"),
])
def test_what_cannot_be_read_cannot_be_redacted(asked, body, message):
    with pytest.raises(TransformError, match=message) as caught:
        transform(asked(body), [MAIL])
    assert (caught.value.rule, caught.value.why) == ("mail", str(caught.value))


def test_a_text_that_is_too_much_fails_the_call(asked, monkeypatch):
    monkeypatch.setattr(module, "_WORK", 1000)
    greedy = Redaction("greedy", (pattern_detector("(?s)a(.*b)?"),))
    with pytest.raises(TransformError, match="matches too often") as caught:
        transform(asked({"messages": [{"content": "a" * 2000}]}), [Setting("first", {"/n": 1}), greedy])
    assert caught.value.rule == "greedy"


@pytest.mark.parametrize(("fields", "expected"), [
    (["/user"], {"user": "[redacted:field]"}), (["/metadata/card"], {"metadata": {"card": "[redacted:field]", "n": 1}}), (["/metadata/*"], {"metadata": {"card": "[redacted:field]", "n": "[redacted:field]"}}),
    (["/messages/*/content"], {"messages": [{"role": "user", "content": "[redacted:field]"}]}), (["/missing", "/user"], {"user": "[redacted:field]"}), (["/tools/0/function/description"], {}),
])
def test_whole_fields_of_a_request_are_replaced_by_text(asked, fields, expected):
    body = {"model": "m", "user": "u", "metadata": {"card": {"n": 4}, "n": 1}, "messages": [{"role": "user", "content": ["x"]}], "tools": []}
    body["messages"][0]["content"] = [{"type": "text", "text": "x"}]
    assert of(transform(asked(body), [taking_out(*fields)])) == {**body, **expected}


@pytest.mark.parametrize("field", ["", "/model", "/stream", "/stream_options/include_usage", "/messages", "/messages/0", "/messages/*", "/messages/0/role", "/messages/*/*", "/*", "/*/x", "/tools", "/functions/0"])
def test_what_a_call_is_read_and_routed_by_cannot_be_taken_out(asked, field):
    with pytest.raises(TransformError, match="cannot be taken out") as caught:
        transform(asked({"model": "m", "messages": []}), [MAIL, taking_out(field)])
    assert caught.value.rule == "fields"


def tool_call(call, args, phase="tool_call", **given):
    return Question(phase, call({}), 0, tool=ToolCall("1", "bank.pay", args), **given)


def test_arguments_of_a_tool_call_are_redacted(call):
    args = {"to": "a@b.co", "card": {"number": 4111111111111111}, "model": "a@b.co"}
    after = transform(tool_call(call, args), [MAIL, taking_out("/card/number", "/model")]).tool
    assert after is not None
    assert after.args == {"to": GONE, "card": {"number": "[redacted:field]"}, "model": "[redacted:field]"}
    assert args["to"] == "a@b.co"


def test_arguments_that_nothing_changed_are_the_same_object(call):
    question = tool_call(call, {"to": "nobody"})
    assert transform(question, [MAIL, taking_out("/missing")]) is question
    assert transform(question, []) is question


def test_arguments_stay_an_object(call, asked):
    for question in (tool_call(call, {}), asked({}, "tool")):
        with pytest.raises(TransformError, match="cannot be taken out"):
            transform(question, [taking_out("")])
    assert of(transform(asked({"model": "x", "messages": 1}, "tool"), [taking_out("/model", "/*")])) == {"model": "[redacted:field]", "messages": "[redacted:field]"}


@pytest.mark.parametrize(("content", "text", "fields", "after", "after_text"), [
    ("to a@b.co", "to a@b.co", [], f"to {GONE}", f"to {GONE}"),
    ({"to": "a@b.co", "n": 1.5}, '{"to": "a@b.co", "n": 1.50}', [], {"to": GONE, "n": 1.5}, f'{{"to": "{GONE}", "n": 1.50}}'),
    ({"to": "a@b.co", "n": 1.5}, '{"to": "a@b.co", "n": 1.50}', ["/n"], {"to": GONE, "n": "[redacted:field]"}, f'{{"to":"{GONE}","n":"[redacted:field]"}}'),
    ({"to": "x"}, '{"to": "a@b.co", "to": "x"}', [], {"to": "x"}, f'{{"to": "{GONE}", "to": "x"}}'),  # what only the text still holds
    ([{"text": "a@b.co"}], "a@b.co", [], [{"text": GONE}], GONE),
    ({"to": "x"}, '{"to":"x"}', [""], "[redacted:field]", "[redacted:field]"), ("x", "x", [""], "[redacted:field]", "[redacted:field]"), ("é", "é", ["/a"], "é", "é"),
    ({"é": 1, "n": 2}, '{"é":1,"n":2}', ["/n"], {"é": 1, "n": "[redacted:field]"}, '{"é":1,"n":"[redacted:field]"}'),
])
def test_a_result_and_its_text_stay_in_step(call, content, text, fields, after, after_text):
    question = tool_call(call, {}, "tool_result", result=ToolResult(content, text, released=False))
    result = transform(question, [MAIL, taking_out(*fields)]).result
    assert result == ToolResult(after, after_text, released=False)


def test_a_result_that_nothing_changed_is_the_same(call):
    question = tool_call(call, {}, "tool_result", result=ToolResult({"a": "x"}, '{"a":"x"}'))
    assert transform(question, [MAIL, taking_out("/b")]) is question


def test_the_text_of_an_answer_is_redacted(call):
    question = Question("response", call({}), 0, said=Said("mail a@b.co", ("x",), "stop"))
    assert transform(question, [MAIL, taking_out("/x")]).said == Said(f"mail {GONE}", ("x",), "stop")
    quiet = Question("response", call({}), 0, said=Said("nothing"))
    assert transform(quiet, [MAIL]) is quiet


@pytest.mark.parametrize("phase", ["tool_call", "tool_result", "response"])
def test_a_phase_without_its_matter_fails(call, phase):
    with pytest.raises(TransformError, match=f"nothing to redact in the phase `{phase}`"):
        transform(Question(phase, call({}), 0), [MAIL])


@pytest.mark.parametrize(("body", "values", "expected"), [
    ({"a": 1}, {"/b": 2, "/a": None}, {"a": None, "b": 2}), ({}, {"/response_format/type": "json_object"}, {"response_format": {"type": "json_object"}}),
    ({"x": {"y": 1}}, {"/x/z/w": []}, {"x": {"y": 1, "z": {"w": []}}}), ({}, {"/a~1b": 1, "/a~0b": 2}, {"a/b": 1, "a~b": 2}), ({"a": {"b": 1}}, {"/a": 5, "/c": {"d": 1}}, {"a": 5, "c": {"d": 1}}),
])
def test_values_are_written_and_what_is_missing_on_the_way_is_made(asked, body, values, expected):
    before = copy.deepcopy(body)
    assert of(transform(asked(MappingProxyType(body)), [setting(values)])) == expected
    assert body == before


@pytest.mark.parametrize(("values", "message"), [
    ({"/a/b": 1}, "what holds `b` is not an object"), ({"/l/0": 1}, "what holds `0` is not an object"), ({"/none/x": 1}, "what holds `x` is not an object"), ({"": {}}, "the whole of it cannot be set")])
def test_a_value_cannot_be_written_through_what_is_no_object(asked, values, message):
    with pytest.raises(TransformError, match=message) as caught:
        transform(asked({"a": "text", "l": [1], "none": None}), [MAIL, Setting("early"), setting(values)])
    assert caught.value.rule == "set"


@pytest.mark.parametrize(("body", "bounds", "expected"), [
    ({"n": 5}, (None, 3.0), 3), ({"n": 5}, (7.0, None), 7), ({"n": 5}, (1.0, 9.0), 5), ({"n": 5.5}, (None, 2.5), 2.5), ({"n": 0.1}, (0.5, None), 0.5), ({"n": 10**400}, (None, 8.0), 8),
    ({}, (None, 3.0), 3), ({}, (1.0, None), "missing"), ({"n": None}, (None, 3.0), 3), ({"n": None}, (1.0, None), None), ({"n": 3}, (3.0, 3.0), 3),
])
def test_a_number_is_kept_between_its_bounds_and_an_integer_stays_one(asked, body, bounds, expected):
    after = of(transform(asked(body), [setting(n=bounds)]))
    assert after.get("n", "missing") == expected
    assert type(after.get("n", "missing")) is type(expected)


@pytest.mark.parametrize("value", ["5", True, [5], {"a": 5}])
def test_what_is_no_number_cannot_be_clamped(asked, value):
    with pytest.raises(TransformError, match="`/n` is not a number"):
        transform(asked({"n": value}), [setting(n=(None, 3.0))])


def test_a_number_deeper_down_is_clamped_too(asked):
    deep = Setting("set", clamps=(Clamp("/a/b", None, 3.0), Clamp("/c/d", None, 4.0)))
    assert of(transform(asked({"a": {"b": 5}}), [deep])) == {"a": {"b": 3}, "c": {"d": 4}}
    with pytest.raises(TransformError, match="what holds `b` is not an object"):
        transform(asked({"a": 5}), [deep])


@pytest.mark.parametrize(("body", "named", "expected"), [
    ({"max_tokens": 9}, "max_tokens", {"max_tokens": 5}), ({"max_completion_tokens": 9}, "max_tokens", {"max_completion_tokens": 5}), ({"max_tokens": 9}, "max_completion_tokens", {"max_tokens": 5}),
    ({"max_tokens": 9, "max_completion_tokens": 8}, "max_tokens", {"max_tokens": 5, "max_completion_tokens": 5}), ({"max_tokens": None, "max_completion_tokens": 3}, "max_tokens", {"max_tokens": None, "max_completion_tokens": 3}),
    ({}, "max_tokens", {"max_tokens": 5}), ({}, "max_completion_tokens", {"max_completion_tokens": 5}),
])
def test_the_two_names_of_the_token_limit_are_one(asked, body, named, expected):
    assert of(transform(asked(body), [setting(**{named: (None, 5.0)})])) == expected


def test_an_argument_called_max_tokens_is_an_argument(asked, call):
    assert of(transform(asked({"max_completion_tokens": 9}, "tool"), [setting(max_tokens=(None, 5.0))])) == {"max_completion_tokens": 9, "max_tokens": 5}
    tool = transform(tool_call(call, {"max_completion_tokens": 9}), [setting({"/x/y": 1}, max_tokens=(None, 5.0))]).tool
    assert tool is not None
    assert tool.args == {"max_completion_tokens": 9, "x": {"y": 1}, "max_tokens": 5}


MESSAGES_OF = [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}, {"role": "System ", "content": "s"}]


@pytest.mark.parametrize(("given", "expected"), [
    (Setting("s", system="S"), [{"role": "system", "content": "S"}, *MESSAGES_OF]), (Setting("s", system="S", replace_system=True), [{"role": "system", "content": "S"}, MESSAGES_OF[1]]),
    (Setting("s", replace_system=True), [MESSAGES_OF[1]])])
def test_a_system_message_is_put_before_the_first_or_replaces_the_callers(asked, given, expected):
    body = {"messages": MESSAGES_OF, "n": 1}
    assert of(transform(asked(body), [given])) == {"messages": expected, "n": 1}
    assert len(MESSAGES_OF) == 3


@pytest.mark.parametrize(("body", "operation", "message"), [
    ({"prompt": "x"}, "completions", "a system message belongs into a chat, and this is `completions`"), ({}, "tool", "belongs into a chat"), ({}, "chat", "`messages` is not a list"),
    ({"messages": "x"}, "chat", "`messages` is not a list"), ({"messages": ["x"]}, "chat", "an entry of `messages` is not an object")])
def test_where_there_is_no_chat_there_is_no_system_message(asked, body, operation, message):
    with pytest.raises(TransformError, match=message):
        transform(asked(body, operation), [Setting("s", system="S")])


@pytest.mark.parametrize("phase", ["tool_call", "tool_result", "response"])
def test_nothing_is_set_where_nothing_can_be(call, phase):
    with pytest.raises(TransformError, match=f"cannot be set in the phase `{phase}`"):
        transform(tool_call(call, {}, phase, result=ToolResult("", ""), said=Said("")), [Setting("s", system="S")])


def test_transforms_are_applied_in_declared_order(asked):
    text = Setting("s", {"/prompt": "to a@b.co"})
    body = {"prompt": "x"}
    assert of(transform(asked(body, "completions"), [text, MAIL])) == {"prompt": f"to {GONE}"}
    assert of(transform(asked(body, "completions"), [MAIL, text])) == {"prompt": "to a@b.co"}


def test_redactions_that_follow_one_another_are_one_pass(asked):
    """The replacement of one is not what another looks through: a stream does it in one pass too."""
    first = Redaction("one", Detectors().named("email"), (), "ask c@d.co")
    second = Redaction("two", (pattern_detector("ask"),), (), "-")
    assert of(transform(asked({"prompt": "a@b.co ask"}, "completions"), [first, second])) == {"prompt": "ask c@d.co -"}


def test_no_text_of_a_redacted_call_holds_a_value_any_more(asked):
    after = of(transform(asked(CHAT), [MAIL, taking_out("/user", "/tools/0/function/description")]))
    left = [text for text in strings(json.loads(json.dumps(after))) if "a@b.co" in text]
    assert left == ["a@b.co", "https://x/a@b.co"], "a participant's name and a link are no texts"
