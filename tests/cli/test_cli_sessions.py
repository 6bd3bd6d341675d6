"""`lockgate sessions` from a terminal, beside a store that is open: what is shown, what is changed, what is refused."""

import asyncio
import getpass
import importlib.util
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.call import Origin, Outcome, Principal, ToolUse
from gateway.cli.sessions import sessions
from gateway.clock import SystemClock
from gateway.core.approval import Demand, Stage, State, Ticket, Vote, Voter
from gateway.core.approval_bounds import Bounds
from gateway.session import SessionKey
from gateway.store.protocol import Intent
from gateway.store.sqlite import SqliteStore

KEY = SessionKey("key000000001", "s-1")
VIRTUAL_KEY = f"lgk_abcdefghijkl_{'s' * 32}"
SECOND_NS = 10**9


def _samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_session_samples", Path(__file__).parents[1] / "store/samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _samples()
NOW_NS: int = samples.NOW_NS


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    file = tmp_path / "config.toml"
    file.write_text('[store]\npath = "data.db"\n')
    return file


@pytest.fixture
async def store(config: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(config.with_name("data.db"), "one")
    await opened.start(now_ns=SystemClock().now_ns())
    yield opened
    await opened.close()


async def run(config: Path, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, sessions, [*arguments, "--config", str(config)])


async def have(config: Path, *arguments: str) -> Any:
    result = await run(config, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def called(store: SqliteStore, number: int, key: SessionKey = KEY, **changes: Any) -> str:
    """A call that ended, and its id."""
    record = replace(samples.record(number, labels=()), principal=Principal(key.principal), origin=Origin(session=key.id),
                     part_of=changes.pop("part_of", ""))
    await store.journal.begin(Intent(record, samples.TARGET, None))
    ended = replace(record, outcome=Outcome.COMPLETED, status=200, ended_ns=record.received_ns + 1_500_000_000, cost_nusd=1_500_000,
                    attempts=(samples.attempt(1),), **changes)
    await store.journal.finish(ended, response=None)
    return str(record.id)


async def test_sessions_are_listed_the_latest_first(config: Path, store: SqliteStore) -> None:
    await called(store, 1)
    await called(store, 2, SessionKey("key000000002", "s-2"))
    assert [row["id"] for row in await have(config, "list")] == ["s-2", "s-1"]
    assert [row["id"] for row in await have(config, "list", "-n", "1")] == ["s-2"]
    assert [row["id"] for row in await have(config, "list", "--principal", KEY.principal)] == ["s-1"]
    assert await have(config, "list", "--since", "2200-01-01") == []
    table = (await run(config, "list")).stdout.splitlines()
    assert table[0].split() == ["id", "principal", "name", "state", "calls", "cost_usd", "labels", "last"]
    assert table[2].split() == ["s-1", "key000000001", "-", "active", "1", "0.0015", "-", "2026-09-21T14:13:20Z"]


async def test_a_session_is_shown_with_its_facts_and_its_timeline(config: Path, store: SqliteStore) -> None:
    call = await called(store, 1, answer_labels=("late",), tool_uses=(ToolUse("x", "c1", "mail.send", "model", {}, released=False, at_ns=NOW_NS + 5),))
    await store.session_desk.put_fact(KEY, "tier", {"level": 3}, version=None, author="ada", now_ns=NOW_NS + 2 * SECOND_NS)
    await called(store, 4, part_of=call)
    demand = Demand("two-eyes", (Stage(),))
    ticket = Ticket("apr_1", "request", "release", State.PENDING, "sha256:d", "sha256:d", KEY.principal, call, "two-eyes", "", (demand,), {}, b"{}", {},
                    "sha256:s", NOW_NS + 3 * SECOND_NS, 2**62, session=KEY.id, route="fast")
    await store.approvals.open(ticket, bounds=Bounds(9))
    vote = Vote(Voter("ada", "Ada"), "deny", "sha256:d", NOW_NS + 4 * SECOND_NS, "not today", ((demand.key, 0),))
    await store.approvals.vote("apr_1", vote)
    cleared = await called(store, 10**10, unlabels=())
    await store.session_desk.set_state(KEY, "frozen", author="bob", note="looks wrong", now_ns=NOW_NS + 20 * SECOND_NS)
    told = await have(config, "show", "s-1")
    assert (told["state"], told["note"], told["facts"]["tier"]["value"], told["spend_usd"]) == ("frozen", "looks wrong", {"level": 3}, "0.0045")
    assert [entry["kind"] for entry in told["timeline"]] == [
        "call", "call", "tool", "fact", "approval", "approval", "vote", "call", "frozen"]
    assert "place" not in told["timeline"][0]
    shown = (await run(config, "show", "s-1")).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "session s-1" in lines
    assert "by bob" in lines
    assert 'tier {"level":3} 1 ada 2026-09-21T14:13:22Z' in lines
    assert f"2026-09-21T14:13:20.000Z call {call} fast allow office-hours completed 1.500 0.0015 - late" in lines
    assert f"2026-09-21T14:13:20.000Z tool mail.send - - kept back - - - via model, in {call}" in lines
    assert '2026-09-21T14:13:22.000Z fact tier - - - - - ada {"level":3} (version 1)' in lines
    assert f"2026-09-21T14:13:23.000Z approval apr_1 pending two-eyes open - - {KEY.principal} fast" in lines
    assert "2026-09-21T14:13:24.000Z vote apr_1 deny - - - - ada not today" in lines
    assert any(line.endswith(f"for {call}") for line in lines)
    assert any(cleared in line for line in lines)
    assert "2026-09-21T14:13:40.000Z frozen - - - - - - bob looks wrong" in lines


async def test_labels_that_a_rule_took_off_are_told(config: Path, store: SqliteStore) -> None:
    await called(store, 1, answer_labels=("secret",))
    call = await called(store, 2, answer_unlabels=("secret",))
    lines = [" ".join(line.split()) for line in (await run(config, "show", "s-1")).stdout.splitlines()]
    assert any("unlabelled secret" in line and f"in {call}" in line for line in lines)


@pytest.mark.parametrize(("verb", "state", "said"), [
    ("freeze", "frozen", "is frozen: none of its calls go on until it is thawed"),
    ("kill", "killed", "is killed: its calls under way are ended, and none goes on")])
async def test_a_session_is_stopped_with_who_and_why(config: Path, store: SqliteStore, verb: str, state: str, said: str) -> None:
    await called(store, 1)
    result = await run(config, verb, "s-1", "--note", "it ran away")
    assert (result.exit_code, result.stdout) == (0, f"Session s-1 {said}. Every gateway knows within a second.\n")
    _generation, (kept,) = await store.session_desk.states(0)
    assert (kept.state, kept.author, kept.note) == (state, "grace", "it ran away")


async def test_a_frozen_one_is_thawed_and_a_killed_one_is_not(config: Path, store: SqliteStore) -> None:
    await called(store, 1)
    await run(config, "freeze", "s-1", "--author", "ada")
    assert (await have(config, "thaw", "s-1"))["session"]["state"] == "active"
    await run(config, "kill", "s-1")
    result = await run(config, "thaw", "s-1")
    assert (result.exit_code, "was killed, and stays so" in result.stderr) == (1, True)


async def test_facts_are_set_and_listed(config: Path, store: SqliteStore) -> None:
    await called(store, 1)
    assert "has version 1" in (await run(config, "facts", "s-1", "tier", "gold")).stdout
    assert (await have(config, "facts", "s-1", "limit", "5", "--version", "0", "--author", "ada"))["version"] == 1
    assert (await have(config, "facts", "s-1", "tier", '{"a":null}', "--version", "1"))["version"] == 2
    assert [(row["name"], row["value"], row["version"], row["author"]) for row in await have(config, "facts", "s-1")] == [
        ("limit", 5, 1, "ada"), ("tier", {"a": None}, 2, "grace")]
    lines = (await run(config, "facts", "s-1")).stdout.splitlines()
    assert lines[0].split() == ["name", "value", "version", "author", "time"]
    assert lines[2].split()[:4] == ["tier", '{"a":null}', "2", "grace"]


async def test_a_fact_may_be_set_before_the_first_call_where_its_principal_is_named(config: Path, store: SqliteStore) -> None:
    assert (await have(config, "facts", "s-9", "tier", "gold", "--principal", "key000000009"))["principal"] == "key000000009"
    assert (await store.session_desk.facts(SessionKey("key000000009", "s-9")))["tier"]["value"] == "gold"


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("show", "none"), 1, "there is no session 'none' on record; `lockgate sessions list`"),
    (("show", "none", "--principal", "key000000001"), 1, "there is no session 'none'"),
    (("freeze", "none"), 1, "there is no session 'none'"),
    (("show", VIRTUAL_KEY), 1, "there is no session '[secret]'"),
    (("show", "both"), 1, "say which with --principal (key000000001, key000000002)"),
    (("freeze", "both"), 1, "say which with --principal"),
    (("facts", "none"), 1, "there is no session 'none'"),
    (("facts", "s-1", "tier"), 2, "NAME and VALUE"),
    (("facts", "s-1", "a b", "1"), 1, "the name is no fact's"),
    (("facts", "s-1", "a", '"' + "x" * 5000 + '"'), 1, "the value has 5002 bytes"),
    (("facts", "s-1", "a", "1", "--version", "7"), 1, "There is no such fact yet"),
    (("facts", "s-1", "a", "1", "--author", " "), 1, "the author is empty"),
    (("freeze", "s-1", "--note", f"key {VIRTUAL_KEY}"), 1, "the note holds a virtual key"),
    (("freeze", "a b", "--principal", "key000000001"), 1, "the id is no session's"),
    (("list", "--since", "soon"), 2, "neither a duration"),
])
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    config: Path, store: SqliteStore, arguments: tuple[str, ...], code: int, error: str,
) -> None:
    await called(store, 1)
    for number, principal in ((2, "key000000001"), (3, "key000000002")):
        await called(store, number, SessionKey(principal, "both"))
    result = await run(config, *arguments)
    assert (result.exit_code, error in result.stderr) == (code, True), result.stderr
    assert VIRTUAL_KEY not in result.output
    assert await store.session_desk.generation() == 0


async def test_a_hostile_name_steers_no_terminal(config: Path, store: SqliteStore) -> None:
    """What a provider's or a caller's words are made of is shown, not acted upon."""
    await called(store, 1)
    await store.session_desk.set_state(KEY, "frozen", author="ada", note="stop \x1b[2J\u202e", now_ns=NOW_NS)
    shown = (await run(config, "show", "s-1")).stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
