"""What must hold of approvals in any database, as a list of queries that find where it does not."""

import json
from typing import Final

from gateway.core.approval import TABLE, Event, Vote, Voter, verdict_of
from gateway.core.approval_steps import OPENED, STILL
from gateway.store.approval_rows import demands_of, places_of
from gateway.store.invariants import Invariant

# The table of `core/approval.py` with the event that everything begins with: whatever is not in it cannot have happened.
_MOVES: Final = ", ".join([f"('', '{OPENED}', 'pending')", *(f"('{state}', '{event}', '{to}')" for (state, event), to in TABLE.items())])
_STILL: Final = ", ".join(f"'{event}'" for event in sorted(STILL))
_MET: Final = "('approved', 'executing', 'succeeded', 'failed', 'unknown')"

APPROVAL_INVARIANTS: Final = (
    Invariant(
        "approval-is-what-happened",
        "WITH steps AS (SELECT ticket, event, state, lag(state, 1, '') OVER (PARTITION BY ticket ORDER BY id) AS before "  # noqa: S608
        f"FROM approval_events), moves(before, event, state) AS (VALUES {_MOVES}), "
        "latest AS (SELECT ticket, state FROM approval_events WHERE id IN (SELECT max(id) FROM approval_events GROUP BY ticket)) "
        "SELECT ticket, event, before, state AS after FROM steps WHERE (before, event, state) NOT IN (SELECT * FROM moves) "
        f"AND NOT (before = state AND event IN ({_STILL})) "
        "UNION ALL SELECT approvals.id, '', coalesce(latest.state, ''), approvals.state FROM approvals "
        "LEFT JOIN latest ON latest.ticket = approvals.id WHERE latest.state IS NOT approvals.state",
        "an approval went a way that there is none, or is not in the state that its history ends in",
    ),
    Invariant(
        "queue-is-what-is-pending",
        "WITH each(principal, size) AS (SELECT principal, length(CAST(shown AS BLOB)) + length(CAST(origin AS BLOB)) + length(body) "
        "FROM approvals WHERE state = 'pending'), there(principal, n, bytes) AS (SELECT principal, count(*), sum(size) FROM each "
        "GROUP BY principal UNION ALL SELECT '', count(*), coalesce(sum(size), 0) FROM each) "
        "SELECT approval_queues.principal, pending, coalesce(n, 0), size, coalesce(bytes, 0) FROM approval_queues "
        "LEFT JOIN there USING (principal) WHERE (pending, size) IS NOT (coalesce(n, 0), coalesce(bytes, 0)) "
        "UNION ALL SELECT principal, 0, n, 0, bytes FROM there WHERE principal NOT IN (SELECT principal FROM approval_queues)",
        "what is counted as pending, in all (no principal) or of one caller, is not what is: bounds of `[approvals]` count wrongly",
    ),
    Invariant(
        "approval-is-claimed-once",
        "SELECT ticket, fence, call_id FROM (SELECT ticket, fence, call_id, event, "
        "lag(event, 1, '') OVER (PARTITION BY ticket ORDER BY id) AS before FROM approval_events "
        "WHERE event IN ('claim', 'return')) WHERE event = 'claim' AND before = 'claim' "
        "UNION ALL SELECT id, fence, executed_by FROM approvals "
        "WHERE fence != (SELECT count(*) FROM approval_events WHERE ticket = approvals.id AND event = 'claim') "
        "UNION ALL SELECT ticket, fence, '' FROM call_approvals WHERE fence > 0 GROUP BY ticket, fence HAVING count(*) > 1",
        "an approved action was taken twice, or by a call that is not on record, without having been returned in between",
    ),
    Invariant(
        "claim-is-its-calls",
        "SELECT calls.id, call_approvals.ticket, call_approvals.fence FROM call_approvals JOIN calls USING (seq) "
        "LEFT JOIN approvals ON approvals.id = ticket WHERE call_approvals.fence > 0 AND (approvals.principal IS NOT calls.key "
        "OR NOT EXISTS (SELECT 1 FROM approval_events AS happened WHERE happened.ticket = call_approvals.ticket "
        "AND happened.event = 'claim' AND happened.fence = call_approvals.fence AND happened.call_id = calls.id))",
        "a call was made under an approval that it has not claimed, or that is another principal's",
    ),
    Invariant(
        "approval-had-its-votes",
        f"SELECT id, state, rule FROM approvals WHERE state IN {_MET} AND NOT votes_approve(demands, "  # noqa: S608 - a constant
        "(SELECT coalesce(json_group_array(json_array(person, verdict, coalesce(nullif(places, ''), '[]'))), '[]') FROM approval_votes "
        "WHERE ticket = approvals.id))",
        "an action was approved, and the votes on record are not what its rules ask for",
    ),
    Invariant(
        "nobody-approves-their-own",
        "SELECT ticket, person FROM approval_votes JOIN approvals ON approvals.id = ticket WHERE person IN (principal, owner) "
        "OR (on_behalf_of != '' AND (person = on_behalf_of "
        "OR substr(person, 1, length(on_behalf_of) + 6) = 'oidc:' || on_behalf_of || '@'))",
        "somebody voted on what they asked for themselves, what a key of theirs did, or what was asked for on their behalf",
    ),
    Invariant(
        "votes-are-on-this-action",
        "SELECT ticket, person, approval_votes.digest AS shown, approvals.digest FROM approval_votes "
        "LEFT JOIN approvals ON approvals.id = ticket WHERE approvals.digest IS NOT approval_votes.digest",
        "a vote is on record for another action than the one that the approval is of",
    ),
    Invariant(
        "executing-has-its-call",
        "SELECT approvals.id, executed_by FROM approvals LEFT JOIN calls ON calls.id = executed_by LEFT JOIN outcomes USING (seq) "
        "WHERE state = 'executing' AND (calls.seq IS NULL OR outcome IS NOT NULL)",
        "an approved action counts as being done, and the call that does it is over or is not on record: nothing will end it",
    ),
    # What an approval or a grant let through is sent under a decision that held it.
    Invariant(
        "held-was-let-through",
        "SELECT calls.id, rule FROM calls WHERE decision = 'held' AND (provider != '' OR seq IN (SELECT seq FROM attempts) "
        "OR seq IN (SELECT seq FROM dispatches)) AND seq NOT IN (SELECT seq FROM call_approvals WHERE fence > 0) "
        "AND calls.id NOT IN (SELECT call_id FROM grant_uses)",
        "a call that rules held for people was sent to a provider, and nobody had approved or granted it",
    ),
    Invariant(
        "grant-is-used-as-often-as-it-says",
        "SELECT id, given, uses FROM grants WHERE uses < 0 "
        "OR uses IS NOT given - (SELECT count(*) FROM grant_uses WHERE grant_id = grants.id)",
        "a grant was used more often than it allows, or its uses are not all on record",
    ),
    Invariant(
        "edited-has-its-other-half",
        "SELECT old.id, old.replaced_by FROM approvals AS old LEFT JOIN approvals AS new ON new.id = old.replaced_by "
        "WHERE old.replaced_by != '' AND (old.state != 'withdrawn' OR new.edited_from IS NOT old.id)",
        "an approval was withdrawn for an edited one that does not know of it, or was not withdrawn",
    ),
    Invariant(
        "notice-has-its-approval",
        "SELECT id, channel, kind, ticket FROM outbox WHERE ticket NOT IN (SELECT id FROM approvals)",
        "people are told of an approval that is not on record",
    ),
    Invariant(
        "no-key-in-any-approval",
        "SELECT 'approvals' AS place, id FROM approvals WHERE holds_key(principal_name, team, on_behalf_of, owner, route, tool, session, "
        "rule, message, demands, notify, reason, executed_by) "
        "UNION ALL SELECT 'approval_votes', ticket FROM approval_votes WHERE holds_key(person, comment, voter, places) "
        "UNION ALL SELECT 'approval_events', ticket FROM approval_events WHERE holds_key(author, reason, call_id) "
        "UNION ALL SELECT 'approval_results', ticket FROM approval_results WHERE holds_key(content_type, headers) "
        "UNION ALL SELECT 'grants', id FROM grants WHERE holds_key(rule, session, tool, condition, author, note, revoked_by) "
        "UNION ALL SELECT 'outbox', id FROM outbox WHERE holds_key(channel, body, holder, error) "
        "UNION ALL SELECT 'session_states', id FROM session_states WHERE holds_key(id, author, note) "
        "UNION ALL SELECT 'session_facts', id FROM session_facts WHERE holds_key(id, name, value, author) "
        "UNION ALL SELECT 'session_events', id FROM session_events WHERE holds_key(id, author, detail) "
        "UNION ALL SELECT 'session_links', session FROM session_links WHERE holds_key(answer_id, session)",
        "a virtual key stands in clear text in what people see or say: revoke it (`lockgate keys revoke`), then remove the row",
    ),
    Invariant(
        "approvals-can-be-read",
        "SELECT id, 'body' AS place FROM approvals WHERE body_is_damaged(encoding, body) "
        "UNION ALL SELECT ticket, 'result' FROM approval_results WHERE body_is_damaged(encoding, body) "
        "UNION ALL SELECT call_id, 'kept answer' FROM kept_answers WHERE body_is_damaged(encoding, reply) "
        "UNION ALL SELECT id, 'columns' FROM approvals WHERE NOT (json_valid(shown) AND json_valid(origin) "
        "AND json_valid(coalesce(nullif(demands, ''), '[]')) AND json_valid(coalesce(nullif(patch, ''), '[]')))",
        "what is to be sent once it is approved, or what came of it, cannot be read any more",
    ),
    Invariant(
        "approvals-nobody-knows-the-end-of",
        "SELECT id, rule, executed_by, reason FROM approvals WHERE state = 'unknown'",
        "these actions were sent, and nobody knows what came of them: look there, and say so with `lockgate approvals resolve`",
        note=True,
    ),
    Invariant(
        "notices-not-delivered",
        "SELECT id, channel, kind, ticket, attempts, error FROM outbox WHERE done_ns IS NULL "
        "AND (dead = 1 OR due_ns < :now_ns - 3600 * 1000000000)",
        "people were not told of these approvals: the channel has failed for long, or no gateway runs",
        note=True,
    ),
)


def votes_approve(demands: str, votes: str) -> bool:
    """Whether votes, a JSON list of `[person, verdict, places]`, approve what demands ask for. Of what cannot be read, they do not."""
    try:
        cast = [Vote(Voter(person), verdict, "", 0, places=places_of(places)) for person, verdict, places in json.loads(votes)]
        return verdict_of(demands_of(demands), cast) is Event.APPROVE
    except (ValueError, TypeError, KeyError):
        return False
