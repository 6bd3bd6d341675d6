"""What a server does with the process it has for itself: its loop, its limits, its memory. An embedded gateway leaves these to its host."""

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

if sys.platform == "win32":
    from asyncio import new_event_loop
else:
    import resource

    from uvloop import new_event_loop

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a loop of its own: uvloop's, everywhere but on Windows."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


def allow_descriptors(needed: int) -> None:
    """Raise the soft limit of open files to the hard one, and say so where that is not enough: the usual 1,024 are 500 calls."""
    if sys.platform == "win32":
        return
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        click.echo(f"warning: only {hard} files may be open, and `server.max_in_flight` may need {needed}: raise `ulimit -n`", err=True)


def settle_memory() -> None:
    """Take what was loaded at the start out of the garbage collector's rounds, and make the rounds rarer: a fifth of a call's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def say_no_reload() -> None:
    """A hang-up (a closed terminal, a habit) must not end the gateway, and does not change its settings either."""
    click.echo("SIGHUP: settings, routes and rules are read at the start; restart to change them", err=True)
