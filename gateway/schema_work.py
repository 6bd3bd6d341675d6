"""What a check against a JSON Schema costs at most, worked out before it is made: alternatives can double it with each level.

A check visits, for each value in what is checked, every part of the schema that can apply there. Parts that apply beside one another
(`allOf`, `anyOf`, `$ref`, …) add up; of those that lead into a field only one does, as a field has one name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import re2

from gateway.call import Json

_ENDLESS: Final = 10**12  # what is above is not counted on
_MOST_COUNTED: Final = 100_000  # parts times levels: working out the bound has a bound, too
_VALUE: Final = 4  # units of some 5 ns
_KEYWORD: Final = 8
_LONGEST_CHAIN: Final = 8
_COMPARED: Final = 40  # for each object or array of an `enum`: it is compared in depth
_FORMAT: Final = 4  # for each character
_UNKNOWN_PATTERN: Final = 10_000  # steps for each character, where RE2 cannot say
_MOST_MEMORY: Final = 1024 * 1024  # for one pattern; what takes more takes too long to be compiled

# Keywords by what they lead to. Whatever else holds an object is taken for a part that applies beside the others.
_FIELDS: Final = ("properties", "additionalProperties")
_EVERY_FIELD: Final = ("patternProperties", "propertyNames", "unevaluatedProperties")
_ITEMS: Final = ("prefixItems", "items", "additionalItems")
_EVERY_ITEM: Final = ("contains", "unevaluatedItems")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_NAMED: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"})
_NOT_ASKED: Final = frozenset({"$defs", "definitions", "enum", "const", "default", "examples"})


@dataclass(slots=True)
class _Part:
    """A part of a schema: what it costs by itself, for a value and for each character of one; the parts beside it, and those below."""

    steps: int
    letters: int
    beside: list[int] = field(default_factory=list)
    one_field: set[int] = field(default_factory=set)
    every_field: list[int] = field(default_factory=list)
    one_item: set[int] = field(default_factory=set)
    every_item: list[int] = field(default_factory=list)

    @property
    def below(self) -> list[int]:
        """Every part that a value in the value could meet."""
        return [*self.one_field, *self.every_field, *self.one_item, *self.every_item]

    def led_to(self, work: list[int]) -> int:
        """The most that is done in one field or in one item."""
        fields = max([work[each] for each in self.one_field], default=0) + sum([work[each] for each in self.every_field])
        items = max([work[each] for each in self.one_item], default=0) + sum([work[each] for each in self.every_item])
        return max(fields, items)


class Work:
    """The bound of one schema. What is done at a depth is worked out when a value is so deep."""

    __slots__ = ("_edges", "_levels", "_order", "_parts")

    def __init__(self, parts: list[_Part], order: list[int]) -> None:
        self._parts = parts
        self._order = order  # each part after those beside it
        self._edges = len(parts) + sum(len(part.beside) + len(part.below) for part in parts)
        self._levels: list[tuple[list[int], list[int]]] = []

    def of(self, value: Json, *, at_most: int) -> int:
        """Units of some 5 ns that a check of this value takes at most; counting ends above `at_most`."""
        work = depth = 0
        level = [value]
        while level:
            steps, for_each_letter = self._at(depth)
            letters = 0
            inner: list[Json] = []
            for each in level:
                if isinstance(each, str):
                    letters += len(each)
                elif isinstance(each, dict):
                    letters += sum(map(len, each))
                    inner += each.values()
                elif isinstance(each, list):
                    inner += each
            work += len(level) * (_VALUE + steps) + letters * for_each_letter
            if work > at_most:
                break
            level = inner
            depth += 1
        return work

    def _at(self, depth: int) -> tuple[int, int]:
        """What is done for one value so deep, and for each character of it."""
        if depth * self._edges > _MOST_COUNTED:
            return _ENDLESS, _ENDLESS
        while len(self._levels) <= depth:
            self._levels.append(self._next())
        steps, letters = self._levels[depth]
        return steps[0], letters[0]

    def _next(self) -> tuple[list[int], list[int]]:
        """One level more: at the depth of a part its own work, below it that of the parts which it leads to."""
        deeper = bool(self._levels)
        steps, letters = [0] * len(self._parts), [0] * len(self._parts)
        for number in self._order:
            part = self._parts[number]
            if deeper:
                up_steps, up_letters = self._levels[-1]
                own_steps, own_letters = part.led_to(up_steps), part.led_to(up_letters)
            else:
                own_steps, own_letters = part.steps, part.letters
            steps[number] = min(_ENDLESS, own_steps + sum([steps[each] for each in part.beside]))
            letters[number] = min(_ENDLESS, own_letters + sum([letters[each] for each in part.beside]))
        return steps, letters


def work_of(schema: Mapping[str, Any]) -> Work:
    """The bound of a valid schema without identifiers in its parts.

    Raises:
        ValueError: a reference leads out of the schema or nowhere, or in a circle without going deeper.
    """
    reading = _Reading(schema)
    reading.part(schema)
    while reading.waiting:
        reading.read(*reading.waiting.pop())
    return Work(reading.parts, _order(reading.parts))


class _Reading:
    """The parts found so far; those in `waiting` are known by number and not read."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._numbers: dict[int, int] = {}
        self._anchors = dict(_anchors(schema))
        self.parts: list[_Part] = []
        self.waiting: list[tuple[int, Mapping[str, Any]]] = []

    def part(self, schema: Mapping[str, Any]) -> int:
        """The number of a part: by its identity, so that one that is referred to from many places is one."""
        for _ in range(_LONGEST_CHAIN):
            if list(schema) != ["$ref"] or not isinstance(target := self._target(schema["$ref"]), dict):
                break
            schema = target  # a reference and nothing beside it is what it refers to
        number = self._numbers.setdefault(id(schema), len(self.parts))
        if number == len(self.parts):
            self.parts.append(_Part(_steps(schema), _letters(schema)))
            self.waiting.append((number, schema))
        return number

    def read(self, number: int, schema: Mapping[str, Any]) -> None:
        """Find what a part leads to."""
        part = self.parts[number]
        for key, value in schema.items():
            if key in _REFERENCES:
                part.beside += self._all([self._target(value)])
            elif key not in _NOT_ASKED:
                _place(part, key, self._all(_within(key, value)))

    def _all(self, values: Iterable[Any]) -> list[int]:
        return [self.part(value) for value in values if isinstance(value, dict)]

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError("`$ref` has to stay within the schema (`#/…`): nothing is fetched")
        place = unquote(reference[1:])
        if place and not place.startswith("/"):
            if place not in self._anchors:
                raise ValueError("`$ref` leads nowhere")
            return self._anchors[place]
        target: Any = self._schema
        for step in place.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (LookupError, TypeError, ValueError):
                raise ValueError("`$ref` leads nowhere") from None
        return target


def _within(key: str, value: Any) -> Iterable[Any]:
    """What may be schemas of a keyword's value."""
    if isinstance(value, dict):
        return value.values() if key in _NAMED else (value,)
    return value if isinstance(value, list) else ()


def _place(part: _Part, key: str, found: list[int]) -> None:
    if key in _FIELDS:
        part.one_field.update(found)
    elif key in _EVERY_FIELD:
        part.every_field += found
    elif key in _ITEMS:
        part.one_item.update(found)
    elif key in _EVERY_ITEM:
        part.every_item += found
    else:
        part.beside += found


def _steps(schema: Mapping[str, Any]) -> int:
    compared = schema.get("enum", ())
    return _KEYWORD * (1 + len(schema)) + _COMPARED * sum(isinstance(each, dict | list) for each in compared)


def _letters(schema: Mapping[str, Any]) -> int:
    """Steps for each character of a text."""
    return sum(map(states, patterns_in(schema))) + _FORMAT * ("format" in schema)


def patterns_in(schema: Json) -> list[str]:
    """The patterns of one part of a schema, which need not be valid yet."""
    if not isinstance(schema, dict):
        return []
    named = schema.get("patternProperties")
    return [each for each in (schema.get("pattern"), *(named if isinstance(named, dict) else ())) if isinstance(each, str)]


@lru_cache(maxsize=256)
def states(pattern: str) -> int:
    """How many states a pattern has, which is what it costs: to be compiled, and for each character."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        return int(re2.compile(pattern, options).programsize)
    except re2.error:
        return _UNKNOWN_PATTERN


def _anchors(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((value[key], value) for key in ("$anchor", "$dynamicAnchor") if isinstance(value.get(key), str))
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _anchors(inner)


def _order(parts: list[_Part]) -> list[int]:
    """Each part after those beside it. Raises `ValueError` where they go round in a circle."""
    order: list[int] = []
    state = [0] * len(parts)  # 1: on the way, 2: done
    for start in range(len(parts)):
        stack = [(start, iter(parts[start].beside))] if not state[start] else []
        state[start] = state[start] or 1
        while stack:
            number, rest = stack[-1]
            following = next((each for each in rest if state[each] != 2), None)
            if following is None:
                state[number] = 2
                order.append(number)
                stack.pop()
            elif state[following]:
                raise ValueError("a `$ref` leads back to where it stands without going deeper")
            else:
                state[following] = 1
                stack.append((following, iter(parts[following].beside)))
    return order
