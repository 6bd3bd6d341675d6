"""Taking values out of texts and JSON: what detectors find, and whole fields. Pure; never changes what it is given.

All that detectors find is looked for in the text as it came, and is taken out in one pass: findings that overlap are replaced as one,
under the name of that which begins first, of several the longest, of equals the first in declared order.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from gateway.call import Json
from gateway.core.decision import Redaction
from gateway.core.detectors import DetectionError, Detector, PatternDetector
from gateway.core.patterns import AnyOf, Letters, Pattern, PatternError

# (start, -end, number of the detector): sorted, they stand in the order in which they are told.
Finding: TypeAlias = tuple[int, int, int]

# A string of a valid JSON text, and whether it is a key.
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?')
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


class Search:
    """The detectors of some redactions, in declared order, to be asked together: one search says whether there is anything to find."""

    __slots__ = ("_shortest", "any", "detectors", "patterned", "replacements")

    def __init__(self, redactions: Iterable[Redaction]) -> None:
        pairs = [(detector, redaction.replacement) for redaction in redactions for detector in redaction.detectors]
        self.detectors: tuple[Detector, ...] = tuple(detector for detector, _ in pairs)
        self.replacements = tuple(_worded(replacement, detector.name) for detector, replacement in pairs)
        patterns = tuple(each.pattern for each in self.detectors if isinstance(each, PatternDetector))
        self.patterned = bool(patterns)
        self.any = _any_of(patterns)
        self._shortest = min((each.shortest for each in patterns), default=0) if len(patterns) == len(self.detectors) else 0

    def redacted(self, text: str) -> str:
        """The text without what is found in it; the same object where that is nothing.

        Raises:
            DetectionError: the text is too much for a detector.
        """
        findings = self.findings(text)
        return told(text, findings, self.replacements, 0, len(text))[0] if findings else text

    def findings(self, text: str) -> list[Finding]:
        """All that is found in a text, in order."""
        if len(text) < self._shortest:
            return []
        return sorted((start, -end, number) for number in self.asked(text, 0) for start, end in self.detectors[number].find(text))

    def asked(self, text: str, start: int) -> list[int]:
        """The numbers of the detectors that have to be asked: those of patterns only where one of them matches from `start` on."""
        everyone = range(len(self.detectors))
        if self.any is not None:
            letters = Letters(text)
            if not self.any.anywhere(letters.data, letters.byte(start)):
                return [number for number in everyone if not isinstance(self.detectors[number], PatternDetector)]
        return list(everyone)


@lru_cache(maxsize=64)  # compiling takes milliseconds, and the rules of a phase are mostly the same
def _any_of(patterns: tuple[Pattern, ...]) -> AnyOf | None:
    """The patterns in one; None where there are none, or so many that together they are too large."""
    try:
        return AnyOf(patterns) if patterns else None
    except PatternError:
        return None


def told(text: str, findings: Iterable[Finding], replacements: Sequence[str], done: int, limit: int) -> tuple[str, int]:
    """The text from `done` up to `limit` with findings replaced, and how far it is told: a finding that begins before may end behind."""
    parts: list[str] = []
    for start, less, number in findings:
        if start >= done:
            parts += (text[done:start], replacements[number])
        done = max(done, -less)
    if done < limit:
        parts.append(text[done:limit])
    return "".join(parts), max(done, limit)


def found_in(text: str, detectors: Sequence[Detector]) -> list[str]:
    """The names of the detectors that find something in a text, each once, in the order in which they are given.

    Raises:
        DetectionError: the text is too much for a detector.
    """
    search = Search([Redaction("", tuple(detectors))])
    asked = (detectors[number] for number in search.asked(text, 0))
    return list(dict.fromkeys(each.name for each in asked if next(iter(each.find(text)), None) is not None))


def redact_text(text: str, redactions: Sequence[Redaction]) -> str:
    """The text without what the redactions' detectors find in it. Their `fields` mean nothing in a text.

    Raises:
        DetectionError: the text is too much for a detector.
    """
    return Search(redactions).redacted(text)


def redact_value(value: Json, redactions: Sequence[Redaction]) -> Json:
    """A JSON value with every string in it redacted and whole fields replaced; keys are left alone.

    Whatever nothing was taken out of is the same object as before. Raises as `redact_text` does.
    """
    search = Search(redactions)
    value = _strings_redacted(value, search) if search.detectors else value
    return redact_fields(value, redactions)


def redact_fields(value: Json, redactions: Sequence[Redaction]) -> Json:
    """A JSON value with the redactions' `fields` replaced by text. A field that is not there needs nothing."""
    for redaction in redactions:
        for pointer in redaction.fields:
            value = _replaced_at(value, steps_of(pointer), _worded(redaction.replacement, "field"))
    return value


def redact_json_text(text: str, redactions: Sequence[Redaction]) -> str:
    """A text that should be a JSON object or array with the strings in it redacted, and all else as it was written.

    What is no such JSON is redacted as text. Raises as `redact_text` does, also for JSON that is nested too deep to be read.
    """
    search = Search(redactions)
    try:
        parsed = json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
    except ValueError:
        parsed = None
    except RecursionError as error:
        raise DetectionError("a JSON text is nested too deep to be searched") from error
    if parsed is None:
        return search.redacted(text)

    def written(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        before = json.loads(found[0])
        after = search.redacted(before)
        return found[0] if after is before else json.dumps(after)

    # Every value is looked at, also the earlier ones of a repeated key, which a parser would drop and another would read.
    return _STRING.sub(written, text)


def steps_of(pointer: str) -> list[str]:
    """The steps of a JSON pointer (RFC 6901)."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _worded(replacement: str, what: str) -> str:
    return replacement.replace("{what}", what)


def _strings_redacted(value: Json, search: Search) -> Json:
    if isinstance(value, str):
        return search.redacted(value)
    if isinstance(value, Mapping):
        changes = [(key, new) for key, item in value.items() if (new := _strings_redacted(item, search)) is not item]
        return {**value, **dict(changes)} if changes else value
    if isinstance(value, list):
        items = [_strings_redacted(item, search) for item in value]
        return items if any(new is not item for new, item in zip(items, value, strict=True)) else value
    return value


def _replaced_at(value: Json, steps: Sequence[str], text: str) -> Json:
    if not steps:
        return text
    first, rest = steps[0], steps[1:]
    if isinstance(value, Mapping):
        keys = list(value) if first == "*" else [first] if first in value else []
        changes = {key: new for key in keys if (new := _replaced_at(value[key], rest, text)) is not value[key]}
        return {**value, **changes} if changes else value
    if isinstance(value, list):
        number = int(first) if _INDEX.fullmatch(first) else None
        items = [_replaced_at(item, rest, text) if first == "*" or at == number else item for at, item in enumerate(value)]
        return items if any(new is not item for new, item in zip(items, value, strict=True)) else value
    return value
