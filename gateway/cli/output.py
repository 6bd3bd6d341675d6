"""How commands print: plain columns, or JSON when asked. A cell is never cut: an id that is cut cannot be used."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
import orjson

# What JSON may hold as it is and a terminal acts on: C1 controls (U+009B begins an escape sequence) and changes of direction.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

config_option = click.option(
    "--config", "config_path", default="config.toml", envvar="LOCKGATE_CONFIG", show_envvar=True, show_default=True,
    type=click.Path(dir_okay=False), help="The deployment's config.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def emit_json(value: Any) -> None:
    """Print one JSON document, indented for people on a terminal, one line when piped."""
    click.echo(_json(value, indent=sys.stdout.isatty()))


def emit_json_line(value: Any) -> None:
    """Print one JSON document on a line of its own, wherever it goes: one of many."""
    click.echo(_json(value, indent=False))


def emit_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows under the given columns; JSON prints every field of a row."""
    if as_json:
        emit_json(list(rows))
        return
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) if cells else len(column) for i, column in enumerate(columns)]
    for line in [columns, *cells]:
        emit_columns(line, widths)


def emit_columns(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one line of a table; what is wider than its column moves the rest of its line."""
    click.echo("  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """A value as one cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return printable(",".join(str(item) for item in value)) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """One line that cannot steer a terminal: whatever is not a visible character or a blank becomes a replacement mark."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def emit_problem(problem: object, kind: str = "error") -> None:
    """Print what is wrong, to stderr: it may quote a file that somebody else wrote."""
    click.echo("\n".join(map(printable, f"{kind}: {problem}".split("\n"))), err=True)


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 route", "2 routes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _json(value: Any, *, indent: bool) -> str:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0).decode()
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
