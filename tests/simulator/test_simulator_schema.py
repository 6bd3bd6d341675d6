"""The example for a schema is valid for it."""

import pytest

from gateway.simulator.schema import example


@pytest.mark.parametrize(("schema", "value"), [
    ({"const": 3}, 3), ({"enum": ["b", "a"]}, "b"), ({"type": "boolean"}, True), ({"type": "null"}, None),
    ({"type": ["string", "null"]}, "simulated"), ({"type": "integer"}, 1), ({"type": "integer", "minimum": 5}, 5),
    ({"type": "integer", "exclusiveMinimum": 5}, 6), ({"type": "integer", "maximum": -3}, -3),
    ({"type": "integer", "exclusiveMaximum": 0}, -1), ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
    ({"type": "integer", "minimum": 4, "multipleOf": 3}, 6), ({"type": "string", "format": "date"}, "2025-01-31"),
    ({"type": "string", "minLength": 12}, "simulatedxxx"), ({"type": "string", "maxLength": 3}, "sim"),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 1]), ({"type": "array"}, ["simulated"]),
    ({"type": "object"}, {}), ({"properties": {"a": {"type": "null"}}}, {"a": None}),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1), ({"oneOf": [{"const": "x"}]}, "x"),
    ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}, {"a": 1, "b": 2}),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, 1), (True, None),
])
def test_the_example_fits_its_schema(schema, value):
    assert example(schema) == value


def test_a_schema_that_recurses_comes_to_an_end():
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert example(node) == {"next": {"next": {"next": None}}}
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    assert example(tree) == {"children": [{"children": [{"children": []}]}]}
    wide = {"type": "object", "properties": {name: {"$ref": "#"} for name in "abc"}}
    assert set(example(wide)) == {"a", "b", "c"}


@pytest.mark.parametrize("schema", [
    {"$ref": "#/no"}, {"$ref": 1}, {"type": "integer", "minimum": "x"}, {"properties": [1]}, {"enum": {"a": 1}},
    {"anyOf": {"a": 1}}, {"type": "string", "minLength": "x"}, {"type": []}, {"allOf": [1]}, {"type": {"a": 1}},
])
def test_what_is_not_a_schema_is_said_so(schema):
    with pytest.raises(ValueError, match="not a schema"):
        example(schema)


def test_absurd_sizes_are_bounded():
    assert len(example({"type": "array", "minItems": 10**9})) == 1000
    assert len(example({"type": "string", "minLength": 10**9})) == 100_000
