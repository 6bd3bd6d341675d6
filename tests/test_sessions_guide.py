"""The guide to sessions can be followed: its rules do what it says, and its commands and requests work in the order in which they stand."""

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import aiohttp
import openai
import pytest
from click.testing import CliRunner

from gateway import Gateway
from gateway.cases import run_cases
from gateway.cli import cli
from gateway.deployment import read_deployment
from gateway.derive import PREFIXES
from gateway.http.sessions_desk import SessionsDesk
from gateway.people_config import SessionsConfig
from gateway.session_changes import VERBS
from gateway.simulator import Simulator
from gateway.snapshot import compile_rules
from gateway.store.session_rows import CHANGED, FACT, SESSION_FIELDS, UNLABELLED

TEXT = (Path(__file__).parents[1] / "docs" / "sessions.md").read_text(encoding="utf-8")
POLICIES = re.findall(r"^```toml\n# (policies/\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
            for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert CliRunner().invoke(cli, ["init", str(tmp_path / "gateway")]).exit_code == 0
    made = tmp_path / "gateway"
    for shipped in (*made.glob("routes/*.toml"), *made.glob("policies/*.toml")):
        shipped.unlink()
    return made


def test_its_rules_compile_and_its_cases_hold(folder: Path) -> None:
    for name, text in POLICIES:
        rules, _, cases = text.partition("[[case]]")
        (folder / name).write_text(rules)
        if cases:
            (folder / name.replace(".toml", ".cases.toml")).write_text(f"[[case]]{cases}")
    deployment = read_deployment(folder / "config.toml")
    report = run_cases(deployment, compile_rules(deployment))
    assert [str(each) for each in report.failures] == []
    assert len(deployment.cases) == 2


async def test_its_commands_and_requests_work_as_they_stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first to the last, on a session that an unmodified client has begun."""
    async with Simulator(port=0) as provider:
        (folder / "config.toml").write_text(
            f'[providers.one]\nadapter = "openai"\nbase_url = "{provider.url}"\n[auth]\nrequired = false\n[admin]\ntoken = "file:secrets/admin-token"\n')
        (folder / "routes/routes.toml").write_text('[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "sim"\n')
        monkeypatch.chdir(folder)
        admin = (folder / "secrets/admin-token").read_text().strip()
        async with Gateway(folder / "config.toml", port=0) as gateway, openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
            await client.chat.completions.create(
                model="fast", messages=[{"role": "user", "content": "hi"}], extra_headers={"X-Lockgate-Session": "invoice-run-7"})
            done = [await follow(command, gateway.url, admin) for command in COMMANDS]
    told = "\n".join(done)
    assert '{"version":1}' in told
    assert "has version 2" in told
    assert "is killed" in done[-1]
    assert "4712" in next(text for command, text in zip(COMMANDS, done, strict=True) if command.startswith("lockgate sessions show"))


async def follow(command: str, url: str, admin: str) -> str:
    words = shlex.split(command.replace("$ADMIN", admin).replace("http://127.0.0.1:8080", url))
    if words[0] == "lockgate":
        result = await asyncio.to_thread(CliRunner().invoke, cli, words[1:])
        assert result.exit_code == 0, (command, result.output)
        return result.stdout
    options = {name: [words[n + 1] for n, word in enumerate(words) if word == name] for name in ("-X", "-H", "-d")}
    headers = dict(line.split(": ", 1) for line in options["-H"])
    async with aiohttp.ClientSession() as http, http.request(options["-X"][0], words[-1], headers=headers, data=options["-d"][0]) as answer:
        assert answer.status == 200, (command, await answer.text())
        return await answer.text()


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def test_it_names_every_kind_every_field_and_every_endpoint() -> None:
    kinds: Any = get_args(get_args(SessionsConfig.model_fields["derive"].annotation)[0])
    assert set(re.findall(r"^\| `(\w+)` \|.*`(\w+:)VALUE`", TEXT, re.MULTILINE)) == set(PREFIXES.items())
    assert set(PREFIXES) == set(kinds)
    told = names(TEXT.partition("A row has ")[2].partition(".")[0])
    assert told == {name.replace("created_ns", "began_at").replace("last_ns", "last_at").replace("changed_ns", "changed_at") for name in SESSION_FIELDS}
    assert names(TEXT.partition("its `kind` (")[2].partition(")")[0]) == {"call", "tool", "approval", "vote", FACT, UNLABELLED, *CHANGED.values()}
    shown = {(method, path.partition("?")[0]) for method, path in re.findall(r"^\| `(GET|PUT|POST) ([^`]+)`", TEXT, re.MULTILINE)}
    shown |= {("POST", f"/-/sessions/{{id}}/{verb}") for verb in VERBS if f"`{verb}`" in TEXT}
    endpoints: Any = SessionsDesk(None, None).endpoints  # type: ignore[arg-type] # nobody is asked
    assert shown == set(endpoints)
