"""Money and rates on SQLite alone: batches, several processes on one file, failing transactions, rows that were written by hand."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.call import Usage
from gateway.core.accounts import Change
from gateway.core.budget import Balance, Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.core.windows import Window
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.database import open_writable
from gateway.store.invariants import Finding
from gateway.store.library import sqlite3
from gateway.store.protocol import Admitted
from gateway.store.sqlite import SqliteStore
from gateway.store.writer import Do

HOUR = Window("rolling", length_ns=3600 * 10**9)
STATEMENT = Take("r", "key=k", "requests", 10, 60 * 10**9)


def change(kind: str = "set", name: str = "team-cap", subject: str = "", **given: Any) -> Change:
    return Change(0, 5, "ada", kind, name, subject, **given)  # type: ignore[arg-type]


def granted(answers: list[Any]) -> int:
    return sum(each.granted.amount_nusd for each in answers if isinstance(each, Admitted))


def refusal_of(answer: object) -> tuple[str, str]:
    assert isinstance(answer, Short), answer
    return answer.holding.account.name, answer.why


class Faulty:
    """A connection whose next COMMIT fails as on a full disk."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.failures = 0

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT" and self.failures:
            self.failures -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = 13
            raise error
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def test_calls_of_one_transaction_see_what_those_before_them_have_taken(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=100, on_short="deny"), samples.budget("hourly", "all", 100, window=HOUR))
    answers = await asyncio.gather(*(till.begin(n, 7) for n in range(64)))
    assert [isinstance(each, Admitted) for each in answers] == [True] * 14 + [False] * 50
    assert answers[13].standings[0].counted == Balance(0, 98)
    booked = await asyncio.gather(*(till.finish(n, 3) for n in range(14)))
    assert booked[13].standings[0].counted == Balance(42, 0)
    assert diagnose() == []


async def test_calls_of_one_transaction_may_be_in_different_windows(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=100, window=Window("hour")), samples.budget("moving", "key", 100, window=HOUR))
    answers = await asyncio.gather(*(till.begin(n, 30, at_s=at_s) for n, at_s in enumerate((0, 100, 1900, 0, 5500))))
    assert [each.granted.amount_nusd for each in answers] == [30, 30, 30, 10, 30]
    assert [each.standings[1].counted.pending for each in answers] == [30, 60, 90, 100, 60]
    assert sorted(await till.held("moving")) == [("key000000001", 0, 30)] * 3 + [("key000000001", 0, 40)]
    assert diagnose() == []


async def test_a_balance_is_read_and_written_once_a_transaction_however_many_calls_are_on_it(
    store: SqliteStore, samples: ModuleType,
) -> None:
    till = samples.Till(store, samples.budget(limit=10**6), samples.budget("hourly", "key", 10**6, window=HOUR))
    await till.spend(1, 5)
    seen: list[str] = []
    await store._writer.write(Do(lambda connection: connection.set_trace_callback(seen.append)))
    await asyncio.gather(*(till.begin(n, 7) for n in range(10, 40)))
    about_balances = [text for text in seen if "balances" in text and "reservations" not in text]
    assert len([text for text in about_balances if text.startswith("UPDATE")]) == 2
    assert len(about_balances) == 4
    assert len([text for text in seen if "budget_changes" in text]) == 1


async def test_no_statement_of_a_call_reads_a_whole_table(store: SqliteStore, samples: ModuleType) -> None:
    till = samples.Till(store, samples.budget(limit=10**6), samples.budget("hourly", "key", 10**6, window=HOUR))
    seen: list[str] = []
    await store._writer.write(Do(lambda connection: connection.set_trace_callback(seen.append)))
    await store._reader.read(lambda connection: connection.set_trace_callback(seen.append))
    await till.begin(1, 7, takes=(STATEMENT, replace(STATEMENT, measure="tokens"), replace(STATEMENT, measure="concurrent")))
    await till.again(1, 2, 5, spent=7)
    await till.extend(1, 50)
    await till.finish(1, 1, 2)
    await store.budgets.standing(till.book, till.subjects, now_ns=samples.NOW_NS)
    await store.budgets.suspects(10)
    await store.budgets.resolve(samples.call_id(1), 5, author="", now_ns=1)
    await store.budgets.windows("team-cap", None, 10)
    await store._reader.read(lambda connection: connection.set_trace_callback(None))
    asked = [text for text in seen if not text.startswith(("BEGIN", "COMMIT", "ROLLBACK", "--"))]
    assert len(asked) > 20
    plans = await store._reader.read(lambda connection: [
        f"{row[3]}  <-  {text}" for text in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()])
    assert [plan for plan in plans if plan.startswith("SCAN") and not plan.startswith(("SCAN CONSTANT ROW", "SCAN settlements USING"))] == []


async def test_two_processes_on_one_file_never_grant_more_than_there_is(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    budgets = samples.budget(limit=1000), samples.budget("hourly", "key", 900, window=HOUR)
    tills = [samples.Till(each, *budgets) for each in (store, other)]
    answers = await asyncio.gather(*(tills[n % 2].begin(n, 7 + n % 5) for n in range(400)))
    assert granted(answers) == 900
    assert {each.why for each in answers if isinstance(each, Short)} == {"busy"}
    await asyncio.gather(*(tills[n % 2].finish(n, 1) for n, each in enumerate(answers) if isinstance(each, Admitted)))
    spent = sum(isinstance(each, Admitted) for each in answers)
    assert await tills[0].held() == await tills[1].held() == [("blue", spent, 0)]
    await other.close()
    assert diagnose() == []


async def test_an_operators_change_in_one_process_counts_for_the_next_call_in_another(
    path: Path, store: SqliteStore, samples: ModuleType,
) -> None:
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    till = samples.Till(store, samples.budget(limit=10))
    assert isinstance(await till.begin(1, 10), Admitted)
    assert isinstance(await till.begin(2, 10), Short)
    await other.budgets.change(change("raise", limit_nusd=5, until_ns=samples.at_ns(60)))
    assert (await till.begin(2, 10)).granted == Granted(5, 5)
    await other.budgets.change(change(subject="blue", limit_nusd=40))
    standing = (await store.budgets.standing(till.book, till.subjects, now_ns=samples.NOW_NS))[0]
    assert (standing.account.limit_nusd, standing.counted) == (45, Balance(0, 15))
    assert (await till.begin(3, 99, at_s=60)).granted == Granted(25, 25)
    await other.close()


async def test_a_change_counts_for_the_calls_behind_it_in_its_own_transaction(store: SqliteStore, samples: ModuleType) -> None:
    till = samples.Till(store, samples.budget(limit=10))
    before, kept, after = await asyncio.gather(
        till.begin(1, 10), store.budgets.change(change(subject="blue", limit_nusd=30)), till.begin(2, 99))
    assert (before.granted.amount_nusd, after.granted.amount_nusd) == (10, 20)
    assert list(await store.budgets.changes()) == [kept]


@pytest.mark.parametrize("failures", [1, 2, 20])
async def test_a_commit_that_fails_leaves_nothing_behind_and_what_is_tried_again_is_exact(
    path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch, failures: int,
) -> None:
    """The batch is rolled back, so nothing that was worked out for it may be believed by those who are tried again alone."""
    faulty: list[Faulty] = []
    whole = SqliteStore._open

    def opened(self: SqliteStore) -> tuple[Any, Any]:
        writing, reading = whole(self)
        faulty.append(Faulty(writing))
        return faulty[0], reading

    monkeypatch.setattr(SqliteStore, "_open", opened)
    store = SqliteStore(path, "one")
    await store.start(now_ns=samples.NOW_NS)
    till = samples.Till(store, samples.budget(limit=100), samples.budget("hourly", "key", 1000, window=HOUR))
    await till.begin(1, 30)
    faulty[0].failures = failures
    asked = (
        till.extend(1, 40), till.begin(2, 30), store.budgets.change(change(subject="blue", limit_nusd=120)), till.finish(1, 7),
        *(till.begin(n, 20) for n in range(3, 10)))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    faulty[0].failures = 0
    failed = [isinstance(each, StoreUnavailable) for each in answers]
    if failures < 20:
        assert failed == [n < failures - 1 for n in range(len(answers))]
    else:
        assert all(failed)
        assert await till.held() == [("blue", 0, 30)]
    row = (await store.budgets.windows("team-cap", "blue", 1))[0]
    ended = not failed[3]
    held = sum(each.granted.amount_nusd for each in answers if isinstance(each, Admitted))
    assert (row["posted_nusd"], row["pending_nusd"]) == ((7, held) if ended else (0, held + 30))
    assert len(await store.budgets.changes()) == (0 if failed[2] else 1)
    assert diagnose() == []
    left = (100 if failed[2] else 120) - row["posted_nusd"] - row["pending_nusd"]
    answer = await till.begin(20, 10**6)
    assert (isinstance(answer, Short) if left == 0 else answer.granted == Granted(left, left))
    await store.close()


async def test_a_bad_record_in_a_batch_costs_its_neighbours_neither_money_nor_exactness(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=50))
    bad = replace(samples.intent(99, received_ns=2**70))
    answers = await asyncio.gather(*(till.begin(n, 20) for n in range(4)), store.journal.begin(bad), return_exceptions=True)
    assert [each.granted.amount_nusd for each in answers if isinstance(each, Admitted)] == [20, 20, 10]
    assert isinstance(answers[3], Short)
    assert isinstance(answers[4], StoreError)
    assert await till.held() == [("blue", 0, 50)]
    assert diagnose() == []


async def test_what_a_stream_was_given_in_the_transaction_that_ends_it_is_given_back_too(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    """The client went away while more was being set aside: both wait for the same transaction."""
    till = samples.Till(store, samples.budget(limit=100))
    await till.begin(1, 20)
    more, booked = await asyncio.gather(till.extend(1, 90), till.finish(1, 15))
    assert (more, booked.standings[0].counted) == (Granted(90, 90), Balance(15, 0))
    await till.begin(2, 20)
    ended = asyncio.ensure_future(till.finish(2, 5))
    await asyncio.sleep(0)  # it is queued first
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.extend(2, 70)
    assert (await ended).standings[0].counted == Balance(20, 0)
    assert await till.held() == [("blue", 20, 0)]
    assert diagnose() == []


async def test_a_call_that_begins_twice_holds_nothing_the_second_time(store: SqliteStore, samples: ModuleType) -> None:
    till = samples.Till(store, samples.budget(limit=100))
    place = replace(STATEMENT, measure="concurrent", most=2)
    answers = await asyncio.gather(till.begin(1, 20, takes=(place,)), till.begin(1, 30, takes=(place,)), return_exceptions=True)
    assert isinstance(answers[1], StoreError)
    assert await till.held() == [("blue", 0, 20)]
    assert isinstance(await till.begin(2, 1, takes=(place,)), Admitted)
    await till.finish(1, 20)
    assert await till.held() == [("blue", 20, 1)]


async def test_a_call_that_another_process_began_is_settled_from_its_row(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    till, elsewhere = samples.Till(store, samples.budget(limit=100), samples.budget("k", "key", 90)), samples.Till(other)
    place, words = replace(STATEMENT, measure="concurrent", most=1), replace(STATEMENT, measure="tokens", most=100, amount=60)
    await till.begin(1, 40, takes=(place, words))
    with pytest.raises(StoreError, match="not under way"):
        await elsewhere.extend(1, 50)
    with pytest.raises(StoreError, match="not under way"):
        await elsewhere.again(1, 2, 5, spent=0)
    assert (await elsewhere.finish(1, 30, attempts=(samples.attempt(1, cost_nusd=30, usage=Usage(10, 10)),))).standings == ()
    assert (await till.held(), await till.held("k")) == ([("blue", 30, 0)], [("key000000001", 30, 0)])
    assert isinstance(await till.begin(2, 1, takes=(place, replace(words, amount=80))), Admitted)
    await elsewhere.finish(2, 1)
    await samples.Till(store).begin(3, 5)
    await elsewhere.finish(3, 5)
    with pytest.raises(StoreError, match="already has its outcome"):
        await till.finish(1, 30)
    await other.close()
    assert diagnose() == []


@pytest.mark.parametrize("repair", ["DELETE FROM budget_changes", "UPDATE budget_changes SET budget = ''"])
async def test_a_change_that_cannot_be_read_stops_calls_instead_of_limits(
    store: SqliteStore, samples: ModuleType, sql: Callable[..., Any], repair: str,
) -> None:
    till = samples.Till(store, samples.budget(limit=100))
    sql("INSERT INTO budget_changes VALUES (1, 1, 'ada', 'set', 'b', '', '{\"name\":\"b\"', NULL, NULL, NULL, '')")
    for broken in ('{"name":"b"', "[]", '{"name":"b","window":{"kind":"day","what":1},"of":[]}', '{"window":{},"of":7}',
                   '{"name":"b","scope":"all","limit_nusd":1,"of":["*"],"limits":{},"window":{"kind":"day","zone":"Mars/Olympus"}}',
                   '{"name":"b","scope":"all","limit_nusd":1,"of":["*"],"limits":[7],"window":{}}'):
        sql("UPDATE budget_changes SET budget = ?", broken)
        for asked in (till.begin(1, 5), store.budgets.standing(till.book, till.subjects, now_ns=1), store.budgets.changes()):
            with pytest.raises(StoreError, match="change 1 of the budgets cannot be read"):
                await asked
    sql(repair)
    assert isinstance(await till.begin(1, 5), Admitted)


@pytest.mark.parametrize("given", [
    {"limit_nusd": -1}, {"soft_nusd": 2**62 + 1}, {"name": ""}, {"name": "b" * 65}, {"subject": "s" * 1025}, {"note": "n" * 4097},
    {"author": "a" * 257}, {"kind": "raise"}, {"kind": "raise", "limit_nusd": 0, "until_ns": 5}, {"kind": "raise", "limit_nusd": 1},
    {"kind": "raise", "limit_nusd": 1, "until_ns": 2**63}, {"kind": "raise", "limit_nusd": 1, "until_ns": -1},
    {"budget": {"name": "another"}}, {"budget": {"limit": -1}}, {"budget": {"limits": {"x": 2**63}}}, {"budget": {}, "subject": "blue"},
    {"budget": {"window": Window("day", "Mars/Olympus")}}, {"budget": {"window": Window("day", "../etc")}},
    {"budget": {}, "kind": "remove"}, {"budget": {"of": ("x" * 1000,) * 300}},
])
async def test_a_change_that_no_budget_can_be_made_of_is_refused(store: SqliteStore, samples: ModuleType, given: dict[str, Any]) -> None:
    budget = samples.budget(**given["budget"]) if given.get("budget") is not None and "name" not in given["budget"] else None
    if "budget" in given:
        given = {**given, "budget": budget or samples.budget(given["budget"]["name"])}
    with pytest.raises(StoreError):
        await store.budgets.change(replace(change(), **given))
    assert list(await store.budgets.changes()) == []


async def test_names_that_nobody_can_store_are_bounded_or_refused(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget("u", "user", 100))
    with pytest.raises(StoreError, match="1024 characters at most"):
        await till.begin(1, 5, user="k/" + "x" * 1023)
    assert isinstance(await till.begin(1, 5, user="k/'; DROP TABLE balances --\x00\udcff"), Admitted)
    assert isinstance(await till.begin(2, 5, user="k/'; DROP TABLE balances --\x00\udcfe"), Admitted)
    assert await till.held("u") == [("k/'; DROP TABLE balances --\x00?", 0, 10)]
    await till.finish(1, 3)
    assert await till.held("u") == [("k/'; DROP TABLE balances --\x00?", 3, 5)]
    odd = Take("r\udcff", "user=\udcff'", "requests", 1, 10**9)
    assert await store.budgets.take((odd,), now_ns=1) is None
    assert isinstance(await store.budgets.take((odd,), now_ns=1), Spent)
    assert diagnose() == []


async def test_what_no_column_holds_is_refused_or_kept_within_bounds(store: SqliteStore, samples: ModuleType) -> None:
    till = samples.Till(store, samples.budget(limit=None, soft_nusd=1))
    await till.begin(1, 2**61)
    with pytest.raises(StoreError, match="set aside"):
        await till.extend(1, 2**63)
    assert (await till.finish(1, 2**62 + 5)).standings[0].counted == Balance(2**62, 0)
    await till.begin(2, 5)
    assert (await till.finish(2, 2**62)).overrun_nusd == 2**62 - 5
    row = (await store.budgets.windows("team-cap", None, 10**30))[0]
    assert (row["posted_nusd"], row["pending_nusd"], row["over_nusd"]) == (2**62, 0, 2**62)
    for cost in (-1, 2**62 + 1):
        with pytest.raises(StoreError, match="a call costs between"):
            await store.budgets.resolve(samples.call_id(1), cost, author="ada", now_ns=1)
    with pytest.raises(StoreError, match="author"):
        await store.budgets.resolve(samples.call_id(1), 1, author="a" * 257, now_ns=1)
    assert [row["cost_nusd"] for row in await store.budgets.costs("session", 0, samples.at_ns(1), 5)] == []
    assert len(await store.budgets.costs("day", -(2**80), samples.at_ns(1), -5)) == 0
    with pytest.raises(StoreUnavailable, match="overflow"):
        await store.budgets.costs("day", -(2**80), 2**80, 5)


async def test_costs_are_grouped_by_what_there_is(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="grouped by model"):
        await store.budgets.costs("code; DROP TABLE ledger", 0, 1, 1)


async def test_a_clock_that_steps_back_over_the_edge_of_a_window_frees_nothing(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    """Calendar windows are what they are by their name; in one that moves along what lies ahead counts."""
    till = samples.Till(store, samples.budget(limit=100, window=Window("hour")), samples.budget("moving", "key", 150, window=HOUR))
    await till.spend(1, 60, at_s=3600)
    await till.begin(2, 30, at_s=3600)
    assert (await till.begin(3, 99, at_s=0)).granted == Granted(60, 60)
    booked = await till.finish(2, 30, at_s=1)  # begun in the hour ahead, and booked there
    assert [each.counted for each in booked.standings] == [Balance(90, 0), Balance(90, 60)]
    assert refusal_of(await till.begin(4, 1, at_s=0)) == ("moving/key000000001", "busy")
    await till.finish(3, 60, at_s=0)
    assert refusal_of(await till.begin(4, 1, at_s=3600)) == ("moving/key000000001", "exceeded")
    assert (await till.begin(4, 99, at_s=7200)).granted == Granted(60, 60)  # what was spent at 3600 counts for a minute more
    assert {finding.invariant.name for finding in diagnose()} == {"times-are-in-order"}


async def test_a_free_model_is_on_the_books_of_an_account_and_takes_nothing_of_it(
    store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=10))
    await till.spend(1, 10)
    answer = await till.begin(2, Need(0, 0, 500))
    assert answer.granted == Granted(0, 500)
    await till.finish(2, 0)
    assert await till.held() == [("blue", 10, 0)]
    assert diagnose() == []


async def test_what_the_books_hold_survives_the_end_of_the_process(
    path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    for n in range(3):
        store = SqliteStore(path, "one")
        await store.start(now_ns=samples.NOW_NS)
        till = samples.Till(store, samples.budget(limit=100))
        assert repr(store._calls.till) == "Till(held=0)"
        await till.spend(n, 30)
        await store.budgets.change(change("raise", subject="blue", limit_nusd=1, until_ns=samples.at_ns(1)))
        await store.close()
    store = SqliteStore(path, "one")
    await store.start(now_ns=samples.NOW_NS)
    till = samples.Till(store, samples.budget(limit=100))
    assert (await till.begin(9, 50)).granted == Granted(13, 13)
    assert repr(store._calls.till) == "Till(held=1)"
    await till.finish(9, 1)
    await store.close()
    assert diagnose() == []


async def test_a_reservation_that_somebody_broke_is_told_of(
    path: Path, store: SqliteStore, samples: ModuleType, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    await samples.Till(store, samples.budget(limit=100)).begin(1, 30)
    successor = SqliteStore(path, "two")
    await successor.start(now_ns=samples.at_ns(10**6))
    sql("UPDATE reservations SET balances = 'none'")
    with pytest.raises(StoreError, match="the books cannot be read"):
        await successor.budgets.suspects(10)
    await successor.close()
    assert "balance-adds-up" in {finding.invariant.name for finding in diagnose()}


async def test_balances_that_somebody_removed_do_not_keep_calls_from_ending(
    path: Path, store: SqliteStore, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    till = samples.Till(store, samples.budget(limit=100))
    await till.begin(1, 30)
    await till.begin(2, 30)
    with closing(open_writable(path, synchronous="normal", busy_timeout_s=5)) as connection:
        connection.execute("DELETE FROM balances")
    await till.finish(1, 20)
    other = SqliteStore(path, "two")
    await other.start(now_ns=samples.NOW_NS)
    await samples.Till(other).finish(2, 20)
    await other.close()
    assert "balance-adds-up" in {finding.invariant.name for finding in diagnose()}
