"""Money is exact: what is charged, in which class, and how it is written."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Usage
from gateway.core.money import LINES, Price, Tier, cost_nusd, dearest, usd

RATES = st.integers(0, 10**9)
TOKENS = st.integers(0, 10**7)
CLASSES = ("cache_read", "cache_write", "input_audio", "output_audio", "reasoning")
PLAIN = st.builds(Price, RATES, RATES, **dict.fromkeys(CLASSES, st.none() | RATES), image=RATES, request=st.integers(0, 10**12))
TIERS = st.lists(st.builds(Tier, st.integers(1, 10**6), PLAIN), max_size=3, unique_by=lambda tier: tier.above)
PRICES = st.builds(lambda price, tiers: replace(price, tiers=tuple(sorted(tiers, key=lambda tier: tier.above))), PLAIN, TIERS)
USAGES = st.builds(Usage, *[TOKENS] * 7, images=st.integers(0, 50))


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


def test_reasoning_is_charged_at_its_own_price_and_audio_goes_before_it():
    price = Price(0, 2_000_000, reasoning=5_000_000, output_audio=80_000_000)
    usage = Usage(output_tokens=10, reasoning_tokens=8, output_audio_tokens=4)
    assert cost_nusd(price, usage) == 4 * 80_000 + 6 * 5000
    assert cost_nusd(replace(price, reasoning=None), usage) == 4 * 80_000 + 6 * 2000


def test_pictures_of_a_request_are_charged_by_number_at_the_price_of_the_tier():
    price = Price(0, 0, image=3_000, tiers=(Tier(10, Price(0, 0, image=5_000)),))
    assert [cost_nusd(price, Usage(input_tokens=tokens, images=2)) for tokens in (10, 11)] == [6, 10]


def _exact(price: Price, usage: Usage) -> Decimal:
    """The same sum by another way: every token in turn goes to the first class that still has a claim."""
    total = max(usage.input_tokens, usage.cache_read_tokens + usage.cache_write_tokens)
    at = price.at(total)
    owed = usage.images * at.image + at.request
    for whole, plain, claims in (
            (max(total, usage.input_audio_tokens), at.input,
             ((usage.input_audio_tokens, at.input_audio), (usage.cache_write_tokens, at.cache_write), (usage.cache_read_tokens, at.cache_read))),
            (max(usage.output_tokens, usage.output_audio_tokens, usage.reasoning_tokens), at.output,
             ((usage.output_audio_tokens, at.output_audio), (usage.reasoning_tokens, at.reasoning)))):
        begun = 0
        for tokens, rate in claims:
            end = min(whole, begun + tokens)
            owed += (end - begun) * (plain if rate is None else rate)
            begun = end
        owed += (whole - begun) * plain
    return Decimal(owed) / 1000


@settings(deadline=None)
@given(PRICES, USAGES)
def test_a_cost_is_within_a_nano_dollar_a_line_of_the_exact_sum_and_never_below(price, usage):
    exact = _exact(price, usage)
    assert exact <= cost_nusd(price, usage) < exact + LINES


@settings(deadline=None)
@given(PRICES, USAGES)
def test_what_is_dearest_is_at_least_what_any_token_costs(price, usage):
    total = max(usage.input_tokens, usage.cache_read_tokens + usage.cache_write_tokens)
    worst = dearest(price, total, audio=True)
    tokens = max(total, usage.input_audio_tokens)
    output = max(usage.output_tokens, usage.output_audio_tokens, usage.reasoning_tokens)
    most = tokens * worst.input + output * worst.output + usage.images * worst.image + worst.request
    assert _exact(price, usage) * 1000 <= most


def test_prices_of_audio_and_of_tiers_that_cannot_apply_do_not_make_a_call_dearer():
    price = Price(2, 3, input_audio=90, output_audio=91, tiers=(Tier(100, Price(5, 7, image=1, request=1)),))
    assert dearest(price, 100, audio=False) == Price(2, 3)
    assert dearest(price, 101, audio=False) == Price(5, 7, image=1, request=1)
    assert dearest(price, 1, audio=True) == Price(90, 91)


@settings(deadline=None)
@given(PLAIN, st.builds(Usage, TOKENS, TOKENS), st.integers(0, 10**6))
def test_more_tokens_never_cost_less(price, usage, more):
    assert cost_nusd(price, Usage(usage.input_tokens + more, usage.output_tokens)) >= cost_nusd(price, usage)


@pytest.mark.parametrize(("nusd", "text"), [
    (0, "0"), (1, "0.000000001"), (400_000, "0.0004"), (10**9, "1"), (10**10, "10"), (1_500_000_000, "1.5"),
    (-400_000, "-0.0004"), (2**63, "9223372036.854775808")])
def test_money_is_written_as_an_exact_decimal_without_an_exponent(nusd, text):
    assert usd(nusd) == text


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63))
def test_what_is_written_is_what_is_meant(nusd):
    assert Decimal(usd(nusd)).scaleb(9) == nusd
    assert "E" not in usd(nusd).upper()
