"""`lockgate prices`: what every target costs and what bounds a call of it, and what the published prices know of a model."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from gateway.call import Target
from gateway.cli.output import config_option, emit_json, emit_problem, json_option, printable
from gateway.clock import SystemClock
from gateway.config import Deployment
from gateway.core.estimate import Bounds
from gateway.core.money import Price
from gateway.core.plan import RouteTarget
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.prices import ASSUMED, CONFIGURED, PUBLISHED, Published, price_providers, priced_target, published, published_models
from gateway.units import show_pico
from gateway.validation import nearest

# The classes of a price as `[prices]` names them: USD per million tokens, and below USD each.
_CLASSES: Final[Mapping[str, str]] = {
    "input": "input", "cached_input": "cache_read", "cache_write": "cache_write", "input_audio": "input_audio", "output": "output",
    "output_audio": "output_audio", "reasoning": "reasoning",
}
_NEAREST: Final = 5
_LONGEST: Final = 100
_EACH: Final = ("image", "request")
_FROM: Final[Mapping[str, str]] = {CONFIGURED: "[prices]", ASSUMED: "[pricing], assumed"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def prices() -> None:
    """See what calls cost, where prices come from, and what bounds a call before it is sent."""


@prices.command()
@click.option("--route", help="Only the targets of this route.")
@config_option
@json_option
def show(*, route: str | None, config_path: str, as_json: bool) -> None:
    """Show the price of every target of every route, in USD. Nothing is sent anywhere, and no secret is needed."""
    deployment = read_deployment(Path(config_path))
    known = [given.name for given in deployment.routes]
    if route is not None and route not in known:
        raise click.ClickException(f"there is no route {route!r}{_hint(route, known)}")
    found = [(name, to) for name, to in _targets(deployment) if route in {None, name}]
    if as_json:
        emit_json([{"route": name, **_target_json(to)} for name, to in found])
        return
    for number, (name, to) in enumerate(found):
        if number:
            click.echo()
        click.echo(printable(f"{name} -> {to.target}"))
        _indented([*_price_texts(to), *_bounds_texts(to.bounds)])


@prices.command()
@click.argument("model")
@click.option("--provider", help="Only this provider of the published prices (genai-prices' id).")
@config_option
@json_option
def check(*, model: str, provider: str | None, config_path: str, as_json: bool) -> None:
    """Show what the published prices know of MODEL, and which targets are charged by them. Exit code 1 where they do not know it."""
    everyone = price_providers()
    if provider is not None and provider not in everyone:
        raise click.ClickException(f"{PUBLISHED} knows no provider {provider!r}{_hint(provider, everyone)}")
    asked = everyone if provider is None else [provider]
    now_ns = SystemClock().now_ns()
    found = {name: each for name in asked if (each := published(name, model, now_ns)) is not None}
    deployment = read_deployment(Path(config_path)) if Path(config_path).exists() else None
    users = {name: _users(deployment, name, each.model, now_ns) for name, each in found.items()}
    if as_json:
        emit_json({"model": model, "data": PUBLISHED, "found": [
            {"provider": name, "model": each.model, "price": _price_json(each.price), "context": each.context, **users[name]}
            for name, each in found.items()]})
    else:
        for name, each in found.items():
            click.echo(printable(f"{name}: {each.model} ({PUBLISHED})"))
            _indented(_published_texts(each, users[name]))
    if not found:
        names = sorted({name for each in asked for name in published_models(each)})
        near = difflib.get_close_matches(model[:_LONGEST].lower(), names, n=_NEAREST)
        emit_problem(f"{PUBLISHED} knows no model {model[:_LONGEST]!r}" + (f" (names like it: {', '.join(near)})" if near else ""))
        raise click.exceptions.Exit(1)


def _targets(deployment: Deployment) -> Iterator[tuple[str, RouteTarget]]:
    """Every target with the name of its route. Raises `ConfigError` where one names a provider that is not there."""
    config, now_ns = deployment.config, SystemClock().now_ns()
    for given in deployment.routes:
        for number, each in enumerate(given.targets):
            if each.provider not in config.providers:
                raise ConfigError([deployment.problem_in(
                    given.source, ("targets", number, "provider"), f"there is no provider {each.provider!r}",
                    nearest(each.provider, config.providers))])
            yield given.name, priced_target(Target(each.provider, each.model), config, now_ns)


def _users(deployment: Deployment | None, provider: str, model: str, now_ns: int) -> dict[str, list[str]]:
    """The targets that a published model is about: those that are charged by it, and those that have another price."""
    users: dict[str, list[str]] = {"used_by": [], "not_used_by": []}
    if deployment is None:
        return users
    for _route, to in _targets(deployment):
        known = published(provider, to.target.model, now_ns)
        if known is None or known.model != model or deployment.config.providers[to.target.provider].price_provider not in {None, provider}:
            continue
        listed = users["used_by" if to.prices == PUBLISHED else "not_used_by"]
        if str(to.target) not in listed:
            listed.append(str(to.target))
    return users


def _target_json(to: RouteTarget) -> dict[str, Any]:
    bounds = to.bounds
    return {
        "target": str(to.target), "price": _price_json(to.price), "from": to.prices or None, "context": bounds.context,
        "max_output": bounds.max_output, "default_output": bounds.default_output, "image_tokens": bounds.image_tokens,
        "bytes_per_token": bounds.bytes_per_token, "output_limit": bounds.output_limit, "bills_unanswered": bounds.bills_unanswered,
        "any_tier": bounds.any_tier,
    }


def _price_json(price: Price | None) -> dict[str, Any] | None:
    """A price as `[prices]` would say it."""
    if price is None:
        return None
    tiers = [{"above": tier.above, **_rates(tier.price)} for tier in price.tiers]
    return {**_rates(price), **{name: show_pico(10**12)(getattr(price, name)) for name in _EACH}, "tiers": tiers}


def _rates(price: Price) -> dict[str, str]:
    return {name: show_pico(10**6)(rate) for name, field in _CLASSES.items() if (rate := getattr(price, field)) is not None}


def _price_texts(to: RouteTarget) -> Iterator[str]:
    if to.price is None:
        yield 'price: unknown, as is then what a call costs; where a budget binds it is refused ([pricing] unknown = "deny")'
        return
    yield from _costs(to.price)
    yield f"from: {_FROM.get(to.prices, to.prices)}"
    if not to.bounds.any_tier:
        yield "service tiers: the usual ones; where a budget binds a dearer one is refused, for its price is unknown"


def _costs(price: Price) -> Iterator[str]:
    yield f"per million tokens: {_listed(_rates(price))}"
    for tier in price.tiers:
        yield f"above {tier.above} input tokens: {_listed(_rates(tier.price))}"
    for name in _EACH:
        if getattr(price, name):
            yield f"per {name}: {show_pico(10**12)(getattr(price, name))}"


def _bounds_texts(bounds: Bounds) -> Iterator[str]:
    """How a call is bounded before it is sent."""
    size = "each byte" if bounds.bytes_per_token == 1 else f"every {bounds.bytes_per_token} bytes"
    whole = "context unknown" if bounds.context is None else f"{bounds.context} at the most"
    yield f"input: at most a token for {size} and {bounds.image_tokens} for a picture, {whole}"
    longest = "longest answer unknown" if bounds.max_output is None else f"{bounds.max_output} at the most"
    if bounds.output_limit:
        yield f"output: asked for in `{bounds.output_limit}`, {bounds.default_output} where the client gives no limit, {longest}"
    else:
        yield f"output: takes no limit, {longest}"


def _published_texts(known: Published, users: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if known.price is None:
        yield "price: not by the token, so that no cost is known"
    else:
        yield from _costs(known.price)
    yield f"context: {'unknown' if known.context is None else known.context}"
    yield f"used by: {', '.join(users['used_by']) or 'no target'}"
    if users["not_used_by"]:
        yield f"not used by: {', '.join(users['not_used_by'])} (a price of its own, or no `price_provider`)"


def _listed(rates: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {rate}" for name, rate in rates.items())


def _indented(texts: Sequence[str] | Iterator[str]) -> None:
    for text in texts:
        click.echo(f"  {printable(text)}")


def _hint(wrong: str, known: Sequence[str]) -> str:
    hint = nearest(wrong, known)
    return f" ({hint})" if hint else ""
