"""Processes that approve, claim and end until they are killed: `approving_process.py DATABASE SEED KILLS`.

Each round forks two of them on the same file and kills both with SIGKILL after a number of lines that they have said; the next two are born
under their names. Prints what they said once it was on disk. The process that forks has no thread and no database open.
"""

import asyncio
import gc
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from gateway.core.approval import Event, NotPossibleError, Result, State, Ticket
from gateway.core.approval_bounds import Bounds
from gateway.errors import StoreError
from gateway.store.approvals_protocol import Claim, TicketFilter
from gateway.store.protocol import Admitted, Intent
from gateway.store.sqlite import SqliteStore

_spec = importlib.util.spec_from_file_location("approval_samples", Path(__file__).with_name("approval_samples.py"))
assert _spec is not None
assert _spec.loader is not None
some = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(some)

S = some.S
NAMES = ("one", "two")
AT_ONCE = 6
MOST_LINES = 40
LONGEST_S = 60
EFFECTS = ("idempotent", "at_most_once", "model")


class Approver:
    """The `number`th process. What it says goes to `line`."""

    def __init__(self, path: str, name: str, dice: random.Random, number: int, line: int) -> None:
        self.store = SqliteStore(path, name, synchronous="normal")
        self.store.approvals.tell(some.told)
        self.dice, self.number, self.line = dice, number * 1_000_000, line  # its numbers are no other's
        self.now_ns = some.NOW_NS + number // len(NAMES) * 30 * S

    async def run(self) -> None:
        await self.store.start(now_ns=self.now_ns)
        await asyncio.gather(*(self._work() for _ in range(AT_ONCE)))

    async def _work(self) -> None:
        verbs = (self._open, self._vote, self._vote, self._claim, self._claim, self._claim, self._release, self._withdraw, self._sweep, self._resolve)
        while True:
            self.now_ns += self.dice.choice((0, 1, S))
            try:
                await self.dice.choice(verbs)()
            except NotPossibleError:
                continue  # somebody else was faster

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _say(self, *words: object) -> None:
        os.write(self.line, (" ".join(map(str, words)) + "\n").encode())

    async def _some(self, *states: State) -> Ticket | None:
        fit = await self.store.approvals.list(TicketFilter(states=states, newest=True, limit=8))
        return self.dice.choice(fit) if fit else None

    async def _open(self) -> None:
        n, action = self._next(), self.dice.randrange(6)
        ticket = some.ticket(
            n, presented=some.digest(action), digest=some.digest(action), demands=(some.TWO if action % 2 else some.ONE,),
            effect=EFFECTS[action % 3], created_ns=self.now_ns, expires_ns=self.now_ns + 300 * S)
        await self.store.approvals.open(ticket, [some.notice(n, ticket=ticket.id)], bounds=Bounds(50))

    async def _vote(self) -> None:
        ticket = await self._some(State.PENDING)
        if ticket is None:
            await self._open()
            return
        person = self.dice.choice(("ada", "bob", "eve"))
        vote = some.vote(ticket, person, "deny" if self.dice.random() < 0.1 else "approve", at_ns=self.now_ns)
        voted = await self.store.approvals.vote(ticket.id, vote, grant=some.grant(self._next()) if self.dice.random() < 0.2 else None)
        self._say("voted", ticket.id, person, voted.state)

    async def _claim(self) -> None:
        ticket = await self._some(State.APPROVED)
        if ticket is None:
            await self._vote()
            return
        n = self._next()
        grants = tuple(each.id for each in await self.store.approvals.grants(live_at_ns=self.now_ns, limit=1))
        record = some.samples.record(n, decision="held", approval=ticket.id, received_ns=self.now_ns)
        claim = Claim(ticket.id, ticket.digest, ticket.fence)
        answer = await self.store.journal.begin(Intent(record, some.samples.TARGET, b"{}", claim=claim, grants=grants, now_ns=self.now_ns))
        if isinstance(answer, Admitted):
            self._say("claimed", ticket.id, ticket.fence + 1, record.id)
            await self._end(n, ticket)

    async def _end(self, n: int, ticket: Ticket) -> None:
        event = self.dice.choice((Event.SUCCEED, Event.SUCCEED, Event.FAIL, Event.LOSE, Event.RETURN))
        attempt = some.samples.attempt(1, started_ns=self.now_ns, ended_ns=self.now_ns, first_byte_ns=None)
        record = some.samples.completed(
            n, decision="held", approval=ticket.id, approval_end=event, attempts=(attempt,), received_ns=self.now_ns, ended_ns=self.now_ns)
        await self.store.journal.finish(record, response=None, result=Result(200, "application/json", b"{}"))
        self._say("ended", ticket.id, ticket.fence + 1, event)

    async def _release(self) -> None:
        ticket = await self._some(State.APPROVED)
        if ticket is not None and self.dice.random() < 0.3:
            call_id = some.samples.call_id(self._next())
            claim = Claim(ticket.id, ticket.digest, ticket.fence)
            if await self.store.approvals.release(claim, call_id=call_id, keep=False, now_ns=self.now_ns):
                self._say("claimed", ticket.id, ticket.fence + 1, call_id)

    async def _withdraw(self) -> None:
        ticket = await self._some(State.PENDING, State.APPROVED)
        if ticket is not None and self.dice.random() < 0.1:
            await self.store.approvals.happen(ticket.id, Event.WITHDRAW, now_ns=self.now_ns)

    async def _resolve(self) -> None:
        ticket = await self._some(State.UNKNOWN)
        if ticket is not None:
            await self.store.approvals.happen(ticket.id, Event.SUCCEED, now_ns=self.now_ns, author="ada", fence=ticket.fence)

    async def _sweep(self) -> None:
        await self.store.approvals.sweep(now_ns=self.now_ns, results_before_ns=0)
        for notice in await self.store.outbox.take(str(self.number), now_ns=self.now_ns, until_ns=self.now_ns + S, limit=3):
            await self.store.outbox.done(notice.id, now_ns=self.now_ns)


def _forked(work: Coroutine[Any, Any, None]) -> int:
    child = os.fork()
    if child:
        work.close()
        return child
    signal.alarm(LONGEST_S)  # where nobody kills it, because it has nothing more to say
    code = 1
    try:
        asyncio.run(work)
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
    finally:
        os._exit(code)


def main(path: str, seed: int, kills: int) -> None:
    """Fork, listen, kill."""
    dice = random.Random(seed)
    gc.freeze()
    for number in range(0, kills, len(NAMES)):
        heard, line = os.pipe()
        children = [
            _forked(Approver(path, name, random.Random(dice.random()), number + n, line).run())
            for n, name in enumerate(NAMES)]
        os.close(line)
        with os.fdopen(heard, "rb") as lines:
            for _ in range(dice.randrange(1, MOST_LINES)):
                sys.stdout.buffer.write(lines.readline())
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                ended = os.WTERMSIG(os.waitpid(child, 0)[1])
                assert ended == signal.SIGKILL, "it ended by itself"
            sys.stdout.buffer.write(b"".join(each for each in lines if each.endswith(b"\n")))
        sys.stdout.buffer.write(b"killed\n" * len(children))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
