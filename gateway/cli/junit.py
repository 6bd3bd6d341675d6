"""Results of cases as JUnit XML, the shape that CI systems read: a suite for each file, a failure with its message and text."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from gateway.cases import CaseResult

# What XML 1.0 cannot hold, however it is written (section 2.2).
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, results: Sequence[CaseResult]) -> None:
    """Write the report. Raises `OSError` where the file cannot be written."""
    root = Element("testsuites", _counts(results) | {"name": "lockgate policy test"})
    for file, cases in groupby(results, key=_file):
        held = list(cases)
        suite = SubElement(root, "testsuite", _counts(held) | {"name": _text(file), "time": "0"})
        for result in held:
            _add(suite, file, result)
    indent(root)
    ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _file(result: CaseResult) -> str:
    return result.case.source.rpartition(":")[0]


def _counts(results: Sequence[CaseResult]) -> dict[str, str]:
    failed, skipped = (sum(bool(each) for each in found) for found in ((r.problems for r in results), (r.skipped for r in results)))
    return {"tests": str(len(results)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}


def _add(suite: Element, file: str, result: CaseResult) -> None:
    line = result.case.source.rpartition(":")[2]
    case = _element(suite, "testcase", {"classname": file, "name": result.case.name, "file": file, "line": line, "time": "0"})
    if result.skipped:
        _element(case, "skipped", {"message": result.skipped})
    if result.problems:
        first = result.problems[0]
        failure = _element(case, "failure", {"type": "case", "message": first.message})
        failure.text = _text("\n".join(map(str, result.problems)))


def _element(parent: Element, name: str, attributes: Mapping[str, str]) -> Element:
    return SubElement(parent, name, {key: _text(value) for key, value in attributes.items()})


def _text(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
