"""What the journal does with approvals, in its own transactions: a call takes one with its intent, and says what came of it at its end.

Static SQL for the claim itself: it is one conditional statement, so that of any number of claimers one has it.
"""

from typing import Final

from gateway.call import CallRecord
from gateway.core.approval import Event, Result, State, after
from gateway.core.approval_steps import Entry, died, finished
from gateway.store.approvals_protocol import Claim, Notify
from gateway.store.approvals_sql import next_generation, ticket_at, write_entry, write_step
from gateway.store.database import Connection
from gateway.store.grants_sql import all_live, use_grants
from gateway.store.protocol import Intent
from gateway.store.rows import text

_CLAIMABLE: Final = "id = ? AND state = 'approved' AND digest = ? AND fence = ? AND expires_ns > ? AND principal = ?"
_LOOK: Final = f"SELECT 1 FROM approvals WHERE {_CLAIMABLE}"  # noqa: S608 - a constant
_CLAIM: Final = f"UPDATE approvals SET state = ?, fence = fence + 1, executed_by = ?, reason = '' WHERE {_CLAIMABLE}"  # noqa: S608
_SET_CHANGED: Final = "UPDATE approvals SET changed = ? WHERE id = ?"
_LINK: Final = """
INSERT INTO call_approvals (seq, ticket, fence) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET fence = excluded.fence WHERE excluded.fence > call_approvals.fence
"""
_FENCE: Final = "SELECT fence FROM call_approvals WHERE seq = ? AND ticket = ? AND fence > 0"
_CLAIMED: Final = "SELECT calls.id, ticket, fence FROM call_approvals JOIN calls USING (seq) WHERE seq = ? AND fence > 0"


def can_take(connection: Connection, intent: Intent) -> bool:
    """Whether the approval and the grants of an intent are to be had: not claimed, decided, expired, revoked or used up by now, and its own
    principal's. Changes nothing.
    """
    if not all_live(connection, intent.grants, principal=intent.record.principal.id, now_ns=intent.now_ns):
        return False
    return intent.claim is None or connection.execute(_LOOK, _asked(intent.claim, intent)).fetchone() is not None


def take(connection: Connection, intent: Intent) -> bool:
    """Take them, as the first change of the transaction; False, and nothing is changed, where the approval is not to be had."""
    if intent.claim is not None and not _claimed(connection, intent.claim, intent):
        return False
    use_grants(connection, intent.grants, call_id=intent.record.id, now_ns=intent.now_ns)
    return True


def _asked(claim: Claim, intent: Intent) -> tuple[str | int, ...]:
    return text(claim.ticket), text(claim.digest), claim.fence, intent.now_ns, text(intent.record.principal.id)


def _claimed(connection: Connection, claim: Claim, intent: Intent) -> bool:
    state, now_ns = after(State.APPROVED, Event.CLAIM), intent.now_ns
    ticket, call_id = text(claim.ticket), text(intent.record.id)
    if connection.execute(_CLAIM, (state.value, call_id, *_asked(claim, intent))).rowcount != 1:
        return False
    connection.execute(_SET_CHANGED, (next_generation(connection), ticket))
    write_entry(connection, ticket, Entry(Event.CLAIM, state, now_ns, call_id=call_id, fence=claim.fence + 1))
    return True


def link(connection: Connection, seq: int, record: CallRecord, claim: Claim | None = None) -> None:
    """Note which approval the call at `seq` has claimed, or waits for."""
    if claim is not None:
        connection.execute(_LINK, (seq, text(claim.ticket), claim.fence + 1))
    elif record.approval:
        connection.execute(_LINK, (seq, text(record.approval), 0))


def link_released(connection: Connection, call_id: str, ticket_id: str) -> None:
    """Note which approval something of a call's answer was released under, where the call is on record. It was not made under it."""
    row = connection.execute("SELECT seq FROM calls WHERE id = ?", (text(call_id),)).fetchone()
    if row is not None:
        connection.execute(_LINK, (row[0], text(ticket_id), 0))


def end(connection: Connection, seq: int, record: CallRecord, *, result: Result | None, notify: Notify) -> None:
    """Let `record.approval_end` happen to the approval that the call has claimed, where that is still possible."""
    row = connection.execute(_FENCE, (seq, text(record.approval))).fetchone()
    ticket = None if row is None else ticket_at(connection, record.approval)
    if row is None or ticket is None:
        return
    event, call_id = Event(record.approval_end), text(record.id)
    change = finished(ticket, event, call_id=call_id, fence=row[0], now_ns=record.ended_ns, reason=record.message)
    if change is not None:
        write_step(connection, change, notify=notify, result=result)


def abandon(connection: Connection, seq: int, *, now_ns: int, notify: Notify) -> None:
    """Let go of what the call at `seq` has claimed: its process is dead."""
    for call_id, ticket_id, fence in connection.execute(_CLAIMED, (seq,)).fetchall():
        ticket = ticket_at(connection, ticket_id)
        change = None if ticket is None else died(ticket, call_id=call_id, fence=fence, now_ns=now_ns)
        if change is not None:
            write_step(connection, change, notify=notify)
