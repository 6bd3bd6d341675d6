"""Writes docs/configuration.md from the models of the configuration: `python docs/configuration.py > docs/configuration.md`."""  # noqa: INP001 - a program, not a module of a package

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config import Config, RoutesFile
from gateway.core.answer_checks import answer_table
from gateway.rule_config import PolicyFile
from gateway.units import Written

_HEAD: Final = """<!-- Made by docs/configuration.py from the models in gateway/config.py; a test compares. Change those, then run
     `python docs/configuration.py > docs/configuration.md`. -->

# Configuration

A deployment is a folder: `config.toml`, and beside it `routes/`, `policies/` and `adapters/`. `lockgate init DIR` makes one,
`lockgate check` reads all of it and names what is wrong with file, line and key: first everything that is wrong in the shape of the
files, then, once the shapes are right, everything that is wrong in their meaning (names, references, expressions). Everything is
strict: an unknown key is an error, and nothing is converted.

Files are read at the start and [at each reload](policy.md#reload). A change of `[server]`, `[paths]`, `[upstream]`, `[store]`, `[auth]`,
`[admin]`, `[login]`, `[oidc]`, `[log]`, `[otlp]`, of `policy.watch`, `approvals.max_held` and the code of an adapter takes effect at
a restart; everything else at a reload.
The commands take the file from `--config`, else from the environment variable `LOCKGATE_CONFIG`, else `config.toml` in the current
folder. In `routes/` and `policies/` only files named `*.toml` are read, and in `policies/lists/` files named `*.txt`; hidden files
are skipped, and `lockgate check` warns about everything else.

| kind | written as |
|---|---|
| duration | a string of a number and a unit: `"250ms"`, `"30s"`, `"5m"`, `"24h"`, `"7d"` |
| size | a string of a whole number and a unit: `"512KiB"`, `"10MiB"` |
| USD | a string of a decimal number, no sign, no exponent: `"0.40"` |
| reference | where a secret is, never the secret: `"env:NAME"`, or `"file:PATH"` relative to the folder of `config.toml` |
| glob | a string in which `*` stands for anything, `?` for one character, `[ab]` for one of them; case matters |

A price that is not in `[prices]` is taken from the published ones that ship with Lockgate (`genai-prices`), by the provider's
`price_provider` and the model's name. Where a provider charges by the hour of the day, it is the price outside those hours. A price
that nobody knows is reported as unknown, never as 0; where a budget binds the call, `[pricing]` says what happens.
[Budgets](budgets.md#prices) has more on both.
"""

_ANSWERS: Final = """### What expressions over an answer read

`accept` and the `expression` of a validator are asked of every choice of an answer, and have to hold for all of them. One that cannot be
evaluated does not hold.

"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD, "## config.toml\n"]
    for name, field in Config.model_fields.items():
        model = _model(field)
        title = f"`[{name}]`" if not _keyed(field) else _own_title(model)
        parts.append(_section(title, model))
        parts.extend(_section(*below) for below in _below(title, model))
    for folder, file, more in (("routes/*.toml", RoutesFile, _ANSWERS + answer_table() + "\n"), ("policies/*.toml", PolicyFile, "")):
        parts.append(f"## {folder}\n")
        parts.extend(_section(*below) for below in _below("", file))
        parts += [more] if more else []
    return "\n".join(parts)


def _below(title: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The tables within one, from the outside in, each with its title; none that is explained elsewhere."""
    for name, field in model.model_fields.items():
        if _is_model(_inner(field)) and not _elsewhere(title, name, field):
            below = _own_title(_model(field)) or _path(title, name, field)
            yield below, _model(field)
            yield from _below(below, _model(field))


def _path(title: str, name: str, field: FieldInfo) -> str:
    """The head of a table within the table of this title: `[route.hedge]`."""
    around = title.strip("`[]")
    path = f"{around}.{name}" if around else name
    return f"`[[{path}]]`" if get_origin(_plain(field)) is tuple else f"`[{path}]`"


def _elsewhere(title: str, name: str, field: FieldInfo) -> str:
    """The title of the table that explains this one, where that is another."""
    own = _own_title(_model(field))
    path = _path(title, name, field)
    return own if own.startswith("`[") and own not in (path, path.replace("]`", ".NAME]`")) else ""


def _own_title(model: type[BaseModel]) -> str:
    """The title that a model's docstring gives; empty for one that stands in several places."""
    doc = model.__doc__ or ""
    return doc.partition(":")[0] if doc.startswith("`") else ""


def _section(title: str, model: type[BaseModel]) -> str:
    doc = (model.__doc__ or "").strip()
    says = doc.partition(":")[2].strip() if doc.startswith("`") and ":" in doc else doc
    rows: list[str] = []
    for name, field in model.model_fields.items():
        if not field.exclude and not _is_model(_inner(field)):
            rows.append(_row(name, field))
        elif not field.exclude and (other := _elsewhere(title, name, field)):
            rows.append(f"| `{name}` | table | as {other} | {field.description} |")
    says = " ".join(says.split())  # a docstring may run over two lines
    return "\n".join([f"### {title}\n", says[:1].upper() + says[1:] + "\n", "| key | kind | default | |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _default(field)
    cells = (f"`{name}`", _kind(field), default, field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value in (None, {}, ()):
        return "none"
    written = _written(field)
    if written:
        return f'`"{written.show(value)}"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _kind(field: FieldInfo) -> str:
    written = _written(field)
    inner = _inner(field)
    if written:
        return f"table of {written.kind}" if _keyed(field) else written.kind
    if _keyed(field):
        return "table" if inner is Any else "table of strings"
    if get_origin(_plain(field)) is tuple:
        return "list of " + (_choices(inner) or "globs" if inner is not str else "strings")
    return _choices(inner) or {str: "string", int: "whole number", float: "number", bool: "`true` or `false`"}[inner]


def _choices(kind: Any) -> str:
    return ", ".join(f'`"{choice}"`' for choice in get_args(kind)) if get_origin(kind) is Literal else ""


def _written(field: FieldInfo) -> Written | None:
    metadata = list(field.metadata)
    for part in get_args(field.annotation):  # what is optional, or the values of a table
        metadata += getattr(part, "__metadata__", ())
    return next((each for each in metadata if isinstance(each, Written)), None)


def _keyed(field: FieldInfo) -> bool:
    return _is_mapping(_plain(field))


def _plain(field: FieldInfo) -> Any:
    """The type without the annotations around it, and without None."""
    kind: Any = field.annotation
    while hasattr(kind, "__metadata__") or get_origin(kind) in {types.UnionType, Union}:
        kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else next(part for part in get_args(kind) if part is not types.NoneType)
    return kind


def _inner(field: FieldInfo) -> Any:
    """The type without what is around it: optional, a list's entries, a mapping's values, annotations."""
    kind: Any = field.annotation
    while get_args(kind) and get_origin(kind) is not Literal:
        if get_origin(kind) in {types.UnionType, Union}:
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
        else:
            kind = get_args(kind)[1 if _is_mapping(kind) else 0]
    return kind


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _model(field: FieldInfo) -> type[BaseModel]:
    model: type[BaseModel] = _inner(field)
    return model


if __name__ == "__main__":
    sys.stdout.write(reference())
