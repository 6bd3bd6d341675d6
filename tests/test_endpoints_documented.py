"""Every endpoint stands in a page, and the README's table says of each who may use it."""

import re
from pathlib import Path

from gateway.http.openapi import DOCS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
TABLE = README.partition("## Endpoints")[2].partition("\n## ")[0]
# Each row's paths, and who may use them.
ROWS = [(re.findall(r"`(?:[A-Z]+ )?(/[^`]*)`", paths), {word.strip(" `") for word in who.split(",")})
        for paths, who in re.findall(r"^\| (`[^|]*) \| ([^|]*)\| ", TABLE, re.MULTILINE)]


def beneath(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def test_every_endpoint_stands_in_a_page() -> None:
    assert sorted({doc.path for doc in DOCS if doc.path not in PAGES}) == []


def test_the_readme_names_every_endpoint_and_none_that_there_is_not() -> None:
    places = [place for paths, _who in ROWS for place in paths]
    assert len(places) > 20
    assert [doc.path for doc in DOCS if not any(beneath(doc.path, place) for place in places)] == []
    assert [place for place in places if not any(beneath(doc.path, place) for doc in DOCS)] == []


def test_the_readme_says_who_may_use_each() -> None:
    """In the order of the permissions: to look, to change."""
    told = {place: who for paths, who in ROWS for place in paths}
    assert told["/-/people"] == {"admin"}
    for paths, who in ROWS:
        assert who == {doc.need for doc in DOCS if any(beneath(doc.path, place) for place in paths)}, paths


def test_the_readme_shows_every_picture_of_the_page_that_a_desk_sees() -> None:
    """What is made is shown; a picture of a phone is in the page's own guide."""
    made = {path.name for path in (ROOT / "docs/images").glob("*.png")}
    assert set(re.findall(r"docs/images/([\w.-]+)", README)) == {name for name in made if "phone" not in name}
    assert all(f"images/{name}" in PAGES for name in made)
