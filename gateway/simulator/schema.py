"""An example for a JSON schema: what the pretend model answers when it is told the shape of the answer. Pure."""

import math
from collections.abc import Mapping
from typing import Any, Final

_DEEP = 2  # references followed before a recursion is steered to its end
_TOO_DEEP = 5  # references followed at all
_MOST_ITEMS = 1000
_LONGEST = 100_000
_FORMATS: Final[Mapping[str, str]] = {
    "date-time": "2025-01-31T12:00:00Z", "date": "2025-01-31", "time": "12:00:00Z", "duration": "P1D",
    "email": "someone@example.com", "hostname": "example.com", "uri": "https://example.com/", "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1", "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Any) -> Any:
    """A value that is valid for a simple JSON schema, always the same one.

    Knows type, properties, items, enum, const, anyOf, oneOf, allOf, `$ref` inside the schema, bounds, lengths and the
    common formats. It knows no patterns, and where a schema recurses for ever it gives null after five references.

    Raises:
        ValueError: the schema is not one, a string for a minimum for example.
    """
    try:
        return _Example(schema).of(schema, 0)
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not a schema: {error}") from error


class _Example:
    def __init__(self, root: Any) -> None:
        self._root = root

    def of(self, schema: Any, references: int) -> Any:
        """The example for one subschema; `references` have been followed on the way to it."""
        if not isinstance(schema, dict) or references > _TOO_DEEP:
            return None
        if "const" in schema or schema.get("enum"):
            return schema["const"] if "const" in schema else schema["enum"][0]
        if "$ref" in schema:
            return self.of(self._resolve(schema["$ref"]), references + 1)
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            return self.of(_choose(options, references), references)
        if schema.get("allOf"):
            return self.of(_merged(schema), references)
        return self._typed(schema, references)

    def _typed(self, schema: Mapping[str, Any], references: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return {name: self.of(part, references) for name, part in schema.get("properties", {}).items()}
        if kind == "array":
            least = schema.get("minItems", 0 if references >= _DEEP else 1)
            return [self.of(schema.get("items", {"type": "string"}), references)] * min(least, _MOST_ITEMS)
        if kind in ("integer", "number"):
            return _number(schema)
        return _string(schema) if kind == "string" else {"boolean": True, "null": None}[kind]

    def _resolve(self, reference: str) -> Any:
        place = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            place = place[part.replace("~1", "/").replace("~0", "~")]
        return place


def _choose(options: list[Any], references: int) -> Any:
    """The first option; in a recursion the one that is null, where there is one."""
    null = {"type": "null"}
    return null if references >= _DEEP and null in options else options[0]


def _merged(schema: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        whole |= {**part, "properties": {**whole.get("properties", {}), **part.get("properties", {})}}
    return whole


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), "simulated")
    return text.ljust(min(schema.get("minLength", 0), _LONGEST), "x")[:schema.get("maxLength")]


def _number(schema: Mapping[str, Any]) -> float:
    """The first of a few likely numbers that keeps every bound."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    over, under = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    bounds = [bound for bound in (low, high, over, under) if math.isfinite(bound)]
    likely = [1, *bounds, *(bound + 1 for bound in bounds), *(bound - 1 for bound in bounds), sum(bounds) / 2]
    step = schema.get("multipleOf")
    if step:
        likely = [math.ceil(number / step) * step for number in likely]
    return next((number for number in likely if low <= number <= high and over < number < under), 1)
