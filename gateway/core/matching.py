"""The index behind `match`: which rules could apply to a call, at a cost that does not grow with the rules that cannot.

Every rule is one bit. Each match key knows, for a value, the bits that it lets through; the candidates are the bits
that every key lets through. All caches hang off the index, are bounded, and never hold a long string of the caller's.
"""

import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Generic, TypeAlias, TypeVar

Chosen = TypeVar("Chosen")

CACHED_ENTRIES: Final = 1024
CACHED_CHARACTERS: Final = 256  # a longer value is looked up each time: callers choose the names of tools
MOST_STEPS: Final = 50_000  # globs tried on the names of one call's tools: some 20 ms

_WILD: Final = re.compile(r"[*?[]")
_Glob: TypeAlias = tuple[Callable[[str], object], int]  # whether it fits, and the rules that have it


@dataclass(frozen=True, slots=True)
class MatchKeys:
    """What `match` looks at: for each key the call's values, of which one has to fit.

    `tools` is None where they cannot be read. `kinds` is `model` or `tool`, of which rules do not speak: their effects do.
    """

    principals: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = ()
    kinds: tuple[str, ...] = ("model",)


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
        self._exact = {glob: rules for glob, rules in bits.items() if not _WILD.search(glob)}
        self._globs = _Globs({glob: rules for glob, rules in bits.items() if glob not in self._exact})

    @property
    def steps(self) -> int:
        """The most that one value can cost."""
        return 1 + self._globs.steps

    def rules(self, values: tuple[str, ...]) -> int:
        """The rules without this key, and those of which a glob fits one of `values` (case matters)."""
        rules = self._free
        for value in values:
            found = self._cache.get(value)
            rules |= self._look_up(value) if found is None else found
        return rules

    def _look_up(self, value: str) -> int:
        rules = self._exact.get(value, 0) | self._globs.rules(value)
        if len(value) <= CACHED_CHARACTERS:
            _remember(self._cache, value, rules)
        return rules


class _Globs:
    """Globs with wildcards, found by the literal text that they begin or end with: only those of a value's own are tried on it."""

    __slots__ = ("_floating", "_heads", "_tails", "steps")

    def __init__(self, bits: Mapping[str, int]) -> None:
        self._heads: dict[int, dict[str, list[_Glob]]] = {}
        self._tails: dict[int, dict[str, list[_Glob]]] = {}
        self._floating: list[_Glob] = []
        for glob, rules in bits.items():
            one = re.compile(fnmatch.translate(glob)).match, rules
            head = re.split(_WILD, glob, maxsplit=1)[0]
            tail = re.split(_WILD, glob)[-1] if "[" not in glob else ""  # what follows a bracket may be within it
            if head:
                self._heads.setdefault(len(head), {}).setdefault(head, []).append(one)
            elif tail:
                self._tails.setdefault(len(tail), {}).setdefault(tail, []).append(one)
            else:
                self._floating.append(one)
        sided = (*self._heads.values(), *self._tails.values())
        self.steps = len(self._floating) + sum(1 + max(map(len, of_length.values())) for of_length in sided)

    def rules(self, value: str) -> int:
        rules = _fitting(self._floating, value)
        for length, heads in self._heads.items():
            rules |= _fitting(heads.get(value[:length], ()), value)
        for length, tails in self._tails.items():
            rules |= _fitting(tails.get(value[-length:], ()), value)
        return rules


def _fitting(globs: Iterable[_Glob], value: str) -> int:
    rules = 0
    for fits, of_glob in globs:
        if fits(value):
            rules |= of_glob
    return rules


class Index(Generic[Chosen]):
    """The match keys of all rules of a phase. `choose` turns the candidates' numbers into what `select` returns."""

    __slots__ = ("_all", "_choose", "_keys", "_last", "_most_tools", "_selections", "reads_tools")

    def __init__(self, matches: Sequence[Mapping[str, tuple[str, ...]]],
                 choose: Callable[[tuple[int, ...]], Chosen]) -> None:
        columns = ((key, [match.get(key, ()) for match in matches]) for key in MATCH_KEYS)
        self._keys = [_Key(key, patterns) for key, patterns in columns if any(patterns)]
        self._all = (1 << len(matches)) - 1
        self._choose = choose
        self._selections: dict[int, Chosen] = {}
        self._last: tuple[MatchKeys, Chosen] | None = None
        self._most_tools = next((max(1, MOST_STEPS // key.steps) for key in self._keys if key.name == "tools"), sys.maxsize)
        self.reads_tools = any(key.name == "tools" for key in self._keys)

    def knows_tools(self, keys: MatchKeys) -> bool:
        """Whether the tools can be read, and are few enough to be looked up among these rules' globs."""
        return keys.tools is not None and len(keys.tools) <= self._most_tools

    def select(self, keys: MatchKeys) -> Chosen:
        """The rules that could apply, in declared order. Tools that are not known rule nothing out."""
        last = self._last
        if last is not None and last[0] is keys:  # a decision asks twice: what to gather, and whom to ask
            return last[1]
        rules = self._all
        for key in self._keys:
            if key.name != "tools" or self.knows_tools(keys):
                rules &= key.rules(getattr(keys, key.name))
        chosen = self._selections.get(rules)
        if chosen is None:
            bits = enumerate(reversed(f"{rules:b}"))
            chosen = self._choose(tuple(number for number, bit in bits if bit == "1"))
            _remember(self._selections, rules, chosen)
        self._last = keys, chosen
        return chosen


Known = TypeVar("Known", int, str)


def _remember(cache: dict[Known, Chosen], known: Known, found: Chosen) -> None:
    """Keep an answer. A full cache starts again: simpler than ageing, and a flood of invented names costs no memory."""
    if len(cache) >= CACHED_ENTRIES:
        cache.clear()
    cache[known] = found
