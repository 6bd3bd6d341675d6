"""What operators and programs change of sessions: what makes no sense is refused with why, and with a killed session go its approvals."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.budgets import BudgetError
from gateway.core.approval import Demand, Event, NotPossibleError, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.session import SessionKey
from gateway.session_changes import SessionChangeError, change_state, check_fact, check_key
from gateway.store.memory import MemoryStore
from gateway.store.session_protocol import SessionState

KEY = SessionKey("key_1", "s-1")
VIRTUAL_KEY = f"lgk_abcdefghijkl_{'s' * 32}"


def ticket(number: int, key: SessionKey = KEY, **changes: Any) -> Ticket:
    name = f"sha256:{number}"
    made = Ticket(f"apr_{number:04}", "request", "release", State.PENDING, name, name, key.principal, "call_1", "r", "", (Demand("r", (Stage(),)),),
                  {}, b"{}", {}, "sha256:s", number, 10**15, session=key.id)
    return replace(made, **changes)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("one")


async def said(store: MemoryStore, state: str, **more: Any) -> SessionState:
    return await change_state(store.session_desk, store.approvals, replace(SessionState(KEY, state, "ada", "", 5), **more))


async def test_with_a_killed_session_go_the_approvals_that_it_waits_for_or_has_not_used(store: MemoryStore) -> None:
    for number in range(1, 251):
        await store.approvals.open(ticket(number), bounds=Bounds(1000))
    others = [ticket(901, SessionKey("key_1", "s-2")), ticket(902, SessionKey("key_2", "s-1")), ticket(903, SessionKey("key_1", ""))]
    for each in others:
        await store.approvals.open(each, bounds=Bounds(1000))
    places = ((Demand("r", (Stage(),)).key, 0),)
    for number, verdict in ((1, "approve"), (2, "deny")):
        vote = Vote(Voter("bob"), verdict, f"sha256:{number}", 4, places=places)  # type: ignore[arg-type]
        assert (await store.approvals.vote(f"apr_{number:04}", vote)).state in (State.APPROVED, State.DENIED)
    told: list[tuple[str, State, str]] = []
    await change_state(store.session_desk, store.approvals, SessionState(KEY, "killed", "ada", "", 5),
                       withdrawn=lambda each, author: told.append((each.id, each.state, author)))
    assert sorted(told) == [(f"apr_{number:04}", State.WITHDRAWN, "ada") for number in range(1, 251) if number != 2]
    counts = await store.approvals.counts()
    assert (counts["withdrawn"], counts["denied"], counts["pending"]) == (249, 1, 3)
    one = await store.approvals.get("apr_0001")
    assert one is not None
    assert one.state is State.WITHDRAWN
    assert [told["author"] for told in await store.approvals.history("apr_0003")][-1] == "ada"


async def test_freezing_and_thawing_leave_approvals_to_people(store: MemoryStore) -> None:
    await store.approvals.open(ticket(1), bounds=Bounds(9))
    for state in ("frozen", "active"):
        await said(store, state)
    assert (await store.approvals.counts())["pending"] == 1


async def test_one_that_was_decided_in_this_moment_keeps_nobody_from_withdrawing_the_others(store: MemoryStore) -> None:
    for number in (1, 2):
        await store.approvals.open(ticket(number), bounds=Bounds(9))
    withdraw = store.approvals.happen

    async def happen(ticket_id: str, event: Event, **given: Any) -> Ticket:
        if ticket_id == "apr_0001":
            raise NotPossibleError("The approval is executing; it cannot withdraw.")
        return await withdraw(ticket_id, event, **given)

    store.approvals.happen = happen  # type: ignore[method-assign]
    await said(store, "killed")
    assert (await store.approvals.counts())["withdrawn"] == 1


async def test_killing_again_withdraws_what_has_come_since(store: MemoryStore) -> None:
    """A worker that had not heard of it yet may have held one more call."""
    await said(store, "killed")
    await store.approvals.open(ticket(1), bounds=Bounds(9))
    await said(store, "killed", author="bob")
    assert (await store.approvals.counts())["withdrawn"] == 1
    with pytest.raises(NotPossibleError):
        await said(store, "active")


@pytest.mark.parametrize("more", [{"author": ""}, {"author": "x" * 101}, {"author": VIRTUAL_KEY}, {"note": "x" * 501}, {"note": "\x1b[2J"}, {"note": VIRTUAL_KEY}])
async def test_who_and_why_must_be_fit_to_show(store: MemoryStore, more: dict[str, str]) -> None:
    with pytest.raises(BudgetError):
        await said(store, "frozen", **more)
    assert await store.session_desk.generation() == 0


@pytest.mark.parametrize("value", [None, True, 0, 2**63 - 1, -(2**63), 1.5, "", "é\U0001f600", [], {}, {"a": [1, {"b": None}]}, "x" * 4094])
@pytest.mark.parametrize("name", ["a", "_", "tier", "A.b-c_9", "x" * 64])
def test_a_fact_is_any_json_value_under_a_name(name: str, value: Any) -> None:
    check_fact(name, value)


@pytest.mark.parametrize(("name", "value", "key", "words"), [
    ("", 1, "name", "no fact's"), ("1a", 1, "name", "no fact's"), ("a b", 1, "name", "no fact's"), ("x" * 65, 1, "name", "no fact's"),
    ("é", 1, "name", "no fact's"), ("a", "x" * 4095, "value", "4097 bytes"), ("a", 2**63, "value", "whole number"),
    ("a", {"b": [2**64 - 1]}, "value", "whole number"), ("a", 2**70, "value", "64 bits"), ("a", "\ud800", "value", "a text that is none"),
    ("a", {"k": VIRTUAL_KEY}, "value", "virtual key"), ("a", {VIRTUAL_KEY: 1}, "value", "virtual key")])
def test_what_rules_could_not_read_or_nobody_may_see_is_no_fact(name: str, value: Any, key: str, words: str) -> None:
    with pytest.raises(SessionChangeError, match=words) as refused:
        check_fact(name, value)
    assert refused.value.key == key


@pytest.mark.parametrize("key", [KEY, SessionKey("anonymous", "x" * 200), SessionKey("https://id.example alice", "conv:~!/%")])
def test_what_a_caller_may_have_is_a_session(key: SessionKey) -> None:
    check_key(key)


@pytest.mark.parametrize(("key", "wrong"), [
    (SessionKey("k", ""), "id"), (SessionKey("k", "a b"), "id"), (SessionKey("k", "é"), "id"), (SessionKey("k", "x" * 201), "id"),
    (SessionKey("", "s"), "principal"), (SessionKey("k" * 301, "s"), "principal"), (SessionKey("k\n", "s"), "principal")])
def test_what_no_caller_can_have_is_none(key: SessionKey, wrong: str) -> None:
    with pytest.raises(SessionChangeError) as refused:
        check_key(key)
    assert refused.value.key == wrong
