"""Virtual keys as operators read them: `lockgate keys` and the control endpoints show the same. Pure; never a secret or its hash."""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from gateway.clock import time_text
from gateway.money_reports import moment
from gateway.store.protocol import StoredKey

SHOWN_ONCE: Final = "This is the only time the key is shown; a gateway that runs knows it within a second."


def key_row(key: StoredKey, now_ns: int) -> dict[str, Any]:
    """A key, JSON-ready, and whether it works."""
    return {
        "id": key.id, "name": key.name, "team": key.team or None, "org": key.org or None, "owner": key.owner or None,
        "roles": list(key.roles), "routes": list(key.routes), "created": time_text(key.created_ns), "expires": time_text(key.expires_ns),
        "revoked": time_text(key.revoked_ns), "state": key_state(key, now_ns),
    }


def key_state(key: StoredKey, now_ns: int) -> str:
    """`live`, `expired` or `revoked`."""
    if key.revoked_ns is not None:
        return "revoked"
    return "expired" if key.expires_ns is not None and key.expires_ns <= now_ns else "live"


def expiry_ns(written: str, now_ns: int) -> int:
    """When a key stops: a duration from now, or a date or time (UTC unless it says otherwise). Raises `ValueError`."""
    when_ns = moment(written, now_ns, back=False)
    if when_ns <= now_ns:
        raise ValueError("lies in the past")
    return when_ns


def warnings(made: StoredKey, others: Sequence[StoredKey], routes: Collection[str]) -> Iterator[str]:
    """What about a new key deserves a look."""
    alike = [key.id for key in others if key.name == made.name and key_state(key, made.created_ns) == "live"]
    if alike:
        yield f"{made.name!r} is also the name of {', '.join(alike)}; only the id tells them apart"
    for glob in made.routes:
        if glob != "*" and not any(fnmatchcase(route, glob) for route in routes):
            names = ", ".join(routes)
            yield f"the glob {glob!r} matches no route" + (f"; there are: {names}" if names else ", for there is none")


def why_not(found: Sequence[StoredKey], given: str, now_ns: int) -> str:
    """Why a key can be neither revoked nor given a new secret, from every key there is."""
    key = next((key for key in found if key.id == given), None)
    if key is not None and key.revoked_ns is not None:
        return f"key {given} was revoked on {time_text(key.revoked_ns)}; `lockgate keys create` makes a new one"
    if key is not None:
        return f"key {given} expired on {time_text(key.expires_ns)}; `lockgate keys create` makes a new one"
    ids = [f"{key.id} ({key_state(key, now_ns)})" for key in found if key.name == given]
    if ids:
        return f"{given!r} is a name; its ids: {', '.join(ids)}"
    return f"there is no key {given!r}; `lockgate keys list` shows what there is"
