"""What a plain answer says, whatever fields it says it in, and the same answer with texts taken out."""

from typing import Any

import pytest

from gateway.call import Reply, Said, Usage
from gateway.core.decision import Redaction
from gateway.core.detectors import pattern_detector
from gateway.core.rules import Rule, compile_bundle
from gateway.rule_config import RuleConfig
from gateway.spoken import finish_reasons, flows, redacted, said

CALL = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": '{"to": "secret1"}'}}
REDACTIONS = [Redaction("r", (pattern_detector("secret[0-9]{1,4}"),), fields=("/a",))]


def reply(*choices: Any, reasons: tuple[str, ...] = (), usage: Usage | None = None) -> Reply:
    return Reply({"choices": list(choices)}, usage, reasons)


def message(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}


@pytest.mark.parametrize(("choice", "text"), [
    (message(content="a"), "a"),
    (message(content=None, refusal="a"), "a"),
    (message(content="a", reasoning_content="b", refusal=None), "a\nb"),
    (message(content=[{"type": "text", "text": "a"}, {"type": "thinking", "thinking": [{"type": "text", "text": "b"}]}]), "a\nb"),
    (message(content=None, audio={"id": "x", "transcript": "a"}), "x\na"),
    (message(content="a", tool_calls=[CALL], function_call={"name": "b", "arguments": "c"}), "a"),
    ({"text": "a"}, "a"),
    ({"text": "a", "message": None}, "a"),
    ({"text": "a", "message": {"content": "b"}}, "a\nb"),
    ({"text": "a", "message": ["b"]}, "a\nb"),
    ({"text": 5, "message": {"content": 5}}, ""),
    ("a", ""),
], ids=str)
def test_every_text_of_a_choice_is_said(choice, text):
    assert said(reply(choice)).text == text


def test_an_answer_is_all_that_its_choices_say():
    usage = Usage(3, 4)
    answer = reply(message(content="a", tool_calls=[CALL, "x"]), message(content="b", function_call={"name": "older"}),
                   message(content="c", tool_calls={"0": CALL}), reasons=("tool_calls", "stop"), usage=usage)
    assert said(answer) == Said("a\nb\nc", ("pay", "", "older"), "tool_calls", usage)


@pytest.mark.parametrize("body", [{}, {"choices": None}, {"choices": "a"}, {"choices": {}}])
def test_an_answer_without_choices_says_nothing(body):
    assert said(Reply(body, None)) == Said("")


def test_texts_are_taken_out_wherever_they_stand_and_words_of_the_protocol_stay():
    body = {
        "id": "secret1", "model": "secret1", "object": "chat.completion", "created": 1, "usage": {"note": "secret1"}, "citations": [{"a": "secret2"}],
        "choices": [
            {**message(content="a secret3", refusal=None, audio={"transcript": "secret4"}, annotations=["secret5"], tool_calls=[CALL]),
             "logprobs": {"content": [{"token": "secret3"}]}, "filters": {"x": ["secret6"], "severity": 1}},
            {"text": "secret7", "index": 1, "finish_reason": "length"},
            {"message": "secret8"}]}
    mark = "[redacted:pattern]"
    assert redacted(body, REDACTIONS) == {
        "id": "secret1", "model": "secret1", "object": "chat.completion", "created": 1, "usage": {"note": "secret1"}, "citations": [{"a": mark}],
        "choices": [
            {**message(content=f"a {mark}", refusal=None, audio={"transcript": mark}, annotations=[mark], tool_calls=[CALL]),
             "logprobs": None, "filters": {"x": [mark], "severity": 1}},
            {"text": mark, "index": 1, "finish_reason": "length"},
            {"message": mark}]}
    assert body["choices"][0]["message"]["content"] == "a secret3"


def test_why_choices_ended_is_told_where_they_say_so():
    assert finish_reasons([{"finish_reason": "stop"}, {"finish_reason": None}, {}, "x", {"finish_reason": 5}, {"finish_reason": "length"}]) == ("stop", "length")


def rule(when: str | None = None, **keys: Any) -> Rule:
    given = {"id": "r", "phase": "response", "effect": "redact", "redact": {"detectors": ["email"]}, "when": when, **keys}
    return compile_bundle([RuleConfig.model_validate(given)], "auto").rules[0]


@pytest.mark.parametrize("known", [
    rule(), rule('route == "fast"'), rule("session.calls > 1"), rule('"secret" in session.labels'), rule(match={"teams": ["blue"]}),
    rule(redact={"patterns": ["[0-9]{1,9}"]})])
def test_a_redaction_that_can_be_done_on_the_way_lets_the_answer_flow(known):
    assert flows(known)


@pytest.mark.parametrize("needed", [
    rule('response.text == ""'), rule("texts.size() > 1"), rule("response.tool_calls.size() > 1"), rule(match={"tools": ["pay"]}),
    rule('session.called("pay")'), rule(redact={"patterns": ["a.*b"]}), rule(effect="deny", redact=None), rule(effect="require_approval", redact=None)])
def test_a_rule_that_needs_the_whole_answer_does_not(needed):
    assert not flows(needed)
