"""`lockgate init` makes a folder that runs as it is, keeps its secrets to its user, and never touches what is there."""

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.init import init, lay
from gateway.deployment import read_deployment
from gateway.errors import SetupError
from gateway.snapshot import compile_snapshot


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_compiles_as_it_is(tmp_path):
    lay(tmp_path / "new/deployment")
    deployment = read_deployment(tmp_path / "new/deployment/config.toml")
    snapshot = compile_snapshot(deployment, {})
    assert set(snapshot.providers) == {"simulator"}
    assert {"demo-model", "demo-fallback", "demo-embedding"} <= set(snapshot.routes)
    assert len(snapshot.routes["demo-fallback"].targets) == 2
    assert all(to.price is not None for route in snapshot.routes.values() for to in route.targets)
    assert (tmp_path / "new/deployment/adapters/README.md").is_file()


def test_the_library_is_laid_out_with_its_cases_and_not_read_where_it_stands(tmp_path):
    """Rules that nobody has chosen are not in force, and nobody is told that files are forgotten there."""
    lay(tmp_path / "d")
    library = tmp_path / "d/policies/library"
    assert {"README.md", "payments.toml", "payments.cases.toml"} <= {path.name for path in library.iterdir()}
    deployment = read_deployment(tmp_path / "d/config.toml")
    assert deployment.unread == ()
    assert {rule.source.rpartition(":")[0] for rule in deployment.rules} == {"policies/baseline.toml"}
    (library / "payments.toml").rename(tmp_path / "d/policies/payments.toml")
    assert "payments-over-1000" in {rule.id for rule in read_deployment(tmp_path / "d/config.toml").rules}


def test_the_secrets_are_new_each_time_and_for_this_user_alone(tmp_path):
    before = os.umask(0)
    try:
        tokens = {lay(tmp_path / name) for name in "ab"}
    finally:
        os.umask(before)
    assert len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens)
    assert mode(tmp_path / "a/secrets") == 0o700
    assert {mode(path) for path in (tmp_path / "a/secrets").iterdir()} == {0o600}
    assert {path.name for path in (tmp_path / "a/secrets").iterdir()} == {"pepper", "admin-token"}
    assert (tmp_path / "a/secrets/pepper").read_text() != (tmp_path / "b/secrets/pepper").read_text()


def test_the_token_is_shown_once_with_the_next_commands_and_the_pepper_never(tmp_path):
    folder = tmp_path / "d"
    done = CliRunner().invoke(init, [str(folder)])
    assert done.exit_code == 0
    assert done.output.count((folder / "secrets/admin-token").read_text().strip()) == 1
    assert (folder / "secrets/pepper").read_text().strip() not in done.output
    assert [line.strip().split()[1] for line in done.output.splitlines() if line.startswith("  lockgate ")] == ["simulate", "keys", "people", "serve"]
    assert f"\n  cd {folder}\n" in done.output
    assert "--config" not in done.output


def test_the_commands_to_go_on_with_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    assert f"\n  cd '{tmp_path}/a b'\n" in CliRunner().invoke(init, [str(tmp_path / "a b")]).output


def test_git_is_told_to_leave_secrets_and_databases_alone(tmp_path):
    lay(tmp_path / "d")
    assert {"secrets/", "*.db*"} <= set((tmp_path / "d/.gitignore").read_text().splitlines())
    assert not (tmp_path / "d/config.toml.part").exists()


def test_an_empty_folder_is_taken_and_one_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    lay(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/.hidden").write_text("mine")
    with pytest.raises(SetupError, match="is not empty; nothing was changed"):
        lay(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == [".hidden"]
    with pytest.raises(SetupError, match="is not empty"):
        lay(tmp_path / "empty")


@pytest.mark.parametrize("place", ["file", "file/below", "loop"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SetupError, match="Cannot make the deployment"):
        lay(tmp_path / place)


def test_a_half_made_folder_has_no_configuration_to_start_with(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "secrets")

    monkeypatch.setattr("gateway.cli.init._write_secret", full)
    with pytest.raises(SetupError, match="No space left on device"):
        lay(tmp_path / "d")
    assert not (tmp_path / "d/config.toml").exists()


def test_a_configuration_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        lay(tmp_path / "d")
    assert not (tmp_path / "d/config.toml").exists()
