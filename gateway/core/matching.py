"""The index behind `match`: which rules could apply to a call, at a cost that does not grow with the rules that cannot.

Every rule is one bit. Each match key knows, for a value, the bits that it lets through; the candidates are the bits
that every key lets through. All caches hang off the index, are bounded, and never hold a long string of the caller's.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Generic, TypeVar

Chosen = TypeVar("Chosen")

CACHED_ENTRIES: Final = 1024
CACHED_CHARACTERS: Final = 256  # a longer value is looked up each time: callers choose the names of tools


@dataclass(frozen=True, slots=True)
class MatchKeys:
    """What `match` looks at: for each key the call's values, of which one has to fit.

    `tools` is None where they cannot be read.
    """

    principals: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = ()


MATCH_KEYS: Final = tuple(field.name for field in fields(MatchKeys))


class _Key:
    """One match key over all rules: a value in, the rules that it lets through out."""

    __slots__ = ("_cache", "_exact", "_free", "_globs", "name")

    def __init__(self, name: str, patterns: Sequence[tuple[str, ...]]) -> None:
        self.name = name
        self._cache: dict[str, int] = {}
        self._free = 0
        bits: dict[str, int] = {}
        for number, globs in enumerate(patterns):
            if not globs:
                self._free |= 1 << number
            for glob in globs:
                bits[glob] = bits.get(glob, 0) | 1 << number
        self._exact = {glob: rules for glob, rules in bits.items() if not any(sign in glob for sign in "*?[")}
        self._globs = [(re.compile(fnmatch.translate(glob)).match, rules)
                       for glob, rules in bits.items() if glob not in self._exact]

    def rules(self, values: tuple[str, ...]) -> int:
        """The rules without this key, and those of which a glob fits one of `values` (case matters)."""
        rules = self._free
        for value in values:
            found = self._cache.get(value)
            rules |= self._look_up(value) if found is None else found
        return rules

    def _look_up(self, value: str) -> int:
        rules = self._exact.get(value, 0)
        for fits, of_glob in self._globs:
            if fits(value):
                rules |= of_glob
        if len(value) <= CACHED_CHARACTERS:
            _remember(self._cache, value, rules)
        return rules


class Index(Generic[Chosen]):
    """The match keys of all rules of a phase. `choose` turns the candidates' numbers into what `select` returns."""

    __slots__ = ("_all", "_choose", "_keys", "_selections", "reads_tools")

    def __init__(self, matches: Sequence[Mapping[str, tuple[str, ...]]],
                 choose: Callable[[tuple[int, ...]], Chosen]) -> None:
        columns = ((key, [match.get(key, ()) for match in matches]) for key in MATCH_KEYS)
        self._keys = [_Key(key, patterns) for key, patterns in columns if any(patterns)]
        self._all = (1 << len(matches)) - 1
        self._choose = choose
        self._selections: dict[int, Chosen] = {}
        self.reads_tools = any(key.name == "tools" for key in self._keys)

    def select(self, keys: MatchKeys) -> Chosen:
        """The rules that could apply, in declared order. Tools that cannot be read rule nothing out."""
        rules = self._all
        for key in self._keys:
            values: tuple[str, ...] | None = getattr(keys, key.name)
            if values is not None:
                rules &= key.rules(values)
        chosen = self._selections.get(rules)
        if chosen is None:
            bits = enumerate(reversed(f"{rules:b}"))
            chosen = self._choose(tuple(number for number, bit in bits if bit == "1"))
            _remember(self._selections, rules, chosen)
        return chosen


Known = TypeVar("Known", int, str)


def _remember(cache: dict[Known, Chosen], known: Known, found: Chosen) -> None:
    """Keep an answer. A full cache starts again: simpler than ageing, and a flood of invented names costs no memory."""
    if len(cache) >= CACHED_ENTRIES:
        cache.clear()
    cache[known] = found
