"""Money as operators read it, for JSON and for spreadsheets: `lockgate budgets` and the control endpoints show the same. Pure.

Amounts are decimal strings of USD (`_usd`) beside integers (`_nusd`), times ISO 8601 in UTC (`_at`) beside wall nanoseconds (`_ns`).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gateway.budget_changes import Catalogue
from gateway.clock import time_text
from gateway.core.accounts import Budget, Change
from gateway.core.money import usd
from gateway.core.windows import Window
from gateway.store.protocol import Standing
from gateway.units import parse_duration, show_duration

OTHERS: Final = "(others)"  # the row of a table for what its limit left out
_LATEST_NS: Final = 9_183_110_400_000_000_000  # 2261-01-01: nanoseconds in 64 bits end a year later
_ACTIVE_CELL: Final = ("=", "+", "-", "@")  # what a spreadsheet takes for a formula
_NS: Final = 10**9


def moment(text: str, now_ns: int, *, back: bool) -> int:
    """`7d` from now, or `back` from it, or a time in ISO 8601 (UTC unless it says otherwise), as wall nanoseconds. Raises `ValueError`."""
    try:
        distance_ns = int(parse_duration(text) * _NS)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError('is neither a duration ("7d", "12h") nor a time ("2030-01-31", "2030-01-31T12:00:00Z")') from None
        at_ns = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * _NS
    else:
        at_ns = now_ns - distance_ns if back else now_ns + distance_ns
    if not 0 <= at_ns <= _LATEST_NS:
        raise ValueError("lies outside the years 1970 to 2260")
    return at_ns


def settings_of(budget: Budget) -> dict[str, Any]:
    """A budget's settings as they are written in config.toml; what is not set is None."""
    return {
        "scope": budget.scope, "of": list(budget.of), "limit": _usd(budget.limit_nusd), "soft": _usd(budget.soft_nusd),
        "limits": {subject: usd(nusd) for subject, nusd in budget.limits.items()}, **_window(budget.window),
        "on_short": budget.on_short, "least_output": budget.least,
    }


def budget_row(known: Catalogue, budget: Budget) -> dict[str, Any]:
    """A budget with its settings, and where it stands."""
    return {"name": budget.name, "source": "config.toml" if known.configures(budget.name) else "set", **settings_of(budget)}


def account_row(standing: Standing) -> dict[str, Any]:
    """An account as it stands. `used_percent` is that of its limit."""
    account, counted = standing.account, standing.counted
    limit, soft = account.limit_nusd, account.soft_nusd
    left = None if limit is None else max(0, limit - counted.posted - counted.pending)
    return {
        "account": account.name, "budget": account.budget, "subject": account.subject, "scope": account.scope,
        **_amounts(limit=limit, soft=soft, used=counted.posted, reserved=counted.pending, remaining=left),
        "used_percent": round(100 * counted.posted / limit, 1) if limit else None,
        "past_soft_limit": soft is not None and counted.posted >= soft,
        # What is spent in a rolling window comes back bit by bit.
        **_window(account.window), **_times(resets=None if account.window.kind == "rolling" else standing.ends_ns),
    }


def window_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A balance of one window, from `WINDOW_FIELDS`. Of a rolling window it is one step."""
    return {
        "account": f"{row['budget']}/{row['subject']}", "budget": row["budget"], "subject": row["subject"], "scope": row["scope"],
        "span": row["span"], **_times(began=row["window_ns"] or None, ends=row["ends_ns"]),
        **_amounts(used=row["posted_nusd"], reserved=row["pending_nusd"], limit=row["limit_nusd"], over=row["over_nusd"]),
    }


def change_row(known: Catalogue, change: Change) -> dict[str, Any]:
    """What an operator did. With `raise`, `limit` is by how much."""
    return {
        "id": change.id, **_times(changed=change.at_ns), "author": change.author, "kind": change.kind, "budget": change.name,
        "subject": change.subject, "settings": None if change.budget is None else budget_row(known, change.budget),
        **_amounts(limit=change.limit_nusd, soft=change.soft_nusd), **_times(until=change.until_ns), "note": change.note,
    }


def raise_rows(known: Catalogue, name: str, now_ns: int) -> list[dict[str, Any]]:
    """The raises of a budget that hold. One with the empty subject holds for every account."""
    return [{"budget": name, "subject": subject, **_amounts(by=by), **_times(until=until_ns)}
            for subject, by, until_ns in known.raises(name, now_ns)]


def suspect_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A settlement that was booked at the estimate because its process died, from `SUSPECT_FIELDS`."""
    told = {name: row[name] for name in ("call", "key", "team", "route", "target", "accounts")}
    return {**told, **_times(received=row["received_ns"], booked=row["at_ns"]), **_amounts(cost=row["cost_nusd"])}


def cost_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One group of the costs, from `COST_FIELDS`; the group None is all that a limit left out."""
    return {
        "group": row["group"], **_amounts(cost=row["cost_nusd"], estimated=row["estimated_nusd"]), "calls": row["calls"],
        "lines": row["lines"],
    }


def costs_report(by: str, since_ns: int, until_ns: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The costs with their sum, which is the ledger's. A call on two models is in both rows: calls are not added up."""
    total, estimated, lines = (sum(row[name] for row in rows) for name in ("cost_nusd", "estimated_nusd", "lines"))
    return {
        "by": by, **_times(since=since_ns, until=until_ns), **_amounts(total=total, estimated=estimated), "lines": lines,
        "groups": [cost_row(row) for row in rows],
    }


def costs_csv(by: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The costs for a spreadsheet (RFC 4180), in which what callers chose stays text."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow((by, "cost_usd", "estimated_usd", "calls", "lines"))
    for row in rows:
        told = cost_row(row)
        group = OTHERS if told["group"] is None else _inert(told["group"])
        writer.writerow((group, told["cost_usd"], told["estimated_usd"], told["calls"], told["lines"]))
    return text.getvalue()


def _window(window: Window) -> dict[str, Any]:
    """A window as it is written."""
    return {"window": show_duration(window.length_ns / _NS) if window.kind == "rolling" else window.kind, "timezone": window.zone}


def _amounts(**nusd: int | None) -> dict[str, Any]:
    return {key: value for name, amount in nusd.items() for key, value in ((f"{name}_usd", _usd(amount)), (f"{name}_nusd", amount))}


def _times(**at_ns: int | None) -> dict[str, Any]:
    return {key: value for name, ns in at_ns.items() for key, value in ((f"{name}_at", time_text(ns)), (f"{name}_ns", ns))}


def _inert(cell: str) -> str:
    """A cell that neither a spreadsheet nor a terminal acts on. Source: OWASP, CSV injection."""
    cell = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in cell)
    return f"'{cell}" if cell.lstrip().startswith(_ACTIVE_CELL) else cell


def _usd(nusd: int | None) -> str | None:
    return None if nusd is None else usd(nusd)
