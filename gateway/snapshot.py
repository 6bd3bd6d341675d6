"""The compiled configuration: immutable, complete, with every name resolved. A call is handled on one snapshot from begin to end.

Owns the meaning of the settings; their shape is `config.py`'s. Everything that can be wrong is found here, before the first call.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.budgets import BudgetError, budget_of
from gateway.call import Target
from gateway.clock import Clock, SystemClock
from gateway.config import Config, Deployment, ProviderConfig
from gateway.contracts import with_contracts
from gateway.core.accounts import Budget, BudgetBook
from gateway.core.detectors import Detector, Detectors
from gateway.core.expressions import Library
from gateway.core.plan import Route, RouteTarget
from gateway.core.rules import Bundle, compile_bundle
from gateway.errors import ConfigError, Problem, SetupError
from gateway.identity.fetch import FetchError
from gateway.identity.identities import read_keys
from gateway.notify.channels import Channel, compile_channels
from gateway.plugins import load_adapter, load_detectors, load_dialect, shipped
from gateway.prices import knows_provider, price_providers
from gateway.route_compile import RouteCompilation
from gateway.secret import Secret, resolve
from gateway.toml_source import KeyPath
from gateway.tool_config import split_template
from gateway.tools import ACCEPT, Tool, ToolAdapter, ToolProblem, compile_tool
from gateway.upstream.addresses import is_local_host
from gateway.validation import nearest
from gateway.wire.protocol import Adapter, Dialect

# Header names whose value is a credential, however it got there.
SENSITIVE_HEADER: Final = re.compile(r"authorization|cookie|(^|[-_])(key|token|secret|password|signature)([-_]|$)")
# The sections that are read once: what they made is in use for as long as the process runs.
_AT_START: Final = ("server", "paths", "upstream", "store", "auth", "admin", "login", "log", "otlp")
_SOME_AT_START: Final = (("policy", "watch"), ("approvals", "max_held"))  # of others; the second counts among the listener's places
# What frames a message or names its receiver is the transport's to say (request smuggling).
_FRAMING: Final = frozenset({
    "host", "connection", "content-length", "content-type", "transfer-encoding", "upgrade", "te", "trailer", "expect"})


@dataclass(frozen=True, slots=True)
class Provider:
    """An upstream with its credentials. `base_url` has no slash at its end; header names are lower case; `max_answer` is in bytes.

    `private`: it may have an address that is not public. A tool is an upstream of its own, named `tool:NAME`.
    """

    name: str
    adapter: Adapter | ToolAdapter
    base_url: str
    api_key: Secret | None
    headers: Mapping[str, str] = field(repr=False)
    max_answer: int
    private: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the handling of a call reads. `secrets` is every secret known, for scrubbing; `folder` that of config.toml.

    `tools` are the HTTP tools by name; each is a route and has a provider as well. `longest_s` is the longest `total` of all routes: a
    rule may send a call over any of them. A route stands under its name and under each of its aliases.
    """

    config: Config
    folder: Path
    providers: Mapping[str, Provider]
    routes: Mapping[str, Route]
    bundle: Bundle
    dialects: tuple[Dialect, ...]
    pepper: Secret | None
    admin_token: Secret | None
    oidc_secret: Secret | None
    otlp_headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[Secret, ...]
    tools: Mapping[str, Tool]
    longest_s: float
    budgets: BudgetBook
    channels: Mapping[str, Channel]

    @property
    def models(self) -> Mapping[str, Route]:
        """The routes of models, each once: by their own names, without tools."""
        return {name: route for name, route in self.routes.items() if name == route.name and name not in self.tools}

    @property
    def targets(self) -> Collection[RouteTarget]:
        """Every target that something may be sent to, each once."""
        return {to.target: to for route in self.routes.values() for to in route.reached}.values()


def compile_snapshot(deployment: Deployment, environ: Mapping[str, str], clock: Clock | None = None) -> Snapshot:
    """Resolve every name, secret, adapter, price and rule. `environ` is where `env:` references are looked up.

    Raises:
        ConfigError: with every problem found.
    """
    work = _Compilation(deployment, environ)
    config = deployment.config
    providers = {name: made for name, given in config.providers.items() if (made := work.provider(name, given)) is not None}
    library = work.library()
    compilation = RouteCompilation(deployment, {name: each.adapter.operations for name, each in providers.items()}, library,
                                   (clock or SystemClock()).now_ns())
    routes = compilation.routes()
    tools, unverified = with_contracts(deployment, work.tools(providers, routes, compilation), library)
    channels, unheard = compile_channels(deployment, work)
    work.problems += [*compilation.problems, *unverified, *unheard]
    bundle = work.bundle(library) if library is not None else None
    dialects = work.dialects()
    pepper = work.secret(("auth", "pepper"), config.auth.pepper) if config.auth.required else None
    admin_token = work.secret(("admin", "token"), config.admin.token)
    oidc_secret = work.secret(("oidc", "client_secret"), config.oidc.client_secret) if config.oidc is not None else None
    work.check_issuers()
    otlp_headers = work.headers(("otlp", "headers"), config.otlp.headers)
    work.check_targets()
    budgets = work.budgets()
    work.problems += [deployment.problem(path, message, hint) for path, message, hint in _open_doors(config.server.host, config)]
    if work.problems or bundle is None:
        raise ConfigError(list(dict.fromkeys(work.problems)))
    return Snapshot(config, deployment.folder, MappingProxyType(providers), MappingProxyType(routes), bundle, dialects,
                    pepper, admin_token, oidc_secret, otlp_headers, tuple(work.secrets), MappingProxyType(tools),
                    max((route.deadlines.total_s for route in routes.values()), default=0.0), budgets, channels)


def needing_restart(old: Config, new: Config) -> tuple[str, ...]:
    """The settings that differ and are read at the start alone."""
    changed = [f"{section}.{key}" for section in _AT_START for key in type(getattr(old, section)).model_fields
               if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)]
    changed += [f"{section}.{key}" for section, key in _SOME_AT_START
                if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)]
    return (*changed, "oidc") if old.oidc != new.oidc else tuple(changed)


def keep_fixed(old: Snapshot, new: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
    """The new snapshot with everything that only a restart changes as it is in the old one, and which secrets among it differ."""
    fixed: dict[str, Any] = {section: getattr(old.config, section) for section in _AT_START}
    fixed["oidc"] = old.config.oidc
    for section, key in _SOME_AT_START:
        fixed[section] = getattr(new.config, section).model_copy(update={key: getattr(getattr(old.config, section), key)})
    config = new.config.model_copy(update=fixed)
    kept = replace(new, config=config, dialects=old.dialects, pepper=old.pepper, admin_token=old.admin_token,
                   oidc_secret=old.oidc_secret, otlp_headers=old.otlp_headers)
    held = {"auth.pepper": (old.pepper, new.pepper), "admin.token": (old.admin_token, new.admin_token),
            "oidc.client_secret": (old.oidc_secret, new.oidc_secret),
            "otlp.headers": (old.otlp_headers, new.otlp_headers)}
    return kept, tuple(name for name, (before, after) in held.items() if before != after)


def compile_rules(given: Deployment) -> Bundle:
    """The rules of a deployment, compiled; of the rest no more is looked at than its detectors. Raises `ConfigError` with every problem."""
    return _bundle_of(given, library_of(given))


def _bundle_of(given: Deployment, library: Library) -> Bundle:
    return compile_bundle(given.rules, given.config.policy.engine, given.problem_in, defaults=given.defaults, lists=library.lists,
                          detectors=library.detectors)


def library_of(given: Deployment) -> Library:
    """What the expressions of a deployment look into: its lists, and the detectors, its own included. Raises `ConfigError`."""
    folders = (given.folder / given.config.paths.adapters, shipped("adapters"))
    own: list[Detector] = []
    problems: list[Problem] = []
    for number, name in enumerate(given.config.policy.detectors):
        try:
            own += load_detectors(name, folders)
        except ConfigError as error:
            problems += [problem if problem.file else given.problem(("policy", "detectors", number), problem.message, problem.hint)
                         for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    try:
        return Library(given.lists, Detectors(tuple(own)))
    except ValueError as error:
        raise ConfigError([given.problem(("policy", "detectors"), str(error))]) from error


def refuse_open_doors(host: str, deployment: Deployment) -> None:
    """Raise `SetupError` where listening on `host` would let everybody in: other than loopback without keys or admin token."""
    doors = _open_doors(host, deployment.config)
    if doors:
        raise SetupError(" ".join(f"{message[0].upper()}{message[1:]}: {hint}." for _path, message, hint in doors))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _open_doors(host: str, config: Config) -> list[tuple[KeyPath, str, str]]:
    if is_loopback(host):
        return []
    doors: list[tuple[KeyPath, str, str]] = []
    if not config.auth.required:
        doors.append((("auth", "required"), f"{host} is reachable by others, who may then call without a key",
                      "set `auth.required = true`, or `server.host` to 127.0.0.1"))
    if config.admin.token is None:
        doors.append((("admin", "token"), f"{host} is reachable by others, and there is no admin token",
                      'set `admin.token` to a reference ("file:secrets/admin-token"), or `server.host` to 127.0.0.1'))
    return doors


class _Compilation:
    """One run of the compiler: what it has found wrong and the secrets it has seen."""

    def __init__(self, deployment: Deployment, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self.secrets: list[Secret] = []
        self._deployment = deployment
        self._config = deployment.config
        self._environ = environ
        self._plugins = (deployment.folder / deployment.config.paths.adapters, shipped("adapters"))

    def provider(self, name: str, given: ProviderConfig) -> Provider | None:
        """One provider; None where its adapter cannot be had."""
        at: KeyPath = ("providers", name)
        api_key = self.secret((*at, "api_key"), given.api_key)
        headers = self.headers((*at, "headers"), given.headers)
        if given.price_provider is not None and not knows_provider(given.price_provider):
            self._wrong((*at, "price_provider"), f"genai-prices knows no provider {given.price_provider!r}",
                        nearest(given.price_provider, price_providers()))
        try:
            adapter = load_adapter(given.adapter, self._plugins)
        except ConfigError as error:
            self._plugin_failed((*at, "adapter"), error)
            return None
        return Provider(name, adapter, given.base_url, api_key, headers, given.max_answer)

    def tools(self, providers: dict[str, Provider], routes: dict[str, Route], compilation: RouteCompilation) -> dict[str, Tool]:
        """Every HTTP tool by its name. Each is put among the routes and the providers: from there on it is called as a model is."""
        made: dict[str, Tool] = {}
        first = dict(compilation.named)
        for given in self._deployment.tools:
            tool, problems = compile_tool(given)
            headers = self.headers(("headers",), given.headers, given.source)
            origin, _ = split_template(given.url)
            host = urlsplit(origin).hostname or ""
            if not given.private and is_local_host(host):
                problems.append(ToolProblem(("url",), f"{host} is not a public address", "say `private = true` if it is meant"))
            if given.name in first:
                problems.append(ToolProblem(("name",), f"{given.name!r} is defined twice", f"first at {first[given.name]}"))
            first.setdefault(given.name, given.source)
            self.problems += [self._deployment.problem_in(given.source, *problem) for problem in problems]
            if tool is None or problems:
                continue
            target = Target(f"tool:{tool.name}", tool.method)
            made[tool.name] = tool
            providers[target.provider] = Provider(target.provider, ToolAdapter(tool), origin, None,
                                                  MappingProxyType({"accept": ACCEPT, **headers}), given.max_answer, given.private)
            routes[tool.name] = compilation.tool(given, target)
        return made

    def library(self) -> Library | None:
        """What expressions look into; None where that cannot be had."""
        try:
            return library_of(self._deployment)
        except ConfigError as error:
            self.problems += error.problems
            return None

    def bundle(self, library: Library) -> Bundle | None:
        """The compiled rules; None where one of them is wrong."""
        try:
            return _bundle_of(self._deployment, library)
        except ConfigError as error:
            self.problems += error.problems
            return None

    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that clients may speak, none of which may claim another's endpoint."""
        made: list[Dialect] = []
        owners: dict[tuple[str, str], str] = {}
        for number, name in enumerate(self._config.server.dialects):
            at: KeyPath = ("server", "dialects", number)
            try:
                made.append(load_dialect(name, self._plugins))
            except ConfigError as error:
                self._plugin_failed(at, error)
                continue
            for endpoint in made[-1].endpoints:
                owner = owners.setdefault((endpoint.method, endpoint.path), name)
                if owner != name:
                    self._wrong(at, f"{name} and {owner} both answer {endpoint.method} {endpoint.path}", "take one of them out")
        return tuple(made)

    def secret(self, path: KeyPath, reference: str | None, entry: str = "") -> Secret | None:
        """The secret behind a reference; None where there is none or it cannot be had. `entry` is the `source` of the tool whose it is."""
        if reference is None:
            return None
        try:
            secret = resolve(reference, self._environ, self._deployment.folder)
        except ValueError as error:
            self._wrong(path, str(error), entry=entry)
            return None
        self.secrets.append(secret)
        return secret

    def headers(self, path: KeyPath, given: Mapping[str, str], entry: str = "") -> Mapping[str, str]:
        """Headers to send, names in lower case, references resolved. `entry` as for `secret`."""
        made: dict[str, str] = {}
        for name, value in given.items():
            lower, at = name.lower(), (*path, name)
            if lower in made:
                self._wrong(at, "the same header twice: upper and lower case make no difference", entry=entry)
            if lower in _FRAMING:
                self._wrong(at, "this header is the transport's own", "take it out", entry=entry)
            if value.startswith(("env:", "file:")):
                secret = self.secret(at, value, entry)
                made[lower] = secret.reveal() if secret else ""
                continue
            if SENSITIVE_HEADER.search(lower):
                self.secrets.append(Secret(value))
            made[lower] = value
        return MappingProxyType(made)

    def check_targets(self) -> None:
        """Every `[prices."PROVIDER/MODEL"]` and `[models."PROVIDER/MODEL"]` names a provider that is there."""
        for section, keys in (("prices", self._config.prices), ("models", self._config.models)):
            for key in keys:
                provider, slash, model = key.partition("/")
                if not slash or not model:
                    self._wrong((section, key), f"an entry of `{section}` is for a target", f'write [{section}."PROVIDER/MODEL"]')
                elif provider not in self._config.providers:
                    self._wrong((section, key), f"there is no provider {provider!r}", nearest(provider, self._config.providers))
        pricing = self._config.pricing
        if pricing.unknown == "assume" and (pricing.assumed_input is None or pricing.assumed_output is None):
            self._wrong(("pricing", "unknown"), "what is to be assumed is not said", "give `assumed_input` and `assumed_output`")

    def check_issuers(self) -> None:
        """Every `[auth.jwt.NAME]` is of use: callers are asked who they are, and the keys in a file can be read."""
        for name, given in self._config.auth.jwt.items():
            at = ("auth", "jwt", name)
            if not self._config.auth.required:
                self._wrong(at, "nobody is asked for a token where `auth.required` is false", "take one of them out")
            if given.jwks_file is None:
                continue
            try:
                read_keys(self._deployment.folder / given.jwks_file)
            except FetchError as error:
                self._wrong((*at, "jwks_file"), error.message)

    def budgets(self) -> BudgetBook:
        """The configured budgets."""
        made: list[Budget] = []
        for name, given in self._config.budgets.items():
            try:
                made.append(budget_of(name, given))
            except BudgetError as error:
                self._wrong(("budgets", name, error.key), str(error))
        return BudgetBook(made)

    def _wrong(self, path: KeyPath, message: str, hint: str | None = None, entry: str = "") -> None:
        given = self._deployment
        self.problems.append(given.problem_in(entry, path, message, hint) if entry else given.problem(path, message, hint))

    def _plugin_failed(self, path: KeyPath, error: ConfigError) -> None:
        """A plugin that is not there is a wrong setting; one that is broken is a problem of its own file."""
        self.problems += [problem if problem.file else self._deployment.problem(path, problem.message, problem.hint)
                          for problem in error.problems]

