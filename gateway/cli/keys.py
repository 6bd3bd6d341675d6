"""`lockgate keys`: virtual keys. A key is shown once, when it is made; the database holds its hash."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gateway.cli.deployment import on_store, pepper_of
from gateway.cli.output import config_option, emit_json, emit_rows, json_option
from gateway.clock import SystemClock, SystemIds, time_text
from gateway.config import Deployment
from gateway.deployment import read_deployment, read_settings
from gateway.key_reports import SHOWN_ONCE, expiry_ns, key_row, warnings, why_not
from gateway.keyring import new_key, new_secret
from gateway.store.protocol import Keys, StoredKey

T = TypeVar("T")

_COLUMNS: Final = ("id", "name", "team", "org", "roles", "routes", "created", "expires", "state")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def keys() -> None:
    """Create, list, revoke and rotate virtual keys."""


@keys.command()
@click.option("--name", required=True, help="What it is for, so that people recognise it.")
@click.option("--team", default="", help="The team it belongs to; rules may read it.")
@click.option("--org", default="", help="The organisation it belongs to; rules may read it.")
@click.option("--role", "roles", multiple=True, help="A role; may be given several times.")
@click.option("--route", "routes", multiple=True, help="A glob of the routes it may use; may be given several times. Default: all.")
@click.option("--expires", metavar="30d|DATE", help="When it stops: a duration from now, or a date or time (UTC unless it says otherwise).")
@click.option("--owner", metavar="PERSON", default="", help="Whose it is (`lockgate people`): they may not approve what it asks for.")
@config_option
@json_option
def create(  # noqa: PLR0913 - one parameter an option
    *, name: str, team: str, org: str, roles: tuple[str, ...], routes: tuple[str, ...], expires: str | None, owner: str,
    config_path: str, as_json: bool,
) -> None:
    """Make a key and show it, once."""
    for option, values in (("--name", (name,)), ("--team", (team,)), ("--org", (org,)), ("--role", roles), ("--route", routes)):
        _refuse_unprintable(option, values)
    if not name.strip():
        raise click.BadParameter("is empty; say what the key is for", param_hint="--name")
    deployment = read_deployment(Path(config_path))
    clock = SystemClock()
    now_ns = clock.now_ns()
    text, stored = new_key(
        SystemIds(clock), pepper_of(deployment), now_ns=now_ns, name=name, team=team, org=org, roles=roles,
        routes=routes or ("*",), expires_ns=None if expires is None else _expiry_ns(expires, now_ns), owner=owner,
    )
    if owner and on_store(deployment, "keys", lambda store: store.people.get(owner)) is None:
        raise click.BadParameter(f"there is no account {owner!r}; `lockgate people list` shows what there is", param_hint="--owner")
    for warning in _on_keys(deployment, lambda store: _create(store, stored, deployment)):
        click.echo(f"warning: {warning}", err=True)
    _show_once(text, key_row(stored, now_ns), as_json=as_json)


@keys.command("list")
@config_option
@json_option
def list_keys(*, config_path: str, as_json: bool) -> None:
    """Show every key, without its secret."""
    found = _all(read_settings(Path(config_path)))
    now_ns = SystemClock().now_ns()
    emit_rows([key_row(key, now_ns) for key in found], _COLUMNS, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="ID")
@config_option
@json_option
def revoke(*, key_id: str, config_path: str, as_json: bool) -> None:
    """Stop a key for good."""
    now_ns = SystemClock().now_ns()
    key_id = _id_of(key_id)
    deployment = read_settings(Path(config_path))
    if not _on_keys(deployment, lambda store: store.revoke(key_id, now_ns=now_ns)):
        raise click.ClickException(why_not(_all(deployment), key_id, now_ns))
    if as_json:
        emit_json({"id": key_id, "revoked": time_text(now_ns)})
    else:
        click.echo(f"Key {key_id} is revoked; a gateway that runs refuses it within a second.")


@keys.command(short_help="Give a key a new secret; the old one stops.")
@click.argument("key_id", metavar="ID")
@config_option
@json_option
def rotate(*, key_id: str, config_path: str, as_json: bool) -> None:
    """Give a key a new secret and show it, once; the old one stops at once."""
    deployment = read_settings(Path(config_path))
    clock = SystemClock()
    now_ns = clock.now_ns()
    key_id = _id_of(key_id)
    text, digest = new_secret(SystemIds(clock), pepper_of(deployment), key_id)
    if not _on_keys(deployment, lambda store: store.replace_digest(key_id, digest, now_ns=now_ns)):
        raise click.ClickException(why_not(_all(deployment), key_id, now_ns))
    _show_once(text, {"id": key_id, "rotated": time_text(now_ns)}, as_json=as_json)


def _show_once(text: str, about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit_json({"key": text, **about, "note": SHOWN_ONCE})
    else:
        click.echo(text)
        click.echo(SHOWN_ONCE, err=True)  # beside the key, so that `KEY=$(lockgate keys create …)` works


async def _create(store: Keys, made: StoredKey, deployment: Deployment) -> list[str]:
    """Store a new key and return what about it deserves a look."""
    _generation, others = await store.all()
    await store.create(made)
    return list(warnings(made, others, [route.name for route in deployment.routes]))


def _all(deployment: Deployment) -> Sequence[StoredKey]:
    _generation, found = _on_keys(deployment, lambda store: store.all())
    return found


def _on_keys(deployment: Deployment, work: Callable[[Keys], Awaitable[T]]) -> T:
    """Open the deployment's database, work on its keys, close it."""
    return on_store(deployment, "keys", lambda store: work(store.keys))


def _id_of(given: str) -> str:
    """The id, also of someone who pastes the whole key: its secret must not go into a message."""
    given = given.strip()
    return given[4:16] if given.startswith("lgk_") and len(given) > 16 else given


def _refuse_unprintable(option: str, values: tuple[str, ...]) -> None:
    if not all(value.isprintable() for value in values):
        raise click.BadParameter("holds characters that cannot be shown", param_hint=option)


def _expiry_ns(written: str, now_ns: int) -> int:
    try:
        return expiry_ns(written, now_ns)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from error
