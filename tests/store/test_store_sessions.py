"""Sessions: both stores keep the same promises; on SQLite they hold between processes, and cost the same however much is on record."""

import asyncio
import importlib.util
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.call import Origin, Outcome, ToolUse
from gateway.errors import StoreError
from gateway.session import SessionKey, SessionQuery
from gateway.store.invariants import Finding
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store
from gateway.store.sqlite import SqliteStore
from gateway.store.writer import Do

_spec = importlib.util.spec_from_file_location("store_session_conformance", Path(__file__).with_name("session_conformance.py"))
assert _spec is not None
assert _spec.loader is not None
_conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_conformance)
KEY: SessionKey = _conformance.KEY
LEASE_NS = 10
EVERY_QUESTION = frozenset({
    SessionQuery("called", "kyc.check"), SessionQuery("called", "mail.send", 60.0), SessionQuery("count", "kyc.check", 60.0),
    SessionQuery("sum", "kyc.check", None, "args.amount"), SessionQuery("last", "kyc.check"), SessionQuery("last", "mail.send", 60.0),
})


class TestSqliteSessions(_conformance.SessionConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemorySessions(_conformance.SessionConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


@pytest.fixture
def life(store: SqliteStore, samples: ModuleType) -> Any:
    return _conformance.Life(store, samples)


@pytest.fixture
async def other(path: Path, store: SqliteStore, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    """Another process on the file of `store`."""
    _ = store
    opened = SqliteStore(path, "two")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


async def test_what_one_process_has_acknowledged_the_other_sees(life: Any, other: SqliteStore) -> None:
    opened = await life.open_http("kyc.check", {"amount": 3})
    assert await other.sessions.in_flight(KEY, frozenset({"kyc.check"}))
    await life.end(opened, b'{"json":1}')
    assert not await other.sessions.in_flight(KEY, frozenset({"kyc.check"}))
    assert await other.sessions.facts(KEY, EVERY_QUESTION, now_ns=life.now_ns) == await life.facts(*EVERY_QUESTION)


async def test_a_turn_holds_between_processes(life: Any, store: SqliteStore, other: SqliteStore) -> None:
    times = {"now_ns": life.now_ns, "until_ns": life.now_ns + 10}
    assert await store.sessions.enter(KEY, "one", **times)
    assert not await other.sessions.enter(KEY, "two", **times)
    await store.sessions.leave(KEY, "one")
    assert await other.sessions.enter(KEY, "two", **times)


async def test_turns_that_nobody_left_are_swept(life: Any, store: SqliteStore, sql: Callable[..., Any]) -> None:
    for n in range(20):
        await store.sessions.enter(SessionKey("key", f"s-{n}"), "dead", now_ns=life.now_ns, until_ns=life.now_ns + n)
    await store.heartbeat(now_ns=life.now_ns + 10, lease_ns=LEASE_NS)
    assert sql("SELECT count(*) FROM turns") == [(10,)]


async def test_a_call_of_a_process_that_died_is_not_waited_for(life: Any, store: SqliteStore, other: SqliteStore) -> None:
    await life.open_http("kyc.check")
    tools = frozenset({"kyc.check"})
    await store.heartbeat(now_ns=life.now_ns, lease_ns=LEASE_NS)
    await other.heartbeat(now_ns=life.now_ns + LEASE_NS, lease_ns=LEASE_NS)
    assert await other.sessions.in_flight(KEY, tools)
    await other.heartbeat(now_ns=life.now_ns + LEASE_NS + 1, lease_ns=LEASE_NS)  # overdue, and not yet closed
    assert not await other.sessions.in_flight(KEY, tools)


async def test_calls_of_one_session_at_the_same_time_all_count(life: Any, store: SqliteStore, other: SqliteStore) -> None:
    records = [replace(life.record(), labels=(f"label-{n}",)) for n in range(40)]
    for n, record in enumerate(records):
        life.store = (store, other)[n % 2]
        await life.begin(record)
    facts = await life.facts()
    assert (facts.calls, len(facts.labels)) == (40, 40)


async def test_a_call_that_began_before_there_were_sessions_ends_well(
    life: Any, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    opened = await life.begin(life.record())
    sql("DELETE FROM sessions")
    await life.end(opened, answer_labels=("late",), cost_nusd=1500)
    assert (await life.facts()).calls == 0
    await life.end(await life.begin(life.record()), cost_nusd=1500)
    assert (await life.facts()).calls == 1
    assert diagnose() == []


async def test_a_damaged_bundle_is_told(store: SqliteStore, sql: Callable[..., Any]) -> None:
    await store.bundles.keep("sha256:aa", b"a" * 5000, now_ns=1)
    sql("UPDATE bundles SET content = x'00'")
    with pytest.raises(StoreError, match="the bundle sha256:aa cannot be read: damaged body"):
        await store.bundles.content("sha256:aa")


class Statements:
    """What a connection is asked to run, from now on."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def watch(self, store: SqliteStore) -> None:
        await store._writer.write(Do(lambda connection: connection.set_trace_callback(self._note)))
        await store._reader.read(lambda connection: connection.set_trace_callback(self._note))

    def _note(self, statement: str) -> None:
        self.seen.append(statement.strip())

    async def plans(self, store: SqliteStore) -> list[str]:
        await store._reader.read(lambda connection: connection.set_trace_callback(None))
        asked = [text for text in self.seen if not re.match(r"BEGIN|COMMIT|ROLLBACK|--", text)]
        assert asked
        return await store._reader.read(lambda connection: [
            f"{row[3]}  <-  {text}" for text in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()])


async def test_nothing_that_a_call_does_reads_a_whole_table(life: Any, store: SqliteStore, samples: ModuleType) -> None:
    """Neither what it writes nor what rules ask: so it costs the same in a journal of a day and of a year."""
    await life.proposes(("c1", "mail.send", {"amount": 1}, True))
    statements = Statements()
    await statements.watch(store)
    await life.http("kyc.check", {"amount": 1})
    await life.brings(("c1", "sent"))
    await life.proposes(("c2", "mail.send", {"amount": 1}, True))
    ended = await life.end(await life.begin(replace(life.record(), labels=("a",))), cost_nusd=5, answer_labels=("b",))
    await life.facts(*EVERY_QUESTION)
    await store.sessions.in_flight(KEY, frozenset({"kyc.check"}))
    await store.sessions.released(KEY.principal, ["c1", "c2"])
    await store.sessions.enter(KEY, "one", now_ns=1, until_ns=2)
    await store.sessions.leave(KEY, "one")
    await store.bundles.keep("sha256:aa", b"", now_ns=1)
    await store.bundles.content("sha256:aa")
    await store.journal.call(ended.id)
    await store.journal.decided(samples.NOW_NS, ended.id, 10)
    await store.journal.decided(samples.NOW_NS, None, 10)
    plans = await statements.plans(store)
    # `owners` has a row for each process.
    assert [plan for plan in plans if re.match(r"SCAN (?!owners|CONSTANT ROW)|USE TEMP B-TREE", plan)] == []
    assert any("USING COVERING INDEX tool_uses_by_name (principal=? AND session=? AND name=? AND released=? AND at_ns>?)" in plan
               for plan in plans)
    assert any("USING COVERING INDEX tool_uses_by_id" in plan for plan in plans)


async def test_a_call_that_has_none_of_it_costs_no_statement_more(life: Any, store: SqliteStore) -> None:
    """Its own rows, the line of the ledger that it cost, and one look at what operators have set since."""
    statements = Statements()
    await statements.watch(store)
    bare = replace(life.record(), origin=Origin(), tool_results=(("c1", "result"),))
    await life.end(await life.begin(bare))
    assert [re.findall(r"\w+", text)[:3] for text in statements.seen if text.startswith("INSERT")] == [
        ["INSERT", "INTO", table] for table in ("calls", "outcomes", "attempts", "ledger")]
    assert len([text for text in statements.seen if not text.startswith(("BEGIN", "COMMIT"))]) == 5


async def test_a_long_session_is_asked_from_its_index_alone(life: Any, store: SqliteStore, sql: Callable[..., Any]) -> None:
    """A plan may look right and still read the session from its beginning: what is read is counted in SQLite's own steps."""
    await life.begin(life.record())
    seq = sql("SELECT max(seq) FROM calls")[0][0]
    sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
        "INSERT INTO tool_uses SELECT ?, i, i, 'model', 1, 'key000000001', CASE WHEN i % 2 THEN 's-1' ELSE 's-' || i END, 'c' || i, "
        "CASE WHEN i % 4 < 2 THEN 'kyc.check' ELSE 'other' END, '' FROM n", seq)
    asked = frozenset({SessionQuery("called", "kyc.check"), SessionQuery("last", "kyc.check"), SessionQuery("count", "kyc.check", 1e-9)})
    assert await _steps(store, store.sessions.facts(KEY, asked, now_ns=20_000)) < 1_000
    assert await _steps(store, store.sessions.released("key000000001", ["c1", "c19999"])) < 1_000


async def test_judged_calls_of_the_last_days_are_found_without_reading_those_of_a_year(
    store: SqliteStore, samples: ModuleType, sql: Callable[..., Any],
) -> None:
    sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO calls "
        "SELECT i + 10, 'call_' || i, 1, i * 3600000000000, '', '', '', '', '', '', '', 0, '', '', '', '', '', 'deny', '', '', '', '', '', '', "
        "'', x'' FROM n WHERE i % 100 != 7")  # some were deleted
    for n in (20_001, 20_002):
        await store.journal.refuse(samples.refused(n, received_ns=n * _conformance.HOUR_NS), request=None)
    since_ns = 19_998 * _conformance.HOUR_NS
    assert [call.id for call in await store.journal.decided(since_ns, None, 10)] == [
        "call_19998", "call_19999", "call_20000", samples.call_id(20_001), samples.call_id(20_002)]
    assert await _steps(store, store.journal.decided(since_ns, None, 10)) < 2_000


async def test_a_damaged_body_of_a_judged_call_reads_as_none(store: SqliteStore, samples: ModuleType, sql: Callable[..., Any]) -> None:
    await store.journal.refuse(samples.refused(1), request=b"r" * 5000)
    sql("UPDATE calls SET request = x'00'")
    assert [(call.id, call.request) for call in await store.journal.decided(0, None, 10)] == [(samples.call_id(1), None)]


async def _steps(store: SqliteStore, question: Awaitable[Any]) -> int:
    """How many steps SQLite takes to answer."""
    seen = 0

    def count() -> int:
        nonlocal seen
        seen += 1
        return 0

    await store._reader.read(lambda connection: connection.set_progress_handler(count, 10))
    await question
    await store._reader.read(lambda connection: connection.set_progress_handler(None, 0))
    return seen * 10


_TOOLS = st.sampled_from(["a", "b"])
_ARGS = st.sampled_from([{}, {"n": 1}, {"n": 2.5}, {"n": "x"}, {"n": {"m": 3}}])
_IDS = st.sampled_from(["c1", "c2"])
_KEYS = st.sampled_from([KEY, _conformance.OTHER, SessionKey("key000000001", "")])
_STEPS = st.lists(st.one_of(
    st.tuples(st.just("http"), _TOOLS, _ARGS, _KEYS, st.sampled_from([Outcome.COMPLETED, Outcome.FAILED])),
    st.tuples(st.just("open_http"), _TOOLS, _ARGS, _KEYS),
    st.tuples(st.just("proposes"), st.lists(st.tuples(_IDS, _TOOLS, _ARGS, st.booleans()), max_size=2, unique_by=lambda use: use[0]), _KEYS),
    st.tuples(st.just("brings"), st.lists(st.tuples(_IDS, st.sampled_from(["1", "[2]", "x"])), max_size=2), _KEYS),
), max_size=12)
_EVERY = frozenset(
    SessionQuery(function, tool, within, "args.n" if function == "sum" else "")
    for function in ("called", "count", "sum", "last") for tool in ("a", "b") for within in (None, 2e-9))


async def _live(life: Any, steps: list[tuple[Any, ...]]) -> list[Any]:
    """What a store knows after every one of these steps."""
    known = []
    for step in steps:
        life.now_ns += 1
        match step:
            case ("http", tool, args, key, outcome):
                await life.http(tool, args, key=key, outcome=outcome)
            case ("open_http", tool, args, key):
                await life.open_http(tool, args, key=key)
            case ("proposes", uses, key):
                await life.proposes(*uses, key=key)
            case ("brings", results, key):
                await life.brings(*results, key=key)
            case _:
                raise AssertionError(step)
        known += [await life.facts(*_EVERY, key=key) for key in (KEY, _conformance.OTHER)]
        known.append(await life.store.sessions.released(KEY.principal, ["c1", "c2", "c3"]))
        known.append([await life.store.sessions.in_flight(KEY, frozenset({tool})) for tool in ("a", "b")])
    return known


@given(_STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_both_stores_know_the_same_after_any_calls(samples: ModuleType, steps: list[tuple[Any, ...]]) -> None:
    async def both(folder: Path) -> tuple[list[Any], list[Any]]:
        store = SqliteStore(folder / "lockgate.db", "one", synchronous="normal")
        await store.start(now_ns=samples.NOW_NS)
        known = await _live(_conformance.Life(store, samples), steps)
        await store.close()
        return known, await _live(_conformance.Life(MemoryStore("one"), samples), steps)

    with tempfile.TemporaryDirectory() as folder:
        one, other = asyncio.run(both(Path(folder)))
    assert one == other


async def test_several_uses_of_one_answer_keep_their_order(life: Any) -> None:
    await life.proposes(("c1", "t", {"n": 1}, True), ("c2", "t", {"n": 2}, True))
    assert (await life.answer(SessionQuery("last", "t")))["args"] == {"n": 2}


async def test_a_tool_use_that_cannot_be_stored_takes_nothing_with_it(life: Any, diagnose: Callable[..., list[Finding]]) -> None:
    bad = life.record(tool_uses=(ToolUse("c", "c", "t", "http", {}, released=True, at_ns=2**70),))
    with pytest.raises(StoreError, match="cannot be stored"):
        await life.begin(bad)
    assert (await life.facts()).calls == 0
    assert diagnose() == []
