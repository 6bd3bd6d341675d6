"""Calls of the gateway's own, alone: what is remembered, what is shared, what bounds them, and that nothing of them is lost or left."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.breakers import Breakers
from gateway.call import AttemptEnd, Call, Principal, Reply, Target, Usage
from gateway.clock import SystemIds
from gateway.core.accounts import BudgetBook
from gateway.core.breaker import BreakerRules, Ended
from gateway.core.plan import Classifier, Deadlines, Mirror, Retry, Route, RouteTarget
from gateway.errands import Errands
from gateway.errors import StoreUnavailable, UpstreamFailed
from gateway.progress import Progress, Trying
from gateway.settle import Settler
from gateway.store.memory import MemoryStore
from gateway.store.protocol import CallFilter
from gateway.store.scrub import Scrubber
from gateway.tries import Pursuit, Try

SOON_S = 20
SMALL = RouteTarget(Target("p", "small"), None, breaker=BreakerRules(consecutive=1, open_s=10.0))
CLASSIFIER = Classifier(SMALL, ("chat", "code"), "chat", "", 5.0, 60.0)
ROUTE = Route("r", frozenset({"chat"}), (RouteTarget(Target("p", "m"), None),), Deadlines(5, 5, 5, 5, 5), Retry(1, 0, 0), classifier=CLASSIFIER,
              mirrors=(Mirror(SMALL, 100),))


class HandClock:
    """Time that passes when somebody says so."""

    s = 1000.0

    def now_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass
class Telemetry:
    """Hears what is not made, and what fails."""

    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def part_not_made(self, kind: str, reason: str) -> None:
        self.skipped.append((kind, reason))

    def event(self, _level: str, name: str, **fields: Any) -> None:
        if name == "errand_failed":
            self.failed.append(fields["error"])

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_fields: None


@dataclass
class Scene:
    """Errands with everything real but the way to providers, who answer `says` after `go`."""

    says: Any = "code"
    clock: HandClock = field(default_factory=HandClock)
    telemetry: Any = field(default_factory=Telemetry)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[Call] = field(default_factory=list)
    scrub: Any = str
    budgets: Any = None

    def __post_init__(self) -> None:
        self.go.set()
        ids = SystemIds(self.clock)
        self.store = MemoryStore("test")
        self.breakers = Breakers(self.store.breakers, self.clock, ids, self.telemetry)
        self.settler = Settler(self.store.journal, self.telemetry, self.clock, Scrubber(()))
        dispatcher: Any = self
        self.errands = Errands(dispatcher, Pursuit(self.breakers, self.telemetry, self.clock, ids), self.settler)
        self.snapshot: Any = SimpleNamespace(budgets=BudgetBook(), routes={"r": ROUTE})

    async def send(self, errand: Any, first: Try) -> Any:
        """As `Dispatcher.send` does, of one attempt."""
        self.sent.append(errand.call)
        case, clock = errand.case, self.clock
        trying = case.start_attempt(Trying(1, first.to, clock.now_ns(), breaker=first.permit.state))
        await self.go.wait()
        if isinstance(self.says, BaseException):
            raise self.says
        case.end_attempt(trying, AttemptEnd.SUCCEEDED, ended_ns=clock.now_ns())
        self.breakers.ended(first.permit, Ended("success"))
        return Reply({"choices": [{"message": {"role": "assistant", "content": self.says}}]}, Usage(1, 1))

    def call(self, text: str = "hello", **more: Any) -> tuple[Progress, Call]:
        call = Call("call_1", Principal("key_1"), "openai", "chat", "r", {"messages": [{"role": "user", "content": text}]}, stream=False,
                    size=50, received_ns=0, **more)
        return Progress("call_1", "openai", "chat", 0, principal=call.principal, call=call), call

    async def task(self, text: str = "hello", route: Route = ROUTE) -> tuple[str, list[str]]:
        case, call = self.call(text)
        return await self.errands.classify(case, call, route, self.snapshot), case.notes

    def mirror(self) -> None:
        case, call = self.call()
        self.errands.mirror(case, call, ROUTE, self.snapshot)

    async def rows(self) -> list[tuple[str, str | None]]:
        """What is on record, once all is over."""
        await self.errands.close(SOON_S, SOON_S)
        await self.settler.drained()
        return [(row["outcome"], row["code"]) for row in await self.store.journal.calls(CallFilter())]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    made.go.set()
    await made.errands.close(SOON_S, SOON_S)
    await made.settler.drained()


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


async def test_a_word_holds_as_long_as_it_is_said_to(scene):
    for at_s, asked in ((0, 1), (59, 1), (61, 2), (120, 2)):
        scene.clock.s = 1000.0 + at_s
        assert await scene.task() == ("code", [])
        assert len(scene.sent) == asked


async def test_another_classifier_is_asked_about_the_same_text(scene):
    """What one model says is nothing that another one has said."""
    assert await scene.task() == ("code", [])
    scene.says = "prose"
    other = replace(ROUTE, classifier=replace(CLASSIFIER, tasks=("prose", "verse"), default="verse"))
    assert await scene.task(route=other) == ("prose", [])
    assert await scene.task(route=replace(ROUTE, classifier=None)) == ("", [])


async def test_a_caller_who_leaves_ends_no_question_and_who_comes_later_waits_for_the_same_one(scene):
    scene.go.clear()
    first, second = asyncio.create_task(scene.task()), asyncio.create_task(scene.task())
    await until(lambda: scene.sent)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    third = asyncio.create_task(scene.task())
    await asyncio.sleep(0)
    scene.go.set()
    assert list(await asyncio.gather(second, third)) == [("code", []), ("code", [])]
    assert len(scene.sent) == 1
    assert await scene.rows() == [("completed", None)]


async def test_one_who_waits_longer_than_the_deadline_goes_on_without(scene):
    scene.go.clear()
    hurried = replace(ROUTE, classifier=replace(CLASSIFIER, deadline_s=0.01))
    assert await scene.task(route=hurried) == ("chat", ["classifier: late"])
    assert await scene.rows() == [("failed", "upstream_timeout")]


async def test_there_is_a_bound_on_questions_under_way(scene, monkeypatch):
    monkeypatch.setattr("gateway.errands._MOST_QUESTIONS", 2)
    scene.go.clear()
    asking = [asyncio.create_task(scene.task(str(number))) for number in range(2)]
    await until(lambda: len(scene.sent) == 2)
    assert repr(scene.errands) == "Errands(0 mirrors, 2 questions, 0 remembered)"
    assert await scene.task("another") == ("chat", ["classifier: full"])
    scene.go.set()
    assert [task for task, _ in await asyncio.gather(*asking)] == ["code", "code"]
    assert await scene.task("another") == ("code", [])
    assert scene.telemetry.skipped == [("classifier", "full")]


async def test_what_is_ended_at_the_stop_leaves_the_default_and_its_record(scene):
    scene.go.clear()
    asking = asyncio.create_task(scene.task())
    await until(lambda: scene.sent)
    await scene.errands.close(0.0, SOON_S)
    assert await asking == ("chat", ["classifier: failed"])
    assert await scene.rows() == [("failed", "overloaded")]


async def test_a_target_that_has_just_opened_gets_nothing_and_its_probe_is_one(scene):
    """A permit is asked for after the first look: in between another errand may have taken the only one."""
    scene.breakers.trip(SMALL, "tests")
    await scene.breakers.refresh()
    scene.clock.s += 11.0
    scene.go.clear()
    scene.mirror()
    scene.mirror()
    await until(lambda: scene.telemetry.skipped)
    assert (scene.telemetry.skipped, len(scene.sent)) == ([("mirror", "breaker")], 1)
    scene.go.set()
    assert await scene.rows() == [("completed", None)]


async def test_a_permit_is_given_back_where_the_store_fails_before_anything_is_sent(scene, monkeypatch):
    """Else the target would wait for the end of a probe that there never was."""
    scene.breakers.trip(SMALL, "tests")
    await scene.breakers.refresh()
    scene.clock.s += 11.0

    async def begin(_intent: Any) -> None:
        raise StoreUnavailable("down")

    with monkeypatch.context() as patched:
        patched.setattr(scene.store.journal, "begin", begin)
        assert await scene.task() == ("chat", ["classifier: failed"])
    assert (scene.sent, await scene.rows()) == ([], [])
    assert scene.breakers.condition(SMALL).admits
    assert await scene.task() == ("code", [])
    assert scene.breakers.condition(SMALL).state == "closed"


async def test_an_outcome_that_the_store_does_not_take_is_written_when_it_does(scene, monkeypatch):
    finish = scene.store.journal.finish
    failures = [StoreUnavailable("down")] * 3

    async def failing(*given: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return await finish(*given, **more)

    monkeypatch.setattr(scene.store.journal, "finish", failing)
    scene.mirror()
    assert await scene.rows() == [("failed", "store_unavailable")]
    assert failures == []


async def test_a_defect_leaves_a_record_and_is_told(scene):
    scene.says = RuntimeError("a defect")
    scene.mirror()
    assert await scene.rows() == [("failed", "internal_error")]
    assert scene.telemetry.failed == ["RuntimeError: a defect"]


async def test_a_failure_is_on_record_with_its_code(scene):
    scene.says = UpstreamFailed("no")
    scene.mirror()
    assert await scene.rows() == [("failed", "upstream_failed")]
    assert scene.telemetry.failed == []


async def test_a_call_of_a_tool_is_not_copied(scene):
    case, call = scene.call()
    scene.errands.mirror(case, replace(call, operation="tool"), ROUTE, scene.snapshot)
    assert await scene.rows() == []


async def test_what_stops_with_nothing_under_way_stops_at_once(scene):
    await scene.errands.close(0.0, 0.0)
    assert repr(scene.errands) == "Errands(0 mirrors, 0 questions, 0 remembered)"
