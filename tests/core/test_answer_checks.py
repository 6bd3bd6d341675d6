"""What a route asks of an answer: every choice has to pass every validator, and an expression that cannot be evaluated is not passed."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Reply, Usage
from gateway.core.answer_checks import (
    ANSWER_FACTS,
    NOT_ACCEPTED,
    AnswerChecks,
    Check,
    acceptance,
    answer_engine,
    answer_table,
    choices_of,
    finish_reasons,
    fits_schema,
    holds,
    matches,
    non_empty,
)
from gateway.core.expressions import Engine, ExpressionError, Library
from gateway.core.patterns import PatternError

TOOLS = [{"id": "c1", "type": "function", "function": {"name": "bank.pay", "arguments": "{}"}}]


def reply(*messages: Any, usage: Usage | None = None, **more: Any) -> Reply:
    """An answer with a choice for each message; a text is its content."""
    choices = [{"index": number, "message": each if isinstance(each, dict) else {"role": "assistant", "content": each},
                "finish_reason": "stop", **more} for number, each in enumerate(messages)]
    return Reply({"choices": choices}, usage)


def fault(check: Check, answer: Reply) -> str | None:
    return AnswerChecks((check,)).fault(answer, "one/m", accepting=False)


@pytest.fixture(scope="module")
def engine(engine_name: str, library: Library) -> Engine:
    """Either engine, for expressions over answers."""
    return answer_engine(engine_name, library)


@pytest.fixture
def says(engine: Engine) -> Callable[[str, Reply], bool]:
    """Whether a validator that is this expression takes an answer."""
    return lambda source, answer: fault(holds(engine, source), answer) is None


# Validators.


@pytest.mark.parametrize("message", [
    "text", {"content": None, "tool_calls": TOOLS}, {"content": None, "refusal": "I cannot"}, {"content": "", "function_call": {"name": "f"}},
    {"content": None, "audio": {"id": "a"}}, {"content": [{"type": "text", "text": "part"}]}, {"content": ["plain"]}])
def test_an_answer_that_says_something_or_calls_a_tool_is_not_empty(message):
    assert fault(non_empty(), reply(message)) is None


@pytest.mark.parametrize("message", [
    "", None, " \n\t", {}, {"content": None, "tool_calls": []}, {"content": [], "tool_calls": "no list"}, {"content": 7}, {"content": [{"type": "x"}]},
    {"content": None, "reasoning_content": "I thought for long"}])
def test_an_answer_that_says_nothing_is_empty(message):
    assert fault(non_empty(), reply(message)) == "check:non_empty"


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": "x"}, {"choices": ["x", 1, None]}])
def test_an_answer_without_choices_passes_nothing_about_a_text(body):
    answer = Reply(body, None)
    assert fault(non_empty(), answer) == "check:non_empty"
    assert fault(matches("a"), answer) == "check:matches"
    assert fault(finish_reasons(frozenset({"stop"})), answer) == "check:finish_reasons"
    assert fault(fits_schema(lambda _: ""), answer) == "check:json_schema"


def test_every_choice_has_to_pass():
    """A client that asks for three answers may take the third."""
    assert fault(non_empty(), reply("a", "b", "")) == "check:non_empty"
    assert fault(matches("b"), reply("a", "b")) == "check:matches"
    assert fault(matches("[ab]"), reply("a", "b")) is None


@pytest.mark.parametrize(("text", "passes"), [('{"a": 1}', True), ('{"a": "x"}', False), ("{", False), ("", False), ("NaN", False), ('"a"', False)])
def test_a_text_has_to_be_json_that_fits(text, passes):
    check = fits_schema(lambda value: "" if isinstance(value, dict) and isinstance(value["a"], int) else "/a: is no number")
    assert (fault(check, reply(text)) is None) is passes


def test_json_that_is_nested_beyond_reason_does_not_fit():
    assert fault(fits_schema(lambda _: ""), reply("[" * 100_000)) == "check:json_schema"


def test_what_is_about_a_text_is_not_asked_of_a_choice_that_only_calls_tools():
    calling = reply({"content": None, "tool_calls": TOOLS})
    assert fault(fits_schema(lambda _: "no"), calling) is None
    assert fault(matches("never"), calling) is None
    talking = reply({"content": "text beside", "tool_calls": TOOLS})
    assert fault(fits_schema(lambda _: ""), talking) == "check:json_schema"
    assert fault(matches("never"), talking) == "check:matches"


def test_a_text_has_to_match_somewhere():
    assert fault(matches(r"\bok\b"), reply("all ok here")) is None
    assert fault(matches(r"\bok\b"), reply("\ud800 ok")) is None, "half a character is none of the caller's business"
    assert fault(matches(r"^ok"), reply("not ok")) == "check:matches"


def test_a_pattern_that_cannot_be_used_is_refused_at_load():
    with pytest.raises(PatternError):
        matches("(")
    with pytest.raises(PatternError):
        matches("a*")


def test_every_choice_has_to_end_for_one_of_the_reasons():
    check = finish_reasons(frozenset({"stop", "tool_calls"}))
    assert fault(check, reply("a")) is None
    assert fault(check, reply("a", finish_reason="length")) == "check:finish_reasons"
    assert fault(check, reply("a", finish_reason=None)) == "check:finish_reasons"


def test_the_first_validator_that_fails_is_named():
    checks = AnswerChecks((non_empty(), matches("x"), finish_reasons(frozenset({"stop"}))))
    assert checks.fault(reply("y", finish_reason="length"), "one/m", accepting=False) == "check:matches"
    assert checks.fault(reply("x"), "one/m", accepting=True) is None


def test_completions_have_their_text_elsewhere():
    answer = Reply({"choices": [{"text": "done", "finish_reason": "stop", "logprobs": {"token_logprobs": [None, -1.0, -3.0]}}]}, None)
    [choice] = choices_of(answer, "one/m")
    assert (choice.text, choice.finish_reason, choice.logprob, choice.says) == ("done", "stop", -2.0, True)
    assert not choices_of(Reply({"choices": [{"text": 5}]}, None), "one/m")[0].says


# Expressions.


@pytest.mark.parametrize(("source", "passes"), [
    ('response.text.contains("done")', True), ('response.finish_reason == "stop"', True), ('response.tool_calls == ["bank.pay", "older"]', True),
    ("response.usage.output_tokens < 10", True), ("response.usage.output_tokens < 5", False), ("answer.length == 4", True),
    ("answer.json", False), ('target == "one/m"', True), ("answer.logprob < -1.0", True), ("answer.logprob < -2.0", False)])
def test_an_expression_reads_the_answer(says, source, passes):
    message = {"content": "done", "tool_calls": TOOLS, "function_call": {"name": "older"}}
    tokens = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}, {"token": "c", "logprob": "x"}, 7]
    assert says(source, reply(message, usage=Usage(3, 5), logprobs={"content": tokens})) is passes


def test_an_expression_is_asked_of_every_choice(says):
    assert not says("answer.length > 1", reply("long enough", "x"))
    assert says("answer.json", reply('{"a": 1}', "[1]"))


def test_an_expression_that_cannot_be_evaluated_is_not_passed(says):
    assert not says("response.usage.output_tokens >= 0", reply("a")), "the provider did not say"
    assert not says("response.tool_calls[5] != ''", reply("a"))
    assert not says("response.usage.unknown == 1 || answer.length / 0 == 1", reply("a", usage=Usage(1, 1)))


@pytest.mark.parametrize("logprobs", [
    None, {}, "x", [1], {"content": []}, {"content": "x"}, {"content": [{}]}, {"content": [{"logprob": True}]},
    {"content": [{"logprob": float("-inf")}, {"logprob": float("nan")}, {"logprob": 10**400}]}, {"token_logprobs": "x"}])
def test_an_answer_without_log_probabilities_has_none(says, logprobs):
    assert says("answer.logprob == 0.0", reply("a", logprobs=logprobs))


@pytest.mark.parametrize("tools", [[{"function": {"name": 5}}], [{}], [{"custom": {"name": ""}}]])
def test_a_tool_call_without_a_name_is_one_all_the_same(says, tools):
    assert says('response.tool_calls == [""]', reply({"tool_calls": tools}))


@pytest.mark.parametrize("source", ["answer.valid", "answer.lenght > 1", "answer.length", "request.size > 1", "true &&"])
def test_an_expression_that_cannot_be_used_is_refused_at_load(engine, source):
    if engine.name == "cel-python" and source == "answer.length":
        pytest.skip("it knows no types")
    with pytest.raises(ExpressionError):
        holds(engine, source)


# Cascades.


def test_what_is_not_accepted_is_only_said_while_there_is_another_to_ask(engine):
    checks = AnswerChecks((), acceptance(engine, "answer.length > 3"))
    assert checks.fault(reply("abc"), "one/m", accepting=True) == NOT_ACCEPTED
    assert checks.fault(reply("abc"), "one/m", accepting=False) is None, "the last answer is given whatever it is"
    assert checks.fault(reply("abcd"), "one/m", accepting=True) is None
    assert checks.fault(reply("abcd", "abc"), "one/m", accepting=True) == NOT_ACCEPTED


def test_accept_may_leave_it_to_the_validators(engine):
    """Then the next target is asked at once, and the cheap one not again; the last one's answer has to pass."""
    checks = AnswerChecks((non_empty(), matches("yes")), acceptance(engine, "answer.valid"))
    assert checks.fault(reply("no"), "one/m", accepting=True) == NOT_ACCEPTED
    assert checks.fault(reply("no"), "one/m", accepting=False) == "check:matches"
    assert checks.fault(reply("yes"), "one/m", accepting=True) is None


def test_what_accept_takes_still_has_to_pass_the_validators(engine):
    checks = AnswerChecks((matches("yes"),), acceptance(engine, "answer.length > 0"))
    assert checks.fault(reply("no"), "one/m", accepting=True) == "check:matches"


def test_an_acceptance_that_cannot_be_evaluated_does_not_accept(engine):
    checks = AnswerChecks((), acceptance(engine, "response.usage.output_tokens > 0"))
    assert checks.fault(reply("a"), "one/m", accepting=True) == NOT_ACCEPTED


def test_a_route_that_asks_nothing_takes_everything():
    assert AnswerChecks().fault(Reply({}, None), "one/m", accepting=True) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "text", "tool_calls", "function", "name", "logprobs", "finish_reason", "logprob"]),
        inner, max_size=4), max_leaves=15)


@given(st.dictionaries(st.just("choices"), st.lists(JSON, max_size=3) | JSON))
def test_whatever_a_provider_answers_there_is_a_verdict(body):
    checks = AnswerChecks((non_empty(), matches("a"), finish_reasons(frozenset({"stop"})), fits_schema(lambda _: "")))
    assert checks.fault(Reply(body, None), "one/m", accepting=True) in {
        None, "check:non_empty", "check:matches", "check:finish_reasons", "check:json_schema"}


def test_the_table_names_every_variable():
    table = answer_table()
    assert all(f"| `{fact.name}` | `{fact.type}` |" in table for fact in ANSWER_FACTS)


@pytest.mark.parametrize(("check", "says"), [
    (non_empty(), "it says nothing"), (matches("^x"), "it does not match `^x`"), (finish_reasons(frozenset({"stop"})), "for another reason than stop"),
    (fits_schema(lambda _: "/a: is no number"), "it is not JSON")])
def test_what_is_wrong_with_an_answer_is_said_without_a_word_of_it(check, says):
    """Else nobody could mend the prompt; and what a model says is not for every log."""
    secret = reply("", finish_reason="length") if check.name == "check:non_empty" else reply("secret words", finish_reason="length")
    checks = AnswerChecks((check,))
    assert says in checks.why(secret, "one/m", check.name)
    assert "secret" not in checks.why(secret, "one/m", check.name)
    assert checks.why(reply("x"), "one/m", check.name) == "" or check.name == "check:json_schema"


def test_a_schema_says_where_it_is_not_met():
    checks = AnswerChecks((fits_schema(lambda _: "/a: is no number"),))
    assert checks.why(reply('{"a": 1}'), "one/m", "check:json_schema") == "/a: is no number"


def test_an_expression_is_said_as_it_stands(engine):
    checks = AnswerChecks((holds(engine, "answer.length > 5"),), acceptance(engine, "answer.length > 9"))
    assert checks.why(reply("abc"), "one/m", "check:expression") == "`answer.length > 5` does not hold"
    assert checks.why(reply("abc"), "one/m", NOT_ACCEPTED) == "`answer.length > 9` does not hold"
    assert AnswerChecks().why(reply("abc"), "one/m", NOT_ACCEPTED) == ""
