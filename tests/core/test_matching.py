"""The index gives exactly the rules that could apply, whatever a caller sends."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import matching
from gateway.core.matching import CACHED_CHARACTERS, CACHED_ENTRIES, MATCH_KEYS, MOST_STEPS, Index, MatchKeys


def index(*matches: Mapping[str, tuple[str, ...]]) -> Index[tuple[int, ...]]:
    return Index(matches, lambda numbers: numbers)


# Every mixture of literal text, wildcards and brackets, closed or not, with the line break that `.` does not match.
GLOBS = st.sampled_from(["a", "b", "ab", "*", "a*", "?", "[ab]", "*b"]) | st.text("ab*?[]!-\n", min_size=1, max_size=6)
VALUES = st.lists(st.sampled_from(["", "a", "b", "ab", "abc", "A", "*"]) | st.text("ab*[]!-\n", max_size=5), max_size=3).map(tuple)
MATCHES = st.lists(st.dictionaries(
    st.sampled_from(MATCH_KEYS), st.lists(GLOBS, min_size=1, max_size=2).map(tuple), max_size=3), max_size=6)
KEYS = st.builds(MatchKeys, **{key: VALUES for key in MATCH_KEYS if key != "tools"}, tools=VALUES | st.none())


@settings(deadline=None)
@given(MATCHES, st.lists(KEYS, max_size=4))
def test_a_rule_is_a_candidate_when_every_key_it_names_fits_one_of_the_values(
        matches: list[dict[str, tuple[str, ...]]], asked: list[MatchKeys]) -> None:
    """Compared with the definition, rule by rule; asking again gives the same from the caches."""
    built = index(*matches)
    for keys in [*asked, *asked]:
        expected = tuple(number for number, match in enumerate(matches) if all(
            (values := getattr(keys, key)) is None or any(fnmatchcase(value, glob) for value in values for glob in globs)
            for key, globs in match.items()))
        assert built.select(keys) == expected


def test_a_rule_without_match_keys_is_always_a_candidate() -> None:
    """Leaving `match` out means every call."""
    assert index({}, {"teams": ("x",)}).select(MatchKeys()) == (0,)


def test_case_matters() -> None:
    """Upstreams tell `Bank.Pay` from `bank.pay`; a rule that should not says so with a glob."""
    assert index({"tools": ("bank.pay",)}).select(MatchKeys(tools=("Bank.Pay",))) == ()


def test_tools_that_cannot_be_read_rule_nothing_out() -> None:
    """Else a malformed list would be a way round every rule on tools."""
    assert index({"tools": ("bank.pay",)}, {"tools": ("x",), "teams": ("t",)}).select(MatchKeys(tools=None)) == (0,)


def test_only_an_index_with_a_rule_on_tools_asks_for_them() -> None:
    """Tools are the only key that costs a look into the body."""
    assert index({"tools": ("x",)}).reads_tools
    assert not index({"teams": ("x",)}).reads_tools


def test_a_flood_of_invented_names_does_not_grow_the_caches() -> None:
    """Names of tools are chosen by callers; memory is not theirs to spend."""
    built = index(*({"tools": (f"t{number}*",)} for number in range(12)))
    for number in range(3 * CACHED_ENTRIES):
        built.select(MatchKeys(tools=(f"t{number % 12}x", f"junk{number}", f"t{number % 7}")))
    built.select(MatchKeys(tools=("t1" + "x" * CACHED_CHARACTERS,)))
    (key,) = built._keys
    assert len(key._cache) <= CACHED_ENTRIES
    assert all(len(name) <= CACHED_CHARACTERS for name in key._cache)
    assert len(built._selections) <= CACHED_ENTRIES


def test_ten_thousand_rules_leave_only_those_that_fit() -> None:
    """The shape of a large bundle: most rules are about somebody else."""
    built = index(*({"routes": (f"r{number}-*" if number % 2 else f"r{number}",)} for number in range(10_000)))
    assert built.select(MatchKeys(routes=("r9999-x",))) == (9999,)
    assert built.select(MatchKeys(routes=("r42",))) == (42,)


class Tried:
    """Stands for a compiled glob, and counts how often it is tried."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _value: str) -> None:
        self.times += 1


def watched(built: Index[tuple[int, ...]]) -> Tried:
    """Puts one counter in place of every glob that is tried on tools."""
    tried = Tried()
    (key,) = built._keys
    globs = key._globs
    of_sides = [one for side in (globs._heads, globs._tails) for of_length in side.values() for one in of_length.values()]
    for held in (globs._floating, *of_sides):
        held[:] = [(tried, rules) for _, rules in held]
    return tried


def test_only_globs_that_begin_or_end_as_a_name_does_are_tried_on_it() -> None:
    """A caller may invent two thousand names of tools; against ten thousand rules that must not be twenty million tries."""
    built = index(*({"tools": (f"ns{number}.*" if number % 2 else f"*.do{number}",)} for number in range(10_000)))
    tried = watched(built)
    built.select(MatchKeys(tools=("ns1.do1", "ns2.do2", "ns3.do4", "junk", "")))
    assert tried.times == len(["ns1.*", "*.do2", "ns3.*", "*.do4"])


def test_what_names_of_tools_can_cost_has_a_bound_whatever_the_globs() -> None:
    """The bound is in steps, known before the first of them; more names than fit are not looked up on a part."""
    floating = index(*({"tools": (f"*x{number}*",)} for number in range(1000)))
    tried = watched(floating)
    few = MOST_STEPS // 1001
    assert floating.knows_tools(MatchKeys(tools=("y",) * few))
    assert not floating.knows_tools(MatchKeys(tools=("y",) * (few + 1)))
    floating.select(MatchKeys(tools=tuple(f"{'y' * CACHED_CHARACTERS}{number}" for number in range(few))))
    assert tried.times <= MOST_STEPS
    assert floating.select(MatchKeys(tools=("y",) * (few + 1))) == tuple(range(1000))
    assert tried.times <= MOST_STEPS


def test_one_tool_is_always_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool call has one name; no number of rules makes it unknown."""
    monkeypatch.setattr(matching, "MOST_STEPS", 10)
    built = index({"tools": tuple(f"*x{number}*" for number in range(20))})
    assert built.knows_tools(MatchKeys(tools=("x7",)))
    assert not built.knows_tools(MatchKeys(tools=("x7", "x8")))
    assert built.select(MatchKeys(tools=("x7",))) == (0,)
