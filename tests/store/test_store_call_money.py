"""The money of one call, as it is on record at each step."""

from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.core.rate import Take
from gateway.store.call_money import call_money
from gateway.store.database import open_readonly
from gateway.store.sqlite import SqliteStore


@pytest.fixture
def money(path: Path, samples: ModuleType) -> Any:
    def read(n: int) -> Any:
        with closing(open_readonly(path)) as connection:
            found = call_money(connection, samples.call_id(n))
            assert not connection.in_transaction
            return found

    return read


async def test_what_is_set_aside_shows_until_it_is_settled(store: SqliteStore, samples: ModuleType, money: Any) -> None:
    till = samples.Till(store, samples.budget(limit=5000), samples.budget("all", "all", None))
    await till.begin(1, 3000)
    assert money(1) == {"accounts": ["all/all", "team-cap/blue"], "reserved_nusd": 3000, "reserved_usd": "0.000003", "granted_tokens": 3000,
                        "settlement": None, "lines": []}
    await till.again(1, 2, 1000, spent=1500)
    await till.finish(1, 1200, 800, at_s=1)
    told = money(1)
    assert told["settlement"] == {
        "at_ns": samples.at_ns(1), "cost_nusd": 2000, "cost_usd": "0.000002", "how": "settled", "suspect": False, "author": None}
    assert [(line["n"], line["target"], line["cost_nusd"], line["estimated"]) for line in told["lines"]] == [
        (1, "alpha/small-1", 1200, False), (2, "beta/large-2", 800, False)]


async def test_a_correction_stands_after_the_attempts_that_it_corrects(
    store: SqliteStore, path: Path, samples: ModuleType, money: Any,
) -> None:
    dying = SqliteStore(path, "dying")
    await dying.start(now_ns=samples.NOW_NS)
    await samples.Till(dying, samples.budget(limit=5000)).begin(1, 3000)
    await dying.close()
    await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=samples.SECOND_NS)
    assert (money(1)["settlement"]["how"], money(1)["settlement"]["suspect"]) == ("recovered", True)
    await store.budgets.resolve(samples.call_id(1), 1000, author="ada", now_ns=samples.NOW_NS)
    told = money(1)
    assert (told["settlement"]["how"], told["settlement"]["suspect"], told["settlement"]["author"]) == ("resolved", False, "ada")
    assert [(line["n"], line["cost_usd"], line["estimated"]) for line in told["lines"]] == [(1, "0.000003", True), (0, "-0.000002", False)]


async def test_a_call_that_no_budget_binds_has_its_lines_and_one_without_cost_nothing(
    store: SqliteStore, samples: ModuleType, money: Any,
) -> None:
    till = samples.Till(store)
    await till.spend(1, 7)
    assert (money(1)["reserved_usd"], money(1)["accounts"], len(money(1)["lines"])) == (None, [], 1)
    await till.spend(2, 0)
    assert money(2) is None
    assert money(3) is None


async def test_a_call_of_rates_alone_has_no_accounts(store: SqliteStore, samples: ModuleType, money: Any) -> None:
    await samples.Till(store).begin(1, 5, takes=(Take("r", "key=k", "concurrent", 3, 0),))
    assert (money(1)["reserved_nusd"], money(1)["accounts"]) == (0, [])
