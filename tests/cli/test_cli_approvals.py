"""`lockgate approvals` beside a gateway that runs: what is shown is what is approved, and the gateway's checks hold for the terminal too."""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import click
import pytest
from click.testing import CliRunner, Result

from gateway.cli import approvals as module
from gateway.cli.approvals import approvals
from gateway.cli.remote import Remote
from gateway.clock import SystemClock, SystemIds
from gateway.embed import Gateway
from gateway.errors import SetupError
from gateway.identity.accounts import new_token
from gateway.keyring import new_key
from gateway.secret import Secret
from gateway.store.approvals_protocol import Person, Stamped

PEPPER = "pepper-of-the-tests-0123456789abcdef"
ADMIN = "admin-token-of-the-tests"
CONFIG = """
[store]
path = "data.db"
[auth]
pepper = "env:PEPPER"
[admin]
token = "file:admin-token"
"""
ROUTES = """
[[tool]]
name = "bank.pay"
method = "POST"
url = "http://127.0.0.1:9/pay"
private = true
effect = "idempotent"
[tool.arguments]
required = ["amount"]
[tool.arguments.properties]
amount = { type = "number" }
note = { type = "string" }
"""
RULES = """
[[rule]]
id = "payments"
phase = "tool_call"
effect = "require_approval"
match = { tools = ["bank.pay"] }
message = "Payments wait."
[[rule]]
id = "ok"
phase = "tool_call"
effect = "allow"
"""


@dataclass
class Desk:
    """A gateway, a caller's key, and what a terminal beside it does."""

    folder: Path
    gateway: Gateway
    key: str = ""

    async def pay(self, amount: float, **more: Any) -> str:
        async with aiohttp.ClientSession(self.gateway.url) as session, session.post(
                "/tools/bank.pay", json={"amount": amount, **more}, headers={"Authorization": f"Bearer {self.key}", "Prefer": "respond-async"}) as answer:
            assert answer.status == 202, await answer.text()
            return answer.headers["Location"].rpartition("/")[2]

    async def run(self, *arguments: str, text: str | None = None) -> Result:
        given = [*arguments, "--config", str(self.folder / "config.toml"), "--url", self.gateway.url]
        return await asyncio.to_thread(lambda: CliRunner().invoke(approvals, given, input=text))

    async def told(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "--json")
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.delenv("LOCKGATE_TOKEN", raising=False)
    for folder, text in (("policies", RULES), ("routes", ROUTES), ("adapters", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.toml").write_text(text)
    (tmp_path / "adapters/a.toml").unlink()
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "admin-token").write_text(ADMIN)
    async with Gateway(tmp_path / "config.toml", port=0, environ={"PEPPER": PEPPER}, write=lambda _line: None) as gateway:
        made, clock = Desk(tmp_path, gateway), SystemClock()
        made.key, stored = new_key(SystemIds(clock), Secret(PEPPER), now_ns=clock.now_ns(), name="tests")
        app = gateway.running
        await app.store.keys.create(stored)
        assert app.keyring is not None
        await app.keyring.refresh()
        yield made


async def test_what_waits_is_listed_and_shown_with_its_exact_action_and_digest(desk: Desk) -> None:
    """For people and for programs."""
    ticket = await desk.pay(900, note="thanks")
    result = await desk.run("list")
    assert (result.exit_code, result.stdout.split("\n")[1].split()[:2]) == (0, [ticket, "pending"])
    assert " 0 of 1 " in result.stdout
    (row,) = await desk.told("list", "--rule", "payments", "--tool", "bank.pay", "--limit", "5")
    shown = (await desk.told("show", ticket))["approval"]
    assert (row["id"], row["digest"]) == (ticket, shown["digest"])
    assert shown["action"]["arguments"] == {"amount": 900, "note": "thanks"}
    result = await desk.run("show", ticket)
    for part in ("state:          pending", "Payments wait.", shown["digest"], '"amount":900', "1 of anybody who may approve (rule payments)"):
        assert part in result.stdout
    assert await desk.told("list", "--state", "denied") == []


async def test_a_list_that_goes_on_says_so(desk: Desk) -> None:
    """On standard error: the table is a table."""
    for amount in (1, 2, 3):
        await desk.pay(amount)
    result = await desk.run("list", "--limit", "2")
    assert len(result.stdout.strip().split("\n")) == 3
    assert "There are more" in result.stderr


async def test_approving_shows_the_action_and_approves_what_it_showed(desk: Desk) -> None:
    """The same checks as for everybody: once it is decided there is nothing to vote on."""
    ticket = await desk.pay(900)
    result = await desk.run("approve", ticket, "--comment", "fine")
    assert result.exit_code == 0, result.output
    assert '"amount":900' in result.stdout
    assert f"Your vote counts: {ticket} is approved." in result.stdout
    (vote,) = (await desk.told("show", ticket))["approval"]["votes"]
    assert (vote["person"], vote["comment"]) == ("admin", "fine")
    assert "fine" in (await desk.run("show", ticket)).stdout
    again = await desk.run("approve", ticket)
    assert again.exit_code == 1
    assert "nobody votes on it any more" in str(again.exception)


async def test_a_digest_that_is_given_has_to_be_that_of_the_action(desk: Desk) -> None:
    """A script that has looked at it before decides on what it saw, or not at all."""
    ticket = await desk.pay(900)
    digest = (await desk.told("show", ticket))["approval"]["digest"]
    result = await desk.run("approve", ticket, "--digest", "sha256:other")
    assert (result.exit_code, digest in result.output) == (1, True)
    assert (await desk.told("approve", ticket, "--digest", digest))["state"] == "approved"


async def test_on_a_terminal_approving_asks_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown was meant to be read."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    asked: list[str] = []

    def confirm(question: str, **_more: Any) -> None:
        asked.append(question)
        raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)
    ticket = await desk.pay(900)
    shown = (await desk.told("show", ticket))["approval"]
    remote = Remote(desk.gateway.url, Secret(ADMIN))
    with pytest.raises(click.Abort):
        await asyncio.to_thread(lambda: module._vote(remote, ticket, "approve", shown["digest"], {}, ask=True, as_json=True))
    assert asked == ["Approve this?"]
    assert (await desk.told("show", ticket))["approval"]["state"] == "pending"


async def test_a_denial_has_its_comment(desk: Desk) -> None:
    """And what others wrote does not steer the terminal that shows it."""
    ticket = await desk.pay(900, note="\x1b[2J\u202e")
    result = await desk.run("deny", ticket, "--comment", "no")
    assert result.exit_code == 0, result.output
    assert f"{ticket} is denied." in result.stdout
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout


async def test_a_person_votes_with_their_own_token(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a file, or out of the environment; never out of an argument, which everybody on the machine may read."""
    text, digest = new_token(SystemIds(SystemClock()), Secret(PEPPER))
    await desk.gateway.running.store.people.add(Person("grace", "Grace", "approve", token=digest, created_ns=1), Stamped("created", "tests", 1))
    (tmp_path / "token").write_text(f"{text}\n")
    ticket = await desk.pay(900)
    assert (await desk.told("approve", ticket, "--token-file", str(tmp_path / "token")))["state"] == "approved"
    assert (await desk.told("show", ticket))["approval"]["votes"][0]["person"] == "grace"
    monkeypatch.setenv("LOCKGATE_TOKEN", "lgp_nobody")
    result = await desk.run("list")
    assert (result.exit_code, "API token" in str(result.exception)) == (1, True)
    assert "--token-file" in str(result.exception)
    result = await desk.run("list", "--token-file", str(tmp_path / "nothing"))
    assert (result.exit_code, "cannot be read" in str(result.exception)) == (1, True)


async def test_a_grant_is_made_listed_and_taken_back(desk: Desk) -> None:
    """With the approval, for a time."""
    ticket = await desk.pay(900)
    assert (await desk.run("approve", ticket, "--grant-uses", "3")).exit_code == 2
    await desk.told("approve", ticket, "--grant-for", "1h", "--grant-uses", "3", "--grant-condition", "double(tool.args.amount) < 1000.0")
    (grant,) = await desk.told("grants", "--rule", "payments")
    assert (grant["uses"], grant["condition"], grant["author"]) == (3, "double(tool.args.amount) < 1000.0", "admin")
    result = await desk.run("revoke", grant["id"])
    assert result.stdout == f"The grant {grant['id']} is taken back.\n"
    assert await desk.told("grants") == []
    (gone,) = await desk.told("grants", "--all")
    assert gone["revoked_by"].startswith("admin")
    assert "no live grant of that id. `lockgate approvals grants` lists them." in str((await desk.run("revoke", grant["id"])).exception)


@pytest.mark.parametrize(("given", "told"), [
    (("--grant-for", "40d"), "is longer than a grant may last: 30 days at the most"),
    (("--grant-for", "1h", "--grant-condition", "foo"), "The condition of the grant: undeclared reference to 'foo'"),
])
async def test_what_is_wrong_with_a_grant_is_said_in_the_words_of_whoever_wrote_it(desk: Desk, given: tuple[str, ...], told: str) -> None:
    result = await desk.run("approve", await desk.pay(900), *given)
    assert (result.exit_code, told in str(result.exception)) == (1, True), result.exception


async def test_who_may_not_vote_with_the_admin_token_is_told_how_to_ask_as_themselves(desk: Desk) -> None:
    """The newcomer's first try: the rule asks a role, and the deployment's own token has none."""
    (desk.folder / "policies/a.toml").write_text(RULES.replace('message = "Pay', 'approvers = ["role:finance"]\nquorum = 2\nmessage = "Pay'))
    await desk.gateway.reload()
    ticket = await desk.pay(900)
    result = await desk.run("approve", ticket)
    assert "Others are asked at this stage: role:finance. This asks with the deployment's admin token; `--token-file FILE`" in result.stdout
    assert "0 of 2" in (await desk.run("list")).stdout
    (desk.folder / "token").write_text(ADMIN)
    assert "This asks with" not in (await desk.run("show", ticket, "--token-file", str(desk.folder / "token"))).stdout


async def test_what_is_not_there_is_told_with_the_command_that_lists_what_is(desk: Desk) -> None:
    result = await desk.run("show", "apr_nope")
    assert str(result.exception) == "There is no approval of that id. `lockgate approvals list` lists those that wait."


async def test_arguments_are_edited_from_a_file_or_in_an_editor(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new action is judged again, and shown with what is different."""
    ticket = await desk.pay(900)
    (tmp_path / "new.json").write_text('{"amount": 500}')
    row = await desk.told("edit", ticket, "--arguments", str(tmp_path / "new.json"), "--comment", "half")
    assert (row["edited_from"], row["state"]) == (ticket, "pending")
    assert "changed from what was asked for:" in (await desk.run("show", row["id"])).stdout
    monkeypatch.setattr(click, "edit", lambda text, **_more: text.replace("500", "400"))
    result = await desk.run("edit", row["id"], "--approve")
    assert "stands in its place and is approved." in result.stdout
    other = await desk.pay(800)
    monkeypatch.setattr(click, "edit", lambda _text, **_more: None)
    assert "nothing was changed" in (await desk.run("edit", other)).output
    result = await desk.run("edit", other, "--arguments", "-", text="{")
    assert "this is not JSON" in result.output
    result = await desk.run("edit", other, "--arguments", "-", text='{"amount": "x"}')
    assert "do not fit the tool" in str(result.exception)


async def test_only_what_is_unknown_can_be_resolved(desk: Desk) -> None:
    """The gateway says so, and the terminal tells it."""
    ticket = await desk.pay(900)
    result = await desk.run("resolve", ticket, "succeeded", "--comment", "seen")
    assert (result.exit_code, "only what came of an unknown one" in str(result.exception)) == (1, True)
    assert (await desk.run("resolve", ticket, "succeeded")).exit_code == 2
    assert "no approval of that id" in str((await desk.run("show", "apr_x")).exception)


async def test_what_waits_is_withdrawn_and_nothing_that_is_over(desk: Desk) -> None:
    """With why."""
    ticket = await desk.pay(900)
    result = await desk.run("withdraw", ticket, "--comment", "paid by hand")
    assert (result.exit_code, result.stdout) == (0, f"{ticket} is withdrawn.\n"), result.output
    (row,) = await desk.told("list", "--state", "withdrawn")
    assert (row["id"], row["reason"]) == (ticket, "paid by hand")
    again = await desk.run("withdraw", ticket)
    assert (again.exit_code, "withdrawn" in str(again.exception)) == (1, True)


@pytest.fixture
def stranger() -> Iterator[str]:
    """Something that answers and is no gateway."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_given: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_no_gateway_is_told_apart_from_one_that_does_not_run(tmp_path: Path, stranger: str) -> None:
    """With what to do about it."""
    (tmp_path / "config.toml").write_text("")
    runner: Callable[..., Result] = CliRunner().invoke
    (tmp_path / "token").write_text("t")
    usual = ["list", "--config", str(tmp_path / "config.toml")]
    for more, why in ((["--url", stranger], "is no gateway"), (["--url", "http://127.0.0.1:1"], "cannot be asked"), (["--url", "ftp://x"], "is no address"),
                      ([], "cannot be asked")):
        result = runner(approvals, [*usual, "--token-file", str(tmp_path / "token"), *more])
        assert isinstance(result.exception, SetupError), more
        assert why in str(result.exception)
    assert "there is no token to ask with" in str(runner(approvals, usual).exception)
    (tmp_path / "config.toml").write_text('[admin]\ntoken = "env:NOT_SET"\n')
    assert "`admin.token`" in str(runner(approvals, usual).exception)
