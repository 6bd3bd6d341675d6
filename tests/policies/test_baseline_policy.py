"""The rules that ship with every deployment stay out of the way of normal calls and stop what they say."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.call import Call, Principal
from gateway.core.decide import decide
from gateway.core.decision import Decision
from gateway.core.question import Question
from gateway.core.rules import Bundle
from gateway.gather import gather

Try = Callable[[Mapping[str, str], str], Any]
Shipped = Callable[[str], dict[str, str]]


def judged(bundle: Bundle, body: dict[str, Any], *, operation: str = "chat", size: int = 200) -> Decision:
    call = Call("call_1", Principal("key_1"), "openai", operation, "fast", body, stream=False, size=size, received_ns=0)
    return decide(bundle, "request", gather(bundle, Question("request", call, 0)))


def test_its_cases_come_out_as_they_say_and_show_every_rule_both_ways(engine: str, try_out: Try, shipped: Shipped) -> None:
    tried = try_out(shipped("baseline"), engine)
    assert [str(problem) for problem in tried.result.failures] == []
    assert tried.uncovered == {}


@pytest.mark.parametrize(("operation", "body"), [
    ("chat", {"messages": [{"role": "user", "content": "hi"}]}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
              "max_tokens": 128_000, "temperature": 0, "stop": None}),
    ("completions", {"prompt": "hi", "max_tokens": 16}),
    ("embeddings", {"input": [[1, 2, 3]]}),
])
def test_normal_calls_are_allowed_without_a_label(
        operation: str, body: dict[str, Any], engine: str, try_out: Try, shipped: Shipped) -> None:
    """A new deployment works before anyone has read the rules."""
    decision = judged(try_out(shipped("baseline"), engine).bundle, body, operation=operation)
    assert (decision.name, decision.labels) == ("allow", ())
    assert {reason.verdict for reason in decision.reasons} == {"not_matched"}


@pytest.mark.parametrize(("operation", "body", "expected"), [
    ("chat", {"messages": [{"role": "user", "content": "the payroll"}]}, "deny"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "the payroll"}]}]}, "deny"),
    ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"q": "payroll"}'}}]}]}, "deny"),
    ("completions", {"prompt": "the payroll"}, "deny"),
    ("completions", {"prompt": ["hi", "payroll"]}, "deny"),
    ("completions", {"prompt": [1, 2, 3]}, "deny"),
    ("embeddings", {"input": ["payroll"]}, "deny"),
    ("chat", {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]}, "allow"),
    ("completions", {"prompt": "hi"}, "allow"),
])
def test_the_example_against_a_word_holds_for_every_operation(
        operation: str, body: dict[str, Any], expected: str, engine: str, try_out: Try, shipped: Shipped) -> None:
    """It stands in the file as a comment; taken out of it, it does what it says."""
    commented = shipped("baseline")["baseline.toml"].rpartition("# [[rule]]\n")[2]
    text = "[[rule]]\n" + "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    assert judged(try_out({"house.toml": text}, engine).bundle, body, operation=operation).name == expected


def test_an_absurd_token_limit_is_denied_with_a_way_out(engine: str, try_out: Try, shipped: Shipped) -> None:
    decision = judged(try_out(shipped("baseline"), engine).bundle, {"max_tokens": 1_000_001})
    assert (decision.name, decision.rule) == ("deny", "absurd-max-tokens")
    assert decision.message
    assert decision.remedy


def test_tools_of_an_unknown_shape_are_not_refused_by_a_log_rule(engine: str, try_out: Try, shipped: Shipped) -> None:
    """Only what restricts fails closed; this is counted as an error."""
    decision = judged(try_out(shipped("baseline"), engine).bundle, {"tools": [{"googleSearch": {}}]})
    assert decision.name == "allow"
    assert [reason.rule for reason in decision.reasons if reason.verdict == "error"] == ["offers-tools"]
