"""Approvals for the tests of stores. Loaded by path, since test folders are not packages."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.core.approval import Demand, Grant, Result, Stage, State, Ticket, Verdict, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.store.approvals_protocol import Claim, KeptAnswer, Notice, Unclaimed
from gateway.store.protocol import Admitted, Booked, Intent, Store

_spec = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("samples.py"))
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

NOW_NS: int = samples.NOW_NS
S = 1_000_000_000
KEY = "key000000001"  # whose calls those of `samples.py` are
TWO = Demand("big-payments", (Stage(("role:finance",), 2),))
ONE = Demand("any-payment", (Stage(),))
MOST = 100


def digest(n: int | str) -> str:
    return f"sha256:{n!s:0>64}"


def ticket(n: int, **changes: Any) -> Ticket:
    """A ticket that waits for one vote. Each number is another action."""
    made = Ticket(
        id=f"apr_{n:026d}", kind="tool", mode="release", state=State.PENDING, digest=digest(n), presented=digest(n), principal=KEY,
        call_id=f"call_{n:026d}", rule="any-payment", message="Payments wait for somebody.", demands=(ONE,),
        shown={"tool": "bank.pay", "arguments": {"amount": n, "large": 2**70}}, body=b'{"amount":%d}' % n, origin={"user": "ann"},
        shape="sha256:shape", created_ns=NOW_NS + n, expires_ns=NOW_NS + 600 * S, principal_name="ci", team="blue", owner="olga",
        route="pay", tool="bank.pay", session="s-1", patience_s=600.0, unexpired_s=60.0, notify=("ops",))
    return replace(made, **changes)


def vote(of: Ticket, person: str = "ada", verdict: Verdict = "approve", *, at_s: float = 1, stage: int = 0, **changes: Any) -> Vote:
    """A vote for every demand of a ticket."""
    voter = Voter(person, person.title(), ("finance",), ("blue",), "password", NOW_NS)
    made = Vote(voter, verdict, of.digest, at_ns(at_s), f"says {person}", tuple((demand.key, stage) for demand in of.demands))
    return replace(made, **changes)


def grant(n: int, **changes: Any) -> Grant:
    made = Grant(f"grt_{n:04d}", "any-payment", KEY, "args.amount < 10", "ada", NOW_NS + n, NOW_NS + 3600 * S, uses=2, tool="bank.pay",
                 note="small ones")
    return replace(made, **changes)


def notice(n: int, **changes: Any) -> Notice:
    return replace(Notice(f"ntc_{n:04d}", "ops", "opened", f"apr_{n:026d}", {"headline": f"number {n}"}, NOW_NS + n), **changes)


def told(ticket: Ticket, kind: str, at_ns: int) -> Sequence[Notice]:
    """What the gateway would tell: one notice for each channel."""
    return tuple(
        Notice(f"{ticket.id}.{kind}.{ticket.changed}.{channel}", channel, kind, ticket.id, {"state": str(ticket.state)}, at_ns)
        for channel in ticket.notify)


def kept(of: Ticket, **changes: Any) -> KeptAnswer:
    return replace(KeptAnswer(digest("asked"), of.principal, of.call_id, {"choices": [{"n": 2**70}]}, NOW_NS + 60 * S), **changes)


def at_ns(at_s: float) -> int:
    return NOW_NS + round(at_s * S)


class Desk:
    """A store's approvals, for tests: tickets and calls by number, times in seconds after `NOW_NS`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.approvals = store.approvals

    async def open(self, n: int, **changes: Any) -> Ticket:
        return await self.approvals.open(ticket(n, **changes), bounds=Bounds(MOST))

    async def approved(self, n: int, **changes: Any) -> Ticket:
        opened = await self.open(n, **changes)
        return await self.approvals.vote(opened.id, vote(opened))

    async def begin(self, n: int, of: Ticket | Claim | None = None, *, grants: tuple[str, ...] = (), at_s: float = 2,
                    **changes: Any) -> Admitted | Unclaimed:
        """A call that claims."""
        claim = claim_of(of) if isinstance(of, Ticket) else of
        record = samples.record(n, decision="held", approval=claim.ticket if claim else "", **changes)
        answer = await self.store.journal.begin(Intent(record, samples.TARGET, b"{}", claim=claim, grants=grants, now_ns=at_ns(at_s)))
        assert isinstance(answer, Admitted | Unclaimed)
        return answer

    async def end(self, n: int, of: Ticket, event: str, result: Result | None = None, **changes: Any) -> Booked:
        record = samples.completed(n, decision="held", approval=of.id, approval_end=event, **changes)
        return await self.store.journal.finish(record, response=None, result=result)

    async def get(self, of: Ticket | int) -> Ticket:
        found = await self.approvals.get(of.id if isinstance(of, Ticket) else f"apr_{of:026d}")
        assert found is not None
        return found

    async def state(self, of: Ticket | int) -> State:
        return (await self.get(of)).state

    async def events(self, of: Ticket | int) -> list[str]:
        return [row["event"] for row in await self.approvals.history(of.id if isinstance(of, Ticket) else f"apr_{of:026d}")]


def claim_of(ticket: Ticket) -> Claim:
    return Claim(ticket.id, ticket.digest, ticket.fence)
