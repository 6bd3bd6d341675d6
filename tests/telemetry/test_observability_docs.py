"""`docs/observability.md` says what the code does: its tables are made from the code's own constants."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway.telemetry import genai_attributes as names
from gateway.telemetry.log_lines import CALL_FIELDS
from gateway.telemetry.metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def described(head: str, meanings: Mapping[str, str]) -> str:
    return table([head, "meaning"], [[f"`{name}`", meaning] for name, meaning in meanings.items()])


TABLES = {
    "metrics": table(["metric", "type", "labels", "meaning"], [
        [f"`{spec.name}`", spec.kind, ", ".join(f"`{label}`" for label in spec.labels), spec.help] for spec in METRICS]),
    "log fields": described("field", CALL_FIELDS),
    "call span": described("attribute", names.CALL_ATTRIBUTES),
    "attempt span": described("attribute", names.ATTEMPT_ATTRIBUTES),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_code(name):
    """Paste what is expected between the marks when a constant has changed."""
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == TABLES[name]
