"""What a server does with a process of its own: its loop, limits, memory and signals. An embedded gateway leaves these to its host."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
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
        asked = "`server.max_in_flight` and `approvals.max_held`"
        click.echo(f"warning: only {hard} files may be open, and {asked} may need {needed}: raise `ulimit -n`", err=True)


def settle_memory() -> None:
    """Take what was loaded at the start out of the garbage collector's rounds, and make the rounds rarer: a fifth of a call's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class Signalled:
    """A signal that asks for something: SIGHUP for a reload, SIGUSR2 for a restart. One that comes before anybody waits is not lost."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._came = asyncio.Event()

    def listen(self) -> None:
        """Take the signal on the running loop: from now on it ends nothing."""
        asyncio.get_running_loop().add_signal_handler(self._number, self._came.set)

    async def asked(self) -> AsyncIterator[None]:
        """Yield for each, or once for several that came meanwhile."""
        while True:
            await self._came.wait()
            self._came.clear()
            yield
