"""`lockgate approvals`: what waits for people, and what they decide. Asks the running gateway, whose checks are the same for everybody."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import quote, urlencode

import click

from gateway.cli.output import config_option, count, emit_json, emit_rows, json_option, printable
from gateway.cli.remote import AS_SOMEBODY_ELSE, Remote
from gateway.deployment import read_settings

_AT: Final = "/-/approvals"
_ANYBODY: Final = "anybody who may approve"
_GRANTS: Final = "/-/grants"
_COLUMNS: Final = ("id", "state", "rule", "principal_name", "summary", "votes", "created_at", "expires_at")
_GRANT_COLUMNS: Final = ("id", "live", "rule", "principal", "tool", "condition", "uses", "session", "author", "expires_at", "revoked_by")
_SHOWN: Final = (
    "state", "kind", "rule", "message", "principal", "principal_name", "team", "on_behalf_of", "route", "tool", "session", "call", "effect",
    "irreversible", "created_at", "expires_at", "decided_at", "ended_at", "edited_from", "replaced_by", "reason")


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """The options of everything that asks a gateway; the command is given the gateway as `remote`."""

    @wraps(command)
    def ask(*, url: str | None, token_file: str | None, config_path: str, **given: Any) -> None:
        command(remote=Remote.of(read_settings(Path(config_path)), url, token_file), **given)

    asking: Callable[..., None] = ask
    for option in (
        json_option, config_option,
        click.option("--url", envvar="LOCKGATE_URL", show_envvar=True, help="The gateway's address. Default: where this deployment's is."),
        click.option("--token-file", type=click.Path(dir_okay=False), help=(
            "A file with the token to ask with: the admin token, or a person's API token. Without it LOCKGATE_TOKEN, else the deployment's "
            "own admin token.")),
    ):
        asking = option(asking)
    return asking


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def approvals() -> None:
    """See what waits for people; approve, deny, edit and withdraw it; take back what was granted."""


@approvals.command("list", short_help="List what waits.")
@click.option("--state", default="pending", show_default=True, help="A state, `open` or `all`.")
@click.option("--rule", help="Of this rule only.")
@click.option("--tool", help="Of this tool only.")
@click.option("--team", help="Asked for by this team only.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 200), help="How many at most, oldest first.")
@_asking
def list_(  # noqa: PLR0913 - one parameter an option
    *, state: str, rule: str | None, tool: str | None, team: str | None, limit: int, remote: Remote,
    as_json: bool,
) -> None:
    """List what waits for people, oldest first."""
    given = {"state": state, "rule": rule, "tool": tool, "team": team, "limit": limit}
    told = remote.get(
        f"{_AT}?{urlencode({name: value for name, value in given.items() if value is not None})}")
    rows = told["approvals"] if as_json else [{**row, "votes": _progress(row)} for row in told["approvals"]]
    emit_rows(rows, _COLUMNS, as_json=as_json)
    if told["next"] and not as_json:
        click.echo(f"There are more; --limit shows up to 200, and the gateway's page all of them ({_counts(told['counts'])}).", err=True)


@approvals.command(short_help="Show one: the exact action.")
@click.argument("ticket", metavar="ID")
@_asking
def show(*, ticket: str, remote: Remote, as_json: bool) -> None:
    """Show everything of one approval: the exact action and its digest, who asks and why, the votes so far."""
    shown = _shown(remote, ticket)
    if as_json:
        emit_json({"approval": shown})
    else:
        _tell(shown, remote)


@approvals.command(short_help="Approve one, after it was shown.")
@click.argument("ticket", metavar="ID")
@click.option("--comment", default="", help="What the caller and the record are told.")
@click.option("--digest", help="Approve only the action of this digest.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@click.option("--grant-for", metavar="DURATION", help="Let calls like it go on for so long: 1h; 30d at the most.")
@click.option("--grant-condition", metavar="CEL", default="", help="Only those for which this is true.")
@click.option("--grant-uses", type=click.IntRange(1, 1000), help="Only so many.")
@click.option("--grant-session", is_flag=True, help="Only those of the same session.")
@_asking
def approve(  # noqa: PLR0913 - one parameter an option
    *, ticket: str, comment: str, digest: str | None, yes: bool, grant_for: str | None, grant_condition: str, grant_uses: int | None,
    grant_session: bool, remote: Remote, as_json: bool,
) -> None:
    """Approve an action. It is shown first, and what is approved is what was shown."""
    if grant_for is None and (grant_condition or grant_uses is not None or grant_session):
        raise click.UsageError("a grant needs --grant-for: for how long")
    more: dict[str, Any] = {}
    if grant_for is not None:
        more["grant"] = {"for": grant_for, "condition": grant_condition, "uses": grant_uses, "session": grant_session}
    _vote(remote, ticket, "approve", digest, {"comment": comment, **more}, ask=not yes, as_json=as_json)


@approvals.command(short_help="Deny one.")
@click.argument("ticket", metavar="ID")
@click.option("--comment", default="", help="What the caller and the record are told.")
@click.option("--digest", help="Deny only the action of this digest.")
@_asking
def deny(
    *, ticket: str, comment: str, digest: str | None, remote: Remote, as_json: bool,
) -> None:
    """Deny an action. The caller is told the comment."""
    _vote(remote, ticket, "deny", digest, {"comment": comment}, ask=False, as_json=as_json)


@approvals.command(short_help="Put another action in its place.")
@click.argument("ticket", metavar="ID")
@click.option("--arguments", "file", type=click.File("r"), help="A file with the whole arguments as JSON; - is standard input. Without it, "
              "an editor opens with those that wait.")
@click.option("--comment", default="", help="Why.")
@click.option("--approve", "approving", is_flag=True, help="Approve the new action with it, unless a rule makes another one of it.")
@_asking
def edit(
    *, ticket: str, file: TextIO | None, comment: str, approving: bool, remote: Remote,
    as_json: bool,
) -> None:
    """Change the arguments of an action, or the messages and parameters of a model call: another action, which is judged again."""
    shown = _shown(remote, ticket)
    before = json.dumps(shown["action"]["arguments"], indent=2, ensure_ascii=False)
    text = file.read() if file is not None else click.edit(before, extension=".json")
    if text is None:
        raise click.ClickException("nothing was changed")
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise click.ClickException(f"this is not JSON: {error}") from error
    body = {"digest": shown["digest"], "arguments": arguments, "comment": comment, "approve": approving}
    row = remote.post(f"{_AT}/{quote(ticket, safe='')}/edit", body)["approval"]
    _answer(row, f"{row['id']} stands in its place and is {row['state']}.", as_json=as_json)


@approvals.command(short_help="Say what came of an unknown one.")
@click.argument("ticket", metavar="ID")
@click.argument("outcome", type=click.Choice(("succeeded", "failed")))
@click.option("--comment", required=True, help="How you know.")
@_asking
def resolve(
    *, ticket: str, outcome: str, comment: str, remote: Remote, as_json: bool,
) -> None:
    """Say what came of an action that was sent, and that nobody knows it of."""
    row = remote.post(f"{_AT}/{quote(ticket, safe='')}/resolve", {"outcome": outcome, "comment": comment})["approval"]
    _answer(row, f"{row['id']} has {row['state']}.", as_json=as_json)


@approvals.command(short_help="Take one back that has not been done.")
@click.argument("ticket", metavar="ID")
@click.option("--comment", default="", help="Why; a caller who waits for it is told.")
@_asking
def withdraw(
    *, ticket: str, comment: str, remote: Remote, as_json: bool,
) -> None:
    """Take back an action that waits, or that was approved and has not begun. Presented again, it is asked about anew."""
    row = remote.post(f"{_AT}/{quote(ticket, safe='')}/withdraw", {"comment": comment})["approval"]
    _answer(row, f"{row['id']} is {row['state']}.", as_json=as_json)


@approvals.command(short_help="List what was granted.")
@click.option("--all", "everything", is_flag=True, help="Also those that do not count any more.")
@click.option("--rule", help="Of this rule only.")
@_asking
def grants(
    *, everything: bool, rule: str | None, remote: Remote, as_json: bool,
) -> None:
    """List what people have let go on for a while, newest first."""
    given = {**({} if everything else {"live": "true"}), **({"rule": rule} if rule else {})}
    told = remote.get(f"{_GRANTS}?{urlencode(given)}")
    emit_rows(told["grants"], _GRANT_COLUMNS, as_json=as_json)


@approvals.command(short_help="Take a grant back.")
@click.argument("grant", metavar="GRANT")
@_asking
def revoke(*, grant: str, remote: Remote, as_json: bool) -> None:
    """Take back what was granted: calls like it wait again."""
    told = remote.post(f"{_GRANTS}/{quote(grant, safe='')}/revoke")
    _answer(told, f"The grant {grant} is taken back.", as_json=as_json)


def _shown(remote: Remote, ticket: str) -> dict[str, Any]:
    shown: dict[str, Any] = remote.get(f"{_AT}/{quote(ticket, safe='')}")["approval"]
    return shown


def _vote(  # noqa: PLR0913 - what is voted, and how it is told
    remote: Remote, ticket: str, verdict: str, digest: str | None, more: Mapping[str, Any], *, ask: bool, as_json: bool,
) -> None:
    """Show an action, and vote on what was shown."""
    shown = _shown(remote, ticket)
    if digest is not None and digest != shown["digest"]:
        raise click.ClickException(f"the action is another one by now: its digest is {shown['digest']}")
    if not as_json:
        _tell(shown, remote)
    if ask and sys.stdin.isatty():
        click.confirm(f"{verdict.capitalize()} this?", abort=True)
    row = remote.post(f"{_AT}/{quote(ticket, safe='')}/vote", {"verdict": verdict, "digest": shown["digest"], **more})["approval"]
    missing = "" if row["state"] != "pending" else "; others have to vote as well"
    _answer(row, f"Your vote counts: {row['id']} is {row['state']}{missing}.", as_json=as_json)


def _answer(row: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        emit_json(row)
    else:
        click.echo(printable(words))


def _tell(shown: Mapping[str, Any], remote: Remote) -> None:
    """One approval for people to read. What others wrote cannot steer the terminal."""
    for name in _SHOWN:
        value = shown.get(name)
        if value not in (None, "", False):
            click.echo(f"{name.replace('_', ' ') + ':':<16}{printable(str(value))}")
    for demand in shown["demands"]:
        stages = " then ".join(f"{stage['quorum']} of {', '.join(stage['approvers']) or _ANYBODY}" for stage in demand["stages"])
        click.echo(printable(f"{'needs:':<16}{stages} (rule {demand['rule']})"))
    for vote in shown["votes"]:
        said = f": {vote['comment']}" if vote["comment"] else ""
        click.echo(printable(f"{vote['verdict'] + ':':<16}{vote['name'] or vote['person']} ({vote['method']}, {vote['at']}){said}"))
    if not shown["may_vote"] and shown["state"] == "pending":
        other = f" {AS_SOMEBODY_ELSE}" if remote.as_admin else ""
        click.echo(printable(f"{'you:':<16}{shown['why_not']}{other}"))
    click.echo(f"{'digest:':<16}{shown['digest']}\naction:")
    emit_json(shown["action"]["arguments"])
    if shown["patch"] is not None:
        click.echo("changed from what was asked for:")
        emit_json(shown["patch"])


def _progress(row: Mapping[str, Any]) -> str:
    """How many votes each rule has of those that it asks for at this stage; of one that has them all, nothing."""
    now = [(each, each["stages"][each["stage"]]) for each in row["demands"] if each["stage"] is not None]
    return " + ".join(f"{each['have']} of {stage['quorum']}" for each, stage in now) or str(row["votes"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count(number, 'approval')} {state}" for state, number in sorted(counts.items()))
