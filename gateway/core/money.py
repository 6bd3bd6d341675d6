"""Money as integers: prices in pico-USD a token, costs in nano-USD. Owns rounding; never a float, never a negative cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.call import Usage

NUSD_PER_USD: Final = 1_000_000_000
_PUSD_PER_NUSD: Final = 1_000
LINES: Final = 8  # of which a cost is the sum, each rounded up: 4 classes of input, 3 of output, the call itself


@dataclass(frozen=True, slots=True)
class Price:
    """What a target charges, in pico-USD a token and class of token; `request` is pico-USD a call.

    A class that has no price of its own (None) is charged as plain input or output. `image` is pico-USD a picture of the request, beside
    its tokens. `tiers` are the prices of long contexts, by rising `Tier.above`.
    """

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None
    input_audio: int | None = None
    output_audio: int | None = None
    reasoning: int | None = None
    image: int = 0
    request: int = 0
    tiers: tuple["Tier", ...] = ()

    def at(self, input_tokens: int) -> "Price":
        """The price of a call with so many input tokens: the last tier it is above, for all of its tokens, else this one."""
        return next((tier.price for tier in reversed(self.tiers) if input_tokens > tier.above), self)


@dataclass(frozen=True, slots=True)
class Tier:
    """Another price for every token of a call that has more than `above` input tokens."""

    above: int
    price: Price


def cost_nusd(price: Price, usage: Usage) -> int:
    """What `usage` costs, in nano-USD. Each token is charged once, in the dearest class it may be in; each class is rounded up."""
    total = max(usage.input_tokens, usage.cache_read_tokens + usage.cache_write_tokens)
    at = price.at(total)
    input_lines = _lines(total, at.input, (
        (usage.input_audio_tokens, at.input_audio), (usage.cache_write_tokens, at.cache_write), (usage.cache_read_tokens, at.cache_read)))
    output_lines = _lines(usage.output_tokens, at.output, (
        (usage.output_audio_tokens, at.output_audio), (usage.reasoning_tokens, at.reasoning)))
    return sum(-(-pusd // _PUSD_PER_NUSD) for pusd in (*input_lines, *output_lines, at.request + usage.images * at.image))


def dearest(price: Price, input_tokens: int, *, audio: bool) -> Price:
    """The most that a token of input, one of output, a picture and a call may cost in a call with up to so many input tokens."""
    prices = [price, *(tier.price for tier in price.tiers if input_tokens > tier.above)]
    inputs = [rate for at in prices for rate in (at.input, at.cache_read, at.cache_write, at.input_audio if audio else None)]
    outputs = [rate for at in prices for rate in (at.output, at.reasoning, at.output_audio if audio else None)]
    return Price(max(rate for rate in inputs if rate is not None), max(rate for rate in outputs if rate is not None),
                 image=max(at.image for at in prices), request=max(at.request for at in prices))


def _lines(total: int, plain: int, parts: tuple[tuple[int, int | None], ...]) -> Iterator[int]:
    """The cost of each class in pico-USD. `parts` may overlap (cached audio): a token counts in the first that claims it.

    A total that is smaller than one of its parts is taken for that part, so that a provider's slip never makes a call cheaper.
    """
    left = max(total, 0, *(tokens for tokens, _ in parts))
    for tokens, rate in parts:
        taken = min(max(tokens, 0), left)
        left -= taken
        yield taken * (plain if rate is None else rate)
    yield left * plain


def usd(nusd: int) -> str:
    """Nano-USD as an exact decimal string of USD: `"0.0004"`, never an exponent, never a trailing zero."""
    whole, rest = divmod(abs(nusd), NUSD_PER_USD)
    digits = f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
    return f"-{digits}" if nusd < 0 else digits
