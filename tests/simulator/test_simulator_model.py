"""The pretend model's words and numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.model import answer_text, asked_calls, count_tokens, tokens, utter, utter_calls, vector


@given(st.text())
def test_tokens_join_to_their_text_and_are_as_many_as_its_words(text):
    assert "".join(tokens(text)) == text
    assert len(tokens(text)) == max(count_tokens(text), 1 if text else 0)


def test_a_long_blank_end_costs_no_time():
    """The expression that finds tokens would try every place of it; a million blanks took minutes."""
    assert tokens("a" + " " * 1_000_000) == ("a" + " " * 1_000_000,)


@given(st.text(), st.integers(1, 30), st.integers(0, 30))
def test_no_utterance_is_longer_than_its_limit(prompt, limit, reasoning):
    assert utter(answer_text(prompt, ""), limit=limit, reasoning=reasoning).tokens <= limit
    calls = asked_calls('call a {"x": "0123456789"} call b {"y": [1, 2, 3]}')
    assert utter_calls(calls, limit=limit, reasoning=reasoning).tokens <= limit


def test_calls_end_at_what_is_no_json_and_at_a_bound():
    text = 'call a {"x": {"y": "}"}} call b {bad} call c {} call d [1]'
    assert [(call.name, "".join(call.arguments)) for call in asked_calls(text)] == [("a", '{"x":{"y":"}"}}'), ("c", "{}")]
    assert [call.name for call in asked_calls('call bank.pay {"amount": 5}')] == ["bank.pay"]
    assert len(asked_calls("call a {} " * 500)) == 128
    assert asked_calls("call a " + '{"a":' * 100_000) == []


@given(st.text(), st.integers(1, 64))
def test_vectors_are_unit_long_and_always_the_same(text, dimensions):
    one = vector(text, dimensions)
    assert one == vector(text, dimensions)
    assert math.isclose(math.hypot(*one), 1.0, rel_tol=1e-5)
