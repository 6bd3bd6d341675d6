"""`lockgate people`: accounts of people who approve and operate. A password is asked for, or read from a pipe; it is never an argument."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gateway.cli.author import user
from gateway.cli.deployment import on_store, pepper_of
from gateway.cli.output import config_option, emit_json, emit_rows, json_option, printable
from gateway.clock import SystemClock, SystemIds, time_text
from gateway.config import Deployment
from gateway.deployment import read_settings
from gateway.identity.accounts import Fields, checked_id, digest, new_token, person_row
from gateway.identity.actor import PERMISSIONS, Permission
from gateway.identity.identities import pepper_of_people
from gateway.identity.passwords import LONGEST, checked, hashed
from gateway.secret import Secret
from gateway.store.approvals_protocol import People, Person, Stamped

T = TypeVar("T")

_COLUMNS: Final = ("id", "name", "permission", "roles", "teams", "email", "password", "token", "oidc", "state")
_HISTORY: Final = 100
_SHOWN_ONCE: Final = "This is the only time the token is shown; the one before, if there was one, is of no use any more."
_LONGEST_LINE: Final = 4 * LONGEST + 2  # bytes of a password in UTF-8, and its line break

_author = click.option("--author", default=user, show_default="the user of this system", help="Who does this, for the history.")
_from_pipe = click.option("--password-stdin", "from_pipe", is_flag=True, help="Read the password from standard input, its first line.")
_id = click.argument("person_id", metavar="ID")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def people() -> None:
    """Create, list and change accounts of people, and give them passwords and API tokens."""


@people.command()
@_id
@click.option("--permission", type=click.Choice(PERMISSIONS), required=True,
              help="What they may do: look, vote as well, change things as well, look after people and keys as well.")
@click.option("--name", default="", help="What they are called; their id, if left out.")
@click.option("--role", "roles", multiple=True, help="A role, which rules may ask votes of; may be given several times.")
@click.option("--team", "teams", multiple=True, help="A team; may be given several times.")
@click.option("--email", default="", help="Where they are written to.")
@click.option("--no-password", is_flag=True, help="They get an API token, or a password later.")
@_from_pipe
@_author
@config_option
@json_option
def create(  # noqa: PLR0913 - one parameter an option
    *, person_id: str, permission: Permission, name: str, roles: tuple[str, ...], teams: tuple[str, ...], email: str, no_password: bool,
    from_pipe: bool, author: str, config_path: str, as_json: bool,
) -> None:
    """Make an account; asks for a password.

    ID is what they log in with: lower-case letters, digits, `.`, `_`, `@` and `-`.
    """
    fields = Fields(name or person_id, permission, roles, teams, email).checked()
    checked_id(person_id)
    deployment, now_ns = read_settings(Path(config_path)), SystemClock().now_ns()
    password = "" if no_password else hashed(_password(from_pipe=from_pipe))
    made = fields.on(Person(person_id, "", permission, password=password, created_ns=now_ns))
    _on_people(deployment, lambda store: store.add(made, Stamped("created", author, now_ns, fields.told)))
    told = f"{person_id} cannot log in yet: `lockgate people password` or `token` is next." if no_password else f"{person_id} can log in."
    _tell(made, told, as_json=as_json)


@people.command("list")
@config_option
@json_option
def list_people(*, config_path: str, as_json: bool) -> None:
    """Show every account."""
    found = _on_people(read_settings(Path(config_path)), lambda store: store.all())
    emit_rows([person_row(each) for each in found], _COLUMNS, as_json=as_json)


@people.command()
@_id
@config_option
@json_option
def show(*, person_id: str, config_path: str, as_json: bool) -> None:
    """Show an account, and who did what to it, newest first."""

    async def work(store: People) -> tuple[Person | None, list[dict[str, Any]]]:
        events = await store.history(person_id, _HISTORY)
        return await store.get(person_id), [
            {"at": time_text(each.at_ns), "what": each.what, "author": each.author, "detail": dict(each.detail)} for each in events]

    found, history = _on_people(read_settings(Path(config_path)), work)
    if found is None:
        raise _missing(person_id)
    if as_json:
        emit_json({"person": person_row(found), "history": history})
        return
    emit_rows([person_row(found)], _COLUMNS, as_json=False)
    click.echo()
    emit_rows([{**row, "detail": ", ".join(f"{name}: {value}" for name, value in row["detail"].items()) or None} for row in history],
              ("at", "what", "author", "detail"), as_json=False)


@people.command()
@_id
@click.option("--permission", type=click.Choice(PERMISSIONS), help="What they may do from now on.")
@click.option("--name", help="What they are called.")
@click.option("--role", "roles", multiple=True, help="All their roles from now on; may be given several times, once empty for none.")
@click.option("--team", "teams", multiple=True, help="All their teams from now on; may be given several times, once empty for none.")
@click.option("--email", help="Where they are written to.")
@_author
@config_option
@json_option
def change(  # noqa: PLR0913 - one parameter an option
    *, person_id: str, permission: Permission | None, name: str | None, roles: tuple[str, ...], teams: tuple[str, ...], email: str | None,
    author: str, config_path: str, as_json: bool,
) -> None:
    """Change an account; what is left out stays as it is. It counts at once, also for who is logged in."""
    fields = Fields(name, permission, _names(roles), _names(teams), email).checked()
    if not fields.told:
        raise click.UsageError("Nothing is to be changed: give an option.")
    _change(person_id, config_path, Stamped("changed", author, SystemClock().now_ns(), fields.told), fields.on,
            f"{person_id} is changed.", log_out=fields.stands_at_login, as_json=as_json)


@people.command()
@_id
@_from_pipe
@_author
@config_option
@json_option
def password(*, person_id: str, from_pipe: bool, author: str, config_path: str, as_json: bool) -> None:
    """Give somebody another password; asks for it. They are logged out everywhere."""
    deployment, now_ns = read_settings(Path(config_path)), SystemClock().now_ns()
    found = _on_people(deployment, lambda store: store.get(person_id))
    if found is None:
        raise _missing(person_id)
    if found.subject:
        raise click.ClickException("this account is an identity provider's, which alone lets its person in")
    kept = hashed(_password(from_pipe=from_pipe))
    _change(person_id, config_path, Stamped("changed", author, now_ns, {"password": True}), lambda person: replace(person, password=kept),
            f"{person_id} has another password, and is logged out.", log_out=True, as_json=as_json)


@people.command(short_help="Give somebody a new API token.")
@_id
@_author
@config_option
@json_option
def token(*, person_id: str, author: str, config_path: str, as_json: bool) -> None:
    """Give somebody a new API token and show it, once; the old one stops at once."""
    deployment, clock = read_settings(Path(config_path)), SystemClock()
    text, kept = new_token(SystemIds(clock), _pepper(deployment))
    changed = _on_people(deployment, lambda store: store.change(
        person_id, lambda person: replace(person, token=kept), Stamped("token", author, clock.now_ns())))
    if changed is None:
        raise _missing(person_id)
    if as_json:
        emit_json({"token": text, "person": person_row(changed), "note": _SHOWN_ONCE})
    else:
        click.echo(text)
        click.echo(_SHOWN_ONCE, err=True)


@people.command()
@_id
@_author
@config_option
@json_option
def disable(*, person_id: str, author: str, config_path: str, as_json: bool) -> None:
    """Take back all that an account may do, and log its person out everywhere."""
    now_ns = SystemClock().now_ns()
    _change(person_id, config_path, Stamped("disabled", author, now_ns),
            lambda person: person if person.disabled_ns is not None else replace(person, disabled_ns=now_ns),
            f"{person_id} is disabled, and logged out.", log_out=True, as_json=as_json)


@people.command(short_help="Give an account back what it may do.")
@_id
@_author
@config_option
@json_option
def enable(*, person_id: str, author: str, config_path: str, as_json: bool) -> None:
    """Give an account back what it may do, and take its password again where too many were wrong."""
    deployment = read_settings(Path(config_path))
    _on_people(deployment, lambda store: store.forgive((digest(_pepper(deployment), f"name:{person_id}"),)))
    _change(person_id, config_path, Stamped("enabled", author, SystemClock().now_ns()), lambda person: replace(person, disabled_ns=None),
            f"{person_id} is enabled.", as_json=as_json)


def _change(  # noqa: PLR0913 - what is done, to whom, and what is told of it
    person_id: str, config_path: str, stamp: Stamped, how: Callable[[Person], Person], told: str, *, as_json: bool, log_out: bool = False,
) -> None:
    changed = _on_people(read_settings(Path(config_path)), lambda store: store.change(person_id, how, stamp, log_out=log_out))
    if changed is None:
        raise _missing(person_id)
    _tell(changed, told, as_json=as_json)


def _tell(person: Person, told: str, *, as_json: bool) -> None:
    if as_json:
        emit_json({"person": person_row(person)})
    else:
        click.echo(printable(told))


def _on_people(deployment: Deployment, work: Callable[[People], Awaitable[T]]) -> T:
    """Open the deployment's database, work on its accounts, close it."""
    return on_store(deployment, "people", lambda store: work(store.people))


def _pepper(deployment: Deployment) -> Secret:
    return pepper_of_people(pepper_of(deployment) if deployment.config.auth.required else None)


def _password(*, from_pipe: bool) -> str:
    """A password that may be one: of a person at a terminal, or of a pipe."""
    if from_pipe:
        line = sys.stdin.buffer.readline(_LONGEST_LINE).decode(errors="replace")
        return checked(line.removesuffix("\n").removesuffix("\r"))
    try:
        return checked(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    except click.Abort as error:
        if sys.stdin.isatty():
            raise  # Ctrl-C
        raise click.ClickException("the input ended before a password came; `--password-stdin` reads one from a pipe") from error


def _names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    return None if not given else () if given == ("",) else given


def _missing(person_id: str) -> click.ClickException:
    return click.ClickException(f"there is no account {person_id!r}; `lockgate people list` shows what there is")
