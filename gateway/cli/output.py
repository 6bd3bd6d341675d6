"""How commands print: a table on a terminal, plain columns when piped, JSON when asked."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
import orjson

# What JSON may hold as it is and a terminal acts on: C1 controls (U+009B begins an escape sequence) and changes of direction.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

config_option = click.option(
    "--config", "config_path", default="config.toml", envvar="LOCKGATE_CONFIG", show_default=True,
    type=click.Path(dir_okay=False), help="The deployment's config.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def emit_json(value: Any) -> None:
    """Print one JSON document, indented for people on a terminal, one line when piped."""
    indent = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    text = orjson.dumps(value, option=indent).decode()
    click.echo(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def emit_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows under the given columns; JSON prints every field of a row."""
    if as_json:
        emit_json(list(rows))
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(len(column), *(len(row[i]) for row in cells)) if cells else len(column) for i, column in enumerate(columns)]
    for row in [list(columns), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - 100 ms to import, and only a terminal needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: what a caller wrote is never markup
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value) or "-"
    text = str(value)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
