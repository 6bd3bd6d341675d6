"""House rules that no linter knows, each with its reason. A rule that is in the way is changed here, in the open."""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
FOLDERS = (".ci", "adapters", "benchmarks", "deploy", "docs", "gateway", "policies", "routes", "tests")

# What may catch everything, and why. Anywhere else a defect would be taken for a circumstance.
BOUNDARIES: Mapping[str, str] = {
    "gateway/http/server.py": "the HTTP boundary: a caller gets an answer whatever happens",
    "gateway/background.py": "the background boundary: one failed round does not end the task",
    "gateway/cli/__init__.py": "the command line's boundary: people get a sentence",
    "gateway/core/expressions.py": "a decision is total: whatever an expression engine raises is an outcome, and that is deny",
}

PROVIDERS = re.compile(
    r"openai|anthropic|claude|azure|bedrock|vertex|gemini|mistral|cohere|groq|deepseek|ollama|openrouter|perplexity|together\.ai", re.IGNORECASE)
# Where the engine may name a provider, and why.
NAMED: Mapping[str, str] = {
    "gateway/config.py": "the default dialect, and examples in descriptions",
    "gateway/rule_config.py": "the default dialect, in a description",
    "gateway/core/facts.py": "an example in the reference of what rules may read",
    "gateway/wire/protocol.py": "says whose format the canonical one is",
    "gateway/embed.py": "an example of how a host uses it",
    "gateway/cli/demo.py": "the demo talks through the official client",
    "gateway/cli/simulate.py": "says what the simulator speaks",
    "gateway/simulator/": "is a provider, for tests and the demo",
}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def texts() -> Iterator[tuple[str, str]]:
    """Every file of the project with its text, this one excepted: it names what it forbids. A picture's bytes are no words."""
    paths = [path for path in REPOSITORY.iterdir() if path.is_file() and not path.name.startswith(".coverage")]
    paths += [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in sorted(paths):
        if "__pycache__" not in path.parts and path.suffix != ".png" and path != Path(__file__):
            yield name_of(path), path.read_text(encoding="utf-8", errors="replace")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", modules("gateway", "adapters"), ids=name_of)
def test_a_module_and_its_functions_can_be_read_at_a_sitting(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    long = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(ast.parse(text))}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether it catches every error and does not pass it on: cleaning up and raising again is no boundary."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in caught)
    return broad and not any(isinstance(statement, ast.Raise) for statement in handler.body)


def test_only_the_boundaries_catch_everything():
    broad = {name_of(path) for path in modules("gateway", "adapters")
             for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler) and catches_everything(node)}
    assert broad == set(BOUNDARIES)


def test_the_engine_knows_no_provider_by_name():
    """A comparison with a provider's name is where a gateway begins to grow one branch for each."""
    naming = {name for name, text in texts() if name.startswith("gateway/") and PROVIDERS.search(text)}
    allowed = {name: next((place for place in NAMED if name.startswith(place)), None) for name in naming}
    assert [name for name, place in allowed.items() if place is None] == []
    assert set(allowed.values()) == set(NAMED), "an exception that nothing needs any more"


def test_two_modules_know_the_expression_engines():
    """They are imported by name, so the import contract does not see it."""
    knowing = {name for name, text in texts() if name.startswith(("gateway/", "adapters/")) and re.search(r"celpy|cel_expr_python", text)}
    assert knowing == {"gateway/core/cel_cpp.py", "gateway/core/cel_python.py"}


@pytest.mark.parametrize(("reason", "pattern"), [
    ("work is done or is an issue, not a comment", r"\b(TODO|FIXME|XXX|HACK)\b"),
    ("a path of somebody's machine means nothing on another", r"(?<![\w.$}])/(tmp|home|root|Users|work)/"),
    ("where packages come from is the machine's business", r"pypi\.org|pythonhosted\.org|registry\.npmjs|--(extra-)?index-url|--find-links"),
    ("a conflict is settled before it is committed", r"^(<{7} |={7}$|>{7} )"),
])
def test_no_file_says_what_none_should(reason, pattern):
    found = [f"{name}: {match[0]}" for name, text in texts() for match in re.finditer(pattern, text, re.MULTILINE)]
    assert found == [], reason


def test_no_file_outside_the_tests_holds_anything_like_a_credential():
    credential = r"sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|gh[ps]_\w{36}|xox[bp]-\w+|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    assert [name for name, text in texts() if not name.startswith("tests/") and re.search(credential, text)] == []


LOCKS = {"requirements.txt": ("otlp",), "requirements-demo.txt": ("otlp", "demo"), "requirements-dev.txt": ("otlp", "demo")}


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_its_hashes(name):
    """What was looked at is what is installed, also after somebody has published under the same version."""
    text = (REPOSITORY / name).read_text()
    entries = re.findall(r"^[^\s#].*?(?=^[^\s]|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[\w.]+( ; [^\n]+?)? \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_the_lock_fits_what_the_project_asks_for(name, extras):
    """After a change of pyproject.toml, `make lock` makes it fit again."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", (REPOSITORY / name).read_text(), re.MULTILINE))
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = declared["project"]["dependencies"] + declared["build-system"]["requires"]
    wanted += [line for extra in extras for line in declared["project"]["optional-dependencies"][extra]]
    if name == "requirements-dev.txt":
        wanted += [line for line in (REPOSITORY / "requirements-dev.in").read_text().splitlines() if line[:1].isalpha()]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[requirement.name]), f"{name}: {requirement}"
