"""Text from outside, made fit for a log line or a span: secrets out, length bounded, valid Unicode."""

from collections.abc import Callable
from typing import Final

SHORT: Final = 256  # characters kept of a name: a route, a session, a step
LONG: Final = 1_000  # characters kept of a sentence, so that a line mostly stays under PIPE_BUF (4096 bytes)
REPORT: Final = 8_000  # characters kept of a value in an event: a traceback
_MARGIN: Final = 4_096  # longer than any credential


class Cleaner:
    """`scrub` takes secrets out of a text. It is never given more than `limit` and 4,096 characters."""

    __slots__ = ("_scrub",)

    def __init__(self, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub

    def __call__(self, text: str, limit: int = SHORT) -> str:
        """The text without secrets and lone surrogates; at most `limit` characters, and a mark where more was cut."""
        cut = len(text) - limit
        if cut <= 0:
            return _unicode(self._scrub(text)) if text else text
        # A secret may straddle the end of what is scrubbed and so not be recognised. It is shorter than the margin, and
        # the margin is dropped whatever scrubbing has done to the length.
        scrubbed = self._scrub(text[:limit + _MARGIN])
        kept = scrubbed[:limit] if cut <= _MARGIN else scrubbed[:min(limit, len(scrubbed) - _MARGIN)]
        return f"{_unicode(kept)}… ({len(text)} characters)"

    def optional(self, text: str | None) -> str | None:
        """The same where there may be no text."""
        return text and self(text)


def _unicode(text: str) -> str:
    """A lone surrogate (a file name that is not UTF-8 has them) cannot be encoded: it is written as its escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
