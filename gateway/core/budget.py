"""The arithmetic of budgets: how much of a need the accounts afford, what is set aside, what is booked. Pure integers, in nano-USD.

Both stores do the same with it inside one atomic step: read the balances, ask `admit`, write what it grants.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gateway.core.accounts import Account

_PUSD_PER_NUSD: Final = 1_000
MOST_NUSD: Final = 2**62  # what one balance may hold: two of them together still fit in 64 bits
Why: TypeAlias = Literal["exceeded", "busy", "unpriced"]


@dataclass(frozen=True, slots=True)
class Need:
    """What an attempt may cost at the most: `fixed_nusd`, and `unit_pusd` for each of up to `most` units.

    A unit is a token of the longest answer that may be asked for, all choices together. `rigid`: it cannot be asked for less. `unpriced`:
    nobody knows the price.
    """

    fixed_nusd: int
    unit_pusd: int = 0
    most: int = 0
    rigid: bool = False
    unpriced: bool = False

    def cost(self, units: int) -> int:
        """What it costs at the most with so many units, in nano-USD."""
        return self.fixed_nusd + -(-units * self.unit_pusd // _PUSD_PER_NUSD)

    def affordable(self, nusd: int) -> int | None:
        """How many units so much money pays for, `most` at most; None where not even what is fixed."""
        if self.cost(self.most) == 0:  # what is free of charge needs no money, not even where none is left
            return self.most
        rest = nusd - self.fixed_nusd
        if rest < 0:
            return None
        return self.most if self.unit_pusd == 0 else min(self.most, rest * _PUSD_PER_NUSD // self.unit_pusd)


@dataclass(frozen=True, slots=True)
class Balance:
    """What is booked and what is set aside."""

    posted: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Holding:
    """An account as a call finds it. `counted` is what counts against its limit, of all windows that do; `window_ns` is the current one."""

    account: Account
    window_ns: int
    counted: Balance

    @property
    def left_nusd(self) -> int | None:
        """What neither is spent nor set aside; None without a limit. Negative where a limit was lowered under what was spent."""
        limit = self.account.limit_nusd
        return None if limit is None else limit - self.counted.posted - self.counted.pending


@dataclass(frozen=True, slots=True)
class Granted:
    """The call may go on. `amount_nusd` is all that is set aside for it, earlier attempts included.

    `units` is what the accounts afford; None where none of them limits the call, so that nothing of it need be rewritten.
    """

    amount_nusd: int
    units: int | None


@dataclass(frozen=True, slots=True)
class Short:
    """The money does not reach: the account that binds, as it stood, and why. `needed_nusd` is the least that would have done."""

    holding: Holding
    why: Why
    needed_nusd: int


def admit(holdings: Sequence[Holding], need: Need, *, spent_nusd: int = 0, reserved_nusd: int = 0) -> Granted | Short:
    """Whether the accounts afford what is needed, all of them or none.

    `spent_nusd` is what the call's earlier attempts cost at the most, `reserved_nusd` what is already set aside for it, and so is part of
    every account's pending. Short money shortens the answer, down to an account's `least`, unless the account says `deny`. Where several
    accounts are short, one that does not get better by waiting is named before one that does.
    """
    units = need.most
    limited = False
    busy: Short | None = None
    for holding in holdings:
        account, left = holding.account, holding.left_nusd
        if left is None:
            continue
        if need.unpriced:
            return Short(holding, "unpriced", 0)
        limited = True
        least = need.most if need.rigid or account.on_short == "deny" else min(account.least, need.most)
        own = reserved_nusd - spent_nusd
        afforded, alone = need.affordable(left + own), need.affordable(left + own + holding.counted.pending - reserved_nusd)
        if afforded is not None and afforded >= least:
            units = min(units, afforded)
        elif alone is None or alone < least:
            return Short(holding, "exceeded", need.cost(least))
        else:
            busy = busy or Short(holding, "busy", need.cost(least))
    if busy is not None:
        return busy
    cost = need.cost(units)
    return Granted(max(reserved_nusd, spent_nusd + cost) if cost else reserved_nusd, units if limited else None)


def reserved(balance: Balance, amount_nusd: int) -> Balance:
    """With so much more set aside."""
    return Balance(balance.posted, balance.pending + amount_nusd)


def settled(balance: Balance, amount_nusd: int, cost_nusd: int) -> Balance:
    """With what was set aside given back, and the cost booked."""
    return Balance(min(balance.posted + cost_nusd, MOST_NUSD), balance.pending - amount_nusd)


def counted(balances: Iterable[Balance]) -> Balance:
    """Several windows' balances together."""
    posted = pending = 0
    for each in balances:
        posted += each.posted
        pending += each.pending
    return Balance(posted, pending)


def crossed(account: Account, before: Balance, after: Balance) -> bool:
    """Whether what is spent has just reached the soft limit."""
    soft = account.soft_nusd
    return soft is not None and before.posted < soft <= after.posted
