"""`docs/approvals-api.md` says what there is: its bodies are taken, its rows are whole, its endpoints and variables are all of them."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

from gateway.core.approver import variables_table
from gateway.http.openapi import DOCS, document

TEXT = (Path(__file__).parents[1] / "docs/approvals-api.md").read_text()
BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize(("number", "name"), [(0, "Approvals"), (1, "VoteBody"), (2, "EditBody"), (3, "Ticket")])
def test_every_example_is_as_the_endpoints_have_it(number: int, name: str) -> None:
    """Nothing is missing, and nothing is there that is not told."""
    whole = document()
    schema = {**whole["components"]["schemas"][name], "components": whole["components"]}
    jsonschema_rs.Draft202012Validator(schema).validate(BLOCKS[number])
    row = BLOCKS[number]["approvals"][0] if name == "Approvals" else BLOCKS[number]
    known = whole["components"]["schemas"]["Row" if name == "Approvals" else name]["properties"]
    assert row.keys() - known.keys() <= {"result"}


def test_every_endpoint_of_approvals_is_listed_with_its_permission() -> None:
    """And none that there is not."""
    there = {f"{doc.method} {doc.path}" for doc in DOCS if doc.path.split("/")[2:3] in (["approvals"], ["grants"], ["tickets"], ["notices"], ["events"])}
    told = set(re.findall(r"`((?:GET|POST) /-/[^`?]*)`", TEXT)) - {"GET /-/openapi.json"}
    assert told == there


def test_the_table_of_variables_is_the_schema() -> None:
    """Made from it."""
    assert variables_table() in TEXT
