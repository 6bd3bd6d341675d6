"""The page's files, looked at as texts: what they must never do, and that all of them are served."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gateway.cli import cli
from gateway.http.page import FILES, POLICY

FOLDER = Path(__file__).parents[1] / "gateway/page"
OURS = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.parent == FOLDER)
# Where text could become markup or code. Trusted types refuse the same in a browser that knows them.
SINKS = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\(|new Function"
                   r"|setHTML|javascript:|\.cssText|style=")


def name_of(path):
    return path.relative_to(FOLDER).as_posix()


def test_what_is_served_is_what_is_there():
    assert {name_of(path) for path in FOLDER.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_nothing_makes_markup_or_code_of_a_text(path):
    assert SINKS.findall(path.read_text()) == []


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_nothing_is_asked_of_another_origin(path):
    """Names of XML's own vocabularies are no addresses."""
    addresses = re.findall(r"https?://[^\s\"'`)]+", path.read_text())
    assert [each for each in addresses if not each.startswith("http://www.w3.org/")] == []


@pytest.mark.parametrize("path", [path for path in OURS if path.suffix == ".js"], ids=name_of)
def test_a_module_can_be_read_at_a_sitting_and_says_what_it_is(path):
    text = path.read_text()
    assert text.startswith("/** ")
    assert text.count("\n") <= 400


def test_the_document_has_no_inline_script_or_style():
    text = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text) == []


@pytest.mark.parametrize("directive", [
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'self'", "base-uri 'none'",
    "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"])
def test_the_policy_is_strict(directive):
    assert directive in POLICY.split("; ")
    assert "unsafe" not in POLICY
    assert "*" not in POLICY


def test_every_word_of_a_permission_is_one_that_there_is():
    """A button that asks for a permission nobody has would be shown to nobody."""
    asked = {name for path in OURS for name in re.findall(r"\bcan\(\"(\w+)\"\)|need: \"(\w+)\"", path.read_text()) for name in name if name}
    assert asked <= {"view", "approve", "operate", "admin"}


def test_the_guide_names_every_view_every_key_and_pictures_that_there_are():
    guide = (FOLDER.parents[1] / "docs/page.md").read_text()
    views = re.findall(r'label: "(\w+)", show', (FOLDER / "main.js").read_text())
    assert len(views) == 9
    assert [view for view in views if f"| {view} |" not in guide] == []
    known = (FOLDER / "shortcuts.js").read_text().partition("KNOWN = [")[2].partition("];")[0]
    keys = {key for row in re.findall(r'\["([^"]+)",', known) for key in re.split(r" [/\u2013] ", row)}
    assert len(keys) > 10
    assert [key for key in keys if f"`{key}`" not in guide] == []
    pictures = re.findall(r"\]\((images/[^)]+)\)", guide)
    assert len(pictures) == 2
    assert [picture for picture in pictures if not (FOLDER.parents[1] / "docs" / picture).is_file()] == []


@pytest.mark.parametrize("line", sorted({line for path in OURS for line in re.findall(r"[\"`'](lockgate [^\"`']+)", path.read_text())}))
def test_every_command_that_the_page_teaches_is_one_that_there_is(line):
    """With its options and what they are set to; a command that is only named may lack what it needs."""
    command: click.Command | None = cli
    given, name = shlex.split(line)[1:], None
    while isinstance(command, click.Group):
        name, command, given = command.resolve_command(click.Context(command), given)
    assert command is not None
    command.make_context(name, given, resilient_parsing=not any(each.startswith("-") for each in given))
