"""Reads an RE2 pattern for what RE2 does not tell: how long its matches can be, and how they begin. Never runs a pattern.

It is given only what RE2 has taken, so it looks for no errors but for those few things that RE2 takes and Lockgate does not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DEEPEST: Final = 40  # groups within groups

_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:[pP](?:\{[^}]*\}|.)|x(?:\{[^}]*\}|..)|[0-7]{1,3}|.)", re.DOTALL)
_GROUP: Final = re.compile(r"\((?:\?P?<\w+>|\?(?P<on>[imsU]*)(?:-(?P<off>[imsU]*))?(?P<scope>[:)]))?")
_REPEAT: Final = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<least>\d+)(?P<more>,(?P<most>\d*))?\})\??")
_SIGNS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ASSERTIONS: Final = frozenset({"\\A", "\\b", "\\B", "\\z"})


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pattern matches: from `least` to `most` characters, `most` None where there is no end.

    `whole` is the pattern without its assertions and captures; `opening` matches everything that such a match can begin with, from
    nothing to all of it. Both may match more than they say, never less.
    """

    least: int
    most: int | None
    whole: str
    opening: str


_NOTHING: Final = Shape(0, 0, "", "")


def shape_of(source: str) -> Shape:
    r"""The shape of a pattern that RE2 takes.

    Raises:
        ValueError: for what is not taken here: `\C`, `\Q`, and groups nested deeper than `DEEPEST`.
    """
    return _Reader(source).alternatives("", 0)


class _Reader:
    """Goes through a pattern once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def alternatives(self, flags: str, depth: int) -> Shape:
        """Up to the end of the group, or of the pattern."""
        if depth > DEEPEST:
            raise ValueError(f"groups are nested deeper than {DEEPEST}")
        branches, items = [], list[Shape]()
        while self._at < len(self._source) and self._source[self._at] != ")":
            if self._source[self._at] == "|":
                self._at += 1
                branches.append(_sequence(items))
                items = []
            elif self._source[self._at] == "(":
                head = self._take(_GROUP)
                inner = _flags(flags, head["on"] or "", head["off"] or "")
                if head["scope"] == ")":
                    flags = inner  # from here to the end of this group
                    continue
                group = self.alternatives(inner, depth + 1)
                self._at += 1
                items.append(self._repeated(group))
            else:
                items.append(self._repeated(self._atom(flags)))
        return _either([*branches, _sequence(items)])

    def _atom(self, flags: str) -> Shape:
        first = self._source[self._at]
        if first == "[":
            written = self._take(_CLASS)[0]
        elif first == "\\":
            written = self._take(_ESCAPE)[0]
            if written in ("\\C", "\\Q"):
                raise ValueError(f"`{written}` is not taken: write the characters themselves")
        else:
            written = first
            self._at += 1
        if written in ("^", "$") or written in _ASSERTIONS:
            return _NOTHING
        if written == "{" or (written[:1] == "\\" and written[1:].isdecimal()):
            written = "\\{" if written == "{" else f"(?:{written})"  # what comes to stand behind it must not become a part of it
        whole = f"(?{flags}:{written})" if flags else written
        return Shape(1, 1, whole, f"(?:{whole})?")

    def _repeated(self, item: Shape) -> Shape:
        while (found := _REPEAT.match(self._source, self._at)) is not None:
            self._at = found.end()
            if found["sign"]:
                item = _times(item, *_SIGNS[found["sign"]])
            else:
                least = int(found["least"])
                most = least if found["more"] is None else int(found["most"]) if found["most"] else None
                item = _times(item, least, most)
        return item

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._source, self._at)
        if found is None:
            raise ValueError(f"it cannot be read at character {self._at + 1}")
        self._at = found.end()
        return found


def _flags(flags: str, on: str, off: str) -> str:
    """The flags that change which characters match: case, and whether `.` is a newline too."""
    return "".join(flag for flag in "is" if (flag in flags or flag in on) and flag not in off)


def _sequence(items: Sequence[Shape]) -> Shape:
    result = _NOTHING
    for item in reversed(items):
        if not item.whole:
            continue
        most = None if item.most is None or result.most is None else item.most + result.most
        opening = f"(?:{item.opening}|{item.whole}{result.opening})" if result.whole else item.opening
        result = Shape(item.least + result.least, most, item.whole + result.whole, opening)
    return result


def _either(branches: Sequence[Shape]) -> Shape:
    if len(branches) == 1:
        return branches[0]
    mosts = [branch.most for branch in branches]
    most = None if None in mosts else max(each for each in mosts if each is not None)
    return Shape(min(branch.least for branch in branches), most, f"(?:{'|'.join(branch.whole for branch in branches)})",
                 f"(?:{'|'.join(branch.opening for branch in branches)})")


def _times(item: Shape, least: int, most: int | None) -> Shape:
    if most == 0 or item.most == 0:
        return _NOTHING
    longest = None if most is None or item.most is None else item.most * most
    again = "*" if most is None else f"{{0,{most - 1}}}"
    count = "*" if most is None else f"{{0,{most}}}" if least == 0 else f"{{{least},{most}}}"
    if most is None and least:
        count = f"{{{least},}}"
    before = f"(?:{item.whole}){again}" if most != 1 else ""
    return Shape(item.least * least, longest, f"(?:{item.whole}){count}", f"{before}{item.opening}")
