"""The life of an approval: its table, what votes amount to, and every step that a ticket may take."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from gateway.core.approval import (
    ENDED,
    OPEN,
    TABLE,
    WAITING,
    WAITS_FOR,
    Demand,
    Event,
    Grant,
    NotPossibleError,
    Result,
    Stage,
    Standing,
    State,
    Ticket,
    Verdict,
    Vote,
    Voter,
    after,
    diagram,
    escalated,
    standing,
    verdict_of,
)
from gateway.core.approval_steps import (
    ANSWERED,
    DELIVERED,
    DIED,
    ESCALATED,
    OPENED,
    RELEASED,
    STILL,
    TOLD,
    VOTED,
    Moved,
    answered,
    claimable,
    delivered,
    died,
    finished,
    happened,
    moved,
    opened,
    overdue,
    released,
    replaced,
    voted,
)

S = 1_000_000_000
NOW = 1_000 * S
DIGEST = "sha256:" + "a" * 64

TWO = Demand("big-payments", (Stage(("role:finance",), 2),), escalate=("role:cfo",))
STAGED = Demand("production", (Stage(("role:dev",)), Stage(("role:ops",), 2)))
OTHER = Demand("night", (Stage(),), denials=2)

# What stands in the issue of this product's design, said once more, event by event.
LIFE = {
    "approve": {"pending": "approved"},
    "deny": {"pending": "denied", "approved": "denied"},
    "expire": {"pending": "expired", "approved": "expired"},
    "withdraw": {"pending": "withdrawn", "approved": "withdrawn"},
    "strengthen": {"pending": "pending", "approved": "pending"},
    "claim": {"approved": "executing"},
    "return": {"executing": "approved"},
    "succeed": {"executing": "succeeded", "unknown": "succeeded"},
    "fail": {"executing": "failed", "unknown": "failed"},
    "lose": {"executing": "unknown"},
}


def ticket(**changes: Any) -> Ticket:
    made = Ticket(
        id="apr_1", kind="tool", mode="release", state=State.PENDING, digest=DIGEST, presented=DIGEST, principal="key1", call_id="call_1",
        rule="big-payments", message="Payments above 1,000 wait.", demands=(TWO,), shown={"tool": "pay"}, body=b"{}", origin={},
        shape="sha256:s", created_ns=NOW, expires_ns=NOW + 600 * S, owner="olga", patience_s=600.0, unexpired_s=60.0)
    return replace(made, **changes)


def vote(person: str, verdict: Verdict = "approve", *, demands: tuple[Demand, ...] = (TWO,), stage: int = 0, **changes: Any) -> Vote:
    made = Vote(Voter(person), verdict, DIGEST, NOW + S, f"says {person}", tuple((demand.key, stage) for demand in demands))
    return replace(made, **changes)


def state_after(change: Moved | None) -> State:
    assert change is not None
    return change.ticket.state


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_an_event_happens_where_the_table_has_it_and_nowhere_else(state: State, event: Event) -> None:
    there = LIFE[event].get(state)
    if there is None:
        with pytest.raises(NotPossibleError, match=f"The approval is {state}; it cannot {event}"):
            after(state, event)
    else:
        assert after(state, event) is State(there)
    assert (TABLE.get((state, event)) == there) is True


def test_what_has_ended_never_changes_again_and_everything_else_can_end() -> None:
    assert {state for state, _event in TABLE} == OPEN
    assert set(State) == OPEN | ENDED
    assert not OPEN & ENDED
    assert WAITING < OPEN
    reached = {State.PENDING}
    for _ in State:
        reached |= {to for (state, _event), to in TABLE.items() if state in reached}
    assert reached == set(State)


def test_only_an_approved_one_can_be_claimed_and_only_people_approve() -> None:
    """Whatever becomes executing was approved, and whatever becomes approved was pending or returned unsent."""
    assert {state for (state, _event), to in TABLE.items() if to is State.EXECUTING} == {State.APPROVED}
    assert {(state, event) for (state, event), to in TABLE.items() if to is State.APPROVED} == {
        (State.PENDING, Event.APPROVE), (State.EXECUTING, Event.RETURN)}


def test_the_diagram_has_every_arrow_of_the_table() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> pending"]
    arrows = set()
    for line in lines[2:]:
        start, _, rest = line.strip().partition(" --> ")
        end, _, events = rest.partition(": ")
        arrows |= {(start, event, end) for event in events.split(", ")} if events else {(start, "", end)}
    assert arrows == {(str(state), str(event), str(to)) for (state, event), to in TABLE.items()} | {(str(each), "", "[*]") for each in ENDED}


class TestVotes:
    """What they amount to."""

    def test_a_quorum_is_so_many_approvals_of_the_stage(self) -> None:
        assert standing(TWO, ()) == Standing(TWO, 0, 0)
        assert standing(TWO, [vote("ada")]) == Standing(TWO, 0, 1)
        assert standing(TWO, [vote("ada"), vote("bob")]) == Standing(TWO, None, 0)
        assert verdict_of([TWO], [vote("ada")]) is None
        assert verdict_of([TWO], [vote("ada"), vote("bob")]) is Event.APPROVE

    def test_a_stage_begins_when_the_one_before_is_met(self) -> None:
        first, second = vote("ada", demands=(STAGED,)), vote("bob", demands=(STAGED,), stage=1)
        assert standing(STAGED, [second]) == Standing(STAGED, 0, 0)
        assert standing(STAGED, [first]) == Standing(STAGED, 1, 0)
        assert standing(STAGED, [first, second]) == Standing(STAGED, 1, 1)
        assert standing(STAGED, [first, second, vote("eve", demands=(STAGED,), stage=1)]).stage is None

    def test_nobody_counts_for_two_stages_of_one_demand(self) -> None:
        both = vote("ada", places=((STAGED.key, 0), (STAGED.key, 1)))
        assert standing(STAGED, [both]) == Standing(STAGED, 1, 0)

    def test_every_demand_has_to_be_met(self) -> None:
        for_two = [vote("ada"), vote("bob")]
        assert verdict_of([TWO, OTHER], for_two) is None
        assert verdict_of([TWO, OTHER], [*for_two, vote("eve", demands=(OTHER,))]) is Event.APPROVE

    def test_one_denial_ends_it_unless_the_rule_says_otherwise(self) -> None:
        assert verdict_of([TWO], [vote("ada"), vote("bob"), vote("eve", "deny")]) is Event.DENY
        assert standing(OTHER, [vote("ada", "deny", demands=(OTHER,))]) == Standing(OTHER, 0, 0, denials=1)
        assert verdict_of([OTHER], [vote("ada", "deny", demands=(OTHER,))]) is None
        assert verdict_of([OTHER], [vote(each, "deny", demands=(OTHER,)) for each in ("ada", "bob")]) is Event.DENY

    def test_a_vote_counts_only_for_what_it_was_given_for(self) -> None:
        assert standing(TWO, [vote("ada", demands=(OTHER,)), vote("bob", stage=7)]) == Standing(TWO, 0, 0)

    def test_where_a_rule_asks_others_earlier_votes_do_not_count_for_it(self) -> None:
        changed = replace(TWO, stages=(Stage(("role:treasury",), 2),))
        assert changed.key != TWO.key
        assert replace(TWO, stages=(Stage(("role:finance",), 3),)).key == TWO.key
        assert verdict_of([changed], [vote("ada"), vote("bob")]) is None

    def test_what_nobody_demands_any_more_is_met(self) -> None:
        assert verdict_of((), ()) is Event.APPROVE
        assert ticket(demands=()).verdict is Event.APPROVE

    def test_others_take_over_where_the_rule_names_them(self) -> None:
        taken = escalated((TWO, OTHER))
        assert taken == (replace(TWO, stages=(Stage(("role:cfo",), 2),), escalate=()), OTHER)
        assert escalated((OTHER,)) is None
        assert escalated(taken or ()) is None


class TestVoting:
    """A vote on a ticket."""

    def test_the_vote_that_was_missing_approves_and_gives_the_ticket_its_time(self) -> None:
        one = voted(ticket(), vote("ada"))
        assert (one.ticket.state, [entry.event for entry in one.entries]) == (State.PENDING, [VOTED])
        assert (one.entries[0].author, one.entries[0].reason) == ("ada", "says ada")
        two = voted(one.ticket, vote("bob", at_ns=NOW + 5 * S))
        now = two.ticket
        assert (now.state, now.decided_ns, now.ended_ns, now.expires_ns) == (State.APPROVED, NOW + 5 * S, None, NOW + 65 * S)
        assert [(entry.event, entry.state, entry.author) for entry in two.entries] == [
            (VOTED, State.PENDING, "bob"), ("approve", State.APPROVED, "bob")]
        assert [each.voter.id for each in now.votes] == ["ada", "bob"]

    def test_a_denial_ends_it_with_the_comment_as_its_reason(self) -> None:
        now = voted(ticket(), vote("ada", "deny")).ticket
        assert (now.state, now.reason, now.decided_ns, now.ended_ns) == (State.DENIED, "says ada", NOW + S, NOW + S)

    @pytest.mark.parametrize(("changes", "cast", "why"), [
        ({"state": State.APPROVED}, vote("ada"), "is approved"),
        ({"state": State.DENIED}, vote("ada"), "is denied"),
        ({"expires_ns": NOW + S}, vote("ada"), "time to decide on this approval is over"),
        ({}, vote("ada", digest="sha256:other"), "another action"),
        ({}, vote("key1"), "asks for this action"),
        ({}, vote("olga"), "owns the key that does"),
        ({"votes": (vote("ada"),)}, vote("ada", "deny"), "has voted on this approval already"),
        ({}, vote("ada", places=()), "is not asked"),
        ({}, vote("ada", demands=(OTHER,)), "is not asked"),
        ({"demands": (TWO, OTHER)}, vote("ada", demands=(TWO, OTHER), stage=1), "is not asked"),
        ({"demands": (STAGED,)}, vote("ada", demands=(STAGED,), stage=1), "not at this stage"),
        ({"demands": (OTHER, TWO), "votes": (vote("bob", demands=(OTHER,)),)}, vote("ada", demands=(OTHER,)), "not at this stage"),
    ])
    def test_a_vote_that_may_not_be_is_refused(self, changes: dict[str, Any], cast: Vote, why: str) -> None:
        with pytest.raises(NotPossibleError, match=why):
            voted(ticket(**changes), cast)

    def test_nothing_is_granted_with_what_cannot_be_undone(self) -> None:
        assert voted(ticket(irreversible=True), vote("ada")).ticket.votes
        assert voted(ticket(), vote("ada"), grants=True).ticket.votes
        with pytest.raises(NotPossibleError, match="one by one"):
            voted(ticket(irreversible=True), vote("ada"), grants=True)


class TestTime:
    """What its passing does."""

    def test_before_its_end_and_after_its_claim_it_does_nothing(self) -> None:
        assert overdue(ticket(), NOW + 600 * S - 1) is None
        for state in set(State) - WAITING:
            assert overdue(ticket(state=state), NOW + 10_000 * S) is None

    def test_others_take_over_once_and_then_it_expires(self) -> None:
        first = overdue(ticket(), NOW + 600 * S)
        assert first is not None
        assert (first.ticket.state, first.ticket.expires_ns) == (State.PENDING, NOW + 1200 * S)
        assert first.ticket.demands[0].stages == (Stage(("role:cfo",), 2),)
        assert [(entry.event, TOLD[entry.event]) for entry in first.entries] == [(ESCALATED, "escalated")]
        again = overdue(first.ticket, NOW + 1200 * S)
        assert again is not None
        assert (again.ticket.state, again.ticket.ended_ns, again.ticket.reason) == (
            State.EXPIRED, NOW + 1200 * S, "Nobody decided in time.")
        assert [TOLD[entry.event] for entry in again.entries] == ["expired"]

    def test_what_was_approved_and_nobody_came_for_expires_and_is_never_approved_by_time(self) -> None:
        late = overdue(ticket(state=State.APPROVED), NOW + 600 * S)
        assert state_after(late) is State.EXPIRED
        assert late is not None
        assert "nobody came for it" in late.ticket.reason
        assert state_after(overdue(ticket(demands=(OTHER,)), NOW + 600 * S)) is State.EXPIRED


class TestEvents:
    """What is no vote and no claim."""

    @pytest.mark.parametrize(("event", "state", "to"), [
        (Event.WITHDRAW, State.PENDING, State.WITHDRAWN), (Event.DENY, State.APPROVED, State.DENIED),
        (Event.SUCCEED, State.UNKNOWN, State.SUCCEEDED), (Event.FAIL, State.EXECUTING, State.FAILED),
        (Event.EXPIRE, State.PENDING, State.EXPIRED),
    ])
    def test_an_event_leaves_its_author_and_its_reason(self, event: Event, state: State, to: State) -> None:
        change = happened(ticket(state=state), event, now_ns=NOW + 9 * S, author="ada", reason="so it is", fence=0)
        now = change.ticket
        assert (now.state, now.reason, now.ended_ns) == (to, "so it is", NOW + 9 * S)
        assert [(entry.event, entry.state, entry.at_ns, entry.author, entry.reason) for entry in change.entries] == [
            (event, to, NOW + 9 * S, "ada", "so it is")]

    def test_with_another_fence_it_does_not_happen(self) -> None:
        with pytest.raises(NotPossibleError, match="claimed once more"):
            happened(ticket(state=State.UNKNOWN, fence=2), Event.SUCCEED, now_ns=NOW, fence=1)

    @pytest.mark.parametrize("event", [Event.APPROVE, Event.CLAIM])
    def test_nobody_approves_or_claims_by_word_alone(self, event: Event) -> None:
        for state in State:
            with pytest.raises(NotPossibleError, match="people vote, and a call claims"):
                happened(ticket(state=state, demands=()), event, now_ns=NOW)

    def test_stronger_demands_ask_again_and_give_people_their_time(self) -> None:
        approved = ticket(state=State.APPROVED, votes=(vote("ada"), vote("bob")), decided_ns=NOW, expires_ns=NOW + 60 * S)
        now = happened(approved, Event.STRENGTHEN, now_ns=NOW + 5 * S, demands=[TWO, OTHER]).ticket
        assert (now.state, now.demands, now.decided_ns, now.expires_ns) == (State.PENDING, (TWO, OTHER), None, NOW + 605 * S)
        assert standing(TWO, now.votes).stage is None
        assert [demand.single for demand in (TWO, STAGED, OTHER)] == [False, False, True]
        pending = happened(ticket(), Event.STRENGTHEN, now_ns=NOW + 5 * S).ticket
        assert (pending.demands, pending.expires_ns) == ((TWO,), NOW + 600 * S)

    def test_votes_that_are_enough_for_new_demands_approve_at_once(self) -> None:
        """Else it would wait for a vote that nobody is asked for."""
        change = happened(ticket(votes=(vote("ada"),), demands=(TWO, OTHER)), Event.STRENGTHEN, now_ns=NOW, demands=[
            replace(TWO, stages=(Stage(("role:finance",), 1),))])
        assert change.ticket.state is State.APPROVED
        assert [entry.event for entry in change.entries] == ["strengthen", "approve"]

    def test_what_is_late_is_not_asked_again(self) -> None:
        with pytest.raises(NotPossibleError, match="time of this approval is over"):
            happened(ticket(), Event.STRENGTHEN, now_ns=NOW + 600 * S, demands=[])

    def test_an_edited_one_takes_the_place_of_one_that_waits(self) -> None:
        edited = ticket(id="apr_2", digest="sha256:new", edited_from="apr_1")
        change = replaced(ticket(), edited, author="ada", now_ns=NOW + S)
        assert (change.ticket.state, change.ticket.replaced_by) == (State.WITHDRAWN, "apr_2")
        for old in (ticket(state=State.APPROVED), ticket(expires_ns=NOW)):
            with pytest.raises(NotPossibleError, match="cannot be edited"):
                replaced(old, edited, author="ada", now_ns=NOW + S)
        for wrong in ({"edited_from": "apr_9"}, {"principal": "key2"}, {"presented": "sha256:new"}):
            with pytest.raises(NotPossibleError, match="of the same caller"):
                replaced(ticket(), ticket(**{"id": "apr_2", "edited_from": "apr_1", **wrong}), author="ada", now_ns=NOW + S)

    @pytest.mark.parametrize("changes", [{"state": State.APPROVED}, {"votes": (vote("ada"),)}, {"fence": 1}, {"result": Result(200, "", b"")}])
    def test_a_new_one_is_pending_and_nobody_has_decided_on_it(self, changes: dict[str, Any]) -> None:
        assert [entry.event for entry in opened(ticket()).entries] == [OPENED]
        with pytest.raises(NotPossibleError, match="cannot be opened"):
            opened(ticket(**changes))


class TestClaims:
    """What a call does with an approved one."""

    APPROVED = ticket(state=State.APPROVED, votes=(vote("ada"), vote("bob")), fence=3)
    CLAIMED = moved(APPROVED, Event.CLAIM, now_ns=NOW, call_id="call_9").ticket

    def test_it_is_claimed_as_what_it_was_looked_at_or_not_at_all(self) -> None:
        assert claimable(self.APPROVED, DIGEST, 3, NOW)
        assert not claimable(self.APPROVED, "sha256:other", 3, NOW)
        assert not claimable(self.APPROVED, DIGEST, 2, NOW)
        assert not claimable(self.APPROVED, DIGEST, 3, NOW + 600 * S)
        for state in set(State) - {State.APPROVED}:
            assert not claimable(replace(self.APPROVED, state=state), DIGEST, 3, NOW)

    def test_a_claim_raises_the_fence_and_names_the_call(self) -> None:
        assert (self.CLAIMED.state, self.CLAIMED.fence, self.CLAIMED.executed_by) == (State.EXECUTING, 4, "call_9")
        assert not claimable(self.CLAIMED, DIGEST, 4, NOW)

    def test_what_is_released_is_over_unless_the_call_is_still_to_come(self) -> None:
        gone = released(self.APPROVED, call_id="call_9", keep=False, now_ns=NOW)
        assert (gone.ticket.state, gone.ticket.fence, gone.ticket.executed_by, gone.ticket.ended_ns) == (State.SUCCEEDED, 4, "call_9", NOW)
        assert [entry.event for entry in gone.entries] == ["claim", "succeed"]
        stays = released(self.APPROVED, call_id="call_9", keep=True, now_ns=NOW)
        assert stays.ticket == self.APPROVED
        assert [entry.event for entry in stays.entries] == [RELEASED]

    def test_the_end_of_the_call_is_the_end_of_what_it_claimed(self) -> None:
        def ends(of: Ticket, event: Event, **changes: Any) -> State | None:
            asked = {"call_id": "call_9", "fence": 4, **changes}
            change = finished(of, event, now_ns=NOW + S, reason="r", **asked)
            return None if change is None else change.ticket.state

        assert ends(self.CLAIMED, Event.SUCCEED) is State.SUCCEEDED
        assert ends(self.CLAIMED, Event.FAIL) is State.FAILED
        assert ends(self.CLAIMED, Event.LOSE) is State.UNKNOWN
        assert ends(self.CLAIMED, Event.RETURN) is State.APPROVED
        assert ends(self.CLAIMED, Event.SUCCEED, fence=3) is None
        assert ends(self.CLAIMED, Event.SUCCEED, call_id="call_8") is None

    @pytest.mark.parametrize(("event", "to"), [(Event.SUCCEED, State.SUCCEEDED), (Event.FAIL, State.FAILED), (Event.LOSE, None), (Event.RETURN, None)])
    def test_what_is_known_late_of_one_that_counts_as_lost_is_taken(self, event: Event, to: State | None) -> None:
        lost = died(self.CLAIMED, call_id="call_9", fence=4, now_ns=NOW)
        assert lost is not None
        late = finished(lost.ticket, event, call_id="call_9", fence=4, now_ns=NOW, reason="")
        assert (late.ticket.state if late else None) is to

    def test_one_that_was_returned_is_not_ended_by_who_had_it(self) -> None:
        back = moved(self.CLAIMED, Event.RETURN, now_ns=NOW + S, reason="r").ticket
        assert (back.state, back.executed_by, back.fence, back.expires_ns) == (State.APPROVED, "", 4, self.CLAIMED.expires_ns), "its time is absolute"
        assert finished(back, Event.SUCCEED, call_id="call_9", fence=4, now_ns=NOW, reason="") is None
        again = moved(back, Event.CLAIM, now_ns=NOW + 2 * S, call_id="call_10").ticket
        assert finished(again, Event.FAIL, call_id="call_9", fence=4, now_ns=NOW, reason="") is None

    @pytest.mark.parametrize(("effect", "to"), [
        ("read", State.APPROVED), ("idempotent", State.APPROVED), ("model", State.FAILED), ("at_most_once", State.UNKNOWN),
        ("something new", State.UNKNOWN),
    ])
    def test_when_its_process_dies_the_contract_of_what_was_sent_says_what_is_left(self, effect: str, to: State) -> None:
        change = died(replace(self.CLAIMED, effect=effect), call_id="call_9", fence=4, now_ns=NOW)
        assert state_after(change) is to
        assert change is not None
        assert change.ticket.reason == DIED

    def test_a_death_ends_only_what_the_dead_had(self) -> None:
        assert died(self.CLAIMED, call_id="call_8", fence=4, now_ns=NOW) is None
        assert died(self.CLAIMED, call_id="call_9", fence=5, now_ns=NOW) is None
        assert died(replace(self.CLAIMED, state=State.SUCCEEDED), call_id="call_9", fence=4, now_ns=NOW) is None

    def test_a_result_is_delivered_once(self) -> None:
        once = delivered(self.CLAIMED, NOW + 7)
        assert once is not None
        assert (once.ticket.delivered_ns, [entry.event for entry in once.entries]) == (NOW + 7, [DELIVERED])
        assert delivered(once.ticket, NOW + 8) is None

    def test_what_came_of_it_may_wait_for_people_as_well(self) -> None:
        there = Result(200, "application/json", b"{}", {"X-Lockgate-Cost-Usd": "0"})
        done = replace(self.CLAIMED, state=State.SUCCEEDED, result=there)
        assert (done.next, done.answer, answered(done, NOW)) == ("", there, None)
        assert (self.CLAIMED.next, self.CLAIMED.answer, answered(self.CLAIMED, NOW)) == ("", None, None)
        waits = replace(done, result=Result(409, "", b"", {WAITS_FOR: "apr_2"}))
        assert (waits.next, waits.answer) == ("apr_2", None)
        change = answered(waits, NOW)
        assert change is not None
        assert (change.ticket, [(entry.event, entry.state) for entry in change.entries]) == (waits, [(ANSWERED, State.SUCCEEDED)])


def test_what_leaves_the_state_as_it_is_is_no_event_of_the_table() -> None:
    assert not {*STILL, OPENED} & {event.value for event in Event}
    assert {VOTED, ESCALATED, RELEASED, DELIVERED, ANSWERED} == STILL


@pytest.mark.parametrize(("changes", "live"), [
    ({}, True), ({"uses": 1}, True), ({"uses": 0}, False), ({"revoked_ns": 1}, False), ({"expires_ns": NOW}, False),
])
def test_a_grant_lasts_until_it_is_used_up_revoked_or_over(changes: dict[str, Any], live: bool) -> None:  # noqa: FBT001 - a column
    grant = Grant("grt_1", "big-payments", "key1", "true", "ada", NOW, NOW + S)
    assert replace(grant, **changes).live(NOW) is live
