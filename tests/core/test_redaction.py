"""What is found is taken out of texts and JSON, once, and nothing else is touched."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import detectors as module
from gateway.core import redaction as redacting
from gateway.core.decision import Redaction
from gateway.core.detectors import DetectionError, Detectors, pattern_detector
from gateway.core.patterns import PatternError
from gateway.core.redaction import found_in, redact_fields, redact_json_text, redact_text, redact_value, steps_of

SHIPPED = Detectors()
PII = Redaction("pii", SHIPPED.named("pii"))
BOTH = (PII, Redaction("secrets", SHIPPED.named("secrets")))


def patterns(*sources, replacement="<{what}>"):
    return [Redaction(str(number), (pattern_detector(source),), (), replacement.replace("{what}", str(number))) for number, source in enumerate(sources)]


class Words:
    """A detector that is no pattern, as a deployment may have one."""

    name = "word"
    longest = None

    def __init__(self, *spans):
        self.spans = spans

    def find(self, text, start=0):
        return iter([span for span in self.spans if start <= span[0] and span[1] <= max(2, len(text))])


def test_what_is_found_is_replaced_by_its_name():
    text = "john@x.io paid with 4111 1111 1111 1111, password=hunter2hunter2"
    assert redact_text(text, BOTH) == "[redacted:email] paid with [redacted:credit_card], password=[redacted:assigned_secret]"


def test_a_text_without_findings_is_the_same_text():
    text = "nothing in here, 12 times"
    assert redact_text(text, BOTH) is text
    assert redact_text(text, []) is text


def test_the_replacement_is_what_the_rule_says_and_is_not_searched_again():
    rule = Redaction("r", SHIPPED.named("email"), (), "{what}: ask admin@x.io")
    assert redact_text("to a@b.co", [rule]) == "to email: ask admin@x.io"


@pytest.mark.parametrize(("text", "sources", "expected"), [
    ("abcde", ["abc", "bc"], "<0>de"), ("abcde", ["bc", "abc"], "<1>de"),  # one inside the other
    ("abcde", ["abc", "bcd"], "<0>e"), ("abcde", ["bcd", "abc"], "<1>e"),  # one runs into the other: what is left of it goes too
    ("abcde", ["abc", "abcd"], "<1>e"), ("abcde", ["abcd", "abc"], "<0>e"),  # from one place: the longest
    ("abcde", ["ab|x", "ab|y"], "<0>cde"),  # the same twice: the first in declared order
    ("abcde", ["ab", "bc", "cd"], "<0>e"), ("aabb", ["aa", "bb"], "<0><1>"),
    ("abab", ["ab"], "<0><0>"), ("aaaaa", ["aa"], "<0><0>a"),
])
def test_what_overlaps_is_replaced_once(text, sources, expected):
    assert redact_text(text, patterns(*sources)) == expected


def test_a_detector_that_is_no_pattern_is_always_asked():
    own = Redaction("own", (Words((0, 2)),), (), "W")
    assert redact_text("abcd", [own]) == "Wcd"
    assert redact_text("abcd", [*patterns("zz"), own]) == "Wcd"
    assert redact_text("abcd", [own, *patterns("d")]) == "Wc<0>"
    assert redact_text("", [own]) == "W"


def test_so_many_patterns_that_they_are_too_large_together_are_asked_one_by_one(monkeypatch):
    def refuse(_):
        raise PatternError("too large")

    monkeypatch.setattr(redacting, "AnyOf", refuse)
    assert redact_text("qqaqq", patterns("qqa{1,2}", "zz")) == "<0>qq"


def test_a_text_that_is_too_much_is_not_taken_for_clean(monkeypatch):
    monkeypatch.setattr(module, "_WORK", 1000)
    with pytest.raises(DetectionError):
        redact_text("a" * 2000, patterns("(?s)a(.*b)?"))


def test_what_a_text_holds_is_told_by_name_each_once():
    text = "a@b.co, c@d.co and 219-09-9999"
    assert found_in(text, SHIPPED.named("pii")) == ["email", "us_ssn"]
    assert found_in("nothing", SHIPPED.named("pii")) == []
    assert found_in("ab", [pattern_detector("b"), pattern_detector("a"), Words((0, 1)), Words()]) == ["pattern", "word"]


def test_every_string_of_a_value_is_redacted_and_no_key():
    value = {"a@b.co": "a@b.co", "list": ["x", {"deep": "c@d.co"}, 4111111111111111, None, True, 1.5]}
    assert redact_value(value, [PII]) == {
        "a@b.co": "[redacted:email]", "list": ["x", {"deep": "[redacted:email]"}, 4111111111111111, None, True, 1.5]}
    assert value["list"][1] == {"deep": "c@d.co"}, "what was given is as it was"


def test_what_nothing_is_taken_out_of_is_the_same_object():
    clean = {"deep": ["x"]}
    value = {"clean": clean, "mail": "a@b.co"}
    after = redact_value(value, [PII])
    assert after["clean"] is clean
    assert redact_value(clean, [PII]) is clean
    assert redact_value(clean, [Redaction("r", (), ("/other", "/deep/7", "/deep/x/y", "/deep/0/z"))]) is clean


@pytest.mark.parametrize(("pointer", "expected"), [
    ("/a", {"a": "X", "l": [{"p": 1, "q": 2}, {"p": 3}], "x/y": {"~": 5}}),
    ("/l/0/p", {"a": {"b": 1}, "l": [{"p": "X", "q": 2}, {"p": 3}], "x/y": {"~": 5}}),
    ("/l/*/p", {"a": {"b": 1}, "l": [{"p": "X", "q": 2}, {"p": "X"}], "x/y": {"~": 5}}),
    ("/l/*", {"a": {"b": 1}, "l": ["X", "X"], "x/y": {"~": 5}}),
    ("/*/b", {"a": {"b": "X"}, "l": [{"p": 1, "q": 2}, {"p": 3}], "x/y": {"~": 5}}),
    ("/x~1y/~0", {"a": {"b": 1}, "l": [{"p": 1, "q": 2}, {"p": 3}], "x/y": {"~": "X"}}),
    ("", "X"),
    *((nowhere, {"a": {"b": 1}, "l": [{"p": 1, "q": 2}, {"p": 3}], "x/y": {"~": 5}}) for nowhere in ("/z", "/l/2", "/l/00", "/l/-", "/a/b/c", "/l/p", "/l/9999999999")),
])
def test_a_field_is_named_by_a_pointer(pointer, expected):
    value = {"a": {"b": 1}, "l": [{"p": 1, "q": 2}, {"p": 3}], "x/y": {"~": 5}}
    assert redact_fields(value, [Redaction("r", (), (pointer,), "X")]) == expected


def test_a_field_is_replaced_whole_and_says_so():
    assert redact_value({"a": "see a@b.co", "n": 5}, [Redaction("r", SHIPPED.named("email"), ("/n",))]) == {
        "a": "see [redacted:email]", "n": "[redacted:field]"}
    assert steps_of("/a~1b/~01") == ["a/b", "~1"]


@pytest.mark.parametrize(("text", "expected"), [
    ('{"to":"a@b.co","n":1.0,"big":4111111111111111}', '{"to":"[redacted:email]","n":1.0,"big":4111111111111111}'),
    ('{ "to" : [ "a@b.co" ] }', '{ "to" : [ "[redacted:email]" ] }'),
    ('{"a@b.co" : 1}', '{"a@b.co" : 1}'),
    ('{"to":"a@b.co","to":"x"}', '{"to":"[redacted:email]","to":"x"}'),  # the one that a parser drops another would read
    (r'{"to":"a\u0040b.co"}', '{"to":"[redacted:email]"}'),  # an escape hides nothing
    (r'{"to":"\"q\\\" a@b.co \ud800"}', r'{"to":"\"q\\\" [redacted:email] \ud800"}'),
    (r'{"kept":"\u0041"}', r'{"kept":"\u0041"}'),
    ("to a@b.co", "to [redacted:email]"), ('{"to":"a@b.co"', '{"to":"[redacted:email]"'), ('"a@b.co"', '"[redacted:email]"'),
    ("4111111111111111", "[redacted:credit_card]"), ("", ""), ('{"n": ' + "1" * 5000 + ', "to": "a@b.co"}', '{"n": ' + "1" * 5000 + ', "to": "[redacted:email]"}'),
])
def test_json_in_a_text_stays_json(text, expected):
    assert redact_json_text(text, [PII]) == expected


def test_json_that_is_nested_too_deep_is_not_taken_for_clean():
    with pytest.raises(DetectionError, match="nested too deep"):
        redact_json_text("[" * 100_000 + "]" * 100_000, [PII])


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from(["a@b.co", "x a@b.co y", "4111 1111 1111 1111"])),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=10)


@given(st.one_of(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.lists(JSON, max_size=4)), st.booleans(), st.sampled_from([None, 1]))
@settings(deadline=None)
def test_json_as_text_and_as_a_value_are_redacted_alike(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert json.loads(redact_json_text(text, [PII])) == redact_value(value, [PII])


@given(JSON)
@settings(deadline=None)
def test_what_was_redacted_holds_nothing_more(value):
    after = redact_value(value, [PII])
    assert redact_value(after, [PII]) is after
