"""`lockgate calls`: what was called, what was decided, what it cost. Reads the database beside the gateway, or without one."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson

from gateway.cli.deployment import database_at
from gateway.cli.output import config_option, emit_json, emit_rows, json_option
from gateway.store.database import Connection, open_readonly
from gateway.store.protocol import CallFilter
from gateway.store.reads import list_calls, one_call
from gateway.store.rows import JOURNAL_FIELDS, OPEN

_COLUMNS: Final = ("time", "id", "key", "route", "target", "outcome", "code", "cost_usd", "seconds")
_ATTEMPT_COLUMNS: Final = ("n", "target", "end", "cause", "status", "waited_s", "seconds", "cost_usd", "message")
_REASON_COLUMNS: Final = ("rule", "effect", "verdict", "source", "message")
_FACTS: Final = (
    "id", "time", "outcome", "status", "code", "message", "decision", "rule", "labels", "bundle", "key", "name", "team", "org", "dialect",
    "operation", "route", "target", "stream", "session", "run", "step", "tags", "traceparent", "seconds", "first_byte_s",
    "finish_reasons", "usage", "cost_usd",
)
_POLL_S: Final = 0.5
_PAGE: Final = 500
_FILTERS: Final = (
    click.option("--key", help="Only calls of this key (its id)."),
    click.option("--route", help="Only calls of this route."),
    click.option("--outcome", type=click.Choice(["completed", "refused", "failed", "cut", "cancelled", "interrupted", OPEN]),
                 help="Only calls that ended so."),
    click.option("--session", help="Only calls of this session."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def calls() -> None:
    """See what was called, what was decided and what it cost."""


def _with_filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@calls.command()
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many of the latest.")
@click.option("-f", "--follow", is_flag=True, help="Go on: show each call when it ends, until interrupted.")
@_with_filters
@config_option
@json_option
def tail(*, count: int, follow: bool, config_path: str, as_json: bool, **filters: str | None) -> None:
    """List the latest calls, the latest last."""
    wanted = CallFilter(count, key=filters["key"], route=filters["route"], outcome=filters["outcome"], session=filters["session"])
    with contextlib.closing(open_readonly(database_at(config_path))) as connection:
        if not follow:
            emit_rows([_shown(row) for row in reversed(list_calls(connection, wanted))], _COLUMNS, as_json=as_json)
            return
        never = threading.Event()
        for row in ended_calls(connection, wanted, wait=lambda: never.wait(_POLL_S)):
            if as_json:
                click.echo(orjson.dumps(row).decode())
            else:
                click.echo("  ".join(_line(_shown(row)[column]) for column in _COLUMNS))


@calls.command()
@click.argument("call_id")
@config_option
@json_option
def show(*, call_id: str, config_path: str, as_json: bool) -> None:
    """Show one call: decision, reasons, attempts, usage, cost and bodies."""
    with contextlib.closing(open_readonly(database_at(config_path))) as connection:
        call = one_call(connection, call_id)
    if call is None:
        raise click.ClickException(f"there is no call {call_id!r} on record; `lockgate calls tail` lists the latest")
    if as_json:
        emit_json(call)
        return
    shown = _shown(call)
    for name in _FACTS:
        if shown[name] not in (None, [], {}):
            click.echo(f"{name:15} {_line(shown[name])}")
    for title, rows, columns in (
        ("reasons", call["reasons"], _REASON_COLUMNS), ("attempts", [_timed(row) for row in call["attempts"]], _ATTEMPT_COLUMNS),
    ):
        if rows:
            click.echo(f"\n{title}")
            emit_rows(rows, columns, as_json=False)
    for title in ("request", "response"):
        if call[title] is not None:
            click.echo(f"\n{title}\n{_pretty(call[title])}")


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
    asked = {"key": wanted.key, "route": wanted.route, "outcome": wanted.outcome, "session": wanted.session}
    return all(value is None or row[name] == value for name, value in asked.items())


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its times for people. An unknown cost says so: it is not nothing."""
    received_ns, first_ns = row["received_ns"], row["first_byte_ns"]
    when = datetime.fromtimestamp(received_ns // 1_000_000_000, UTC)
    unknown = "unknown" if row["outcome"] != OPEN else None
    return {
        **row, "time": f"{when:%Y-%m-%dT%H:%M:%SZ}", "seconds": _seconds(received_ns, row["ended_ns"]),
        "first_byte_s": _seconds(received_ns, first_ns), "cost_usd": row["cost_usd"] or unknown,
    }


def _timed(attempt: Mapping[str, Any]) -> dict[str, Any]:
    unknown = "unknown" if attempt["end"] is not None else None
    return {
        **attempt, "seconds": _seconds(attempt["started_ns"], attempt["ended_ns"]), "cost_usd": attempt["cost_usd"] or unknown,
    }


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


def printable(text: str) -> str:
    """One line that cannot steer a terminal: whatever is not a visible character or a blank becomes a replacement mark."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
