"""What must hold in any database, as a list of queries that find where it does not. Reads only, also beside a running gateway."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from gateway.core.budget import MOST_NUSD
from gateway.store.bodies import unpack
from gateway.store.database import Connection
from gateway.store.doctor_approvals import APPROVAL_INVARIANTS, votes_approve
from gateway.store.invariants import Finding, Invariant
from gateway.store.library import sqlite3
from gateway.store.scrub import KEY_PATTERN

# A clock that is being corrected runs backwards a little; more than this is worth an operator's look.
CLOCK_TOLERANCE_NS: Final = 60_000_000_000

# How many rows of one broken invariant are shown; the rest is counted by running again once these are understood.
_MOST_ROWS: Final = 100


INVARIANTS: Final = (
    Invariant(
        "file-is-sound",
        "SELECT integrity_check AS problem FROM pragma_integrity_check WHERE integrity_check != 'ok'",
        "SQLite finds the file damaged: restore a backup, or recover what is left with `sqlite3 DB .recover`",
    ),
    Invariant(
        "references-hold",
        'SELECT "table", rowid AS row, parent FROM pragma_foreign_key_check',
        "a row names a call that is not there",
    ),
    Invariant(
        "attempt-has-its-call",
        "SELECT seq, n FROM attempts WHERE seq NOT IN (SELECT seq FROM calls) "
        "UNION ALL SELECT seq, n FROM dispatches WHERE seq NOT IN (SELECT seq FROM calls)",
        "something was sent upstream of which no call is on record",
    ),
    Invariant(
        "path-has-its-attempt",
        "SELECT paths.seq, paths.n, why FROM paths LEFT JOIN attempts USING (seq, n) WHERE attempts.seq IS NULL",
        "it is on record why an attempt was made, and not that it was made",
    ),
    Invariant(
        "further-attempts-say-why",
        "SELECT calls.id, attempts.n FROM attempts JOIN calls USING (seq) LEFT JOIN paths USING (seq, n) "
        "WHERE attempts.n > 1 AND attempts.cause != 'interrupted' AND coalesce(why, '') = '' "
        "AND attempts.seq >= (SELECT min(seq) FROM paths)",
        "a call was sent once more, and it is not on record why",
    ),
    Invariant(
        "outcome-has-its-call",
        "SELECT seq, outcome FROM outcomes WHERE seq NOT IN (SELECT seq FROM calls)",
        "a call ended that never began",
    ),
    Invariant(
        "call-is-recorded-once",
        "SELECT id, count(*) AS times FROM calls GROUP BY id HAVING count(*) > 1 "
        "UNION ALL SELECT calls.id, count(*) FROM outcomes JOIN calls USING (seq) GROUP BY calls.seq HAVING count(*) > 1",
        "a call has two records or two outcomes",
    ),
    Invariant(
        "ended-call-has-an-outcome",
        "SELECT calls.id FROM calls WHERE seq IN (SELECT seq FROM attempts) AND seq NOT IN (SELECT seq FROM outcomes)",
        "the end of an attempt is written together with the call's outcome, and here the outcome is missing",
    ),
    Invariant(
        "outcome-is-known",
        "SELECT calls.id, outcome FROM outcomes JOIN calls USING (seq) "
        "WHERE outcome NOT IN ('completed', 'refused', 'failed', 'withheld', 'cut', 'cancelled', 'interrupted')",
        "an outcome that no version of this schema writes",
    ),
    Invariant(
        "completed-means-succeeded",
        "SELECT calls.id FROM outcomes JOIN calls USING (seq) WHERE outcome = 'completed' "
        "AND NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.seq = calls.seq AND attempts.\"end\" = 'succeeded') "
        "AND (seq NOT IN (SELECT seq FROM call_approvals) OR (provider != '' "
        "AND NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.seq = calls.seq AND cause LIKE 'check:%')))",
        "the client was given an answer as complete, and no attempt delivered one, nor was it kept or let through under an approval",
    ),
    Invariant(
        "completed-means-allowed",
        "SELECT calls.id, decision FROM outcomes JOIN calls USING (seq) WHERE outcome = 'completed' "
        "AND (decision = 'deny' OR (decision = 'held' AND seq NOT IN (SELECT seq FROM call_approvals) "
        "AND calls.id NOT IN (SELECT call_id FROM grant_uses)))",
        "the client was given the answer to a call that neither the rules nor people let through",
    ),
    Invariant(
        "withheld-was-sent",
        "SELECT calls.id, provider FROM outcomes JOIN calls USING (seq) "
        "WHERE outcome = 'withheld' AND (provider = '' OR seq NOT IN (SELECT seq FROM attempts)) "
        "AND (provider != '' OR seq NOT IN (SELECT seq FROM call_approvals))",
        "an answer was kept from the client, and nothing was sent that could have been answered, nor was one kept for people",
    ),
    Invariant(
        "completed-has-no-error",
        "SELECT calls.id, code FROM outcomes JOIN calls USING (seq) WHERE outcome = 'completed' AND code != ''",
        "a call that completed carries an error code",
    ),
    Invariant(
        "cut-is-never-complete",
        "SELECT calls.id, attempts.n FROM attempts JOIN outcomes USING (seq) JOIN calls USING (seq) "
        "WHERE attempts.\"end\" = 'cut' AND outcome = 'completed' AND NOT EXISTS (SELECT 1 FROM paths "
        "WHERE paths.seq = attempts.seq AND paths.n > attempts.n AND why = 'continuation')",
        "a stream that broke was reported as complete",
    ),
    Invariant(
        "refused-was-not-sent",
        "SELECT calls.id, outcome, decision FROM calls LEFT JOIN outcomes USING (seq) "
        "WHERE (outcome = 'refused' OR decision = 'deny') AND (provider != '' OR seq IN (SELECT seq FROM attempts) "
        "OR seq IN (SELECT seq FROM dispatches))",
        "a call that was denied or refused was sent to a provider",
    ),
    Invariant(
        "sent-means-allowed",
        "SELECT calls.id, decision FROM calls WHERE decision NOT IN ('allow', 'held') "
        "AND (provider != '' OR seq IN (SELECT seq FROM attempts))",
        "a call left the gateway without a decision that allows it or has people allow it",
    ),
    Invariant(
        "sent-means-intended",
        "SELECT calls.id, attempts.n FROM attempts JOIN calls USING (seq) "
        "WHERE (n = 1 AND calls.provider = '') "
        "OR (n > 1 AND NOT EXISTS (SELECT 1 FROM dispatches WHERE dispatches.seq = attempts.seq AND dispatches.n = attempts.n))",
        "an attempt was made whose intent was not on disk first",
    ),
    Invariant(
        "refused-says-why",
        "SELECT calls.id FROM calls JOIN outcomes USING (seq) WHERE outcome = 'refused' AND code = ''",
        "a call was refused without an error code",
    ),
    Invariant(
        "attempts-are-numbered",
        "SELECT calls.id, count(*) AS attempts, max(n) AS last FROM attempts JOIN calls USING (seq) GROUP BY calls.seq "
        "HAVING min(n) != 1 OR max(n) > 2 * count(*)",  # a hedge whose intent could not be written leaves its number out
        "an attempt is missing: their numbers run from 1, and leave out fewer than there are",
    ),
    # The rule of `Progress.cost_nusd`: the known costs together, unknown where an attempt that delivered has no known cost, or where
    # all failed and one of them may have been billed.
    Invariant(
        "cost-adds-up",
        "SELECT calls.id, outcomes.cost_nusd AS call_nusd, sum(attempts.cost_nusd) AS attempts_nusd "
        "FROM outcomes JOIN calls USING (seq) LEFT JOIN attempts USING (seq) GROUP BY outcomes.seq "
        "HAVING outcomes.cost_nusd IS NOT CASE "
        "WHEN total(attempts.\"end\" != 'failed' AND attempts.cost_nusd IS NULL) > 0 THEN NULL "
        "WHEN total(attempts.\"end\" != 'failed') = 0 AND count(attempts.n) > count(attempts.cost_nusd) THEN NULL "
        "ELSE coalesce(sum(attempts.cost_nusd), 0) END AND NOT (outcome = 'interrupted' AND outcomes.cost_nusd IS sum(attempts.cost_nusd))",
        "the call's cost is not that of its attempts together",
    ),
    # Where calls were deleted by hand, its first one among them, a session remembers more than is on record.
    Invariant(
        "session-counts-its-calls",
        "WITH begun AS (SELECT key, session, count(*) AS times FROM calls JOIN sessions ON principal = key AND sessions.id = session "
        "WHERE seq >= first_seq AND provider != '' AND (seq NOT IN (SELECT seq FROM plans WHERE part_of != '') "
        "OR seq IN (SELECT seq FROM call_approvals WHERE fence > 0)) GROUP BY key, session) "
        "SELECT principal, id AS session, sessions.calls AS counted, coalesce(times, 0) AS on_record FROM sessions "
        "LEFT JOIN begun ON key = principal AND session = id "
        "WHERE counted < on_record OR (counted > on_record AND EXISTS (SELECT 1 FROM calls AS first WHERE first.seq = first_seq))",
        "a session has counted other calls than those that began in it",
    ),
    Invariant(
        "tool-use-has-its-call",
        "SELECT tool_uses.seq, n, tool_uses.session FROM tool_uses LEFT JOIN calls USING (seq) "
        "WHERE calls.seq IS NULL OR calls.key != principal OR calls.session != tool_uses.session",
        "a tool call is on record whose call is not, or is another principal's or session's",
    ),
    # Where old calls were deleted by hand, a balance holds more than is still on record, and never less.
    Invariant(
        "balance-adds-up",
        "WITH held AS (SELECT json_each.value AS id, reservations.seq, amount_nusd, settlements.cost_nusd AS cost "
        "FROM reservations LEFT JOIN settlements USING (seq) JOIN json_each(nullif(balances, ''))), "
        "sums AS (SELECT id, coalesce(sum(cost), 0) AS posted, coalesce(sum(amount_nusd) FILTER (WHERE cost IS NULL), 0) AS pending "
        "FROM held GROUP BY id), "
        "whole AS (SELECT (SELECT count(*) FROM calls) = (SELECT coalesce(max(seq), 0) FROM calls) AS journal) "
        "SELECT budget, subject, window_ns, posted_nusd, coalesce(posted, 0) AS settled_nusd, pending_nusd, "
        "coalesce(pending, 0) AS reserved_nusd FROM balances LEFT JOIN sums USING (id) "
        "WHERE pending_nusd != reserved_nusd OR posted_nusd < min(settled_nusd, :most_nusd) "
        "OR (posted_nusd > settled_nusd AND (SELECT journal FROM whole)) "
        "UNION ALL SELECT 'balance ' || id, '', 0, NULL, posted, NULL, pending FROM sums WHERE id NOT IN (SELECT id FROM balances)",
        "what is booked or set aside on an account is not what its reservations and settlements add up to",
    ),
    # `limit_nusd` is the limit under which money was last set aside; of a rolling window every step counts that is not yet over.
    Invariant(
        "spent-within-limit",
        "SELECT now.budget, now.subject, now.window_ns, sum(each.posted_nusd + each.pending_nusd) AS used_nusd, "
        "max(each.limit_nusd) AS limit_nusd, sum(each.over_nusd) AS over_nusd FROM balances AS now "
        "JOIN balances AS each ON each.budget = now.budget AND each.subject = now.subject AND each.span = now.span "
        "AND each.window_ns BETWEEN now.window_ns - iif(now.span GLOB 'rolling *', "
        "(CAST(substr(now.span, 9) AS INTEGER) * 1000000000 + 59) / 60 * 60, 0) AND now.window_ns "
        "WHERE now.limit_nusd IS NOT NULL GROUP BY now.id HAVING used_nusd > max(each.limit_nusd) + sum(each.over_nusd) "
        "AND total(each.limit_nusd IS NULL AND each.posted_nusd + each.pending_nusd > 0) = 0",
        "more was spent or set aside on an account than its limit, and no call cost more than was set aside for it",
    ),
    Invariant(
        "reservation-ends-with-its-call",
        "SELECT calls.id, outcome, how FROM calls LEFT JOIN outcomes USING (seq) LEFT JOIN settlements USING (seq) "
        "WHERE seq IN (SELECT seq FROM reservations) AND (outcome IS NULL) != (how IS NULL) "
        "UNION ALL SELECT calls.id, '', how FROM settlements JOIN calls USING (seq) WHERE seq NOT IN (SELECT seq FROM reservations)",
        "the money of a call is resolved in the transaction that ends it, and here only one of the two happened",
    ),
    Invariant(
        "settlement-equals-the-ledger",
        "SELECT calls.id, settlements.cost_nusd AS settled_nusd, coalesce(sum(ledger.cost_nusd), 0) AS ledger_nusd "
        "FROM settlements JOIN calls USING (seq) LEFT JOIN ledger USING (seq) GROUP BY settlements.seq HAVING settled_nusd != ledger_nusd",
        "a call was settled at another cost than that of its lines in the ledger",
    ),
    # Calls from before there was a ledger have no lines.
    Invariant(
        "cost-is-in-the-ledger",
        "SELECT calls.id, n, attempts.cost_nusd AS attempt_nusd, ledger.cost_nusd AS ledger_nusd FROM attempts JOIN calls USING (seq) "
        "LEFT JOIN ledger USING (seq, n) WHERE attempts.cost_nusd > 0 AND attempts.seq >= (SELECT min(seq) FROM ledger) "
        "AND ledger.cost_nusd IS NOT attempts.cost_nusd "
        "UNION ALL SELECT calls.id, n, attempts.cost_nusd, ledger.cost_nusd FROM ledger JOIN calls USING (seq) "
        "LEFT JOIN attempts USING (seq, n) WHERE n > 0 AND coalesce(attempts.cost_nusd, 0) = 0",
        "what an attempt cost and its line in the ledger are not the same",
    ),
    Invariant(
        "times-are-in-order",
        "SELECT calls.id, received_ns, ended_ns, NULL AS n FROM calls JOIN outcomes USING (seq) "
        "WHERE ended_ns < received_ns - :tolerance_ns "
        "UNION ALL SELECT calls.id, attempts.started_ns, attempts.ended_ns, n FROM attempts JOIN calls USING (seq) "
        "WHERE attempts.ended_ns < attempts.started_ns - :tolerance_ns OR attempts.started_ns < received_ns - :tolerance_ns "
        "OR attempts.first_byte_ns < attempts.started_ns - :tolerance_ns",
        "something ended more than a minute before it began: the machine's clock was set back, or the row is wrong",
    ),
    Invariant(
        "no-key-in-any-row",
        "SELECT 'calls' AS place, id FROM calls WHERE holds_key(id, key, name, team, org, route, session, run, step, tags, traceparent, "
        "rule, labels, bundle, reasons, provider, model) "
        "UNION ALL SELECT 'outcomes', id FROM outcomes JOIN calls USING (seq) "
        "WHERE holds_key(outcomes.code, outcomes.message, outcomes.finish_reasons) "
        "UNION ALL SELECT 'attempts', id FROM attempts JOIN calls USING (seq) "
        "WHERE holds_key(attempts.provider, attempts.model, attempts.cause, attempts.message) "
        "UNION ALL SELECT 'dispatches', id FROM dispatches JOIN calls USING (seq) "
        "WHERE holds_key(dispatches.provider, dispatches.model) "
        "UNION ALL SELECT 'verdicts', id FROM verdicts JOIN calls USING (seq) WHERE holds_key(verdicts.verdicts, verdicts.labels) "
        "UNION ALL SELECT 'plans', id FROM plans JOIN calls USING (seq) WHERE holds_key(plan, part_of) "
        "UNION ALL SELECT 'paths', id FROM paths JOIN calls USING (seq) WHERE holds_key(why, breaker) "
        "UNION ALL SELECT 'tool_uses', id FROM tool_uses JOIN calls USING (seq) "
        "WHERE holds_key(tool_uses.session, tool_call_id, tool_uses.name, args) "
        "UNION ALL SELECT 'tool_results', id FROM tool_results JOIN calls ON calls.seq = use_seq WHERE holds_key(tool_call_id, text) "
        "UNION ALL SELECT 'sessions', id FROM sessions WHERE holds_key(id, labels) "
        "UNION ALL SELECT 'turns', session FROM turns WHERE holds_key(session, holder) "
        "UNION ALL SELECT 'keys', id FROM keys WHERE holds_key(id, name, team, org, roles, routes) "
        "UNION ALL SELECT 'budget_changes', id FROM budget_changes WHERE holds_key(author, name, subject, budget, note) "
        "UNION ALL SELECT 'balances', id FROM balances WHERE holds_key(budget, subject) "
        "UNION ALL SELECT 'settlements', id FROM settlements JOIN calls USING (seq) WHERE holds_key(author) "
        "UNION ALL SELECT 'ledger', id FROM ledger JOIN calls USING (seq) WHERE holds_key(ledger.provider, ledger.model, prices) "
        "UNION ALL SELECT 'rates', rule FROM rates WHERE holds_key(rule, whose) "
        "UNION ALL SELECT 'breakers', target FROM breakers WHERE holds_key(target, permits, cause, author, note) "
        "UNION ALL SELECT 'people', id FROM people WHERE holds_key(id, name, roles, teams, email, subject) "
        "UNION ALL SELECT 'people_events', person FROM people_events WHERE holds_key(person, author, detail)",
        "a virtual key or API token stands in clear text: stop it (`lockgate keys revoke`, `lockgate people token`), then remove the row",
    ),
    Invariant(
        "no-key-in-any-body",
        "SELECT 'request' AS place, id FROM calls WHERE body_holds_key(request_encoding, request) "
        "UNION ALL SELECT 'response', id FROM outcomes JOIN calls USING (seq) WHERE body_holds_key(response_encoding, response) "
        "UNION ALL SELECT 'bundle', digest FROM bundles WHERE body_holds_key(encoding, content)",
        "a virtual key stands in a stored body or bundle: revoke it (`lockgate keys revoke`), then remove the row",
    ),
    Invariant(
        "bodies-can-be-read",
        "SELECT 'request' AS place, id FROM calls WHERE body_is_damaged(request_encoding, request) "
        "UNION ALL SELECT 'response', id FROM outcomes JOIN calls USING (seq) WHERE body_is_damaged(response_encoding, response) "
        "UNION ALL SELECT 'bundle', digest FROM bundles WHERE body_is_damaged(encoding, content)",
        "a stored body or bundle cannot be unpacked",
    ),
    Invariant(
        "calls-of-dead-processes",
        "SELECT calls.id, coalesce(owners.name, 'process ' || owner) AS process, received_ns FROM calls "
        "LEFT JOIN owners ON owners.id = calls.owner "
        "WHERE seq NOT IN (SELECT seq FROM outcomes) AND (owners.id IS NULL OR owners.lease_ns < :now_ns)",
        "these calls were open when their process died; the next gateway on this database closes them as `interrupted`",
        note=True,
    ),
    Invariant(
        "breaker-can-be-read",
        "SELECT target, state, permits FROM breakers WHERE NOT (permits = '' OR json_valid(permits)) "
        "OR state NOT IN ('closed', 'open', 'half_open', 'forced_open', 'forced_closed')",
        "a breaker that no version of this schema writes: it counts as closed until its next change, which puts the row right",
    ),
    Invariant(
        "breaker-keeps-to-its-state",
        "SELECT target, state, until_ns, permits FROM breakers WHERE (state = 'open') != (until_ns IS NOT NULL) "
        "OR (permits != '' AND state != 'half_open')",
        "only one that is open says until when, and only one that is half open has probes out",
    ),
    Invariant(
        "probes-past-their-time",
        "SELECT target, json_each.value ->> 0 AS holder, json_each.value ->> 2 AS ends_ns FROM breakers "
        "JOIN json_each(iif(json_valid(permits), permits, '[]')) WHERE ends_ns < :now_ns - :tolerance_ns",
        "the process of these probes died; the next call of the target takes their place",
        note=True,
    ),
    Invariant(
        "suspects",
        "SELECT calls.id, cost_nusd AS booked_nusd FROM settlements JOIN calls USING (seq) WHERE suspect = 1",
        "the process of these calls died, so they are booked at what was set aside; say what they cost with `lockgate budgets resolve`",
        note=True,
    ),
    *APPROVAL_INVARIANTS,
)


def examine(connection: Connection, *, now_ns: int, invariants: Iterable[Invariant] = INVARIANTS) -> Iterator[Finding]:
    """One finding for each invariant that does not hold and each note with something to say, as they are found.

    All queries see the database of one moment.
    """
    for name, arguments, function in (
        ("holds_key", -1, _holds_key), ("body_holds_key", 2, _body_holds_key), ("body_is_damaged", 2, _body_is_damaged),
        ("votes_approve", 2, votes_approve),
    ):
        connection.create_function(name, arguments, function, deterministic=True)
    connection.execute("BEGIN")
    try:
        for invariant in invariants:
            rows = _rows(connection, invariant.sql, now_ns)
            if rows:
                yield Finding(invariant, rows)
    finally:
        with suppress(sqlite3.Error):  # nothing was written; in a damaged file even the end of a transaction may fail
            connection.execute("ROLLBACK")


def _rows(connection: Connection, sql: str, now_ns: int) -> tuple[dict[str, Any], ...]:
    try:
        cursor = connection.execute(sql, {"now_ns": now_ns, "tolerance_ns": CLOCK_TOLERANCE_NS, "most_nusd": MOST_NUSD})
        found = cursor.fetchmany(_MOST_ROWS)
    except sqlite3.DatabaseError as error:  # a damaged page is a finding of every query that meets it
        return ({"problem": str(error)},)
    columns = [column[0] for column in cursor.description]
    return tuple(dict(zip(columns, row, strict=True)) for row in found)


_KEY: Final = re.compile(KEY_PATTERN)
_KEY_BYTES: Final = re.compile(KEY_PATTERN.encode())


def _holds_key(*texts: str) -> bool:
    return _KEY.search("\n".join(texts)) is not None


def _body_holds_key(encoding: str, data: bytes) -> bool:
    try:
        body = unpack(encoding, data)
    except ValueError:
        return False  # `bodies-can-be-read` tells of it
    return body is not None and _KEY_BYTES.search(body) is not None


def _body_is_damaged(encoding: str, data: bytes) -> bool:
    try:
        unpack(encoding, data)
    except ValueError:
        return True
    return False
