"""The bound on a check grows with what a check does, and is itself found in bounded time."""

import pytest

from gateway.schema_work import work_of

NO_BOUND = 10**15


def of(schema, value) -> int:
    return work_of(schema).of(value, at_most=NO_BOUND)


def test_a_value_costs_what_its_size_and_the_schema_at_its_depth_ask_for():
    flat = {"type": "array", "items": {"type": "string"}}
    assert of(flat, ["x"] * 2000) / of(flat, ["x"] * 1000) == pytest.approx(2, rel=0.01)
    assert of({**flat, "items": {"allOf": [{"type": "string"}] * 10}}, ["x"] * 1000) > 5 * of(flat, ["x"] * 1000)


def test_of_fields_only_one_counts_because_a_field_has_one_name():
    one = {"properties": {"a": {"type": "object"}}}
    many = {"properties": {name: {"type": "object"} for name in "abcdefgh"}}
    assert of(many, {"a": {}}) == of(one, {"a": {}})


@pytest.mark.parametrize("keyword", ["patternProperties", "propertyNames", "unevaluatedProperties", "contains", "unevaluatedItems", "prefixItems",
                                     "items", "additionalProperties", "dependentSchemas", "if", "not"])
def test_every_keyword_that_holds_schemas_counts(keyword):
    inner = {"anyOf": [{"enum": [[n]] * 50} for n in range(20)]}
    held = {"^a": inner} if keyword == "patternProperties" else {"a": inner} if keyword == "dependentSchemas" else \
        [inner] if keyword == "prefixItems" else inner
    value = [["x"]] if keyword in ("contains", "unevaluatedItems", "prefixItems", "items") else {"a": "x"}
    assert of({keyword: held}, value) > 40_000


def test_patterns_and_formats_count_by_the_character():
    assert of({"pattern": "^[0-9]{100}$"}, "1" * 1000) > 100 * 1000
    assert of({"format": "date"}, "1" * 1000) > of({}, "1" * 1000)
    assert of({"pattern": r"\p{L}[[:^alpha:]&&[x]]"}, "1") < NO_BOUND


def test_what_re2_does_not_know_counts_as_much():
    assert of({"pattern": "(?u-s:x"}, "1" * 10) > 100_000


def test_alternatives_within_alternatives_double_with_each_level():
    schema = {"anyOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"a": {"$ref": "#"}}, "required": ["b"]}]}

    def deep(levels):
        return {"a": deep(levels - 1)} if levels else {}

    assert of(schema, deep(12)) > 1.9 * of(schema, deep(11))


def test_counting_ends_where_it_is_enough():
    assert work_of({}).of([[1] * 1000] * 1000, at_most=10) < 100_000


def test_a_reference_is_what_it_refers_to_however_it_is_written():
    plain = {"properties": {"a": {"type": "string"}}}
    for schema in (
        {"$defs": {"s": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/s"}}},
        {"$defs": {"s": {"$anchor": "s", "type": "string"}}, "properties": {"a": {"$ref": "#s"}}},
        {"allOf": [{"type": "string"}], "properties": {"a": {"$ref": "#/allOf/0"}}},
        {"$defs": {"s": True}, "properties": {"a": {"$ref": "#/$defs/s"}}},
    ):
        assert of(schema, {"a": "x"}) == pytest.approx(of(plain, {"a": "x"}), abs=60)


@pytest.mark.parametrize("reference", ["#/a/b", "#/allOf/x", "#/allOf/7", "#nothing", "http://x/", "", 3])
def test_a_reference_that_leads_out_or_nowhere_is_refused(reference):
    with pytest.raises(ValueError, match=r"\$ref"):
        work_of({"allOf": [{}], "properties": {"a": {"$ref": reference}}})


def test_references_in_a_circle_are_refused_and_recursion_that_goes_deeper_is_not():
    with pytest.raises(ValueError, match="without going deeper"):
        work_of({"$defs": {"a": {"$ref": "#/$defs/b", "title": "a"}, "b": {"$ref": "#/$defs/a", "title": "b"}}, "$ref": "#/$defs/a"})
    work_of({"items": {"$ref": "#"}})


def test_a_bound_that_is_too_long_in_the_making_counts_as_endless():
    large = {"properties": {f"p{n}": {"title": str(n), "items": {"$ref": "#", "title": "x"}} for n in range(2000)}}
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    assert of(large, deep) >= 10**12
