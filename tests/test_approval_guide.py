"""The guide to approvals can be followed: its files and commands do what it says, its blocks are valid, and what it says of names is so."""

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
from gateway.case_config import CasesFile
from gateway.cli import cli
from gateway.config import Config, RoutesFile
from gateway.core.approval import State, diagram
from gateway.core.rules import compile_bundle
from gateway.errors import CODES
from gateway.people_config import ApprovalsConfig
from gateway.rule_config import ApprovalConfig, PolicyFile
from gateway.simulator import Simulator
from gateway.units import show_duration

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "approvals.md").read_text(encoding="utf-8")
TEN_MINUTES = TEXT.partition("## In ten minutes")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PASSWORD = "a password of nine words would be better still"
SOON_S = 20


def blocks(of: str) -> list[str]:
    """The blocks that belong into a file of this kind, as their first line says."""
    return [block for block in BLOCKS if re.match(rf"# {of}", block)]


def section(title: str) -> str:
    return re.split(r"\n##+ ", TEXT.partition(f"# {title}\n")[2])[0]


def first_cells(text: str) -> list[str]:
    """The code in the first cell of each row of a table."""
    return [name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=given)


def commands(start: str) -> list[list[str]]:
    """The arguments of the commands of the guide that begin so, in their order; what they are told to write to a file is left out."""
    found = re.findall(rf"^lockgate ({re.escape(start)}[^>\n]*)", TEN_MINUTES, re.MULTILINE)
    assert found, start
    return [text.split() for text in found]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide's first four steps make, with its own commands and blocks."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "URL", "TOKEN"):
        monkeypatch.delenv(f"LOCKGATE_{name}", raising=False)
    assert "\nlockgate init my-gateway\ncd my-gateway\n" in TEN_MINUTES
    assert run("init", "my-gateway").exit_code == 0
    monkeypatch.chdir(tmp_path / "my-gateway")
    for path, text in re.findall(r"^```toml\n# ((?:routes|policies)/\S+)\n(.*?)^```", TEN_MINUTES, re.MULTILINE | re.DOTALL):
        Path(path).write_text(text)
    for arguments in commands("people create"):
        made = run(*arguments, given=f"{PASSWORD}\n{PASSWORD}\n")
        assert made.exit_code == 0, made.output
    for name in ("ada", "grace"):
        assert f"lockgate people token {name} > secrets/{name}.token\n" in TEN_MINUTES
        made = run("people", "token", name)
        assert made.exit_code == 0, made.output
        Path(f"secrets/{name}.token").write_text(made.stdout)
    return tmp_path / "my-gateway"


@pytest.mark.usefixtures("deployment")
def test_the_rules_of_the_guide_are_checked_and_their_cases_pass() -> None:
    """The end of step 3."""
    for (asked,) in (commands("check"), commands("policy test")):
        done = run(*asked)
        assert done.exit_code == 0, done.output
        assert "warning" not in done.output
    assert "a large one waits for people" in run("policy", "test", "--verbose").output


class Payer:
    """Step 5's `curl`, and step 6's people."""

    def __init__(self, gateway: Gateway, key: str, session: aiohttp.ClientSession) -> None:
        self.gateway, self.key, self.session = gateway, key, session

    async def pay(self, amount: int) -> tuple[int, Any]:
        body = re.search(r"-d '(.*?)'$", TEN_MINUTES, re.MULTILINE)
        path = re.search(r"http://127\.0\.0\.1:8080(/tools/\S+)", TEN_MINUTES)
        assert body is not None
        assert path is not None
        given = json.loads(body[1]) | {"amount": amount}
        async with asyncio.timeout(SOON_S), self.session.post(
                f"{self.gateway.url}{path[1]}", json=given, headers={"Authorization": f"Bearer {self.key}"}) as answer:
            return answer.status, answer.headers

    async def command(self, arguments: list[str], ticket: str = "", code: int = 0) -> str:
        """One command of the guide beside the running gateway."""
        given = [ticket if each == "apr_..." else each for each in arguments]
        done = await asyncio.to_thread(run, *given)
        assert done.exit_code == code, (given, done.output, done.exception)
        return done.output if code == 0 else str(done.exception)

    async def waiting(self) -> str:
        """The id of what waits, once something does."""
        async with asyncio.timeout(SOON_S):
            while True:
                rows = json.loads(await self.command([*commands("approvals list")[0], "--json"]))
                if rows:
                    return str(rows[0]["id"])


@pytest.fixture
def provider_url(deployment: Path) -> Any:
    """Have the files of the deployment point at a provider, whose port is the system's choice."""

    def point(url: str) -> None:
        for path in (deployment / "config.toml", *(deployment / "routes").glob("*.toml")):
            path.write_text(path.read_text().replace("http://127.0.0.1:9090", url))

    return point


async def test_a_large_payment_waits_for_two_people_as_the_guide_says(
    deployment: Path, provider_url: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps 5 to 8."""
    made = await asyncio.to_thread(run, *commands("keys create")[0], "--json")
    approve = commands("approvals approve")
    async with Simulator(port=0) as bank:
        provider_url(bank.root)
        async with Gateway(deployment / "config.toml", port=0) as gateway, aiohttp.ClientSession() as session:
            monkeypatch.setenv("LOCKGATE_URL", gateway.url)
            payer = Payer(gateway, json.loads(made.output)["key"], session)
            assert (await payer.pay(250))[0] == 200
            paying = asyncio.create_task(payer.pay(2500))
            ticket = await payer.waiting()
            assert len(bank.requests) == 1
            assert '"amount":2500' in await payer.command(approve[0], ticket)
            assert "You have voted." in await payer.command(approve[1], ticket, code=1)
            assert not paying.done()
            assert f"{ticket} is" in await payer.command(approve[2], ticket)
            status, headers = await paying
            assert f"status {status}, `X-Lockgate-Decision: {headers['X-Lockgate-Decision']}`" in TEN_MINUTES
            assert headers["X-Lockgate-Approval"] == ticket
            assert [entry.body["amount"] for entry in bank.requests] == [250, 2500]
            for asked in (commands("approvals list --state all")[0], commands("approvals show")[0], commands("calls tail")[0], commands("doctor")[0]):
                said = await payer.command(asked, ticket)
                assert asked[0] in ("calls", "doctor") or "large-payments" in said
            hung_up = asyncio.create_task(payer.pay(2500))
            second = await payer.waiting()
            assert second != ticket
            hung_up.cancel()
            await payer.command(approve[0], second)
            await payer.command(approve[2], second)
            status, headers = await payer.pay(2500)
            assert (status, headers["X-Lockgate-Approval"], len(bank.requests)) == (200, second, 3)
            third = asyncio.create_task(payer.pay(2500))
            assert await payer.waiting() not in (ticket, second)
            third.cancel()


@pytest.mark.parametrize("block", blocks("policies/"))
@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_a_block_of_rules_compiles_without_a_warning(block: str, engine: str) -> None:
    if "[[case]]" in block:
        assert CasesFile.model_validate(tomllib.loads(block)).case
        return
    bundle = compile_bundle(PolicyFile.model_validate(tomllib.loads(block)).rule, engine)
    assert [rule.program.warnings for rule in bundle.rules if rule.program is not None and rule.program.warnings] == []


@pytest.mark.parametrize("block", blocks("routes/"))
def test_a_block_of_routes_has_their_shape(block: str) -> None:
    assert RoutesFile.model_validate(tomllib.loads(block)).tool


@pytest.mark.parametrize("block", blocks("config.toml"))
def test_a_block_of_configuration_says_what_is_the_default_anyway(block: str) -> None:
    given = tomllib.loads(block)["approvals"]
    assert list(given) == list(ApprovalsConfig.model_fields)
    usual = ApprovalsConfig().model_dump()
    assert Config.model_validate({"approvals": given}).approvals.model_dump() == usual, {
        name: show_duration(value) for name, value in usual.items() if isinstance(value, float)}


def test_every_block_says_into_which_file_it_goes() -> None:
    assert len(BLOCKS) == len(blocks(r"(config\.toml|policies/\S+\.toml|routes/\S+\.toml)\n"))


def test_the_diagram_is_the_table_of_the_code() -> None:
    assert diagram() in TEXT
    assert first_cells(section("The life of one")) == list(State)


@pytest.mark.parametrize("model", [ApprovalsConfig, ApprovalConfig])
def test_the_tables_of_settings_are_those_of_the_code(model: Any) -> None:
    rows = "\n".join(f"| `{name}` | {field.description} |" for name, field in model.model_fields.items())
    assert rows in TEXT


def test_the_tables_name_what_there_is() -> None:
    held = first_cells(section("What can be held"))
    assert {"request", "tool_call", "response", "tool_result"} == set(held)
    assert first_cells(section("Release and execute")) == ["release", "execute"]
    assert first_cells(section("Exactly once, and where it ends")) == ["effect", "read", "idempotent", "at_most_once"]
    for code in re.findall(r"`(approval_\w+)`", TEXT):
        assert code in CODES


def test_the_commands_of_the_page_are_there_with_their_options() -> None:
    """By their help: what each does is the business of its own tests."""
    rows = [line.split(" | ")[0] for line in section("Operating the queue").splitlines() if line.startswith("| `lockgate")]
    written = [text for row in rows for text in re.findall(r"`lockgate ([^`]+)`", row)]
    assert len(written) > 7
    for text in [*written, "approvals list --rule --tool --team --token-file --url"]:
        told = run(*text.split()[:2], "--help")
        assert told.exit_code == 0, text
        for option in re.findall(r"--[a-z-]+", text):
            assert option in told.output, (text, option)


def test_what_is_linked_is_there() -> None:
    for page in (ROOT / "docs" / "approvals.md", ROOT / "README.md"):
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
            linked = page.parent / target if target else page
            assert linked.exists(), target
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if linked.suffix == ".md" else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
