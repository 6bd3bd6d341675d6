"""`/-/people`: accounts of people. All of it needs the permission `admin`, so nobody gives more than they have. A token is shown once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import Field

from gateway.clock import Ids, time_text
from gateway.errors import ApprovalConflict, InvalidRequest, StoreError, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.identity.accounts import Fields, checked_id, new_token, person_row
from gateway.identity.actor import Permission
from gateway.identity.passwords import checked
from gateway.proxy import Proxy
from gateway.store.approvals_protocol import People, Person, Stamped
from gateway.validation import Strict
from gateway.wire.strict_json import dumps

_PEOPLE: Final = "/-/people"
_MOST_ROWS: Final = 1000
_HISTORY: Final = 100
_SHOWN_ONCE: Final = "This is the only time the token is shown; the one before, if there was one, is of no use any more."

_Text = Annotated[str, Field(max_length=1024)]
_Texts = Annotated[tuple[_Text, ...], Field(strict=False, max_length=1000)]


class _Change(Strict):
    """What is to be another of an account; what is left out stays."""

    name: _Text | None = None
    permission: Permission | None = None
    roles: _Texts | None = None
    teams: _Texts | None = None
    email: _Text | None = None
    password: _Text | None = None


class _New(Strict):
    """A new account. Without a password its person has a token, or none of either yet."""

    id: _Text
    permission: Permission
    name: _Text = ""
    roles: _Texts = ()
    teams: _Texts = ()
    email: _Text = ""
    password: _Text | None = None


@dataclass(frozen=True, slots=True)
class PeopleDesk:
    """The endpoints. `control` knows who may ask, `proxy` how large a body may be."""

    proxy: Proxy
    control: Control
    ids: Ids

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        one = f"{_PEOPLE}/{{id}}"
        return {
            ("GET", _PEOPLE): self.people, ("POST", _PEOPLE): self.create, ("GET", one): self.person, ("POST", one): self.change,
            ("POST", f"{one}/token"): self.token, ("POST", f"{one}/disable"): self.disable, ("POST", f"{one}/enable"): self.enable,
        }

    async def people(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/people`: every account, by id."""
        await self.control.authorise(request, "admin")
        query_of(request)
        found = await self._store.all()
        await client.answer(200, {}, dumps({"people": list(map(person_row, found[:_MOST_ROWS])), "more": len(found) > _MOST_ROWS}))

    async def person(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/people/{id}`: an account, and what was done to it, newest first."""
        await self.control.authorise(request, "admin")
        query_of(request)
        person_id = name_in(request, 3)
        found = await self._store.get(person_id)
        if found is None:
            raise _missing()
        history = [{"at": time_text(each.at_ns), "what": each.what, "author": each.author, "detail": dict(each.detail)}
                   for each in await self._store.history(person_id, _HISTORY)]
        await client.answer(200, {}, dumps({"person": person_row(found), "history": history}))

    async def create(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/people`: make an account."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        given = read_model(_New, await body_of(request, self.proxy))
        fields = Fields(given.name or given.id, given.permission, given.roles, given.teams, given.email).checked()
        now_ns = self.control.clock.now_ns()
        made = fields.on(Person(checked_id(given.id), "", given.permission, password=await self._hashed(given.password), created_ns=now_ns))
        try:
            await self._store.add(made, Stamped("created", author_of(request, actor), now_ns, fields.told))
        except StoreError as error:
            raise ApprovalConflict(f"There is an account {made.id} already.") from error
        self._tell("person_created", made, author_of(request, actor))
        await client.answer(200, {}, dumps({"person": person_row(made)}))

    async def change(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/people/{id}`: change an account. With another password its logins are over."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        given = read_model(_Change, await body_of(request, self.proxy))
        fields = Fields(given.name, given.permission, given.roles, given.teams, given.email).checked()
        if not fields.told and given.password is None:
            raise InvalidRequest("Nothing is to be changed: give a field of the account.")
        password = await self._hashed(given.password)
        if password and (known := await self._store.get(name_in(request, 3))) is not None and known.subject:
            raise InvalidRequest("This account is an identity provider's, which alone lets its person in.", pointer="/password")
        told = {**fields.told, **({"password": True} if password else {})}

        def how(person: Person) -> Person:
            return replace(fields.on(person), password=password or person.password)

        await self._do(request, client, Stamped("changed", author_of(request, actor), self.control.clock.now_ns(), told), how,
                       log_out=bool(password) or fields.stands_at_login)

    async def token(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/people/{id}/token`: a new API token, shown once; the old one stops at once."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        text, digest = new_token(self.ids, self.control.doorkeeper.logins.pepper)
        stamp = Stamped("token", author_of(request, actor), self.control.clock.now_ns())
        await self._do(request, client, stamp, lambda person: replace(person, token=digest), more={"token": text, "note": _SHOWN_ONCE})

    async def disable(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/people/{id}/disable`: take back all that an account may do; its logins are over."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        now_ns = self.control.clock.now_ns()
        await self._do(request, client, Stamped("disabled", author_of(request, actor), now_ns), partial(_disabled, now_ns), log_out=True)

    async def enable(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/people/{id}/enable`: give it back, and take passwords again where too many were wrong."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        logins = self.control.doorkeeper.logins
        await self._store.forgive((logins.guesses.name_digest(name_in(request, 3)),))
        stamp = Stamped("enabled", author_of(request, actor), self.control.clock.now_ns())
        await self._do(request, client, stamp, lambda person: replace(person, disabled_ns=None))

    @property
    def _store(self) -> People:
        return self.control.store.people

    async def _do(
        self, request: web.BaseRequest, client: HttpClient, stamp: Stamped, how: Callable[[Person], Person], *, log_out: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        changed = await self._store.change(name_in(request, 3), how, stamp, log_out=log_out)
        if changed is None:
            raise _missing()
        self._tell(f"person_{stamp.what}", changed, stamp.author)
        await client.answer(200, {"Cache-Control": "no-store"}, dumps({"person": person_row(changed), **(more or {})}))

    async def _hashed(self, password: str | None) -> str:
        return "" if password is None else await self.control.doorkeeper.logins.passwords.hash(checked(password))

    def _tell(self, what: str, person: Person, author: str) -> None:
        self.control.telemetry.event("info", what, person=person.id, permission=person.permission, author=author)


def _disabled(now_ns: int, person: Person) -> Person:
    return person if person.disabled_ns is not None else replace(person, disabled_ns=now_ns)


def _missing() -> UnknownUrl:
    return UnknownUrl("There is no account of that id. `GET /-/people` lists them.")
