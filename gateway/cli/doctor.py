"""`lockgate doctor`: the invariants on a database. Exit code 1 with the rows that break one, 2 where there is nothing to examine."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from gateway.cli.deciders import NOBODY, teach
from gateway.cli.deployment import open_deployment, open_file
from gateway.cli.output import config_option, emit_json, emit_rows, json_option, printable
from gateway.clock import SystemClock
from gateway.errors import LockgateError
from gateway.store.database import Connection
from gateway.store.doctor import INVARIANTS, examine
from gateway.store.invariants import Finding, Invariant

STUCK: Final = Invariant(
    "stuck-calls",
    "SELECT calls.id, owners.name AS process, route, (:now_ns - received_ns) / 1000000000 AS open_s FROM calls "
    "JOIN owners ON owners.id = calls.owner "
    "WHERE seq NOT IN (SELECT seq FROM outcomes) AND owners.lease_ns >= :now_ns AND received_ns < :now_ns - 3600 * 1000000000",
    "these calls are open for more than an hour in a process that lives: unless their route's deadlines allow that, restart the process",
    note=True,
)
CHECKS: Final = (*INVARIANTS, STUCK, NOBODY)


class CannotExamine(click.ClickException):
    """There is no database to examine, so nothing is known of its invariants."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("database", required=False, metavar="[DB]", type=click.Path(path_type=Path))
@config_option
@json_option
def doctor(*, database: Path | None, config_path: str, as_json: bool) -> None:
    """Check the invariants on a database: DB, or the deployment's own. Reads only; a gateway may be running.

    Exit code 1 if an invariant is broken, 2 if there is no database that can be examined; notes leave it 0.
    """
    path, opened = _open(database, config_path)
    with closing(opened) as connection:
        teach(connection)
        findings = list(examine(connection, now_ns=SystemClock().now_ns(), invariants=CHECKS))
    broken = [finding for finding in findings if not finding.invariant.note]
    if as_json:
        found_json = [_json(found) for found in findings]
        emit_json({"database": str(path), "checked": len(CHECKS), "clean": not broken, "findings": found_json})
    else:
        for found in findings:
            _print(found)
        state = f"{len(broken)} broken" if broken else "clean"
        click.echo(f"{printable(str(path))}: {len(CHECKS)} invariants checked, {state}.")
    if broken:
        sys.exit(1)


def _open(database: Path | None, config_path: str) -> tuple[Path, Connection]:
    try:
        return open_deployment(config_path) if database is None else (database, open_file(database))
    except LockgateError as error:
        raise CannotExamine(error.message) from error


def _json(found: Finding) -> dict[str, Any]:
    invariant = found.invariant
    return {
        "invariant": invariant.name, "note": invariant.note, "explanation": invariant.explanation, "rows": list(found.rows),
    }


def _print(found: Finding) -> None:
    kind = "note" if found.invariant.note else "broken"
    click.echo(f"{kind}: {found.invariant.name}: {found.invariant.explanation}")
    emit_rows(found.rows, tuple(found.rows[0]), as_json=False)
    click.echo()
