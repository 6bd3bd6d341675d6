"""A tool's schema decides what its arguments may be, fetches nothing, and takes no longer than is known before."""

import random
import socket
from contextlib import suppress
from datetime import date

import pytest

from gateway import schemas
from gateway.schemas import MOST_BYTES, SchemaCache, compile_schema, pointer

PAYMENT = {
    "type": "object", "additionalProperties": False, "required": ["account"],
    "properties": {
        "account": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2,6}$"}, "amount": {"type": "number", "minimum": 0, "maximum": 1000},
        "currency": {"enum": ["EUR", "USD"]}, "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True},
        "day": {"type": "string", "format": "date"},
    },
}


def test_a_value_that_fits_has_no_problems():
    fitting = {"account": "AB12", "amount": 5, "currency": "EUR", "tags": ["a", "b"], "day": "2026-02-28"}
    assert compile_schema(PAYMENT).problems(fitting) == []


@pytest.mark.parametrize(("value", "problem"), [
    ({}, '(the whole): lacks the field "account"'),
    ([], "(the whole): is not of type object"),
    ({"account": "swordfish"}, '/account: does not match the pattern "^[A-Z]{2}[0-9]{2,6}$"'),
    ({"account": "AB12", "amount": -3}, "/amount: is less than 0"),
    ({"account": "AB12", "amount": 1001}, "/amount: is more than 1000"),
    ({"account": "AB12", "amount": "swordfish"}, "/amount: is not of type number"),
    ({"account": "AB12", "currency": "swordfish"}, '/currency: is none of ["EUR","USD"]'),
    ({"account": "AB12", "tags": ["a", "swordfish"]}, "/tags/1: is longer than 3 characters"),
    ({"account": "AB12", "tags": ["a", "a"]}, "/tags: has an item twice"),
    ({"account": "AB12", "day": "2026-02-30"}, '/day: is not of the format "date"'),
    ({"account": "AB12", "a/m~t": 3}, "/a~1m~0t: is no field that the schema knows"),
])
def test_a_problem_has_its_place_and_quotes_nothing_of_the_value(value, problem):
    assert compile_schema(PAYMENT).problems(value) == [problem]
    assert "swordfish" not in problem


@pytest.mark.parametrize(("schema", "value", "message"), [
    ({"oneOf": [{"type": "string"}, {"const": "swordfish"}]}, "swordfish", "fits more than one of the alternatives"),
    ({"oneOf": [{"type": "string"}, {"type": "null"}]}, 1, "fits none of the alternatives"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, "fits none of the alternatives"),
    ({"not": {"const": "x"}}, "x", "is what must not be"),
    ({"propertyNames": {"maxLength": 3}}, {"swordfish": 1}, "has a field whose name is not allowed"),
    ({"unevaluatedProperties": False}, {"x": 1}, "is no field that the schema knows"),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, 'lacks the field "b"'),
    ({"contains": {"type": "string"}}, [1], "has no item of the kind that is asked for"),
    ({"enum": ["x" * 200]}, "y", 'is none of ["' + "x" * 98 + "…"),
    ({"contentMediaType": "application/json", "type": "string", "$schema": "http://json-schema.org/draft-07/schema#"}, "swordfish",
     "does not meet `contentMediaType`"),
])
def test_other_keywords_are_told_in_words_too(schema, value, message):
    (fault,) = compile_schema(schema).faults(value)
    assert fault.message == message


def test_only_the_first_few_problems_are_told_and_of_a_large_value_only_that_it_does_not_fit():
    schema = compile_schema({"type": "array", "items": {"type": "string"}})
    assert len(schema.problems(list(range(50)))) == 8
    assert schema.problems(list(range(50_000))) == ["(the whole): does not fit its schema; where is told of smaller values only"]
    assert schema.problems(["x"] * 50_000) == []


def test_what_is_no_json_does_not_fit():
    assert compile_schema({"properties": {"x": {"type": "string"}}}).problems({"x": object()}) == ["(the whole): cannot be checked against its schema"]


@pytest.mark.parametrize(("value", "fits"), [
    (1.0, True), (2**63, True), (2**64, True), (-(2**70), True), (10**400, True), (1.5, False), (True, False), ("1", False), (float("nan"), False),
])
def test_numbers_at_the_edges_are_integers_as_the_specification_says(value, fits):
    assert (compile_schema({"type": "integer"}).problems(value) == []) is fits


@pytest.mark.parametrize(("schema", "said"), [
    ({"type": "strin"}, "/type: is not what may stand there"),
    ({"properties": []}, "/properties: is not of type object"),
    ({"properties": {"a": {"minimum": "x"}}}, "/properties/a/minimum: is not of type number"),
    ({"minimum": float("inf")}, "/minimum: is not of type number"),
    ({"pattern": "(?=a)b"}, "lookarounds"),
    ({"pattern": r"(a)\1"}, "back references"),
    ({"pattern": "(a{1000}){1000}"}, "beyond all bounds"),
    ({"patternProperties": {"(": {}}}, 'is not of the format "regex"'),
    ({"$ref": "#/$defs/nope"}, "to lead somewhere"),
    ({"$ref": "other.json"}, "has to stay within the schema"),
    ({"$ref": "#"}, "leads back to where it stands"),
    ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "leads back to where it stands"),
    ({"$schema": "http://127.0.0.1:9/mine"}, "names no draft that is known"),
    ({"$schema": 7}, "names no draft that is known"),
    ({"properties": {"a": {"$id": "http://127.0.0.1:9/", "type": "string"}}}, "at the top of a schema only"),
    ({"default": date(2026, 1, 1)}, "what JSON does not have"),
    ({"description": "x" * MOST_BYTES}, "the schema is over"),
    ([], "a schema is an object"),
])
def test_a_schema_that_cannot_be_used_is_refused_with_its_place(schema, said):
    with pytest.raises(ValueError, match=r".") as caught:
        compile_schema(schema)
    assert said in str(caught.value)


def test_a_schema_that_is_nested_too_deeply_is_refused():
    schema: dict[str, object] = {"type": "object"}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        compile_schema(schema)


@pytest.mark.parametrize("reference", ["http://127.0.0.1:{port}/s", "https://127.0.0.1:{port}/s#/a", "//127.0.0.1:{port}/s", "file://{file}", "{file}"])
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$schema", "$id"])
def test_nothing_is_ever_fetched(tmp_path, reference, keyword):
    """Whoever sends a schema must not make the gateway call addresses or open files (server-side request forgery)."""
    (tmp_path / "secret.json").write_text('{"type": "string"}')
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        uri = reference.format(port=server.getsockname()[1], file=tmp_path / "secret.json")
        for schema in ({keyword: uri}, {"properties": {"a": {keyword: uri}}}, {"$id": uri, "$ref": "inner"}, {"$id": uri, "properties": {"a": {"$ref": "x"}}}):
            with suppress(ValueError):  # some are no references at all, and then a number is what nobody forbids
                assert compile_schema(schema).problems({"a": 1}) == []
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_looks_for_another_document_is_refused():
    with pytest.raises(ValueError, match="is not fetched"):
        schemas._refuse("http://127.0.0.1/x")


def test_references_within_a_schema_work_by_pointer_and_by_anchor():
    schema = compile_schema({
        "$defs": {"a/b": {"type": "integer"}, "c": {"$anchor": "here", "type": "string"}},
        "properties": {"x": {"$ref": "#/$defs/a~1b"}, "y": {"$ref": "#here"}, "z": {"$ref": "#/properties/x"}}})
    assert schema.problems({"x": 1, "y": "s", "z": 2}) == []
    assert [problem.split(":")[0] for problem in schema.problems({"x": "1", "y": 1, "z": "2"})] == ["/x", "/y", "/z"]


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-04/schema", "https://json-schema.org/draft/2020-12/schema"])
def test_the_draft_that_a_schema_names_is_its_draft(draft):
    assert compile_schema({"$schema": draft, "type": "integer"}).problems("x") == ["(the whole): is not of type integer"]


def test_patterns_run_in_linear_time():
    """A backtracking engine would not end in this universe."""
    schema = compile_schema({"type": "string", "pattern": "^(a+)+$"})
    assert schema.problems("a" * 20_000 + "!") != []


def doubling(times: int) -> dict[str, object]:
    """Each definition asks the one before it twice."""
    known: dict[str, object] = {"d0": {"type": "integer"}}
    for number in range(times):
        known[f"d{number + 1}"] = {"allOf": [{"$ref": f"#/$defs/d{number}"}, {"$ref": f"#/$defs/d{number}"}]}
    return {"$defs": known, "$ref": f"#/$defs/d{times}"}


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


TWICE = {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
EITHER = {"anyOf": [{"properties": {"a": {"$ref": "#"}}, "required": [name]} for name in "xyz"] + [{"type": "integer"}]}


@pytest.mark.parametrize(("schema", "value"), [
    (doubling(60), 1), (TWICE, nested(120)), (EITHER, nested(120)),
    ({"items": {"enum": [{"a": n} for n in range(2000)]}}, [{"a": 1999}] * 2000),
    ({"pattern": "^[01]*1[01]{500}$"}, "".join(random.Random(7).choices("01", k=300_000))),
])
def test_what_would_take_too_long_is_not_begun(schema, value):
    """Most of these would take longer than this test may."""
    assert compile_schema(schema).problems(value) == ["(the whole): is too large, or nested too deeply, to be checked against its schema"]


def test_large_and_deep_values_of_ordinary_schemas_are_checked():
    tree = {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}, "v": {"type": "string"}}, "additionalProperties": False}

    def grown(depth: int) -> dict[str, object]:
        return {"l": grown(depth - 1), "r": grown(depth - 1), "v": "x"} if depth else {}

    assert compile_schema(tree).problems(grown(12)) == []
    chain: dict[str, object] = {}
    for _ in range(120):
        chain = {"l": chain}
    assert compile_schema(tree).problems(chain) == []
    text = {"properties": {"body": {"type": "string"}, "day": {"type": "string", "pattern": "^[0-9-]{10}$"}}}
    assert compile_schema(text).problems({"body": "x" * 100_000, "day": "2026-01-01"}) == []


def test_the_cache_compiles_the_same_schema_once_whatever_the_order_of_its_keys():
    cache = SchemaCache()
    first = cache.get({"type": "object", "required": ["a"]})
    assert cache.get({"required": ["a"], "type": "object"}) is first
    assert repr(cache) == "<SchemaCache 1 of 512>"


@pytest.mark.parametrize("schema", [
    {"properties": {f"p{n}": {"pattern": f"^(a|b){{0,900}}[a-z]{{{n}}}$"} for n in range(1900)}},
    {"properties": {f"p{n}": {"pattern": f"^[a-z]+{n}$"} for n in range(3000)}},
    {"items": {"patternProperties": {f"^(?:\\pL{{0,99}}){{0,9}}{n}$": True for n in range(9)}}}], ids=["large", "many", "names"])
def test_patterns_that_would_take_long_to_compile_are_not_begun(schema):
    """Compiling holds every other call up, and who offers a tool chooses its schema."""
    with pytest.raises(ValueError, match="patterns are too large to be compiled, together"):
        compile_schema(schema)


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_longest():
    cache = SchemaCache(most=2)
    kept = cache.get({"minimum": 1})
    cache.get({"minimum": 2})
    cache.get({"minimum": 1})
    cache.get({"minimum": 3})
    assert cache.get({"minimum": 1}) is kept
    assert repr(cache) == "<SchemaCache 2 of 2>"


def test_the_cache_remembers_what_it_refused():
    cache = SchemaCache()
    for _ in range(2):
        with pytest.raises(ValueError, match="is not what may stand there"):
            cache.get({"type": "nope"})
    assert repr(cache) == "<SchemaCache 1 of 512>"


def test_a_schema_that_is_changed_afterwards_does_not_change_what_was_compiled():
    given = {"properties": {"a": {"type": "string"}}}
    schema = compile_schema(given)
    given["properties"]["a"]["type"] = "integer"
    assert schema.problems({"a": "x"}) == []


def test_a_name_of_a_megabyte_is_not_repeated():
    schema = compile_schema({"properties": {}, "additionalProperties": False})
    (problem,) = schema.problems({"x" * 1_000_000: 1})
    assert len(problem) < 400
    assert len(pointer(["ab" * 10] * 1000)) == 301


def test_a_pointer_escapes_as_rfc_6901_says():
    assert pointer(["a/b", "m~n", 0, ""]) == "/a~1b/m~0n/0/"
