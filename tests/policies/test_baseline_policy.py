"""The rules that ship stay out of the way of normal calls and stop what they say."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Call, Principal
from gateway.config import PolicyFile
from gateway.core.decide import Bundle, compile_bundle, decide
from gateway.core.decision import Decision
from gateway.gather import gather

BASELINE = Path(__file__).parents[2] / "policies" / "baseline.toml"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=["cel-expr-python", "cel-python"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(engine: str) -> Bundle:
    rules = PolicyFile.model_validate(tomllib.loads(BASELINE.read_text(encoding="utf-8"))).rule
    return compile_bundle(rules, engine)


def judged(bundle: Bundle, body: dict[str, Any], *, operation: str = "chat", size: int = 200) -> Decision:
    call = Call("call_1", Principal("key_1"), "openai", operation, "fast", body, stream=False, size=size, received_ns=0)
    return decide(bundle, "request", gather(bundle, call, 0))


@pytest.mark.parametrize(("operation", "body"), [
    ("chat", {"messages": [{"role": "user", "content": "hi"}]}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
              "max_tokens": 128_000, "temperature": 0, "stop": None}),
    ("completions", {"prompt": "hi", "max_tokens": 16}),
    ("embeddings", {"input": [[1, 2, 3]]}),
])
def test_normal_calls_are_allowed_without_a_label(operation: str, body: dict[str, Any], bundle: Bundle) -> None:
    """A new deployment works before anyone has read the rules."""
    decision = judged(bundle, body, operation=operation)
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
def test_the_example_against_a_word_holds_for_every_operation(operation: str, body: dict[str, Any], expected: str, engine: str) -> None:
    """It stands in the file as a comment; taken out of it, it does what it says."""
    commented = BASELINE.read_text(encoding="utf-8").rpartition("# [[rule]]\n")[2]
    text = "[[rule]]\n" + "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    rules = PolicyFile.model_validate(tomllib.loads(text)).rule
    assert judged(compile_bundle(rules, engine), body, operation=operation).name == expected


def test_an_absurd_token_limit_is_denied_with_a_way_out(bundle: Bundle) -> None:
    """By either of its names."""
    for key in ("max_tokens", "max_completion_tokens"):
        decision = judged(bundle, {key: 1_000_001})
        assert (decision.name, decision.rule) == ("deny", "absurd-max-tokens")
        assert decision.message
        assert decision.remedy


def test_large_requests_and_tools_are_labelled(bundle: Bundle) -> None:
    """For whoever reads the journal."""
    decision = judged(bundle, {"tools": [TOOL]}, size=1_000_001)
    assert (decision.name, decision.labels) == ("allow", ("large-request", "offers-tools"))


def test_tools_of_an_unknown_shape_are_not_refused_by_a_log_rule(bundle: Bundle) -> None:
    """Only what denies fails closed; this is counted as an error."""
    decision = judged(bundle, {"tools": [{"googleSearch": {}}]})
    assert decision.name == "allow"
    assert [reason.rule for reason in decision.reasons if reason.verdict == "error"] == ["offers-tools"]
