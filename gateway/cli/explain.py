"""`lockgate explain`: the story of a call, in order: what was decided and why, where it went and why, what the client got."""

import contextlib

import click

from gateway.cli.deployment import open_deployment
from gateway.cli.output import config_option, emit_json, json_option
from gateway.cli.story import story
from gateway.core.explain import explain as explained
from gateway.store.bundles import bundle_content
from gateway.store.protocol import CallFilter
from gateway.store.reads import list_calls, one_call

_MOST_PARTS = 500


@click.command(short_help="Tell the story of a call.")
@click.argument("call_id")
@config_option
@json_option
def explain(*, call_id: str, config_path: str, as_json: bool) -> None:
    """Tell the story of a call."""
    tell_call(call_id, config_path, as_json=as_json)


def tell_call(call_id: str, config_path: str, *, as_json: bool) -> None:
    """Print the story of a call. Works when the rules have changed since, and beside a gateway or without one."""
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        call = one_call(connection, call_id)
        content = bundle_content(connection, call["bundle"]) if call and call["bundle"] else None
        parts = list_calls(connection, CallFilter(_MOST_PARTS, part_of=call_id)) if call else []
    if call is None:
        raise click.ClickException(f"there is no call {call_id!r} on record; `lockgate calls tail` lists the latest")
    told = explained(call, content, parts=parts[::-1])
    if as_json:
        emit_json(told)
        return
    for line in story(told):
        click.echo(line)
