"""A text that comes in pieces is redacted as the whole is, however it was cut, and little of it is held back."""
# ruff: noqa: RUF001 - digits and hyphens that only look like the plain ones are what is tested

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import redaction as redacting
from gateway.core.decision import Redaction
from gateway.core.detectors import Detectors, pattern_detector
from gateway.core.patterns import PatternError
from gateway.core.redaction import redact_text
from gateway.core.redaction_stream import MOST_HELD, StreamRedactor

SHIPPED = Detectors()
EVERYTHING = (Redaction("pii", SHIPPED.named("pii")), Redaction("secrets", SHIPPED.named("secrets"), (), "<{what}>"), Redaction("ip", SHIPPED.named("ip_address")))

# Values, and what is apt to stand beside them or in the middle of them.
BITS = [
    "4111 1111 1111 1111", "4111-1111-", "1111-1111", "john@x.io", "a@b.c", ".com", "+49 30 1234567", "0171 1234567", "DE89 3704 0044 0532 0130 00", "219-09-9999", " ", "\n", "\0", ".", "-", "_",
    "born on ", "1980-01-02", "8.8.8.8", "::", "tel: ", "-----BEGIN PRIVATE KEY-----", "\nMIIEabcdefghijklmnop", "-----END PRIVATE KEY-----", "--", "password=", "hunter22x", "'", '"', "sk-",
    "a1B2c3D4e5F6g7H8i9J0k", "eyJhbGciOiJI", "https://", "u:p@h", "AKIA", "ABCD2345ABCD2345", "Authorization: ", "Bearer ", "lgk_0123456789ab_", "号", "é", "４１１１", "\ud800", "1", "x"]
TEXTS = st.lists(st.sampled_from(BITS), max_size=12).map("".join)
SOURCES = ["aa", "a{1,3}b?", "(?:a|ab)(?:c|bcd)?", r"\bab\b", "a.{0,3}b", "a$", "(?i)AB{2}", r"[^a]b\B", "(?m)^b", "ab|b{2,4}?", "^a", "(?s)a.{2}", "é|bé", r"a\z"]


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def streamed(parts: list[str], redactions) -> str:
    redactor = StreamRedactor(redactions)
    return "".join([*(redactor.feed(part) for part in parts), redactor.end()])


class Lines:
    """A detector that is no pattern: a word behind `id: `, which it looks back at."""

    name = "id"
    longest = 12

    def find(self, text, start=0):
        at = start
        while (at := text.find("!", at)) >= 0:
            if text[max(0, at - 4):at] == "id: ":
                end = at + 1
                while end < min(len(text), at + 8) and text[end].isalpha():
                    end += 1
                yield at, end
                at = end
            else:
                at += 1


@given(TEXTS, st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=250, deadline=None)
def test_shipped_detectors_find_the_same_in_pieces(text, cuts):
    assert streamed(pieces(text, cuts), EVERYTHING) == redact_text(text, EVERYTHING)


@given(st.text(alphabet="aabbcdAé \n", max_size=24), st.lists(st.sampled_from(SOURCES), min_size=1, max_size=3), st.lists(st.integers(0, 24), max_size=6))
@settings(max_examples=400, deadline=None)
def test_patterns_of_rules_find_the_same_in_pieces(text, sources, cuts):
    redactions = [Redaction(str(number), (pattern_detector(source),), (), f"<{number}>") for number, source in enumerate(sources)]
    assert streamed(pieces(text, cuts), redactions) == redact_text(text, redactions)


@given(st.lists(st.sampled_from(["id: ", "!", "abc", "d", " ", "john@x.io", "id", ":"]), max_size=14).map("".join), st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_detector_that_is_no_pattern_finds_the_same_in_pieces(text, cuts):
    redactions = [Redaction("own", (Lines(),)), Redaction("mail", SHIPPED.named("email"))]
    assert streamed(pieces(text, cuts), redactions) == redact_text(text, redactions)


VALUES = ["Mail john@example.com or a@b.co. Call +1 (415) 555-2671!", "card 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00 paid", "password=hunter2hunter2 sk-proj-" + "b9X2kQ71mZ" * 2 + ".",
          "-----BEGIN PRIVATE KEY-----\nMIIEabcdefghijklmnop\n-----END PRIVATE KEY----- tail", "https://u:p@ss@host/x 219-09-9999 born 1/2/1980 是4111111111111111。"]


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_found_wherever_it_is_cut(text):
    whole = redact_text(text, EVERYTHING)
    assert whole != text
    for cut in range(len(text) + 1):
        assert streamed([text[:cut], text[cut:]], EVERYTHING) == whole
    for first in range(0, len(text), 3):
        for second in range(first, len(text), 5):
            assert streamed([text[:first], text[first:second], text[second:]], EVERYTHING) == whole
    assert streamed(list(text), EVERYTHING) == whole
    assert streamed(["", text, ""], EVERYTHING) == whole


def test_only_what_may_be_the_beginning_of_a_value_is_held_back():
    redactor = StreamRedactor(EVERYTHING)
    assert redactor.feed("Hello there, ") == "Hello there,"
    assert redactor.feed("write to john") == " write to"
    assert redactor.feed("@x.i") == ""
    assert redactor.feed("o") == ""
    assert redactor.feed(" now") == " [redacted:email]"
    assert redactor.feed("!") == " now"
    assert redactor.end() == "!"


def test_a_value_is_told_as_soon_as_it_is_certain():
    redactor = StreamRedactor([Redaction("r", (pattern_detector("ab"),), (), "X")])
    assert [redactor.feed(letter) for letter in "abaab"] == ["", "", "X", "a", ""]
    assert redactor.end() == "X"


def test_what_is_held_is_bounded_by_the_longest_finding():
    redactor = StreamRedactor([Redaction("r", (pattern_detector("a{1,50}b"),))])
    out = 0
    for _ in range(1000):
        out += len(redactor.feed("aaaaaaaaaa"))
        assert len(redactor._text) <= 2 * 51 + 10
    assert out >= 10_000 - 2 * 51
    pem = StreamRedactor(EVERYTHING)
    pem.feed("-----BEGIN PRIVATE KEY-----\n")
    held = [(pem.feed("A" * 64 + "\n"), len(pem._text))[1] for _ in range(1000)]
    assert max(held) <= 2 * 16_384 + 100


def test_findings_that_stand_close_together_do_not_pile_up():
    redactor = StreamRedactor([Redaction("r", (pattern_detector("x=(a|bc)"), *SHIPPED.named("assigned_secret")))])
    text = "x=a,x=bc;password=hunter2hunter2 " * 200
    out = ""
    for start in range(0, len(text), 7):
        out += redactor.feed(text[start:start + 7])
        assert len(redactor._text) < 1000
    assert out + redactor.end() == redact_text(text, [Redaction("r", (pattern_detector("x=(a|bc)"), *SHIPPED.named("assigned_secret")))])


@pytest.mark.parametrize("source", ["a+", "(?s)BEGIN.*END", r"\ba{1,3}b*"])
def test_a_pattern_without_an_end_waits_for_the_end(source):
    redactor = StreamRedactor([Redaction("r", (pattern_detector(source),))])
    assert redactor.whole
    assert redactor.feed("BEGIN aaa ") == ""
    assert redactor.feed("aab END") == ""
    assert redactor.end() == redact_text("BEGIN aaa aab END", [Redaction("r", (pattern_detector(source),))])


class Endless(Lines):
    longest = MOST_HELD + 1


def test_a_detector_that_looks_too_far_waits_for_the_end():
    redactor = StreamRedactor([Redaction("r", (Endless(),))])
    assert redactor.whole
    assert redactor.feed("id: !abc ") == ""
    assert redactor.end() == "id: [redacted:id] "


def test_so_many_patterns_that_they_are_too_large_together_wait_for_the_end(monkeypatch):
    def refuse(_):
        raise PatternError("too large")

    monkeypatch.setattr(redacting, "AnyOf", refuse)
    redactor = StreamRedactor([Redaction("r", (pattern_detector("nobody{1,7}"),))])
    assert redactor.whole
    assert redactor.feed("nobody") + redactor.end() == "[redacted:pattern]"


def test_shipped_detectors_need_not_wait():
    assert not StreamRedactor(EVERYTHING).whole
    nothing = StreamRedactor([])
    assert not nothing.whole
    assert nothing.feed("abc") + nothing.end() == "abc"
