"""What people approve has one name: equal actions the same, and two that differ anywhere different ones."""

import json
from dataclasses import replace
from typing import Any

import jsonpatch
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.action import Action, UncanonicalError, canonical, digest_of, json_patch, without_delivery

EXACT = 2**53 - 1
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-EXACT, EXACT) | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4), max_leaves=12)


def action(**changes: Any) -> Action:
    made = Action("tool", "tool", "key_1", "", "", "bank.pay", "sha256:s", {"to": "ada", "amount": 10, "note": "thanks"})
    return replace(made, **changes)


@given(VALUES)
def test_the_canonical_form_is_that_of_rfc_8785(value):
    assert canonical(value) == rfc8785.dumps(value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), VALUES, max_size=6))
def test_the_order_and_spacing_that_an_object_came_in_make_no_difference(value):
    backwards = dict(reversed(list(value.items())))
    assert digest_of(json.loads(json.dumps(backwards, indent=3))) == digest_of(value)


def test_examples_of_the_rfc():
    """Section 3.2.3 and appendix B: names by UTF-16 code units, numbers as ECMAScript writes them."""
    assert canonical({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}) == (
        '{"\\r":2,"1":4,"\x80":6,"\u00f6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}'.encode())
    assert canonical([333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001]) == b"[333333333.3333333,1e+30,4.5,0.002,1e-27]"


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, 2**63, -(2**53) - 1])
def test_integers_that_a_double_cannot_tell_apart_are_told_apart(number):
    assert digest_of({"account": number}) != digest_of({"account": number + 1})
    assert digest_of({"account": number}) != digest_of({"account": str(number)})


def test_nothing_that_a_caller_can_write_stands_for_a_large_integer():
    with pytest.raises(UncanonicalError):
        digest_of({"account": {"\x00integer": str(2**53 + 1)}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udfff": 1}])
def test_what_has_no_canonical_form_has_no_digest(value):
    with pytest.raises(UncanonicalError):
        digest_of([value])


@pytest.mark.parametrize("changes", [
    {"operation": "chat"}, {"principal": "key_2"}, {"on_behalf_of": "eve"}, {"route": "fast"}, {"tool": "bank.refund"}, {"schema": "sha256:t"},
    {"session": "s"}, {"arguments": {"to": "ada", "amount": 10, "note": "thank"}}, {"arguments": {"to": "ada", "amount": 10.5, "note": "thanks"}},
    {"arguments": {"to": "ada", "amount": 10}}, {"arguments": {"to": "ada", "amount": 10, "note": "thanks", "x": None}},
    {"arguments": {"to": "ada", "amount": "10", "note": "thanks"}}], ids=str)
def test_whatever_differs_is_another_action(changes):
    assert action(**changes).digest != action().digest
    assert action(**changes).presented != action().presented


def test_one_approval_covers_a_proposal_and_the_call_of_it():
    assert action(kind="tool_call").digest == action().digest


def test_where_a_rule_names_what_makes_it_the_same_the_rest_may_be_reworded():
    named = {"payments": {"tool.args.amount": 10}}
    first, other = action(identity=named), action(identity=named, arguments={"to": "ada", "amount": 10, "note": "with thanks"})
    assert first.presented == other.presented
    assert first.digest != other.digest
    assert first.digest == action().digest, "the exact action has one name, whatever a rule calls the same"
    assert first.presented != action(identity={"payments": {"tool.args.amount": 11}}).presented
    assert first.presented != action().presented
    assert first.shown()["identity"] == named
    assert "identity" not in action().shown()


def test_the_shape_of_an_action_is_its_structure_without_its_values():
    """People look at actions of one shape side by side, and decide on all of them at once."""
    alike = action(arguments={"to": "eve", "amount": 99, "note": ""})
    assert action().shape == alike.shape
    values: dict[str, Any] = {"list": [1, "a", {"deep": None}], "flag": True}
    assert action(arguments=values).shape == action(arguments={"list": [{"deep": None}, "b", 2, 3], "flag": False}).shape
    for other in ({"to": "eve", "amount": "99", "note": ""}, {"to": "eve", "amount": 99}, {"to": None, "amount": 99, "note": ""}, {"to": "e", "amount": True, "note": ""}):
        assert action(arguments=other).shape != action().shape, other
    assert action(tool="bank.refund").shape != action().shape


def test_how_an_answer_is_brought_is_no_part_of_what_is_asked():
    assert without_delivery({"model": "m", "stream": True, "stream_options": {}, "n": 1}) == {"model": "m", "n": 1}


def test_what_has_been_changed_is_told_as_a_patch():
    assert json_patch({"amount": 1, "to": "ada"}, {"amount": 2, "to": "ada"}) == [{"op": "replace", "path": "/amount", "value": 2}]
    assert json_patch({}, {}) == []


def test_a_large_change_is_told_by_whole_members_in_little_time():
    """Comparing two lists takes quadratic time, and a caller chooses both."""
    before = {"a/b~c": list(range(60_000)), "same": 1, "gone": {"x": 1}}
    after = {"a/b~c": list(range(60_000, 0, -1)), "same": 1, "new": "y"}
    patch = json_patch(before, after)
    assert patch == [{"op": "remove", "path": "/gone"}, {"op": "add", "path": "/new", "value": "y"},
                     {"op": "replace", "path": "/a~1b~0c", "value": after["a/b~c"]}]
    assert jsonpatch.apply_patch(before, patch) == after
