"""Rates: the generic cell rate algorithm and counts of what is under way, pure. Both stores keep the numbers; nothing here does.

Source: ITU-T I.371, annex A (the virtual scheduling algorithm). One number a count: when its bucket would be empty again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

_MOST_OWED: Final = 10  # periods
Measure: TypeAlias = Literal["requests", "tokens", "concurrent"]
Count: TypeAlias = tuple[str, str, str]  # the rule, whose, and what is measured


@dataclass(frozen=True, slots=True)
class Take:
    """What a call takes of one rate: `amount` of at most `most` in `period_ns`, of the count that belongs to `whose`.

    `tokens` are an estimate, corrected when the call is settled. `concurrent` has no period: it is given back when the call ends.
    """

    rule: str
    whose: str
    measure: Measure
    most: int
    period_ns: int
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Spent:
    """A rate is used up. `wait_ns`: when there is enough again; 0 where only the end of other calls brings it back."""

    take: Take
    wait_ns: int


def all_taken(
    takes: Sequence[Take], key: Callable[[Take], Count], known_of: Callable[[Count], int], now_ns: int,
) -> dict[Count, int] | Spent:
    """What the counts would be with all of these taken; or the first that does not allow it. Nothing is taken yet.

    `key` says where the count of a take is kept, `known_of` how it stands, 0 for a new one.
    """
    counts: dict[Count, int] = {}
    for take in takes:
        at = key(take)
        known = counts[at] if at in counts else known_of(at)
        if take.measure == "concurrent":
            after: int | Spent = known + take.amount if known + take.amount <= take.most else Spent(take, 0)
        else:
            after = taken(take, known, now_ns)
        if isinstance(after, Spent):
            return after
        counts[at] = after
    return counts


def taken(take: Take, full_at_ns: int, now_ns: int) -> int | Spent:
    """The bucket's new number with so much more in it, or how long to wait.

    An amount above `most` goes through when the bucket is empty: it could else never. What is owed is no more than `_MOST_OWED` periods:
    a number beyond that is of a clock that stepped back, and costs nobody anything.
    """
    start = now_ns if full_at_ns > now_ns + _MOST_OWED * take.period_ns else max(full_at_ns, now_ns)
    full_at = start + take.period_ns * min(take.amount, take.most) // take.most  # rounded down, or the last of `most` would not fit
    over = full_at - now_ns - take.period_ns
    return full_at if over <= 0 else Spent(take, over)


def corrected(take: Take, full_at_ns: int, amount: int, now_ns: int) -> int:
    """The bucket's number when what was taken turns out to be `amount`: that may be more than the bucket holds, and is owed."""
    difference = amount - min(take.amount, take.most)
    return min(full_at_ns + take.period_ns * difference // take.most, now_ns + _MOST_OWED * take.period_ns)
