"""Adapters and detectors are found by name in the right folder, are imported once, and a broken one is explained by file and line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway import plugins
from gateway.core.decision import Redaction
from gateway.core.detectors import Detectors
from gateway.core.redaction import redact_text
from gateway.core.redaction_stream import StreamRedactor
from gateway.errors import ConfigError, Problem
from gateway.plugins import load_adapter, load_detectors, load_dialect, shipped

ADAPTER = """
class A:
    name = {name!r}
    origin = {origin!r}
    operations = frozenset({{"chat"}})
    def encode(self, call, target, api_key): ...
    def decode(self, call, body): ...
    def decode_error(self, status, headers, body): ...
    def decoder(self, call): ...
    def health(self, path, api_key): ...
ADAPTER = A()
"""


def adapter(name: str, origin: str = "") -> str:
    """The text of an adapter that says where it comes from."""
    return ADAPTER.format(name=name, origin=origin)


def origin_of(name: str, folders: list[Path]) -> str:
    loaded: Any = load_adapter(name, folders)
    return str(loaded.origin)


def problem_of(name: str, folders: list[Path]) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load_adapter(name, folders)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_the_shipped_adapter_and_dialect_load():
    assert load_adapter("openai", [shipped("adapters")]).name == "openai"
    assert load_dialect("openai", [shipped("adapters")]).endpoints


def test_the_configured_folder_goes_before_the_shipped_one(tmp_path):
    (tmp_path / "openai.py").write_text(adapter("openai", "mine"))
    assert origin_of("openai", [tmp_path, shipped("adapters")]) == "mine"


def test_a_folder_goes_before_a_file_as_in_python(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/__init__.py").write_text(adapter("x", "folder"))
    (tmp_path / "x.py").write_text(adapter("x", "file"))
    assert origin_of("x", [tmp_path]) == "folder"


def test_a_package_may_import_its_own_modules_relatively(tmp_path):
    package = tmp_path / "pack"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from . import names\nfrom .inner import deep\n" + adapter("pack", "x").replace("'x'", "names.NAME + deep.NAME"))
    (package / "names.py").write_text("NAME = 'a'\n")
    (package / "inner/__init__.py").write_text("")
    (package / "inner/deep.py").write_text("from ..names import NAME\n")
    assert origin_of("pack", [tmp_path]) == "aa"


def test_two_plugins_of_one_name_in_two_folders_do_not_meet(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "same").mkdir(parents=True)
        (tmp_path / folder / "same/names.py").write_text(f"NAME = {folder!r}\n")
        (tmp_path / folder / "same/__init__.py").write_text("from .names import NAME\n" + adapter("same", "x").replace("'x'", "NAME"))
    assert [origin_of("same", [tmp_path / folder]) for folder in ("a", "b", "a")] == ["a", "b", "a"]


def test_one_file_is_one_module_in_a_process(tmp_path):
    (tmp_path / "one.py").write_text(adapter("one"))
    assert load_adapter("one", [tmp_path]) is load_adapter("one", [tmp_path / "." / "..", tmp_path])


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "a.b", "", ".", "..", "Evil", "evil\n", "evil\x00", "1evil", "e" * 65, "évil"])
def test_a_name_is_never_a_path(tmp_path, name):
    (tmp_path / "evil.py").write_text("raise SystemError('it ran')")
    inner = tmp_path / "adapters"
    inner.mkdir()
    problem = problem_of(name, [inner])
    assert problem.file == ""
    assert problem.message == f"there is no adapter named {name!r}"


def test_a_name_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "anthropic.py").write_text("")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "Not-A-Name.py").write_text("")
    (tmp_path / "folder").mkdir()
    assert problem_of("openia", [tmp_path, tmp_path / "missing", shipped("adapters")]).hint == 'did you mean "openai"?'
    assert problem_of("zzz", [tmp_path]).hint == "there is anthropic"


@pytest.mark.parametrize(("text", "line", "expected"), [
    ("\n\nimport no_such_module\n", 3, "ModuleNotFoundError: No module named 'no_such_module'"),
    ("x = 1\n\ndef f():\n    return 1 / 0\nf()\n", 4, "ZeroDivisionError: division by zero"),
    ("x = 1\ndef (:\n", 2, "SyntaxError"),
    ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ("import json\njson.loads('x')\n", 2, "JSONDecodeError"),
    ("x = '\x00'\n", None, "null bytes"),
])
def test_an_exception_while_importing_names_the_plugins_own_file_and_line(tmp_path, text, line, expected):
    (tmp_path / "bad.py").write_text(text)
    problem = problem_of("bad", [tmp_path])
    assert (problem.file, problem.line) == (str(tmp_path / "bad.py"), line)
    assert expected in problem.message


def test_a_failing_submodule_is_the_one_that_is_named_and_nothing_is_left_behind(tmp_path):
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").write_text("from . import good, bad\n")
    (package / "good.py").write_text("")
    (package / "bad.py").write_text("\nraise ValueError('why')\n")
    before = set(sys.modules)
    problem = problem_of("broken", [tmp_path])
    assert (problem.file, problem.line) == (str(package / "bad.py"), 2)
    assert set(sys.modules) == before
    (package / "bad.py").write_text("# mended, with another length\n")
    (package / "__init__.py").write_text("from . import good, bad\n" + adapter("broken", "mended"))
    assert origin_of("broken", [tmp_path]) == "mended"


@pytest.mark.parametrize(("text", "expected"), [
    ("", "the adapter 'x' exports no ADAPTER"),
    (adapter("x").replace("A()", "A"), "ADAPTER of 'x' is a class; export an instance of it: A()"),
    (adapter("x").replace("    name = 'x'\n", ""), "ADAPTER of 'x' has no `name`"),
    (adapter("x").replace("def decoder", "def dekoder"), "ADAPTER of 'x' has no method `decoder`"),
    (adapter("x").replace("def decoder(self, call): ...", "decoder = 3"), "ADAPTER of 'x' has no method `decoder`"),
    (adapter("y"), "ADAPTER of 'x' has the `name` 'y', which is not the name of its file"),
    (adapter("x").replace('"chat"', '"chat", "talk", "Chat"'),
     "ADAPTER of 'x' has `operations` that do not exist: Chat, talk; there is chat, completions, embeddings"),
    (adapter("x").replace('frozenset({"chat"})', '"chat"'), "ADAPTER of 'x' has `operations` that are not a set"),
])
def test_what_an_adapter_lacks_is_said(tmp_path, text, expected):
    (tmp_path / "x.py").write_text(text)
    problem = problem_of("x", [tmp_path])
    assert (problem.file, problem.key, problem.message) == (str(tmp_path / "x.py"), "ADAPTER", expected)


def test_everything_that_a_dialect_lacks_is_said_at_once(tmp_path):
    (tmp_path / "x.py").write_text("class D:\n    name = 'x'\nDIALECT = D()\n")
    with pytest.raises(ConfigError) as caught:
        load_dialect("x", [tmp_path])
    lacking = {problem.message.rpartition(" ")[2] for problem in caught.value.problems}
    assert lacking == {"`endpoints`", "`stream_content_type`", "`read`", "`answer`", "`error`", "`models`", "`encoder`"}


def test_what_ships_is_found_beside_the_package_and_inside_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "gateway"
    package.mkdir()
    monkeypatch.setattr(plugins, "__file__", str(package / "plugins.py"))
    assert shipped("routes") == tmp_path / "routes"
    (package / "_shipped/routes").mkdir(parents=True)
    assert shipped("routes") == package / "_shipped/routes"


def test_everything_that_should_ship_is_there():
    assert all(shipped(kind).is_dir() for kind in ("policies", "routes", "adapters"))
    assert shipped("config.example.toml").is_file()


def test_importing_the_gateway_imports_no_adapter_and_no_command_line():
    code = ("import gateway, gateway.snapshot, sys; "
            "print([n for n in sys.modules if n.startswith(('adapters', 'lockgate_plugin', 'gateway.cli', 'click'))])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


DETECTOR = """
class D:
    name = "badge"
    longest = 8
    def find(self, text, start=0):
        at = text.find("B-", start)
        return iter([(at, at + 8)] if at >= 0 else [])
DETECTORS = (D(),)
"""


def test_detectors_of_a_plugin_are_found_and_can_be_named(tmp_path):
    (tmp_path / "badges.py").write_text(DETECTOR)
    loaded = load_detectors("badges", [tmp_path, shipped("adapters")])
    assert [list(detector.find("see B-123456")) for detector in Detectors(loaded).named("badge")] == [[(4, 12)]]


def test_one_plugin_may_export_an_adapter_and_detectors(tmp_path):
    (tmp_path / "both.py").write_text(adapter("both") + DETECTOR)
    assert load_adapter("both", [tmp_path]).name == "both"
    assert [each.name for each in load_detectors("both", [tmp_path])] == ["badge"]


@pytest.mark.parametrize(("text", "expected"), [
    ("", ["the plugin 'x' exports no DETECTORS, a tuple of detectors"]), ("DETECTORS = ()", ["the plugin 'x' exports no DETECTORS, a tuple of detectors"]),
    (DETECTOR.replace("(D(),)", "[D()]"), ["the plugin 'x' exports no DETECTORS, a tuple of detectors"]),
    (DETECTOR.replace("D(),", "D(), D,"), ["DETECTORS[1] is a class; export an instance of it: D()"]),
    (DETECTOR.replace('"badge"', "3"), ["DETECTORS[0] has no `name` of small letters, digits and `_`"]),
    (DETECTOR.replace('"badge"', '"a badge"'), ["DETECTORS[0] has no `name` of small letters, digits and `_`"]),
    (DETECTOR.replace("longest = 8", "longest = 0"), ["DETECTORS[0] has no `longest`: how many characters a finding can have at most, or None where there is no end"]),
    (DETECTOR.replace("longest = 8", "longest = True"), ["DETECTORS[0] has no `longest`: how many characters a finding can have at most, or None where there is no end"]),
    (DETECTOR.replace(", start=0", ""), ["DETECTORS[0] has no method `find(text, start=0)`"]),
    (DETECTOR.replace("def find", "def search"), ["DETECTORS[0] has no method `find(text, start=0)`"]),
    ("DETECTORS = (3,)", ["DETECTORS[0] has no `name` of small letters, digits and `_`",
                          "DETECTORS[0] has no `longest`: how many characters a finding can have at most, or None where there is no end",
                          "DETECTORS[0] has no method `find(text, start=0)`"]),
])
def test_everything_that_a_detector_lacks_is_said_at_once(tmp_path, text, expected):
    (tmp_path / "x.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_detectors("x", [tmp_path])
    assert [problem.message for problem in caught.value.problems] == expected
    assert {(problem.file, problem.key) for problem in caught.value.problems} == {(str(tmp_path / "x.py"), "DETECTORS")}


def test_a_detector_may_have_no_end(tmp_path):
    (tmp_path / "x.py").write_text(DETECTOR.replace("longest = 8", "longest = None"))
    assert load_detectors("x", [tmp_path])[0].longest is None


def test_a_plugin_of_detectors_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "badges.py").write_text(DETECTOR)
    with pytest.raises(ConfigError) as caught:
        load_detectors("badge", [tmp_path])
    assert (caught.value.problems[0].message, caught.value.problems[0].hint) == ("there is no plugin named 'badge'", 'did you mean "badges"?')


def test_the_detector_of_the_documentation_works(tmp_path):
    text = (Path(__file__).parents[1] / "docs/detectors.md").read_text()
    (tmp_path / "staff.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    redaction = [Redaction("r", load_detectors("staff", [tmp_path]))]
    assert redact_text("E-123455, E-123457, XE-123455", redaction) == "[redacted:staff_number], E-123457, XE-123455"
    stream = StreamRedactor(redaction)
    assert "".join([*map(stream.feed, "E-123455, E-123457"), stream.end()]) == "[redacted:staff_number], E-123457"
