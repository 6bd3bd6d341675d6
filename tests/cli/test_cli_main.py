"""What every command has in common: one style of errors, and an end that fits when nobody can read what is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCKGATE = (sys.executable, "-m", "gateway.cli")


def run(*arguments: str, cwd: Path, stdout: int = subprocess.PIPE, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [*LOCKGATE, *arguments], cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, env=environ, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("nope",), 2, "error: No such command 'nope'."),
    (("calls", "tail", "--nope"), 2, "error: No such option '--nope'."),
    (("keys", "create"), 2, "error: Missing option '--name'."),
    (("calls", "tail"), 1, "error: config.toml: "),
    (("doctor", "missing.db"), 2, "error: there is no file missing.db"),
    (("check",), 1, "error: config.toml: "),
])
def test_every_failure_is_told_in_the_same_style(tmp_path, arguments, code, error):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith(error)
    assert "Error:" not in done.stderr


def test_every_problem_of_a_configuration_is_an_error_of_its_own(tmp_path):
    (tmp_path / "config.toml").write_text("[a]\n[b]\n")
    lines = run("keys", "list", cwd=tmp_path).stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("error: ") for line in lines)


def test_a_group_without_a_command_shows_its_help(tmp_path):
    done = run("keys", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage:")
    assert "rotate" in done.stderr


def test_help_names_the_environment_variable_of_the_configuration(tmp_path):
    assert "LOCKGATE_CONFIG" in run("calls", "tail", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--help",), ("init", "d")])
def test_a_reader_that_went_away_is_no_error(tmp_path, arguments, unbuffered):
    ours, theirs = os.pipe()
    os.close(ours)
    done = run(*arguments, cwd=tmp_path, stdout=theirs, unbuffered=unbuffered)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--help",), ("init", "d")])
def test_an_output_that_cannot_be_written_is_a_short_error(tmp_path, arguments, unbuffered):
    full = os.open("/dev/full", os.O_WRONLY)
    done = run(*arguments, cwd=tmp_path, stdout=full, unbuffered=unbuffered)
    os.close(full)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to standard output: No space left on device\n")
