"""docs/architecture.md is about the modules that there are, and its arrow is the contract that is checked."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/architecture.md").read_text()
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]


def test_the_arrow_of_imports_is_the_contract() -> None:
    """It leaves some out, and has none where it is not."""
    arrow = re.search(r"^cli -> .*?(?=```)", TEXT, re.MULTILINE | re.DOTALL)
    assert arrow is not None
    told = [set(re.split(r"[\s|]+", each.strip())) for each in arrow[0].split("->")]
    layers = [set(layer.split(" | ")) for layer in LAYERS]
    ranks = [next(rank for rank, layer in enumerate(layers) if each <= layer) for each in told]
    assert len(told) > 25
    assert ranks == sorted(set(ranks))


def test_every_module_stands_in_the_table_and_every_name_there_is_one() -> None:
    """Of the packages some have modules of their own there; a name without a folder is in that of the name before it."""
    table = TEXT.partition("## Modules")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line.split(" | ")[0]) for line in table.splitlines()]
    top = {path.name if path.is_file() else f"{path.name}/" for path in (ROOT / "gateway").iterdir()
           if path.name != "__init__.py" and (path.suffix == ".py" or (path.is_dir() and any(path.glob("*.*"))))} - {"__pycache__/"}
    told = {name for row in rows for name in row}
    assert sorted(top - told - {f"{name.partition('/')[0]}/" for name in told if "/" in name}) == []
    for row in rows:
        folder = next((name.partition("/")[0] for name in row if "/" in name and not name.endswith("/")), "")
        assert [name for name in row if not ((ROOT / "gateway" / name).exists() or (ROOT / "gateway" / folder / name).exists())] == []
