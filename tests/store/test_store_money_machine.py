"""Money under any sequence of operations: the stores against each other and against the plain model of `money_model.py`.

`TwinsMachine` does the same to the memory store and the SQLite store; `WorkersMachine` to two processes on one file, which die. Clocks jump,
also backwards and over the edges of windows. `LOCKGATE_LONG=1` tries far more; `LOCKGATE_SEED=N` chooses the seed, which is printed.
"""

import asyncio
import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.call import AttemptEnd, Outcome, Principal, Usage
from gateway.core.accounts import Budget, BudgetBook, Change
from gateway.core.budget import Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.core.windows import Window
from gateway.errors import StoreError
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Admitted, Booked, Demand, DispatchIntent, Standing, Store
from gateway.store.sqlite import SqliteStore

LONG = os.environ.get("LOCKGATE_LONG") == "1"
SEED = int(os.environ.get("LOCKGATE_SEED", "20260921"))
T = TypeVar("T")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"machine_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples, money_model = _load("samples"), _load("money_model")

BUDGETS = (
    Budget("cap", "all", 4000, least=10),
    Budget("team-day", "team", 900, Window("day", "Europe/Berlin"), soft_nusd=300, on_short="deny"),
    Budget("red-week", "team", 1500, Window("week", "Pacific/Apia"), of=("red",), least=3),
    Budget("key-hour", "key", 600, Window("hour", "Australia/Lord_Howe"), least=1),
    Budget("user-hour", "user", 400, Window("rolling", length_ns=3600 * 10**9), soft_nusd=100, least=5, limits={"bob": 250}),
    Budget("watched", "route", None, Window("month", "America/New_York"), soft_nusd=500),
)
EXTRA = (
    Budget("extra", "tag", 300, Window("day", "UTC"), of=("env=*",), least=1),
    Budget("extra", "tag", None, Window("rolling", length_ns=600 * 10**9), soft_nusd=50),
    Budget("cap", "key", 1),  # hidden by the configured one
)
NAMES = ("cap", "team-day", "user-hour", "extra")
SUBJECTS = ("", "all", "red", "k1/ann", "env=a")
SECOND_NS = 10**9
# Where clocks go: mostly on by a little, sometimes by hours and days or backwards; and to just before the days on which clocks are changed.
STEPS_S = (0.001, 1, 5, 5, 20, 20, 59, 60, 600, 3600, 10_000, 86_400, 9 * 86_400, -1, -60, -3600, -90_000)
EDGES_S = (1_792_879_199, 1_792_889_999, 1_774_745_999, 1_775_314_799, 1_793_490_000, 1_790_805_599, 1_790_632_800)

SUBJECT_SETS = st.fixed_dictionaries(
    {"all": st.just(("all",)), "team": st.sampled_from([("red",), ("blue",)]), "key": st.sampled_from([("k1",), ("k2",)])},
    optional={
        "user": st.sampled_from([("k1/ann",), ("k1/bob",), ("k2/ann",)]), "route": st.just(("fast",)),
        "tag": st.sampled_from([("env=a",), ("env=a", "env=b"), ("job=x",)]),
    },
)
NEEDS = st.builds(
    Need, st.integers(0, 60), st.sampled_from([0, 1000, 1000, 1500, 333]), st.integers(0, 300),
    rigid=st.sampled_from([False, False, False, True]), unpriced=st.sampled_from([False] * 9 + [True]))
TAKES = st.lists(st.one_of(
    st.builds(Take, st.just("r"), st.sampled_from(["a", "b"]), st.just("requests"), st.just(6), st.just(60 * SECOND_NS)),
    st.builds(Take, st.just("t"), st.just("a"), st.just("tokens"), st.just(100), st.just(60 * SECOND_NS), st.integers(1, 50)),
    st.builds(Take, st.just("c"), st.sampled_from(["a", "b"]), st.just("concurrent"), st.just(4), st.just(0)),
), max_size=2).map(tuple)
TIMES = st.one_of(
    st.sampled_from(STEPS_S).map(lambda step_s: (False, round(step_s * SECOND_NS))),
    st.sampled_from(STEPS_S).map(lambda step_s: (False, round(step_s * SECOND_NS))),
    st.builds(lambda edge_s, ns: (True, edge_s * SECOND_NS + ns), st.sampled_from(EDGES_S), st.sampled_from([-1, 0, 1, SECOND_NS - 1])),
)
BEGINS = st.tuples(SUBJECT_SETS, NEEDS, TAKES)


@dataclass
class Call:
    store: Store | None  # None: it is on every store
    who: Principal

    @property
    def team(self) -> str:
        return self.who.team


def told(answer: Any) -> Any:
    """What a store answered, as the model says it."""
    match answer:
        case Admitted(granted, standings):
            return (*told(granted), shown(standings))
        case Granted(amount, units):
            return "granted", amount, units
        case Short(holding, why, needed):
            held = holding.counted
            return "short", holding.account.name, needed, holding.account.limit_nusd, held.posted, held.pending, holding.window_ns, why
        case Spent(take, wait_ns):
            return "spent", take.rule, wait_ns
        case Booked(standings, crossed, over):
            return "booked", shown(standings), [each.name for each in crossed], over
        case _:
            return answer


def shown(standings: Sequence[Standing]) -> list[tuple[Any, ...]]:
    return [(each.account.name, each.counted.posted, each.counted.pending, each.window_ns, each.ends_ns, each.account.limit_nusd)
            for each in standings]


@functools.cache
def empty_database() -> Path:
    """A migrated file, to be copied: migrating takes longer than a whole run."""
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    atexit.register(shutil.rmtree, folder)

    async def make() -> None:
        store = SqliteStore(folder / "lockgate.db", "nobody")
        await store.start(now_ns=0)
        await store.close()

    asyncio.run(make())
    return folder / "lockgate.db"


class MoneyMachine(RuleBasedStateMachine):
    """What both machines do. A machine says which stores hold a call (`holders`) and which know the balances (`stores`)."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "lockgate.db"
        shutil.copy(empty_database(), self.path)
        self.now_ns = samples.NOW_NS
        self.model = money_model.Model(BUDGETS)
        self.book = BudgetBook(BUDGETS)
        self.calls: dict[int, Call] = {}
        self.last = 0
        self.opened: list[SqliteStore] = []
        self.stores: list[Store] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def open(self) -> SqliteStore:
        store = SqliteStore(self.path, f"worker-{len(self.opened)}", synchronous="normal")
        self.run(store.start(now_ns=self.now_ns))
        self.run(store.heartbeat(now_ns=self.now_ns, lease_ns=2**61))
        self.model.prune(self.now_ns)
        self.opened.append(store)
        return store

    def holders(self, n: int) -> list[Store]:
        store = self.calls[n].store
        return self.stores if store is None else [store]

    def agree(self, expected: Any, stores: Sequence[Store], ask: Callable[[Store], Coroutine[Any, Any, Any]]) -> None:
        for store in stores:
            answer = told(self.run(ask(store)))
            assert answer == expected, (store, answer, expected)

    def new(self, store: Store | None, subjects: dict[str, tuple[str, ...]]) -> int:
        self.last += 1
        self.calls[self.last] = Call(store, Principal(subjects["key"][0], team=subjects["team"][0]))
        return self.last

    def intent(self, n: int, subjects: Any, need: Need, takes: tuple[Take, ...]) -> Any:
        intent = samples.intent(n, request=None, principal=self.calls[n].who, received_ns=self.now_ns)
        return replace(intent, demand=Demand(self.book, subjects, need, takes))

    def where(self, _data: st.DataObject) -> Store | None:
        return None

    @rule(data=st.data(), asked=st.lists(BEGINS, min_size=1, max_size=4))
    def begin(self, data: st.DataObject, asked: list[Any]) -> None:
        """One call, or several that arrive in one turn of the loop: they are admitted in order."""
        where = self.where(data)
        numbered = [(self.new(where, subjects), subjects, need, takes) for subjects, need, takes in asked]
        expected = [self.model.begin(n, subjects, need, takes, self.now_ns) for n, subjects, need, takes in numbered]

        async def all_at_once(store: Store) -> list[Any]:
            return [told(each) for each in await asyncio.gather(*(store.journal.begin(self.intent(*each)) for each in numbered))]

        self.agree(expected, self.holders(numbered[0][0]), all_at_once)

    @precondition(lambda self: self.model.calls)
    @rule(data=st.data(), need=NEEDS, spent=st.integers(0, 200), attempt=st.booleans())
    def grow(self, data: st.DataObject, need: Need, spent: int, *, attempt: bool) -> None:
        """A further attempt, or a stream that runs on."""
        n = data.draw(st.sampled_from(sorted(self.model.calls)))
        intent = DispatchIntent(
            samples.call_id(n), self.model.calls[n].tries + 1, samples.OTHER, self.now_ns, 0.0, need=need, spent_nusd=spent)
        expected = self.model.grow(n, need, spent, attempt=attempt)
        if attempt:
            self.agree(expected, self.holders(n), lambda store: store.journal.dispatch(intent))
        else:
            self.agree(expected, self.holders(n), lambda store: store.budgets.extend(intent.call_id, need, spent_nusd=spent))

    @precondition(lambda self: self.model.calls)
    @rule(data=st.data(), ends=st.lists(st.tuples(st.sampled_from(["sent", "sent", "sent", "never sent", "over"]),
                                                  st.sampled_from([0, 3, 60, 150])), min_size=1, max_size=3))
    def finish(self, data: st.DataObject, ends: list[tuple[str, int]]) -> None:
        """Calls end, several in one turn of the loop: in full, unsent, or over what was set aside where a provider does not keep to it."""
        first = data.draw(st.sampled_from(sorted(self.model.calls)))
        others = [n for n in self.model.calls if self.calls[n].store is self.calls[first].store and n != first]
        records, expected = [], []
        for n, (how, tokens) in zip([first, *others], ends, strict=False):
            costs: list[int] = []
            left = self.model.calls[n].amount + (37 if how == "over" else 0)
            for _ in range(0 if how == "never sent" else self.model.calls[n].tries):
                costs.append(data.draw(st.one_of(st.just(left), st.just(left * 2 // 3), st.integers(0, left))))
                left -= costs[-1]
            expected.append(self.model.finish(n, self.calls[n].team, costs, tokens if costs else 0, self.now_ns))
            records.append(self.ended(n, costs, tokens))

        async def all_at_once(store: Store) -> list[Any]:
            return [told(each) for each in await asyncio.gather(*(store.journal.finish(each, response=None) for each in records))]

        self.agree(expected, self.holders(first), all_at_once)

    @precondition(lambda self: self.model.settled)
    @rule(data=st.data(), need=NEEDS)
    def settle_twice(self, data: st.DataObject, need: Need) -> None:
        n = data.draw(st.sampled_from(sorted(self.model.settled)))
        for store in self.holders(n):
            for verb in (store.journal.finish(self.ended(n, (5,), 5), response=None),
                         store.budgets.extend(samples.call_id(n), need, spent_nusd=0)):
                with pytest.raises(StoreError):
                    self.run(verb)

    @rule(time_ns=TIMES)
    def pass_time(self, time_ns: tuple[bool, int]) -> None:
        """On or back by so much, or to a moment."""
        to, ns = time_ns
        self.now_ns = ns if to else self.now_ns + ns

    @rule(takes=TAKES)
    def take(self, takes: tuple[Take, ...]) -> None:
        expected = self.model.take(takes, self.now_ns)
        self.agree(expected, self.of_each_kind(), lambda store: store.budgets.take(takes, now_ns=self.now_ns))

    @rule(data=st.data(), name=st.sampled_from(NAMES), subject=st.sampled_from(SUBJECTS),
          kind=st.sampled_from(["set", "raise", "remove", *EXTRA]))
    def change(self, data: st.DataObject, name: str, subject: str, kind: Any) -> None:
        change = Change(0, self.now_ns, "ada", "set", name, subject)
        if isinstance(kind, Budget):
            change = replace(change, name=kind.name, subject="", budget=kind)
        elif kind == "set":
            amount = st.one_of(st.none(), st.integers(0, 1500))
            change = replace(change, limit_nusd=data.draw(amount), soft_nusd=data.draw(amount))
        elif kind == "raise":
            until_ns = self.now_ns + data.draw(st.sampled_from([1, 60, 7200])) * SECOND_NS
            change = replace(change, kind="raise", limit_nusd=data.draw(st.integers(1, 500)), until_ns=until_ns)
        else:
            change = replace(change, kind="remove")
        self.model.change(change)
        for store in self.of_each_kind():
            self.run(store.budgets.change(change))

    @rule(subjects=SUBJECT_SETS)
    def ask(self, subjects: Any) -> None:
        expected = self.model.standing(subjects, self.now_ns)
        for store in self.stores:
            assert shown(self.run(store.budgets.standing(self.book, subjects, now_ns=self.now_ns))) == expected, store

    @invariant()
    def balances_agree(self) -> None:
        self.model.check()
        expected = {key: (purse.posted, purse.pending, purse.limit, purse.over) for key, purse in self.model.purses.items()}
        for store in self.of_each_kind():
            rows = [row for name in ("cap", "team-day", "red-week", "key-hour", "user-hour", "watched", "extra")
                    for row in self.run(store.budgets.windows(name, None, 1000))]
            found = {(row["budget"], row["subject"], row["span"], row["window_ns"]):
                     (row["posted_nusd"], row["pending_nusd"], row["limit_nusd"], row["over_nusd"]) for row in rows}
            assert found == expected, store
            assert len(rows) == len(found)

    def of_each_kind(self) -> list[Store]:
        """One store of each that has books of its own."""
        return self.stores

    def ended(self, n: int, costs: Sequence[int], tokens: int) -> Any:
        """A call that ends now; its first attempt used all of the tokens."""
        tries = tuple(
            samples.attempt(k, target=samples.TARGET if k == 1 else samples.OTHER, cost_nusd=cost, started_ns=self.now_ns, ended_ns=self.now_ns,
                            first_byte_ns=None, usage=Usage(tokens if k == 1 else 0), end=AttemptEnd.CANCELLED)
            for k, cost in enumerate(costs, 1))
        return samples.record(
            n, principal=self.calls[n].who, attempts=tries, cost_nusd=sum(costs), received_ns=self.now_ns,
            ended_ns=self.now_ns, outcome=Outcome.CANCELLED, status=499)

    def teardown(self) -> None:
        try:
            self.check_ledger()
        finally:
            for store in self.opened:
                self.run(store.close())
            self.loop.close()
            try:
                self.check_file()
            finally:
                self.folder.cleanup()

    def check_ledger(self) -> None:
        sums: dict[str, tuple[int, int]] = {}
        for team, cost in self.model.ledger:
            spent, lines = sums.get(team, (0, 0))
            sums[team] = spent + cost, lines + 1
        for store in self.of_each_kind():
            rows = self.run(store.budgets.costs("team", 0, 2**62, 10))
            assert {row["group"]: (row["cost_nusd"], row["lines"]) for row in rows} == sums, store

    def check_file(self) -> None:
        """Every reservation was resolved once, with its call; and the doctor finds nothing in the books."""
        with closing(open_readonly(self.path)) as connection:
            wrong = connection.execute(
                "SELECT seq FROM reservations LEFT JOIN settlements USING (seq) LEFT JOIN outcomes USING (seq) "
                "WHERE (settlements.seq IS NULL) != (outcomes.seq IS NULL)").fetchall()
            assert wrong == []
            found = [each for each in examine(connection, now_ns=self.now_ns) if not each.invariant.note]
            assert [each for each in found if each.invariant.name != "times-are-in-order"] == []  # clocks jump here


class TwinsMachine(MoneyMachine):
    """The memory store and the SQLite store, in step."""

    def __init__(self) -> None:
        super().__init__()
        self.stores = [MemoryStore("one"), self.open()]

    @rule()
    def beat(self) -> None:
        for store in self.stores:
            self.run(store.heartbeat(now_ns=self.now_ns, lease_ns=2**61))
        self.model.prune(self.now_ns)


class WorkersMachine(MoneyMachine):
    """Two processes on one file. One that dies leaves its calls to whoever comes next, and may turn out to be alive."""

    def __init__(self) -> None:
        super().__init__()
        self.stores = [self.open(), self.open()]
        self.dead: list[tuple[Store, int]] = []

    def where(self, data: st.DataObject) -> Store | None:
        return data.draw(st.sampled_from(self.stores))

    def of_each_kind(self) -> list[Store]:
        return self.stores[:1]  # one file

    @rule(which=st.sampled_from([0, 1]))
    def die(self, which: int) -> None:
        dead = self.stores[which]
        self.run(dead.heartbeat(now_ns=self.now_ns, lease_ns=1))
        self.model.prune(self.now_ns)
        self.now_ns += 2
        left = [n for n in self.model.calls if self.calls[n].store is dead]
        for n in left:
            self.model.recover(n, self.calls[n].team)
        self.stores[which] = self.open()
        self.dead += [(dead, n) for n in left]

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), need=NEEDS)
    def wake(self, data: st.DataObject, need: Need) -> None:
        store, n = data.draw(st.sampled_from(self.dead))
        for verb in (store.budgets.extend(samples.call_id(n), need, spent_nusd=0),
                     store.journal.finish(self.ended(n, (5,), 5), response=None)):
            with pytest.raises(StoreError):
                self.run(verb)

    @precondition(lambda self: self.model.settled)
    @rule(data=st.data(), cost=st.one_of(st.none(), st.integers(0, 500)))
    def resolve(self, data: st.DataObject, cost: int | None) -> None:
        n = data.draw(st.sampled_from(sorted(self.model.suspects) * 3 + sorted(self.model.settled)))
        expected = self.model.resolve(n, self.calls[n].team, cost)
        store = data.draw(st.sampled_from(self.stores))
        assert self.run(store.budgets.resolve(samples.call_id(n), cost, author="ada", now_ns=self.now_ns)) is expected

    @invariant()
    def suspects_agree(self) -> None:
        rows = self.run(self.stores[1].budgets.suspects(1000))
        assert {row["call"]: row["cost_nusd"] for row in rows} == {samples.call_id(n): cost for n, cost in self.model.suspects.items()}


@pytest.mark.parametrize("machine", [TwinsMachine, WorkersMachine])
def test_the_stores_do_what_the_model_says(machine: type[MoneyMachine]) -> None:
    """Check-then-act, leaks, refunds into the wrong window, limits that a cache hides: whatever the order of things."""
    print(f"LOCKGATE_SEED={SEED}")
    chosen = settings(
        max_examples=1000 if LONG else 30, stateful_step_count=60 if LONG else 40, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(hypothesis.seed(SEED)(machine), settings=chosen)
