"""A clock that stands still, records with everything in them, and telemetry whose lines can be read."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.call import Attempt, AttemptEnd, CallRecord, Origin, Outcome, Principal, Target, Usage
from gateway.telemetry import Telemetry

BEGIN_NS = 1_790_000_000_123_456_789
MS = 1_000_000
SECRET = "sk-upstream-credential-0123456789"


class StandingClock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.ns = BEGIN_NS

    def now_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9


class Lines:
    """A place where log lines go. `fail` is raised by the next writes; `gate`, once cleared, holds writers back."""

    def __init__(self) -> None:
        self.data = b""
        self.writes: list[int] = []
        self.fail: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def write(self, data: bytes) -> None:
        self.waiting.set()
        assert self.gate.wait(30)
        if self.fail is not None:
            raise self.fail
        self.writes.append(len(data))
        self.data += data

    def json(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.data.splitlines()]


def scrub(text: str) -> str:
    return text.replace(SECRET, "********")


@pytest.fixture(name="scrub")
def scrub_fixture() -> Callable[[str], str]:
    return scrub


@pytest.fixture
def secret() -> str:
    return SECRET


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def attempt() -> Attempt:
    usage = Usage(input_tokens=30, output_tokens=12, cache_read_tokens=10, cache_write_tokens=4, reasoning_tokens=5,
                  input_audio_tokens=2, output_audio_tokens=1)
    return Attempt(
        n=2, target=Target("second", "small-1"), started_ns=BEGIN_NS + 40 * MS, ended_ns=BEGIN_NS + 240 * MS,
        end=AttemptEnd.SUCCEEDED, status=200, first_byte_ns=BEGIN_NS + 90 * MS, waited_s=0.01, usage=usage,
        cost_nusd=1_234_567, why="fallback", breaker="half_open", retries_left=2.5, largest_gap_s=0.04,
    )


@pytest.fixture
def record(attempt: Attempt) -> CallRecord:
    """A call with everything: its first target was down, its second answered."""
    dead = Attempt(
        n=1, target=Target("first", "small-1"), started_ns=BEGIN_NS + 10 * MS, ended_ns=BEGIN_NS + 30 * MS,
        end=AttemptEnd.FAILED, cause="status:503", message="no capacity", status=503, cost_nusd=0,
    )
    return CallRecord(
        id="call_01", principal=Principal(id="key_01", name="ci", team="search"), dialect="openai", operation="chat",
        route="small", stream=True, origin=Origin(session="s-1", run="r-1", step="3"), received_ns=BEGIN_NS,
        ended_ns=BEGIN_NS + 250 * MS, outcome=Outcome.COMPLETED, status=200, decision="allow", rule="allow-small",
        labels=("seen",), bundle="sha256:aa", attempts=(dead, attempt), usage=attempt.usage, cost_nusd=1_234_567,
        first_byte_ns=BEGIN_NS + 90 * MS, finish_reasons=("stop",),
    )


@pytest.fixture
def refused(record: CallRecord) -> CallRecord:
    """A call that a rule denied."""
    return replace(
        record, id="call_02", stream=False, outcome=Outcome.REFUSED, status=403, code="forbidden", message="Not at night.",
        decision="deny", rule="night", labels=(), attempts=(), usage=None, cost_nusd=0, first_byte_ns=None, finish_reasons=(),
    )


@pytest.fixture
async def start(clock: StandingClock, lines: Lines) -> AsyncIterator[Callable[..., Awaitable[Telemetry]]]:
    """Starts telemetry that writes to `lines`, and closes it at the end."""
    started: list[Telemetry] = []

    async def make(**changes: Any) -> Telemetry:
        given: dict[str, Any] = {"log_format": "json", "log_level": "info", "write": lines.write, "scrub": scrub, "clock": clock}
        telemetry = Telemetry(**(given | changes))
        telemetry.serving(bundle="sha256:aa", routes={"small": "small", "little": "small"})
        await telemetry.start()
        started.append(telemetry)
        return telemetry

    yield make
    lines.gate.set()
    for telemetry in started:
        await telemetry.close()
