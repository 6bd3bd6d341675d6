"""JSON that two parsers cannot read differently. Owns what the gateway takes as JSON; never repairs anything.

orjson refuses most of what must be refused: NaN, Infinity, a BOM, bad UTF-8, lone surrogates, floats that overflow,
anything after the value. What it lets through is refused here: integers beyond 64 bits, which it turns into floats
without a word; nesting that is legal for it and too deep for us; and bodies that are nearly all brackets or keys, which
cost it, and whoever walks them after it, seconds. Of a repeated key it keeps the last; since the parsed value is what is
judged and what is written again, no other reading of it ever leaves the gateway.
"""

import re
from typing import Any, Final

import orjson

from gateway.call import Json
from gateway.errors import InvalidRequest

# Levels of nesting that can be written again: orjson reads 1024 and writes 254; a few are left for what we add.
DEEPEST: Final = 250
# Members of objects, arrays and objects in one text, together: each costs a hundred times what a byte of text does. Numbers
# and strings in arrays are not counted, the text's length bounds them well: 10 MiB of token ids are some 1.7 million numbers.
MOST_MEMBERS: Final = 200_000

_DIGITS_AS_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
# Any 19 digits fit into an unsigned 64-bit integer, so only these two can be too large.
_SUSPECTS: Final = (b"0" * 20, b"-" + b"0" * 19)
# The digits of a number without fraction or exponent. `++` never backtracks: a run of digits costs its length once.
_WHOLE_NUMBER: Final = re.compile(rb"(?<![\d.eE])(?<![eE][-+])\d++(?![.eE])")
_NOT_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b'[{:"')


class InvalidJson(InvalidRequest, ValueError):
    """Not JSON, or JSON that is not taken. A client's error as it is; an adapter catches it as a `ValueError`."""


def loads(data: bytes, *, max_depth: int = DEEPEST, most_members: int = MOST_MEMBERS) -> Json:
    """The value of a JSON text, in time that grows with its length only.

    `max_depth` counts levels of arrays and objects; above `DEEPEST` it counts as `DEEPEST`. `most_members` bounds the
    members of objects, the arrays and the objects of the whole text, together.

    Raises:
        InvalidJson: with the line and column, or the byte, where that is known.
    """
    if not data:
        raise InvalidJson("The body is empty where JSON is expected.")
    containers = data.count(b"[") + data.count(b"{")
    if containers + data.count(b":") > most_members and _members(data) > most_members:
        raise InvalidJson(f"The JSON has more than {most_members} members of objects, arrays and objects, together.")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # `from None`: the cause carries the whole body, which no traceback may show.
        raise InvalidJson(f"Not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    limit = min(max_depth, DEEPEST)
    if containers > limit and _deeper_than(limit, value):
        raise InvalidJson(f"The JSON is nested deeper than {limit} levels.")
    digits = data.translate(_DIGITS_AS_ZERO)
    for suspect in _SUSPECTS:
        if suspect in digits and (at := _beyond_64_bits(data, digits, suspect)) is not None:
            raise InvalidJson(f"The integer at byte {at} does not fit into 64 bits; send it as a string.")
    return value


def dumps(value: Json) -> bytes:
    """The shortest JSON text of a value that `loads` gave, or of one made of the same types."""
    return orjson.dumps(value)


def _hide_escapes(data: bytes) -> bytes:
    """The same text with every offset kept, where each quote that is left starts or ends a string."""
    return data.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def _members(data: bytes) -> int:
    """How many arrays, objects and members of objects stand outside strings; any number where the text is not JSON."""
    structure = _hide_escapes(data).translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    return len(b"".join(structure.split(b'"')[::2]))


def _deeper_than(limit: int, value: Json) -> bool:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _beyond_64_bits(data: bytes, digits: bytes, suspect: bytes) -> int | None:
    """Where the first integer literal stands that is too large, if any; `data` is valid JSON."""
    quiet = _hide_escapes(data)
    position = quotes = 0
    while (found := digits.find(suspect, position)) >= 0:
        quotes += quiet.count(b'"', position, found)
        if quotes % 2:  # inside a string
            position = quiet.index(b'"', found)
            continue
        number = _WHOLE_NUMBER.match(quiet, found + (suspect[0] == ord("-")))
        if number and _too_large(number[0], negative=quiet[number.start() - 1] == ord("-")):
            return number.start()
        position = found + len(suspect)
    return None


def _too_large(number: bytes, *, negative: bool) -> bool:
    # The length is looked at first: int() takes more than linear time and refuses above 4300 digits.
    return len(number) > 20 or int(number) > (2**63 if negative else 2**64 - 1)
