"""The library is for use as it is: every file does what its cases say, on both engines, and says what it does not catch."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.core.lint import Reach, beside
from gateway.core.rules import match_of

LIBRARY = Path(__file__).parents[2] / "policies" / "library"
NAMES = sorted(path.name.removesuffix(".toml") for path in LIBRARY.glob("*.toml") if not path.name.endswith(".cases.toml"))

Try = Callable[[Mapping[str, str], str], Any]
Shipped = Callable[[str], dict[str, str]]


@pytest.mark.parametrize("name", NAMES)
def test_every_case_comes_out_as_it_says_and_every_rule_is_seen_both_ways(name: str, engine: str, try_out: Try, shipped: Shipped) -> None:
    """A rule that no case stops and lets through is a rule that nobody has tried."""
    tried = try_out(shipped(f"library/{name}"), engine)
    assert [str(problem) for problem in tried.result.failures] == []
    assert [result.skipped for result in tried.result.results if result.skipped] == []
    assert tried.uncovered == {}


@pytest.mark.parametrize("name", NAMES)
def test_both_engines_say_the_same_of_every_rule_and_case(name: str, try_out: Try, shipped: Shipped) -> None:
    """A deployment decides the same where the first engine has no build."""
    first, second = (try_out(shipped(f"library/{name}"), engine).said for engine in ("cel-expr-python", "cel-python"))
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_the_linter_has_nothing_to_say(name: str, try_out: Try, shipped: Shipped) -> None:
    """What people copy must not begin with warnings."""
    tried = try_out(shipped(f"library/{name}"), "cel-expr-python")
    assert {rule.id: rule.program.warnings for rule in tried.bundle.rules if rule.program is not None and rule.program.warnings} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_begins_with_what_it_does_what_to_adapt_and_what_it_does_not_catch(name: str) -> None:
    """A rule that is trusted with more than it does is worse than none."""
    head = re.match(r"(#.*\n)+", (LIBRARY / f"{name}.toml").read_text(encoding="utf-8"))
    assert head is not None
    places = [head[0].find(f"# What {part}:") for part in ("it does", "to adapt", "it does not catch")]
    assert -1 not in places
    assert places == sorted(places)


def test_all_files_can_stand_together(try_out: Try, shipped: Shipped) -> None:
    """Their ids differ, one file at most has `[defaults]`, and no rule leaves another nothing to do."""
    files = {name: text for stem in ("baseline", *(f"library/{name}" for name in NAMES))
             for name, text in shipped(stem).items() if not name.endswith(".cases.toml")}
    tried = try_out(files, "cel-expr-python")
    assert len(tried.bundle.rules) == sum(text.count("\n[[rule]]\n") for text in files.values())
    rules = tried.deployment.rules
    reaches = [Reach(rule.id, rule.phase, rule.effect, rule.mode, match_of(rule), rule.when) for rule in rules]
    assert [(rules[number].id, what) for number, what, _ in beside(reaches)] == []


def test_the_cases_of_most_files_hold_beside_each_other(try_out: Try, shipped: Shipped) -> None:
    """What is copied together need not be mended; the README names the files after which that is not so."""
    readme = (LIBRARY / "README.md").read_text(encoding="utf-8")
    changing = {"tools-by-role", "limits"}
    assert all(f"`{name}.toml`" in readme.partition("Several files")[2] for name in changing)
    files = {name: text for stem in ("baseline", *(f"library/{name}" for name in NAMES if name not in changing))
             for name, text in shipped(stem).items()}
    assert [str(problem) for problem in try_out(files, "cel-expr-python").result.failures] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_refuses_says_why(name: str, try_out: Try, shipped: Shipped) -> None:
    rules = try_out(shipped(f"library/{name}"), "cel-expr-python").deployment.rules
    assert [rule.id for rule in rules if rule.effect in ("deny", "require_approval") and rule.message is None] == []


def test_the_readme_lists_every_file() -> None:
    text = (LIBRARY / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[([\w-]+)\.toml\]\(\1\.toml\)", text, re.MULTILINE)) == NAMES
    assert {path.name for path in LIBRARY.iterdir()} == {"README.md", *(f"{name}{ending}" for name in NAMES for ending in (".toml", ".cases.toml"))}
