"""What operators see and change of sessions, without a disk: the same promises as on SQLite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from gateway.call import Json
from gateway.core.approval_steps import VOTED
from gateway.session import SessionKey
from gateway.store.approvals_protocol import Approvals, TicketFilter
from gateway.store.memory_sessions import MemorySession, MemorySessions
from gateway.store.protocol import Keys
from gateway.store.rows import CallRows, text
from gateway.store.session_desk import check_change, check_fact
from gateway.store.session_protocol import SessionFilter, SessionState
from gateway.store.session_rows import (
    APPROVALS,
    CALLS,
    CHANGED,
    EVENTS,
    FACT,
    MOST_OWNERS,
    USES,
    VOTES,
    Place,
    approval_entry,
    call_entry,
    event_entry,
    fact_put,
    placed,
    session_row,
    use_entry,
    vote_entry,
    waited,
)

_EVERY_TICKET: Final = 1_000_000
Entries: TypeAlias = list[dict[str, Any]]  # named here: within the class `list` is a verb


class MemorySessionDesk:
    """`SessionDesk` in dicts, over what calls have left in `MemorySessions`."""

    def __init__(self, sessions: MemorySessions, keys: Keys, approvals: Approvals) -> None:
        self._sessions = sessions
        self._keys = keys
        self._approvals = approvals
        self._states: dict[SessionKey, SessionState] = {}
        self._generation = 0

    async def states(self, since: int) -> tuple[int, Sequence[SessionState]]:
        changed = [state for state in self._states.values() if state.generation > since]
        return self._generation, sorted(changed, key=lambda state: state.generation)

    async def generation(self) -> int:
        return self._generation

    async def set_state(self, key: SessionKey, state: str, *, author: str, note: str, now_ns: int) -> SessionState:
        key = _stored(key)
        now = self._states.get(key, SessionState(key))
        if now.state == state:
            return now
        check_change(now.state)
        self._generation += 1
        self._states[key] = made = SessionState(key, state, text(author), text(note), now_ns, self._generation)
        self._sessions.events.append((key, now_ns, CHANGED[state], made.author, {"note": made.note or None}))
        return made

    async def facts(self, key: SessionKey) -> Mapping[str, Mapping[str, Any]]:
        return dict(sorted(self._sessions.facts_of.get(_stored(key), {}).items()))

    async def put_fact(self, key: SessionKey, name: str, value: Json, *, version: int | None, author: str, now_ns: int) -> int:
        key = _stored(key)
        facts = self._sessions.facts_of.get(key, {})
        there = facts[name]["version"] if name in facts else 0
        check_fact(there, version, len(facts))
        self._generation += 1
        put = {"value": value, "version": there + 1, "author": text(author), "at_ns": now_ns}
        self._sessions.facts_of[key] = {**facts, name: put}
        self._sessions.events.append((key, now_ns, FACT, text(author), fact_put(name, value, there + 1)))
        return there + 1

    async def list(self, wanted: SessionFilter) -> Sequence[Mapping[str, Any]]:
        rows = [await self._row(key) for key in self._known() if wanted.principal in ("", key.principal)]
        places = {(row["last_ns"], row["principal"], row["id"]): row for row in rows if row["last_ns"] >= wanted.since_ns}
        before = [place for place in sorted(places, reverse=True) if wanted.after is None or place < wanted.after]
        return [places[place] for place in before[:wanted.limit]]

    async def get(self, key: SessionKey) -> Mapping[str, Any] | None:
        return await self._row(_stored(key)) if _stored(key) in self._known() else None

    async def owners(self, session_id: str) -> Sequence[str]:
        return sorted({key.principal for key in self._known() if key.id == text(session_id)})[:MOST_OWNERS]

    async def timeline(self, key: SessionKey, *, after: Place | None, limit: int) -> Sequence[Mapping[str, Any]]:
        key = _stored(key)
        entries = [*self._of_calls(key), *await self._of_approvals(key), *self._of_events(key)]
        entries.sort(key=lambda entry: entry["place"])
        return [entry for entry in entries if after is None or entry["place"] > list(after)][:limit]

    async def linked(self, principal: str, answer_id: str) -> str | None:
        return self._sessions.links.get((principal, text(answer_id)))

    def _known(self) -> set[SessionKey]:
        return {*self._sessions.known, *self._states, *self._sessions.facts_of}

    async def _row(self, key: SessionKey) -> dict[str, Any]:
        _generation, keys = await self._keys.all()
        owner = next((each for each in keys if each.id == key.principal), None)
        said = self._states.get(key)
        seen = self._sessions.known.get(key)
        last_ns = seen.last_ns if seen else said.at_ns if said else max(
            fact["at_ns"] for fact in self._sessions.facts_of[key].values())
        return {**session_row((
            *key, owner.name if owner else "", owner.team if owner else "", said.state if said else "active",
            said.author if said else "", said.note if said else "", said.at_ns if said else None, seen.created_ns if seen else None,
            last_ns, seen.calls if seen else 0, seen.spend_nusd if seen else 0, "",
        )), "labels": list(seen.labels) if seen else []}

    def _of_calls(self, key: SessionKey) -> Iterator[dict[str, Any]]:
        seen = self._sessions.known.get(key, MemorySession(0))
        for n, rows in enumerate(seen.rows):
            entry = call_entry(rows.call, rows.outcome or {}, rows.verdicts or {}, rows.part_of)
            yield placed(entry, (rows.call["received_ns"], CALLS, f"{n:020}"))
        numbers: dict[str, int] = {}
        for rows, use in seen.uses:
            n = numbers[rows.call["id"]] = numbers.get(rows.call["id"], -1) + 1
            if not waited(use, rows.outcome or {}):
                yield placed(use_entry(use, rows.call["id"]), (use["at_ns"], USES, f"{_number(seen, rows):020}.{n:010}"))

    async def _of_approvals(self, key: SessionKey) -> Entries:
        entries: Entries = []
        for ticket in await self._approvals.list(TicketFilter(principal=key.principal, session=key.id, limit=_EVERY_TICKET)):
            named = {"id": ticket.id, "rule": ticket.rule, "tool": ticket.tool, "route": ticket.route, "call_id": ticket.call_id}
            for n, told in enumerate(await self._approvals.history(ticket.id)):
                if told["event"] == VOTED:  # the vote itself says more
                    continue
                entry = approval_entry(named, *(told[name] for name in ("event", "state", "author", "reason")))
                entries.append(placed(entry, (told["at_ns"], APPROVALS, f"{ticket.id} {n:020}")))
            for vote in ticket.votes:
                voter = {"name": vote.voter.name, "method": vote.voter.method}
                entry = vote_entry(ticket.id, vote.voter.id, voter, vote.verdict, vote.comment)
                entries.append(placed(entry, (vote.at_ns, VOTES, f"{ticket.id} {vote.voter.id}")))
        return entries

    def _of_events(self, key: SessionKey) -> Iterator[dict[str, Any]]:
        for n, (whose, at_ns, kind, author, detail) in enumerate(self._sessions.events):
            if whose == key:
                yield placed(event_entry(kind, author, detail), (at_ns, EVENTS, f"{n:020}"))


def _number(seen: MemorySession, rows: CallRows) -> int:
    return next(n for n, each in enumerate(seen.rows) if each is rows)


def _stored(key: SessionKey) -> SessionKey:
    return key._replace(id=text(key.id))
