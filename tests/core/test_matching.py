"""The index gives exactly the rules that could apply, whatever a caller sends."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.matching import CACHED_CHARACTERS, CACHED_ENTRIES, MATCH_KEYS, Index, MatchKeys


def index(*matches: Mapping[str, tuple[str, ...]]) -> Index[tuple[int, ...]]:
    return Index(matches, lambda numbers: numbers)


GLOBS = st.sampled_from(["a", "b", "ab", "*", "a*", "?", "[ab]", "*b"])
VALUES = st.lists(st.sampled_from(["", "a", "b", "ab", "abc", "A", "*"]), max_size=3).map(tuple)
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
