"""`lockgate doctor` from a terminal: exit code 1 exactly when an invariant is broken."""

import asyncio
import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.call import CallRecord, Origin, Outcome, Principal
from gateway.cli.doctor import doctor
from gateway.errors import StoreError
from gateway.store.doctor import INVARIANTS
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
    assert result.stdout == f"{database}: {len(INVARIANTS)} invariants checked, clean.\n"
    shown = json.loads(_run(str(database), "--json").stdout)
    assert (shown["clean"], shown["findings"], shown["checked"]) == (True, [], len(INVARIANTS))


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


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.db"):
        result = _run(str(path))
        assert isinstance(result.exception, StoreError)
