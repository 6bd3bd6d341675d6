"""`lockgate keys`: virtual keys. A key is shown once, when it is made; the database holds its hash."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gateway.cli.deployment import on_store, pepper_of
from gateway.cli.output import config_option, emit_json, emit_rows, json_option
from gateway.clock import SystemClock, SystemIds
from gateway.config import Deployment
from gateway.deployment import read_deployment, read_settings
from gateway.keyring import new_key, new_secret
from gateway.store.protocol import Keys, StoredKey
from gateway.units import parse_duration

T = TypeVar("T")

_COLUMNS: Final = ("id", "name", "team", "org", "roles", "routes", "created", "expires", "state")
_SHOWN_ONCE: Final = "This is the only time the key is shown; a gateway that runs knows it within a second."
_LATEST_NS: Final = 9_183_110_400_000_000_000  # 2261-01-01: nanoseconds in 64 bits end a year later


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
@config_option
@json_option
def create(  # noqa: PLR0913 - one parameter an option
    *, name: str, team: str, org: str, roles: tuple[str, ...], routes: tuple[str, ...], expires: str | None,
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
        routes=routes or ("*",), expires_ns=None if expires is None else _expiry_ns(expires, now_ns),
    )
    for warning in _on_keys(deployment, lambda store: _create(store, stored, deployment)):
        click.echo(f"warning: {warning}", err=True)
    _show_once(text, _row(stored, now_ns), as_json=as_json)


@keys.command("list")
@config_option
@json_option
def list_keys(*, config_path: str, as_json: bool) -> None:
    """Show every key, without its secret."""
    found = _all(read_settings(Path(config_path)))
    now_ns = SystemClock().now_ns()
    emit_rows([_row(key, now_ns) for key in found], _COLUMNS, as_json=as_json)


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
        raise click.ClickException(_why_not(_all(deployment), key_id))
    if as_json:
        emit_json({"id": key_id, "revoked": _time(now_ns)})
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
        raise click.ClickException(_why_not(_all(deployment), key_id))
    _show_once(text, {"id": key_id, "rotated": _time(now_ns)}, as_json=as_json)


def _show_once(text: str, about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit_json({"key": text, **about, "note": _SHOWN_ONCE})
    else:
        click.echo(text)
        click.echo(_SHOWN_ONCE, err=True)  # beside the key, so that `KEY=$(lockgate keys create …)` works


async def _create(store: Keys, made: StoredKey, deployment: Deployment) -> list[str]:
    """Store a new key and return what about it deserves a look."""
    _generation, others = await store.all()
    await store.create(made)
    return list(_warnings(made, others, deployment))


def _warnings(made: StoredKey, others: Sequence[StoredKey], deployment: Deployment) -> Iterator[str]:
    alike = [key.id for key in others if key.name == made.name and _state(key, made.created_ns) == "live"]
    if alike:
        yield f"{made.name!r} is also the name of {', '.join(alike)}; only the id tells them apart"
    for glob in made.routes:
        if glob != "*" and not any(fnmatchcase(route.name, glob) for route in deployment.routes):
            names = ", ".join(route.name for route in deployment.routes)
            yield f"--route {glob!r} matches no route" + (f"; there are: {names}" if names else ", for there is none")


def _why_not(found: Sequence[StoredKey], given: str) -> str:
    """Why a key can be neither revoked nor given a new secret, from every key there is."""
    key = next((key for key in found if key.id == given), None)
    if key is not None and key.revoked_ns is not None:
        return f"key {given} was revoked on {_time(key.revoked_ns)}; `lockgate keys create` makes a new one"
    if key is not None:
        return f"key {given} expired on {_time(key.expires_ns)}; `lockgate keys create` makes a new one"
    now_ns = SystemClock().now_ns()
    ids = [f"{key.id} ({_state(key, now_ns)})" for key in found if key.name == given]
    if ids:
        return f"{given!r} is a name; its ids: {', '.join(ids)}"
    return f"there is no key {given!r}; `lockgate keys list` shows what there is"


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
        when_ns = now_ns + int(parse_duration(written) * 1_000_000_000)
    except ValueError:
        try:
            when = datetime.fromisoformat(written)
        except ValueError:
            raise click.BadParameter('is neither a duration ("30d", "12h") nor a date ("2030-01-31")', param_hint="--expires") from None
        when_ns = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000
    if when_ns <= now_ns:
        raise click.BadParameter("lies in the past", param_hint="--expires")
    if when_ns > _LATEST_NS:
        raise click.BadParameter("lies beyond the year 2261; leave it out for a key that does not expire", param_hint="--expires")
    return when_ns


def _row(key: StoredKey, now_ns: int) -> dict[str, Any]:
    return {
        "id": key.id, "name": key.name, "team": key.team or None, "org": key.org or None, "roles": list(key.roles),
        "routes": list(key.routes), "created": _time(key.created_ns), "expires": _time(key.expires_ns),
        "revoked": _time(key.revoked_ns), "state": _state(key, now_ns),
    }


def _state(key: StoredKey, now_ns: int) -> str:
    if key.revoked_ns is not None:
        return "revoked"
    return "expired" if key.expires_ns is not None and key.expires_ns <= now_ns else "live"


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else f"{datetime.fromtimestamp(at_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
