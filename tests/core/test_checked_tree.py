"""The tree of a checked expression: read whole, with places, and never more than refused whatever the bytes are."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.checked_tree import MAX_DEPTH, Const, Field, Invoked, Items, Loop, Name, read_tree, walk

NO_PLACE = (0, 0)


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, value: Any) -> bytes:
    """One field of a message: a number, a double or bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3 | 1) + struct.pack("<d", value) if isinstance(value, float) else varint(number << 3) + varint(value)


def expression(kind: int, held: bytes, at: int = 1) -> bytes:
    return field(2, at) + field(kind, held)


def checked(tree: bytes, places: bytes = b"") -> bytes:
    return field(1, b"type") + field(2, field(4, tree) + field(5, field(2, b"<input>") + places))


NAME = expression(4, field(1, b"a"))


@pytest.mark.parametrize(("kind", "value", "read"), [
    (1, 0, Const("null", None, NO_PLACE)), (2, 1, Const("bool", True, NO_PLACE)), (2, 0, Const("bool", False, NO_PLACE)),
    (3, 5, Const("int", 5, NO_PLACE)), (3, 2**64 - 3, Const("int", -3, NO_PLACE)), (4, 5, Const("uint", 5, NO_PLACE)),
    (5, 1.5, Const("double", 1.5, NO_PLACE)), (6, "é".encode(), Const("string", "é", NO_PLACE)), (7, b"\xff", Const("bytes", b"\xff", NO_PLACE))])
def test_every_kind_of_literal_is_read_as_its_own(kind: int, value: Any, read: Const) -> None:
    found = read_tree(checked(expression(3, field(kind, value))), "")
    assert found == read
    assert repr(found) == repr(read)


def test_literals_that_are_equal_in_python_are_told_apart() -> None:
    """`x == 1 && x == true` is not the same comparison twice."""
    one, true = (read_tree(checked(expression(3, field(kind, 1))), "") for kind in (3, 2))
    assert one != true


def test_every_kind_of_node_is_read() -> None:
    call = field(1, NAME) + field(2, b"f") + field(3, NAME) + field(3, NAME)
    assert read_tree(checked(expression(6, call)), "") == Invoked("f", Name("a", NO_PLACE), (Name("a", NO_PLACE), Name("a", NO_PLACE)), NO_PLACE)
    assert read_tree(checked(expression(6, field(2, b"f"))), "") == Invoked("f", None, (), NO_PLACE)
    assert read_tree(checked(expression(5, field(1, NAME) + field(2, b"x") + field(3, 1))), "") == Field(Name("a", NO_PLACE), "x", True, NO_PLACE)
    assert read_tree(checked(expression(7, field(1, NAME))), "") == Items("list", (Name("a", NO_PLACE),), NO_PLACE)
    entries = field(2, field(3, NAME) + field(4, NAME)) + field(2, field(2, b"k") + field(4, NAME))
    assert read_tree(checked(expression(8, entries)), "") == Items(
        "map", (Name("a", NO_PLACE), Name("a", NO_PLACE), Const("string", "k", NO_PLACE), Name("a", NO_PLACE)), NO_PLACE)
    loop = field(1, b"x") + field(3, b"@r") + b"".join(field(number, NAME) for number in (2, 4, 5, 6, 7))
    found = read_tree(checked(expression(9, loop)), "")
    assert isinstance(found, Loop)
    assert (found.variable, found.accumulator) == ("x", "@r")
    assert sum(1 for _ in walk(found)) == 6


def test_places_count_characters_and_lines_from_one() -> None:
    places = field(4, field(1, 1) + field(2, 7))
    assert read_tree(checked(NAME, places), "é\n\n1 + 22").place == (3, 5)


@pytest.mark.parametrize(("data", "said"), [
    (b"", "field 2 is not there"),
    (b"\x12", "a number is cut short"),
    (b"\x12\x05a", "a value is cut short"),
    (b"\x80" * 20, "a number is cut short"),
    (b"\x0d\x00\x00\x00\x00", "wire type 5"),
    (b"\x09\x00", "a value is cut short"),
    (field(2, 1), "a number stands where a message should"),
    (checked(field(2, b"x") + field(4, field(1, b"a"))), "a message stands where a number should"),
    (checked(field(2, 1)), "field 0 is not there"),
    (checked(expression(3, b"")), "a literal of no known kind"),
    (checked(expression(3, field(6, 1))), "a literal of no known kind"),
    (checked(expression(3, field(9, b""))), "a literal of no known kind"),
    (checked(expression(4, field(1, b"\xff"))), "can't decode"),
])
def test_what_is_no_expression_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_tree(data, "")


def test_deep_nesting_is_refused_and_not_followed() -> None:
    """The parser stops long before; a tree of another make must not end in a stack that overflows."""
    tree = NAME
    for _ in range(MAX_DEPTH - 1):
        tree = expression(5, field(1, tree) + field(2, b"x"))
    assert sum(1 for _ in walk(read_tree(checked(tree), ""))) == MAX_DEPTH
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        read_tree(checked(expression(5, field(1, tree))), "")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=60), at=st.integers(0, 200), cut=st.integers(0, 200))
def test_whatever_the_bytes_are_nothing_but_a_value_error_is_raised(data: bytes, at: int, cut: int) -> None:
    loop = field(1, b"x") + field(3, b"@r") + b"".join(field(number, NAME) for number in (2, 4, 5, 6, 7))
    good = checked(expression(9, loop), field(4, field(1, 1) + field(2, 7)))
    for each in (data, good[:at] + data + good[at:], good[:at] + good[cut:]):
        try:
            read_tree(each, "a + b")
        except ValueError:
            continue
