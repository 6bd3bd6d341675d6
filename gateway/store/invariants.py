"""What an invariant is, and what it is to find that one does not hold."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Invariant:
    """One thing that must hold. `sql` returns the rows that break it; `explanation` says what such a row means.

    A `note` is worth knowing and breaks nothing. The query may use `:now_ns`, `:tolerance_ns` and `:most_nusd`.
    """

    name: str
    sql: str
    explanation: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """The rows that break one invariant, or that one note is about."""

    invariant: Invariant
    rows: tuple[dict[str, Any], ...]
