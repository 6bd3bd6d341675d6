"""Durations, sizes and prices are read exactly and written back as they would be read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.units import (
    parse_duration,
    parse_request_price,
    parse_size,
    parse_token_price,
    plausible,
    show_duration,
    show_pico,
    show_size,
)


@pytest.mark.parametrize(("text", "seconds"), [
    ("250ms", 0.25), ("30s", 30.0), ("1.5h", 5400.0), ("24h", 86400.0), ("366d", 31622400.0), ("0s", 0.0), ("0.001ms", 0.000001)])
def test_a_duration_is_read_in_seconds(text, seconds):
    assert math.isclose(parse_duration(text), seconds)


@pytest.mark.parametrize(("seconds", "text"), [
    (0.25, "250ms"), (30.0, "30s"), (600.0, "10m"), (86400.0, "1d"), (0.0, "0s"), (0.0005, "0.0005s")])
def test_a_duration_is_written_in_its_largest_whole_unit(seconds, text):
    assert show_duration(seconds) == text


@given(st.integers(0, 10**9).map(lambda ms: ms / 1000))
def test_a_duration_that_is_written_is_read_again(seconds):
    assert math.isclose(parse_duration(show_duration(seconds)), seconds)


@given(st.integers(1, 2**40))
def test_a_size_that_is_written_is_read_again(size):
    assert parse_size(show_size(size)) == size


@given(st.integers(0, 10**14))
def test_a_price_that_is_written_is_read_again(pico):
    assert parse_token_price(show_pico(10**6)(pico)) == pico
    assert parse_request_price(show_pico(10**12)(pico)) == pico


@pytest.mark.parametrize(("pico", "expected"), [(0, True), (999, False), (1000, True), (10**9, True), (10**9 + 1, False)])
def test_a_price_outside_what_anybody_asks_is_implausible(pico, expected):
    assert plausible(pico) is expected
