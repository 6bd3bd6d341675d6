"""Approvals under any sequence of verbs, against a plain model: nothing is claimed twice, nor what is not approved, expired or another.

`TwinsMachine` does the same to the memory store and the SQLite store; `WorkersMachine` to two processes on one file, which die. Clocks jump,
also backwards. `LOCKGATE_LONG=1` tries far more; `LOCKGATE_SEED=N` chooses the seed, which is printed.
"""

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.call import Principal
from gateway.core.approval import Demand, Event, NotPossibleError, Stage, State, Ticket
from gateway.core.approval_bounds import Bounds
from gateway.errors import StoreError
from gateway.store.approvals_protocol import Claim, QueueFullError, TicketFilter
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Admitted, Intent, Store
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


some = _load("approval_samples")
samples, S = some.samples, some.S

KEYS = ("key000000001", "key000000002")
PEOPLE = ("ada", "bob", "eve", "olga", KEYS[0])  # the last two may not
PATIENCE_S, UNEXPIRED_S, MOST = 600, 60, 6
STEPS_S = (0.001, 1, 1, 5, 30, 59, 60, 61, 300, 600, 10_000, -1, -30, -700)
OPEN = ("pending", "approved", "executing", "unknown")
WAITING = ("pending", "approved")


def demand(quorum: int, *, escalates: bool) -> Demand:
    return Demand("r", (Stage(("role:a",), quorum),), escalate=("role:b",) if escalates else ())


@dataclass
class Model:
    """A ticket as it ought to be, said plainly. `quorum` are the approvals that are still asked of `asked`."""

    id: str
    key: str
    presented: str
    digest: str
    quorum: int
    escalates: bool
    effect: str
    expires_ns: int
    state: str = "pending"
    fence: int = 0
    voters: dict[str, tuple[str, str]] = field(default_factory=dict)  # who voted, what, and as one of whom they did
    asked: str = "role:a"
    call: int | None = None

    @property
    def met(self) -> bool:
        return sum(cast == ("approve", self.asked) for cast in self.voters.values()) >= self.quorum

    def approve(self, now_ns: int) -> None:
        self.state, self.expires_ns = "approved", now_ns + UNEXPIRED_S * S

    def pass_time(self, now_ns: int) -> bool:
        """What a sweep does; whether that is anything."""
        if self.state not in WAITING or now_ns < self.expires_ns:
            return False
        if self.state == "pending" and self.escalates:
            self.escalates, self.asked, self.expires_ns = False, "role:b", now_ns + PATIENCE_S * S
        else:
            self.state = "expired"
        return True

    def end(self, event: str, *, died: bool = False) -> None:
        """The end of the call that has it, or of its process."""
        if died:
            event = {"read": "return", "idempotent": "return", "model": "fail"}.get(self.effect, "lose")
        self.call = None
        if event == "return":
            self.state = "approved"  # its time is absolute
        else:
            self.state = {"succeed": "succeeded", "fail": "failed", "lose": "unknown"}[event]


class ApprovalsMachine(RuleBasedStateMachine):
    """Verbs on stores and on the model. `stores` are asked each time: all of them, or one, as the kind of machine has it."""

    stores: Sequence[Store]
    # With the states of which one is needed; those that make the most of the others possible stand there more often.
    VERBS: Sequence[tuple[str, tuple[str, ...]]] = (
        ("tick", ()), ("sweep", ()), ("open", ()), ("open_and_approve", ()), ("open_and_approve", ()), ("vote", ("pending",)),
        ("vote", ("pending",)), ("vote_on_any", tuple(State)), ("strengthen", WAITING), ("happen", tuple(State)), ("edit", ("pending",)),
        ("claim", ("approved",)), ("claim", ("approved",)), ("claim", ("approved",)), ("claim_any", tuple(State)), ("release", ("approved",)),
        ("finish", tuple(State)), ("finish", ("executing",)), ("finish", ("executing",)), ("resolve", ("unknown", "executing")))

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="approvals-"))
        self.loop = asyncio.new_event_loop()
        self.now_ns = samples.NOW_NS
        self.tickets: dict[str, Model] = {}
        self.open_calls: dict[int, tuple[Store | None, str]] = {}  # None: on every store
        self.number = 0
        self.taken: dict[str, list[str]] = {}  # by ticket what became of it, in order: claims and returns
        self.stores = self.begin_stores()

    def begin_stores(self) -> list[Store]:
        raise NotImplementedError

    def run(self, verb: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(verb, 30))

    def ask(self, verb: Callable[[Store], Coroutine[Any, Any, Any]], which: int = 0) -> Any:
        raise NotImplementedError

    def tried(self, verb: Callable[[Store], Coroutine[Any, Any, Any]], which: int = 0) -> Any:
        """What came of it: the answer, or the kind of the refusal."""
        async def run(store: Store) -> Any:
            try:
                return await verb(store)
            except (NotPossibleError, QueueFullError) as error:
                return type(error).__name__

        return self.ask(run, which)

    def open_sqlite(self, name: str) -> SqliteStore:
        store = SqliteStore(self.folder / "lockgate.db", name, synchronous="normal")
        self.run(store.start(now_ns=self.now_ns))
        return store

    def next(self) -> int:
        self.number += 1
        return self.number

    def model_of(self, key: str, presented: str) -> Model | None:
        return next((each for each in self.tickets.values() if each.state in OPEN and each.key == key and each.presented == presented), None)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One verb. A single rule, so that every run has all of them: a claim needs what several others have made."""
        can = [name for name, states in self.VERBS if not states or self.any_in(*states)]
        getattr(self, data.draw(st.sampled_from(can)))(data)

    def tick(self, data: st.DataObject) -> None:
        self.now_ns += round(data.draw(st.sampled_from(STEPS_S)) * S)

    def which(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, 1))

    def open(self, data: st.DataObject) -> Model | None:
        """What is open now for one of a few actions of one of two callers; None where the queue is full."""
        key, action, quorum = data.draw(st.sampled_from(KEYS)), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 2))
        escalates, effect = data.draw(st.booleans()), data.draw(st.sampled_from(["idempotent", "at_most_once", "model"]))
        n = self.next()
        asked = some.ticket(
            n, principal=key, presented=some.digest(action), digest=some.digest(action), demands=(demand(quorum, escalates=escalates),),
            effect=effect, created_ns=self.now_ns, expires_ns=self.now_ns + PATIENCE_S * S, patience_s=float(PATIENCE_S),
            unexpired_s=float(UNEXPIRED_S))
        there = self.model_of(key, asked.presented)
        full = sum(each.state == "pending" for each in self.tickets.values()) >= MOST
        late = there is not None and replace(there).pass_time(self.now_ns)
        stays = there is not None and (not late or (there.state == "pending" and there.escalates))
        opened = self.tried(lambda store: store.approvals.open(asked, bounds=Bounds(MOST)), self.which(data))
        if not stays and full:
            assert opened == "QueueFullError"
            return None
        if there is not None:
            there.pass_time(self.now_ns)
        if stays and there is not None:
            assert opened.id == there.id
            return there
        assert opened.id == asked.id
        it = self.tickets[asked.id] = Model(asked.id, key, asked.presented, asked.digest, quorum, escalates, effect, asked.expires_ns)
        self.taken[asked.id] = []
        return it

    def open_and_approve(self, data: st.DataObject) -> None:
        """Most of what can go wrong goes wrong after that."""
        it = self.open(data)
        if it is not None:
            for person in ("ada", "bob", "eve"):
                self.cast(it, person, "approve", "", self.which(data))

    def some_ticket(self, data: st.DataObject, *states: str) -> Model:
        fit = [each for each in self.tickets.values() if each.state in states or not states]
        return data.draw(st.sampled_from(sorted(fit, key=lambda each: each.id, reverse=True)))

    def any_in(self, *states: str) -> bool:
        return any(each.state in states for each in self.tickets.values())

    def vote(self, data: st.DataObject) -> None:
        verdict, wrong = data.draw(st.sampled_from(["approve"] * 3 + ["deny"])), data.draw(st.sampled_from(["", "", "", "digest", "group"]))
        self.cast(self.some_ticket(data, "pending"), data.draw(st.sampled_from(PEOPLE)), verdict, wrong, self.which(data))

    def vote_on_any(self, data: st.DataObject) -> None:
        self.cast(self.some_ticket(data), "ada", "approve", "", self.which(data))

    def cast(self, it: Model, person: str, verdict: str, wrong: str, which: int) -> None:
        group = "role:x" if wrong == "group" else it.asked
        cast = replace(
            some.vote(some.ticket(0), person, verdict), digest=some.digest("x") if wrong == "digest" else it.digest, at_ns=self.now_ns,
            places=((Demand("r", (Stage((group,)),)).key, 0),))
        may = (it.state == "pending" and self.now_ns < it.expires_ns and not wrong and person not in (it.key, "olga")
               and person not in it.voters)
        told = self.tried(lambda store: store.approvals.vote(it.id, cast), which)
        assert isinstance(told, Ticket) is may, told
        if may:
            it.voters[person] = verdict, it.asked
            if verdict == "deny":
                it.state = "denied"
            elif it.met:
                it.approve(self.now_ns)

    def strengthen(self, data: st.DataObject) -> None:
        it, quorum = self.some_ticket(data, *WAITING), data.draw(st.integers(1, 3))
        asked = replace(demand(quorum, escalates=False), stages=(Stage((it.asked,), quorum),))
        may = self.now_ns < it.expires_ns
        told = self.tried(
            lambda store: store.approvals.happen(it.id, Event.STRENGTHEN, now_ns=self.now_ns, demands=[asked]), self.which(data))
        assert isinstance(told, Ticket) is may
        if may:
            if it.state == "approved":
                it.expires_ns = self.now_ns + PATIENCE_S * S
            it.state, it.quorum, it.escalates = "pending", quorum, False
            if it.met:
                it.approve(self.now_ns)

    def happen(self, data: st.DataObject) -> None:
        it, event = self.some_ticket(data), data.draw(st.sampled_from([Event.WITHDRAW, Event.DENY, Event.APPROVE, Event.CLAIM]))
        may = it.state in WAITING and event in (Event.WITHDRAW, Event.DENY)
        told = self.tried(lambda store: store.approvals.happen(it.id, event, now_ns=self.now_ns, author="ada"), self.which(data))
        assert isinstance(told, Ticket) is may
        if may:
            it.state = "withdrawn" if event is Event.WITHDRAW else "denied"

    def resolve(self, data: st.DataObject) -> None:
        """Somebody says what came of it, also while its call is under way: what that then says is too late."""
        it, event = self.some_ticket(data, "unknown", "executing"), data.draw(st.sampled_from([Event.SUCCEED, Event.FAIL]))
        told = self.tried(lambda store: store.approvals.happen(it.id, event, now_ns=self.now_ns, author="ada"), self.which(data))
        assert isinstance(told, Ticket)
        it.end(event)

    def edit(self, data: st.DataObject) -> None:
        it, n = self.some_ticket(data, "pending"), self.next()
        edited = some.ticket(
            n, principal=it.key, presented=it.presented, digest=some.digest(f"e{n}"), demands=(demand(1, escalates=False),), edited_from=it.id,
            created_ns=self.now_ns, expires_ns=self.now_ns + PATIENCE_S * S, patience_s=float(PATIENCE_S), unexpired_s=float(UNEXPIRED_S))
        may = self.now_ns < it.expires_ns
        told = self.tried(lambda store: store.approvals.replace(it.id, edited, author="ada", now_ns=self.now_ns), self.which(data))
        assert isinstance(told, Ticket) is may
        if may:
            it.state = "withdrawn"
            self.tickets[edited.id] = Model(edited.id, it.key, it.presented, edited.digest, 1, False, edited.effect, edited.expires_ns)
            self.taken[edited.id] = []

    def claim(self, data: st.DataObject) -> None:
        it, wrong = self.some_ticket(data, "approved"), data.draw(st.sampled_from(["", "", "", "digest", "fence", "key", "late"]))
        if wrong == "late":
            self.now_ns = max(self.now_ns, it.expires_ns)  # nobody has swept it yet
        self.take(it, wrong, data.draw(st.integers(1, 3)), self.which(data))

    def claim_any(self, data: st.DataObject) -> None:
        self.take(self.some_ticket(data), "", 1, self.which(data))

    def take(self, it: Model, wrong: str, times: int, which: int) -> None:
        """Several calls at once, of which one may have it."""
        asked = Claim(it.id, some.digest("x") if wrong == "digest" else it.digest, it.fence + (wrong == "fence"))
        key = next(each for each in KEYS if (each == it.key) is (wrong != "key"))
        calls = [self.next() for _ in range(times)]
        intents = [
            Intent(samples.record(n, decision="held", principal=Principal(key)), samples.TARGET, None, claim=asked, now_ns=self.now_ns)
            for n in calls]

        async def all_at_once(store: Store) -> list[bool]:
            return [isinstance(each, Admitted) for each in await asyncio.gather(*(store.journal.begin(each) for each in intents))]

        may = it.state == "approved" and self.now_ns < it.expires_ns and not wrong
        had = self.ask(all_at_once, which)
        assert had == [may and n == calls[0] for n in calls]
        if may:
            it.state, it.fence, it.call = "executing", it.fence + 1, calls[0]
            self.taken[it.id].append("claim")
            self.open_calls[calls[0]] = self.owner(which), it.id

    def owner(self, which: int) -> Store | None:
        raise NotImplementedError

    def release(self, data: st.DataObject) -> None:
        it, keep, which = self.some_ticket(data, "approved"), data.draw(st.booleans()), self.which(data)
        may = self.now_ns < it.expires_ns
        claim = Claim(it.id, it.digest, it.fence)
        assert self.ask(lambda store: store.approvals.release(claim, call_id="call_r", keep=keep, now_ns=self.now_ns), which) is may
        if may and not keep:
            it.state, it.fence = "succeeded", it.fence + 1
            self.taken[it.id].append("claim")

    def finish(self, data: st.DataObject) -> None:
        if not self.open_calls:
            return
        n, event = data.draw(st.sampled_from(sorted(self.open_calls))), data.draw(st.sampled_from(["succeed", "fail", "lose", "return"]))
        store, ticket_id = self.open_calls.pop(n)
        it = self.tickets[ticket_id]
        self.end(store, self.ended(n, it, event))
        if it.call == n:
            it.end(event)
            self.taken[ticket_id] += ["return"] * (event == "return")

    def ended(self, n: int, it: Model, event: str) -> Any:
        return samples.completed(
            n, decision="held", principal=Principal(it.key), approval=it.id, approval_end=event, ended_ns=self.now_ns,
            attempts=(samples.attempt(1, started_ns=self.now_ns, ended_ns=self.now_ns, first_byte_ns=None),), received_ns=self.now_ns)

    def end(self, store: Store | None, record: Any) -> None:
        raise NotImplementedError

    def sweep(self, data: st.DataObject) -> None:
        due = {each.id for each in self.tickets.values() if each.pass_time(self.now_ns)}
        swept = self.ask(lambda store: store.approvals.sweep(now_ns=self.now_ns, results_before_ns=0), self.which(data))
        assert {each.id for each in swept} == due

    @invariant()
    def tickets_agree(self) -> None:
        for store in self.stores:
            there = {each.id: each for each in self.run(store.approvals.list(TicketFilter(limit=10_000)))}
            assert {each.id: (str(each.state), each.fence, each.expires_ns, len(each.votes)) for each in there.values()} == {
                it.id: (it.state, it.fence, it.expires_ns, len(it.voters)) for it in self.tickets.values()}

    @invariant()
    def nothing_is_claimed_twice(self) -> None:
        for taken in self.taken.values():
            assert "claim,claim" not in ",".join(taken)

    def teardown(self) -> None:
        try:
            with closing(open_readonly(self.folder / "lockgate.db")) as connection:
                findings = [each for each in examine(connection, now_ns=self.now_ns) if not each.invariant.note]
            assert [each for each in findings if each.invariant.name != "times-are-in-order"] == []  # clocks jump here
        finally:
            for store in self.every_store():
                self.run(store.close())
            self.loop.close()
            shutil.rmtree(self.folder)

    def every_store(self) -> Sequence[Store]:
        return self.stores


class TwinsMachine(ApprovalsMachine):
    """The memory store and the SQLite store do the same, and give the same answers."""

    def begin_stores(self) -> list[Store]:
        return [MemoryStore("memory"), self.open_sqlite("one")]

    def ask(self, verb: Callable[[Store], Coroutine[Any, Any, Any]], which: int = 0) -> Any:
        _ = which
        first, second = (self.run(verb(store)) for store in self.stores)
        assert first == second
        return first

    def owner(self, which: int) -> Store | None:
        _ = which
        return None

    def end(self, store: Store | None, record: Any) -> None:
        _ = store
        for each in self.stores:
            self.run(each.journal.finish(record, response=None))

    @invariant()
    def histories_agree(self) -> None:
        generations = {self.run(store.approvals.generation()) for store in self.stores}
        assert len(generations) == 1
        for ticket_id in self.tickets:
            one, two = (self.run(store.approvals.history(ticket_id)) for store in self.stores)
            assert one == two


class WorkersMachine(ApprovalsMachine):
    """Two processes on one file, which die and are born again."""

    VERBS = (*ApprovalsMachine.VERBS, ("die", ("executing",)))

    def __init__(self) -> None:
        self.dead: list[Store] = []
        super().__init__()

    def begin_stores(self) -> list[Store]:
        return [self.open_sqlite("one"), self.open_sqlite("two")]

    def ask(self, verb: Callable[[Store], Coroutine[Any, Any, Any]], which: int = 0) -> Any:
        return self.run(verb(self.stores[which]))

    def owner(self, which: int) -> Store | None:
        return self.stores[which]

    def end(self, store: Store | None, record: Any) -> None:
        assert store is not None
        self.run(store.journal.finish(record, response=None))

    def die(self, data: st.DataObject) -> None:
        """One is born under the same name; the dead may wake up and say what they know."""
        which, event, wakes = self.which(data), data.draw(st.sampled_from(["succeed", "fail", "lose", "return"])), data.draw(st.booleans())
        dead = self.stores[which]
        left = [(n, self.tickets[ticket_id]) for n, (store, ticket_id) in self.open_calls.items() if store is dead]
        self.stores = [self.open_sqlite(("one", "two")[which]) if store is dead else store for store in self.stores]
        self.dead.append(dead)
        for n, it in left:
            del self.open_calls[n]
            lost = it.call == n
            if lost:
                it.end("", died=True)
                self.taken[it.id] += ["return"] * (it.state == "approved")
            if wakes:
                with pytest.raises(StoreError, match="already has its outcome"):
                    self.run(dead.journal.finish(self.ended(n, it, event), response=None))
                if lost and it.state == "unknown" and event in ("succeed", "fail"):
                    it.end(event)

    def every_store(self) -> Sequence[Store]:
        return [*self.dead, *self.stores]


@pytest.mark.parametrize("machine", [TwinsMachine, WorkersMachine])
def test_the_stores_do_what_the_model_says(machine: type[ApprovalsMachine]) -> None:
    """Never two claims of one approval, never one of what is not approved, has expired, or is another than was looked at."""
    print(f"LOCKGATE_SEED={SEED}")
    chosen = settings(
        max_examples=500 if LONG else 25, stateful_step_count=60 if LONG else 40, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(hypothesis.seed(SEED)(machine), settings=chosen)
