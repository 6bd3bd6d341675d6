"""The command line. Commands are loaded when they are called, so that `lockgate --help` starts at once."""

import sys
import traceback
from importlib import import_module

import click

from gateway import __version__
from gateway.errors import LockgateError

# name: (module, attribute, the line shown by `lockgate --help`). A literal, so that help needs no import.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("gateway.cli.serve", "serve", "Run the gateway."),
    "init": ("gateway.cli.init", "init", "Make a deployment folder that starts as it is."),
    "demo": ("gateway.cli.demo", "demo", "Show it working: real processes, a simulated provider, the official client."),
    "simulate": ("gateway.cli.simulate", "simulate", "Run a provider that behaves, or misbehaves, as told."),
    "check": ("gateway.cli.check", "check", "Load, compile and check the whole configuration."),
    "keys": ("gateway.cli.keys", "keys", "Create, list, revoke and rotate virtual keys."),
    "calls": ("gateway.cli.calls", "calls", "See what was called, what was decided and what it cost."),
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
    """The console script, and one of the three places that may catch everything."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away, `| head` for one: not an error
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the command line's boundary
        if "--debug" in sys.argv:
            traceback.print_exc()
        elif isinstance(error, LockgateError):
            click.echo(f"error: {error.message}", err=True)
        else:
            click.echo(f"error: {type(error).__name__}: {error}\nThis is a defect; run again with `lockgate --debug …`.", err=True)
        sys.exit(1)
