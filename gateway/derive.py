"""The session of a call that does not name one, out of what clients send anyway (`[sessions] derive`).

A derived name begins with its kind, and no header may name such a one: what a client's SDK happens to send never joins a session that
somebody has named, nor the other way. Whose session it is says the principal, as ever. All of it was written by a caller, so all of it is
bounded: what does not look like a name stands there as its digest.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from gateway.call import Call, Origin
from gateway.errors import InvalidRequest

PREFIXES: Final[Mapping[str, str]] = {
    "metadata": "meta:", "conversation": "conv:", "previous": "resp:", "user": "user:", "trace": "trace:"}
_NAME: Final = re.compile(r"[\x21-\x7e]{1,200}")

Scrub = Callable[[str], str]


def check_named(session: str | None, order: Sequence[str]) -> None:
    """Raise `InvalidRequest` where a header names a session that is only ever derived."""
    if session is None:
        return
    taken = next((PREFIXES[kind] for kind in order if session.startswith(PREFIXES[kind])), None)
    if taken is not None:
        raise InvalidRequest(
            f"The header X-Lockgate-Session must not begin with `{taken}`: such sessions are read from the body or the trace. To have "
            "other calls in the same session, send a name of your own with all of them.")


async def in_session(
    call: Call, hints: Mapping[str, str], order: Sequence[str], linked: Callable[[str, str], Awaitable[str | None]], scrub: Scrub,
) -> Call:
    """The call in the session that it belongs to; the call itself where it names one, or nothing says any.

    `linked` finds the session of a principal's earlier answer. One that goes on from an answer without a session begins one, which is
    named after that answer: so two that go on from the same answer are in the same session, and so is all that comes after them.

    Raises:
        StoreUnavailable: nobody can say which session an answer was given in.
    """
    if call.origin.session is not None or not (hints or call.origin.traceparent):
        return call
    found = hint_of(call.origin, hints, order)
    if found is None:
        return call
    kind, value = found
    session = await linked(call.principal.id, answer_name(value, scrub)) if kind == "previous" else None
    return replace(call, origin=replace(call.origin, session=session or session_name(kind, value, scrub)))


def hint_of(origin: Origin, hints: Mapping[str, str], order: Sequence[str]) -> tuple[str, str] | None:
    """The first of the kinds that the call says anything of, and what it says."""
    for kind in order:
        value = _trace_id(origin) if kind == "trace" else hints.get(kind, "")
        if value:
            return kind, value
    return None


def session_name(kind: str, value: str, scrub: Scrub) -> str:
    """What a derived session is called."""
    return _bounded(PREFIXES[kind], value, scrub)


def answer_name(answer_id: str, scrub: Scrub) -> str:
    """What the session of an answer is looked up by."""
    return _bounded("", answer_id, scrub)


def _bounded(prefix: str, value: str, scrub: Scrub) -> str:
    name = f"{prefix}{value}"
    if _NAME.fullmatch(name) and scrub(name) == name:
        return name
    # A secret is none of the journal's, and a name that was scrubbed would be another's, too.
    return f"{prefix}sha256:{sha256(value.encode(errors='surrogatepass')).hexdigest()}"


def _trace_id(origin: Origin) -> str:
    return origin.traceparent.split("-")[1] if origin.traceparent else ""
