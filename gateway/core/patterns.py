"""Regular expressions that run over what clients and models write. The only module that imports RE2.

RE2 takes time that grows with the text's length only, whatever pattern and text are. It reads UTF-8: texts are handed to it as
`Letters`, which also tell characters from bytes.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import re2

from gateway.core.pattern_syntax import shape_of

MAX_SOURCE: Final = 2000
# Steps of RE2's program: what a text costs at worst, where its automaton does not fit into memory, grows with them.
MAX_PROGRAM: Final = 10_000
MAX_TOGETHER: Final = 200_000

# Where a match begins, in bytes, and from where to where that stands which counts of it.
Found: TypeAlias = tuple[int, int, int]

_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class PatternError(ValueError):
    """The pattern cannot be used. The message says why and what to write instead."""


class Letters:
    """A text as RE2 reads it. Positions have to be asked for in ascending order, which is what keeps them cheap."""

    __slots__ = ("_byte", "_character", "_plain", "data")

    def __init__(self, text: str) -> None:
        try:
            self.data = text.encode()
        except UnicodeEncodeError:  # half a pair is no UTF-8; one character stands for another, so that positions stay
            self.data = _SURROGATES.sub("\ufffd", text).encode()
        self._plain = len(self.data) == len(text)
        self._byte = self._character = 0

    def byte(self, character: int) -> int:
        """Where a character stands in `data`."""
        if self._plain:
            return character
        # A character takes four bytes at most; the last one may be cut, and is taken off with the rest.
        ahead = self.data[self._byte:self._byte + 4 * (character - self._character)].decode(errors="ignore")
        self._byte += len(ahead[:character - self._character].encode())
        self._character = character
        return self._byte

    def character(self, byte: int) -> int:
        """Which character stands at this byte of `data`."""
        if self._plain:
            return byte
        self._character += len(self.data[self._byte:byte].decode())
        self._byte = byte
        return self._character


class Pattern:
    """One compiled pattern. A match has from `shortest` to `longest` characters; `longest` is None where there is no end.

    `captured`: what counts of a match is the one group that takes part in it, else it is all of it.

    Raises:
        PatternError: RE2 does not take it, it is too large, or it matches where there is nothing.
    """

    __slots__ = ("_groups", "_program", "longest", "opening", "shortest", "source")

    def __init__(self, source: str, *, captured: bool = False) -> None:
        if len(source) > MAX_SOURCE:
            raise PatternError(f"a pattern may have at most {MAX_SOURCE} characters, and this one has {len(source)}")
        self._program = _compiled(source)
        try:
            shape = shape_of(source)
        except ValueError as error:
            raise PatternError(f"the pattern {source!r} is not taken: {error}") from error
        if shape.least == 0:
            raise PatternError(f"the pattern {source!r} fits where there is nothing: say what must be there, `+` for `*`")
        self._groups = range(1, self._program.groups + 1) if captured else range(1)
        self.source = source
        self.shortest, self.longest = shape.least, shape.most
        self.opening = shape.opening

    def __repr__(self) -> str:
        return f"Pattern({self.source!r}, longest={self.longest})"

    def search(self, data: bytes, start: int, end: int | None = None) -> Found | None:
        """The leftmost match that begins at `start` or later and ends at `end` or earlier; what stands around is seen."""
        return self._found(self._program.search(data, start, end))

    def match(self, data: bytes, start: int, end: int) -> Found | None:
        """The match that begins at `start` and ends at `end` or earlier."""
        return self._found(self._program.match(data, start, end))

    def _found(self, match: Any) -> Found | None:
        if match is None:
            return None
        counts = match.span(self._groups[0])
        if counts[0] < 0:  # another alternative took part
            counts = next(span for span in map(match.span, self._groups) if span[0] >= 0)
        return match.start(), *counts


class AnyOf:
    """Several patterns in one: one search instead of many says whether there is anything to find at all.

    Raises:
        PatternError: together they are too large.
    """

    __slots__ = ("_openings", "_wholes")

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._wholes = _compiled("|".join(f"(?:{pattern.source})" for pattern in patterns), MAX_TOGETHER)
        self._openings = _compiled(f"(?:{'|'.join(pattern.opening for pattern in patterns)})\\z", MAX_TOGETHER)

    def anywhere(self, data: bytes, start: int) -> bool:
        """Whether one of them matches at `start` or later."""
        return self._wholes.search(data, start) is not None

    def opens(self, data: bytes, start: int) -> int:
        """The earliest place from `start` on where a match could have begun that more text would decide; the end if there is none."""
        found = self._openings.search(data, start)
        return len(data) if found is None else int(found.start())


def _compiled(source: str, limit: int = MAX_PROGRAM) -> Any:
    options = re2.Options()
    options.log_errors = False  # it would write to stderr
    options.never_capture = limit > MAX_PROGRAM
    options.max_mem = 64 << 20 if limit > MAX_PROGRAM else 8 << 20
    try:
        program = re2.compile(source, options)
    except UnicodeEncodeError as error:
        raise PatternError(f"the pattern {source!r} is no text: it holds half a character") from error
    except re2.error as error:
        what = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise PatternError(f"RE2 does not take the pattern {source!r}: {what}") from error
    if program.programsize > limit:
        raise PatternError(f"the pattern {source!r} is too large: its repetitions multiply to {program.programsize} steps, of {limit}")
    return program
