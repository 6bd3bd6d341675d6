"""The guide can be followed: its files and commands do what it says, its blocks are valid, and what it says of names is so."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import aiohttp
import pytest
from click.testing import CliRunner, Result

from gateway import Gateway
from gateway.case_config import CasesFile
from gateway.cli import cli
from gateway.core.decision import PHASES
from gateway.core.detectors import Detectors
from gateway.core.facts import variables_table
from gateway.core.functions import functions_table
from gateway.core.rules import compile_bundle
from gateway.errors import CODES, ConfigError
from gateway.rule_config import PHASES_OF, MatchConfig, PolicyFile, RuleConfig
from gateway.simulator import Simulator

TEXT = (Path(__file__).parents[1] / "docs" / "policy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RULES = [block for block in BLOCKS if "[[case]]" not in block]
CASES = [block for block in BLOCKS if "[[case]]" in block]
TEN_MINUTES = TEXT.partition("## In ten minutes")[2].partition("\n## ")[0]


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")][1:]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide's first three steps make, with its own commands and blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCKGATE_CONFIG", raising=False)
    assert "\nlockgate init my-gateway\ncd my-gateway\n" in TEN_MINUTES
    assert run("init", "my-gateway").exit_code == 0
    monkeypatch.chdir(tmp_path / "my-gateway")
    for path, text in re.findall(r"^```toml\n# (policies/\S+)\n(.*?)^```", TEN_MINUTES, re.MULTILINE | re.DOTALL):
        Path(path).write_text(text)
    return tmp_path / "my-gateway"


@pytest.fixture
def key(deployment: Path) -> str:
    """Step 5's key for an intern."""
    create = re.search(r"^lockgate (keys create .*)$", TEN_MINUTES, re.MULTILINE)
    assert create is not None
    made = run(*create[1].split(), "--config", str(deployment / "config.toml"), "--json")
    return str(json.loads(made.output)["key"])


def test_ten_minutes_end_in_a_rule_that_is_tested_and_checked(deployment: Path) -> None:
    """Step 4. The shipped rules' own cases run beside those of the new rule."""
    assert {path.name for path in (deployment / "policies").glob("house*")} == {"house.toml", "house.cases.toml"}
    tested = run("policy", "test", "--verbose")
    assert tested.exit_code == 0, tested.output
    assert "interns may not use large models" in tested.output
    assert run("policy", "test", "policies/house.cases.toml").exit_code == 0
    checked = run("check")
    assert checked.exit_code == 0, checked.output
    assert "not read" not in checked.output + checked.stderr


def test_a_misspelt_name_is_shown_with_its_place_and_what_was_meant(deployment: Path) -> None:
    """The sentence under step 4."""
    rules = deployment / "policies" / "house.toml"
    rules.write_text(rules.read_text().replace("!route", "!rout"))
    with pytest.raises(ConfigError) as raised:
        CliRunner().invoke(cli, ["policy", "test"], catch_exceptions=False)
    said = str(raised.value)
    assert "policies/house.toml:4" in said
    assert "did you mean 'route'?" in said
    assert re.search(r"\n \| \.*\^", said)


def change_the_rule(deployment: Path) -> None:
    """Step 7."""
    changed = re.search(r"as `(when = '[^`]+')`", TEN_MINUTES)
    assert changed is not None
    rules = deployment / "policies" / "house.toml"
    rules.write_text(re.sub(r"^when = .*$", lambda _: changed[1], rules.read_text(), flags=re.MULTILINE))


async def test_the_intern_is_refused_is_told_why_and_has_an_answer_after_the_change(deployment: Path, key: str) -> None:
    """Steps 5 to 7, with the body and the commands of the guide. The provider's port is the system's choice."""
    body = re.search(r"-d '(.*?)'$", TEN_MINUTES, re.MULTILINE)
    assert body is not None
    config = deployment / "config.toml"
    async with Simulator(port=0) as provider:
        config.write_text(re.sub(r"http://127\.0\.0\.1:9090/v1", provider.url, config.read_text()))
        async with (Gateway(config, port=0) as gateway,
                    aiohttp.ClientSession(gateway.url, headers={"Authorization": f"Bearer {key}"}) as client):
            async with client.post("/v1/chat/completions", json=json.loads(body[1])) as answer:
                refused = await answer.text()
                assert (answer.status, answer.headers["X-Lockgate-Rule"]) == (403, "interns-use-small-models")
                assert "Interns use the small models." in refused
                assert "Choose a model whose name starts with small-." in refused
                call = answer.headers["X-Lockgate-Call"]
            explained = run("policy", "explain", call)
            assert explained.exit_code == 0, explained.output
            assert "what would have to change" in explained.output
            change_the_rule(deployment)
            await gateway.reload()
            async with client.post("/v1/chat/completions", json=json.loads(body[1])) as answer:
                assert answer.status == 200
            (deployment / "policies" / "house.toml").write_text("[[rule]]\n")
            with pytest.raises(ConfigError, match=r"house\.toml"):
                await gateway.reload()
            async with client.post("/v1/chat/completions", json=json.loads(body[1])) as answer:
                assert answer.status == 200, "the last good rules are in force"
            async with client.get("/readyz") as answer:
                assert "stale" in await answer.text()


def test_the_change_of_step_seven_makes_the_cases_of_before_still_pass(deployment: Path) -> None:
    """Else the reload that the step promises would not take place."""
    change_the_rule(deployment)
    assert run("policy", "test").exit_code == 0


@pytest.mark.parametrize("block", RULES)
@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_a_block_of_rules_compiles_without_a_warning(block: str, engine: str) -> None:
    file = PolicyFile.model_validate(tomllib.loads(block))
    bundle = compile_bundle(file.rule, engine)
    assert [rule.program.warnings for rule in bundle.rules if rule.program is not None and rule.program.warnings] == []


@pytest.mark.parametrize("block", CASES)
def test_a_block_of_cases_has_the_shape_of_cases(block: str) -> None:
    assert CasesFile.model_validate(tomllib.loads(block)).case


def test_the_tables_name_every_key_effect_phase_and_match_key() -> None:
    def codes(text: str) -> set[str]:
        return {name for row in rows(text) for name in re.findall(r"`(\w+)`", row[0])}

    assert codes(section("A rule")) == {name for name, field in RuleConfig.model_fields.items() if not field.exclude}
    assert codes(section("Phases")) == set(PHASES)
    assert codes(section("Match")) == set(MatchConfig.model_fields)
    effects = {row[0].strip("`"): row[1] for row in rows(section("Effects").partition("\n### ")[0])}
    assert effects == {effect: " ".join(f"`{phase}`," for phase in PHASES_OF[effect]).rstrip(",") if effect in PHASES_OF else "all" for effect in effects}
    assert set(effects) == set(get_args(RuleConfig.model_fields["effect"].annotation))


def test_the_tables_name_every_detector_and_codes_that_there_are() -> None:
    listed = [name for row in rows(section("Effects").partition("### `redact`")[2].partition("###")[0]) for cell in row for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(Detectors().names)
    errors = {row[0].strip("`"): int(row[1]) for row in rows(section("Errors")) if row[1].isdigit()}
    assert errors == {code: CODES[code].status for code in errors}
    assert len(errors) == 6


def test_the_tables_of_variables_and_functions_are_those_of_the_schema() -> None:
    assert variables_table() in TEXT
    assert functions_table() in TEXT


@pytest.mark.parametrize("name", ["docs/policy.md", "docs/cookbook.md", "policies/library/README.md"])
def test_what_is_linked_is_there(name: str) -> None:
    page = Path(__file__).parents[1] / name
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.is_file(), target
        heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
