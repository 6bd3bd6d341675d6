"""What the tests of identities share: a clock that is moved by hand, a log that is read, a fast hasher."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from argon2 import PasswordHasher

from gateway.clock import SystemClock, SystemIds
from gateway.identity.logins import Logins
from gateway.identity.passwords import Passwords
from gateway.people_config import LoginConfig
from gateway.secret import Secret
from gateway.store.memory_people import MemoryPeople

NOW_NS = 1_790_000_000_000_000_000


@dataclass
class HandClock:
    """Stands until it is moved."""

    at_ns: int = NOW_NS
    at_s: float = 1000.0

    def now_ns(self) -> int:
        return self.at_ns

    def monotonic(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        self.move(seconds)

    def move(self, seconds: float) -> None:
        self.at_s += seconds
        self.at_ns += int(seconds * 1_000_000_000)


@dataclass
class Log:
    """What was told, in order."""

    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def event(self, level: str, name: str, **fields: object) -> None:
        self.lines.append((level, name, dict(fields)))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for _level, each, fields in self.lines if each == name]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def people() -> MemoryPeople:
    return MemoryPeople()


@pytest.fixture
def passwords() -> Passwords:
    """As the real ones, at a thousandth of the cost."""
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def logins(people: MemoryPeople, clock: HandClock, log: Log, passwords: Passwords) -> Logins:
    return Logins(people, LoginConfig(), Secret("pepper"), Secret("the-admin-token"), clock, SystemIds(SystemClock()), log, passwords)
