"""Records for the tests of stores. Loaded by path, since test folders are not packages."""

from dataclasses import replace
from typing import Any

from gateway.call import Attempt, AttemptEnd, CallRecord, Origin, Outcome, Principal, Target, Usage
from gateway.core.accounts import Budget, BudgetBook, Scope
from gateway.core.budget import Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.store.approvals_protocol import Unclaimed
from gateway.store.protocol import Admitted, Booked, Demand, DispatchIntent, Intent, Store, StoredKey

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


def tokens(most: int, **changes: Any) -> Need:
    """A need whose answer costs one nano-USD a token, and whose input costs nothing."""
    return replace(Need(0, 1000, most), **changes)


def budget(name: str = "team-cap", scope: Scope = "team", limit: int | None = 1000, **changes: Any) -> Budget:
    return replace(Budget(name, scope, limit, least=1), **changes)


class Till:
    """A store's books, for tests: calls by number, amounts in nano-USD, times in seconds after `NOW_NS`."""

    def __init__(self, store: Store, *budgets: Budget) -> None:
        self.store = store
        self.book = BudgetBook(budgets)
        self.subjects: dict[Scope, tuple[str, ...]] = {"all": ("all",), "org": ("acme",), "team": ("blue",), "key": ("key000000001",)}

    async def begin(
        self, n: int, need: Need | int, *, at_s: float = 0, takes: tuple[Take, ...] = (), **subjects: tuple[str, ...] | str,
    ) -> Admitted | Short | Spent:
        asked = tokens(need) if isinstance(need, int) else need
        named = {scope: (each,) if isinstance(each, str) else each for scope, each in subjects.items()}
        demand = Demand(self.book, {**self.subjects, **named}, asked, takes)  # type: ignore[dict-item]
        answer = await self.store.journal.begin(replace(intent(n, received_ns=at_ns(at_s)), demand=demand))
        assert not isinstance(answer, Unclaimed)
        return answer

    async def again(self, n: int, attempt_n: int, need: Need | int, *, spent: int, at_s: float = 0) -> Granted | Short:
        """A further attempt."""
        asked = tokens(need) if isinstance(need, int) else need
        return await self.store.journal.dispatch(
            DispatchIntent(call_id(n), attempt_n, OTHER, at_ns(at_s), 0.25, need=asked, spent_nusd=spent))

    async def extend(self, n: int, need: Need | int, *, spent: int = 0) -> Granted | Short:
        asked = tokens(need) if isinstance(need, int) else need
        return await self.store.budgets.extend(call_id(n), asked, spent_nusd=spent)

    async def finish(self, n: int, *costs: int | None, at_s: float = 1, **changes: Any) -> Booked:
        """End a call whose attempts cost this."""
        tries = tuple(
            attempt(k, target=TARGET if k == 1 else OTHER, cost_nusd=cost, started_ns=at_ns(at_s), ended_ns=at_ns(at_s))
            for k, cost in enumerate(costs, 1))
        total = None if None in costs else sum(cost or 0 for cost in costs)
        record = completed(n, **{"attempts": tries, "cost_nusd": total, "ended_ns": at_ns(at_s), **changes})
        return await self.store.journal.finish(record, response=None)

    async def spend(self, n: int, cost: int, *, at_s: float = 0, **subjects: Any) -> Booked:
        """A call that took just what it cost."""
        answer = await self.begin(n, cost, at_s=at_s, **subjects)
        assert isinstance(answer, Admitted), answer
        return await self.finish(n, cost, at_s=at_s)

    async def held(self, name: str = "team-cap") -> list[tuple[str, int, int]]:
        """Every balance of a budget: whose, posted, pending; oldest first, and by name."""
        rows = sorted(await self.store.budgets.windows(name, None, 1000), key=lambda row: (row["window_ns"], row["subject"]))
        return [(row["subject"], row["posted_nusd"], row["pending_nusd"]) for row in rows]


def at_ns(at_s: float) -> int:
    return NOW_NS + round(at_s * SECOND_NS)
