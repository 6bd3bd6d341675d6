"""Money is exact: what is charged, in which class, and how it is written."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Usage
from gateway.core.money import Price, Tier, cost_nusd, usd

RATES = st.integers(0, 10**9)
TOKENS = st.integers(0, 10**7)
PRICES = st.builds(Price, RATES, RATES, st.none() | RATES, st.none() | RATES, st.none() | RATES, st.none() | RATES, st.integers(0, 10**12))


def test_plain_tokens_cost_their_number_times_their_price():
    assert cost_nusd(Price(2_500_000, 10_000_000), Usage(1000, 100)) == 2_500_000 + 1_000_000


def test_cached_tokens_are_charged_once_and_at_their_own_price():
    price = Price(1_000_000, 0, cache_read=100_000, cache_write=1_250_000)
    assert cost_nusd(price, Usage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=30)) == 10 * 1000 + 60 * 100 + 30 * 1250


def test_cached_tokens_without_a_price_of_their_own_cost_as_input():
    assert cost_nusd(Price(1_000_000, 0), Usage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=10)) == 100 * 1000


def test_audio_is_charged_once_at_its_own_price_in_both_directions():
    price = Price(1_000_000, 2_000_000, input_audio=40_000_000, output_audio=80_000_000)
    usage = Usage(input_tokens=10, input_audio_tokens=4, output_tokens=10, output_audio_tokens=5)
    assert cost_nusd(price, usage) == 6 * 1000 + 4 * 40_000 + 5 * 2000 + 5 * 80_000


def test_a_token_that_is_both_audio_and_cached_is_charged_once_in_the_class_of_audio():
    price = Price(1_000_000, 0, cache_read=100_000, input_audio=40_000_000)
    assert cost_nusd(price, Usage(input_tokens=10, cache_read_tokens=10, input_audio_tokens=10)) == 10 * 40_000


@pytest.mark.parametrize("usage", [
    Usage(input_tokens=0, cache_read_tokens=7, cache_write_tokens=3), Usage(input_tokens=5, input_audio_tokens=10)])
def test_a_total_below_its_parts_does_not_make_the_call_cheaper(usage):
    assert cost_nusd(Price(1_000_000, 0), usage) == 10 * 1000


def test_negative_numbers_of_a_broken_provider_cost_nothing_instead_of_paying():
    assert cost_nusd(Price(1000, 1000), Usage(-5, -5, -5, -5, -5, -5, -5)) == 0


def test_each_class_is_rounded_up_to_a_whole_nano_dollar():
    price = Price(1, 1, cache_read=1, request=1)
    assert cost_nusd(price, Usage(input_tokens=2, cache_read_tokens=1, output_tokens=1)) == 4


def test_a_price_a_call_is_charged_even_without_tokens():
    assert cost_nusd(Price(0, 0, request=5_000_000_000), Usage()) == 5_000_000


def test_a_long_context_is_charged_at_its_tier_for_all_of_its_tokens():
    price = Price(1_000, 1_000, tiers=(Tier(100, Price(2_000, 3_000)), Tier(200, Price(5_000, 7_000))))
    assert [cost_nusd(price, Usage(tokens, 1)) for tokens in (100, 101, 200, 201)] == [101, 205, 403, 1012]


@given(PRICES, st.builds(Usage, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS))
def test_a_cost_is_within_a_nano_dollar_a_class_of_the_exact_sum_and_never_below(price, usage):
    total = max(usage.input_tokens, usage.cache_read_tokens + usage.cache_write_tokens, usage.input_audio_tokens)
    audio = usage.input_audio_tokens
    write = min(usage.cache_write_tokens, total - audio)
    read = min(usage.cache_read_tokens, total - audio - write)
    out = max(usage.output_tokens, usage.output_audio_tokens)

    def rate(own: int | None, plain: int) -> int:
        return plain if own is None else own

    exact = Decimal(
        audio * rate(price.input_audio, price.input) + write * rate(price.cache_write, price.input)
        + read * rate(price.cache_read, price.input) + (total - audio - write - read) * price.input
        + usage.output_audio_tokens * rate(price.output_audio, price.output) + (out - usage.output_audio_tokens) * price.output
        + price.request) / 1000
    assert exact <= cost_nusd(price, usage) < exact + 7


@given(PRICES, st.builds(Usage, TOKENS, TOKENS), st.integers(0, 10**6))
def test_more_tokens_never_cost_less(price, usage, more):
    assert cost_nusd(price, Usage(usage.input_tokens + more, usage.output_tokens)) >= cost_nusd(price, usage)


@pytest.mark.parametrize(("nusd", "text"), [
    (0, "0"), (1, "0.000000001"), (400_000, "0.0004"), (10**9, "1"), (10**10, "10"), (1_500_000_000, "1.5"),
    (-400_000, "-0.0004"), (2**63, "9223372036.854775808")])
def test_money_is_written_as_an_exact_decimal_without_an_exponent(nusd, text):
    assert usd(nusd) == text


@given(st.integers(-(2**63), 2**63))
def test_what_is_written_is_what_is_meant(nusd):
    assert Decimal(usd(nusd)).scaleb(9) == nusd
    assert "E" not in usd(nusd).upper()
