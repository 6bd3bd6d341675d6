"""What every store keeps of how a call found its way. Inherit `PathConformance` and give it a `store` fixture: an open, empty store."""

from types import ModuleType
from typing import Any

from gateway.call import AttemptEnd, Origin
from gateway.session import SessionKey
from gateway.store.protocol import CallFilter, Store

PLAN = {"strategy": "priority", "order": [{"target": "alpha/small-1", "why": "first"}, {"target": "beta/large-2", "why": "second"}],
        "passed": [{"target": "gamma/tiny", "why": "open until its turn comes"}], "task": "code"}
PATH = ("why", "breaker", "retries_left", "largest_gap_s")


class PathConformance:
    """Plans, paths and parts, through the protocol alone."""

    async def test_a_further_attempt_says_why_it_was_made_and_what_it_met(self, store: Store, samples: ModuleType) -> None:
        tries = (
            samples.attempt(1, end=AttemptEnd.FAILED, cause="status:500", usage=None, cost_nusd=0, breaker="half_open"),
            samples.attempt(2, why="retry", waited_s=0.2, retries_left=0.0),
            samples.attempt(3, target=samples.OTHER, why="hedge", breaker="last_resort", retries_left=2.25, largest_gap_s=0.5),
        )
        call = await _ended(store, samples, attempts=tries)
        assert [tuple(tried[name] for name in PATH) for tried in call["attempts"]] == [
            (None, "half_open", None, None), ("retry", "closed", 0.0, None), ("hedge", "last_resort", 2.25, 0.5)]
        assert [tried["waited_s"] for tried in call["attempts"]] == [0.0, 0.2, 0.0]

    async def test_a_plain_call_was_made_at_a_target_that_was_well(self, store: Store, samples: ModuleType) -> None:
        call = await _ended(store, samples)
        assert [tuple(tried[name] for name in PATH) for tried in call["attempts"]] == [(None, "closed", None, None)]
        assert (call["plan"], call["parts"], call["part_of"]) == (None, [], None)

    async def test_nobody_knows_yet_what_an_attempt_under_way_meets(self, store: Store, samples: ModuleType) -> None:
        await store.journal.begin(samples.intent(1))
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert [tuple(tried[name] for name in PATH) for tried in call["attempts"]] == [(None, None, None, None)]

    async def test_the_plan_of_a_call_comes_back_as_it_was_made(self, store: Store, samples: ModuleType) -> None:
        assert (await _ended(store, samples, plan=PLAN))["plan"] == PLAN
        hostile = {**PLAN, "task": "\ud800'; DROP TABLE plans --"}
        await store.journal.refuse(samples.refused(2, plan=hostile), request=None)
        call = await store.journal.call(samples.call_id(2))
        assert call is not None
        assert call["plan"] == {**PLAN, "task": "?'; DROP TABLE plans --"}

    async def test_a_call_made_for_another_is_one_of_its_parts_from_its_beginning(self, store: Store, samples: ModuleType) -> None:
        """A mirror whose process dies is still known as one."""
        whole = samples.call_id(1)
        await store.journal.begin(samples.intent(2, part_of=whole))  # a classifier is asked before the call itself begins
        call = await store.journal.call(samples.call_id(2))
        assert call is not None
        assert (call["part_of"], call["outcome"]) == (whole, "open")
        await store.journal.begin(samples.intent(1))
        await store.journal.begin(samples.intent(3, part_of=whole))
        await store.journal.finish(samples.completed(3, part_of=whole, plan=PLAN), response=None)
        await store.journal.refuse(samples.refused(4, part_of=whole), request=None)
        call = await store.journal.call(whole)
        assert call is not None
        assert (call["parts"], call["part_of"]) == ([samples.call_id(n) for n in (2, 3, 4)], None)
        part = await store.journal.call(samples.call_id(3))
        assert part is not None
        assert (part["part_of"], part["plan"], part["parts"]) == (whole, PLAN, [])

    async def test_parts_are_listed_with_their_whole_and_apart(self, store: Store, samples: ModuleType) -> None:
        whole = samples.call_id(1)
        await _ended(store, samples, plan=PLAN)
        await store.journal.begin(samples.intent(2, part_of=whole))
        await store.journal.begin(samples.intent(3))

        async def ids(**wanted: Any) -> list[tuple[int, str | None]]:
            return [(int(row["id"][5:]), row["part_of"]) for row in await store.journal.calls(CallFilter(**wanted))]

        assert await ids() == [(3, None), (2, whole), (1, None)]
        assert await ids(part_of=whole) == [(2, whole)]
        assert await ids(part_of="") == [(3, None), (1, None)]
        assert await ids(part_of="call_unknown") == []

    async def test_nobody_decided_on_a_part(self, store: Store, samples: ModuleType) -> None:
        """What the gateway asks for itself went by no rule, so none decides it again."""
        await store.journal.begin(samples.intent(1))
        await store.journal.begin(samples.intent(2, part_of=samples.call_id(1)))
        assert [call.id for call in await store.journal.decided(0, None, 10)] == [samples.call_id(1)]

    async def test_a_session_pays_for_parts_and_does_not_count_them(self, store: Store, samples: ModuleType) -> None:
        of_it = {"origin": Origin(session="s-7")}
        await store.journal.begin(samples.intent(2, part_of=samples.call_id(1), **of_it))
        await store.journal.finish(samples.completed(2, part_of=samples.call_id(1), **of_it), response=None)
        facts = await store.sessions.facts(SessionKey("key000000001", "s-7"), frozenset(), now_ns=samples.NOW_NS)
        assert (facts.calls, facts.spend_nusd) == (0, 1500)
        await store.journal.begin(samples.intent(1, **of_it))
        await store.journal.finish(samples.completed(1, **of_it), response=None)
        facts = await store.sessions.facts(SessionKey("key000000001", "s-7"), frozenset(), now_ns=samples.NOW_NS)
        assert (facts.calls, facts.spend_nusd) == (1, 3000)


async def _ended(store: Store, samples: ModuleType, **changes: Any) -> Any:
    """Call 1, from its beginning to its end, as it is on record."""
    await store.journal.begin(samples.intent(1))
    for tried in changes.get("attempts", ())[1:]:
        await store.journal.dispatch(samples.dispatch(1, tried.n))
    await store.journal.finish(samples.completed(1, **changes), response=None)
    call = await store.journal.call(samples.call_id(1))
    assert call is not None
    return call
