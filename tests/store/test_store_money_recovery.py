"""Money of processes that died: resolved exactly once, at what was set aside, and corrected by whoever knows better."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gateway
from gateway.call import Outcome
from gateway.core.budget import Balance, Need
from gateway.core.rate import Spent, Take
from gateway.core.windows import Window
from gateway.errors import StoreError
from gateway.session import SessionKey
from gateway.store.invariants import Finding
from gateway.store.leases import SIGHTINGS
from gateway.store.ledger_rows import SUSPECT_FIELDS
from gateway.store.protocol import Admitted, CallFilter
from gateway.store.sqlite import SqliteStore

PROGRAM = Path(__file__).with_name("spending_process.py")
LIMIT = 3_000  # of that program
LATER_S = 10**6
HOUR = Window("rolling", length_ns=3600 * 10**9)
PLACE = Take("places", "key=key000000001", "concurrent", 1, 0)
WORDS = Take("words", "key=key000000001", "tokens", 100, 60 * 10**9, 70)


def _start(path: Path, owner: str, count: int, seed: int) -> "subprocess.Popen[str]":
    root = str(Path(gateway.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(path), owner, str(count), str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


async def _successor(path: Path, samples: ModuleType, name: str = "next") -> SqliteStore:
    """A process that starts when every lease is over."""
    store = SqliteStore(path, name)
    await store.start(now_ns=samples.at_ns(LATER_S))
    return store


async def test_the_call_of_a_dead_process_is_booked_at_what_was_set_aside_and_is_suspect(
    path: Path, store: SqliteStore, samples: ModuleType, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=100), samples.budget("moving", "key", 100, window=HOUR))
    await till.begin(1, 30)
    await till.again(1, 2, 20, spent=30)
    await till.extend(1, 25, spent=30)
    await till.begin(2, 10)
    successor = await _successor(path, samples)
    found = await successor.budgets.suspects(10)
    assert [tuple(row) for row in found] == [SUSPECT_FIELDS] * 2
    assert tuple(found[0].values()) == (
        samples.call_id(1), samples.NOW_NS, samples.at_ns(LATER_S), "key000000001", "blue", "fast", "beta/large-2", 55,
        ["team-cap/blue", "moving/key000000001"])
    assert [(row["call"], row["target"], row["cost_nusd"]) for row in found][1:] == [(samples.call_id(2), "alpha/small-1", 10)]
    assert list(await successor.budgets.suspects(1)) == [found[0]]
    assert (await till.held(), await till.held("moving")) == ([("blue", 65, 0)], [("key000000001", 65, 0)])
    assert sql("SELECT seq, n, at_ns, provider, model, cost_nusd, estimated FROM ledger ORDER BY seq") == [
        (1, 2, samples.at_ns(LATER_S), "beta", "large-2", 55, 1), (2, 1, samples.at_ns(LATER_S), "alpha", "small-1", 10, 1)]
    call = await successor.journal.call(samples.call_id(1))
    assert call is not None
    assert (call["outcome"], call["cost_nusd"], [each["cost_nusd"] for each in call["attempts"]]) == ("interrupted", 55, [None, 55])
    assert (await successor.sessions.facts(SessionKey("key000000001", "s-1"), frozenset(), now_ns=1)).spend_nusd == 65
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.extend(1, 99)
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.finish(1, 1)
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.again(2, 2, 5, spent=0)
    assert await till.held() == [("blue", 65, 0)]
    await successor.close()
    assert [(each.invariant.name, each.invariant.note, len(each.rows)) for each in diagnose(samples.at_ns(LATER_S))] == [
        ("suspects", True, 2)]


@pytest.mark.parametrize("cost", [None, 40, 0, 12, 1000])
async def test_an_operator_says_what_a_suspect_really_cost(
    path: Path, store: SqliteStore, samples: ModuleType, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    cost: int | None,
) -> None:
    booked = 40 if cost is None else cost
    till = samples.Till(store, samples.budget(limit=50), samples.budget("moving", "key", 100, window=HOUR))
    await till.begin(1, 40)
    successor = await _successor(path, samples)
    later = samples.Till(successor)
    assert [row["estimated_nusd"] for row in await successor.budgets.costs("model", 0, 2**62, 9)] == [40]
    now_ns = samples.at_ns(LATER_S + 5)
    answers = await asyncio.gather(*(
        successor.budgets.resolve(samples.call_id(1), cost, author="ada\udcff", now_ns=now_ns) for _ in range(3)))
    assert answers == [True, False, False]
    assert list(await successor.budgets.suspects(10)) == []
    assert (await later.held(), await later.held("moving")) == ([("blue", booked, 0)], [("key000000001", booked, 0)])
    assert sql("SELECT cost_nusd, how, suspect, author FROM settlements") == [(booked, "resolved", 0, "ada?")]
    corrections = [] if booked == 40 else [(0, now_ns, "alpha", "small-1", booked - 40, 0, "operator")]
    assert sql("SELECT n, at_ns, provider, model, cost_nusd, estimated, prices FROM ledger WHERE n = 0") == corrections
    costs = await successor.budgets.costs("team", 0, 2**62, 9)
    assert [(row["group"], row["cost_nusd"], row["estimated_nusd"], row["calls"]) for row in costs] == [("blue", booked, 0, 1)]
    assert (await successor.budgets.windows("team-cap", None, 1))[0]["over_nusd"] == max(0, booked - 40)
    await successor.close()
    assert diagnose(samples.at_ns(LATER_S)) == []


async def test_what_was_certain_or_free_is_not_suspect(
    path: Path, store: SqliteStore, samples: ModuleType, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=50))
    await till.begin(1, Need(0, 0, 100))
    await samples.Till(store).begin(2, 30, takes=(WORDS,))
    await till.begin(3, 20)
    await till.finish(3, outcome=Outcome.CANCELLED, status=499, code="client_gone")
    await till.begin(4, 20)
    await till.finish(4, 3)
    successor = await _successor(path, samples)
    assert list(await successor.budgets.suspects(10)) == []
    assert sql("SELECT seq, cost_nusd, how, suspect FROM settlements ORDER BY seq") == [
        (1, 0, "recovered", 0), (2, 0, "recovered", 0), (3, 0, "released", 0), (4, 3, "settled", 0)]
    calls = {row["id"]: row["cost_nusd"] for row in await successor.journal.calls(CallFilter())}
    assert (calls[samples.call_id(1)], calls[samples.call_id(2)]) == (None, None)  # nobody knows, and nothing was booked
    assert await samples.Till(successor).held() == [("blue", 3, 0)]
    await successor.close()
    assert diagnose(samples.at_ns(LATER_S)) == []


async def test_places_of_the_dead_are_free_again_and_what_they_used_is_not_guessed(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store)
    await till.begin(1, 1, takes=(PLACE, WORDS))
    assert await till.begin(2, 1, takes=(PLACE,)) == Spent(PLACE, 0)
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    late_ns = samples.at_ns(61)  # the lease that a process starts with
    for _beat in range(1 + SIGHTINGS):
        assert await samples.Till(other).begin(2, 1, takes=(PLACE,)) == Spent(PLACE, 0)
        await other.heartbeat(now_ns=late_ns, lease_ns=10**9)
    assert isinstance(await samples.Till(other).begin(2, 1, takes=(PLACE,)), Admitted)
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.finish(1, 1)
    assert await samples.Till(other).begin(3, 1, takes=(PLACE,)) == Spent(PLACE, 0)  # not given back a second time
    await samples.Till(other).finish(2, 1)
    await other.close()
    assert diagnose() == []


async def test_a_heartbeat_forgets_the_counts_that_are_empty(store: SqliteStore, samples: ModuleType, sql: Callable[..., Any]) -> None:
    till = samples.Till(store)
    for n in range(20):
        each = Take("r", f"user={n}", "requests", 60, (n + 1) * 60 * 10**9)  # empty again after n + 1 seconds
        assert await store.budgets.take((each,), now_ns=samples.NOW_NS) is None
    await till.begin(1, 1, takes=(PLACE,))
    await store.heartbeat(now_ns=samples.at_ns(10), lease_ns=60 * 10**9)
    assert sql("SELECT count(*) FROM rates WHERE measure = 'requests'") == [(10,)]
    await till.finish(1, 1)
    await store.heartbeat(now_ns=samples.at_ns(20), lease_ns=60 * 10**9)
    assert sql("SELECT count(*) FROM rates") == [(0,)]


async def test_tokens_are_not_corrected_in_a_count_that_was_forgotten(
    store: SqliteStore, samples: ModuleType, sql: Callable[..., Any],
) -> None:
    till = samples.Till(store)
    await till.begin(1, 1, takes=(WORDS,))
    await store.heartbeat(now_ns=samples.at_ns(50), lease_ns=60 * 10**9)
    await till.finish(1, 1)
    assert sql("SELECT count(*) FROM rates") == [(0,)]


async def test_processes_that_recover_at_once_book_each_call_once(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=1000))
    await asyncio.gather(*(till.begin(n, 10) for n in range(50)))
    successors = await asyncio.gather(*(_successor(path, samples, f"next {n}") for n in range(4)))
    assert await till.held() == [("blue", 500, 0)]
    assert len(await successors[0].budgets.suspects(100)) == 50
    for each in successors:
        await each.close()
    assert {finding.invariant.name for finding in diagnose(samples.at_ns(LATER_S))} == {"suspects"}


async def test_after_kill_9_at_any_moment_no_account_is_over_its_limit_and_nothing_is_unresolved(
    path: Path, samples: ModuleType, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    """Two processes spend from the same two accounts; one of them dies at a random moment, in every round."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    told: dict[int, tuple[str, int]] = {}
    for n in range(3):
        victim, other = _start(path, f"victim {n}", 100_000, seed + n), _start(path, f"other {n + 5}", 40, seed - n)
        assert victim.stdout is not None
        lines = [await asyncio.to_thread(victim.stdout.readline) for _ in range(chance.randrange(1, 150))]
        victim.send_signal(signal.SIGKILL)
        rest, errors = await asyncio.to_thread(victim.communicate, timeout=60)
        output, other_errors = await asyncio.to_thread(other.communicate, timeout=60)
        assert (errors, other_errors, other.returncode) == ("", "", 0), seed
        heard = "".join(lines) + rest
        for line in (heard[:heard.rfind("\n") + 1] + output).splitlines():
            verb, number, figure = line.split()
            told[int(number)] = verb, int(figure)
    store = await _successor(path, samples, "survivor")
    settled = {call: (cost, how) for call, cost, how in sql("SELECT id, cost_nusd, how FROM settlements JOIN calls USING (seq)")}
    for n, (verb, amount) in told.items():
        cost, how = settled.get(samples.call_id(n), (0, "short"))
        if verb == "ended":
            assert (cost, how) == (amount, "settled"), seed
        elif verb == "short":
            assert how == "short", seed
        else:
            assert how in ("recovered", "settled"), seed
            assert how == "settled" or cost >= amount, seed  # what it grew by last may not have been told
    assert sql("SELECT count(*) FROM reservations WHERE seq NOT IN (SELECT seq FROM settlements)") == [(0,)], seed
    assert sql("SELECT count(*) FROM rates WHERE measure = 'concurrent' AND value != 0") == [(0,)], seed
    spent = sum(cost for cost, _how in settled.values())
    for name in ("team-cap", "rolling"):
        rows = await store.budgets.windows(name, None, 1000)
        assert (sum(row["posted_nusd"] for row in rows), sum(row["pending_nusd"] for row in rows)) == (spent, 0), seed
    assert 0 < spent <= LIMIT, seed
    assert sum(row["cost_nusd"] for row in await store.budgets.costs("key", 0, 2**62, 9)) == spent, seed
    standing = (await store.budgets.standing(
        samples.Till(store, samples.budget(limit=LIMIT)).book, {"team": ("blue",)}, now_ns=samples.NOW_NS))[0]
    assert standing.counted == Balance(spent, 0), seed
    await store.close()
    assert {finding.invariant.name for finding in diagnose(samples.at_ns(LATER_S))} <= {"suspects"}, seed
