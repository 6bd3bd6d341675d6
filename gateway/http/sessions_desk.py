"""`/-/sessions`: what sessions did and cost, step by step; facts that rules read; freezing, thawing and killing them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote, unquote

from aiohttp import web
from pydantic import Field

from gateway.answer import call_headers
from gateway.budget_changes import LONGEST
from gateway.budgets import BudgetError
from gateway.call import Json
from gateway.clock import time_text
from gateway.core.approval import NotPossibleError
from gateway.errors import InvalidRequest, SessionConflict, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.money_reports import moment
from gateway.proxy import Proxy
from gateway.session import SessionKey
from gateway.session_changes import VERBS, SessionChangeError, change_state, check_fact, check_key
from gateway.store.session_protocol import OutdatedError, SessionDesk, SessionFilter, SessionState
from gateway.store.session_rows import MOST_OWNERS, Place
from gateway.validation import Strict
from gateway.wire.problem import PROBLEM_TYPE, problem_fields
from gateway.wire.strict_json import dumps

_SESSIONS: Final = "/-/sessions"
_ONE: Final = f"{_SESSIONS}/{{id}}"
_ROWS: Final = "50"
_MOST_ROWS: Final = 500
_DIGITS: Final = 19  # of nanoseconds in 64 bits
_NOTHING: Final = "There is no session of that id. `GET /-/sessions` lists the latest."
_TIMES: Final = {"created_ns": "began_at", "last_ns": "last_at", "changed_ns": "changed_at", "at_ns": "at"}


class NoteGiven(Strict):
    """Why a session is frozen, thawed or killed."""

    note: Annotated[str, Field(max_length=LONGEST["note"])] = ""


class FactGiven(Strict):
    """A fact, and the version that it is thought to have: 0 where there is none yet. Without one it is set whatever it has."""

    value: Any
    version: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class SessionsDesk:
    """The endpoints. `proxy` knows which sessions are frozen, `control` who may ask."""

    proxy: Proxy
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        told: dict[tuple[str, str], Handler] = {
            ("GET", _SESSIONS): self.sessions, ("GET", _ONE): self.session, ("GET", f"{_ONE}/timeline"): self.timeline,
            ("PUT", f"{_ONE}/facts/{{name}}"): self.put_fact}
        return told | {("POST", f"{_ONE}/{verb}"): partial(self.change, verb) for verb in VERBS}

    async def sessions(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/sessions`: sessions, the latest first; `next` is the `after` of the next page."""
        await self.control.authorise(request, "view")
        query = query_of(request, "principal", "since", "after", "limit")
        limit = _limit(query)
        since_ns = _since(query["since"], self.control.clock.now_ns()) if "since" in query else 0
        wanted = SessionFilter(query.get("principal", ""), since_ns, _after(query), limit + 1)
        rows = await self._desk.list(wanted)
        told = {"sessions": [_told(row) for row in rows[:limit]], "next": _next(rows[limit - 1]) if len(rows) > limit else None}
        await client.answer(200, {}, dumps(told))

    async def session(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/sessions/{id}`: one session with its facts."""
        await self.control.authorise(request, "view")
        key = await self._key(request, query_of(request, "principal"))
        await client.answer(200, {}, dumps({"session": await self._whole(key)}))

    async def timeline(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/sessions/{id}/timeline`: all that is on record of it in order of time; `next` is the `after` of the next page."""
        await self.control.authorise(request, "view")
        query = query_of(request, "principal", "after", "limit")
        key, limit, after = await self._key(request, query), _limit(query), _place(query)
        entries = await self._desk.timeline(key, after=after, limit=limit + 1)
        if not entries and after is None:
            await self._whole(key)  # says so where there is no such session
        told = {"timeline": [_told(entry) for entry in entries[:limit]],
                "next": ".".join(map(str, entries[limit - 1]["place"])) if len(entries) > limit else None}
        await client.answer(200, {}, dumps(told))

    async def put_fact(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`PUT /-/sessions/{id}/facts/{name}`: set a fact that rules read as `session.facts`; the answer is its new version."""
        actor = await self.control.authorise(request, "operate")
        key = await self._key(request, query_of(request, "principal"))
        given, name = read_model(FactGiven, await body_of(request, self.proxy)), name_in(request, 5)
        value: Json = given.value
        with _refusing():
            check_key(key)
            check_fact(name, value)
            try:
                version = await self._desk.put_fact(key, name, value, version=given.version, author=author_of(request, actor),
                                                    now_ns=self.control.clock.now_ns())
            except OutdatedError as error:
                conflict = SessionConflict(f"{error.message} Look at it again before you set it.")
                body = dumps({**problem_fields(conflict, client.call_id), "version": error.version})
                await client.answer(conflict.status, call_headers(client.call_id, conflict), body, PROBLEM_TYPE)
                return
        await client.answer(200, {}, dumps({"version": version}))

    async def change(self, verb: str, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/sessions/{id}/freeze`, `thaw`, `kill`: whether its calls go on. It counts here at once, elsewhere within a second."""
        control = self.control
        actor = await control.authorise(request, "operate")
        key = await self._key(request, query_of(request, "principal"))
        given = read_model(NoteGiven, await body_of(request, self.proxy))
        with _refusing():
            check_key(key)
            wanted = SessionState(key, VERBS[verb], author_of(request, actor), given.note, control.clock.now_ns())
            await change_state(self._desk, control.store.approvals, wanted, self.proxy.frozen.learn, control.telemetry.approval_now)
        await client.answer(200, {}, dumps({"session": await self._whole(key)}))

    @property
    def _desk(self) -> SessionDesk:
        return self.control.store.session_desk

    async def _whole(self, key: SessionKey) -> dict[str, Any]:
        """A session with its facts. Raises `UnknownUrl`."""
        row = await self._desk.get(key)
        if row is None:
            raise UnknownUrl(_NOTHING)
        return {**_told(row), "facts": {name: _told(fact) for name, fact in (await self._desk.facts(key)).items()}}

    async def _key(self, request: web.BaseRequest, query: Mapping[str, str]) -> SessionKey:
        """Which session is meant. A principal need not be named where only one has a session of that id."""
        session_id = name_in(request, 3)
        if "principal" in query:
            return SessionKey(query["principal"], session_id)
        owners = await self._desk.owners(session_id)
        if not owners:
            raise UnknownUrl(_NOTHING)
        if len(owners) > 1:
            more = ", …" if len(owners) == MOST_OWNERS else ""
            raise InvalidRequest(f"Several principals have a session of that id: add `?principal=` and one of {', '.join(owners)}{more}.")
        return SessionKey(owners[0], session_id)


@contextmanager
def _refusing() -> Iterator[None]:
    """What makes no sense, or cannot be, becomes the answer to who asked for it."""
    try:
        yield
    except (SessionChangeError, BudgetError) as error:
        raise InvalidRequest(f"`{error.key}` {error}.", pointer=f"/{error.key}" if error.key in ("value", "note") else None) from error
    except NotPossibleError as error:
        raise SessionConflict(error.message) from error


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its times as people read them; what is empty is nothing."""
    times = {_TIMES[name]: time_text(value) for name, value in row.items() if name in _TIMES}
    empty = {name: None for name in ("author", "note", "principal_name", "team") if row.get(name) == ""}
    exact = {"at_ns": row["at_ns"]} if "kind" in row else {}
    return {**{name: value for name, value in row.items() if name not in _TIMES and name != "place"}, **empty, **times, **exact}


def _next(row: Mapping[str, Any]) -> str:
    """Where the next page begins: the last row of this one."""
    return "/".join([str(row["last_ns"]), quote(row["principal"], safe=""), quote(row["id"], safe="")])


def _after(query: Mapping[str, str]) -> tuple[int, str, str] | None:
    if "after" not in query:
        return None
    at, *names = query["after"].split("/")
    if not _is_time(at) or len(names) != 2:
        raise InvalidRequest("`after` must be the `next` of the page before.")
    return int(at), unquote(names[0]), unquote(names[1])


def _place(query: Mapping[str, str]) -> Place | None:
    if "after" not in query:
        return None
    at, rank, name = [*query["after"].split(".", 2), "", ""][:3]
    if not _is_time(at) or not (rank.isascii() and rank.isdigit() and len(rank) == 1):
        raise InvalidRequest("`after` must be the `next` of the page before.")
    return int(at), int(rank), name


def _is_time(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) < 2**63


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", _ROWS)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_ROWS)) and 1 <= int(text) <= _MOST_ROWS):
        raise InvalidRequest(f"`limit` must be a whole number from 1 to {_MOST_ROWS}.")
    return int(text)


def _since(text: str, now_ns: int) -> int:
    try:
        return moment(text, now_ns, back=True)
    except ValueError as error:
        raise InvalidRequest(f"`since` {error}.") from error
