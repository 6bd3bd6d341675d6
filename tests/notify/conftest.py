"""Tickets, clocks that tests move by hand, channels of every kind, and a store of approvals that is a real one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import SystemIds
from gateway.core.approval import Demand, Stage, State, Ticket
from gateway.notify.channels import Channel, Mailbox, Receiver, Slack, Webhook
from gateway.secret import Secret
from gateway.store.sqlite import SqliteStore

NOW_NS = 1_790_000_000_000_000_000
SOON_S = 20
EVENTS = frozenset({"opened", "reminder", "escalated", "decided", "expired", "unknown"})
KEY = b"a key of thirty-two bytes, truly"
TICKET = Ticket(
    id="apr_01", kind="tool", mode="release", state=State.PENDING, digest="sha256:" + "ab" * 32, presented="sha256:" + "ab" * 32,
    principal="key_1", call_id="call_1", rule="pay-big", message="Payments above 1,000 wait for two people.",
    demands=(Demand("pay-big", (Stage(),)),), shown={"arguments": {"account": "DE12", "amount": 5000}}, body=b"{}",
    origin={"principal": {"id": "key_1", "name": "", "team": "", "org": "", "roles": [], "routes": ["*"], "on_behalf_of": "", "owner": ""},
            "origin": {}}, shape="sha256:0", created_ns=NOW_NS, expires_ns=NOW_NS + 3600 * 10**9, principal_name="payroll", team="finance",
    tool="bank.pay", route="bank.pay", notify=("*",))


class HandClock:
    """Time that passes when somebody says so."""

    s = 1000.0

    def now_ns(self) -> int:
        return NOW_NS + round((self.s - 1000.0) * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


class Ids(SystemIds):
    """Without jitter, so that a test knows when something is due."""

    def jitter(self) -> float:
        return 0.0


@dataclass
class Heard:
    """What is logged and counted."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notices: list[tuple[str, str]] = field(default_factory=list)
    pending_now: int | None = None

    def event(self, _level: str, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def notice(self, channel: str, outcome: str) -> None:
        self.notices.append((channel, outcome))

    def pending(self, approvals: int) -> None:
        self.pending_now = approvals


def channel(to: Receiver, name: str = "ops", **more: Any) -> Channel:
    return Channel(**{"name": name, "events": EVENTS, "to": to, "page": "https://gate.example", **more})


@pytest.fixture
def ticket() -> Callable[..., Ticket]:
    return lambda **changed: replace(TICKET, **changed)


@pytest.fixture
def hook() -> Callable[..., Channel]:
    """A channel to a webhook."""
    return lambda url="https://hooks.example/a", **more: channel(Webhook(Secret(url), {}, private=True, key=KEY), **more)


@pytest.fixture
def chat() -> Callable[..., Channel]:
    """A channel to a chat of Slack's kind."""
    return lambda url="https://hooks.example/T0/B0/token", **more: channel(Slack(Secret(url), {}, private=True), **more)


@pytest.fixture
def mailbox() -> Callable[..., Channel]:
    """A channel of mail."""
    def make(**changed: Any) -> Channel:
        to = Mailbox(**{"host": "127.0.0.1", "port": 25, "tls": "none", "username": "", "password": None, "sender": "gate@example.com",
                        "to": ("ops@example.com",), "private": True, **changed})
        return channel(to)
    return make


@pytest.fixture
def world() -> Callable[..., Any]:
    """A snapshot, as far as notices look at one."""
    return lambda *channels, rules=(), tools=None: SimpleNamespace(
        channels={each.name: each for each in channels}, bundle=SimpleNamespace(rules=rules), tools=tools or {})


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def ids(clock: HandClock) -> Ids:
    return Ids(clock)


@pytest.fixture
def heard() -> Any:
    return Heard()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "lockgate.db", "one")
    await opened.start(now_ns=NOW_NS)
    yield opened
    await opened.close()
