"""Notices leave the outbox once each, in order, whatever receivers do; what fails is tried again, for a day, and holds nobody else up."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gateway.core.approval import Event
from gateway.core.approval_bounds import Bounds
from gateway.errors import StoreUnavailable
from gateway.notify.channels import Channel
from gateway.notify.deliverer import Books, Deliverer
from gateway.notify.messages import notice_of
from gateway.notify.undelivered import UndeliveredError
from gateway.store.approvals_protocol import Notice

NOW_NS = 1_790_000_000_000_000_000
SOON_S = 20
DAY_S = 24 * 3600
REFUSED = UndeliveredError("connect", "no connection to https://hooks.example: nobody answers")


@dataclass
class Senders:
    """Receivers that do what a test says: `fails` by channel; those of `held` wait for `go`."""

    fails: dict[str, UndeliveredError] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    closed: bool = False

    async def send(self, notice: Notice, channel: Channel) -> None:
        self.sent.append((channel.name, notice.kind))
        self.ids.append(notice.id)
        self.now[channel.name] += 1
        self.most[channel.name] = max(self.most[channel.name], self.now[channel.name])
        try:
            if channel.name in self.held:
                await self.go.wait()
            if channel.name in self.fails:
                raise self.fails[channel.name]
        finally:
            self.now[channel.name] -= 1

    def close(self) -> None:
        self.closed = True


@dataclass
class Office:
    """Deliverers on one outbox, each as in a process of its own."""

    store: Any
    clock: Any
    ids: Any
    heard: Any
    channels: dict[str, Channel]
    senders: Senders = field(default_factory=Senders)
    made: list[Deliverer] = field(default_factory=list)

    def deliverer(self) -> Deliverer:
        senders: Any = self.senders
        one = Deliverer(lambda: self, Books(self.store.outbox, self.store.approvals), senders, telemetry=self.heard, clock=self.clock,
                        ids=self.ids, scrub=lambda text: text.replace("hunter2", "[secret]"))
        self.made.append(one)
        return one

    @property
    def bundle(self) -> Any:
        raise AssertionError("nobody asks for the rules here")

    @property
    def tools(self) -> Any:
        raise AssertionError("nobody asks for the tools here")

    async def add(self, *notices: Notice) -> None:
        await self.store.outbox.add(notices)

    async def rounds(self, deliverer: Deliverer | None = None) -> None:
        """One round to its end."""
        one = deliverer or (self.made[0] if self.made else self.deliverer())
        await one.round()
        await asyncio.wait_for(one.idle(), SOON_S)

    async def rows(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: dict(row) for row in await self.store.outbox.list(1000)}


@pytest.fixture
async def office(store, clock, ids, heard, hook, chat) -> AsyncIterator[Office]:
    made = Office(store, clock, ids, heard, {each.name: each for each in (hook(), chat(name="chat", hidden=True))})
    yield made
    made.senders.go.set()
    for deliverer in made.made:
        await deliverer.close(SOON_S)


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def notice(ticket, hook):
    """A notice to the channel `ops`, or to another; `at_s` seconds from now."""
    def make(kind: str = "opened", *, at_s: float = 0.0, channel: Channel | None = None, **changed: Any) -> Notice:
        return notice_of(ticket(**changed), kind, channel or hook(), NOW_NS + round(at_s * 1e9))
    return make


async def test_a_notice_is_delivered_once(office, notice):
    await office.add(notice())
    for _ in range(3):
        await office.rounds()
        office.clock.s += 1000
    assert office.senders.sent == [("ops", "opened")]
    assert office.heard.notices == [("ops", "delivered")]
    (row,) = (await office.rows()).values()
    assert (row["done_ns"] is not None, row["attempts"], row["error"]) == (True, 1, None)


async def test_a_notice_is_not_delivered_before_it_is_due(office, notice):
    await office.add(notice("escalated", at_s=60))
    await office.rounds()
    assert office.senders.sent == []
    office.clock.s += 60
    await office.rounds()
    assert office.senders.sent == [("ops", "escalated")]


async def test_what_fails_is_tried_again_with_the_same_id_after_longer_and_longer_pauses(office, notice):
    await office.add(notice())
    office.senders.fails["ops"] = REFUSED
    pauses, last_s = [], office.clock.s
    for _ in range(4000):
        count = len(office.senders.sent)
        await office.rounds()
        if len(office.senders.sent) > count:
            pauses.append(round(office.clock.s - last_s))
            last_s = office.clock.s
        office.clock.s += 1
    assert pauses == [0, 5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    assert len(set(office.senders.ids)) == 1
    del office.senders.fails["ops"]
    office.clock.s += 900
    await office.rounds()
    assert office.heard.notices == [("ops", "failed")] * 12 + [("ops", "delivered")]
    assert office.heard.events[0] == ("notice_not_delivered", {
        "channel": "ops", "notice": office.senders.ids[0], "ticket": "apr_01", "kind": "opened",
        "error": "connect: no connection to https://hooks.example: nobody answers"})


async def test_after_a_day_it_is_given_up_and_that_is_told(office, notice):
    await office.add(notice())
    office.senders.fails["ops"] = REFUSED
    while office.clock.s <= 1000 + DAY_S + 1000:
        await office.rounds()
        office.clock.s += 450
    tries = len(office.senders.sent)
    assert 90 < tries < 120
    assert office.heard.notices[-1] == ("ops", "dead")
    assert [name for name, _fields in office.heard.events].count("notice_given_up") == 1
    (row,) = (await office.rows()).values()
    assert (row["dead"], row["done_ns"], row["error"]) == (True, None, "connect: no connection to https://hooks.example: nobody answers")
    office.clock.s += DAY_S
    await office.rounds()
    assert len(office.senders.sent) == tries


async def test_a_receiver_that_asks_for_time_gets_it(office, notice):
    office.senders.fails["ops"] = UndeliveredError("status:429", "its receiver does not take it", 120.0)
    await office.add(notice(), notice(id="apr_02"))
    await office.rounds()
    office.clock.s += 119
    await office.rounds()
    assert len(office.senders.sent) == 1, "its other notices wait as well"
    office.clock.s += 1
    await office.rounds()
    assert len(office.senders.sent) == 2


async def test_a_channel_that_fails_holds_up_no_other(office, notice, chat):
    other = chat(name="chat", hidden=True)
    office.senders.fails["ops"] = REFUSED
    await office.add(*(notice(id=f"apr_{number}") for number in range(200)))
    await office.add(*(notice(channel=other, id=f"apr_{number}") for number in range(10)))
    for _ in range(5):
        await office.rounds()
    assert [name for name, _kind in office.senders.sent].count("chat") == 10
    assert [name for name, _kind in office.senders.sent].count("ops") <= 4, "one failure is enough to know"
    del office.senders.fails["ops"]
    office.clock.s += 5
    for _ in range(10):
        await office.rounds()
        office.clock.s += 1
    assert sum(row["done_ns"] is not None for row in (await office.rows()).values()) == 210


async def test_a_slow_channel_has_a_few_at_a_time_and_waits_for_nobody_elses(office, notice, chat):
    office.senders.held.add("ops")
    await office.add(*(notice(id=f"apr_{number}") for number in range(20)), notice(channel=chat(name="chat")))
    one = office.deliverer()
    await one.round()
    await until(lambda: office.senders.now["ops"] == 4 and ("chat", "opened") in office.senders.sent)
    office.senders.go.set()
    await asyncio.wait_for(one.idle(), SOON_S)
    assert office.senders.most["ops"] == 4
    assert len(set(office.senders.ids)) == 21
    assert repr(one) == "Deliverer(0 under way, 0 channels rest)"


async def test_a_process_takes_no_more_than_it_can_deliver(office, notice):
    office.senders.held.add("ops")
    await office.add(*(notice(id=f"apr_{number}") for number in range(150)))
    one = office.deliverer()
    await one.round()
    await one.round()
    assert sum(row["attempts"] for row in (await office.rows()).values()) == 64
    assert one.pause_s() < 0.1, "there is more"
    office.senders.go.set()
    for _ in range(3):
        await office.rounds(one)
    assert len(set(office.senders.ids)) == 150
    assert one.pause_s() == 1.0


async def test_of_one_ticket_a_channel_hears_in_order(office, notice):
    kinds = ["opened", "escalated", "decided", "expired"]
    for at_s, kind in enumerate(kinds):
        await office.add(notice(kind, at_s=at_s / 10))
    office.clock.s += 1
    await office.rounds()
    assert [kind for _name, kind in office.senders.sent] == kinds


async def test_behind_one_that_has_to_wait_those_of_its_ticket_wait_too(office, notice):
    await office.add(notice("opened"), notice("decided"))
    office.senders.fails["ops"] = REFUSED
    await office.rounds()
    assert office.senders.sent == [("ops", "opened")]
    del office.senders.fails["ops"]
    office.clock.s += 6
    await office.rounds()
    assert office.senders.sent == [("ops", "opened"), ("ops", "opened"), ("ops", "decided")]


async def test_several_processes_deliver_each_notice_once(office, notice):
    await office.add(*(notice(id=f"apr_{number}") for number in range(60)))
    deliverers = [office.deliverer() for _ in range(4)]
    await asyncio.gather(*(office.rounds(each) for each in deliverers))
    await asyncio.gather(*(office.rounds(each) for each in deliverers))
    assert Counter(Counter(office.senders.ids).values()) == {1: 60}


async def test_what_a_dead_process_has_taken_is_delivered_by_another_with_the_same_id(office, notice):
    await office.add(notice())
    office.senders.held.add("ops")
    first, second = office.deliverer(), office.deliverer()
    await first.round()
    await until(lambda: office.senders.now["ops"] == 1)
    await first.close(0)
    assert office.senders.closed
    await office.rounds(second)
    assert len(office.senders.sent) == 1, "its lease is not over"
    office.senders.go.set()
    office.clock.s += 121
    await office.rounds(second)
    assert office.senders.ids == [office.senders.ids[0]] * 2
    assert office.heard.notices == [("ops", "delivered")]


async def test_a_notice_whose_lease_is_nearly_over_is_left_to_others(office, notice):
    office.senders.held.add("ops")
    await office.add(*(notice(id=f"apr_{number}") for number in range(5)))
    one = office.deliverer()
    await one.round()
    await until(lambda: office.senders.now["ops"] == 4)
    office.clock.s += 100
    office.senders.go.set()
    await asyncio.wait_for(one.idle(), SOON_S)
    assert len(office.senders.sent) == 4
    office.clock.s += 21
    await office.rounds(one)
    assert len(set(office.senders.ids)) == 5


@pytest.mark.parametrize(("event", "told"), [(None, ["reminder"]), (Event.DENY, []), (Event.WITHDRAW, [])])
async def test_a_reminder_of_what_is_decided_is_dropped(office, notice, ticket, event, told):
    await office.store.approvals.open(ticket(), [notice("reminder", at_s=60)], bounds=Bounds(10))
    if event is not None:
        await office.store.approvals.happen("apr_01", event, now_ns=NOW_NS + 1)
    office.clock.s += 60
    await office.rounds()
    assert [kind for _name, kind in office.senders.sent] == told
    assert office.heard.notices == [("ops", "delivered" if told else "dropped")]
    assert all(row["done_ns"] for row in (await office.rows()).values())


async def test_a_reminder_of_a_ticket_that_is_gone_and_a_notice_to_a_channel_that_is_gone_are_dropped(office, notice, hook):
    await office.add(notice("reminder"), notice(channel=hook(name="gone")))
    await office.rounds()
    assert office.senders.sent == []
    assert sorted(office.heard.notices) == [("gone", "dropped"), ("ops", "dropped")]


async def test_of_a_receiver_whose_address_is_secret_no_word_is_kept(office, notice, chat):
    office.senders.fails["chat"] = UndeliveredError("connect", "no connection to https://T0B0token.chat.example: nobody answers")
    await office.add(notice(channel=chat(name="chat", hidden=True)))
    await office.rounds()
    assert office.heard.events[0][1]["error"] == "connect"
    (row,) = (await office.rows()).values()
    assert row["error"] == "connect"


async def test_what_a_receiver_says_is_kept_without_secrets_and_bounded(office, notice):
    office.senders.fails["ops"] = UndeliveredError("smtp:535", "hunter2 is wrong " + "x" * 1000)
    await office.add(notice())
    await office.rounds()
    (row,) = (await office.rows()).values()
    assert row["error"].startswith("smtp:535: [secret] is wrong xxx")
    assert len(row["error"]) == 300


async def test_a_store_that_fails_after_the_delivery_leads_to_another_one_with_the_same_id(office, notice, monkeypatch):
    """It cannot be known that it has arrived: at least once means that it is sent once more."""
    await office.add(notice())
    done = office.store.outbox.done

    async def fails(*_given: Any, **_named: Any) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(office.store.outbox, "done", fails)
    await office.rounds()
    monkeypatch.setattr(office.store.outbox, "done", done)
    office.clock.s += 121
    await office.rounds()
    assert office.senders.ids == [office.senders.ids[0]] * 2


async def test_a_defect_is_told_and_ends_nothing(office, notice):
    await office.add(replace(notice(), body={}), notice(id="apr_02"))
    office.senders.fails["ops"] = UndeliveredError("connect", "")
    await office.rounds()
    assert "delivery_failed" in [name for name, _fields in office.heard.events]
    assert repr(office.made[0]).startswith("Deliverer(0 under way")


async def test_a_try_has_an_end(office, notice, monkeypatch):
    monkeypatch.setattr("gateway.notify.deliverer._DEADLINE_S", 0.01)
    office.senders.held.add("ops")
    await office.add(notice())
    await office.rounds()
    assert office.heard.events[0][1]["error"] == "timeout:total: it was not delivered within 0.01 s"
