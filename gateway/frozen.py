"""Which sessions an operator has stopped, as this process knows it: one that is frozen begins no call, and one that is killed ends those
that are under way as well.

What another process has said is known after the next look at the store; while that cannot be read, what was known holds.
"""

from collections.abc import Callable
from typing import Final

from gateway.call import Call
from gateway.errors import SessionFrozen, StoreError, StoreUnavailable
from gateway.session import SessionKey
from gateway.store.session_protocol import SessionDesk, SessionState
from gateway.store.session_rows import FROZEN, KILLED
from gateway.telemetry import Telemetry

_FROZEN: Final = "An operator has frozen this session: none of its calls go on until it is thawed."
_KILLED: Final = "An operator has ended this session: none of its calls go on. Begin a new one."


class Frozen:
    """Asked of every call, so it is answered from memory. `end` ends the calls of a session that are under way here."""

    def __init__(self, desk: SessionDesk, telemetry: Telemetry, end: Callable[[SessionKey, SessionFrozen], None]) -> None:
        self._desk = desk
        self._telemetry = telemetry
        self._end = end
        self._states: dict[SessionKey, SessionState] = {}
        self._generation = 0
        self._failing = False

    def __repr__(self) -> str:
        return f"Frozen({len(self._states)} known, generation={self._generation}, failing={self._failing})"

    def check(self, call: Call) -> None:
        """Raise `SessionFrozen` where the call's session is frozen or killed."""
        session = call.origin.session
        if session is None or not self._states:
            return
        known = self._states.get(SessionKey(call.principal.id, session))
        if known is not None and known.state in (FROZEN, KILLED):
            raise _refusal(known)

    async def refresh(self) -> None:
        """Learn what others have said. To be called at the start and every quarter of a second or so."""
        try:
            latest = await self._desk.generation()
            if latest == self._generation:
                self._failing = False
                return
            generation, changed = await self._desk.states(self._generation)
        except (StoreError, StoreUnavailable) as error:
            if not self._failing:
                self._failing = True
                self._telemetry.event("error", "sessions_not_read", error=error.message)
            return
        self._failing = False
        self._generation = generation
        for state in changed:
            self.learn(state)

    def learn(self, state: SessionState) -> None:
        """Let a state count here, unless a later one does."""
        known = self._states.get(state.key)
        if known is not None and known.generation >= state.generation:
            return
        self._states[state.key] = state
        if state.state == KILLED:
            self._end(state.key, _refusal(state))


def _refusal(state: SessionState) -> SessionFrozen:
    return SessionFrozen(_KILLED if state.state == KILLED else _FROZEN)
