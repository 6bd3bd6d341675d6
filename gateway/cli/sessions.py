"""`lockgate sessions`: what sessions did and cost, step by step, and whether they go on. Reads the database beside the gateway, or without
one; what it changes counts in every gateway within a second.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import orjson

from gateway.budget_changes import check_author, shown
from gateway.budgets import BudgetError
from gateway.call import Json
from gateway.cli.author import stamped, user
from gateway.cli.deployment import on_store, open_deployment
from gateway.cli.output import cell, config_option, emit_json, emit_rows, json_option, printable
from gateway.cli.session_rows import COLUMNS, FACT_COLUMNS, TIMELINE_COLUMNS, entry_row, fact_rows, listed, summary
from gateway.clock import SystemClock
from gateway.core.approval import NotPossibleError
from gateway.deployment import read_settings
from gateway.money_reports import moment
from gateway.session import SessionKey
from gateway.session_changes import VERBS, SessionChangeError, change_state, check_fact, check_key
from gateway.store.database import Connection
from gateway.store.session_protocol import OutdatedError, SessionFilter, SessionState
from gateway.store.session_reads import facts_of, list_sessions, one_session, owners_of, timeline
from gateway.store.session_rows import Place
from gateway.store.sqlite import SqliteStore

_PAGE: Final = 500
_MOST: Final = 10_000  # entries of a timeline that are shown
_DONE: Final = {
    "freeze": "is frozen: none of its calls go on until it is thawed",
    "thaw": "goes on",
    "kill": "is killed: its calls under way are ended, and none goes on",
}
_principal = click.option("--principal", help="Whose session it is, by id; needed where several have one of that id.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def sessions() -> None:
    """See what sessions did and cost; freeze, thaw and kill them; set facts that rules read."""


@sessions.command("list", short_help="List sessions, the latest first.")
@click.option("-n", "most", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many of the latest.")
@click.option("--principal", default="", help="Only those of this principal (its id).")
@click.option("--since", help='Only those that were used since then: "24h", "2030-01-31".')
@config_option
@json_option
def list_(*, most: int, principal: str, since: str | None, config_path: str, as_json: bool) -> None:
    """List sessions, the latest first, with what they did and cost."""
    wanted = SessionFilter(principal, 0 if since is None else _since(since), limit=most)
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        rows = list_sessions(connection, wanted)
    emit_rows(rows if as_json else [listed(row) for row in rows], COLUMNS, as_json=as_json)


@sessions.command(short_help="Show all that is on record of a session.")
@click.argument("session_id", metavar="ID")
@_principal
@config_option
@json_option
def show(*, session_id: str, principal: str | None, config_path: str, as_json: bool) -> None:
    """Show a session: what it did and cost, its facts, and its timeline: calls, tool calls, approvals, votes and changes."""
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        key = _key(connection, session_id, principal)
        row = one_session(connection, key)
        if row is None:
            raise _unknown(session_id)
        facts = facts_of(connection, key)
        entries = list(_entries(connection, key))
    if as_json:
        told = [{name: value for name, value in entry.items() if name != "place"} for entry in entries]
        emit_json({**row, "facts": facts, "timeline": told})
        return
    for name, value in summary(row).items():
        click.echo(f"{name:11} {cell(value)}")
    if facts:
        click.echo("\nfacts")
        emit_rows(fact_rows(facts), FACT_COLUMNS, as_json=False)
    click.echo("\ntimeline")
    emit_rows([entry_row(entry) for entry in entries], TIMELINE_COLUMNS, as_json=False)
    if len(entries) == _MOST:
        latest = f"lockgate calls tail --session {printable(shown(session_id))}"
        click.echo(f"\nThese are the first {_MOST} entries; `{latest}` has the latest calls.")


@sessions.command(short_help="Refuse a session's calls until it is thawed.")
@click.argument("session_id", metavar="ID")
@_principal
@stamped
def freeze(**given: Any) -> None:
    """Refuse the calls of session ID until it is thawed. Those under way go on."""
    _change("freeze", **given)


@sessions.command(short_help="Let a frozen session go on.")
@click.argument("session_id", metavar="ID")
@_principal
@stamped
def thaw(**given: Any) -> None:
    """Let session ID go on, which was frozen."""
    _change("thaw", **given)


@sessions.command(short_help="End a session for good.")
@click.argument("session_id", metavar="ID")
@_principal
@stamped
def kill(**given: Any) -> None:
    """End session ID for good: its calls under way are ended, the approvals that it waits for are withdrawn, and no call goes on."""
    _change("kill", **given)


@sessions.command(short_help="List a session's facts, or set one.")
@click.argument("session_id", metavar="ID")
@click.argument("name", required=False)
@click.argument("value", required=False)
@click.option("--version", type=click.IntRange(0), help="Set it only where it still has this version; 0: where there is none yet.")
@click.option("--author", default=None, help="Who, for the history; without it the user of this system.")
@_principal
@config_option
@json_option
def facts(*, session_id: str, name: str | None, value: str | None, config_path: str, as_json: bool, **given: Any) -> None:
    """List the facts of session ID, or set the fact NAME to VALUE, which is JSON, or else a text. Rules read it as `session.facts`."""
    if name is None:
        _path, opened = open_deployment(config_path)
        with contextlib.closing(opened) as connection:
            found = facts_of(connection, _key(connection, session_id, given["principal"]))
        told = [{"name": each, **fact} for each, fact in found.items()] if as_json else fact_rows(found)
        emit_rows(told, FACT_COLUMNS, as_json=as_json)
        return
    if value is None:
        raise click.UsageError("say what it is to be: NAME and VALUE")
    fact, author = (name, _json(value)), given["author"] if given["author"] is not None else user()
    with _refused():
        check_author(author)
        check_fact(*fact)

    async def work(store: SqliteStore) -> tuple[SessionKey, int]:
        key = await _known(store, session_id, given["principal"])
        with _refused():
            check_key(key)
            now_ns = SystemClock().now_ns()
            return key, await store.session_desk.put_fact(key, *fact, version=given["version"], author=author, now_ns=now_ns)

    key, version = on_store(read_settings(Path(config_path)), "sessions", work)
    if as_json:
        emit_json({"principal": key.principal, "id": key.id, "name": name, "version": version})
    else:
        click.echo(printable(f"The fact {name} of session {key.id} has version {version}."))


def _change(verb: str, *, session_id: str, config_path: str, as_json: bool, **given: Any) -> None:
    async def work(store: SqliteStore) -> Mapping[str, Any]:
        key = await _known(store, session_id, given["principal"])
        with _refused():
            check_key(key)
            wanted = SessionState(key, VERBS[verb], given["author"], given["note"], SystemClock().now_ns())
            await change_state(store.session_desk, store.approvals, wanted)
        return await store.session_desk.get(key) or {}

    row = on_store(read_settings(Path(config_path)), "sessions", work)
    if as_json:
        emit_json({"session": row})
    else:
        click.echo(printable(f"Session {session_id} {_DONE[verb]}. Every gateway knows within a second."))


async def _known(store: SqliteStore, session_id: str, principal: str | None) -> SessionKey:
    """Which session is meant; one whose principal is named need not have had a call."""
    if principal is not None:
        return SessionKey(principal, session_id)
    return _only(session_id, await store.session_desk.owners(session_id))


def _key(connection: Connection, session_id: str, principal: str | None) -> SessionKey:
    if principal is not None:
        return SessionKey(principal, session_id)
    return _only(session_id, owners_of(connection, session_id))


def _only(session_id: str, owners: Sequence[str]) -> SessionKey:
    if not owners:
        raise _unknown(session_id)
    if len(owners) > 1:
        whose = ", ".join(owners)
        raise click.ClickException(f"several principals have a session {shown(session_id)!r}: say which with --principal ({whose})")
    return SessionKey(owners[0], session_id)


def _unknown(session_id: str) -> click.ClickException:
    return click.ClickException(f"there is no session {shown(session_id)!r} on record; `lockgate sessions list` lists the latest")


@contextmanager
def _refused() -> Iterator[None]:
    """What makes no sense, or cannot be, as the command line tells it."""
    try:
        yield
    except (SessionChangeError, BudgetError) as error:
        raise click.ClickException(f"the {error.key} {error}") from error
    except OutdatedError as error:
        raise click.ClickException(f"{error.message} Look at it again: `lockgate sessions facts` lists them.") from error
    except NotPossibleError as error:
        raise click.ClickException(error.message) from error


def _entries(connection: Connection, key: SessionKey) -> Iterator[dict[str, Any]]:
    after: Place | None = None
    told = 0
    while told < _MOST and (page := timeline(connection, key, after=after, limit=min(_PAGE, _MOST - told))):
        yield from page
        told += len(page)
        at_ns, rank, name = page[-1]["place"]
        after = at_ns, rank, name


def _since(text: str) -> int:
    try:
        return moment(text, SystemClock().now_ns(), back=True)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error


def _json(text: str) -> Json:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
