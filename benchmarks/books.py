"""What the simulated providers of a run bill, and what a gateway's database says of it, so that one can be held against the other.

Money is in pico-USD on the providers' side, where a token's price has no fraction, and in nano-USD in the books.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.store.database import open_readonly

BROKEN_OFF: Final = ("cut", "cancelled")  # outcomes of a stream that more was made of than came


@dataclass(frozen=True)
class Bill:
    """One request as a provider's log has it."""

    call: str
    user: str
    asked: str  # the last message
    pusd: int
    told: bool  # the provider said what it used, and all of its answer went out
    end: str
    status: int
    received_ns: int
    client_gone_ns: int | None


def bills(folder: Path, prices: Mapping[str, tuple[int, int]]) -> Iterator[Bill]:
    """Every request that a provider received. `prices` are pico-USD a token, of the input and of the output, by the provider's name."""
    for name, (input_pusd, output_pusd) in prices.items():
        with (folder / f"{name}.jsonl").open("rb") as lines:
            for line in lines:
                entry: dict[str, Any] = json.loads(line)
                tokens = entry["billed"] or {"prompt_tokens": 0, "completion_tokens": 0}
                yield Bill(
                    entry["client_request_id"].rpartition(".")[0], entry["body"].get("user", ""),
                    entry["body"]["messages"][-1]["content"],
                    tokens["prompt_tokens"] * input_pusd + tokens["completion_tokens"] * output_pusd,
                    entry["usage"] is not None and entry["end"] == "completed", entry["end"], entry["status"],
                    entry["received_ns"], entry["client_gone_ns"])


class Books:
    """What stands in the database. `calls` is what is booked for each call that money was set aside for."""

    def __init__(self, database: Path) -> None:
        connection = open_readonly(database)
        try:
            calls = connection.execute(
                "SELECT calls.id, settlements.cost_nusd, how, outcome FROM reservations JOIN calls USING (seq) "
                "LEFT JOIN settlements USING (seq) LEFT JOIN outcomes USING (seq)").fetchall()
            estimated = connection.execute("SELECT DISTINCT calls.id FROM ledger JOIN calls USING (seq) WHERE estimated = 1").fetchall()
            balances = connection.execute("SELECT budget, subject, span, window_ns, posted_nusd, pending_nusd FROM balances").fetchall()
            taken = connection.execute("SELECT whose, value FROM rates WHERE measure = 'concurrent'").fetchall()
        finally:
            connection.close()
        self.calls: dict[str, int] = {call: cost or 0 for call, cost, _how, _outcome in calls}
        self.outcomes: dict[str, str] = {call: outcome or "" for call, _cost, _how, outcome in calls}
        self.recovered = sum(how == "recovered" for _call, _cost, how, _outcome in calls)
        self.estimated = {call for (call,) in estimated}
        self.taken: dict[str, int] = {whose: value for whose, value in taken if value}  # calls in flight, as the rates have it
        self.accounts: defaultdict[str, int] = defaultdict(int)
        self.pending: defaultdict[str, int] = defaultdict(int)
        self.windows: defaultdict[tuple[str, str], int] = defaultdict(int)
        for budget, subject, span, window_ns, posted, pending in balances:
            name = f"{budget}/{subject}"
            self.accounts[name] += posted
            self.pending[name] += pending
            # The steps of a rolling window that is longer than the run all count at once.
            self.windows[name, f"{name} ({span})" if span.startswith("rolling") else f"{name} ({span} {window_ns})"] += posted


def dollars(pusd: int) -> str:
    whole, rest = divmod(pusd, 10**12)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")
