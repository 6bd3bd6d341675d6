"""What a call leaves behind beside its own rows: verdicts, tool uses, results, and the state of its session. From records, pure.

Both stores write a `Trace` in the transaction of the call's rows; a call that leaves nothing has none, and costs nothing.
"""

from dataclasses import dataclass, replace
from typing import Final

from gateway.call import CallRecord, ToolUse
from gateway.session import SessionKey
from gateway.store.rows import Values, json_text, text, verdict_values

MODEL: Final = "model"
HTTP: Final = "http"
USE_VALUES: Final = ("n", "at_ns", "via", "released", "principal", "session", "tool_call_id", "name", "args")

# A conversation brings all its results again with each call: older ones were kept when they were new.
_MOST_RESULTS: Final = 200


@dataclass(frozen=True, slots=True)
class Trace:
    """What one record leaves. `calls` is what it adds to its session's calls, None where it opens no session.

    `session` is None where the call belongs to none; then it leaves no results either, since nobody could ask for them. `uses` are
    rows of `USE_VALUES`; `results` are texts by the id of their tool call. `unlabels` are labels that the session loses before it gets
    `labels`; `answer_id` is what its session is found by again, empty for nothing.
    """

    call_id: str
    principal: str
    session: SessionKey | None
    received_ns: int
    calls: int | None = None
    cost_nusd: int = 0
    labels: tuple[str, ...] = ()
    verdicts: Values | None = None
    uses: tuple[Values, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    unlabels: tuple[str, ...] = ()
    answer_id: str = ""


def begin_trace(record: CallRecord) -> Trace | None:
    """Of a call that was let through. One that was made for another call is none of its session's, which only hears what it costs; but
    for one that is made under an approval: the other one has only waited for that.
    """
    if not record.origin.session and not record.tool_uses:
        return None
    counts = not record.part_of or bool(record.approval_end)
    return Trace(
        record.id, record.principal.id, _session(record), record.received_ns, calls=1 if counts else 0,
        labels=record.labels if counts else (), uses=_uses(record, HTTP), results=_results(record),
        unlabels=record.unlabels if counts else (),
    )


def finish_trace(record: CallRecord) -> Trace | None:
    """Of a call that ended. The tools that it called itself were written when it began."""
    if not (record.origin.session or record.tool_uses or record.verdicts or record.answer_labels):
        return None
    return Trace(
        record.id, record.principal.id, _session(record), record.received_ns, cost_nusd=record.cost_nusd or 0, labels=record.answer_labels,
        verdicts=verdict_values(record), uses=_uses(record, MODEL), answer_id=record.answer_id,
        unlabels=tuple(label for label in record.answer_unlabels if label not in record.labels),  # what the call itself has added stays
    )


def refusal_trace(record: CallRecord) -> Trace | None:
    """Of a call that began and ended at once. It does not count as one of its session, nor does it take labels off it."""
    trace = finish_trace(record)
    return trace and replace(
        trace, calls=0, cost_nusd=0, labels=(*record.labels, *record.answer_labels), uses=_uses(record, HTTP, MODEL),
        results=_results(record), unlabels=(), answer_id="",
    )


def _session(record: CallRecord) -> SessionKey | None:
    return SessionKey(record.principal.id, text(record.origin.session)) if record.origin.session else None


def _uses(record: CallRecord, *via: str) -> tuple[Values, ...]:
    session = text(record.origin.session or "")
    return tuple(_use(record.principal.id, session, n, use) for n, use in enumerate(record.tool_uses) if use.via in via)


def _use(principal: str, session: str, n: int, use: ToolUse) -> Values:
    released = 1 if use.released else 0
    return n, use.at_ns, use.via, released, principal, session, text(use.id), text(use.name), json_text(use.args)


def _results(record: CallRecord) -> tuple[tuple[str, str], ...]:
    """Of several results for one tool call the last."""
    if not record.origin.session or not record.tool_results:
        return ()
    return tuple((text(use_id), text(said)) for use_id, said in dict(record.tool_results[-_MOST_RESULTS:]).items())
