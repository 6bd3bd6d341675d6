"""`lockgate explain`: the story of a call, in order: what was decided and why, where it went and why, what the client got. Or of one that
nobody made: where it would go.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import click

from gateway.asked import asked_of, with_principal
from gateway.breakers import Breakers
from gateway.call import Call, JsonObject
from gateway.cli.calls import recorded
from gateway.cli.deployment import database_of, on_store, open_deployment
from gateway.cli.output import config_option, emit_json, json_option, printable
from gateway.cli.story import plan_lines, story
from gateway.clock import SystemClock, SystemIds
from gateway.core.explain import explain as explained
from gateway.core.plan import Route
from gateway.deployment import read_deployment
from gateway.errors import InvalidRequest
from gateway.plan_report import OPERATIONS, Asked, AskedError, describe
from gateway.progress import Progress
from gateway.routing import Routing
from gateway.snapshot import Snapshot, compile_snapshot
from gateway.store.bundles import bundle_content
from gateway.store.memory import MemoryStore
from gateway.store.protocol import CallFilter, Store
from gateway.store.reads import list_calls
from gateway.telemetry import Telemetry
from gateway.units import show_duration
from gateway.wire.strict_json import loads

_MOST_PARTS: Final = 500
_DEEPEST: Final = 64
_ROUTE: Final = "--route"
_UNMEASURED: Final = "fastest: only a gateway that runs knows how quick targets are: ask it for GET /-/routes/{route}/plan"
_DESCRIBED: Final = (
    click.option(_ROUTE, help="Its route; without it the `model` of --body."),
    click.option("--body", "file", type=click.File("rb"), help="A file with its body, as JSON; `-`: standard input."),
    click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag of it; may be given several times."),
    click.option("--session", help="The session that it belongs to."),
    click.option("--task", help="What kind of task it is; without it as for any call, but that no classifier is asked."),
    click.option("--key", help="The key that it is made with (its id)."),
    click.option("--team", help="The team that calls, where no key is said."),
    click.option("--user", help="The caller's own name for who asks."),
    click.option("--operation", type=click.Choice(OPERATIONS), help="What it asks for; without it the first that the route is for."),
    click.option("--stream", is_flag=True, help="Whether it asks for a stream."),
    click.option("--size", type=click.IntRange(0), help="The bytes of its body; without it those of --body."),
)


def _described(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_DESCRIBED):
        command = option(command)
    return command


@click.command(short_help="Tell the story of a call, or where one would go.", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("call_id", required=False)
@click.option("--dry-run", is_flag=True, help="Tell where a call would go that nobody made.")
@_described
@config_option
@json_option
def explain(*, call_id: str | None, dry_run: bool, config_path: str, as_json: bool, **given: Any) -> None:
    """Tell the story of a call: what was decided, by which rules, what they saw, where it went and why, what the client got.

    With --dry-run, without a call: which targets one would try, in which order and why, by the files as they are and by what the database
    knows of the targets. Nothing is sent, and no policy is asked: its rules may refuse such a call, or send it elsewhere.
    """
    if dry_run and call_id is None:
        try:
            told = _planned(config_path, *_supposed(given))
        except AskedError as error:
            raise click.BadParameter(str(error), param_hint=f"--{error.name.removesuffix('s')}") from error
        if as_json:
            emit_json(told)
            return
        for line in _lines(told):
            click.echo(printable(line))
    elif dry_run:
        raise click.UsageError("with --dry-run there is no CALL_ID")
    elif call_id is None:
        raise click.UsageError("say which call: CALL_ID, or --dry-run for one that nobody made")
    elif any(value not in (None, False, ()) for value in given.values()):
        raise click.UsageError("what describes a call belongs to --dry-run")
    else:
        tell_call(call_id, config_path, as_json=as_json)


def tell_call(call_id: str, config_path: str, *, as_json: bool) -> None:
    """Print the story of a call. Works when the rules have changed since, and beside a gateway or without one."""
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        call = recorded(connection, call_id)
        content = bundle_content(connection, call["bundle"]) if call["bundle"] else None
        parts = list_calls(connection, CallFilter(_MOST_PARTS, part_of=call_id))
    told = explained(call, content, parts=parts[::-1])
    if as_json:
        emit_json(told)
        return
    for line in story(told):
        click.echo(line)


def _supposed(given: Mapping[str, Any]) -> tuple[str, Asked]:
    """The route and the call that the options describe. Raises `AskedError`."""
    body = {} if given["file"] is None else _body(given["file"])
    route = body.get("model") if given["route"] is None else given["route"]
    if not isinstance(route, str):
        raise click.UsageError(f"say which route: {_ROUTE}, or a --body that has a `model`")
    texts = {name: str(given[name]) for name in ("session", "task", "key", "team", "user", "operation", "size") if given[name] is not None}
    if given["tags"]:
        texts["tags"] = ",".join(given["tags"])
    if given["stream"] or body.get("stream") is True:
        texts["stream"] = "true"
    return route, asked_of(texts, body)


def _body(file: BinaryIO) -> dict[str, Any]:
    try:
        body = loads(file.read(), max_depth=_DEEPEST)
    except InvalidRequest as error:
        raise click.BadParameter(error.message, param_hint="--body") from error
    if not isinstance(body, dict):
        raise click.BadParameter("is no JSON object", param_hint="--body")
    return body


def _planned(config_path: str, route: str, asked: Asked) -> JsonObject:
    """The plan by the files and, where there is a database, by what that knows of targets, sessions and budgets."""
    deployment = read_deployment(Path(config_path))
    snapshot = compile_snapshot(deployment, os.environ)
    if deployment.config.store.path == ":memory:" or not database_of(deployment).exists():
        return asyncio.run(_describe(MemoryStore("explain"), snapshot, route, asked))
    return on_store(deployment, "explain", lambda store: _describe(store, snapshot, route, asked))


async def _describe(store: Store, snapshot: Snapshot, route: str, asked: Asked) -> JsonObject:
    clock = SystemClock()
    ids = SystemIds(clock)
    silent = Telemetry(log_format="json", log_level="error", write=lambda _: None, scrub=str, clock=clock)
    breakers = Breakers(store.breakers, clock, ids, silent)
    await breakers.refresh()
    asked = await with_principal(asked, store.keys, clock.now_ns())
    routing = Routing(breakers.condition, _ask_nobody, store.sessions, store.budgets, clock, ids)
    told = await describe(routing, snapshot, route, asked)
    if told["strategy"] != "fastest":
        return told
    return {**told, "notes": [*told["notes"], _UNMEASURED.format(route=quote(told["route"], safe=""))]}


async def _ask_nobody(_case: Progress, _call: Call, route: Route, _snapshot: Snapshot) -> str:
    return route.classifier.default if route.classifier is not None else ""


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    also = f" (also {', '.join(told['aliases'])})" if told["aliases"] else ""
    yield f"route {told['route']}{also} for {told['operation']}"
    if told["task"]:
        yield f"task {told['task']}"
    yield from plan_lines(told)
    for mirror in told["mirrors"]:
        yield f"  a copy to {mirror['target']} of {mirror['percent']:g} % of the calls"
    yield from map("  ".__add__, _settings(told))


def _settings(told: Mapping[str, Any]) -> Iterator[str]:
    """What else is settled for the route's calls, as configuration is written."""
    retry, hedge, validators = told["retry"], told["hedge"], told["validators"]
    if told["accept"] is not None:
        yield f"accepted where {told['accept']}"
    if validators:
        otherwise = "a person is asked" if told["on_exhausted"] == "approve" else "the client gets an error"
        yield f"validators: {', '.join(validators)}; where no answer passes, {otherwise}"
    tries = "one attempt at a target"
    if retry["attempts"] > 1:
        waits = f"up to {show_duration(retry['base_s'])} at first and {show_duration(retry['cap_s'])} at the most"
        tries = f"{retry['attempts']} attempts at a target, a wait of {waits} between two"
    yield f"retries: {tries}; a budget of {retry['share']:g} a call and {retry['per_second']:g} a second"
    if hedge is not None:
        yield f"hedge: after {show_duration(hedge['after_s'])}, for {hedge['share'] * 100:g} % of the calls at the most"
    yield "deadlines: " + ", ".join(f"{name.removesuffix('_s')} {show_duration(limit)}" for name, limit in told["deadlines"].items())
    if told["on_stream_failure"] == "continue":
        yield "streams that break off: another target goes on, where it can"
