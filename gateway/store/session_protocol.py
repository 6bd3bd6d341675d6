"""The seam to what operators see and change of sessions, as `protocol.py` is to calls. A verb that changes something is one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.call import Json
from gateway.core.approval import NotPossibleError
from gateway.session import SessionKey


@dataclass(frozen=True, slots=True)
class SessionState:
    """What an operator has said of a session: `active`, `frozen` or `killed`. `generation` is that of the change."""

    key: SessionKey
    state: str = "active"
    author: str = ""
    note: str = ""
    at_ns: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to list: those that were used at `since_ns` or later, the latest first; the empty principal is every one.

    `after` is where the page before ended: `last_ns`, `principal` and `id` of its last row.
    """

    principal: str = ""
    since_ns: int = 0
    after: tuple[int, str, str] | None = None
    limit: int = 50


class OutdatedError(NotPossibleError):
    """A fact is to be set under a version that it does not have. `version` is the one that it has, 0 where there is none."""

    def __init__(self, version: int) -> None:
        super().__init__(f"The fact has version {version}." if version else "There is no such fact yet: its version is 0.")
        self.version = version


class SessionDesk(Protocol):
    """What operators see and change of sessions. Each change raises `generation` by one in the same transaction."""

    async def states(self, since: int) -> tuple[int, Sequence[SessionState]]:
        """The generation, and every session whose state has changed since that one. Of the beginning (0): each that ever had another."""
        ...

    async def generation(self) -> int:
        """The number of the last change, of a state or of a fact."""
        ...

    async def set_state(self, key: SessionKey, state: str, *, author: str, note: str, now_ns: int) -> SessionState:
        """Make a session `frozen`, `killed` or `active`; nothing where it is so already. Raises `NotPossibleError` for a killed one."""
        ...

    async def facts(self, key: SessionKey) -> Mapping[str, Mapping[str, Any]]:
        """The facts of a session, by name: `value`, `version`, `author`, `at_ns`."""
        ...

    async def put_fact(self, key: SessionKey, name: str, value: Json, *, version: int | None, author: str, now_ns: int) -> int:
        """Set a fact that has this version (0: there is none yet; None: whatever it has): its new version.

        Raises:
            OutdatedError: it has another version.
            NotPossibleError: it would be one too many (`MOST_FACTS` of `store/session_rows.py`).
        """
        ...

    async def list(self, wanted: SessionFilter) -> Sequence[Mapping[str, Any]]:
        """Sessions that had a call, or a word of an operator's, as rows of `SESSION_FIELDS` (`store/session_rows.py`)."""
        ...

    async def get(self, key: SessionKey) -> Mapping[str, Any] | None:
        """One session, as `list` has it; None for one that nothing is on record of."""
        ...

    async def owners(self, session_id: str) -> Sequence[str]:
        """The principals that have a session of this id, a few of them where there are many."""
        ...

    async def timeline(self, key: SessionKey, *, after: tuple[int, int, str] | None, limit: int) -> Sequence[Mapping[str, Any]]:
        """Everything on record of a session in order of time: calls, tool uses, approvals, votes, changes of its state and facts.

        Each entry has `kind`, `at_ns` and `place`, which is where the next page begins as `after`.
        """
        ...

    async def linked(self, principal: str, answer_id: str) -> str | None:
        """The session that an answer was given in (`CallRecord.answer_id`); None where nothing is on record of it."""
        ...
