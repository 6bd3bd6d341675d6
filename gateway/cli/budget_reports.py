"""`lockgate budgets` as it tells: accounts, windows and changes, suspects, costs. Reads the database beside the gateway, or without one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from gateway.budget_changes import Catalogue, check_subject
from gateway.budgets import BudgetError, budget_of
from gateway.cli.deployment import open_deployment
from gateway.cli.output import config_option, emit_json, emit_rows, json_option
from gateway.clock import SystemClock
from gateway.config import Deployment
from gateway.core.accounts import BudgetBook, Change
from gateway.core.budget import Balance
from gateway.deployment import read_settings
from gateway.errors import ConfigError
from gateway.money_reports import (
    OTHERS,
    account_row,
    budget_row,
    change_row,
    costs_csv,
    costs_report,
    moment,
    raise_rows,
    settings_of,
    suspect_row,
    window_row,
)
from gateway.store.budget_reads import balance_windows, ledger_costs, listed_accounts, suspect_calls
from gateway.store.database import Connection
from gateway.store.ledger_rows import COST_GROUPS
from gateway.store.protocol import AccountFilter, Standing
from gateway.store.settings_sql import read_changes

_ACCOUNT_COLUMNS: Final = (
    "account", "limit_usd", "soft_usd", "used_usd", "reserved_usd", "remaining_usd", "used_percent", "window", "resets_at")
_WINDOW_COLUMNS: Final = ("subject", "span", "began_at", "ends_at", "limit_usd", "used_usd", "reserved_usd", "over_usd")
_CHANGE_COLUMNS: Final = ("id", "changed_at", "author", "kind", "subject", "what", "note")
_SUSPECT_COLUMNS: Final = ("call", "received_at", "booked_at", "key", "team", "route", "target", "cost_usd", "accounts")
_CALENDAR: Final = ("hour", "day", "week", "month")
_COST_COLUMNS: Final = ("cost_usd", "estimated_usd", "calls", "lines")


@dataclass(frozen=True, slots=True)
class Books:
    """The budgets of a deployment and what is on record of them, as of one moment."""

    known: Catalogue
    connection: Connection
    now_ns: int


def configured(deployment: Deployment) -> BudgetBook:
    """The budgets of config.toml. Raises `ConfigError` where one of them cannot be what it says."""
    made, problems = [], []
    for name, given in deployment.config.budgets.items():
        try:
            made.append(budget_of(name, given))
        except BudgetError as error:
            problems.append(deployment.problem(("budgets", name, error.key), str(error)))
    if problems:
        raise ConfigError(problems)
    return BudgetBook(made)


@contextmanager
def refused() -> Iterator[None]:
    """What cannot be done is told with the option or the argument that asks for it."""
    try:
        yield
    except BudgetError as error:
        if error.key == "name":
            raise click.ClickException(str(error)) from error
        hint = "SUBJECT" if error.key == "subject" else "--" + error.key.replace("_", "-")
        raise click.BadParameter(str(error), param_hint=hint) from error


def _count_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("-n", "count", type=click.IntRange(1, 100_000), default=default, show_default=True, help="The most rows to show.")


@click.command(short_help="Show what accounts stand at.")
@click.argument("account", required=False, metavar="[BUDGET[/SUBJECT]]")
@_count_option(1000)
@config_option
@json_option
def show(*, account: str | None, count: int, config_path: str, as_json: bool) -> None:
    """Show every account: its limit, what is used and set aside, what is left and when it resets. Also budgets that nobody has used yet.

    BUDGET shows one budget, BUDGET/SUBJECT one account. Subjects of users, sessions and runs are KEY_ID/NAME.
    """
    name, _, subject = (account or "").partition("/")
    with _books(config_path) as books, refused():
        known = books.known
        budgets = [known.budget(name)] if name or account else [each for _name, each in sorted(known.budgets.items())]
        if subject:
            check_subject(budgets[0], subject)
        wanted = AccountFilter(name or None, subject or None, limit=count + 1)
        standings = listed_accounts(books.connection, known.configured, known.settings, wanted, books.now_ns)
    if subject and not standings:
        standings = (_untouched(books, name, subject),)
    accounts, more = [account_row(each) for each in standings[:count]], len(standings) > count
    raises = [row for each in budgets for row in raise_rows(known, each.name, books.now_ns)
              if not subject or row["subject"] in ("", subject)]
    if as_json:
        emit_json({"budgets": [budget_row(known, each) for each in budgets], "accounts": accounts, "raises": raises, "more": more})
        return
    listed = {row["budget"] for row in accounts}
    unused = [] if more else [{**account_row(_untouched(books, each.name, "")), "account": each.name}
                              for each in budgets if each.name not in listed]
    rows = [{**row, "window": _window(row)} for row in sorted([*accounts, *unused], key=lambda row: str(row["account"]))]
    emit_rows(rows, _ACCOUNT_COLUMNS, as_json=False)
    if not budgets:
        click.echo("There is no budget; `lockgate budgets set NAME --scope team --limit USD` makes one.", err=True)
    if more:
        click.echo(f"There are more than {count} accounts; -n shows more, BUDGET those of one budget.", err=True)
    if raises:
        click.echo("\nraised")
        emit_rows(raises, ("budget", "subject", "by_usd", "until_at"), as_json=False)


@click.command(short_help="Show the windows of a budget, and who changed what.")
@click.argument("name")
@click.argument("subject", default="")
@_count_option(50)
@config_option
@json_option
def history(*, name: str, subject: str, count: int, config_path: str, as_json: bool) -> None:
    """Show what was used in each window, and who changed what, when and why; the newest first.

    With SUBJECT that of one account, with what was changed for all accounts of the budget.
    """
    name, subject = an_account(name, subject)
    with _books(config_path) as books, refused():
        known = books.known
        changes = [each for each in reversed(known.changes) if each.name == name and (not subject or each.subject in ("", subject))]
        rows = balance_windows(books.connection, name, subject or None, count)
        if not rows and not changes:  # a budget that was removed has its history
            known.budget(name)
    windows, told = [window_row(row) for row in rows], changes[:count]
    if as_json:
        emit_json({"windows": windows, "changes": [change_row(known, each) for each in told]})
        return
    click.echo("windows")
    emit_rows(windows, _WINDOW_COLUMNS, as_json=False)
    click.echo("\nchanges")
    emit_rows([{**change_row(known, each), "what": _what(each)} for each in told], _CHANGE_COLUMNS, as_json=False)


@click.command(short_help="List what was booked at the estimate.")
@_count_option(1000)
@config_option
@json_option
def suspects(*, count: int, config_path: str, as_json: bool) -> None:
    """List the calls that were booked at what was set aside for them because their process died, the oldest first.

    Compare them with the provider's bill; `lockgate budgets resolve` books what they really cost.
    """
    with _books(config_path) as books:
        rows = [suspect_row(row) for row in suspect_calls(books.connection, count)]
    emit_rows(rows, _SUSPECT_COLUMNS, as_json=as_json)


@click.command(short_help="Show what was spent on what.")
@click.option("--by", type=click.Choice(COST_GROUPS), default=COST_GROUPS[0], show_default=True, help="What to group by.")
@click.option("--since", default="30d", show_default=True, help="From when on: a duration back from now, or a date or time (UTC).")
@click.option("--until", help="Until when, the same way. Default: now.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@_count_option(1000)
@config_option
@json_option
def costs(  # noqa: PLR0913 - one parameter an option
    *, by: str, since: str, until: str | None, as_csv: bool, count: int, config_path: str, as_json: bool,
) -> None:
    """Show what the ledger holds, grouped, the dearest first (days in their order); the groups add up to the total.

    What callers choose counts under its key: sessions and runs are KEY_ID/NAME.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    now_ns = SystemClock().now_ns()
    since_ns = a_moment("--since", since, now_ns, back=True)
    until_ns = now_ns + 1 if until is None else a_moment("--until", until, now_ns, back=True)  # what is booked now is in it
    if until_ns <= since_ns:
        raise click.BadParameter("is not after --since", param_hint="--until")
    with _books(config_path) as books:
        rows: Sequence[Mapping[str, Any]] = ledger_costs(books.connection, by, (since_ns, until_ns), count)
    if by == "day":
        rows = sorted(rows, key=lambda row: (row["group"] is None, row["group"]))
    report = costs_report(by, since_ns, until_ns, rows)
    if as_json:
        emit_json(report)
    elif as_csv:
        click.echo(costs_csv(by, rows), nl=False)
    else:
        total = {by: "total", "cost_usd": report["total_usd"], "estimated_usd": report["estimated_usd"], "lines": report["lines"]}
        groups = [{**row, by: OTHERS if row["group"] is None else row["group"] or None} for row in report["groups"]]
        emit_rows([*groups, total], (by, *_COST_COLUMNS), as_json=False)


def an_account(name: str, subject: str) -> tuple[str, str]:
    """A budget and a subject, also where they come as one word: `BUDGET/SUBJECT`, as everything prints an account."""
    budget, _, rest = name.partition("/")
    return (budget, rest) if rest and not subject and budget[:1].isalnum() else (name, subject)


def a_moment(option: str, text: str, now_ns: int, *, back: bool) -> int:
    """The moment that an option names."""
    try:
        return moment(text, now_ns, back=back)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


@contextmanager
def _books(config_path: str) -> Iterator[Books]:
    """One moment of the deployment's database, for reading."""
    book = configured(read_settings(Path(config_path)))
    _path, opened = open_deployment(config_path)
    with closing(opened) as connection:
        connection.execute("BEGIN")
        yield Books(Catalogue.of(book, read_changes(connection, None)), connection, SystemClock().now_ns())


def _untouched(books: Books, name: str, subject: str) -> Standing:
    """An account that nothing was ever spent on."""
    account = books.known.account(name, subject, books.now_ns)
    window_ns = account.window.at(books.now_ns)
    return Standing(account, Balance(), window_ns, account.window.ends(window_ns))


def _window(row: Mapping[str, Any]) -> str:
    return f"{row['window']} {row['timezone']}" if row["window"] in _CALENDAR else str(row["window"])


def _what(change: Change) -> str:
    """A change in one cell."""
    given = change_row(Catalogue.of(BudgetBook(), ()), change)
    if change.budget is not None:
        parts = {name: value for name, value in settings_of(change.budget).items() if value}
        return ", ".join(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in parts.items())
    if change.kind == "raise":
        return f"by {given['limit_usd']} until {given['until_at']}"
    return ", ".join(f"{name}={given[f'{name}_usd']}" for name in ("limit", "soft") if given[f"{name}_usd"] is not None)
