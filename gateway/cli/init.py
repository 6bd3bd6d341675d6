"""`lockgate init`: a deployment folder that starts as it is. Never touches what is already there."""

import os
import secrets
import shlex
import shutil
from pathlib import Path
from typing import Final

import click

from gateway.errors import SetupError
from gateway.plugins import shipped

_SECRET_BYTES: Final = 32
_LIBRARY: Final = "policies/library"  # rules to take from: no deployment reads them where they stand
_GITIGNORE: Final = """\
# What must not leave this machine: secrets, and a database that may hold what people asked.
secrets/
*.db*
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init(*, folder: Path) -> None:
    """Make a deployment in DIR: configuration, rules, routes, an admin token (shown once).

    It works as it is with `lockgate simulate` as the provider; no account is needed.
    """
    token = lay(folder)
    click.echo(f"Made {folder}: config.toml, policies/ (with a library to take rules from), routes/, adapters/, secrets/.\n")
    click.echo(f"Admin token (shown once, kept in {folder / 'secrets' / 'admin-token'}):\n\n  {token}\n")
    click.echo("Next:\n\n"
               f"  cd {shlex.quote(str(folder))}\n"
               "  lockgate simulate --port 9090   # the provider; leave it running, and go on in a second terminal, in the same folder\n"
               "  lockgate keys create --name me  # shows your key, once\n"
               "  lockgate people create ada --permission admin --role approver  # somebody who logs in at /-/admin; asks for a password\n"
               "  lockgate serve\n")


def lay(folder: Path) -> str:
    """Lay out a new deployment and return its admin token. Raises `SetupError` where something is already there."""
    token = secrets.token_urlsafe(_SECRET_BYTES)
    try:
        _make_empty(folder)
        for kind, pattern in (("policies", "*.toml"), (_LIBRARY, "*"), ("routes", "*.toml"), ("adapters", "README.md")):
            _copy(kind, pattern, folder)
        (folder / "secrets").mkdir(mode=0o700)
        _write_secret(folder / "secrets" / "pepper", secrets.token_urlsafe(_SECRET_BYTES))
        _write_secret(folder / "secrets" / "admin-token", token)
        (folder / ".gitignore").write_text(_GITIGNORE)
        # The last, and at once: nothing runs on a folder that is half made or with a configuration that is half there.
        shutil.copyfile(shipped("config.example.toml"), folder / "config.toml.part")
        (folder / "config.toml.part").replace(folder / "config.toml")
    except OSError as error:
        raise SetupError(f"Cannot make the deployment in {folder}: {error.strerror} ({error.filename}). "
                         "Choose a folder that you may write to; remove what is half-made.") from error
    return token


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SetupError(f"{folder} is not empty; nothing was changed. Name a folder that is new or empty.")


def _copy(kind: str, pattern: str, folder: Path) -> None:
    """The shipped files of one kind, without their modes: what is installed may be read-only."""
    (folder / kind).mkdir()
    for path in sorted(shipped(kind).glob(pattern)):
        shutil.copyfile(path, folder / kind / path.name)


def _write_secret(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # never readable by others, not even for a moment
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{value}\n")
