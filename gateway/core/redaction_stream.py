"""Redacting a text that comes in pieces: what is let go, put together, is what `redact_text` makes of the whole, however it was cut.

Held back is only what could be the beginning of a finding: mostly the last word.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.core.decision import Redaction
from gateway.core.detectors import PatternDetector
from gateway.core.patterns import Letters
from gateway.core.redaction import Finding, Search, told

# A finding that can be longer is looked for once, when the whole text is there.
MOST_HELD: Final = 32_768


class StreamRedactor:
    """Takes one text in pieces. Memory: twice the longest finding and the piece; of a detector without an end, the whole text.

    `whole`: nothing is let go before the end, so whoever feeds it has to bound the text. `feed` and `end` raise `DetectionError` as
    `redact_text` does; nothing may be let go after that.
    """

    def __init__(self, redactions: Sequence[Redaction]) -> None:
        self._search = Search(redactions)
        longest = [each.longest for each in self._search.detectors]
        endless = any(each is None or each > MOST_HELD for each in longest)
        self.whole = endless or (self._search.patterned and self._search.any is None)
        self._longest = max((each for each in longest if each is not None), default=0)
        self._foreign = max((each.longest or 0 for each in self._search.detectors if not isinstance(each, PatternDetector)), default=0)
        self._pieces: list[str] = []  # where `whole`
        self._text = ""  # what is not told yet, and before it what detectors may look back at
        self._told = 0
        self._at = [0] * len(longest)  # where each detector goes on

    def feed(self, text: str) -> str:
        """What can be let go after this piece."""
        if not self.whole:
            self._text += text
            return self._tell(self._opening())
        self._pieces.append(text)
        return ""

    def end(self) -> str:
        """The rest."""
        if not self.whole:
            return self._tell(len(self._text))
        text = "".join(self._pieces)
        self._pieces = []
        return self._search.redacted(text)

    def _opening(self) -> int:
        """The earliest place where something may begin that more text would decide."""
        size = len(self._text)
        letters = Letters(self._text)
        earliest = size - self._foreign if self._foreign else size
        if self._search.any is not None:
            start = letters.byte(max(min(self._at), size - self._longest))
            earliest = min(earliest, letters.character(self._search.any.opens(letters.data, start)))
        return max(earliest, 0)

    def _tell(self, limit: int) -> str:
        """Find and tell everything that begins before `limit`; what begins there or later is not decided yet."""
        text, at = self._text, self._at
        asked = self._search.asked(text, min(at, default=0))
        findings = [finding for number in asked for finding in self._findings(number, limit)]
        quiet = set(range(len(at))).difference(asked)
        for number in quiet:
            at[number] = max(at[number], limit)
        out, done = told(text, sorted(findings), self._search.replacements, self._told, limit)
        keep = max(0, min((*at, done)) - max(1, self._foreign))
        self._text = text[keep:]
        self._told = done - keep
        self._at = [each - keep for each in at]
        return out

    def _findings(self, number: int, limit: int) -> Iterator[Finding]:
        """What one detector finds before `limit`; leaves in `_at` where it has to go on."""
        detector = self._search.detectors[number]
        go_on = limit
        for start, end in detector.find(self._text, self._at[number]):
            if start >= limit:  # what has to stand before it may begin before `limit`
                go_on = limit - (detector.longest or 0)
                break
            yield start, -end, number
            self._at[number] = end
        self._at[number] = max(self._at[number], go_on)
