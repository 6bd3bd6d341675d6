"""JSON Schemas of tools: compiled once, asked in time that is known before. They come from operators and from clients alike.

A schema never makes the gateway fetch anything: references stay within it, and whatever looks for another document is refused. Patterns
run in linear time. What a check may cost is worked out from the schema and the size of the value; what would cost more is not begun.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Final, NoReturn

import jsonschema_rs
import orjson

from gateway.call import Json, JsonObject
from gateway.schema_work import Work, patterns_in, states, work_of

MOST_BYTES: Final = 128 * 1024  # of a schema as JSON
_DEEPEST: Final = 64
_MOST_PROBLEMS: Final = 8
_LONGEST_POINTER: Final = 300
_LONGEST: Final = 100  # characters of a schema's own words in a message
_MOST_WORK: Final = 10_000_000  # units of some 5 ns: what a check may cost at most
_EXPLAINED_WORK: Final = 40_000  # up to here every problem is told with its place: an error costs a thousand times what a success does
_PATTERNS: Final = jsonschema_rs.RegexOptions(size_limit=1024 * 1024, dfa_size_limit=2 * 1024 * 1024)
_PATTERN: Final = 30  # what each costs besides
_MOST_STATES: Final = 40_000  # of all patterns of a schema: compiling one takes a microsecond, in which nothing else is done
_DRAFTS: Final[Mapping[str, Callable[..., jsonschema_rs.Validator]]] = {
    "": jsonschema_rs.Draft202012Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema_rs.Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema_rs.Draft201909Validator,
    "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
    "http://json-schema.org/draft-06/schema": jsonschema_rs.Draft6Validator,
    "http://json-schema.org/draft-04/schema": jsonschema_rs.Draft4Validator,
}

# What is said of a keyword that is not met. `{}` is what the schema says there, never what the value is.
_WORDS: Final[Mapping[str, str]] = {
    "required": "lacks the field {}",
    "pattern": "does not match the pattern {}",
    "enum": "is none of {}",
    "const": "is not {}",
    "format": "is not of the format {}",
    "minimum": "is less than {}",
    "maximum": "is more than {}",
    "exclusiveMinimum": "is not more than {}",
    "exclusiveMaximum": "is not less than {}",
    "multipleOf": "is not a multiple of {}",
    "minLength": "is shorter than {} characters",
    "maxLength": "is longer than {} characters",
    "minItems": "has fewer than {} items",
    "maxItems": "has more than {} items",
    "minProperties": "has fewer than {} fields",
    "maxProperties": "has more than {} fields",
    "uniqueItems": "has an item twice",
    "contains": "has no item of the kind that is asked for",
    "propertyNames": "has a field whose name is not allowed",
    "unevaluatedItems": "has an item too many",
    "additionalItems": "has an item too many",
    "anyOf": "fits none of the alternatives",
    "not": "is what must not be",
    "falseSchema": "must not be there",
    "$ref": "has to stay within the schema (`#/…`) and to lead somewhere: nothing is fetched",
}
_UNKNOWN_FIELDS: Final = ("additionalProperties", "unevaluatedProperties")


@dataclass(frozen=True, slots=True)
class Fault:
    """One place of a value that its schema does not take. `message` quotes the schema, and of the value only names of fields."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or '(the whole)'}: {self.message}"


class Schema:
    """A compiled schema."""

    __slots__ = ("_validator", "_work")

    def __init__(self, validator: jsonschema_rs.Validator, work: Work) -> None:
        self._validator = validator
        self._work = work

    def faults(self, value: Json) -> list[Fault]:
        """What is wrong with a value, the first few things; empty where it fits. A value that cannot be checked has a fault."""
        work = self._work.of(value, at_most=_MOST_WORK)
        if work > _MOST_WORK:
            return [Fault("", "is too large, or nested too deeply, to be checked against its schema")]
        try:
            if self._validator.is_valid(value):
                return []
            if work > _EXPLAINED_WORK:
                return [Fault("", "does not fit its schema; where is told of smaller values only")]
            found = [fault for error in self._validator.iter_errors(value) for fault in _faults(error)]
        except ValueError:  # a value that is not JSON, or one that is nested more deeply than the validator goes
            return [Fault("", "cannot be checked against its schema")]
        return list(dict.fromkeys(islice(found, _MOST_PROBLEMS)))

    def problems(self, value: Json) -> list[str]:
        """The same as texts: `pointer: message`."""
        return [str(fault) for fault in self.faults(value)]


def compile_schema(schema: JsonObject) -> Schema:
    """A schema of Draft 2020-12, or of the draft that its `$schema` names.

    Raises:
        ValueError: it is not one, is too large, or refers to anything outside of itself; says what and where.
    """
    return _compile(_written(schema))


class SchemaCache:
    """The schemas that clients send, compiled once: the same tools come with every call of a conversation. Remembers refusals too."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._known: OrderedDict[bytes, Schema | str] = OrderedDict()

    def __repr__(self) -> str:
        return f"<SchemaCache {len(self._known)} of {self._most}>"

    def get(self, schema: JsonObject) -> Schema:
        """The compiled schema. Raises `ValueError` as `compile_schema` does."""
        written = _written(schema)
        digest = hashlib.sha256(written).digest()
        known = self._known.pop(digest, None)
        if known is None:
            try:
                known = _compile(written)
            except ValueError as error:
                known = str(error)
        self._known[digest] = known  # the last used are the last to go
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        if isinstance(known, str):
            raise ValueError(known)  # noqa: TRY004 - it is the schema that is wrong
        return known


def pointer(path: list[str | int]) -> str:
    """RFC 6901; a very long one, which only invented names of fields can make, is cut."""
    whole = "".join("/" + str(part)[:_LONGEST_POINTER].replace("~", "~0").replace("/", "~1") for part in path)
    return whole if len(whole) <= _LONGEST_POINTER else f"{whole[:_LONGEST_POINTER]}…"


def _written(schema: JsonObject) -> bytes:
    """The schema as bytes that are the same for the same schema."""
    try:
        written = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError as error:
        raise ValueError("the schema holds what JSON does not have, such as a date") from error
    if len(written) > MOST_BYTES:
        raise ValueError(f"the schema is over {MOST_BYTES} bytes")
    return written


def _compile(written: bytes) -> Schema:
    schema = orjson.loads(written)  # what was measured, and nobody else can change
    if not isinstance(schema, dict):
        raise ValueError("a schema is an object")  # noqa: TRY004 - every wrong schema is a ValueError
    _check_frame(schema)
    draft = schema.get("$schema", "")
    make = _DRAFTS.get(draft.rstrip("#")) if isinstance(draft, str) else None
    if make is None:
        raise ValueError("/$schema: names no draft that is known; leave it out for 2020-12")
    try:
        validator = make(schema, retriever=_refuse, pattern_options=_PATTERNS, validate_formats=True)
    except jsonschema_rs.ValidationError as error:
        fault = next(_faults(error))
        if error.kind.name == "anyOf":
            fault = replace(fault, message="is not what may stand there")
        hint = "; lookarounds and back references are not taken, nor what grows beyond all bounds"
        raise ValueError(f"{fault}{hint if error.kind.value == 'regex' else ''}") from None
    return Schema(validator, work_of(schema))


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not fetched")


def _check_frame(schema: dict[str, Any]) -> None:
    """Nesting, patterns, and names: a part that has a name of its own could be what a reference means without looking like it."""
    level: list[Any] = [schema]
    left = _MOST_STATES
    for _ in range(_DEEPEST):
        for pattern in chain.from_iterable(map(patterns_in, level)):
            left -= _PATTERN + states(pattern)
            if left < 0:
                raise ValueError("the schema's patterns are too large to be compiled, together")
        level = [value for each in level for value in (each.values() if isinstance(each, dict) else each) if isinstance(value, dict | list)]
        if not level:
            return
        if any(isinstance(each, dict) and isinstance(each.get(key), str) for each in level for key in ("$id", "id", "$schema")):
            raise ValueError("`$id` and `$schema` are taken at the top of a schema only")
    raise ValueError(f"the schema is nested deeper than {_DEEPEST} levels")


def _faults(error: jsonschema_rs.ValidationError) -> Iterator[Fault]:
    """An error in our words: the library's quote the value."""
    keyword, said = error.kind.name, error.kind.value
    where = pointer(error.instance_path)
    if keyword in _UNKNOWN_FIELDS:
        for name in said:
            yield Fault(where + pointer([name]), "is no field that the schema knows")
    elif keyword == "type":
        yield Fault(where, f"is not of type {' or '.join(said)}")
    elif keyword == "oneOf":
        yield Fault(where, f"fits {'more than one' if [] in said else 'none'} of the alternatives")
    else:
        yield Fault(where, _WORDS.get(keyword, f"does not meet `{keyword}`").format(_shown(said)))


def _shown(said: Any) -> str:
    try:
        text = orjson.dumps(said).decode()
    except TypeError:  # an error within, which quotes the value
        return ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
