"""How much may wait for people, and how much one caller may ask of them. Pure; the stores keep the numbers."""

from dataclasses import dataclass
from typing import Final

from gateway.core.rate import Spent, Take, taken

HOUR_NS: Final = 3_600_000_000_000
_LATER_S: Final = 60  # people decide when they do
_WAITS: Final = "Try again when people have decided on some of them."


@dataclass(frozen=True, slots=True)
class Bounds:
    """What `approvals` of the settings allows; None where there is no such bound. `opened_each` is of an hour, whatever becomes of them."""

    pending: int
    pending_each: int | None = None
    pending_bytes: int | None = None
    pending_bytes_each: int | None = None
    opened_each: int | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """What is pending, of everybody or of one caller. `full_ns` says how much the caller has asked for lately, as `core/rate.py` counts."""

    pending: int = 0
    size: int = 0
    full_ns: int = 0


@dataclass(frozen=True, slots=True)
class Full:
    """Why nothing more may be asked: whose bound it is, which setting, and when to come back. `often`: it was asked too often."""

    message: str
    retry_after_s: int
    often: bool = False


def asked(bounds: Bounds, everybody: Queue, caller: Queue, size: int, now_ns: int) -> int | Full:
    """The caller's `full_ns` once one more approval of that size is opened, or why it may not be.

    One that is larger than all that may wait goes through where nothing else does: it could else never.
    """
    for queue, whose, each, most in (
        (everybody, "", "", bounds.pending), (caller, " of this caller", "_each", bounds.pending_each),
    ):
        if most is not None and queue.pending >= most:
            return Full(f"{most} approvals{whose} are pending already, as many as `approvals.max_pending{each}` allows. {_WAITS}", _LATER_S)
    for queue, whose, each, most in (
        (everybody, "", "", bounds.pending_bytes), (caller, " of this caller", "_each", bounds.pending_bytes_each),
    ):
        if most is not None and queue.size and queue.size + size > most:
            return Full(f"The approvals{whose} that are pending hold {queue.size} bytes already; this one has {size}, and "
                        f"`approvals.max_pending_bytes{each}` allows {most} in all. {_WAITS}", _LATER_S)
    if bounds.opened_each is None:
        return caller.full_ns
    after = taken(Take("", "", "requests", bounds.opened_each, HOUR_NS), caller.full_ns, now_ns)
    if not isinstance(after, Spent):
        return after
    wait_s = -(-after.wait_ns // 1_000_000_000)
    return Full(f"This caller has asked for {bounds.opened_each} approvals within an hour, as many as `approvals.max_opened_each` allows, "
                f"whatever became of them. There is room for another one in {wait_s} s.", wait_s, often=True)
