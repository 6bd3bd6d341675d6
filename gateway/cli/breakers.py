"""`lockgate breakers`: which targets get calls, and by whose word. What it changes counts in every gateway within a second."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from gateway.breakers import breaker_row
from gateway.budget_changes import check_author, check_text, shown
from gateway.budgets import BudgetError
from gateway.cli.author import stamped
from gateway.cli.deployment import on_store
from gateway.cli.output import config_option, emit_json, emit_rows, json_option, printable
from gateway.clock import SystemClock
from gateway.config import Deployment
from gateway.core.breaker import Breaker, Hand, State, by_hand
from gateway.deployment import read_deployment
from gateway.store.sqlite import SqliteStore
from gateway.validation import nearest

_COLUMNS: Final = ("target", "state", "since", "until", "rests_until", "trips", "cause", "author", "note")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def breakers() -> None:
    """See which targets get calls; open and close their breakers by hand."""


@breakers.command("list", short_help="List the breaker of every target.")
@config_option
@json_option
def list_(*, config_path: str, as_json: bool) -> None:
    """List the breaker of every target, as all gateways of this database know it."""
    deployment = read_deployment(Path(config_path))

    async def work(store: SqliteStore) -> Sequence[Breaker]:
        return (await store.breakers.all())[1]

    kept = {each.target: each for each in on_store(deployment, "breakers", work)}
    now_ns = SystemClock().now_ns()
    rows = [breaker_row(kept.get(target) or Breaker(target), now_ns) for target in _targets(deployment)]
    emit_rows(rows if as_json else [_listed(row) for row in rows], _COLUMNS, as_json=as_json)


@breakers.command("open", short_help="Send no calls to a target.")
@click.argument("target")
@stamped
def open_(*, target: str, author: str, note: str, config_path: str, as_json: bool) -> None:
    """Send no more calls to TARGET, until it is closed or set to act by itself; not even as a last resort.

    TARGET is PROVIDER/MODEL, or tool:NAME/METHOD of an HTTP tool.
    """
    _set("open", target, (author, note), config_path, as_json=as_json)


@breakers.command(short_help="Send calls to a target, whatever happens.")
@click.argument("target")
@stamped
def close(*, target: str, author: str, note: str, config_path: str, as_json: bool) -> None:
    """Send calls to TARGET as if all were well, whatever becomes of them, until it is set to act by itself.

    TARGET is PROVIDER/MODEL, or tool:NAME/METHOD of an HTTP tool. Followed by `auto` it closes a breaker that opened by itself.
    """
    _set("close", target, (author, note), config_path, as_json=as_json)


@breakers.command(short_help="Let a breaker act by itself again.")
@click.argument("target")
@stamped
def auto(*, target: str, author: str, note: str, config_path: str, as_json: bool) -> None:
    """Let the breaker of TARGET act by itself again. One that opened by itself goes on as it is: `close` and then `auto` closes it.

    TARGET is PROVIDER/MODEL, or tool:NAME/METHOD of an HTTP tool.
    """
    _set("auto", target, (author, note), config_path, as_json=as_json)


def _set(state: Hand, target: str, stamp: tuple[str, str], config_path: str, *, as_json: bool) -> None:
    deployment = read_deployment(Path(config_path))
    author, note = stamp
    try:
        check_author(author)
        check_text("note", note)
    except BudgetError as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.key}") from error
    known = _targets(deployment)
    if target not in known:
        raise click.ClickException(f"there is no target {shown(target)!r} ({nearest(target, known) or 'no route has one'})")
    now_ns = SystemClock().now_ns()

    async def work(store: SqliteStore) -> tuple[Breaker, Breaker]:
        return await store.breakers.apply(target, by_hand(state, now_ns=now_ns, author=author, note=note))

    before, now = on_store(deployment, "breakers", work)
    if as_json:
        emit_json({"breaker": breaker_row(now, now_ns)})
    else:
        click.echo(printable(_answer(before, now)))


def _answer(before: Breaker, now: Breaker) -> str:
    """What came of a command. One that says what is so already changes who said it and why, or nothing at all."""
    told = f"{now.target} is {_words(now)}"
    if now is before:
        by_itself = now.state in (State.OPEN, State.HALF_OPEN)
        how = f" To close it now: `lockgate breakers close {now.target}`, and then `auto`." if by_itself else ""
        return f"{told}, as it was: nothing has changed.{how}"
    return f"{told}{', as it was' if now.state is before.state else ''}. Every gateway knows within a second."


def _targets(deployment: Deployment) -> list[str]:
    """The names of every target that calls may go to, by what the files say."""

    def named() -> Iterator[str]:
        for route in deployment.routes:
            yield from (f"{to.provider}/{to.model}" for to in route.targets)
            yield from (f"{to.provider}/{to.model}" for to in route.mirrors)
            if route.classifier is not None:
                yield f"{route.classifier.provider}/{route.classifier.model}"
        for tool in deployment.tools:
            yield f"tool:{tool.name}/{tool.method}"

    return sorted(set(named()))


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for people. One that stays open until a call comes is due for a probe: a time that is over would look like a mistake."""
    return {**row, "until": "probe due"} if row["until_s"] == 0 else {**row}


def _words(breaker: Breaker) -> str:
    match breaker.state:
        case State.FORCED_OPEN:
            return "open by hand and gets no calls"
        case State.FORCED_CLOSED:
            return "closed by hand and gets calls whatever happens"
        case state:
            return f"{state.value.replace('_', '-')} and acts by itself"
