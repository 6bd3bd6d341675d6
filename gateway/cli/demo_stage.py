"""What the demo stands on: its child processes, the commands that it runs, and what it insists on."""

import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click

from gateway.errors import SetupError

READY_S: Final = 30.0
_LOCKGATE: Final = (sys.executable, "-m", "gateway.cli")


class DemoFailed(SetupError):
    """Something the demo promises did not happen."""


class Processes:
    """The demo's child processes; all of them are gone when the demo ends."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, cwd: Path) -> tuple[subprocess.Popen[bytes], str]:
        """Start one `lockgate` command and wait for the address in its ready line."""
        log = (cwd / f"{arguments[0]}-{len(self._running)}.log").open("wb")
        with log:
            process = subprocess.Popen([*_LOCKGATE, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=log)  # noqa: S603 - our own commands
        self._running.append(process)
        line = _first_line(process)
        if " ready on " not in line:
            raise DemoFailed(f"`lockgate {arguments[0]}` did not start: {line or Path(log.name).read_text().strip()}")
        return process, line.rsplit(" ready on ", 1)[1].strip()

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End one process and wait until it is gone."""
        process.terminate()
        try:
            process.wait(timeout=READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._running.remove(process)

    def stop_all(self) -> None:
        """End them all, the last one started first."""
        for process in reversed(self._running.copy()):
            self.stop(process)


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline().decode() if selector.select(READY_S) else ""


def lockgate(cwd: Path, *arguments: str) -> str:
    """Run one command to its end; what it printed. Raises `DemoFailed`."""
    done = subprocess.run([*_LOCKGATE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=READY_S, check=False)  # noqa: S603 - our own commands
    if done.returncode != 0:
        raise DemoFailed(f"`lockgate {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def say(what: str, text: str, headers: Any) -> None:
    """Tell what happened, and what the answer said about itself."""
    click.echo(f"  {what:<10} {text}")
    told = {name: headers.get(f"x-lockgate-{name}") for name in ("decision", "rule", "approval", "target", "attempts", "cost-usd")}
    click.echo("             " + "  ".join(f"{name}={value}" for name, value in told.items() if value is not None))


def expect(happened: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence at the call
    """Raise `DemoFailed` where it did not."""
    if not happened:
        raise DemoFailed(f"It did not happen that {what}.")
