"""`lockgate keys` from a terminal: a key is shown once, works, and can be stopped."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gateway.cli.keys import keys
from gateway.errors import LockgateError, SetupError
from gateway.keyring import digest
from gateway.secret import Secret
from gateway.store.database import open_readonly
from gateway.store.keys import all_keys
from gateway.store.library import sqlite3


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "pepper").write_text("pepper-of-this-test\n")
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "config.toml"
    file.write_text('[auth]\npepper = "file:secrets/pepper"\n')
    return file


def _run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(keys, [*arguments, "--config", str(config)])


def _json(config: Path, *arguments: str) -> Any:
    result = _run(config, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_is_printed_once_and_stored_as_its_hash(config: Path) -> None:
    result = _run(config, "create", "--name", "ci", "--team", "blue", "--role", "dev", "--role", "ops", "--route", "fast")
    assert result.exit_code == 0, result.output
    text = result.stdout.strip()
    assert "only time the key is shown" in result.stderr
    connection = open_readonly(config.with_name("lockgate.db"))
    _generation, stored = all_keys(connection)
    connection.close()
    assert stored[0].digest == digest(Secret("pepper-of-this-test"), text)
    assert (stored[0].name, stored[0].team, stored[0].roles, stored[0].routes) == ("ci", "blue", ("dev", "ops"), ("fast",))
    files = b"".join(file.read_bytes() for file in config.parent.glob("lockgate.db*"))
    assert text.rpartition("_")[2].encode() not in files
    listed = _run(config, "list")
    assert text not in listed.output
    assert text[4:16] in listed.output


def test_a_key_is_listed_with_its_state(config: Path) -> None:
    made = _json(config, "create", "--name", "ci", "--expires", "30d")
    assert made["key"].startswith(f"lgk_{made['id']}_")
    assert (made["routes"], made["state"], made["team"]) == (["*"], "live", None)
    _json(config, "create", "--name", "for ever")
    assert _json(config, "revoke", made["id"])["id"] == made["id"]
    rows = _json(config, "list")
    assert [(row["name"], row["state"], row["expires"] is None) for row in rows] == [("ci", "revoked", False), ("for ever", "live", True)]
    assert all("key" not in row and "digest" not in row for row in rows)


def test_rotation_keeps_the_id_and_changes_the_secret(config: Path) -> None:
    made = _json(config, "create", "--name", "ci")
    rotated = _json(config, "rotate", made["key"])  # who pastes the whole key means its id
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_an_unknown_key_is_an_error_that_says_what_to_do_and_echoes_no_secret(config: Path, command: str) -> None:
    secret = "s" * 32
    result = _run(config, command, f"lgk_{'a' * 12}_{secret}")
    assert result.exit_code == 1
    assert "there is no key 'aaaaaaaaaaaa'; `lockgate keys list`" in result.stderr
    assert secret not in result.output


def test_a_revoked_key_is_not_rotated(config: Path) -> None:
    made = _json(config, "create", "--name", "ci")
    _json(config, "revoke", made["id"])
    for command in ("rotate", "revoke"):
        for given in (made["id"], made["key"]):
            result = _run(config, command, given)
            assert result.exit_code == 1
            assert f"key {made['id']} was revoked on 20" in result.stderr
            assert made["key"] not in result.output


def test_a_slip_in_a_rule_keeps_nobody_from_revoking_a_key(config: Path) -> None:
    made = _json(config, "create", "--name", "ci")
    (config.parent / "policies/p.toml").write_text("[[rulez]]")
    assert [key["id"] for key in _json(config, "list")] == [made["id"]]
    rotated = _json(config, "rotate", made["id"])
    assert rotated["id"] == made["id"]
    assert _json(config, "revoke", made["id"])["id"] == made["id"]
    config.write_text("[auht]")
    with pytest.raises(LockgateError, match="unknown key"):
        CliRunner().invoke(keys, ["list", "--config", str(config)], catch_exceptions=False)


def test_an_expired_key_is_not_rotated(config: Path) -> None:
    made = _json(config, "create", "--name", "ci", "--expires", "30d")
    with closing(sqlite3.connect(config.with_name("lockgate.db"), isolation_level=None)) as connection:
        connection.execute("UPDATE keys SET expires_ns = 1")
    assert f"key {made['id']} expired on 1970-01-01T00:00:00Z" in _run(config, "rotate", made["id"]).stderr


def test_a_name_is_no_id_and_leads_to_its_ids(config: Path) -> None:
    first, second = (_json(config, "create", "--name", "me")["id"] for _ in range(2))
    _json(config, "revoke", first)
    result = _run(config, "revoke", "me")
    assert result.exit_code == 1
    assert f"'me' is a name; its ids: {first} (revoked), {second} (live)" in result.stderr


def test_a_second_live_key_of_a_name_is_warned_of(config: Path) -> None:
    first = _run(config, "create", "--name", "me")
    assert "warning" not in first.stderr
    again = _run(config, "create", "--name", "me")
    assert f"warning: 'me' is also the name of {first.stdout[4:16]};" in again.stderr
    for text in (first.stdout, again.stdout):
        _run(config, "revoke", text)
    assert "warning" not in _run(config, "create", "--name", "me").stderr


def test_a_glob_that_matches_no_route_is_warned_of_and_the_key_is_made(config: Path) -> None:
    assert "warning: the glob 'fast' matches no route, for there is none" in _run(config, "create", "--name", "a", "--route", "fast").stderr
    (config.parent / "routes" / "r.toml").write_text('[[route]]\nname = "fast"\ntargets = [{provider = "p", model = "m"}]\n')
    result = _run(config, "create", "--name", "b", "--route", "f*", "--route", "slow", "--route", "*")
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [
        "warning: the glob 'slow' matches no route; there are: fast"]
    assert result.stdout.startswith("lgk_")


def test_a_revoked_key_is_announced(config: Path) -> None:
    made = _json(config, "create", "--name", "ci")
    assert _run(config, "revoke", made["id"]).stdout.startswith(f"Key {made['id']} is revoked")


@pytest.mark.parametrize(("written", "expected"), [
    ("2199-01-31", datetime(2199, 1, 31, tzinfo=UTC)), ("2199-01-31T12:00:00+02:00", datetime(2199, 1, 31, 10, tzinfo=UTC)),
])
def test_expiry_is_a_date_in_utc_unless_it_says_otherwise(config: Path, written: str, expected: datetime) -> None:
    assert _json(config, "create", "--name", "ci", "--expires", written)["expires"] == f"{expected:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("arguments", [
    ("--name", "ci", "--expires", "soon"), ("--name", "ci", "--expires", "2001-01-01"), ("--name", "ci", "--expires", "0s"),
    ("--name", "ci", "--expires", "2999-01-01"),
    ("--name", ""), ("--name", " "), ("--name", "a\x1b[31m"), ("--name", "ci", "--team", "a\nb"), (),
])
def test_what_cannot_be_is_refused_and_nothing_is_made(config: Path, arguments: tuple[str, ...]) -> None:
    result = _run(config, "create", *arguments)
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert not config.with_name("lockgate.db").exists()


@pytest.mark.parametrize(("text", "message"), [
    ('[auth]\nrequired = false\npepper = "file:missing"\n', "auth.pepper"), ('[store]\npath = ":memory:"\n', "keeps everything in memory"),
])
def test_a_deployment_that_cannot_hold_keys_says_so(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    result = _run(config, "create", "--name", "ci")
    assert isinstance(result.exception, SetupError)
    assert message in result.exception.message


def test_a_database_that_cannot_be_used_is_told(config: Path) -> None:
    config.with_name("lockgate.db").mkdir()
    result = _run(config, "list")
    assert isinstance(result.exception, LockgateError)
    assert "is a directory" in result.exception.message
    assert not isinstance(result.exception, click.ClickException)
