"""`/-/keys`: virtual keys over HTTP, as `lockgate keys` has them. A key is shown once, in the answer that makes it; its hash never is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import AfterValidator, Field

from gateway.clock import Ids
from gateway.errors import InvalidRequest, UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import author_of, body_of, name_in, query_of, read_model
from gateway.key_reports import SHOWN_ONCE, expiry_ns, key_row, key_state, warnings, why_not
from gateway.keyring import new_key, new_secret
from gateway.proxy import Proxy
from gateway.secret import Secret
from gateway.store.protocol import Keys
from gateway.validation import Strict
from gateway.wire.strict_json import dumps

_KEYS: Final = "/-/keys"
_MOST_ROWS: Final = 1000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be shown")
    return text


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say what the key is for")
    return text


_Text = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
_Texts = Annotated[tuple[Annotated[_Text, Field(min_length=1)], ...], Field(strict=False, max_length=32)]


class _NewKey(Strict):
    """What a key is for, and when it stops."""

    name: Annotated[_Text, AfterValidator(_named)]
    team: _Text = ""
    org: _Text = ""
    owner: _Text = Field(default="", description="The account of the person whose it is: they may not approve what it asks for.")
    roles: _Texts = ()
    routes: _Texts = ("*",)
    expires: _Text | None = None


@dataclass(frozen=True, slots=True)
class KeysDesk:
    """The endpoints. `proxy` knows the pepper and the routes that are in force, `control` who may ask."""

    proxy: Proxy
    control: Control
    ids: Ids

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", _KEYS): self.keys, ("POST", _KEYS): self.create,
                ("POST", f"{_KEYS}/{{id}}/revoke"): self.revoke, ("POST", f"{_KEYS}/{{id}}/rotate"): self.rotate}

    async def keys(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/keys`: every key without its secret, those that work first, then the newest."""
        await self.control.authorise(request, "view")
        query_of(request)
        _generation, found = await self._store.all()
        now_ns = self._now_ns
        newest = sorted(found, key=lambda key: (key_state(key, now_ns) != "live", -key.created_ns))
        rows = [key_row(key, now_ns) for key in newest[:_MOST_ROWS]]
        await client.answer(200, {}, dumps({"keys": rows, "more": len(newest) > _MOST_ROWS}))

    async def create(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/keys`: make a key and show it, once."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        given = read_model(_NewKey, await body_of(request, self.proxy))
        now_ns = self._now_ns
        try:
            expires_ns = None if given.expires is None else expiry_ns(given.expires, now_ns)
        except ValueError as error:
            raise InvalidRequest(f"expires: {error}", pointer="/expires") from error
        if given.owner and await self.control.store.people.get(given.owner) is None:
            raise InvalidRequest("There is no account of that id; `GET /-/people` lists them.", pointer="/owner")
        text, made = new_key(self.ids, self._pepper(), now_ns=now_ns, name=given.name, team=given.team, org=given.org, roles=given.roles,
                             routes=given.routes or ("*",), expires_ns=expires_ns, owner=given.owner)
        _generation, others = await self._store.all()
        await self._store.create(made)
        told = {"key": text, **key_row(made, now_ns), "warnings": list(warnings(made, others, sorted(self.proxy.snapshot.routes)))}
        await self._changed("key_created", made.id, author_of(request, actor))
        await client.answer(200, {}, dumps({**told, "note": SHOWN_ONCE}))

    async def revoke(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/keys/{id}/revoke`: stop a key for good."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        key_id = name_in(request, 3)
        if not await self._store.revoke(key_id, now_ns=self._now_ns):
            raise await self._refusal(key_id)
        await self._changed("key_revoked", key_id, author_of(request, actor))
        await client.answer(200, {}, dumps(await self._row(key_id)))

    async def rotate(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`POST /-/keys/{id}/rotate`: give a key a new secret and show it, once; the old one stops at once."""
        actor = await self.control.authorise(request, "admin")
        query_of(request)
        key_id = name_in(request, 3)
        text, digest = new_secret(self.ids, self._pepper(), key_id)
        if not await self._store.replace_digest(key_id, digest, now_ns=self._now_ns):
            raise await self._refusal(key_id)
        await self._changed("key_rotated", key_id, author_of(request, actor))
        await client.answer(200, {}, dumps({"key": text, **await self._row(key_id), "note": SHOWN_ONCE}))

    @property
    def _store(self) -> Keys:
        return self.control.store.keys

    @property
    def _now_ns(self) -> int:
        return self.control.clock.now_ns()

    def _pepper(self) -> Secret:
        pepper = self.proxy.snapshot.pepper
        if pepper is None:
            raise InvalidRequest("There is no pepper that keys could be hashed with: set `[auth] pepper`.")
        return pepper

    async def _row(self, key_id: str) -> dict[str, Any]:
        _generation, found = await self._store.all()
        return next((key_row(key, self._now_ns) for key in found if key.id == key_id), {"id": key_id})

    async def _refusal(self, key_id: str) -> UnknownUrl:
        _generation, found = await self._store.all()
        return UnknownUrl(f"{why_not(found, key_id, self._now_ns).capitalize()}.")

    async def _changed(self, what: str, key_id: str, author: str) -> None:
        """Let this process know at once, and the log for ever; other workers look by themselves."""
        self.control.telemetry.event("info", what, key=key_id, author=author)
        if self.control.keyring is not None:
            await self.control.keyring.refresh()
