"""As time passes, approvals expire or go on to others, and what nobody knows the end of is found out, or asked about: on a clock by hand."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.approvals.sweeping import Sweeper, Upkeep
from gateway.approvals.verifying import Verifier
from gateway.call import Attempt, AttemptEnd, Call, Reply, Target, Usage
from gateway.clock import SystemIds
from gateway.config import Config
from gateway.core.approval import Demand, Event, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.core.detectors import Detectors
from gateway.core.expressions import Library
from gateway.core.verify import Verify, compile_verify, open_engines
from gateway.errors import StoreUnavailable
from gateway.notify.channels import Channel, Slack
from gateway.notify.notices import Notices
from gateway.progress import Progress
from gateway.secret import Secret
from gateway.store.approvals_protocol import Claim
from gateway.store.sqlite import SqliteStore
from gateway.store.writer import Do
from gateway.tool_config import VerifyConfig

NOW_NS = 1_790_000_000_000_000_000
SOON_S = 20
EVENTS = frozenset({"opened", "escalated", "expired", "unknown"})
ORIGIN = {"principal": {"id": "key_1", "name": "payroll", "team": "finance", "org": "acme", "roles": ["dev"], "routes": ["*"],
                        "on_behalf_of": "", "owner": ""},
          "origin": {"session": "s-1", "run": None, "step": None, "tags": {}}}
TICKET = Ticket(
    id="apr_01", kind="tool", mode="execute", state=State.PENDING, digest="sha256:ab", presented="sha256:ab", principal="key_1",
    call_id="call_asked", rule="pay", message="Payments wait.", demands=(Demand("pay", (Stage(),)),),
    shown={"arguments": {"id": "p-7", "amount": 5000}}, body=b"{}", origin=ORIGIN, shape="sha256:0", created_ns=NOW_NS,
    expires_ns=NOW_NS + 600 * 10**9, patience_s=600.0, principal_name="payroll", team="finance", tool="bank.pay", route="bank.pay",
    notify=("*",))


class HandClock:
    """Time that passes when somebody says so."""

    s = 1000.0

    def now_ns(self) -> int:
        return NOW_NS + round((self.s - 1000.0) * 1e9)

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass
class Heard:
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    now: list[tuple[str, State]] = field(default_factory=list)

    def event(self, _level: str, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def pending(self, approvals: int) -> None:
        self.waiting.append(approvals)

    def approval_now(self, ticket: Ticket) -> None:
        self.now.append((ticket.id, ticket.state))

    @property
    def names(self) -> list[str]:
        return [name for name, _fields in self.events]


@dataclass
class Bank:
    """The tool that reads, as `Errands` asks it: says what a test says, one answer after the other; the last for ever."""

    says: list[Any] = field(default_factory=lambda: [{"status": "paid"}])
    asked: list[tuple[Progress, Call]] = field(default_factory=list)
    go: asyncio.Event | None = None

    async def read(self, case: Progress, call: Call, _snapshot: Any) -> Reply | None:
        self.asked.append((case, call))
        if self.go is not None:
            await self.go.wait()
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, int):
            end = AttemptEnd.REJECTED if 400 <= said < 500 else AttemptEnd.FAILED
            case.attempts.append(Attempt(1, Target("tool:bank.status", "GET"), 0, 1, end, status=said))
            return None
        if said is None:
            return None
        body = {"text": said} if isinstance(said, str) else {"json": said}
        return Reply({"status": 200, "content_type": "application/json", **body}, Usage())


def verify(happened: str = 'result.status == "paid"', **changed: Any) -> Verify:
    given = VerifyConfig.model_validate({"tool": "bank.status", "arguments": {"id": "arguments.id", "key": "key"}, "happened": happened, **changed})
    made = compile_verify(given, open_engines("auto", Library({}, Detectors(()))))
    assert isinstance(made, Verify)
    return made


@dataclass
class Desk:
    """A sweeper with everything real but the tool that reads; `other` is one of another process."""

    store: SqliteStore
    clock: HandClock
    heard: Heard
    bank: Bank
    snapshot: Any
    told: int = 0

    def __post_init__(self) -> None:
        self.store.approvals.tell(Notices(lambda: self.snapshot).of)
        self.sweeper, self.verifier = self.made()
        self.other, self.other_verifier = self.made()

    def made(self) -> tuple[Sweeper, Verifier]:
        telemetry: Any = self.heard
        verifier = Verifier(lambda: self.snapshot, self.store.approvals, self.bank, telemetry, self.clock, SystemIds(self.clock))
        upkeep = Upkeep(self.store.approvals, self.store.outbox, Notices(lambda: self.snapshot), verifier, self.changed)
        return Sweeper(lambda: self.snapshot, upkeep, telemetry, self.clock), verifier

    async def changed(self) -> None:
        self.told += 1

    async def sweep(self, seconds: float = 0.0) -> None:
        """Time passes, and one sweep comes to its end."""
        self.clock.s += seconds
        await self.sweeper.sweep()
        await asyncio.wait_for(self.verifier.idle(), SOON_S)

    async def open(self, **changed: Any) -> Ticket:
        return await self.store.approvals.open(replace(TICKET, **changed), bounds=Bounds(100))

    async def lost(self, **changed: Any) -> Ticket:
        """A ticket whose call was sent, and nobody knows what came of it."""
        ticket = await self.open(**changed)
        approvals, now_ns = self.store.approvals, self.clock.now_ns()
        voter = Voter("ann", roles=("finance",))
        await approvals.vote(ticket.id, Vote(voter, "approve", ticket.digest, now_ns, places=((ticket.demands[0].key, 0),)))
        assert await approvals.release(Claim(ticket.id, ticket.digest, 0), call_id="call_sent", keep=False, now_ns=now_ns)
        return await self._as_lost(ticket.id)

    async def _as_lost(self, ticket_id: str) -> Ticket:
        """As the death of the process that made the call leaves it."""
        def write(connection: Any) -> None:
            connection.execute("UPDATE approvals SET state = 'unknown', ended_ns = NULL WHERE id = ?", (ticket_id,))
            connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'approvals_generation'")

        await self.store._writer.write(Do(write))
        return await self.ticket(ticket_id)

    async def ticket(self, ticket_id: str = "apr_01") -> Ticket:
        ticket = await self.store.approvals.get(ticket_id)
        assert ticket is not None
        return ticket

    async def notices(self) -> list[tuple[str, str]]:
        rows = await self.store.outbox.list(100)
        return [(row["kind"], row["ticket"]) for row in reversed(rows)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = SqliteStore(tmp_path / "lockgate.db", "one")
    await store.start(now_ns=NOW_NS)
    channel = Channel("ops", EVENTS, Slack(Secret("https://chat.example"), {}, private=False), "https://gate.example")
    tools = {"bank.pay": SimpleNamespace(verify=verify()), "bank.status": SimpleNamespace(verify=None)}
    snapshot = SimpleNamespace(config=Config(), channels={"ops": channel}, tools=tools, bundle=SimpleNamespace(rules=(), digest="sha256:1"))
    made = Desk(store, HandClock(), Heard(), Bank(), snapshot)
    yield made
    await made.verifier.close()
    await made.other_verifier.close()
    await store.close()


async def test_what_nobody_has_decided_in_time_expires_and_that_is_told(desk):
    await desk.open()
    await desk.sweep(599)
    assert ((await desk.ticket()).state, desk.told) == (State.PENDING, 0)
    await desk.sweep(1)
    assert ((await desk.ticket()).state, desk.told, await desk.notices()) == (State.EXPIRED, 1, [("expired", "apr_01")])
    await desk.sweep(1)
    assert (desk.told, len(await desk.notices())) == (1, 1)


async def test_others_take_over_once_and_then_it_expires(desk):
    await desk.open(demands=(Demand("pay", (Stage(("role:finance",)),), escalate=("role:lead",)),))
    await desk.sweep(600)
    ticket = await desk.ticket()
    assert (ticket.state, ticket.demands[0].stages[0].approvers) == (State.PENDING, ("role:lead",))
    await desk.sweep(599)
    assert (await desk.ticket()).state is State.PENDING
    await desk.sweep(1)
    assert (await desk.ticket()).state is State.EXPIRED
    assert await desk.notices() == [("escalated", "apr_01"), ("expired", "apr_01")]
    assert desk.heard.now == [("apr_01", State.PENDING), ("apr_01", State.EXPIRED)]


async def test_two_processes_that_sweep_together_tell_once(desk):
    await desk.open()
    desk.clock.s += 600
    await asyncio.gather(desk.sweeper.sweep(), desk.other.sweep())
    assert (desk.told, await desk.notices()) == (1, [("expired", "apr_01")])
    assert desk.heard.now == [("apr_01", State.EXPIRED)]


async def test_how_many_wait_is_counted_when_something_has_changed(desk):
    for number in range(3):
        await desk.open(id=f"apr_{number}", presented=f"sha256:{number}")
    await desk.sweep()
    await desk.sweep()
    await desk.sweep(600)
    assert desk.heard.waiting == [3, 0]


async def test_an_action_that_happened_is_found_to_have(desk):
    await desk.lost()
    await desk.sweep()
    await desk.sweep(4)
    assert desk.bank.asked == [], "not before `after`"
    await desk.sweep(1)
    ticket = await desk.ticket()
    assert (ticket.state, ticket.reason) == (State.SUCCEEDED, "verified: it happened")
    assert ticket.result is not None
    assert b"bank.status says so." in ticket.result.body
    assert desk.heard.names == ["approval_verified"]
    assert await desk.notices() == [], "nobody has to be asked"
    history = await desk.store.approvals.history("apr_01")
    assert (history[-1]["event"], history[-1]["author"]) == ("succeed", "gateway")


async def test_the_read_is_made_for_whoever_asked_and_as_a_part_of_the_call(desk):
    await desk.lost()
    await desk.sweep()
    await desk.sweep(5)
    ((case, call),) = desk.bank.asked
    assert (call.route, call.operation, dict(call.body)) == ("bank.status", "tool", {"id": "p-7", "key": "apr_01"})
    assert (call.principal.id, call.principal.team, call.principal.roles, call.origin.session) == ("key_1", "finance", ("dev",), "s-1")
    assert case.decision is not None
    assert (case.decision.name, case.decision.rule, case.decision.bundle) == ("allow", None, "sha256:1")
    assert (case.part_of, list(case.labels), case.principal, case.call) == ("call_sent", ["verify"], call.principal, call)


async def test_an_action_that_did_not_happen_has_failed_once_every_read_says_so(desk):
    desk.bank.says = [{"status": "open"}]
    await desk.lost()
    await desk.sweep()
    for seconds, reads in ((5, 1), (29, 1), (1, 2), (30, 3)):
        assert (await desk.ticket()).state is State.UNKNOWN
        await desk.sweep(seconds)
        assert len(desk.bank.asked) == reads
    ticket = await desk.ticket()
    assert (ticket.state, ticket.reason, ticket.result) == (State.FAILED, "verified: it did not happen", None)
    assert await desk.notices() == []


async def test_what_shows_late_is_found_by_a_later_read(desk):
    desk.bank.says = [{"status": "open"}, 500, {"status": "paid"}]
    await desk.lost()
    for seconds in (0, 5, 30, 30):
        await desk.sweep(seconds)
    assert (await desk.ticket()).state is State.SUCCEEDED
    assert desk.heard.names == ["verify_unreadable", "approval_verified"]


@pytest.mark.parametrize("says", [None, 500, 404, {}, {"status": 7}, "a page", [1]])
async def test_where_the_answer_says_nothing_a_person_is_asked_once(desk, says):
    desk.bank.says = [says]
    desk.snapshot.tools["bank.pay"].verify = verify('result.status.startsWith("paid")')
    await desk.lost()
    for seconds in (0, 5, 30, 30, 1, 30, 30):
        await desk.sweep(seconds)
    assert (await desk.ticket()).state is State.UNKNOWN
    assert len(desk.bank.asked) == 3
    assert await desk.notices() == [("unknown", "apr_01")]
    assert desk.heard.names == ["verify_unreadable"] * 3


async def test_a_status_that_the_contract_looks_at_is_an_answer(desk):
    desk.bank.says = [404]
    desk.snapshot.tools["bank.pay"].verify = verify("status == 200", attempts=1)
    await desk.lost()
    await desk.sweep()
    await desk.sweep(5)
    assert (await desk.ticket()).state is State.FAILED


@pytest.mark.parametrize("changed", [{"shown": {"arguments": {"amount": 1}}}, {"tool": "bank.old"}])
async def test_what_cannot_be_asked_about_a_person_is_asked_about(desk, changed):
    desk.snapshot.tools["bank.old"] = SimpleNamespace(verify=None)
    await desk.lost(**changed)
    for seconds in (0, 5, 30, 30, 1):
        await desk.sweep(seconds)
    assert (desk.bank.asked, await desk.notices()) == ([], [("unknown", "apr_01")])


async def test_a_contract_whose_tool_is_gone_says_nothing(desk):
    await desk.lost()
    await desk.sweep()
    del desk.snapshot.tools["bank.status"]
    await desk.sweep(5)
    assert (await desk.ticket()).state is State.UNKNOWN
    assert desk.heard.events[0][1]["error"] == "the tool is not declared any more"


async def test_what_a_person_says_meanwhile_holds(desk):
    desk.bank.says = [{"status": "paid"}]
    desk.bank.go = asyncio.Event()
    await desk.lost()
    await desk.sweep()
    desk.clock.s += 5
    await desk.sweeper.sweep()
    await until(lambda: desk.bank.asked)
    await desk.store.approvals.happen("apr_01", Event.FAIL, now_ns=desk.clock.now_ns(), author="ann", reason="I looked")
    desk.bank.go.set()
    await asyncio.wait_for(desk.verifier.idle(), SOON_S)
    assert ((await desk.ticket()).state, (await desk.ticket()).reason) == (State.FAILED, "I looked")
    assert "approval_verified" not in desk.heard.names


async def test_a_read_that_is_cut_off_by_the_end_of_the_process_says_nothing(desk):
    desk.bank.go = asyncio.Event()
    await desk.lost()
    await desk.sweep()
    desk.clock.s += 5
    await desk.sweeper.sweep()
    await until(lambda: desk.bank.asked)
    await desk.verifier.close()
    assert ((await desk.ticket()).state, desk.heard.names) == (State.UNKNOWN, [])


async def test_a_ticket_that_is_settled_before_the_read_is_not_asked_about(desk):
    await desk.lost()
    await desk.sweep()
    lost = await desk.ticket()
    await desk.store.approvals.happen("apr_01", Event.SUCCEED, now_ns=desk.clock.now_ns(), author="ann")
    desk.clock.s += 5
    assert desk.verifier.round([lost]) == []
    await asyncio.wait_for(desk.verifier.idle(), SOON_S)
    assert desk.bank.asked == []


async def test_two_processes_find_it_out_and_one_of_them_says_it(desk):
    await desk.lost()
    for seconds in (0, 5):
        desk.clock.s += seconds
        await asyncio.gather(desk.sweeper.sweep(), desk.other.sweep())
        await asyncio.gather(desk.verifier.idle(), desk.other_verifier.idle())
    history = await desk.store.approvals.history("apr_01")
    assert [each["event"] for each in history].count("succeed") == 1 + 1  # and the one before it was lost
    assert desk.heard.names == ["approval_verified"]


async def test_reads_under_way_are_bounded_and_one_at_a_time_for_each_ticket(desk):
    desk.bank.go = asyncio.Event()
    for number in range(20):
        await desk.lost(id=f"apr_{number:02}", presented=f"sha256:{number}", digest=f"sha256:{number}")
    await desk.sweeper.sweep()
    for _ in range(3):
        desk.clock.s += 31
        await desk.sweeper.sweep()
    await until(lambda: len(desk.bank.asked) == 16)
    assert repr(desk.verifier) == "Verifier(20 searches, 16 reads)"
    desk.bank.go.set()
    await asyncio.wait_for(desk.verifier.idle(), SOON_S)
    await desk.sweep(1)
    assert len(desk.bank.asked) == 20
    await desk.sweep(1)
    assert repr(desk.verifier) == "Verifier(0 searches, 0 reads)"


async def test_a_store_that_fails_takes_no_try_and_a_defect_is_told(desk, monkeypatch):
    await desk.lost()
    await desk.sweep()
    get = desk.store.approvals.get

    async def fails(_ticket: str) -> Ticket:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(desk.store.approvals, "get", fails)
    for _ in range(5):
        await desk.sweep(30)
    monkeypatch.setattr(desk.store.approvals, "get", get)
    desk.bank.says = [ZeroDivisionError("a defect"), {"status": "paid"}]
    await desk.sweep(30)
    assert desk.heard.events[-1] == ("verify_failed", {"ticket": "apr_01", "error": "ZeroDivisionError: a defect"})
    await desk.sweep(30)
    assert (await desk.ticket()).state is State.SUCCEEDED


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)
