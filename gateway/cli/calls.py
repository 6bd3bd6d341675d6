"""`lockgate calls`: what was called, what was decided, what it cost. Reads the database beside the gateway, or without one."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson

from gateway.call import Outcome
from gateway.cli.deployment import open_deployment
from gateway.cli.output import config_option, emit_columns, emit_json, emit_json_line, emit_rows, json_option, printable
from gateway.cli.story import plan_lines
from gateway.core.explain_path import kind_of
from gateway.store.approvals_protocol import waits_of
from gateway.store.approvals_sql import listed
from gateway.store.call_money import call_money
from gateway.store.database import Connection
from gateway.store.protocol import CallFilter
from gateway.store.reads import list_calls, one_call
from gateway.store.rows import JOURNAL_FIELDS, OPEN

_COLUMNS: Final = ("time", "id", "key", "route", "target", "outcome", "code", "cost_usd", "seconds")
_WIDTHS: Final = (20, 31, 12, 16, 24, 11, 17, 10, 7)  # of these, where lines are printed before the next is known
_ATTEMPT_COLUMNS: Final = (
    "n", "target", "why", "end", "cause", "status", "waited_s", "seconds", "breaker", "retries_left", "cost_usd", "message",
)
_REASON_COLUMNS: Final = ("phase", "subject", "rule", "effect", "verdict", "mode", "source", "message")
_VERDICT_COLUMNS: Final = ("phase", "subject", "decision", "rule", "message")
_LINE_COLUMNS: Final = ("n", "target", "cost_usd", "estimated", "images", "prices")
_USE_COLUMNS: Final = ("id", "name", "via", "released", "args")
_FACTS: Final = (
    "id", "time", "outcome", "status", "code", "message", "decision", "rule", "withheld", "labels", "bundle", "key", "name", "team", "org",
    "dialect", "operation", "route", "target", "stream", "session", "run", "step", "tags", "traceparent", "seconds", "first_byte_s",
    "finish_reasons", "usage", "cost_usd", "reserved", "settled", "part_of", "parts", "approvals",
    "grants",
)
_POLL_S: Final = 0.5
_PAGE: Final = 500
_OUTCOMES: Final = (*(outcome.value for outcome in Outcome), OPEN)
_FILTERS: Final = {
    "key": click.option("--key", help="Only calls of this key (its id)."),
    "team": click.option("--team", help="Only calls of this team."),
    "route": click.option("--route", help="Only calls of this route."),
    "rule": click.option("--rule", help="Only calls that this rule decided (its id)."),
    "outcome": click.option("--outcome", type=click.Choice(_OUTCOMES), help=f"Only calls that ended so; {OPEN}: that have not ended."),
    "code": click.option("--code", help="Only calls that ended with this error code, `forbidden` for one."),
    "session": click.option("--session", help="Only calls of this session."),
    "approval": click.option("--approval", help="Only calls that waited for this approval or were made under it (its id); '': the others."),
    "part_of": click.option("--part-of", help="Only calls that were made for this call (its id), a mirror's for one; '': callers' own."),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def calls() -> None:
    """See what was called, what was decided and what it cost."""


def _with_filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_FILTERS.values()):
        command = option(command)
    return command


@calls.command()
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many of the latest.")
@click.option("-f", "--follow", is_flag=True, help="Go on: show each call when it ends, until interrupted.")
@_with_filters
@config_option
@json_option
def tail(*, count: int, follow: bool, config_path: str, as_json: bool, **filters: str | None) -> None:
    """List the latest calls, the latest last. With -f, JSON is one object a line."""
    wanted = CallFilter(count, **filters)
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        if follow:
            never = threading.Event()
            _follow(ended_calls(connection, wanted, wait=lambda: never.wait(_POLL_S)), as_json=as_json)
            return
        rows = list_calls(connection, wanted)[::-1]
    emit_rows(rows if as_json else [_listed(row) for row in rows], _COLUMNS, as_json=as_json)


def _follow(rows: Iterator[Mapping[str, Any]], *, as_json: bool) -> None:
    if not as_json:
        emit_columns(_COLUMNS, _WIDTHS)
    for row in rows:
        if as_json:
            emit_json_line(row)
        else:
            shown = _listed(row)
            emit_columns([_line(shown[column]) for column in _COLUMNS], _WIDTHS)


@calls.command(short_help="Show all that is on record of one call.")
@click.argument("call_id")
@config_option
@json_option
def show(*, call_id: str, config_path: str, as_json: bool) -> None:
    """Show one call: decisions, plan, reasons, tool calls, attempts, usage, cost and bodies. `lockgate explain` tells its story."""
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        call = recorded(connection, call_id)
        money = call_money(connection, call_id)
    if as_json:
        emit_json({**call, "money": money})
        return
    shown = {**_shown(call), **_told(money), "cost_usd": _cost(call, is_open=call["outcome"] == OPEN)}
    for name in _FACTS:
        if shown.get(name) not in (None, [], {}):
            click.echo(f"{name:15} {_line(shown[name])}")
    for line in ("", *plan_lines(call["plan"])) if call["plan"] else ():
        click.echo(printable(line))
    _show_tables(call, money)
    for title in ("request", "response"):
        if call[title] is not None:
            click.echo(f"\n{title}\n{_pretty(call[title])}")


def recorded(connection: Connection, call_id: str) -> dict[str, Any]:
    """A call with all that is on record of it. Raises `ClickException` where there is none, or none yet."""
    call = one_call(connection, call_id)
    if call is not None:
        return call
    for ticket in listed(connection, waits_of(call_id)):
        raise click.ClickException(
            f"the call {call_id} is waiting for the approval {ticket.id}, and is on record once it has ended; "
            f"`lockgate approvals show {ticket.id}` shows what it asks for")
    raise click.ClickException(f"there is no call {call_id!r} on record; `lockgate calls tail` lists the latest")


def _show_tables(call: Mapping[str, Any], money: Mapping[str, Any] | None) -> None:
    """What there may be several of."""
    for title, rows, columns in (
        ("verdicts", call["verdicts"], _VERDICT_COLUMNS), ("reasons", _reasons(call), _REASON_COLUMNS),
        ("tool calls", [{**use, "args": _line(use["args"])} for use in call["tool_uses"]], _USE_COLUMNS),
        ("attempts", [_timed(row) for row in call["attempts"]], _ATTEMPT_COLUMNS),
        ("ledger", money["lines"] if money else [], _LINE_COLUMNS),
    ):
        if rows:
            click.echo(f"\n{title}")
            emit_rows(rows, columns, as_json=False)


def ended_calls(connection: Connection, wanted: CallFilter, *, wait: Callable[[], bool]) -> Iterator[Mapping[str, Any]]:
    """The latest calls and then every further one, each once and when it has ended, until `wait` returns true."""
    newest = next(iter(list_calls(connection, CallFilter(limit=1))), None)
    after = newest["id"] if newest else None
    pending = {row["id"]: None for row in reversed(list_calls(connection, CallFilter(limit=_PAGE, outcome=OPEN)))}
    yield from (row for row in reversed(list_calls(connection, wanted)) if row["id"] not in pending)
    while not wait():
        fresh = list(_since(connection, after))
        after = fresh[-1]["id"] if fresh else after
        pending |= dict.fromkeys(row["id"] for row in fresh)
        for call_id in list(pending):
            row = one_call(connection, call_id)
            if row is not None and row["outcome"] == OPEN:
                continue
            del pending[call_id]
            if row is not None and _matches(row, wanted):
                yield {name: row[name] for name in JOURNAL_FIELDS}


def _since(connection: Connection, after: str | None) -> Iterator[Mapping[str, Any]]:
    """Every call since one, oldest first."""
    pages = [list_calls(connection, CallFilter(limit=_PAGE, after=after))]
    while len(pages[-1]) == _PAGE:
        pages.append(list_calls(connection, CallFilter(limit=_PAGE, after=after, before=pages[-1][-1]["id"])))
    for page in reversed(pages):
        yield from reversed(page)


def _matches(row: Mapping[str, Any], wanted: CallFilter) -> bool:
    asked = replace(wanted, approval=None) if wanted.approval in row["approvals"] else wanted  # any of them, as in the store
    return all(getattr(asked, name) in (None, row[name] or "") for name in _FILTERS)  # '' is absence, as in the store


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its times for people. An unknown cost says so: it is not nothing."""
    received_ns, first_ns = row["received_ns"], row["first_byte_ns"]
    when = datetime.fromtimestamp(received_ns // 1_000_000_000, UTC)
    unknown = "unknown" if row["outcome"] != OPEN else None
    return {
        **row, "time": f"{when:%Y-%m-%dT%H:%M:%SZ}", "seconds": _seconds(received_ns, row["ended_ns"]),
        "first_byte_s": _seconds(received_ns, first_ns), "cost_usd": row["cost_usd"] or unknown,
    }


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as one line of many, where a call that the gateway made itself is to be told from a caller's."""
    return {**_shown(row), "route": f"{row['route']} ({kind_of(row['labels'])})" if row["part_of"] else row["route"]}


def _reasons(call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reasons of every decision on a call, in order."""
    told = [*call["reasons"], *(reason for verdict in call["verdicts"] for reason in verdict.get("reasons", []))]
    return [{"phase": "request", **reason, "mode": "shadow" if reason.get("shadow") else "enforce"} for reason in told]


def _timed(attempt: Mapping[str, Any]) -> dict[str, Any]:
    held = attempt["retries_left"]
    return {
        **attempt, "waited_s": f"{attempt['waited_s']:.3f}", "retries_left": None if held is None else f"{held:.1f}",
        "seconds": _seconds(attempt["started_ns"], attempt["ended_ns"]),
        "cost_usd": _cost(attempt, is_open=attempt["end"] is None),
    }


def _cost(row: Mapping[str, Any], *, is_open: bool) -> str | None:
    """The cost of a call or an attempt, with how far it is to be trusted."""
    if row["cost_usd"] is None:
        return None if is_open else "unknown"
    return f"{row['cost_usd']} (estimated)" if row["usage"] is not None and row["usage"]["estimated"] else str(row["cost_usd"])


def _told(money: Mapping[str, Any] | None) -> dict[str, str]:
    """What was set aside for a call and what became of it, where budgets bind it."""
    if money is None or not money["accounts"]:  # a reservation without accounts is of rates alone
        return {}
    reserved = f"{money['reserved_usd']} on {', '.join(money['accounts'])}"
    if money["granted_tokens"] is not None:
        reserved += f", for an answer of up to {money['granted_tokens']} tokens"
    settled = money["settlement"]
    if settled is None:
        return {"reserved": reserved}
    doubt = ": a suspect, `lockgate budgets resolve` books what it really was" if settled["suspect"] else ""
    author = f" by {settled['author']}" if settled["author"] else ""
    return {"reserved": reserved, "settled": f"{settled['cost_usd']} ({settled['how']}{author}){doubt}"}


def _seconds(start_ns: int, end_ns: int | None) -> str | None:
    return None if end_ns is None else f"{(end_ns - start_ns) / 1_000_000_000:.3f}"


def _line(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return printable(text)


def _pretty(body: str) -> str:
    with contextlib.suppress(orjson.JSONDecodeError):  # not JSON, or cut short: shown as it is
        body = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    return "\n".join(printable(line) for line in body.split("\n"))
