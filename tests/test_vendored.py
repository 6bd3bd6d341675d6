"""Files of others lie here as they were published: a changed byte, or one that the list does not name, is seen."""

import hashlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("gateway/page/vendor", "tests/browser/vendor")
ROW = re.compile(r"^\| `([^`]+)` \| ([\w-]+) \| ([\d.]+) \| ([^|]+) \| ([0-9a-f]{64}) \|$", re.MULTILINE)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_vendored_file_is_named_with_its_licence_and_unchanged(name):
    folder = REPOSITORY / name
    listed = {file: digest for file, _name, _version, _licence, digest in ROW.findall((folder / "VENDORED.md").read_text())}
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "VENDORED.md"}
    assert listed == there


@pytest.mark.parametrize("name", FOLDERS)
def test_every_vendored_library_has_its_licence_beside_it(name):
    folder = REPOSITORY / name
    for file, _name, _version, licence, _digest in ROW.findall((folder / "VENDORED.md").read_text()):
        named = re.search(r"`([^`]+)`", licence)
        assert (folder / (named[1] if named else file)).stat().st_size > 500
