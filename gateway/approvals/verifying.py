"""Finds out what came of approved actions of which nobody knows the end: by a tool that only reads, where the declaration names one.

Every process looks for itself: a read does no harm, and of two that find the same out the ticket's fence lets one say it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.approvals.performing import origin_in, principal_in
from gateway.approvals.tickets import found_out
from gateway.call import AttemptEnd, Call, Json, JsonObject, Reply
from gateway.clock import Clock, Ids
from gateway.core.approval import Event, NotPossibleError, State, Ticket
from gateway.core.condition import ConditionError
from gateway.core.decision import Allowed, Decision
from gateway.core.verify import Verify
from gateway.errands import VERIFY
from gateway.errors import StoreError, StoreUnavailable
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals
from gateway.telemetry import Telemetry
from gateway.tools import OPERATION
from gateway.wire.strict_json import dumps

_MOST: Final = 16  # reads under way at a time
_DIALECT: Final = "tools"
_AUTHOR: Final = "gateway"


class Reader(Protocol):
    """Makes calls of the gateway's own, and settles them."""

    async def read(self, case: Progress, call: Call, snapshot: Snapshot) -> Reply | None:
        """The answer of a tool that reads; None where there is none."""


@dataclass(slots=True)
class _Search:
    """How far the search for one ticket's end is. `over`: it cannot be found out."""

    due_s: float
    tries: int = 0
    running: bool = False
    over: bool = False


class Verifier:
    """Owns the searches of one process. `round` is called now and then with every ticket whose end nobody knows."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], approvals: Approvals, reader: Reader, telemetry: Telemetry, clock: Clock, ids: Ids,
    ) -> None:
        self._snapshot = snapshot
        self._approvals = approvals
        self._reader = reader
        self._telemetry = telemetry
        self._clock = clock
        self._ids = ids
        self._searches: dict[tuple[str, int], _Search] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Verifier({len(self._searches)} searches, {len(self._tasks)} reads)"

    def round(self, unknown: Sequence[Ticket]) -> list[Ticket]:
        """Begin the reads that are due. Gives the tickets whose end cannot be found out by itself: a person has to say it."""
        now_s, tools = self._clock.monotonic(), self._snapshot().tools
        keys = {(ticket.id, ticket.fence) for ticket in unknown}
        self._searches = {key: search for key, search in self._searches.items() if key in keys or search.running}
        for_people: list[Ticket] = []
        for ticket in unknown:
            tool = tools.get(ticket.tool)
            verify = tool.verify if tool is not None else None
            if verify is None:
                for_people.append(ticket)
                continue
            search = self._searches.setdefault((ticket.id, ticket.fence), _Search(now_s + verify.after_s))
            if search.over:
                for_people.append(ticket)
            elif not search.running and search.due_s <= now_s and len(self._tasks) < _MOST:
                self._begin(ticket, verify, search)
        return for_people

    async def idle(self) -> None:
        """Wait until no read is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """End the reads that are under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, ticket: Ticket, verify: Verify, search: _Search) -> None:
        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            search.running = False
            if not done.cancelled() and (error := done.exception()) is not None:
                self._telemetry.event("error", "verify_failed", ticket=ticket.id, error=f"{type(error).__name__}: {error}")

        search.running = True
        search.tries += 1
        search.due_s = self._clock.monotonic() + verify.every_s
        task = asyncio.get_running_loop().create_task(self._look(ticket, verify, search))
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _look(self, ticket: Ticket, verify: Verify, search: _Search) -> None:
        """One read, and what it says. The last one decides, where those before it did not say that the action happened."""
        try:
            latest = await self._approvals.get(ticket.id)
            if latest is None or latest.state is not State.UNKNOWN or latest.fence != ticket.fence:
                return  # somebody has said it meanwhile
            happened = await self._asked(ticket, verify)
            last = search.tries >= verify.attempts
            if happened:
                await self._say(ticket, verify, Event.SUCCEED, "verified: it happened")
            elif happened is False and last:
                await self._say(ticket, verify, Event.FAIL, "verified: it did not happen")
            else:
                search.over = last
        except (StoreUnavailable, StoreError):
            search.tries -= 1  # nothing was found out, nor asked

    async def _asked(self, ticket: Ticket, verify: Verify) -> bool | None:
        """Whether the action happened; None where the answer does not say."""
        try:
            status, result = await self._read(ticket, verify)
            return verify.says(status, result)
        except ConditionError as error:
            self._telemetry.event("warning", "verify_unreadable", ticket=ticket.id, tool=verify.tool, error=str(error))
            return None

    async def _read(self, ticket: Ticket, verify: Verify) -> tuple[int, Json]:
        """The status and the words of the tool that reads. Raises `ConditionError` where there are none."""
        arguments: JsonObject = verify.asks(ticket.shown["arguments"], ticket.id)
        snapshot, call_id, now_ns = self._snapshot(), self._ids.call_id(), self._clock.now_ns()
        if verify.tool not in snapshot.tools:
            raise ConditionError("the tool is not declared any more")
        principal, origin = principal_in(ticket), origin_in(ticket)
        call = Call(call_id, principal, _DIALECT, OPERATION, verify.tool, arguments, stream=False, size=len(dumps(arguments)),
                    received_ns=now_ns, origin=origin)
        case = Progress(call_id, _DIALECT, OPERATION, now_ns, snapshot.config.journal.bodies, principal, origin, call=call,
                        tool=verify.tool, decisions=[_declared(snapshot, verify)], labels={VERIFY: None},
                        part_of=ticket.executed_by or ticket.call_id)
        reply = await self._reader.read(case, call, snapshot)
        if reply is not None:
            return reply.body["status"], reply.body["json"] if "json" in reply.body else reply.body["text"]
        last = case.attempts[-1] if case.attempts else None
        if last is None or last.end is not AttemptEnd.REJECTED or last.status is None:
            raise ConditionError("it was not answered")
        return last.status, None

    async def _say(self, ticket: Ticket, verify: Verify, event: Event, reason: str) -> None:
        result = found_out(ticket, f"{verify.tool} says so.") if event is Event.SUCCEED else None
        try:
            await self._approvals.happen(
                ticket.id, event, now_ns=self._clock.now_ns(), author=_AUTHOR, reason=reason, fence=ticket.fence, result=result)
        except NotPossibleError:
            return  # another process has found it out as well, or a person has said it
        self._telemetry.event("info", "approval_verified", ticket=ticket.id, tool=verify.tool, outcome=event.value)


def _declared(snapshot: Snapshot, verify: Verify) -> Decision:
    """No rule is asked about the read: whoever has declared the contract has said that it is to be made."""
    return Allowed(None, None, None, (), (), snapshot.bundle.digest, "tool_call", verify.tool)
