"""The command line. Commands are loaded when they are called, so that `lockgate --help` starts at once."""

import io
import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from gateway import __version__
from gateway.cli.output import emit_problem
from gateway.errors import ConfigError, LockgateError

# name: (module, attribute, the line shown by `lockgate --help`). A literal, so that help needs no import.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("gateway.cli.serve", "serve", "Run the gateway."),
    "init": ("gateway.cli.init", "init", "Make a deployment folder that starts as it is."),
    "demo": ("gateway.cli.demo", "demo", "Show it working: real processes, a simulated provider, the official client."),
    "simulate": ("gateway.cli.simulate", "simulate", "Run a provider that behaves, or misbehaves, as told."),
    "check": ("gateway.cli.check", "check", "Load, compile and check the whole configuration."),
    "policy": ("gateway.cli.policy", "policy", "Run the rules' cases, explain a call, decide recorded traffic again."),
    "keys": ("gateway.cli.keys", "keys", "Create, list, revoke and rotate virtual keys."),
    "people": ("gateway.cli.people", "people", "Create and change accounts of people; give them passwords and API tokens."),
    "approvals": ("gateway.cli.approvals", "approvals", "See what waits for people; approve, deny and edit it; take back grants."),
    "explain": ("gateway.cli.explain", "explain", "Tell the story of a call, or where one would go."),
    "breakers": ("gateway.cli.breakers", "breakers", "See which targets get calls; open and close their breakers by hand."),
    "calls": ("gateway.cli.calls", "calls", "See what was called, what was decided and what it cost."),
    "sessions": ("gateway.cli.sessions", "sessions", "See what sessions did; freeze, thaw and kill them; set facts that rules read."),
    "budgets": ("gateway.cli.budgets", "budgets", "Who may spend what, what is spent, and on what."),
    "prices": ("gateway.cli.prices", "prices", "See what calls cost and what bounds it before they are sent."),
    "doctor": ("gateway.cli.doctor", "doctor", "Check the invariants on a database."),
}

class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use (click's own recipe for lazily loaded subcommands)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        _ = ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        _ = ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _ = ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_m, _a, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lockgate")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(*, debug: bool) -> None:
    """Lockgate: a policy-first gateway for AI traffic."""
    _ = debug


def main() -> None:
    """The console script, and the boundary where every failure becomes a message and an exit code."""
    out = None
    if sys.stdout is not None:  # None where it was closed before we began
        out = _Stdout()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(out), encoding=sys.stdout.encoding, errors=sys.stdout.errors, line_buffering=True)
    code = _run(out)
    if out is None or out.failure is None:
        sys.exit(code)
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # else the interpreter fails at it once more while it ends
    if isinstance(out.failure, BrokenPipeError):
        sys.exit(0)  # the reader of a pipe went away, `| head` for one: not an error
    click.echo(f"error: cannot write to standard output: {out.failure.strerror}", err=True)
    sys.exit(1)


class _Stdout(io.FileIO):
    """Standard output that remembers why it could not be written, so that this is told apart from any other `OSError`."""

    def __init__(self) -> None:
        super().__init__(1, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _run(out: _Stdout | None) -> int | str | None:
    """Run the command, tell what went wrong, and return the exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        _tell(error)
        return error.exit_code
    except click.Abort:
        return 130
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:  # a command's own exit code; click's for a broken pipe, too
        return stop.code
    except Exception as error:  # noqa: BLE001 - the command line's boundary
        if out is None or out.failure is None:
            _tell_failure(error)
        return 1
    return 0


def _tell(error: click.ClickException) -> None:
    """Every failure looks the same, also one of usage, for which click has a style of its own."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
    click.echo(f"error: {error.format_message()}", err=True)


def _tell_failure(error: Exception) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    elif isinstance(error, ConfigError):
        for problem in error.problems:
            emit_problem(problem)
    elif isinstance(error, LockgateError):
        emit_problem(error.message)
    else:
        click.echo(f"error: {type(error).__name__}: {error}\nThis is a defect; run again with `lockgate --debug …`.", err=True)
