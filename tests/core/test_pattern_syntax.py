"""What is read off a pattern holds for every match that RE2 finds: its length, and everything that it can begin with."""

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.pattern_syntax import DEEPEST, shape_of


@pytest.mark.parametrize(("pattern", "least", "most"), [
    ("abc", 3, 3), ("a|bcd", 1, 3), ("a?", 0, 1), ("a*", 0, None), ("a+b", 2, None), ("a{3}", 3, 3), ("a{2,5}", 2, 5), ("a{2,}", 2, None),
    ("a{0}", 0, 0), ("a{0,3}?", 0, 3), ("(?:ab){2,3}c", 5, 7), ("(a|bc){0,4}", 0, 8), ("((a{2}){3}){4}", 24, 24), ("", 0, 0), ("a||b", 0, 1),
    (r"\bab\b", 2, 2), (r"^\Aa\z$", 1, 1), (r"(?:^|\s)x", 1, 2), (r"(\b)*a", 1, 1), (r"\B{5}a", 1, 1),
    ("[abc]", 1, 1), ("[]a]{2}", 2, 2), ("[^]a]{2}", 2, 2), (r"[\]a]{3}", 3, 3), ("[[:alpha:]_]{4}", 4, 4), ("[^[:^digit:]x]", 1, 1), ("[[a]", 1, 1),
    (r"[\pL\d-]{2}", 2, 2), (r"\p{Greek}{2}", 2, 2), (r"\pN\PL", 2, 2), (r"\x{10FFFF}\x41", 2, 2), (r"\101a\0", 3, 3),
    (r"\.\*\\", 3, 3), (r"\d\D\s\S\w\W", 6, 6), ("号é", 2, 2), (".", 1, 1), ("a{,5}", 5, 5), ("a{b", 3, 3), ("{", 1, 1), ("a{1", 3, 3), ("]}", 2, 2),
    ("(?P<name>ab)", 2, 2), ("(?<name>ab)", 2, 2), ("(?i)ab", 2, 2), ("(?i:a)b", 2, 2), ("(?s-i:.)b", 2, 2), ("a(?-s)b|c", 1, 2), ("(?U)a{1,3}", 1, 3),
])
def test_the_length_of_a_match_is_read_from_the_pattern(pattern, least, most):
    re2.compile(pattern)  # it is one that RE2 takes
    shape = shape_of(pattern)
    assert (shape.least, shape.most) == (least, most)


@pytest.mark.parametrize(("pattern", "message"), [
    (r"a\C", r"`\\C` is not taken"), (r"\Qa*\E", r"`\\Q` is not taken"), ("(" * (DEEPEST + 1) + "a" + ")" * (DEEPEST + 1), "nested deeper than 40"),
    ("[a", "cannot be read at character 1"),
])
def test_what_is_not_taken_is_said(pattern, message):
    with pytest.raises(ValueError, match=message):
        shape_of(pattern)


def quantified(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{0,2}", "{1,3}", "{1,}", "??", "{0}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(inner, inner).map("".join), st.tuples(inner, inner).map("|".join), inner.map(lambda part: f"({part})"),
        inner.map(lambda part: f"(?i:{part})"), inner.map(lambda part: f"(?i){part}"), inner.map(lambda part: f"(?s){part}"),
        inner.map(lambda part: f"(?i:(?-i){part})"))


ATOMS = st.sampled_from(["a", "b", "B", "{", "}", "{1", ",", "1", "\\0", "\\101", ".", "[ab]", "[^a]", "[]a]", "\\d", "\\b", "^", "$", "(?m:^)", "\\z", "a{,2}", "é"])
PATTERNS = st.recursive(ATOMS, quantified, max_leaves=8)
TEXTS = st.text(alphabet="abAB1{},\n\0é", max_size=12)


def taken(pattern):
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_every_match_is_as_long_as_its_shape_says_and_opens_as_it_says(pattern, texts):
    compiled = taken(pattern)
    if compiled is None:
        return
    shape = shape_of(pattern)
    opening = re2.compile(f"(?:{shape.opening})")
    for text in texts:
        for match in compiled.finditer(text):
            found = match.group()
            assert shape.least <= len(found)
            assert shape.most is None or len(found) <= shape.most
            for end in range(len(found) + 1):
                assert opening.fullmatch(found[:end]), (pattern, shape, found[:end])


@given(PATTERNS)
@settings(max_examples=200, deadline=None)
def test_what_is_made_of_a_pattern_is_a_pattern(pattern):
    if taken(pattern) is not None:
        shape = shape_of(pattern)
        assert taken(f"(?:{shape.opening})\\z") is not None
        assert taken(shape.whole) is not None
