"""Approvals that nobody can decide: `lockgate check` warns before one is asked for, `lockgate doctor` notes those that wait already."""

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.check import check
from gateway.cli.deciders import NOBODY
from gateway.cli.doctor import doctor
from gateway.clock import SystemClock
from gateway.core.approval import Demand, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.store.approvals_protocol import Person, Stamped
from gateway.store.library import sqlite3
from gateway.store.sqlite import SqliteStore

CONFIG = '[auth]\npepper = "env:PEPPER"\n[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:9090/v1"\nprice_provider = "openai"\n'
OIDC = '[oidc]\nissuer = "https://id.example.com"\nclient_id = "lockgate"\npermissions = { approver = "approve" }\n'
OIDC += '[login]\npublic_url = "https://gateway.example.com"\n'
ADMIN = '[admin]\ntoken = "env:ADMIN"\n'
ROUTE = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "gpt-4o-mini"\n'
RULE = '[[rule]]\nid = "r"\neffect = "require_approval"\nmessage = "Wait."\n'
NOW = SystemClock().now_ns()
PEOPLE = (
    Person("ada", "Ada", "approve", ("finance",), ("blue",)), Person("grace", "Grace", "operate", ("finance", "ops")),
    Person("vic", "Vic", "view", ("lookers",)), Person("old", "Old", "admin", ("former",), disabled_ns=1))


def fill(path: Path, *tickets: Ticket) -> None:
    """A database with the accounts and these approvals."""

    async def work() -> None:
        store = SqliteStore(path, "tests")
        await store.start(now_ns=NOW)
        for person in PEOPLE:
            await store.people.add(person, Stamped("created", "tests", NOW))
        for ticket in tickets:
            await store.approvals.open(ticket, (), bounds=Bounds(100, 100, 10**9, 10**9, 100))
        await store.close()

    asyncio.run(work())


@pytest.fixture
def warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setenv("PEPPER", "pepper-of-the-tests")
    monkeypatch.setenv("ADMIN", "admin-token-of-the-tests")
    monkeypatch.chdir(tmp_path)
    for name in ("routes", "policies", "adapters"):
        (tmp_path / name).mkdir()

    def run(rule: str, config: str = "", *, filled: bool = True) -> list[str]:
        (tmp_path / "config.toml").write_text('[store]\npath = "data.db"\n' + CONFIG + config)
        (tmp_path / "routes/r.toml").write_text(ROUTE)
        (tmp_path / "policies/p.toml").write_text(RULE + rule + "\n")
        if filled:
            fill(tmp_path / "data.db")
        done = CliRunner().invoke(check, ["--json"])
        assert done.exit_code == 0, done.output
        return [f"{each['key']}: {each['message']}" for each in json.loads(done.stdout)["warnings"] if each["file"] == "policies/p.toml"]

    return run


NOT_THERE = "nobody with an account who may approve"


@pytest.mark.parametrize(("rule", "expected"), [
    ('approvers = ["role:finanze"]', [f'rule[0].approvers: {NOT_THERE} has the role "finanze" (rule "r")']),
    ('approvers = ["role:lookers", "role:ops"]', [f'rule[0].approvers: {NOT_THERE} has the role "lookers" (rule "r")']),
    ('approvers = ["role:former"]', [f'rule[0].approvers: {NOT_THERE} has the role "former" (rule "r")']),
    ('approvers = ["team:red", "person:zoe"]', [
        f'rule[0].approvers: {NOT_THERE} is in the team "red" (rule "r")', f'rule[0].approvers: {NOT_THERE} has the id "zoe" (rule "r")']),
    ('approvers = ["role:finance"]\nquorum = 3', [
        'rule[0].approvers: too few people can decide: 3 have to approve, and of those with an account 2 may (rule "r")']),
    ("quorum = 3", ['rule[0].approvers: too few people can decide: 3 have to approve, and of those with an account 2 may (rule "r")']),
    ('[[rule.approval.stages]]\n[[rule.approval.stages]]\napprovers = ["role:cfo"]', [
        f'rule[0].approval.stages[1].approvers: {NOT_THERE} has the role "cfo" (rule "r")']),
    ('approval = { on_expiry = "escalate", escalate_to = ["role:cfo"] }', [
        f'rule[0].approval.escalate_to: {NOT_THERE} has the role "cfo" (rule "r")']),
    ('approvers = ["role:admin"]', [f'rule[0].approvers: {NOT_THERE} has the role "admin" (rule "r")']),
    ('approvers = ["role:finance", "team:blue", "person:grace"]\nquorum = 2', []),
    ('approvers = ["role:finance", "approver.name != \'\'"]\nquorum = 9', []),
    ('approvers = ["role:nobody"]\nmode = "off"', []),
    ("", []),
])
def test_a_rule_that_asks_for_whom_there_is_not_deserves_a_look(
    warned: Callable[..., list[str]], rule: str, expected: list[str],
) -> None:
    assert warned(rule) == expected


def test_whoever_holds_the_admin_token_counts_as_somebody(warned: Callable[..., list[str]]) -> None:
    assert warned('approvers = ["role:admin"]', ADMIN) == []


def test_whom_only_an_identity_provider_knows_is_not_missed(warned: Callable[..., list[str]]) -> None:
    assert warned('approvers = ["role:elsewhere"]', OIDC) == []


def test_without_a_database_nobody_is_missed(warned: Callable[..., list[str]], tmp_path: Path) -> None:
    assert warned('approvers = ["role:nobody"]', filled=False) == []
    (tmp_path / "data.db").write_text("no database " * 100)
    assert warned('approvers = ["role:nobody"]', filled=False) == []


def ticket(number: int, *stages: Stage, escalate: tuple[str, ...] = (), principal: str = "key_1") -> Ticket:
    return Ticket(
        id=f"apr_{number}", kind="tool", mode="release", state=State.PENDING, digest=f"sha256:{number}", presented=f"sha256:{number}",
        principal=principal, call_id=f"call_{number}", rule="r", message="m", demands=(Demand("r", stages or (Stage(),), 1, escalate),),
        shown={"arguments": {}}, body=b"{}", origin={}, shape="s", created_ns=NOW, expires_ns=NOW + 10**15, effect="read")


def noted(path: Path) -> list[str]:
    done = CliRunner().invoke(doctor, [str(path), "--json"])
    assert done.exit_code == 0, done.output
    return [row["id"] for found in json.loads(done.stdout)["findings"] if found["invariant"] == NOBODY.name for row in found["rows"]]


def test_what_waits_for_nobody_is_noted_and_breaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    fill(path, ticket(1, Stage(("role:nobody",))), ticket(2, Stage(("role:finance",), 3)), ticket(3, Stage(("role:finance",), 2)),
         ticket(4, Stage(("role:nobody",)), escalate=("role:finance",)), ticket(5, Stage(("role:ops",)), principal="grace"),
         ticket(6, Stage(("approver.name != ''",), 9)), ticket(7, Stage(("role:finance",)), Stage(("person:zoe",))),
         ticket(8, Stage(("role:admin",))), ticket(9))
    assert noted(path) == ["apr_1", "apr_2", "apr_5", "apr_7"]


def test_votes_that_are_there_are_not_missed(tmp_path: Path) -> None:
    path, asked = tmp_path / "data.db", ticket(1, Stage(("role:finance", "person:gone"), 3))
    fill(path, asked)
    assert noted(path) == ["apr_1"]

    async def vote() -> None:
        store = SqliteStore(path, "tests")
        await store.start(now_ns=NOW)
        places = ((asked.demands[0].key, 0),)
        await store.approvals.vote(asked.id, Vote(Voter("gone"), "approve", asked.digest, NOW, places=places))
        await store.close()

    asyncio.run(vote())
    assert noted(path) == []


@pytest.mark.parametrize("damage", ["DROP TABLE people", "UPDATE people SET roles = 'x'", "UPDATE approvals SET demands = '[{}]'"])
def test_what_cannot_be_read_is_not_guessed_at(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.db"
    fill(path, ticket(1, Stage(("role:nobody",))))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(damage)
    done = CliRunner().invoke(doctor, [str(path), "--json"])
    assert NOBODY.name not in {found["invariant"] for found in json.loads(done.stdout)["findings"]}


def test_the_note_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    assert f"| `{NOBODY.name}` | (a note, breaks nothing) {NOBODY.explanation} |" in page
