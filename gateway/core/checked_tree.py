"""The tree of a checked expression, read from its serialised form (`cel.expr.CheckedExpr`, github.com/google/cel-spec).

Reads the protobuf wire format by itself: the few messages that matter here need no library. Macros come expanded: `exists` and its
siblings as `Loop`, `has` as a `Field` that is `tested`.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

Place: TypeAlias = tuple[int, int]  # line and column, from 1

MAX_DEPTH: Final = 100  # the engine's parser stops at 32 levels, of which a macro makes several

_VARINT, _FIXED64, _BYTES = 0, 1, 2  # wire types
_LONGEST_VARINT: Final = 10

Value: TypeAlias = int | float | bytes


@dataclass(frozen=True, slots=True)
class Const:
    """A literal. `kind` tells `1` from `true` and `1u`: equal in Python."""

    kind: str
    value: bool | int | float | str | bytes | None
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, dotted or of a comprehension."""

    name: str
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Field:
    """`of.key`; `tested` for `has(of.key)`."""

    of: "Node"
    key: str
    tested: bool
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Invoked:
    """A function, an operator (`_&&_`) or an index (`_[_]`), with the receiver of a member function as `target`."""

    function: str
    target: "Node | None"
    arguments: "tuple[Node, ...]"
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Items:
    """A list, or a map or message (`map`) with its keys and values in turn."""

    kind: str
    elements: "tuple[Node, ...]"
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Loop:
    """A comprehension: `step` makes the `accumulator` anew for each `variable` of `over`, as long as `condition` holds."""

    variable: str
    over: "Node"
    accumulator: str
    start: "Node"
    condition: "Node"
    step: "Node"
    result: "Node"
    place: Place = field(compare=False)


Node: TypeAlias = Const | Name | Field | Invoked | Items | Loop


def read_tree(serialised: bytes, source: str) -> Node:
    """The tree of a serialised `google.protobuf.Any` of a `CheckedExpr` of `source`.

    Raises:
        ValueError: for what is cut short, of another shape, or nested too deeply.
    """
    checked = _message(_held(_message(serialised), 2))
    offsets: dict[int, int] = {}
    for entry in _message(_held(checked, 5)).get(4, ()):
        pair = _message(_bytes(entry))
        offsets[_number(pair, 1)] = _number(pair, 2)
    return _Reader({node: _place(source, offset) for node, offset in offsets.items()}).node(_held(checked, 4), MAX_DEPTH)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right below one, in the order of evaluation."""
    match node:
        case Const() | Name():
            return ()
        case Field():
            return (node.of,)
        case Invoked():
            return node.arguments if node.target is None else (node.target, *node.arguments)
        case Items():
            return node.elements
        case _:
            return (node.over, node.start, node.condition, node.step, node.result)


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(children(node))


def _place(source: str, offset: int) -> Place:
    return source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)


class _Reader:
    """Makes nodes of `cel.expr.Expr` messages; `places` are known by the nodes' ids."""

    def __init__(self, places: Mapping[int, Place]) -> None:
        self._places = places

    def node(self, data: bytes, depth: int) -> Node:
        if not depth:
            raise ValueError(f"the expression is nested deeper than {MAX_DEPTH} levels")
        message = _message(data)
        place = self._places.get(_number(message, 2), (0, 0))
        kind = next((number for number in message if 3 <= number <= 9), 0)
        held = _message(_held(message, kind))
        match kind:
            case 3:
                return _const(held, place)
            case 4:
                return Name(_text(held, 1), place)
            case 5:
                return Field(self._below(held, 1, depth), _text(held, 2), bool(_number(held, 3)), place)
            case 6:
                target = self._below(held, 1, depth) if 1 in held else None
                return Invoked(_text(held, 2), target, self._all_below(held, 3, depth), place)
            case 7 | 8:
                elements = self._all_below(held, 1, depth) if kind == 7 else self._entries(held, depth, place)
                return Items("list" if kind == 7 else "map", elements, place)
            case _:
                over, start, condition, step, result = (self._below(held, number, depth) for number in (2, 4, 5, 6, 7))
                return Loop(_text(held, 1), over, _text(held, 3), start, condition, step, result, place)

    def _below(self, message: "_Message", number: int, depth: int) -> Node:
        return self.node(_held(message, number), depth - 1)

    def _all_below(self, message: "_Message", number: int, depth: int) -> tuple[Node, ...]:
        return tuple(self.node(_bytes(each), depth - 1) for each in message.get(number, ()))

    def _entries(self, message: "_Message", depth: int, place: Place) -> tuple[Node, ...]:
        """Keys and values in turn; a message's keys are the names of its fields."""
        found: list[Node] = []
        for each in message.get(2, ()):
            entry = _message(_bytes(each))
            found += (self._below(entry, 3, depth) if 3 in entry else Const("string", _text(entry, 2), place), self._below(entry, 4, depth))
        return tuple(found)


_CONSTANTS: Final = {1: "null", 2: "bool", 3: "int", 4: "uint", 5: "double", 6: "string", 7: "bytes"}


def _const(message: "_Message", place: Place) -> Const:
    number = max(message, default=0)
    value = message[number][-1] if number in _CONSTANTS else b""
    match number, value:
        case (1, int()):
            return Const("null", None, place)
        case (2, int()):
            return Const("bool", bool(value), place)
        case (3, int()):
            return Const("int", value - 2**64 if value >= 2**63 else value, place)
        case (6, bytes()):
            return Const("string", value.decode(), place)
        case (4, int()) | (5, float()) | (7, bytes()):
            return Const(_CONSTANTS[number], value, place)
        case _:
            raise ValueError("a literal of no known kind")


_Message: TypeAlias = dict[int, list[Value]]


def _message(data: bytes) -> _Message:
    """The fields of a message by their number, each with its values in order."""
    found: _Message = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _value(data, at, key & 7)
        found.setdefault(key >> 3, []).append(value)
    return found


def _value(data: bytes, at: int, wire_type: int) -> tuple[Value, int]:
    if wire_type == _VARINT:
        return _varint(data, at)
    if wire_type == _FIXED64:
        return struct.unpack("<d", _cut(data, at, 8))[0], at + 8
    if wire_type == _BYTES:
        length, at = _varint(data, at)
        return _cut(data, at, length), at + length
    raise ValueError(f"wire type {wire_type} has no place in an expression")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 128:  # nearly all are
        return data[at], at + 1
    number = 0
    for place, byte in enumerate(data[at:at + _LONGEST_VARINT]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise ValueError("a number is cut short")


def _cut(data: bytes, at: int, length: int) -> bytes:
    if len(data) - at < length:
        raise ValueError("a value is cut short")
    return data[at:at + length]


def _held(message: _Message, number: int) -> bytes:
    """The message within a message."""
    if number not in message:
        raise ValueError(f"field {number} is not there")
    return _bytes(message[number][-1])


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message should")  # noqa: TRY004 - what is read is wrong, not who calls
    return value


def _text(message: _Message, number: int) -> str:
    return _held(message, number).decode() if number in message else ""


def _number(message: _Message, number: int) -> int:
    value = message.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("a message stands where a number should")  # noqa: TRY004 - as above
    return value
