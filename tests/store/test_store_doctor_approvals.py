"""Each invariant on approvals finds the violation that is planted for it, and nothing where all is as it should be."""

import importlib.util
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.core.approval import Event, Result
from gateway.core.approval_bounds import Bounds
from gateway.core.approval_steps import DIED
from gateway.store.database import open_writable
from gateway.store.doctor_approvals import APPROVAL_INVARIANTS, votes_approve
from gateway.store.invariants import Finding
from gateway.store.protocol import Intent
from gateway.store.sqlite import SqliteStore


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


some = _load("approval_samples")
at_ns = some.at_ns
PAGE = Path(__file__).parents[2] / "docs" / "journal.md"
KEY = "lgk_" + "a" * 12 + "_" + "b" * 32


def _id(n: int) -> str:
    return str(some.ticket(n).id)


def _with_ids(statement: str) -> str:
    return re.sub(r"<(\d+)>", lambda number: _id(int(number[1])), statement)


# Statements, each of which breaks an invariant of a database with the approvals of `history`, and the row that is then named; `<3>` is the id
# of the approval 3.
PLANTED: dict[str, list[tuple[str, str]]] = {
    "approval-is-what-happened": [
        ("UPDATE approvals SET state = 'approved' WHERE id = '<1>'", "<1>"),
        ("UPDATE approvals SET state = 'pending' WHERE id = '<3>'", "<3>"),
        ("UPDATE approval_events SET state = 'approved', event = 'approve' WHERE ticket = '<2>' AND event = 'deny'", "<2>"),
        ("DELETE FROM approval_events WHERE ticket = '<3>' AND event = 'approve'", "<3>"),
        ("DELETE FROM approval_events WHERE ticket = '<1>'", "<1>"),
        ("UPDATE approval_events SET event = 'open', state = 'pending' WHERE ticket = '<3>' AND event = 'vote'", "<3>"),
        ("UPDATE approval_events SET state = 'approved' WHERE ticket = '<3>' AND event = 'vote'", "<3>"),
    ],
    "queue-is-what-is-pending": [
        ("UPDATE approval_queues SET pending = pending + 1 WHERE principal = ''", ""),
        (f"UPDATE approval_queues SET size = 0 WHERE principal = '{some.KEY}'", some.KEY),  # noqa: S608 - a constant
        (f"DELETE FROM approval_queues WHERE principal = '{some.KEY}'", some.KEY),  # noqa: S608
    ],
    "approval-is-claimed-once": [
        (("INSERT INTO approval_events (ticket, at_ns, event, state, fence, author, reason, call_id) "
          "SELECT ticket, at_ns, event, state, 2, '', '', 'call_x' FROM approval_events WHERE ticket = '<5>' AND event = 'claim'"), "<5>"),
        ("DELETE FROM approval_events WHERE ticket = '<6>' AND event = 'return'", "<6>"),
        ("UPDATE approvals SET fence = fence + 1 WHERE id = '<3>'", "<3>"),
        (("DROP INDEX call_approvals_claims; INSERT INTO call_approvals SELECT 1, ticket, fence FROM call_approvals "
          "WHERE ticket = '<3>' AND fence > 0 LIMIT 1"), "<3>"),
    ],
    "claim-is-its-calls": [
        ("UPDATE approval_events SET call_id = 'call_x' WHERE ticket = '<3>' AND event = 'claim'", "<3>"),
        ("UPDATE approvals SET principal = 'key2' WHERE id = '<3>'", "<3>"),
        ("UPDATE call_approvals SET fence = 9 WHERE ticket = '<3>' AND fence > 0", "<3>"),
    ],
    "approval-had-its-votes": [
        ("DELETE FROM approval_votes WHERE ticket = '<3>' AND person = 'bob'", "<3>"),
        ("UPDATE approval_votes SET verdict = 'deny' WHERE ticket = '<3>' AND person = 'bob'", "<3>"),
        ("UPDATE approval_votes SET places = '[[\"other\",0]]' WHERE ticket = '<5>'", "<5>"),
        ("UPDATE approvals SET demands = replace(demands, '\"quorum\":2', '\"quorum\":3') WHERE id = '<3>'", "<3>"),
        ("UPDATE approvals SET demands = '[{}]' WHERE id = '<4>'", "<4>"),
    ],
    "nobody-approves-their-own": [
        ("UPDATE approval_votes SET person = 'olga' WHERE ticket = '<3>' AND person = 'bob'", "<3>"),
        ("UPDATE approvals SET owner = 'ada' WHERE id = '<2>'", "<2>"),
        ("UPDATE approvals SET principal = 'ada' WHERE id = '<2>'", "<2>"),
        ("UPDATE approvals SET on_behalf_of = 'ada' WHERE id = '<2>'", "<2>"),
        ("UPDATE approval_votes SET person = 'oidc:ann@id.example' WHERE ticket = '<2>'; UPDATE approvals SET on_behalf_of = 'ann' WHERE id = '<2>'", "<2>"),
    ],
    "votes-are-on-this-action": [
        ("UPDATE approvals SET digest = 'sha256:tampered' WHERE id = '<3>'", "<3>"),
        ("UPDATE approval_votes SET digest = 'sha256:tampered' WHERE ticket = '<5>'", "<5>"),
    ],
    "executing-has-its-call": [
        ("UPDATE approvals SET executed_by = 'call_x' WHERE id = '<5>'", "<5>"),
        ("UPDATE approvals SET state = 'executing' WHERE id = '<3>'", "<3>"),
    ],
    "held-was-let-through": [
        ("DELETE FROM call_approvals WHERE ticket = '<3>'", "call_"),
        ("UPDATE call_approvals SET fence = 0 WHERE ticket = '<5>'", "call_"),
        ("DELETE FROM grant_uses", "call_"),
        ("UPDATE calls SET decision = 'held' WHERE seq = 1", "call_"),
    ],
    "grant-is-used-as-often-as-it-says": [
        ("UPDATE grants SET uses = uses + 1 WHERE uses IS NOT NULL", "grt_0001"),
        ("DELETE FROM grant_uses WHERE grant_id = 'grt_0001'", "grt_0001"),
        ("UPDATE grants SET uses = -1, given = 0 WHERE id = 'grt_0001'", "grt_0001"),
    ],
    "edited-has-its-other-half": [
        ("UPDATE approvals SET edited_from = '' WHERE id = '<8>'", "<7>"),
        ("UPDATE approvals SET replaced_by = 'apr_x' WHERE id = '<7>'", "<7>"),
        ("UPDATE approvals SET replaced_by = '<8>' WHERE id = '<2>'", "<2>"),
    ],
    "notice-has-its-approval": [("UPDATE outbox SET ticket = 'apr_x'", "ntc_")],
    "no-key-in-any-approval": [
        (f"UPDATE {table} SET {column} = 'my key is {KEY}.'", table) for table, column in (  # noqa: S608 - fixed names
            ("approvals", "message"), ("approvals", "reason"), ("approval_votes", "comment"), ("approval_events", "author"),
            ("approval_results", "headers"), ("grants", "condition"), ("outbox", "error"),
        )
    ],
    "approvals-can-be-read": [
        ("UPDATE approvals SET encoding = 'zlib' WHERE id = '<1>'", "<1>"),
        ("UPDATE approvals SET demands = '[' WHERE id = '<1>'", "<1>"),
        ("UPDATE approvals SET shown = 'x' WHERE id = '<1>'", "<1>"),
        ("UPDATE approval_results SET encoding = 'zlib'", "<3>"),
        ("UPDATE kept_answers SET encoding = 'other'", "call_"),
    ],
    "approvals-nobody-knows-the-end-of": [("UPDATE approvals SET state = 'unknown' WHERE id = '<1>'", "<1>")],
    "notices-not-delivered": [("UPDATE outbox SET dead = 1", "ntc_"), ("UPDATE outbox SET due_ns = 1", "ntc_")],
}


@pytest.fixture
async def history(store: SqliteStore) -> None:
    """An approval of each kind, as they come about. 1 waits; 2 was denied; 3 was done by two people's word; 4 waits for its call; 5 is being
    done; 6 was returned once and then done; 7 was edited into 8; 9 expired; 10 was released; 11 was lost and found.
    """
    desk = some.Desk(store)
    approvals, journal = store.approvals, store.journal
    approvals.tell(some.told)
    await journal.begin(some.samples.intent(90))
    await journal.finish(some.samples.completed(90), response=None)
    await approvals.open(some.ticket(1, patch=[]), [some.notice(1)], bounds=Bounds(50), kept=some.kept(some.ticket(1)))
    denied = await desk.open(2)
    await approvals.vote(denied.id, some.vote(denied, verdict="deny"))
    done = await desk.open(3, demands=(some.TWO,))
    await journal.refuse(some.samples.refused(3, code="approval_pending", decision="held", approval=done.id), request=None)
    for person in ("ada", "bob"):
        done = await approvals.vote(done.id, some.vote(done, person))
    await desk.begin(30, done)
    await desk.end(30, done, "succeed", Result(200, "application/json", b"{}"))
    again = some.samples.completed(31, decision="held", approval=done.id, attempts=(), cost_nusd=0, usage=None, first_byte_ns=None)
    await journal.refuse(again, request=None)  # it is given what is kept
    await approvals.delivered(done.id, now_ns=at_ns(9))
    await desk.approved(4)
    await desk.begin(50, await desk.approved(5))
    twice = await desk.approved(6)
    await desk.begin(60, twice)
    await desk.end(60, twice, "return")
    await desk.begin(61, await desk.get(6))
    await desk.end(61, twice, "fail")
    old = await desk.open(7)
    await approvals.replace(
        old.id, some.ticket(8, presented=old.presented, edited_from=old.id, created_ns=at_ns(1)), author="ada", now_ns=at_ns(2))
    await desk.open(9, expires_ns=at_ns(2))
    await approvals.sweep(now_ns=at_ns(3), results_before_ns=0)
    await approvals.release(some.claim_of(await desk.approved(10)), call_id=some.samples.call_id(90), keep=False, now_ns=at_ns(4))
    lost = await desk.approved(11)
    await desk.begin(110, lost)
    await desk.end(110, lost, "lose")
    await approvals.happen(lost.id, Event.SUCCEED, now_ns=at_ns(9), author="ada", reason="looked there")
    for n, uses in ((1, 2), (2, None)):
        await approvals.grant(some.grant(n, uses=uses))
    await desk.begin(120, grants=("grt_0001", "grt_0002"))


@pytest.mark.usefixtures("history")
class TestDoctorOfApprovals:
    """On a database with one approval of each kind."""

    def test_a_sound_database_is_clean(self, diagnose: Callable[..., list[Finding]]) -> None:
        assert diagnose() == []

    @pytest.mark.parametrize(("name", "statement", "named"), [(name, *each) for name, planted in PLANTED.items() for each in planted])
    def test_a_planted_violation_is_found_and_its_row_is_named(
        self, name: str, statement: str, named: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        sql("PRAGMA foreign_keys = OFF")
        for each in statement.split("; "):
            sql(_with_ids(each))
        found = {finding.invariant.name: finding.rows for finding in diagnose()}
        assert name in found
        assert any(str(value).startswith(_with_ids(named)) for row in found[name] for value in row.values()), found[name]

    def test_somebody_who_is_only_called_alike_has_approved_what_is_anothers(
        self, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        """A subject has no wildcards."""
        sql(_with_ids("UPDATE approval_votes SET person = 'oidc:anna@id.example' WHERE ticket = '<2>'"))
        for name in ("a%a", "ann", "a__a", "anna@"):
            sql(_with_ids(f"UPDATE approvals SET on_behalf_of = '{name}' WHERE id = '<2>'"))  # noqa: S608 - fixed names
            assert diagnose() == []

    @pytest.mark.parametrize("statement", [
        "UPDATE calls SET decision = 'deny' WHERE id IN (SELECT executed_by FROM approvals)",
        "DELETE FROM call_approvals WHERE ticket = '<3>' AND fence = 0",
    ])
    def test_what_is_said_of_calls_holds_for_approved_ones(
        self, statement: str, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
    ) -> None:
        """A denied call that was sent; an answer that was kept under no approval."""
        sql(_with_ids(statement))
        assert {finding.invariant.name for finding in diagnose()} & {"sent-means-allowed", "completed-means-succeeded"}

    async def test_what_a_dead_process_left_is_as_it_should_be_once_it_is_swept(
        self, path: Path, diagnose: Callable[..., list[Finding]],
    ) -> None:
        successor = SqliteStore(path, "two")
        await successor.start(now_ns=some.NOW_NS + 10**15)
        ticket = await successor.approvals.get(_id(5))
        await successor.close()
        assert ticket is not None
        assert (str(ticket.state), ticket.reason) == ("unknown", DIED)
        assert [(finding.invariant.name, finding.rows[0]["id"]) for finding in diagnose()] == [
            ("approvals-nobody-knows-the-end-of", _id(5))]


async def test_what_a_grant_and_an_approval_let_through_together_is_sound(
    store: SqliteStore, diagnose: Callable[..., list[Finding]],
) -> None:
    desk = some.Desk(store)
    ticket = await desk.approved(1)
    await store.approvals.grant(some.grant(1))
    await desk.begin(1, ticket, grants=("grt_0001",))
    await store.journal.begin(replace(
        Intent(some.samples.record(2, decision="allow"), some.samples.TARGET, None), grants=("grt_0001",), now_ns=at_ns(2)))
    assert diagnose() == []


def test_every_invariant_on_approvals_has_a_planted_violation() -> None:
    assert {invariant.name for invariant in APPROVAL_INVARIANTS} == set(PLANTED)


@pytest.mark.parametrize(("demands", "votes"), [
    ("[", "[]"), ("[{}]", "[]"), ("[]", "["), ("[]", "[[1]]"), ("7", "[]"), ("[]", '[["ada", "approve", "["]]'), ('["x"]', "[]"),
])
def test_what_cannot_be_read_approves_nothing(demands: str, votes: str) -> None:
    assert not votes_approve(demands, votes)


@pytest.mark.usefixtures("history")
async def test_retention_by_hand_takes_approvals_that_ended_and_leaves_a_sound_database(
    path: Path, store: SqliteStore, diagnose: Callable[..., list[Finding]],
) -> None:
    await store.journal.finish(some.samples.completed(120, decision="held"), response=None)
    script = PAGE.read_text().partition("```sql\n")[2].partition("```")[0]
    with closing(open_writable(path, synchronous="full", busy_timeout_s=5)) as connection:
        connection.executescript(script.replace("(unixepoch() - 30 * 86400)", str(at_ns(0) // 10**9 + 10)))
        left = [row[0] for row in connection.execute("SELECT id FROM approvals ORDER BY id").fetchall()]
    assert left == [_id(n) for n in (1, 4, 5, 8)]
    assert [finding for finding in diagnose() if not finding.invariant.note] == []
