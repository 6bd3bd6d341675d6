"""Prices come from the operator first and from genai-prices second, and agree with genai-prices' own arithmetic."""

from datetime import UTC, datetime, time
from decimal import Decimal

import genai_prices.data_snapshot as published
import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import Tier as PublishedTier
from genai_prices.types import Usage as PublishedUsage

from gateway.call import Target, Usage
from gateway.config import PriceConfig
from gateway.core.money import Price, Tier, cost_nusd
from gateway.prices import _price, _standing, configured_price, knows_provider, price_of, price_providers, published_price

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9

USAGES = [
    Usage(input_tokens=1000, output_tokens=500),
    Usage(input_tokens=150_000, output_tokens=7, cache_read_tokens=100_000, cache_write_tokens=20_000),
    Usage(input_tokens=999_999, output_tokens=12_345, cache_read_tokens=1),
    Usage(input_tokens=200_000, output_tokens=1), Usage(input_tokens=200_001, output_tokens=1),
    Usage(input_tokens=50, output_tokens=60, input_audio_tokens=20, output_audio_tokens=30),
]


def test_the_operators_own_price_goes_before_the_published_one():
    own = PriceConfig.model_validate({"input": "1.00", "output": "2.00"})
    target = Target("mine", "gpt-4o")
    assert price_of(target, {"mine/gpt-4o": own}, "openai", NOW_NS) == Price(1_000_000, 2_000_000)
    assert price_of(target, {}, "openai", NOW_NS) == published_price("openai", "gpt-4o", NOW_NS)


def test_every_class_of_a_configured_price_arrives_where_it_belongs():
    own = PriceConfig.model_validate({"input": "1", "output": "2", "cached_input": "3", "cache_write": "4", "input_audio": "5",
                                      "output_audio": "6", "request": "0.000007"})
    assert configured_price(own) == Price(10**6, 2 * 10**6, 3 * 10**6, 4 * 10**6, 5 * 10**6, 6 * 10**6, 7 * 10**6)


@pytest.mark.parametrize(("provider", "model"), [
    ("openai", "no-such-model"), ("no-such-provider", "gpt-4o"), ("", "gpt-4o"), ("openai", "")])
def test_a_price_that_nobody_knows_is_none_and_never_zero(provider, model):
    assert published_price(provider, model, NOW_NS) is None


def test_without_a_price_provider_no_published_price_applies():
    assert price_of(Target("openai", "gpt-4o"), {}, None, NOW_NS) is None


def test_costs_agree_with_genai_prices_own_for_every_model_that_it_prices_by_the_token():
    """Where genai-prices knows finer classes than an answer tells us (cached audio, pictures), we charge the coarser one."""
    checked = 0
    finer = ("cache_audio_read_mtok", "cache_write_5m_mtok")
    for provider in published.get_snapshot().providers:
        for model in provider.models:
            known = _standing(model, NOW)
            ours = _price(known)
            if ours is None or getattr(known, "output_mtok", None) is None or any(getattr(known, name) is not None for name in finer):
                continue
            for usage in USAGES:
                theirs = known.calc_price(_published_usage(usage))["total_price"].scaleb(9)
                cost = cost_nusd(ours, usage)
                assert theirs <= cost < theirs + 7 + _rounded_up(usage), (provider.id, model.id, usage)
            checked += 1
    assert checked > 1000


def _rounded_up(usage: Usage) -> Decimal:
    """At most a pico-USD a token, where the published number is not a whole one."""
    return Decimal(usage.input_tokens + usage.output_tokens) / 1000


def _published_usage(usage: Usage) -> PublishedUsage:
    fields = {
        "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens, "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens, "cache_audio_read_tokens": 0, "cache_write_1h_tokens": 0,
        "output_audio_reasoning_tokens": 0,
    }
    return PublishedUsage(**fields)


def test_a_context_above_a_threshold_has_the_price_of_its_tier():
    known = ModelPrice(input_mtok=TieredPrices(Decimal(1), [PublishedTier(100, Decimal(2)), PublishedTier(200, Decimal(3))]),
                       output_mtok=Decimal(5), requests_kcount=Decimal(10))
    call = 10**10
    assert _price(known) == Price(10**6, 5 * 10**6, request=call, tiers=(
        Tier(100, Price(2 * 10**6, 5 * 10**6, request=call)), Tier(200, Price(3 * 10**6, 5 * 10**6, request=call))))


def test_a_model_that_is_not_charged_by_the_token_has_no_price():
    assert _price(ModelPrice(audio_hours=Decimal("0.36"))) is None


def test_a_model_without_a_price_of_output_charges_output_as_input():
    assert _price(ModelPrice(input_mtok=Decimal("0.02"))) == Price(20_000, 20_000)


@pytest.mark.parametrize("wrong", ["0.0009", "1000.1"])
def test_a_published_price_that_must_be_a_mistake_counts_as_unknown(wrong):
    assert _price(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(wrong))) is None
    assert _price(ModelPrice(input_mtok=TieredPrices(Decimal(1), [PublishedTier(9, Decimal(wrong))]))) is None


def test_a_number_that_was_divided_out_of_another_unit_is_rounded_up():
    assert _price(ModelPrice(input_mtok=Decimal("0.18000000000000002"))) == Price(180_001, 180_001)


def _model(*prices: ConditionalPrice) -> ModelInfo:
    return ModelInfo(id="m", match=ClauseEquals("m"), prices=list(prices))


def test_the_price_that_stands_is_taken_whatever_the_hour():
    night = TimeOfDateConstraint(time(0), time(23, 59))
    model = _model(ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(4))),
                   ConditionalPrice(night, prices=ModelPrice(input_mtok=Decimal(1))))
    assert _standing(model, NOW).input_mtok == 4


def test_only_hours_of_the_day_fall_back_to_the_first_of_them():
    model = _model(*(ConditionalPrice(TimeOfDateConstraint(time(hour), time(hour + 1)), prices=ModelPrice(input_mtok=Decimal(hour)))
                     for hour in (3, 4)))
    assert _standing(model, NOW).input_mtok == 3


def test_a_change_of_price_that_was_announced_applies_from_its_day():
    model = _model(ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1))),
                   ConditionalPrice(StartDateConstraint(NOW.date()), prices=ModelPrice(input_mtok=Decimal(2))))
    assert _standing(model, NOW).input_mtok == 2
    assert _standing(model, datetime(2026, 11, 19, tzinfo=UTC)).input_mtok == 1


def test_known_price_providers_can_be_told_from_unknown_ones():
    assert knows_provider("openai")
    assert not knows_provider("opnai")
    assert "anthropic" in price_providers()
