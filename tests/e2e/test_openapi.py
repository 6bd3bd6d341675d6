"""`/-/openapi.json` says what there is: every endpoint that answers, and no other; schemas that take what the endpoints take."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from gateway.http.openapi import DOCS, document

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}


async def asked(house, path: str = "/-/openapi.json", **headers: str) -> tuple[int, Any]:
    session = await house.http()
    async with session.get(path, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_every_endpoint_is_in_the_document_and_the_reverse(house):
    """A table beside the code is worth something as long as the two agree."""
    await house.open()
    there = set(house.gateway.running.surface.endpoints)
    told = {(doc.method, doc.path) for doc in DOCS}
    assert there - told == set()
    assert told - there == set()
    assert len(DOCS) == len(told)
    status, found = await asked(house, **ADMIN)
    assert (status, found) == (200, document())
    assert (await asked(house))[0] == 401


def test_the_document_has_the_structure_of_openapi() -> None:
    """As far as clients and generators hang on it: OpenAPI 3.1.0, sections 4.8.1 to 4.8.30."""
    whole = document()
    assert (whole["openapi"], set(whole)) == ("3.1.0", {"openapi", "jsonSchemaDialect", "info", "paths", "components"})
    ids = set()
    for path, methods in whole["paths"].items():
        assert path.startswith("/")
        for method, operation in methods.items():
            assert method in {"get", "put", "post", "delete", "patch"}
            assert operation["operationId"] not in ids
            ids.add(operation["operationId"])
            assert re.fullmatch(r"[a-z][A-Za-z0-9_-]*", operation["operationId"])
            assert operation["summary"].endswith(".")
            named = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"]
            assert named == re.findall(r"\{(\w+)\}", path)
            assert all(each["required"] for each in operation.get("parameters", ()) if each["in"] == "path")
            assert {"200", "default"} == operation["responses"].keys()
            for scheme in operation["security"]:
                assert scheme.keys() <= whole["components"]["securitySchemes"].keys()


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    """Draft 2020-12, which OpenAPI 3.1 has taken over."""
    whole = document()
    for reference in references(whole):
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in whole["components"]["schemas"]
    for schema in whole["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator({**schema, "components": whole["components"]})


@pytest.mark.parametrize(("name", "body", "fits"), [
    ("VoteBody", {"verdict": "approve", "digest": "sha256:1"}, True), ("VoteBody", {"verdict": "approve", "digest": "sha256:1", "grant": {"for": "1h"}}, True),
    ("VoteBody", {"verdict": "maybe", "digest": "x"}, False), ("VoteBody", {"verdict": "deny"}, False), ("GrantBody", {"for": 3600}, False),
    ("EditBody", {"digest": "x", "arguments": {"a": 1}}, True), ("EditBody", {"digest": "x", "arguments": []}, False),
    ("BatchBody", {"verdict": "deny", "approvals": [{"id": "a", "digest": "b"}]}, True), ("BatchBody", {"verdict": "deny", "approvals": []}, False),
    ("ResolveBody", {"outcome": "failed", "comment": "c"}, True), ("Raise", {"by": "1.50", "for": "24h"}, True), ("Raise", {"by": 1}, False),
])
def test_the_schemas_of_bodies_are_those_of_what_is_read(name: str, body: dict[str, Any], fits: bool) -> None:  # noqa: FBT001 - a case
    """Made from the models themselves; amounts and times are written as texts."""
    whole = document()
    schema = {**whole["components"]["schemas"][name], "components": whole["components"]}
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(body) is fits


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            else:
                yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)
