"""Which requests a fault is about. Pure."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is about: globs on model, path and key, then `nth` among those, from 1 (empty: all)."""

    model: str = "*"
    path: str = "*"
    api_key: str = "*"
    nth: frozenset[int] = frozenset()

    def covers(self, model: str, path: str, api_key: str) -> bool:
        """Whether the globs match; the director counts for `nth`."""
        return fnmatchcase(model, self.model) and fnmatchcase(path, self.path) and fnmatchcase(api_key, self.api_key)


EVERYTHING: Final = Match()
