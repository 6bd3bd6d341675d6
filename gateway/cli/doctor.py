"""`lockgate doctor`: the invariants on a database. Exit code 1 with the rows that break one."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from gateway.cli.calls import printable
from gateway.cli.deployment import database_at
from gateway.cli.output import config_option, emit_json, emit_rows, json_option
from gateway.clock import SystemClock
from gateway.store.database import open_readonly
from gateway.store.doctor import INVARIANTS, Finding, examine


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("database", required=False, metavar="[DB]", type=click.Path(path_type=Path))
@config_option
@json_option
def doctor(*, database: Path | None, config_path: str, as_json: bool) -> None:
    """Check the invariants on a database: DB, or the deployment's own. Reads only; a gateway may be running."""
    path = database or database_at(config_path)
    with closing(open_readonly(path)) as connection:
        findings = list(examine(connection, now_ns=SystemClock().now_ns()))
    broken = [finding for finding in findings if not finding.invariant.note]
    if as_json:
        found_json = [_json(found) for found in findings]
        emit_json({"database": str(path), "checked": len(INVARIANTS), "clean": not broken, "findings": found_json})
    else:
        for found in findings:
            _print(found)
        state = f"{len(broken)} broken" if broken else "clean"
        click.echo(f"{printable(str(path))}: {len(INVARIANTS)} invariants checked, {state}.")
    if broken:
        sys.exit(1)


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
