"""`lockgate check`: loads and compiles the whole configuration and prints everything that is wrong, then what deserves a look."""

import dataclasses
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from gateway.advice import advice
from gateway.cli.deciders import advice_on_approvers
from gateway.cli.output import config_option, count, emit_json, emit_problem, json_option
from gateway.config import Deployment
from gateway.core.plan import RouteTarget
from gateway.deployment import read_deployment
from gateway.errors import ConfigError, Problem
from gateway.reload import load
from gateway.snapshot import SENSITIVE_HEADER, Snapshot, is_loopback
from gateway.toml_source import KeyPath

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_SHORTEST_SECRET: Final = 16

_PLAIN: Final = ("looks like a secret in plain sight", 'refer to it: "env:NAME" or "file:PATH"')


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@json_option
def check(*, config_path: str, as_json: bool) -> None:
    """Load, compile and check the whole configuration. Exit code 1 if anything is wrong; warnings alone leave it 0."""
    folder = Path(config_path).parent
    try:
        deployment = read_deployment(Path(config_path))
        snapshot = load(deployment, os.environ).snapshot  # as a start or a reload would, cases and all
    except ConfigError as error:
        _report([placed(problem, folder) for problem in error.problems], [], None, as_json=as_json)
        sys.exit(1)
    loaded: dict[str, int | str] = {
        "providers": len(deployment.config.providers), "routes": len(snapshot.models),
        "tools": len(snapshot.tools), "rules": len(snapshot.bundle.rules),
        "cases": len(deployment.cases), "budgets": len(snapshot.budgets.budgets), "bundle": snapshot.bundle.digest}
    _report([], [placed(warning, folder) for warning in warnings(deployment, snapshot)], loaded, as_json=as_json)


def _report(problems: list[Problem], found: list[Problem], loaded: dict[str, int | str] | None, *, as_json: bool) -> None:
    if as_json:
        emit_json({"ok": not problems, "problems": [dataclasses.asdict(each) for each in problems],
                   "warnings": [dataclasses.asdict(each) for each in found], "loaded": loaded})
        return
    for problem in problems:
        emit_problem(problem)
    for warning in found:
        emit_problem(warning, "warning")
    if loaded is not None:
        counts = ", ".join(count(number, noun.removesuffix("s")) for noun, number in loaded.items() if isinstance(number, int))
        click.echo(f"ok: {counts}, bundle {loaded['bundle']}" + (f"; {count(len(found), 'warning')}" if found else ""))


def placed(problem: Problem, folder: Path) -> Problem:
    """The file as it is reached from here, so that an editor or a terminal can open it."""
    return replace(problem, file=os.path.relpath(folder / problem.file)) if problem.file else problem


def warnings(deployment: Deployment, snapshot: Snapshot) -> list[Problem]:
    """What works and still deserves a look."""
    return [*_of_access(deployment), *_of_providers(deployment), *_of_tools(deployment), *_of_secrets(deployment, snapshot),
            *_of_prices(deployment, snapshot), *advice(deployment, snapshot),
            *advice_on_approvers(deployment, snapshot)]


def _of_access(deployment: Deployment) -> Iterator[Problem]:
    if not deployment.config.auth.required:
        yield deployment.problem(("auth", "required"), "everybody who reaches the port may call", "set it to true and create keys")
    if not deployment.routes:
        yield deployment.problem(("paths", "routes"), "there is no route, so no call can be made", "add a file with a [[route]]")


def _of_providers(deployment: Deployment) -> Iterator[Problem]:
    for name, provider in deployment.config.providers.items():
        url = urlsplit(provider.base_url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            yield deployment.problem(("providers", name, "base_url"), "not encrypted: keys and bodies can be read on the way",
                                     "use https unless the network between is your own")
        yield from _of_headers(deployment, ("providers", name, "headers"), provider.headers)
    yield from _of_headers(deployment, ("otlp", "headers"), deployment.config.otlp.headers)


def _of_tools(deployment: Deployment) -> Iterator[Problem]:
    for tool in deployment.tools:
        url = urlsplit(tool.url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            yield deployment.problem_in(tool.source, ("url",), "not encrypted: arguments and results can be read on the way",
                                        "use https unless the network between is your own")
        for name in _in_plain_sight(tool.headers):
            yield deployment.problem_in(tool.source, ("headers", name), *_PLAIN)


def _of_headers(deployment: Deployment, path: KeyPath, headers: Mapping[str, str]) -> Iterator[Problem]:
    yield from (deployment.problem((*path, name), *_PLAIN) for name in _in_plain_sight(headers))


def _in_plain_sight(headers: Mapping[str, str]) -> Iterator[str]:
    return (name for name, value in headers.items() if SENSITIVE_HEADER.search(name.lower()) and not value.startswith(("env:", "file:")))


def _of_secrets(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    config = deployment.config
    references: list[tuple[KeyPath, str | None]] = [
        (("auth", "pepper"), config.auth.pepper if config.auth.required else None), (("admin", "token"), config.admin.token)]
    for (path, _), secret in zip(references, (snapshot.pepper, snapshot.admin_token), strict=True):
        if secret is not None and len(secret.reveal()) < _SHORTEST_SECRET:
            yield deployment.problem(path, f"shorter than {_SHORTEST_SECRET} characters, so it can be guessed",
                                     "make one with: openssl rand -hex 32")
    references += [(("oidc", "client_secret"), config.oidc.client_secret)] if config.oidc is not None else []
    references += [(("providers", name, "api_key"), provider.api_key) for name, provider in config.providers.items()]
    for path, reference in references:
        if reference is not None and reference.startswith("file:"):
            file = deployment.folder / reference.removeprefix("file:")
            if file.stat().st_mode & _OTHERS:
                yield deployment.problem(path, f"{reference} can be read by others on this machine", f"chmod 600 {file}")


def _of_prices(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    limited = any(budget.limit_nusd is not None or budget.limits for budget in snapshot.budgets.budgets.values())
    for given in deployment.routes:
        route = snapshot.routes[given.name]
        own: list[tuple[KeyPath, RouteTarget]] = [(("mirrors", number), mirror.to) for number, mirror in enumerate(route.mirrors)]
        own += [(("classifier",), route.classifier.to)] if route.classifier is not None else []
        for at, to in own:
            if to.price is None:
                unmade = ", and where a budget binds the caller it gets none" if limited else ""
                yield deployment.problem_in(
                    given.source, at, f"the price of {to.target} is not known, nor will be what its calls cost{unmade}",
                    f'set [prices."{to.target}"], or `price_provider` of the provider')
        for number, to in enumerate(route.targets):
            if to.price is None:
                refused = ", and a call that a budget binds is refused" if limited else ""
                yield deployment.problem_in(
                    given.source, ("targets", number), f"the price of {to.target} is not known, nor will be what a call costs{refused}",
                    f'set [prices."{to.target}"], or `price_provider` of the provider')
    used = {str(to.target) for route in snapshot.routes.values() for to in route.reached}
    for section, keys in (("prices", deployment.config.prices), ("models", deployment.config.models)):
        for key in keys:
            if key not in used:
                yield deployment.problem(
                    (section, key), "no route has this target", "a slip in its name leaves the real one without what stands here")
