"""What the control endpoints share that change something: who changes it, and strict readings of queries, names and bodies."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel

from gateway.budget_changes import check_author, shown
from gateway.budgets import BudgetError
from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.http.data import query_pairs, read_body, unquoted
from gateway.identity.actor import Actor
from gateway.proxy import Proxy
from gateway.toml_source import Source
from gateway.validation import nearest, validated
from gateway.wire.strict_json import loads

Model = TypeVar("Model", bound=BaseModel)

_AUTHOR: Final = "X-Lockgate-Author"
_LARGEST: Final = 64 * 1024  # bytes of a change
_DEEPEST: Final = 8
_MOST_PROBLEMS: Final = 10


async def body_of(request: web.BaseRequest, proxy: Proxy, *, largest: int = _LARGEST, deepest: int = _DEEPEST) -> dict[str, Any]:
    """The JSON object that a request brings, of so many bytes and levels at the most. Raises `InvalidRequest` or `BodyTooLarge`."""
    server = proxy.snapshot.config.server
    if (request.content_length or 0) > largest:
        raise _too_large(largest)
    data = await read_body(request, limit=server.max_body, timeout_s=server.body_timeout)
    if len(data) > largest:  # it came in chunks
        raise _too_large(largest)
    body = loads(data, max_depth=deepest)
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", pointer="")
    return body


def read_model(model: type[Model], body: Mapping[str, Any]) -> Model:
    """A body as a model. Raises `InvalidRequest` with what is wrong with it."""
    made, problems = validated(model, Source("", body))
    if made is None:
        first = problems[0].key
        raise InvalidRequest("; ".join(map(str, problems[:_MOST_PROBLEMS])), pointer=f"/{first}" if first.isidentifier() else None)
    return made


def query_of(request: web.BaseRequest, *names: str) -> dict[str, str]:
    """The parameters of a query, each once. Raises `InvalidRequest` for any other than these."""
    found: dict[str, str] = {}
    for name, value in query_pairs(request.rel_url.raw_query_string):
        if name not in names:
            hint = nearest(name, names)
            raise InvalidRequest(f"Unknown query parameter {shown(name)!r} ({hint}).")
        if name in found:
            raise InvalidRequest(f"The query has `{name}` twice.")
        found[name] = value
    return found


def name_in(request: web.BaseRequest, index: int) -> str:
    """A part of the path, decoded: a `/` in it was written %2F."""
    return unquoted(request.rel_url.raw_path.split("/")[index], "path")


def author_of(request: web.BaseRequest, actor: Actor) -> str:
    """Who changes something. The admin token is nobody's own: who holds it says who they are, and that stands beside it."""
    said = request.headers.getall(_AUTHOR, ())
    if len(said) > 1:
        raise InvalidRequest(f"The header {_AUTHOR} is there twice.")
    if actor.via != "admin" or not said:
        return actor.id
    name = said[0].strip()
    try:
        check_author(name)
        check_author(author := f"{actor.id} ({name})")
    except BudgetError as error:
        raise InvalidRequest(f"The header {_AUTHOR} {error}.") from error
    return author


def _too_large(largest: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is over the limit of {largest} bytes.")
