"""What text from outside looks like in a line or a span."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.clean import LONG, SHORT, Cleaner


@pytest.fixture
def clean(scrub) -> Cleaner:
    return Cleaner(scrub)


def test_a_secret_is_taken_out(clean, secret):
    assert clean(f"key {secret} was refused") == "key ******** was refused"


def test_text_over_the_limit_is_cut_and_says_how_long_it_was(clean):
    assert clean("x" * 1_000_000, LONG) == "x" * LONG + "… (1000000 characters)"
    assert clean("x" * SHORT) == "x" * SHORT


def test_a_secret_that_straddles_the_cut_does_not_show_in_part(clean, secret):
    for before in range(SHORT - len(secret) - 2, SHORT + 2):
        assert "sk-up" not in clean("x" * before + secret + "y" * 9_000)


def test_scrubbing_that_shortens_the_text_brings_no_half_secret_into_sight(scrub, secret):
    """The end of what is scrubbed moves up by all that was taken out before it."""
    many = "".join([secret] * 400)
    for offset in range(len(secret)):
        assert "sk-" not in Cleaner(scrub)("x" * offset + many)


def test_scrubbing_is_never_given_a_whole_megabyte():
    seen: list[int] = []

    def measure(text: str) -> str:
        seen.append(len(text))
        return text

    Cleaner(measure)("x" * 1_000_000, LONG)
    assert max(seen) <= LONG + 4_096


def test_a_lone_surrogate_leaves_as_its_escape(clean):
    assert clean("file-\udcff") == "file-\\udcff"


def test_no_text_stays_no_text(clean):
    assert clean.optional(None) is None
    assert clean.optional("") == ""
    assert clean.optional("a") == "a"


@given(st.text(st.characters(exclude_categories=[]), max_size=600))
def test_whatever_comes_in_can_be_encoded_and_is_bounded(text):
    cleaned = Cleaner(lambda given_text: given_text)(text)
    assert len(cleaned.encode()) <= 6 * SHORT + 40
