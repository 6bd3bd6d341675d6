"""What operators and programs change of sessions: states and facts. Checks what they give, and puts it on record with what goes with it."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

import orjson

from gateway.budget_changes import check_author, check_text
from gateway.call import Json
from gateway.core.approval import Event, NotPossibleError, State, Ticket
from gateway.session import SessionKey
from gateway.store.approvals_protocol import Approvals, TicketFilter
from gateway.store.scrub import Scrubber
from gateway.store.session_protocol import SessionDesk, SessionState
from gateway.store.session_rows import ACTIVE, FROZEN, KILLED

VERBS: Final = {"freeze": FROZEN, "thaw": ACTIVE, "kill": KILLED}
_SESSION: Final = re.compile(r"[\x21-\x7e]{1,200}")  # what a header may name, and what is derived
_LONGEST_PRINCIPAL: Final = 300
_FACT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_LARGEST_FACT: Final = 4096  # bytes, as JSON: rules read all facts of a session at once
_PAGE: Final = 200


class SessionChangeError(ValueError):
    """What was given makes no sense. `key` says which of it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def check_key(key: SessionKey) -> None:
    """Raise `SessionChangeError` for what can be no session."""
    if _SESSION.fullmatch(key.id) is None:
        raise SessionChangeError("id", "is no session's: 1 to 200 printable ASCII characters without spaces")
    if not 0 < len(key.principal) <= _LONGEST_PRINCIPAL or not key.principal.isprintable():
        raise SessionChangeError("principal", f"is no principal's id: 1 to {_LONGEST_PRINCIPAL} characters that can be shown")


def check_fact(name: str, value: Json) -> None:
    """Raise `SessionChangeError` for a fact that rules could not read, or that holds what belongs to somebody alone."""
    if _FACT.fullmatch(name) is None:
        raise SessionChangeError(
            "name", "is no fact's: up to 64 letters, digits, `_`, `.` and `-`, of which the first is a letter or `_`")
    try:
        written = orjson.dumps(value)
    except TypeError as error:  # an integer beyond 64 bits, a lone surrogate
        raise SessionChangeError("value", "holds a number beyond 64 bits, or a text that is none") from error
    if len(written) > _LARGEST_FACT:
        raise SessionChangeError("value", f"has {len(written)} bytes as JSON, and may have {_LARGEST_FACT}")
    if _beyond(value):
        raise SessionChangeError("value", "holds a whole number beyond 63 bits and a sign, which rules cannot read")
    if Scrubber(()).bytes(written) != written:
        raise SessionChangeError("value", "holds a virtual key, which belongs to its owner alone; what stands here is shown to others")


async def change_state(
    desk: SessionDesk, approvals: Approvals, wanted: SessionState, learn: Callable[[SessionState], None] | None = None,
    withdrawn: Callable[[Ticket, str], None] | None = None,
) -> SessionState:
    """Put on record what an operator says of a session; with one that is killed go the approvals that it waits for or has not used.

    `learn` hears of it as soon as it counts, so that a call that waits for one of them hears why it ends; `withdrawn` of each of them, and
    who withdrew it.

    Raises:
        BudgetError: the author or the note cannot be shown to others.
        NotPossibleError: it was killed, and is to go on.
        StoreUnavailable, StoreError: it cannot be put on record. Said again, it does what is left to do.
    """
    key, author, now_ns = wanted.key, wanted.author, wanted.at_ns
    check_author(author)
    check_text("note", wanted.note)
    state = await desk.set_state(key, wanted.state, author=author, note=wanted.note, now_ns=now_ns)  # first: then there come no more
    if learn is not None:
        learn(state)
    if state.state == KILLED:
        async for ticket in _withdrawn(approvals, key, author, now_ns):
            if withdrawn is not None:
                withdrawn(ticket, author)
    return state


async def _withdrawn(approvals: Approvals, key: SessionKey, author: str, now_ns: int) -> AsyncIterator[Ticket]:
    wanted = TicketFilter((State.PENDING, State.APPROVED), principal=key.principal, session=key.id, limit=_PAGE)
    while found := await approvals.list(wanted):
        wanted = replace(wanted, after=found[-1].id)
        for ticket in found:
            try:
                yield await approvals.happen(ticket.id, Event.WITHDRAW, now_ns=now_ns, author=author, reason="The session was killed.")
            except NotPossibleError:  # it was decided or claimed in this moment: its call is ended by other means
                continue


def _beyond(value: Json) -> bool:
    if isinstance(value, dict):
        return any(map(_beyond, value.values()))
    if isinstance(value, list):
        return any(map(_beyond, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63
