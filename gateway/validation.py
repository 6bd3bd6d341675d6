"""Turns what pydantic says about a file into problems that name file, line and key, with the nearest thing that would be right."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import Problem
from gateway.toml_source import KeyPath, Source

Model = TypeVar("Model", bound=BaseModel)

class Strict(BaseModel):
    """Base of every model: nothing unknown, nothing converted, nothing changed after."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


_PLAIN: Final = {"tuple_type": "should be a list", "model_type": "should be a table", "dict_type": "should be a table",
                 "too_short": "must not be empty", "int_type": "should be a whole number, without quotes",
                 "bool_type": "should be true or false, without quotes"}


def validated(model: type[Model], source: Source) -> tuple[Model | None, list[Problem]]:
    """The file as a model, or every problem it has."""
    try:
        return model.model_validate(source.data), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    problems = [_problem(model, source, details) for details in found if not _follows(details, found)]
    return None, sorted(problems, key=lambda problem: problem.line or 0)


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """`did you mean "x"?`, or what there is, or nothing where there is nothing. Case makes no difference."""
    names = sorted(known)
    alike = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong[:100].lower(), alike, n=1)
    if close:
        return f'did you mean "{alike[close[0]]}"?'
    return f"there is {_listed(names)}" if names else None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, …" if len(names) > len(names[:12]) else shown


def _problem(model: type[BaseModel], source: Source, details: ErrorDetails) -> Problem:
    path: KeyPath = tuple(part for part in details["loc"] if part != "[key]")
    context = details.get("ctx", {})
    hint = None
    match details["type"]:
        case "extra_forbidden":
            message, hint = "unknown key", nearest(str(path[-1]), _fields(model, path[:-1]))
        case "missing":
            message, hint = "is missing", _description(model, path)
        case "literal_error":
            allowed = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            given = _value(source.data, path)  # a number may have more digits than Python writes
            message, hint = "is none of the possible values", nearest(given if isinstance(given, str) else "", allowed)
        case "string_too_short" if context["min_length"] == 1:
            message = "must not be empty"
        case "value_error":
            message = str(context["error"])
        case "string_pattern_mismatch":
            what = "the name" if "[key]" in details["loc"] else "the value"
            message = f"{what} does not have the form {context['pattern']}"
        case "tuple_type":
            message = _PLAIN["tuple_type"]
            table = ".".join(part for part in path if isinstance(part, str))
            hint = f"write [[{table}]]" if isinstance(_value(source.data, path), Mapping) else "a list stands in brackets: [ ]"
        case kind:
            message = _PLAIN.get(kind) or details["msg"].replace("Input should", "should")
    return source.problem(path, message, hint)


def _follows(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether an error only follows from others: a list counts as too short where its entries are wrong."""
    at = details["loc"]
    return details["type"] == "too_short" and any(each["loc"][:len(at)] == at and len(each["loc"]) > len(at) for each in found)


def _description(model: type[BaseModel], path: KeyPath) -> str | None:
    around = _model_at(model, path[:-1])
    return around.model_fields[str(path[-1])].description if around else None


def _fields(model: type[BaseModel], path: KeyPath) -> list[str]:
    around = _model_at(model, path)
    # What is excluded the loader sets.
    return [field.alias or name for name, field in around.model_fields.items() if not field.exclude] if around else []


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of the table at `path`: through fields, the values of mappings, the entries of lists."""
    at: Any = model
    for part in path:
        if isinstance(at, type) and issubclass(at, BaseModel):
            at = at.model_fields[str(part)].annotation
        else:
            at = get_args(at)[1 if issubclass(get_origin(at), Mapping) else 0]
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data
