"""Two attempts beside each other: which of them ends the race, and how the other one is let go. Owns no attempt."""

import asyncio
from collections.abc import Iterable
from typing import TypeAlias

from gateway.call import Reply
from gateway.core.answer_checks import NOT_ACCEPTED
from gateway.errors import AttemptFailed
from gateway.relay import Source

Answered: TypeAlias = Reply | Source


class NotAccepted(AttemptFailed):
    """A cascade goes on from this answer, which is given all the same where nobody has another one, and validators let it pass."""

    def __init__(self, answer: Answered, reply: Reply, message: str, *, valid: bool) -> None:
        super().__init__(NOT_ACCEPTED, message, retryable=False)
        self.answer = answer
        self.reply = reply
        self.valid = valid
        self.n = 0  # of the attempt that brought it


class Unfit(AttemptFailed):
    """An answer that validators do not let pass; `reply` is the whole of it, for people to look at where no other answer comes."""

    def __init__(self, cause: str, message: str, reply: Reply) -> None:
        super().__init__(cause, message, retryable=True)
        self.reply = reply


def let_go(work: asyncio.Future[Answered]) -> None:
    """End work whose answer nobody waits for any more; where it has one all the same, its provider stops at once."""
    work.cancel()
    work.add_done_callback(_abort_answer)


def _abort_answer(work: asyncio.Future[Answered]) -> None:
    if not work.cancelled() and work.exception() is None and not isinstance(got := work.result(), Reply):
        got.abort()


def answers(task: asyncio.Task[Answered]) -> bool:
    """Whether this ends the race: with an answer, or with an end that another attempt would not better."""
    if not task.done():
        return False
    return task.cancelled() or not isinstance(error := task.exception(), AttemptFailed) or isinstance(error, NotAccepted)


async def first_answer(racing: Iterable[asyncio.Task[Answered]]) -> asyncio.Task[Answered]:
    """The first of two that has an answer, or that says that the request itself is refused; the first one where both fail."""
    tasks = list(racing)
    left = set(tasks)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if answers(task):
                return task
        if not left:
            return tasks[0]
