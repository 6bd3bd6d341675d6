"""The call that a plan is asked for, read from what an operator gives: texts by name, of a query or of a command. Strict, and bounded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gateway.call import JsonObject
from gateway.errors import InvalidRequest
from gateway.keyring import ANONYMOUS, principal_of
from gateway.origin import read_origin
from gateway.plan_report import OPERATIONS, Asked, AskedError
from gateway.store.protocol import Keys

NAMES: Final = ("task", "tags", "session", "user", "key", "team", "operation", "stream", "size")
_HEADERS: Final[Mapping[str, str]] = {"tags": "X-Lockgate-Tags", "session": "X-Lockgate-Session", "user": "X-Lockgate-User"}
_STREAMS: Final[Mapping[str, bool]] = {"true": True, "false": False}
_LONGEST: Final = 200
_MOST_DIGITS: Final = 12


def asked_of(given: Mapping[str, str], body: JsonObject | None = None) -> Asked:
    """The call that is supposed. `given` holds some of `NAMES`, `body` is its body, None where there is none. Whose its key is,
    `with_principal` finds out.

    Raises:
        AskedError: one of them makes no sense.
    """
    headers = {header: given[name] for name, header in _HEADERS.items() if name in given}
    try:
        origin = read_origin(headers)
    except InvalidRequest as error:
        name = next(name for name, header in _HEADERS.items() if header in error.message)
        raise AskedError(name, error.message.partition(_HEADERS[name])[2].strip().rstrip(".")) from error
    asked = Asked(
        principal=replace(ANONYMOUS, team=_name(given, "team")), operation=given.get("operation", ""), session=origin.session,
        user=origin.user or "", tags=origin.tags, task=_name(given, "task"), stream=_stream(given), size=_size(given),
        key=_name(given, "key"))
    if asked.key and asked.principal.team:
        raise AskedError("team", "is that of the key: say one of the two")
    if asked.operation and asked.operation not in OPERATIONS:
        raise AskedError("operation", f"must be one of {', '.join(OPERATIONS)}")
    return asked if body is None else replace(asked, body=body)


async def with_principal(asked: Asked, keys: Keys, now_ns: int) -> Asked:
    """The same call with whoever holds its key, where it has one.

    Raises:
        AskedError: there is no such key, or no call can be made with it any more.
        StoreUnavailable, StoreError: the keys cannot be read.
    """
    if not asked.key:
        return asked
    _generation, known = await keys.all()
    key = next((each for each in known if each.id == asked.key), None)
    if key is None:
        raise AskedError("key", "must be the id of a key; `lockgate keys list` shows them")
    if key.revoked_ns is not None or (key.expires_ns is not None and key.expires_ns <= now_ns):
        raise AskedError("key", "has expired or was revoked: no call can be made with it")
    return replace(asked, principal=principal_of(key))


def _name(given: Mapping[str, str], name: str) -> str:
    text = given.get(name, "")
    if len(text) > _LONGEST or not text.isprintable():
        raise AskedError(name, f"must be at most {_LONGEST} characters that can be shown")
    return text


def _stream(given: Mapping[str, str]) -> bool:
    text = given.get("stream", "false")
    if text not in _STREAMS:
        raise AskedError("stream", f"must be {' or '.join(_STREAMS)}")
    return _STREAMS[text]


def _size(given: Mapping[str, str]) -> int | None:
    text = given.get("size")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise AskedError("size", "must be a whole number of bytes")
    return int(text)
