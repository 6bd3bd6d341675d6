"""What `[notify.NAME]` means: a channel with its secrets resolved. Whatever is wrong with one is found at load."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias

from gateway.config import Config, Deployment
from gateway.core.rules import Bundle
from gateway.errors import AttemptFailed, Problem
from gateway.people_config import NotifyConfig
from gateway.secret import Secret
from gateway.toml_source import KeyPath
from gateway.tools import Tool
from gateway.upstream.addresses import is_local_host
from gateway.upstream.message import origin, split_url
from gateway.validation import nearest

_KEY_PREFIX: Final = "whsec_"
_SHORTEST_KEY: Final = 16  # bytes; a shorter key can be tried out by whoever has seen one signature
# One plain address, which nothing else can hide in: the HTML standard's idea of a valid one, which is narrower than RFC 5322's.
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")
_OURS: Final = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature", "user-agent"})


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of signed JSON."""

    url: Secret
    headers: Mapping[str, str] = field(repr=False)
    private: bool
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Slack:
    """An incoming webhook of Slack's kind."""

    url: Secret
    headers: Mapping[str, str] = field(repr=False)
    private: bool


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Whom mail goes to, and the server that takes it. Nobody logs in where there is no `password`."""

    host: str
    port: int
    tls: Literal["starttls", "tls", "none"]
    username: str
    password: Secret | None
    sender: str
    to: tuple[str, ...]
    private: bool


Receiver: TypeAlias = Webhook | Slack | Mailbox


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to people. `page` is where its links begin; `hidden`: even the address of its receiver is a secret."""

    name: str
    events: frozenset[str]
    to: Receiver
    page: str
    hidden: bool = False


class HasChannels(Protocol):
    """A snapshot, of which no more is looked at here."""

    @property
    def channels(self) -> Mapping[str, Channel]:
        """The channels by name."""

    @property
    def bundle(self) -> Bundle:
        """The rules that are in force."""

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The HTTP tools by name."""


class Resolver(Protocol):
    """The compilation that a channel is made in: it knows where secrets are, and keeps count of them."""

    def secret(self, path: KeyPath, reference: str | None, entry: str = "") -> Secret | None:
        """What a reference leads to; None where there is none, or it cannot be had, which is noted."""

    def headers(self, path: KeyPath, given: Mapping[str, str], entry: str = "") -> Mapping[str, str]:
        """Headers with their names in lower case and their references resolved."""


def compile_channels(given: Deployment, resolver: Resolver) -> tuple[Mapping[str, Channel], list[Problem]]:
    """Every channel by its name, and what is wrong with them or with the rules that name them."""
    made: dict[str, Channel] = {}
    problems: list[Problem] = []
    page = page_of(given.config)
    for name, config in given.config.notify.items():
        work = _Compilation(given, resolver, ("notify", name))
        to = work.receiver(config)
        problems += work.problems
        if to is not None and not work.problems:
            made[name] = Channel(name, frozenset(config.events), to, page, config.url_from is not None)
    for rule in given.rules:
        for number, name in enumerate(rule.approval.notify or ()):
            if name not in given.config.notify:
                problems.append(given.problem_in(rule.source, ("approval", "notify", number), f"there is no channel {name!r}",
                                                 nearest(name, given.config.notify) or "write [notify.NAME] in config.toml"))
    return MappingProxyType(made), problems


def page_of(config: Config) -> str:
    """Where people reach the gateway with a browser, without a slash at the end."""
    server = config.server
    return config.login.public_url or f"http://{f'[{server.host}]' if ':' in server.host else server.host}:{server.port}"


class _Compilation:
    """One channel on its way: what was found wrong with it."""

    def __init__(self, given: Deployment, resolver: Resolver, at: KeyPath) -> None:
        self.problems: list[Problem] = []
        self._given = given
        self._resolver = resolver
        self._at = at

    def receiver(self, config: NotifyConfig) -> Receiver | None:
        """Where a channel leads; None where a secret is missing."""
        if config.kind == "email":
            return self._mailbox(config)
        url, headers = self._url(config), self._headers(config)
        if config.kind == "slack":
            return Slack(url, headers, config.private) if url is not None else None
        secret = self._resolver.secret((*self._at, "secret"), config.secret)
        key = self._key(secret) if secret is not None else None
        return Webhook(url, headers, config.private, key) if url is not None and key is not None else None

    def _url(self, config: NotifyConfig) -> Secret | None:
        """The URL, which may be a secret: no message quotes it."""
        key = "url" if config.url is not None else "url_from"
        url = Secret(config.url) if config.url is not None else self._resolver.secret((*self._at, key), config.url_from)
        if url is None:
            return None
        try:
            host = origin(split_url(url.reveal())[0]).host
        except AttemptFailed:
            self._wrong(key, "leads to no URL that can be posted to", 'write "https://", a host, and a path in printable ASCII')
            return None
        self._check_public(key, config, host)
        return url

    def _headers(self, config: NotifyConfig) -> Mapping[str, str]:
        headers = self._resolver.headers((*self._at, "headers"), config.headers)
        for name in sorted(_OURS.intersection(headers)):
            self._wrong("headers", f"`{name}` is the gateway's own header", "take it out")
        return headers

    def _key(self, secret: Secret) -> bytes | None:
        """What a webhook is signed with: a text as it is, or the bytes behind `whsec_` (standardwebhooks.com)."""
        text = secret.reveal()
        key = text.encode()
        if text.startswith(_KEY_PREFIX):
            try:
                key = base64.b64decode(text.removeprefix(_KEY_PREFIX), validate=True)
            except binascii.Error:
                self._wrong("secret", f"what stands behind `{_KEY_PREFIX}` is not base64")
                return None
        if len(key) < _SHORTEST_KEY:
            told = f"the secret has {len(key)} bytes, and can be guessed"
            self._wrong("secret", told, f"take {_SHORTEST_KEY} or more; 32 random ones do")
            return None
        return key

    def _mailbox(self, config: NotifyConfig) -> Mailbox | None:
        password = self._resolver.secret((*self._at, "password"), config.password)
        self._check_public("host", config, config.host)
        if bool(config.username) != (config.password is not None):
            self._wrong("username", "`username` and `password` belong together")
        elif config.username and config.tls == "none":
            self._wrong("tls", "the password would be sent where everybody can read it", 'say "starttls" or "tls"')
        for key, addresses in (("sender", (config.sender,)), ("to", config.to)):
            for address in addresses:
                if not _ADDRESS.fullmatch(address):
                    self._wrong(key, f"{address!r} is no mail address", 'write it as "name@example.com", in ASCII')
        if config.password is not None and password is None:
            return None
        return Mailbox(config.host, config.port, config.tls, config.username, password, config.sender, config.to, config.private)

    def _check_public(self, key: str, config: NotifyConfig, host: str) -> None:
        if not config.private and is_local_host(host):
            who = "its host" if key == "url_from" else host
            self._wrong(key, f"{who} is not a public address", "say `private = true` if it is meant")

    def _wrong(self, key: str, message: str, hint: str | None = None) -> None:
        self.problems.append(self._given.problem((*self._at, key), message, hint))
