"""The guide to budgets can be followed: its files and commands do what it says, its blocks are valid, and what it says of names is so."""

import asyncio
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result

from gateway import Gateway
from gateway.budgets import budget_of
from gateway.cli import cli
from gateway.config import BudgetConfig, Config, RoutesFile
from gateway.core.accounts import SCOPES
from gateway.core.rules import compile_bundle
from gateway.errors import CODES
from gateway.http.money import MoneyDesk
from gateway.rule_config import PolicyFile
from gateway.simulator import Simulator
from gateway.store.ledger_rows import COST_GROUPS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
TEN_MINUTES = TEXT.partition("## In ten minutes")[2].partition("\n## ")[0]
BLOCKS = [re.sub(r"^  ", "", block, flags=re.MULTILINE) if indent else block
          for indent, block in re.findall(r"^( *)```toml\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)]


def blocks(of: str) -> list[str]:
    """The blocks that belong into a file of this kind, as their first line says."""
    return [block for block in BLOCKS if re.match(rf"# {of}", block)]


def section(title: str) -> str:
    return re.split(r"\n##+ ", TEXT.partition(f"# {title}\n")[2])[0]


def first_cells(text: str) -> list[str]:
    """The code in the first cell of each row of a table."""
    return [name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def command(start: str) -> list[str]:
    """The arguments of a command of the guide, by how it begins."""
    found = re.search(rf"^lockgate ({re.escape(start)}.*)$", TEN_MINUTES, re.MULTILINE)
    assert found is not None, start
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', found[1])]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide's first two steps make, with its own commands and its block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCKGATE_CONFIG", raising=False)
    assert "\nlockgate init my-gateway\ncd my-gateway\n" in TEN_MINUTES
    assert run("init", "my-gateway").exit_code == 0
    monkeypatch.chdir(tmp_path / "my-gateway")
    (block,) = re.findall(r"^```toml\n# config.toml\n(.*?)^```", TEN_MINUTES, re.MULTILINE | re.DOTALL)
    config = tmp_path / "my-gateway" / "config.toml"
    config.write_text(config.read_text() + block)
    return tmp_path / "my-gateway"


@pytest.mark.usefixtures("deployment")
def test_the_budget_of_the_guide_is_checked_and_its_price_is_known() -> None:
    """Step 3."""
    for asked in ("check", "prices show"):
        done = run(*command(asked))
        assert done.exit_code == 0, done.output
    assert "simulator/sim-model" in done.output


async def ask(client: aiohttp.ClientSession) -> tuple[aiohttp.ClientResponse, Any]:
    """Step 4's `curl`."""
    body = re.search(r"-d '(.*?)'$", TEN_MINUTES, re.MULTILINE)
    assert body is not None
    async with client.post("/v1/chat/completions", json=json.loads(body[1])) as answer:
        return answer, await answer.json()


async def test_the_budget_runs_out_as_the_guide_says_and_is_raised(deployment: Path) -> None:
    """Steps 4 to 7. The provider's port is the system's choice."""
    made = await asyncio.to_thread(run, *command("keys create"), "--json")  # commands have a loop of their own
    headers = {"Authorization": f"Bearer {json.loads(made.output)['key']}"}
    config = deployment / "config.toml"
    async with Simulator(port=0) as provider:
        config.write_text(config.read_text().replace("http://127.0.0.1:9090/v1", provider.url))
        async with Gateway(config, port=0) as gateway, aiohttp.ClientSession(gateway.url, headers=headers) as client:
            first, _ = await ask(client)
            for header in ("X-Lockgate-Cost-Usd", "X-Lockgate-Budget-Remaining-Usd"):
                assert f"{header}: {first.headers[header]}" in TEN_MINUTES
            assert not {"X-Lockgate-Budget-Warning", "X-Lockgate-Max-Tokens"} & first.headers.keys()
            second, _ = await ask(client)
            assert f"X-Lockgate-Budget-Warning: {second.headers['X-Lockgate-Budget-Warning']}" in TEN_MINUTES
            third, said = await ask(client)
            assert said["choices"][0]["finish_reason"] == "length"
            assert 0 < int(third.headers["X-Lockgate-Max-Tokens"]) == said["usage"]["completion_tokens"] < 400
            fourth, refused = await ask(client)
            assert (fourth.status, fourth.headers["X-Should-Retry"]) == (429, "false")
            shown = re.search(r"^```json\n(.*?)^```", TEN_MINUTES, re.MULTILINE | re.DOTALL)
            assert shown is not None
            for name, value in json.loads(shown[1])["error"].items():
                told = refused["error"].get(name, "missing")
                assert told == value or name == "resets_at" or str(told).startswith(str(value).partition("…")[0]), (name, told, value)
            for asked, expected in (("budgets show", "team-day"), ("budgets costs", "search"), ("budgets raise", ""), ("budgets history", "demo on Friday")):
                done = await asyncio.to_thread(run, *command(asked))
                assert done.exit_code == 0, done.output
                assert expected in done.output
            fifth, _ = await ask(client)
            assert fifth.status == 200


@pytest.mark.parametrize("block", blocks("config.toml"))
def test_a_block_of_configuration_is_valid(block: str) -> None:
    config = Config.model_validate(tomllib.loads(block))
    assert [budget_of(name, given).name for name, given in config.budgets.items()] == list(config.budgets)


@pytest.mark.parametrize("block", blocks("policies/"))
@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_a_block_of_rules_compiles_without_a_warning(block: str, engine: str) -> None:
    bundle = compile_bundle(PolicyFile.model_validate(tomllib.loads(block)).rule, engine)
    assert [rule.program.warnings for rule in bundle.rules if rule.program is not None and rule.program.warnings] == []


@pytest.mark.parametrize("block", blocks("routes/"))
def test_a_block_of_routes_has_their_shape(block: str) -> None:
    assert RoutesFile.model_validate(tomllib.loads(block)).tool


def test_every_block_says_into_which_file_it_goes() -> None:
    assert len(BLOCKS) == len(blocks(r"(config\.toml|policies/\S+\.toml|routes/\S+\.toml)$".replace("$", r"\n")))


def test_the_tables_name_every_scope_setting_window_and_code_that_there_is() -> None:
    scopes, _, settings = section("Budgets and accounts").partition("| setting |")
    assert first_cells(scopes) == list(SCOPES)
    assert first_cells(settings) == list(BudgetConfig.model_fields)
    for line in section("When money is short").splitlines():
        if line.startswith("| `") and not line.startswith("| `X-"):
            code, told = re.match(r"\| `(\w+)` \|.*?(\d{3})\D", line).groups()  # type: ignore[union-attr]
            assert CODES[code].status == int(told)
    assert {code for code in CODES if "budget" in code or "price" in code} == {
        name for name in first_cells(section("When money is short")) if not name.startswith("X-")}


def test_the_page_names_every_group_of_costs() -> None:
    listed = re.search(r"^Costs can be grouped by (.*?);", section("For operators"), re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"`(\w+)`", listed[1])) == sorted(COST_GROUPS)


async def test_the_table_of_endpoints_is_what_answers(tmp_path: Path) -> None:
    listed = re.findall(r"^\| `([A-Z]+) (/-/[^`?]*)` \|", section("For operators"), re.MULTILINE)
    for folder in ("routes", "policies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config.toml").write_text('[auth]\nrequired = false\n[store]\npath = ":memory:"\n')
    async with Gateway(tmp_path / "config.toml", port=0) as gateway:
        desk = MoneyDesk(gateway.running.proxy, gateway.running.control)
        assert sorted(listed) == sorted(desk.endpoints)


def test_the_commands_of_the_page_are_there_with_their_options() -> None:
    """By their help: what each does is the business of its own tests."""
    rows = [line.split(" | ")[0] for line in section("For operators").splitlines() if line.startswith("| `lockgate")]
    written = [text for row in rows for text in re.findall(r"`lockgate ([^`]+)`", row)]
    assert len(written) > 8
    for text in written:
        words = text.split()
        told = run(*words[:2], "--help")
        assert told.exit_code == 0, text
        for option in re.findall(r"--[a-z-]+", text):
            assert option in told.output, (text, option)


@pytest.mark.parametrize("name", ["docs/budgets.md", "docs/errors.md", "docs/architecture.md", "README.md"])
def test_what_is_linked_is_there(name: str) -> None:
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if linked.suffix == ".md" else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
