"""What a target costs: the operator's own price first, then the published one of genai-prices' bundled data. Never the network.

A price is looked up when the configuration is loaded. Where a provider charges by the time of day, the price that stands outside
the hours is taken; where one has announced a change of price for a day, the price of the day of loading.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from typing import Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint, TieredPrices

from gateway.call import Target
from gateway.config import Config, ModelConfig, PriceConfig
from gateway.core.estimate import Bounds
from gateway.core.money import Price, Tier
from gateway.core.plan import RouteTarget
from gateway.units import plausible

# genai-prices' name of each class of token, and ours.
_CLASSES: Final[Mapping[str, str]] = {
    "input_mtok": "input", "output_mtok": "output", "cache_read_mtok": "cache_read", "cache_write_mtok": "cache_write",
    "input_audio_mtok": "input_audio", "output_audio_mtok": "output_audio", "output_reasoning_mtok": "reasoning",
}
# Output that no usage tells from text: all of it is charged as the dearest that there is.
_PICTURES: Final = ("output_image_mtok", "output_video_mtok")
_REQUEST: Final = "requests_kcount"
# Where a price comes from, as the ledger keeps it with every line.
CONFIGURED: Final = "configuration"
ASSUMED: Final = "assumed"
PUBLISHED: Final = f"genai-prices {version('genai-prices')}"


def configured_price(price: PriceConfig) -> Price:
    """A `[prices]` entry as a price."""
    plain = Price(price.input, price.output, price.cached_input, price.cache_write, price.input_audio, price.output_audio, price.reasoning,
                  price.image, price.request)
    tiers = tuple(Tier(tier.above, replace(plain, input=tier.input, output=tier.output, cache_read=tier.cached_input,
                                           cache_write=tier.cache_write)) for tier in sorted(price.tiers, key=lambda each: each.above))
    return replace(plain, tiers=tiers)


@dataclass(frozen=True, slots=True)
class Published:
    """What genai-prices knows of a model: its name there, its price, None where it is not charged by the token, and its context."""

    model: str
    price: Price | None
    context: int | None


def published(provider: str, model: str, now_ns: int) -> Published | None:
    """What genai-prices knows of a provider's model at a wall time; None where it does not know it."""
    try:
        found = get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None
    price = _price(_standing(found, datetime.fromtimestamp(now_ns / 1e9, UTC)))
    context = found.context_window
    # Some models are listed with the price of longer contexts than they are said to have: then nobody knows how long these are.
    longer = context is not None and price is not None and any(tier.above >= context for tier in price.tiers)
    return Published(found.id, price, None if longer else context)


def published_models(provider: str) -> list[str]:
    """The names of a provider's models in genai-prices, for who has mistyped one."""
    return sorted(model.id for each in get_snapshot().providers if each.id == provider for model in each.models)


def priced_target(target: Target, config: Config, now_ns: int) -> RouteTarget:
    """A target with its price and what bounds its calls' cost. The price is the operator's own, else the published one, else the
    assumed one; None where there is none of them, which is reported as unknown and never as 0.
    """
    provider = config.providers[target.provider]
    model = config.models.get(str(target), ModelConfig())
    known = published(provider.price_provider, target.model, now_ns) if provider.price_provider else None
    price, prices = _price_of(target, config, known)
    bounds = Bounds(
        context=model.context or (known.context if known is not None else None), max_output=model.max_output,
        default_output=model.default_output, image_tokens=model.image_tokens, bytes_per_token=model.bytes_per_token,
        output_limit=provider.output_limit if model.output_limit is None else model.output_limit,
        bills_unanswered=provider.bills_unanswered, any_tier=prices != PUBLISHED, hidden_reasoning=model.hidden_reasoning)
    return RouteTarget(target, price, bounds, prices)


def _price_of(target: Target, config: Config, known: Published | None) -> tuple[Price | None, str]:
    """A target's price and whose it is."""
    own = config.prices.get(str(target))
    if own is not None:
        return configured_price(own), CONFIGURED
    if known is not None and known.price is not None:
        return known.price, PUBLISHED
    pricing = config.pricing
    if pricing.unknown == "assume" and pricing.assumed_input is not None and pricing.assumed_output is not None:
        return Price(pricing.assumed_input, pricing.assumed_output), ASSUMED
    return None, ""


def knows_provider(provider: str) -> bool:
    """Whether genai-prices knows a provider by this id."""
    try:
        get_snapshot().find_provider(None, provider, None)
    except LookupError:
        return False
    return True


def price_providers() -> list[str]:
    """Every provider id that genai-prices knows."""
    return sorted(provider.id for provider in get_snapshot().providers)


def _standing(model: ModelInfo, day: datetime) -> ModelPrice:
    """The last price that holds on that day at any hour, as `ModelInfo.get_prices` chooses, without its hours of the day."""
    if isinstance(model.prices, ModelPrice):
        return model.prices
    standing = [each.prices for each in model.prices
                if each.constraint is None or (isinstance(each.constraint, StartDateConstraint) and each.constraint.active(day))]
    return standing[-1] if standing else model.prices[0].prices


def _price(known: ModelPrice) -> Price | None:
    listed = {ours: getattr(known, theirs) for theirs, ours in _CLASSES.items() if getattr(known, theirs) is not None}
    if "input" not in listed:
        return None  # charged by the minute, the picture, the page: not by what we count
    outputs = [value for name in ("output_mtok", *_PICTURES) if (value := getattr(known, name)) is not None]
    if outputs:
        listed["output"] = max(outputs, key=lambda value: _at(value, 0))
    if not all(plausible(_pico(each, 10**6)) for value in listed.values() for each in _every(value)):
        return None  # a mistake in the data is not billed to anybody
    starts = sorted({tier.start for value in listed.values() if isinstance(value, TieredPrices) for tier in value.tiers})
    per_call = getattr(known, _REQUEST)
    request = _pico(_at(per_call, 0), 10**9) if per_call is not None else 0  # USD per thousand calls
    tiers = tuple(Tier(start, _flat(listed, start + 1, request)) for start in starts)
    return replace(_flat(listed, 0, request), tiers=tiers)


def _flat(listed: Mapping[str, Decimal | TieredPrices], input_tokens: int, request: int) -> Price:
    """The price of a call with so many input tokens."""
    rates = {name: _pico(_at(value, input_tokens), 10**6) for name, value in listed.items()}
    # Embeddings list no output and have none. Nothing is ever free by omission.
    return Price(rates["input"], rates.get("output", rates["input"]), rates.get("cache_read"), rates.get("cache_write"),
                 rates.get("input_audio"), rates.get("output_audio"), rates.get("reasoning"), request=request)


def _every(value: Decimal | TieredPrices) -> list[Decimal]:
    return [value.base, *(tier.price for tier in value.tiers)] if isinstance(value, TieredPrices) else [value]


def _at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if not isinstance(value, TieredPrices):
        return value
    return next((tier.price for tier in reversed(value.tiers) if input_tokens > tier.start), value.base)


def _pico(usd: Decimal, scale: int) -> int:
    """Exact where the data is; what was divided out of another unit (0.18000000000000002) is rounded up, as every line of a cost is."""
    return math.ceil(Fraction(usd) * scale)  # a Decimal would round as the host process has set its context
