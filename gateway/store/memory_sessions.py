"""Sessions and bundles of the store without a disk: the same promises as on SQLite, from lists."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.session import SessionFacts, SessionKey, SessionQuery
from gateway.store.answers import MOST_SPEND_NUSD, last_use, since_ns, taken_off, tool_reply, total, with_labels
from gateway.store.rows import CallRows, Row, body_text, text
from gateway.store.session_rows import UNLABELLED, unlabelled
from gateway.store.traces import HTTP, MODEL, USE_VALUES, Trace
from gateway.wire.tool_calls import parsed_result


@dataclass(slots=True)
class MemorySession:
    """What calls have left of a session."""

    created_ns: int
    calls: int = 0
    spend_nusd: int = 0
    labels: list[str] = field(default_factory=list)
    last_ns: int = 0
    rows: list[CallRows] = field(default_factory=list)  # of its calls
    uses: list[tuple[CallRows, Row]] = field(default_factory=list)  # with their calls, in the order they were written


class MemorySessions:
    """`Sessions` in dicts. The journal hands over what each call leaves."""

    def __init__(self) -> None:
        self.known: dict[SessionKey, MemorySession] = {}
        self.facts_of: dict[SessionKey, dict[str, dict[str, Any]]] = {}  # as `SessionDesk.facts` has them
        self.events: list[tuple[SessionKey, int, str, str, dict[str, Any]]] = []  # what happened beside calls: when, kind, author, detail
        self.links: dict[tuple[str, str], str] = {}
        self._released: dict[tuple[str, str], bool] = {}
        self._proposed: dict[tuple[SessionKey, str], str] = {}  # the id of the latest call that was given a tool call of this id
        self._results: dict[tuple[str, str], str] = {}  # by the id of the call that was given the tool call, and the tool call's
        self._turns: dict[SessionKey, tuple[str, int]] = {}

    def add(self, rows: CallRows, trace: Trace) -> None:
        """Note what a call leaves."""
        uses: list[Row] = [dict(zip(USE_VALUES, values, strict=True)) for values in trace.uses]
        for use in uses:
            if use["via"] == MODEL:
                named = trace.principal, use["tool_call_id"]
                self._released[named] = self._released.get(named, False) or bool(use["released"])
        if trace.session is None:
            return
        if trace.calls is not None:
            opened = self.known.setdefault(trace.session, MemorySession(trace.received_ns))
            opened.calls += trace.calls
            opened.last_ns = max(opened.last_ns, trace.received_ns)
            opened.rows.append(rows)
        session = self.known[trace.session]
        session.spend_nusd = min(session.spend_nusd + trace.cost_nusd, MOST_SPEND_NUSD)
        self._change_labels(session, trace)
        if trace.answer_id:
            self.links[trace.principal, text(trace.answer_id)] = trace.session.id
        for use_id, said in trace.results:
            proposed = self._proposed.get((trace.session, use_id))
            if proposed is not None:
                self._results.setdefault((proposed, use_id), said)
        for use in uses:
            session.uses.append((rows, use))
            if use["via"] == MODEL and use["released"]:
                self._proposed[trace.session, use["tool_call_id"]] = rows.call["id"]

    def _change_labels(self, session: MemorySession, trace: Trace) -> None:
        gone = taken_off(session.labels, trace.unlabels)
        session.labels = with_labels([label for label in session.labels if label not in gone], trace.labels)
        lost = [label for label in gone if label not in session.labels]
        if lost and trace.session is not None:
            self.events.append((trace.session, trace.received_ns, UNLABELLED, "", unlabelled(lost, trace.call_id)))

    async def facts(
        self, key: SessionKey, queries: frozenset[SessionQuery], *, now_ns: int, with_facts: bool = False,
    ) -> SessionFacts:
        session = self.known.get(_stored(key), MemorySession(now_ns))
        answers = dict(answer for query in queries for answer in self._answer(session, query, now_ns))
        age_s = max(0, now_ns - session.created_ns) / 1e9
        put = self.facts_of.get(_stored(key), {}) if with_facts else {}
        facts = {name: put[name]["value"] for name in sorted(put)}
        return SessionFacts(age_s, tuple(session.labels), session.calls, session.spend_nusd, answers, facts)

    async def in_flight(self, key: SessionKey, tools: frozenset[str]) -> bool:
        session = self.known.get(_stored(key))
        return session is not None and any(
            use["via"] == HTTP and use["released"] and use["name"] in tools and rows.outcome is None for rows, use in session.uses)

    async def released(self, principal: str, ids: Sequence[str]) -> Mapping[str, bool]:
        known = {use_id: self._released.get((principal, text(use_id))) for use_id in ids}
        return {use_id: released for use_id, released in known.items() if released is not None}

    async def enter(self, key: SessionKey, holder: str, *, now_ns: int, until_ns: int) -> bool:
        self._turns = {each: turn for each, turn in self._turns.items() if turn[1] >= now_ns}
        if self._turns.get(_stored(key), (holder, 0))[0] != holder:
            return False
        self._turns[_stored(key)] = holder, until_ns
        return True

    async def leave(self, key: SessionKey, holder: str) -> None:
        if self._turns.get(_stored(key), ("", 0))[0] == holder:
            del self._turns[_stored(key)]

    def _answer(self, session: MemorySession, query: SessionQuery, now_ns: int) -> list[tuple[SessionQuery, Any]]:
        found = list(_counted(session, query, now_ns))
        match query.function:
            case "called":
                return [(query, bool(found))]
            case "count":
                return [(query, len(found))]
            case "sum":
                whole = total(query.path, (use["args"] for _rows, use in found))
                return [] if whole is None else [(query, whole)]
            case "last":
                latest = max(found, key=lambda each: each[1]["at_ns"], default=None)
                return [(query, None if latest is None else self._last(*latest))]

    def _last(self, rows: CallRows, use: Row) -> dict[str, Any]:
        if use["via"] == HTTP and rows.outcome is not None:
            result = tool_reply(body_text(rows.outcome["response_encoding"], rows.outcome["response"]))
        else:
            said = self._results.get((rows.call["id"], use["tool_call_id"]))
            result = None if said is None else parsed_result(said)
        return last_use(use["args"], result, use["at_ns"])


class MemoryBundles:
    """`Bundles` in a dict."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    async def keep(self, digest: str, content: bytes, *, now_ns: int) -> None:
        _ = now_ns
        self._contents.setdefault(digest, content)

    async def content(self, digest: str) -> bytes | None:
        return self._contents.get(digest)


def _counted(session: MemorySession, query: SessionQuery, now_ns: int) -> Iterator[tuple[CallRows, Row]]:
    """The uses that count, the latest first."""
    for rows, use in reversed(session.uses):
        if use["name"] != query.tool or not use["released"] or use["at_ns"] < since_ns(query, now_ns):
            continue
        if use["via"] != HTTP or (rows.outcome is not None and rows.outcome["outcome"] == "completed"):
            yield rows, use


def _stored(key: SessionKey) -> SessionKey:
    return key._replace(id=text(key.id))
