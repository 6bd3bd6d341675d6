"""A secret is found where its reference points, or it is said what to do, and it shows itself nowhere."""

import os
import pickle
import traceback
from pathlib import Path

import pytest

from gateway.secret import Secret, resolve


def refusal(reference: str, environ: dict[str, str], folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(reference, environ, folder)
    return str(caught.value)


def test_a_reference_to_the_environment_or_a_file_is_resolved(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_text("from-a-file\r\n")
    assert resolve("env:KEY", {"KEY": "from-the-environment\n"}, tmp_path).reveal() == "from-the-environment"
    assert resolve("file:secrets/key", {}, tmp_path).reveal() == "from-a-file"
    assert resolve(f"file:{tmp_path}/secrets/key", {}, Path("/")).reveal() == "from-a-file"


def test_what_is_not_there_is_said_with_what_to_do(tmp_path):
    assert refusal("env:KEY", {}, tmp_path) == "the environment variable KEY is not set; export it before the start"
    assert "No such file" in refusal("file:none", {}, tmp_path)
    assert "env:NAME" in refusal("sk-abc", {}, tmp_path)


@pytest.mark.parametrize("value", ["", "\n", "a\nb", "a\x00b", "ключ", "tab\tbed", "\x1b[2J", "a\r\nx-evil: 1"])
def test_a_value_that_no_header_can_carry_is_refused_without_being_shown(tmp_path, value):
    (tmp_path / "key").write_text(value)
    for message in (refusal("env:KEY", {"KEY": value}, tmp_path), refusal("file:key", {}, tmp_path)):
        assert not value.strip() or value not in message


@pytest.mark.parametrize("kind", ["directory", "loop", "pipe", "large", "binary"])
def test_what_is_not_a_secrets_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "key"
    match kind:
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to("key")
        case "pipe":
            os.mkfifo(path)
        case "large":
            path.write_bytes(b"x" * 70_000)
        case "binary":
            path.write_bytes(b"\xff\xfe")
        case _:
            pass
    assert str(path) in (message := refusal("file:key", {}, tmp_path)) or "the file key" in message


def test_a_secret_shows_itself_nowhere():
    secret = Secret("hunter2")
    try:
        raise RuntimeError(f"{secret} {secret!r} {[secret]}")
    except RuntimeError as error:
        shown = "".join(traceback.format_exception(error))
    assert "hunter2" not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


def test_secrets_are_equal_by_value_and_only_to_secrets():
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
