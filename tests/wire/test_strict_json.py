"""What is taken as JSON, what is refused, and that what was taken can be written again."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CODES
from gateway.wire import InvalidRequest, dumps, loads
from gateway.wire.strict_json import DEEPEST, MOST_MEMBERS, InvalidJson

BIG = 2**64 - 1
SMALL = -(2**63)


def same(left: Any, right: Any) -> bool:
    """Equal in type and sign too: -0.0 == 0 and 1 == 1.0 are not enough."""
    return repr(left) == repr(right)


@pytest.mark.parametrize(("text", "says"), [
    (b"", "empty"),
    (b" \n", "Not valid JSON"),
    (b"not json", "line 1, column 1"),
    (b"{'a': 1}", "Not valid JSON"),
    (b'{"a": 1,}', "Not valid JSON"),
    (b'{"a": 1} {"b": 2}', "line 1, column 10"),
    (b"[1]\0", "Not valid JSON"),
    (b'{"a":\n NaN}', "line 2"),
    (b'{"a": Infinity}', "Not valid JSON"),
    (b'{"a": -Infinity}', "Not valid JSON"),
    (b"1e400", "infinity"),
    (b"-1e400", "infinity"),
    (b"1" * 400, "infinity"),
    (b"01", "Not valid JSON"),
    (b"\xef\xbb\xbf{}", "byte order mark"),
    ('{"a": 1}'.encode("utf-16"), "Not valid JSON"),
    (b'{"a": "\xff"}', "UTF-8"),
    (b'{"a": "\xc0\xaf"}', "UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
    (rb'{"a": "\ud800"}', "surrogate"),
    (rb'{"a": "\udc00x"}', "surrogate"),
    (b'{"a": "\x00"}', "control character"),
    (b"[" * 100_000, "depth"),
])
def test_what_is_not_strict_json_is_refused_with_a_reason(text, says):
    with pytest.raises(InvalidJson, match=says):
        loads(text)


def test_a_refusal_is_the_clients_error_and_a_value_error():
    """The HTTP side passes it on unchanged; an adapter that reads a provider's answer catches `ValueError`."""
    with pytest.raises(InvalidRequest) as refused:
        loads(b"{")
    assert isinstance(refused.value, ValueError)
    assert CODES[refused.value.code].status == 400


def test_a_refusal_does_not_carry_the_body():
    """The parser's own exception holds the whole document, and a traceback would show it."""
    with pytest.raises(InvalidJson) as refused:
        loads(b'{"secret": "hunter2"')
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("number", [0, -1, 10**18, 10**19, BIG, SMALL, 2**63])
@pytest.mark.parametrize("shape", ["%s", "[%s]", '{"a":%s}', '{"a":[1,%s, 2]}', '["\\"",%s]', '["\\\\",%s]'])
def test_integers_of_64_bits_stay_what_they_are(number, shape):
    text = (shape % number).encode()
    assert same(loads(text), json.loads(text))


@pytest.mark.parametrize("number", [BIG + 1, SMALL - 1, 10**20, -(10**19), int("1" * 40), -int("9" * 300)])
@pytest.mark.parametrize("shape", [
    "%s", "[%s]", '{"a":%s}', '{"12345678901234567890":[1,%s, 2]}', '["\\"",%s]', '["\\\\",%s ]',
    "[0.12345678901234567890123456789, -1e-00000000000000000001, %s]",
])
def test_integers_beyond_64_bits_are_refused_where_they_stand(number, shape):
    """The parser would turn them into floats: a rule would judge another number than the one that was sent."""
    text = shape % number
    with pytest.raises(InvalidJson, match="64 bits") as refused:
        loads(text.encode())
    assert f"byte {text.index(str(abs(number)))} " in str(refused.value)


@pytest.mark.parametrize("text", [
    b'"123456789012345678901234567890"',
    b'["-12345678901234567890", 1]',
    b'{"12345678901234567890": "\\"12345678901234567890\\\\"}',
    b"1.2345678901234567890123",
    b"-12345678901234567890.5",
    b"12345678901234567890123e1",
    b"123456789012345678901E-5",
    b"0.00000000000000000000000000000000000000000001",
    b"[-9223372036854775808,12345678901234567890]",
    b"1e00000000000000000000001",
    b"1E+00000000000000000000001",
    b"1e-00000000000000000000001",
])
def test_long_digits_in_strings_and_floats_pass(text):
    assert same(loads(text), json.loads(text))


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[[],{"b":', b"}]")])
def test_nesting_is_allowed_up_to_the_limit_and_not_one_level_more(opening, closing):
    levels = 2 if closing == b"}]" else 1
    loads(opening * (6 // levels) + b"1" + closing * (6 // levels), max_depth=6)
    with pytest.raises(InvalidJson, match="deeper than 6 levels"):
        loads(opening * (8 // levels) + b"1" + closing * (8 // levels), max_depth=6)


def test_many_brackets_are_no_depth():
    assert loads(b"[" + b",".join([b"[]"] * 500) + b"]", max_depth=2) == [[]] * 500
    assert loads(b'"' + b"[" * 500 + b'"', max_depth=2) == "[" * 500


def test_a_limit_that_could_not_be_written_again_is_not_used():
    """The library writes fewer levels than it reads; what was taken must be sendable."""
    deepest = b"[" * DEEPEST + b"]" * DEEPEST
    assert dumps(loads(deepest, max_depth=10_000)) == deepest
    assert dumps({"added": [loads(deepest)]})
    with pytest.raises(InvalidJson, match=f"deeper than {DEEPEST}"):
        loads(b"[" + deepest + b"]", max_depth=10_000)


@pytest.mark.parametrize("text", [
    b"[" + b"[]," * MOST_MEMBERS + b"1]",
    b"[" + b'{"a" :1},' * (MOST_MEMBERS // 2) + b"1]",
    b"{" + b",".join(b'"%d": 1' % n for n in range(MOST_MEMBERS)) + b"}",
])
def test_a_body_that_is_nearly_all_brackets_or_keys_is_refused_before_it_is_parsed(text):
    """Ten megabytes of `[],` cost the parser seconds, ten of keys nearly half of one."""
    with pytest.raises(InvalidJson, match="more than 200000 members"):
        loads(text)
    assert loads(text, most_members=MOST_MEMBERS + 1)


def test_brackets_and_colons_inside_strings_are_text():
    text = b'["' + b'\\"[{:' * (MOST_MEMBERS // 2 + 1) + b'\\\\",":"]'
    assert len(loads(text)[0]) == 4 * (MOST_MEMBERS // 2 + 1) + 1


def test_token_ids_that_fill_the_largest_body_are_taken():
    tokens = [[100_000] * 1024] * 1500
    assert loads(dumps({"model": "m", "input": tokens}))["input"] == tokens


@given(st.recursive(
    st.none() | st.text('[{:,"\\', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{:,"\\', max_size=5), inner, max_size=3), max_leaves=9,
))
def test_members_are_counted_exactly(value):
    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + len(value) + sum(map(count, value.values()))
        return 1 + sum(map(count, value)) if isinstance(value, list) else 0

    text = json.dumps(value).encode()
    assert loads(text, most_members=count(value)) == value
    if count(value):
        with pytest.raises(InvalidJson, match="members"):
            loads(text, most_members=count(value) - 1)


def test_of_a_repeated_key_the_last_is_judged_and_only_it_is_sent():
    """A parser upstream that keeps the first would otherwise act on what no rule has seen."""
    taken = loads(b'{"model":"cheap","n":1,"model":"dear"}')
    assert taken == {"model": "dear", "n": 1}
    assert dumps(taken) == b'{"model":"dear","n":1}'


@pytest.mark.parametrize("text", [
    b"-0.0", b"-0", b"0.1", b"1e-320", b"1.7976931348623157e308", b"5e-324", b"1e22", b"123456789012345680.0",
])
def test_floats_survive_writing_to_the_last_bit(text):
    once = loads(text)
    again = loads(dumps(once))
    assert same(once, again)
    assert math.copysign(1, once) == math.copysign(1, again)


@pytest.mark.parametrize("text", ["", "\0", "\x1f\x7f", "\u2028", "😀", "\\", '"', "</script>", "\ufeff", "\uffff"])
def test_every_character_survives_writing(text):
    assert loads(dumps(text)) == text
    assert loads(json.dumps(text).encode()) == text
    assert loads(dumps({text: [text]})) == {text: [text]}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text()
    | st.text('0123456789-.eE"\\[]{}', max_size=60),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuses(value: Any) -> bool:
    """The oracle, on the value: only what the standard library writes and this module must refuse."""
    match value:
        case bool() | None | str():
            return False
        case int():
            return not SMALL <= value <= BIG
        case float():
            return not math.isfinite(value)
        case list():
            return any(map(refuses, value))
        case _:
            return any(map(refuses, value.values()))


@given(JSON_VALUES, st.booleans())
def test_every_value_is_taken_unchanged_or_refused(value, ascii_only):
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8 form
    if refuses(value):
        with pytest.raises(InvalidJson):
            loads(text)
    else:
        assert same(loads(text), value)
        assert same(loads(dumps(loads(text))), value)


@given(st.binary() | st.text('[]{}",:0123456789.eE-+\\u trfalsn\n', max_size=80).map(str.encode))
def test_any_bytes_are_taken_or_refused_and_what_was_taken_can_be_written(data):
    try:
        value = loads(data, max_depth=5)
    except InvalidJson:
        return
    assert same(loads(dumps(value), max_depth=5), value)


PIECES = st.sampled_from([
    b"1" * 19, b"1" * 20, b"-", b"9" * 21, b".", b"e", b"E+", b"e-", b",", b'"', b"\\", b"[", b"]", b"0",
])


@given(st.lists(PIECES, max_size=12))
def test_long_numbers_are_told_apart_as_the_standard_library_does(parts):
    text = b"[" + b"".join(parts) + b"]"
    try:
        expected = json.loads(text)
    except ValueError:
        expected = math.nan
    if refuses(expected):
        with pytest.raises(InvalidJson):
            loads(text)
    else:
        assert same(loads(text), expected)
