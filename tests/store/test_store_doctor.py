"""Each invariant finds the violation that is planted for it, and nothing in a database that is as it should be."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.call import AttemptEnd, Outcome, ToolUse
from gateway.core.accounts import Change
from gateway.core.breaker import Event, Step, by_hand
from gateway.core.rate import Take
from gateway.core.windows import Window
from gateway.session import SessionKey
from gateway.store.approvals_protocol import Person, Stamped
from gateway.store.bodies import pack
from gateway.store.database import open_readonly, open_writable
from gateway.store.doctor import INVARIANTS, examine
from gateway.store.doctor_approvals import APPROVAL_INVARIANTS
from gateway.store.invariants import Finding
from gateway.store.protocol import Intent
from gateway.store.sqlite import SqliteStore

PAGE = Path(__file__).parents[2] / "docs" / "journal.md"
HOUR = Window("rolling", length_ns=3600 * 10**9)
KEY = "lgk_" + "a" * 12 + "_" + "b" * 32

# Statements that break one invariant of a database with the calls of `_history`. Call 1 completed, 2 was refused, 3 is open.
PLANTED: dict[str, tuple[str, ...]] = {
    "references-hold": ("INSERT INTO dispatches VALUES (99, 2, 'p', 'm', 1, 0.0)",),
    "attempt-has-its-call": ("INSERT INTO dispatches VALUES (99, 2, 'p', 'm', 1, 0.0)",),
    "path-has-its-attempt": ("INSERT INTO paths VALUES (1, 2, 'retry', 'closed', 1.0, NULL)",),
    "further-attempts-say-why": ("UPDATE paths SET why = '' WHERE seq = 4",),
    "outcome-has-its-call": ("DELETE FROM calls WHERE seq = 1",),
    "call-is-recorded-once": (
        "CREATE TABLE copy AS SELECT * FROM calls", "DROP TABLE calls", "ALTER TABLE copy RENAME TO calls",
        "UPDATE calls SET id = (SELECT id FROM calls WHERE seq = 1) WHERE seq = 2",
    ),
    "ended-call-has-an-outcome": ("DELETE FROM outcomes WHERE seq = 1",),
    "outcome-is-known": ("UPDATE outcomes SET outcome = 'fine' WHERE seq = 1",),
    "completed-means-succeeded": ("UPDATE attempts SET \"end\" = 'failed' WHERE seq = 1",),
    "completed-means-allowed": ("UPDATE calls SET decision = 'held' WHERE seq = 1",),
    "withheld-was-sent": ("UPDATE outcomes SET outcome = 'withheld' WHERE seq = 2",),
    "completed-has-no-error": ("UPDATE outcomes SET code = 'overloaded' WHERE seq = 1",),
    "cut-is-never-complete": ("UPDATE attempts SET \"end\" = 'cut' WHERE seq = 1",),
    "refused-was-not-sent": ("UPDATE calls SET provider = 'alpha' WHERE seq = 2",),
    "sent-means-allowed": ("UPDATE calls SET decision = '' WHERE seq = 1",),
    "sent-means-intended": ("DELETE FROM dispatches WHERE seq = 4",),
    "refused-says-why": ("UPDATE outcomes SET code = '' WHERE seq = 2",),
    "attempts-are-numbered": ("UPDATE attempts SET n = 5 WHERE seq = 4 AND n = 2",),
    "cost-adds-up": ("UPDATE outcomes SET cost_nusd = 1 WHERE seq = 1",),
    "session-counts-its-calls": ("UPDATE sessions SET calls = calls + 1",),
    "tool-use-has-its-call": ("UPDATE tool_uses SET session = 's-2' WHERE seq = 8",),
    "balance-adds-up": ("UPDATE balances SET posted_nusd = posted_nusd + 1 WHERE budget = 'per-team'",),
    "spent-within-limit": ("UPDATE balances SET limit_nusd = 1399 WHERE budget = 'per-team'",),
    "reservation-ends-with-its-call": ("DELETE FROM settlements WHERE seq = 11",),
    "settlement-equals-the-ledger": ("UPDATE settlements SET cost_nusd = cost_nusd + 1 WHERE seq = 11",),
    "cost-is-in-the-ledger": ("DELETE FROM ledger WHERE seq = 10",),
    "suspects": ("UPDATE settlements SET suspect = 1 WHERE seq = 11",),
    "times-are-in-order": ("UPDATE outcomes SET ended_ns = 1 WHERE seq = 1",),
    "no-key-in-any-row": (f"UPDATE calls SET session = 'my key is {KEY}.' WHERE seq = 1",),  # noqa: S608 - a constant
    "bodies-can-be-read": ("UPDATE outcomes SET response_encoding = 'zlib', response = x'0102' WHERE seq = 1",),
    "calls-of-dead-processes": ("UPDATE owners SET lease_ns = 0",),
    "breaker-can-be-read": ("UPDATE breakers SET state = 'ajar'",),
    "breaker-keeps-to-its-state": ("UPDATE breakers SET state = 'closed' WHERE state = 'half_open'",),
    "probes-past-their-time": ("UPDATE breakers SET permits = json_replace(permits, '$[0][2]', 5) WHERE state = 'half_open'",),
}


@pytest.fixture
async def history(store: SqliteStore, samples: ModuleType) -> None:
    """One call of each kind, as the proxy records them."""
    journal = store.journal
    await journal.begin(samples.intent(1, request=b'{"a":1}' * 500))
    await journal.finish(samples.completed(1), response=b"{}")
    await journal.refuse(samples.refused(2), request=b"{}")
    await journal.begin(samples.intent(3))
    await journal.begin(samples.intent(4))
    await journal.dispatch(samples.dispatch(4, 2))
    billed_perhaps = samples.attempt(1, end=AttemptEnd.FAILED, cause="timeout:headers", usage=None, cost_nusd=None, first_byte_ns=None)
    first = replace(billed_perhaps, breaker="half_open")
    second = samples.attempt(2, target=samples.OTHER, why="fallback", retries_left=2.5)
    await journal.finish(samples.completed(4, attempts=(first, second), plan={"strategy": "priority"}), response=None)
    await journal.begin(samples.intent(5))
    cut = samples.attempt(1, end=AttemptEnd.CUT, cause="cut", usage=None, cost_nusd=None)
    await journal.finish(
        samples.completed(5, outcome=Outcome.CUT, code="upstream_failed", attempts=(cut,), usage=None, cost_nusd=None), response=b"part")
    await journal.begin(samples.intent(6))
    await journal.finish(
        samples.completed(6, outcome=Outcome.CANCELLED, status=499, code="client_gone", attempts=(), cost_nusd=0), response=None)
    await journal.begin(samples.intent(7))
    await journal.finish(samples.completed(
        7, outcome=Outcome.FAILED, status=502, code="upstream_failed", attempts=(billed_perhaps,), cost_nusd=None, usage=None,
    ), response=None)
    paid = samples.record(8, operation="tool", route="bank.pay", dialect="tools")
    paid = replace(paid, tool_uses=(ToolUse(paid.id, paid.id, "bank.pay", "http", {"amount": 5}, released=True, at_ns=samples.NOW_NS),))
    await journal.begin(Intent(paid, samples.TARGET, b'{"amount":5}'))
    verdict = {"phase": "tool_result", "decision": "deny", "rule": "no-secrets"}
    await journal.finish(samples.completed(
        8, outcome=Outcome.WITHHELD, status=403, code="forbidden", verdicts=(verdict,), tool_uses=paid.tool_uses), response=b"{}")
    await journal.begin(samples.intent(9, tool_results=(("c0", "unknown"),)))
    proposed = ToolUse(samples.call_id(9), "c1", "mail.send", "model", {}, released=True, at_ns=samples.NOW_NS)
    await journal.finish(samples.completed(9, tool_uses=(proposed,), answer_labels=("late",)), response=None)
    await journal.begin(samples.intent(10, tool_results=(("c1", "sent"),)))
    await journal.finish(samples.completed(10), response=None)
    await _spend(store, samples)
    await _parts(store, samples)
    for step in (Step(Event.TRIPPED, 1), Step(Event.CLAIMED, samples.NOW_NS, holder="call_1.1", lease_s=2e6)):
        await store.breakers.apply("alpha/small-1", step)
    await store.breakers.apply("beta/large-2", by_hand("open", now_ns=1, author="ada", note="moves house"))
    await store.sessions.enter(SessionKey("key000000001", "s-1"), samples.call_id(10), now_ns=1, until_ns=2)
    await store.bundles.keep("sha256:abc", b"rules " * 1000, now_ns=samples.NOW_NS)
    await store.keys.create(samples.key(1))
    await store.people.add(Person("ada", "Ada", "view"), Stamped("created", "admin", 1))


async def _parts(store: SqliteStore, samples: ModuleType) -> None:
    """A mirror of call 1, a stream that went on elsewhere, and a hedge that lost."""
    journal = store.journal
    await journal.begin(samples.intent(14, labels=("mirror",), part_of=samples.call_id(1)))
    await journal.finish(samples.completed(14, labels=("mirror",), part_of=samples.call_id(1)), response=None)
    for n, end, why in ((15, AttemptEnd.CUT, "continuation"), (16, AttemptEnd.SUCCEEDED, "hedge")):
        await journal.begin(samples.intent(n))
        await journal.dispatch(samples.dispatch(n, 2))
        tries = samples.attempt(1, end=end, cost_nusd=1000), samples.attempt(
            2, target=samples.OTHER, why=why, end=AttemptEnd.CANCELLED if why == "hedge" else AttemptEnd.SUCCEEDED, cost_nusd=500)
        await journal.finish(samples.completed(n, attempts=tries), response=None)


async def _spend(store: SqliteStore, samples: ModuleType) -> None:
    """A call on two accounts that cost more than was set aside for it, one that was given back, and one whose rate alone is kept."""
    await store.budgets.change(Change(0, 1, "ada", "set", "hourly", budget=samples.budget("hourly", "key", 5000, window=HOUR)))
    till = samples.Till(store, samples.budget("per-team", limit=1400))
    place = Take("one-at-a-time", "key=key000000001", "concurrent", 1, 0)
    await till.begin(11, 1400, takes=(place,))
    booked = await till.finish(11, 1500)
    assert booked.overrun_nusd == 100
    await till.begin(12, 0)
    await till.finish(12, outcome=Outcome.CANCELLED, status=499, code="client_gone")
    await samples.Till(store).begin(13, 5, takes=(place,), key="other")
    await till.finish(13, 7)


@pytest.mark.usefixtures("history")
class TestDoctor:
    """On a database with one call of each kind."""

    def test_a_sound_database_is_clean(self, diagnose: Callable[..., list[Finding]]) -> None:
        assert diagnose() == []

    @pytest.mark.parametrize("name", list(PLANTED))
    def test_a_planted_violation_is_found(
        self, name: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql("PRAGMA foreign_keys = OFF")
        for statement in PLANTED[name]:
            sql(statement)
        found = {finding.invariant.name: finding.rows for finding in diagnose()}
        assert name in found
        assert found[name]

    @pytest.mark.parametrize("statement", [
        "UPDATE sessions SET calls = calls - 1", "UPDATE calls SET provider = 'alpha' WHERE seq = 2",
        "INSERT INTO sessions VALUES ('key000000001', 's-9', 1, 1, 1, 1, 0, '')",
    ])
    def test_a_session_that_missed_a_call_or_made_one_up_is_found(
        self, statement: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql(statement)
        assert "session-counts-its-calls" in {finding.invariant.name for finding in diagnose()}

    @pytest.mark.parametrize(("name", "statement"), [
        ("balance-adds-up", "UPDATE balances SET posted_nusd = posted_nusd - 1 WHERE budget = 'hourly'"),
        ("balance-adds-up", "UPDATE balances SET pending_nusd = 1 WHERE budget = 'hourly'"),
        ("balance-adds-up", "UPDATE reservations SET balances = '[77]' WHERE seq = 11"),
        ("balance-adds-up", "DELETE FROM balances"),
        ("reservation-ends-with-its-call", "INSERT INTO reservations VALUES (10, 5, NULL, '', '')"),
        ("reservation-ends-with-its-call", (
            "INSERT INTO reservations VALUES (3, 5, NULL, '', ''); INSERT INTO settlements VALUES (3, 1, 0, 'settled', 0, '')")),
        ("reservation-ends-with-its-call", "DELETE FROM reservations WHERE seq = 11"),
        ("settlement-equals-the-ledger", "INSERT INTO ledger VALUES (11, 0, 1, 'p', 'm', -5, 0, 0, 'operator')"),
        ("cost-is-in-the-ledger", "UPDATE ledger SET cost_nusd = cost_nusd - 1 WHERE seq = 1"),
        ("cost-is-in-the-ledger", "INSERT INTO ledger VALUES (10, 2, 1, 'p', 'm', 5, 0, 0, '')"),
    ])
    def test_money_that_is_not_where_it_should_be_is_found(
        self, name: str, statement: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql("PRAGMA foreign_keys = OFF")
        for each in statement.split("; "):
            sql(each)
        assert name in {finding.invariant.name for finding in diagnose()}

    @pytest.mark.parametrize(("used", "limits", "over", "found"), [
        ((60, 40), (100, 100), 0, False),
        ((60, 41), (100, 100), 0, True),
        ((60, 41), (100, 100), 1, False),
        ((90, 60), (100, 150), 0, False),  # it was raised
        ((90, 60), (150, 100), 0, False),  # and lowered later: what was granted, was granted
        ((90, 60), (None, 100), 0, False),  # there was no limit before
    ])
    def test_every_step_of_a_rolling_window_counts_until_it_is_over(
        self, used: tuple[int, ...], limits: tuple[int | None, ...], over: int, found: bool, sql: Callable[..., Any],  # noqa: FBT001
        diagnose: Callable[..., list[Finding]],
    ) -> None:
        step_ns = 60 * 10**9
        for each, limit, at in zip(used, limits, (100 * step_ns, 160 * step_ns), strict=True):
            sql("INSERT INTO balances (budget, subject, span, window_ns, scope, posted_nusd, pending_nusd, limit_nusd, over_nusd) "
                "VALUES ('r', 'all', 'rolling 3600s', ?, 'all', ?, 0, ?, ?)", at, each, limit, over)
        wrong = {finding.invariant.name: finding.rows for finding in diagnose()}
        assert ("spent-within-limit" in wrong) is found
        sql("UPDATE balances SET window_ns = window_ns - 1 WHERE budget = 'r' AND window_ns = ?", 100 * step_ns)
        assert "spent-within-limit" not in {finding.invariant.name for finding in diagnose()}

    @pytest.mark.parametrize(("table", "column"), [
        ("calls", "reasons"), ("outcomes", "message"), ("verdicts", "verdicts"), ("tool_uses", "args"), ("tool_results", "text"),
        ("sessions", "labels"), ("turns", "holder"), ("keys", "name"), ("budget_changes", "note"), ("settlements", "author"),
        ("ledger", "prices"), ("plans", "plan"), ("paths", "why"), ("breakers", "note"), ("people", "name"), ("people_events", "detail"),
    ])
    def test_a_virtual_key_is_found_wherever_others_can_write(
        self, table: str, column: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql(f"UPDATE {table} SET {column} = ?", f'{{"k":"{KEY}"}}')  # noqa: S608 - fixed names
        found = {finding.invariant.name: finding.rows for finding in diagnose()}
        assert {row["place"] for row in found["no-key-in-any-row"]} == {table}

    @pytest.mark.parametrize(("table", "statement"), [
        ("balances", "UPDATE balances SET subject = ? WHERE id = 1"), ("rates", "UPDATE rates SET whose = ?"),
    ])
    def test_a_virtual_key_in_a_name_that_a_caller_chose_is_found(
        self, table: str, statement: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql(statement, f"key={KEY}")
        found = {finding.invariant.name: finding.rows for finding in diagnose()}
        assert {row["place"] for row in found["no-key-in-any-row"]} == {table}

    @pytest.mark.parametrize("table", ["calls", "outcomes"])
    def test_a_virtual_key_in_a_stored_body_is_found(
        self, table: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        body = "request" if table == "calls" else "response"
        encoding, data = pack(f'{{"note":"{"padding " * 500}{KEY}"}}'.encode())
        assert encoding == "zlib"
        sql(f"UPDATE {table} SET {body}_encoding = ?, {body} = ? WHERE seq = 1", encoding, data)  # noqa: S608 - two fixed names
        assert [(finding.invariant.name, finding.rows[0]["place"]) for finding in diagnose()] == [("no-key-in-any-body", body)]

    def test_a_virtual_key_in_a_bundle_and_a_damaged_one_are_found(
        self, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql("UPDATE bundles SET encoding = 'raw', content = ?", f"# {KEY}".encode())
        assert [(finding.invariant.name, finding.rows[0]["place"]) for finding in diagnose()] == [("no-key-in-any-body", "bundle")]
        sql("UPDATE bundles SET encoding = 'zlib'")
        assert [(finding.invariant.name, finding.rows[0]["place"]) for finding in diagnose()] == [("bodies-can-be-read", "bundle")]

    async def test_a_damaged_file_is_found(
        self, store: SqliteStore, path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
    ) -> None:
        for n in range(100, 160):
            await store.journal.begin(samples.intent(n, request=b"r" * 400))
        await store.close()
        _damage(path)
        assert "file-is-sound" in {finding.invariant.name for finding in diagnose()}

    def test_an_open_call_of_a_dead_process_is_a_note_not_a_violation(
        self, samples: ModuleType, diagnose: Callable[..., list[Finding]],
    ) -> None:
        found = diagnose(now_ns=samples.NOW_NS + 10**15)
        assert [(finding.invariant.name, finding.invariant.note) for finding in found] == [("calls-of-dead-processes", True)]
        assert [row["id"] for row in found[0].rows] == [samples.call_id(3)]

    async def test_interrupted_calls_are_as_they_should_be(
        self, path: Path, samples: ModuleType, diagnose: Callable[..., list[Finding]],
    ) -> None:
        successor = SqliteStore(path, "two")
        await successor.start(now_ns=samples.NOW_NS + 10**15)
        await successor.close()
        assert diagnose() == []

    def test_only_so_many_rows_are_shown(self, sql: Callable[..., Any], path: Path, samples: ModuleType) -> None:
        sql("PRAGMA foreign_keys = OFF")
        sql("WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
            "INSERT INTO dispatches SELECT 99, i, 'p', 'm', 1, 0.0 FROM n")
        with closing(open_readonly(path)) as connection:
            assert all(len(finding.rows) <= 100 for finding in examine(connection, now_ns=samples.NOW_NS))


def _damage(path: Path) -> None:
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(pages - 8, pages):
            file.seek(page * 4096)
            file.write(b"\xff" * 512)


def test_every_invariant_has_a_planted_violation() -> None:
    elsewhere = {"no-key-in-any-body", "file-is-sound", *(invariant.name for invariant in APPROVAL_INVARIANTS)}
    assert {invariant.name for invariant in INVARIANTS} == set(PLANTED) | elsewhere


def test_retention_by_hand_works_as_documented_and_leaves_a_sound_database(
    path: Path, history: None, samples: ModuleType, diagnose: Callable[..., list[Finding]],
) -> None:
    script = PAGE.read_text().partition("```sql\n")[2].partition("```")[0]
    moment = "(unixepoch() - 30 * 86400)"
    assert moment in script
    with closing(open_writable(path, synchronous="full", busy_timeout_s=5)) as connection:
        connection.executescript(script.replace(moment, str(samples.NOW_NS // 10**9 + 1)))
        assert connection.execute("SELECT id FROM calls").fetchall() == [(samples.call_id(3),)]  # open: not deleted
    assert diagnose() == []
    _ = history


def test_every_invariant_is_documented() -> None:
    page = PAGE.read_text()
    for invariant in INVARIANTS:
        assert f"| `{invariant.name}` | {'(a note, breaks nothing) ' if invariant.note else ''}{invariant.explanation} |" in page
