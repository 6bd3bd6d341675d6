"""Approved calls that the gateway makes by itself: one that cannot begin is left alone for a while, and keeps no other one waiting."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.approvals.performing import Performing
from gateway.core.approval import Demand, Result, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.store.memory import MemoryStore

NOW_NS = 1_790_000_000_000_000_000
DEMAND = Demand("pay", (Stage(),))


class HandClock:
    """Time that passes when somebody says so."""

    s = 1000.0

    def now_ns(self) -> int:
        return NOW_NS

    def monotonic(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@dataclass
class House:
    """Approved tickets of which none can begin; `tried` are those that were, since it was last asked."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore("one"))
    clock: HandClock = field(default_factory=HandClock)
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        telemetry: Any = None  # nothing fails here
        self.performing = Performing(self.store.approvals, self.perform, self.refresh, telemetry, self.clock)

    async def perform(self, ticket: Ticket) -> Result:
        self.made.append(ticket.id)
        return Result(503, "application/json", b"{}")

    async def refresh(self) -> None:
        await asyncio.sleep(0)

    async def approve(self, number: int) -> str:
        name = f"{number:03}"
        ticket = Ticket(
            id=f"apr_{name}", kind="tool", mode="execute", state=State.PENDING, digest=f"sha256:{name}", presented=f"sha256:{name}", principal="key_1",
            call_id="call_1", rule="pay", message="", demands=(DEMAND,), shown={}, body=b"{}", origin={}, shape="", created_ns=NOW_NS,
            expires_ns=NOW_NS + 10**12, unexpired_s=3600.0)
        await self.store.approvals.open(ticket, bounds=Bounds(100))
        vote = Vote(Voter("ann"), "approve", ticket.digest, NOW_NS, places=((DEMAND.key, 0),))
        assert (await self.store.approvals.vote(ticket.id, vote)).state is State.APPROVED
        return ticket.id

    async def tried(self, after_s: float = 0.0) -> list[str]:
        self.clock.s += after_s
        await self.performing.catch_up()
        await self.performing.close(20)
        made, self.made = self.made, []
        return made


@pytest.fixture
def house() -> House:
    return House()


async def test_a_page_of_calls_that_cannot_begin_does_not_starve_those_behind_it(house):
    tickets = [await house.approve(number) for number in range(60)]
    assert await house.tried() == tickets[:50]
    assert await house.tried() == tickets[50:]
    assert await house.tried(9) == []  # from the beginning, and they are left alone


async def test_what_cannot_begin_is_tried_less_and_less_often(house):
    tickets = [await house.approve(1)]
    assert [await house.tried(after_s) for after_s in (0, 9, 1, 19, 1, 39, 1)] == [tickets, [], tickets, [], tickets, [], tickets]
