"""`lockgate doctor` from a terminal: exit code 1 exactly when an invariant is broken."""

import asyncio
import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.call import CallRecord, Origin, Outcome, Principal
from gateway.cli.doctor import CHECKS, STUCK, doctor
from gateway.clock import SystemClock
from gateway.store.library import sqlite3
from gateway.store.sqlite import SqliteStore

NOW_NS = 1_790_000_000_000_000_000


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "lockgate.db"
    refused = CallRecord(
        id="call_1", principal=Principal("k"), dialect="openai", operation="chat", route="\x1b[31mred", stream=False, origin=Origin(),
        received_ns=NOW_NS, ended_ns=NOW_NS, outcome=Outcome.REFUSED, status=404, code="unknown_route", message="no", cost_nusd=0)

    async def fill() -> None:
        store = SqliteStore(path, "one")
        await store.start(now_ns=NOW_NS)
        await store.journal.refuse(refused, request=None)
        await store.close()

    asyncio.run(fill())
    return path


def _break(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE outcomes SET code = ''")
        connection.execute("UPDATE calls SET id = char(27) || '[31m'")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(doctor, list(arguments))


def test_a_sound_database_is_clean(database: Path) -> None:
    result = _run(str(database))
    assert result.exit_code == 0
    assert result.stdout == f"{database}: {len(CHECKS)} invariants checked, clean.\n"
    shown = json.loads(_run(str(database), "--json").stdout)
    assert (shown["clean"], shown["findings"], shown["checked"]) == (True, [], len(CHECKS))


def test_a_broken_invariant_is_named_with_its_rows_and_the_exit_code_is_1(database: Path) -> None:
    _break(database)
    result = _run(str(database))
    assert result.exit_code == 1
    assert "broken: refused-says-why: a call was refused without an error code" in result.stdout
    assert "1 broken" in result.stdout
    assert "\x1b" not in result.output
    shown = _run(str(database), "--json")
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["findings"][0]["invariant"] == "refused-says-why"


def test_a_note_breaks_nothing(database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DELETE FROM outcomes")
    result = _run(str(database))
    assert result.exit_code == 0
    assert "note: calls-of-dead-processes" in result.stdout


def test_without_a_path_it_looks_at_the_deployment(database: Path) -> None:
    for folder in ("policies", "routes", "adapters"):
        (database.parent / folder).mkdir()
    config = database.with_name("config.toml")
    config.write_text("")
    assert _run("--config", str(config)).exit_code == 0


def test_it_works_while_a_gateway_writes_and_changes_nothing(database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as gateway:
        gateway.execute("BEGIN IMMEDIATE")
        gateway.execute("UPDATE outcomes SET code = ''")
        result = _run(str(database))
        gateway.execute("ROLLBACK")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("name", "message"), [
    ("", " is a directory; name the database file in it"), ("missing.db", "there is no file "),
    ("text.db", "it is not a SQLite database; name another file"), ("other.db", " is not a Lockgate database; name another file"),
    ("newer.db", " was written by a newer Lockgate (schema 99,"),
])
def test_where_there_is_nothing_to_examine_the_exit_code_is_2(database: Path, name: str, message: str) -> None:
    folder = database.parent
    (folder / "text.db").write_text("no database " * 100)
    for path, statement in ((folder / "other.db", "CREATE TABLE t (c)"), (database, "PRAGMA user_version = 99")):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)
    database.rename(folder / "newer.db")
    result = _run(str(folder / name))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "store.path" not in result.stderr


@pytest.mark.parametrize(("text", "message"), [
    ("", "there is no database at "), ('[store]\npath = ":memory:"\n', "keeps everything in memory"), ("[stor]\n", "stor: unknown key"),
])
def test_a_deployment_without_a_database_is_no_broken_invariant(tmp_path: Path, text: str, message: str) -> None:
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config.toml").write_text(text)
    result = _run("--config", str(tmp_path / "config.toml"))
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("age_s", "lease_s", "told"), [(3700, 60, True), (3500, 60, False), (3700, -60, False)])
def test_a_call_that_a_living_process_has_open_for_long_is_noted(database: Path, age_s: int, lease_s: int, told: bool) -> None:  # noqa: FBT001
    now_ns = SystemClock().now_ns()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DELETE FROM outcomes")
        connection.execute("UPDATE calls SET owner = 77, received_ns = ?", (now_ns - age_s * 10**9,))
        connection.execute("INSERT INTO owners VALUES (77, 'host:1', 0, ?, 0)", (now_ns + lease_s * 10**9,))
    result = _run(str(database), "--json")
    assert result.exit_code == 0
    rows = {found["invariant"]: found["rows"] for found in json.loads(result.stdout)["findings"]}
    assert ("stuck-calls" in rows) is told
    if told:
        assert (rows["stuck-calls"][0]["id"], rows["stuck-calls"][0]["process"]) == ("call_1", "host:1")
        assert rows["stuck-calls"][0]["open_s"] >= age_s


def test_the_note_on_stuck_calls_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    assert f"| `{STUCK.name}` | (a note, breaks nothing) {STUCK.explanation} |" in page
