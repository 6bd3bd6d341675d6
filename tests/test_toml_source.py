"""The lines of keys are right or unknown, whatever TOML a person writes."""

import string
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.toml_source import KeyPath, Source, dotted, key_lines

NASTY = '''\
# [not.a.table]
title = "a # b \\" = [x]" # comment with ] and "quotes"
"quoted key" . 'literal.key' = 1
[ servers . "al.pha" ] # header
text = """
[fake]
key = "no" ""not the end""" # real
raw = \'\'\'
it's ''[[fake]]'' = 3\'\'\'
"esc\\"aped\\u0041" = 2
date = 1979-05-27 07:32:00
after = 1
list = [ # one
  "a", # ]
  [ 1, 2 ],
  { x = 1, y.z = "}" },
  """
m""",
]
end = { a = [ { b = 1 } ],
}
[[fruit]]
name = """apple"""""
[fruit.physical]
color = 'red'
[[fruit.variety]]
name = ""
[[fruit.variety]]
name = \'\'
[[fruit]]
[[fruit.variety]]
name = "x"
dotted.deep.key = 1
[a.b]
[a]
z = inf
'''.replace("],\n}\n", "] }\n")

EXPECTED: dict[KeyPath, int] = {
    ("title",): 2, ("quoted key",): 3, ("quoted key", "literal.key"): 3, ("servers",): 4, ("servers", "al.pha"): 4,
    ("servers", "al.pha", "text"): 5, ("servers", "al.pha", "raw"): 8, ("servers", "al.pha", 'esc"apedA'): 10,
    ("servers", "al.pha", "date"): 11, ("servers", "al.pha", "after"): 12, ("servers", "al.pha", "list"): 13,
    ("servers", "al.pha", "list", 0): 14, ("servers", "al.pha", "list", 1): 15, ("servers", "al.pha", "list", 1, 0): 15,
    ("servers", "al.pha", "list", 1, 1): 15, ("servers", "al.pha", "list", 2): 16, ("servers", "al.pha", "list", 2, "x"): 16,
    ("servers", "al.pha", "list", 2, "y"): 16, ("servers", "al.pha", "list", 2, "y", "z"): 16, ("servers", "al.pha", "list", 3): 17,
    ("servers", "al.pha", "end"): 20, ("servers", "al.pha", "end", "a"): 20, ("servers", "al.pha", "end", "a", 0): 20,
    ("servers", "al.pha", "end", "a", 0, "b"): 20,
    ("fruit",): 21, ("fruit", 0): 21, ("fruit", 0, "name"): 22, ("fruit", 0, "physical"): 23, ("fruit", 0, "physical", "color"): 24,
    ("fruit", 0, "variety"): 25, ("fruit", 0, "variety", 0): 25, ("fruit", 0, "variety", 0, "name"): 26,
    ("fruit", 0, "variety", 1): 27, ("fruit", 0, "variety", 1, "name"): 28, ("fruit", 1): 29, ("fruit", 1, "variety"): 30,
    ("fruit", 1, "variety", 0): 30, ("fruit", 1, "variety", 0, "name"): 31, ("fruit", 1, "variety", 0, "dotted"): 32,
    ("fruit", 1, "variety", 0, "dotted", "deep"): 32, ("fruit", 1, "variety", 0, "dotted", "deep", "key"): 32,
    ("a",): 33, ("a", "b"): 33, ("a", "z"): 35,
}


def paths(value: object, at: KeyPath = ()) -> set[KeyPath]:
    """Every path of a parsed document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {at, *(path for key, each in inner for path in paths(each, (*at, key)))} - {()}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_key_of_a_nasty_file_is_on_its_line(newline):
    text = NASTY.replace("\n", newline)
    assert paths(tomllib.loads(text)) == set(EXPECTED)
    assert key_lines(text) == EXPECTED


def _basic(text: str) -> str:
    plain = set(string.ascii_letters + string.digits + " _-.,#[]{}='")
    return '"' + "".join(sign if sign in plain else f"\\U{ord(sign):08x}" for sign in text) + '"'


KEYS = st.one_of(st.text("ab-_1", min_size=1, max_size=3), st.text(st.characters(codec="utf-8"), max_size=3).map(_basic))
SCALARS = st.one_of(
    st.integers(-9, 9).map(str), st.booleans().map(lambda value: str(value).lower()), st.just("1979-05-27 07:32:00"), st.just("-1.5e3"),
    st.text(st.sampled_from("a\"'\\#[]{}=,.\n é"), max_size=6).map(_basic),
    st.text(st.sampled_from('a"#[]{}=,. '), max_size=6).map(lambda text: f"'{text}'"),
    st.text(st.sampled_from("a'#[]{}=,.\n "), max_size=6).map(lambda text: f'"""{text}"""'),
    st.text(st.sampled_from('a"#[]{}=,.\n '), max_size=6).map(lambda text: f"'''{text}'''"))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3).map(lambda items: "[ " + " ,\n # ]\n".join(items) + " ]"),
    st.dictionaries(KEYS, inner, max_size=2).map(lambda items: "{ " + ", ".join(map(" = ".join, items.items())) + " }")), max_leaves=5)
LINES = st.one_of(
    st.tuples(st.lists(KEYS, min_size=1, max_size=2).map(" . ".join), VALUES).map(" = ".join),
    st.lists(KEYS, min_size=1, max_size=2).map(lambda keys: f"[{'.'.join(keys)}]"),
    st.lists(KEYS, min_size=1, max_size=2).map(lambda keys: f"[[{'.'.join(keys)}]] # c"),
    st.just("# comment = ["), st.just(""))


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_of_any_valid_document_every_key_is_known_at_a_line_that_names_it(text):
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(lines) == paths(data)
    rows = text.split("\n")
    for path, line in lines.items():
        key = path[-1]
        if isinstance(key, str) and key.isascii() and key.isalnum():
            assert key in rows[line - 1]


@given(st.text(st.sampled_from("a=[]{}\"'\\#.,\n \r1"), max_size=40))
def test_the_scanner_ends_on_any_text(text):
    assert isinstance(key_lines(text), dict)


def test_a_scanner_that_is_lost_knows_no_lines():
    assert key_lines("a = 1\nb") == {}
    assert key_lines("a = " + "[" * 100_000) == {}


def test_a_key_that_is_missing_is_placed_at_the_table_around_it():
    source = Source("f", {}, key_lines("a = 1\n\n[b]\nc = 1"))
    assert (source.line(("b", "x", 0)), source.line(("x",)), source.line(())) == (3, None, None)


@pytest.mark.parametrize(("path", "text"), [
    ((), ""), (("a", "b"), "a.b"), (("a", 0, "b"), "a[0].b"), (("a", "b.c"), 'a."b.c"'), (("a", 'q"\\'), 'a."q\\"\\\\"'), (("",), '""')])
def test_a_path_is_written_as_in_toml(path, text):
    assert dotted(path) == text
