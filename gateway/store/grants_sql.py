"""Grants as functions of a connection: which are live, and how they are used up, inside a transaction of the writer."""

from collections.abc import Iterable
from typing import Final

from gateway.core.approval import Grant
from gateway.errors import StoreError
from gateway.store.approval_rows import GRANT_COLUMNS, grant_of, grant_values
from gateway.store.database import Connection
from gateway.store.rows import text

_COLUMNS: Final = ", ".join(GRANT_COLUMNS)
_LIVE_IS: Final = "revoked_ns IS NULL AND expires_ns > :now_ns AND (uses IS NULL OR uses > 0)"
_INSERT: Final = (
    f"INSERT INTO grants ({_COLUMNS}, given) VALUES ({', '.join('?' * (len(GRANT_COLUMNS) + 1))}) ON CONFLICT DO NOTHING")  # noqa: S608
_LISTED: Final = f"""
SELECT {_COLUMNS} FROM grants WHERE (:rule IS NULL OR rule = :rule) AND (:principal IS NULL OR principal = :principal)
    AND (:now_ns IS NULL OR ({_LIVE_IS}))
ORDER BY created_ns DESC, id DESC LIMIT :limit
"""  # noqa: S608 - constants
# The grants of a rule's call are asked for by every call that the rule holds.
_LISTED_OF: Final = _LISTED.replace("(:rule IS NULL OR rule = :rule) AND (:principal IS NULL OR principal = :principal)",
                                    "rule = :rule AND principal = :principal")
_LIVE: Final = f"SELECT 1 FROM grants WHERE id = :id AND (:principal IS NULL OR principal = :principal) AND {_LIVE_IS}"  # noqa: S608
_USE: Final = "UPDATE grants SET uses = uses - 1 WHERE id = ?"  # NULL stays NULL
_USED: Final = "INSERT INTO grant_uses (grant_id, call_id, at_ns) VALUES (?, ?, ?)"
_USES: Final = "SELECT call_id, at_ns FROM grant_uses WHERE grant_id = ? ORDER BY id DESC LIMIT ?"
_REVOKE: Final = f"UPDATE grants SET revoked_ns = :now_ns, revoked_by = :author WHERE id = :id AND {_LIVE_IS}"  # noqa: S608


def add_grant(connection: Connection, grant: Grant) -> None:
    """Write a grant. Raises `StoreError` if the id exists."""
    if not connection.execute(_INSERT, (*grant_values(grant), grant.uses)).rowcount:
        raise StoreError(f"there is a grant {grant.id} already")


def list_grants(connection: Connection, *, rule: str | None, principal: str | None, live_at_ns: int | None, limit: int) -> list[Grant]:
    """See `Approvals.grants`."""
    asked = {
        "rule": None if rule is None else text(rule), "principal": None if principal is None else text(principal), "now_ns": live_at_ns,
        "limit": max(limit, 0)}
    sql = _LISTED if rule is None or principal is None else _LISTED_OF
    return [grant_of(row) for row in connection.execute(sql, asked).fetchall()]


def all_live(connection: Connection, grants: Iterable[str], *, principal: str | None, now_ns: int) -> bool:
    """Whether each of them can be used; with `principal` only where they are this one's."""
    whose = None if principal is None else text(principal)
    return all(
        connection.execute(_LIVE, {"id": text(each), "principal": whose, "now_ns": now_ns}).fetchone() is not None for each in grants)


def use_grants(connection: Connection, grants: Iterable[str], *, call_id: str, now_ns: int) -> None:
    """Use each of them once, where `all_live` says that they can be."""
    for each in dict.fromkeys(grants):
        connection.execute(_USE, (text(each),))
        connection.execute(_USED, (text(each), text(call_id), now_ns))


def uses_of(connection: Connection, grants: Iterable[str], limit: int) -> dict[str, list[tuple[str, int]]]:
    """See `Approvals.uses`."""
    return {each: connection.execute(_USES, (text(each), max(limit, 0))).fetchall() for each in grants}


def revoke_grant(connection: Connection, grant_id: str, *, author: str, now_ns: int) -> bool:
    """See `Approvals.revoke`."""
    return bool(connection.execute(_REVOKE, {"id": text(grant_id), "author": text(author), "now_ns": now_ns}).rowcount)
