"""The schema, as numbered migrations. A migration that has shipped is never edited: the next change is the next number.

The journal is append-only: `calls` and `dispatches` hold what was intended, `outcomes` and `attempts` what came of it, and no row
of the four is ever updated. Text is never NULL (absent is ''); a number is NULL where it is unknown.

A migration makes tables and touches none that may be large: adding a column to a STRICT table, or an index, reads all of it.
"""

from collections.abc import Callable, Iterable
from typing import Final

from sqlite_utils import Database, Migrations

SCHEMA_VERSION: Final = 6
APPLICATION_ID: Final = 0x4C4B4754  # "LKGT", what `file` and `PRAGMA application_id` show

_USAGE = """
    input_tokens INTEGER, output_tokens INTEGER, cache_read_tokens INTEGER, cache_write_tokens INTEGER,
    reasoning_tokens INTEGER, input_audio_tokens INTEGER, output_audio_tokens INTEGER, estimated INTEGER,
    cost_nusd INTEGER
"""

# Rows are found by `seq`: it fits in 64 bits, so a table is one b-tree that only grows at its right edge. Bodies stand in the row,
# last: a second table would be a second b-tree to write in every transaction.
_SCHEMA_1: Final = (
    """CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: rows of `calls` name a process by it
    name TEXT NOT NULL UNIQUE,
    started_ns INTEGER NOT NULL,
    lease_ns INTEGER NOT NULL,            -- the process counts as dead after this time
    floor INTEGER NOT NULL                -- no call below this seq is open
) STRICT""",
    """CREATE TABLE calls (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    key TEXT NOT NULL, name TEXT NOT NULL, team TEXT NOT NULL, org TEXT NOT NULL,
    dialect TEXT NOT NULL, operation TEXT NOT NULL, route TEXT NOT NULL, stream INTEGER NOT NULL,
    session TEXT NOT NULL, run TEXT NOT NULL, step TEXT NOT NULL, tags TEXT NOT NULL, traceparent TEXT NOT NULL,
    decision TEXT NOT NULL, rule TEXT NOT NULL, labels TEXT NOT NULL, bundle TEXT NOT NULL, reasons TEXT NOT NULL,
    provider TEXT NOT NULL, model TEXT NOT NULL, -- where attempt 1 was to go; '' where nothing was to be sent
    request_encoding TEXT NOT NULL, request BLOB NOT NULL
) STRICT""",
    """CREATE TABLE dispatches (
    seq INTEGER NOT NULL REFERENCES calls(seq), n INTEGER NOT NULL CHECK (n > 1),
    provider TEXT NOT NULL, model TEXT NOT NULL, started_ns INTEGER NOT NULL, waited_s REAL NOT NULL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE attempts (
    seq INTEGER NOT NULL REFERENCES calls(seq), n INTEGER NOT NULL,
    provider TEXT NOT NULL, model TEXT NOT NULL, started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL,
    "end" TEXT NOT NULL, cause TEXT NOT NULL, message TEXT NOT NULL, status INTEGER, first_byte_ns INTEGER,
    waited_s REAL NOT NULL, {_USAGE},
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE outcomes (
    seq INTEGER PRIMARY KEY REFERENCES calls(seq),
    ended_ns INTEGER NOT NULL,
    outcome TEXT NOT NULL, status INTEGER NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL,
    first_byte_ns INTEGER, finish_reasons TEXT NOT NULL, {_USAGE},
    response_encoding TEXT NOT NULL, response BLOB NOT NULL
) STRICT""",
    """CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, team TEXT NOT NULL, org TEXT NOT NULL,
    roles TEXT NOT NULL, routes TEXT NOT NULL, created_ns INTEGER NOT NULL, expires_ns INTEGER, revoked_ns INTEGER
) STRICT""",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    "INSERT INTO counters VALUES ('keys_generation', 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
)

# `verdicts` is what would be three more columns of `outcomes`; most calls need none of them.
_SCHEMA_2: Final = (
    """CREATE TABLE verdicts (
    seq INTEGER PRIMARY KEY REFERENCES calls(seq),
    withheld INTEGER NOT NULL,            -- whether one of them kept something from the client
    verdicts TEXT NOT NULL, labels TEXT NOT NULL
) STRICT""",
    """CREATE TABLE tool_uses (
    seq INTEGER NOT NULL REFERENCES calls(seq), n INTEGER NOT NULL,
    at_ns INTEGER NOT NULL, via TEXT NOT NULL, released INTEGER NOT NULL,
    principal TEXT NOT NULL, session TEXT NOT NULL, tool_call_id TEXT NOT NULL, name TEXT NOT NULL, args TEXT NOT NULL,
    UNIQUE (seq, n)
) STRICT""",
    # What rules ask of a session, answered from the index alone but for arguments and outcomes.
    "CREATE INDEX tool_uses_by_name ON tool_uses (principal, session, name, released, at_ns, seq, via)",
    "CREATE INDEX tool_uses_by_id ON tool_uses (principal, tool_call_id, released, session, seq) WHERE via = 'model'",
    """CREATE TABLE tool_results (
    use_seq INTEGER NOT NULL REFERENCES calls(seq), -- the call in whose answer the tool call was proposed
    tool_call_id TEXT NOT NULL,
    seq INTEGER NOT NULL,                           -- the call that brought the result
    at_ns INTEGER NOT NULL, text TEXT NOT NULL,
    UNIQUE (use_seq, tool_call_id)
) STRICT""",
    """CREATE TABLE sessions (
    principal TEXT NOT NULL, id TEXT NOT NULL,
    created_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    calls INTEGER NOT NULL, spend_nusd INTEGER NOT NULL, labels TEXT NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE turns (
    principal TEXT NOT NULL, session TEXT NOT NULL, holder TEXT NOT NULL, until_ns INTEGER NOT NULL,
    PRIMARY KEY (principal, session)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE bundles (
    digest TEXT PRIMARY KEY, first_ns INTEGER NOT NULL, encoding TEXT NOT NULL, content BLOB NOT NULL
) STRICT""",
    "PRAGMA user_version = 2",
)


# Money. `calls` says whose a line is; `reservations` which balances it is on. `balances` are sums of what stands below them, kept because
# a limit is compared with them in every call; `doctor` adds them up again.
_SCHEMA_3: Final = (
    """CREATE TABLE budget_changes (
    id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, author TEXT NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, subject TEXT NOT NULL, budget TEXT NOT NULL, -- JSON of a budget that was set, else ''
    limit_nusd INTEGER, soft_nusd INTEGER, until_ns INTEGER, note TEXT NOT NULL
) STRICT""",
    """CREATE TABLE balances (
    id INTEGER PRIMARY KEY,
    budget TEXT NOT NULL, subject TEXT NOT NULL, span TEXT NOT NULL, window_ns INTEGER NOT NULL,
    scope TEXT NOT NULL, ends_ns INTEGER,
    posted_nusd INTEGER NOT NULL, pending_nusd INTEGER NOT NULL,
    limit_nusd INTEGER,                   -- as it stood at the last reservation; NULL: none
    over_nusd INTEGER NOT NULL,           -- what calls cost beyond what was set aside for them
    UNIQUE (budget, subject, span, window_ns)
) STRICT""",
    """CREATE TABLE reservations (
    seq INTEGER PRIMARY KEY REFERENCES calls(seq),
    amount_nusd INTEGER NOT NULL, units INTEGER, -- tokens of the answer that were granted; NULL: no account limits it
    balances TEXT NOT NULL,               -- JSON list of ids, '' for none
    takes TEXT NOT NULL                   -- JSON list of rates to correct or give back, '' for none
) STRICT""",
    # A reservation without a settlement is unresolved.
    """CREATE TABLE settlements (
    seq INTEGER PRIMARY KEY REFERENCES calls(seq),
    at_ns INTEGER NOT NULL, cost_nusd INTEGER NOT NULL,
    how TEXT NOT NULL,                    -- settled, released (nothing was sent), recovered (its process died), resolved (by an operator)
    suspect INTEGER NOT NULL,             -- booked at the estimate; an operator has not yet said what it really was
    author TEXT NOT NULL
) STRICT""",
    "CREATE INDEX settlements_suspect ON settlements (seq) WHERE suspect = 1",
    """CREATE TABLE ledger (
    seq INTEGER NOT NULL REFERENCES calls(seq), n INTEGER NOT NULL, -- the attempt; 0: what an operator corrected
    at_ns INTEGER NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    cost_nusd INTEGER NOT NULL, estimated INTEGER NOT NULL, images INTEGER NOT NULL,
    prices TEXT NOT NULL,                 -- where the price comes from
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX ledger_by_time ON ledger (at_ns)",
    """CREATE TABLE rates (
    rule TEXT NOT NULL, whose TEXT NOT NULL, measure TEXT NOT NULL,
    value INTEGER NOT NULL,               -- when the bucket is empty again, in ns; of `concurrent` how many there are
    PRIMARY KEY (rule, whose, measure)
) STRICT, WITHOUT ROWID""",
    "PRAGMA user_version = 3",
)

# Routing. `paths` and `plans` are what would be more columns of `attempts` and `outcomes`; a call whose first attempt at a target that is
# well succeeds needs none of them.
_SCHEMA_4: Final = (
    """CREATE TABLE plans (
    seq INTEGER PRIMARY KEY REFERENCES calls(seq),
    plan TEXT NOT NULL,                   -- JSON, '' where there was nothing to choose
    part_of TEXT NOT NULL                 -- the id of the call that this one was made for, '' for a caller's own
) STRICT""",
    "CREATE INDEX plans_by_whole ON plans (part_of) WHERE part_of != ''",
    """CREATE TABLE paths (
    seq INTEGER NOT NULL REFERENCES calls(seq), n INTEGER NOT NULL,
    why TEXT NOT NULL, breaker TEXT NOT NULL, retries_left REAL, largest_gap_s REAL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE breakers (
    target TEXT PRIMARY KEY, state TEXT NOT NULL,
    changes INTEGER NOT NULL,             -- of its state
    since_ns INTEGER NOT NULL, until_ns INTEGER, cooling_ns INTEGER, -- until when it stays open, and until when it rests; NULL: neither
    trips INTEGER NOT NULL,               -- times in a row that it has opened
    succeeded INTEGER NOT NULL,           -- probes, since it is half open
    permits TEXT NOT NULL,                -- JSON: who probes, and how long and until when that counts
    cause TEXT NOT NULL, author TEXT NOT NULL, note TEXT NOT NULL,
    generation INTEGER NOT NULL           -- `breakers_generation` when it was written
) STRICT""",
    "INSERT INTO counters VALUES ('breakers_generation', 0)",
    "PRAGMA user_version = 4",
)

# Approvals, the people who decide, and what they say of sessions. `approvals` is what its votes and events amount to, kept because every
# presentation of an action looks it up; `doctor` adds them up again.
_SCHEMA_5: Final = (
    """CREATE TABLE approvals (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, mode TEXT NOT NULL, state TEXT NOT NULL,
    digest TEXT NOT NULL, presented TEXT NOT NULL, shape TEXT NOT NULL,
    principal TEXT NOT NULL, principal_name TEXT NOT NULL, team TEXT NOT NULL, on_behalf_of TEXT NOT NULL, owner TEXT NOT NULL,
    route TEXT NOT NULL, tool TEXT NOT NULL, session TEXT NOT NULL, call_id TEXT NOT NULL,
    rule TEXT NOT NULL, message TEXT NOT NULL,
    demands TEXT NOT NULL,                -- JSON
    effect TEXT NOT NULL, irreversible INTEGER NOT NULL, on_disconnect TEXT NOT NULL, notify TEXT NOT NULL, -- JSON
    patience_ns INTEGER NOT NULL, unexpired_ns INTEGER NOT NULL,
    created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, decided_ns INTEGER, ended_ns INTEGER, delivered_ns INTEGER,
    fence INTEGER NOT NULL, executed_by TEXT NOT NULL, reason TEXT NOT NULL,
    edited_from TEXT NOT NULL, replaced_by TEXT NOT NULL, patch TEXT NOT NULL, -- JSON, '' for none
    changed INTEGER NOT NULL,             -- `approvals_generation` when it was written
    shown TEXT NOT NULL, origin TEXT NOT NULL, -- JSON: the action as people see it, and what a call needs beside its body
    encoding TEXT NOT NULL, body BLOB NOT NULL
) STRICT""",
    "CREATE INDEX approvals_presented ON approvals (principal, presented)",
    # Whatever the code does, a caller's action has one approval of which something may still come.
    "CREATE UNIQUE INDEX approvals_open ON approvals (principal, presented) WHERE state IN ('pending', 'approved', 'executing', 'unknown')",
    "CREATE INDEX approvals_edited ON approvals (principal, digest) WHERE digest != presented",
    "CREATE INDEX approvals_due ON approvals (expires_ns) WHERE state IN ('pending', 'approved')",
    "CREATE INDEX approvals_by_state ON approvals (state, created_ns, id)",
    "CREATE INDEX approvals_by_time ON approvals (created_ns, id)",
    "CREATE INDEX approvals_pending ON approvals (principal) WHERE state = 'pending'",
    "CREATE INDEX approvals_by_change ON approvals (changed)",
    "CREATE INDEX approvals_by_session ON approvals (principal, session, created_ns) WHERE session != ''",
    "CREATE INDEX approvals_by_call ON approvals (call_id)",
    """CREATE TABLE approval_votes (           -- append-only
    ticket TEXT NOT NULL REFERENCES approvals(id), person TEXT NOT NULL, n INTEGER NOT NULL,
    at_ns INTEGER NOT NULL, verdict TEXT NOT NULL, digest TEXT NOT NULL, comment TEXT NOT NULL,
    voter TEXT NOT NULL, places TEXT NOT NULL, -- JSON
    PRIMARY KEY (ticket, person)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE approval_events (          -- append-only
    id INTEGER PRIMARY KEY, ticket TEXT NOT NULL REFERENCES approvals(id),
    at_ns INTEGER NOT NULL, event TEXT NOT NULL, state TEXT NOT NULL, fence INTEGER NOT NULL,
    author TEXT NOT NULL, reason TEXT NOT NULL, call_id TEXT NOT NULL
) STRICT""",
    "CREATE INDEX approval_events_by_ticket ON approval_events (ticket, id)",
    """CREATE TABLE approval_results (
    ticket TEXT PRIMARY KEY REFERENCES approvals(id), at_ns INTEGER NOT NULL,
    status INTEGER NOT NULL, content_type TEXT NOT NULL, headers TEXT NOT NULL, encoding TEXT NOT NULL, body BLOB NOT NULL
) STRICT""",
    "CREATE INDEX approval_results_by_time ON approval_results (at_ns)",
    """CREATE TABLE kept_answers (
    principal TEXT NOT NULL, presented TEXT NOT NULL, call_id TEXT NOT NULL, at_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL,
    encoding TEXT NOT NULL, reply BLOB NOT NULL,
    PRIMARY KEY (principal, presented)
) STRICT""",
    "CREATE INDEX kept_answers_by_end ON kept_answers (expires_ns)",
    # Which approval a call was made under, or waits for, and which grants it has used.
    """CREATE TABLE call_approvals (
    seq INTEGER NOT NULL REFERENCES calls(seq), ticket TEXT NOT NULL, fence INTEGER NOT NULL, -- 0: it waited for it
    PRIMARY KEY (seq, ticket)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX call_approvals_by_ticket ON call_approvals (ticket)",
    "CREATE UNIQUE INDEX call_approvals_claims ON call_approvals (ticket, fence) WHERE fence > 0",  # a claim is one call's
    """CREATE TABLE grants (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, demand TEXT NOT NULL, principal TEXT NOT NULL, session TEXT NOT NULL, tool TEXT NOT NULL,
    condition TEXT NOT NULL, author TEXT NOT NULL, ticket TEXT NOT NULL, note TEXT NOT NULL,
    created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL,
    given INTEGER, uses INTEGER,          -- how often it may be used, and how often still; NULL: any number of times
    revoked_ns INTEGER, revoked_by TEXT NOT NULL
) STRICT""",
    "CREATE INDEX grants_by_rule ON grants (rule, principal, created_ns, id)",
    """CREATE TABLE grant_uses (              -- append-only
    id INTEGER PRIMARY KEY, grant_id TEXT NOT NULL REFERENCES grants(id), call_id TEXT NOT NULL, at_ns INTEGER NOT NULL
) STRICT""",
    "CREATE INDEX grant_uses_by_grant ON grant_uses (grant_id)",
    "CREATE INDEX grant_uses_by_call ON grant_uses (call_id)",
    """CREATE TABLE outbox (
    id TEXT PRIMARY KEY, channel TEXT NOT NULL, kind TEXT NOT NULL, ticket TEXT NOT NULL, body TEXT NOT NULL, -- JSON
    due_ns INTEGER NOT NULL, holder TEXT NOT NULL, until_ns INTEGER NOT NULL, attempts INTEGER NOT NULL,
    done_ns INTEGER, dead INTEGER NOT NULL, error TEXT NOT NULL
) STRICT""",
    "CREATE INDEX outbox_due ON outbox (due_ns) WHERE done_ns IS NULL AND dead = 0",
    """CREATE TABLE people (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, permission TEXT NOT NULL, roles TEXT NOT NULL, teams TEXT NOT NULL, email TEXT NOT NULL,
    password TEXT NOT NULL, token BLOB NOT NULL, subject TEXT NOT NULL,
    created_ns INTEGER NOT NULL, disabled_ns INTEGER
) STRICT""",
    "CREATE UNIQUE INDEX people_by_token ON people (token) WHERE token != x''",
    "CREATE UNIQUE INDEX people_by_subject ON people (subject) WHERE subject != ''",
    """CREATE TABLE people_events (            -- append-only
    n INTEGER PRIMARY KEY, person TEXT NOT NULL, at_ns INTEGER NOT NULL, what TEXT NOT NULL, author TEXT NOT NULL, detail TEXT NOT NULL
) STRICT""",
    "CREATE INDEX people_events_by_person ON people_events (person, n)",
    """CREATE TABLE login_attempts (           -- `name` is a digest: who mistypes puts a password where a name belongs
    name BLOB PRIMARY KEY, tries INTEGER NOT NULL, at_ns INTEGER NOT NULL, locked_ns INTEGER
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX login_attempts_by_time ON login_attempts (at_ns)",
    """CREATE TABLE logins (
    id BLOB PRIMARY KEY, person TEXT NOT NULL, method TEXT NOT NULL, csrf TEXT NOT NULL,
    created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, roles TEXT, teams TEXT -- JSON
) STRICT""",
    "CREATE INDEX logins_by_person ON logins (person, created_ns)",
    "CREATE INDEX logins_by_end ON logins (expires_ns)",
    # Whose a virtual key is: they may not approve what it asks for.
    "CREATE TABLE key_owners (key TEXT PRIMARY KEY REFERENCES keys(id), owner TEXT NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE session_states (
    principal TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, author TEXT NOT NULL, note TEXT NOT NULL,
    at_ns INTEGER NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX session_states_by_change ON session_states (generation)",
    # Its calls in order of time, for the timeline: an index on `calls` would be read into being over every call that ever was.
    """CREATE TABLE session_calls (
    principal TEXT NOT NULL, id TEXT NOT NULL, at_ns INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (principal, id, at_ns, seq)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE session_facts (
    principal TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, -- JSON
    version INTEGER NOT NULL, author TEXT NOT NULL, at_ns INTEGER NOT NULL,
    PRIMARY KEY (principal, id, name)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE session_events (           -- append-only
    n INTEGER PRIMARY KEY, principal TEXT NOT NULL, id TEXT NOT NULL, at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, author TEXT NOT NULL, detail TEXT NOT NULL -- JSON
) STRICT""",
    "CREATE INDEX session_events_by_session ON session_events (principal, id, at_ns)",
    """CREATE TABLE session_links (
    principal TEXT NOT NULL, answer_id TEXT NOT NULL, session TEXT NOT NULL, at_ns INTEGER NOT NULL,
    PRIMARY KEY (principal, answer_id)
) STRICT, WITHOUT ROWID""",
    "INSERT INTO counters VALUES ('approvals_generation', 0)",
    "INSERT INTO counters VALUES ('sessions_generation', 0)",
    "PRAGMA user_version = 5",
)

# How much waits for people, in all and of each caller, kept because every approval that is opened is compared with it; `doctor` adds it
# up again. Triggers keep it: whatever changes a state, the sums are those of the rows.
_SCHEMA_6: Final = (
    """CREATE TABLE approval_queues (
    principal TEXT PRIMARY KEY,           -- '': all of them together
    pending INTEGER NOT NULL,             -- how many are pending
    size INTEGER NOT NULL,                -- the bytes of what those are about
    full_ns INTEGER NOT NULL              -- how often it has asked lately, as rates are counted
) STRICT, WITHOUT ROWID""",
    """INSERT INTO approval_queues
SELECT principal, count(*), sum(length(CAST(shown AS BLOB)) + length(CAST(origin AS BLOB)) + length(body)), 0
FROM approvals INDEXED BY approvals_pending WHERE state = 'pending' GROUP BY principal""",
    "INSERT INTO approval_queues SELECT '', coalesce(sum(pending), 0), coalesce(sum(size), 0), 0 FROM approval_queues",
    """CREATE TRIGGER approvals_opened AFTER INSERT ON approvals WHEN NEW.state = 'pending' BEGIN
    INSERT INTO approval_queues (principal, pending, size, full_ns) VALUES (NEW.principal, 0, 0, 0) ON CONFLICT DO NOTHING;
    UPDATE approval_queues SET pending = pending + 1,
        size = size + length(CAST(NEW.shown AS BLOB)) + length(CAST(NEW.origin AS BLOB)) + length(NEW.body)
    WHERE principal IN ('', NEW.principal);
END""",
    """CREATE TRIGGER approvals_asked_again AFTER UPDATE OF state ON approvals WHEN NEW.state = 'pending' AND OLD.state != 'pending' BEGIN
    INSERT INTO approval_queues (principal, pending, size, full_ns) VALUES (NEW.principal, 0, 0, 0) ON CONFLICT DO NOTHING;
    UPDATE approval_queues SET pending = pending + 1,
        size = size + length(CAST(NEW.shown AS BLOB)) + length(CAST(NEW.origin AS BLOB)) + length(NEW.body)
    WHERE principal IN ('', NEW.principal);
END""",
    """CREATE TRIGGER approvals_decided AFTER UPDATE OF state ON approvals WHEN OLD.state = 'pending' AND NEW.state != 'pending' BEGIN
    UPDATE approval_queues SET pending = pending - 1,
        size = size - length(CAST(OLD.shown AS BLOB)) - length(CAST(OLD.origin AS BLOB)) - length(OLD.body)
    WHERE principal IN ('', OLD.principal);
END""",
    "DROP INDEX approvals_pending",
    "CREATE INDEX outbox_delivered ON outbox (done_ns) WHERE kind != 'unknown'",
    "PRAGMA user_version = 6",
)


_STEPS: Final = (
    ("0001_journal_and_keys", _SCHEMA_1),
    ("0002_sessions_and_verdicts", _SCHEMA_2),
    ("0003_money_and_rates", _SCHEMA_3),
    ("0004_routing", _SCHEMA_4),
    ("0005_approvals_people_sessions", _SCHEMA_5),
    ("0006_approval_queues", _SCHEMA_6),
)


def migrations() -> Migrations:
    """Every migration in order. `sqlite-utils migrate` shows them; only a gateway or `lockgate keys` applies them."""
    steps = Migrations("lockgate")
    for name, statements in _STEPS:
        steps(name=name)(_applied(statements))
    return steps


def _applied(statements: Iterable[str]) -> Callable[[Database], None]:
    def apply(db: Database) -> None:
        for statement in statements:
            db.conn.execute(statement)

    return apply
