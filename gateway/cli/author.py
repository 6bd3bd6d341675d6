"""Who changes something from the command line, and why: options that every such command has."""

import getpass
import os
from collections.abc import Callable

import click

from gateway.cli.output import config_option, json_option


def user() -> str:
    """The name of who works here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return f"uid {os.getuid()}"


def stamped(command: Callable[..., None]) -> Callable[..., None]:
    """The options of everything that changes something."""
    for option in (
        json_option, config_option,
        click.option("--note", default="", help="Why, for the history."),
        click.option("--author", default=user, show_default="the user of this system", help="Who, for the history."),
    ):
        command = option(command)
    return command
