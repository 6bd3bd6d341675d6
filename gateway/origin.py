"""Where a call belongs, as its headers say. Pure; everything here was written by a caller, so everything is bounded."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gateway.call import NO_TAGS, Origin
from gateway.errors import InvalidRequest

_NAME: Final = re.compile(r"[\x21-\x7e]{1,200}")
_TAG: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})=([\x20-\x2b\x2d-\x7e]{0,200})")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MOST_TAGS: Final = 20
_NOWHERE: Final = Origin()


def read_origin(headers: Mapping[str, str]) -> Origin:
    """Read `X-Lockgate-Session`, `-Run`, `-Step`, `-User`, `-Tags` and `traceparent`; `headers` must look names up without regard to case.

    Raises:
        InvalidRequest: a name that is empty, over 200 characters or not printable ASCII; tags that are not `k=v,k=v`. A wrong
            `traceparent` is ignored, as W3C Trace Context asks.
    """
    session, run, step, user = (_name(headers, f"X-Lockgate-{header}") for header in ("Session", "Run", "Step", "User"))
    tags = _tags(headers.get("X-Lockgate-Tags"))
    traceparent = headers.get("traceparent")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    if session is run is step is user is traceparent is None and not tags:
        return _NOWHERE
    return Origin(session=session, run=run, step=step, tags=tags, traceparent=traceparent, user=user)


def _name(headers: Mapping[str, str], header: str) -> str | None:
    value = headers.get(header)
    if value is not None and not _NAME.fullmatch(value):
        raise InvalidRequest(f"The header {header} must be 1 to 200 printable ASCII characters without spaces.")
    return value


def _tags(value: str | None) -> Mapping[str, str]:
    if value is None:
        return NO_TAGS
    pairs = [_TAG.fullmatch(pair.strip(" ")) for pair in value.split(",", _MOST_TAGS)]
    if len(pairs) > _MOST_TAGS or None in pairs:
        raise InvalidRequest(f"The header X-Lockgate-Tags must be at most {_MOST_TAGS} pairs `name=value`, separated by commas.")
    return MappingProxyType({pair[1]: pair[2] for pair in pairs if pair})
