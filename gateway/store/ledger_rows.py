"""What the ledger's reports consist of, whichever store gives them. From rows, pure."""

from typing import Final

# A balance of one window. `ends_ns` is None where it never ends.
WINDOW_FIELDS: Final = (
    "budget", "subject", "scope", "span", "window_ns", "ends_ns", "posted_nusd", "pending_nusd", "limit_nusd", "over_nusd")
# A settlement that was booked at the estimate because its process died.
SUSPECT_FIELDS: Final = ("call", "received_ns", "at_ns", "key", "team", "route", "target", "cost_nusd", "accounts")
# One group of the costs report; `group` is None in the last row, which holds what the limit left out.
COST_FIELDS: Final = ("group", "cost_nusd", "estimated_nusd", "calls", "lines")
# What costs may be grouped by.
COST_GROUPS: Final = ("model", "team", "org", "key", "session", "run", "route", "tool", "day")
