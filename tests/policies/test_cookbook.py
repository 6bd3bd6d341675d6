"""The cookbook's rules work as they stand: each block of rules is put to the block of cases that follows it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text(encoding="utf-8")
RECIPES = {head.partition("\n")[0]: head for head in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]}

Try = Callable[[Mapping[str, str], str], Any]


def files(recipe: str) -> dict[str, str]:
    """A recipe's blocks as files: lists first, then the rules, then the cases."""
    found = {f"lists/{name}": text for name, text in re.findall(r"^```text\n# policies/lists/(\S+)\n(.*?)^```", recipe, re.MULTILINE | re.DOTALL)}
    rules, cases = re.findall(r"^```toml\n(.*?)^```", recipe, re.MULTILINE | re.DOTALL)
    return {**found, "recipe.toml": rules, "recipe.cases.toml": cases}


def test_they_are_counted() -> None:
    assert [title.partition(".")[0] for title in RECIPES] == [str(number) for number in range(1, 23)]
    assert TEXT.count("```") == 2 * sum(len(files(recipe)) for recipe in RECIPES.values()), "a block that no test reads"


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_does_what_its_cases_say_and_they_show_every_rule_both_ways(title: str, engine: str, try_out: Try) -> None:
    tried = try_out(files(RECIPES[title]), engine)
    assert [str(problem) for problem in tried.result.failures] == []
    assert tried.uncovered == {}


@pytest.mark.parametrize("title", RECIPES)
def test_both_engines_say_the_same_and_the_linter_nothing(title: str, try_out: Try) -> None:
    first, second = (try_out(files(RECIPES[title]), engine) for engine in ("cel-expr-python", "cel-python"))
    assert first.said == second.said
    assert [rule.program.warnings for rule in first.bundle.rules if rule.program is not None and rule.program.warnings] == []
