"""Records for the tests of stores. Loaded by path, since test folders are not packages."""

from dataclasses import replace
from typing import Any

from gateway.call import Attempt, AttemptEnd, CallRecord, Origin, Outcome, Principal, Target, Usage
from gateway.store.protocol import DispatchIntent, Intent, StoredKey

NOW_NS = 1_790_000_000_000_000_000
SECOND_NS = 1_000_000_000
TARGET = Target("alpha", "small-1")
OTHER = Target("beta", "large-2")
USAGE = Usage(input_tokens=120, output_tokens=40, cache_read_tokens=20)


def call_id(n: int) -> str:
    return f"call_{n:026d}"


def record(n: int, **changes: Any) -> CallRecord:
    """A call that is about to be sent."""
    made = CallRecord(
        id=call_id(n), principal=Principal("key000000001", "ci", "blue", "acme", ("dev",)), dialect="openai", operation="chat",
        route="fast", stream=False, origin=Origin(session="s-1", run="r-1", step="plan", tags={"env": "test"}),
        received_ns=NOW_NS + n, ended_ns=NOW_NS + n, outcome=Outcome.INTERRUPTED, status=0, decision="allow", rule="office-hours",
        labels=("checked",), bundle="sha256:abc",
        reasons=({"rule": "office-hours", "effect": "allow", "verdict": "matched", "source": "a.toml:3", "message": ""},),
    )
    return replace(made, **changes)


def attempt(n: int, **changes: Any) -> Attempt:
    made = Attempt(
        n=n, target=TARGET, started_ns=NOW_NS + 1, ended_ns=NOW_NS + 3 * SECOND_NS, end=AttemptEnd.SUCCEEDED, status=200,
        first_byte_ns=NOW_NS + SECOND_NS, usage=USAGE, cost_nusd=1500,
    )
    return replace(made, **changes)


def completed(n: int, **changes: Any) -> CallRecord:
    return record(n, **{
        "outcome": Outcome.COMPLETED, "status": 200, "ended_ns": NOW_NS + 3 * SECOND_NS, "attempts": (attempt(1),), "usage": USAGE,
        "cost_nusd": 1500, "first_byte_ns": NOW_NS + SECOND_NS, "finish_reasons": ("stop",), **changes,
    })


def refused(n: int, **changes: Any) -> CallRecord:
    return record(n, **{
        "outcome": Outcome.REFUSED, "status": 403, "code": "forbidden", "message": "no", "decision": "deny", "rule": "no-images",
        "cost_nusd": 0, **changes,
    })


def intent(n: int, request: bytes | None = b'{"model":"fast"}', **changes: Any) -> Intent:
    return Intent(record(n, **changes), TARGET, request)


def dispatch(n: int, attempt_n: int) -> DispatchIntent:
    return DispatchIntent(call_id(n), attempt_n, OTHER, NOW_NS + 2 * SECOND_NS, 0.25)


def key(n: int, **changes: Any) -> StoredKey:
    made = StoredKey(
        id=f"key{n:09d}", name=f"key {n}", digest=bytes([n]) * 32, team="blue", org="acme", roles=("dev", "ops"),
        routes=("fast", "slow-*"), created_ns=NOW_NS + n,
    )
    return replace(made, **changes)
