"""Patterns of people run on RE2 or are refused in words; positions are right in any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.patterns import MAX_SOURCE, AnyOf, Letters, Pattern, PatternError


@pytest.mark.parametrize(("source", "message"), [
    ("(", "RE2 does not take the pattern '(': missing ): ("),
    ("a**", "bad repetition operator: **"),
    (r"(a)\1", "invalid escape sequence"),
    ("(?<=a)b", "invalid perl operator"),
    ("x{1001}", "invalid repetition size"),
    (r"\pL{500}\pL{500}\pL{500}", "too large"),
    (".{1,1000}.{1,1000}", "too large: its repetitions multiply to"),
    ("a*", "fits where there is nothing: say what must be there, `+` for `*`"),
    (r"\b", "fits where there is nothing"),
    (r"a\C", r"`\C` is not taken"),
    ("(" * 41 + "a" + ")" * 41, "nested deeper"),
    ("a\ud800", "holds half a character"),
    ("a" * (MAX_SOURCE + 1), f"at most {MAX_SOURCE} characters, and this one has {MAX_SOURCE + 1}"),
])
def test_a_pattern_that_cannot_be_used_is_refused_in_words(source, message, capfd):
    with pytest.raises(PatternError) as caught:
        Pattern(source)
    assert message in str(caught.value)
    assert capfd.readouterr() == ("", ""), "RE2 logs nothing by itself"


def test_a_pattern_knows_how_long_its_matches_are():
    pattern = Pattern(r"PROJ-\d{1,5}")
    assert (pattern.shortest, pattern.longest) == (6, 10)
    assert Pattern(r"PROJ-\d+").longest is None
    assert repr(pattern) == r"Pattern('PROJ-\\d{1,5}', longest=10)"


def test_a_match_tells_where_it_begins_and_what_counts_of_it():
    data = "é pin: 4711, pw: xyzz".encode()
    assert Pattern(r": (\w+)").search(data, 0) == (6, 6, 12)
    pattern = Pattern(r": (?:(\d+)|(\w+))", captured=True)
    assert pattern.search(data, 0) == (6, 8, 12)
    assert pattern.search(data, 12) == (16, 18, 22)
    assert pattern.search(data, 18) is None
    assert Pattern(r"\w+").match(data, 8, 10) == (8, 8, 10)
    assert Pattern(r"\w+").match(data, 7, 10) is None


def test_what_stands_before_the_place_where_a_search_begins_is_seen():
    assert Pattern(r"\bb").search(b"ab b", 1) == (3, 3, 4)
    assert Pattern("^b").search(b"ab", 1) is None


def test_many_patterns_are_asked_in_one_search():
    together = AnyOf([Pattern("abc|xyz"), Pattern(r"(\d)-\d\b"), Pattern("(?i)q")])
    assert [together.anywhere(text.encode(), 0) for text in ("..xyz", "1-2", "1-2a", "Q", "ab", "ABC", "")] == [
        True, True, False, True, False, False, False]
    assert not together.anywhere(b"abc", 1)


@pytest.mark.parametrize(("text", "place"), [
    ("", 0), ("hello", 5), ("hello a", 6), ("hello ab", 6), ("hello abc", 6), ("abcabc", 3), ("abcdab", 4), ("12-", 1), ("1-2", 0), ("1-2 ", 4)])
def test_the_place_is_told_where_something_may_have_begun(text, place):
    """`abc` at the end may have begun and be complete: the next character decides whether it ends there."""
    assert AnyOf([Pattern(r"abc\b"), Pattern(r"\d-\d")]).opens(text.encode(), 0) == place


def test_too_much_together_is_refused():
    with pytest.raises(PatternError, match="too large"):
        AnyOf([Pattern(f"{letter}.{{1,700}}") for letter in "abcdefghijklmnopqrstuvwxyz0123456789"])


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_characters_and_bytes_are_counted_alike(text, places):
    """Also with half a pair of surrogates, which is no text and stands in JSON all the same."""
    letters = Letters(text)
    whole = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    assert letters.data == whole.encode()
    for place in sorted(min(place, len(text)) for place in places):
        assert letters.byte(place) == len(whole[:place].encode())
        assert letters.character(len(whole[:place].encode())) == place


@given(st.text(alphabet=st.characters(), max_size=30), st.integers(0, 30))
def test_a_place_is_found_again(text, place):
    place = min(place, len(text))
    assert Letters(text).character(Letters(text).byte(place)) == place
