"""Who asks something of the control endpoints, and what they may do there. Knows no HTTP and no store."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gateway.core.approval import Voter
from gateway.errors import NotPermitted

Permission: TypeAlias = Literal["view", "approve", "operate", "admin"]

PERMISSIONS: Final[tuple[Permission, ...]] = ("view", "approve", "operate", "admin")  # each includes those before it


def includes(permission: Permission, need: Permission) -> bool:
    """Whether a permission is at least the other."""
    return PERMISSIONS.index(permission) >= PERMISSIONS.index(need)


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who has proved who they are. `via` is how: by the admin token, an API token of theirs, or a browser's login."""

    voter: Voter
    permission: Permission
    via: Literal["admin", "token", "cookie"]

    @property
    def id(self) -> str:
        """What stands on record as the author of what they do."""
        return self.voter.id

    def may(self, need: Permission) -> bool:
        """Whether they may do what needs this permission."""
        return includes(self.permission, need)


# Whoever holds the admin token: one identity, however many people know it.
ADMIN: Final = Actor(Voter("admin", "admin", ("admin",), method="token"), "admin", "admin")


def permitted(actor: Actor, need: Permission) -> Actor:
    """The actor, where they may do what needs this permission. Raises `NotPermitted`."""
    if not actor.may(need):
        raise NotPermitted(f"This needs the permission `{need}`, and {actor.id} has `{actor.permission}`.")
    return actor
