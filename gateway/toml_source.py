"""A TOML file with the lines of its keys, which `tomllib` does not tell. Finds places only; `tomllib` alone decides what is said.

The scanner walks text that `tomllib` has accepted. Where it loses its way it knows no lines at all: no line is better than a wrong one.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from gateway.errors import Problem
from gateway.smallfile import read_small

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES: Final = 1024 * 1024  # a file that people write; a larger one is the wrong file
_MAX_PARTS: Final = 100
_ERROR_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)$")
# What people write most often that is not TOML, by how `tomllib` says it.
_HINTS: Final[Mapping[str, str]] = {
    "Invalid value": 'a text stands in quotes: key = "text"',
    "Expected newline or end of document after a statement": "a text with \" in it stands within ' … '",
    "Found invalid character '\\n'": "a text of several lines stands within ''' … '''",
    "Illegal character '\\n'": "a text of several lines stands within ''' … '''",
    "Unclosed inline table": "a table in { } ends on the line that it begins on",
    "Cannot mutate immutable namespace": "a table in { } is complete: write the key inside it",
    "Cannot declare": "entries of a list are written [[name]], each",
}
_LONG_NUMBER: Final = re.compile(r"(?<![\w.])[+-]?(?:\d_?){4300}")
# No possessive groups (`(?:…)*+`): Python before 3.11.5 matches them wrongly. Each character fits one branch, so nothing backtracks far.
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRING: Final = re.compile(
    r'"""(?:[^\\"]|\\.|"(?!""))*"{3,5}|\'\'\'(?:[^\']|\'(?!\'\'))*\'{3,5}|"(?:[^\\"\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)
_SCALAR: Final = re.compile(r"[^\s,\]}#][^,\]}#\n]*")


@dataclass(frozen=True, slots=True)
class Source:
    """What a file says and where: `data` is empty when it cannot be read; `file` is its name in problems."""

    file: str
    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, repr=False)

    def line(self, path: KeyPath) -> int | None:
        """The line of a key, or of the nearest table around it where the key itself is missing."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)

    def problem(self, path: KeyPath, message: str, hint: str | None = None) -> Problem:
        """A problem at a key."""
        return Problem(self.file, self.line(path), dotted(path), message, hint)


def dotted(path: KeyPath) -> str:
    """A path as it is written in TOML, the number of an array's entry in brackets: `route[1].targets[0].model`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return text


def read_source(path: Path, name: str) -> tuple[Source, list[Problem]]:
    """Read and parse one file; one that cannot be used gives an empty source and the problem."""
    try:
        text = read_small(path, limit=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Source(name), [Problem(name, None, "", f"not UTF-8 text: byte {error.start} cannot be read")]
    except ValueError as error:
        return Source(name), [Problem(name, None, "", str(error))]
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _ERROR_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # without a place: "at end of document"
        hint = next((hint for said, hint in _HINTS.items() if str(error).startswith(said)), None)
        return Source(name), [Problem(name, line, "", f"not TOML: {error}", hint)]
    except ValueError:  # Python reads no more digits than this, so that nobody makes it compute for minutes
        before = text[:found.start()] if (found := _LONG_NUMBER.search(text)) else text
        return Source(name), [Problem(name, before.count("\n") + 1, "", "a number has more digits than can be read")]
    except RecursionError:
        return Source(name), [Problem(name, None, "", "nested too deeply")]
    return Source(name, data, key_lines(text)), []


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every table, entry and key of a valid TOML text; empty where the scanner loses its way."""
    try:
        return _Scanner(text.replace("\r\n", "\n")).scan()
    except (_LostError, RecursionError, tomllib.TOMLDecodeError):
        return {}


class _LostError(Exception):
    """The text is not what the scanner expects."""


class _Scanner:
    """Walks the text once. `_at` is the position; every token moves it forward."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._entries: dict[KeyPath, int] = {}  # arrays of tables: how many entries so far

    def scan(self) -> dict[KeyPath, int]:
        """The whole document."""
        table: KeyPath = ()
        while self._skip_blank():
            if self._take("[["):
                table = self._table(self._key(), entry=True)
                self._expect("]]")
            elif self._take("["):
                table = self._table(self._key(), entry=False)
                self._expect("]")
            else:
                self._assignment(table)
        return self._lines

    def _table(self, keys: list[str], *, entry: bool) -> KeyPath:
        """Where a header leads: through the last entry of every array of tables on its way (TOML 1.0, "Array of Tables")."""
        path: KeyPath = ()
        for number, key in enumerate(keys, 1):
            path = (*path, key)
            self._note(path)
            if entry and number == len(keys):
                self._entries[path] = self._entries.get(path, -1) + 1
            if path in self._entries:
                path = (*path, self._entries[path])
                self._note(path)
        return path

    def _assignment(self, table: KeyPath) -> None:
        path = table
        for key in self._key():
            path = (*path, key)
            self._note(path)
        self._expect("=")
        self._skip_blank()
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._take("["):
            number = 0
            while self._skip_blank() and not self._take("]"):
                self._note((*path, number))
                self._value((*path, number))
                number += 1
                self._skip_blank()
                self._take(",")
        elif self._take("{"):
            while self._skip_blank() and not self._take("}"):
                self._assignment(path)
                self._skip_blank()
                self._take(",")
        elif self._match(_STRING) is None and self._match(_SCALAR) is None:
            raise _LostError

    def _key(self) -> list[str]:
        keys = []
        while True:
            self._skip_blank()
            bare = self._match(_BARE)
            keys.append(self._quoted() if bare is None else bare)
            self._skip_blank()
            if not self._take("."):
                return keys
            if len(keys) == _MAX_PARTS:  # nobody writes this, and noting every part of it takes quadratic time
                raise _LostError

    def _quoted(self) -> str:
        found = self._match(_STRING)
        if found is None:
            raise _LostError
        return str(tomllib.loads(f"key = {found}")["key"]) if found[0] == '"' else found[1:-1]

    def _note(self, path: KeyPath) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(path, self._line)

    def _skip_blank(self) -> bool:
        self._match(_BLANK)
        return self._at < len(self._text)

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _take(self, sign: str) -> bool:
        taken = self._text.startswith(sign, self._at)
        self._at += len(sign) * taken
        return taken

    def _expect(self, sign: str) -> None:
        self._skip_blank()
        if not self._take(sign):
            raise _LostError
