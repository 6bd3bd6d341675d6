"""Turns in a session: one call at a time where a rule asks for it, in bounded time, whatever becomes of who holds the turn."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.call import Call, CallRecord, Origin, Outcome, Principal, Said, Target, ToolCall, ToolResult, ToolUse
from gateway.core.decision import Phase
from gateway.core.question import Question
from gateway.core.rules import Bundle, compile_bundle
from gateway.errors import Overloaded, StoreUnavailable
from gateway.rule_config import RuleConfig
from gateway.session import SessionKey, SessionQuery
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Intent
from gateway.turns import Turns

NOW_NS = 1_700_000_000_000_000_000


class HandClock:
    """A clock on which time passes only while somebody waits for it."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_ns(self) -> int:
        return NOW_NS + int(self.passed_s * 1e9)

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds
        await asyncio.sleep(0)


class Asked:
    """The store's sessions, with a note of what they were asked, and faults on demand."""

    def __init__(self, sessions: Any) -> None:
        self._sessions = sessions
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.never: set[str] = set()
        self.entered = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        async def ask(*given: Any, **named: Any) -> Any:
            self.asked.append(name)
            if name in self.failing:
                raise StoreUnavailable("The disk is full.")
            said = await getattr(self._sessions, name)(*given, **named)
            if name in self.never:
                self.entered.set()
                await asyncio.Event().wait()
            return said

        return ask


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("worker-1")


@pytest.fixture
def sessions(store: MemoryStore) -> Asked:
    return Asked(store.sessions)


@pytest.fixture
def turns(sessions: Asked, clock: HandClock) -> Turns:
    return Turns(sessions, clock)


def bundle(*rules: dict[str, Any]) -> Bundle:
    return compile_bundle([RuleConfig.model_validate({"id": f"r{n}", "effect": "deny", **rule}) for n, rule in enumerate(rules)], "auto")


def call(n: int = 1, session: str | None = "s1", principal: str = "key_1", operation: str = "chat", route: str = "fast") -> Call:
    return Call(f"call_{n}", Principal(principal, team="blue"), "openai", operation, route, {}, stream=False, size=2, received_ns=NOW_NS,
                origin=Origin(session=session))


SERIAL = {"serial": True, "when": "session.calls > 5"}


async def test_calls_of_a_session_take_turns(turns, clock):
    rules, order, held, leave = bundle(SERIAL), [], asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with turns.turn(rules, call(1), wait_s=1.0, longest_s=10.0):
            order.append("first in")
            held.set()
            await leave.wait()
            order.append("first out")

    async def second() -> None:
        async with turns.turn(rules, call(2), wait_s=1.0, longest_s=10.0):
            order.append("second in")

    one = asyncio.create_task(first())
    await held.wait()
    two = asyncio.create_task(second())
    while clock.passed_s < 0.1:  # it has looked several times
        await asyncio.sleep(0)
    leave.set()
    await asyncio.wait_for(asyncio.gather(one, two), 10)
    assert order == ["first in", "first out", "second in"]


async def test_the_wait_for_a_turn_is_bounded_and_says_what_to_do(turns, clock):
    rules = bundle(SERIAL)
    async with turns.turn(rules, call(1), wait_s=2.0, longest_s=10.0):
        with pytest.raises(Overloaded, match="one at a time") as caught:
            async with turns.turn(rules, call(2), wait_s=2.0, longest_s=10.0):
                pass
    assert caught.value.retry_after_s == 1
    assert 2.0 <= clock.passed_s < 2.1


async def test_one_that_waited_in_vain_has_not_ended_the_turn_of_the_other(turns, clock):
    rules = bundle(SERIAL)
    async with turns.turn(rules, call(1), wait_s=0.0, longest_s=10.0):
        for n in (2, 3):
            with pytest.raises(Overloaded):
                async with turns.turn(rules, call(n), wait_s=0.0, longest_s=10.0):
                    pass
    assert clock.passed_s == 0.0


@pytest.mark.parametrize("other", [call(2, session="s2"), call(2, principal="key_2"), call(2, session=None)], ids=["session", "principal", "none"])
async def test_nobody_waits_for_a_session_that_is_not_theirs(turns, other):
    rules = bundle(SERIAL)
    async with turns.turn(rules, call(1), wait_s=0.0, longest_s=10.0), turns.turn(rules, other, wait_s=0.0, longest_s=10.0):
        pass


@pytest.mark.parametrize(("rules", "asking"), [
    (bundle(), call()), (bundle({"when": "session.calls > 5"}), call()), (bundle(SERIAL), call(session=None)),
    (bundle({**SERIAL, "match": {"teams": ["red"]}}), call()), (bundle({**SERIAL, "phase": "tool_call", "match": {"tools": ["pay"]}}),
                                                                call(operation="tool", route="see")),
    (bundle({**SERIAL, "mode": "off"}), call())], ids=["no rule", "none serial", "no session", "another team", "another tool", "off"])
async def test_where_no_rule_asks_for_turns_the_store_is_not_asked(turns, sessions, rules, asking):
    async with turns.turn(rules, asking, wait_s=0.0, longest_s=10.0):
        pass
    assert sessions.asked == []


@pytest.mark.parametrize(("phase", "asking"), [
    ("tool_call", call(operation="tool", route="pay")), ("tool_call", call()), ("tool_result", call())],
    ids=["that tool", "a model may call it", "a result may come"])
async def test_a_rule_on_a_tool_asks_for_turns_of_whatever_may_call_it(turns, sessions, phase, asking):
    rules = bundle({**SERIAL, "phase": phase, "match": {"tools": ["pay"]}})
    async with turns.turn(rules, asking, wait_s=0.0, longest_s=10.0):
        pass
    assert sessions.asked == ["enter", "leave"]


async def test_the_turn_of_one_that_died_is_free_when_its_time_is_over(turns, sessions, clock, store):
    """Its own deadline, and a minute for a machine that is slow."""
    rules = bundle(SERIAL)
    await store.sessions.enter(SessionKey("key_1", "s1"), "call_dead", now_ns=clock.now_ns(), until_ns=clock.now_ns() + 70_000_000_000)
    with pytest.raises(Overloaded):
        async with turns.turn(rules, call(1), wait_s=69.0, longest_s=10.0):
            pass
    async with turns.turn(rules, call(2), wait_s=2.0, longest_s=10.0):
        assert clock.passed_s > 70.0
    sessions.failing = {"leave"}
    async with turns.turn(rules, call(3), wait_s=0.0, longest_s=10.0):
        pass  # the store could not be told that the turn is over; the call itself has not failed
    began_s = clock.passed_s
    async with turns.turn(rules, call(4), wait_s=100.0, longest_s=10.0):
        assert 70.0 <= clock.passed_s - began_s < 70.1


async def test_where_nobody_can_say_whose_turn_it_is_nobody_goes_on(turns, sessions):
    sessions.failing = {"enter"}
    with pytest.raises(StoreUnavailable):
        async with turns.turn(bundle(SERIAL), call(), wait_s=1.0, longest_s=10.0):
            raise AssertionError("it went on")


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_turn_is_over_however_its_call_ends(turns, error):
    rules = bundle(SERIAL)
    with pytest.raises(error):
        async with turns.turn(rules, call(1), wait_s=0.0, longest_s=10.0):
            raise error
    async with turns.turn(rules, call(2), wait_s=0.0, longest_s=10.0):
        pass


async def test_a_caller_that_leaves_while_it_is_given_the_turn_does_not_keep_it(turns, sessions):
    """The store may have written it already."""
    rules = bundle(SERIAL)

    async def asks() -> None:
        async with turns.turn(rules, call(1), wait_s=0.0, longest_s=10.0):
            raise AssertionError("it went on")

    sessions.never = {"enter"}
    task = asyncio.create_task(asks())
    await asyncio.wait_for(sessions.entered.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sessions.never = set()
    async with turns.turn(rules, call(2), wait_s=0.0, longest_s=10.0):
        pass


# What rules read of a session.

COUNTS = {"when": 'session.count("check") > 0'}


def question(phase: Phase, asking: Call) -> Question:
    tool = ToolCall("t1", asking.route, {})
    parts: dict[Phase, dict[str, Any]] = {"request": {}, "tool_call": {"tool": tool}, "tool_result": {"tool": tool, "result": ToolResult("", "")},
                                          "response": {"said": Said("")}}
    return Question(phase, asking, NOW_NS, **parts[phase])


@pytest.mark.parametrize(("rules", "asking"), [
    (bundle(), call()), (bundle({"when": "route == 'fast'"}), call()), (bundle(COUNTS), call(session=None)),
    (bundle({**COUNTS, "match": {"teams": ["red"]}}), call()), (bundle({**COUNTS, "phase": "response"}), call())],
    ids=["no rule", "none reads it", "no session", "another team", "another phase"])
async def test_nothing_is_fetched_that_no_rule_could_read(turns, sessions, rules, asking):
    assert await turns.facts(rules, question("request", asking), wait_s=1.0) is None
    assert sessions.asked == []


async def test_facts_of_a_session_need_no_tool_to_be_waited_for(turns, sessions):
    facts = await turns.facts(bundle({"when": "session.calls > 5"}), question("request", call()), wait_s=1.0)
    assert facts is not None
    assert facts.calls == 0
    assert sessions.asked == ["facts"]


async def under_way(store: MemoryStore, n: int, tool: str, session: str = "s1") -> CallRecord:
    """A call of an HTTP tool that has not ended."""
    made = call(n, session, operation="tool", route=tool)
    record = CallRecord(made.id, made.principal, "tools", "tool", tool, False, made.origin, NOW_NS, NOW_NS, Outcome.INTERRUPTED, 0, decision="allow",
                        tool_uses=(ToolUse(made.id, made.id, tool, "http", {}, released=True, at_ns=NOW_NS),))
    await store.journal.begin(Intent(record, Target("tool:" + tool, "POST"), None))
    return record


async def test_a_rule_that_asks_about_a_tool_waits_for_the_call_of_it_that_is_under_way(turns, store, clock):
    query = SessionQuery("count", "check")
    record = await under_way(store, 9, "check")
    asking = asyncio.create_task(turns.facts(bundle(COUNTS), question("request", call()), wait_s=10.0))
    while clock.passed_s < 0.1:
        await asyncio.sleep(0)
    assert not asking.done()
    await store.journal.finish(replace(record, outcome=Outcome.COMPLETED, status=200), response=None)
    facts = await asyncio.wait_for(asking, 10)
    assert facts is not None
    assert facts.answers == {query: 1}


async def test_that_wait_is_bounded_and_then_the_call_is_judged_without_it(turns, store, clock):
    await under_way(store, 9, "check")
    facts = await turns.facts(bundle(COUNTS), question("request", call()), wait_s=3.0)
    assert facts is not None
    assert facts.answers == {SessionQuery("count", "check"): 0}
    assert 3.0 <= clock.passed_s < 3.1


@pytest.mark.parametrize(("tool", "session"), [("other", "s1"), ("check", "s2")])
async def test_nobody_waits_for_another_tool_or_another_session(turns, store, clock, tool, session):
    await under_way(store, 9, tool, session)
    await turns.facts(bundle(COUNTS), question("request", call()), wait_s=3.0)
    assert clock.passed_s == 0.0


async def test_a_result_does_not_wait_for_the_call_that_it_is_of(turns, store, clock):
    await under_way(store, 1, "check")
    rules = bundle({**COUNTS, "phase": "tool_result"}, {**COUNTS, "phase": "tool_call"})
    await turns.facts(rules, question("tool_result", call(1, operation="tool", route="check")), wait_s=3.0)
    assert clock.passed_s == 0.0
    await turns.facts(rules, question("tool_call", call(2, operation="tool", route="check")), wait_s=3.0)
    assert clock.passed_s >= 3.0
