"""What `[budgets]` and `lockgate budgets set` say, as budgets. Owns their meaning; the shape is `config.py`'s."""

from typing import Final
from zoneinfo import ZoneInfo

from gateway.config import BudgetConfig
from gateway.core.accounts import Budget
from gateway.core.windows import Kind, Window
from gateway.units import parse_duration

_CALENDAR: Final[dict[str, Kind]] = {"none": "none", "hour": "hour", "day": "day", "week": "week", "month": "month"}
_TAKEN: Final = "suspects"
_SHORTEST_S: Final = 60.0
_EXACT_S: Final = 1e-6  # a duration is a float: "0.07h" is 252.00000000000003 seconds
_LEAPING: Final = "right/"  # zones that count leap seconds, which no clock here does


class BudgetError(ValueError):
    """A budget cannot be what it is said to be; `key` is the setting at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def budget_of(name: str, given: BudgetConfig) -> Budget:
    """A budget from its settings. Raises `BudgetError`."""
    if name == _TAKEN:
        raise BudgetError("name", f"a budget cannot be called {_TAKEN}: that is an address of its own under /-/budgets")
    if given.limit is None and given.soft is None and not given.limits:
        raise BudgetError("limit", "a budget needs `limit`, `soft` or `limits`")
    if given.limit is not None and given.soft is not None and given.soft > given.limit:
        raise BudgetError("soft", "the soft limit is above the limit, so that it would never warn")
    if given.scope == "tag" and (wrong := next((each for each in given.of if "=" not in each and not each.startswith("*")), None)):
        raise BudgetError("of", f"a tag is NAME=VALUE, which {wrong!r} never matches")
    return Budget(
        name, given.scope, given.limit, window_of(given.window, given.timezone), given.of, given.soft, given.on_short,
        given.least_output, dict(given.limits))


def window_of(window: str, timezone: str) -> Window:
    """`month` and a time zone, or a duration, as a window. Raises `BudgetError`."""
    try:
        if timezone.startswith(_LEAPING):
            raise ValueError(timezone)
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise BudgetError("timezone", f"there is no time zone {timezone!r}; they are named as in Europe/Berlin") from error
    if window in _CALENDAR:
        return Window(_CALENDAR[window], timezone)
    try:
        length_s = parse_duration(window)
    except ValueError as error:
        raise BudgetError("window", 'a window is "hour", "day", "week", "month", "none" or a duration: "24h"') from error
    if length_s < _SHORTEST_S:
        raise BudgetError("window", "a rolling window is a minute at the least; for less there is the effect `limit`")
    if abs(length_s - round(length_s)) > _EXACT_S:
        raise BudgetError("window", "a rolling window is a whole number of seconds")
    return Window("rolling", length_ns=round(length_s) * 10**9)
