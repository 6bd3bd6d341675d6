"""`/-/budgets` and `/-/costs`: what operators see and change of money, over HTTP. What may be changed is
`budget_changes.py`'s, how it is shown `money_reports.py`'s.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final

from aiohttp import web
from pydantic import Field

from gateway.budget_changes import LONGEST, Catalogue, Stamp, raise_limit, remove, set_budget, set_limits
from gateway.budgets import BudgetError
from gateway.config import BudgetConfig
from gateway.core.accounts import SCOPES, Change
from gateway.errors import InvalidRequest, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.identity.actor import Actor
from gateway.money_reports import (
    account_row,
    budget_row,
    change_row,
    costs_csv,
    costs_report,
    moment,
    raise_rows,
    suspect_row,
    window_row,
)
from gateway.proxy import Proxy
from gateway.store.ledger_rows import COST_GROUPS
from gateway.store.protocol import AccountFilter, Budgets
from gateway.units import Duration, Money
from gateway.validation import Strict
from gateway.wire.strict_json import dumps

_BUDGETS: Final = "/-/budgets"
_CSV: Final = "text/csv; charset=utf-8; header=present"
_FORMATS: Final = ("json", "csv")
_MOST_ROWS: Final = 1000
_ROWS: Final = "100"
_SINCE: Final = "30d"
_ONE_ACCOUNT: Final = frozenset({"subject", "limit", "soft", "note"})  # of a body that changes limits, not a budget

_Subject = Annotated[str, Field(max_length=LONGEST["subject"])]
_Note = Annotated[str, Field(max_length=LONGEST["note"])]


class _Limits(Strict):
    """Limits for one account of a budget; without a subject for all of them."""

    subject: _Subject = ""
    limit: Money | None = None
    soft: Money | None = None
    note: _Note = ""


class _NewBudget(BudgetConfig):
    """A budget as in config.toml, and why."""

    note: _Note = ""


class _Raise(Strict):
    """More for a while: until a time, or for a duration."""

    subject: _Subject = ""
    by: Money
    lasting: Duration | None = Field(default=None, alias="for")
    until: str | None = None
    note: _Note = ""


class _Cost(Strict):
    """What a suspect really cost."""

    cost: Money | None = None
    as_booked: bool = False


@dataclass(frozen=True, slots=True)
class MoneyDesk:
    """The endpoints. `proxy` knows which budgets are configured at the moment, `control` who may ask."""

    proxy: Proxy
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {
            ("GET", _BUDGETS): self.budgets, ("GET", f"{_BUDGETS}/suspects"): self.suspects, ("GET", "/-/costs"): self.costs,
            ("POST", f"{_BUDGETS}/suspects/{{call}}"): self.resolve, ("GET", f"{_BUDGETS}/{{name}}"): self.budget,
            ("PUT", f"{_BUDGETS}/{{name}}"): self.put, ("DELETE", f"{_BUDGETS}/{{name}}"): self.delete,
            ("POST", f"{_BUDGETS}/{{name}}/raise"): self.more,
        }

    async def budgets(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/budgets`: every budget, and the accounts that have something to tell."""
        await self.control.authorise(request, "view")
        query = query_of(request, "scope", "subject", "limit")
        if query.get("scope", "all") not in SCOPES:
            raise InvalidRequest(f"`scope` must be one of {', '.join(SCOPES)}.")
        limit = _limit(query)
        known = await self._known()
        wanted = AccountFilter(scope=query.get("scope"), subject=query.get("subject"), limit=limit + 1)
        standings = await self._store.accounts(known.configured, wanted, now_ns=self._now_ns)
        told = {"budgets": [budget_row(known, each) for _name, each in sorted(known.budgets.items())],
                "accounts": [account_row(each) for each in standings[:limit]], "more": len(standings) > limit}
        await client.answer(200, {}, dumps(told))

    async def budget(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/budgets/{name}`: a budget, its accounts, the raises that hold, its windows and changes; `limit` of each, newest first."""
        await self.control.authorise(request, "view")
        name, query = _name(request), query_of(request, "subject", "limit")
        subject, limit = query.get("subject"), _limit(query)
        known = await self._known()
        wanted = AccountFilter(budget=name, subject=subject, limit=limit)
        windows = await self._store.windows(name, subject, limit)
        changes = [each for each in known.changes if each.name == name and subject in (None, each.subject)][-limit:]
        if not windows and not changes:
            _must_know(known, name)
        standings = await self._store.accounts(known.configured, wanted, now_ns=self._now_ns)
        told = {"budget": budget_row(known, known.budgets[name]) if name in known.budgets else None,
                "accounts": [account_row(each) for each in standings], "raises": raise_rows(known, name, self._now_ns)[:limit],
                "windows": [window_row(each) for each in windows],
                "changes": [change_row(known, each) for each in reversed(changes)]}
        await client.answer(200, {}, dumps(told))

    async def put(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`PUT /-/budgets/{name}`: a budget with all its settings, or limits of one of its accounts."""
        actor = await self.control.authorise(request, "operate")
        name, body = _name(request), await body_of(request, self.proxy)
        known = await self._known()
        if "subject" in body or body.keys() <= _ONE_ACCOUNT:
            given = read_model(_Limits, body)
            _must_know(known, name)
            with _refusing():
                change = set_limits(known, name, given.subject, (given.limit, given.soft), self._stamp(request, actor, given.note))
        else:
            new = read_model(_NewBudget, body)
            with _refusing():
                change = set_budget(known, name, new, self._stamp(request, actor, new.note))
        await self._change(client, known, change)

    async def delete(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`DELETE /-/budgets/{name}`: take back what was set; with `?subject=` of one account only."""
        actor = await self.control.authorise(request, "operate")
        name, query = _name(request), query_of(request, "subject", "note")
        known = await self._known()
        subject, note = query.get("subject", ""), query.get("note", "")
        if "subject" in query and not subject:
            raise InvalidRequest("`subject` is empty. Leave it out to take back all that is set for the budget.")
        with _refusing(missing=True):
            change = remove(known, name, subject, self._stamp(request, actor, note))
        await self._change(client, known, change)

    async def more(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/budgets/{name}/raise`: a higher limit for a while."""
        actor = await self.control.authorise(request, "operate")
        name, given = _name(request), read_model(_Raise, await body_of(request, self.proxy))
        known = await self._known()
        _must_know(known, name)
        if (given.lasting is None) == (given.until is None):
            raise InvalidRequest("Say how long: either `for` (a duration) or `until` (a time).")
        now_ns = self._now_ns
        lasting_ns = None if given.lasting is None else int(given.lasting * 1e9)
        until_ns = _moment("until", given.until or "", now_ns, back=False) if lasting_ns is None else now_ns + lasting_ns
        with _refusing():
            change = raise_limit(known, name, given.subject, (given.by, until_ns), self._stamp(request, actor, given.note))
        await self._change(client, known, change)

    async def suspects(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/budgets/suspects`: what was booked at the estimate because a process died, oldest first."""
        await self.control.authorise(request, "view")
        limit = _limit(query_of(request, "limit"))
        rows = await self._store.suspects(limit + 1)
        await client.answer(200, {}, dumps({"suspects": [suspect_row(row) for row in rows[:limit]], "more": len(rows) > limit}))

    async def resolve(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/budgets/suspects/{call}`: what it really cost, or that what was booked is right."""
        actor = await self.control.authorise(request, "operate")
        call_id, given = name_in(request, -1), read_model(_Cost, await body_of(request, self.proxy))
        if (given.cost is None) != given.as_booked:
            raise InvalidRequest("Say either `cost`, what it really cost in USD, or `as_booked`: true.")
        author = self._stamp(request, actor, "").author
        if not await self._store.resolve(call_id, given.cost, author=author, now_ns=self._now_ns):
            raise UnknownUrl("There is no suspect of that id. `GET /-/budgets/suspects` lists them.")
        await client.answer(200, {}, dumps({"call": call_id, "resolved": True}))

    async def costs(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/costs`: what the ledger holds, grouped."""
        await self.control.authorise(request, "view")
        query = query_of(request, "by", "since", "until", "format", "limit")
        by, as_format = query.get("by", COST_GROUPS[0]), query.get("format", _FORMATS[0])
        if by not in COST_GROUPS:
            raise InvalidRequest(f"`by` must be one of {', '.join(COST_GROUPS)}.")
        if as_format not in _FORMATS:
            raise InvalidRequest(f"`format` must be {' or '.join(_FORMATS)}.")
        limit, now_ns = _limit(query), self._now_ns
        since_ns = _moment("since", query.get("since", _SINCE), now_ns, back=True)
        until_ns = _moment("until", query["until"], now_ns, back=True) if "until" in query else now_ns + 1  # what is booked now is in it
        if until_ns <= since_ns:
            raise InvalidRequest("`until` is not after `since`.")
        rows = await self._store.costs(by, since_ns, until_ns, limit)
        if as_format == "csv":
            await client.answer(200, {}, costs_csv(by, rows).encode(), _CSV)
        else:
            await client.answer(200, {}, dumps(costs_report(by, since_ns, until_ns, rows)))

    @property
    def _store(self) -> Budgets:
        return self.control.store.budgets

    @property
    def _now_ns(self) -> int:
        return self.control.clock.now_ns()

    async def _known(self) -> Catalogue:
        return Catalogue.of(self.proxy.snapshot.budgets, await self._store.changes())

    async def _change(self, client: HttpClient, known: Catalogue, change: Change) -> None:
        kept = await self._store.change(change)
        await client.answer(200, {}, dumps({"change": change_row(known, kept)}))

    def _stamp(self, request: web.BaseRequest, actor: Actor, note: str) -> Stamp:
        return Stamp(author_of(request, actor), self._now_ns, note)


def _must_know(known: Catalogue, name: str) -> None:
    with _refusing(missing=True):
        known.budget(name)


@contextmanager
def _refusing(*, missing: bool = False) -> Iterator[None]:
    """A change that cannot be becomes the answer to who asked for it. `missing`: a name can only be wrong because nothing is there."""
    try:
        yield
    except BudgetError as error:
        if missing and error.key == "name":
            raise UnknownUrl(f"{error}.") from error
        raise InvalidRequest(f"{error.key}: {error}", pointer=f"/{error.key}") from error


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", _ROWS)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_ROWS)) and 1 <= int(text) <= _MOST_ROWS):
        raise InvalidRequest(f"`limit` must be a whole number from 1 to {_MOST_ROWS}.")
    return int(text)


def _moment(name: str, text: str, now_ns: int, *, back: bool) -> int:
    try:
        return moment(text, now_ns, back=back)
    except ValueError as error:
        hint = " In a URL a `+` is written %2B." if " " in text else ""
        raise InvalidRequest(f"`{name}` {error}.{hint}") from error


def _name(request: web.BaseRequest) -> str:
    return name_in(request, 3)
