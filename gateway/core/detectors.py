"""Finding personal data and secrets in text: what a detector is, and how rules name those there are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

from gateway.core.patterns import Found, Letters, Pattern
from gateway.core.shipped_detectors import KINDS
from gateway.validation import nearest

# What the searches of one text may cost together, in bytes looked at: for each byte of the text, and at least. A pattern whose
# matches have an end stays far below; one like `a(.*b)?` looks through all the rest of a text for each of its matches.
_WORK_EACH: Final = 256
_WORK: Final = 1 << 27


# Matches of one text, findings or not: each costs some 5 µs.
_MOST_MATCHES: Final = 250_000
_WORDS: Final = frozenset({"pattern", "field"})  # what stands in a replacement where no detector found something


class DetectionError(ValueError):
    """A text is too much for a detector. It has not been searched through, and must not go on as if it had."""


class Detector(Protocol):
    """Finds one kind of thing in a text.

    `longest` is the most characters that one finding can have, with what has to stand around it; None where there is no end. It is a
    promise that streams rely on: what is found depends on `start` and on nothing further away from it than `longest` characters.
    """

    @property
    def name(self) -> str:
        """What rules call it, and what is written where it found something."""
        ...

    @property
    def longest(self) -> int | None:
        """See above."""
        ...

    def find(self, text: str, start: int = 0) -> Iterator[tuple[int, int]]:
        """Where it stands: (start, end), in order, without overlap; in time that grows with the text's length only.

        Nothing that begins before `start` is found; what stands there may be looked at.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PatternDetector:
    """A pattern, and a check of what it matches: how many characters, from the first on, are a finding; 0 if none are.

    `longest` may be given where the pattern knows no end: a longer match is none. Then the pattern matches ASCII only.
    """

    name: str
    pattern: Pattern
    check: Callable[[str], int] = len
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.longest is None:
            object.__setattr__(self, "longest", self.pattern.longest)

    def find(self, text: str, start: int = 0) -> Iterator[tuple[int, int]]:
        letters = Letters(text)
        at = letters.byte(start)
        work, matches = _WORK + _WORK_EACH * len(letters.data), 0
        while (found := self._next(letters.data, at)) is not None:
            outset, first, last = found
            work -= len(letters.data) - at if self.longest is None else self.longest
            matches += 1
            if matches > _MOST_MATCHES:
                raise DetectionError(f"a text of {len(text)} characters holds more than {_MOST_MATCHES} things like `{self.name}`")
            if work < 0:
                raise DetectionError(f"the pattern {self.pattern.source!r} matches too often in a text of {len(text)} characters: "
                                     "give its repetitions an end, `{1,50}` for `+`")
            value = letters.data[first:last].decode()
            size = self.check(value)
            if size:
                begin = letters.character(first)
                yield begin, begin + size
                at = first + len(value[:size].encode())
            else:
                at = outset + 1

    def _next(self, data: bytes, at: int) -> Found | None:
        """The next match that is not too long."""
        longest = self.longest if self.pattern.longest is None else None
        while (found := self.pattern.search(data, at)) is not None and longest is not None and found[2] - found[0] > longest:
            shorter = self.pattern.match(data, found[0], found[0] + longest)
            if shorter is not None:
                return shorter
            at = found[0] + 1
        return found


def pattern_detector(pattern: str) -> Detector:
    """A detector of whatever an RE2 pattern matches.

    Raises:
        PatternError: (a ValueError) says in words why the pattern cannot be used.
    """
    return PatternDetector("pattern", Pattern(pattern))


_SHIPPED: Final[Mapping[str, tuple[Detector, ...]]] = {
    group: tuple(PatternDetector(kind.name, Pattern(kind.source, captured=True), kind.check, kind.longest) for kind in kinds)
    for group, kinds in KINDS.items()}


class Detectors:
    """The detectors that rules can name: those that ship, and a deployment's `own`.

    Raises:
        ValueError: one of the deployment's own has a name that is taken.
    """

    def __init__(self, own: tuple[Detector, ...] = ()) -> None:
        shipped = tuple(chain.from_iterable(_SHIPPED.values()))
        named: dict[str, tuple[Detector, ...]] = {group: detectors for group, detectors in _SHIPPED.items() if group}
        for detector in (*shipped, *own):
            if detector.name in named or detector.name in _WORDS:
                raise ValueError(f"the name of the detector {detector.name!r} is taken: give it another")
            named[detector.name] = (detector,)
        self._named = named

    @property
    def names(self) -> tuple[str, ...]:
        """What `named` takes: the groups, then the detectors."""
        return tuple(self._named)

    def named(self, name: str) -> tuple[Detector, ...]:
        """The detector of this name, or all those of a group (`pii`, `secrets`).

        Raises:
            ValueError: there is none; it says what there is.
        """
        found = self._named.get(name)
        if found is None:
            raise ValueError(f"there is no detector {name!r}: {nearest(name, self.names)}")
        return found
