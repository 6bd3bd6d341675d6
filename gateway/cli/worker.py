"""A worker under its supervisor: it reloads when it is told to, and has all workers reload when it is asked to."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from gateway.cli.tie import Tie
from gateway.errors import InternalError, Overloaded
from gateway.reload import Report

RELOAD_S: Final = 60.0  # after which a worker's reload counts as failed; its outcome is told in its log
_PATIENCE_S: Final = 5.0  # for the supervisor, beyond what it gives the workers


class Worker:
    """The worker's side of the tie. `report` reloads this process and says what came of it; `drain_s` is how long its drain may take."""

    def __init__(self, tie: Tie, report: Callable[[], Awaitable[Report]], *, drain_s: float) -> None:
        self._tie = tie
        self._report = report
        self._drain_s = drain_s
        self._asked: dict[int, asyncio.Future[Sequence[Report]]] = {}
        self._reloading: set[asyncio.Task[None]] = set()
        self._questions = 0

    def greet(self) -> None:
        """Say that this worker is ready. It says nothing before that: the supervisor takes the first word for this one."""
        self._tie.send({"ready": True, "drain_s": self._drain_s})

    async def serve(self) -> None:
        """Do as the supervisor says until it is gone."""
        while (message := await self._tie.receive()) is not None:
            if "reload" in message:
                task = asyncio.get_running_loop().create_task(self._reload(message["reload"]))
                self._reloading.add(task)
                task.add_done_callback(self._reloading.discard)
            elif (waiting := self._asked.get(message["told"])) is not None and not waiting.done():
                waiting.set_result(message["reports"])

    async def everywhere(self) -> Sequence[Report]:
        """Have every worker reload; what came of it in each. Raises `Overloaded` where the supervisor does not answer."""
        self._questions = question = self._questions + 1
        self._asked[question] = waiting = asyncio.get_running_loop().create_future()
        self._tie.send({"ask": question})
        try:
            async with asyncio.timeout(RELOAD_S + _PATIENCE_S):
                reports: Sequence[Report] = await waiting
        except TimeoutError as late:
            raise Overloaded("The workers have not all answered; see the log for what came of it in each.") from late
        finally:
            del self._asked[question]
        return reports

    async def _reload(self, number: int) -> None:
        """Answers whatever happens: the others wait for it. What is no error of the files is a defect, and the event loop tells of it."""
        report: Report = {"pid": os.getpid(), "ok": False, "code": InternalError.code, "message": "A defect; see the log.", "problems": []}
        try:
            report = await self._report()
        finally:
            self._tie.send({"done": number, "report": report})
