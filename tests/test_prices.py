"""Prices come from the operator first and from genai-prices second, and agree with genai-prices' own arithmetic."""

import re
from dataclasses import replace
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any

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
from gateway.config import Config, PriceConfig
from gateway.core.estimate import Bounds
from gateway.core.money import LINES, Price, Tier, cost_nusd
from gateway.core.plan import RouteTarget
from gateway.prices import PUBLISHED, _price, _standing, configured_price, knows_provider, price_providers, priced_target, published_models
from gateway.prices import published as known_of

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9

USAGES = [
    Usage(input_tokens=1000, output_tokens=500),
    Usage(input_tokens=150_000, output_tokens=7, cache_read_tokens=100_000, cache_write_tokens=20_000),
    Usage(input_tokens=999_999, output_tokens=12_345, cache_read_tokens=1),
    Usage(input_tokens=200_000, output_tokens=1), Usage(input_tokens=200_001, output_tokens=1),
    Usage(input_tokens=50, output_tokens=60, input_audio_tokens=20, output_audio_tokens=30),
]


def target(model: Any = "gpt-4o", price_provider: Any = "openai", **sections: Any) -> RouteTarget:
    """The target `mine/MODEL` under a configuration with these sections."""
    provider = {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1", "price_provider": price_provider, **sections.pop("provider", {})}
    return priced_target(Target("mine", model), Config.model_validate({"providers": {"mine": provider}, **sections}), NOW_NS)


OWN = {"mine/gpt-4o": {"input": "1.00", "output": "2.00"}}
ASSUMED = {"unknown": "assume", "assumed_input": "10", "assumed_output": "20"}


def test_the_operators_own_price_goes_before_the_published_one():
    found = target(prices=OWN, pricing=ASSUMED)
    assert (found.price, found.prices) == (Price(1_000_000, 2_000_000), "configuration")


def test_a_published_price_is_on_record_with_the_version_of_its_data():
    found = target(pricing=ASSUMED)
    assert (found.price, found.prices) == (Price(2_500_000, 10_000_000, 1_250_000), PUBLISHED)
    assert re.fullmatch(r"genai-prices \d+\.\d+\.\d+.*", PUBLISHED)


def test_a_price_that_nobody_knows_is_assumed_only_where_the_operator_says_so():
    found = target("no-such-model", pricing=ASSUMED)
    assert (found.price, found.prices) == (Price(10_000_000, 20_000_000), "assumed")
    for pricing in ({}, {"unknown": "deny", "assumed_input": "10", "assumed_output": "20"}):
        assert (target("no-such-model", pricing=pricing).price, target("no-such-model", pricing=pricing).prices) == (None, "")


def test_every_class_of_a_configured_price_arrives_where_it_belongs():
    own = PriceConfig.model_validate({
        "input": "1", "output": "2", "cached_input": "3", "cache_write": "4", "input_audio": "5", "output_audio": "6", "reasoning": "8",
        "image": "0.000009", "request": "0.000007", "tiers": [
            {"above": 200, "input": "30", "output": "31"}, {"above": 100, "input": "20", "output": "21", "cached_input": "22", "cache_write": "23"}]})
    plain = Price(10**6, 2 * 10**6, 3 * 10**6, 4 * 10**6, 5 * 10**6, 6 * 10**6, 8 * 10**6, 9 * 10**6, 7 * 10**6)
    assert configured_price(own) == replace(plain, tiers=(
        Tier(100, replace(plain, input=20 * 10**6, output=21 * 10**6, cache_read=22 * 10**6, cache_write=23 * 10**6)),
        Tier(200, replace(plain, input=30 * 10**6, output=31 * 10**6, cache_read=None, cache_write=None))))


@pytest.mark.parametrize(("provider", "model"), [
    ("openai", "no-such-model"), ("no-such-provider", "gpt-4o"), ("", "gpt-4o"), ("openai", "")])
def test_a_model_that_nobody_knows_is_none_and_never_free(provider, model):
    assert known_of(provider, model, NOW_NS) is None


def test_without_a_price_provider_no_published_price_applies():
    found = target(price_provider=None)
    assert (found.price, found.bounds) == (None, Bounds())


def test_what_bounds_a_call_is_the_models_own_then_the_providers_then_the_published():
    assert target().bounds == Bounds(context=128_000, any_tier=False)
    given = {"context": 9, "max_output": 8, "default_output": 7, "image_tokens": 6, "bytes_per_token": 5, "output_limit": ""}
    wants = {"output_limit": "max_completion_tokens", "bills_unanswered": False}
    assert target(models={"mine/gpt-4o": given}, provider=wants).bounds == Bounds(9, 8, 7, 6, 5, "", bills_unanswered=False, any_tier=False)
    assert target(provider=wants).bounds == Bounds(128_000, output_limit="max_completion_tokens", bills_unanswered=False, any_tier=False)


def test_only_a_price_of_the_operators_own_holds_for_every_service_tier():
    """A published price is that of the usual tier; others cost up to twice as much."""
    assert [target(**given).bounds.any_tier for given in ({}, {"prices": OWN})] == [False, True]


def test_a_context_that_a_longer_tier_contradicts_bounds_nothing():
    found = known_of("anthropic", "claude-sonnet-4-5", NOW_NS)
    assert found is not None
    assert found.price is not None
    assert [tier.above for tier in found.price.tiers] == [200_000]
    assert found.context is None


def test_a_model_is_found_by_the_names_that_providers_know_it_by():
    found = known_of("openai", "gpt-4o-2024-08-06", NOW_NS)
    assert found is not None
    assert found.model.startswith("gpt-4o")
    assert "gpt-4o" in published_models("openai")
    assert published_models("no-such-provider") == []


def test_costs_agree_with_genai_prices_own_for_every_model_that_it_prices_by_the_token():
    """Where genai-prices knows finer classes than an answer tells us (cached audio, pictures), we charge the coarser one."""
    checked = 0
    finer = ("cache_audio_read_mtok", "output_image_mtok", "output_video_mtok")
    for provider in published.get_snapshot().providers:
        for model in provider.models:
            known = _standing(model, NOW)
            ours = _price(known)
            if ours is None or known.output_mtok is None or any(getattr(known, name) is not None for name in finer):
                continue
            for usage in USAGES:
                theirs = known.calc_price(_published_usage(usage))["total_price"].scaleb(9)
                cost = cost_nusd(ours, usage)
                assert theirs <= cost < theirs + LINES + _rounded_up(usage), (provider.id, model.id, usage)
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


def test_reasoning_that_is_charged_apart_has_its_own_price():
    assert _price(ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(8), output_reasoning_mtok=Decimal(3))) == Price(
        2 * 10**6, 8 * 10**6, reasoning=3 * 10**6)


def test_pictures_that_a_model_makes_are_charged_for_as_no_answer_tells_them_from_text():
    assert _price(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(2), output_image_mtok=Decimal(30))) == Price(10**6, 30 * 10**6)
    assert _price(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(40), output_image_mtok=Decimal(30))) == Price(10**6, 40 * 10**6)


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
